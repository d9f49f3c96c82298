"""Functions that a worker has been sent, as both sides remember them.

What was sent once is not sent again, until it is forgotten; and a method travels with its object, so that there may be
any number of functions of any size. Both sides remember the same, without a word about it, because they do the same in
the same order: the one that was sent first is forgotten first, as soon as there are too many, or they are too large.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")

MOST = 1000
"""Functions that are remembered."""

LARGEST = 1 << 25
"""Bytes that these have, packed; the latest is remembered in any case."""


class Remembered(Generic[T]):
    """What there is to know of each function, by its key."""

    def __init__(self) -> None:
        self._things: dict[bytes, tuple[T, int]] = {}
        self._bytes = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._things

    def __getitem__(self, key: bytes) -> T:
        return self._things[key][0]

    def add(self, key: bytes, thing: T, size: int) -> None:
        """One more, which is not here yet, and perhaps some less.

        Args:
            size: Bytes of the packed function.
        """
        self._things[key] = thing, size
        self._bytes += size
        while len(self._things) > 1 and (len(self._things) > MOST or self._bytes > LARGEST):
            _, forgotten = self._things.pop(next(iter(self._things)))
            self._bytes -= forgotten
