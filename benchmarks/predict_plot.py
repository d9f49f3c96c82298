"""Predicted cost of collectives over ranks, and what was measured: a picture of what `predict.py` found.

    .bench/plot/bin/python benchmarks/predict_plot.py predicted.json predicted.png

Run by `predict.py` in an environment of its own, since neither rmpi nor its tests need Matplotlib.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib  # type: ignore[import-not-found, unused-ignore]

COLUMNS = 3
COLOURS = {"8 B": "C0", "64 KB": "C1", "8 MB": "C2", "": "C0"}
"""By the size of what each rank puts in; a barrier has none."""


def draw(results: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot  # type: ignore[import-not-found, unused-ignore]

    verbs = list(dict.fromkeys(label.split(" ", 1)[0].strip(",") for label in results["cluster"]))
    height = -(-len(verbs) // COLUMNS)
    figure, axes = pyplot.subplots(height, COLUMNS, figsize=(15, 4.5 * height), squeeze=False)
    for verb, each in zip(verbs, axes.flat, strict=False):
        _curves(each, verb, results["cluster"])
        _points(each, verb, results["here"], results["measured"])
        _finish(each, verb)
    for each in list(axes.flat)[len(verbs) :]:
        each.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def _curves(axes: Any, verb: str, cluster: dict[str, dict[str, float]]) -> None:
    for label, found in cluster.items():
        size, two_levels = _parts(label, verb)
        if size is not None:
            style = {"linestyle": "--" if two_levels else "-", "color": COLOURS[size]}
            axes.plot([int(n) for n in found], list(found.values()), label=label, **style)


def _points(axes: Any, verb: str, here: dict[str, dict[str, float]], measured: dict[str, dict[str, float]]) -> None:
    """On this machine: hollow as predicted, with shared cores, and filled as measured."""
    for layout, found in here.items():
        if "tcp" in layout:
            continue
        ranks = int(layout.split()[0])
        for label, seconds in found.items():
            size, _ = _parts(label, verb)
            if size is not None:
                axes.plot(ranks, seconds, "o", color=COLOURS[size], fillstyle="none")
                axes.plot(ranks, measured[layout][label], "o", color=COLOURS[size])


def _parts(label: str, verb: str) -> tuple[str | None, bool]:
    """The size in a label of that verb, and whether it has two levels; no size if it is of another."""
    found = re.fullmatch(rf"{verb} ?([^,]*)(, two levels)?", label)
    return (found[1], found[2] is not None) if found else (None, False)


def _finish(axes: Any, verb: str) -> None:
    axes.set(title=verb, xscale="log", yscale="log", xlabel="ranks", ylabel="seconds")
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.plot([], [], "o", color="grey", fillstyle="none", label="predicted here")
    axes.plot([], [], "o", color="grey", label="measured here")
    axes.legend(fontsize=8)


def main() -> None:
    matplotlib.use("Agg")
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
