"""Which ranks share a machine: what collectives need to know of it, and no more.

Between machines a message costs several times what it costs within one. So a collective may work on *two levels*:
the ranks of a machine among themselves, and one of each machine, its *leader*, among the leaders. That pays where
ranks are *nested*: there are several machines, and several ranks on one of them.

All ranks must build this from the same ids, since it decides who talks to whom. It is immutable, and `Machines.of`
gives the same object for the same ids, so that it can be a key of caches at no cost.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

from rmpi.comm.collectives.bracket import height


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity: `of` makes each once
class Machines:
    """The machines of a communicator's ranks. Made by `of`.

    Attributes:
        groups: The ranks of each machine, in rank order; machines in the order of their lowest ranks.
        places: For each rank the index of its machine in ``groups``, and its own in that group.
        leaders: The lowest rank of each machine.
        order: All ranks, machine by machine.
        positions: For each rank its index in ``order``.
        nested: There are several machines, and fewer than ranks: two levels may pay.
        whole: The ranks of each machine are a whole subtree of the bracketing (`rmpi.comm.collectives.bracket`), so
            that a reduction may combine them first.
        height: How many levels of the bracketing lie within a machine, if ``whole`` and the same for all. Else None.
    """

    groups: tuple[tuple[int, ...], ...]
    places: tuple[tuple[int, int], ...]
    leaders: tuple[int, ...]
    order: tuple[int, ...]
    positions: tuple[int, ...]
    nested: bool
    whole: bool
    height: int | None

    @classmethod
    def of(cls, ids: tuple[Hashable, ...]) -> Machines:
        """From one machine id per rank, in rank order."""
        return _machines(ids)

    @property
    def several(self) -> bool:
        """There is more than one machine."""
        return len(self.groups) > 1

    def mine(self, rank: int) -> tuple[int, ...]:
        """The ranks on the machine of ``rank``, itself included, in rank order."""
        return self.groups[self.places[rank][0]]

    def leader(self, rank: int) -> int:
        """The leader of the machine of ``rank``."""
        return self.mine(rank)[0]


@lru_cache(maxsize=64)
def _machines(ids: tuple[Hashable, ...]) -> Machines:
    members: dict[Hashable, list[int]] = {}
    for rank, machine in enumerate(ids):
        members.setdefault(machine, []).append(rank)
    groups = tuple(map(tuple, members.values()))
    places = {rank: (i, j) for i, group in enumerate(groups) for j, rank in enumerate(group)}
    order = tuple(rank for group in groups for rank in group)
    positions = {rank: position for position, rank in enumerate(order)}
    heights = [height(group, len(ids)) for group in groups]
    whole = None not in heights
    return Machines(
        groups=groups,
        places=tuple(places[rank] for rank in range(len(ids))),
        leaders=tuple(group[0] for group in groups),
        order=order,
        positions=tuple(positions[rank] for rank in range(len(ids))),
        nested=1 < len(groups) < len(ids),
        whole=whole,
        height=heights[0] if whole and len(set(heights)) == 1 else None,
    )
