"""Nonblocking collectives: the results of the blocking calls, several at once, and what becomes of their errors."""

import asyncio
import threading

import numpy as np
import pytest

from rmpi import MAX, SUM, Operator, as_completed, wait_all
from rmpi.errors import ChannelClosed, CollectiveMismatch, DeadlineExceeded, PeerExited, RankFailed, UsageError
from rmpi.testing.ranks import run_ranks

BRIEFLY = 0.02
LARGE = 9_000
"""Numbers of 8 bytes in an array that does not travel eagerly."""

every_size = pytest.mark.parametrize("size", [1, 2, 3, 4, 7], ids="n={}".format)
many_ranks = pytest.mark.parametrize("size", [2, 3, 4, 7], ids="n={}".format)


def error_of(kind, call, *args, **kwargs):
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


def join(low, high):
    """Associative, and does not commute."""
    return low + high


def mine(comm, count):
    return np.arange(count, dtype=float) % 13 + comm.rank


def column(comm, count):
    """One value for each rank, of different sizes."""
    return [np.full(count * (rank + 1), comm.rank) for rank in range(comm.size)]


COLLECTIVES = {
    "barrier": lambda _comm, call, _count: call(),
    "broadcast": lambda comm, call, count: call(
        mine(comm, count) if comm.rank == comm.size - 1 else None, comm.size - 1
    ),
    "broadcast out": lambda comm, call, count: call(mine(comm, count), 0, out=np.zeros(count)),
    "reduce": lambda comm, call, count: call(mine(comm, count), SUM, comm.size - 1),
    "reduce object": lambda comm, call, count: call(str(comm.rank) * count, join),
    "allreduce": lambda comm, call, count: call(mine(comm, count)),
    "allreduce callable": lambda comm, call, count: call(mine(comm, count), join),
    "allreduce max": lambda comm, call, count: call(mine(comm, count), MAX),
    "allreduce ring": lambda comm, call, count: call(
        mine(comm, count).astype(int), Operator(np.add, name="add", commutes=True, reproducible=False)
    ),
    "allreduce out": lambda comm, call, count: call(mine(comm, count), out=np.zeros(count)),
    "allreduce text": lambda comm, call, _count: call([comm.rank], join),
    "scan": lambda comm, call, count: call(mine(comm, count)),
    "scan object": lambda comm, call, _count: call(str(comm.rank), join),
    "exscan": lambda comm, call, count: call(mine(comm, count)),
    "exscan object": lambda comm, call, _count: call(str(comm.rank), join),
    "reduce_scatter": lambda comm, call, count: call(mine(comm, count * comm.size)),
    "reduce_scatter object": lambda comm, call, _count: call([str(comm.rank)] * comm.size, join),
    "gather": lambda comm, call, count: call(mine(comm, count), comm.size - 1),
    "gather concatenate": lambda comm, call, count: call(mine(comm, count + comm.rank), 0, concatenate=True),
    "allgather": lambda comm, call, count: call({"from": comm.rank, "array": mine(comm, count)}),
    "allgather out": lambda comm, call, count: call(mine(comm, count), out=np.zeros((comm.size, count))),
    "allgather concatenate": lambda comm, call, count: call(mine(comm, count + comm.rank), concatenate=True),
    "scatter": lambda comm, call, count: call(column(comm, count) if comm.rank == 0 else None),
    "scatter array": lambda comm, call, count: call(mine(comm, count + 1), comm.size - 1),
    "alltoall": lambda comm, call, count: call(column(comm, count)),
    "alltoall array": lambda comm, call, count: call(mine(comm, count + 1)),
}


def alike(one, other):
    if isinstance(one, np.ndarray):
        return type(other) is np.ndarray and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return type(one) is type(other) and one == other


def both_ways(comm, name, count):
    """What the blocking call gives, and the request of the nonblocking one."""
    method = name.split()[0]
    call = COLLECTIVES[name]
    return call(comm, getattr(comm, method), count), call(comm, getattr(comm, f"i{method}"), count)


@every_size
@pytest.mark.parametrize("count", [3, LARGE])
def test_the_result_is_that_of_the_blocking_call_bit_for_bit(size, count):
    def main(comm):
        for name in COLLECTIVES:
            expected, request = both_ways(comm, name, count)
            assert alike(request.wait(), expected), name
            assert request.wait() is request.wait()

    run_ranks(size, main)


def test_the_result_is_the_same_between_processes(run):
    def main(comm):
        for count in (3, LARGE):
            for name in COLLECTIVES:
                expected, request = both_ways(comm, name, count)
                assert alike(request.wait(), expected), name

    run(3, main)


@many_ranks
@pytest.mark.parametrize("count", [3, LARGE])
def test_all_of_them_go_on_at_once_and_are_waited_for_in_any_order(size, count):
    def main(comm):
        sibling = comm.dup()
        names = list(COLLECTIVES)
        expected = [COLLECTIVES[name](comm, getattr(comm, name.split()[0]), count) for name in names]
        begun = [
            (position, COLLECTIVES[name](each, getattr(each, f"i{name.split()[0]}"), count))
            for position, name in enumerate(names)
            for each in (comm, sibling)
        ]
        order = sorted(range(len(begun)), key=lambda number: (number * 11 + comm.rank * 17) % len(begun))
        for number in order:
            position, request = begun[number]
            assert alike(request.wait(), expected[position]), names[position]

    run_ranks(size, main)


def test_what_lands_in_out_is_there_when_the_request_is_done():
    """Nobody has waited: `Request.test` says it."""

    def main(comm):
        outs = [np.zeros(count) for count in (5, LARGE)] + [np.zeros((3, count)) for count in (5, LARGE)]
        requests = [
            comm.iallreduce(np.ones(5), out=outs[0]),
            comm.ibroadcast(np.full(LARGE, 7.0), out=outs[1]),
            comm.iallgather(np.ones(5), out=outs[2]),
            comm.iallgather(np.ones(LARGE), out=outs[3]),
        ]
        while not all(request.test() for request in requests):
            pass
        assert (outs[0] == 3).all()
        assert comm.rank == 0 or (outs[1] == 7).all()
        assert (outs[2] == 1).all()
        assert (outs[3] == 1).all()
        comm.barrier()

    run_ranks(3, main)


def test_blocking_collectives_and_messages_go_on_beside_nonblocking_ones():
    def main(comm):
        other = (comm.rank + 1) % comm.size
        first = comm.iallreduce(mine(comm, LARGE))
        total = comm.allreduce(comm.rank)
        assert comm.sendrecv(comm.rank, other, tag_of(comm)) == tag_of(comm)
        last = comm.iallgather(comm.rank)
        comm.barrier()
        assert last.wait() == list(range(comm.size))
        assert alike(first.wait(), comm.allreduce(mine(comm, LARGE)))
        return total

    def tag_of(comm):
        return (comm.rank - 1) % comm.size

    assert run_ranks(4, main) == [6] * 4


def test_hundreds_are_under_way_at_once():
    """More than the communicator remembers calls."""
    count = 200

    def main(comm):
        requests = [comm.iallreduce((comm.rank, number), join) for number in range(count)]
        return [request.wait() for request in reversed(requests)] == [
            (0, number, 1, number, 2, number) for number in reversed(range(count))
        ]

    assert run_ranks(3, main) == [True] * 3


def test_a_collective_goes_on_in_whatever_call_is_made():
    """Rank 0 never waits for it, only for a message that comes when the others have finished it."""

    def main(comm):
        request = comm.iallreduce(np.full(LARGE, 1.0), join)
        if comm.rank == 0:
            assert comm.recv() == "finished"
            assert request.done
        else:
            request.wait()
            comm.send("finished", 0)
        assert (request.wait() == comm.size).all()

    run_ranks(2, main)


def test_progress_is_enough():
    def main(comm):
        request = comm.iallreduce(np.full(LARGE, 1.0))
        while not request.done:
            comm.progress()
        return request.wait()[-1]

    assert run_ranks(3, main) == [3.0] * 3


def test_threads_wait_for_collectives_that_one_thread_began():
    def main(comm):
        requests = [comm.iallreduce(mine(comm, count), join) for count in (3, LARGE) * 5]
        results = [None] * len(requests)

        def wait(number):
            results[number] = requests[number].wait()

        threads = [threading.Thread(target=wait, args=(number,)) for number in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return all(alike(results[number], results[number % 2]) for number in range(len(results)))

    assert run_ranks(3, main) == [True] * 3


def test_several_communicators_are_served_as_their_collectives_complete():
    def main(comm):
        subs = [comm.dup() for _ in range(4)]
        if comm.rank == 0:
            requests = [sub.ibarrier() for sub in subs]
            order = []
            for request in as_completed(requests):
                order.append(requests.index(request))
                comm.send("next", 1)
            return order
        for number in (2, 0, 3, 1):
            subs[number].ibarrier().wait()
            comm.recv(0)
        return None

    assert run_ranks(2, main)[0] == [2, 0, 3, 1]


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "call",
    [
        lambda comm: comm.ibroadcast(1, root=3),
        lambda comm: comm.iallreduce(1, "plus"),
        lambda comm: comm.iscatter([1], root=comm.rank),
        lambda comm: comm.iallgather(1, out=np.zeros(7)),
        lambda comm: comm.ialltoall([1, 2, 3]),
    ],
    ids=["root", "operator", "too few values", "out", "too many values"],
)
def test_wrong_arguments_are_refused_at_once_and_begin_nothing(call):
    def main(comm):
        with pytest.raises(UsageError):
            call(comm)
        return comm.iallreduce(1).wait()

    assert run_ranks(2, main) == [2, 2]


def test_a_result_that_does_not_fit_is_an_error_of_one_rank_and_all_go_on():
    def main(comm):
        request = comm.iallreduce(np.ones(3), out=np.zeros(4) if comm.rank == 1 else None)
        if comm.rank == 1:
            text = "out= is an array (4,) of float64, but the result is an array (3,) of float64"
            assert error_of(UsageError, request.wait) == error_of(UsageError, request.wait) == text
        else:
            assert (request.wait() == 3).all()
        return comm.iallreduce(1).wait()

    assert run_ranks(3, main) == [3] * 3


class Uncopied(Exception):
    """An error that cannot be copied."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


def fails(_low, _high):
    raise Uncopied("operator", "as tested")


@many_ranks
@pytest.mark.parametrize("count", [1, 20_000])
def test_an_operator_that_raises_is_an_error_of_all_ranks(size, count):
    """Of those that called it its own, with its traceback; of the others, that these ranks failed."""

    def main(comm):
        request = comm.iallreduce(np.ones(count), fails)
        try:
            request.wait(20)
        except Uncopied as error:
            last = error.__traceback__
            while last.tb_next is not None:
                last = last.tb_next
            assert last.tb_frame.f_code is fails.__code__
            assert " ended with Uncopied; " in error_of(ChannelClosed, comm.ibarrier)
            assert error_of(Uncopied, request.wait) == "operator: as tested"
            raise

    with pytest.raises(ExceptionGroup) as caught:
        run_ranks(size, main)
    assert len(caught.value.exceptions) == size
    kinds = {type(error) for error in caught.value.exceptions}
    assert Uncopied in kinds
    assert kinds <= {Uncopied, RankFailed}


def test_an_operator_that_raises_in_another_call_does_not_disturb_that():
    def main(comm):
        sub = comm.dup()
        request = sub.iallreduce(comm.rank, fails)
        assert comm.sendrecv(comm.rank, 1 - comm.rank) == 1 - comm.rank
        assert comm.allreduce(1) == 2
        sub.free()
        with pytest.raises((Uncopied, ChannelClosed, PeerExited)):
            request.wait()

    run_ranks(2, main)


@pytest.mark.parametrize("by", ["wait", "progress", "await", "start"])
def test_an_operator_must_not_wait_for_messages(by):
    """Whoever calls it: a wait, polling, an event loop, or the call that began the collective."""

    def main(comm):
        inner = comm.dup()

        def talks(_low, _high):
            return inner.recv(1 - comm.rank, timeout=20)

        if by == "start" and comm.rank == 0:
            comm.recv(1)  # its operand is there before the call
        request = comm.iallreduce("mine", talks)
        if by == "start" and comm.rank == 1:
            comm.send("begun", 0)
        while by == "progress" and not request.done:
            comm.progress()
        if by == "await":
            return asyncio.run(outcome(request))
        return error_of(UsageError, request.wait)

    async def outcome(request):
        with pytest.raises(UsageError) as caught:
            await request
        return str(caught.value)

    with pytest.raises(ExceptionGroup) as caught:
        run_ranks(2, lambda comm: fail_with(main(comm)))
    texts = {str(error) for error in caught.value.exceptions}
    assert any("an operator, callback or signal handler must not wait for messages" in text for text in texts)


def fail_with(text):
    raise ValueError(text)


def test_an_operator_may_send_and_look():
    """What does not wait is allowed, and makes progress for others."""

    def main(comm):
        inner = comm.dup()

        def looks(low, high):
            inner.isend("from the operator", comm.rank, 1)
            comm.progress()
            inner.iprobe()
            return low + high

        first, second = comm.iallreduce(1, looks), comm.iallreduce(np.ones(LARGE), looks)
        assert (second.wait() == 3).all()
        return first.wait()

    assert run_ranks(3, main) == [3] * 3


MISMATCHES = {
    "kind": (lambda comm: comm.ibarrier(), lambda comm: comm.iallgather(1), "barrier()", "allgather()"),
    "root": (lambda comm: comm.ireduce(1), lambda comm: comm.ireduce(1, root=1), "root=0", "root=1"),
    "operator": (lambda comm: comm.iallreduce(1), lambda comm: comm.iallreduce(1, MAX), "op=SUM", "op=MAX"),
    "shape": (lambda comm: comm.iscan(np.ones(3)), lambda comm: comm.iscan(np.ones(4)), "(3,)", "(4,)"),
    "blocking": (lambda comm: comm.ibarrier(), lambda comm: comm.allreduce(1), "barrier()", "allreduce("),
}


@many_ranks
@pytest.mark.parametrize(("first", "second", "one", "other"), MISMATCHES.values(), ids=MISMATCHES)
def test_a_mismatch_is_told_to_every_rank_with_both_calls(size, first, second, one, other):
    def main(comm):
        def call():
            request = (second if comm.rank == size - 1 else first)(comm)
            request.wait()
            comm.ibarrier().wait()

        return error_of(CollectiveMismatch, call)

    for text in run_ranks(size, main):
        assert one in text
        assert other in text
        assert "test_nonblocking.py" in text


def test_two_roots_that_wait_for_each_other_hear_of_it():
    """No frame is under way that could disagree."""

    def main(comm):
        request = comm.igather(1, root=comm.rank)
        return error_of(CollectiveMismatch, wait_all, [request], 5)

    for text in run_ranks(2, main):
        assert "gather(root=0)" in text
        assert "gather(root=1)" in text


def test_impatience_takes_many_short_waits():
    """None of them lasts as long as it takes to become impatient."""

    def main(comm):
        request = comm.igather(1, root=comm.rank)
        while True:
            try:
                request.wait(BRIEFLY)
            except DeadlineExceeded:
                continue
            except CollectiveMismatch:
                return True

    assert run_ranks(2, main) == [True, True]


def test_a_wait_that_times_out_leaves_the_collective_to_go_on():
    late = threading.Event()

    def main(comm):
        if comm.rank == 0:
            request = comm.iallreduce(np.ones(LARGE))
            text = f"allreduce(op=SUM, array ({LARGE},) of float64): timeout of {BRIEFLY} s passed; the request goes on"
            assert error_of(DeadlineExceeded, request.wait, BRIEFLY) == text
            late.set()
        else:
            late.wait(10)
            request = comm.iallreduce(np.ones(LARGE))
        assert (request.wait() == 3).all()
        return comm.allreduce(1)

    assert run_ranks(3, main) == [3] * 3


@many_ranks
def test_a_rank_that_dies_ends_the_collectives_that_need_it(size):
    together = threading.Barrier(size)

    def main(comm):
        requests = [comm.ibarrier(), comm.iallreduce(np.ones(LARGE)), comm.iallgather(1), comm.ibarrier()]
        wait_all(requests)
        together.wait(10)
        if comm.rank == size - 1:
            comm.recv(0)
            raise ValueError("oops")
        requests = [comm.ibarrier(), comm.iallreduce(np.ones(LARGE)), comm.iallgather(1)]
        if comm.rank == 0:
            comm.send("die", size - 1)
        for request in requests:
            assert error_of(RankFailed, request.wait) == f"rank {size - 1} on this process failed: ValueError: oops"
        error_of(RankFailed, comm.ibarrier)

    with pytest.raises(ExceptionGroup, match=f"1 of {size} ranks failed"):
        run_ranks(size, main)


def test_a_rank_that_ended_well_is_told_to_those_who_still_need_it():
    def main(comm):
        if comm.rank == 0:
            return
        with pytest.raises(PeerExited):
            comm.ibarrier().wait()

    run_ranks(2, main)


def test_one_that_failed_ends_the_others_of_its_communicator_alone():
    def main(comm):
        sub = comm.dup()
        here, there = [comm.ibarrier() for _ in range(3)], sub.iallreduce(1)
        if comm.rank == 0:
            bad, good = comm.iallreduce(1), sub.iallreduce(2)
        else:
            bad, good = comm.iallreduce(1.0, MAX), sub.iallreduce(2)
        error_of(CollectiveMismatch, bad.wait)
        for request in here:
            assert request.done
        return there.wait() + good.wait()

    assert run_ranks(2, main) == [6, 6]


def test_a_value_that_cannot_be_pickled_is_an_error_of_its_request():
    def main(comm):
        if comm.rank == 0:
            assert "cannot be pickled" in error_of(UsageError, comm.ibroadcast(threading.Lock()).wait)
            assert " ended with UsageError; " in error_of(ChannelClosed, comm.ibarrier)
            raise ValueError("oops")
        error_of(RankFailed, comm.ibroadcast().wait)

    with pytest.raises(ExceptionGroup, match="1 of 3 ranks failed"):
        run_ranks(3, main)
