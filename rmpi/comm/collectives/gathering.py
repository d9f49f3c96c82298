"""Gather, allgather and scatter: one piece per rank, of any type and length.

Pieces need not be alike, and only its owner (for scatter: the root) knows how long a piece is. So a message
inside the tree is a *bundle*, ``[pieces, announced]``: the pieces of a run of adjacent ranks, and the
positions in that run of those that are too large to be carried along (more than ``large`` bytes; None
stands in their place). An announced piece goes straight from its owner to who wants it, in one hop, once
the announcement is under way. Everyone who must receive it has read the announcement by then, so nobody has
to guess.

Bundles are lists of the pieces and of ints, nothing else, so that any codec can carry them.

A rank's own piece takes no way at all: it comes back as the object it is, not as a copy.

With ``machines`` the trees have two levels (`rmpi.comm.collectives.tree`), and bundles are carried along a tree.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import numpy.typing as npt

from rmpi.comm.collectives.broadcast import binomial
from rmpi.comm.collectives.groups import within
from rmpi.comm.collectives.tree import Child, Seat, seat
from rmpi.comm.schedule import Recv, Schedule, Send, Step, raw_bytes
from rmpi.comm.topology import Machines

Array = npt.NDArray[Any]

Bundle: TypeAlias = list[list[Any]]


def gather(
    rank: int, size: int, root: int, value: object, *, large: int, machines: Machines | None = None
) -> Schedule[list[Any] | None]:
    """Binomial tree: ⌈log₂ size⌉ rounds, size-1 messages and one more for each large piece.

    Returns:
        On the root the pieces in rank order, elsewhere None.
    """
    here = seat(rank, size, root, machines)
    if here.lone_child_of_root:
        yield Send(root, value)
        return None
    bundle = yield from _collect(here, value, large)
    if here.parent is not None:
        straight = (Send(root, value),) if raw_bytes(value) > large else ()
        yield Send(here.parent, bundle), *straight
        return None
    return _in_rank_order((yield from _take_announced(here, bundle)), here.order)


def scatter(
    rank: int,
    size: int,
    root: int,
    values: Sequence[Any] | None,
    out: Array | None = None,
    *,
    large: int,
    machines: Machines | None = None,
) -> Schedule[Any]:
    """Binomial tree: ⌈log₂ size⌉ rounds, size-1 messages and one more for each large piece.

    Only the root's ``values`` are looked at, one per rank. It alone chooses the ways; the bundle that
    reaches a subtree says which of its pieces come straight from the root.

    Returns:
        This rank's piece.
    """
    here = seat(rank, size, root, machines)
    if here.parent is None:
        assert values is not None
        return (yield from _scatter_from_root(here, [values[peer] for peer in here.order], large))
    if here.lone_child_of_root:
        return (yield Recv(root, out))
    bundle = yield Recv(here.parent)
    straight = (Recv(root, out),) if 0 in bundle[1] else ()
    results = yield from _together((*_passed_on(here, bundle), *straight))
    return results[-1] if straight else bundle[0][0]


def ring(
    rank: int,
    size: int,
    value: object,
    owners: Collection[int],
    outs: Sequence[Array] | None = None,
    order: Sequence[int] | None = None,
) -> Schedule[dict[int, Any]]:
    """Allgather of the pieces of ``owners``, as every rank knows them: size-1 rounds, each to the next rank.

    Each piece passes over each link but one exactly once, which no algorithm betters for large ones. ``order`` has all
    ranks as they sit around the ring. A piece may land in its place of ``outs``.

    Returns:
        The pieces by owner.
    """
    order = order or range(size)
    at = order.index(rank)
    right, left = order[(at + 1) % size], order[at - 1]
    have = {rank: value} if rank in owners else {}
    for step in range(size - 1):
        passing, coming = order[(at - step) % size], order[(at - step - 1) % size]
        steps: list[Step] = [Send(right, have[passing])] if passing in owners else []
        if coming in owners:
            results = yield (*steps, Recv(left, outs[coming] if outs is not None else None))
            have[coming] = results[-1]
        elif steps:
            yield steps[0]
    return have


def dissemination(
    rank: int, size: int, value: object, outs: Sequence[Array] | None = None, *, large: int
) -> Schedule[list[Any]]:
    """Allgather in ⌈log₂ size⌉ rounds for small pieces, then the announced large ones, which may land in ``outs``.

    After each round a rank has the bundle of twice as many ranks from itself upwards. Bruck et al.: Efficient
    algorithms for all-to-all communications, 1997, doi:10.1109/71.642949.
    """
    pieces, announced = yield from _disseminate(rank, size, _own(value, large))
    owners = sorted((rank + at) % size for at in announced)
    return (yield from _completed(rank, size, value, _rotated(pieces, -rank), owners, outs))


def two_level_allgather(
    rank: int,
    size: int,
    value: object,
    outs: Sequence[Array] | None = None,
    *,
    large: int,
    machines: Machines,
) -> Schedule[list[Any]]:
    """Allgather of small pieces on each machine, then among the leaders, and down again; then the large ones.

    Between machines go ⌈log₂ machines⌉ bundles from each leader, and each large piece enters each machine once.
    """
    machine, at = machines.places[rank]
    group = machines.groups[machine]
    here = seat(at, len(group), 0)
    bundle = yield from within(group, _collect(here, value, large, everything=True))
    if here.parent is None:
        bundle = yield from within(machines.leaders, _exchange_bundles(machine, machines, bundle))
    else:
        yield Send(group[here.parent], bundle)
    pieces, announced = yield from within(group, binomial(at, len(group), 0, bundle, large=large))
    owners = sorted(machines.order[place] for place in announced)
    gathered = _in_rank_order(pieces, machines.order)
    return (yield from _completed(rank, size, value, gathered, owners, outs, machines))


def _disseminate(rank: int, size: int, bundle: Bundle) -> Schedule[Bundle]:
    """The bundle of all ranks, from this one upwards and around, in the place of this rank's."""
    distance = 1
    while distance < size:
        count = min(distance, size - distance)
        give = Send((rank - distance) % size, _cut(bundle, 0, count))
        _, theirs = yield give, Recv((rank + distance) % size)
        _append(bundle, theirs, distance)
        distance *= 2
    return bundle


def _exchange_bundles(machine: int, machines: Machines, bundle: Bundle) -> Schedule[Bundle]:
    """The bundle of all ranks in the order of their machines, from that of each machine."""
    count = len(machines.groups)
    bundles, _ = yield from _disseminate(machine, count, [[bundle], []])
    merged: Bundle = [[], []]
    for theirs in _rotated(bundles, -machine):
        _append(merged, theirs, len(merged[0]))
    return merged


def _completed(
    rank: int,
    size: int,
    value: object,
    gathered: list[Any],
    owners: list[int],
    outs: Sequence[Array] | None,
    machines: Machines | None = None,
) -> Schedule[list[Any]]:
    """``gathered``, with this rank's own ``value`` and the large pieces of ``owners`` put in."""
    gathered[rank] = value
    later = yield from _exchange_large(rank, size, value, owners, outs, machines)
    for owner, piece in later.items():
        gathered[owner] = piece
    return gathered


def _exchange_large(
    rank: int,
    size: int,
    value: object,
    owners: list[int],
    outs: Sequence[Array] | None,
    machines: Machines | None,
) -> Schedule[dict[int, Any]]:
    """A few large pieces by a tree each, many by the ring: whichever has fewer rounds."""
    if len(owners) * (size - 1).bit_length() >= size - 1:
        order = machines.order if machines is not None else None
        return (yield from ring(rank, size, value, owners, outs, order))
    have = {}
    for owner in owners:
        out = outs[owner] if outs is not None and owner != rank else None
        have[owner] = yield from binomial(rank, size, owner, value, out, large=0, machines=machines)
    return have


def _collect(here: Seat, value: object, large: int, *, everything: bool = False) -> Schedule[Bundle]:
    """The bundle of our subtree.

    In a gather the root's own piece is never too large, as it stays where it is, and a lone child gives just a piece;
    but not if ``everything`` goes on from the root.
    """
    keeps = here.parent is None and not everything
    bundle: Bundle = [[value], []] if keeps else _own(value, large)
    if here.children:
        theirs = yield tuple(Recv(child.rank) for child in here.children)
        for child, received in zip(here.children, theirs, strict=True):
            lone = keeps and _is_lone(here, child)
            _append(bundle, [[received], []] if lone else received, child.start)
    return bundle


def _take_announced(here: Seat, bundle: Bundle) -> Schedule[list[Any]]:
    pieces, announced = bundle
    received = yield from _together(tuple(Recv(here.order[at]) for at in announced))
    for at, piece in zip(announced, received, strict=True):
        pieces[at] = piece
    return pieces


def _scatter_from_root(here: Seat, pieces: list[Any], large: int) -> Schedule[Any]:
    lone = {child.start for child in here.children if _is_lone(here, child)}
    far = {at for at, piece in enumerate(pieces) if at and at not in lone and raw_bytes(piece) > large}
    kept = [None if at in far else piece for at, piece in enumerate(pieces)]
    announced = sorted(far)
    straight = (Send(here.order[at], pieces[at]) for at in announced)
    yield from _together((*_passed_on(here, [kept, announced]), *straight))
    return pieces[0]


def _passed_on(here: Seat, bundle: Bundle) -> tuple[Send, ...]:
    """What the children get, the largest subtree first: it has the longest way to go."""
    return tuple(Send(child.rank, _share(here, child, bundle)) for child in reversed(here.children))


def _share(here: Seat, child: Child, bundle: Bundle) -> Any:
    return bundle[0][child.start] if _is_lone(here, child) else _cut(bundle, child.start, child.count)


def _is_lone(here: Seat, child: Child) -> bool:
    return here.parent is None and child.count == 1


def _together(steps: tuple[Step, ...]) -> Schedule[list[Any]]:
    """Yield the steps, if there are any."""
    return (yield steps) if steps else []


def _own(value: object, large: int) -> Bundle:
    return [[None], [0]] if raw_bytes(value) > large else [[value], []]


def _cut(bundle: Bundle, start: int, count: int) -> Bundle:
    pieces, announced = bundle
    inside = [at - start for at in announced if start <= at < start + count]
    return [pieces[start : start + count], inside]


def _append(bundle: Bundle, more: Bundle, start: int) -> None:
    bundle[0].extend(more[0])
    bundle[1].extend(start + at for at in more[1])


def _rotated(pieces: Sequence[Any], by: int) -> list[Any]:
    """``pieces[by:] + pieces[:by]``."""
    by %= len(pieces)
    return [*pieces[by:], *pieces[:by]]


def _in_rank_order(pieces: Sequence[Any], order: Sequence[int]) -> list[Any]:
    """``pieces``, of which the i-th is that of rank ``order[i]``."""
    by_rank: list[Any] = [None] * len(pieces)
    for rank, piece in zip(order, pieces, strict=True):
        by_rank[rank] = piece
    return by_rank
