"""Reduce-scatter: the pieces for one rank combined, on that rank, in the one bracketing.

Each combination is applied on one rank, so these are right for every operator.

- `pairwise`: every piece goes to its rank, which combines. No piece travels twice. For large ones.
- `halving`: in each round, what the neighbouring subtree's ranks want goes there, in one message. For small pieces.
- `packed_halving`: the same, with arrays of one dtype in one piece of memory; also for large ones on several machines.
- `ring`: pieces are combined on their way around, in another order for each. For operators that permit it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from rmpi.comm.collectives import exchange
from rmpi.comm.collectives.bracket import block_of, seat
from rmpi.comm.collectives.direct import combined
from rmpi.comm.collectives.reduction import apart, flat_result, join_into, neighbours, shaped_like
from rmpi.comm.ops import Operator
from rmpi.comm.schedule import Recv, Schedule, Send
from rmpi.comm.topology import Machines

Array = npt.NDArray[Any]


def pairwise(
    rank: int, size: int, pieces: Sequence[Any], operator: Operator, out: Array | None = None, *, at_once: int
) -> Schedule[Any]:
    """`exchange.pairwise`; each rank receives all contributions to its piece, and has memory for them.

    ``out`` must not share memory with ``pieces``.
    """
    outs: list[Array | None] = [None] * size
    outs[rank - 1] = out
    values = yield from exchange.pairwise(rank, size, pieces, outs, at_once=at_once)
    return combined(values, pieces[rank], operator, out)


def halving(rank: int, size: int, pieces: Sequence[Any], operator: Operator, out: Array | None = None) -> Schedule[Any]:
    """⌊log₂ size⌋ rounds, each with half as many pieces, and two more if size is not a power of two.

    A message is the list of the pieces. Distances double (1, 2, 4, …), so that neighbours meet first: the one
    bracketing. Otherwise the reduce-scatter of `rmpi.comm.collectives.reduction.rabenseifner`.
    """
    here = seat(rank, size)
    if here.head != rank:
        yield Send(here.head, list(pieces))
        return (yield Recv(here.head, out))
    partials = dict(enumerate(pieces))
    if here.mate is not None:
        theirs = yield Recv(here.mate)
        partials = {to: _combined_anew(operator, rank, partials[to], here.mate, theirs[to]) for to in partials}
    for level, peer in enumerate(here.peers):
        give = [to for to in partials if (block_of(to, size) ^ here.block) >> level & 1]
        _, theirs = yield Send(peer, [partials.pop(to) for to in give]), Recv(peer)
        for to, received in zip(list(partials), theirs, strict=True):
            partials[to] = _combined_anew(operator, rank, partials[to], peer, received)
    if here.mate is not None:
        yield Send(here.mate, partials[here.mate])
    return apart(partials[rank], pieces[rank])


def _combined_anew(operator: Operator, rank: int, mine: Any, peer: int, theirs: Any) -> Any:
    """In rank order, in new memory: what came in one list may be the same object twice, if it was at the sender."""
    return operator(mine, theirs) if rank < peer else operator(theirs, mine)


def packed_halving(
    rank: int, size: int, pieces: Sequence[Array], operator: Operator, out: Array | None = None
) -> Schedule[Array]:
    """`halving` of arrays of one dtype, which the operator must keep: every message is one array.

    The pieces are packed in an order in which those that go together are always neighbours. ``out`` must not share
    memory with ``pieces``.
    """
    here, order = seat(rank, size), _packing(size)
    flat = np.concatenate([pieces[to].reshape(-1) for to in order.ranks])
    if here.head != rank:
        yield Send(here.head, flat)
        result: Array = yield Recv(here.head, out)
        return result
    starts = [0, *accumulate(pieces[to].size for to in order.ranks)]
    scratch = np.empty_like(flat)
    if here.mate is not None:
        join_into(flat, operator, rank, flat, here.mate, (yield Recv(here.mate, scratch)))
    low, high = 0, size
    for level, peer in enumerate(here.peers):
        middle = order.split(low, high, level)
        lower, upper = (low, middle), (middle, high)
        (low, high), given = (upper, lower) if here.block >> level & 1 else (lower, upper)
        keep, give = (flat[starts[begin] : starts[end]] for begin, end in ((low, high), given))
        _, received = yield Send(peer, give), Recv(peer, scratch[: keep.size])
        join_into(keep, operator, rank, keep, peer, received)
    mine = {to: flat[starts[at] : starts[at + 1]] for at, to in enumerate(order.ranks[low:high], low)}
    if here.mate is not None:
        yield Send(here.mate, mine[here.mate].reshape(pieces[here.mate].shape))
    own = flat_result(pieces[rank], out)  # not a part of `flat`, which would hold all that memory
    own[...] = mine[rank]
    return shaped_like(pieces[rank], own, out)


def ring(
    rank: int,
    size: int,
    pieces: Sequence[Any],
    operator: Operator,
    out: Array | None = None,
    *,
    machines: Machines | None = None,
) -> Schedule[Any]:
    """size-1 rounds; every rank has memory for one more piece. The operator must commute and permit any order.

    ``out`` must not share memory with ``pieces``.
    """
    order = range(size) if machines is None else machines.order
    at, left, right = neighbours(rank, size, machines)
    partial = pieces[left]
    for step in range(size - 1):
        coming = order[(at - step - 2) % size]
        _, received = yield Send(right, partial), Recv(left, out if coming == rank else None)
        partial = operator.combine(received, pieces[coming], into=received)
    return apart(partial, pieces[rank])


@dataclass(frozen=True, slots=True)
class _Packing:
    """The ranks in the order of their blocks' numbers with the bits reversed: halves, quarters, … belong together."""

    ranks: tuple[int, ...]
    blocks: tuple[int, ...]

    def split(self, low: int, high: int, level: int) -> int:
        """Where in ``low … high`` the blocks begin that have the bit of ``level``."""
        return next(at for at in range(low, high) if self.blocks[at] >> level & 1)


@lru_cache(maxsize=64)
def _packing(size: int) -> _Packing:
    levels = size.bit_length() - 1
    reverse = {rank: int(f"{block_of(rank, size):0{levels}b}"[::-1], 2) for rank in range(size)}
    ranks = sorted(range(size), key=reverse.__getitem__)
    return _Packing(tuple(ranks), tuple(block_of(rank, size) for rank in ranks))
