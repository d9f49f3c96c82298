"""Grids: the arithmetic of ranks that are laid out in rows and columns, in any number of dimensions.

Ranks are numbered in row-major order, as MPI does: the last coordinate runs fastest. An axis is *open* (it has two
borders, beyond which there is nobody) or *periodic* (it is a ring). Only arithmetic: every rank knows where every
other one is without asking.

**Balanced dimensions.** "As close to each other as possible", says the MPI standard of ``MPI_Dims_create``, and
several MPIs deal out prime factors greedily instead, which makes 12 × 6 of 72 where 9 × 8 was possible (J. L. Träff,
F. D. Lübbe: Specification Guideline Violations by MPI_Dims_create, EuroMPI 2015, doi:10.1145/2802658.2802667). Here
all factorisations are looked at, and one with the least distance between the largest and the smallest
dimension is taken. There are few of them: of 2¹⁶ ranks in five dimensions, 101.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt, prod
from operator import index

from rmpi.comm.partition import partition
from rmpi.errors import RankError, UsageError


def balanced(size: int, ndims: int) -> tuple[int, ...]:
    """``ndims`` numbers with the product ``size``, in non-increasing order, as close to each other as possible.

    The difference of the first and the last is the least there is; of several with that, the smallest tuple.
    """
    small = [number for number in range(1, isqrt(size) + 1) if size % number == 0]
    divisors = sorted({*small, *(size // number for number in small)})
    return min(_factorisations(size, ndims, size, divisors), key=lambda dims: (dims[0] - dims[-1], dims))


def _factorisations(number: int, count: int, largest: int, divisors: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every way to write ``number`` as ``count`` factors up to ``largest``, in non-increasing order."""
    if count == 1:
        if number <= largest:
            yield (number,)
        return
    for first in divisors:
        if first <= largest and number % first == 0 and first**count >= number:
            for rest in _factorisations(number // first, count - 1, first, divisors):
                yield (first, *rest)


def completed(dims: int | Sequence[int], size: int) -> tuple[int, ...]:
    """The dimensions of a grid on at most ``size`` ranks, as they were asked for.

    Args:
        dims: How many there are, or each of them; those that are 0 are chosen, balanced, so that all ranks are used.

    Raises:
        UsageError: There is no such grid on so many ranks. The text names one.
    """
    given = _extents(dims)
    taken = prod(extent for extent in given if extent)
    free = given.count(0)
    if taken > size or (free and size % taken):
        raise UsageError(f"cart: {_misfit(given, taken, free, size)}; dims={balanced(size, len(given))} would be right")
    chosen = iter(balanced(size // taken, free) if free else ())
    return tuple(extent or next(chosen) for extent in given)


def _extents(dims: int | Sequence[int]) -> tuple[int, ...]:
    """``dims`` one by one, each 0 or more."""
    try:
        extents = tuple(map(index, dims)) if isinstance(dims, Sequence) else (0,) * index(dims)
        fits = min(extents, default=0) >= 0 and (isinstance(dims, Sequence) or dims > 0)
    except TypeError:
        fits = False
    if not fits:
        raise UsageError(
            f"cart: dims is the number of dimensions, like 2, or the ranks along each, like (3, 2), 0 for those to be "
            f"chosen; not {dims!r}"
        )
    return extents


def _misfit(given: tuple[int, ...], taken: int, free: int, size: int) -> str:
    if not free:
        return f"a grid {given} needs {taken} ranks, but there are {size}"
    return f"{size} ranks cannot be laid out as {given}, because {taken} does not divide {size}"


def one_per_axis(periods: bool | Sequence[bool], ndims: int) -> tuple[bool, ...]:
    """Whether each of ``ndims`` axes is periodic."""
    if not isinstance(periods, Sequence):
        return (bool(periods),) * ndims
    if len(periods) != ndims:
        raise UsageError(f"cart: periods is one bool, or one for each of {ndims} dimensions, not {periods!r}")
    return tuple(map(bool, periods))


@dataclass(frozen=True, slots=True)
class Grid:
    """``dims`` ranks along each axis; those in which ``periods`` is True are rings."""

    dims: tuple[int, ...]
    periods: tuple[bool, ...]

    @property
    def size(self) -> int:
        return prod(self.dims)

    def axis(self, axis: int) -> int:
        """``axis`` as a number from 0, checked; negative ones count from the end."""
        try:
            return range(len(self.dims))[index(axis)]
        except (TypeError, IndexError):
            raise UsageError(f"axis {axis!r}: this grid has axes 0 to {len(self.dims) - 1}") from None

    def coords_of(self, rank: int) -> tuple[int, ...]:
        """Where a rank of this grid is."""
        coords = []
        for extent in reversed(self.dims):
            rank, coordinate = divmod(rank, extent)
            coords.append(coordinate)
        return tuple(reversed(coords))

    def rank_of(self, coords: Sequence[int]) -> int:
        """Who is there; along periodic axes one may count on.

        Raises:
            RankError: It is beyond a border, or these are no coordinates.
        """
        there = self._within(coords)
        if there is None:
            raise RankError(f"{tuple(coords)} is outside of the grid {self.dims} with periods {self.periods}")
        rank = 0
        for coordinate, extent in zip(there, self.dims, strict=True):
            rank = rank * extent + coordinate
        return rank

    def _within(self, coords: Sequence[int]) -> list[int] | None:
        """Coordinates inside the grid, or None beyond an open border."""
        try:
            there = list(map(index, coords))
        except TypeError:
            there = []
        if len(there) != len(self.dims):
            raise RankError(f"coordinates are {len(self.dims)} integers in the grid {self.dims}, not {coords!r}")
        for axis, (coordinate, extent) in enumerate(zip(there, self.dims, strict=True)):
            if self.periods[axis]:
                there[axis] = coordinate % extent
            elif not 0 <= coordinate < extent:
                return None
        return there

    def shift(self, coords: Sequence[int], axis: int, displacement: int) -> tuple[int | None, int | None]:
        """Who is ``displacement`` steps before these coordinates along an axis, and who is so many behind them."""
        return self._neighbour(coords, axis, -displacement), self._neighbour(coords, axis, displacement)

    def _neighbour(self, coords: Sequence[int], axis: int, displacement: int) -> int | None:
        there = self._within([*coords[:axis], coords[axis] + displacement, *coords[axis + 1 :]])
        return None if there is None else self.rank_of(there)

    def plane(self, coords: Sequence[int], axes: Sequence[int]) -> list[int]:
        """The ranks that differ from these coordinates along ``axes`` only, in their order."""
        others = [axis for axis in range(len(self.dims)) if axis not in axes]
        everybody = range(self.size)
        return [rank for rank in everybody if all(self.coords_of(rank)[axis] == coords[axis] for axis in others)]

    def block(self, coords: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
        """The block of an array of that shape that belongs there; axes beyond those of the grid are whole."""
        blocks = []
        for axis, length in enumerate(shape):
            start, count = partition(length, self.dims[axis], coords[axis]) if axis < len(self.dims) else (0, length)
            blocks.append(slice(start, start + count))
        return tuple(blocks)
