"""Collectives in one round: whoever has something sends it straight to everybody who needs it.

For few ranks. A tree or a ring sends no fewer bytes to a root, but waits for one message after the other, and
where ranks outnumber cores each wait costs a change of process. Between everybody and everybody this sends
size (size-1) messages, and so grows too fast for many ranks.

Sends go to the next rank first, receives come from the one before first, and so on around: the k-th of both make
a pair that all ranks can go through together, nobody waiting for anybody else.

A reduction, or scan, combines all values where a result is wanted, in the one bracketing
(`rmpi.comm.collectives.bracket`): the bits are those of every other algorithm if the operator is exact.

All need two ranks at least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy.typing as npt

from rmpi.comm.collectives.bracket import bracketed, prefixed
from rmpi.comm.collectives.reduction import apart
from rmpi.comm.ops import Operator
from rmpi.comm.schedule import Recv, Schedule, Send

Array = npt.NDArray[Any]


def allreduce(rank: int, size: int, value: Any, operator: Operator, out: Array | None = None) -> Schedule[Any]:
    """Every rank combines all values. ``out`` must not share memory with ``value``."""
    sends = [Send(peer, value) for peer in _after(rank, size)]
    results = yield (*sends, *_receives(rank, size, out))
    return combined(_with_own(rank, value, results[size - 1 :]), value, operator, out)


def reduce(rank: int, size: int, root: int, value: Any, operator: Operator, out: Array | None = None) -> Schedule[Any]:
    """The root combines all values. ``out`` is looked at there alone, and must not share memory with ``value``.

    Returns:
        On the root the combined value, elsewhere None.
    """
    if rank != root:
        yield Send(root, value)
        return None
    received = yield _receives(rank, size, out)
    return combined(_with_own(rank, value, received), value, operator, out)


def gather(rank: int, size: int, root: int, value: object) -> Schedule[list[Any] | None]:
    """On the root the pieces in rank order, elsewhere None."""
    if rank != root:
        yield Send(root, value)
        return None
    return _with_own(rank, value, (yield _receives(rank, size)))


def allgather(rank: int, size: int, value: object, outs: Sequence[Array] | None = None) -> Schedule[list[Any]]:
    """The pieces in rank order, on every rank; each may land in its place of ``outs``."""
    sends = [Send(peer, value) for peer in _after(rank, size)]
    plain = _plain_receives(rank, size)
    results = yield (*sends, *(plain if outs is None else [Recv(recv.peer, outs[recv.peer]) for recv in plain]))
    return _with_own(rank, value, results[size - 1 :])


def scatter(rank: int, size: int, root: int, values: Sequence[Any] | None, out: Array | None = None) -> Schedule[Any]:
    """This rank's piece. Only the root's ``values`` are looked at, one per rank."""
    if rank != root:
        return (yield Recv(root, out))
    assert values is not None
    yield tuple(Send(peer, values[peer]) for peer in _after(rank, size))
    return values[root]


def alltoall(rank: int, size: int, values: Sequence[Any], outs: Sequence[Array] | None = None) -> Schedule[list[Any]]:
    """What every rank has for this one, in rank order; each may land in its place of ``outs``."""
    sends = [Send(peer, values[peer]) for peer in _after(rank, size)]
    plain = _plain_receives(rank, size)
    results = yield (*sends, *(plain if outs is None else [Recv(recv.peer, outs[recv.peer]) for recv in plain]))
    return _with_own(rank, values[rank], results[size - 1 :])


def reduce_scatter(
    rank: int, size: int, pieces: Sequence[Any], operator: Operator, out: Array | None = None
) -> Schedule[Any]:
    """Every rank combines what all have for it. ``out`` must not share memory with ``pieces``."""
    sends = [Send(peer, pieces[peer]) for peer in _after(rank, size)]
    results = yield (*sends, *_receives(rank, size, out))
    return combined(_with_own(rank, pieces[rank], results[size - 1 :]), pieces[rank], operator, out)


def scan(
    rank: int, size: int, value: Any, operator: Operator, out: Array | None = None, *, exclusive: bool = False
) -> Schedule[Any]:
    """Every rank combines the values up to its own, or those before it. ``out`` must not share memory with ``value``.

    Returns:
        The prefix; None for the exclusive one on rank 0.
    """
    sends = [Send(peer, value) for peer in range(rank + 1, size)]
    receives = [Recv(peer, out if peer == 0 else None) for peer in reversed(range(rank))]
    received = (yield (*sends, *receives))[len(sends) :]
    values = received[::-1] if exclusive else [*received[::-1], value]
    return apart(prefixed(values, size, _in_place(value, operator, out)), value) if values else None


def combined(values: list[Any], own: Any, operator: Operator, out: Array | None = None) -> Any:
    """``values``, one per rank, in the one bracketing and in the memory of those that were received: all but ``own``.

    Where one of them came in ``out``, the result ends there.
    """
    return apart(bracketed(values, _in_place(own, operator, out)), own)


def _in_place(own: Any, operator: Operator, out: Array | None) -> Callable[[Any, Any], Any]:
    def combine(left: Any, right: Any) -> Any:
        spare = left if left is out or right is own else right
        return operator.combine(left, right, into=spare)

    return combine


def _with_own(rank: int, value: Any, received: list[Any]) -> list[Any]:
    """All values in rank order: ``value``, and what `_plain_receives` brought."""
    return [*received[:rank][::-1], value, *received[rank:][::-1]]


@lru_cache(maxsize=1024)
def _after(rank: int, size: int) -> tuple[int, ...]:
    """The other ranks, upwards from this one, around."""
    return tuple((rank + distance) % size for distance in range(1, size))


@lru_cache(maxsize=1024)
def _plain_receives(rank: int, size: int) -> tuple[Recv, ...]:
    """One from every other rank, downwards from this one, around."""
    return tuple(Recv((rank - distance) % size) for distance in range(1, size))


def _receives(rank: int, size: int, out: Array | None = None) -> tuple[Recv, ...]:
    """As `_plain_receives`; the first of them may land in ``out``."""
    plain = _plain_receives(rank, size)
    return plain if out is None else (Recv(plain[0].peer, out), *plain[1:])
