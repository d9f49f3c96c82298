"""Deadlocks of ranks that are threads: which are found, what is said of them, and above all what is none.

Ranks count as blocked after `SHORTLY` here, instead of half a second.
"""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest

from rmpi import ANY_SOURCE, ANY_TAG
from rmpi.errors import ChannelClosed, CollectiveMismatch, DeadlineExceeded, Deadlock, PeerExited
from rmpi.testing.ranks import run_ranks

SHORTLY = 0.02
"""Seconds."""


def deadlock_of(size, main, **surroundings):
    """The lines of the error that every rank must raise."""
    with pytest.raises(ExceptionGroup) as caught:
        run_ranks(size, main, blocked_after=SHORTLY, **surroundings)
    errors = caught.value.exceptions
    assert [type(error) for error in errors] == [Deadlock] * size, errors
    assert len({str(error) for error in errors}) == 1
    first, *lines = str(errors[0]).splitlines()
    assert first == "every rank waits, and nothing is on its way:"
    return [line.strip().partition(" at ")[0] for line in lines]


# -- what is a deadlock ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_ring_of_receives(size):
    def main(comm):
        comm.recv(source=(comm.rank + 1) % size, tag=5)

    lines = deadlock_of(size, main)
    whom = [f"rank {(rank + 1) % size}" if size > 1 else "itself" for rank in range(size)]
    assert lines[:size] == [
        f"rank {rank} waits for {whom[rank]} in recv(source={(rank + 1) % size}, tag=5)" for rank in range(size)
    ]
    cycle = " → ".join(map(str, [*range(size), 0]))
    assert lines[size:] == ([f"cycle: {cycle}"] if size > 1 else [])


def test_the_call_is_named_with_file_and_line():
    def main(comm):
        comm.recv(source=1 - comm.rank)

    with pytest.raises(ExceptionGroup) as caught:
        run_ranks(2, main, blocked_after=SHORTLY)
    line = main.__code__.co_firstlineno + 1
    assert f"in recv(source=1, tag=ANY_TAG) at {__file__}:{line}\n" in str(caught.value.exceptions[0])


def test_messages_that_nobody_asks_for_are_named():
    def main(comm):
        other = 1 - comm.rank
        for tag in (7, 6, 7):
            comm.send("spelled wrong", dest=other, tag=tag)
        comm.recv(source=other, tag=5)

    lines = deadlock_of(2, main)
    for me, other in ((0, 1), (1, 0)):
        assert f"rank {me} has 2 messages from rank {other} with tag 7 that nobody asks for" in lines
        assert f"rank {me} has 1 message from rank {other} with tag 6 that nobody asks for" in lines


def test_everybody_waits_for_anybody():
    def main(comm):
        comm.recv(source=ANY_SOURCE, tag=ANY_TAG)

    assert deadlock_of(3, main) == [f"rank {rank} waits in recv(source=ANY_SOURCE, tag=ANY_TAG)" for rank in range(3)]


def test_a_rank_is_missing_in_a_collective():
    def main(comm):
        for _ in range(2):
            comm.barrier()
        if comm.rank == 2:
            comm.recv(source=0, tag=1)
        comm.barrier()

    lines = deadlock_of(4, main)
    assert "rank 2 waits for rank 0 in recv(source=0, tag=1)" in lines
    assert "rank 2 has not called barrier() #2" in lines
    assert sum(line.endswith("in barrier() #2") for line in lines) == 3


def test_a_broadcast_whose_root_never_comes():
    def main(comm):
        if comm.rank == 1:
            comm.recv(source=0)
        comm.broadcast(None, root=1)

    lines = deadlock_of(3, main)
    assert "rank 0 waits for rank 1 in broadcast(root=1) #0" in lines
    assert "rank 1 has not called broadcast(root=1) #0" in lines


def test_large_messages_without_room_for_them():
    """Each waits until the other takes what it sends, and would take it only afterwards."""

    def main(comm):
        comm.send(np.zeros(1 << 20), dest=1 - comm.rank, tag=3)
        comm.recv(source=1 - comm.rank)

    lines = deadlock_of(2, main, unmatched_limit=1000)
    assert lines[:2] == [
        "rank 0 waits for rank 1 in send(dest=1, tag=3)",
        "rank 1 waits for rank 0 in send(dest=0, tag=3)",
    ]
    assert "rank 1 has 1 message from rank 0 with tag 3 that nobody asks for" in lines
    assert lines[-1] == "cycle: 0 → 1 → 0"


def test_both_halves_of_a_sendrecv():
    def main(comm):
        other = 1 - comm.rank
        comm.sendrecv(np.zeros(1 << 20), dest=other, source=other, recvtag=9)

    lines = deadlock_of(2, main, unmatched_limit=1000)
    assert lines[0] == "rank 0 waits for rank 1 in sendrecv(source=1, tag=9; dest=1, tag=0)"


def test_a_rank_that_has_ended_takes_no_part():
    def main(comm):
        if comm.rank < 2:
            comm.recv(source=1 - comm.rank)

    with pytest.raises(ExceptionGroup) as caught:
        run_ranks(3, main, blocked_after=SHORTLY)
    assert [type(error) for error in caught.value.exceptions] == [Deadlock, Deadlock]


def test_two_threads_of_a_rank_wait():
    def main(comm):
        def receive(tag):
            with pytest.raises(Deadlock):
                comm.recv(source=1 - comm.rank, tag=tag)

        thread = threading.Thread(target=receive, args=(1,))
        thread.start()
        receive(2)
        thread.join()

    run_ranks(2, main, blocked_after=SHORTLY)


def test_after_it_the_communicator_cannot_be_used():
    def main(comm):
        with pytest.raises(Deadlock):
            comm.recv(source=1 - comm.rank)
        for call in (comm.barrier, comm.recv, lambda: comm.send(1, dest=0)):
            with pytest.raises(Deadlock):
                call()

    run_ranks(2, main, blocked_after=SHORTLY)


# -- what is none ---------------------------------------------------------------------------------------------


def test_large_messages_that_there_is_room_for():
    def main(comm):
        comm.send(np.full(1 << 20, comm.rank), dest=1 - comm.rank)
        return int(comm.recv(source=1 - comm.rank)[0])

    assert run_ranks(2, main, blocked_after=SHORTLY) == [1, 0]


def long(comm):
    """Compute, in the eyes of everybody else for ever."""
    time.sleep(10 * SHORTLY)
    comm.send("done", dest=1)


def test_a_rank_computes():
    def main(comm):
        return long(comm) if comm.rank == 0 else comm.recv(source=0)

    assert run_ranks(2, main, blocked_after=SHORTLY) == [None, "done"]


def test_a_rank_waits_with_a_time_out():
    def main(comm):
        if comm.rank == 0:
            with pytest.raises(DeadlineExceeded):
                comm.recv(source=1, timeout=10 * SHORTLY)
            return comm.send("done", dest=1)
        return comm.recv(source=0)

    assert run_ranks(2, main, blocked_after=SHORTLY) == [None, "done"]


def test_another_thread_of_a_rank_could_send():
    def main(comm):
        thread = threading.Thread(target=long, args=(comm,))
        if comm.rank == 0:
            thread.start()
        message = comm.recv(source=1 - comm.rank)
        if comm.rank == 0:
            thread.join()
        else:
            comm.send("thanks", dest=0)
        return message

    assert run_ranks(2, main, blocked_after=SHORTLY) == ["thanks", "done"]


def test_a_message_of_a_rank_that_has_ended():
    """It is in the queue of the other's inbox, or on its way there, when its sender is gone."""

    def main(comm):
        if comm.rank == 0:
            comm.send("done", dest=1, tag=1)
            return None
        got = comm.recv(source=0, tag=1)
        with pytest.raises(PeerExited):
            comm.recv(source=0)
        return got

    for _ in range(20):
        assert run_ranks(2, main, blocked_after=0.0005) == [None, "done"]


def test_ranks_that_call_different_things_are_told_so():
    def main(comm):
        with pytest.raises(CollectiveMismatch):
            comm.barrier() if comm.rank else comm.broadcast(1, root=1)

    run_ranks(2, main, blocked_after=0.6)


def test_a_revoked_communicator_is_no_deadlock():
    def main(comm):
        if comm.rank == 0:
            time.sleep(5 * SHORTLY)
            comm.revoke()
        with pytest.raises(ChannelClosed):
            comm.recv(source=1 - comm.rank)

    run_ranks(2, main, blocked_after=SHORTLY)


# -- no false verdict -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_messages_that_are_late_at_just_the_wrong_moment(seed):
    """Ranks count as blocked as soon as they sleep at all, and every message comes about then.

    One of them is always the last to send, after a pause of about the time in which a verdict is reached: all others
    wait for it, or for those that wait for it.
    """
    chance = random.Random(seed)
    pauses = [chance.choice([0, 0, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3]) for _ in range(400)]
    large = [chance.random() < 0.2 for _ in pauses]

    def main(comm):
        following, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        got = 0
        for turn, pause in enumerate(pauses):
            value = np.full(20_000 if large[turn] else 1, turn)
            if turn % comm.size == comm.rank:  # whose turn it is sends first, late
                time.sleep(pause)
                comm.send(value, dest=following)
                got += int(comm.recv(source=before)[-1])
            else:
                got += int(comm.recv(source=before)[-1])
                comm.send(value, dest=following)
            if turn % 16 == 0:
                comm.barrier()
        return got

    expected = sum(range(len(pauses)))
    assert run_ranks(3, main, blocked_after=2e-4) == [expected] * 3


def test_random_traffic_between_threads_of_ranks():
    """Each rank has two threads, and each message is answered at once or after a while."""

    def main(comm):
        other = 1 - comm.rank

        def serve(tag, seed):
            chance = random.Random(seed)
            for turn in range(150):
                first = (turn + tag) % 2 == comm.rank
                if first:
                    time.sleep(chance.choice([0, 2e-4, 1e-3]))
                    comm.send(turn, dest=other, tag=tag)
                assert comm.recv(source=other, tag=tag) == turn
                if not first:
                    comm.send(turn, dest=other, tag=tag)

        thread = threading.Thread(target=serve, args=(1, comm.rank))
        thread.start()
        serve(0, 10 + comm.rank)
        thread.join()

    run_ranks(2, main, blocked_after=2e-4)
