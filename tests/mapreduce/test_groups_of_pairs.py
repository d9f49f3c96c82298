"""Pairs in memory: nothing is lost on the way to the brim."""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np
import pytest
from functions import add_up
from hypothesis import given
from hypothesis import strategies as st

from rmpi.errors import UsageError
from rmpi.mapreduce.chunks import Chunk
from rmpi.mapreduce.groups import Groups, keys_per_chunk, size_of

PLENTY = 1 << 30


def grouped(pairs):
    table = defaultdict(list)
    for key, value in pairs:
        table[key].append(value)
    return table


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 999, 1000, 1001, 5000])
def test_pairs_are_grouped_in_order(count):
    pairs = [(number % 7, number) for number in range(count)]
    groups = Groups(None, PLENTY)
    assert groups.fill(iter(pairs), "the mapper") is False
    assert groups.table == grouped(pairs)
    assert groups.values == count


@given(st.lists(st.tuples(st.integers(0, 9), st.text(max_size=200)), max_size=300), st.integers(1, 20_000))
def test_what_does_not_fit_stays_where_it_is(pairs, budget):
    source = iter(pairs)
    chunks = []
    more = True
    while more:
        groups = Groups(None, budget)
        more = groups.fill(source, "the mapper")
        assert groups.full or not more
        assert groups.values == sum(map(len, groups.table.values()))
        chunks.append(groups)
    assert [pair for each in chunks for pair in _flat(each)] == [
        pair for each in _cut_like(chunks, pairs) for pair in _flat_table(grouped(each))
    ]


def _flat(groups):
    return _flat_table(groups.table)


def _flat_table(table):
    return [(key, value) for key, values in table.items() for value in values]


def _cut_like(chunks, pairs):
    start = 0
    for each in chunks:
        yield pairs[start : start + each.values]
        start += each.values
    assert start == len(pairs)


@pytest.mark.parametrize("value", [7, "x" * 1000, list(range(50)), np.zeros(500), {"a": ["b"] * 10}], ids=type)
def test_groups_are_full_when_about_so_much_memory_is_used(value):
    def pairs():
        number = 0
        while True:
            yield f"key {number}", value.copy() if hasattr(value, "copy") else value
            number += 1

    groups = Groups(None, 2 << 20)
    assert groups.fill(pairs(), "the mapper")
    held = sys.getsizeof(groups.table) + sum(
        size_of(key) + sys.getsizeof(values) + sum(map(size_of, values)) for key, values in groups.table.items()
    )
    assert 1 << 20 < held < 4 << 20


def test_chunks_are_added_with_single_values_and_with_lists():
    groups = Groups(None, PLENTY)
    groups.add(Chunk(["a", "b"], [1, 2], False))
    groups.add(Chunk(["b", "c"], [[3, 4], [5]], True))
    assert groups.table == {"a": [1], "b": [2, 3, 4], "c": [5]}
    assert groups.values == 5
    assert groups.chunk() == (["a", "b", "c"], [[1], [2, 3, 4], [5]], True)
    groups.clear()
    groups.add(Chunk(["a"], [1], False))
    assert groups.chunk() == (["a"], [1], False)


def test_a_combiner_gets_the_values_of_keys_that_have_several():
    calls = []

    def combiner(key, values):
        calls.append((key, [*values]))
        return [(key, sum(values))]

    groups = Groups(combiner, PLENTY)
    groups.add(Chunk(["a", "b"], [[1, 2, 3], [4]], True))
    groups.combine()
    assert calls == [("a", [1, 2, 3])]
    assert groups.table == {"a": [6], "b": [4]}
    assert groups.values == 2


def test_a_combiner_may_give_other_keys_several_pairs_or_none():
    def combiner(key, values):
        if key == "many":
            yield from ((key, value) for value in values[:2])
        if key == "moves":
            yield "there", 7

    groups = Groups(combiner, PLENTY)
    groups.add(Chunk(["many", "moves", "vanishes", "there"], [[1, 2, 3], [1, 1], [1, 1], [6]], True))
    groups.combine()
    assert groups.table == {"many": [1, 2], "there": [6, 7]}
    assert groups.values == 4


def test_combining_makes_room_or_does_not():
    for combiner, room in (
        (add_up, True),
        (None, False),
        (lambda key, values: [(key, each) for each in values], False),
    ):
        groups = Groups(combiner, 10_000)
        groups.add(Chunk(["a"], [[*range(2000)]], True))
        assert groups.full
        assert groups.shrink() is room


@pytest.mark.parametrize("wrong", [1, "a", (1, 2, 3), ([], 1)], ids=repr)
def test_what_is_no_pair_is_the_fault_of_who_gave_it(wrong):
    with pytest.raises(UsageError, match="the mapper must give pairs"):
        Groups(None, PLENTY).fill(iter([("a", 1), wrong]), "the mapper")


def test_errors_of_the_function_itself_are_its_own():
    def pairs():
        yield "a", 1
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        Groups(None, PLENTY).fill(pairs(), "the mapper")


def test_how_many_keys_make_a_chunk():
    small = Chunk([*range(10_000)], [1] * 10_000, False)
    assert 1000 < keys_per_chunk(small, 100_000) < 2000
    assert keys_per_chunk(Chunk(["a", "b"], [["x" * 10_000], ["y" * 10_000]], True), 1000) == 1
