"""Latency and bandwidth over message size, all libraries: a picture of what `compare.py` measured.

    .bench/plot/bin/python benchmarks/plot.py results.json results.png

Run by `compare.py` in an environment of its own, since neither rmpi nor its tests need Matplotlib.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib  # type: ignore[import-not-found, unused-ignore]
from operations import POINT_SIZES, size_name
from table import Runs

TITLES = {"2 ranks": "on one machine", "tcp": "between two machines, tcp"}


def points(runs: Runs, section: str) -> dict[str, list[tuple[int, float]]]:
    """By column: sizes in bytes and median seconds of an array received in place."""
    found: dict[str, list[tuple[int, float]]] = {}
    for nbytes in POINT_SIZES:
        for column, series in runs.get(f"{section}: array {size_name(nbytes)}", {}).items():
            figures = [figure for figure in series if figure is not None]
            if figures:
                found.setdefault(column, []).append((nbytes, statistics.median(figures)))
    return found


def draw(runs: Runs, path: Path) -> None:
    from matplotlib import pyplot  # type: ignore[import-not-found, unused-ignore]

    sections = [section for section in TITLES if points(runs, section)]
    figure, axes = pyplot.subplots(len(sections), 2, figsize=(12, 4.5 * len(sections)), squeeze=False)
    for section, (left, right) in zip(sections, axes, strict=True):
        for column, series in points(runs, section).items():
            sizes, seconds = zip(*series, strict=True)
            style = {"marker": "o", "label": column, "linewidth": 2.5 if column == "rmpi" else 1.2}
            left.plot(sizes, [each * 1e6 for each in seconds], **style)
            right.plot(sizes, [size / each / 1e9 for size, each in series], **style)
        left.set(title=f"one way, {TITLES[section]}", ylabel="µs", yscale="log")
        right.set(title=f"bandwidth, {TITLES[section]}", ylabel="GB/s")
        for each in (left, right):
            _finish(each)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _finish(axes: Any) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(POINT_SIZES, [size_name(nbytes) for nbytes in POINT_SIZES], rotation=45)
    axes.set_xlabel("array received in place")
    axes.grid(alpha=0.3)
    axes.legend()


def main() -> None:
    matplotlib.use("Agg")
    draw(json.loads(Path(sys.argv[1]).read_text())["runs"], Path(sys.argv[2]))


if __name__ == "__main__":
    main()
