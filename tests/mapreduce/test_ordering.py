"""Keys of any types have one order, and where Python has one for them it is that."""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpi.errors import UsageError
from rmpi.mapreduce.ordering import native, place_of, sort_keys, sort_pairs, sorted_places


class Colour(Enum):
    RED = 2
    GREEN = 1


@dataclass(frozen=True)
class Point:
    x: int
    y: int


IN_ORDER = [
    None,
    float("-inf"),
    -1,
    np.float32(-0.5),
    False,
    Fraction(1, 3),
    Decimal("0.4"),
    1,
    np.int64(2),
    10**30,
    float("inf"),
    float("nan"),
    "",
    "Zebra",
    np.str_("a"),
    "b",
    b"a",
    (),
    (1,),
    (1, None),
    (1, "a"),
    ("a",),
    Colour.GREEN,
    Colour.RED,
    Point(1, 2),
    Point(2, 1),
    1j,
    datetime.date(2026, 1, 1),
    datetime.datetime(2026, 1, 1),
    datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    frozenset([1]),
    frozenset([1, "a"]),
    frozenset(["a"]),
]


def test_keys_of_all_types_have_one_order():
    keys = [*IN_ORDER]
    random.Random(1).shuffle(keys)
    sort_keys(keys, None)
    assert [*map(repr, keys)] == [*map(repr, IN_ORDER)]


@pytest.mark.parametrize("sort_key", [None, str], ids=repr)
def test_places_of_keys_in_order(sort_key):
    keys = [3, "a", None, 1.5, 20]
    ordered = [*keys]
    sort_keys(ordered, sort_key)
    assert [keys[place] for place in sorted_places(keys, sort_key)] == ordered
    with pytest.raises(UsageError, match="cannot be sorted by sort_key"):
        sorted_places(keys, lambda key: key)


def test_equal_keys_have_equal_places():
    for keys in ([1, 1.0, True, Fraction(1), Decimal(1), np.int8(1), 1 + 0j], [(1, "a"), (1.0, np.str_("a"))]):
        assert len({place_of(key) for key in keys}) == 1


KINDS = {
    "number": [3, 1.5, True],
    "str": ["b", "a"],
    "bytes": [b"b", b"a"],
    ("str", "number"): [("b", 1), ("a", 2.5)],
    (("str",), "number"): [(("b",), 1), (("a",), 2)],
}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_keys_of_one_kind_are_compared_as_they_are_and_in_the_same_order(kind):
    assert native(KINDS[kind]) == kind
    assert sorted(KINDS[kind]) == sorted(KINDS[kind], key=place_of)


@pytest.mark.parametrize(
    "keys",
    [[1, "a"], [1.0, float("nan")], [("a", 1), ("a",)], [("a", 1), (1, "a")], [np.int64(1)], [None], []],
    ids=str,
)
def test_others_are_not(keys):
    assert native(keys) is None


ATOMS = st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=3), st.binary(max_size=3), st.none())


@given(st.lists(st.one_of(ATOMS, st.tuples(ATOMS, ATOMS)), max_size=20))
def test_the_order_does_not_depend_on_what_else_is_there(keys):
    together = sorted(keys, key=place_of)
    sort_keys(keys, None)
    assert [*map(place_of, keys)] == [*map(place_of, together)]


def test_pairs_of_equal_keys_stay_in_order():
    pairs = [("b", 1), ("a", 1), ("b", 0), ("a", 0)]
    sort_pairs(pairs, None)
    assert pairs == [("a", 1), ("a", 0), ("b", 1), ("b", 0)]
    sort_pairs(pairs, lambda key: -ord(key))
    assert pairs == [("b", 1), ("b", 0), ("a", 1), ("a", 0)]


def test_what_has_no_order_says_what_to_do():
    with pytest.raises(UsageError, match=r"cannot be sorted: .*map_reduce\(sort_key=\)"):
        sort_pairs([(object(), 1), (object(), 2)], None)
    with pytest.raises(UsageError, match="cannot be sorted by sort_key"):
        sort_keys([1, "a"], lambda key: key)
