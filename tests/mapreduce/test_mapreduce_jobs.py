"""Jobs from the outside: the same results in this process and with workers, and what is said when there are none."""

from __future__ import annotations

import datetime
import enum
import os
import random
import socket
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import functions
import numpy as np
import pytest
from functions import add_up, counted, itself, keep, nothing, numbered, words

import rmpi
from rmpi.errors import UsageError
from rmpi.mapreduce import MapReduce, MapReduceError, make_workers, map_reduce, text_splits
from rmpi.mapreduce.jobs import batched

pytestmark = pytest.mark.usefixtures("nothing_is_left")

TEXTS = ["the cat and the dog", "", "a dog and a cat and a bird", "the end"]
COUNTS = sorted(Counter(" ".join(TEXTS).split()).items())

NUMBERED = defaultdict(int)
for number in range(20):
    for key, value in numbered(number):
        NUMBERED[key] += value


@pytest.mark.parametrize("mapper", [words, counted, "functions:words"], ids=["generator", "Counter", "name"])
@pytest.mark.parametrize("combiner", [None, add_up, "functions:add_up"], ids=["", "combined", "combined by name"])
def test_words_are_counted(mr, mapper, combiner):
    assert mr.map_reduce(TEXTS, mapper, add_up, combiner=combiner) == COUNTS


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("partitions", [None, 1, 5])
def test_any_number_of_inputs_and_partitions(mr, count, partitions):
    assert mr.map_reduce(range(count), itself, keep, partitions=partitions) == [(each, [each]) for each in range(count)]


def test_one_input_is_reduced_too(mr):
    """The ancestor gave back what the mapper had given."""
    assert mr.map_reduce(["aa aa"], words, add_up) == [("aa", 2)]


def test_one_worker_does_many_inputs():
    """The ancestor waited for a second one for ever."""
    with MapReduce(1) as mr:
        assert mr.map_reduce(TEXTS, words, add_up) == COUNTS


def test_mappers_that_give_nothing(mr):
    assert mr.map_reduce([1, 2, 3], nothing, add_up) == []


def test_reducers_that_give_nothing_or_several_pairs_of_other_keys(mr):
    def reducer(key, values):
        for value in values:
            yield -key, value
            yield key, value
        if key == 1:
            return

    assert mr.map_reduce([1, 2], itself, reducer) == [(-2, 2), (-1, 1), (1, 1), (2, 2)]
    assert mr.map_reduce([1, 2], itself, lambda _key, _values: []) == []


def test_values_come_in_the_order_of_inputs(mr):
    pairs = mr.map_reduce(range(300), lambda item: [(item % 3, (item, 0)), (item % 3, (item, 1))], keep)
    assert pairs == [(rest, [(item, part) for item in range(rest, 300, 3) for part in (0, 1)]) for rest in range(3)]


def test_keys_of_all_types_in_one_order(mr):
    keys = ["b", 2, None, (1, "a"), b"x", 1.5, Fraction(1, 3), "a", datetime.date(2026, 1, 1), frozenset([1]), True]
    ordered = [None, Fraction(1, 3), True, 1.5, 2, "a", "b", b"x", (1, "a"), datetime.date(2026, 1, 1), frozenset([1])]
    assert mr.map_reduce(keys, lambda key: [(key, 1)], add_up, partitions=3) == [(key, 1) for key in ordered]


def test_equal_keys_of_different_types_are_one(mr):
    ones = [1, 1.0, True, np.int64(1), Fraction(1)]
    assert mr.map_reduce(ones, lambda key: [(key, 1)], add_up, partitions=4) == [(1, 5)]


def test_keys_in_another_order(mr):
    assert mr.map_reduce([1, 2, 3], itself, keep, sort_key=lambda key: -key) == [(3, [3]), (2, [2]), (1, [1])]


class Colour(enum.Enum):
    RED = 1


class Odd:
    """A key of which nothing is known."""

    def __init__(self, number):
        self.number = number

    def __eq__(self, other):
        return isinstance(other, Odd) and self.number == other.number

    def __hash__(self):
        return self.number


def test_keys_of_other_types_need_a_partition_and_an_order(mr):
    pairs = mr.map_reduce(
        [Odd(1), Odd(3), Odd(1)],
        lambda key: [(key, 1)],
        lambda key, values: [(key.number, sum(values))],
        partition=lambda key, count: key.number % count,
        sort_key=lambda key: key if isinstance(key, int) else key.number,
    )
    assert pairs == [(1, 2), (3, 1)]


def test_the_outputer_gets_the_list_here_and_may_answer_in_its_place(mr):
    seen = []
    assert mr.map_reduce(TEXTS, words, add_up, outputer=seen.append) == COUNTS
    assert seen == [COUNTS]
    assert mr.map_reduce(TEXTS, words, add_up, outputer=lambda pairs: sum(n for _, n in pairs)) == 15
    assert mr.map_reduce([], words, add_up, outputer=len) == 0


def test_a_large_file_is_work_for_many(mr, tmp_path):
    path = tmp_path / "text"
    dice = random.Random(1)
    lines = [" ".join(dice.choices("abcdefgh", k=9)) for _ in range(2000)]
    path.write_text("\n".join(lines))
    splits = text_splits(path, 1000)
    assert len(splits) == 36
    pairs = mr.map_reduce(splits, lambda split: (pair for line in split for pair in words(line)), add_up)
    assert pairs == sorted(Counter(" ".join(lines).split()).items())


@pytest.mark.parametrize("combiner", [None, add_up], ids=["", "combined"])
def test_what_does_not_fit_into_memory_gives_the_same(mr, combiner):
    assert mr.map_reduce(range(20), numbered, add_up, memory=1 << 16, combiner=combiner) == sorted(NUMBERED.items())


def test_many_jobs_with_the_same_workers(two_workers):
    for count in range(20):
        assert len(two_workers.map_reduce(range(count), itself, keep)) == count


def test_the_ancestors_words_are_there():
    workers = make_workers(2)
    with workers:
        assert map_reduce(workers, [(0, "aa"), (1, "bb")], lambda item: words(item[1]), add_up) == [
            ("aa", 1),
            ("bb", 1),
        ]
        assert repr(workers).startswith("<MapReduce on ")
    assert map_reduce(0, TEXTS, words, add_up) == COUNTS
    assert repr(make_workers(0)) == "<MapReduce in this process>"


def test_a_farm_that_is_there_may_be_used(threads):
    with MapReduce(threads) as mr:
        assert mr.map_reduce(TEXTS, words, add_up) == COUNTS
    assert threads.submit(len, "abc").result() == 3
    assert map_reduce(threads, TEXTS, words, add_up) == COUNTS


def test_inputs_are_given_in_batches_if_they_are_many():
    assert batched("abcdefg", 3) == ["ab", "cd", "efg"]
    assert batched("ab", 3) == ["a", "b"]


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"mapper": 7}, "the mapper must be a function, or the name of one as 'module:function', not 7"),
        ({"mapper": "functions"}, "must be named as 'module:function'"),
        ({"reducer": "functions:add_down"}, "the reducer 'functions:add_down' does not exist: functions has no"),
        ({"combiner": "no_such_module:f"}, "the combiner 'no_such_module:f' cannot be imported: No module named"),
        ({"outputer": "functions:__name__"}, "the outputer must be a function"),
        ({"partitions": -1}, "partitions must be a number from 1 on, not -1"),
        ({"partitions": 1.5}, "partitions must be a number"),
        ({"memory": 100}, "memory must be a number from 65536 on"),
        ({"retries": 0}, "retries must be a number from 1 on"),
    ],
    ids=str,
)
def test_arguments_are_looked_at_before_anything_starts(mr, changed, why):
    def inputs():
        raise AssertionError("nobody shall look")
        yield

    with pytest.raises(UsageError, match=why):
        mr.map_reduce(**{"inputs": inputs(), "mapper": words, "reducer": add_up, **changed})


def test_a_master_and_hosts_are_too_many(threads):
    with pytest.raises(UsageError, match="not both"):
        MapReduce(threads, hosts=["n1"])


def test_workers_from_elsewhere_cannot_take_part(threads):
    threads.workers = [SimpleNamespace(host="n7"), SimpleNamespace(host=socket.gethostname())]
    with MapReduce(threads) as mr, pytest.raises(UsageError, match="workers on n7 that the master has not started"):
        mr.map_reduce([1], itself, keep)


def test_there_are_as_many_reduce_tasks_as_workers_though_some_have_not_answered_yet(threads):
    threads.workers, threads.greeted = range(1), 5
    with MapReduce(threads) as mr:
        mr.map_reduce(range(3), itself, keep)
    assert threads.submitted == 3 + 5


WRONG = {
    "mapper gives no pairs": ({"mapper": lambda item: [item]}, "the mapper must give pairs"),
    "mapper gives nothing": ({"mapper": lambda _: None}, "the mapper must yield pairs .* not None"),
    "unhashable key": ({"mapper": lambda item: [([item], 1)]}, "unhashable type"),
    "unknown key": ({"mapper": lambda item: [(object(), item)]}, r"map_reduce\(partition=\)"),
    "reducer gives one pair": (
        {"reducer": lambda key, _: (key, 1)},
        r"the reducer must give pairs.*one pair is \[pair\]",
    ),
    "reducer gives nothing": ({"reducer": lambda _key, _values: None}, "the reducer must yield pairs"),
    "combiner gives no pairs": ({"combiner": lambda _key, _values: [7]}, "the combiner must give pairs"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_functions_that_give_what_cannot_be_used_fail_the_job_at_once(threads, kind):
    changed, why = WRONG[kind]
    functions_of_job = {"mapper": lambda item: [("a", item), ("a", item)], "reducer": add_up, **changed}
    with MapReduce(threads) as mr, pytest.raises(MapReduceError, match=why) as caught:
        mr.map_reduce([1], **functions_of_job)
    assert caught.value.failures == 1
    assert caught.value.type_name == "rmpi.errors.UsageError"


# ---- what fails ----


def test_a_mapper_that_raises_fails_the_job_with_its_input_and_traceback(two_workers):
    with pytest.raises(MapReduceError) as caught:
        two_workers.map_reduce([f"good {n}" for n in range(99)] + ["bad", "good"], functions.upset, add_up, retries=2)
    error = caught.value
    assert (error.stage, error.where, error.failures) == ("map", "input 'bad'", 2)
    assert (error.type_name, error.message) == ("LookupError", "no luck with bad")
    assert error.traceback.startswith("Traceback (most recent call last):\n")
    assert "mapreduce/functions.py" in error.traceback.splitlines()[-3]
    assert str(Path(rmpi.__file__).parent) not in error.traceback
    assert str(error) == f"map of input 'bad' failed 2 times, the last time:\n{error.traceback.rstrip()}"
    assert two_workers.map_reduce(TEXTS, words, add_up) == COUNTS


def test_a_reducer_that_raises_fails_the_job_with_its_key(two_workers):
    with pytest.raises(MapReduceError, match="no luck with bad") as caught:
        two_workers.map_reduce(["good", "bad"], functions.words, functions.upset_by_key, partitions=1, retries=1)
    assert (caught.value.stage, caught.value.where, caught.value.failures) == ("reduce", "partition 0, key 'bad'", 1)


def test_exceptions_that_cannot_travel_are_told_as_text(two_workers):
    with pytest.raises(MapReduceError, match="text") as caught:
        two_workers.map_reduce([1], functions.raises_what_cannot_travel, add_up)
    assert caught.value.type_name == "functions.Unpicklable"


def test_a_mapper_that_wants_to_exit_has_failed(two_workers):
    with pytest.raises(MapReduceError, match="SystemExit: enough"):
        two_workers.map_reduce([1], functions.exits, add_up)


def test_inputs_that_workers_cannot_open_fail_the_job(two_workers):
    with pytest.raises(MapReduceError, match="no way to make it again") as caught:
        two_workers.map_reduce([functions.Sealed()], itself, add_up)
    assert caught.value.where.startswith("input <functions.Sealed object")


def test_inputs_that_cannot_travel_say_so(two_workers):
    with pytest.raises(UsageError, match="cannot be pickled"):
        two_workers.map_reduce([iter("a"), (each for each in "a")], itself, add_up)


def test_long_inputs_are_shortened(two_workers):
    with pytest.raises(MapReduceError) as caught:
        two_workers.map_reduce(["bad" * 10_000], lambda item: [(item, item[10**9])], add_up)
    assert len(caught.value.where) < 150


def test_a_worker_that_ends_itself_fails_the_job_and_is_replaced(two_workers):
    with pytest.raises(MapReduceError) as caught:
        two_workers.map_reduce(["end"], functions.own_end, add_up, retries=2)
    assert (caught.value.where, caught.value.failures, caught.value.type_name) == ("input 'end'", 2, "WorkerLost")
    assert two_workers.map_reduce(TEXTS, words, add_up) == COUNTS


def test_here_errors_are_what_was_raised():
    with pytest.raises(LookupError, match="no luck with bad"):
        MapReduce(0).map_reduce(["bad"], functions.upset, add_up)


def test_without_memory_for_them_functions_are_missed(two_workers, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cloudpickle", None)
    with pytest.raises(UsageError, match="rmpi\\[notebook\\]"):
        two_workers.map_reduce([1], lambda item: [(item, 1)], add_up)


def test_progress_is_shown_if_wanted(two_workers, capsys):
    two_workers.map_reduce(TEXTS, words, add_up)
    assert capsys.readouterr().err == ""
    two_workers.map_reduce(TEXTS, words, add_up, progress=True)
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown == "maps 4/4, shuffle 0 KB, reduces 2/2"


def test_files_are_where_they_shall_be(threads, tmp_path):
    where = tmp_path / "there"
    where.mkdir()
    with MapReduce(threads, directory=where) as mr:
        found = mr.map_reduce(["a"], words, lambda _key, _values: [(path.name, 1) for path in where.rglob("map-*")])
        assert len(found) == 1
        assert [*where.rglob("map-*")] == []
        assert [path.name for path in where.iterdir()] == [f"rmpi-mapreduce-{os.getuid()}"]
    assert [*where.iterdir()] == []
