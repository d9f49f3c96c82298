"""Groups that went to disk come back as if they had stayed."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmpi.mapreduce import runs as runs_module
from rmpi.mapreduce.chunks import Chunk
from rmpi.mapreduce.groups import Groups
from rmpi.mapreduce.ordering import place_of
from rmpi.mapreduce.runs import FAN_IN, Runs

PLENTY = 1 << 30


def merged(parts, budget=PLENTY, sort_key=None, rest=()):
    """Each part a run, and the rest in memory."""
    runs = Runs(None, sort_key, budget)
    try:
        for part in parts:
            runs.spill(collected(part))
        left = collected(rest)
        found = [(key, [*values]) for key, values in runs.merged(left)]
        assert not left.table
        return found
    finally:
        runs.close()


def collected(pairs):
    groups = Groups(None, PLENTY)
    groups.fill(iter(pairs), "the test")
    return groups


def expected(parts, sort_key=None, rest=()):
    table = defaultdict(list)
    for part in [*parts, rest]:
        for key, value in part:
            table[key].append(value)
    return sorted(table.items(), key=lambda item: (sort_key or place_of)(item[0]))


KEYS = st.one_of(st.integers(-3, 3), st.sampled_from(["a", "b", b"a", None, 1.5, (1, "a"), (1, 2), True]))
PAIRS = st.lists(st.tuples(KEYS, st.integers()), max_size=12)


@settings(max_examples=40)
@given(st.lists(PAIRS, max_size=7), PAIRS, st.integers(1, 4))
def test_runs_give_all_keys_in_order_and_all_values_in_theirs(parts, rest, fan_in):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs_module, "FAN_IN", max(2, fan_in))
        assert merged(parts, 100, rest=rest) == expected(parts, rest=rest)


def test_without_runs_nothing_is_written():
    assert merged([], rest=[("b", 1), ("a", 2), ("b", 3)]) == [("a", [2]), ("b", [1, 3])]


def test_more_runs_than_are_merged_at_once():
    dice = random.Random(1)
    parts = [[(f"{dice.randrange(500):03}", number) for _ in range(20)] for number in range(3 * FAN_IN + 1)]
    assert merged(parts, 1 << 16) == expected(parts)


def test_keys_that_sort_key_takes_for_the_same_stay_apart():
    parts = [[("a", 1), ("A", 2), ("b", 3)], [("A", 4), ("a", 5), ("B", 6)]] * 3
    assert sorted(merged(parts, 1, str.lower)) == sorted(expected(parts))
    assert [key.lower() for key, _ in merged(parts, 1, str.lower)] == ["a", "a", "b", "b"]


def test_a_run_of_numbers_and_one_of_words():
    assert merged([[(2, 1), (1, 2)], [("b", 3), (2.0, 4)], [("a", 5)]]) == [
        (1, [2]), (2, [1, 4]), ("a", [5]), ("b", [3]),
    ]  # fmt: skip


def test_files_have_no_name(nothing_is_left):
    runs = Runs(None, None, PLENTY)
    runs.spill(collected([("a", 1)]))
    assert [*nothing_is_left.iterdir()] == []
    assert len(runs) == 1
    runs.close()


def test_a_chunk_of_a_run_is_small():
    """A 64th of the budget, so that there is room for one of each run."""
    groups = Groups(None, PLENTY)
    groups.add(Chunk([*range(10_000)], [1] * 10_000, False))
    runs = Runs(None, None, 64 * 10_000)
    runs.spill(groups)
    (run,) = runs._runs
    assert 100 < len(run.pieces) < 200
    assert run.load < 100
    runs.close()
