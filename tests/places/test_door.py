"""The door of a node, on a real loopback listener: who holds the key gets in, and nobody else disturbs."""

import contextlib
import math
import os
import resource
import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmpi.deadline import Deadline
from rmpi.errors import PeerLost
from rmpi.places import door
from rmpi.places.door import PATIENCE, WAITING_LIMIT, Door, dial
from rmpi.places.loop import Loop
from rmpi.wire.handshake import NONCE_SIZE, Connector

KEY = bytes(range(32))
OTHER_KEY = bytes(reversed(KEY))
SOURCE, DESTINATION = 1, 1 << 20 | 1

pytestmark = pytest.mark.usefixtures("no_leak")


class House:
    """A door and the loop it needs. `entered` and `turned_away` are what it has told."""

    def __init__(self, address="127.0.0.1"):
        self.loop = Loop()
        self.entered = []
        self.turned_away = []
        self.door = Door(self.loop, address, KEY, lambda *who: self.entered.append(who), self.turned_away.append)
        self.address = (address, self.door.port)

    def until(self, condition):
        while not condition():
            self.loop.run_once()

    def connect(self):
        return socket.create_connection(self.address)

    def turn(self):
        """Let happen what can happen now."""
        self.loop.post(lambda: None)
        self.loop.run_once()

    def is_waited_on(self, sock):
        """Whether ``sock`` is still open at the door's side."""
        self.turn()
        try:
            return sock.recv(1, socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True

    def close(self):
        self.door.close()
        self.loop.close()
        for sock, _, _ in self.entered:
            sock.close()


@pytest.fixture
def house():
    house = House()
    yield house
    house.close()


class Dialling:
    """`dial` in a thread of its own."""

    def __init__(self, doors, key=KEY, timeout=20, patience=math.inf):
        self._call = doors, key, SOURCE, DESTINATION, Deadline.after(timeout), patience
        self._thread = threading.Thread(target=self._dial)
        self._thread.start()

    def _dial(self):
        try:
            self._result = dial(*self._call)
        except PeerLost as error:
            self._result = error

    def over(self, seconds):
        """Whether it is over after so long."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self):
        """The socket, or the error."""
        self._thread.join()
        return self._result


def comes_in(house, *doors_before):
    """Somebody with the right key gets in now."""
    known = len(house.entered)
    dialling = Dialling([*doors_before, house.address])
    house.until(lambda: len(house.entered) > known)
    with dialling.result() as sock:
        assert house.entered[-1][1:] == (SOURCE, DESTINATION)
        assert house.entered[-1][0].getpeername() == sock.getsockname()


# -- getting in ---------------------------------------------------------------------------------------------


def test_who_holds_the_key_gets_in_and_says_who_it_is(house):
    comes_in(house)
    comes_in(house)
    assert len(house.entered) == 2
    assert house.turned_away == []


def test_not_one_byte_behind_the_handshake_is_swallowed(house):
    """In either direction, even where the first frames come in one packet with the last of the handshake."""
    connector = Connector(KEY, SOURCE, DESTINATION, os.urandom(NONCE_SIZE))
    with house.connect() as sock:
        sock.send(connector.outgoing())
        while not (proof := connector.outgoing()):
            house.turn()
            with contextlib.suppress(BlockingIOError):
                connector.feed(sock.recv(connector.wanted(), socket.MSG_DONTWAIT))
        sock.send(proof + b"the first frame")
        house.until(lambda: house.entered)
        [(entered, _, _)] = house.entered
        assert entered.recv(100) == b"the first frame"


def test_the_dialler_reads_nothing_behind_the_handshake(house):
    dialling = Dialling([house.address])
    house.until(lambda: house.entered)
    house.entered[0][0].send(b"sent at once")
    with dialling.result() as sock:
        assert sock.recv(100) == b"sent at once"


def test_it_works_one_byte_at_a_time(house):
    connector = Connector(KEY, SOURCE, DESTINATION, os.urandom(NONCE_SIZE))
    with house.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not connector.done:
            for byte in connector.outgoing():
                sock.send(bytes([byte]))
                house.turn()
            with contextlib.suppress(BlockingIOError):
                connector.feed(sock.recv(1, socket.MSG_DONTWAIT))
            house.turn()
        assert len(house.entered) == 1


def test_a_door_may_be_at_an_ipv6_address():
    try:
        house = House("::1")
    except OSError:
        pytest.skip("no IPv6 here")
    comes_in(house)
    house.close()


# -- strangers ----------------------------------------------------------------------------------------------


def test_a_silent_stranger_is_dismissed_when_patience_ends(house, clock):
    with house.connect() as sock:
        house.turn()
        clock.now += PATIENCE - 0.1
        assert house.is_waited_on(sock)
        clock.now += 0.1
        assert not house.is_waited_on(sock)
        where = "{}:{}".format(*sock.getsockname())
    assert house.turned_away == [f"turned away a connection from {where}: too slow"]


def test_patience_is_for_the_whole_handshake(house, clock):
    """A byte now and then buys no time."""
    hello = Connector(KEY, SOURCE, DESTINATION, os.urandom(NONCE_SIZE)).outgoing()
    with house.connect() as sock:
        house.turn()
        for byte in hello[:8]:
            assert house.is_waited_on(sock)
            sock.send(bytes([byte]))
            clock.now += PATIENCE / 8
        house.until(lambda: house.turned_away)
    assert "too slow" in house.turned_away[0]


def test_who_got_in_is_not_dismissed_later(house, clock):
    comes_in(house)
    clock.now += 2 * PATIENCE
    house.turn()
    assert house.turned_away == []
    assert house.entered[0][0].fileno() != -1


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 8, b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_who_speaks_something_else_gets_no_answer(house, noise):
    with house.connect() as sock:
        sock.send(noise)
        house.until(lambda: house.turned_away)
        with contextlib.suppress(ConnectionResetError):  # the door left some of the noise unread
            assert sock.recv(1) == b""
    assert "not an rmpi peer" in house.turned_away[0]
    assert house.entered == []


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=200), tail=st.booleans())
def test_random_bytes_get_nobody_in(house, noise, tail):
    hello = Connector(KEY, SOURCE, DESTINATION, bytes(NONCE_SIZE)).outgoing()
    known = len(house.turned_away)
    with house.connect() as sock:
        sock.send((hello if tail else b"") + noise)
        sock.shutdown(socket.SHUT_WR)
        house.until(lambda: len(house.turned_away) > known)
    assert house.entered == []


def test_the_wrong_key_is_turned_away_and_both_sides_say_so(house):
    dialling = Dialling([house.address], key=OTHER_KEY)
    house.until(lambda: house.turned_away)
    assert "another key" in str(dialling.result())
    assert house.entered == []


@pytest.mark.parametrize("count", [0, 1, 8, 55, 56])
def test_the_end_in_the_middle_of_the_handshake(house, count):
    hello = Connector(KEY, SOURCE, DESTINATION, os.urandom(NONCE_SIZE)).outgoing()
    with house.connect() as sock:
        sock.send(hello[:count])
        sock.shutdown(socket.SHUT_WR)
        house.until(lambda: house.turned_away)
    assert "closed the connection" in house.turned_away[0]
    comes_in(house)


def test_a_stranger_who_is_gone_before_it_was_let_in(house):
    sock = house.connect()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close sends a reset
    sock.close()
    comes_in(house)


def test_300_idle_connections_keep_nobody_out(house, descriptors):
    """The oldest go, so that the door never holds more than its limit."""
    before = descriptors()
    strangers = []
    for _ in range(300):
        strangers.append(house.connect())
        house.loop.run_once()
    assert descriptors() <= before + 300 + WAITING_LIMIT
    assert len(house.turned_away) == 300 - WAITING_LIMIT
    assert not house.is_waited_on(strangers[0])
    assert house.is_waited_on(strangers[-1])
    comes_in(house)
    for sock in strangers:
        sock.close()


def test_strangers_who_come_all_at_once_leave_the_loop_its_other_work(house, monkeypatch):
    monkeypatch.setattr(door, "AT_ONCE", 10)
    strangers = [house.connect() for _ in range(25)]
    house.loop.post(lambda: at_this_moment.append(len(house.door._waiting)))
    at_this_moment = []
    house.loop.run_once()
    assert at_this_moment == [10]
    house.until(lambda: len(house.door._waiting) == 25)
    for sock in strangers:
        sock.close()


def test_without_descriptors_the_door_rests_and_the_loop_does_not_spin(house, monkeypatch):
    monkeypatch.setattr(door, "REST", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    turns = 0
    with house.connect() as sock:
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            house.loop.call_later(0.02, lambda: None)
            house.loop.run_once()
            house.loop.run_once()
            assert house.door._waiting == {}
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        while not house.door._waiting:
            house.loop.run_once()
            turns += 1
        assert turns <= 3
        assert house.is_waited_on(sock)


def test_close_ends_it_for_those_who_wait():
    house = House()
    with house.connect() as sock:
        house.until(lambda: house.door._waiting)
        house.close()
        assert sock.recv(1) == b""
        assert house.turned_away == []
    with pytest.raises(ConnectionRefusedError):
        house.connect()


# -- dialling -----------------------------------------------------------------------------------------------


@pytest.fixture
def closed_port():
    """A port of this machine where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def test_a_closed_port_is_named_with_its_address(closed_port):
    with pytest.raises(PeerLost, match=f"127.0.0.1 port {closed_port}: .*refused"):
        dial([("127.0.0.1", closed_port)], KEY, SOURCE, DESTINATION, Deadline.after(5))


def test_without_a_door():
    with pytest.raises(PeerLost, match="its node has no door"):
        dial([], KEY, SOURCE, DESTINATION, Deadline.after(5))


def test_the_doors_are_tried_in_turn(house, closed_port):
    comes_in(house, ("127.0.0.1", closed_port))


def test_a_silent_door_leaves_time_for_the_next(house):
    """The first address swallows everything, as a firewall does: it has its share of the time, not all."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dialling = Dialling([silent.getsockname(), house.address], timeout=1.0)
        house.until(lambda: house.entered)
        dialling.result().close()


def test_an_address_at_which_nobody_answers_is_given_up_early():
    """A full backlog drops what comes, as a firewall does."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            visitor = stack.enter_context(socket.socket())
            visitor.setblocking(False)
            visitor.connect_ex(full.getsockname())
        with pytest.raises(PeerLost, match="timed out"):
            dial([full.getsockname()], KEY, SOURCE, DESTINATION, Deadline.after(60), patience=0.05)


def test_a_node_that_is_busy_is_not_given_up_as_early_as_an_address(house):
    """Its kernel has answered."""
    dialling = Dialling([house.address], patience=0.1)
    assert not dialling.over(0.2)
    house.until(lambda: house.entered)
    dialling.result().close()


def test_all_doors_that_stayed_shut_are_listed(closed_port):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        doors = [("127.0.0.1", closed_port), silent.getsockname()]
        with pytest.raises(PeerLost, match=rf"port {closed_port}: .*refused; .* port {doors[1][1]}: timed out"):
            dial(doors, KEY, SOURCE, DESTINATION, Deadline.after(0.05))


@pytest.mark.parametrize(
    ("answer", "text"), [(b"", "closed the connection"), (b"HTTP/1.1 400 Bad Request\r\n", "not an rmpi peer")]
)
def test_somebody_else_listens_there(answer, text):
    with socket.create_server(("127.0.0.1", 0)) as server:
        dialling = Dialling([server.getsockname()])
        visitor, _ = server.accept()
        with visitor:
            visitor.recv(1000)
            visitor.sendall(answer)
        assert text in str(dialling.result())


def test_without_a_deadline_it_waits(house):
    dialling = Dialling([house.address], timeout=None)
    house.until(lambda: house.entered)
    dialling.result().close()
