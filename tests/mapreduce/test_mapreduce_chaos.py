"""Jobs among dying workers, and with far more data than memory: results are exact, and nothing is left."""

from __future__ import annotations

import random
import signal
from collections import defaultdict

import psutil
import pytest
from functions import Ending, add_up, itself, keep, largest_of_none, many, memory_of_worker, numbered

from rmpi.mapreduce import MapReduce, MapReduceError

pytestmark = pytest.mark.usefixtures("nothing_is_left")

INPUTS = 60
EXPECTED = defaultdict(int)
for number in range(INPUTS):
    for key, value in numbered(number):
        EXPECTED[key] += value


@pytest.fixture
def marks(tmp_path):
    directory = tmp_path / "marks"
    directory.mkdir()
    return directory


@pytest.mark.slow
def test_workers_that_are_killed_or_stopped_at_random_change_nothing(marks):
    """One is stopped, and given up by the farm after five seconds of silence; that is how long this takes."""
    dice = random.Random(7)
    killed = {*dice.sample(range(INPUTS), 3), *dice.sample(sorted(EXPECTED), 2)}
    stopped = {17}
    ending = Ending(marks, {**dict.fromkeys(killed, signal.SIGKILL), **dict.fromkeys(stopped, signal.SIGSTOP)})
    with MapReduce(2) as mr:
        pids = {worker.pid for worker in mr._farm.workers}
        pairs = mr.map_reduce(range(INPUTS), ending.map, ending.reduce, combiner=add_up, retries=8)
    assert pairs == sorted(EXPECTED.items())
    assert len([*marks.iterdir()]) == len(killed | stopped)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_a_job_that_is_given_up_leaves_workers_and_files_in_order(two_workers):
    for _ in range(3):
        with pytest.raises(MapReduceError):
            two_workers.map_reduce(range(9), lambda item: [(item, 1 // (item - 4))], add_up, retries=1)
        assert two_workers.map_reduce([1, 2], itself, keep) == [(1, [1]), (2, [2])]


def test_twenty_times_the_memory_that_a_task_may_take():
    """Of 200,000 pairs, 66 MB as they are in memory, a task may have 3 MB; without bounds it takes them all."""
    budget = 3 << 20
    with MapReduce(1) as mr:
        ((_, (before,)),) = mr.map_reduce([0], memory_of_worker, keep)
        pairs = mr.map_reduce(range(4), many, largest_of_none, partitions=1, memory=budget)
    peaks = {key: value for key, value in pairs if not key.startswith("key")}
    assert {*peaks} == {"mapper", "reducer"}
    assert max(peaks.values()) - before < 5 * budget
    assert [pair for pair in pairs if pair[0] not in peaks] == sorted(
        (f"key {number} {index}", index) for number in range(4) for index in range(1000, 50_000, 1000)
    )
