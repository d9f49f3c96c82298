"""Tasks on one machine: rmpi.taskfarm against `ProcessPoolExecutor`, Dask and Ray, in turn, in one go.

    python benchmarks/taskfarm.py [--quick] [--anyway]

The peers are built on first use (``.bench/taskfarm``). Each repeat goes through all of them, so that figures which are
divided by each other were taken within a minute. What is shown is the median of the repeats, and of a ratio the median
of the repeats' ratios, with their range; beside it the goal. What is measured is said in ``taskfarm_runs.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from peers import environment
from table import duration

HERE = Path(__file__).resolve().parent
MOST_LOAD = 0.3

PINS = ("distributed==2026.8.0", "ray==2.60.0")
LIBRARIES = {"rmpi": "rmpi", "ProcessPoolExecutor": "pool", "Dask": "dask", "Ray": "ray"}

GOALS = {"ProcessPoolExecutor": 1 / 3, "Dask": 1.0, "Ray": 1.0}
"""What a tiny task of ours may cost, as a part of what one of theirs does."""

MOST_BEYOND = 0.1
"""What uneven tasks may take beyond the least that is possible, as a part of it."""

Figures = dict[str, float]


def run(python: str, library: str) -> Figures:
    words = [python, str(HERE / "taskfarm_runs.py"), library]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=HERE)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(repeats: int) -> dict[str, list[Figures]]:
    """All figures of each library, for each repeat."""
    theirs = str(environment("taskfarm", *PINS, f"numpy=={np.__version__}") / "bin/python")
    found: dict[str, list[Figures]] = {name: [] for name in LIBRARIES}
    for repeat in range(repeats):
        print(f"repeat {repeat + 1} of {repeats}", file=sys.stderr)
        for name, library in LIBRARIES.items():
            found[name].append(run(sys.executable if library in ("rmpi", "pool") else theirs, library))
    return found


def table(found: dict[str, list[Figures]]) -> list[str]:
    lines = []
    for what in found["rmpi"][0]:
        lines.append(f"{what}:")
        ours = [figures[what] for figures in found["rmpi"]]
        for name, repeats in found.items():
            theirs = [figures[what] for figures in repeats]
            lines.append(f"  {name:<22}{row(what, name, ours, theirs)}")
    return lines


def row(what: str, name: str, ours: list[float], theirs: list[float]) -> str:
    middle = statistics.median(theirs)
    if what.startswith("uneven"):
        goal = f"   goal {MOST_BEYOND:.0%}: {met(middle <= MOST_BEYOND)}" if name == "rmpi" else ""
        return f"{middle:>10.1%}{goal}"
    if name == "rmpi":
        return f"{duration(middle):>10}"
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    goal = f", goal {GOALS[name]:.2f}: {met(ratio <= GOALS[name])}" if what == "a tiny task" else ""
    return f"{duration(middle):>10}  rmpi takes {ratio:.2f} of it ({min(ratios):.2f}–{max(ratios):.2f}){goal}"


def met(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def growth() -> str:
    """Memory of a master and its workers, before and after many tasks."""
    before, after = run(sys.executable, "growth").values()
    return f"memory of master and workers after 100,000 tasks more: {(after - before) / 2**20:+.1f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two repeats instead of five")
    parser.add_argument("--anyway", action="store_true", help="also on a machine that is not idle")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > MOST_LOAD and not options.anyway:
        sys.exit(f"the machine is not idle (load {load:.2f} > {MOST_LOAD}); wait, or give --anyway")
    found = compare(2 if options.quick else 5)
    cores = len(os.sched_getaffinity(0))
    print(
        f"{platform.processor() or platform.machine()}, {cores} cores and workers, Python {platform.python_version()}\n"
    )
    print(*table(found), "", growth(), sep="\n")


if __name__ == "__main__":
    main()
