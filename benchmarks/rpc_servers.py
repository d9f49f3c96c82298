"""What runs in the places of `rpc_ours.py`: they import this module, and nothing of the benchmark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rmpi import rpc

if TYPE_CHECKING:
    from rmpi.places import Mailbox


class Adder(rpc.Server):
    """Adds, and counts what was cast."""

    def __init__(self) -> None:
        self._casts = 0

    @rpc.call
    def add(self, a: int, b: int) -> int:
        return a + b

    @rpc.cast
    def note(self, _number: int) -> None:
        self._casts += 1

    @rpc.call
    def casts(self) -> int:
        return self._casts

    @rpc.call
    def count(self, limit: int) -> Iterator[int]:
        yield from range(limit)


def client(mailbox: Mailbox, adder: Adder, pause: float) -> None:
    """Call every ``pause`` seconds until told to end; then say how often that was, and how long the slowest took."""
    calls, slowest = 0, 0.0
    mailbox.put("ready")
    while not mailbox.poll():
        started = time.perf_counter()
        assert adder.add(2, 3) == 5
        slowest = max(slowest, time.perf_counter() - started)
        calls += 1
        time.sleep(pause)
    mailbox.put((calls, slowest))
