"""A picture in pieces that differ: how much work a row of the Mandelbrot set is, shows only when it is done.

    python examples/taskfarm/mandelbrot.py [--workers N] [--hosts host2:4] [--size 600] [--out mandelbrot.pgm]
    rmpi-run -f hostfile -m rmpi.taskfarm examples/taskfarm/mandelbrot.py

Rows are given out as workers have time, in pieces whose size follows what they take (`Master.map`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from rmpi import taskfarm
from rmpi.deadline import now

MOST = 255
"""Iterations; what has not escaped by then is taken for a part of the set."""


def row(y: float, width: int) -> np.ndarray:
    """One row: uint8 of shape (width,), the iterations until each point escapes."""
    c = np.linspace(-2.25, 0.75, width) + 1j * y
    z = np.zeros_like(c)
    counts = np.zeros(width, np.uint8)
    inside = np.ones(width, bool)
    for _ in range(MOST):
        z[inside] = z[inside] ** 2 + c[inside]
        inside &= z.real**2 + z.imag**2 <= 4
        if not inside.any():
            break
        counts[inside] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, help="on this machine (default: one for each core, or the job's ranks)")
    parser.add_argument("--hosts", help="other machines, as for rmpi-run -H")
    parser.add_argument("--size", type=int, default=600, help="rows and columns (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("mandelbrot.pgm"))
    options = parser.parse_args()
    size = options.size
    began = now()
    with taskfarm.Master(options.workers, hosts=options.hosts) as master:
        rows = list(master.map(row, np.linspace(-1.5, 1.5, size), [size] * size))
        workers = len(master.workers)
    picture = np.stack(rows)
    options.out.write_bytes(b"P5 %d %d 255\n" % (size, size) + picture.tobytes())
    inside = np.mean(picture == MOST)
    print(f"{size} rows by {workers} workers in {now() - began:.1f} s; {inside:.1%} is inside; wrote {options.out}")


if __name__ == "__main__":
    main()
