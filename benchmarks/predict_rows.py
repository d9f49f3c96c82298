"""The collectives whose cost is predicted: how a program calls each, and which schedule that runs.

Both must be the same thing, or measured and predicted cannot be compared. To add a collective, add it to `VERBS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from operations import size_name

from rmpi.comm import choose
from rmpi.comm.communicator import Comm
from rmpi.comm.schedule import Schedule
from rmpi.testing.clock import Charged

SIZES = [8, 64 << 10, 8 << 20]
"""Bytes of the array that each rank puts in."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Verb:
    """A collective.

    Attributes:
        call: Makes what one rank calls again and again, from its array.
        schedule: The one that this call runs, of a rank, with the array that it puts in and one that it gets: as
            `Rank` has them.
        most: Arrays that the rank which gets most gets, of n ranks.
        total: Arrays that all ranks together get.
    """

    call: Callable[[Comm, Array], Callable[[], Any]]
    schedule: Callable[[Rank], Schedule[Any]]
    most: Callable[[int], int] = lambda _: 1
    total: Callable[[int], int] = lambda size: size


@dataclass(frozen=True)
class Rank:
    """What a schedule is made from. ``machines`` is there for those that take it, else empty."""

    rank: int
    size: int
    mine: Array
    out: Array
    operator: Charged
    machines: dict[str, Any]

    @property
    def me(self) -> tuple[int, int]:
        return self.rank, self.size

    def out_unless_root(self) -> Array | None:
        return self.out if self.rank else None

    def out_on_root(self) -> Array | None:
        return None if self.rank else self.out


def _broadcast(comm: Comm, mine: Array) -> Callable[[], Any]:
    out = np.empty_like(mine)
    return lambda: comm.broadcast(mine, out=out)


def _reduce(comm: Comm, mine: Array) -> Callable[[], Any]:
    out = np.empty_like(mine)
    return lambda: comm.reduce(mine, out=out)


def _allreduce(comm: Comm, mine: Array) -> Callable[[], Any]:
    out = np.empty_like(mine)
    return lambda: comm.allreduce(mine, out=out)


def _gather(comm: Comm, mine: Array) -> Callable[[], Any]:
    return lambda: comm.gather(mine)


def _allgather(comm: Comm, mine: Array) -> Callable[[], Any]:
    out = np.empty((comm.size, *mine.shape))
    return lambda: comm.allgather(mine, out=out)


VERBS: dict[str, Verb] = {
    "barrier": Verb(
        lambda comm, _: comm.barrier,
        lambda at: choose.barrier(*at.me, **at.machines),
    ),
    "broadcast": Verb(
        _broadcast,
        lambda at: choose.broadcast(*at.me, 0, at.mine, at.out_unless_root(), **at.machines),
    ),
    "reduce": Verb(
        _reduce,
        lambda at: choose.reduce(*at.me, 0, at.mine, at.operator, at.out_on_root(), **at.machines),
    ),
    "allreduce": Verb(
        _allreduce,
        lambda at: choose.allreduce(*at.me, at.mine, at.operator, at.out, **at.machines),
    ),
    "gather": Verb(
        _gather,
        lambda at: choose.gather(*at.me, 0, at.mine, **at.machines),
        most=lambda size: size,
    ),
    "allgather": Verb(
        _allgather,
        lambda at: choose.allgather(*at.me, at.mine, [at.out] * at.size, **at.machines),
        most=lambda size: size,
        total=lambda size: size**2,
    ),
}


@dataclass(frozen=True)
class Row:
    """One collective of arrays of one length."""

    verb: str
    nbytes: int

    @property
    def label(self) -> str:
        return f"{self.verb} {size_name(self.nbytes)}" if self.nbytes else self.verb

    @property
    def mine(self) -> Array:
        """What each rank puts in: of doubles, all zero."""
        return np.zeros(self.nbytes // 8)

    def result_bytes(self, size: int) -> int:
        """What the rank that gets most gets."""
        return self.nbytes * VERBS[self.verb].most(size)

    def references(self, size: int) -> int:
        """How many arrays all ranks get."""
        return VERBS[self.verb].total(size)


def rows() -> Iterator[Row]:
    for verb in VERBS:
        for nbytes in SIZES if verb != "barrier" else [0]:
            yield Row(verb, nbytes)


def has_two_levels(verb: str) -> bool:
    """Whether its algorithm may depend on which ranks share a machine."""
    return "machines" in inspect.signature(getattr(choose, verb)).parameters


def machines(ids: Sequence[Hashable]) -> dict[str, Any]:
    """The argument that says which ranks share a machine, from the machine of each."""
    return {"machines": import_module("rmpi.comm.topology").Machines.of(tuple(ids))}
