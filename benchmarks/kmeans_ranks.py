"""The k-means of the example on a picture of 1.1 million pixels, 10 iterations; prints the seconds as JSON.

``--plain`` runs the same NumPy code in one process, without a communicator; ``--mpi4py`` runs the ranks on MPI.
Run by ``kmeans_scaling.py`` and ``compare.py``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
sys.path.append(str(Path(__file__).resolve().parent.parent))  # for `import rmpi` where only the peer is installed

import kmeans

PIXELS = 4 * 273_280
K = 16
ITERATIONS = 10


def picture() -> kmeans.Points:
    """Colours in clumps, the same on every rank."""
    generator = np.random.default_rng(1)
    centres = generator.integers(0, 256, (40, 3))
    noise = generator.normal(0, 20, (PIXELS, 3))
    return np.clip(centres[generator.integers(0, 40, PIXELS)] + noise, 0, 255).astype(np.uint8)


def plainly(points: kmeans.Points, centroids: kmeans.Centroids) -> None:
    """Lloyd's algorithm around the example's own `assign`."""
    for _ in range(ITERATIONS + 1):
        _, totals = kmeans.assign(points, centroids)
        counts = totals[:, -2:-1]
        centroids = np.where(counts > 0, totals[:, :-2] / np.maximum(counts, 1), centroids)


class OverMpi:
    """As much of a communicator as the algorithm asks for, on mpi4py."""

    def __init__(self) -> None:
        from mpi4py import MPI  # type: ignore[import-not-found, unused-ignore]

        self._comm = MPI.COMM_WORLD
        self.rank = self._comm.rank

    def partition(self, n: int) -> tuple[int, int]:
        from rmpi.comm.partition import partition

        return partition(n, self._comm.size, self.rank)

    def barrier(self) -> None:
        self._comm.Barrier()

    def allreduce(self, mine: Any) -> Any:
        total = np.empty_like(mine)
        self._comm.Allreduce(mine, total)
        return total


def communicator() -> Any:
    if "--mpi4py" in sys.argv:
        return OverMpi()
    import rmpi

    return rmpi.init()


def main() -> None:
    points = picture()
    centroids = points[: K * 1000 : 1000].astype(np.float64)
    if "--plain" in sys.argv:
        began = time.perf_counter()
        plainly(points, centroids)
        print(json.dumps({"seconds": time.perf_counter() - began}))
        return
    comm = communicator()
    start, count = comm.partition(PIXELS)
    comm.barrier()
    began = time.perf_counter()
    kmeans.cluster(comm, points[start : start + count], centroids, tol=0.0, max_iter=ITERATIONS)
    comm.barrier()
    if comm.rank == 0:
        print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
