"""partition: who has which part of n things."""

from __future__ import annotations

import numpy as np
import pytest

from rmpi.comm.partition import partition
from rmpi.errors import UsageError


@pytest.mark.parametrize(
    ("n", "shares"),
    [
        (10, [(0, 4), (4, 3), (7, 3)]),
        (2, [(0, 1), (1, 1), (2, 0), (2, 0)]),
        (0, [(0, 0), (0, 0)]),
        (7, [(0, 7)]),
    ],
)
def test_the_first_ranks_get_one_more(n, shares):
    assert [partition(n, len(shares), rank) for rank in range(len(shares))] == shares


@pytest.mark.parametrize("size", [1, 2, 3, 7, 33])
@pytest.mark.parametrize("n", [0, 1, 6, 100, 10**20 + 1])
def test_shares_cover_everything_once_and_differ_by_at_most_one(n, size):
    shares = [partition(n, size, rank) for rank in range(size)]
    ends = [start + count for start, count in shares]
    assert [start for start, _ in shares] == [0, *ends[:-1]]
    assert ends[-1] == n
    assert {count for _, count in shares} <= {n // size, n // size + 1}


def test_numpy_integers_count_too():
    assert partition(np.int32(10), 3, 1) == (4, 3)


@pytest.mark.parametrize("n", [-1, 2.0, "10", None, np.float64(3)])
def test_anything_but_a_count_is_refused(n):
    with pytest.raises(UsageError, match="partition needs"):
        partition(n, 2, 0)
