"""Barrier: nobody leaves before everybody has come."""

from __future__ import annotations

from functools import lru_cache

from rmpi.comm.schedule import Recv, Schedule, Send


def dissemination(rank: int, size: int) -> Schedule[None]:
    """⌈log₂ size⌉ rounds of one message each way, any size.

    After the round of distance d a rank has heard, directly or not, of the 2d-1 ranks before it.

    Hensgen, Finkel, Manber: Two algorithms for barrier synchronization, 1988, doi:10.1007/BF01379320.
    """
    for steps in _rounds(rank, size):  # noqa: UP028  # results are sent in, which a tuple's iterator cannot take
        yield steps


@lru_cache(maxsize=4096)  # every barrier says the same
def _rounds(rank: int, size: int) -> tuple[tuple[Send, Recv], ...]:
    distances = [1 << i for i in range((size - 1).bit_length())]
    return tuple((Send((rank + distance) % size, None), Recv((rank - distance) % size)) for distance in distances)
