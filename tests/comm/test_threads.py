"""Many threads in one communicator, and processes that a rank forks."""

import os
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
from joined import fork_ranks

from rmpi import ANY_SOURCE, wait_all

THREADS, LAPS = 8, 12
SIZES = [0, 1, 500, 65_536, 65_537, 300_000]


def payload(rank, thread, lap):
    """What a thread sends in a lap: of all sizes, as bytes, as an array, and inside an object."""
    size = SIZES[(3 * lap + thread) % len(SIZES)]
    array = np.full(size, (rank * 50 + thread * 5 + lap) % 251, np.uint8)
    return [array, array.tobytes(), {"from": (rank, thread, lap), "array": array}][lap % 3]


def same(one, other):
    if isinstance(one, dict):
        return one["from"] == other["from"] and same(one["array"], other["array"])
    return bool((one == other).all()) if isinstance(one, np.ndarray) else one == other


def blocking(comm, sub, thread, lap, near, far):
    """Both neighbours in a ring, at the same time and one after the other."""
    got = comm.sendrecv(payload(comm.rank, thread, lap), far, near, sendtag=thread, recvtag=thread)
    assert same(got, payload(near, thread, lap))
    sent = sub.isend(payload(comm.rank, thread, lap), far, 1)
    assert same(sub.recv(near, 1), payload(near, thread, lap))
    sent.wait()


def nonblocking(comm, sub, thread, lap, near, far):
    received = [comm.irecv(near, thread), sub.irecv(ANY_SOURCE, thread)]
    sent = [each.isend(payload(comm.rank, thread, lap), far, thread) for each in (comm, sub)]
    for got in wait_all(received):
        assert same(got, payload(near, thread, lap))
    wait_all(sent)


def probing(comm, _sub, thread, lap, near, far):
    sent = comm.isend(payload(comm.rank, thread, lap), far, thread)
    status = comm.probe(near, thread)
    assert (status.source, status.tag) == (near, thread)
    assert same(comm.recv(near, thread), payload(near, thread, lap))
    sent.wait()


def collective(_comm, sub, thread, lap, _near, _far):
    """In a communicator of its own."""
    expected = sum(rank * 100 + thread for rank in range(sub.size))
    assert (sub.allreduce(np.full(10 + 3000 * lap, sub.rank * 100 + thread)) == expected).all()
    request = sub.iallgather((sub.rank, thread, lap))
    sub.barrier()
    assert request.wait() == [(rank, thread, lap) for rank in range(sub.size)]


def hammer(comm):
    """All threads at once, each with its tag and its communicator, in an order of its own."""
    subs = [comm.dup() for _ in range(THREADS)]
    near, far = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    failures = []

    def work(thread):
        order = [blocking, nonblocking, probing, collective] * (LAPS // 4)
        random.Random(thread).shuffle(order)
        try:
            for lap, way in enumerate(order):
                way(comm, subs[thread], thread, lap, near, far)
        except BaseException as error:
            failures.append(f"thread {thread}: {error!r}")

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    comm.barrier()
    assert comm.iprobe() is None
    for sub in subs:
        sub.free()
    comm.barrier()
    return failures


@pytest.mark.parametrize("size", [2, 3])
def test_eight_threads_lose_and_mix_nothing(run, size):
    assert run(size, hammer) == [[]] * size


def test_eight_threads_over_sockets_without_lanes():
    assert fork_ranks(2, hammer, without={0, 1}) == [[], []]


def test_eight_threads_of_one_rank_talk_to_themselves(run):
    assert run(1, hammer) == [[]]


CHILDREN = """
import multiprocessing, os, sys, threading
import numpy as np
import rmpi

def square(number):
    return number * number

comm = rmpi.init()
other, sub, stop = 1 - comm.rank, comm.dup(), threading.Event()
pending = comm.irecv(other, 9)
early = comm.ibarrier() if comm.rank == 0 else None

def talk():
    mine = theirs = False
    while not (mine and theirs):
        mine = stop.is_set()
        theirs = sub.sendrecv(mine, other, other)

CALLS = {
    "send": lambda: comm.send(1, other),
    "send large": lambda: comm.send(bytes(300_000), other),
    "recv": lambda: comm.recv(other),
    "sendrecv": lambda: comm.sendrecv(1, other),
    "isend": lambda: comm.isend(1, other),
    "irecv": lambda: comm.irecv(),
    "probe": lambda: comm.probe(),
    "iprobe": lambda: comm.iprobe(),
    "wait": lambda: pending.wait(),
    "barrier": lambda: comm.barrier(),
    "ibarrier": lambda: comm.ibarrier(),
    "dup": lambda: comm.dup(),
    "dup of dup": lambda: sub.dup(),
    "split": lambda: comm.split(0),
    "init": lambda: rmpi.init(),
}

def child():
    for name, call in CALLS.items():
        try:
            call()
        except rmpi.ChannelClosed as error:
            if str(error) != "this process was forked from a rank; only the rank itself may communicate":
                print(name, error, flush=True)
        else:
            print(name, "was not refused", flush=True)
    pending.test()
    comm.progress()
    os._exit(7)

if __name__ == "__main__":
    thread = threading.Thread(target=talk)
    thread.start()
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            child()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
    stop.set()
    thread.join()
    if comm.rank == 1:
        early = comm.ibarrier()
    early.wait()
    comm.send("parent", other, 9)
    print(pending.wait(), comm.allreduce(1))
"""


@pytest.mark.parametrize("shm", ["1", "0"], ids=["shm", "sockets"])
def test_a_fork_of_a_rank_whose_threads_communicate_is_refused_and_the_rank_goes_on(tmp_path, shm):
    script = tmp_path / "children.py"
    script.write_text(CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "-q", "-n", "2", str(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "RMPI_SHM": shm},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["parent 2"] * 2
