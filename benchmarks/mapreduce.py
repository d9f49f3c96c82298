"""Word count on one machine: rmpi against one process, `multiprocessing.Pool` and Dask bag, in turn, in one go.

    python benchmarks/mapreduce.py [--quick] [--anyway] [--megabytes N] [--workers N]

The text is the sources of Python's own library, over and over. All count the words of the same pieces with the same
function, and sort what comes out; results are compared. Dask is installed on first use (``.bench/mapreduce``). Each
repeat goes through all of them, so that figures which are divided by each other were taken within minutes. What is
shown is the median of the repeats, and of a ratio the median of the repeats' ratios, with their range; beside it the
goal.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from peers import environment
from table import duration

HERE = Path(__file__).resolve().parent
MOST_LOAD = 0.3

PINS = ("dask==2026.8.0",)

WAYS = {
    "one process, a plain loop": "loop",
    "one process, rmpi": "alone",
    "multiprocessing.Pool": "pool",
    "Dask bag": "dask",
}
"""What rmpi's workers are compared with."""

GOALS = {"one process, a plain loop": 1.6, "one process, rmpi": 1.6, "multiprocessing.Pool": 1.0, "Dask bag": 1.0}
"""How many times as long as rmpi they shall take, at least."""

PIECES = 64

Report = dict[str, Any]


def make_text(path: Path, megabytes: int) -> None:
    """Write so many MB of sources."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(library.rglob("*.py")) if "site-packages" not in file.parts]
    text = b"\n".join(each for each in map(Path.read_bytes, files) if _is_utf8(each))
    left = megabytes * 1_000_000
    with path.open("wb") as file:
        while left > 0:
            left -= file.write(text[:left])
        file.write(b"\n")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def run(python: str, way: str, path: Path, workers: int) -> Report:
    size = path.stat().st_size // PIECES + 1
    words = [python, str(HERE / "mapreduce_work.py"), way, str(path), str(size), str(workers)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=HERE.parent)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr}")
    report: Report = json.loads(done.stdout)
    return report


def compare(path: Path, workers: int, repeats: int) -> dict[str, list[Report]]:
    """What each way reports, for each repeat."""
    theirs = str(environment("mapreduce", *PINS) / "bin/python")
    reports: dict[str, list[Report]] = {name: [] for name in ("rmpi", *WAYS)}
    for repeat in range(repeats):
        print(f"repeat {repeat + 1} of {repeats}", file=sys.stderr)
        for name in reports:
            way = WAYS.get(name, "rmpi")
            reports[name].append(run(theirs if way == "dask" else sys.executable, way, path, workers))
    return reports


def table(reports: dict[str, list[Report]]) -> list[str]:
    seconds = {name: [float(report["seconds"]) for report in some] for name, some in reports.items()}
    starts = {name: statistics.median(float(report["start"]) for report in some) for name, some in reports.items()}
    lines = []
    for name, figures in seconds.items():
        line = f"{name:<28}{duration(statistics.median(figures)):>10}, start {duration(starts[name]):>8}"
        if name in GOALS:
            ratios = [other / own for own, other in zip(seconds["rmpi"], figures, strict=True)]
            ratio = statistics.median(ratios)
            line += f"  {ratio:.2f} times rmpi's time ({min(ratios):.2f}–{max(ratios):.2f})"
            line += f", goal {GOALS[name]:g}: {'met' if ratio >= GOALS[name] else 'MISSED'}"
        lines.append(line)
    return lines


def check(reports: dict[str, list[Report]]) -> Report:
    """One of the reports; all must have found the same."""
    every = [report for some in reports.values() for report in some]
    if len({report["digest"] for report in every}) != 1:
        sys.exit(f"results differ: { {name: some[0]['digest'] for name, some in reports.items()} }")
    return every[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="50 MB, and two repeats instead of three")
    parser.add_argument("--anyway", action="store_true", help="also on a machine that is not idle")
    parser.add_argument("--megabytes", type=int, help="of text; 500 by default")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > MOST_LOAD and not options.anyway:
        sys.exit(f"the machine is not idle (load {load:.2f} > {MOST_LOAD}); wait, or give --anyway")
    megabytes = options.megabytes or (50 if options.quick else 500)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "text"
        make_text(path, megabytes)
        reports = compare(path, options.workers, 2 if options.quick else 3)
    found = check(reports)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{megabytes} MB, {PIECES} pieces, {options.workers} workers; {found['words']:,} different words\n")
    print(*table(reports), sep="\n")


if __name__ == "__main__":
    main()
