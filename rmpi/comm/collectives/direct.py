"""Collectives in one round: whoever has something sends it straight to everybody who needs it.

For few ranks. A tree or a ring sends no fewer bytes to a root, but waits for one message after the other, and
where ranks outnumber cores each wait costs a change of process. Between everybody and everybody this sends
size (size-1) messages, and so grows too fast for many ranks.

Sends go to the next rank first, receives come from the one before first, and so on around: the k-th of both make
a pair that all ranks can go through together, nobody waiting for anybody else.

A reduction combines all values where the result is wanted, in the one bracketing (`rmpi.comm.collectives.bracket`):
the bits are those of every other algorithm if the operator is exact.

All need two ranks at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy.typing as npt

from rmpi.comm.collectives.bracket import bracketed
from rmpi.comm.collectives.reduction import apart
from rmpi.comm.ops import Operator
from rmpi.comm.schedule import Recv, Schedule, Send

Array = npt.NDArray[Any]


def allreduce(rank: int, size: int, value: Any, operator: Operator, out: Array | None = None) -> Schedule[Any]:
    """Every rank combines all values. ``out`` must not share memory with ``value``."""
    sends = [Send(peer, value) for peer in _after(rank, size)]
    results = yield (*sends, *_receives(rank, size, out))
    return _combined(rank, value, _in_order(rank, results[size - 1 :]), operator, out)


def reduce(rank: int, size: int, root: int, value: Any, operator: Operator, out: Array | None = None) -> Schedule[Any]:
    """The root combines all values. ``out`` is looked at there alone, and must not share memory with ``value``.

    Returns:
        On the root the combined value, elsewhere None.
    """
    if rank != root:
        yield Send(root, value)
        return None
    received = yield _receives(rank, size, out)
    return _combined(rank, value, _in_order(rank, received), operator, out)


def gather(rank: int, size: int, root: int, value: object) -> Schedule[list[Any] | None]:
    """On the root the pieces in rank order, elsewhere None."""
    if rank != root:
        yield Send(root, value)
        return None
    pieces = _in_order(rank, (yield _receives(rank, size)))
    pieces.insert(rank, value)
    return pieces


def allgather(rank: int, size: int, value: object, outs: Sequence[Array] | None = None) -> Schedule[list[Any]]:
    """The pieces in rank order, on every rank; each may land in its place of ``outs``."""
    sends = [Send(peer, value) for peer in _after(rank, size)]
    plain = _plain_receives(rank, size)
    results = yield (*sends, *(plain if outs is None else [Recv(recv.peer, outs[recv.peer]) for recv in plain]))
    pieces = _in_order(rank, results[size - 1 :])
    pieces.insert(rank, value)
    return pieces


def scatter(rank: int, size: int, root: int, values: Sequence[Any] | None, out: Array | None = None) -> Schedule[Any]:
    """This rank's piece. Only the root's ``values`` are looked at, one per rank."""
    if rank != root:
        return (yield Recv(root, out))
    assert values is not None
    yield tuple(Send(peer, values[peer]) for peer in _after(rank, size))
    return values[root]


def _combined(rank: int, value: Any, received: list[Any], operator: Operator, out: Array | None) -> Any:
    """All values in the one bracketing, in the memory of received ones; where one came in ``out``, it ends there."""

    def combine(left: Any, right: Any) -> Any:
        spare = left if left is out or right is value else right
        return operator.combine(left, right, into=spare)

    received.insert(rank, value)
    return apart(bracketed(received, combine), value)


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


def _in_order(rank: int, received: list[Any]) -> list[Any]:
    """What `_plain_receives` brought, in rank order, without this rank."""
    return [*received[:rank][::-1], *received[rank:][::-1]]
