"""Cartesian communicators: ranks laid out in a grid, and arrays that are distributed over it.

A `Cart` is a `Comm` whose ranks have coordinates. Where they are and who is next to whom is arithmetic
(`rmpi.comm.grid`); the one new thing it does is to exchange halos (`rmpi.comm.collectives.halo`), which is a collective
like any other: numbered, compared with what other ranks called, blocking or not, and out of the way of all messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import index
from typing import Any

import numpy as np

from rmpi.comm import calls
from rmpi.comm.arguments import check_out, checked_rank
from rmpi.comm.collectives import halo
from rmpi.comm.communicator import Comm
from rmpi.comm.driver import Collective, Signature, fingerprint_of
from rmpi.comm.family import Family
from rmpi.comm.grid import Grid, completed, one_per_axis
from rmpi.comm.request import Request
from rmpi.errors import UsageError
from rmpi.wire.codec import Array


class Cart(Comm):
    """A communicator whose ranks form a grid, made by `Comm.cart` and by `sub`.

    All that a `Comm` does, it does too; what is made of it by `split`, `dup` or ``cart[ranks]`` is a plain `Comm`.

    Attributes:
        dims: How many ranks there are along each axis.
        periods: Which axes are rings.
        coords: Where this rank is.
    """

    def __init__(self, family: Family, members: Sequence[int], context: int, hosts: Sequence[str], grid: Grid) -> None:
        super().__init__(family, members, context, hosts)
        self._grid = grid
        self.dims = grid.dims
        self.periods = grid.periods
        self.coords = grid.coords_of(self.rank)

    # -------------------------------------------------------------------------------------- places

    def coords_of(self, rank: int) -> tuple[int, ...]:
        """The coordinates of a rank. Ranks are in row-major order: the last coordinate runs fastest.

        Raises:
            RankError: There is no such rank.
        """
        return self._grid.coords_of(checked_rank(rank, self.size, "rank"))

    def rank_of(self, coords: Sequence[int]) -> int:
        """The rank at these coordinates. Along periodic axes they count on: -1 is the last.

        Raises:
            RankError: They are beyond an open border, or not one integer for each axis.
        """
        return self._grid.rank_of(coords)

    def shift(self, axis: int, displacement: int = 1) -> tuple[int | None, int | None]:
        """Who is ``displacement`` steps before this rank along an axis, and who is so many behind: (source, dest).

        So ``cart.sendrecv(value, dest, source)`` moves values along the axis. Beyond an open border there is nobody,
        which is None, and no rank to send to: say ``if dest is not None``. (`halo_exchange` does.)

        Raises:
            UsageError: There is no such axis.
        """
        return self._grid.shift(self.coords, self._grid.axis(axis), displacement)

    def local(self, shape: int | Sequence[int]) -> tuple[slice, ...]:
        """This rank's block of an array of that shape which is distributed over the grid: ``array[cart.local(shape)]``.

        The first axes are those of the grid, each cut as `Comm.partition` does; axes beyond are whole. Nothing is
        communicated, and there are no ghost layers in it.

        Raises:
            UsageError: It has fewer axes than the grid.
        """
        extents = tuple(shape) if isinstance(shape, Iterable) else (shape,)
        if len(extents) < len(self.dims):
            raise UsageError(f"an array of shape {extents} has fewer axes than the grid {self.dims}")
        return self._grid.block(self.coords, extents)

    def sub(self, keep: int | Iterable[int], *, timeout: float | None = None) -> Cart:
        """The grid of the ranks that differ from this one along the axes in ``keep`` only: its row, column or plane.

        A collective call of all ranks of this grid, with the same axes. They stay in their order here.

        Raises:
            UsageError: There is no such axis.
        """
        axes = sorted({self._grid.axis(axis) for axis in (keep if isinstance(keep, Iterable) else (keep,))})
        self._driver.run(_agreeing(self, f"sub(keep={axes})"), timeout)
        grid = Grid(tuple(self.dims[axis] for axis in axes), tuple(self.periods[axis] for axis in axes))
        ranks = self._grid.plane(self.coords, axes)
        return Cart(*self._parts(ranks, "sub", self._count(), ranks[0]), grid)

    # --------------------------------------------------------------------------------------- halos

    def halo_exchange(
        self, array: Array, width: int | Sequence[int] = 1, *, corners: bool = True, timeout: float | None = None
    ) -> None:
        """Fill the ghost layers of a distributed array with what the neighbours have there. A collective call.

        Args:
            array: This rank's block and around it, at both ends of each axis of the grid, ``width`` ghost layers. Its
                first axes are those of the grid; axes beyond are carried along. The ghost layers are written in
                place, save those beyond an open border, which are the caller's boundary values.
            width: How many layers, the same on all ranks: one number, or one for each axis of the grid.
            corners: Fill the ghosts in corners and edges too, which stencils need that look diagonally. It takes
                a round for each axis instead of one for all.

        Raises:
            UsageError: The block is smaller than ``width`` along an axis, the array has fewer axes than the grid, or is
                read-only: nothing has begun, and this rank may call again. Or the blocks of neighbours do not fit.
        """
        self._driver.run(self._halo(array, width, corners), timeout)

    def ihalo_exchange(self, array: Array, width: int | Sequence[int] = 1, *, corners: bool = True) -> Request[None]:
        """`halo_exchange` as a request. Until it is done nobody may look at the ghost layers, or write what is sent.

        Meanwhile, compute what needs no ghosts.
        """
        return self._start(self._halo(array, width, corners))

    def _halo(self, array: Array, width: int | Sequence[int], corners: bool) -> Collective:
        check_out(array)
        ndims = len(self.dims)
        widths = _widths(width, ndims)
        _check_interior(array, widths)
        sides = [halo.Side(*self.shift(axis), widths[axis]) for axis in range(ndims)]
        plain = np.asarray(array) if type(array) is np.memmap else array  # travels raw then
        dtype = array.dtype if array.dtype.isbuiltin == 1 else str(array.dtype)
        called = _halo_signature(widths, bool(corners), array.shape[ndims:], dtype)
        return called, halo.exchange(self.rank, plain, sides, corners=corners), None

    def __repr__(self) -> str:
        return f"<Cart rank {self.rank} at {self.coords} of {self.dims}>"


def make(comm: Comm, dims: int | Sequence[int], periods: bool | Sequence[bool], timeout: float | None) -> Cart | None:
    """`Comm.cart`."""
    extents = completed(dims, comm.size)
    grid = Grid(extents, one_per_axis(periods, len(extents)))
    comm._driver.run(_agreeing(comm, f"cart({grid.dims}, periods={grid.periods})"), timeout)
    number = comm._count()
    return Cart(*comm._parts(range(grid.size), "cart", number), grid) if comm.rank < grid.size else None


def _agreeing(comm: Comm, what: str) -> Collective:
    """A collective that does nothing but see that all ranks call the same."""
    _, schedule, shape = calls.barrier(comm._group)
    return Signature(what, fingerprint_of(what)), schedule, shape


def _widths(width: int | Sequence[int], ndims: int) -> tuple[int, ...]:
    try:
        widths = tuple(map(index, width)) if isinstance(width, Sequence) else (index(width),) * ndims
    except TypeError:
        widths = ()
    if len(widths) != ndims or min(widths, default=0) < 0:
        raise UsageError(
            f"halo_exchange: width is one number of layers, or one for each of {ndims} axes, not {width!r}"
        )
    return widths


def _check_interior(array: Array, widths: tuple[int, ...]) -> None:
    if array.ndim < len(widths):
        raise UsageError(f"halo_exchange: an array of shape {array.shape} has fewer axes than the grid, {len(widths)}")
    for axis, width in enumerate(widths):
        inside = array.shape[axis] - 2 * width
        if width and inside < width:
            raise UsageError(
                f"halo_exchange: along axis {axis} the array has {array.shape[axis]} layers: 2 × {width} ghosts leave "
                f"{max(inside, 0)} inside, and neighbours need {width} of those. Use fewer ranks along this axis, or a "
                "smaller width; and mind that the ghosts are part of the array"
            )


@lru_cache(maxsize=256)
def _halo_signature(widths: tuple[int, ...], corners: bool, trailing: tuple[int, ...], dtype: Any) -> Signature:
    what = f"halo_exchange(width={widths}, corners={corners}, array (…, *{trailing}) of {dtype})"
    return Signature(what, fingerprint_of(what))
