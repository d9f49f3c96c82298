"""Broadcast: one rank's value to all.

The root alone knows what is coming. So the first message a rank gets from its parent in the tree is either the value
itself, or, if that is a huge array, an `Announcement` of it: then it comes in parts, around a ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rmpi.comm.collectives.tree import Seat, seat
from rmpi.comm.partition import partition
from rmpi.comm.schedule import Recv, Schedule, Send, raw_bytes
from rmpi.comm.topology import Machines

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Announcement:
    """An array that comes in parts; its elements are numbered in Fortran or else in C order."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool

    def empty(self) -> Array:
        return np.empty(self.shape, self.dtype, order="F" if self.fortran else "C")

    def flat(self, array: Array) -> Array:
        """The elements of ``array``: a view of it if it is contiguous in this order, else a copy."""
        return array.reshape(-1, order="F" if self.fortran else "C")

    def fits(self, out: Array) -> bool:
        contiguous = out.flags.f_contiguous if self.fortran else out.flags.c_contiguous
        return out.dtype == self.dtype and out.shape == self.shape and contiguous and out.flags.writeable


def binomial(
    rank: int,
    size: int,
    root: int,
    value: object,
    out: Array | None = None,
    *,
    large: int,
    huge: int | None = None,
    machines: Machines | None = None,
) -> Schedule[Any]:
    """Binomial tree: ⌈log₂ size⌉ rounds, size-1 messages. Only the root's ``value`` is looked at.

    A value of more than ``large`` bytes goes to one child after the other, the largest subtree first: that
    child then has all the bandwidth, and passes the value on while we serve the next. A smaller one goes to
    all children at once, so that one who comes late does not hold up the others. Each rank decides this by
    the value it holds; nobody else needs to know.

    An array of more than ``huge`` bytes (None: none is) is announced that way, and follows as `_in_parts` says.

    With ``machines`` the tree has two levels (`rmpi.comm.collectives.tree`).
    """
    here = seat(rank, size, root, machines)
    if here.parent is not None:
        passed = yield Recv(here.parent, out)
    elif huge is not None and raw_bytes(value) > huge and type(value) is np.ndarray:
        passed = _announcement(value)
    else:
        passed = value
    sends = [Send(child.rank, passed) for child in reversed(here.children)]
    if len(sends) <= 1 or raw_bytes(passed) > large:
        yield from sends
    else:
        yield tuple(sends)
    if type(passed) is Announcement:
        return (yield from _in_parts(here, passed, value, out))
    return passed


def _announcement(value: Array) -> Announcement:
    return Announcement(value.dtype, value.shape, value.flags.f_contiguous and not value.flags.c_contiguous)


def _in_parts(here: Seat, announced: Announcement, value: Any, out: Array | None) -> Schedule[Array]:
    """Scatter, then allgather around a ring: size-1 rounds each, of one size-th of the array.

    So no rank sends the array more than twice, where the root of a tree sends it log₂ size times. The ring follows
    the tree's numbers, so it enters each machine once. It ends before the root, which has everything.

    Chan, Heimlich, Purkayastha, van de Geijn: Collective communication: theory, practice, and experience, 2007,
    doi:10.1002/cpe.1206.
    """
    is_root = here.parent is None
    size, at = len(here.order), here.virtual
    whole = value if is_root else out if out is not None and announced.fits(out) else announced.empty()
    flat = announced.flat(whole)
    parts = [flat[start : start + count] for start, count in (partition(flat.size, size, i) for i in range(size))]
    if is_root:
        yield from (Send(here.order[i], parts[i]) for i in range(1, size))
    else:
        _land((yield Recv(here.root, parts[at])), parts[at])
    left, right = here.order[at - 1], here.order[(at + 1) % size]
    for step in range(size - 1):
        passing, coming = (at - step) % size, (at - step - 1) % size
        send = Send(right, parts[passing])
        if is_root:
            yield send
        elif at == size - 1:
            _land((yield Recv(left, parts[coming])), parts[coming])
        else:
            _, received = yield send, Recv(left, parts[coming])
            _land(received, parts[coming])
    return whole


def _land(received: Array, target: Array) -> None:
    """See that ``target`` has what was received: an offer to receive in place may be declined."""
    if received is not target:
        target[...] = received
