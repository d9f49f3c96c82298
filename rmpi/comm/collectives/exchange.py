"""Alltoall: a piece from every rank to every rank, each of any type and length.

Nobody knows how long the pieces are that come to it. `pairwise` need not: each piece is a message of its own. `bruck`
carries small pieces along in few messages, as the bundles of `rmpi.comm.collectives.gathering` are; those that are
not small it announces, and they follow pairwise. An object whose length nobody knows before it has been pickled is
not small.

A rank's own piece comes back as the object it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rmpi.comm.schedule import Recv, Schedule, Send, raw_bytes

Array = npt.NDArray[Any]

_WORDS = frozenset({type(None), bool, float, complex})


def pairwise(
    rank: int,
    size: int,
    values: Sequence[Any],
    outs: Sequence[Array | None] | None = None,
    *,
    at_once: int = 1,
) -> Schedule[list[Any]]:
    """Each piece is a message: at the distance d to the rank d above, and from the one d below.

    ``at_once`` distances make a round, so there are (size-1) / at_once. ``outs`` must not share memory with ``values``.

    Thakur, Rabenseifner, Gropp: Optimization of collective communication operations in MPICH, 2005,
    doi:10.1177/1094342005051521.
    """
    pieces = list(values)
    everybody = range(1, size)
    yield from _at_distances(rank, size, values, outs, pieces, everybody, everybody, at_once)
    return pieces


def _at_distances(
    rank: int,
    size: int,
    values: Sequence[Any],
    outs: Sequence[Array | None] | None,
    pieces: list[Any],
    giving: Collection[int],
    coming: Collection[int],
    at_once: int,
) -> Schedule[None]:
    """Send to the ranks at the distances ``giving`` above, and receive into ``pieces`` from those ``coming`` below."""
    for first in range(1, size, at_once):
        distances = range(first, min(first + at_once, size))
        sends = [Send(to, values[to]) for to in ((rank + d) % size for d in distances if d in giving)]
        sources = [(rank - d) % size for d in distances if d in coming]
        receives = [Recv(source, outs[source] if outs is not None else None) for source in sources]
        if sends or receives:
            results = yield (*sends, *receives)
            for source, piece in zip(sources, results[len(sends) :], strict=True):
                pieces[source] = piece


def bruck(
    rank: int,
    size: int,
    values: Sequence[Any],
    outs: Sequence[Array | None] | None = None,
    *,
    small: int,
    at_once: int = 1,
) -> Schedule[list[Any]]:
    """⌈log₂ size⌉ rounds for pieces of at most ``small`` bytes; the others follow as in `pairwise`.

    A piece for the rank d above takes the distances 2^i of which d is the sum. Between two rounds, slot d has the
    piece that has still to go the part of d that was not yet its turn; in the end, that from the rank d below. A
    message is ``[pieces, announced]``, of the slots whose turn it is, and of those among them that are not small.

    Bruck et al.: Efficient algorithms for all-to-all communications, 1997, doi:10.1109/71.642949.
    """
    slots = [values[(rank + slot) % size] for slot in range(size)]
    straight = {slot for slot in range(1, size) if not _is_small(slots[slot], small)}
    for slot in straight:
        slots[slot] = None
    announced = set(straight)
    distance = 1
    while distance < size:
        turn = [slot for slot in range(size) if slot & distance]
        bundle = [[slots[slot] for slot in turn], [slot for slot in turn if slot in announced]]
        _, (theirs, coming) = yield Send((rank + distance) % size, bundle), Recv((rank - distance) % size)
        for slot, piece in zip(turn, theirs, strict=True):
            slots[slot] = piece
        announced.difference_update(turn)
        announced.update(coming)
        distance *= 2
    pieces = [slots[(rank - source) % size] for source in range(size)]
    yield from _at_distances(rank, size, values, outs, pieces, straight, announced, at_once)
    return pieces


def _is_small(piece: object, small: int) -> bool:
    """Whether the piece surely takes no more than ``small`` bytes."""
    if type(piece) is np.ndarray:
        return not piece.dtype.hasobject and piece.nbytes <= small
    if type(piece) is int:
        return piece.bit_length() <= 64
    return type(piece) in _WORDS or (isinstance(piece, (bytes, bytearray, str)) and raw_bytes(piece) <= small)
