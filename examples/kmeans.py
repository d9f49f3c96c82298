"""Cluster the colours of a photograph, or any other points, with k-means.

    rmpi-run -n 4 examples/kmeans.py
    rmpi-run -f hostfile examples/kmeans.py --k 8 photo.jpg
    rmpi-run -n 4 examples/kmeans.py --k 3 --output clusters.npz points.csv
    python examples/kmeans.py

Without a file it is a photograph that comes with scikit-learn (``pip install "rmpi[examples]"``). Only rank 0
reads, prints and writes; of a picture it writes the original and, at its right, the same in k colours:

    china.jpg: 273280 pixels into 16 clusters, ranks: 1
    iterations: 102 in 2.08 s, the last one moved 0.008764
    inertia 9.571423025e+07, centroids fd09015c336464bc
    wrote china-16-colours.png

This is Lloyd's algorithm. It begins with k different points, picked at random with ``--seed``. Then each rank
assigns its share of the points to the nearest centroids (of equally near ones, to the first), one allreduce
adds up what the ranks found, and every rank moves each centroid to the mean of its points. It is over when no
coordinate of a centroid moved by more than ``--tol``, in the units of the data (colours: 0 to 255), or
after ``--max-iter`` moves. A centroid without points stays where it is, and is named at the end.

The same number of ranks gives the same bits wherever they run: compare the hexadecimal digits. (Of a picture,
any number of ranks does: sums of whole numbers are exact.) That is why there is no matrix product here, which
is rounded as the processor and its BLAS like; all is elementwise, or summed in the order of the points. It
is about as fast.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import rmpi

Points: TypeAlias = NDArray[Any]
"""Numbers of any dtype, a point per row: ``(n, d)``."""

Centroids: TypeAlias = NDArray[np.float64]
"""``(k, d)``."""

AT_ONCE = 1 << 16
"""Distances held at a time. 0.5 MB stay in a core's cache, and a photograph of any size fits into memory."""


class Clustering(NamedTuple):
    """What `cluster` found; all but ``labels`` is the same on every rank.

    Attributes:
        centroids: The mean of each cluster's points.
        labels: The number of the nearest centroid, for each of *this rank's* points.
        counts: How many points of all ranks each cluster has.
        inertia: The sum of the squared distances of all points to their centroids.
        iterations: How often the centroids were moved.
        moved: How far the last time: the largest change of any coordinate.
    """

    centroids: Centroids
    labels: NDArray[np.int32]
    counts: NDArray[np.float64]
    inertia: float
    iterations: int
    moved: float


# --- The algorithm, on every rank ----------------------------------------------------------------


def cluster(
    comm: rmpi.Comm,
    points: Points,
    centroids: Centroids,
    *,
    tol: float,
    max_iter: int,
    watch: Callable[[int, float], None] | None = None,
) -> Clustering:
    """Move the centroids until none moves by more than ``tol``, at most ``max_iter`` times.

    Args:
        comm: Every rank calls this.
        points: This rank's; there may be none. Neither they nor the centroids are modified.
        centroids: To begin with, the same on every rank.
        watch: Called after each iteration with its number and how far the centroids moved.
    """
    iterations, moved = 0, np.inf
    while True:
        labels, mine = assign(points, centroids)
        totals = comm.allreduce(mine)
        sums, counts, squares = totals[:, :-2], totals[:, -2], totals[:, -1]
        if moved <= tol or iterations == max_iter:  # only now, so that the labels fit the centroids
            return Clustering(centroids, labels, counts, math.fsum(squares), iterations, moved)
        nonempty = counts[:, None] > 0
        means = np.divide(sums, counts[:, None], out=centroids.copy(), where=nonempty)
        moved = float(np.abs(means - centroids).max())
        centroids, iterations = means, iterations + 1
        if watch:
            watch(iterations, moved)


def assign(points: Points, centroids: Centroids) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Find the nearest centroid of each point.

    Returns:
        labels: Its number, ``(n,)``.
        totals: ``(k, d + 2)``, of each cluster the sum of its points, their number and the sum of their
            squared distances: all that the ranks must add up, in one array.
    """
    k, d = centroids.shape
    labels = np.empty(len(points), np.int32)
    totals = np.zeros((k, d + 2))
    step = max(1, AT_ONCE // k)
    for start in range(0, len(points), step):
        block = np.ascontiguousarray(points[start : start + step].T, dtype=np.float64)
        distances = squared_distances(block, centroids)
        nearest = labels[start : start + step] = distances.argmin(axis=0)
        addends = [*block, np.ones(len(nearest)), distances.min(axis=0)]
        for column, addend in enumerate(addends):
            totals[:, column] += np.bincount(nearest, addend, minlength=k)
    return labels, totals


def squared_distances(block: NDArray[np.float64], centroids: Centroids) -> NDArray[np.float64]:
    """From each centroid to each point: ``(k, n)``. Each *column* of ``block``, ``(d, n)``, is a point."""
    distances = np.zeros((len(centroids), block.shape[1]))
    for points, centres in zip(block, centroids.T, strict=True):  # a coordinate at a time
        difference = points - centres[:, None]
        distances += difference * difference
    return distances


def spread(comm: rmpi.Comm, points: Points | None) -> Points:
    """Give each rank its share of rank 0's points. Colours travel as the bytes they are."""
    n = comm.broadcast(None if points is None else len(points))
    shares = comm.gather(comm.partition(n))
    pieces = None
    if points is not None and shares is not None:
        pieces = [points[start : start + count] for start, count in shares]
    mine: Points = comm.scatter(pieces)
    return mine


# --- Input and output, on rank 0 -----------------------------------------------------------------


class Job(NamedTuple):
    """What the command line asks for.

    Attributes:
        data: A picture ``(height, width, 3)``, or points ``(n, d)``.
        points: The same, a point per row.
        centroids: Where to begin.
    """

    options: Namespace
    data: NDArray[Any]
    points: Points
    centroids: Centroids

    @property
    def is_picture(self) -> bool:
        return self.data.ndim == 3


def prepare(argv: Sequence[str] | None) -> Job:
    """Read the command line and the file.

    Raises:
        SystemExit: Something is wrong with them. What, has been printed.
    """
    parser = ArgumentParser("kmeans.py", description="Cluster the colours of a picture, or any points.")
    add = parser.add_argument
    add("file", nargs="?", type=Path, help="a picture, an array (n, d) as .npy, or numbers as .csv")
    add("--k", type=int, default=16, help="how many clusters (default: 16)")
    add("--tol", type=float, help="the last move of any coordinate (default: 0.01 for pictures, else 0)")
    add("--max-iter", type=int, default=300, help="how many iterations at most (default: 300)")
    add("--seed", type=int, default=0, help="picks the points to begin with (default: 0)")
    add("--output", type=Path, help="a picture; or for points an .npz file of centroids and labels")
    options = parser.parse_args(argv)
    try:
        return job_of(options)
    except ImportError as problem:
        parser.exit(2, f'kmeans.py: {problem}; install it with: pip install "rmpi[examples]"\n')
    except ValueError as problem:
        parser.exit(2, f"kmeans.py: {problem}\n")


def job_of(options: Namespace) -> Job:
    """Check the options, read the file, pick the centroids; ValueError says what does not fit."""
    check(options)
    options.file = options.file or sample()
    data = read(options.file)
    picture = data.ndim == 3
    if options.tol is None:
        options.tol = 0.01 if picture else 0.0
    if options.output is None:
        kind = "colours.png" if picture else "clusters.npz"
        options.output = Path(f"{options.file.stem}-{options.k}-{kind}")
    points = data.reshape(-1, data.shape[-1])
    return Job(options, data, points, pick(points, options.k, options.seed))


def check(options: Namespace) -> None:
    for name, least in [("k", 1), ("tol", 0), ("max_iter", 1), ("seed", 0)]:
        value = getattr(options, name)
        if value is not None and not least <= value < np.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, not {value}")
    if options.output and not options.output.parent.is_dir():
        raise ValueError(f"--output: there is no directory {options.output.parent}")


def sample() -> Path:
    """The photograph in scikit-learn's package, found without importing that, which would take seconds."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ImportError("the photograph that is clustered by default is a part of scikit-learn")
    return Path(spec.origin).parent / "datasets" / "images" / "china.jpg"


def read(file: Path) -> NDArray[Any]:
    """A picture ``(height, width, 3)``, or points ``(n, d)``, all of them finite numbers."""
    reader = {".npy": read_npy, ".csv": read_csv}.get(file.suffix.lower(), read_picture)
    try:
        data = reader(file)
    except ImportError:
        raise
    except Exception as problem:  # a broken picture can raise nearly anything
        raise ValueError(f"cannot read {file}: {getattr(problem, 'strerror', None) or problem}") from problem
    if reader is not read_picture:
        check_points(file, data)
    return data


def read_picture(file: Path) -> NDArray[Any]:
    from PIL import Image, ImageOps  # late: the other ranks, and points, do without

    with Image.open(file) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def read_npy(file: Path) -> NDArray[Any]:
    with file.open("rb") as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array[:, None] if array.ndim == 1 else array


def read_csv(file: Path) -> NDArray[Any]:
    with warnings.catch_warnings(action="ignore"):  # an empty file gets an error, below
        return np.loadtxt(file, delimiter=",", ndmin=2)


def check_points(file: Path, data: NDArray[Any]) -> None:
    if data.ndim != 2 or data.dtype.kind not in "buif" or not data.size:
        what = f"{data.dtype} of shape {data.shape}"
        raise ValueError(f"{file} should hold numbers, a point per row, not {what}")
    bad = np.flatnonzero(~np.isfinite(data).all(axis=1))
    if bad.size:
        where = f"{bad.size} points, the first of them in row {bad[0]} (counted from 0)"
        raise ValueError(f"{file} has a NaN or an infinity in {where}; leave them out")


def pick(points: Points, k: int, seed: int) -> Centroids:
    """``k`` points, no two of them equal, picked at random."""
    picked: dict[tuple[Any, ...], None] = {}
    for index in np.random.default_rng(seed).permutation(len(points)):
        picked[tuple(points[index].tolist())] = None
        if len(picked) == k:
            return np.array(list(picked), np.float64)
    raise ValueError(f"--k {k} needs {k} different points, but there are {len(picked)}: use a smaller k")


def main(comm: rmpi.Comm, argv: Sequence[str] | None = None) -> int:
    """The exit status: 0; or 2 on rank 0 if the command line, the file or the output is no good."""
    job, status = None, 0
    if comm.rank == 0:
        try:
            job = prepare(argv)
        except SystemExit as refused:
            status = int(refused.code or 0)
    setup = comm.broadcast(job and (job.centroids, job.options.tol, job.options.max_iter))
    if setup is None:
        comm.gather(None)  # rank 0 leaves last: its status would fail ranks that still wait to hear of it
        return status
    centroids, tol, max_iter = setup
    mine = spread(comm, job and job.points)
    begin = perf_counter()
    found = cluster(comm, mine, centroids, tol=tol, max_iter=max_iter, watch=progress(comm))
    seconds = perf_counter() - begin
    labels = comm.gather(found.labels)
    if job is None or labels is None:
        return 0
    report(job, found, comm.size, seconds)
    return save(job, found.centroids, np.concatenate(labels))


def progress(comm: rmpi.Comm) -> Callable[[int, float], None] | None:
    """What shows a line that changes, if there is a terminal: the launcher's (it says so), or one's own."""
    terminal = "RMPI_TERMINAL" in os.environ or sys.stdout.isatty()
    return show if terminal and comm.rank == 0 else None


def show(iteration: int, moved: float) -> None:
    print(f"iteration {iteration}, moved {moved:.4g}".ljust(40), end="\r", flush=True)


def report(job: Job, found: Clustering, size: int, seconds: float) -> None:
    what = "pixels" if job.is_picture else "points"
    empty = np.flatnonzero(found.counts == 0)
    print(f"{job.options.file.name}: {len(job.points)} {what} into {job.options.k} clusters, ranks: {size}")
    print(f"iterations: {found.iterations} in {seconds:.2f} s, the last one moved {found.moved:.4g}")
    print(f"inertia {found.inertia:.9e}, centroids {checksum(found.centroids)}")
    if empty.size:
        print(f"without points, and left where they were: centroids {', '.join(map(str, empty))}")


def checksum(centroids: Centroids) -> str:
    """Sixteen hexadecimal digits that differ if a single bit does."""
    return sha256(centroids.astype("<f8").tobytes()).hexdigest()[:16]


def save(job: Job, centroids: Centroids, labels: NDArray[np.int32]) -> int:
    """Write the result and say where it is; the exit status."""
    output = job.options.output
    try:
        (write_picture if job.is_picture else write_points)(output, job, centroids, labels)
    except (OSError, ValueError) as problem:
        print(f"kmeans.py: cannot write {output}: {problem}", file=sys.stderr)
        return 2
    print(f"wrote {output}")
    return 0


def write_picture(output: Path, job: Job, centroids: Centroids, labels: NDArray[np.int32]) -> None:
    from PIL import Image

    colours = np.rint(centroids).astype(np.uint8)
    painted = colours[labels].reshape(job.data.shape)
    Image.fromarray(np.hstack([job.data, painted])).save(output)


def write_points(output: Path, _: Job, centroids: Centroids, labels: NDArray[np.int32]) -> None:
    with output.open("wb") as stream:  # given a name without .npz, savez would choose another
        np.savez(stream, centroids=centroids, labels=labels)


if __name__ == "__main__":
    sys.exit(main(rmpi.init()))
