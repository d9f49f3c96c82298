"""The links that exist, against what every link must do, and what is particular to each medium."""

import select
import socket
from contextlib import closing

import pytest

from rmpi.testing import conformance
from rmpi.testing.conformance import A, B, Pair
from rmpi.transport.base import Transfer
from rmpi.transport.media import link_over, socket_lane, why_no_extension, why_no_shm
from rmpi.transport.memory import CAPACITY, MemoryLink
from rmpi.transport.stream import StreamLink
from rmpi.wire.decoder import STAGING
from rmpi.wire.frames import CHUNK, Frame, Kind


def memory_pair(sink_a, sink_b):
    a, b = MemoryLink.pair((A, sink_a, lambda _link: None), (B, sink_b, lambda _link: None))
    return a, b, lambda: None


def loopback():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


def joined(sockets):
    def make_pair(sink_a, sink_b):
        one, other = sockets()
        a, b = StreamLink(B, one, sink_a), StreamLink(A, other, sink_b)

        def pump():
            select.select([fd for fd in (one, other) if fd.fileno() >= 0], [], [], 0.01)

        return a, b, pump

    return make_pair


def quick(sockets):
    """The same with lanes."""

    def make_pair(sink_a, sink_b):
        if why_no_extension() is not None:
            pytest.skip(str(why_no_extension()))
        one, other = sockets()
        a = StreamLink(B, one, sink_a, socket_lane(one, A, B))
        b = StreamLink(A, other, sink_b, socket_lane(other, B, A))

        def pump():
            """What a crank does: sleep only if no lane stirs."""
            ready = [link.lane.arm() for link in (a, b)]
            fds = [link for link in (a, b) if not link.lane.closed]
            select.select(fds, [], [], 0 if any(ready) else 0.01)

        return a, b, pump

    return make_pair


def shm_pair(sink_a, sink_b, neighbours=2):
    if why_no_shm() is not None:
        pytest.skip(str(why_no_shm()))
    one, other = socket.socketpair()
    a, b = link_over(one, A, B, sink_a, neighbours), link_over(other, B, A, sink_b, neighbours)

    def pump():
        """What a crank does: sleep only if no lane stirs, and hear whose bell was rung."""
        lanes = [link.lane for link in (a, b)]
        ready = [lane.arm() for lane in lanes]
        fds = {link.fileno(): link for link in (a, b) if not link._hung_up and not link.lane.closed}
        for fd in select.select(fds, [], [], 0 if any(ready) else 0.01)[0]:
            fds[fd].hear()

    return a, b, pump


def small_shm_pair(sink_a, sink_b):
    """Rings as small as they get, which is less than the largest eager frame."""
    return shm_pair(sink_a, sink_b, 1000)


unix_pair, tcp_pair = joined(socket.socketpair), joined(loopback)

STREAMS = {
    "unix": unix_pair,
    "tcp": tcp_pair,
    "quick unix": quick(socket.socketpair),
    "quick tcp": quick(loopback),
    "shm": shm_pair,
    "small shm": small_shm_pair,
}
MEDIA = {"memory": memory_pair, **STREAMS}


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("holds", conformance.PROPERTIES, ids=conformance.name)
def test_conformance(holds, medium):
    holds(MEDIA[medium])


@pytest.mark.parametrize("medium", MEDIA)
def test_a_link_says_what_it_is(medium):
    with closing(Pair(MEDIA[medium])) as pair:
        name = medium.split()[-1]
        assert pair.a.medium == name
        assert repr(pair.a) == f"<{name} link to 0xb>"
        assert (pair.a.fileno() >= 0) == (medium in STREAMS)
    assert repr(pair.b) == f"<{name} link to 0xa closed>"


def transfer(payload):
    return Transfer(A, B, 0, 0, 0, b"", [payload], len(payload))


# -- memory -------------------------------------------------------------------------------------------------


def test_a_memory_link_holds_no_more_than_its_capacity():
    with closing(Pair(memory_pair)) as pair:
        stream = transfer(bytes(10 * CAPACITY))
        pair.a.stream(stream)
        assert not pair.a.flush()
        assert stream.offset == CAPACITY
        pair.at_b.take(pair.b)
        assert not pair.a.flush()
        assert stream.offset == 2 * CAPACITY


def test_a_memory_link_tells_the_other_side():
    told = []
    sink = conformance.Recorder()
    a, b = MemoryLink.pair((A, sink, lambda link: told.append(link)), (B, sink, lambda link: told.append(link)))
    a.send(Frame(Kind.BYE, A, B))
    assert told == [b]
    b.stream(transfer(b"data"))
    assert told == [b, a]
    sink.take(a)
    assert told == [b, a, b]  # there is room again


def test_a_loop_is_its_own_other_end():
    sink = conformance.Recorder()
    link = MemoryLink.loop(A, sink, lambda _link: None)
    payload = bytes(range(256)) * 20000
    link.stream(transfer(payload))
    link.send(Frame(Kind.GRANT, A, A))
    while not link.settled():
        sink.take(link)
        link.flush()
    sink.take(link)
    assert sink.streamed() == payload
    assert len(sink.of(Kind.GRANT)) == 1


# -- streams ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("medium", STREAMS)
def test_a_large_payload_is_not_staged(medium):
    """Beyond what came in one read with the first header, the kernel writes where the payload belongs."""
    with closing(Pair(STREAMS[medium])) as pair:
        pair.stream(bytes(40 << 20))
        pair.until(lambda: sum(frame.length for frame in pair.at_b.frames) == 40 << 20, "the payload")
        assert pair.b.staged <= STAGING


@pytest.mark.parametrize("medium", STREAMS)
def test_what_is_given_to_the_kernel_is_the_senders_memory(medium, monkeypatch):
    with closing(Pair(STREAMS[medium])) as pair:
        memory = bytearray(8 << 20)
        given = []
        write = StreamLink._write
        monkeypatch.setattr(StreamLink, "_write", lambda link, buffers: given.extend(buffers) or write(link, buffers))
        pair.stream(memory)
        pair.until(lambda: sum(frame.length for frame in pair.at_b.frames) == len(memory), "the payload")
        copied = sum(len(buffer) for buffer in given if getattr(buffer, "obj", buffer) is not memory)
        assert copied <= 64 * len(given)  # headers


def test_relocation_happens_in_the_middle_of_a_frame(monkeypatch):
    """The property of that name would hold for a link that never stops within a frame."""
    moved = []
    relocate = StreamLink.relocate
    monkeypatch.setattr(StreamLink, "relocate", lambda *args: moved.append(args) or relocate(*args))
    conformance.a_relocated_payload_goes_on_in_other_memory(unix_pair)
    assert moved


def test_one_link_does_not_keep_the_others_waiting():
    """`receive` stops after a number of reads, and says that more may be there."""
    with closing(Pair(tcp_pair)) as pair:
        pair.stream(bytes(16 * CHUNK))
        for _ in range(1000):
            pair.a.flush()
            pair.at_b.take(pair.b)
            if pair.b.more:
                break
        assert pair.b.more
        pair.until(lambda: sum(frame.length for frame in pair.at_b.frames) == 16 * CHUNK, "the payload")


def test_a_connection_reset_is_an_end_not_an_error():
    one, other = loopback()
    link = StreamLink(B, one, conformance.Recorder())
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with RST
    other.close()
    select.select([one], [], [], 5)
    assert list(link.receive()) == []
    assert link.closed
    link.send(Frame(Kind.BYE, A, B))
    assert link.settled()
    link.close()


def test_garbage_is_a_wire_error():
    one, other = socket.socketpair()
    link = StreamLink(B, one, conformance.Recorder())
    other.sendall(b"GET / HTTP/1.1\r\nHost: example.com\r\nUser-Agent: somebody else entirely\r\n\r\n")
    with pytest.raises(conformance.WireError, match="it starts with b'GE'"):
        list(link.receive())
    link.close()
    other.close()
