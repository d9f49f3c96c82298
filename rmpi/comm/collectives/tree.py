"""Trees: who is whose parent, for one root and every size.

Ranks are renumbered so that the root is 0 and every subtree a *contiguous* run of these virtual ranks; what a
subtree brings together can then be a plain list.

Among the ranks of one machine (or where nobody knows of machines) it is the binomial tree: ``virtual = (rank - root)
mod size``, and the parent of a virtual rank is itself without its lowest set bit. ⌈log₂ size⌉ deep; for 8 ranks

    0 ─┬─ 1
       ├─ 2 ─── 3
       └─ 4 ─┬─ 5
             └─ 6 ─── 7

On several machines each machine has such a tree of its own, from its leader (on the root's machine: the root), and the
leaders have one among themselves: a leader's children are first those of its machine, then other leaders. So every
machine but the root's is entered by one message. For ranks 0, 2, 4 on one machine, 1, 3 on the next, 5 on a third:

    0 ─┬─ 2
       ├─ 4
       ├─ 1 ─── 3
       └─ 5
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from rmpi.comm.topology import Machines


@dataclass(frozen=True, slots=True)
class Child:
    """A child: its rank, and its subtree as a slice of ours (``start`` 0 is ourselves)."""

    rank: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Seat:
    """One rank's place in the tree.

    Attributes:
        virtual: Its virtual rank.
        count: How many ranks its subtree has, itself included.
        parent: A rank; None on the root.
        children: In the order of their virtual ranks; the last has the longest way to go.
        root: The root.
        order: All ranks in the order of their virtual ranks.
    """

    virtual: int
    count: int
    parent: int | None
    children: tuple[Child, ...]
    root: int
    order: tuple[int, ...]

    @property
    def lone_child_of_root(self) -> bool:
        """A leaf next to the root: what passes between the two is one piece, known so to both."""
        return self.count == 1 and self.parent == self.root


@lru_cache(maxsize=4096)  # a program calls the same collectives with the same few roots again and again
def seat(rank: int, size: int, root: int, machines: Machines | None = None) -> Seat:
    """Where ``rank`` sits in the tree over ``size`` ranks from ``root``; two levels if ``machines`` are nested."""
    if machines is not None and machines.nested:
        return _nested_seat(rank, root, machines)
    virtual = (rank - root) % size
    span, starts = _binomial(virtual, size)
    order = _around(size, root)
    children = tuple(Child(order[virtual + start], start, count) for start, count in starts)
    parent = None if virtual == 0 else order[virtual & (virtual - 1)]
    return Seat(virtual, span, parent, children, root, order)


@lru_cache(maxsize=64)
def _around(size: int, root: int) -> tuple[int, ...]:
    return tuple((root + at) % size for at in range(size))


def _binomial(virtual: int, size: int) -> tuple[int, list[tuple[int, int]]]:
    """How many ranks the subtree of ``virtual`` has, and start and count of each child's, relative to it."""
    span = virtual & -virtual or size
    starts = [1 << i for i in range((span - 1).bit_length()) if virtual + (1 << i) < size]
    return min(span, size - virtual), [(start, min(start, size - virtual - start)) for start in starts]


@dataclass(frozen=True, slots=True)
class _Nesting:
    """The machines as the tree from one root sees them: the root's first, and there the root first.

    Attributes:
        groups: The ranks of each machine.
        starts: The virtual rank of the first of each, and after the last the number of ranks.
        order: All ranks in the order of their virtual ranks.
    """

    groups: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    order: tuple[int, ...]


@lru_cache(maxsize=64)
def _nesting(root: int, machines: Machines) -> _Nesting:
    first = machines.places[root][0]
    home = root, *(rank for rank in machines.groups[first] if rank != root)
    groups = (home, *machines.groups[first + 1 :], *machines.groups[:first])
    order = tuple(rank for group in groups for rank in group)
    return _Nesting(groups, tuple(accumulate(map(len, groups), initial=0)), order)


def _nested_seat(rank: int, root: int, machines: Machines) -> Seat:
    nesting = _nesting(root, machines)
    groups, starts = nesting.groups, nesting.starts
    (machine, mine), (home, at_home) = machines.places[rank], machines.places[root]
    at = (machine - home) % len(groups)
    if at == 0 and mine <= at_home:  # the root has gone before the ranks below it
        mine = 0 if rank == root else mine + 1
    group = groups[at]
    span, below = _binomial(mine, len(group))
    children = [Child(group[mine + start], start, count) for start, count in below]
    parent = group[mine & (mine - 1)]
    if mine == 0:
        parent = groups[at & (at - 1)][0]
        leaders, below = _binomial(at, len(groups))
        for start, count in below:
            first = at + start
            children.append(Child(groups[first][0], starts[first] - starts[at], starts[first + count] - starts[first]))
        span = starts[at + leaders] - starts[at]
    virtual = starts[at] + mine
    return Seat(virtual, span, None if rank == root else parent, tuple(children), root, nesting.order)
