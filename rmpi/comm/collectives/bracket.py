"""The one bracketing: in which order a reduction combines the ranks' values, whatever the algorithm.

It is the binary tree over adjacent ranks, and a function of ``size`` alone. With 2^k the largest power of
two not above ``size``, the first ``size - 2^k`` *pairs* of ranks are folded into one block each, every
other rank is a block of its own, and the 2^k blocks are combined by halves. For 6 ranks

    ((0 1) (2 3)) (4 5)        blocks: 0 1 | 2 3 | 4 | 5

So the operands are always in rank order, operators need not commute, and rounding is the same with every
algorithm and root, from run to run, on one machine or ten.

Each block has a *head*, the rank that acts for it: the root if it is a member, else the lower one. At level
i, block b meets block b ^ 2^i: their subtrees are neighbours, and of two heads the lower rank is on the
left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any


@dataclass(frozen=True, slots=True)
class Seat:
    """One rank's place in the bracketing.

    Attributes:
        block: Its block, and ``root_block`` that of the root.
        head: The rank that acts for the block: maybe this one.
        mate: The other rank of the block, if there is one.
        peers: The heads this block meets, level by level, if its own head goes on to the end.
    """

    block: int
    root_block: int
    head: int
    mate: int | None
    peers: tuple[int, ...]

    def gives_at(self, level: int) -> bool:
        """Whether, on the way to the root, this block hands its result over at ``level`` and is done."""
        return bool((self.block ^ self.root_block) >> level & 1)


@lru_cache(maxsize=4096)
def seat(rank: int, size: int, root: int = 0) -> Seat:
    """Where ``rank`` sits in the bracketing of ``size`` ranks, with results wanted at ``root``."""
    levels = size.bit_length() - 1
    block = block_of(rank, size)
    members = _members(block, size)
    peers = tuple(_head(block ^ (1 << level), size, root) for level in range(levels))
    mate = sum(members) - rank if len(members) == 2 else None
    return Seat(block, block_of(root, size), _head(block, size, root), mate, peers)


@dataclass(frozen=True, slots=True)
class Ends:
    """One rank's place in the bracketing where the *last* rank of a block acts for it, as in prefixes.

    Attributes:
        block: Its block.
        last: The rank that acts for the block: maybe this one.
        mate: The other rank of the block, if there is one.
        peers: The last ranks of the blocks this block meets, level by level.
    """

    block: int
    last: int
    mate: int | None
    peers: tuple[int, ...]


@lru_cache(maxsize=4096)
def ends(rank: int, size: int) -> Ends:
    """Where ``rank`` sits in the bracketing of ``size`` ranks, if the last ranks of blocks act for them."""
    block = block_of(rank, size)
    members = _members(block, size)
    mate = sum(members) - rank if len(members) == 2 else None
    peers = tuple(last_of(block ^ (1 << level), size) for level in range(size.bit_length() - 1))
    return Ends(block, members[-1], mate, peers)


def last_of(block: int, size: int) -> int:
    """The last rank of the block."""
    return _members(block, size)[-1]


def bracketed(values: Sequence[Any], combine: Callable[[Any, Any], Any]) -> Any:
    """``values``, one per rank and in rank order, combined in the one bracketing."""
    pairs = 2 * _folded(len(values))
    blocks = [*_in_pairs(values[:pairs], combine), *values[pairs:]]
    while len(blocks) > 1:
        blocks = _in_pairs(blocks, combine)
    return blocks[0]


@lru_cache(maxsize=4096)
def row(count: int, size: int) -> tuple[tuple[int, int], ...]:
    """The ranks ``0 … count-1`` as the largest subtrees that fit: ``(start, stop)`` of each, from left to right."""
    subtrees = []
    block = 0
    for level in reversed(range(size.bit_length())):
        beyond = block + (1 << level)
        if _start(beyond, size) <= count:
            subtrees.append((_start(block, size), _start(beyond, size)))
            block = beyond
    if _start(block, size) < count:  # the lower half of a block
        subtrees.append((count - 1, count))
    return tuple(subtrees)


def prefixed(values: Sequence[Any], size: int, combine: Callable[[Any, Any], Any]) -> Any:
    """``values`` of the ranks ``0 … r`` out of ``size``, combined as the prefix of rank r."""
    subtrees = (_subtree(values, start, stop, size, combine) for start, stop in row(len(values), size))
    return reduce(combine, subtrees)


def _subtree(values: Sequence[Any], start: int, stop: int, size: int, combine: Callable[[Any, Any], Any]) -> Any:
    """The values of a subtree combined: those of its folded blocks in pairs first, then by halves."""
    pairs = max(start, min(stop, 2 * _folded(size)))
    pairs -= (pairs - start) % 2
    blocks = [*_in_pairs(values[start:pairs], combine), *values[pairs:stop]]
    while len(blocks) > 1:
        blocks = _in_pairs(blocks, combine)
    return blocks[0]


def height(ranks: Sequence[int], size: int) -> int | None:
    """If ``ranks``, in order, are a whole subtree of 2^h blocks: h; if half of a block: -1. Else None."""
    if len(ranks) == 1:
        return 1 - len(_members(block_of(ranks[0], size), size))
    block, beyond = block_of(ranks[0], size), block_of(ranks[-1], size) + 1
    count = beyond - block
    aligned = count & (count - 1) == 0 and block % count == 0
    whole = (ranks[0], ranks[-1]) == (_start(block, size), _start(beyond, size) - 1)
    return count.bit_length() - 1 if aligned and whole and len(ranks) == ranks[-1] - ranks[0] + 1 else None


def _in_pairs(values: Sequence[Any], combine: Callable[[Any, Any], Any]) -> list[Any]:
    return [combine(values[i], values[i + 1]) for i in range(0, len(values), 2)]


def _folded(size: int) -> int:
    return size - (1 << (size.bit_length() - 1))


def block_of(rank: int, size: int) -> int:
    """The number of the block that ``rank`` is in."""
    folded = _folded(size)
    return rank // 2 if rank < 2 * folded else rank - folded


def _start(block: int, size: int) -> int:
    """The first rank of the block; for the one after the last, ``size``."""
    folded = _folded(size)
    return 2 * block if block < folded else block + folded


def _members(block: int, size: int) -> tuple[int, ...]:
    folded = _folded(size)
    return (2 * block, 2 * block + 1) if block < folded else (block + folded,)


def _head(block: int, size: int, root: int) -> int:
    members = _members(block, size)
    return root if root in members else members[0]
