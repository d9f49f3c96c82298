"""What callers wait for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any


class Operation:
    """Something a caller waits for. Ends once: `done` is True, and `error` says how it failed, if it did."""

    __slots__ = ("done", "error", "wake")

    def __init__(self) -> None:
        self.done = False
        self.error: BaseException | None = None
        self.wake: Any = None  # called when done: whoever waits may be asleep, in this thread or another

    def finish(self, error: BaseException | None = None) -> None:
        if self.done:
            return
        self.error = error
        self.done = True
        if self.wake is not None:
            self.wake()


class Together(Operation):
    """Several operations as one: done when all of them are, or as soon as one has failed."""

    __slots__ = ("_left",)

    def __init__(self, operations: Iterable[Operation]) -> None:
        super().__init__()
        self._left = 0
        for operation in operations:
            if not operation.done:
                self._left += 1
                operation.wake = partial(self._one_ended, operation)
            elif operation.error is not None:
                self.finish()
        if not self._left:
            self.finish()

    def _one_ended(self, operation: Operation) -> None:
        self._left -= 1
        if not self._left or operation.error is not None:
            self.finish()
