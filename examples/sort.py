"""Sort numbers that no rank has all of: sample sort.

    rmpi-run -n 4 examples/sort.py

Every rank sorts its own numbers and picks some of them as samples. The sorted samples of all ranks say where to cut, so
that each rank gets about equally many; an alltoall brings the pieces there. After that, rank 0 has the smallest
numbers, in order, then comes rank 1. Rank 0 prints how even it came out, and fails unless it is what NumPy gives:

    400000 numbers in 0.05 s, ranks: 4
    the largest share is 1.02 times the mean
    as NumPy sorts them: yes

H. Shi, J. Schaeffer: Parallel Sorting by Regular Sampling, Journal of Parallel and Distributed Computing 14, 1992.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import rmpi

Numbers: TypeAlias = NDArray[np.int64]

COUNT = 400_000
SAMPLES = 64
"""Of each rank. The shares differ by a few percent then."""


def numbers_of(comm: rmpi.Comm) -> Numbers:
    """This rank's: many small ones, few large ones, and many of them equal."""
    _, count = comm.partition(COUNT)
    return np.random.default_rng([1992, comm.rank]).geometric(1e-4, count)


def sample_sort(comm: rmpi.Comm, numbers: Numbers) -> Numbers:
    """This rank's part of all numbers in order, which follows that of the rank before."""
    numbers = np.sort(numbers)
    mine = numbers[np.linspace(0, len(numbers) - 1, min(SAMPLES, len(numbers))).astype(int)]
    samples = np.sort(comm.allgather(mine, concatenate=True))
    cuts = samples[[len(samples) * rank // comm.size for rank in range(1, comm.size)]]
    ends = np.searchsorted(numbers, cuts)
    counts = np.diff([0, *ends, len(numbers)]).tolist()
    return np.sort(comm.alltoall(numbers, counts=counts), kind="stable")  # finds what is sorted already, and merges


def main(comm: rmpi.Comm) -> int:
    """The exit status: 0; or 1 on rank 0 if it is not what NumPy gives."""
    numbers = numbers_of(comm)
    comm.barrier()
    begin = perf_counter()
    mine = sample_sort(comm, numbers)
    comm.barrier()
    seconds = perf_counter() - begin
    largest = comm.allreduce(len(mine), rmpi.MAX)
    before, after = comm.gather(numbers, concatenate=True), comm.gather(mine, concatenate=True)
    if before is None or after is None:
        return 0
    right = np.array_equal(after, np.sort(before))
    print(f"{len(after)} numbers in {seconds:.2f} s, ranks: {comm.size}")
    print(f"the largest share is {largest * comm.size / len(after):.2f} times the mean")
    print(f"as NumPy sorts them: {'yes' if right else 'no'}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(rmpi.init()))
