"""Channels among the ranks of a job: what they carry, who hears of ends, and that they are no deadlock of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest

import rmpi
from rmpi import places
from rmpi.errors import UsageError
from rmpi.places.selecting import Selector
from rmpi.testing.ranks import run_ranks

LIMIT = 30.0
"""Seconds for what should take none."""


def run(ranks: int, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A job of such ranks."""
    text = "import rmpi\nfrom rmpi import places\ncomm = rmpi.init()\n" + textwrap.dedent(code)
    words = [sys.executable, "-m", "launcher", "-q", "-n", str(ranks), *options, "-c", text]
    return subprocess.run(words, capture_output=True, text=True, timeout=50.0, check=False)


# -- what they carry ----------------------------------------------------------------------------------------


@pytest.mark.ranks(2, 4)
def test_a_rank_is_sent_a_channel_and_answers_what_it_brings(comm: rmpi.Comm) -> None:
    """The others send rank 0 a channel each, which gives them tasks, and waits for all of them at once."""
    if comm.rank == 0:
        workers = {comm.recv(rank): rank for rank in range(1, comm.size)}
        with_tasks = Selector(workers)
        for worker in workers:
            worker.put(0)
        results = []
        while len(results) < 10 * len(workers):
            for worker in with_tasks.select(timeout=LIMIT):
                rank, number = worker.get(timeout=LIMIT)
                assert rank == workers[worker]
                results.append((rank, number))
                worker.put(number + 1 if number < 9 else None)
                if number == 9:  # soon it ends
                    with_tasks.remove(worker)
        with_tasks.close()
        assert sorted(results) == [(rank, number) for rank in range(1, comm.size) for number in range(10)]
    else:
        ours, theirs = comm.channel_pair()
        comm.send(theirs, 0)
        while True:
            number, reply = ours.receive(timeout=LIMIT)
            if number is None:
                break
            reply.put((comm.rank, number))


@pytest.mark.ranks(1, 3)
def test_all_ranks_may_put_where_one_gets(comm: rmpi.Comm) -> None:
    ours, theirs = comm.channel_pair() if comm.rank == 0 else (None, None)
    inbox = comm.broadcast(theirs, 0)
    array = np.arange(300_000.0).reshape(3, -1).T
    inbox.put({"from": comm.rank, "array": array + comm.rank})
    if ours is not None:
        seen = set()
        for _ in range(comm.size):
            message, reply = ours.receive(timeout=LIMIT)
            assert (message["array"] == array + message["from"]).all()
            seen.add(message["from"])
            reply.put(message["from"] * 10)
        assert seen == set(range(comm.size))
    assert inbox.get(timeout=LIMIT) == comm.rank * 10


@pytest.mark.ranks(3)
def test_a_channel_is_passed_on_by_a_channel(comm: rmpi.Comm) -> None:
    ours, theirs = comm.channel_pair()
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    comm.send(theirs, after)
    to_before = comm.recv(before)
    to_before.put(comm.allgather(theirs)[after])  # so who is before gets to know who is after
    ours.get(timeout=LIMIT).put(f"from {comm.rank}")
    assert ours.get(timeout=LIMIT) in {f"from {rank}" for rank in range(comm.size)}


@pytest.mark.ranks(2)
def test_communicators_end_without_them(comm: rmpi.Comm) -> None:
    group = comm.dup()
    ours, theirs = group.channel_pair()
    other = group.sendrecv(theirs, 1 - comm.rank)
    group.revoke()
    other.put(comm.rank)
    message, reply = ours.receive(timeout=LIMIT)
    assert message == 1 - comm.rank
    reply.put("and back")
    assert other.get(timeout=LIMIT) == "and back"
    other.close()
    comm.barrier()


@pytest.mark.ranks(1)
def test_the_two_ends_are_a_pair_here_too(comm: rmpi.Comm) -> None:
    a, b = comm.channel_pair(limit=2)
    for number in (1, 2):
        a.put(number)
    with pytest.raises(rmpi.DeadlineExceeded, match="2 messages wait there"):
        a.put(3, timeout=0)
    a.close()
    assert list(b) == [1, 2]


# -- what they are not --------------------------------------------------------------------------------------


@pytest.mark.ranks(2)
def test_the_system_of_a_rank_itself_is_another_one(comm: rmpi.Comm) -> None:
    mine, end = places.channel_pair()
    ours, theirs = comm.channel_pair()
    with pytest.raises(UsageError, match="channels of another system"):
        places.select([mine, ours], timeout=0)
    comm.send(end, 1 - comm.rank)
    with pytest.raises(UsageError, match="belongs to a system that this process is no part of"):
        comm.recv(1 - comm.rank)
    comm.sendrecv(theirs, 1 - comm.rank).put("by the job")
    assert ours.get(timeout=LIMIT) == "by the job"
    end.put("by itself")
    assert mine.get(timeout=LIMIT) == "by itself"


def test_without_a_launcher_a_rank_has_them_for_itself() -> None:
    text = """
        import rmpi
        comm = rmpi.init()
        ours, theirs = comm.channel_pair()
        comm.send(theirs, 0)
        comm.recv().put(7)
        message, reply = ours.receive()
        reply.put(message + 1)
        theirs.close()
        print(message, len(list(ours)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("7 0\n", "")


def test_ranks_that_are_threads_have_none() -> None:
    def main(comm: rmpi.Comm) -> None:
        with pytest.raises(UsageError, match="threads of one process"):
            comm.channel_pair()

    run_ranks(2, main)


# -- ends ---------------------------------------------------------------------------------------------------

WORKERS = """
    if comm.rank == 0:
        workers = [comm.recv(rank) for rank in range(1, comm.size)]
        for worker in workers:
            worker.put("task")
        while workers:
            for worker in places.select(workers):
                try:
                    print(worker.get(), flush=True)
                except rmpi.PeerLost as error:
                    print(type(error).__name__, str(error)[:6], flush=True)
                    workers.remove(worker)
    else:
        ours, theirs = comm.channel_pair()
        comm.send(theirs, 0)
        _, reply = ours.receive()
        reply.put(f"rank {comm.rank} has done it")
"""


def test_whoever_waits_for_ranks_that_end_well_gets_all_and_is_told() -> None:
    done = run(3, WORKERS)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert sorted(lines) == sorted(
        ["rank 1 has done it", "rank 2 has done it", "PeerExited rank 1", "PeerExited rank 2"]
    )
    assert all(lines.index(f"rank {n} has done it") < lines.index(f"PeerExited rank {n}") for n in (1, 2))


def test_whoever_waits_for_a_rank_that_is_killed_is_told() -> None:
    killed = "\n        import os; comm.progress(); os.kill(os.getpid(), 9)\n"
    done = run(2, WORKERS.rstrip() + killed)
    assert done.returncode == 128 + 9
    assert done.stdout.splitlines()[-1] == "RankFailed rank 1"


def test_ctrl_c_ends_a_get() -> None:
    code = """
        import os, signal, threading
        ours, theirs = comm.channel_pair()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            ours.get()
        except KeyboardInterrupt:
            theirs.put("nothing is broken")
            print(ours.get())
    """
    done = run(1, code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing is broken\n", "")


# -- deadlocks ----------------------------------------------------------------------------------------------


def test_ranks_that_all_wait_for_each_others_channels_are_told_so() -> None:
    code = """
        ours, theirs = comm.channel_pair()
        other = comm.sendrecv(theirs, 1 - comm.rank)
        if comm.rank == 0:
            places.select([ours, other])
        else:
            other.get()
    """
    done = run(2, code)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Deadlock: every rank waits, and nothing is on its way:" in done.stderr
    assert "rank 0 waits in select()" in done.stderr
    assert "rank 1 waits in get(" in done.stderr


TRAFFIC = """
    import random
    stays = comm._endpoint.stays
    stays.after = stays.again = 0.001
    ours, theirs = comm.channel_pair()
    ends = comm.allgather(theirs)
    chance = random.Random(comm.rank)
    after = (comm.rank + 1) % comm.size
    for turn in range(300):
        ends[after].put(b"x" * chance.choice([0, 10, 10_000, 100_000]))
        if turn % 3:
            places.select([ours])
        _, reply = ours.receive()
        reply.put(turn)
        assert ends[after].get() == turn
        if not turn % 50:
            comm.barrier()
    print("done")
"""


def test_ranks_that_wait_for_each_others_channels_in_turn_are_no_deadlock() -> None:
    """They are taken for blocked after a thousandth of the usual time, and asked all the while."""
    done = run(4, TRAFFIC)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n" * 4, "")
