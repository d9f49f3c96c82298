"""What callers wait for.

An operation ends once, within progress, the lock held. Who sleeps until then is told by `Operation.wake`, of which
there is one, because a blocking call has its operation to itself. Others who want to know, each for a while, *watch*
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple


class Awaited(NamedTuple):
    """What must happen for an operation to end: ``peer`` (None: anybody) sends a message, or takes one of ours.

    In a collective context the tag is the number of the call; None is any tag.
    """

    peer: int | None
    context: int
    tag: int | None
    incoming: bool


class Operation:
    """Something a caller waits for. Ends once: `done` is True, and `error` says how it failed, if it did."""

    __slots__ = ("done", "error", "wake", "watchers")

    impatient: Callable[[], None] | None = None  # called when somebody has waited for it for a while

    def __init__(self) -> None:
        self.done = False
        self.error: BaseException | None = None
        self.wake: Any = None  # called when done: whoever waits may be asleep, in this thread or another
        self.watchers: list[Callable[[], None]] | None = None  # the same, for those who do not sleep in the crank

    def finish(self, error: BaseException | None = None) -> None:
        if self.done:
            return
        self.error = error
        self.done = True
        if self.wake is not None:
            self.wake()
        if self.watchers:
            for watcher in list(self.watchers):
                watcher()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` when this ends; at once if it has."""
        if self.done:
            watcher()
        elif self.watchers is None:
            self.watchers = [watcher]
        else:
            self.watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        if self.watchers is not None and watcher in self.watchers:
            self.watchers.remove(watcher)

    def awaited(self) -> Awaited | None:
        """What it waits for, to be told to the user; None if that cannot be said. The lock is held."""
        return None


class Together(Operation):
    """Several operations as one: done when all of them are, or as soon as one has failed.

    Args:
        first: Done as soon as one is, in whichever way.
    """

    __slots__ = ("_first", "_left", "_watchers", "parts")

    def __init__(self, operations: Iterable[Operation], *, first: bool = False) -> None:
        super().__init__()
        self.parts: Sequence[Operation] = tuple(operations)
        self._first = first
        self._left = len(self.parts)
        self._watchers = [(operation, partial(self._one_ended, operation)) for operation in self.parts]
        for operation, watcher in self._watchers:
            operation.watch(watcher)
        if not self.parts:
            self.finish()

    def _one_ended(self, operation: Operation) -> None:
        self._left -= 1
        if not self._left or self._first or operation.error is not None:
            self.finish()

    def let_go(self) -> None:
        """Stop watching: the operations go on without this one."""
        for operation, watcher in self._watchers:
            operation.unwatch(watcher)
