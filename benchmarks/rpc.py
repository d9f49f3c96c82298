"""Remote calls on one machine: rmpi against Pyro5, RPyC, execnet and a bare pipe, in turn, in one go.

    python benchmarks/rpc.py [--quick] [--anyway]

A call adds two numbers in another process and waits for the sum. The peers are built on first use (``.bench/rpc``).
Each repeat goes through all of them, so that figures which are divided by each other were taken within seconds. What is
shown is the median of the repeats, and of a ratio the median of the repeats' ratios, with their range; beside it the
goal. After that what only rmpi is asked: casts, futures and streams, a server with many clients, and many places.
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
from typing import Any

from peers import environment
from table import duration

HERE = Path(__file__).resolve().parent
MOST_LOAD = 0.3

PINS = ("Pyro5==5.17", "rpyc==6.0.2", "execnet==2.1.2")
PEERS = {"Pyro5": "pyro5", "RPyC": "rpyc", "execnet": "execnet", "multiprocessing.Pipe": "pipe"}

GOALS = {"Pyro5": 0.1, "RPyC": 0.1, "multiprocessing.Pipe": 1.0}
"""What a call of ours may cost, as a part of what one of theirs does."""

LEAST_CASTS = 100_000
"""In a second."""

MOST_AMONG_CLIENTS = 0.05
"""Seconds in which 99 of 100 calls are done while `CLIENTS` others call too."""

CLIENTS = 200
PLACES = 1000

Figures = dict[str, float]


def printed_by(words: list[str]) -> Any:
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=HERE.parent)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def ours(*words: str) -> Figures:
    figures: Figures = printed_by([sys.executable, str(HERE / "rpc_ours.py"), *words])
    return figures


def compare(repeats: int) -> tuple[list[Figures], dict[str, list[float]]]:
    """What calls cost with rmpi, and with each peer, for each repeat."""
    python = str(environment("rpc", *PINS) / "bin/python")
    mine: list[Figures] = []
    theirs: dict[str, list[float]] = {name: [] for name in PEERS}
    for repeat in range(repeats):
        print(f"repeat {repeat + 1} of {repeats}", file=sys.stderr)
        mine.append(ours("calls"))
        for name, peer in PEERS.items():
            theirs[name].append(float(printed_by([python, str(HERE / "rpc_peers.py"), peer])))
    return mine, theirs


def compared(mine: list[Figures], theirs: dict[str, list[float]]) -> list[str]:
    """The table of peers."""
    calls = [figures["call"] for figures in mine]
    lines = [f"{'rmpi':<22}{duration(statistics.median(calls)):>10}"]
    for name, figures in theirs.items():
        ratios = [own / other for own, other in zip(calls, figures, strict=True)]
        ratio = statistics.median(ratios)
        spread = f"rmpi takes {ratio:.2f} of it ({min(ratios):.2f}–{max(ratios):.2f})"
        goal = f", goal {GOALS[name]:g}: {met(ratio <= GOALS[name])}" if name in GOALS else ""
        lines.append(f"{name:<22}{duration(statistics.median(figures)):>10}  {spread}{goal}")
    return lines


def met(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def alone(mine: list[Figures]) -> list[str]:
    """The table of what has no peer."""
    medians = {name: statistics.median(figures[name] for figures in mine) for name in mine[0]}
    lines = [f"{name:<50}{duration(seconds):>10}" for name, seconds in medians.items() if name != "call"]
    rate = 1 / medians["cast"]
    return [*lines, f"casts in a second: {rate:,.0f}, goal {LEAST_CASTS:,}: {met(rate >= LEAST_CASTS)}"]


def shown(title: str, figures: Figures) -> list[str]:
    return [title, *(f"  {name:<48}{duration(seconds):>10}" for name, seconds in figures.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two repeats instead of five, and 100 places")
    parser.add_argument("--anyway", action="store_true", help="also on a machine that is not idle")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > MOST_LOAD and not options.anyway:
        sys.exit(f"the machine is not idle (load {load:.2f} > {MOST_LOAD}); wait, or give --anyway")
    mine, theirs = compare(2 if options.quick else 5)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("A call:", *compared(mine, theirs), "", "By rmpi alone:", *alone(mine), "", sep="\n")
    among = ours("clients", str(CLIENTS))
    print(*shown(f"A server with {CLIENTS} other clients:", among), sep="\n")
    print(
        f"  goal for 99 of 100: {duration(MOST_AMONG_CLIENTS)}: {met(among['99 of 100 calls'] <= MOST_AMONG_CLIENTS)}\n"
    )
    count = 100 if options.quick else PLACES
    print(*shown(f"{count} named places on this machine, all of which answered:", ours("places", str(count))), sep="\n")


if __name__ == "__main__":
    main()
