"""k-means on a synthetic picture: 1 to 4 ranks against the same NumPy code in one process without rmpi.

Runs in turn, `REPEATS` times; medians. The picture is larger than the one in the examples, so that there is
something to share out. The baseline calls the example's own `assign` and averages by hand.

    python benchmarks/kmeans_scaling.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPEATS = 5
RANKS = (1, 2, 3, 4)
CODE = HERE / "kmeans_ranks.py"


def seconds(words: list[str]) -> float:
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["seconds"])


def main() -> None:
    load = os.getloadavg()[0]
    if load > 0.3 and "--anyway" not in sys.argv:
        sys.exit(f"the machine is not idle (load {load:.2f} > 0.3); wait, or give --anyway")
    alone: list[float] = []
    with_ranks: dict[int, list[float]] = {n: [] for n in RANKS}
    for _ in range(REPEATS):
        alone.append(seconds([sys.executable, str(CODE), "--plain"]))
        for n in RANKS:
            with_ranks[n].append(seconds([sys.executable, "-m", "launcher", "-q", "-n", str(n), str(CODE)]))
    print(f"one process, NumPy alone: {statistics.median(alone):.3f} s for 10 iterations")
    for n, figures in with_ranks.items():
        ratio = statistics.median(mine / other for mine, other in zip(figures, alone, strict=True))
        print(f"{n} ranks: {statistics.median(figures):.3f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
