"""What each rank does for `predict.py`, which starts it. Rank 0 prints one line of JSON.

    predict_ranks.py link           how messages travel between two ranks, through the driver of collectives
    predict_ranks.py ping           a small message between two ranks, and no more
    predict_ranks.py core           what one rank alone takes: a call, combining
    predict_ranks.py collectives    every row of predict_rows.py

Messages are measured inside of schedules that the communicator drives, since that is what is to be predicted: a
schedule is a generator, so it can look at the clock between two steps.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from predict_rows import VERBS, Row, rows

import rmpi
from rmpi.comm.communicator import Comm
from rmpi.comm.driver import signature
from rmpi.comm.ops import MAX, SUM
from rmpi.comm.schedule import Recv, Schedule, Send, finished

PING_SIZES = [8, 64, 1 << 10, 8 << 10, 64 << 10, 128 << 10, 512 << 10, 1 << 20, 2 << 20, 8 << 20]
BATCH = 0.03
"""Seconds that messages go there and back, for one figure of several."""

BURST = 16
"""Small messages that are sent while their receiver does something else, and wait for it."""

LATE = 0.3e-3
"""Seconds for which it does: longer than sending them takes."""

STREAM = 500
"""Small messages in a row."""

ITEMS = 256
COMBINED = 512 << 10
"""Bytes of the arrays that combining is measured with: they fit into a core's cache."""

_PROBE = signature("predict_ranks.py")


def link(comm: Comm, batches: int) -> dict[str, Any]:
    """Seconds one way, by size; of the cores for small messages; between small messages; and for an item of a list."""
    pings = {nbytes: _ping(comm, np.zeros(nbytes // 8), batches) for nbytes in PING_SIZES}
    cores = statistics.median(_drive(comm, _late(comm.rank, LATE)) for _ in range(10 * batches))
    streams = [_timed(lambda: _drive(comm, _stream(comm.rank, STREAM))) / STREAM for _ in range(batches)]
    items = _ping(comm, [np.zeros(1) for _ in range(ITEMS)], batches)
    return {
        "ping": pings,
        "send": cores,
        "recv": comm.broadcast(cores, root=1),
        "stream": statistics.median(streams),
        "item": (items - pings[8]) / 2 / ITEMS,
    }


def core(comm: Comm, batches: int) -> dict[str, float]:
    """Seconds of a call that has nobody to talk to, of combining two small arrays, and for each byte of larger ones."""
    mine, out = np.zeros(1), np.empty(1)
    calls: list[Callable[[], Any]] = [
        comm.barrier,
        partial(comm.broadcast, mine),
        partial(comm.reduce, mine, out=out),
        partial(comm.allgather, mine),
    ]
    combining = [_per_step(partial(SUM.combine, a, a, a), batches) for a in (mine, np.zeros(COMBINED // 8))]
    return {
        "call": statistics.mean(_per_step(call, batches) for call in calls),
        "combine": combining[0],
        "combine_byte": (combining[1] - combining[0]) / COMBINED,
    }


def collectives(comm: Comm, batch: float) -> dict[str, float]:
    """Seconds of a call that all ranks make after a barrier, on the rank where it took longest; medians, by row."""
    return {row.label: _of_row(comm, row, batch) for row in rows()}


def _of_row(comm: Comm, row: Row, batch: float) -> float:
    step = VERBS[row.verb].call(comm, row.mine)
    step()
    count = comm.broadcast(math.ceil(batch / max(_elapsed(comm, step, 5))))
    taken = comm.allreduce(np.array(_elapsed(comm, step, max(5, min(1000, count)))), MAX)
    return float(np.median(taken))


def _elapsed(comm: Comm, step: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each of some calls, each after a barrier."""
    taken = []
    for _ in range(count):
        comm.barrier()
        taken.append(_timed(step))
    return taken


# --- Schedules -----------------------------------------------------------------------------------------------------


def _trips(rank: int, value: Any, out: Any, trips: int) -> Schedule[None]:
    """There and back between two ranks."""
    for _ in range(trips):
        if rank == 0:
            yield Send(1, value)
            yield Recv(1, out)
        else:
            yield Recv(0, out)
            yield Send(0, value)


def _stream(rank: int, count: int) -> Schedule[None]:
    """Small messages from rank 0, and an answer when all have come."""
    value = np.zeros(1)
    for _ in range(count):
        yield Send(1, value) if rank == 0 else Recv(0)
    yield Recv(1) if rank == 0 else Send(0, None)


def _late(rank: int, seconds: float) -> Schedule[float]:
    """As `_stream`, with a receiver that is busy until they are all there; returns the time of one at this end."""
    value = np.zeros(1)
    if rank == 1:
        _busy(seconds)
    began = time.perf_counter()
    for _ in range(BURST):
        yield Send(1, value) if rank == 0 else Recv(0)
    taken = (time.perf_counter() - began) / BURST
    yield Recv(1) if rank == 0 else Send(0, None)
    return taken


# --- Measuring -----------------------------------------------------------------------------------------------------


def _drive(comm: Comm, schedule: Schedule[Any]) -> Any:
    return comm._driver.run((_PROBE, schedule, None), None)


def _ping(comm: Comm, value: Any, batches: int) -> float:
    """Seconds of one way: of many there and back in one collective, without what that takes to call."""
    out = np.empty_like(value) if isinstance(value, np.ndarray) else None

    def trips(count: int) -> float:
        return _timed(lambda: _drive(comm, _trips(comm.rank, value, out, count)))

    trips(1)
    count = comm.broadcast(max(2, min(1000, int(BATCH * 4 / trips(4)))))
    calls = [_timed(lambda: _drive(comm, finished(None))) for _ in range(20)]
    times = [trips(count) for _ in range(batches)]
    return float(comm.broadcast((statistics.median(times) - statistics.median(calls)) / count / 2))


def _busy(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def _per_step(step: Callable[[], Any], batches: int, count: int = 200) -> float:
    def many() -> None:
        for _ in range(count):
            step()

    many()
    return statistics.median(_timed(many) for _ in range(batches)) / count


def _timed(step: Callable[[], Any]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="One rank of what predict.py measures; started by it.")
    parser.add_argument("what", choices=["link", "ping", "core", "collectives"])
    parser.add_argument("--batches", type=int, default=7)
    parser.add_argument("--batch", type=float, default=0.1, help="seconds for each row")
    options = parser.parse_args()
    comm = rmpi.init()
    tasks: dict[str, Callable[[], Any]] = {
        "link": lambda: link(comm, options.batches),
        "ping": lambda: {"one way": _ping(comm, np.zeros(1), options.batches)},
        "core": lambda: core(comm, options.batches),
        "collectives": lambda: collectives(comm, options.batch),
    }
    figures = tasks[options.what]()
    if comm.rank == 0:
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
