"""The binomial tree: who is whose parent, for one root and every size.

Ranks are renumbered so that the root is 0: ``virtual = (rank - root) mod size``. The parent of a virtual rank
is itself without its lowest set bit, so a subtree is a *contiguous* run of virtual ranks, and what it
brings together can be a plain list. ⌈log₂ size⌉ deep; for 8 ranks

    0 ─┬─ 1
       ├─ 2 ─── 3
       └─ 4 ─┬─ 5
             └─ 6 ─── 7
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Child:
    """A child: its rank, and its subtree as a slice of ours (``start`` 0 is ourselves)."""

    rank: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Seat:
    """One rank's place in the tree; ``children`` has the smallest subtree first."""

    virtual: int
    count: int
    parent: int | None
    children: tuple[Child, ...]
    root: int

    @property
    def lone_child_of_root(self) -> bool:
        """A leaf next to the root: what passes between the two is one piece, known so to both."""
        return self.count == 1 and self.parent == self.root


@lru_cache(maxsize=4096)  # a program calls the same collectives with the same few roots again and again
def seat(rank: int, size: int, root: int) -> Seat:
    """Where ``rank`` sits in the tree over ``size`` ranks from ``root``."""
    virtual = (rank - root) % size
    span = virtual & -virtual or size
    starts = [1 << i for i in range((span - 1).bit_length()) if virtual + (1 << i) < size]
    children = tuple(Child((rank + start) % size, start, min(start, size - virtual - start)) for start in starts)
    parent = None if virtual == 0 else (root + (virtual & (virtual - 1))) % size
    return Seat(virtual, min(span, size - virtual), parent, children, root)
