"""Messages that were put aside, because whoever took them wanted one of another kind.

They stay queued: per kind in the order in which they came, and in that order altogether.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from rmpi.errors import UsageError
from rmpi.transport.matching import Receive

KindOf = Callable[[Any], Hashable]


class _Every:
    pass


EVERY = _Every()
"""In place of a kind: whichever comes first."""


def kind_of(message: Any) -> Hashable:
    """The kind of a message: the first item of a tuple or list, or what a dict has under ``"type"``; else None.

    So is what cannot be a key of a dictionary: it is no kind.
    """
    match message:
        case tuple() | list() if message:
            kind = message[0]
        case dict():
            kind = message.get("type")
        case _:
            kind = None
    try:
        hash(kind)
    except TypeError:
        return None
    return kind  # type: ignore[no-any-return]


class Came(NamedTuple):
    """A message that has come: its value, from which endpoint, on which box the answer is awaited.

    ``receive`` is what brought it here, if it did so just now, and not earlier, when it was put aside.
    """

    value: Any
    source: int
    tag: int
    receive: Receive | None = None


class Aside:
    """The messages that one channel has put aside. Not thread-safe."""

    def __init__(self, kind_of: KindOf, limit: int) -> None:
        self.kind_of = kind_of
        self.limit = limit
        self._queues: dict[Hashable, deque[tuple[int, Came]]] = {}
        self._count = 0
        self._first = self._last = 0  # numbers in the order in which messages came

    def __len__(self) -> int:
        return self._count

    def check_room(self) -> None:
        """Raise `UsageError` if no more may be put here."""
        if self._count >= self.limit:
            raise UsageError(
                f"{self._count} messages wait that nobody asks for ({', '.join(self.kinds())}): get them too, or allow "
                "for more with typed(limit=)"
            )

    def put(self, came: Came) -> None:
        """It has come later than all that are here."""
        self._last += 1
        self._queue(came).append((self._last, came))
        self._count += 1

    def put_back(self, came: Came) -> None:
        """It was taken first, and nobody got it."""
        self._first -= 1
        self._queue(came).appendleft((self._first, came))
        self._count += 1

    def _queue(self, came: Came) -> deque[tuple[int, Came]]:
        return self._queues.setdefault(self.kind_of(came.value), deque())

    def take(self, kind: Hashable) -> Came | None:
        """The first of that kind."""
        queue = self._queues.get(kind)
        if not queue:
            return None
        came = queue.popleft()[1]
        self._count -= 1
        if not queue:
            del self._queues[kind]
        return came

    def take_first(self) -> Came | None:
        """The first of all."""
        first = min(self._queues, key=lambda kind: self._queues[kind][0][0], default=None)
        return self.take(first)

    def take_kind(self, kind: Hashable) -> Came | None:
        """The first of that kind, or of all if it is `EVERY`."""
        return self.take_first() if kind is EVERY else self.take(kind)

    def kinds(self) -> list[str]:
        """What kinds there are, and how many of each, in words."""
        return [f"{len(queue)} of kind {kind!r}" for kind, queue in self._queues.items()]
