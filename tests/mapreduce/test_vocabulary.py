"""Keys as numbers: whoever reads them in whatever order gets the keys that were written."""

from __future__ import annotations

from pathlib import Path

import pytest
from functions import add_up, itself, keep
from hypothesis import given, settings
from hypothesis import strategies as st

from rmpi.mapreduce import MapReduce
from rmpi.mapreduce.chunks import read_pieces
from rmpi.mapreduce.hashing import partitions_of
from rmpi.mapreduce.tasks import Written, run_map
from rmpi.mapreduce.vocabulary import Glossary, Vocabularies, Vocabulary

PLENTY = 1 << 20


def vocabulary(path, partitions=1, budget=PLENTY):
    return Vocabulary(str(path), lambda keys: partitions_of(keys, partitions), partitions, budget)


def read(path, piece):
    (data,) = read_pieces(path, [piece])
    return data


def looked_up(glossary, head, codes):
    numbers = glossary.numbers(head, read)
    return [glossary.keys[number] for number in numbers[codes]]


KEYS = st.lists(st.one_of(st.integers(-9, 9), st.text(max_size=2), st.binary(max_size=1)), unique=True, max_size=20)


@settings(max_examples=40)
@given(chunks=st.lists(KEYS, max_size=6), partitions=st.integers(1, 3), order=st.randoms(use_true_random=False))
def test_codes_become_keys_again_in_whatever_order_segments_are_read(tmp_path_factory, chunks, partitions, order):
    words = vocabulary(tmp_path_factory.mktemp("words") / "keys", partitions)
    written = [[] for _ in range(partitions)]
    for keys in chunks:
        numbers, codes = words.encode(keys)
        assert numbers.tolist() == partitions_of(keys, partitions)
        for partition in range(partitions):
            here = numbers == partition
            some = [key for key, is_here in zip(keys, here, strict=True) if is_here]
            written[partition].append((words.head(partition), codes[here], some))
        if order.random() < 0.5:
            words.settle()
    for segments in written:
        glossary = Glossary(PLENTY)
        order.shuffle(segments)
        for head, codes, keys in segments:
            found = looked_up(glossary, head, codes)
            assert (found, [*map(type, found)]) == (keys, [*map(type, keys)])
        assert len(set(glossary.keys)) == len(glossary.keys)


def test_a_key_is_written_once(tmp_path):
    words = vocabulary(tmp_path / "keys")
    words.encode(["a", "b"])
    size = (tmp_path / "keys").stat().st_size
    words.encode(["b", "a"])
    assert (tmp_path / "keys").stat().st_size == size


def test_keys_of_several_vocabularies_have_one_number(tmp_path):
    glossary = Glossary(PLENTY)
    for name, keys in (("one", ["a", "b"]), ("other", ["c", "b", "a"])):
        words = vocabulary(tmp_path / name)
        _, codes = words.encode(keys)
        assert looked_up(glossary, words.head(0), codes) == keys
    assert glossary.keys == ["a", "b", "c"]


def test_a_glossary_that_forgets_reads_again(tmp_path):
    words = vocabulary(tmp_path / "keys")
    glossary = Glossary(1)
    for keys in (["a", "b"], ["c", "a"]):
        _, codes = words.encode(keys)
        assert looked_up(glossary, words.head(0), codes) == keys
        assert glossary.is_full
        glossary.clear()
        assert not glossary.is_full


@pytest.mark.parametrize("keys", [[1.5], [True], [("a", "b")], [None], ["x" * 500]], ids=repr)
def test_keys_that_have_no_code(tmp_path, keys):
    """`True` equals 1, and would be lost in it; the last one takes more memory than there is."""
    assert vocabulary(tmp_path / "keys", budget=400).encode(keys) is None
    assert not (tmp_path / "keys").exists()


def test_vocabularies_are_lent_to_one_task_at_a_time(tmp_path):
    made = iter(range(10))
    lent = Vocabularies()

    def borrowed(job="job"):
        return lent.borrow(job, lambda: vocabulary(tmp_path / str(next(made))))

    one, other = borrowed(), borrowed()
    assert one is not other
    lent.give_back("job", one)
    assert borrowed() is one
    assert borrowed() not in (one, other)  # neither was given back: their tasks failed, or still run
    lent.give_back("job", other)
    lent.forget("job")
    assert borrowed() is not other
    assert borrowed("another job") is not None
    lent.give_back("job", other)
    assert borrowed("another job") is not other


@pytest.mark.parametrize("uses", [1, 2])
def test_a_full_vocabulary_is_replaced_if_it_has_paid(tmp_path, uses):
    lent = Vocabularies()
    full = vocabulary(tmp_path / "keys", budget=700)
    for _ in range(uses):
        full.encode(["a", "b", "c"])
    full.encode([])
    assert not full.is_full
    for _ in range(uses):
        full.encode(["d"])
    assert full.is_full
    lent.borrow("job", lambda: full)
    lent.give_back("job", full)
    other = vocabulary(tmp_path / "other")
    assert lent.borrow("job", lambda: other) is (other if uses == 2 else None)


def test_a_vocabulary_whose_file_has_changed_is_not_used(tmp_path):
    lent = Vocabularies()
    words = lent.borrow("job", lambda: vocabulary(tmp_path / "keys"))
    words.encode(["a"])
    lent.give_back("job", words)
    (tmp_path / "keys").unlink()
    other = vocabulary(tmp_path / "other")
    assert lent.borrow("job", lambda: other) is other
    with pytest.raises(OSError, match="was changed by somebody else"):
        words.encode(["b"])


def test_the_file_of_a_failed_task_is_removed_unless_others_need_it(tmp_path):
    for is_needed in (False, True):
        words = vocabulary(tmp_path / f"keys-{is_needed}")
        words.encode(["a"])
        words.is_needed = is_needed
        words.discard()
        assert (tmp_path / f"keys-{is_needed}").exists() is is_needed


@pytest.mark.usefixtures("nothing_is_left")
def test_vocabularies_that_vanish_are_written_again(threads):
    """Each time the second map task is complete, the vocabularies of all are gone."""
    left = iter([True] * 3)

    def vanish(function, result):
        if function is run_map and isinstance(result, Written) and next(left, False):
            for segment in result.segments:
                assert segment.head is not None
                Path(segment.head.path).unlink(missing_ok=True)
        return result

    threads.after = vanish
    with MapReduce(threads) as mr:
        assert mr.map_reduce(range(8), itself, keep, retries=1) == [(number, [number]) for number in range(8)]
    assert next(left, None) is None


def of_many_types(number):
    """The same keys from each input; the values of some are arrays when they travel, of others they are not."""
    value = [number, number / 2, -(2**40), 2**70, str(number), None, [number]][number % 7]
    return dict.fromkeys(("a", "b", 3, b"c"), value) | ({1.5: number} if number % 5 == 0 else {})


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("memory", [1 << 16, 1 << 28])
@pytest.mark.parametrize("partitions", [1, 3])
def test_values_keep_their_types_and_their_order(threads, memory, partitions):
    inputs = range(60)
    with MapReduce(threads) as mr:
        pairs = mr.map_reduce(inputs, of_many_types, keep, partitions=partitions, memory=memory)
    assert pairs == MapReduce(0).map_reduce(inputs, of_many_types, keep)
    values = dict(pairs)["a"]
    assert [*map(type, values)] == [type(of_many_types(number)["a"]) for number in inputs]


def squares(number):
    return {f"key {key}": key * number for key in range(number % 4, 200, 3)}


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("sort_key", [None, "functions:backwards"])
@pytest.mark.parametrize("memory", [1 << 16, 1 << 20, 1 << 28])
def test_with_little_memory_the_result_is_the_same(threads, memory, sort_key):
    with MapReduce(threads) as mr:
        pairs = mr.map_reduce(range(30), squares, add_up, memory=memory, sort_key=sort_key)
    assert pairs == MapReduce(0).map_reduce(range(30), squares, add_up, sort_key=sort_key)
