"""Probes: what is next in line is told, and stays where it is."""

import threading
import time

import pytest

from rmpi.comm.status import ANY_SOURCE, ANY_TAG, Status
from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerExited, RankError, RankFailed, UsageError
from rmpi.testing.ranks import run_ranks

BRIEFLY = 0.02
SIZES = [0, 1, 1000, 65_536, 65_537, 3_000_000]


def error_of(kind, call, *args, **kwargs):
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


def seen(comm, *args):
    """What a probe that does not wait sees, as soon as there is something."""
    while (found := comm.iprobe(*args)) is None:
        pass
    return found


def run_together(size, main, **options):
    """`run_ranks`, where no rank ends before all have done their part."""

    def body(comm):
        result = main(comm)
        comm.barrier()
        return result

    return run_ranks(size, body, **options)


@pytest.mark.parametrize("unmatched_limit", [0, 1 << 30])
@pytest.mark.parametrize("size", SIZES)
def test_a_probe_tells_of_the_next_message_and_leaves_it(size, unmatched_limit):
    def main(comm):
        if comm.rank == 0:
            comm.send(bytes(size), 1, 7)
            return
        expected = Status(0, 7, size)
        for source, tag in ((0, 7), (ANY_SOURCE, 7), (0, ANY_TAG), (ANY_SOURCE, ANY_TAG)):
            assert comm.probe(source, tag) == expected
            assert seen(comm, source, tag) == expected
        assert comm.recv(0, 7) == bytes(size)
        assert comm.iprobe() is None

    run_together(2, main, unmatched_limit=unmatched_limit)


def test_probing_over_every_medium(run):
    def main(comm):
        if comm.rank == 0:
            for size in SIZES:
                comm.send(bytes(size), 1, size)
            comm.recv(1)
            return
        for size in reversed(SIZES):
            assert comm.probe(0, size) == Status(0, size, size)
            assert comm.iprobe(ANY_SOURCE, size) == Status(0, size, size)
        while (status := comm.iprobe()) is not None:
            assert len(comm.recv(status.source, status.tag)) == status.nbytes
        comm.send("all", 0)

    run(2, main)


def test_a_probe_sees_what_a_receive_would_get():
    """The first of those that fit, in the order of sending, whatever their size."""

    def main(comm):
        if comm.rank == 0:
            sent = [comm.isend(bytes(size), 1, number % 2) for number, size in enumerate(SIZES)]
            comm.send("sent", 1, 2)
            for request in sent:
                request.wait()
            return
        comm.recv(0, 2)
        seen = []
        for number in range(len(SIZES)):
            status = comm.probe(0, number % 2)
            seen.append(status.nbytes)
            assert len(comm.recv(0, number % 2)) == status.nbytes
        assert seen == SIZES

    run_ranks(2, main, unmatched_limit=0)


def test_a_message_that_a_request_takes_is_not_seen():
    def main(comm):
        if comm.rank == 0:
            comm.send("for the request", 1)
            comm.send("for the probe", 1, 1)
            return
        request = comm.irecv(0, 0)
        assert comm.probe() == Status(0, 1, 13)
        assert comm.iprobe(0, 0) is None
        assert (comm.recv(), request.wait()) == ("for the probe", "for the request")

    run_together(2, main)


def test_a_message_to_oneself_is_seen():
    def main(comm):
        assert comm.iprobe() is None
        comm.send("it", comm.rank, 4)
        assert comm.probe() == Status(comm.rank, 4, 2)
        assert comm.iprobe(comm.rank, 4) == Status(comm.rank, 4, 2)
        return comm.recv()

    assert run_together(2, main) == ["it", "it"]


def test_collectives_and_other_communicators_are_not_seen():
    def main(comm):
        sub = comm.dup()
        other = 1 - comm.rank
        sub.send("in the other", other)
        request = comm.ibarrier()
        sub.probe(other)
        assert comm.iprobe() is None
        request.wait()
        return sub.recv(other)

    assert run_together(2, main) == ["in the other"] * 2


def test_a_probe_that_times_out_takes_nothing():
    def main(comm):
        if comm.rank == 0:
            text = "probe of rank 1, tag 3: timeout passed and no message came; nothing is lost"
            assert error_of(DeadlineExceeded, comm.probe, 1, 3, timeout=BRIEFLY) == text
            assert error_of(DeadlineExceeded, comm.probe, timeout=0).startswith("probe of any rank, any tag: ")
            comm.send("now", 1)
            assert comm.probe(1, 3, timeout=10) == Status(1, 3, 5)
            assert comm.recv(1) == "there"
            return
        comm.recv(0)
        comm.send("there", 0, 3)

    run_ranks(2, main)


def test_a_probe_waits_for_a_message_that_is_sent_while_it_waits():
    def main(comm):
        found = []
        thread = threading.Thread(target=lambda: found.append(comm.probe(timeout=10)))
        thread.start()
        while not comm._endpoint.crank.leads:
            time.sleep(0)
        comm.send("it", 0, 5)
        thread.join()
        assert found == [Status(0, 5, 2)]
        return comm.recv()

    assert run_ranks(1, main) == ["it"]


def test_several_threads_see_the_same_message():
    def main(comm):
        found = []
        threads = [threading.Thread(target=lambda: found.append(comm.probe(1 - comm.rank, 1))) for _ in range(4)]
        for thread in threads:
            thread.start()
        comm.send("it", 1 - comm.rank, 1)
        for thread in threads:
            thread.join()
        assert found == [Status(1 - comm.rank, 1, 2)] * 4
        return comm.recv()

    assert run_ranks(2, main) == ["it", "it"]


@pytest.mark.parametrize("size", [10, 300_000])
def test_a_message_that_is_put_back_is_seen(size):
    """A receive that timed out while the message was on its way, or that never took it."""

    def main(comm):
        if comm.rank == 0:
            comm.recv(1)
            comm.send(bytes(size), 1)
            return
        error_of(DeadlineExceeded, comm.recv, 0, timeout=BRIEFLY)
        comm.send("now", 0)
        assert comm.probe(0) == Status(0, 0, size)
        assert len(comm.recv(0)) == size

    run_ranks(2, main)


def test_a_message_that_was_withdrawn_is_not_seen():
    def main(comm):
        if comm.rank == 0:
            error_of(DeadlineExceeded, comm.send, bytes(300_000), 1, timeout=BRIEFLY)
            comm.send("withdrawn", 1, 1)
            return
        comm.recv(0, 1)
        assert comm.iprobe(0, 0) is None

    run_together(2, main, unmatched_limit=0)


@pytest.mark.parametrize("source", [1, ANY_SOURCE])
def test_a_rank_that_ended_is_told_after_its_last_message(source):
    def main(comm):
        if comm.rank == 1:
            comm.send("last", 0)
            return
        assert comm.probe(source) == Status(1, 0, 4)
        assert comm.recv(source) == "last"
        error_of(PeerExited, comm.probe, source)
        error_of(PeerExited, comm.iprobe, source)

    run_ranks(2, main)


def test_a_rank_that_failed_is_told():
    def main(comm):
        if comm.rank == 1:
            raise ValueError("oops")
        text = "rank 1 on this process failed: ValueError: oops"
        assert error_of(RankFailed, comm.probe) == text
        assert error_of(RankFailed, comm.probe, 1) == text
        assert error_of(RankFailed, comm.iprobe, 1) == text

    with pytest.raises(ExceptionGroup, match="1 of 2 ranks failed"):
        run_ranks(2, main)


def test_a_probe_that_waits_hears_that_everything_was_closed():
    def main(comm):
        errors = []
        thread = threading.Thread(target=lambda: errors.append(error_of(ChannelClosed, comm.probe)))
        thread.start()
        while not comm._endpoint.crank.leads:
            time.sleep(0)
        comm._endpoint.close()
        thread.join()
        return errors

    assert run_ranks(1, main) == [["this endpoint is closed"]]


@pytest.mark.parametrize("call", ["probe", "iprobe"])
def test_wrong_arguments_are_refused(call):
    def main(comm):
        probe = getattr(comm, call)
        assert error_of(RankError, probe, 1) == "source=1: there are only ranks 0 to 0"
        assert error_of(UsageError, probe, 0, -2) == "tag must be an integer from 0 to 2**63-1, not -2"

    run_ranks(1, main)
