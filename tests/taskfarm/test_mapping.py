"""Maps: results in order or as they come, errors, ends before the end."""

import concurrent.futures
import gc
import threading
import time

import chores
import numpy as np
import pytest
from looking import until

from rmpi.errors import DeadlineExceeded, UsageError
from rmpi.taskfarm import WorkerLost


def test_results_come_in_the_order_of_the_items(master):
    assert list(master.map(chores.square, range(5000))) == [number**2 for number in range(5000)]


def test_results_come_as_they_are_ready_if_that_is_wanted(master, gate):
    paths = [gate.path, *[None] * 20]
    results = master.map(_wait_or_not, paths, range(21), ordered=False, chunksize=1)
    assert sorted(next(results) for _ in range(20)) == list(range(1, 21))
    gate.open()
    assert list(results) == [0]


def _wait_or_not(path, value):
    if path is not None:
        chores.wait_for_file(path)
    return value


def test_several_iterables_end_with_the_shortest(master):
    assert list(master.map(chores.add, [1, 2, 3], iter([10, 20]))) == [11, 22]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_items(master, count):
    assert list(master.map(chores.square, range(count))) == [n * n for n in range(count)]


@pytest.mark.parametrize("chunksize", [1, 7, 1000])
def test_pieces_of_a_size(master, chunksize):
    runs = list(master.map(_piece_of, range(100), chunksize=chunksize))
    assert [n for n, _ in runs] == list(range(100))


def _piece_of(number):
    return number, time.perf_counter()


def test_a_map_begins_at_once(master, tmp_path):
    results = master.map(_touch, [tmp_path / name for name in "abc"])
    until(lambda: len(list(tmp_path.iterdir())) == 3)
    assert len(list(results)) == 3


def _touch(path):
    path.touch()
    return path


def test_a_map_whose_results_nobody_takes_is_done_all_the_same(master, tmp_path):
    master.map(_touch, [tmp_path / str(number) for number in range(50)])
    gc.collect()
    until(lambda: len(list(tmp_path.iterdir())) == 50)


def test_what_a_call_raises_comes_behind_the_results_before_it(master):
    results = master.map(chores.fail_at, range(1000), [100] * 1000)
    assert [next(results) for _ in range(100)] == list(range(100))
    with pytest.raises(ValueError, match="100 is too much"):
        next(results)
    assert list(results) == []


def test_after_an_error_nothing_more_is_begun(master, tmp_path):
    results = master.map(_touch_and_fail, [tmp_path / str(number) for number in range(500)], chunksize=1)
    with pytest.raises(ValueError, match=str(tmp_path)):
        list(results)
    until(lambda: master._farm._scheduler.waiting == 0)
    assert len(list(tmp_path.iterdir())) < 100


def _touch_and_fail(path):
    path.touch()
    time.sleep(0.005)
    raise ValueError(path)


def test_an_iterator_that_is_closed_or_dropped_ends_the_map(master, tmp_path):
    for end in (lambda results: results.close(), id):
        results = master.map(_touch_and_nap, [tmp_path / str(number) for number in range(2000)], chunksize=1)
        next(results)
        end(results)
        del results
        gc.collect()
        until(lambda: master._farm._scheduler.waiting == 0)
        assert len(list(tmp_path.iterdir())) < 500


def _touch_and_nap(path):
    path.touch()
    time.sleep(0.002)


def test_an_iterator_that_the_garbage_collector_finds_ends_the_map(master):
    """It may find it in a thread that holds the lock of the farm."""
    results = master.map(chores.nap, [0.01] * 5000, chunksize=1)
    next(results)
    with master._farm._lock:
        del results
        gc.collect()
    until(lambda: master._farm._scheduler.waiting == 0)


def test_results_that_do_not_come_in_time(master, gate):
    results = master.map(chores.wait_for_file, [gate.path], timeout=0.1)
    with pytest.raises(DeadlineExceeded, match=r"the results of map\(\) did not come in time") as caught:
        next(results)
    assert isinstance(caught.value, TimeoutError)
    gate.open()


def test_calls_that_take_too_long(master):
    quick = master.with_options(timeout=0.3)
    assert list(quick.map(chores.square, range(20))) == [n * n for n in range(20)]
    results = quick.map(chores.nap, [0.01, 60], [1, 2])
    assert next(results) == 1
    with pytest.raises(DeadlineExceeded, match=r"not done after 0\.3 s"):
        next(results)
    until(lambda: len(master.workers) == 2)


def test_a_worker_that_dies_is_an_error_where_its_piece_is(master):
    results = master.map(_die_at, range(10), chunksize=1)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(WorkerLost):
        list(results)
    until(lambda: len(master.workers) == 2)


def _die_at(number):
    time.sleep(0.03)
    return chores.die() if number == 5 else number


def test_pieces_are_done_again_when_their_worker_dies(master, tmp_path):
    again = master.with_options(retries=2)
    results = again.map(_die_once_at, [tmp_path / "died"] * 300, range(300))
    assert list(results) == list(range(300))
    until(lambda: len(master.workers) == 2)


def _die_once_at(path, number):
    if number == 150:
        chores.die_once(path)
    return number


def test_what_cannot_be_sent_is_raised_where_it_is(master):
    results = master.map(chores.identity, [1, 2, threading.Lock(), 4], chunksize=1)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(UsageError, match="the arguments of the mapped function cannot be pickled"):
        next(results)


def test_ten_thousand_things_that_cannot_be_sent(master):
    with pytest.raises(UsageError, match="cannot be pickled"):
        list(master.map(chores.identity, [threading.Lock() for _ in range(10_000)], chunksize=1))
    assert master._farm._scheduler.waiting == 0


def test_what_cannot_be_returned_or_unpickled(master):
    with pytest.raises(UsageError, match="the result of the task cannot be pickled"):
        list(master.map(lambda _: threading.Lock(), range(3)))
    for error in (LookupError, SystemExit):
        with pytest.raises(error, match="it was a trap"):
            list(master.map(chores.trap, [error] * 3))
    assert master.submit(pow, 2, 2).result(20) == 4


def test_arrays_and_handles_in_maps(master):
    table = master.scatter(np.arange(100_000))
    assert list(master.map(_look_up, [table] * 100, range(100))) == list(range(100))


def _look_up(table, number):
    assert not table.flags.writeable
    return int(table[number])


def test_maps_beside_each_other(master):
    maps = [master.map(chores.add, range(500), [number] * 500) for number in range(4)]
    singles = [master.submit(chores.square, number) for number in range(50)]
    for number, results in enumerate(maps):
        assert list(results) == list(range(number, number + 500))
    assert [task.result(20) for task in singles] == [n * n for n in range(50)]


def test_a_map_is_cancelled_with_what_waits(master, gate):
    held = [gate.holds(master), gate.holds(master)]
    results = master.map(chores.square, range(10))
    master.cancel_waiting()
    with pytest.raises(concurrent.futures.CancelledError):
        next(results)
    gate.open()
    concurrent.futures.wait(held)


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((abs, [1]), {"chunksize": 0}, "chunksize must be a number of calls from 1, not 0"),
        ((abs, [1]), {"chunksize": 1.5}, "chunksize must be"),
        ((abs,), {}, "needs something to map the function over"),
        ((5, [1]), {}, "a task is something that can be called, not 5"),
    ],
)
def test_arguments_out_of_range(master, arguments, options, text):
    with pytest.raises(UsageError, match=text):
        master.map(*arguments, **options)


def test_a_map_cannot_be_for_one_worker(master):
    with pytest.raises(UsageError, match="gives its calls to any worker"):
        master.with_options(worker=master.workers[0]).map(abs, [1])


def test_an_iterable_that_raises(master):
    with pytest.raises(ZeroDivisionError):
        master.map(abs, (1 / number for number in range(3)))
