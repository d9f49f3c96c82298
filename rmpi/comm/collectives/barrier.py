"""Barrier: nobody leaves before everybody has come."""

from __future__ import annotations

from rmpi.comm.schedule import Recv, Schedule, Send


def dissemination(rank: int, size: int) -> Schedule[None]:
    """⌈log₂ size⌉ rounds of one message each way, any size.

    After the round of distance d a rank has heard, directly or not, of the 2d-1 ranks before it.

    Hensgen, Finkel, Manber: Two algorithms for barrier synchronization, 1988, doi:10.1007/BF01379320.
    """
    distance = 1
    while distance < size:
        yield Send((rank + distance) % size, None), Recv((rank - distance) % size)
        distance *= 2
