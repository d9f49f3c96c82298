"""Ping-pong between ranks 0 and 1: half the round trip, per size. Prints one line of JSON; run by ``links.py``.

Arrays are received in place. For each size the median over batches is taken, after one batch to warm up.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SIZES = [8, 1 << 10, 64 << 10, 1 << 20, 16 << 20]
BATCHES = 7


def batch_length(nbytes: int) -> int:
    """Round trips in one batch: enough to take a few milliseconds."""
    return max(3, min(300, (64 << 20) // max(nbytes, 1)))


def time_batches(round_trip: Callable[[], None], count: int) -> float:
    """Median seconds of half a round trip."""
    halves = []
    for batch in range(BATCHES + 1):
        began = time.perf_counter()
        for _ in range(count):
            round_trip()
        if batch:
            halves.append((time.perf_counter() - began) / count / 2)
    return statistics.median(halves)


def measure(comm: Any) -> dict[str, float]:
    """Seconds by size in bytes, and of an int."""
    results = {}
    for nbytes in SIZES:
        array = np.zeros(nbytes, np.uint8)
        results[str(nbytes)] = time_batches(_ping(comm, array, np.empty_like(array)), batch_length(nbytes))
    results["int"] = time_batches(_ping(comm, 7, None), batch_length(8))
    return results


def _ping(comm: Any, value: Any, out: Any) -> Callable[[], None]:
    def first() -> None:
        comm.send(value, 1)
        comm.recv(1, out=out)

    def second() -> None:
        comm.recv(0, out=out)
        comm.send(value, 0)

    return first if comm.rank == 0 else second


if __name__ == "__main__":
    import rmpi

    comm = rmpi.init()
    results = measure(comm)
    if comm.rank == 0:
        json.dump(results, sys.stdout)
        print()
