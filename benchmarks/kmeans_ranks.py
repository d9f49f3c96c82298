"""The k-means of the example on a picture of 1.1 million pixels, 10 iterations; prints the seconds as JSON.

``--plain`` runs the same NumPy code in one process, without a communicator. Run by ``kmeans.py``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

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


def main() -> None:
    points = picture()
    centroids = points[: K * 1000 : 1000].astype(np.float64)
    if "--plain" in sys.argv:
        began = time.perf_counter()
        plainly(points, centroids)
        print(json.dumps({"seconds": time.perf_counter() - began}))
        return
    import rmpi

    comm = rmpi.init()
    start, count = comm.partition(PIXELS)
    comm.barrier()
    began = time.perf_counter()
    kmeans.cluster(comm, points[start : start + count], centroids, tol=0.0, max_iter=ITERATIONS)
    comm.barrier()
    if comm.rank == 0:
        print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
