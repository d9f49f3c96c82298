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
with the value.

Results of reductions share no array memory with the caller's value. In gather, allgather, scatter and
broadcast a rank's own contribution comes back as the very object.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rmpi.comm.collectives import barrier as barriers
from rmpi.comm.collectives import broadcast as broadcasts
from rmpi.comm.collectives import direct, gathering, reduction
from rmpi.comm.ops import Operator
from rmpi.comm.schedule import Schedule, finished
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

FEW_RANKS = 4
"""Ranks up to which values go straight to all who need them, in one round.

Up to 4 ranks that is at most three messages from each, and a round costs as much as many messages. A broadcast
keeps its tree: the root alone knows whether the value is large, and then its own sends are what takes time.
"""

SMALL_ARRAY = 8 * 1024
"""Bytes up to which the same holds for arrays that are reduced; beyond, combining and copying them take longer."""


def barrier(rank: int, size: int) -> Schedule[None]:
    """Nobody's schedule ends before everybody's has begun."""
    return barriers.dissemination(rank, size)


def broadcast(rank: int, size: int, root: int, value: object, out: Array | None = None) -> Schedule[Any]:
    """The root's ``value`` on every rank; on the root the object itself."""
    return broadcasts.binomial(rank, size, root, value, out, large=LARGE_ARRAY)


def reduce(
    rank: int, size: int, root: int, value: object, operator: Operator, out: Array | None = None
) -> Schedule[Any]:
    """All values combined, on the root; None elsewhere."""
    if size == 1:
        return finished(reduction.apart(value, value))
    out = _unshared(out, value)
    if _goes_directly(size, value, operator):
        return direct.reduce(rank, size, root, value, operator, out)
    return reduction.tree(rank, size, root, value, operator, out)


def allreduce(rank: int, size: int, value: Any, operator: Operator, out: Array | None = None) -> Schedule[Any]:
    """All values combined, on every rank, with the same bits."""
    if size == 1:
        return finished(reduction.apart(value, value))
    value, out = _plain(value), _unshared(out, value)
    if _is_large(value) and operator.keeps(value.dtype):
        return reduction.rabenseifner(rank, size, value, operator, out)
    if _goes_directly(size, value, operator):
        return direct.allreduce(rank, size, value, operator, out)
    if operator.exact_for(value):
        return reduction.recursive_doubling(rank, size, value, operator, out)
    return reduction.tree_then_broadcast(rank, size, value, operator, out, large=LARGE_ARRAY)


def gather(rank: int, size: int, root: int, value: object) -> Schedule[list[Any] | None]:
    """The values of all ranks in rank order, on the root; None elsewhere."""
    if size <= FEW_RANKS:
        return finished([value]) if size == 1 else direct.gather(rank, size, root, value)
    return gathering.gather(rank, size, root, value, large=LARGE_PIECE)


def allgather(rank: int, size: int, value: object, outs: Sequence[Array] | None = None) -> Schedule[list[Any]]:
    """The values of all ranks in rank order, on every rank; those that could land in their place of ``outs`` are it."""
    if size <= FEW_RANKS:
        return finished([value]) if size == 1 else direct.allgather(rank, size, value, outs)
    return gathering.dissemination(rank, size, value, large=LARGE_PIECE)


def scatter(rank: int, size: int, root: int, values: Iterable[Any] | None, out: Array | None = None) -> Schedule[Any]:
    """``values[rank]`` of the root's ``values``, which nobody else need pass.

    Raises:
        UsageError: At once, on the root: ``values`` is not one value for each rank.
    """
    pieces = _one_each(values, size) if rank == root else None
    if size == 1 and pieces is not None:
        return finished(pieces[0])
    if size <= FEW_RANKS:
        return direct.scatter(rank, size, root, pieces, out)
    return gathering.scatter(rank, size, root, pieces, out, large=LARGE_PIECE)


def _goes_directly(size: int, value: Any, operator: Operator) -> bool:
    """Whether a reduction is done in one round: few ranks, little to combine, and that cheap and exact.

    Two ranks have one round by any algorithm.
    """
    if not 2 < size <= FEW_RANKS or not operator.exact_for(value):
        return False
    return not isinstance(value, np.ndarray) or value.nbytes <= SMALL_ARRAY


def _is_large(value: Any) -> bool:
    return type(value) is np.ndarray and value.nbytes > LARGE_ARRAY


def _plain(value: Any) -> Any:
    """A memory-mapped array as an ordinary one: another rank may have its part in memory."""
    return np.asarray(value) if type(value) is np.memmap else value


def _unshared(out: Array | None, value: object) -> Array | None:
    """``out`` unless it overlaps ``value``, which is still being sent when the result comes in."""
    return None if out is None or reduction.may_overlap(out, value) else out


def _one_each(values: Any, size: int) -> list[Any]:
    try:
        pieces = list(values)
    except TypeError:
        raise UsageError(f"scatter needs {size} values on the root, one for each rank, not {values!r}") from None
    if len(pieces) != size:
        raise UsageError(f"scatter needs {size} values on the root, one for each rank, but got {len(pieces)}")
    return pieces


def _drop(f: Any) -> Any:
    return lambda *a, machines=None, **k: f(*a, **k)


for _n in ("barrier", "broadcast", "reduce", "allreduce", "gather", "allgather", "scatter"):
    globals()[_n] = _drop(globals()[_n])
