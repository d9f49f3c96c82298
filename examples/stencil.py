"""Heat in a metal plate: Jacobi's method on a grid of ranks, each with a block of the plate and halos around it.

    rmpi-run -n 4 examples/stencil.py
    rmpi-run -n 6 examples/stencil.py plate.png

The upper edge is heated, the other edges are cold. In each step, every point becomes the mean of its four neighbours;
those that belong to another rank are in the ghost layers, which `Cart.halo_exchange` fills. Rank 0 prints how it went,
computes the same alone, fails unless both are equal bit for bit, and writes a picture:

    a plate of 36 × 48 points on 2 × 2 ranks
    300 steps in 0.16 s, the last one changed a point by 0.069 degrees
    as computed by one rank alone: yes
    wrote stencil.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from time import perf_counter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import rmpi

Plate: TypeAlias = NDArray[np.float64]
"""Degrees, ``(rows + 2, columns + 2)``: around the points is a layer that stays as it is, or belongs to a neighbour."""

SHAPE = (36, 48)
STEPS = 300
LOOK = 20
"""Steps between two looks at how much still changes, in which all ranks take part."""

ENOUGH = 0.01
"""Degrees. Nobody minds a smaller change."""


def cold_plate(shape: tuple[int, int]) -> Plate:
    """A cold plate with a hot upper edge."""
    plate = np.zeros((shape[0] + 2, shape[1] + 2))
    plate[0] = 100 * np.sin(np.linspace(0, np.pi, shape[1] + 2))
    return plate


def relax(old: Plate, new: Plate) -> None:
    """One step for all points but those of the outermost layer."""
    new[1:-1, 1:-1] = (old[:-2, 1:-1] + old[2:, 1:-1] + old[1:-1, :-2] + old[1:-1, 2:]) / 4


def heat(cart: rmpi.Cart, shape: tuple[int, int]) -> tuple[Plate, int, float]:
    """This rank's points after many steps; how many, and how much the last one changed anywhere."""
    rows, columns = cart.local(shape)
    old = cold_plate(shape)[rows.start : rows.stop + 2, columns.start : columns.stop + 2].copy()
    new, changed = old.copy(), np.inf
    for step in range(1, STEPS + 1):
        cart.halo_exchange(old, corners=False)
        relax(old, new)
        if step % LOOK == 0:
            changed = cart.allreduce(float(np.abs(new - old)[1:-1, 1:-1].max()), rmpi.MAX)
        old, new = new, old
        if changed < ENOUGH:
            break
    return old[1:-1, 1:-1], step, changed


def alone(shape: tuple[int, int], steps: int) -> Plate:
    """The same without any ranks."""
    old = cold_plate(shape)
    new = old.copy()
    for _ in range(steps):
        relax(old, new)
        old, new = new, old
    return old[1:-1, 1:-1]


def main(comm: rmpi.Comm, argv: Sequence[str] = ()) -> int:
    """The exit status: 0; or 1 on rank 0 if the plate is not what one rank computes."""
    cart = comm.cart(2)
    assert cart is not None  # two dimensions have room for any number of ranks
    begin = perf_counter()
    mine, steps, changed = heat(cart, SHAPE)
    seconds = perf_counter() - begin
    blocks = cart.gather((cart.local(SHAPE), mine))
    if blocks is None:
        return 0
    plate = np.empty(SHAPE)
    for where, block in blocks:
        plate[where] = block
    right = bool((plate == alone(SHAPE, steps)).all())
    print(f"a plate of {SHAPE[0]} × {SHAPE[1]} points on {cart.dims[0]} × {cart.dims[1]} ranks")
    print(f"{steps} steps in {seconds:.2f} s, the last one changed a point by {changed:.3f} degrees")
    print(f"as computed by one rank alone: {'yes' if right else 'no'}")
    paint(plate, argv[0] if argv else "stencil.png")
    return 0 if right else 1


def paint(plate: Plate, output: str) -> None:
    """Write a picture from black over red and yellow to white, ten pixels wide and high for each point."""
    try:
        from PIL import Image
    except ImportError:
        print('no picture without Pillow: pip install "rmpi[examples]"')
        return
    glow = np.clip(3 * plate[..., None] / 100 - [0, 1, 2], 0, 1)
    picture = Image.fromarray(np.rint(255 * glow).astype(np.uint8))
    picture.resize((10 * plate.shape[1], 10 * plate.shape[0])).save(output)
    print(f"wrote {output}")


if __name__ == "__main__":
    sys.exit(main(rmpi.init(), sys.argv[1:]))
