"""What callers wait for."""

from __future__ import annotations

from typing import Any


class Operation:
    """Something a caller waits for. Ends once: `done` is True, and `error` says how it failed, if it did."""

    __slots__ = ("done", "error", "wake")

    def __init__(self) -> None:
        self.done = False
        self.error: BaseException | None = None
        self.wake: Any = None  # released when done, if another thread makes the progress

    def finish(self, error: BaseException | None = None) -> None:
        if self.done:
            return
        self.error = error
        self.done = True
        if self.wake is not None:
            self.wake()
