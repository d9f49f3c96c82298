"""Workers, files and patience get lost; results do not, and nothing counts twice."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path

import pytest
from functions import add_up, itself, keep, words

from rmpi.errors import PeerLost
from rmpi.mapreduce import MapReduce, MapReduceError
from rmpi.mapreduce import schedule as schedule_module
from rmpi.mapreduce.tasks import Failed, Written, run_map, run_reduce

pytestmark = pytest.mark.usefixtures("nothing_is_left")

TEXTS = [f"{number % 7} {number % 5} all" for number in range(40)]
COUNTS = sorted(Counter(" ".join(TEXTS).split()).items())


class Once:
    """Something that happens the first few times."""

    def __init__(self, times=1):
        self.left = times
        self._lock = threading.Lock()

    def __bool__(self):
        with self._lock:
            self.left -= 1
            return self.left >= 0


def first_path(written):
    return next(segment.path for segment in written.segments if segment.pieces)


@pytest.mark.parametrize("stage", [run_map, run_reduce], ids=["map", "reduce"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_tasks_of_lost_workers_are_done_again_and_count_once(threads, stage, moment):
    losses = Once(5)

    def lose(function, *rest):
        if function is stage and losses:
            raise PeerLost("worker 1 was killed")
        return rest[0]

    setattr(threads, moment, lose)
    with MapReduce(threads) as mr:
        assert mr.map_reduce(TEXTS, words, add_up, retries=6) == COUNTS
    assert losses.left < 0


def test_a_worker_that_is_lost_each_time_fails_the_job(threads):
    def lose(function, *_):
        if function is run_map:
            raise PeerLost("worker 1 was killed")

    threads.before = lose
    with MapReduce(threads) as mr, pytest.raises(MapReduceError) as caught:
        mr.map_reduce(TEXTS, words, add_up, retries=3)
    assert caught.value.type_name == "PeerLost"
    assert str(caught.value).endswith("failed 3 times, the last time: PeerLost: worker 1 was killed")


@pytest.mark.parametrize("stage", [run_map, run_reduce], ids=["map", "reduce"])
def test_files_that_vanish_are_written_again(threads, stage, nothing_is_left):
    vanishing = Once(2)

    def vanish(function, result):
        if function is stage and isinstance(result, Written) and vanishing:
            for path in nothing_is_left.rglob(first_path(result).rpartition("/")[2]):
                path.unlink()
        return result

    threads.after = vanish
    with MapReduce(threads) as mr:
        assert mr.map_reduce(TEXTS, words, add_up, retries=1) == COUNTS
    assert vanishing.left < 0


def test_files_that_are_cut_short_are_written_again(threads):
    shortening = Once()

    def shorten(function, result):
        if function is run_map and shortening:
            os.truncate(first_path(result), 3)
        return result

    threads.after = shorten
    with MapReduce(threads) as mr:
        assert mr.map_reduce(TEXTS, words, add_up, retries=1) == COUNTS


def test_attempts_that_failed_give_back_their_room(threads, nothing_is_left):
    """Each writes what does not fit into memory, and then fails; the last one sees no other's file."""
    seen = []

    def mapper(_item):
        yield from ((number, number) for number in range(3000))
        seen.append(len([*nothing_is_left.rglob("map-*")]))
        raise OSError("no room on the disk")

    with MapReduce(threads) as mr, pytest.raises(MapReduceError, match="no room on the disk"):
        mr.map_reduce([1], by_value(mapper), keep, memory=1 << 16)
    assert seen == [1, 1, 1]


def test_files_that_vanish_for_ever_are_the_end(threads):
    def vanish(function, result):
        if function is run_map:
            for segment in result.segments:
                Path(segment.path).unlink(missing_ok=True)
        return result

    threads.after = vanish
    with MapReduce(threads) as mr, pytest.raises(MapReduceError, match="was lost 10 times, at last /"):
        mr.map_reduce(["a"], words, add_up, partitions=1)


def test_of_two_attempts_at_a_slow_task_the_first_that_is_ready_counts(threads, monkeypatch):
    """The first attempt at one input waits until the second one has come, and both give their pairs."""
    monkeypatch.setattr(schedule_module, "LEAST_SECONDS", 0.0)
    second_came, calls = threading.Event(), []

    def mapper(item):
        if item == 7:
            calls.append(item)
            if len(calls) == 1:
                assert second_came.wait(30)
            second_came.set()
        return [(item % 3, item)]

    threads.after = lambda _function, result: result if not isinstance(result, Failed) else pytest.fail(str(result))
    with MapReduce(threads) as mr:
        pairs = mr.map_reduce(range(8), by_value(mapper), keep, speculative=True)
    assert pairs == [(0, [0, 3, 6]), (1, [1, 4, 7]), (2, [2, 5])]
    assert calls == [7, 7]


def by_value(function):
    """A function that threads get as it is, though it is pickled on the way."""
    kept[0] = function
    return call_kept


kept = [None]


def call_kept(item):
    return kept[0](item)


def test_without_speculation_a_slow_task_is_waited_for(threads, monkeypatch):
    monkeypatch.setattr(schedule_module, "LEAST_SECONDS", 0.0)
    with MapReduce(threads) as mr:
        assert mr.map_reduce(range(8), itself, keep) == [(item, [item]) for item in range(8)]
    assert threads.submitted == 10
