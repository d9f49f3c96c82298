"""Warnings that strangers can cause: the first ones are said, and of the rest how many there were."""

from __future__ import annotations

from collections.abc import Callable

from rmpi.places.loop import Loop

MOST = 20
"""Lines in one period."""

PERIOD = 60.0
"""Seconds."""


class Sparing:
    """Says lines to somebody, but not arbitrarily many.

    Args:
        say: Says one.
        what: What lines that were left out were about: "connections that were turned away".
    """

    def __init__(self, loop: Loop, say: Callable[[str], None], what: str) -> None:
        self._loop = loop
        self._say = say
        self._what = what
        self._count = 0

    def __call__(self, line: str) -> None:
        """Say that line, or count it."""
        if not self._count:
            self._loop.call_later(PERIOD, self._sum_up)
        self._count += 1
        if self._count <= MOST:
            self._say(line)

    def _sum_up(self) -> None:
        left_out, self._count = self._count - MOST, 0
        if left_out > 0:
            self._say(f"there were {left_out} more {self._what} in {PERIOD:g} s")
