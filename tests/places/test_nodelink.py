"""The stream between two nodes: messages in order, and a clear end."""

import os
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmpi.places import nodelink
from rmpi.places.loop import Loop
from rmpi.places.messages import Consumed, Go, Output, Ping, Stop, pack
from rmpi.places.nodelink import NodeLink
from rmpi.wire.frames import Frame, Kind, encode

pytestmark = pytest.mark.usefixtures("no_leak")


class Side:
    """One node's end of the stream; what it `heard`, and why it was `lost`."""

    def __init__(self, loop, sock, silence=60.0):
        self.heard = []
        self.lost = []
        self.link = NodeLink(loop, sock, self.heard.append, self.lost.append, silence=silence)


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def sides(loop):
    both = [Side(loop, sock) for sock in socket.socketpair()]
    yield both
    for side in both:
        side.link.close()


@pytest.fixture
def raw(loop):
    """A node, and the bare socket at the other end of its stream."""
    near, far = socket.socketpair()
    side = Side(loop, near)
    yield side, far
    side.link.close()
    far.close()


def until(loop, condition):
    while not condition():
        loop.run_once()


def control(*messages):
    return b"".join(
        b"".join(encode(Frame(Kind.CONTROL, 0, 0, length=len(data), segments=(data,)))) for data in map(pack, messages)
    )


# -- messages -----------------------------------------------------------------------------------------------


def test_messages_arrive_in_order_both_ways(loop, sides):
    one, two = sides
    for i in range(1000):
        one.link.send(Consumed(i))
        two.link.send(Consumed(-i))
    until(loop, lambda: len(one.heard) == len(two.heard) == 1000)
    assert two.heard == [Consumed(i) for i in range(1000)]
    assert one.heard == [Consumed(-i) for i in range(1000)]


def test_big_messages_keep_their_place_among_small_ones(loop, sides):
    one, two = sides
    sent = [Output(1, 1, os.urandom(size)) for size in (10, 8_000_000, 0, 100_000, 3_000_000, 1)]
    for message in sent:
        one.link.send(message)
    until(loop, lambda: len(two.heard) == len(sent))
    assert two.heard == sent


def test_both_sides_may_send_more_than_the_other_has_read(loop, sides):
    one, two = sides
    for _ in range(20):
        one.link.send(Output(1, 1, bytes(1_000_000)))
        two.link.send(Output(2, 1, bytes(1_000_000)))
    until(loop, lambda: len(one.heard) == len(two.heard) == 20)


def test_a_stream_may_come_byte_by_byte(loop, raw):
    side, far = raw
    for byte in control(Go(), Consumed(5), Stop()):
        far.send(bytes([byte]))
        loop.run_once()
    assert side.heard == [Go(), Consumed(5), Stop()]


def test_what_is_heard_may_close_the_link(loop, raw):
    """Nothing is heard afterwards, not even what had come already; nor is it lost."""
    side, far = raw
    side.link._heard = lambda message: (side.heard.append(message), side.link.close())
    far.send(control(Go(), Stop()))
    until(loop, lambda: side.heard)
    assert side.heard == [Go()]
    assert side.lost == []
    side.link.send(Go())
    side.link.close()


# -- the end ------------------------------------------------------------------------------------------------


def test_the_end_comes_after_the_last_message_and_once(loop, raw):
    side, far = raw
    far.send(control(Go(), Stop()))
    far.close()
    until(loop, lambda: side.lost)
    assert side.heard == [Go(), Stop()]
    assert side.lost == ["its control stream ended"]
    assert side.link.closed
    side.link.send(Go())
    side.link.close()
    assert len(side.lost) == 1


def test_close_says_nothing_here_and_is_an_end_there(loop, sides):
    one, two = sides
    one.link.send(Stop())
    one.link.close()
    until(loop, lambda: two.lost)
    assert two.heard == [Stop()]
    assert one.lost == []


def test_a_torn_message_is_not_heard(loop, raw):
    side, far = raw
    far.send(control(Go(), Output(1, 1, bytes(1000)))[:-1])
    far.close()
    until(loop, lambda: side.lost)
    assert side.heard == [Go()]


def test_sending_to_a_peer_that_is_gone(loop, raw):
    side, far = raw
    far.close()
    side.link.send(Output(1, 1, bytes(1_000_000)))
    until(loop, lambda: side.lost)
    assert side.lost == ["its control stream ended"]


# -- nonsense -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"Last login: Sat Nov 21 00:00:00 2026 from 10.0.0.1" * 4,
        b"".join(encode(Frame(Kind.EAGER, 0, 0, length=3, segments=(b"abc",)))),
        b"".join(encode(Frame(Kind.BYE, 0, 0))),
        b"".join(encode(Frame(Kind.CONTROL, 0, 0))),
        b"".join(encode(Frame(Kind.CONTROL, 0, 0, length=3, segments=(b"abc",)))),
    ],
    ids=["a login banner", "a payload", "a bye", "an empty message", "no message"],
)
def test_nonsense_breaks_the_stream(loop, raw, data):
    side, far = raw
    far.send(data)
    until(loop, lambda: side.lost)
    assert side.lost[0].startswith("its control stream broke: ")
    assert side.link.closed
    assert side.heard == []


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_any_bytes_are_borne(loop, data):
    near, far = socket.socketpair()
    side = Side(loop, near)
    far.send(data)
    far.close()
    until(loop, lambda: side.lost)
    assert side.heard == []


# -- signs of life ------------------------------------------------------------------------------------------


@pytest.fixture
def beat(loop, clock):
    """Let one beat pass, and everything happen that follows from it."""

    def pass_one(seconds=nodelink.BEAT):
        clock.now += seconds
        for _ in range(3):
            loop.post(lambda: None)
            loop.run_once()

    return pass_one


def silent(loop, silence):
    near, far = socket.socketpair()
    return Side(loop, near, silence), far


def test_silence_is_the_end(loop, beat):
    side, far = silent(loop, silence=5.0)
    for _ in range(5):
        beat()
    assert side.lost == []
    beat()
    assert side.lost == ["nothing was heard from it for 5 s"]
    far.close()


def test_any_sign_of_life_counts(loop, beat):
    side, far = silent(loop, silence=2.0)
    for _ in range(20):
        far.send(control(Ping()))
        beat()
    assert side.lost == []
    assert side.heard == []  # a Ping is for the link alone
    side.link.close()
    far.close()


def test_two_links_keep_each_other_alive(loop, beat):
    one, two = (Side(loop, sock, silence=2.0) for sock in socket.socketpair())
    for _ in range(20):
        beat()
    assert one.lost == two.lost == []
    one.link.close()
    two.link.close()


def test_time_in_which_we_were_stopped_is_not_the_other_side_s_silence(loop, beat):
    side, far = silent(loop, silence=5.0)
    beat()
    beat(3600.0)
    assert side.lost == []
    for _ in range(6):
        beat()
    assert side.lost == ["nothing was heard from it for 5 s"]
    far.close()


def test_a_node_may_wait_for_ever_for_its_head(loop, beat):
    side, far = silent(loop, silence=float("inf"))
    for _ in range(100):
        beat()
    assert side.lost == []
    side.link.close()
    far.close()


def test_a_closed_link_has_no_pulse(loop, beat):
    side, far = silent(loop, silence=5.0)
    side.link.close()
    for _ in range(10):
        beat()
    assert side.lost == []
    far.setblocking(False)
    assert far.recv(100) == b""
    far.close()
