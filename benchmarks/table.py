"""Figures into a table of ratios, with the goal beside each: what `compare.py` prints, and again from its JSON.

    python benchmarks/table.py [results.json]

A figure is the median over repeats, with half the range around it in per cent. A ratio divides rmpi by the better of
MPICH and Open MPI, as both are installed, repeat by repeat, since what ran side by side saw the same machine; its
median and range are shown. Below 1 rmpi is faster.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from operations import MOST_IDLE, goal

PEERS = ("MPICH", "Open MPI")
"""The better of these is what counts; other columns are for information."""

Series = list[float | None]
"""A figure per repeat; None where the job failed."""

Runs = dict[str, dict[str, Series]]
"""By row, then by column."""


class Verdict(NamedTuple):
    """The right-hand side of a row, as text. ``met`` is None where nothing is asked."""

    ratio: str
    goal: str
    met: bool | None


def table(runs: Runs) -> str:
    """Everything, in the order of ``runs``, and how many goals are met."""
    columns = list(dict.fromkeys(column for row in runs.values() for column in row))
    lines = [["", *columns, "ratio", "range", "goal", "met"]]
    verdicts = []
    for row, figures in runs.items():
        verdict = judged(row, figures)
        verdicts.append(verdict.met)
        ratio, _, spread = verdict.ratio.partition(" ")
        cells = [shown(row, figures.get(column, [])) for column in columns]
        lines.append([row, *cells, ratio, spread, verdict.goal, {None: "", True: "yes", False: "NO"}[verdict.met]])
    asked = [met for met in verdicts if met is not None]
    return f"{_aligned(lines)}\n\n{sum(asked)} of {len(asked)} goals met."


def judged(row: str, figures: dict[str, Series]) -> Verdict:
    """What a row comes to."""
    if row.endswith("CPU in recv"):
        worst = max(_present(figures.get("rmpi", [])), default=None)
        return Verdict("", f"{MOST_IDLE:.0%}", None if worst is None else worst <= MOST_IDLE)
    ratios = ratios_of(figures)
    most = goal(row)
    asked = "" if most is None else f"{most:g}"
    if not ratios or row.startswith(WIRE):
        return Verdict("", asked, None)
    middle = statistics.median(ratios)
    text = f"{middle:.2f} {min(ratios):.2f}–{max(ratios):.2f}"
    return Verdict(text, asked, None if most is None else middle <= most)


def ratios_of(figures: dict[str, Series]) -> list[float]:
    """rmpi to the better peer, for each repeat in which both have a figure."""
    medians = {name: statistics.median(found) for name in PEERS if (found := _present(figures.get(name, [])))}
    if not medians:
        return []
    better = figures[min(medians, key=medians.__getitem__)]
    pairs = zip(figures.get("rmpi", []), better, strict=False)
    return [mine / theirs for mine, theirs in pairs if mine is not None and theirs is not None]


# --- Text ----------------------------------------------------------------------------------------------------------

WIRE = "tcp: bytes on the wire"


def shown(row: str, series: Series) -> str:
    """The median of a figure with its spread, in a unit that fits; a dash where there is none."""
    found = _present(series)
    if not found:
        return "–"
    middle = statistics.median(found)
    spread = (max(found) - min(found)) / 2 / middle if middle else 0.0
    return f"{_with_unit(row, middle)} ±{spread:.0%}"


def _with_unit(row: str, figure: float) -> str:
    if row.startswith(WIRE):
        return f"{figure:.3f}"
    if row.endswith("CPU in recv"):
        return f"{figure:.1%}"
    if row.endswith("memory"):
        return f"{figure / (1 << 20):.1f} MB"
    return duration(figure)


def duration(seconds: float) -> str:
    """Three digits: ``0.512 µs``, ``41.3 ms``."""
    units = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")]
    unit, name = next((each for each in units if seconds >= 0.9995 * each[0]), units[-1])
    scaled = seconds / unit
    decimals = max(0, 3 - len(str(int(scaled)))) if scaled >= 1 else 3
    return f"{scaled:.{decimals}f} {name}"


def _present(series: Series) -> list[float]:
    return [figure for figure in series if figure is not None]


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table that can also be read as it is."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = (
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in [lines[0], rule, *lines[1:]]
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def report(results: dict[str, Any]) -> str:
    """The machine and the command lines, then the table."""
    commands = [f"    {name}: {command}" for name, command in results["commands"].items()]
    return "\n".join([results["machine"], "", *commands, "", table(results["runs"])])


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results.json"
    print(report(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
