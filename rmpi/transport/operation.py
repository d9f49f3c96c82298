"""What callers wait for.

An operation ends once, within progress, the lock held. Who sleeps until then is told by `Operation.wake`, of which
there is one, because a blocking call has its operation to itself. Others who want to know, each for a while, *watch*
it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from rmpi.deadline import Deadline


class Awaited(NamedTuple):
    """What must happen for an operation to end: ``peer`` (None: anybody) sends a message, or takes one of ours.

    In a collective context the tag is the number of the call; None is any tag.
    """

    peer: int | None
    context: int
    tag: int | None
    incoming: bool


Patience = tuple[Deadline, Callable[[], None]]
"""When a wait has taken so long that somebody should hear of it, and whom to call then."""


class Operation:
    """Something a caller waits for. Ends once: `done` is True, and `error` says how it failed, if it did."""

    __slots__ = ("__weakref__", "done", "error", "wake", "watchers")

    patience: Patience | None = None  # some kinds have one, until it was lost

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
            for watcher in tuple(self.watchers):
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
        """Call it no more. One step without the lock: the garbage collector, too, ends what watches."""
        if self.watchers is not None:
            with suppress(ValueError):
                self.watchers.remove(watcher)

    def lose_patience(self) -> None:
        """Let those hear of it who should, once."""

    def awaited(self) -> Awaited | None:
        """What it waits for, to be told to the user; None if that cannot be said. The lock is held."""
        return None


class Together(Operation):
    """Several operations as one: done when all of them are, or as soon as one has failed.

    Args:
        first: Done as soon as one is, in whichever way.
    """

    __slots__ = ("_first", "_left", "_watchers")

    def __init__(self, operations: Iterable[Operation], *, first: bool = False) -> None:
        super().__init__()
        self._first = first
        self._watchers = [(operation, partial(self._one_ended, operation)) for operation in operations]
        self._left = len(self._watchers)
        for operation, watcher in self._watchers:
            operation.watch(watcher)
        if not self._watchers:
            self.finish()

    def _one_ended(self, operation: Operation) -> None:
        self._left -= 1
        if not self._left or self._first or operation.error is not None:
            self.finish()

    def let_go(self) -> None:
        """Stop watching: the operations go on without this one."""
        for operation, watcher in self._watchers:
            operation.unwatch(watcher)


class Series:
    """Several operations, and which of them have ended, one after the other; each is watched only once.

    Attributes:
        ended: Positions of those that have ended and were not asked for; whoever takes one removes it.
        next: Done when there is one more.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.ended: deque[int] = deque()
        self.next = Operation()
        self.operations: Sequence[Operation] = tuple(operations)
        self._watchers = [partial(self._one_ended, position) for position in range(len(self.operations))]
        for operation, watcher in zip(self.operations, self._watchers, strict=True):
            operation.watch(watcher)

    def _one_ended(self, position: int) -> None:
        self.ended.append(position)
        self.next.finish()

    def expect(self) -> None:
        """Have a new `next`, if all that have ended were taken."""
        if not self.ended:
            self.next = Operation()

    def let_go(self) -> None:
        """Stop watching: the operations go on."""
        for operation, watcher in zip(self.operations, self._watchers, strict=True):
            operation.unwatch(watcher)
