"""Exchange of halos: every rank of a grid gives its neighbours copies of its outermost layers.

An array has `width` ghost layers at both ends of each distributed axis. Along an axis

    | ghost | strip |  …  | strip | ghost |
      0..w    w..2w       -2w..-w   -w..

the last strip goes to the next rank's first ghost layers, and the first strip to the previous rank's last ones.

**Corners.** What lies beyond an edge belongs to a diagonal neighbour, which is nobody's neighbour along an axis. It
comes all the same if axis follows axis and strips are as long as the array, ghosts included: what came along the
first axis goes on along the second (the usual way; 2·d messages for 3^d - 1 neighbours). Without corners, strips
are as long as the interior, and all axes go at once, in one round.

Two ranks in a ring are both neighbours of each other twice. Strips go upwards first, then downwards, and receives are
in the same order, so the order of messages tells them apart. A ring of one rank copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmpi.comm.schedule import Recv, Schedule, Send, Step
from rmpi.errors import UsageError

Array = npt.NDArray[Any]


class Side(NamedTuple):
    """One axis of the exchange: the ranks before and behind this one (None: a border), and how many layers."""

    before: int | None
    behind: int | None
    width: int


def exchange(rank: int, array: Array, sides: Sequence[Side], *, corners: bool) -> Schedule[None]:
    """Fill the ghost layers of ``array``, whose first axes are those of ``sides``; beyond borders they stay."""
    axes = [axis for axis, side in enumerate(sides) if side.width]
    for together in [[axis] for axis in axes] if corners else [axes]:
        sends: list[Step] = []
        receives: list[Recv] = []
        for axis in together:
            across = [slice(None)] * len(sides) if corners else [_interior(side.width) for side in sides]
            _one_axis(rank, array, axis, sides[axis], across, sends, receives)
        if receives:
            results = yield (*sends, *receives)
            for step, layers in zip(receives, results[len(sends) :], strict=True):
                _put(step, layers)


def _one_axis(
    rank: int, array: Array, axis: int, side: Side, across: list[slice], sends: list[Step], receives: list[Recv]
) -> None:
    """Add the steps of one axis, or copy at once if this rank is its own neighbour."""
    width = side.width

    def layers(start: int, stop: int | None) -> Array:
        part: Array = array[(*across[:axis], slice(start, stop), *across[axis + 1 :])]
        return part

    if side.behind == rank:
        layers(0, width)[...] = layers(-2 * width, -width)
        layers(-width, None)[...] = layers(width, 2 * width)
        return
    if side.behind is not None:
        sends.append(Send(side.behind, layers(-2 * width, -width)))
    if side.before is not None:
        sends.append(Send(side.before, layers(width, 2 * width)))
        receives.append(Recv(side.before, layers(0, width)))
    if side.behind is not None:
        receives.append(Recv(side.behind, layers(-width, None)))


def _interior(width: int) -> slice:
    return slice(width, -width or None)


def _put(step: Recv, layers: Any) -> None:
    """Write what came into the ghost layers, where it usually is already."""
    ghosts = step.out
    assert ghosts is not None
    if layers is ghosts:
        return
    if np.shape(layers) != ghosts.shape:
        raise UsageError(
            f"halo_exchange: the ghost layers are {ghosts.shape}, but rank {step.peer} sent {np.shape(layers)}: blocks "
            "of neighbours must be of equal length along all other axes, as those of cart.local(shape) are"
        )
    ghosts[...] = layers
