"""π as the area under 4 / (1 + x²) from 0 to 1, cut into strips that the ranks share.

    rmpi-run -n 4 examples/pi.py

Rank 0 prints π and how far it is off, and fails if that is more than the midpoint rule allows:

    3.141592653590, off by 8.3e-14, ranks: 4
"""

from __future__ import annotations

import math
import sys

import numpy as np

import rmpi

STRIPS = 1_000_000

ROUNDING = 1e-12
"""What adding up a million doubles may cost; far more than it does."""


def area(comm: rmpi.Comm, strips: int) -> float:
    """The area by the midpoint rule, on every rank. Off by at most ``1 / (3 * strips**2)`` and rounding."""
    start, count = comm.partition(strips)
    middles = (np.arange(start, start + count) + 0.5) / strips
    mine = float(np.sum(4 / (1 + middles**2))) / strips
    return float(comm.allreduce(mine))


def main(comm: rmpi.Comm) -> int:
    """The exit status: 0 if π is what it should be, else 1."""
    pi = area(comm, STRIPS)
    error = abs(pi - math.pi)
    if comm.rank == 0:
        print(f"{pi:.12f}, off by {error:.1e}, ranks: {comm.size}")
    return 0 if error <= 1 / (3 * STRIPS**2) + ROUNDING else 1


if __name__ == "__main__":
    sys.exit(main(rmpi.init()))
