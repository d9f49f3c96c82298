"""Shares: which part of ``n`` things belongs to which rank.

The parts are contiguous, in rank order, cover everything once and differ by at most one; the first ranks have
the larger ones. Only arithmetic: every rank can compute every other rank's share without asking.
"""

from __future__ import annotations

import operator

from rmpi.errors import UsageError


def partition(n: int, size: int, rank: int) -> tuple[int, int]:
    """The share of ``rank``: ``(start, count)``, so that ``things[start:start + count]`` is it.

    10 things over 3 ranks are ``(0, 4)``, ``(4, 3)``, ``(7, 3)``; a share may be empty.

    Args:
        n: How many things there are: an integer (NumPy's too), 0 or more.
        size: The number of ranks, at least 1.
        rank: ``0 … size-1``.

    Raises:
        UsageError: ``n`` is negative or not an integer.
    """
    quotient, remainder = divmod(_count(n), size)
    return rank * quotient + min(rank, remainder), quotient + (rank < remainder)


def _count(n: object) -> int:
    try:
        count = operator.index(n)  # type: ignore[arg-type]  # the point is to find out
    except TypeError:
        raise UsageError(f"partition needs a whole number of things, not {n!r}; pass len(…)") from None
    if count < 0:
        raise UsageError(f"partition needs 0 or more things, not {count}")
    return count
