"""Which algorithm a collective uses: the one place to change a threshold.

The choice may rest only on what every rank knows, or ranks would run different schedules and wait for each
other for ever. That is

- the arguments of the call that must agree: the communicator compares root and operator, and for reductions
  whether the value is an array, and which dtype and shape it has (and the type of a subclass, save memmap);
- and nothing about other objects, of which ranks may bring different types and lengths: they are
  treated by the number of ranks alone. The values of a broadcast or scatter are known to the root alone,
  and the length of a piece to its owner: there a message says what follows, inside the algorithm.

Each function returns a schedule; with one rank it never yields. ``out`` is where a result that is an array
may be put: the result *is* ``out`` if that saved a copy, else the caller copies. ``out`` may share memory
with the value. ``machines`` is which ranks share one: from the same ids on every rank, or None on every rank.

Results of reductions share no array memory with the caller's value. In gather, allgather, scatter and
broadcast a rank's own contribution comes back as the very object.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from rmpi.comm.collectives import barrier as barriers
from rmpi.comm.collectives import broadcast as broadcasts
from rmpi.comm.collectives import direct, exchange, gathering, reduction, scanning, scattering
from rmpi.comm.ops import Operator
from rmpi.comm.schedule import Schedule, finished
from rmpi.comm.topology import Machines
from rmpi.errors import UsageError

Array = npt.NDArray[Any]

LARGE_ARRAY = 64 * 1024
"""Bytes above which an array is reduced in parts, and broadcast to one child after the other.

Larger messages do not travel eagerly: each costs a round trip for the grant, and then bandwidth counts.
"""

LARGE_PIECE = 32 * 1024
"""Bytes above which a piece goes straight from its owner to its taker instead of up or down the tree.

A piece in the tree is copied at each of log₂ size stations; copying this much takes about as long as one
more message.
"""

PART = 8 * 1024
"""Bytes for each rank from which it pays to divide an array among all ranks, and to send that many more messages."""

HUGE_ARRAY = 512 * 1024
"""Bytes above which an array is broadcast in parts, if there are `MANY_MACHINES`."""

MANY_MACHINES = 4
"""Machines from which that pays: in parts an array leaves none more than twice, in a tree the root's log₂ machines
times. On one machine the ranks share one memory, all bytes are copied as often either way, and the tree is simpler."""

AT_ONCE = 32
"""Messages that a rank has under way each way when everybody has something for everybody.

One at a time, each waits for one peer, who may be late; all at once, many would find the same receiver busy."""

SMALL_PIECE = 256
"""Bytes up to which a piece of an alltoall travels with others, at the price of passing log₂ size / 2 ranks."""

BRUCK_RANKS = 32
"""Ranks from which that pays; with fewer, a message for each piece is no slower."""

FEW_RANKS = 4
"""Ranks up to which values go straight to all who need them, in one round.

Up to 4 ranks that is at most three messages from each, and a round costs as much as many messages. A broadcast
keeps its tree: the root alone knows whether the value is large, and then its own sends are what takes time.
"""

SMALL_ARRAY = 8 * 1024
"""Bytes up to which the same holds for arrays that are reduced; beyond, combining and copying them take longer."""


def barrier(rank: int, size: int, *, machines: Machines | None = None) -> Schedule[None]:
    """Nobody's schedule ends before everybody's has begun."""
    if machines is not None and machines.nested:
        return barriers.two_levels(rank, machines)
    return barriers.dissemination(rank, size)


def broadcast(
    rank: int, size: int, root: int, value: object, out: Array | None = None, *, machines: Machines | None = None
) -> Schedule[Any]:
    """The root's ``value`` on every rank; on the root the object itself."""
    return broadcasts.binomial(
        rank, size, root, value, out, large=LARGE_ARRAY, huge=_huge(size, machines), machines=machines
    )


def reduce(
    rank: int,
    size: int,
    root: int,
    value: object,
    operator: Operator,
    out: Array | None = None,
    *,
    machines: Machines | None = None,
) -> Schedule[Any]:
    """All values combined, on the root; None elsewhere."""
    value = operator.prepare(value)
    if size == 1:
        return finished(reduction.apart(value, value))
    out = _unshared(out, value)
    if _goes_directly(size, value, operator, machines):
        return direct.reduce(rank, size, root, value, operator, out)
    return reduction.tree(rank, size, root, value, operator, out)


def allreduce(
    rank: int,
    size: int,
    value: Any,
    operator: Operator,
    out: Array | None = None,
    *,
    machines: Machines | None = None,
) -> Schedule[Any]:
    """All values combined, on every rank, with the same bits."""
    value = operator.prepare(value)
    if size == 1:
        return finished(reduction.apart(value, value))
    value, out = _plain(value), _unshared(out, value)
    if _is_large(value) and operator.keeps(value.dtype):
        if _takes_any_order(operator) and value.nbytes >= size * PART and not _halves_well(size, machines):
            return reduction.ring(rank, size, value, operator, out, machines=machines)
        return reduction.rabenseifner(rank, size, value, operator, out)
    if _goes_directly(size, value, operator, machines):
        return direct.allreduce(rank, size, value, operator, out)
    if operator.exact_for(value):
        if not _combine_first(machines):
            return reduction.recursive_doubling(rank, size, value, operator, out)
        if machines.height is not None:
            return reduction.leaders_doubling(rank, size, value, operator, out, large=LARGE_ARRAY, machines=machines)
    return reduction.tree_then_broadcast(
        rank, size, value, operator, out, large=LARGE_ARRAY, huge=_huge(size, machines), machines=machines
    )


def reduce_scatter(
    rank: int,
    size: int,
    pieces: Iterable[Any],
    operator: Operator,
    out: Array | None = None,
    *,
    machines: Machines | None = None,
) -> Schedule[Any]:
    """``pieces[rank]`` of all ranks combined, with the bits that `reduce` would give.

    Args:
        pieces: One value for each rank. What is true of the value of a reduction is true of each of them: ranks must
            agree on which are arrays, and on the dtype and shape of the i-th. Different ones may differ.

    Raises:
        UsageError: At once: ``pieces`` is not one value for each rank.
    """
    given = _one_each("reduce_scatter", pieces, size)
    pieces = [operator.prepare(_plain(piece)) for piece in given]
    if size == 1:
        return finished(reduction.apart(pieces[0], pieces[0]))
    out = _unshared_by_all(out, pieces)
    packs = _can_be_packed(pieces, operator)
    if packs and _combine_first(machines) and not _takes_any_order(operator):
        return scattering.packed_halving(rank, size, pieces, operator, out)
    if packs and sum(piece.nbytes for piece in pieces) > max(LARGE_ARRAY, size * PART):
        if _takes_any_order(operator):
            return scattering.ring(rank, size, pieces, operator, out, machines=machines)
        return scattering.pairwise(rank, size, pieces, operator, out, at_once=AT_ONCE)
    if size <= FEW_RANKS:
        return direct.reduce_scatter(rank, size, pieces, operator, out)
    halving = scattering.packed_halving if packs else scattering.halving
    return halving(rank, size, pieces, operator, out)


def scan(
    rank: int,
    size: int,
    value: Any,
    operator: Operator,
    out: Array | None = None,
    *,
    machines: Machines | None = None,
) -> Schedule[Any]:
    """The values of the ranks ``0 … rank`` combined, by the bracketing of prefixes."""
    return _prefix(rank, size, value, operator, out, machines, exclusive=False)


def exscan(
    rank: int,
    size: int,
    value: Any,
    operator: Operator,
    out: Array | None = None,
    *,
    machines: Machines | None = None,
) -> Schedule[Any]:
    """The values of the ranks ``0 … rank-1`` combined, as `scan` gives them on the rank before; None on rank 0."""
    return _prefix(rank, size, value, operator, out, machines, exclusive=True)


def gather(
    rank: int, size: int, root: int, value: object, *, machines: Machines | None = None
) -> Schedule[list[Any] | None]:
    """The values of all ranks in rank order, on the root; None elsewhere."""
    if size <= FEW_RANKS:
        return finished([value]) if size == 1 else direct.gather(rank, size, root, value)
    return gathering.gather(rank, size, root, value, large=LARGE_PIECE, machines=machines)


def allgather(
    rank: int,
    size: int,
    value: object,
    outs: Sequence[Array] | None = None,
    *,
    machines: Machines | None = None,
) -> Schedule[list[Any]]:
    """The values of all ranks in rank order, on every rank; those that could land in their place of ``outs`` are it."""
    if machines is not None and machines.nested:
        return gathering.two_level_allgather(rank, size, value, outs, large=LARGE_PIECE, machines=machines)
    if size <= FEW_RANKS:
        return finished([value]) if size == 1 else direct.allgather(rank, size, value, outs)
    return gathering.dissemination(rank, size, value, outs, large=LARGE_PIECE)


def scatter(
    rank: int,
    size: int,
    root: int,
    values: Iterable[Any] | None,
    out: Array | None = None,
    *,
    machines: Machines | None = None,
) -> Schedule[Any]:
    """``values[rank]`` of the root's ``values``, which nobody else need pass.

    Raises:
        UsageError: At once, on the root: ``values`` is not one value for each rank.
    """
    pieces = _one_each("scatter", values, size, " on the root") if rank == root else None
    if size == 1 and pieces is not None:
        return finished(pieces[0])
    if size <= FEW_RANKS:
        return direct.scatter(rank, size, root, pieces, out)
    return gathering.scatter(rank, size, root, pieces, out, large=LARGE_PIECE, machines=machines)


def alltoall(rank: int, size: int, values: Iterable[Any], outs: Sequence[Array] | None = None) -> Schedule[list[Any]]:
    """``values[i]`` goes to rank i, and item i of the result came from there; some may be in their place of ``outs``.

    A rank's own value comes back as the very object. Two levels would save no byte between machines.

    Raises:
        UsageError: At once: ``values`` is not one value for each rank.
    """
    values = _one_each("alltoall", values, size)
    if size == 1:
        return finished(values)
    if outs is not None and _overlap(outs, values):
        outs = None
    if size <= FEW_RANKS:
        return direct.alltoall(rank, size, values, outs)
    if size < BRUCK_RANKS:
        return exchange.pairwise(rank, size, values, outs, at_once=AT_ONCE)
    return exchange.bruck(rank, size, values, outs, small=SMALL_PIECE, at_once=AT_ONCE)


def _prefix(
    rank: int,
    size: int,
    value: Any,
    operator: Operator,
    out: Array | None,
    machines: Machines | None,
    *,
    exclusive: bool,
) -> Schedule[Any]:
    value = operator.prepare(value)
    if size == 1:
        return finished(None if exclusive else reduction.apart(value, value))
    value, out = _plain(value), _unshared(out, value)
    nested = machines is not None and machines.nested
    divides = size > FEW_RANKS and _is_large(value) and value.nbytes >= size * PART
    if divides and operator.keeps(value.dtype) and not nested:
        return scanning.transposed(rank, size, value, operator, out, exclusive=exclusive, at_once=AT_ONCE)
    if _goes_directly(size, value, operator, machines):
        return direct.scan(rank, size, value, operator, out, exclusive=exclusive)
    if operator.exact_for(value) and not (nested and _nbytes(value) > SMALL_ARRAY):
        return scanning.doubling(rank, size, value, operator, out, exclusive=exclusive)
    if exclusive:
        return scanning.exclusive_sweeps(rank, size, value, operator, out)
    return scanning.sweeps(rank, size, value, operator, out)


def _goes_directly(size: int, value: Any, operator: Operator, machines: Machines | None) -> bool:
    """Whether a reduction is done in one round: few ranks, little to combine, and that cheap and exact.

    Two ranks have one round by any algorithm. Between machines rounds that spare messages are worth it.
    """
    if not 2 < size <= FEW_RANKS or not operator.exact_for(value):
        return False
    if _combine_first(machines):
        return False
    return _nbytes(value) <= SMALL_ARRAY


def _nbytes(value: Any) -> int:
    """Bytes of an array; 0 for anything else, of which every rank may have more or less."""
    return value.nbytes if isinstance(value, np.ndarray) else 0


def _huge(size: int, machines: Machines | None) -> int | None:
    """Bytes above which an array is broadcast in parts; None where none is."""
    many = machines is not None and len(machines.groups) >= MANY_MACHINES
    return max(HUGE_ARRAY, size * PART) if many else None


def _combine_first(machines: Machines | None) -> TypeGuard[Machines]:
    """Whether the ranks of each machine may combine theirs first, and should."""
    return machines is not None and machines.nested and machines.whole


def _takes_any_order(operator: Operator) -> bool:
    return operator.commutes and not operator.reproducible


def _halves_well(size: int, machines: Machines | None) -> bool:
    """Whether Rabenseifner's algorithm moves as few bytes as a ring, over as few links between machines."""
    return size & (size - 1) == 0 and (machines is None or not machines.nested or machines.whole)


def _can_be_packed(pieces: Sequence[Any], operator: Operator) -> bool:
    """Whether all are arrays of one dtype, whose parts can be combined in place."""
    dtype = getattr(pieces[0], "dtype", None)
    return (
        dtype is not None
        and all(type(piece) is np.ndarray and piece.dtype == dtype for piece in pieces)
        and operator.keeps(dtype)
    )


def _is_large(value: Any) -> bool:
    return type(value) is np.ndarray and value.nbytes > LARGE_ARRAY


def _plain(value: Any) -> Any:
    """A memory-mapped array as an ordinary one: another rank may have its part in memory."""
    return np.asarray(value) if type(value) is np.memmap else value


def _unshared(out: Array | None, value: object) -> Array | None:
    """``out`` unless it overlaps ``value``, which is still being sent when the result comes in."""
    return None if out is None or reduction.may_overlap(out, value) else out


def _unshared_by_all(out: Array | None, values: Sequence[Any]) -> Array | None:
    return None if out is None or any(reduction.may_overlap(out, value) for value in values) else out


def _overlap(outs: Sequence[Array], values: Sequence[Any]) -> bool:
    """Whether any of ``outs``, or the array that they are parts of, may have memory in common with a value."""
    wholes = [out.base if isinstance(out.base, np.ndarray) else out for out in outs]
    different = {id(whole): whole for whole in wholes}.values()
    return any(reduction.may_overlap(whole, value) for whole in different for value in values)


def _one_each(collective: str, values: Any, size: int, where: str = "") -> list[Any]:
    """``values`` as a list, if there is one for each rank."""
    needs = f"{collective} needs {size} values{where}, one for each rank"
    try:
        pieces = list(values)
    except TypeError:
        raise UsageError(f"{needs}, not {values!r:.60}") from None
    if len(pieces) != size:
        raise UsageError(f"{needs}, but got {len(pieces)}")
    return pieces
