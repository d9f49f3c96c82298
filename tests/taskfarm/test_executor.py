"""The executor behaves as CPython's tests (``Lib/test/test_concurrent_futures``) expect of executors.

These tests are our own; their docstrings name those of CPython 3.11 to 3.13 that they follow. Not followed:

    test_killed_child, and the deadlock tests  a worker that dies costs its own task, and the executor goes on; where a
                                               value cannot be unpickled, that task says why, and nothing breaks
    test_idle_process_reuse_*                  workers are there from the start
    test_saturation, test_processes_terminate  with multiprocessing's own semaphores, which only its children inherit;
                                               with FIFOs instead
    FailingInitializerMixin, its logging       the traceback comes with each error, as its cause
    test_max_tasks_per_child with "fork"       there is one way to start workers
    test_python_finalization_error,            of the insides of ProcessPoolExecutor
    test_gh105829_should_not_deadlock_if_wakeup_pipe_full
"""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import errands
import pytest

from rmpi import places
from rmpi.errors import RemoteError, UsageError
from rmpi.taskfarm import BrokenFarm, Executor, WorkerLost

LONG = 30
"""Seconds that nothing here takes."""


@pytest.fixture(scope="module")
def executor():
    with Executor(2, None, partial(errands.initialize, more=1), ("initialized",)) as executor:
        yield executor
    places.shutdown()
    gc.collect()
    assert [thread for thread in threading.enumerate() if thread.name.startswith("rmpi keeps")] == []


@pytest.fixture
def own():
    """``own(workers, …)``: an executor for one test."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Executor(*args, **options))


@pytest.fixture
def gate(tmp_path):
    """``gate()``: the path of a new gate (`errands`)."""
    numbers = iter(range(1000))

    def make():
        path = str(tmp_path / f"gate {next(numbers)}")
        os.mkfifo(path)
        return path

    return make


class Held:
    """Tasks at gates, one in each worker; what comes after them waits."""

    def __init__(self, executor, gates):
        self.gates = gates
        self.futures = [executor.submit(partial(errands.wait_at, gate)) for gate in gates]  # each a function of its own
        self.opened = [os.open(gate, os.O_WRONLY) for gate in gates]  # returns when the task is there

    def release(self):
        while self.opened:
            os.close(self.opened.pop())


@pytest.fixture
def hold(gate):
    """``hold(executor, workers)``: `Held`."""
    helds = []

    def make(executor, workers=1):
        helds.append(Held(executor, [gate() for _ in range(workers)]))
        return helds[-1]

    yield make
    for held in helds:
        held.release()


# ------------------------------------------------------------------------------------------- submit


def test_submit(executor):
    """ExecutorTest.test_submit, test_submit_keyword."""
    assert executor.submit(pow, 2, 8).result(LONG) == 256
    assert executor.submit(errands.multiply, 2, y=8).result(LONG) == 16
    assert executor.submit(errands.capture, 1, self=2, fn=3).result(LONG) == ((1,), {"self": 2, "fn": 3})
    with pytest.raises(TypeError):
        executor.submit(fn=errands.capture, arg=1)
    with pytest.raises(TypeError):
        executor.submit(arg=1)


def test_what_cannot_be_called_is_an_error_of_the_task(executor):
    with pytest.raises(TypeError, match="can be called"):
        executor.submit(5).result(LONG)
    with pytest.raises(TypeError, match="can be called"):
        next(executor.map(5, [1]))


def test_nothing_of_a_task_is_kept_by_the_master(executor):
    """ExecutorTest.test_no_stale_references."""
    gone = threading.Event()
    thing = errands.Plain()
    reference = weakref.ref(thing, lambda _: gone.set())
    executor.submit(thing.method)
    del thing
    assert gone.wait(LONG)
    assert reference() is None


def test_nothing_of_a_task_is_kept_by_the_worker(executor, gate):
    """ProcessPoolExecutorTest.test_ressources_gced_in_workers."""
    thing = errands.Parting(gate())
    future = executor.submit(id, thing)
    assert errands.wait_at(thing.gate) == "open"
    assert type(future.result(LONG)) is int


def test_a_manager_can_be_used_in_tasks(executor):
    """The queues of multiprocessing's managers are given to tasks of process pools; the tests of CPython do so too."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        queue = manager.Queue()
        executor.submit(errands.put_into, queue, "from a worker").result(LONG)
        assert queue.get(timeout=LONG) == "from a worker"


def test_many_more_tasks_than_workers(executor, hold):
    """ProcessPoolExecutorTest.test_saturation; ExecutorShutdownTest.test_hang_issue12364."""
    held = hold(executor, 2)
    later = [executor.submit(abs, -n) for n in range(30)]
    assert len(executor.master.workers) == executor._max_workers == 2
    assert not any(future.done() for future in later)
    held.release()
    assert [future.result(LONG) for future in later] == list(range(30))


# ------------------------------------------------------------------------------------------- map


def test_map(executor):
    """ExecutorTest.test_map; ProcessPoolExecutorTest.test_map_chunksize."""
    expected = [n**n for n in range(40)]
    for chunksize in (None, 1, 3, 6, 40, 50):
        assert list(executor.map(pow, range(40), range(40), chunksize=chunksize)) == expected
    assert list(executor.map(pow, range(40), range(3))) == [1, 1, 4], "the shortest says how many"
    assert list(executor.map(pow)) == list(executor.map(pow, [], [])) == []
    for chunksize in (0, -1):
        with pytest.raises(ValueError, match="chunksize must be at least 1"):
            executor.map(pow, range(40), range(40), chunksize=chunksize)


def test_map_raises_when_it_comes_to_that(executor):
    """ExecutorTest.test_map_exception."""
    results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert next(results) == next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)
    results = executor.map(id, [1, errands.NoPickle()], chunksize=1)
    assert type(next(results)) is int
    with pytest.raises(pickle.PicklingError, match="I stay here"):
        next(results)


def test_map_goes_through_its_iterables_at_once(executor):
    """What `Executor.map` is documented to do."""
    taken = []
    results = executor.map(abs, (taken.append(n) or n for n in range(5)))
    assert taken == list(range(5))
    assert list(results) == taken


def test_map_times_out(executor, gate):
    """ExecutorTest.test_map_timeout."""
    path = gate()
    results = executor.map(errands.wait_and_divide, [path], [0], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    errands.open_gate(path)


def test_map_keeps_no_results(executor):
    """ExecutorTest.test_free_reference."""
    for thing in executor.map(errands.Plain.make, range(10)):
        reference = weakref.ref(thing)
        del thing
        gc.collect()
        assert reference() is None


# ------------------------------------------------------------------------------------------- waiting


@pytest.mark.parametrize(
    ("when", "expected"),
    [(futures.FIRST_COMPLETED, {0}), (futures.FIRST_EXCEPTION, {0, 1}), (futures.ALL_COMPLETED, {0, 1, 2})],
)
def test_wait(executor, gate, hold, when, expected):
    """WaitTests: test_first_completed, test_first_exception, test_all_completed, test_timeout, test_20369."""
    held = hold(executor, 1)
    first = executor.submit(errands.multiply, 21, 2)
    futures.wait([first], LONG)
    fails = gate()
    tasks = [first, executor.submit(errands.wait_and_divide, fails, 0), *held.futures]
    assert futures.wait([*tasks, *tasks], 0.01) == ({first}, {*tasks[1:]})
    if 1 in expected:
        errands.open_gate(fails)
    if 2 in expected:
        held.release()
    done, _ = futures.wait(tasks, LONG, when)
    assert done == {tasks[n] for n in expected}
    if 1 not in expected:
        errands.open_gate(fails)


def test_as_completed(executor, hold):
    """AsCompletedTests: test_no_timeout, test_future_times_out, test_duplicate_futures."""
    held = hold(executor, 1)
    quick = executor.submit(errands.multiply, 7, 6)
    slow = held.futures[0]
    completed = futures.as_completed([slow, quick, slow], LONG)
    assert next(completed) is quick
    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        list(futures.as_completed([slow, quick], 0.01))
    held.release()
    assert [*completed] == [slow]


def test_a_task_that_waits_can_be_cancelled(executor, hold):
    """FutureTests: cancel, cancelled, running, add_done_callback; here with tasks."""
    held = hold(executor, 2)
    waiting = executor.submit(pow, 2, 8)
    told = []
    waiting.add_done_callback(told.append)
    assert not waiting.running()
    assert waiting.cancel()
    assert waiting.cancelled()
    assert waiting.cancel(), "again"
    assert told == [waiting]
    with pytest.raises(futures.CancelledError):
        waiting.result()
    for future in held.futures:
        assert future.running()
        assert not future.cancel()
    held.release()
    futures.wait([waiting, *held.futures], LONG)
    assert [future.result() for future in held.futures] == ["", ""]
    assert list(futures.as_completed([waiting], LONG)) == [waiting]


def test_sys_exit_in_a_callback_harms_nobody(executor, hold, caplog):
    held = hold(executor, 2)
    first, second = (executor.submit(pow, 2, n) for n in (3, 4))
    first.add_done_callback(lambda _: sys.exit(1))
    held.release()
    assert (first.result(LONG), second.result(LONG)) == (8, 16)
    assert executor.submit(pow, 2, 5).result(LONG) == 32
    assert "sys.exit()" in caplog.text


def test_asyncio_takes_it(executor):
    """`asyncio.loop.run_in_executor`, which cancels too; as the default executor it takes threads alone."""

    async def main():
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, pow, 2, n) for n in range(5)]
        assert await asyncio.gather(*calls) == [1, 2, 4, 8, 16]
        with pytest.raises(RuntimeError, match="123"):
            await loop.run_in_executor(executor, errands.complain)
        with pytest.raises(TypeError):
            loop.set_default_executor(executor)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------- what goes wrong


def test_the_traceback_of_there_is_told(executor):
    """ProcessPoolExecutorTest.test_traceback."""
    with pytest.raises(RuntimeError) as caught:
        executor.submit(errands.complain).result(LONG)
    assert type(caught.value) is RuntimeError
    assert caught.value.args == (123,)
    assert isinstance(caught.value.__cause__, RemoteError)
    line = "raise RuntimeError(123)  # what is the matter"
    assert line in caught.value.__cause__.traceback
    assert line in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("function", "argument", "error"),
    [
        (id, errands.NoPickle(), pickle.PicklingError),  # test_error_at_task_pickle
        (id, errands.NoUnpickle(), pickle.UnpicklingError),  # test_error_at_task_unpickle: there the pool breaks
        (id, errands.LeavesAtUnpickle(), SystemExit),  # test_exit_at_task_unpickle: likewise
        (errands.leave, None, SystemExit),  # test_exit_during_func_exec_on_worker
        (errands.refuse, KeyError, KeyError),  # test_error_during_func_exec_on_worker
        (errands.instance_of, errands.NoPickle, pickle.PicklingError),  # test_error_during_result_pickle_on_worker
        (errands.instance_of, errands.LeavesAtPickle, SystemExit),  # test_exit_during_result_pickle_on_worker
        (errands.instance_of, errands.NoUnpickle, pickle.UnpicklingError),  # test_error_during_result_unpickle_…
        (errands.instance_of, errands.LeavesAtUnpickle, SystemExit),  # test_exit_during_result_unpickle_…: both break
    ],
)
def test_errors_cost_their_own_task(executor, function, argument, error):
    """ExecutorDeadlockTest, but for what is said above."""
    future = executor.submit(function, argument)
    assert isinstance(future.exception(LONG), error)
    with pytest.raises(error):
        future.result()
    with pytest.raises(error):
        list(executor.map(function, [argument]))
    assert executor.submit(pow, 2, 8).result(LONG) == 256


def test_a_lambda_that_cannot_travel_is_an_error_of_the_task(executor):
    lock = threading.Lock()
    with pytest.raises(UsageError, match="cannot be pickled"):
        executor.submit(lambda: lock).result(LONG)
    with pytest.raises(UsageError, match="cannot be pickled"):
        next(executor.map(lambda _: lock, [1]))


@pytest.mark.parametrize("argument", [errands.CrashesAtUnpickle(), errands.CrashesAtPickle, None])
def test_a_crash_costs_one_task(executor, argument):
    """ExecutorDeadlockTest: test_crash_*, where the pool breaks; an error of ours is that of a broken pool too."""
    function = errands.crash if argument is None else errands.instance_of if isinstance(argument, type) else id
    with pytest.raises(BrokenProcessPool) as caught:
        executor.submit(function, argument).result(LONG)
    assert isinstance(caught.value, WorkerLost)
    assert executor.submit(pow, 2, 8).result(LONG) == 256


def test_a_crash_with_much_data(executor):
    """ExecutorDeadlockTest.test_crash_big_data."""
    with pytest.raises(BrokenProcessPool):
        list(executor.map(errands.crash, ["a" * 4_000_000] * 3))


def test_a_worker_that_is_killed_costs_its_task(executor, hold):
    """ProcessPoolExecutorTest.test_killed_child, where the pool breaks."""
    held = hold(executor, 2)
    first, second = held.futures
    waiting = executor.submit(pow, 2, 8)
    os.kill(first.worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost):
        first.result(LONG)
    assert waiting.result(LONG) == 256, "by another that was started"
    held.release()
    assert second.result(LONG) == ""


def test_retries(own, tmp_path):
    executor = own(1, retries=1)
    path = tmp_path / "tries"

    def die_once():
        if path.exists():
            return "done"
        path.touch()
        os._exit(1)

    assert executor.submit(die_once).result(LONG) == "done"


# ------------------------------------------------------------------------------------------- how it is made


def test_initializer(executor):
    """InitializerMixin.test_initializer."""
    assert {executor.submit(errands.initial).result(LONG) for _ in range(6)} == {("initialized", 1)}


def test_an_initializer_that_fails_breaks_it(own):
    """FailingInitializerMixin.test_initializer."""
    executor = own(2, initializer=errands.fail_to_initialize, initargs=("here",))
    with pytest.raises(BrokenProcessPool) as caught:
        executor.submit(pow, 2, 8).result(LONG)
    assert "no initializer for here" in str(caught.value.__cause__)
    with pytest.raises(BrokenFarm) as caught:
        executor.submit(pow, 2, 8)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(BrokenFarm):
        executor.map(pow, [2], [8])


def test_arguments_are_checked():
    """ExecutorTest.test_max_workers_negative; the like of other arguments."""
    for number in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            Executor(number)
        with pytest.raises(ValueError, match="max_tasks_per_child must be at least 1"):
            Executor(1, max_tasks_per_child=number)
    with pytest.raises(TypeError, match="max_tasks_per_child must be an integer"):
        Executor(1, max_tasks_per_child=1.5)
    with pytest.raises(TypeError, match="initializer"):
        Executor(1, initializer=5)


def test_workers_leave_after_so_many_tasks(own):
    """ProcessPoolExecutorTest.test_max_tasks_per_child; the context is accepted."""
    executor = own(1, multiprocessing.get_context("spawn"), max_tasks_per_child=3)
    pids = [executor.submit(os.getpid).result(LONG) for _ in range(4)]
    assert pids[0] == pids[1] == pids[2] != pids[3]
    assert len(executor.master.workers) == 1


def test_no_task_is_lost_when_workers_leave(own, tmp_path):
    """ProcessPoolExecutorTest.test_max_tasks_early_shutdown."""
    executor = own(2, max_tasks_per_child=2)
    path = tmp_path / "lines"
    tasks = [executor.submit(errands.append, path, f"{n}\n") for n in range(6)]
    results = executor.map(errands.append, [path] * 4, ["a\n", "b\n", "c\n", "d\n"])
    executor.shutdown()
    assert sorted(path.read_text().split()) == [*"012345", *"abcd"]
    pids = [future.result(0) for future in tasks] + list(results)
    assert max(pids.count(pid) for pid in pids) <= 2


# ------------------------------------------------------------------------------------------- how it ends


def pids_of(executor):
    assert executor.master.wait_for_workers(1, LONG)
    return [worker.pid for worker in executor.master.workers]


def gone(pids):
    """Whether those processes end; their spawner hears of that before whoever shuts down, or a little later."""
    limit = time.monotonic() + LONG
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > limit:
            return False
        time.sleep(0.001)
    return True


def test_shutdown_does_what_was_submitted(own):
    """ExecutorShutdownTest: test_run_after_shutdown, test_hang_issue12364; test_context_manager_shutdown;
    ExecutorTest.test_shutdown_race_issue12456.
    """
    executor = own(2)
    pids = pids_of(executor)
    tasks = [executor.submit(abs, -n) for n in range(50)]
    results = executor.map(abs, range(-5, 5))
    executor.shutdown()
    assert gone(pids)
    assert [future.result(0) for future in tasks] == list(range(50))
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
    executor.shutdown()
    for call in (executor.submit, executor.map):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            call(pow, [2], [8])


def test_shutdown_without_waiting(own, hold):
    """ProcessPoolShutdownTest.test_shutdown_no_wait; test_cancel_futures."""
    executor = own(1)
    pids = pids_of(executor)
    held = hold(executor)
    later = [executor.submit(abs, -n) for n in range(5)]
    assert later[0].cancel()
    executor.shutdown(wait=False)
    assert held.futures[0].running()
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)
    held.release()
    assert [future.result(LONG) for future in later[1:]] == [1, 2, 3, 4]
    executor.shutdown()
    assert gone(pids)


@pytest.mark.parametrize("first", [{}, {"wait": False}])
def test_shutdown_cancels_what_waits(own, hold, first):
    """ExecutorShutdownTest.test_cancel_futures; also when it was shut down already."""
    executor = own(1)
    held = hold(executor)
    later = [executor.submit(abs, -n) for n in range(5)]
    results = executor.map(abs, range(5))
    if first:
        executor.shutdown(**first)
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in later)
    assert futures.wait(later, LONG).not_done == set()
    with pytest.raises(futures.CancelledError):
        next(results)
    held.release()
    executor.shutdown()
    assert held.futures[0].result(0) == ""


def test_shutdown_right_after_a_cancellation(own):
    """ExecutorShutdownTest.test_hang_gh94440."""
    executor = own(1)
    executor.submit(int).result(LONG)
    executor.submit(int).cancel()
    executor.shutdown()


def test_shutdown_while_a_worker_crashes(own, gate):
    """ExecutorDeadlockTest: test_shutdown_deadlock, test_shutdown_deadlock_pickle."""
    executor = own(1)
    path = gate()

    def wait_and_crash():
        errands.wait_at(path)
        os._exit(1)

    crashes = executor.submit(wait_and_crash)
    unfit = executor.submit(id, errands.NoPickle())
    executor.shutdown(wait=False)
    errands.open_gate(path)
    executor.shutdown()
    assert isinstance(crashes.exception(0), WorkerLost)
    assert isinstance(unfit.exception(0), pickle.PicklingError)


def test_shutdown_from_another_thread_and_in_a_callback(own, hold):
    executor = own(1)
    held = hold(executor)
    raised = []

    def end(_):
        try:
            executor.shutdown()
        except RuntimeError as error:
            raised.append(str(error))

    held.futures[0].add_done_callback(end)
    threads = [threading.Thread(target=executor.shutdown) for _ in range(3)]
    for thread in threads:
        thread.start()
    held.release()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert len(raised) == 1
    assert "wait=False" in raised[0]


def test_an_executor_that_nobody_has_ends():
    """ProcessPoolShutdownTest.test_del_shutdown."""
    forgotten = Executor(1)
    pids = pids_of(forgotten)
    results = forgotten.map(abs, range(-5, 5))
    del forgotten
    gc.collect()
    assert gone(pids)
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]


SUBMITS_AND_FORGETS = """if True:
    import atexit, sys
    sys.path.insert(0, {here!r})

    @atexit.register
    def run_last():
        for executor in (first, second):
            try:
                executor.submit(id, None)
            except RuntimeError as error:
                print(error)

    from errands import append, open_gate, wait_at
    from rmpi.taskfarm import Executor
    first, second = Executor(1), Executor(1)
    first.submit(wait_at, {gate!r})
    first.submit(append, {path!r}, "first\\n")
    second.submit(wait_at, {other!r})
    second.submit(append, {path!r}, "second\\n")
    second.shutdown(wait=False)
    print("end of the script", flush=True)
"""


def test_the_interpreter_does_what_was_submitted_before_it_exits(gate, tmp_path):
    """ExecutorShutdownTest: test_interpreter_shutdown, test_submit_after_interpreter_shutdown, test_hang_gh83386."""
    path = tmp_path / "lines"
    held = gate(), gate()
    here = str(Path(errands.__file__).parent)
    script = SUBMITS_AND_FORGETS.format(here=here, gate=held[0], other=held[1], path=str(path))
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert line == "end of the script\n", process.stderr.read()
        assert not path.exists()
        for each in held:
            os.close(os.open(each, os.O_WRONLY))  # waits for whoever waits there
        out, err = process.communicate(timeout=LONG)
    assert (err, process.returncode) == ("", 0)
    assert sorted(path.read_text().split()) == ["first", "second"]
    assert out.splitlines() == [
        "cannot schedule new futures after interpreter shutdown",
        "cannot schedule new futures after shutdown",
    ]
