"""Alltoall: a piece from every rank to every rank, each of any type and length.

Nobody knows how long the pieces are that come to it. `pairwise` need not: each piece is a message of its own. `bruck`
carries small pieces along in few messages, as the bundles of `rmpi.comm.collectives.gathering` are; those that are
not small it announces, and they follow pairwise. An object whose length nobody knows before it has been pickled is
not small.

A rank's own piece comes back as the object it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rmpi.comm.schedule import Recv, Schedule, Send, Step, raw_bytes

Array = npt.NDArray[Any]

_WORDS = frozenset({type(None), bool, float, complex})


def pairwise(
    rank: int, size: int, values: Sequence[Any], outs: Sequence[Array | None] | None = None
) -> Schedule[list[Any]]:
    """size-1 rounds: in the round of distance d to the rank d above, and from the one d below.

    Each piece travels once, and each rank sends and receives one at a time. For large pieces. ``outs`` must not share
    memory with ``values``.

    Thakur, Rabenseifner, Gropp: Optimization of collective communication operations in MPICH, 2005,
    doi:10.1177/1094342005051521.
    """
    pieces = list(values)
    for distance in range(1, size):
        to, source = (rank + distance) % size, (rank - distance) % size
        _, pieces[source] = yield Send(to, values[to]), Recv(source, outs[source] if outs is not None else None)
    return pieces


def bruck(
    rank: int, size: int, values: Sequence[Any], outs: Sequence[Array] | None = None, *, small: int
) -> Schedule[list[Any]]:
    """⌈log₂ size⌉ rounds for pieces of at most ``small`` bytes; the others follow pairwise, and may land in ``outs``.

    A piece for the rank d above takes the distances 2^i of which d is the sum. Between two rounds, slot d has the
    piece that has still to go the part of d that was not yet its turn; in the end, that from the rank d below. A
    message is ``[pieces, announced]``, of the slots whose turn it is, and of those among them that are not small.

    Bruck et al.: Efficient algorithms for all-to-all communications, 1997, doi:10.1109/71.642949.
    """
    mine = [values[(rank + slot) % size] for slot in range(size)]
    straight = {slot for slot in range(1, size) if not _is_small(mine[slot], small)}
    slots = [None if slot in straight else piece for slot, piece in enumerate(mine)]
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
    for slot in range(1, size):
        source = (rank - slot) % size
        steps: list[Step] = [Send((rank + slot) % size, mine[slot])] if slot in straight else []
        if slot in announced:
            results = yield (*steps, Recv(source, outs[source] if outs is not None else None))
            slots[slot] = results[-1]
        elif steps:
            yield steps[0]
    return [slots[(rank - source) % size] for source in range(size)]


def _is_small(piece: object, small: int) -> bool:
    """Whether the piece surely takes no more than ``small`` bytes."""
    if type(piece) is np.ndarray:
        return not piece.dtype.hasobject and piece.nbytes <= small
    if type(piece) is int:
        return piece.bit_length() <= 64
    return type(piece) in _WORDS or (isinstance(piece, (bytes, bytearray, str)) and raw_bytes(piece) <= small)
