"""Shared memory between two places: greetings, garbage, ends, forks, and what is left behind."""

import fcntl
import gc
import mmap
import os
import resource
import signal
import socket
import struct
from collections import deque
from contextlib import closing
from pathlib import Path

import pytest
from joined import CONTEXT, add_lane, settle

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, PeerLost, WireError
from rmpi.testing.conformance import Recorder
from rmpi.transport.media import why_no_shm

pytestmark = pytest.mark.skipif(why_no_shm() is not None, reason=str(why_no_shm()))

if why_no_shm() is None:
    from rmpi.transport import shm
    from rmpi.transport._ring import CREDIT, DATA, Lane
    from rmpi.transport.shm import LEAST, MEMORY, MOST, ShmLink, capacity_for

TAIL, HEAD = 0, 128
"""Where the positions lie in a ring's memory; see `ring.h`."""


def soon():
    return Deadline.after(10)


def counted(text):
    return Path("/proc/self/maps").read_text().count(text)


def listed(folder):
    return {entry.name for entry in Path(folder).iterdir()}


def descriptors():
    links = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return {str(link.readlink()) for link in links}


@pytest.fixture
def lanes():
    """Two joined lanes, and the memory that the first writes and the second reads, mapped a second time."""
    one, other = socket.socketpair()
    fds = [shm._new_memory(DATA + LEAST) for _ in range(2)]
    a, b = Lane(0, 1, one.fileno(), CREDIT), Lane(1, 0, other.fileno(), CREDIT)
    a.map_out(fds[0], LEAST)
    b.map_in(fds[0], LEAST)
    b.map_out(fds[1], LEAST)
    a.map_in(fds[1], LEAST)
    for lane in (a, b):
        lane.queues(deque(), deque())
    memory = mmap.mmap(fds[0], DATA + LEAST)
    for fd in fds:
        os.close(fd)
    yield a, b, memory
    memory.close()
    a.close()
    b.close()
    one.close()
    other.close()


def put(memory, offset, value):
    struct.pack_into("<Q", memory, offset, value % (1 << 64))


# -- memory ---------------------------------------------------------------------------------------------------


def test_the_rings_of_a_machine_have_a_bound():
    assert capacity_for(1) == capacity_for(2) == MOST
    assert capacity_for(64) == 64 << 10
    for ranks in range(1, 1001):
        capacity = capacity_for(ranks)
        assert LEAST <= capacity <= MOST
        assert capacity & (capacity - 1) == 0
        assert capacity == LEAST or capacity * ranks * (ranks - 1) <= MEMORY


def test_nothing_is_left_behind(join):
    maps, fds, files = counted("memfd:rmpi-ring"), descriptors(), listed("/dev/shm")
    a, b = join("shm")
    assert counted("memfd:rmpi-ring") == maps + 4  # two rings, each mapped by both
    assert not [name for name in descriptors() - fds if "memfd" in name]
    a.send(1, CONTEXT, 0, b"unread")
    a.close()
    b.close()
    assert descriptors() <= fds
    assert listed("/dev/shm") == files


def test_memory_is_unmapped_with_the_link():
    gc.collect()  # what other tests have left is not what is counted
    maps = counted("memfd:rmpi-ring")
    one, other = socket.socketpair()
    with closing(ShmLink(1, one, Recorder(), 0, 2)) as a, closing(ShmLink(0, other, Recorder(), 1, 2)) as b:
        a.hear()
        b.hear()
        assert counted("memfd:rmpi-ring") == maps + 4
    del a, b
    assert counted("memfd:rmpi-ring") == maps


@pytest.mark.parametrize("limit", ["file size", "memory"])
def test_memory_that_is_refused_is_an_error_and_leaves_nothing(limit, monkeypatch):
    fds = descriptors()
    one, other = socket.socketpair()
    if limit == "memory":
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if limit == "file size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(OSError, match=r"File too large|No space left"):
            ShmLink(1, one, Recorder(), 0, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    one.close()
    other.close()
    assert descriptors() <= fds


def refuse(*_):
    raise OSError(28, "No space left on device")


# -- greetings ------------------------------------------------------------------------------------------------


def memory_of(size, seals):
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def greeting(capacity=1 << 16, magic=b"ring"):
    return struct.pack("<4sQ", magic, capacity)


SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
GOOD = (DATA + (1 << 16), SEALS) if why_no_shm() is None else (0, 0)

BAD = {
    "no descriptor": (greeting(), []),
    "two descriptors": (greeting(), [GOOD, GOOD]),
    "not sealed": (greeting(), [(GOOD[0], 0)]),
    "may shrink": (greeting(), [(GOOD[0], fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)]),
    "too short a memory": (greeting(), [(GOOD[0] - 1, SEALS)]),
    "too long a memory": (greeting(), [(GOOD[0] + 1, SEALS)]),
    "no power of two": (greeting((1 << 16) + 1), [(GOOD[0] + 1, SEALS)]),
    "too small": (greeting(4096), [(GOOD[0] - (1 << 16) + 4096, SEALS)]),
    "too large": (greeting(1 << 30), [(GOOD[0] - (1 << 16) + (1 << 30), SEALS)]),
    "another magic": (greeting(magic=b"king"), [GOOD]),
    "cut short": (b"ring", [GOOD]),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_greeting_that_is_none_is_a_wire_error(bad):
    fds = descriptors()
    data, memories = BAD[bad]
    one, other = socket.socketpair()
    with other, closing(ShmLink(1, one, Recorder(), 0, 2)) as link:
        made = [memory_of(*memory) for memory in memories]
        socket.send_fds(other, [data], made)
        for fd in made:
            os.close(fd)
        with pytest.raises(WireError, match=r"shared memory|greeting"):
            link.hear()
        assert not link.lane.quick
    assert descriptors() <= fds


def test_a_descriptor_that_is_no_memory_is_a_wire_error():
    one, other = socket.socketpair()
    with other, closing(ShmLink(1, one, Recorder(), 0, 2)) as link:
        socket.send_fds(other, [greeting()], [other.fileno()])
        with pytest.raises(WireError, match="of no use"):
            link.hear()


def test_descriptors_that_come_later_are_closed():
    one, other = socket.socketpair()
    with closing(ShmLink(1, one, Recorder(), 0, 2)) as a, closing(ShmLink(0, other, Recorder(), 1, 2)):
        a.hear()
        fds = listed("/proc/self/fd")
        socket.send_fds(other, [b"!"], [0])
        a.hear()
        assert len(listed("/proc/self/fd")) == len(fds)


def test_a_greeting_after_the_end_opens_no_short_cut():
    """Else a message to nobody would be taken for sent."""
    one, other = socket.socketpair()
    with closing(ShmLink(1, one, Recorder(), 0, 2)) as a:
        ShmLink(0, other, Recorder(), 1, 2).close()
        a.hear()
        assert not a.lane.quick


# -- garbage --------------------------------------------------------------------------------------------------

AHEAD = LEAST + 1 if why_no_shm() is None else 0


@pytest.mark.parametrize("tail", [AHEAD, 1 << 40, (1 << 64) - 1, 99], ids=["ahead", "far ahead", "behind", "back"])
def test_a_tail_where_it_cannot_be_is_a_wire_error(lanes, tail):
    a, b, memory = lanes
    a.write(bytes(100))
    assert b.read_into(memoryview(bytearray(200))) == 100
    put(memory, TAIL, tail + 100 if tail == AHEAD else tail)
    assert b.stirs()
    assert b.arm()
    assert not b.empty()
    with pytest.raises(WireError, match="corrupt"):
        b.read_into(memoryview(bytearray(200)))


@pytest.mark.parametrize("head", [101, 1 << 40, (1 << 64) - LEAST if why_no_shm() is None else 0])
def test_a_head_where_it_cannot_be_is_a_wire_error(lanes, head):
    a, _, memory = lanes
    a.write(bytes(100))
    a.wants_room = True
    put(memory, HEAD, head)
    a.write(bytes(2 * LEAST))
    assert a.stirs()
    assert a.arm()
    with pytest.raises(WireError, match="corrupt"):  # whoever reads is asked for the end of a link
        a.read_into(memoryview(bytearray(1)))


def test_garbage_between_the_positions_is_bytes(lanes):
    a, b, memory = lanes
    a.write(b"\0" * 1000)
    memory[DATA : DATA + 1000] = os.urandom(1000)
    put(memory, 256, 1 << 63)  # flags
    into = bytearray(1000)
    assert b.read_into(memoryview(into)) == 1000
    assert into == memory[DATA : DATA + 1000]


def test_garbage_ends_the_peer(join):
    a, b = join("shm")
    a._peers.known[1].link.lane.write(b"GET / HTTP/1.1\r\n" * 8)
    with pytest.raises(PeerLost, match="it starts with b'GE'"):
        b.receive(CONTEXT, 0, 0, deadline=soon())
    a.progress()
    with pytest.raises(PeerLost):
        b.send(0, CONTEXT, 0, "answer")


# -- ends -----------------------------------------------------------------------------------------------------


def test_leaving_does_not_wait_for_a_peer_that_does_not_look(join):
    """Not even if its bell was rung: what lies in the ring and in the socket outlives us."""
    a, b = join("shm")
    b._peers.known[0].link.lane.arm()
    a.send(1, CONTEXT, 0, "last words")
    assert a.finish(Deadline.after(5))
    a.close()
    assert b.receive(CONTEXT, 0, 0, deadline=soon()).take() == "last words"


def test_a_peer_that_dies_with_unread_news_is_heard_to_the_end(join):
    """A unix socket that is closed with unread bytes resets the other end."""
    a, b = join("shm")
    a._peers.known[1].link.lane.arm()
    b.send(0, CONTEXT, 0, "unread")
    for number in range(100):
        a.send(1, CONTEXT, 0, number)
    a.close()
    assert [b.receive(CONTEXT, 0, 0, deadline=soon()).take() for _ in range(100)] == list(range(100))


def in_child(function, *sockets):
    """Run ``function`` in a fork of this process, which has the sockets for itself; its pid."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    for sock in sockets:
        sock.close()
    return pid


def reap(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def peer_in_child(new_endpoint, function):
    """An endpoint whose peer 1 lives in a fork and runs ``function(endpoint)``; and the pid."""
    mine, theirs = socket.socketpair()

    def run():
        mine.close()
        endpoint = new_endpoint(1)
        add_lane(endpoint, 0, theirs)
        endpoint.progress()
        function(endpoint)

    pid = in_child(run, theirs)
    endpoint = new_endpoint(0)
    add_lane(endpoint, 1, mine)
    return endpoint, pid


def test_a_peer_killed_in_the_middle_of_a_large_message(new_endpoint):
    def talk(endpoint):
        for number in range(10):
            endpoint.send(0, CONTEXT, 0, number)
        endpoint.send(0, CONTEXT, 1, bytes(64 << 20))

    endpoint, pid = peer_in_child(new_endpoint, talk)
    torn = endpoint.start_receive(CONTEXT, 1, 1)
    while not any(arrival.lent for arrival in endpoint._peers.peer(1).receiving.values()):
        endpoint.progress()
    os.kill(pid, signal.SIGKILL)
    assert reap(pid) == -signal.SIGKILL
    lost = PeerLost("rank 1 was killed")
    endpoint.crank.post(lambda: endpoint.peer_ended(1, lost))
    with pytest.raises(PeerLost, match="was killed"):
        endpoint.wait((torn,), soon())
    assert [endpoint.receive(CONTEXT, 1, 0, deadline=soon()).take() for _ in range(10)] == list(range(10))
    with pytest.raises(PeerLost, match="was killed"):
        endpoint.receive(CONTEXT, 1, 0, deadline=soon())


def test_a_peer_that_is_stopped_for_a_while_loses_nothing(new_endpoint):
    def echo(endpoint):
        for _ in range(2000):
            endpoint.send(0, CONTEXT, 0, endpoint.receive(CONTEXT, 0, 0, deadline=soon()).take())
        endpoint.finish(soon())

    endpoint, pid = peer_in_child(new_endpoint, echo)
    for number in range(2000):
        if number % 400 == 0:
            os.kill(pid, signal.SIGSTOP)
            os.waitid(os.P_PID, pid, os.WSTOPPED)
        value = bytes([number % 256]) * (number * 20)
        operations = [endpoint.start_send(1, CONTEXT, 0, value)]
        settle(endpoint)
        if number % 400 == 0:
            os.kill(pid, signal.SIGCONT)
        endpoint.wait(operations, soon())
        assert endpoint.receive(CONTEXT, 1, 0, deadline=soon()).take() == value
    assert reap(pid) == 0


# -- forks ----------------------------------------------------------------------------------------------------


def test_a_fork_of_a_place_cannot_touch_the_lanes_and_its_parent_goes_on(join):
    a, b = join("shm")
    maps = counted("memfd:rmpi-ring")

    def fork():
        assert maps
        assert counted("memfd:rmpi-ring") == 0  # not mapped: nobody can write to them by accident
        lane = a._peers.known[1].link.lane
        a.disown()
        assert lane.closed
        assert not lane.stirs()
        assert lane.write(b"x") == lane.read_into(memoryview(bytearray(1))) == 0
        for call in (lambda: a.send(1, CONTEXT, 0, 1), lambda: a.receive(CONTEXT, 1, 0, deadline=soon())):
            try:
                call()
            except ChannelClosed:
                continue
            raise AssertionError("the child of a place communicates")

    assert reap(in_child(fork)) == 0
    a.send(1, CONTEXT, 0, "after the fork")
    assert b.receive(CONTEXT, 0, 0, deadline=soon()).take() == "after the fork"
