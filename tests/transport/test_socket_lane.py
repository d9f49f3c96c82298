"""Lanes over sockets: what ports and flights do with a socket, and what must not get lost between them and the crank.

That such links do what every link does, ``test_links.py`` says of its quick media.
"""

import os
import select
import socket
import threading
import time
from contextlib import closing
from functools import partial

import joined
import numpy as np
import pytest

from rmpi.deadline import Deadline
from rmpi.testing import conformance
from rmpi.transport import media
from rmpi.wire.frames import Frame, Kind, encode

pytestmark = pytest.mark.skipif(media.why_no_extension() is not None, reason="no extension, no lanes")

A, B = conformance.A, conformance.B

SOCKETS = {"unix": socket.socketpair, "tcp": joined.tcp_loopback}

SPIN = 0.001


@pytest.fixture(params=SOCKETS)
def sockets(request, monkeypatch):
    """Pairs of this kind, and no shared memory over any."""
    monkeypatch.setattr(media, "why_no_shm", lambda: "the test wants sockets")
    monkeypatch.setattr(socket, "socketpair", make := SOCKETS[request.param])
    return make


@pytest.fixture
def comms(sockets):
    """``comms(**options)``: two communicators of this process, over ``sockets``."""
    assert socket.socketpair is sockets
    made = []

    def make(**options):
        made.extend(joined.new_comms(2, **options))
        return made

    yield make
    for comm in made:
        comm._endpoint.close()


def link_of(comm, peer):
    return comm._endpoint._peers.peer(peer).link


def sleeps(comm):
    """Whether a thread sleeps in the epoll of this endpoint, or is about to."""
    return comm._endpoint.crank._asleep


def until(condition):
    deadline = Deadline.after(20)
    while not condition():
        assert not deadline.passed()
        time.sleep(0)


def eager(number, payload=b""):
    return Frame(Kind.EAGER, B, A, tag=number, length=len(payload), segments=(payload,) if payload else ())


def wire(*frames):
    return b"".join(bytes(buffer) for frame in frames for buffer in encode(frame))


def is_readable(link):
    return bool(select.select([link], [], [], 0)[0])


# -- the link -----------------------------------------------------------------------------------------------


def one_link(sockets):
    """A link with a lane, what has come over it, and the bare socket at its other end."""
    one, other = sockets()
    sink = conformance.Recorder()
    return media.link_over(one, A, B, sink, 2), sink, other


def test_a_link_over_a_socket_has_a_lane_and_keeps_its_name(comms, sockets):
    link = link_of(comms()[0], 1)
    assert link.lane.socket
    assert link.medium == ("tcp" if sockets is joined.tcp_loopback else "unix")


def test_without_the_extension_there_is_none(sockets, monkeypatch):
    monkeypatch.setattr(media, "why_no_extension", lambda: "the test says so")
    one, other = sockets()
    with closing(other), closing(media.link_over(one, A, B, conformance.Recorder(), 2)) as link:
        assert link.lane is None


def test_what_was_read_ahead_stirs_though_the_socket_has_nothing(sockets):
    link, sink, other = one_link(sockets)
    with closing(other), closing(link):
        other.sendall(wire(eager(1), eager(2)))
        until(lambda: is_readable(link))
        assert not link.lane.stirs()
        assert link.lane.read_into(memoryview(bytearray(64))) == 64
        assert not is_readable(link)
        assert link.lane.stirs()
        assert link.lane.arm()
        sink.take(link)
        assert [frame.tag for frame in sink.frames] == [2]
        assert not link.lane.stirs()
        assert not link.lane.arm()


def test_the_end_comes_after_what_was_read_ahead(sockets):
    link, sink, other = one_link(sockets)
    with closing(link):
        other.sendall(wire(*map(eager, range(100))))
        other.close()
        until(lambda: sink.take(link) or link.closed)
        assert [frame.tag for frame in sink.frames] == list(range(100))


def test_a_large_payload_goes_straight_to_where_it_belongs(sockets):
    """Only what the first read brought along is copied: that is less than the ring holds."""
    link, sink, other = one_link(sockets)
    payload = bytes(range(256)) * 1024
    frames = [Frame(Kind.DATA, B, A, tag=i * len(payload), length=len(payload), segments=(payload,)) for i in range(40)]
    with closing(other), closing(link):
        feeding = threading.Thread(target=other.sendall, args=(wire(*frames),))
        feeding.start()
        until(lambda: sink.take(link) or len(sink.frames) == 40)
        feeding.join()
        assert sink.streamed() == 40 * payload


# -- ports --------------------------------------------------------------------------------------------------


def test_a_port_sends_and_receives(comms):
    a, b = comms()
    array = np.arange(5000.0)
    for value in (1, None, "text", b"bytes", {"a": 1}, array):
        assert a._short.send(value, 1, 5) is True
        until(lambda: is_readable(link_of(b, 0)))
        np.testing.assert_equal(b._short.recv(0, 5, None), value)


def test_what_the_socket_does_not_take_follows_in_order(comms):
    """The last message for which there was room leaves in parts; then the port says no."""
    a, b = comms()
    arrays = [np.full(8000, number) for number in range(14)]
    quick = [a._short.send(array, 1, 5) for array in arrays[:14]]
    assert quick[0] is True
    for array, sent in zip(arrays, quick, strict=True):
        if not sent:
            a._endpoint.start_send(1, joined.COMM, 5, array)
    receiving = threading.Thread(target=lambda: [got.append(b.recv(0, 5, timeout=20)) for _ in arrays])
    got = []
    receiving.start()
    until(lambda: a._endpoint.progress() or not receiving.is_alive())
    np.testing.assert_array_equal(got, arrays)


def flood(comm, value):
    """Send by the port alone, without anybody's receiving, until the socket is full or the credit used up."""
    count = 0
    while comm._short.send(value, 1, 5) is True:
        count += 1
    return count


@pytest.mark.parametrize("size", [8, 60_000])
def test_a_rest_that_a_port_has_left_is_not_slept_over(comms, beside, size):
    """The sender only sleeps from then on, and the receiver must get it all."""
    a, b = comms()
    link_of(a, 1)._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    count = flood(a, bytes(size))
    assert count
    answer = beside(partial(a.recv, timeout=20), 1, 6)
    for _ in range(count):
        assert b.recv(0, 5, timeout=20) == bytes(size)
    b.send("all", 0, 6)
    assert answer.result(20) == "all"


def test_a_port_leaves_a_sleepers_message_in_the_socket(comms, beside):
    a, b = comms()
    sleeper = beside(partial(b.recv, timeout=20), 0, 1)
    until(lambda: sleeps(b))
    with b._endpoint.crank.lock:  # the sleeper cannot get to it now
        link_of(a, 1).send(Frame(Kind.CREDIT, a._endpoint.ident, b._endpoint.ident))
        until(lambda: is_readable(link_of(b, 0)))
    assert a._short.send("for the sleeper", 1, 1)
    b._short.recv(0, 2, None)
    assert sleeper.result(20) == "for the sleeper"


def test_no_wake_up_is_lost_between_a_sleeper_and_a_port(comms, beside):
    """Two threads receive on one endpoint: whatever one of them reads ahead, the other one gets."""
    a, b = comms(spin=SPIN)

    def receive(tag, count):
        for number in range(count):
            assert b.recv(0, tag, timeout=10) == number

    for _ in range(10):
        futures = [beside(receive, tag, 200) for tag in (1, 2)]
        for number in range(200):
            a.send(number, 1, 1, timeout=10)
            a.send(number, 1, 2, timeout=10)
            a._endpoint.progress()
        until(lambda: a._endpoint.progress() or all(future.done() for future in futures))  # noqa: B023
        for future in futures:
            future.result()


def test_a_peer_that_is_gone_is_not_waited_for(comms):
    a, b = comms(spin=SPIN)
    b._endpoint.close()
    for _ in range(3):
        a._short.send(1, 1, 5)
        a._endpoint.progress()
    assert a._short.send(1, 1, 5) is False


# -- between processes --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sockets")
def test_messages_of_all_sizes_cross_both_ways():
    sizes = [0, 1, 1000, 65_536, 65_537, 300_000, 5_000_001]

    def main(comm):
        for size in [*sizes, *sizes[::-1]]:
            mine = np.random.default_rng(size + comm.rank).bytes(size)
            theirs = np.random.default_rng(size + 1 - comm.rank).bytes(size)
            assert comm.sendrecv(mine, 1 - comm.rank, 1 - comm.rank) == theirs
            if comm.rank == 0:
                comm.send(mine, 1)
                assert comm.recv(1) == theirs
            else:
                assert comm.recv(0) == theirs
                comm.send(mine, 0)
        return "done"

    assert joined.fork_ranks(2, main, spin=SPIN) == ["done", "done"]


@pytest.mark.usefixtures("sockets")
@pytest.mark.parametrize("spin", [0.0, 20e-6, SPIN])
def test_a_flight_may_stop_anywhere_on_its_way(spin):
    """Buffers of odd sizes, which end in the middle of headers, and a receiver that stops."""

    def main(comm):
        comm._endpoint.progress()  # the link stands
        link_of(comm, 1 - comm.rank)._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 40_001)
        for number in range(20):
            size = 70_001 + number * 123_457
            if comm.rank == 0:
                comm.send(np.full(size, number, np.uint8), 1)
                comm.send(number, 1)
            else:
                if number % 3 == 0:
                    time.sleep(0.002)
                array = comm.recv(0)
                assert array.size == size
                assert (array == number).all()
                assert comm.recv(0) == number
        return "done"

    assert joined.fork_ranks(2, main, spin=spin) == ["done", "done"]


def test_each_may_send_on_a_link_of_its_own(sockets, monkeypatch):
    """Both dialled: the port waits for the one in vain, and the long way brings what comes over the other."""
    pairs = [sockets(), sockets()]

    def main(comm):
        rank, peer = comm.rank, 1 - comm.rank
        order = pairs if rank == 0 else pairs[::-1]
        for pair in order:
            joined.add_lane(comm._endpoint, peer, pair[rank].dup())
        comm._endpoint.progress()
        links = len(comm._endpoint._peers.peer(peer).links)
        for number in range(200):
            if rank == 0:
                comm.send((number, bytes(number * 1000)), 1)
                assert comm.recv(1, timeout=20) == number
            else:
                assert comm.recv(0, timeout=20) == (number, bytes(number * 1000))
                comm.send(number, 0)
        return links

    monkeypatch.setattr(joined, "combinations", lambda *_: ())
    try:
        assert joined.fork_ranks(2, main, spin=SPIN) == [2, 2]
    finally:
        for sock in (*pairs[0], *pairs[1]):
            sock.close()


def test_a_fork_leaves_the_socket_alone(comms):
    a, b = comms()
    pid = os.fork()
    if pid == 0:
        a._endpoint.disown()
        os._exit(0 if a._short.send("from the child", 1, 5) is False else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    a.send("from the parent", 1, 5)
    assert b.recv(0, timeout=5) == "from the parent"
