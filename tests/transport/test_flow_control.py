"""A sender that is faster than its receiver: it waits, and what is held for it is bounded, at both ends."""

import numpy as np
import pytest
from joined import CONTEXT, MEDIA, move, settle

from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded
from rmpi.transport.peers import CREDIT, FRAME_COST
from rmpi.wire.frames import EAGER_LIMIT

LIMIT = 1 << 18
SOON = Deadline.after(0)

every_medium = pytest.mark.parametrize("medium", MEDIA)
flooding = pytest.mark.parametrize("size", [0, 1, 1000, EAGER_LIMIT, 100_000])


def flood(a, b, size):
    """Send from a to b, which does not receive, until there is no more room; the number of messages that went."""
    count = -1
    transfer = None
    while transfer is None or transfer.done:
        count += 1
        transfer = a.start_send(1, CONTEXT, 0, message(count, size))
        settle(a, b, turns=3)
    with pytest.raises(DeadlineExceeded, match="it was withdrawn"):
        a.wait((transfer,), SOON)
    return count


def exhaust(a, peer):
    """Send until the credit is used up, and nobody but a does anything; the number of messages that went."""
    count = -1
    transfer = None
    while transfer is None or transfer.done:
        count += 1
        transfer = a.start_send(peer, CONTEXT, 0, bytes([count % 256]) * 1000)
    a.abandon((transfer,))
    return count


def message(number, size):
    return number if not size else np.full(size, number % 256, np.uint8)


def held(b):
    """Bytes of messages that nobody has asked for, at the receiving end."""
    arrivals = [one for queue in b._incoming.matching.contexts[CONTEXT].arrivals.values() for one in queue]
    return sum(one.length + FRAME_COST for one in arrivals)


@every_medium
@flooding
def test_a_flood_is_bounded_at_both_ends_and_drains_in_order(join, medium, size):
    a, b = join(medium, unmatched_limit=LIMIT)
    count = flood(a, b, size)
    cost = size + FRAME_COST
    assert count == (CREDIT // cost if size <= EAGER_LIMIT else 0) + LIMIT // cost
    settle(a, b)
    assert held(b) == count * cost
    for link in a._peers.known[1].links:
        assert link.flush()  # nothing waits in the sender
    for number in range(count):
        assert np.array_equal(b.receive(CONTEXT, 0, 0, deadline=SOON).take(), message(number, size))
    assert held(b) == 0
    assert b._incoming.unmatched == 0


@every_medium
@flooding
def test_after_a_flood_everything_is_as_before(join, medium, size):
    """Credit comes back: else the second flood would be shorter than the first."""
    a, b = join(medium, unmatched_limit=LIMIT)
    counts = []
    for _ in range(3):
        counts.append(flood(a, b, size))
        for _ in range(counts[-1]):
            b.receive(CONTEXT, 0, 0, deadline=SOON).take()
        settle(a, b)
    assert max(counts) - min(counts) <= 256  # of credit, less than a step may still be owed


def test_a_sender_that_must_wait_goes_on_when_there_is_room(join, beside):
    a, b = join(unmatched_limit=LIMIT)
    count = 10_000

    def send():
        for number in range(count):
            a.send(1, CONTEXT, 0, number)
        a.finish()

    sending = beside(send)
    for number in range(count):
        assert b.receive(CONTEXT, 0, 0, deadline=Deadline.after(10)).take() == number
    sending.result(5)


def test_a_flood_of_one_does_not_hold_up_another(new_endpoint):
    """Credit is per pair."""
    a, b, c = (new_endpoint(ident, unmatched_limit=0) for ident in range(3))
    MEDIA["unix"](a, c)
    MEDIA["unix"](b, c)
    settle(a, b, c)
    exhaust(a, 2)
    b.send(2, CONTEXT, 1, "through", deadline=SOON)
    assert c.receive(CONTEXT, 1, 1, deadline=Deadline.after(5)).take() == "through"


@every_medium
def test_a_sender_whose_receiver_is_not_in_the_library_keeps_little(join, medium):
    """Nothing is read at all: what the kernel does not take waits here, and is bounded by the credit."""
    a, b = join(medium)
    count = exhaust(a, 1)
    if medium != "memory":
        (link,) = a._peers.known[1].links
        assert sum(map(len, link._pending)) <= CREDIT
    receives = [b.start_receive(CONTEXT, 0, 0) for _ in range(count)]
    move(a, b, *receives)
    assert [receive.take()[0] for receive in receives] == [number % 256 for number in range(count)]


def test_a_message_larger_than_the_limit_is_granted_when_it_is_matched(join):
    a, b = join(unmatched_limit=10)
    transfer = a.start_send(1, CONTEXT, 0, bytes(LIMIT))
    settle(a, b)
    assert not transfer.granted
    receive = b.start_receive(CONTEXT, 0, 0)
    move(a, b, transfer, receive)
    assert receive.take() == bytes(LIMIT)


def test_a_message_for_which_there_is_no_memory_stays_an_offer(join, monkeypatch):
    """The receive fails, the message does not: a later receive, perhaps in place, gets it."""
    a, b = join()
    transfer = a.start_send(1, CONTEXT, 0, np.ones(LIMIT, np.uint8))

    def no_memory(*_args, **_options):
        raise MemoryError("all gone")

    with monkeypatch.context() as patched:
        patched.setattr("rmpi.wire.codec.np.empty", no_memory)
        settle(a, b)
        with pytest.raises(MemoryError, match="no memory for an array"):
            b.receive(CONTEXT, 0, 0, deadline=SOON)
    assert not transfer.granted
    receive = b.start_receive(CONTEXT, 0, 0, out=np.empty(LIMIT, np.uint8))
    move(a, b, transfer, receive)
    assert receive.take().all()
