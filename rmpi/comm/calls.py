"""What a call of a collective means: its arguments checked, its signature, its schedule, its result given shape.

Blocking and nonblocking calls say the same, so they share this text: each function returns a `Collective`, which the
driver runs or starts. Nothing is communicated here, and nothing begun: an error leaves the communicator as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import index
from typing import Any

import numpy as np

from rmpi.comm import choose
from rmpi.comm.arguments import (
    checked_out,
    checked_rank,
    concatenated,
    put_in,
    put_in_rows,
    rows_of,
)
from rmpi.comm.driver import Collective, Signature, signature, signature_of_reduction
from rmpi.comm.ops import Operator, as_operator
from rmpi.comm.partition import partition
from rmpi.comm.topology import Machines
from rmpi.errors import UsageError
from rmpi.wire.codec import Array

Op = Operator | Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Group:
    """Who calls: the ``rank`` of ``size``, and on which ``machines`` they are."""

    rank: int
    size: int
    machines: Machines

    def root(self, root: int) -> int:
        """``root`` as a plain number."""
        if type(root) is int and 0 <= root < self.size:
            return root
        return checked_rank(root, self.size, "root")


_BARRIER = signature("barrier")
_ALLGATHER = signature("allgather")
_ALLTOALL = signature("alltoall")


def barrier(group: Group, called: Signature = _BARRIER) -> Collective:
    return called, choose.barrier(group.rank, group.size, machines=group.machines), None


def broadcast(group: Group, value: object, root: int, out: Array | None) -> Collective:
    root = group.root(root)
    out = None if group.rank == root else checked_out(out)
    schedule = choose.broadcast(group.rank, group.size, root, value, out, machines=group.machines)
    return signature("broadcast", root), schedule, _into(out)


def reduce(group: Group, value: object, op: Op, root: int, out: Array | None) -> Collective:
    root = group.root(root)
    operator = as_operator(op)
    out = checked_out(out) if group.rank == root else None
    schedule = choose.reduce(group.rank, group.size, root, value, operator, out, machines=group.machines)
    return signature_of_reduction("reduce", root, operator.name, value), schedule, _into(out)


def allreduce(group: Group, value: object, op: Op, out: Array | None) -> Collective:
    operator = as_operator(op)
    out = checked_out(out)
    schedule = choose.allreduce(group.rank, group.size, value, operator, out, machines=group.machines)
    return signature_of_reduction("allreduce", None, operator.name, value), schedule, _into(out)


def scan(group: Group, value: object, op: Op, out: Array | None) -> Collective:
    operator = as_operator(op)
    schedule = choose.scan(group.rank, group.size, value, operator, checked_out(out), machines=group.machines)
    return signature_of_reduction("scan", None, operator.name, value), schedule, _into(out)


def exscan(group: Group, value: object, op: Op, out: Array | None) -> Collective:
    operator = as_operator(op)
    out = checked_out(out) if group.rank else None
    schedule = choose.exscan(group.rank, group.size, value, operator, out, machines=group.machines)
    return signature_of_reduction("exscan", None, operator.name, value), schedule, _into(out)


def reduce_scatter(group: Group, values: Any, op: Op, counts: Sequence[int] | None, out: Array | None) -> Collective:
    operator = as_operator(op)
    out = checked_out(out)
    pieces = pieces_of(values, group.size, counts, "reduce_scatter")
    if isinstance(values, np.ndarray):
        name = "reduce_scatter" if counts is None else f"reduce_scatter(counts={[len(piece) for piece in pieces]})"
        called = signature_of_reduction(name, None, operator.name, values)
    else:
        kinds = {_kind(piece) for piece in pieces}
        called = signature("reduce_scatter", None, operator.name, object)
        if len(kinds) > 1 or kinds != {"object"}:
            called = signature(f"reduce_scatter of {', '.join(map(_kind, pieces))}", None, operator.name)
    schedule = choose.reduce_scatter(group.rank, group.size, pieces, operator, out, machines=group.machines)
    return called, schedule, _into(out)


def gather(group: Group, value: object, root: int, concatenate: bool, out: Array | None) -> Collective:
    root = group.root(root)
    shape: Callable[[Any], Any] | None = None
    if group.rank == root:
        shape = _joined("gather", concatenate, checked_out(out), group.size)
    schedule = choose.gather(group.rank, group.size, root, value, machines=group.machines)
    return signature("gather", root), schedule, shape


def allgather(group: Group, value: object, concatenate: bool, out: Array | None) -> Collective:
    rows = None if out is None or concatenate else rows_of(out, group.size)
    schedule = choose.allgather(group.rank, group.size, value, rows, machines=group.machines)
    shape = _joined("allgather", concatenate, checked_out(out), group.size)
    return _ALLGATHER, schedule, shape


def scatter(group: Group, values: Any, root: int, counts: Sequence[int] | None, out: Array | None) -> Collective:
    root = group.root(root)
    out = checked_out(out)
    mine = group.rank == root
    pieces = pieces_of(values, group.size, counts, "scatter") if mine else None
    schedule = choose.scatter(group.rank, group.size, root, pieces, out, machines=group.machines)
    own = np.copy if mine and out is None and isinstance(values, np.ndarray) else _into(out)
    return signature("scatter", root), schedule, own


def alltoall(group: Group, values: Any, counts: Sequence[int] | None, out: Array | None) -> Collective:
    pieces = pieces_of(values, group.size, counts, "alltoall")
    if not isinstance(values, np.ndarray):
        if out is not None:
            raise UsageError("alltoall: out= is for an array, but the values are a sequence; pass an array")
        return _ALLTOALL, choose.alltoall(group.rank, group.size, pieces), None
    outs = _equal_shares(checked_out(out), group.size)
    schedule = choose.alltoall(group.rank, group.size, pieces, outs)
    return _ALLTOALL, schedule, partial(_landed, outs=outs, out=out)


def _landed(pieces: Sequence[Any], outs: Sequence[Array] | None, out: Array | None) -> Array:
    """What came as one array; where each piece may be in its place of ``out`` already."""
    if outs is not None and out is not None and all(map(_same_kind, pieces, outs)):
        return put_in_rows(out, outs, pieces)
    return concatenated(pieces, out, "alltoall")


def _same_kind(piece: Any, row: Array) -> bool:
    return isinstance(piece, np.ndarray) and piece.shape == row.shape and piece.dtype == row.dtype


def _equal_shares(out: Array | None, size: int) -> list[Array] | None:
    """Where the pieces land if all have one length, which is most likely; a guess, and only an offer."""
    if out is None or not out.ndim or len(out) % size:
        return None
    length = len(out) // size
    return [out[rank * length : (rank + 1) * length] for rank in range(size)]


def pieces_of(values: Any, size: int, counts: Sequence[int] | None, name: str) -> list[Any]:
    """One piece for each rank: an array is cut along axis 0, as `partition` does or by ``counts``.

    Raises:
        UsageError: It is neither an array that can be cut so, nor a sequence of values.
    """
    if isinstance(values, np.ndarray):
        return _cut(values, size, counts, name)
    if counts is not None:
        raise UsageError(f"{name}: counts= says how to cut an array, but the values are {type(values).__name__}")
    if isinstance(values, (str, bytes, bytearray, dict, set, frozenset)) or not isinstance(values, Iterable):
        raise UsageError(
            f"{name} needs an array, or a sequence of {size} values, one for each rank, not {values!r:.80}"
        )
    return list(values)  # `choose` refuses another number of them


def _cut(array: Array, size: int, counts: Sequence[int] | None, name: str) -> list[Array]:
    if not array.ndim:
        raise UsageError(f"{name} cuts an array along its first axis, but this one has none (it is 0-d)")
    if counts is None:
        shares = [partition(len(array), size, rank) for rank in range(size)]
        return [array[start : start + count] for start, count in shares]
    try:
        lengths = [index(count) for count in counts]
    except TypeError:
        raise UsageError(f"{name}: counts must be {size} integers, not {counts!r:.80}") from None
    if len(lengths) != size or min(lengths) < 0 or sum(lengths) != len(array):
        raise UsageError(
            f"{name}: counts must be {size} lengths, one for each rank, with the sum {len(array)}, not {lengths}"
        )
    ends = np.cumsum([0, *lengths]).tolist()
    return [array[ends[rank] : ends[rank + 1]] for rank in range(size)]


def _kind(piece: object) -> str:
    return f"array {piece.shape} of {piece.dtype}" if isinstance(piece, np.ndarray) else "object"


def _into(out: Array | None) -> Callable[[Any], Any] | None:
    return None if out is None else partial(put_in, out)


def _joined(name: str, concatenate: bool, out: Array | None, size: int) -> Callable[[Any], Any] | None:
    """What becomes of the list of all pieces."""
    if concatenate:
        return partial(concatenated, out=out, name=f"{name}(concatenate=True)")
    return None if out is None else partial(put_in_rows, out, rows_of(out, size))
