"""Reduce and allreduce: three algorithms, one bracketing (`rmpi.comm.collectives.bracket`).

With an exact operator all produce the same bits; with any operator all ranks get equal ones. They differ in
who applies it:

- `tree` and `tree_then_broadcast`: once per pair of operands, on one rank. Right for every operator.
- `recursive_doubling`: at every level all ranks of a block apply it to equal operands. Half the rounds, but
  only for operators that are exact, or ranks would end with different bits.
- `rabenseifner`: each rank applies it to its own part of the elements only. For large arrays.

The caller's value is never changed. What is received belongs to us, so results are accumulated in it. If
the operator raises, it raises through the schedule, on that rank alone: what the others learn is the
driver's business.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from rmpi.comm.collectives.bracket import Seat, seat
from rmpi.comm.collectives.broadcast import binomial
from rmpi.comm.ops import Operator
from rmpi.comm.schedule import Recv, Schedule, Send

Array = npt.NDArray[Any]


def tree(rank: int, size: int, root: int, value: Any, operator: Operator, out: Array | None = None) -> Schedule[Any]:
    """Reduce in ⌈log₂ size⌉ rounds and size-1 messages; the root is where the tree ends, so no hop is added.

    ``out`` is looked at on the root alone, and must not share memory with ``value``.

    Returns:
        On the root the combined value (``out``, if it was received and combined there), elsewhere None.
    """
    here = seat(rank, size, root)
    if here.head != rank:
        yield Send(here.head, value)
        return None
    partial = value
    if here.mate is not None:
        partial = _join(operator, rank, partial, here.mate, (yield Recv(here.mate)))
    for level, peer in enumerate(here.peers):
        if here.gives_at(level):
            yield Send(peer, partial)
            return None
        received = yield Recv(peer, _if_last(here, level, out))
        partial = _join(operator, rank, partial, peer, received)
    return apart(partial, value)


def tree_then_broadcast(
    rank: int, size: int, value: Any, operator: Operator, out: Array | None = None, *, large: int
) -> Schedule[Any]:
    """Allreduce that applies the operator once per pair: its bits, and its errors, are made in one place.

    2⌈log₂ size⌉ rounds. ``large`` is that of the broadcast.
    """
    total = yield from tree(rank, size, 0, value, operator, out)
    return (yield from binomial(rank, size, 0, total, out, large=large))


def recursive_doubling(rank: int, size: int, value: Any, operator: Operator, out: Array | None = None) -> Schedule[Any]:
    """Allreduce in ⌊log₂ size⌋ rounds of whole values, and two more if size is not a power of two.

    ``out`` must not share memory with ``value``.
    """
    here = seat(rank, size)
    if here.head != rank:
        yield Send(here.head, value)
        return (yield Recv(here.head, out))
    partial = value
    if here.mate is not None:
        partial = _join(operator, rank, partial, here.mate, (yield Recv(here.mate)))
    for level, peer in enumerate(here.peers):
        _, received = yield Send(peer, partial), Recv(peer, _if_last(here, level, out))
        partial = _join(operator, rank, partial, peer, received)
    if here.mate is not None:
        yield Send(here.mate, partial)
    return apart(partial, value)


def rabenseifner(rank: int, size: int, value: Array, operator: Operator, out: Array | None = None) -> Schedule[Array]:
    """Allreduce of a large array: reduce-scatter by vector halving, then allgather the same way back.

    2⌊log₂ size⌋ rounds that move 2(1 - 1/size) of the array, where whole values would move it log₂ size
    times. Distances double (1, 2, 4, …) on the way down, so that neighbours meet first: the one bracketing.

    The operator must keep ``value.dtype``. ``out`` must not share memory with ``value``; it is used if it
    has the same dtype and shape and is C-contiguous. Elements are numbered in C order, as ranks may lay out
    equal shapes differently.

    Rabenseifner: Optimization of collective reduction operations, 2004, doi:10.1007/978-3-540-24685-5_1.
    """
    assert size > 1, "alone, nothing would be received into the result"
    here = seat(rank, size)
    flat = value.reshape(-1)
    usable = out is not None and _same_kind(out, value) and out.flags.c_contiguous and out.flags.writeable
    whole = out.reshape(-1) if out is not None and usable else np.empty_like(flat)
    if here.head != rank:
        yield Send(here.head, flat)
        _land((yield Recv(here.head, whole)), whole)
    else:
        source = flat
        if here.mate is not None:
            source = _join_into(whole, operator, rank, flat, here.mate, (yield Recv(here.mate, whole)))
        ranges = yield from _reduce_scatter(rank, here, source, whole, operator)
        yield from _allgather(here, whole, ranges)
        if here.mate is not None:
            yield Send(here.mate, whole)
    return out if out is not None and usable else _laid_out_like(value, whole)


def apart(result: Any, value: Any) -> Any:
    """``result``, or a copy of it if it is the caller's own ``value``: an operator may return an operand."""
    return copy.deepcopy(result) if result is value or may_overlap(result, value) else result


def may_overlap(one: object, other: object) -> bool:
    """Whether both are arrays and may have memory in common."""
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)):
        return False
    if one is not other and one.flags.owndata and other.flags.owndata:
        return False  # each has its memory to itself; asking NumPy takes several times as long
    return np.may_share_memory(one, other)


def _reduce_scatter(
    rank: int, here: Seat, source: Array, whole: Array, operator: Operator
) -> Schedule[list[tuple[slice, slice]]]:
    """Halve what we answer for at each level; the combined elements end up in ``whole``.

    ``source`` is ``whole`` itself or, on the first level, the caller's array, which is only read.

    Returns:
        For each level the range that we kept and the one that the peer kept.
    """
    ranges = []
    low, high = 0, whole.size
    for level, peer in enumerate(here.peers):
        middle = (low + high) // 2
        lower, upper = slice(low, middle), slice(middle, high)
        keep, give = (upper, lower) if here.block >> level & 1 else (lower, upper)
        target = whole[keep]
        spare = None if source is whole else target  # in `whole` itself our own operand lies there
        _, received = yield Send(peer, source[give]), Recv(peer, spare)
        _join_into(target, operator, rank, source[keep], peer, received)
        ranges.append((keep, give))
        low, high, source = keep.start, keep.stop, whole
    return ranges


def _allgather(here: Seat, whole: Array, ranges: list[tuple[slice, slice]]) -> Schedule[None]:
    """Fill ``whole``, the way `_reduce_scatter` came: what a peer has kept is complete there by now."""
    for peer, (ours, theirs) in zip(reversed(here.peers), reversed(ranges), strict=True):
        target = whole[theirs]
        _, received = yield Send(peer, whole[ours]), Recv(peer, target)
        _land(received, target)


def _join(operator: Operator, rank: int, mine: Any, peer: int, theirs: Any) -> Any:
    """Combine in rank order, in the memory of what was received."""
    left, right = (mine, theirs) if rank < peer else (theirs, mine)
    return operator.combine(left, right, into=theirs)


def _join_into(target: Array, operator: Operator, rank: int, mine: Array, peer: int, theirs: Array) -> Array:
    left, right = (mine, theirs) if rank < peer else (theirs, mine)
    _land(operator.combine(left, right, into=target), target)
    return target


def _land(result: Array, target: Array) -> None:
    """See that ``target`` has the elements of ``result``: an offer to receive in place may be declined."""
    if result is not target:
        target[...] = result


def _if_last(here: Seat, level: int, out: Array | None) -> Array | None:
    """``out`` on the last level alone: earlier, it would still be an operand when the next value came."""
    return out if level == len(here.peers) - 1 else None


def _same_kind(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape


def _laid_out_like(value: Array, flat: Array) -> Array:
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    return np.asarray(flat.reshape(value.shape), order="F" if fortran else "C")
