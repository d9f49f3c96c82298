"""How an endpoint stands while its threads wait: when nothing would happen there by itself, and what it has counted."""

import os
import socket
import threading
from functools import partial
from queue import SimpleQueue

import numpy as np
import pytest
from joined import COLLECTIVE, CONTEXT, MEDIA, add_unix, move, settle

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, PeerExited
from rmpi.transport.operation import Operation

TAG = 5


@pytest.fixture
def staying(join, beside):
    """``staying(medium)``: endpoints 0 and 1, of which 0 is in a receive without a limit that stays, and its future."""

    waiting = []

    def stay(medium="unix"):
        a, b = join(medium)
        waiting.append(a)
        told = listen(a)
        future = beside(a.receive, CONTEXT, 1, TAG)
        assert told.get(timeout=20) is not None
        return a, b, future

    yield stay
    for endpoint in waiting:
        endpoint.close()


def listen(endpoint):
    """What the endpoint's observer is told, from the first moment of every wait."""
    told = SimpleQueue()
    endpoint.stays.after, endpoint.stays.again = 0.0, 0.01
    endpoint.stays.observer = told.put
    return told


def standing(endpoint):
    with endpoint.crank.lock:
        return endpoint.stays.standing()


def test_nobody_waits(join):
    a, _ = join()
    assert standing(a) is None


def test_a_thread_waits_without_a_limit(staying):
    a, _, _ = staying()
    [stay] = standing(a).stays
    assert stay.name == "receive"
    assert stay.where.partition(":")[0].endswith("conftest.py")
    [awaited] = stay.awaited()
    assert awaited == (1, CONTEXT, TAG, True)
    assert standing(a).calls == {COLLECTIVE: -1}


def test_a_wait_with_a_limit_is_none(join, beside):
    a, _ = join()
    told = listen(a)
    limited = partial(a.receive, deadline=Deadline.after(0.05))
    assert isinstance(beside(limited, CONTEXT, 1, TAG).exception(20), TimeoutError)
    assert told.empty()


def test_nobody_listens(join, beside):
    a, b = join()
    future = beside(a.receive, CONTEXT, 1, TAG)
    b.send(0, CONTEXT, TAG, "here")
    assert future.result(20).take() == "here"
    assert standing(a) is None


def test_what_is_waited_for_has_come_but_its_thread_does_not_know(staying):
    a, _, future = staying()
    with a.crank.lock:
        a.stays.standing().stays[0].whole.finish(ChannelClosed("just now"))
        assert a.stays.standing() is None
    assert isinstance(future.exception(20), ChannelClosed)


def test_something_is_still_to_be_done(staying):
    a, _, _ = staying()
    with a.crank.lock:
        a.crank._posted.append(lambda: None)
        assert a.stays.standing() is None
        a.crank._posted.clear()
        a.crank.attention = True
        assert a.stays.standing() is None
        a.crank.attention = False
        assert a.stays.standing() is not None


def test_something_else_may_bring_news(staying):
    a, _, _ = staying()
    reader, writer = os.pipe()
    with a.crank.lock:
        a.crank.register(reader, lambda _mask: None)
        assert a.stays.standing() is None
        a.stays.descriptors.add(reader)
        assert a.stays.standing() is not None
        a.crank.unregister(reader)
    os.close(reader)
    os.close(writer)


def test_the_place_does_something_else(staying):
    a, _, future = staying()
    asked = []
    a.stays.quiet = lambda threads: asked.append(threads)
    assert standing(a) is None
    assert len(asked[0]) == 1
    assert not future.done()


def test_a_peer_has_left_whose_link_has_not_ended(staying):
    """It may have sent what is waited for, and at least the end of its link is still to come."""
    a, b, future = staying()
    with a.crank.lock:
        a.peer_ended(1, PeerExited("rank 1 has ended"))
        assert a.stays.standing() is None
    b.send(0, CONTEXT, TAG, "last words")
    assert future.result(20).take() == "last words"


def test_every_change_of_the_stays_is_a_new_number(staying, beside):
    a, b, first = staying()
    before = standing(a).number
    assert standing(a).number == before
    second = beside(a.receive, CONTEXT, 1, TAG + 1)
    while len(a.stays.threads) < 2:
        assert not second.done()
    between = standing(a).number
    b.send(0, CONTEXT, TAG + 1, "for the second")
    second.result(20)
    after = standing(a).number
    assert before < between < after
    assert not first.done()


def test_an_operation_of_an_unknown_kind_is_waited_for_like_any_other(join, beside):
    a, _ = join()
    told, unknown = listen(a), Operation()
    future = beside(a.wait, [unknown])
    [stay] = told.get(timeout=20).stays
    assert stay.awaited() == []
    with a.crank.lock:
        unknown.finish()
    future.result(20)
    assert standing(a) is None


def test_messages_that_nobody_has_asked_for_are_listed_first_come_first(staying):
    a, b, _ = staying()
    for tag in (9, 7, 9):
        b.send(0, CONTEXT, tag, "early")
    b.start_send(0, CONTEXT, 8, np.zeros(1 << 20))
    b.start_send(0, COLLECTIVE, 0, "of a collective", fingerprint=1)
    expected = ((1, 9, 2), (1, 7, 1), (1, 8, 1))
    deadline = Deadline.after(20)
    while (now := standing(a)) is None or now.unread != expected:
        assert not deadline.passed(), now
        b.progress()


@pytest.mark.parametrize("medium", [*MEDIA])
def test_what_was_sent_and_what_was_taken_agree_when_all_has_come(medium, join):
    a, b = join(medium)
    for length in (0, 1, 100, 20_000, 300_000):
        sends = [b.start_send(0, CONTEXT, TAG, np.zeros(length)), a.start_send(1, CONTEXT, TAG, np.ones(length))]
        move(a, b, *sends, a.start_receive(CONTEXT, 1, TAG), b.start_receive(CONTEXT, 0, TAG))
    a.start_send(1, CONTEXT, TAG, np.zeros(300_000))
    settle(a, b)
    one, other = a._peers.peer(1), b._peers.peer(0)
    assert one.sent() == other.taken() > 0
    assert other.sent() == one.taken() > 0


@pytest.mark.parametrize("medium", [*MEDIA])
def test_what_is_on_its_way_is_not_taken(medium, join):
    a, b = join(medium)
    before = b._peers.peer(0).taken()
    a.send(1, CONTEXT, TAG, "on its way")
    assert a._peers.peer(1).sent() > b._peers.peer(0).taken() == before


@pytest.mark.parametrize("medium", ["unix", "tcp", "memory"])
def test_what_waits_to_be_sent_counts_as_sent(medium, join):
    a, b = join(medium)
    b.start_receive(CONTEXT, 0, TAG)
    a.start_send(1, CONTEXT, TAG, np.zeros(4_000_000))
    for _ in range(3):  # the offer, the grant, and what the medium takes
        b.progress()
        a.progress()
    taken = b._peers.peer(0).taken()
    assert a._peers.peer(1).sent() > taken
    settle(a, b, turns=2000)
    assert a._peers.peer(1).sent() == b._peers.peer(0).taken()


def test_what_waits_for_a_link_counts_as_sent(new_endpoint):
    a = new_endpoint(0)
    a.send(1, CONTEXT, TAG, "nobody is there yet")
    assert a._peers.peer(1).sent() == 1


def test_what_came_over_a_link_that_is_no_more_still_counts(new_endpoint):
    """Two have dialled each other at once: each sends on its own connection, and hears on the other's."""
    a, b = new_endpoint(0), new_endpoint(1)
    (a1, b1), (a2, b2) = socket.socketpair(), socket.socketpair()
    for endpoint, peer, socks in ((a, 1, (a1, a2)), (b, 0, (b2, b1))):
        for sock in socks:
            add_unix(endpoint, peer, sock)
    settle(a, b)
    a.send(1, CONTEXT, TAG, "over the first")
    b.send(0, CONTEXT, TAG, "over the second")
    a.finish()
    settle(a, b)
    assert [link.fileno() for link in b._peers.peer(0).links] == [b2.fileno()]
    assert a._peers.peer(1).sent() == b._peers.peer(0).taken() > 0
    assert b._peers.peer(0).sent() == a._peers.peer(1).taken() > 0


def test_threads_are_named_while_they_stay(staying):
    a, b, future = staying()
    [thread] = a.stays.threads
    assert thread in {each.ident for each in threading.enumerate()}
    b.send(0, CONTEXT, TAG, "come")
    future.result(20)
    assert a.stays.threads == frozenset()
