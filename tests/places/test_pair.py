"""Pairs of channels within one process, which is part of no system, or of one, or of one only later."""

import os
import pickle
import signal

import numpy as np
import pytest
from realm import Realm, asleep

from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerExited, PeerLost, UsageError
from rmpi.places import membership
from rmpi.places.channel import Address, Channel
from rmpi.places.membership import FOUNDER, box_number, current, member_of, new_endpoint, register, unregister
from rmpi.places.pair import channel_pair


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """This process is part of no system yet."""
    monkeypatch.setattr(membership, "_loner", None)
    monkeypatch.setattr(membership, "_members", {})
    yield
    if membership._loner is not None:
        membership._loner.endpoint.close()


def test_what_is_put_into_one_is_got_from_the_other():
    a, b = channel_pair()
    a.put({"array": np.arange(3)})
    b.put("the other way")
    assert a.get() == "the other way"
    assert b.get()["array"].tolist() == [0, 1, 2]


def test_what_is_got_is_a_copy():
    a, b = channel_pair()
    sent = [1, np.zeros(2)]
    a.put(sent)
    sent[1][:] = 9
    got = b.get()
    assert got is not sent
    assert got[1].tolist() == [0, 0]


def test_a_queue_of_many_messages_needs_no_reader():
    a, b = channel_pair()
    for number in range(2500):
        a.put(number)
    large = np.arange(1 << 18)
    a.put(large)
    assert b.statistics().queued == 2501
    assert [b.get() for _ in range(2500)] == list(range(2500))
    assert np.array_equal(b.get(), large)


def test_a_queue_with_a_limit_makes_its_sender_wait(beside):
    a, b = channel_pair(limit=3)
    for number in range(3):
        a.put(number)
        b.put(number)
    with pytest.raises(DeadlineExceeded, match=r"3 messages wait there; nothing was sent"):
        a.put("too many", timeout=0.01)
    run = beside(lambda: [a.put(number) for number in range(3, 200)])
    asleep(a)
    assert b.statistics().queued == 3
    assert [b.get(timeout=5) for _ in range(200)] == list(range(200))
    run.join()
    assert (a.statistics(), b.statistics()) == ((200, 0, 3, 0), (3, 200, 0, 0))


def test_who_waits_for_room_hears_that_there_will_be_none(beside):
    a, b = channel_pair(limit=1)
    a.put(1)
    run = beside(a.put, 2)
    asleep(a)
    b.close()
    with pytest.raises(PeerExited, match="nobody gets what is put there"):
        run.join()


def test_what_could_not_be_put_takes_no_room_and_what_was_put_aside_does():
    a, b = channel_pair(limit=2)
    for _ in range(3):
        with pytest.raises(UsageError, match="pickle"):
            a.put(lambda: 1)
    a.put(("kind", 1))
    kinds = b.typed()
    with pytest.raises(DeadlineExceeded):
        kinds.get("other", timeout=0)
    a.put(("other", 2))
    with pytest.raises(DeadlineExceeded):
        a.put(("other", 3), timeout=0)
    assert kinds.get("other", timeout=5) == ("other", 2)
    a.put(("other", 3))
    assert [b.get(), b.get()] == [("kind", 1), ("other", 3)]


@pytest.mark.parametrize("limit", [0, -1, 1.5, "3"])
def test_a_limit_is_a_number_of_messages(limit):
    with pytest.raises(UsageError, match="a number of messages from 1"):
        channel_pair(limit=limit)


def test_two_threads_talk(beside):
    a, b = channel_pair()
    run = beside(lambda: [b.put(value) for value in b])
    for size in (0, 10, 1 << 20):
        a.put(bytes(size))
        assert len(a.get(timeout=5)) == size
    a.close()
    run.join()


def test_closing_one_end_ends_the_loop_over_the_other():
    a, b = channel_pair()
    a.put(1)
    a.put(2)
    a.close()
    assert list(b) == [1, 2]
    with pytest.raises(PeerExited, match="has closed its end"):
        b.get()
    with pytest.raises(PeerExited, match="has closed its end"):
        b.put(3)
    with pytest.raises(ChannelClosed):
        a.get()


def test_an_end_can_be_sent_and_does_not_move():
    a, b = channel_pair()
    c, d = channel_pair()
    c.put(b)
    sent = d.get()
    sent.put("through the copy")
    message, reply = a.receive()
    reply.put("to the copy")
    a.put("to the end that was made here")
    assert message == "through the copy"
    assert sent.get() == "to the copy"
    assert b.get() == "to the end that was made here"


def test_no_thread_and_no_descriptor_but_those_of_one_endpoint(descriptors):
    first = channel_pair()
    before = descriptors()
    pairs = [channel_pair() for _ in range(20)]
    for a, b in pairs:
        a.put(1)
        assert b.get() == 1
    assert descriptors() == before
    assert first[0].endpoint is pairs[0][0].endpoint


def test_a_system_of_this_process_has_the_pairs_that_were_there(beside):
    """The endpoint of whoever starts a system is the one that it has already."""
    a, b = channel_pair()
    a.put("from before")
    packed = pickle.dumps(b)
    realm = Realm()
    reached = []
    endpoint = new_endpoint(FOUNDER, reached.append, spin=0.0, unmatched_limit=1 << 20, name_of=realm.describe)
    assert endpoint is a.endpoint

    class Founder:
        system = 77

        def __init__(self):
            self.endpoint = endpoint

        def new_box(self):
            return box_number(77, 1)

        def whereabouts(self, place):
            return f"place {place}"

        def describe(self, ident):
            return f"member {ident}"

    member = Founder()
    register(member)
    try:
        assert current() is member
        assert b.get() == "from before"
        assert (b.address.system, b.address.endpoint) == (77, FOUNDER)
        assert pickle.loads(packed).address == b.address == pickle.loads(pickle.dumps(b)).address
        assert a._member.whereabouts(3) == "place 3"
        assert a._member.describe(4) == "member 4"
        far = Channel(member, Address(77, 0, 9, 2, "far"))
        far.put("needs a link")
        assert reached == [9]
        run = beside(a.get, 5)
        b.put("still working")
        assert run.join() == "still working"
        assert new_endpoint(FOUNDER, reached.append) is not endpoint
    finally:
        unregister(member)
    with pytest.raises(UsageError, match="is no part of"):
        member_of(77)


def test_who_has_another_number_gets_an_endpoint_of_its_own():
    a, _ = channel_pair()
    endpoint = new_endpoint(5, lambda _: None)
    assert endpoint is not a.endpoint
    endpoint.close()


def test_alone_there_are_no_places_and_nobody_else():
    a, _ = channel_pair()
    with pytest.raises(UsageError, match="part of no system"):
        a._member.whereabouts(3)
    lost = Channel(a._member, Address(a._member.system, 0, 9, 2, "nobody"))
    lost.put("x")
    with pytest.raises(PeerLost, match="in no system of this process"):
        lost.get(timeout=5)
    assert a._member.describe(9) == "endpoint 0x9"


def test_a_pair_of_another_process_is_not_taken_for_one_of_ours():
    a, _ = channel_pair()
    packed = pickle.dumps(a)
    membership._loner.endpoint.close()
    membership._loner = None
    channel_pair()
    with pytest.raises(UsageError, match="is no part of"):
        pickle.loads(packed)


def test_a_fork_has_pairs_of_its_own():
    a, _ = channel_pair()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = fork_says(a)
        except BaseException as error:
            answer = repr(error)
        os.write(writer, answer.encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == "closed; mine"
    a.poll()


def fork_says(parents):
    said = "open"
    try:
        parents.put(1)
    except ChannelClosed:
        said = "closed"
    c, d = channel_pair()
    c.put("mine")
    return f"{said}; {d.get()}"


def test_boxes_have_numbers_of_their_own():
    numbers = {box_number(1, place, counter) for place in range(30) for counter in range(30)}
    assert len(numbers) == 900
    assert all(0 < number < 1 << 63 and number % 2 == 0 for number in numbers)
    assert box_number(1, 2) == box_number(1, 2) != box_number(2, 2)
