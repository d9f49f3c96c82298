"""`Comm.revoke` and `Comm.abort`: the ends that a program decides itself."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from rmpi.errors import ChannelClosed, RankFailed, UsageError
from rmpi.testing.ranks import run_ranks

REVOKED = r"^this communicator was revoked by rank 1 at .*test_revoke\.py:\d+$"


def waits_for_a_message(comm):
    comm.recv(source=2, tag=5)


def waits_for_anybody(comm):
    comm.recv()


def waits_in_a_collective(comm):
    comm.barrier()


def waits_for_room(comm):
    comm.send(np.zeros(1 << 20), dest=2)


@pytest.mark.parametrize(
    "wait",
    [waits_for_a_message, waits_for_anybody, waits_in_a_collective, waits_for_room],
    ids=lambda wait: wait.__name__,
)
def test_revoking_ends_the_calls_of_all_others(wait):
    def main(comm):
        if comm.rank == 1:
            comm.recv(source=0)
            comm.revoke()
            return
        if comm.rank == 0:
            comm.send("go", dest=1)
            with pytest.raises(ChannelClosed, match=REVOKED):
                wait(comm)
        else:
            with pytest.raises(ChannelClosed, match=REVOKED):
                comm.recv(source=1)

    run_ranks(3, main, unmatched_limit=1000)


def test_later_calls_raise_the_same_on_every_rank():
    def main(comm):
        if comm.rank == 1:
            comm.revoke()
        else:
            with pytest.raises(ChannelClosed, match=REVOKED):
                comm.recv(source=1)
        for call in (comm.barrier, comm.recv, lambda: comm.send(1, dest=0), lambda: comm.allreduce(1)):
            with pytest.raises(ChannelClosed, match=REVOKED):
                call()

    run_ranks(3, main)


def test_revoking_twice_or_by_two_names_one_of_them():
    def main(comm):
        comm.revoke()
        comm.revoke()
        with pytest.raises(ChannelClosed, match=r"revoked by rank [01] at"):
            comm.recv()

    run_ranks(2, main)


def test_aborting_ends_the_other_ranks_whatever_they_wait_for():
    def main(comm):
        if comm.rank == 2:
            comm.abort(3)
        comm.recv(source=1 - comm.rank)

    with pytest.raises(BaseExceptionGroup) as caught:
        run_ranks(3, main)
    zero, one, two = caught.value.exceptions
    assert isinstance(two, SystemExit)
    assert two.code == 3
    for error in (zero, one):
        assert isinstance(error, RankFailed)
        assert error.rank == 2
        assert error.cause.startswith("called abort(3) at ")
        assert "test_revoke.py:" in error.cause


def test_alone_aborting_is_a_system_exit():
    def main(comm):
        with pytest.raises(SystemExit) as caught:
            comm.abort()
        assert caught.value.code == 1

    run_ranks(1, main)


@pytest.mark.parametrize("code", [-1, 256, "three", None, 1.5])
def test_what_is_no_exit_status_is_refused(code):
    def main(comm):
        with pytest.raises(UsageError, match="from 0 to 255"):
            comm.abort(code)
        comm.barrier()

    run_ranks(2, main)


def test_a_revoked_communicator_ends_the_call_of_another_thread():
    def main(comm):
        caught: list[BaseException] = []

        def receive():
            try:
                comm.recv(source=1)
            except ChannelClosed as error:
                caught.append(error)

        thread = threading.Thread(target=receive)
        thread.start()
        if comm.rank == 0:
            comm.revoke()
        thread.join()
        assert len(caught) == 1

    run_ranks(2, main)
