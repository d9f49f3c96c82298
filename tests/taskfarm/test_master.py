"""What masters promise: tasks and what becomes of them, leases, values, and the end. With real workers."""

import asyncio
import concurrent.futures
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import chores
import numpy as np
import pytest
from looking import check_forgotten, is_alive, until

from rmpi import taskfarm
from rmpi.errors import DeadlineExceeded, LaunchError, PeerLost, RemoteError, UsageError
from rmpi.taskfarm import BrokenFarm, WorkerLost

# ---- tasks ----


def test_a_task_is_a_future_of_what_the_function_returns(master):
    task = master.submit(pow, 2, exp=10)
    assert isinstance(task, concurrent.futures.Future)
    assert task.result(20) == 1024
    assert (task.done(), task.running(), task.cancelled(), task.exception()) == (True, False, False, None)
    assert task.worker in master.workers


def test_the_first_example_of_the_ancestor(master):
    assert master.submit(lambda: 2 + 3).result(20) == 5


def test_workers_are_other_processes_that_live_on(master):
    pids = {master.submit(chores.pid).result(20) for _ in range(20)}
    assert pids <= {worker.pid for worker in master.workers}
    assert os.getpid() not in pids


def test_many_tasks_have_each_their_own_result(master):
    tasks = [master.submit(chores.add, number, 1) for number in range(2000)]
    assert [task.result(20) for task in tasks] == list(range(1, 2001))


def test_lambdas_nested_functions_and_what_they_refer_to_travel(master):
    factor = 3

    def scale(value):
        return factor * value

    class Pair:
        def __init__(self, one, two):
            self.both = one, two

    assert master.submit(scale, 5).result(20) == 15
    factor = 4
    assert master.submit(scale, 5).result(20) == 20, "as it is when it is submitted"
    assert master.submit(lambda pair: Pair(*reversed(pair.both)), Pair(1, 2)).result(20).both == (2, 1)


def test_tasks_begin_in_the_order_of_their_submission(master, tmp_path):
    with master.worker() as other:
        del other
        path = tmp_path / "order"
        tasks = [master.submit(_note, path, number) for number in range(200)]
        concurrent.futures.wait(tasks, 20)
    assert path.read_text().split() == [str(number) for number in range(200)]


def _note(path, number):
    with path.open("a") as file:
        file.write(f"{number}\n")


def test_arguments_are_copies_from_when_they_are_submitted(master, gate):
    first, second = gate.holds(master), gate.holds(master)
    values = [1, 2]
    task = master.submit(chores.identity, values)
    values.append(3)
    gate.open()
    assert task.result(20) == [1, 2]
    assert first.result(20) != second.result(20)


def test_arrays_go_and_come_whole_and_can_be_written(master):
    array = np.arange(200_000, dtype=np.float32).reshape(2, -1).T
    back = master.submit(chores.identity, {"a": array}).result(20)["a"]
    assert (back.dtype, back.shape, back.flags.f_contiguous) == (array.dtype, array.shape, True)
    assert (back == array).all()
    assert master.submit(chores.ones, 100_000).result(20)["ones"].sum() == 100_000
    assert list(master.map(np.sum, [np.ones(50_000)] * 3)) == [50_000] * 3


def test_large_arrays_are_sent_from_where_they_are(master, gate):
    first, second = gate.holds(master), gate.holds(master)
    array = np.ones(100_000)
    task = master.submit(np.sum, array)
    array[0] = 2  # which is what must not be done
    gate.open()
    assert task.result(20) == 100_001
    concurrent.futures.wait([first, second])


# ---- what tasks raise ----


def test_what_a_task_raises_is_raised_with_its_traceback(master):
    with pytest.raises(ValueError, match=r"^no$") as caught:
        master.submit(chores.fail, "no").result(20)
    assert isinstance(caught.value.__cause__, RemoteError)
    assert "in fail" in str(caught.value.__cause__)


@pytest.mark.parametrize("function", [chores.raise_closed, chores.raise_narrow, chores.raise_leaving])
def test_of_exceptions_that_cannot_travel_there_is_the_text(master, function):
    with pytest.raises(RemoteError, match=r"(Closed: secret|Narrow: 1 and 2|Leaving: bye)"):
        master.submit(function).result(20)


@pytest.mark.parametrize(
    ("function", "kind"), [(chores.raise_base, chores.Base), (chores.interrupt, KeyboardInterrupt)]
)
def test_exceptions_that_end_programs_end_no_worker_and_no_master(master, function, kind):
    workers = master.workers
    assert type(master.submit(function).exception(20)) is kind
    assert type(master.submit(chores.leave, 3).exception(20)) is SystemExit
    assert master.submit(pow, 2, 2).result(20) == 4
    assert master.workers == workers


def test_what_cannot_be_sent_is_refused_at_once(master):
    with pytest.raises(UsageError, match=r"the arguments of the task cannot be pickled: TypeError: cannot pickle"):
        master.submit(chores.identity, threading.Lock())
    with pytest.raises(UsageError, match="the function"):
        master.submit(threading.Lock().acquire)
    with pytest.raises(UsageError, match="a task is something that can be called, not 5"):
        master.submit(5)


def test_what_cannot_be_returned_is_the_task_s_error(master):
    with pytest.raises(UsageError, match="the result of the task cannot be pickled"):
        master.submit(chores.lock).result(20)


@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt])
def test_a_result_that_cannot_be_unpickled_is_the_task_s_error(master, error):
    with pytest.raises(error, match="it was a trap"):
        master.submit(chores.trap, error).result(20)
    assert master.submit(pow, 2, 2).result(20) == 4


def test_arguments_that_cannot_be_unpickled_are_the_task_s_error(master):
    with pytest.raises(LookupError, match="it was a trap"):
        master.submit(chores.identity, chores.Trap()).result(20)


# ---- futures ----


def test_a_task_that_waits_can_be_cancelled_and_one_that_runs_cannot(master, gate):
    running = [gate.holds(master), gate.holds(master)]
    waiting = [master.submit(chores.square, number) for number in range(10)]
    assert [task.cancel() for task in running] == [False, False]
    assert [task.cancel() for task in waiting[:9]] == [True] * 9
    gate.open()
    assert waiting[9].result(20) == 81
    with pytest.raises(concurrent.futures.CancelledError):
        waiting[0].result()


def test_behind_tasks_that_were_cancelled_others_are_not_forgotten(master, gate):
    """One worker is at what takes long; the other one's share of what waits is all cancelled."""
    master.submit(chores.square, 1).result(20)
    held = gate.holds(master)
    nap = master.submit(chores.nap, 0.1)
    tasks = [master.submit(chores.square, number) for number in range(20)]
    for task in tasks[:15]:
        task.cancel()
    assert [task.result(20) for task in tasks[15:]] == [number**2 for number in range(15, 20)]
    assert not held.done()
    nap.result(20)


def test_tasks_are_waited_for_as_futures_are(master):
    tasks = [master.submit(chores.square, number) for number in range(100)]
    assert {task.result() for task in concurrent.futures.as_completed(tasks, 20)} == {n * n for n in range(100)}
    done, rest = concurrent.futures.wait([master.submit(chores.nap, 0.01) for _ in range(3)], 20)
    assert (len(done), len(rest)) == (3, 0)
    with pytest.raises(TimeoutError):
        master.submit(chores.nap, 0.2).result(0.01)


def test_cancelled_tasks_are_waited_for_too(master, gate):
    held = [gate.holds(master), gate.holds(master)]
    tasks = [master.submit(chores.square, number) for number in range(5)]
    for task in tasks:
        task.cancel()
    gate.open()
    done, _ = concurrent.futures.wait([*held, *tasks], 20)
    assert len(done) == 7


def test_tasks_in_asyncio(master):
    async def program():
        tasks = [asyncio.wrap_future(master.submit(chores.square, number)) for number in range(10)]
        return await asyncio.gather(*tasks)

    assert asyncio.run(program()) == [number**2 for number in range(10)]


def test_callbacks_may_submit_and_raise(master):
    done = threading.Event()
    results = []

    def then(task):
        results.append(task.result())
        if len(results) < 5:
            master.submit(chores.add, task.result(), 1).add_done_callback(then)
        else:
            done.set()
        raise ValueError("a callback")

    master.submit(chores.add, 0, 1).add_done_callback(then)
    assert done.wait(20)
    assert results == [1, 2, 3, 4, 5]


def test_a_callback_that_wants_to_end_its_thread_is_told_of(master, caplog):
    task = master.submit(chores.nap, 0.05)
    task.add_done_callback(lambda _: sys.exit(3))
    task.result(20)
    assert master.submit(pow, 2, 2).result(20) == 4
    assert "a callback of a task called sys.exit()" in caplog.text


def test_callbacks_cannot_wait_for_the_farm(master):
    errors = []

    def close(_task):
        with pytest.raises(UsageError) as caught:
            master.close()
        errors.append(str(caught.value))

    task = master.submit(chores.nap, 0.05)
    task.add_done_callback(close)
    task.result(20)
    until(lambda: errors)
    assert "close(wait=False)" in errors[0]


def test_many_threads_submit(master):
    results = {}

    def submit(first):
        tasks = [master.submit(chores.square, number) for number in range(first, first + 100)]
        results[first] = [task.result(20) for task in tasks]

    threads = [threading.Thread(target=submit, args=(first,)) for first in range(0, 800, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {first: [n * n for n in range(first, first + 100)] for first in range(0, 800, 100)}


def test_tiny_tasks_do_not_wait_for_long_ones(master, gate):
    """Those given ahead to a worker that turns out to be at something long go to the other one."""
    list(master.map(_wait_if, [gate.path] * 100, [False] * 100))  # so they are taken for tiny
    tasks = [master.submit(_wait_if, gate.path, number == 3) for number in range(50)]
    done, _ = concurrent.futures.wait(tasks[:3] + tasks[4:], 20)
    assert len(done) == 49
    assert not tasks[3].done()


def _wait_if(path, wanted):
    return chores.wait_for_file(path) if wanted else 0


# ---- options ----


def test_a_task_that_takes_too_long_is_ended_and_others_are_not(master):
    quick = master.with_options(timeout=0.2)
    before = {worker.pid for worker in master.workers}
    with pytest.raises(DeadlineExceeded, match=r"the task was not done after 0\.2 s, in worker \d"):
        quick.submit(chores.nap, 60).result(20)
    tasks = [quick.submit(chores.nap, 0.02, number) for number in range(12)]  # longer than that together
    assert [task.result(20) for task in tasks] == list(range(12))
    until(lambda: len(master.workers) == 2)
    assert len(before & {worker.pid for worker in master.workers}) == 1


def test_a_task_for_one_worker_is_done_by_that_one(master):
    for worker in master.workers:
        strict = master.with_options(worker=worker)
        tasks = [strict.submit(chores.pid) for _ in range(20)]
        assert {task.result(20) for task in tasks} == {worker.pid}


def test_tasks_for_one_worker_are_not_given_to_others_when_it_is_stuck(master, gate):
    worker = master.workers[0]
    strict = master.with_options(worker=worker)
    for _ in range(50):
        strict.submit(_pid_after, gate.path, False).result(20)
    tasks = [strict.submit(_pid_after, gate.path, number == 0) for number in range(10)]
    until(lambda: len(worker.jobs) == 1)  # it has given back the others
    gate.open()
    assert {task.result(20) for task in tasks} == {worker.pid}


def _pid_after(path, wait):
    if wait:
        chores.wait_for_file(path)
    return os.getpid()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"retries": -1}, "retries must be a number from 0, not -1"),
        ({"retries": 1.5}, "retries must be"),
        ({"timeout": 0}, "timeout must be more than 0 seconds"),
        ({"worker": 3}, "worker must be one of the master's workers, not 3"),
    ],
)
def test_options_out_of_range(master, options, text):
    with pytest.raises(UsageError, match=text):
        master.with_options(**options)


# ---- leases ----


def test_a_leased_worker_gets_only_what_is_given_to_it(master):
    with master.get_worker() as worker:
        others = {master.submit(chores.pid).result(20) for _ in range(20)}
        assert worker.pid not in others
        assert master.with_options(worker=worker).submit(chores.pid).result(20) == worker.pid
        assert "leased" in repr(worker)
    worker.release()
    assert (
        len({task.worker for task in [master.submit(chores.nap, 0.05) for _ in range(2)] if not task.result(20)}) == 2
    )


def test_who_asks_for_a_worker_waits_until_there_is_one_that_has_nothing_to_do(master, gate):
    held = [gate.holds(master), gate.holds(master)]
    assert master.get_worker(wait=False) is None
    assert master.get_worker(timeout=0.05) is None
    threading.Timer(0.05, gate.open).start()
    with master.worker() as worker:
        assert worker in master.workers
    concurrent.futures.wait(held)


def test_the_generator_of_the_ancestor_counts_in_one_worker(master):
    with master.worker() as worker:
        counter = master.with_options(worker=worker)
        assert [counter.submit(chores.count_up).result(20) for _ in range(2)] == [1, 2]


def test_the_worker_of_a_lease_dies(master):
    with master.worker() as worker:
        strict = master.with_options(worker=worker, retries=5)
        dying, behind = strict.submit(chores.die), strict.submit(chores.pid)
        with pytest.raises(WorkerLost, match="while it had this task, which may have been executed"):
            dying.result(20)
        with pytest.raises(WorkerLost):
            behind.result(20)
        with pytest.raises(WorkerLost, match="is not there any more"):
            strict.submit(chores.pid)
        assert (worker.alive, worker in master.workers) == (False, False)


# ---- workers that are lost ----


def test_a_task_whose_worker_dies_says_so_and_the_worker_is_replaced(master):
    before = {worker.pid for worker in master.workers}
    with pytest.raises(WorkerLost, match=r"worker \d+ was lost while it had this task, .*SIGKILL") as caught:
        master.submit(chores.die).result(20)
    assert isinstance(caught.value, PeerLost)
    assert isinstance(caught.value, concurrent.futures.BrokenExecutor)
    until(lambda: len(master.workers) == 2)
    assert len(before & {worker.pid for worker in master.workers}) == 1


def test_a_task_is_tried_again_as_often_as_was_said(master, tmp_path):
    again = master.with_options(retries=1)
    assert again.submit(chores.die_once, tmp_path / "x").result(20) == "alive"
    assert list(again.map(chores.die_once, [tmp_path / "y", tmp_path / "y"])) == ["alive"] * 2
    with pytest.raises(WorkerLost):
        again.submit(chores.die).result(20)


# ---- values that are sent once ----


def test_a_scattered_value_is_sent_to_each_worker_once(master):
    handle = master.scatter({"table": np.ones(100_000)})
    sights = set(master.map(chores.identify, [handle] * 40))
    assert {pid for pid, _ in sights} <= {worker.pid for worker in master.workers}
    assert len(sights) == len({pid for pid, _ in sights}), "the same object each time"


@pytest.mark.parametrize("count", [10, 100_000])
def test_scattered_arrays_are_read_only(master, count):
    total, writeable, _ = master.submit(chores.describe, master.scatter(np.ones(count))).result(20)
    assert (total, writeable) == (count, False)


def test_handles_stand_anywhere_in_arguments(master):
    one, two = master.scatter([1, 2]), master.scatter("text")
    assert master.submit(chores.identity, {"x": [one, (two, 3)], "y": one}).result(20) == {
        "x": [[1, 2], ("text", 3)],
        "y": [1, 2],
    }


def test_a_value_is_forgotten_when_nobody_has_its_handle(master):
    def counts():
        return [master.with_options(worker=worker).submit(chores.kept).result(20) for worker in master.workers]

    counts()
    before = counts()
    handle = master.scatter(np.ones(100_000))
    for worker in master.workers:
        master.with_options(worker=worker).submit(chores.describe, handle).result(20)
    assert counts() == [count + 1 for count in before]
    del handle
    until(lambda: counts() == before)


def test_a_handle_that_is_dropped_while_a_task_waits_is_no_loss(master, gate):
    held = [gate.holds(master), gate.holds(master)]
    task = master.submit(chores.identity, master.scatter([1, 2, 3]))
    gate.open()
    assert task.result(20) == [1, 2, 3]
    concurrent.futures.wait(held)


def test_values_are_sent_to_workers_that_come_later(master):
    handle = master.scatter("text")
    again = master.with_options(retries=0)
    with pytest.raises(WorkerLost):
        again.submit(chores.die).result(20)
    until(lambda: len(master.workers) == 2)
    strict = [master.with_options(worker=worker) for worker in master.workers]
    assert [each.submit(chores.identity, handle).result(20) for each in strict] == ["text"] * 2


def test_what_cannot_be_scattered(master):
    with pytest.raises(UsageError, match=r"the value for scatter\(\) cannot be pickled"):
        master.scatter(threading.Lock())
    with pytest.raises(UsageError, match="handles of others"):
        master.scatter([master.scatter(1)])
    handle = master.scatter(1)
    with pytest.raises(UsageError, match="a handle of scatter"):
        master.submit(lambda: handle)


def test_a_scattered_value_that_cannot_be_unpickled_is_the_task_s_error(master):
    with pytest.raises(LookupError, match="it was a trap"):
        master.submit(chores.identity, master.scatter(chores.Trap())).result(20)


# ---- memory ----


@pytest.mark.slow
def test_thousands_of_tasks_leave_nothing_behind(master):
    def rounds(count):
        for _ in range(count):
            tasks = [master.submit(pow, 2, number % 7) for number in range(2000)]
            assert tasks[-1].result(20) is not None
            concurrent.futures.wait(tasks, 20)

    rounds(3)
    before = _resident()
    rounds(10)
    assert _resident() - before < 8 << 20
    until(lambda: not any(worker.busy for worker in master.workers))
    check_forgotten(master)
    assert len(master._farm._scheduler.estimates._seconds) < 100


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_timeouts_that_were_not_needed_do_not_pile_up(master):
    strict = master.with_options(timeout=1000)
    for task in [strict.submit(pow, 2, 2) for _ in range(300)]:
        task.result(20)
    assert len(master._farm._alarms) <= 110


# ---- how a farm begins ----


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"workers": -1}, "workers must be a number from 0, not -1"),
        ({"workers": 1.5}, "workers must be a number from 0"),
        ({"workers": 1, "retries": -1}, "retries must be"),
        ({"workers": 1, "initializer": 5}, "the initializer must be something that can be called, not 5"),
        ({"workers": 1, "initializer": print, "initargs": (threading.Lock(),)}, "the initializer cannot be pickled"),
        ({"hosts": "host:none"}, "host"),
        ({"hosts": []}, "host"),
    ],
)
def test_arguments_out_of_range(arguments, text):
    with pytest.raises((UsageError, LaunchError), match=text):
        taskfarm.Master(**arguments)


@pytest.mark.usefixtures("nothing_left")
def test_hosts_that_cannot_be_used_are_named_and_nothing_is_left():
    with pytest.raises(ExceptionGroup) as caught:
        taskfarm.Master(hosts=["no-such-host.invalid:2"])
    assert "no-such-host.invalid" in str(caught.value.exceptions[0])


@pytest.mark.usefixtures("nothing_left")
def test_without_workers_tasks_fail_and_do_not_hang():
    with taskfarm.Master(0) as master:
        assert (master.workers, master.nodes, repr(master)) == ([], [], "<Master of 0 workers>")
        assert master.get_worker(wait=False) is None
        with pytest.raises(BrokenFarm, match="this task farm has no workers, and none is about to come"):
            master.submit(pow, 2, 2).result(20)
        with pytest.raises(BrokenFarm):
            master.submit(pow, 2, 2)
    with taskfarm.Master(0) as master, pytest.raises(BrokenFarm):
        list(master.map(abs, [1, 2]))


@pytest.mark.usefixtures("nothing_left")
def test_each_worker_calls_the_initializer_first():
    with taskfarm.Master(2, initializer=chores.remember, initargs=("begun", [1])) as master:
        master.wait_for_workers(2, 20)
        tasks = [master.with_options(worker=worker).submit(chores.recall, "begun") for worker in master.workers]
        assert [task.result(20) for task in tasks] == [[1], [1]]


@pytest.mark.usefixtures("nothing_left")
def test_an_initializer_that_raises_breaks_the_farm():
    with taskfarm.Master(2, initializer=chores.fail, initargs=("not today",)) as master:
        try:
            task = master.submit(pow, 2, 2)
        except BrokenFarm as error:
            caught = error
        else:
            caught = task.exception(20)
        assert isinstance(caught, BrokenFarm)
        assert "not today" in str(caught.__cause__)
        with pytest.raises(BrokenFarm, match="the initializer failed in worker"):
            master.submit(pow, 2, 2)
        assert master.wait_for_workers(1, 20) is False


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_an_initializer_that_kills_its_worker_breaks_the_farm():
    died = pytest.raises(BrokenFarm, match="workers in a row died before they could do anything")
    with taskfarm.Master(1, initializer=chores.die) as master, died:
        master.submit(pow, 2, 2).result(20)


# ---- how a farm ends ----


@pytest.mark.usefixtures("nothing_left")
def test_the_end_of_a_with_waits_for_all_tasks():
    with taskfarm.Master(2) as master:
        tasks = [master.submit(chores.nap, 0.02, number) for number in range(6)]
        results = master.map(chores.square, range(100))
    assert all(task.done() for task in tasks)
    assert list(results) == [number**2 for number in range(100)]
    with pytest.raises(UsageError, match="this task farm was closed, and takes no more tasks"):
        master.submit(pow, 2, 2)
    with pytest.raises(UsageError, match="was closed"):
        master.map(abs, [1])
    with pytest.raises(UsageError, match="was closed"):
        master.get_worker()
    assert master.workers == []
    master.close()


@pytest.mark.usefixtures("nothing_left")
def test_a_with_that_raised_waits_for_nothing():
    begun = time.monotonic()
    master = taskfarm.Master(2)
    tasks = [master.submit(chores.nap, 60) for _ in range(5)]
    mapped = master.map(chores.nap, [60] * 5)
    talk = master.make_task(chores.wait_for_ever)
    until(tasks[0].running)
    pids = [worker.pid for worker in master.workers]
    with pytest.raises(ZeroDivisionError), master:
        raise ZeroDivisionError
    assert time.monotonic() - begun < 10
    assert not any(is_alive(pid) for pid in pids)
    kinds = {type(task.exception(20)) if not task.cancelled() else None for task in tasks}
    assert kinds <= {None, BrokenFarm}
    with pytest.raises((concurrent.futures.CancelledError, BrokenFarm)):
        list(mapped)
    assert talk.cancelled() or isinstance(talk.exception(20), BrokenFarm)


@pytest.mark.usefixtures("nothing_left")
def test_a_map_that_was_given_back_is_cancelled_too(gate):
    """Pieces that wait again after they were given back, as no others do, when the farm is closed."""
    with taskfarm.Master(1) as master:
        list(master.map(_wait_if, [gate.path] * 100, [False] * 100))  # so they are taken for tiny
        mapped = master.map(_wait_if, [gate.path] * 20, [True, *[False] * 19], chunksize=1)
        until(lambda: master.workers[0].stuck)
        master.close(wait=False)
        with pytest.raises((concurrent.futures.CancelledError, BrokenFarm)):
            list(mapped)


@pytest.mark.usefixtures("nothing_left")
def test_closing_from_several_threads():
    master = taskfarm.Master(1)
    task = master.submit(chores.nap, 0.2, "done")
    threads = [threading.Thread(target=master.close) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert task.result(0) == "done"


@pytest.mark.usefixtures("nothing_left")
def test_closing_without_waiting_ends_those_who_wait():
    master = taskfarm.Master(1)
    task = master.submit(chores.nap, 60)
    waiting = threading.Thread(target=master.close)
    waiting.start()
    until(task.running)
    master.close(wait=False)
    waiting.join(20)
    assert not waiting.is_alive()
    assert isinstance(task.exception(20), BrokenFarm)


@pytest.mark.usefixtures("nothing_left")
def test_closing_in_a_callback():
    master = taskfarm.Master(2)
    other = master.submit(chores.nap, 60)
    task = master.submit(chores.nap, 0.05)
    task.add_done_callback(lambda _: master.close(wait=False))
    assert isinstance(other.exception(20), BrokenFarm)
    master.close()


@pytest.mark.usefixtures("nothing_left")
def test_closing_in_a_callback_of_a_task_that_closing_cancels():
    master = taskfarm.Master(1)
    tasks = [master.submit(chores.nap, 60) for _ in range(3)]
    until(tasks[0].running)
    for task in tasks:
        task.add_done_callback(lambda _: master.close(wait=False))
    master.close(wait=False)
    assert all(task.done() for task in tasks)


@pytest.mark.usefixtures("nothing_left")
def test_tasks_that_were_not_begun_can_be_cancelled_all():
    with taskfarm.Master(1) as master:
        tasks = [master.submit(chores.nap, 0.2) for _ in range(5)]
        until(tasks[0].running)
        master.cancel_waiting()
        assert [task.cancelled() for task in tasks] == [False, True, True, True, True]


@pytest.mark.usefixtures("nothing_left")
def test_two_masters_at_once_and_one_after_the_other():
    with taskfarm.Master(1) as one, taskfarm.Master(1) as two:
        assert one.submit(chores.pid).result(20) != two.submit(chores.pid).result(20)
    with taskfarm.Master(1) as three:
        assert three.submit(pow, 2, 2).result(20) == 4


@pytest.mark.usefixtures("nothing_left")
def test_a_worker_of_another_master_is_not_there():
    with taskfarm.Master(1) as one, taskfarm.Master(1) as two:
        two.wait_for_workers(1, 20)
        with pytest.raises(WorkerLost, match="is not there"):
            one.with_options(worker=two.workers[0]).submit(chores.pid)


@pytest.mark.usefixtures("nothing_left")
def test_a_master_in_a_worker():
    with taskfarm.Master(1) as master:
        assert master.submit(_farm_out, 5).result(30) == [0, 1, 4, 9, 16]


def _farm_out(count):
    with taskfarm.Master(1) as master:
        return list(master.map(chores.square, range(count)))


SCRIPT = """
    import os, signal, sys, threading, time
    from rmpi import taskfarm

    def main():
        with taskfarm.Master(2) as master:
            tasks = [master.submit(time.sleep, 60) for _ in range(4)]
            master.wait_for_workers(2)
            print(*[worker.pid for worker in master.workers], flush=True)
            {waits}

    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize("waits", ["tasks[0].result()", "pass", "list(master.map(time.sleep, [60] * 4))"])
def test_ctrl_c_ends_program_and_workers(tmp_path, waits):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(waits=waits))
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    time.sleep(0.1)  # until it waits; if it does not yet, it is ended all the same
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - begun < 10
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    until(lambda: not any(is_alive(pid) for pid in pids))
