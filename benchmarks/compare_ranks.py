"""What each rank of a compared job does, whatever the library. Rank 0 prints one line of JSON; see ``compare.py``.

    compare_ranks.py LIBRARY measure SECTION [options]    every operation of a section
    compare_ranks.py LIBRARY start                        the moment after the first barrier
    compare_ranks.py LIBRARY rest --seconds N             what a rank costs that does nothing

A figure is taken so: one step whose result is checked; more and more of them until the ranks agree on how many fill
a batch; then batches, each after a barrier. A batch took as long as on the slowest rank; the median of them counts.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from adapters import Adapter, Step, adapter
from operations import Operation, operations

ESTIMATE = 0.25
"""Part of a batch's time that suffices to tell from it how many steps fill a batch."""


def measure(lib: Adapter, options: argparse.Namespace) -> dict[str, float]:
    """Seconds per message or call, by row."""
    figures = {}
    for operation in operations(options.section):
        row = f"{options.section}: {operation.label}"
        if re.search(options.only, row):
            figures[row] = seconds_of(lib, operation, options.batch, options.batches)
    if options.interface:
        figures |= on_the_wire(lib, options.interface)
    return figures


def seconds_of(lib: Adapter, operation: Operation, batch: float, batches: int) -> float:
    step: Step = getattr(lib, operation.method)(operation.value(lib.rank))
    check(lib, operation, step())
    count = steps_in_a_batch(lib, step, batch)
    return statistics.median(timed(lib, step, count) for _ in range(batches)) / count / operation.trips


def check(lib: Adapter, operation: Operation, result: Any) -> None:
    """A step returned what the operation promises."""
    expected = operation.expect([operation.value(rank) for rank in range(lib.size)], lib.rank)
    np.testing.assert_equal(result, expected, operation.label)


def steps_in_a_batch(lib: Adapter, step: Step, batch: float) -> int:
    """How many steps take ``batch`` seconds; the same number on every rank."""
    count = 1
    while (seconds := timed(lib, step, count)) < ESTIMATE * batch:
        count *= 4
    return math.ceil(count * batch / seconds)


def timed(lib: Adapter, step: Step, count: int) -> float:
    """Seconds of ``count`` steps on the slowest rank; the same on every rank."""
    lib.barrier(None)()
    began = time.perf_counter()
    for _ in range(count):
        step()
    return lib.largest(time.perf_counter() - began)


def on_the_wire(lib: Adapter, interface: str) -> dict[str, float]:
    """Bytes that left by ``interface`` for each byte of an array: about 1 if the library went over the network."""
    mine = np.zeros(2 << 20)
    step = lib.ping_arrays(mine)
    before = bytes_sent(interface)
    step()
    lib.barrier(None)()
    return {"tcp: bytes on the wire per byte of 16 MB": (bytes_sent(interface) - before) / mine.nbytes}


def bytes_sent(interface: str) -> int:
    counters = re.search(rf"^\s*{interface}:(.*)", Path("/proc/net/dev").read_text(), re.MULTILINE)
    if counters is None:
        raise OSError(f"there is no network interface {interface}")
    return int(counters[1].split()[8])


def start(lib: Adapter) -> dict[str, float]:
    """When the first barrier was passed, by the clock that all processes of a machine share."""
    lib.barrier(None)()
    return {"moment": time.monotonic()}


def rest(lib: Adapter, seconds: float) -> dict[str, float]:
    """Memory of the larger of two ranks before it holds any data, and of a core while rank 1 waits to receive."""
    step = lib.ping_objects(lib.rank)
    step()
    resident, proportional = memory()
    figures = {
        "at rest: resident memory": lib.largest(resident),
        "at rest: proportional memory": lib.largest(proportional),
    }
    lib.barrier(None)()
    before = time.process_time()
    if lib.rank == 0:
        time.sleep(seconds)
    step()
    used = time.process_time() - before
    return figures | {"at rest: CPU in recv": lib.largest(used / seconds if lib.rank else 0.0)}


def memory() -> tuple[int, int]:
    """Bytes resident, and resident with each shared page divided among those who share it."""
    kilobytes = dict(re.findall(r"^(\w+): +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE))
    return int(kilobytes["Rss"]) << 10, int(kilobytes["Pss"]) << 10


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One rank of a compared job; started by compare.py.")
    parser.add_argument("library", choices=["rmpi", "mpi4py"])
    task = parser.add_subparsers(dest="task", required=True)
    measuring = task.add_parser("measure")
    measuring.add_argument("section")
    measuring.add_argument("--only", default="", help="a regular expression that rows must match")
    measuring.add_argument("--batch", type=float, default=0.03, help="seconds")
    measuring.add_argument("--batches", type=int, default=5)
    measuring.add_argument("--interface", help="also count what leaves by it")
    task.add_parser("start")
    task.add_parser("rest").add_argument("--seconds", type=float, default=2.0)
    return parser.parse_args()


def main() -> None:
    options = parse()
    lib = adapter(options.library)
    figures = {
        "measure": lambda: measure(lib, options),
        "start": lambda: start(lib),
        "rest": lambda: rest(lib, options.seconds),
    }[options.task]()
    if lib.rank == 0:
        print(json.dumps({"version": lib.version, "figures": figures}), flush=True)


if __name__ == "__main__":
    main()
