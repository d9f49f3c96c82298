"""Ranks as threads: what `run_ranks` returns, raises and leaves behind."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rmpi.errors import DeadlineExceeded, PeerExited, RankFailed
from rmpi.testing.ranks import run_ranks

SIZES = [1, 2, 3, 4, 7]


@pytest.mark.parametrize("size", SIZES)
def test_results_are_in_rank_order(size):
    def main(comm, factor):
        comm.barrier()
        return comm.rank * factor, comm.size

    assert run_ranks(size, main, 10) == [(rank * 10, size) for rank in range(size)]


@pytest.mark.parametrize("size", SIZES)
def test_every_failure_is_in_the_group_with_its_rank(size):
    def main(comm):
        raise ValueError(f"oops {comm.rank}")

    with pytest.raises(ExceptionGroup, match=f"{size} of {size} ranks failed") as caught:
        run_ranks(size, main)
    assert [str(error) for error in caught.value.exceptions] == [f"oops {rank}" for rank in range(size)]
    notes = [error.__notes__ for error in caught.value.exceptions]
    assert notes == [[f"in rank {rank} of {size}"] for rank in range(size)]


def test_ranks_that_end_well_are_not_among_the_failures():
    def main(comm):
        if comm.rank == 1:
            raise ValueError("oops")

    with pytest.raises(ExceptionGroup, match="1 of 3 ranks failed") as caught:
        run_ranks(3, main)
    assert [str(error) for error in caught.value.exceptions] == ["oops"]


def test_even_what_is_no_exception_is_a_failure():
    def main(_comm):
        raise SystemExit(3)

    with pytest.raises(BaseExceptionGroup) as caught:
        run_ranks(2, main)
    assert [type(error) for error in caught.value.exceptions] == [SystemExit, SystemExit]


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_a_rank_that_raises_fails_those_who_wait_for_it(size):
    survivors = threading.Barrier(size - 1)

    def main(comm):
        if comm.rank == size - 1:
            raise ValueError("oops")
        try:
            comm.barrier()
        finally:
            survivors.wait(10)  # or the first to fail might be named to the others

    with pytest.raises(ExceptionGroup) as caught:
        run_ranks(size, main)
    *others, culprit = caught.value.exceptions
    assert isinstance(culprit, ValueError)
    assert [type(error) for error in others] == [RankFailed] * (size - 1)
    assert {error.rank for error in others} == {size - 1}
    assert {str(error) for error in others} == {f"rank {size - 1} on this process failed: ValueError: oops"}


def test_a_rank_that_ends_well_ends_those_who_wait_for_it():
    def main(comm):
        if comm.rank == 1:
            comm.recv(0)

    with pytest.raises(ExceptionGroup) as caught:
        run_ranks(2, main)
    (error,) = caught.value.exceptions
    assert isinstance(error, PeerExited)
    assert error.__notes__ == ["in rank 1 of 2"]


def test_what_hangs_is_shown_with_its_stacks():
    def waits_for_ever(comm):
        comm.recv(1 - comm.rank)

    with pytest.raises(DeadlineExceeded, match=r"had not ended after 0\.2 s") as caught:
        run_ranks(2, waits_for_ever, timeout=0.2)
    for rank in range(2):
        assert f"rank {rank}:\n" in str(caught.value)
    assert str(caught.value).count("in waits_for_ever") == 2


def succeeds(comm):
    return comm.allgather(comm.rank)


def fails(comm):
    if comm.rank == 0:
        raise ValueError("oops")
    comm.barrier()


def hangs(comm):
    comm.recv((comm.rank + 1) % comm.size)


def descriptors_open():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize(("main", "timeout"), [(succeeds, 30.0), (fails, 30.0), (hangs, 0.1)])
def test_no_thread_and_no_descriptor_is_left_behind(main, timeout):
    threads, descriptors = set(threading.enumerate()), descriptors_open()
    try:
        run_ranks(3, main, timeout=timeout)
    except (ExceptionGroup, DeadlineExceeded):
        pass
    assert set(threading.enumerate()) <= threads
    assert descriptors_open() <= descriptors
