"""A key's hash is the same in every process, and for all keys that are equal; and hashes spread."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keys import EQUAL, OF_ALL_KINDS

from rmpi.errors import UsageError
from rmpi.mapreduce import stable_hash
from rmpi.mapreduce.hashing import chosen_partitions, partitions_of


@pytest.mark.parametrize("keys", EQUAL, ids=repr)
def test_equal_keys_have_equal_hashes(keys):
    assert all(key == keys[0] for key in keys)
    assert len({stable_hash(key) for key in keys}) == 1


def test_hashes_are_the_same_in_every_process():
    program = "import keys; from rmpi.mapreduce import stable_hash; print([*map(stable_hash, keys.OF_ALL_KINDS)])"
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=os.path.dirname(__file__),  # noqa: PTH120
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {f"{[stable_hash(key) for key in OF_ALL_KINDS]}\n"}


def test_a_hash_is_what_it_always_was():
    """Golden: another hash would send keys elsewhere if machines had different versions."""
    assert [stable_hash(key) for key in ("word", b"word", 7, (7, "word"))] == [
        1055783361,
        1055783361,
        1401181202,
        3049443987,
    ]


ATOMS = st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.none(), st.booleans())


@given(st.lists(st.one_of(ATOMS, st.tuples(ATOMS, ATOMS)), max_size=20), st.integers(1, 9))
def test_many_keys_at_once_go_where_each_goes_alone(keys, count):
    assert partitions_of(keys, count) == [stable_hash(key) * count >> 32 for key in keys]
    assert all(0 <= number < count for number in partitions_of(keys, count))


def test_text_with_lone_surrogates_goes_where_it_goes_alone():
    assert partitions_of(["a", "\udcff"], 1000) == [stable_hash(key) * 1000 >> 32 for key in ("a", "\udcff")]


SPREAD = {
    "numbers": range(8000),
    "even numbers": range(0, 16000, 2),
    "powers of two apart": range(0, 8000 << 20, 1 << 20),
    "negative numbers": range(-8000, 0),
    "fractions": [number / 8 for number in range(8000)],
    "numbered words": [f"key{number}" for number in range(8000)],
    "padded": [f"{number:08}" for number in range(8000)],
    "binary": [f"{number:b}" for number in range(8000)],
    "bytes": [bytes([number >> 8, number & 255]) for number in range(8000)],
    "pairs": [(number // 90, number % 90) for number in range(8000)],
}


@pytest.mark.parametrize("count", [2, 3, 4, 8, 13, 64])
@pytest.mark.parametrize("kind", SPREAD)
def test_keys_spread_evenly(kind, count):
    """No partition has a quarter more, or 4 σ more, than its share."""
    sizes = Counter(partitions_of([*SPREAD[kind]], count))
    share = 8000 / count
    assert max(sizes.values()) < share + max(share / 4, 4 * share**0.5)
    assert len(sizes) == count


@pytest.mark.parametrize("key", [float("nan"), Decimal("nan"), (1, float("nan")), np.float32("nan")], ids=repr)
def test_nan_is_no_key(key):
    with pytest.raises(UsageError, match="NaN cannot be a key"):
        stable_hash(key)


@dataclass
class Changing:
    x: int


@pytest.mark.parametrize("key", [object(), Changing(1), [1], (1, object())], ids=["object", "dataclass", "list", "in"])
def test_what_is_not_known_says_what_to_do(key):
    with pytest.raises(UsageError, match=r"cannot be a key: .*frozen dataclass, or give map_reduce\(partition=\)"):
        stable_hash(key)


def test_a_function_may_choose_partitions():
    assert chosen_partitions(lambda key, count: len(key) % count, ["a", "bb", "ccc"], 2) == [1, 0, 1]
    for wrong in (2, -1, "1", None):
        with pytest.raises(UsageError, match=r"partition\('a', 2\) must be a number from 0 to 1"):
            chosen_partitions(lambda _key, _count, wrong=wrong: wrong, ["a"], 2)
