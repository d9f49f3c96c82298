"""rmpi against mpi4py on MPICH and on Open MPI: the same operations, in turn, in one go, as a table of ratios.

    python benchmarks/compare.py [--quick] [--full] [--only REGEX] [--anyway] [--output FILE]

On an idle machine it takes about ten minutes, ``--quick`` two. The peers are built on first use (``peers.py``). Each
repeat goes through all jobs, and each job through all libraries before the next begins, so that figures which are
divided by each other were taken within seconds. It decides what is run and when; ``compare_ranks.py`` takes the
figures, ``table.py`` judges them. The method in full is in the README beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from networks import INTERFACE, Run, machines, why_no_machines
from operations import operations
from peers import ENVIRONMENTS, MATPLOTLIB, ROOT, Contender, contenders, environment, shown
from table import Runs, report

HERE = Path(__file__).resolve().parent
RANKS = str(HERE / "compare_ranks.py")
MOST_LOAD = 0.3
TIMEOUT = 300.0
"""Seconds that a job may take; it has failed then."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    repeats: int
    batches: int
    batch: float
    launches: tuple[int, ...]
    kmeans: tuple[int, ...]
    rest: float


QUICK = Effort(repeats=3, batches=3, batch=0.02, launches=(2, 8), kmeans=(2,), rest=0.5)
DEFAULT = Effort(repeats=5, batches=5, batch=0.03, launches=(2, 8, 32), kmeans=(2, 4), rest=2.0)
FULL = Effort(repeats=5, batches=5, batch=0.03, launches=(2, 8, 32, 128), kmeans=(2, 4), rest=2.0)


@dataclass(frozen=True)
class Job:
    """One launch of some ranks with one library.

    Attributes:
        name: For the progress on stderr.
        rows: Of the table, that it yields.
        ranks: How many.
        words: The script and its arguments, given the adapter's name.
        read: From when it was started and ended (`time.monotonic`) and what rank 0 printed, to figures.
        tcp: Between two machines.
        variants: Also with the contenders that are variants of another.
    """

    name: str
    rows: Sequence[str]
    ranks: int
    words: Callable[[str], list[str]]
    read: Callable[[float, float, Any], Figures]
    tcp: bool = False
    variants: bool = False

    def wanted(self, pattern: str) -> bool:
        return any(re.search(pattern, row) for row in self.rows)

    def suits(self, contender: Contender) -> bool:
        return self.variants or not contender.variant


# --- The jobs ------------------------------------------------------------------------------------------------------


def jobs(effort: Effort, only: str) -> list[Job]:
    """In the order of the table; those alone that yield a row that ``only`` matches."""
    measuring = [measured("2 ranks", 2, effort, only), measured("4 ranks", 4, effort, only)]
    tcp = measured("tcp", 2, effort, only)
    started = [launched(ranks) for ranks in effort.launches]
    clustered = [kmeans(ranks) for ranks in effort.kmeans]
    return [job for job in [*measuring, tcp, *started, resting(effort.rest), *clustered] if job.wanted(only)]


def measured(section: str, ranks: int, effort: Effort, only: str) -> Job:
    tcp = section == "tcp"
    options = ["--only", only, "--batch", str(effort.batch), "--batches", str(effort.batches)]
    options += ["--interface", INTERFACE] if tcp else []
    rows = [f"{section}: {operation.label}" for operation in operations(section)]
    return Job(
        section,
        rows,
        ranks,
        lambda adapter: [RANKS, adapter, "measure", section, *options],
        lambda _began, _ended, said: said["figures"],
        tcp=tcp,
        variants=not tcp,
    )


def launched(ranks: int) -> Job:
    """From the command to the first barrier, NumPy imported; and to its end."""
    row, whole = f"launch: {ranks} ranks", f"launch: {ranks} ranks, whole command"
    return Job(
        row,
        [row, whole],
        ranks,
        lambda adapter: [RANKS, adapter, "start"],
        lambda began, ended, said: {row: said["figures"]["moment"] - began, whole: ended - began},
    )


def resting(seconds: float) -> Job:
    return Job(
        "at rest",
        ["at rest: resident memory", "at rest: proportional memory", "at rest: CPU in recv"],
        2,
        lambda adapter: [RANKS, adapter, "rest", "--seconds", str(seconds)],
        lambda _began, _ended, said: said["figures"],
    )


def kmeans(ranks: int) -> Job:
    row, whole = f"k-means: {ranks} ranks", f"k-means: {ranks} ranks, whole command"
    return Job(
        row,
        [row, whole],
        ranks,
        lambda adapter: [str(HERE / "kmeans_ranks.py"), *(["--mpi4py"] if adapter == "mpi4py" else [])],
        lambda began, ended, said: {row: said["seconds"], whole: ended - began},
    )


# --- Running them --------------------------------------------------------------------------------------------------


def compare(todo: Sequence[Job], libraries: Sequence[Contender], repeats: int, runners: dict[bool, Run]) -> Runs:
    """All figures. A job that fails is reported on stderr and leaves a hole."""
    runs: Runs = {}
    for repeat in range(repeats):
        for job in todo:
            for library in filter(job.suits, libraries):
                began = time.monotonic()
                figures = figures_of(job, library, runners[job.tcp])
                enter(runs, job, library.name, repeat, figures)
                took = time.monotonic() - began
                print(f"{repeat + 1}/{repeats} {job.name}, {library.name}: {took:.1f} s", file=sys.stderr, flush=True)
    return runs


def enter(runs: Runs, job: Job, column: str, repeat: int, figures: Figures) -> None:
    """Put the figures of one job where they belong; rows that were not asked for have none."""
    for row in dict.fromkeys([*job.rows, *figures]):
        if row in figures or row in runs:
            series = runs.setdefault(row, {}).setdefault(column, [])
            series += [None] * (repeat - len(series)) + [figures.get(row)]


def figures_of(job: Job, library: Contender, run: Run) -> Figures:
    words = [*library.command(job.ranks, tcp=job.tcp), *job.words(library.adapter)]
    began = time.monotonic()
    try:
        done = run(words, TIMEOUT)
        ended = time.monotonic()
        done.check_returncode()
        return job.read(began, ended, answer(done.stdout))
    except (subprocess.SubprocessError, ValueError) as problem:
        said = getattr(problem, "stderr", None) or ""
        print(f"failed: {shown(words)}\n{problem}\n{said}", file=sys.stderr, flush=True)
        return {}


def answer(stdout: str) -> Any:
    """What rank 0 printed, whatever launchers and ssh have to say around it."""
    lines = [line for line in stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise ValueError(f"rank 0 printed no figures, but {stdout!r}")
    return json.loads(lines[-1])


def run_here(words: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """`subprocess.run`, except that a time-out ends all that the command started, not only the launcher."""
    pipe = subprocess.PIPE
    job = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, start_new_session=True
    )
    try:
        stdout, stderr = job.communicate(timeout=timeout)
    except BaseException:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        raise
    return subprocess.CompletedProcess(words, job.returncode, stdout, stderr)


# --- What is said about it -----------------------------------------------------------------------------------------


def machine(load: float) -> str:
    """One line: what the figures hold for."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    facts = [
        model[1] if model else platform.machine(),
        f"{os.cpu_count()} cores",
        f"{memory:.0f} GB",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        f"NumPy {np.__version__}",
        f"rmpi {revision()}",
        f"load {load:.2f} at the start",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    ]
    return ", ".join(facts)


def revision() -> str:
    """The commit that was measured, and whether it was really that."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "of unknown revision"


def command_lines(libraries: Sequence[Contender], todo: Sequence[Job]) -> dict[str, str]:
    """By name: how each library is run, on one machine and between two."""
    lines = {}
    for tcp in sorted({job.tcp for job in todo}):
        jobs_there = [job for job in todo if job.tcp == tcp]
        for library in libraries:
            ranks = [job.ranks for job in jobs_there if job.suits(library)]
            if ranks:
                lines[library.name + " over tcp" * tcp] = shown([*library.command(ranks[0], tcp=tcp), "PROGRAM"])
            if ranks and library.crowded and not tcp and max(ranks) > (os.cpu_count() or 1):
                lines[f"{library.name}, more ranks than cores"] = shown([*library.command(max(ranks)), "PROGRAM"])
    return lines


def draw(results: Path) -> None:
    """The plot beside the JSON; without Matplotlib, a line that says so."""
    picture = results.with_suffix(".png")
    try:
        home = environment("plot", MATPLOTLIB)
        subprocess.run([str(home / "bin/python"), str(HERE / "plot.py"), str(results), str(picture)], check=True)
    except subprocess.CalledProcessError as problem:
        print(f"no plot: {shown(list(map(str, problem.cmd)))} failed, see above")
    else:
        print(f"wrote {shown([str(picture)])}")


# --- The command ---------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("compare.py", description="Hold rmpi against mpi4py on MPICH and on Open MPI.")
    add = parser.add_argument
    add("--quick", dest="effort", action="store_const", const=QUICK, default=DEFAULT, help="less of all: two minutes")
    add("--full", dest="effort", action="store_const", const=FULL, help="also start 128 ranks")
    add("--only", metavar="REGEX", default="", help="only rows that match, as in '2 ranks: array' or 'allreduce'")
    add("--anyway", action="store_true", help=f"start although the machine is not idle (load above {MOST_LOAD})")
    add(
        "--output",
        metavar="FILE",
        type=Path,
        help="the JSON; the plot goes beside it (default: benchmarks/results.json,"
        " or .bench/results.json with --quick, --only or --anyway)",
    )
    options = parser.parse_args()
    in_part = options.effort is QUICK or options.only or options.anyway
    options.output = options.output or (ENVIRONMENTS if in_part else HERE) / "results.json"
    return options


def main() -> None:
    options = parse()
    load = os.getloadavg()[0]
    if load > MOST_LOAD and not options.anyway:
        sys.exit(f"the machine is not idle (load {load:.2f} > {MOST_LOAD}); wait, or give --anyway")
    libraries = contenders()
    todo = jobs(options.effort, options.only)
    if not todo:
        sys.exit(f"--only {options.only}: no row matches that")
    with ExitStack() as stack:
        runners: dict[bool, Run] = {False: run_here}
        if any(job.tcp for job in todo):
            reason = why_no_machines()
            if reason:
                print(f"no tcp between two machines: {reason}", file=sys.stderr)
                todo = [job for job in todo if not job.tcp]
            else:
                runners[True] = stack.enter_context(machines())
        runs = compare(todo, libraries, options.effort.repeats, runners)
    results = {"machine": machine(load), "commands": command_lines(libraries, todo), "runs": runs}
    print(report(results))
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {shown([str(options.output)])}")
    draw(options.output)


if __name__ == "__main__":
    main()
