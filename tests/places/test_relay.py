"""Relaying: what nodes pump for their places, over streams that run through a head.

Place A is of node 1 and place B of node 2; the test has their ends of the sockets. Nodes and head are one thread with
one loop, so what happens is in the test's hands: nothing moves unless it turns the loop.
"""

import os
import select
import socket
from contextlib import closing

import pytest

from rmpi.errors import WireError
from rmpi.places.loop import Loop
from rmpi.places.messages import Carried, Carry, Consumed
from rmpi.places.nodelink import NodeLink
from rmpi.places.relay import LOT, PIECE, WINDOW, Relays
from rmpi.testing import conformance
from rmpi.testing.conformance import A, B
from rmpi.transport.media import link_over

pytestmark = pytest.mark.usefixtures("no_leak")


class Node:
    """One node: its pumps, and the messages that they have sent and nobody has brought to the other yet."""

    def __init__(self, loop):
        self.out = []
        self.idled = 0
        self.relays = Relays(loop, self.out.append, self._idle)

    def _idle(self):
        self.idled += 1


class Pair:
    """Both nodes, both places. `one` and `two` are the places' ends."""

    def __init__(self):
        self.loop = Loop()
        self.at_a, self.at_b = Node(self.loop), Node(self.loop)
        self.a, self.b = self.at_a.relays.open(A, B), self.at_b.relays.open(B, A)
        for sock in (self.a, self.b):
            sock.setblocking(False)

    def turn(self):
        """Let every pump move what it can, without bringing anything anywhere."""
        for _ in range(2 * WINDOW // PIECE):
            self.loop.post(lambda: None)
            self.loop.run_once()

    def bring(self):
        """Bring everything that was sent to the other node; whether there was anything."""
        there, self.at_a.out[:] = list(self.at_a.out), []
        back, self.at_b.out[:] = list(self.at_b.out), []
        for message in there:
            self.at_b.relays.heard(message)
        for message in back:
            self.at_a.relays.heard(message)
        return bool(there or back)

    def settle(self):
        self.turn()
        while self.bring():
            self.turn()

    def pumps(self):
        return len(self.at_a.relays._pumps) + len(self.at_b.relays._pumps)

    def close(self):
        for end in (self.a, self.b, self.at_a.relays, self.at_b.relays, self.loop):
            end.close()


@pytest.fixture
def pair():
    with closing(Pair()) as pair:
        yield pair


def fill(sock):
    """Write until nothing more is taken; how much was."""
    total = 0
    while True:
        try:
            total += sock.send(bytes(PIECE))
        except BlockingIOError:
            return total


def drain(sock):
    """All that can be read; at the end an empty one follows."""
    data = b""
    while True:
        try:
            piece = sock.recv(1 << 20)
        except BlockingIOError:
            return data
        if not piece:
            return data
        data += piece


def ended(sock):
    """Whether what can be read there is the end."""
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


# -- bytes --------------------------------------------------------------------------------------------------


def test_bytes_go_both_ways(pair):
    pair.a.send(b"there")
    pair.b.send(b"back")
    pair.settle()
    assert (pair.a.recv(100), pair.b.recv(100)) == (b"back", b"there")


def test_what_was_written_before_the_other_side_has_its_socket_comes_too():
    """A pump that is made later finds messages that were brought in order behind the news that there is one."""
    with closing(Loop()) as loop:
        near, far = Node(loop), Node(loop)
        with near.relays.open(A, B) as a:
            a.send(b"early")
            loop.run_once()
            with far.relays.open(B, A) as b:
                far.relays.heard(near.out.pop())
                assert b.recv(100) == b"early"
        near.relays.close()
        far.relays.close()


def test_a_large_stream_comes_whole_through_a_small_window(pair):
    data = os.urandom(5 * WINDOW + 7)
    sent, came = 0, b""
    while len(came) < len(data):
        if sent < len(data):
            try:
                sent += pair.a.send(data[sent:])
            except BlockingIOError:
                pass
        pair.settle()
        came += drain(pair.b)
    assert came == data


def test_no_piece_is_longer_than_what_the_urgent_may_have_to_wait_for(pair):
    fill(pair.a)
    pair.turn()
    assert {len(message.data) for message in pair.at_a.out} == {PIECE}


# -- nobody waits, and nothing grows ------------------------------------------------------------------------


def test_no_more_is_under_way_than_the_window(pair):
    """Nobody brings anything: the pump stops reading, and the place can write no more."""
    while fill(pair.a):
        pair.turn()
    assert sum(len(message.data) for message in pair.at_a.out) == WINDOW


def test_a_place_that_does_not_read_makes_its_peer_wait_and_nobody_else(pair):
    total = 0
    while written := fill(pair.a):
        total += written
        pair.settle()
    pump = pair.at_b.relays._pumps[B, A]
    assert 0 < pump._unwritten <= WINDOW
    pair.b.send(b"the other direction")
    pair.settle()
    assert pair.a.recv(100) == b"the other direction"
    came = len(drain(pair.b))
    while came < total:
        pair.settle()
        came += len(drain(pair.b))
    assert came == total
    assert not pair.bring()


def test_what_was_taken_is_acknowledged_in_lots(pair):
    for _ in range(LOT // PIECE - 1):
        pair.a.send(bytes(PIECE))
        pair.turn()
        pair.bring()
        drain(pair.b)
    assert pair.at_b.out == []
    pair.a.send(bytes(PIECE))
    pair.turn()
    pair.bring()
    assert pair.at_b.out == [Carried(A, B, LOT)]


def test_a_node_that_sends_more_than_may_be_under_way_is_refused(pair):
    """To a place that reads nothing."""
    fill(pair.at_b.relays._pumps[B, A]._socket)
    pair.at_b.relays.heard(Carry(A, B, bytes(WINDOW)))
    with pytest.raises(WireError, match="more to 0xb than may be under way"):
        pair.at_b.relays.heard(Carry(A, B, b"x"))


@pytest.mark.parametrize("count", [1, -1])
def test_a_node_that_takes_more_than_was_sent_is_refused(pair, count):
    with pytest.raises(WireError, match="0 are under way"):
        pair.at_a.relays.heard(Carried(A, B, count))


def test_a_pump_with_nothing_to_do_sleeps(pair):
    """Also one that may not read, and whose place has gone: epoll would tell of that again and again."""
    fill(pair.a)
    pair.turn()
    pair.a.close()
    pair.turn()
    pump = pair.at_a.relays._pumps[A, B]
    assert pump._watched == 0


# -- ends ---------------------------------------------------------------------------------------------------


def test_one_direction_may_end_before_the_other(pair):
    pair.a.send(b"that is all")
    pair.a.shutdown(socket.SHUT_WR)
    pair.settle()
    assert drain(pair.b) == b"that is all"
    assert ended(pair.b)
    assert not ended(pair.a)
    pair.b.send(b"one more")
    pair.settle()
    assert pair.a.recv(100) == b"one more"


def test_a_pair_whose_both_directions_are_over_is_forgotten(pair):
    pair.a.close()
    pair.settle()
    assert ended(pair.b)
    pair.b.close()
    pair.settle()
    assert pair.pumps() == 0
    pair.at_a.relays.heard(Carry(B, A, b"from before"))
    pair.at_a.relays.heard(Carried(A, B, 0))


def test_what_was_said_before_the_end_comes_before_it(pair):
    """More than fits the sockets at the far end, from a place that is gone."""
    total = fill(pair.a)
    pair.a.close()
    came = 0
    while came < total:
        pair.settle()
        came += len(drain(pair.b))
    assert came == total
    assert ended(pair.b)


def test_who_writes_to_a_place_that_is_gone_is_told_so(pair):
    pair.b.close()
    pair.a.send(b"into the void")
    pair.settle()
    assert ended(pair.a)
    with pytest.raises(BrokenPipeError):
        fill(pair.a)


def test_a_place_that_ended_with_unread_messages_is_heard_to_its_end(pair):
    """Its kernel says that the connection was reset, which is not what its peer shall think."""
    pair.a.send(b"unread")
    pair.settle()
    pair.b.send(b"last words")
    pair.b.close()
    pair.settle()
    assert drain(pair.a) == b"last words"
    assert ended(pair.a)


def test_a_place_that_ended_while_another_process_holds_its_socket(pair):
    """Its node knows that it has ended: what it had said is sent on, as the window allows, and then the end."""
    total = fill(pair.a)
    pair.at_a.relays.ended(A)
    came = 0
    while came < total:
        pair.settle()
        came += len(drain(pair.b))
    assert came == total
    assert ended(pair.b)
    with pytest.raises(BrokenPipeError):
        pair.b.send(b"for nobody")


def test_a_node_is_busy_until_what_its_places_said_has_arrived(pair):
    """Or until nobody wants it any more."""
    while fill(pair.a):
        pair.settle()
    pair.a.close()
    pair.settle()
    assert pair.at_a.relays.busy
    while drain(pair.b):
        pair.settle()
    assert pair.at_a.idled
    assert not pair.at_a.relays.busy
    assert pair.at_b.relays.busy  # its own place may still say something, and finds out that nobody listens
    pair.b.close()
    pair.settle()
    assert not pair.at_b.relays.busy


def test_a_node_does_not_wait_for_a_place_that_has_ended_to_take_anything(pair):
    fill(pair.a)
    pair.settle()
    pair.a.close()
    pair.at_b.relays.ended(B)
    pair.settle()
    assert not pair.at_a.relays.busy
    assert pair.pumps() == 0


def test_ends_that_the_head_says_for_a_node_that_is_lost(pair):
    pair.b.send(b"this got through")
    pair.settle()
    pair.at_a.relays.heard(Carry(B, A, b""))
    pair.at_a.relays.heard(Carried(A, B, 0))
    assert drain(pair.a) == b"this got through"
    assert ended(pair.a)
    assert not pair.at_a.relays.busy


def test_an_end_that_is_said_twice_is_one(pair):
    """By a node while it could, and by the head when it was lost, with something still to be read."""
    fill(pair.at_a.relays._pumps[A, B]._socket)
    for data in (b"the last words", b"", b""):
        pair.at_a.relays.heard(Carry(B, A, data))
    came = b""
    while piece := drain(pair.a):
        came += piece
        pair.turn()
    assert came.endswith(b"the last words")
    assert ended(pair.a)
    assert pair.at_a.out == [Carried(B, A, 0)]


def test_a_fork_of_the_node_leaves_the_sockets_to_it(pair):
    pair.at_a.relays.disown()
    assert ended(pair.a)


def test_pairs_are_relayed_apart():
    with closing(Pair()) as first:
        relays, other = first.at_a.relays, B + 1
        with relays.open(A, other) as second:
            second.send(b"to the other")
            first.a.send(b"to B")
            first.turn()
            assert sorted(message.destination for message in first.at_a.out) == [B, other]
            relays.heard(Carry(other, A, b"from the other"))
            assert second.recv(100) == b"from the other"
            relays.close()
            assert ended(second)
            assert ended(first.a)


# -- as a link ----------------------------------------------------------------------------------------------


class Rig:
    """Two nodes and a head that passes on, joined by streams; whatever is made is closed at the end."""

    def __init__(self):
        self.loop = Loop()
        self.nodes = []
        self._links = []
        self._to_node = {A: self._stream(B), B: self._stream(A)}

    def _stream(self, far):
        """The head's end of the stream to a node, whose places talk to those of the node that ``far`` is on."""
        near, head = socket.socketpair()
        relays = Relays(self.loop, lambda message: up.send(message), lambda: None)
        up = NodeLink(self.loop, near, relays.heard, lambda _why: None)
        down = NodeLink(self.loop, head, lambda message: self._to_node[far].send(message), lambda _why: None)
        self.nodes.append(relays)
        self._links += [up, down]
        return down

    def make_pair(self, sink_a, sink_b):
        at_a, at_b = self.nodes
        a = link_over(at_a.open(A, B), A, B, sink_a, 2, relayed=True)
        b = link_over(at_b.open(B, A), B, A, sink_b, 2, relayed=True)
        lanes = [link.lane for link in (a, b) if link.lane is not None]

        def pump():
            for _ in range(8):
                self.loop.post(lambda: None)
                self.loop.run_once()
            ready = [lane.arm() for lane in lanes]
            fds = [link.fileno() for link in (a, b) if not (link.lane.closed if link.lane else link.closed)]
            select.select([fd for fd in fds if fd >= 0], [], [], 0 if any(ready) else 0.0005)

        return a, b, pump

    def close(self):
        for each in (*self.nodes, *self._links, self.loop):
            each.close()


@pytest.fixture
def rig():
    with closing(Rig()) as rig:
        yield rig


@pytest.mark.parametrize("holds", conformance.PROPERTIES, ids=conformance.name)
def test_conformance(holds, rig):
    holds(rig.make_pair)


def test_a_relayed_link_says_what_it_is(rig):
    with closing(conformance.Pair(rig.make_pair)) as pair:
        assert repr(pair.a) == "<relay link to 0xb>"


# -- on the streams between nodes ---------------------------------------------------------------------------


def test_what_nodes_say_to_each_other_overtakes_what_they_relay():
    with closing(Loop()) as loop:
        near, far = socket.socketpair()
        heard = []
        with closing(NodeLink(loop, near, lambda _message: None, lambda _why: None)) as one:
            for _ in range(100):
                one.send(Carry(A, B, bytes(PIECE)))
            for number in range(3):
                one.send(Consumed(number))
            with closing(NodeLink(loop, far, heard.append, lambda _why: None)):
                while len(heard) < 103:
                    loop.run_once()
    first = heard.index(Consumed(0))
    assert heard[first : first + 3] == [Consumed(0), Consumed(1), Consumed(2)]
    assert first < 50  # what the kernel had taken, and not what waited
    assert sum(isinstance(message, Carry) for message in heard) == 100


def test_a_stream_that_is_closed_forgets_what_waits():
    with closing(Loop()) as loop:
        near, far = socket.socketpair()
        with far, closing(NodeLink(loop, near, lambda _message: None, lambda _why: None)) as link:
            for _ in range(100):
                link.send(Carry(A, B, bytes(PIECE)))
            link.close()
            link.send(Carry(A, B, b"too late"))
