"""Ranks as forks of this process."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import rmpi
from rmpi.testing import fork_ranks


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = descriptors(), threading.active_count(), psutil.Process().children()
    yield
    assert (descriptors(), threading.active_count(), psutil.Process().children()) == before


def descriptors() -> list[str]:
    return sorted(str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_results_come_in_rank_order_and_functions_need_not_be_picklable(size: int) -> None:
    lock = threading.Lock()

    def main(comm: rmpi.Comm, factor: int) -> tuple[int, int]:
        with lock:
            return comm.rank * factor, comm.allreduce(1)

    assert fork_ranks(size, main, 10) == [(10 * rank, size) for rank in range(size)]


def test_a_fork_is_a_process_with_its_own_copy_of_everything() -> None:
    values = [0]

    def main(comm: rmpi.Comm) -> int:
        values[0] += comm.rank + 1
        return os.getpid()

    pids = fork_ranks(3, main)
    assert values == [0]
    assert len({os.getpid(), *pids}) == 4


def test_init_in_a_fork_gives_its_communicator_and_old_random_generators_differ() -> None:
    def main(_comm: rmpi.Comm) -> tuple[int, float]:
        return rmpi.init().rank, float(np.random.random())

    (first, one), (second, other) = fork_ranks(2, main)
    assert (first, second) == (0, 1)
    assert one != other


def test_arrays_go_over_shared_memory_or_whatever_ranks_use_elsewhere() -> None:
    def main(comm: rmpi.Comm) -> bool:
        mine = np.full(1 << 20, comm.rank + 1.0)
        theirs = comm.sendrecv(mine, 1 - comm.rank, 1 - comm.rank)
        return bool((theirs == 2.0 - comm.rank).all())

    assert fork_ranks(2, main) == [True, True]


def test_all_failures_come_back_and_the_cause_is_the_first() -> None:
    def main(comm: rmpi.Comm) -> None:
        if comm.rank == 1:
            raise KeyError("no such key")
        comm.barrier()

    with pytest.raises(ExceptionGroup, match="3 of 3 ranks failed, rank 1 on localhost first") as caught:
        fork_ranks(3, main)
    cause, *others = caught.value.exceptions
    assert type(cause) is KeyError
    assert cause.__notes__[0].count("  File ") == 1
    assert {str(error) for error in others} == {"rank 1 on localhost failed: KeyError: 'no such key'"}


def test_a_killed_rank_is_named_with_its_signal() -> None:
    def main(comm: rmpi.Comm) -> None:
        if comm.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        comm.recv(1)

    with pytest.raises(ExceptionGroup) as caught:
        fork_ranks(2, main)
    assert str(caught.value.exceptions[0]) == "rank 1 on localhost failed: killed by SIGKILL"


def test_when_time_is_up_every_rank_that_runs_shows_its_stack() -> None:
    def main(comm: rmpi.Comm) -> None:
        if comm.rank == 1:
            comm.recv(2)
        elif comm.rank == 2:
            signal.pause()

    with pytest.raises(rmpi.DeadlineExceeded, match="3 ranks had not all ended after 1 s") as caught:
        fork_ranks(3, main, timeout=1)
    receiving, pausing = caught.value.__notes__
    assert receiving.startswith("where rank 1 was:\n")
    assert receiving.index("in recv") < receiving.index("in main")
    assert pausing.startswith("where rank 2 was:\n")
    assert pausing.endswith(" in main")


def test_what_ranks_write_comes_in_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_comm: rmpi.Comm) -> None:
        os.write(1, b"one ")
        os.write(1, b"line\nunfinished")

    fork_ranks(2, main)
    assert sorted(capsys.readouterr().out.splitlines()) == ["one line", "one line", "unfinished", "unfinished"]


def test_what_a_rank_started_ends_with_it() -> None:
    def main(_comm: rmpi.Comm) -> int:
        child = os.fork()
        if not child:
            signal.pause()
        return child

    (grandchild,) = fork_ranks(1, main)
    try:
        pidfd = os.pidfd_open(grandchild)
    except ProcessLookupError:
        return
    ended, _, _ = select.select([pidfd], [], [], 10)
    os.close(pidfd)
    assert ended


def test_ctrl_c_leaves_no_rank() -> None:
    def main(comm: rmpi.Comm) -> None:
        if comm.rank == 0:
            os.kill(os.getppid(), signal.SIGINT)
        signal.pause()

    with pytest.raises(KeyboardInterrupt):
        fork_ranks(2, main)


def test_ranks_may_be_forked_in_any_thread() -> None:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.extend(fork_ranks(2, lambda comm: comm.allreduce(1))))
    thread.start()
    thread.join()
    assert results == [2, 2]


def test_a_deadlock_is_proved_though_this_process_has_another_thread() -> None:
    """It does not exist in the forks, though Python goes on counting it there."""
    enough = threading.Event()
    thread = threading.Thread(target=enough.wait)
    thread.start()
    try:
        with pytest.raises(ExceptionGroup) as caught:
            fork_ranks(2, lambda comm: comm.recv(1 - comm.rank), timeout=30)
    finally:
        enough.set()
        thread.join()
    assert {type(error) for error in caught.value.exceptions} == {rmpi.Deadlock}


def test_there_is_at_least_one_rank() -> None:
    with pytest.raises(rmpi.UsageError, match="at least 1, not 0"):
        fork_ranks(0, print)
