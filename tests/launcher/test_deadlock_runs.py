"""Jobs of processes that wait for each other: what is found, what is shown, and what is not taken for a deadlock."""

from __future__ import annotations

import re
import signal

import pytest
from running import Jobs, patience

RING = """
    import rmpi
    comm = rmpi.init()
    comm.barrier()
    if comm.rank == 0:
        comm.send("spelled wrong", dest=1, tag=6)
    print("ready", flush=True)
    comm.recv(source=(comm.rank + 1) % comm.size, tag=5)
"""

TRAFFIC = """
    import random, numpy as np, rmpi
    comm = rmpi.init()
    rank, size = comm.rank, comm.size
    after, before = (rank + 1) % size, (rank - 1) % size
    chance = random.Random(7)
    for turn in range(50):
        length = chance.choice([0, 1, 100, 8_000, 9_000, 100_000])
        value = chance.choice([turn, "text" * turn, {"array": np.arange(length)}, np.zeros(length)])
        comm.sendrecv(value, after, before)
        if rank % 2 == 0 and (after % 2 == 1 or size == 2):
            comm.send(value, after, tag=turn)
        if rank % 2 == 1:
            comm.recv(before, turn)
        try:
            comm.recv(tag=10**6, timeout=chance.choice([0, 1e-4]))
        except rmpi.DeadlineExceeded:
            pass
        comm.allreduce(np.ones(length))
    comm.send(np.zeros(100_000), after, tag=1)
    print("ready", flush=True)
    comm.recv(before, tag=2)
"""
"""Messages of every size and kind, received at once and later, in vain, and never: then a ring of receives."""


def verdict(err: str) -> list[str]:
    """The lines of the one verdict in the error output."""
    assert err.count("Deadlock") == 1, err
    assert "Traceback" not in err
    lines = err[err.index("Deadlock") :].splitlines()
    assert lines[0] == "Deadlock: every rank waits, and nothing is on its way:"
    return [re.sub(r" at \S+:\d+", "", line.strip()) for line in lines[1:]]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_wait_for_each_other_are_told_so_within_three_seconds(ranks: int, jobs: Jobs) -> None:
    job = jobs.start("-n", ranks, script := jobs.script(RING))
    job.until("ready", times=ranks)
    done = job.wait()
    assert done.code == 1
    assert done.after < 3 * patience()
    assert verdict(done.err) == [
        *(
            f"rank {rank} waits for rank {(rank + 1) % ranks} in recv(source={(rank + 1) % ranks}, tag=5)"
            for rank in range(ranks)
        ),
        "rank 1 has 1 message from rank 0 with tag 6 that nobody asks for",
        f"cycle: {' → '.join(map(str, range(ranks)))} → 0",
    ]
    assert f"tag=5) at {script}:8\n" in done.err
    assert f"rmpi-run: ranks 0-{ranks - 1} of {ranks} on localhost raised this" in done.err


NO_EXTENSION = (
    'import sys; sys.modules["rmpi.transport._ring"] = None; '
    "from rmpi.transport.media import why_no_extension as why; assert why()"
)


@pytest.mark.parametrize(
    ("ranks", "surroundings", "before"),
    [(2, (), ""), (3, (), ""), (2, ("-x", "RMPI_SHM=0"), ""), (2, ("--no-fork",), NO_EXTENSION)],
    ids=["shared memory", "three ranks", "sockets", "no extension"],
)
def test_all_that_was_ever_sent_is_accounted_for(
    ranks: int, surroundings: tuple[str, ...], before: str, jobs: Jobs
) -> None:
    """By the short cut and the long way, in flights and in pieces."""
    done = jobs.run("-n", ranks, *surroundings, jobs.script(f"    {before}{TRAFFIC}"))
    assert done.code == 1
    lines = verdict(done.err)
    assert f"rank 0 waits for rank {ranks - 1} in recv(source={ranks - 1}, tag=2)" in lines
    assert f"rank 0 has 1 message from rank {ranks - 1} with tag 1 that nobody asks for" in lines


def test_the_missing_rank_is_named(jobs: Jobs) -> None:
    script = """
        import rmpi
        comm = rmpi.init()
        comm.barrier()
        if comm.rank == 2:
            comm.recv(source=0)
        comm.allreduce(1.0)
    """
    done = jobs.run("-n", 3, jobs.script(script))
    assert done.code == 1
    lines = verdict(done.err)
    assert "rank 2 has not called allreduce(op=SUM, object) #1" in lines
    assert "rank 2 waits for rank 0 in recv(source=0, tag=ANY_TAG)" in lines


def test_every_thread_of_a_rank_may_wait(jobs: Jobs) -> None:
    script = """
        import threading, rmpi
        comm = rmpi.init()
        def receive(tag):
            try:
                comm.recv(source=1 - comm.rank, tag=tag)
            except rmpi.Deadlock as error:
                print(str(error).count("waits for"))
        threads = [threading.Thread(target=receive, args=(tag,)) for tag in range(3)]
        for thread in threads:
            thread.start()
        receive(3)
    """
    done = jobs.run("-n", 2, jobs.script(script))
    assert (done.code, done.err, done.lines) == (0, "", ["8"] * 8)


def test_a_program_may_catch_it(jobs: Jobs) -> None:
    script = """
        import rmpi
        comm = rmpi.init()
        try:
            comm.recv(source=1 - comm.rank)
        except rmpi.Deadlock as error:
            print(str(error).splitlines()[0])
    """
    done = jobs.run("-n", 2, jobs.script(script))
    assert (done.code, done.err) == (0, "")
    assert done.lines == ["every rank waits, and nothing is on its way:"] * 2


def test_a_deadlock_may_only_be_reported(jobs: Jobs) -> None:
    job = jobs.start("-n", 2, "--on-deadlock", "report", jobs.script(RING))
    job.until("cycle: 0 → 1 → 0", stream=2)
    job.signal(signal.SIGTERM)
    done = job.wait()
    assert done.code == 128 + signal.SIGTERM
    assert done.err.startswith("rmpi-run: Deadlock: every rank waits")
    assert done.err.count("Deadlock") == 1


def test_when_time_is_up_ranks_say_where_they_were_and_deadlocks_need_not_be_looked_for(jobs: Jobs) -> None:
    done = jobs.run("-n", 2, "--on-deadlock", "off", "--timeout", 1.2, script := jobs.script(RING))
    assert done.code == 124
    assert "Deadlock" not in done.err
    assert f'File "{script}", line 8, in <module>' in done.err
    assert done.err.endswith("KeyboardInterrupt\nrmpi-run: time is up: 1.2 s have passed (--timeout)\n")


# --- What is none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "later",
    [
        "threading.Timer(1.0, comm.send, ('done', 1)).start()",
        "signal.signal(signal.SIGALRM, stop); signal.setitimer(signal.ITIMER_REAL, 1.0)",
        "signal.signal(signal.SIGCHLD, stop); subprocess.Popen(['sleep', '1.0'])",
        "comm.recv = functools.partial(comm.recv, timeout=1.0)",
    ],
    ids=["another thread", "a timer", "a child", "a time-out"],
)
def test_a_rank_that_could_still_send_is_waited_for(later: str, jobs: Jobs) -> None:
    script = f"""
        import functools, signal, subprocess, threading, rmpi
        comm = rmpi.init()
        def stop(number, frame):
            raise TimeoutError
        if comm.rank == 0:
            {later}
            try:
                comm.recv(source=1, tag=1)
            except TimeoutError:
                comm.send("done", 1)
                comm.recv(source=1, tag=1)
        else:
            print(comm.recv(source=0))
            comm.send("thanks", 0, tag=1)
    """
    done = jobs.run("-n", 2, jobs.script(script))
    assert (done.code, done.out) == (0, "done\n"), done.err


def test_a_rank_that_is_stopped_is_waited_for(jobs: Jobs) -> None:
    """It has reported that it is blocked, and cannot confirm that before it is continued."""
    script = """
        import os, signal, subprocess, time, rmpi
        comm = rmpi.init()
        if comm.rank == 1:
            comm.send(os.getpid(), 0)
            comm.recv(source=0)
        pid = comm.recv(source=1)
        time.sleep(0.8)
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        subprocess.Popen(["sh", "-c", f"sleep 1.0; kill -CONT {pid}"])
        try:
            comm.recv(source=1)
        except rmpi.Deadlock:
            print("in time" if time.monotonic() - began > 0.9 else "too early")
            raise
    """
    done = jobs.run("-n", 2, jobs.script(script))
    assert (done.code, done.out) == (1, "in time\n")
    assert verdict(done.err)[-1] == "cycle: 0 → 1 → 0"
