"""Scan and exscan: on each rank the values of all ranks up to it, with or without its own, combined.

Prefixes have one bracketing too (`rmpi.comm.collectives.bracket`): the largest subtrees that fit, from left to right.
So the inclusive prefix of rank r and the exclusive one of rank r+1 have the same bits, and the last rank's inclusive
one those of the reduction. What the others know of a subtree, its *last* rank knows first.

- `doubling`: in half the rounds, but a subtree is combined on each of its ranks. For exact operators.
- `sweeps`: each combination is applied once, on one rank, and sent to those who need it. For every operator, and
  where messages between machines should be few.
- `transposed`: each rank does it all for its own part of the elements. For large arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import numpy.typing as npt

from rmpi.comm.collectives.bracket import Ends, ends, last_of
from rmpi.comm.collectives.exchange import pairwise
from rmpi.comm.collectives.reduction import apart, flat_result, land, shaped_like
from rmpi.comm.ops import Operator
from rmpi.comm.partition import partition
from rmpi.comm.schedule import Recv, Schedule, Send, Step

Array = npt.NDArray[Any]


def doubling(
    rank: int, size: int, value: Any, operator: Operator, out: Array | None = None, *, exclusive: bool = False
) -> Schedule[Any]:
    """⌊log₂ size⌋ rounds, and two more if size is not a power of two. ``out`` must not share memory with ``value``.

    In each round a rank and the one at the same place in the neighbouring subtree tell each other what theirs have; who
    is on the right remembers what it was told.

    Hillis, Steele: Data parallel algorithms, 1986, doi:10.1145/7902.7903.
    """
    here = ends(rank, size)
    if here.last != rank:
        return (yield from _first_of_block(here, value, operator, out, exclusive))
    mate, before, ending = None, [], value
    if here.mate is not None:
        mate = yield Recv(here.mate)
        ending = operator.combine(mate, value)
    total, joined = ending, 0  # our subtree's, and how many of the lefts the subtree that ends here has taken in
    for level, peer in enumerate(here.peers):
        _, theirs = yield Send(peer, total), Recv(peer)
        if here.block >> level & 1:
            before.append(theirs)
            total = operator.combine(theirs, total)
            if joined == level:
                ending, joined = total, level + 1
        else:
            total = operator.combine(total, theirs, into=theirs)
    before.reverse()
    if here.mate is not None and before:
        yield Send(here.mate, _in_a_row(operator, before))
    if not exclusive:
        return apart(_in_a_row(operator, [*before[: len(before) - joined], ending], out), value)
    row = before if here.mate is None else [*before, mate]
    return _in_a_row(operator, row, out) if row else None


def sweeps(rank: int, size: int, value: Any, operator: Operator, out: Array | None = None) -> Schedule[Any]:
    """At most 2⌈log₂ size⌉ rounds, and fewer than 2 size messages. ``out`` must not share memory with ``value``.

    Up: of two neighbouring subtrees the left one's last rank tells the right one's, which combines. Down: whoever has
    the prefix that ends with it tells the last rank of each subtree that begins behind it.

    Brent, Kung: A regular layout for parallel adders, 1982, doi:10.1109/TC.1982.1675982.
    """
    plan = _plan(rank, size)
    prefix = value
    for peer in plan.parts:
        part = yield Recv(peer, out if plan.before is None and peer == plan.parts[-1] else None)
        prefix = operator.combine(part, prefix, into=part)
    up: tuple[Step, ...] = () if plan.up is None else (Send(plan.up, prefix),)
    if plan.before is not None:
        *_, before = yield (*up, Recv(plan.before, out))
        prefix = operator.combine(before, prefix, into=before)
    elif up:
        yield up[0]
    if plan.tells:
        yield tuple(Send(peer, prefix) for peer in plan.tells)
    return apart(prefix, value)


def exclusive_sweeps(rank: int, size: int, value: Any, operator: Operator, out: Array | None = None) -> Schedule[Any]:
    """`sweeps`, and one round more, in which each rank tells the next one its prefix. None on rank 0."""
    prefix = yield from sweeps(rank, size, value, operator)
    up = (Send(rank + 1, prefix),) if rank + 1 < size else ()
    if rank == 0:
        yield up
        return None
    *_, before = yield (*up, Recv(rank - 1, out))
    return before


def transposed(
    rank: int,
    size: int,
    value: Array,
    operator: Operator,
    out: Array | None = None,
    *,
    at_once: int,
    exclusive: bool = False,
) -> Schedule[Array | None]:
    """Of a large array: everybody's part i goes to rank i, which combines all prefixes of it and sends them back.

    Two pairwise exchanges that move 2(1 - 1/size) of the array, where whole values would move it log₂ size times. The
    operator must keep ``value.dtype``. ``out`` is used as in `rmpi.comm.collectives.reduction.rabenseifner`.
    """
    flat = value.reshape(-1)
    spans = [partition(flat.size, size, peer) for peer in range(size)]
    parts = yield from pairwise(rank, size, [flat[start : start + count] for start, count in spans], at_once=at_once)
    prefixes = _all_prefixes(parts, operator)
    whole = flat_result(value, out)
    places = [whole[start : start + count] for start, count in spans]
    given = [None, *prefixes[:-1]] if exclusive else prefixes
    received = yield from pairwise(rank, size, given, places, at_once=at_once)
    if exclusive and rank == 0:
        return None
    for place, part in zip(places, received, strict=True):
        land(part, place)
    return shaped_like(value, whole, out)


def _first_of_block(here: Ends, value: Any, operator: Operator, out: Array | None, exclusive: bool) -> Schedule[Any]:
    """The lower one of two ranks that are folded into a block: a leaf, whose prefix is that before it and itself."""
    yield Send(here.last, value)
    if here.block == 0:
        return None if exclusive else apart(value, value)
    before = yield Recv(here.last, out)
    return before if exclusive else apart(operator.combine(before, value, into=before), value)


def _in_a_row(operator: Operator, parts: Sequence[Any], out: Array | None = None) -> Any:
    """``parts`` combined from left to right, in memory of its own, at last in ``out``."""
    total, spare = parts[0], None
    for i, part in enumerate(parts[1:], 2):
        total = spare = operator.combine(total, part, into=out if i == len(parts) and out is not None else spare)
    return total


def _all_prefixes(parts: Sequence[Any], operator: Operator) -> list[Any]:
    """The prefix of each rank. Each combination is applied once, and no part is changed."""
    subtrees: list[Any] = []  # that end with each rank
    prefixes: list[Any] = []
    for rank, part in enumerate(parts):
        plan = _plan(rank, len(parts))
        subtrees.append(reduce(lambda right, peer: operator(subtrees[peer], right), plan.parts, part))
        prefix = subtrees[-1] if plan.before is None else operator(prefixes[plan.before], subtrees[-1])
        prefixes.append(prefix)
    return prefixes


@dataclass(frozen=True, slots=True)
class _Plan:
    """One rank's part in `sweeps`.

    Attributes:
        parts: Who tells it the subtrees left of it that the one ending with it consists of, nearest first.
        up: Whom it tells the subtree that ends with it; None on the last rank.
        before: Who tells it the prefix before that subtree; None if there is nothing before.
        tells: Whom it tells the prefix that ends with it, those with the longest way to go first.
    """

    parts: tuple[int, ...]
    up: int | None
    before: int | None
    tells: tuple[int, ...]


@lru_cache(maxsize=4096)
def _plan(rank: int, size: int) -> _Plan:
    here = ends(rank, size)
    before = _before(here, rank, size)
    if here.last != rank:
        return _Plan((), here.last, before, ())
    level = _levels_ended(here)
    parts = here.peers[:level] if here.mate is None else (here.mate, *here.peers[:level])
    up = here.peers[level] if level < len(here.peers) else None
    return _Plan(parts, up, before, _behind(here, rank, size))


def _before(here: Ends, rank: int, size: int) -> int | None:
    """The last rank before the largest subtree that ends with ``rank``."""
    first = here.block if here.last != rank else here.block + 1 - (1 << _levels_ended(here))
    return last_of(first - 1, size) if first else None


def _behind(here: Ends, rank: int, size: int) -> tuple[int, ...]:
    """The ranks whose largest subtree begins behind ``rank``, which is the last of its block: the largest first."""
    if rank == size - 1:
        return ()
    block = here.block + 1
    levels = (block & -block).bit_length() - 1  # the trailing zeros: so many sizes of left halves begin with it
    halves = tuple(last_of(block + (1 << level) - 1, size) for level in reversed(range(levels)))
    following = rank + 1
    return halves if ends(following, size).last == following else (*halves, following)


def _levels_ended(here: Ends) -> int:
    """How many levels of subtrees end with this block: the trailing ones of its number."""
    return (~here.block & (here.block + 1)).bit_length() - 1
