"""The simulator: what it copies, what it calls a deadlock, and what it will not let pass."""

from __future__ import annotations

import numpy as np
import pytest

from rmpi.comm.schedule import Recv, Send, finished
from rmpi.errors import Deadlock
from rmpi.testing.simulate import simulate

both_modes = pytest.mark.parametrize("synchronous", [False, True], ids=["buffered", "synchronous"])


def one_way(value, out=None):
    def schedule(rank):
        if rank == 0:
            return (yield Send(1, value))
        return (yield Recv(0, out))

    return schedule


@both_modes
def test_results_and_trace(synchronous):
    run = simulate(one_way("hello"), 2, synchronous=synchronous)
    assert run.results == [None, "hello"]
    assert run.trace == ["0 -> 1 hello"]
    assert (len(run.messages), run.nbytes) == (1, 5)


def test_long_values_are_cut_and_arrays_described():
    assert simulate(one_way("x" * 100), 2).trace == ["0 -> 1 " + "x" * 39 + "…"]
    assert simulate(one_way(np.zeros((2, 3), "f4")), 2).trace == ["0 -> 1 float32[2, 3]"]


@pytest.mark.parametrize(
    ("value", "nbytes"),
    [(np.zeros(10), 80), (b"abc", 3), (7, 8), (["ab", np.zeros(2)], 18), ({"key": (1, None)}, 19)],
)
def test_bytes_are_counted(value, nbytes):
    assert simulate(one_way(value), 2).nbytes == nbytes


@both_modes
def test_a_tuple_of_steps_gives_a_list_in_order(synchronous):
    def exchange(rank):
        return (yield Send(1 - rank, rank), Recv(1 - rank), Send(1 - rank, "more"), Recv(1 - rank))

    run = simulate(exchange, 2, synchronous=synchronous)
    assert run.results == [[None, 1, None, "more"], [None, 0, None, "more"]]


def test_an_empty_tuple_is_complete_at_once():
    def schedule(rank):
        return (yield ()), rank

    assert simulate(schedule, 2).results == [([], 0), ([], 1)]


@both_modes
def test_messages_of_a_pair_stay_in_order(synchronous):
    def schedule(rank):
        if rank == 0:
            yield Send(1, "a"), Send(1, "b")
            yield Send(1, "c")
            return None
        first = yield Recv(0)
        return [first, *(yield Recv(0), Recv(0))]

    assert simulate(schedule, 2, synchronous=synchronous).results[1] == ["a", "b", "c"]


@both_modes
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(3.5),
        np.zeros((0, 4), "M8[s]"),
        np.zeros(2, [("x", "i2"), ("y", "f8")]),
    ],
)
def test_values_are_copied_as_a_wire_would(array, synchronous):
    received = simulate(one_way(array), 2, synchronous=synchronous).results[1]
    assert not np.shares_memory(received, array)
    assert (received.dtype, received.shape) == (array.dtype, array.shape)
    assert received.flags.f_contiguous == array.flags.f_contiguous
    assert (received == array).all()


@both_modes
def test_nested_values_are_copied_too(synchronous):
    value = {"list": [1, 2]}
    received = simulate(one_way(value), 2, synchronous=synchronous).results[1]
    assert received == value
    assert received["list"] is not value["list"]


def test_an_array_that_fits_is_received_in_place():
    out = np.zeros(3)
    assert simulate(one_way(np.ones(3), out), 2).results[1] is out
    assert out.tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", [np.ones(4), np.ones(3, "f4"), [1.0, 1.0, 1.0], 1.0])
def test_anything_else_is_a_new_value(value):
    out = np.zeros(3)
    assert simulate(one_way(value, out), 2).results[1] is not out
    assert out.tolist() == [0, 0, 0]


def test_a_synchronous_send_reads_its_value_as_late_as_it_may():
    """Receiving over what is still being sent: buffering would hide it."""

    def overwrites(rank):
        mine = np.full(2, rank)
        peer = 1 - rank
        _, theirs = yield Send(peer, mine), Recv(peer, mine)
        return theirs[0]

    assert simulate(overwrites, 2).results == [1, 0]
    assert simulate(overwrites, 2, synchronous=True).results != [1, 0]


def test_a_deadlock_is_named():
    def each_waits_first(rank):
        value = yield Recv(1 - rank)
        yield Send(1 - rank, value)

    with pytest.raises(Deadlock, match=r"^0 waits for 1, 1 waits for 0$"):
        simulate(each_waits_first, 2)


def test_relying_on_buffers_is_a_deadlock_only_without_them():
    def each_sends_first(rank):
        yield Send(1 - rank, rank)
        return (yield Recv(1 - rank))

    assert simulate(each_sends_first, 2).results == [1, 0]
    with pytest.raises(Deadlock, match=r"^0 waits for 1, 1 waits for 0$"):
        simulate(each_sends_first, 2, synchronous=True)


def test_waiting_for_one_who_has_finished_is_said():
    def schedule(rank):
        if rank == 2:
            yield Recv(0), Recv(1)

    with pytest.raises(Deadlock, match=r"^2 waits for 0 \(which has finished\) and 1 \(which has finished\)$"):
        simulate(schedule, 3)


def test_a_message_that_nobody_receives_is_an_error():
    def schedule(rank):
        if rank == 0:
            yield Send(1, "unwanted")

    with pytest.raises(AssertionError, match="left over that nobody receives: 0 -> 1"):
        simulate(schedule, 2)


@pytest.mark.parametrize("peer", [0, 2, -1])
def test_a_peer_must_be_another_rank(peer):
    def schedule(rank):
        if rank == 0:
            yield Recv(peer)

    with pytest.raises(AssertionError, match=f"rank 0 of 2 names peer {peer}"):
        simulate(schedule, 2)


def test_an_exception_comes_out_with_the_rank_it_was_on():
    closed = []

    def schedule(rank):
        try:
            if rank == 1:
                raise ValueError("mine")
            yield Recv(1)
        finally:
            closed.append(rank)

    with pytest.raises(ValueError, match="mine") as caught:
        simulate(schedule, 3)
    assert caught.value.__notes__ == ["in the schedule of rank 1 of 3"]
    assert sorted(closed) == [0, 1]  # rank 2 had not begun


def test_a_finished_schedule_never_yields():
    run = simulate(lambda rank: finished(rank), 3)
    assert (run.results, run.messages) == ([0, 1, 2], [])
