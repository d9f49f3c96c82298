"""Calls that go on while their caller does something else."""

import asyncio
import concurrent.futures
import pickle
import sys
import threading

import pytest

from rmpi import rpc
from rmpi.errors import ChannelClosed, RemoteError, UsageError
from rmpi.rpc.futures import GLANCE


class Worker(rpc.Server):
    begun: threading.Semaphore
    may_go: threading.Semaphore

    def __init__(self):
        self.done = []

    @rpc.call
    def work(self, number):
        self.done.append(number)
        return number * number

    @rpc.call
    def wait(self):
        self.begun.release()
        assert self.may_go.acquire(timeout=20)

    @rpc.call
    def fail(self, text):
        raise ValueError(text)

    @rpc.call
    def numbers(self):
        yield 1

    @rpc.call
    def everything(self):
        return self.done


@pytest.fixture
def worker(served, monkeypatch):
    monkeypatch.setattr(Worker, "begun", threading.Semaphore(0), raising=False)
    monkeypatch.setattr(Worker, "may_go", threading.Semaphore(0), raising=False)
    return served(Worker)


@pytest.fixture
def busy(worker):
    """The server is in a call that ends when this is called."""
    blocked = worker.wait.future()
    assert Worker.begun.acquire(timeout=20)

    def let_go():
        Worker.may_go.release()
        blocked.result(20)

    return let_go


def threads_of_answers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("answers of")]


def test_futures_are_those_of_the_standard_library(worker):
    futures = [worker.work.future(number) for number in range(20)]
    assert all(isinstance(future, concurrent.futures.Future) for future in futures)
    assert [future.result(20) for future in futures] == [number * number for number in range(20)]
    assert worker.everything() == list(range(20)), "in the order in which they were asked for"


def test_as_completed_and_callbacks_work(worker):
    called = threading.Event()
    futures = {worker.work.future(number): number for number in range(5)}
    next(iter(futures)).add_done_callback(lambda _future: called.set())
    for future in concurrent.futures.as_completed(futures, timeout=20):
        assert future.result() == futures[future] ** 2
    assert called.wait(20)


def test_what_a_method_raises_is_the_future_s(worker):
    future = worker.fail.future("no")
    error = future.exception(20)
    assert (type(error), error.type_name, error.message) == (RemoteError, "ValueError", "no")
    with pytest.raises(RemoteError, match=r"raised by Worker\.fail"):
        future.result()


def test_a_future_can_be_awaited(worker):
    async def together():
        return await asyncio.gather(*[worker.work.future(number) for number in range(5)])

    assert asyncio.run(together()) == [0, 1, 4, 9, 16]


def test_an_awaiting_task_that_is_cancelled_cancels_the_call(served, worker, busy):
    async def hurry():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(worker.work.future(1), 0.01)

    asyncio.run(hurry())
    served.until_queued(worker, 2)  # the call, and that it is cancelled
    busy()
    assert worker.everything() == []


def test_a_call_that_is_cancelled_before_it_is_begun_is_not_executed(served, worker, busy):
    futures = [worker.work.future(number) for number in range(6)]
    assert [future.cancel() for future in futures[1::2]] == [True, True, True]
    assert futures[1].cancel(), "again changes nothing"
    done, _ = concurrent.futures.wait(futures[1::2], timeout=0)
    assert done == set(futures[1::2]), "those who wait know at once"
    served.until_queued(worker, 6 + 3)
    busy()
    assert [future.result(20) for future in futures[::2]] == [0, 4, 16]
    assert worker.everything() == [0, 2, 4]
    with pytest.raises(concurrent.futures.CancelledError):
        futures[1].result()


def test_what_is_done_cannot_be_cancelled(worker):
    future = worker.work.future(3)
    assert future.result(20) == 9
    assert (future.cancel(), future.cancelled(), future.result()) == (False, False, 9)


def test_a_call_that_was_begun_is_finished_for_nobody(worker):
    future = worker.wait.future()
    assert Worker.begun.acquire(timeout=20)
    assert future.cancel()
    Worker.may_go.release()
    assert worker.work(2) == 4


def test_the_thread_that_takes_answers_ends_with_the_last(worker):
    assert worker.work.future(1).result(20) == 1
    assert threads_of_answers() == [], "who waits takes the answer"
    told = threading.Event()
    worker.work.future(2).add_done_callback(lambda _future: told.set())
    assert told.wait(20)
    for thread in threads_of_answers():
        thread.join(20)
    assert threads_of_answers() == []
    assert worker.work.future(3).result(20) == 9


def test_a_callback_that_wants_to_end_the_program_keeps_no_answer_from_others(worker, caplog):
    told = threading.Event()
    first = worker.wait.future()
    first.add_done_callback(lambda _future: sys.exit("now"))
    worker.work.future(2).add_done_callback(lambda _future: told.set())
    worker.may_go.release()
    assert told.wait(20)
    assert "called sys.exit()" in caplog.text
    for thread in threads_of_answers():
        thread.join(20)


def test_a_look_is_enough_to_be_told(worker):
    future = worker.work.future(3)
    while not future.done():
        threading.Event().wait(0.001)
    assert future.result(0) == 9


def test_many_threads_wait_for_answers_at_once(worker, busy):
    futures = [worker.work.future(number) for number in range(50)]
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        backwards = pool.map(lambda future: future.result(20), reversed(futures))
        busy()
        assert list(backwards) == [number * number for number in reversed(range(50))]


def test_who_has_waited_in_vain_may_wait_again(worker, busy):
    future = worker.work.future(3)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            future.result(0.01)
        with pytest.raises(TimeoutError):
            future.exception(0)
    busy()
    assert future.result(20) == 9


def settled(futures):
    """How many are, without having looked for answers: `Future.done` would."""
    return sum(super(rpc.Future, future).done() for future in futures)


def test_answers_that_nobody_waits_for_are_taken_by_later_calls(worker):
    futures = [worker.work.future(number) for number in range(GLANCE - 1)]
    assert worker.everything() == list(range(GLANCE - 1)), "so all of them were answered"
    assert settled(futures) == 0
    worker.work.future(0)
    assert settled(futures) == GLANCE - 1
    assert threads_of_answers() == []


def test_more_calls_than_fit_on_the_way(worker):
    futures = [worker.work.future(number) for number in range(3000)]
    assert [future.result(20) for future in futures] == [number * number for number in range(3000)]


def test_blocking_calls_overtake_no_future(worker, busy):
    futures = [worker.work.future(number) for number in range(3)]
    busy()
    assert worker.everything() == [0, 1, 2]
    assert [future.result(20) for future in futures] == [0, 1, 4]


def test_a_closed_stub_fails_what_is_outstanding(worker):
    other = pickle.loads(pickle.dumps(worker))
    future = other.wait.future()
    assert Worker.begun.acquire(timeout=20)
    rpc.close(other)
    assert isinstance(future.exception(20), ChannelClosed)
    Worker.may_go.release()
    with pytest.raises(ChannelClosed):
        other.work.future(1)


def test_a_stream_is_no_future(worker):
    with pytest.raises(UsageError, match=r"Worker\.numbers yields: call it, and iterate"):
        worker.numbers.future()
