"""The protocol between two endpoints: what arrives, in which order, and what becomes of calls that give up.

Most tests drive both endpoints from one thread, turn by turn, so that every interleaving is the one that is written
down. What is a matter of threads has threads.
"""

import socket
import time
from functools import partial

import numpy as np
import pytest
from joined import COLLECTIVE, CONTEXT, MEDIA, move, settle

from rmpi.deadline import Deadline
from rmpi.errors import (
    ChannelClosed,
    DeadlineExceeded,
    PeerExited,
    PeerLost,
    RankFailed,
    UsageError,
)
from rmpi.transport import stream
from rmpi.transport.base import Transfer
from rmpi.transport.crank import SPIN
from rmpi.transport.matching import ANY
from rmpi.transport.stream import StreamLink
from rmpi.wire.codec import encode_value
from rmpi.wire.frames import CHUNK, EAGER_LIMIT, Frame, Kind, encode

SOON = Deadline.after(0)
LARGE = 4 << 20


@pytest.fixture
def stranger():
    """``stranger(endpoint)``: a bare socket at the other end of a link of that endpoint to peer 0."""
    sockets = []

    def connect(endpoint):
        ours, theirs = socket.socketpair()
        theirs.settimeout(5)
        sockets.append(theirs)
        endpoint.crank.post(partial(endpoint.add_link, StreamLink(0, ours, endpoint)))
        return theirs

    yield connect
    for sock in sockets:
        sock.close()


def at_its_end(sock):
    """Whether the other side has closed; what it had sent is thrown away."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:  # it had not read everything
        pass
    return True


every_medium = pytest.mark.parametrize("medium", MEDIA)


def received(endpoint, tag=ANY, source=ANY, timeout=10, **options):
    return endpoint.receive(CONTEXT, source, tag, deadline=Deadline.after(timeout), **options).take()


def pattern(size=LARGE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


# -- order and matching -------------------------------------------------------------------------------------


@every_medium
def test_messages_arrive_in_the_order_in_which_they_were_sent(join, medium):
    """Whether they have a payload or not, travel eagerly or not: the receiver sees none of that."""
    a, b = join(medium)
    values = [0, b"x", None, "text", 1.5, bytes(EAGER_LIMIT), True, bytes(LARGE), 2, b"y", {"k": bytes(LARGE)}, 3]
    transfers = [a.start_send(1, CONTEXT, 7, value) for value in values]
    settle(a, b)
    arrived = []
    for _ in values:
        receive = b.start_receive(CONTEXT, 0, 7)
        move(a, b, receive)
        arrived.append(receive.take())
    assert arrived == values
    move(a, b, *transfers)


@every_medium
def test_a_wildcard_gets_what_arrived_first(join, medium):
    a, b = join(medium)
    for tag in (3, 1, 2, 1):
        a.send(1, CONTEXT, tag, tag)
    settle(a, b)
    receives = [b.receive(CONTEXT, ANY, ANY) for _ in range(4)]
    assert [receive.arrival.tag for receive in receives] == [3, 1, 2, 1]


@every_medium
def test_a_tag_picks_its_message_out_of_those_that_wait(join, medium):
    a, b = join(medium)
    for tag in range(5):
        a.send(1, CONTEXT, tag, f"tagged {tag}")
    assert [received(b, tag) for tag in (4, 0, 3, 1, 2)] == [f"tagged {tag}" for tag in (4, 0, 3, 1, 2)]


def test_receives_are_answered_in_the_order_in_which_they_were_posted(join):
    a, b = join()
    first, second = b.start_receive(CONTEXT, ANY, 5), b.start_receive(CONTEXT, 0, ANY)
    third = b.start_receive(CONTEXT, 0, 5)
    for value in "xyz":
        a.send(1, CONTEXT, 5, value)
    move(a, b, first, second, third)
    assert [receive.take() for receive in (first, second, third)] == ["x", "y", "z"]


def test_contexts_do_not_mix(join):
    a, b = join()
    a.send(1, COLLECTIVE, 0, "another conversation")
    a.send(1, CONTEXT, 0, "ours")
    assert received(b) == "ours"


@pytest.mark.parametrize("value", [None, 7, b"abc", bytes(LARGE)])
def test_a_message_to_oneself(join, value):
    a, _ = join()
    transfer = a.start_send(0, CONTEXT, 0, value)
    assert received(a, source=0) == value
    assert transfer.done


@every_medium
def test_what_is_sent_may_be_changed_when_send_returns(join, medium, beside):
    a, b = join(medium)

    def send():
        for size in (8, EAGER_LIMIT, LARGE):
            array = np.ones(size, np.uint8)
            a.send(1, CONTEXT, 0, array)
            array[:] = 9

    sending = beside(send)
    for size in (8, EAGER_LIMIT, LARGE):
        assert np.array_equal(received(b), np.ones(size, np.uint8))
    sending.result(10)


# -- memory -------------------------------------------------------------------------------------------------


@every_medium
@pytest.mark.parametrize("size", [0, 1, EAGER_LIMIT, EAGER_LIMIT + 1, LARGE])
@pytest.mark.parametrize("first", ["sender", "receiver"])
def test_an_array_lands_where_the_receiver_wants_it(join, medium, size, first):
    a, b = join(medium)
    sent, out = pattern(size), np.zeros(size, np.uint8)
    if first == "sender":
        transfer = a.start_send(1, CONTEXT, 0, sent)
        settle(a, b)
        receive = b.start_receive(CONTEXT, 0, 0, out=out)
    else:
        receive = b.start_receive(CONTEXT, 0, 0, out=out)
        transfer = a.start_send(1, CONTEXT, 0, sent)
    move(a, b, receive, transfer)
    assert receive.take() is out
    assert np.array_equal(out, sent)


class Rows(np.ndarray):
    """Never flat, as numpy.matrix is never."""

    def reshape(self, *_shape, **_options):
        return self


def test_an_array_lands_in_an_out_of_other_order_or_class(join):
    a, b = join()
    sent = np.arange(600.0).reshape(20, 30)
    for out in (np.empty((20, 30), order="F"), np.empty((40, 60))[::2, ::2], np.empty((20, 30)).view(Rows)):
        a.send(1, CONTEXT, 0, sent)
        assert received(b, out=out) is out
        assert np.array_equal(np.asarray(out), sent)


@every_medium
@pytest.mark.parametrize("size", [10, LARGE])
def test_a_message_that_does_not_fit_stays_the_next_in_line(join, medium, size):
    a, b = join(medium)
    transfer = a.start_send(1, CONTEXT, 0, np.ones(size, np.uint8))
    settle(a, b)
    with pytest.raises(UsageError, match=r"out= is an array \(3,\) of int16, but the message holds an array"):
        received(b, out=np.empty(3, np.int16))
    waiting = b.start_receive(CONTEXT, 0, 0)
    move(a, b, waiting, transfer)
    assert waiting.take().sum() == size


def test_a_receive_that_waits_is_told_when_what_comes_does_not_fit(join):
    a, b = join()
    wrong = b.start_receive(CONTEXT, 0, 0, out=np.empty(3))
    right = b.start_receive(CONTEXT, 0, 0)
    a.send(1, CONTEXT, 0, "not an array")
    move(a, b, wrong, right)
    assert "but the message holds a str" in str(wrong.error)
    assert right.take() == "not an array"


def test_a_large_array_is_neither_copied_nor_staged(join, beside, monkeypatch):
    """100 MB over TCP: the kernel reads the sender's array and writes the receiver's, but for one staging buffer."""
    a, b = join("tcp")
    sent, out = np.ones(100_000_000, np.uint8), np.zeros(100_000_000, np.uint8)
    low = sent.__array_interface__["data"][0]
    given = {"array": 0, "other": 0}
    write = StreamLink._write

    def watch(link, buffers):
        taken = write(link, buffers)
        if link.peer == 1:
            left = taken
            for buffer in buffers:
                count = min(left, len(buffer))
                at = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
                given["array" if low <= at < low + sent.nbytes else "other"] += count
                left -= count
        return taken

    monkeypatch.setattr(StreamLink, "_write", watch)
    sending = beside(a.send, 1, CONTEXT, 0, sent)
    assert received(b, out=out) is out
    sending.result(10)
    assert np.array_equal(out, sent)
    assert given["array"] == sent.nbytes
    assert given["other"] < 100 * (sent.nbytes // CHUNK + 10)  # headers
    (link,) = b._peers.known[0].links
    assert link.staged <= 64 << 10


# -- giving up receiving ------------------------------------------------------------------------------------


@every_medium
def test_a_receive_that_times_out_loses_nothing(join, medium):
    a, b = join(medium)
    for timeout in (0, 0.001):
        with pytest.raises(DeadlineExceeded, match="no message came; nothing is lost"):
            received(b, timeout=timeout)
    a.send(1, CONTEXT, 0, "late")
    assert received(b) == "late"


@every_medium
def test_a_large_message_survives_any_number_of_receives_that_give_up_in_its_middle(join, medium):
    """And the memory of who gave up is never written again."""
    a, b = join(medium)
    sent = pattern(8 << 20)
    transfer = a.start_send(1, CONTEXT, 0, sent)
    abandoned, got = [], None
    while got is None:
        out = np.zeros_like(sent)
        receive = b.start_receive(CONTEXT, 0, 0, out=out)
        a.progress()
        try:
            b.wait((receive,), SOON)
        except DeadlineExceeded:
            out[:] = 77
            abandoned.append(out)
        else:
            got = receive.take()
    assert transfer.done
    assert abandoned
    assert np.array_equal(got, sent)
    assert all((out == 77).all() for out in abandoned)


def test_a_receive_gives_up_in_the_middle_of_a_small_message(new_endpoint, stranger):
    """Half of an eager frame has been read, into the caller's array."""
    b = new_endpoint(1)
    theirs = stranger(b)
    sent, out = pattern(50_000), np.zeros(50_000, np.uint8)
    receive = b.start_receive(CONTEXT, 0, 0, out=out)
    data = wire(Kind.EAGER, sent)
    theirs.sendall(data[:20_000])
    b.progress()
    assert out[:19_000].all() == sent[:19_000].all()
    with pytest.raises(DeadlineExceeded):
        b.wait((receive,), SOON)
    out[:] = 77
    theirs.sendall(data[20_000:])
    assert np.array_equal(received(b), sent)
    assert (out == 77).all()


@every_medium
def test_what_one_receive_gives_up_the_next_one_gets(join, medium):
    a, b = join(medium)
    first, second = b.start_receive(CONTEXT, 0, 0), b.start_receive(CONTEXT, ANY, ANY)
    sent = pattern()
    transfer = a.start_send(1, CONTEXT, 0, sent)
    b.progress()
    b.abandon((first,))
    move(a, b, second, transfer)
    assert np.array_equal(second.take(), sent)


def test_messages_that_were_given_up_keep_their_order(join):
    a, b = join()
    for number in range(4):
        a.send(1, CONTEXT, 0, number)
    settle(a, b)
    receives = [b.start_receive(CONTEXT, 0, 0) for _ in range(4)]
    b.abandon((receives[2], receives[0], receives[1]))
    assert [received(b) for _ in range(3)] == [0, 1, 2]
    assert receives[3].take() == 3


# -- giving up sending --------------------------------------------------------------------------------------


@every_medium
@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_send_that_times_out_before_its_grant_is_withdrawn(join, medium, timeout):
    a, b = join(medium, unmatched_limit=0)
    with pytest.raises(DeadlineExceeded, match="it was withdrawn"):
        a.send(1, CONTEXT, 0, bytes(LARGE), deadline=Deadline.after(timeout))
    a.send(1, CONTEXT, 0, "the next")
    assert received(b) == "the next"
    with pytest.raises(DeadlineExceeded):
        received(b, timeout=0)


@every_medium
def test_a_send_that_times_out_after_its_grant_goes_on_with_a_copy(join, medium):
    """Also with what the link has been handed and not written."""
    a, b = join(medium)
    sent = pattern(16 << 20)
    original = sent.copy()
    transfer = a.start_send(1, CONTEXT, 0, sent)
    receive = b.start_receive(CONTEXT, 0, 0)
    while not transfer.offset:
        b.progress()
        a.progress()
    assert not transfer.done
    with pytest.raises(DeadlineExceeded, match="it goes on in the background"):
        a.wait((transfer,), SOON)
    sent[:] = 0
    move(a, b, receive)
    assert np.array_equal(receive.take(), original)


@every_medium
def test_a_withdrawal_that_crosses_its_grant_leaves_the_receive_waiting(join, medium):
    a, b = join(medium)
    transfer = a.start_send(1, CONTEXT, 0, bytes(LARGE))
    receive = b.start_receive(CONTEXT, 0, 0)
    b.progress()  # the grant is on its way
    a.abandon((transfer,))
    settle(a, b)
    assert not receive.done
    a.send(1, CONTEXT, 0, "the next")
    move(a, b, receive)
    assert receive.take() == "the next"


@every_medium
def test_a_withdrawal_gives_the_receive_what_came_meanwhile(join, medium):
    a, b = join(medium)
    transfer = a.start_send(1, CONTEXT, 1, bytes(LARGE))
    receive = b.start_receive(CONTEXT, ANY, ANY)
    b.progress()
    a.send(1, CONTEXT, 2, "came meanwhile")
    b.progress()
    a.abandon((transfer,))
    move(a, b, receive)
    assert receive.take() == "came meanwhile"


# -- several at once ----------------------------------------------------------------------------------------


def test_the_first_failure_of_several_operations_ends_the_wait(join):
    """Not the failure of the first: it may wait for ever."""
    a, _ = join()
    forever, doomed = a.start_receive(CONTEXT, 1, 0), a.start_send(1, CONTEXT, 0, bytes(LARGE))
    a.crank.post(partial(doomed.finish, UsageError("doomed")))
    with pytest.raises(UsageError, match="doomed"):
        a.wait((forever, doomed), Deadline.after(5))
    assert forever.done  # abandoned


def test_waiting_for_several_ends_when_all_are_done(join):
    a, b = join()
    receives = [b.start_receive(CONTEXT, 0, tag) for tag in range(5)]
    for tag in (3, 1, 4, 0, 2):
        a.send(1, CONTEXT, tag, tag)
    b.wait(receives, Deadline.after(5))
    assert [receive.take() for receive in receives] == list(range(5))
    b.wait(receives, SOON)


@every_medium
def test_both_send_a_large_array_at_the_same_moment(join, medium, beside):
    exchange_large(*join(medium), 64 << 20, beside)


@pytest.mark.slow
def test_both_send_a_quarter_of_a_gigabyte_at_the_same_moment(join, beside):
    exchange_large(*join("unix", unmatched_limit=1 << 30), 1 << 28, beside)


def exchange_large(a, b, size, beside):
    zeros, ones = np.zeros(size, np.uint8), np.ones(size, np.uint8)

    def exchange(endpoint, peer, mine):
        endpoint.send(peer, CONTEXT, 0, mine)
        return received(endpoint)

    there = beside(exchange, a, 1, zeros)
    assert not exchange(b, 0, ones).any()
    assert there.result(50).all()


# -- ends ---------------------------------------------------------------------------------------------------


@every_medium
def test_a_peer_that_leaves_is_gone_only_after_what_it_sent(join, medium):
    a, b = join(medium)
    for number in range(10):
        a.send(1, CONTEXT, 0, number)
    transfer = a.start_send(1, CONTEXT, 0, pattern())
    while not transfer.granted:
        settle(b, a, turns=1)
    a.abandon((transfer,))  # it goes on in the background, while we leave
    assert not a.finish(Deadline.after(0)) or transfer.done
    while not a.finish(Deadline.after(0)):
        b.progress()
    assert [received(b) for _ in range(10)] == list(range(10))
    assert np.array_equal(received(b), pattern())
    for source in (0, ANY):
        with pytest.raises(PeerExited, match="has ended; nothing more will come from it"):
            received(b, source=source, members=frozenset([0, 1]))
    with pytest.raises(PeerExited):
        b.send(0, CONTEXT, 0, "too late")


@every_medium
def test_leaving_waits_for_what_is_still_to_be_sent(join, medium, beside):
    a, b = join(medium)
    receive = b.start_receive(CONTEXT, 0, 0)
    transfer = a.start_send(1, CONTEXT, 0, pattern())
    while not transfer.granted:
        settle(b, a, turns=1)
    a.abandon((transfer,))
    leaving = beside(a.finish)
    b.wait((receive,))
    assert np.array_equal(receive.take(), pattern())
    assert leaving.result(10) is True


def test_a_link_that_stands_only_while_we_leave_brings_message_and_goodbye(new_endpoint, beside):
    a, b = new_endpoint(0), new_endpoint(1)
    a.send(1, CONTEXT, 0, "to whom it may concern")
    leaving = beside(a.finish)
    MEDIA["unix"](a, b)
    assert received(b) == "to whom it may concern"
    with pytest.raises(PeerExited):
        received(b, source=0)
    assert leaving.result(10) is True


@every_medium
def test_whoever_leaves_does_not_wait_for_a_peer_that_has_left(join, medium, beside):
    a, b = join(medium)
    receive = b.start_receive(CONTEXT, 0, 0)
    transfer = a.start_send(1, CONTEXT, 0, np.zeros(64 << 20, np.uint8))
    while not transfer.offset:
        settle(b, a, turns=1)
    b.abandon((receive,))
    leaving = beside(b.finish)
    with pytest.raises(PeerExited):
        a.wait((transfer,), Deadline.after(10))
    assert a.finish(Deadline.after(10))
    assert leaving.result(10) is True


@every_medium
def test_the_death_of_a_peer_ends_what_needs_it(join, medium):
    _, b = join(medium, unmatched_limit=0)
    failed = RankFailed(0, "host", "killed by SIGKILL")
    specific, wild = b.start_receive(CONTEXT, 0, 0), b.start_receive(CONTEXT, ANY, 0, members=frozenset([0, 1]))
    other = b.start_receive(COLLECTIVE, 1, 0)
    sending = b.start_send(0, CONTEXT, 0, bytes(LARGE))
    b.crank.post(partial(b.peer_ended, 0, failed))
    for operation in (specific, wild, other, sending):
        with pytest.raises(RankFailed, match="rank 0 on host failed: killed by SIGKILL"):
            b.wait((operation,), Deadline.after(5))
    with pytest.raises(RankFailed):
        b.send(0, CONTEXT, 0, 1)
    with pytest.raises(RankFailed):
        b.begin_call(COLLECTIVE, 0, 1)


def test_what_the_dead_had_sent_is_delivered_first(join, monkeypatch):
    monkeypatch.setattr(stream, "READS", 1)
    a, b = join("unix")
    waiting = b.start_receive(CONTEXT, 0, 9)
    for number in range(10):
        a.send(1, CONTEXT, number, bytes([number]) * 15_000)
    b.crank.post(partial(b.peer_ended, 0, RankFailed(0, "host", "exit status 3")))
    b.wait((waiting,), Deadline.after(5))
    assert [received(b)[0] for _ in range(9)] == list(range(9))
    with pytest.raises(RankFailed):
        received(b, source=0)


def test_nothing_is_written_to_an_array_after_its_receive_failed(join):
    """Somebody else may hold the dead peer's socket open, and more may come over it."""
    a, b = join()
    out = np.zeros(LARGE, np.uint8)
    receive = b.start_receive(CONTEXT, 0, 0, out=out)
    a.start_send(1, CONTEXT, 0, pattern())
    while not out.any():
        settle(b, a, turns=1)
    b.crank.post(partial(b.peer_ended, 0, RankFailed(0, "host", "host lost")))
    with pytest.raises(RankFailed):
        b.wait((receive,), Deadline.after(5))
    out[:] = 77
    settle(a, b)
    assert (out == 77).all()


def test_a_death_inside_a_collective_releases_every_member(join):
    """Also those that exchange with members that live."""
    a, b = join(unmatched_limit=0)
    a.open_context(COLLECTIVE, [0, 1, 2], collective=True)
    b.open_context(COLLECTIVE, [0, 1, 2], collective=True)
    stuck = a.start_send(1, COLLECTIVE, 0, bytes(LARGE), fingerprint=5)
    a.crank.post(partial(a.peer_ended, 2, RankFailed(2, "host", "host lost")))
    with pytest.raises(RankFailed, match="rank 2"):
        a.wait((stuck,), Deadline.after(5))
    receive = b.start_receive(COLLECTIVE, 0, 0)  # whose offer was withdrawn
    settle(a, b)
    assert not receive.done


@every_medium
def test_a_broken_context_ends_also_what_is_on_its_way(join, medium):
    a, b = join(medium)
    sent, out = pattern(64 << 20), np.zeros(64 << 20, np.uint8)
    transfer = a.start_send(1, COLLECTIVE, 0, sent)
    receive = b.start_receive(COLLECTIVE, 0, 0, out=out)
    while not transfer.offset:
        settle(b, a, turns=1)
    for endpoint, operation in ((a, transfer), (b, receive)):
        endpoint.give_up(COLLECTIVE, ChannelClosed("given up"))
        with pytest.raises(ChannelClosed, match="given up"):
            endpoint.wait((operation,), Deadline.after(5))
    sent[:], out[:] = 0, 77
    a.send(1, CONTEXT, 0, "other contexts go on")
    other = b.start_receive(CONTEXT, 0, 0)
    move(a, b, other)
    assert other.take() == "other contexts go on"
    while not a.finish(SOON):
        b.progress()
    assert (out == 77).all()


def test_a_context_that_was_given_up_takes_nothing_from_that_moment_on(join):
    """Not from the next turn on: what needs no answer would be gone by then."""
    a, b = join()
    a.give_up(COLLECTIVE, ChannelClosed("given up"))
    for call in (
        lambda: a.begin_call(COLLECTIVE, 0, 1),
        lambda: a.start_send(1, COLLECTIVE, 0, "small"),
        lambda: a.start_receive(COLLECTIVE, 1, 0),
    ):
        with pytest.raises(ChannelClosed, match="given up"):
            call()
    settle(a, b)
    assert b.start_receive(COLLECTIVE, 0, 0).done is False


def test_closing_an_endpoint_wakes_all_who_wait_in_it(join, beside):
    a, _ = join()
    waiting = [beside(received, a, tag) for tag in range(4)]
    while a.crank.leads is False or len(a.crank._followers) < 3:
        time.sleep(0)
    a.close()
    for future in waiting:
        with pytest.raises(ChannelClosed, match="this endpoint is closed"):
            future.result(5)
    with pytest.raises(ChannelClosed):
        a.send(1, CONTEXT, 0, 1)
    a.close()


# -- peers that do not speak the protocol -------------------------------------------------------------------


def wire(kind, value, **fields):
    encoded = encode_value(value)
    transfer = Transfer(0, 1, CONTEXT, 0, 0, encoded.metadata, encoded.segments, encoded.nbytes)
    frame = transfer.frame(kind)
    for name, field in fields.items():
        setattr(frame, name, field)
    return b"".join(bytes(buffer) for buffer in encode(frame))


NONSENSE = {
    "not a frame": b"G" * 64,
    "misdirected": wire(Kind.EAGER, 1, destination=9),
    "control message": b"".join(encode(Frame(Kind.CONTROL, 0, 1, length=1, segments=(b"x",)))),
    "payload of nothing": b"".join(encode(Frame(Kind.DATA, 0, 1, message=4))),
    "payload that was not granted": b"".join(encode(Frame(Kind.DATA, 0, 1, message=4, length=1, segments=(b"x",)))),
    "offer without a number": wire(Kind.OFFER, bytes(LARGE)),
    "same offer twice": 2 * wire(Kind.OFFER, bytes(LARGE), message=1),
    "value that is none": wire(Kind.EAGER, 1, metadata=b"?"),
    "offer of a value that is none": wire(Kind.OFFER, bytes(LARGE), message=1, metadata=b"a"),
    "array of another length": wire(Kind.EAGER, np.zeros(3), length=8, segments=(bytes(8),)),
    "payload out of order": wire(Kind.OFFER, bytes(LARGE), message=1)
    + b"".join(encode(Frame(Kind.DATA, 0, 1, message=1, tag=5, length=1, segments=(b"x",)))),
    "payload beyond its end": wire(Kind.OFFER, bytes(EAGER_LIMIT + 1), message=1)
    + b"".join(encode(Frame(Kind.DATA, 0, 1, message=1, length=EAGER_LIMIT + 2, segments=(bytes(EAGER_LIMIT + 2),)))),
}


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_ends_the_peer_and_nothing_else(new_endpoint, stranger, nonsense):
    b = new_endpoint(1)
    theirs = stranger(b)
    theirs.sendall(wire(Kind.EAGER, "sense"))
    receive = b.start_receive(CONTEXT, 0, 1)  # of a tag that does not come
    theirs.sendall(NONSENSE[nonsense])
    with pytest.raises(PeerLost, match="the link to endpoint 0x0 broke"):
        b.wait((receive,), Deadline.after(5))
    assert received(b, tag=0, source=0) == "sense"
    assert at_its_end(theirs)


def test_nonsense_fails_a_receive_with_out(new_endpoint, stranger):
    b = new_endpoint(1)
    theirs = stranger(b)
    receive = b.start_receive(CONTEXT, 0, 0, out=np.zeros(3))
    theirs.sendall(wire(Kind.EAGER, np.zeros(3), metadata=b"a nonsense"))
    with pytest.raises(PeerLost, match="broke"):
        b.wait((receive,), Deadline.after(5))


# -- threads ------------------------------------------------------------------------------------------------


@every_medium
def test_many_threads_share_an_endpoint(join, medium, beside):
    """Each waits for a message of its own; whoever leads delivers those of the others."""
    a, b = join(medium)
    rounds, threads = 200, 8

    def answer(tag):
        for number in range(rounds):
            assert received(b, tag) == (tag, number)
            b.send(0, CONTEXT, tag, number)

    def ask(tag):
        for number in range(rounds):
            a.send(1, CONTEXT, tag, (tag, number))
            assert received(a, tag) == number

    work = [beside(role, tag) for tag in range(threads) for role in (answer, ask)]
    for future in work:
        future.result(30)


def test_threads_that_give_up_hand_over(join, beside):
    """The leader's time is up again and again, and so is that of those it hands over to."""
    a, b = join("memory")
    patient = beside(received, b, 99)

    def impatient(tag):
        for number in range(100):
            with pytest.raises(DeadlineExceeded):
                received(b, tag, timeout=0.0001 * (number % 5))

    for future in [beside(impatient, tag) for tag in range(6)]:
        future.result(30)
    a.send(1, CONTEXT, 99, "worth waiting for")
    assert patient.result(5) == "worth waiting for"


def test_a_thread_that_is_woken_to_lead_and_has_no_reason_to_wakes_the_next(join, beside):
    """One turn brings what the leader and its successor wait for; a third still waits."""
    a, b = join()
    waiting = [beside(received, b, tag) for tag in (1, 2, 3)]
    while len(b.crank._followers) < 2:
        time.sleep(0)
    with b.crank.lock:  # the leader cannot take a turn before all has come
        a.send(1, CONTEXT, 1, 1)
        a.send(1, CONTEXT, 2, 2)
    for future, value in zip(waiting[:2], (1, 2), strict=True):
        assert future.result(5) == value
    a.send(1, CONTEXT, 3, 3)
    assert waiting[2].result(5) == 3


def test_what_another_thread_gives_up_wakes_the_leader(join, beside):
    """The leader sleeps; the message it could have is put back by a thread that is not in the loop."""
    a, b = join("memory")
    first = b.start_receive(CONTEXT, 0, 0)
    a.send(1, CONTEXT, 0, "for whoever is left")
    b.progress()
    assert first.done
    second = beside(received, b, 0)
    while not b.crank._asleep:
        time.sleep(0)
    b.abandon((first,))
    assert second.result(5) == "for whoever is left"


@pytest.mark.parametrize("medium", ["memory", "unix"])
def test_no_wake_up_is_lost(join, medium, beside):
    a, b = join(medium)
    rounds = 10_000

    def reflect():
        for _ in range(rounds):
            b.send(0, CONTEXT, 0, received(b))

    reflecting = beside(reflect)
    for number in range(rounds):
        a.send(1, CONTEXT, 0, number)
        assert received(a) == number
    reflecting.result(5)


def test_time_outs_of_years_are_no_overflow(join, beside):
    a, b = join()
    waiting = [beside(partial(received, b, tag, timeout=1e9)) for tag in (1, 2)]
    for tag in (1, 2):
        a.send(1, CONTEXT, tag, tag)
    assert [future.result(5) for future in waiting] == [1, 2]


def test_an_endpoint_prints_itself(join):
    a, b = join("tcp")
    assert repr(a) == "<Endpoint 0x0: 2 peers, 0 bytes unmatched>"
    assert b.media() == {0: "tcp", 1: "memory"}


@pytest.mark.parametrize("spin", [0.0, SPIN])
def test_waiting_costs_nothing(join, spin):
    a, _ = join(spin=spin)
    before = time.process_time()
    with pytest.raises(DeadlineExceeded):
        received(a, timeout=1.0)
    assert time.process_time() - before < 0.02
