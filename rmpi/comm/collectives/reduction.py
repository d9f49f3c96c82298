"""Reduce and allreduce: several algorithms, one bracketing (`rmpi.comm.collectives.bracket`).

With an exact operator all but `ring` produce the same bits; with any operator all ranks get equal ones. They differ in
who applies it:

- `tree` and `tree_then_broadcast`: once per pair of operands, on one rank. Right for every operator.
- `recursive_doubling`: at every level all ranks of a block apply it to equal operands. Half the rounds, but
  only for operators that are exact, or ranks would end with different bits.
- `leaders_doubling`: the same among machines, a tree on each of them. For exact operators too.
- `rabenseifner`: each rank applies it to its own part of the elements only. For large arrays.
- `ring`: so here, but in another order for each part. For operators that permit it.

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
from rmpi.comm.collectives.groups import within
from rmpi.comm.ops import Operator
from rmpi.comm.partition import partition
from rmpi.comm.schedule import Recv, Schedule, Send
from rmpi.comm.topology import Machines

Array = npt.NDArray[Any]


def tree(rank: int, size: int, root: int, value: Any, operator: Operator, out: Array | None = None) -> Schedule[Any]:
    """Reduce in ⌈log₂ size⌉ rounds and size-1 messages; the root is where the tree ends, so no hop is added.

    ``out`` is looked at on the root alone, and must not share memory with ``value``.

    Returns:
        On the root the combined value (``out``, if it was received and combined there), elsewhere None.
    """
    here = seat(rank, size, root)
    partial = yield from _up(rank, here, value, operator, len(here.peers), out)
    return apart(partial, value) if rank == root else None


def tree_then_broadcast(
    rank: int,
    size: int,
    value: Any,
    operator: Operator,
    out: Array | None = None,
    *,
    large: int,
    huge: int | None = None,
    machines: Machines | None = None,
) -> Schedule[Any]:
    """Allreduce that applies the operator once per pair: its bits, and its errors, are made in one place.

    2⌈log₂ size⌉ rounds. The keywords are those of the broadcast.
    """
    total = yield from tree(rank, size, 0, value, operator, out)
    return (yield from binomial(rank, size, 0, total, out, large=large, huge=huge, machines=machines))


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
        partial = join(operator, rank, partial, here.mate, (yield Recv(here.mate)))
    for level, peer in enumerate(here.peers):
        _, received = yield Send(peer, partial), Recv(peer, _if_last(here, level, out))
        partial = join(operator, rank, partial, peer, received)
    if here.mate is not None:
        yield Send(here.mate, partial)
    return apart(partial, value)


def leaders_doubling(
    rank: int,
    size: int,
    value: Any,
    operator: Operator,
    out: Array | None = None,
    *,
    large: int,
    machines: Machines,
) -> Schedule[Any]:
    """Allreduce by a tree on each machine, recursive doubling among the leaders, and a broadcast on each machine.

    The ranks of all machines must be subtrees of one height (`Machines.height`). Between machines, log₂ machines rounds
    in which only leaders send. ``out`` must not share memory with ``value``.
    """
    assert machines.height is not None, "machines are combined first, so they must be subtrees"
    machine, at = machines.places[rank]
    group = machines.groups[machine]
    here = seat(rank, size)
    total = yield from _up(rank, here, value, operator, machines.height)
    if at == 0:
        for level, peer in enumerate(here.peers[machines.height :], machines.height):
            _, received = yield Send(peer, total), Recv(peer, _if_last(here, level, out))
            total = join(operator, rank, total, peer, received)
    total = yield from within(group, binomial(at, len(group), 0, total, out, large=large))
    return apart(total, value)


def ring(
    rank: int,
    size: int,
    value: Array,
    operator: Operator,
    out: Array | None = None,
    *,
    machines: Machines | None = None,
) -> Schedule[Array]:
    """Allreduce of a large array around a ring: 2(size-1) rounds that move 2(1 - 1/size) of it, for any size.

    Part i is combined in the order in which the ring passes rank i+1, i+2, …, i, so the operator must commute and
    permit any order. It must keep ``value.dtype``. ``out`` is used as in `rabenseifner`.

    Patarasuk, Yuan: Bandwidth optimal all-reduce algorithms for clusters of workstations, 2009,
    doi:10.1016/j.jpdc.2008.09.002.
    """
    at, left, right = neighbours(rank, size, machines)
    flat = value.reshape(-1)
    whole = flat_result(value, out)
    parts = [slice(start, start + count) for start, count in (partition(flat.size, size, i) for i in range(size))]
    partial = flat[parts[at - 1]]
    for step in range(size - 1):
        coming = parts[(at - step - 2) % size]
        target = whole[coming]
        _, received = yield Send(right, partial), Recv(left, target)
        land(operator.combine(received, flat[coming], into=target), target)
        partial = target
    for step in range(size - 1):
        target = whole[parts[(at - step - 1) % size]]
        _, received = yield Send(right, whole[parts[(at - step) % size]]), Recv(left, target)
        land(received, target)
    return shaped_like(value, whole, out)


def neighbours(rank: int, size: int, machines: Machines | None) -> tuple[int, int, int]:
    """Where ``rank`` sits in the ring of all ranks, machine by machine, and who sits before and after it."""
    if machines is None:
        return rank, (rank - 1) % size, (rank + 1) % size
    at, order = machines.positions[rank], machines.order
    return at, order[at - 1], order[(at + 1) % size]


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
    whole = flat_result(value, out)
    if here.head != rank:
        yield Send(here.head, flat)
        land((yield Recv(here.head, whole)), whole)
    else:
        source = flat
        if here.mate is not None:
            source = join_into(whole, operator, rank, flat, here.mate, (yield Recv(here.mate, whole)))
        ranges = yield from _reduce_scatter(rank, here, source, whole, operator)
        yield from _allgather(here, whole, ranges)
        if here.mate is not None:
            yield Send(here.mate, whole)
    return shaped_like(value, whole, out)


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


def _up(rank: int, here: Seat, value: Any, operator: Operator, levels: int, out: Array | None = None) -> Schedule[Any]:
    """The lowest ``levels`` of the tree: the value of its subtree, where that ends; None elsewhere."""
    if here.head != rank:
        yield Send(here.head, value)
        return None
    partial = value
    if here.mate is not None:
        partial = join(operator, rank, partial, here.mate, (yield Recv(here.mate)))
    for level, peer in enumerate(here.peers[:levels]):
        if here.gives_at(level):
            yield Send(peer, partial)
            return None
        received = yield Recv(peer, _if_last(here, level, out))
        partial = join(operator, rank, partial, peer, received)
    return partial


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
        join_into(target, operator, rank, source[keep], peer, received)
        ranges.append((keep, give))
        low, high, source = keep.start, keep.stop, whole
    return ranges


def _allgather(here: Seat, whole: Array, ranges: list[tuple[slice, slice]]) -> Schedule[None]:
    """Fill ``whole``, the way `_reduce_scatter` came: what a peer has kept is complete there by now."""
    for peer, (ours, theirs) in zip(reversed(here.peers), reversed(ranges), strict=True):
        target = whole[theirs]
        _, received = yield Send(peer, whole[ours]), Recv(peer, target)
        land(received, target)


def join(operator: Operator, rank: int, mine: Any, peer: int, theirs: Any) -> Any:
    """Combine in rank order, in the memory of what was received."""
    left, right = (mine, theirs) if rank < peer else (theirs, mine)
    return operator.combine(left, right, into=theirs)


def join_into(target: Array, operator: Operator, rank: int, mine: Array, peer: int, theirs: Array) -> Array:
    left, right = (mine, theirs) if rank < peer else (theirs, mine)
    land(operator.combine(left, right, into=target), target)
    return target


def land(result: Array, target: Array) -> None:
    """See that ``target`` has the elements of ``result``: an offer to receive in place may be declined."""
    if result is not target:
        target[...] = result


def _if_last(here: Seat, level: int, out: Array | None) -> Array | None:
    """``out`` on the last level alone: earlier, it would still be an operand when the next value came."""
    return out if level == len(here.peers) - 1 else None


def flat_result(value: Array, out: Array | None) -> Array:
    """Memory for a result like ``value``, flat: that of ``out``, if it has its dtype and shape and is C-contiguous."""
    fits = out is not None and out.dtype == value.dtype and out.shape == value.shape
    if out is not None and fits and out.flags.c_contiguous and out.flags.writeable:
        return out.reshape(-1)
    return np.empty(value.size, value.dtype)


def shaped_like(value: Array, flat: Array, out: Array | None) -> Array:
    """What `flat_result` gave, as the result: ``out`` itself, or an array with the shape and order of ``value``."""
    if out is not None and may_overlap(flat, out):
        return out
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    return np.asarray(flat.reshape(value.shape), order="F" if fortran else "C")
