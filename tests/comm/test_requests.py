"""Requests: what is begun, goes on while the caller does something else, and ends once."""

import asyncio
import gc
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from rmpi import as_completed, wait_all, wait_any
from rmpi.comm.status import ANY_SOURCE, ANY_TAG, Status
from rmpi.errors import ChannelClosed, CollectiveMismatch, DeadlineExceeded, PeerExited, RankFailed, UsageError
from rmpi.testing.ranks import run_ranks
from rmpi.transport.operation import Operation

BRIEFLY = 0.02
LARGE = 300_000
"""Bytes that do not travel eagerly."""

SIZES = [0, 1, 1000, 65_536, 65_537, LARGE, 3_000_000]


def error_of(kind, call, *args, **kwargs):
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


def asleep(comm):
    """Return when some thread of this rank sleeps in a call."""
    while not (comm._endpoint.crank.leads and comm._endpoint.crank._asleep):
        time.sleep(0)


# ---------------------------------------------------------------------------------------- messages


VALUES = {
    "None": None,
    "number": 7,
    "text": "grüße",
    "bytes": bytes(range(256)),
    "object": {"a": [1, (2, {3})], "array": np.arange(5)},
    "large object": {"arrays": [np.arange(50_000), np.zeros(9)]},
    "array": np.arange(12.0).reshape(3, 4),
    "large array": np.arange(100_000),
    "fortran": np.asfortranarray(np.arange(40_000.0).reshape(200, 200)),
    "strided": np.arange(60_000)[::3],
    "empty": np.zeros((0, 3)),
}


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_every_kind_of_value_travels_both_ways_at_once(run):
    def main(comm):
        other = 1 - comm.rank
        sent = [comm.isend(value, other, tag) for tag, value in enumerate(VALUES.values())]
        received = [comm.irecv(other, tag) for tag in range(len(VALUES))]
        for name, value in zip(VALUES, wait_all(reversed(received))[::-1], strict=True):
            assert same(VALUES[name], value), name
        assert wait_all(sent) == [None] * len(VALUES)

    run(2, main)


@pytest.mark.parametrize("unmatched_limit", [0, 1 << 30])
def test_a_rank_sends_to_itself(unmatched_limit):
    def main(comm):
        sent = [comm.isend((size, bytes(size)), comm.rank, 3) for size in SIZES]
        received = [comm.irecv(ANY_SOURCE, 3) for _ in SIZES]
        assert [request.wait() for request in received] == [(size, bytes(size)) for size in SIZES]
        wait_all(sent)

    run_ranks(2, main, unmatched_limit=unmatched_limit)


@pytest.mark.parametrize("unmatched_limit", [0, 1 << 30])
def test_what_a_rank_sent_to_itself_comes_though_all_others_have_ended(unmatched_limit):
    def main(comm):
        if comm.rank == 0:
            return
        error_of(PeerExited, comm.recv, 0)
        sent = [comm.isend(bytes(size), 1) for size in SIZES]
        assert comm.probe().nbytes == 0
        assert [comm.irecv().wait() for _ in SIZES] == [bytes(size) for size in SIZES]
        wait_all(sent)
        error_of(PeerExited, comm.recv)

    run_ranks(2, main, unmatched_limit=unmatched_limit)


@pytest.mark.parametrize("unmatched_limit", [0, 1 << 30])
def test_messages_of_a_pair_and_tag_arrive_in_the_order_of_sending(unmatched_limit):
    """Of whatever size, by send and isend, taken by recv and irecv, waited for backwards."""

    def main(comm):
        if comm.rank == 0:
            requests = []
            for number in range(60):
                value = (number, bytes(SIZES[number * 5 % 6]))
                if number % 4:
                    requests.append(comm.isend(value, 1, 9))
                else:
                    comm.send(value, 1, 9)
            wait_all(requests)
            return
        for number in range(0, 60, 4):
            early = [comm.irecv(0, 9), comm.irecv(ANY_SOURCE, 9), comm.irecv(0, ANY_TAG)]
            assert comm.recv(0, 9)[0] == number + 3
            assert [request.wait()[0] for request in reversed(early)] == [number + 2, number + 1, number]

    run_ranks(2, main, unmatched_limit=unmatched_limit)


def test_blocking_and_nonblocking_calls_of_a_pair_and_tag_keep_one_order(run):
    def main(comm):
        other = 1 - comm.rank
        for lap in range(30):
            first = comm.irecv(other, 4)
            sent = comm.isend(("a", lap, bytes(SIZES[lap % 6])), other, 4)
            comm.isend(("b", lap), other, 4).wait()
            last = comm.sendrecv(("c", lap), other, other, sendtag=4, recvtag=4)
            assert (first.wait()[0], last[0]) == ("a", "b")
            assert comm.recv(other, 4) == ("c", lap)
            sent.wait()

    run(2, main)


def test_wildcards_take_each_message_once_and_say_whose_it_was():
    def main(comm):
        if comm.rank:
            wait_all([comm.isend((comm.rank, tag), 0, tag) for tag in range(5)])
            return
        statuses = [Status() for _ in range(10)]
        values = wait_all([comm.irecv(status=status) for status in statuses])
        assert sorted(values) == [(rank, tag) for rank in (1, 2) for tag in range(5)]
        assert [(status.source, status.tag) for status in statuses] == values

    run_ranks(3, main)


def test_an_earlier_request_takes_the_message_even_if_a_later_one_is_waited_for_first():
    def main(comm):
        if comm.rank == 0:
            comm.send("first", 1)
            comm.send("second", 1)
            return
        first, second = comm.irecv(), comm.irecv(0, 0)
        assert (second.wait(), first.wait()) == ("second", "first")

    run_ranks(2, main)


def test_a_value_may_be_changed_as_soon_as_its_request_is_done():
    def main(comm):
        if comm.rank == 0:
            values = [np.full(size, 1, np.uint8) for size in SIZES]
            requests = [comm.isend(value, 1, tag) for tag, value in enumerate(values)]
            left = dict(enumerate(requests))
            while left:
                for tag in [tag for tag, request in left.items() if request.test()]:
                    values[tag][:] = 2
                    del left[tag]
            return
        for tag in reversed(range(len(SIZES))):
            assert (comm.recv(0, tag) == 1).all()

    run_ranks(2, main, unmatched_limit=0)


def test_a_large_message_is_not_done_before_its_receiver_took_it():
    def main(comm):
        if comm.rank == 0:
            request = comm.isend(bytes(LARGE), 1, 1)
            comm.send("offered", 1)
            assert comm.recv(1) == "not yet"
            assert not request.test()
            comm.send("now", 1)
            request.wait()
            return
        assert comm.recv(0, 0) == "offered"
        comm.send("not yet", 0)
        assert comm.recv(0, 0) == "now"
        assert len(comm.recv(0, 1)) == LARGE

    run_ranks(2, main, unmatched_limit=0)


@pytest.mark.parametrize("early", [True, False], ids=["the message first", "the receive first"])
@pytest.mark.parametrize("count", [10, 40_000])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_what_is_received_in_place_is_there_when_the_request_is_done(early, count, order):
    """Nobody has waited for it: `Request.test` says it, and then ``out`` may be read."""

    def main(comm):
        if comm.rank == 0:
            if not early:
                comm.recv(1)
            comm.send(np.arange(count).reshape(2, -1), 1, 1)
            comm.send("sent", 1)
            return
        out = {"C": np.zeros((2, count // 2), int), "F": np.zeros((2, count // 2), int, order="F")}.get(order)
        if out is None:
            out = np.zeros((2, count), int)[:, ::2]
        if early:
            assert comm.recv(0, 0) == "sent"
        request = comm.irecv(0, 1, out=out)
        if not early:
            comm.send("go", 0)
            assert comm.recv(0, 0) == "sent"
        while not request.test():
            pass
        assert (out == np.arange(count).reshape(2, -1)).all()
        assert request.wait() is out

    run_ranks(2, main)


def test_a_message_that_does_not_fit_is_an_error_of_its_request_and_stays():
    def main(comm):
        if comm.rank == 0:
            comm.send("text", 1)
            return
        request = comm.irecv(0, out=np.zeros(3))
        text = "out= is an array (3,) of float64, but the message holds a str"
        assert error_of(UsageError, request.wait) == error_of(UsageError, request.wait) == text
        assert comm.recv(0) == "text"

    run_ranks(2, main)


@pytest.mark.parametrize(
    "call",
    [
        lambda comm: comm.isend(1, 2),
        lambda comm: comm.isend(1, 0, -1),
        lambda comm: comm.isend(threading.Lock(), 0),
        lambda comm: comm.irecv(2),
        lambda comm: comm.irecv(0, "tag"),
        lambda comm: comm.irecv(0, out=[1]),
    ],
    ids=["dest", "tag to send", "no pickle", "source", "tag to receive", "out"],
)
def test_wrong_arguments_are_refused_at_once_and_begin_nothing(call):
    def main(comm):
        error_of_any(UsageError, call, comm)
        return comm.sendrecv(comm.rank, 1 - comm.rank)

    assert run_ranks(2, main) == [1, 0]


def error_of_any(kind, call, *args):
    with pytest.raises(kind):
        call(*args)


# ----------------------------------------------------------------------------------------- waiting


@pytest.mark.parametrize("count", [1, LARGE])
def test_a_wait_that_times_out_leaves_the_request_as_it_was(count):
    def main(comm):
        if comm.rank == 0:
            request = comm.irecv(1, 5)
            for _ in range(3):
                text = f"irecv from rank 1, tag 5: timeout of {BRIEFLY} s passed; the request goes on"
                assert error_of(DeadlineExceeded, request.wait, BRIEFLY) == text
            assert not request.done
            comm.send("now", 1)
            assert request.wait(10) == bytes(count)
            return
        comm.recv(0)
        comm.send(bytes(count), 0, 5)

    run_ranks(2, main)


def test_an_isend_that_timed_out_goes_on():
    def main(comm):
        if comm.rank == 0:
            value = np.ones(LARGE)
            request = comm.isend(value, 1, 2)
            text = f"isend to rank 1, tag 2: timeout of {BRIEFLY} s passed; the request goes on"
            assert error_of(DeadlineExceeded, request.wait, BRIEFLY) == text
            comm.send("now", 1)
            assert request.wait(10) is None
            return
        assert comm.recv(0, 0) == "now"
        assert (comm.recv(0, 2) == 1).all()

    run_ranks(2, main, unmatched_limit=0)


def test_the_same_object_comes_each_time():
    def main(comm):
        request = comm.irecv(1 - comm.rank)
        comm.send([1, 2], 1 - comm.rank)
        first = request.wait()
        assert first is request.wait() is wait_all([request])[0]
        assert asyncio.run(awaited(request)) is first
        assert repr(request) == f"<Request irecv from rank {1 - comm.rank}, any tag: done>"

    run_ranks(2, main)


async def awaited(request):
    return await request


def test_a_request_says_what_it_is():
    def main(comm):
        pending = [comm.irecv(tag=8), comm.irecv(0, 7), comm.isend(bytes(LARGE), 1 - comm.rank, 9)]
        texts = [repr(request) for request in pending]
        pending[0].cancel()
        assert repr(pending[0]) == "<Request irecv from any rank, tag 8: failed>"
        pending[1].cancel()
        assert comm.recv(1 - comm.rank, 9) == bytes(LARGE)
        pending[2].wait()
        return texts

    assert run_ranks(2, main, unmatched_limit=0)[0] == [
        "<Request irecv from any rank, tag 8: pending>",
        "<Request irecv from rank 0, tag 7: pending>",
        "<Request isend to rank 1, tag 9: pending>",
    ]


def test_test_makes_progress_and_done_does_not():
    def main(comm):
        if comm.rank == 0:
            request = comm.irecv(1)
            comm.send("go", 1)
            while not request.test():
                assert request.done == request._operation.done
            assert request.done
            return
        comm.recv(0)
        comm.send("came", 0)

    run_ranks(2, main)


class Poison:
    """Cannot be unpickled, with an error that cannot be copied."""

    def __reduce__(self):
        return swallow, ("it",)


class Poisoned(Exception):
    def __init__(self, what, why):
        super().__init__(f"{what} is poison: {why}")


def swallow(what):
    raise Poisoned(what, "as tested")


def test_a_value_that_cannot_be_unpickled_fails_its_request_alone():
    def main(comm):
        other = 1 - comm.rank
        sent = [comm.isend(Poison(), other), comm.isend("well", other)]
        first, second = comm.irecv(other), comm.irecv(other)
        assert second.wait() == "well"
        for _ in range(2):
            assert error_of(Poisoned, first.wait) == "it is poison: as tested"
        error_of(Poisoned, wait_all, [second, first])
        assert wait_any([first]) == 0
        assert repr(first).endswith("failed>")
        wait_all(sent)

    run_ranks(2, main)


def test_what_a_finished_request_was_made_of_is_forgotten():
    """However long it is kept, and without its `Request.wait` for a send."""

    def main(comm):
        class Held(np.ndarray):
            pass

        if comm.rank == 0:
            value = np.arange(100_000).view(np.ndarray)
            holder = weakref.ref(value)
            request = comm.isend(value, 1)
            comm.send("sent", 1)
            while not request.test():
                pass
            del value
            return holder() is None and comm.recv(1) == "got it" and request.done
        request = comm.irecv(0)
        assert comm.recv(0) == "sent"
        request.wait()
        operation = weakref.ref(request._operation)
        comm.send("got it", 0)
        gc.collect()
        return request._operation.__class__ is Operation and operation() is not None

    assert run_ranks(2, main) == [True, True]


# -------------------------------------------------------------------------------------- cancelling


def test_a_cancelled_receive_takes_no_message():
    def main(comm):
        if comm.rank == 0:
            cancelled, kept = comm.irecv(1, 3), comm.irecv(1, 3)
            assert cancelled.cancel()
            assert not cancelled.cancel()
            assert cancelled.done
            assert error_of(UsageError, cancelled.wait) == "irecv from rank 1, tag 3 was cancelled"
            comm.send("go", 1)
            assert kept.wait() == "the only one"
            return
        comm.recv(0)
        comm.send("the only one", 0, 3)

    run_ranks(2, main)


@pytest.mark.parametrize("count", [1, LARGE])
def test_a_receive_that_has_a_message_cannot_be_cancelled(count):
    def main(comm):
        if comm.rank == 0:
            request = comm.irecv(1, 3)
            assert comm.recv(1, 4) == "sent"
            assert not request.cancel()
            assert request.wait() == bytes(count)
            return
        sent = comm.isend(bytes(count), 0, 3)
        comm.send("sent", 0, 4)
        sent.wait()

    run_ranks(2, main)


def test_sends_and_collectives_cannot_be_cancelled():
    def main(comm):
        other = 1 - comm.rank
        sent, barrier = comm.isend(bytes(LARGE), other), comm.ibarrier()
        assert not sent.cancel()
        assert not barrier.cancel()
        assert comm.recv(other) == bytes(LARGE)
        wait_all([sent, barrier])
        assert not sent.cancel()

    run_ranks(2, main, unmatched_limit=0)


def test_another_thread_cancels_what_is_waited_for():
    def main(comm):
        request = comm.irecv()
        thread = threading.Thread(target=lambda: (asleep(comm), request.cancel()))
        thread.start()
        assert "was cancelled" in error_of(UsageError, request.wait)
        thread.join()

    run_ranks(1, main)


# ----------------------------------------------------------------------------------------- several


def test_wait_all_gives_results_in_the_order_of_requests():
    def main(comm):
        if comm.rank == 0:
            assert wait_all([comm.irecv(1, tag) for tag in range(20)]) == list(range(20))
            assert wait_all([]) == []
            return
        for tag in reversed(range(20)):
            comm.send(tag, 0, tag)

    run_ranks(2, main)


def test_wait_all_of_one_request_twice():
    def main(comm):
        request = comm.irecv(1 - comm.rank)
        comm.send("it", 1 - comm.rank)
        assert wait_all([request, request]) == ["it", "it"]
        assert [each.wait() for each in as_completed([request, request])] == ["it", "it"]

    run_ranks(2, main)


def test_wait_all_that_times_out_says_how_many_go_on():
    def main(comm):
        requests = [comm.irecv(1 - comm.rank, tag) for tag in (1, 2, 3)]
        comm.send("it", 1 - comm.rank, 2)
        requests[1].wait()
        text = f"timeout of {BRIEFLY} s passed: 2 of 3 go on, first irecv from rank {1 - comm.rank}, tag 1"
        for wait in (wait_all, lambda some, timeout: list(as_completed(some, timeout))):
            assert error_of(DeadlineExceeded, wait, requests, BRIEFLY) == text
        del requests[1]
        assert error_of(DeadlineExceeded, wait_any, requests, BRIEFLY).startswith(f"timeout of {BRIEFLY} s passed: 2 ")
        comm.barrier()
        wait_all([comm.isend(tag, 1 - comm.rank, tag) for tag in (1, 3)])
        assert wait_all(requests) == [1, 3]

    run_ranks(2, main)


def test_one_that_fails_ends_wait_all_and_the_others_go_on():
    survivors = threading.Barrier(2)

    def main(comm):
        if comm.rank == 2:
            comm.recv(0)
            raise ValueError("oops")
        requests = [comm.irecv(1 - comm.rank), comm.irecv(2), comm.irecv(1 - comm.rank)]
        if comm.rank == 0:
            comm.send("go", 2)
        text = "rank 2 on this process failed: ValueError: oops"
        assert error_of(RankFailed, wait_all, requests) == text
        assert wait_any(requests) == 1
        assert error_of(RankFailed, requests[1].wait) == text
        survivors.wait(10)
        comm.send("still", 1 - comm.rank)
        comm.send("here", 1 - comm.rank)
        assert (requests[0].wait(), requests[2].wait()) == ("still", "here")

    with pytest.raises(ExceptionGroup, match="1 of 3 ranks failed"):
        run_ranks(3, main)


def test_requests_to_and_from_a_rank_that_ended_say_so():
    def main(comm):
        if comm.rank == 1:
            return
        error_of(PeerExited, comm.irecv(1).wait)
        error_of(PeerExited, comm.irecv().wait)
        with pytest.raises(PeerExited):
            comm.isend(bytes(LARGE), 1).wait()

    run_ranks(2, main)


def test_wait_any_gives_the_position_of_one_that_has_ended():
    def main(comm):
        if comm.rank == 0:
            requests = [comm.irecv(1, tag) for tag in range(4)]
            for tag in (2, 0, 3, 1):
                comm.send(tag, 1)
                assert requests[wait_any([each for each in requests if not each.done])] is not None
                assert requests[tag].wait() == tag
            assert wait_any(requests) == 0
            assert error_of(UsageError, wait_any, []) == "wait_any needs at least one request"
            return
        for _ in range(4):
            tag = comm.recv(0)
            comm.send(tag, 0, tag)

    run_ranks(2, main)


def test_requests_of_two_test_ranks_cannot_be_waited_for_together():
    """Nor something that is no request."""
    met, requests = threading.Barrier(2), [None, None]

    def main(comm):
        requests[comm.rank] = comm.irecv(1 - comm.rank)
        met.wait(10)
        for wait in (wait_all, wait_any, as_completed):
            error_of(UsageError, wait, requests)
            assert error_of(UsageError, wait, [requests[comm.rank], 1]) == "1 is no request"
        met.wait(10)
        requests[comm.rank].cancel()

    run_ranks(2, main)


def test_as_completed_yields_each_as_soon_as_it_has_ended():
    def main(comm):
        if comm.rank == 0:
            requests = [comm.irecv(1, tag) for tag in range(6)]
            came = []
            for request in as_completed(requests):
                came.append(request.wait())
                comm.send("next", 1)
            assert list(as_completed([])) == []
            return came
        for tag in (3, 1, 4, 0, 5, 2):
            comm.send(tag, 0, tag)
            comm.recv(0)
        return None

    assert run_ranks(2, main)[0] == [3, 1, 4, 0, 5, 2]


def test_as_completed_yields_those_that_failed_too():
    def main(comm):
        if comm.rank == 2:
            comm.recv(0)
            raise ValueError("oops")
        requests = [comm.irecv(2, 1), comm.irecv(1 - comm.rank, 1)]
        each = as_completed(requests)
        comm.send("it", 1 - comm.rank, 1)
        assert next(each) is requests[1]
        if comm.rank == 0:
            comm.send("go", 2)
        assert next(each) is requests[0]
        assert list(each) == []

    with pytest.raises(ExceptionGroup, match="1 of 3 ranks failed"):
        run_ranks(3, main)


def test_thousands_of_requests_are_each_watched_once(monkeypatch):
    """Not once more for each that ends before."""
    count, watched = 2000, []
    watch = Operation.watch
    monkeypatch.setattr(Operation, "watch", lambda self, watcher: (watched.append(self), watch(self, watcher))[1])

    def main(comm):
        if comm.rank == 0:
            requests = [comm.irecv(1, tag) for tag in range(count)]
            kept = [request._operation for request in requests]
            comm.send("go", 1)
            came = [request.wait() for request in as_completed(requests)]
            assert not any(operation.watchers for operation in kept)
            return came
        comm.recv(0)
        for tag in reversed(range(count)):
            comm.send(tag, 0, tag)
        return None

    assert run_ranks(2, main)[0] == list(reversed(range(count)))
    assert len(watched) == count


def test_an_iteration_that_is_left_stops_watching():
    def main(comm):
        requests = [comm.irecv(1 - comm.rank, tag) for tag in range(3)]
        comm.send("it", 1 - comm.rank, 1)
        for _ in as_completed(requests):
            break
        assert not requests[0]._operation.watchers
        comm.send("it", 1 - comm.rank, 0)
        comm.send("it", 1 - comm.rank, 2)
        wait_all(requests)

    run_ranks(2, main)


# ----------------------------------------------------------------------------------------- threads


def test_several_threads_wait_for_one_request_and_get_one_object():
    both = threading.Barrier(2)

    def main(comm):
        request, results = comm.irecv(1 - comm.rank), []
        threads = [threading.Thread(target=lambda: results.append(request.wait())) for _ in range(6)]
        for thread in threads:
            thread.start()
        asleep(comm)
        both.wait(10)
        comm.send(["it"], 1 - comm.rank)
        for thread in threads:
            thread.join()
        return len(results), len(set(map(id, results)))

    assert run_ranks(2, main) == [(6, 1)] * 2


def test_threads_wait_for_requests_of_each_other(run):
    threads, laps = 4, 25

    def main(comm):
        other, wrong, lanes = 1 - comm.rank, [], [[] for _ in range(threads)]
        begun = threading.Barrier(threads)

        def work(number):
            for lap in range(laps):
                received = comm.irecv(other, number)
                sent = comm.isend((number, lap, bytes(SIZES[lap % 6])), other, number)
                lanes[number].append((received, sent))
                begun.wait(20)
                received, sent = lanes[(number + 1) % threads][lap]
                if received.wait()[:2] != ((number + 1) % threads, lap):
                    wrong.append((number, lap))
                sent.wait()

        running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return wrong

    assert run(2, main) == [[], []]


# ----------------------------------------------------------------------------------------- signals


class Interrupted(Exception):
    pass


@pytest.fixture
def interrupts():
    """Lets a signal handler raise."""

    def handler(_number, _frame):
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handler)
    yield lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    "wait", [lambda one: one.wait(20), lambda one: wait_all([one], 20), lambda one: wait_any([one], 20)]
)
def test_a_wait_that_a_signal_handler_leaves_leaves_the_request_as_it_was(interrupts, pair, wait):
    comm, other = pair
    request = comm.irecv(1)
    helper = threading.Thread(target=lambda: (asleep(comm), interrupts()))
    helper.start()
    with pytest.raises(Interrupted):
        wait(request)
    helper.join()
    assert not request.done
    other.send("it", 0)
    assert request.wait(10) == "it"


@pytest.fixture
def pair():
    """Two ranks of this process, for the main thread: only there do handlers run."""
    from joined import new_comms

    comms = new_comms(2)
    yield comms
    for comm in comms:
        comm._endpoint.close()


@pytest.mark.parametrize("role", ["irecv", "isend"])
def test_a_stream_of_requests_survives_thousands_of_interruptions(role):
    program = Path(__file__).parent.parent / "transport" / "interrupted.py"
    run = subprocess.run(
        [sys.executable, str(program), role, "1000", "1"], capture_output=True, text=True, timeout=50, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("messages, 1000 interruptions\n")


# ----------------------------------------------------------------------------------------- asyncio


class Counting(selectors.DefaultSelector):
    """Counts how often its loop woke up, and says when it sleeps without a limit."""

    def __init__(self):
        super().__init__()
        self.wakings = 0
        self.sleeps = threading.Event()

    def select(self, timeout=None):
        self.wakings += 1
        if timeout is None:
            self.sleeps.set()
        return super().select(timeout)


def in_loop(main, selector=None):
    """What ``main()``, a coroutine function, returns in a loop of its own."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        return runner.run(main())


def test_many_tasks_await_requests(run):
    count = 50

    def main(comm):
        other = 1 - comm.rank

        async def take(tag):
            return await comm.irecv(other, tag)

        async def give(tag):
            await comm.isend((tag, bytes(SIZES[tag % 6])), other, tag)

        async def everything():
            tasks = [take(tag) for tag in range(count)] + [give(tag) for tag in reversed(range(count))]
            return await asyncio.gather(*tasks)

        came = in_loop(everything)[:count]
        assert [tag for tag, _ in came] == list(range(count))
        assert [len(value) for _, value in came] == [SIZES[tag % 6] for tag in range(count)]
        assert not comm._endpoint.crank._attending

    run(2, main)


def test_collectives_are_awaited(run):
    def main(comm):
        async def everything():
            total, _, names = await asyncio.gather(
                comm.iallreduce(np.full(50_000, comm.rank + 1)), comm.ibarrier(), comm.iallgather(f"rank {comm.rank}")
            )
            return int(total[0]), names

        return in_loop(everything)

    assert run(3, main) == [(6, ["rank 0", "rank 1", "rank 2"])] * 3


def test_a_loop_that_waits_sleeps():
    """A fifth of a second without a message is one sleep; each message wakes it a few times."""
    selector = Counting()

    def main(comm):
        if comm.rank == 0:
            request, last = comm.irecv(1, 1), comm.irecv(1, 2)

            async def both():
                return await asyncio.gather(awaited(request), awaited(last))

            assert in_loop(both, selector) == ["first", "last"]
            return selector.wakings
        for tag, text in ((1, "first"), (2, "last")):
            assert selector.sleeps.wait(10)
            selector.sleeps.clear()
            assert not selector.sleeps.wait(0.2)
            comm.send(text, 0, tag)
        return None

    wakings = run_ranks(2, main)[0]
    assert wakings < 30


def test_a_request_that_is_done_is_not_waited_for():
    selector = Counting()

    def main(comm):
        request = comm.irecv(1 - comm.rank)
        comm.send("it", 1 - comm.rank)
        request.wait()
        if comm.rank:
            return None

        async def often():
            before = selector.wakings
            for _ in range(50):
                assert await request == "it"
            return selector.wakings - before

        return in_loop(often, selector)

    assert run_ranks(2, main)[0] == 0


def test_two_loops_in_two_threads_await_requests_of_one_rank(run):
    laps = 40

    def main(comm):
        other, wrong = 1 - comm.rank, []

        def work(tag):
            async def laps_of():
                for lap in range(laps):
                    received, sent = comm.irecv(other, tag), comm.isend((tag, lap), other, tag)
                    if await received != (tag, lap):
                        wrong.append((tag, lap))
                    await sent

            in_loop(laps_of)

        threads = [threading.Thread(target=work, args=(tag,)) for tag in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not comm._endpoint.crank._attending
        return wrong

    assert run(2, main) == [[], []]


def test_a_blocking_call_beside_a_task_that_awaits_keeps_nobody_asleep(run):
    """What it takes from the links may be the last to come, and then nothing else would wake the loop."""
    laps = 60

    def main(comm):
        one, two = comm.dup(), comm.dup()
        if comm.rank == 1:
            for lap in range(laps):
                two.send((lap, "two"), 0)
                one.send((lap, "one", bytes(SIZES[lap % 6])), 0)
                comm.recv(0)
            return

        async def laps_of():
            for lap in range(laps):
                task = asyncio.ensure_future(awaited(one.irecv(1)))
                await asyncio.sleep(0)  # it awaits from now on
                assert two.recv(1) == (lap, "two")
                assert (await task)[:2] == (lap, "one")
                comm.send("next", 1)

        in_loop(laps_of)

    run(2, main)


def test_messages_that_find_no_room_leave_without_being_awaited(run):
    """Nobody but a task that waits for what comes of them makes progress then."""
    reader, writer = os.pipe()
    count = 40

    def main(comm):
        if comm.rank == 1:
            os.read(reader, 1)  # in no call of the library: the links fill up
            assert [len(comm.recv(0, 1)) for _ in range(count)] == [30_000] * count
            comm.send("came", 0, 2)
            return

        async def talk():
            came = asyncio.Event()

            async def hear():
                assert await comm.irecv(1, 2) == "came"
                came.set()

            task = asyncio.ensure_future(hear())
            for _ in range(20):
                await asyncio.sleep(0)  # whatever the loop was rung for is done
            for _ in range(count):
                comm.isend(bytes(30_000), 1, 1)
            os.write(writer, b"!")
            await came.wait()
            await task

        in_loop(talk)

    run(2, main)
    os.close(reader)
    os.close(writer)


def test_a_task_that_is_cancelled_leaves_the_request_as_it_was():
    def main(comm):
        if comm.rank == 1:
            comm.recv(0)
            comm.send("it", 0, 1)
            return

        async def impatient():
            request = comm.irecv(1, 1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(awaited(request), BRIEFLY)
            assert not request.done
            assert not request._operation.watchers
            comm.send("go", 1)
            return await request

        assert in_loop(impatient) == "it"

    run_ranks(2, main)


def test_a_loop_that_is_closed_with_a_task_in_it_leaves_no_trace():
    """Its coroutine ends when the garbage is collected, perhaps by somebody who holds our lock."""
    both = threading.Barrier(2)

    def main(comm):
        request = comm.irecv(1 - comm.rank)
        loop = asyncio.SelectorEventLoop()
        waiting = request.__await__()
        loop.run_until_complete(step(waiting))
        loop.close()
        assert comm._endpoint.crank._attending
        with comm._endpoint.crank.lock:
            waiting.close()
        assert not comm._endpoint.crank._attending
        both.wait(10)
        comm.send("it", 1 - comm.rank)
        assert request.wait() == "it"

    run_ranks(2, main)


async def step(waiting):
    """Run an awaitable until it waits for the first time."""
    next(waiting)


def test_a_loop_that_was_closed_is_not_called_any_more():
    both = threading.Barrier(2)

    def main(comm):
        request = comm.irecv(1 - comm.rank)
        loop = asyncio.SelectorEventLoop()
        waiting = request.__await__()
        loop.run_until_complete(step(waiting))
        loop.close()
        both.wait(10)
        comm.send("it", 1 - comm.rank)
        assert request.wait() == "it"  # ends an operation that the loop watches
        waiting.close()
        return in_loop(lambda: awaited(request))

    assert run_ranks(2, main) == ["it", "it"]


def test_a_coroutine_that_is_dropped_while_its_loop_runs_is_forgotten():
    def main(comm):
        request, other = comm.irecv(1 - comm.rank, 1), comm.irecv(1 - comm.rank, 2)

        async def drop():
            waiting = request.__await__()
            next(waiting)
            waiting.close()
            task = asyncio.ensure_future(awaited(other))
            await asyncio.sleep(0)
            comm.send("it", 1 - comm.rank, 2)
            return await task

        assert in_loop(drop) == "it"
        assert not comm._endpoint.crank._attending
        request.cancel()

    run_ranks(2, main)


def test_another_thread_that_leaves_its_call_hands_over_to_the_loop():
    both = threading.Barrier(2)

    def main(comm):
        other = 1 - comm.rank
        requests = [comm.irecv(other, tag) for tag in (1, 2)]
        thread = threading.Thread(target=requests[0].wait)
        thread.start()
        asleep(comm)
        both.wait(10)

        async def last():
            task = asyncio.ensure_future(awaited(requests[1]))
            await asyncio.sleep(0)
            comm.send("for the thread", other, 1)
            await asyncio.get_running_loop().run_in_executor(None, thread.join)
            comm.send("for the loop", other, 2)
            return await task

        return in_loop(last)

    assert run_ranks(2, main) == ["for the loop"] * 2


def test_a_rank_that_fails_is_an_error_of_what_is_awaited():
    def main(comm):
        if comm.rank == 1:
            comm.recv(0)
            raise ValueError("oops")

        async def everything():
            tasks = [asyncio.ensure_future(awaited(each)) for each in (comm.irecv(1), comm.ibarrier())]
            comm.send("go", 1)
            return await asyncio.gather(*tasks, return_exceptions=True)

        assert [type(error) for error in in_loop(everything)] == [RankFailed, RankFailed]

    with pytest.raises(ExceptionGroup, match="1 of 2 ranks failed"):
        run_ranks(2, main)


def test_a_mismatch_is_an_error_of_what_is_awaited_and_of_what_is_polled():
    """Both are roots, so no frame could tell: whoever has waited for a while says what he called."""

    def main(comm):
        if comm.rank == 0:
            return in_loop(lambda: mismatch(comm.ireduce(1, root=0)))
        request = comm.ireduce(1, root=1)
        while not request.test():
            pass
        return error_of(CollectiveMismatch, request.wait)

    async def mismatch(request):
        with pytest.raises(CollectiveMismatch) as caught:
            await request
        return str(caught.value)

    for text in run_ranks(2, main):
        assert "reduce(root=0" in text
        assert "reduce(root=1" in text


def test_what_is_awaited_hears_that_everything_was_closed():
    over = threading.Barrier(2)

    def main(comm):
        async def leave():
            tasks = [asyncio.ensure_future(awaited(each)) for each in (comm.irecv(), comm.ibarrier())]
            await asyncio.sleep(0)
            comm._endpoint.close()
            with pytest.raises(ChannelClosed):
                await comm.irecv()
            return await asyncio.gather(*tasks, return_exceptions=True)

        errors = in_loop(leave) if comm.rank == 0 else None
        over.wait(10)
        return errors

    errors = run_ranks(2, main)[0]
    assert [str(error) for error in errors] == ["this endpoint is closed"] * 2


# ----------------------------------------------------------------------------------- what is left


def test_what_was_begun_and_not_waited_for_is_told_at_the_end():
    def main(comm):
        other = 1 - comm.rank
        request = comm.isend(bytes(LARGE), other, 6)
        barrier = comm.ibarrier() if comm.rank == 0 else None
        small = comm.isend("small", other)
        lines = comm._family.unfinished()
        comm.barrier() if barrier is None else barrier.wait()
        assert (comm.recv(other, 6), comm.recv(other)) == (bytes(LARGE), "small")
        wait_all([request, small])
        assert comm._family.unfinished() == []
        return lines

    lines = run_ranks(2, main, unmatched_limit=0)
    here = Path(__file__).name
    assert "isend to rank 1, tag 6, 300000 bytes, at " in lines[0][0]
    assert here in lines[0][0]
    assert lines[0][1].startswith("nonblocking barrier(), at ")
    assert len(lines[1]) == 1


def test_thousands_of_requests_that_were_dropped_are_not_remembered():
    def main(comm):
        for _ in range(300):
            comm.isend(bytes(70_000), 1 - comm.rank)
            assert len(comm.recv(1 - comm.rank)) == 70_000
        comm.barrier()
        gc.collect()
        return len(comm._family._begun)

    assert max(run_ranks(2, main)) < 10
