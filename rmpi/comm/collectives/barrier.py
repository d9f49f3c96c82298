"""Barrier: nobody leaves before everybody has come."""

from __future__ import annotations

from functools import lru_cache

from rmpi.comm.collectives.tree import seat
from rmpi.comm.schedule import Recv, Schedule, Send, Step
from rmpi.comm.topology import Machines


def dissemination(rank: int, size: int) -> Schedule[None]:
    """⌈log₂ size⌉ rounds of one message each way, any size.

    After the round of distance d a rank has heard, directly or not, of the 2d-1 ranks before it.

    Hensgen, Finkel, Manber: Two algorithms for barrier synchronization, 1988, doi:10.1007/BF01379320.
    """
    for steps in _rounds(rank, size):  # noqa: UP028  # results are sent in, which a tuple's iterator cannot take
        yield steps


def two_levels(rank: int, machines: Machines) -> Schedule[None]:
    """Up a tree on each machine, dissemination among the leaders, and down again.

    2⌈log₂ ranks⌉ rounds within machines, and ⌈log₂ machines⌉ between them, in which only leaders send.
    """
    for steps in _two_level_rounds(rank, machines):  # noqa: UP028  # as above
        yield steps


@lru_cache(maxsize=4096)  # every barrier says the same
def _rounds(rank: int, size: int) -> tuple[tuple[Send, Recv], ...]:
    distances = [1 << i for i in range((size - 1).bit_length())]
    return tuple((Send((rank + distance) % size, None), Recv((rank - distance) % size)) for distance in distances)


@lru_cache(maxsize=4096)
def _two_level_rounds(rank: int, machines: Machines) -> tuple[tuple[Step, ...], ...]:
    machine, at = machines.places[rank]
    group, leaders = machines.groups[machine], machines.leaders
    here = seat(at, len(group), 0)
    children = [group[child.rank] for child in here.children]
    rounds: list[tuple[Step, ...]] = [tuple(map(Recv, children))] if children else []
    if here.parent is not None:
        rounds.append((Send(group[here.parent], None), Recv(group[here.parent])))
    else:
        among = _rounds(machine, len(leaders))
        rounds += [(Send(leaders[send.peer], None), Recv(leaders[recv.peer])) for send, recv in among]
    if children:
        rounds.append(tuple(Send(child, None) for child in children))
    return tuple(rounds)
