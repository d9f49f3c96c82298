"""Control sockets: messages and descriptors arrive together, nobody waits, and no descriptor is left over."""

import os
import socket
import threading

import pytest

from rmpi.errors import WireError
from rmpi.places import control
from rmpi.places.control import FDS, IN_FILE, PACKET, Control, control_pair
from rmpi.places.messages import Connect, Crashed, Joined, Left, LinkTo, pack

pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.fixture
def pair():
    """Two ends."""
    ends = [Control(sock) for sock in control_pair()]
    yield ends
    for end in ends:
        end.close()


@pytest.fixture
def raw():
    """A receiver, and the bare socket at the other end."""
    far, near = control_pair()
    with far:
        receiver = Control(near)
        yield receiver, far
        receiver.close()


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def fill(end):
    """Send until the peer's buffer is full; how many messages were sent or wait."""
    count = 1
    while end.send(Connect(count)):
        count += 1
    return count


def heard(end):
    return [message for message, _ in end.receive()]


# -- messages -----------------------------------------------------------------------------------------------


def test_messages_arrive_in_order_and_apart(pair):
    one, two = pair
    for message in (Joined(), Connect(3), Left()):
        assert one.send(message)
    assert heard(two) == [Joined(), Connect(3), Left()]
    assert heard(two) == []
    assert not two.closed


def test_both_directions_are_independent(pair):
    one, two = pair
    one.send(Joined())
    two.send(Left())
    assert (heard(one), heard(two)) == ([Left()], [Joined()])


@pytest.mark.parametrize("size", [PACKET - 100, PACKET, PACKET + 1, 3_000_000])
def test_a_message_may_be_longer_than_a_packet(pair, size):
    one, two = pair
    message = Crashed("ValueError", "x" * size, False)
    one.send(Joined())
    one.send(message)
    one.send(Left())
    got = []
    while len(got) < 3:
        one.flush()
        got += heard(two)
    assert got == [Joined(), message, Left()]


def test_a_long_message_brings_its_descriptors_too(pair, pipe):
    one, two = pair
    message = Crashed("ValueError", "x" * (PACKET + 1), False)
    one.send(message, pipe)
    [(got, fds)] = two.receive()
    assert got == message
    assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(fd).st_ino for fd in pipe]
    for fd in fds:
        os.close(fd)


# -- descriptors --------------------------------------------------------------------------------------------


def test_descriptors_travel_with_their_message(pair, pipe):
    read, write = pipe
    one, two = pair
    one.send(Joined())
    one.send(LinkTo(1, False), [write])
    one.send(Left())
    [(first, none), (second, [arrived]), (third, no_more)] = two.receive()
    assert (first, second, third) == (Joined(), LinkTo(1, False), Left())
    assert none == no_more == []
    os.write(arrived, b"through the copy")
    os.close(arrived)
    assert os.read(read, 100) == b"through the copy"
    os.fstat(write)  # the sender's own is still open


def test_as_many_descriptors_as_are_allowed(pair, pipe):
    one, two = pair
    one.send(LinkTo(1, False), [pipe[0]] * FDS)
    [(_, fds)] = two.receive()
    assert len(fds) == FDS
    for fd in fds:
        os.close(fd)


def test_programs_started_here_inherit_none_of_them(pair, pipe):
    one, two = pair
    one.send(LinkTo(1, False), pipe)
    [(_, fds)] = two.receive()
    assert [os.get_inheritable(fd) for fd in fds] == [False, False]
    for fd in fds:
        os.close(fd)


# -- a peer that does not read ------------------------------------------------------------------------------


def test_what_the_peer_does_not_take_waits(pair, pipe):
    """Nobody blocks; the descriptors may be closed at once, and everything comes in order."""
    one, two = pair
    count = fill(one)
    again = os.dup(pipe[1])
    assert not one.send(LinkTo(7, False), [again])
    os.close(again)
    got = []
    while not one.flush():
        got += two.receive()
    got += two.receive()
    assert [message for message, _ in got] == [*map(Connect, range(1, count + 1)), LinkTo(7, False)]
    [fd] = got[-1][1]
    assert os.fstat(fd).st_ino == os.fstat(pipe[1]).st_ino
    os.close(fd)


def test_drain_waits_until_everything_is_sent(pair):
    one, two = pair
    count = fill(one)
    drained = threading.Thread(target=one.drain)
    drained.start()
    got = []
    while len(got) < count:
        got += heard(two)
    drained.join()
    assert one.flush()
    assert got == list(map(Connect, range(1, count + 1)))


def test_threads_may_send_at_the_same_time(pair):
    one, two = pair
    senders = [
        threading.Thread(target=lambda first: [one.send(Connect(first + i)) for i in range(500)], args=(1000 * n,))
        for n in range(4)
    ]
    for sender in senders:
        sender.start()
    got = []
    while len(got) < 2000:
        one.flush()
        got += [message.peer for message in heard(two)]
    for sender in senders:
        sender.join()
    for first in (0, 1000, 2000, 3000):
        assert [peer for peer in got if first <= peer < first + 1000] == list(range(first, first + 500))


# -- ends ---------------------------------------------------------------------------------------------------


def interrupt(monkeypatch, handler):
    """The next message is sent, and before that is noted, a signal handler runs."""
    send = control._send_fds

    def interrupted(*args):
        monkeypatch.setattr(control, "_send_fds", send)
        send(*args)
        handler()

    monkeypatch.setattr(control, "_send_fds", interrupted)


def test_a_signal_handler_may_send_in_the_middle_of_that(pair, monkeypatch):
    one, two = pair
    interrupt(monkeypatch, lambda: one.send(Connect(2)))
    assert one.send(Connect(1))
    assert heard(two) == [Connect(1), Connect(2)]


def test_it_may_be_closed_in_the_middle_of_sending(pair, pipe, monkeypatch):
    one, two = pair
    interrupt(monkeypatch, one.close)
    one.send(LinkTo(1, False), pipe)
    ((message, fds),) = two.receive()
    assert message == LinkTo(1, False)
    for fd in fds:
        os.close(fd)


def test_the_end_comes_after_the_last_message(pair):
    one, two = pair
    one.send(Left())
    one.close()
    assert heard(two) == [Left()]
    assert two.closed


def test_shut_lets_the_other_direction_live(pair):
    one, two = pair
    one.shut()
    assert heard(two) == []
    assert two.closed
    assert not one.closed


def test_sending_to_a_peer_that_is_gone_is_no_error(pair, pipe):
    one, two = pair
    two.close()
    assert one.send(LinkTo(1, False), [pipe[0]])
    assert one.flush()
    assert heard(one) == []
    assert one.closed
    assert one.send(Joined())


def test_what_the_peer_said_before_it_was_gone_is_heard_even_if_sending_fails(pair):
    one, two = pair
    two.send(Left())
    two.close()
    one.send(Joined())
    assert heard(one) == [Left()]


def test_what_the_peer_said_before_it_was_gone_is_heard_even_if_it_has_not_read_ours(pair):
    """Linux reports that (ECONNRESET) before it hands out what is in the queue."""
    one, two = pair
    one.send(Connect(1))
    two.send(Joined())
    two.send(Left())
    two.close()
    assert heard(one) == [Joined(), Left()]
    assert one.closed


def test_what_waits_is_dropped_with_its_descriptors_when_the_peer_is_gone(pair, pipe):
    one, two = pair
    fill(one)
    one.send(LinkTo(1, False), pipe)
    two.close()
    assert one.flush()


def test_close_drops_what_waits_with_its_descriptors(pair, pipe):
    one, _ = pair
    fill(one)
    one.send(LinkTo(1, False), pipe)
    one.close()
    one.close()
    assert one.flush()
    one.shut()


# -- nonsense -----------------------------------------------------------------------------------------------


def test_nonsense_is_a_wireerror_and_leaves_no_descriptor(raw, pipe):
    """Neither its own, nor those of what came before it in the same breath."""
    receiver, far = raw
    socket.send_fds(far, [pack(LinkTo(1, False))], [pipe[0]])
    socket.send_fds(far, [b"nonsense"], pipe)
    with pytest.raises(WireError, match="not a control message"):
        receiver.receive()


def test_a_long_message_without_its_memory_file(raw):
    receiver, far = raw
    far.send(IN_FILE)
    with pytest.raises(WireError, match="without its memory file"):
        receiver.receive()


def test_a_memory_file_that_is_none(raw, pipe):
    receiver, far = raw
    socket.send_fds(far, [IN_FILE], [pipe[0]])
    with pytest.raises(WireError):
        receiver.receive()


def test_a_memory_file_of_any_size_is_not_read(pair, monkeypatch):
    monkeypatch.setattr(control, "LONGEST", PACKET)
    one, two = pair
    one.send(Crashed("E", "x" * PACKET, False))
    with pytest.raises(WireError, match="at most"):
        two.receive()
