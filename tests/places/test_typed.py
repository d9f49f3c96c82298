"""Channels by the kind of their messages."""

import pytest
from realm import asleep

from rmpi.errors import DeadlineExceeded, UsageError
from rmpi.places.aside import kind_of
from rmpi.places.selecting import select

SERVER, CLIENT, PLACE = 11, 21, 5


@pytest.fixture
def served(realm):
    realm.places[PLACE] = SERVER
    mailbox = realm.member(SERVER).mailbox(PLACE)
    return mailbox, realm.member(CLIENT).connect(PLACE)


def put(channel, *values):
    for value in values:
        channel.put(value)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (("bank", 1), "bank"),
        (["bank"], "bank"),
        ({"type": "bank"}, "bank"),
        ({"kind": "bank"}, None),
        ((), None),
        ([], None),
        ("bank", None),
        (None, None),
        (([],), None),
        ({"type": {}}, None),
        ((3, 4), 3),
    ],
    ids=repr,
)
def test_the_kind_of_a_message(message, kind):
    assert kind_of(message) == kind


def test_the_first_of_a_kind_is_got_and_the_others_stay_in_order(served):
    mailbox, chan = served
    kinds = mailbox.typed()
    put(chan, ("bank", 1), ("audit", 1), "neither", ("bank", 2), {"type": "audit", "n": 2}, ("bank", 3))
    assert kinds.get("audit", timeout=5) == ("audit", 1)
    assert kinds.get("audit", timeout=5) == {"type": "audit", "n": 2}
    assert mailbox.statistics().queued == 4
    assert mailbox.get() == ("bank", 1)
    assert kinds.get(None) == "neither"
    assert [mailbox.get(timeout=5) for _ in range(2)] == [("bank", 2), ("bank", 3)]


def test_a_message_of_a_kind_comes_with_its_way_back(served):
    mailbox, chan = served
    kinds = mailbox.typed()
    put(chan, "other", ("bank", 1))
    message, reply = kinds.receive("bank", timeout=5)
    reply.put(message)
    assert chan.get(timeout=5) == ("bank", 1)
    assert mailbox.receive().value == "other"


def test_what_was_put_aside_is_there_to_be_got_and_selected(served):
    mailbox, chan = served
    kinds = mailbox.typed()
    put(chan, "other")
    with pytest.raises(DeadlineExceeded):
        kinds.get("bank", timeout=0)
    assert mailbox.poll()
    assert select([mailbox], timeout=0) == [mailbox]
    assert mailbox.get(timeout=0) == "other"
    assert not mailbox.poll()


def test_more_than_the_limit_is_not_put_aside(served):
    mailbox, chan = served
    kinds = mailbox.typed(limit=2)
    put(chan, "a", ("b", 1), "c", ("bank", 1))
    for _ in range(2):
        with pytest.raises(UsageError, match=r"2 messages wait .*1 of kind None, 1 of kind 'b'"):
            kinds.get("bank", timeout=5)
    assert [mailbox.get(timeout=5) for _ in range(4)] == ["a", ("b", 1), "c", ("bank", 1)]


def test_kinds_may_be_told_by_any_function(served):
    mailbox, chan = served
    put(chan, 3, 5, 4, 6)
    parity = mailbox.typed(kind_of=lambda value: value % 2)
    assert [parity.get(0), parity.get(0)] == [4, 6]
    size = mailbox.typed(kind_of=lambda value: value > 4)
    assert [size.get(True), size.get(False)] == [5, 3]


def test_a_function_that_fails_loses_no_message(served):
    mailbox, chan = served
    kinds = mailbox.typed(kind_of=lambda value: value["kind"])
    put(chan, "text")
    with pytest.raises(TypeError):
        kinds.get("bank", timeout=5)
    assert mailbox.get(timeout=5) == "text"


def test_threads_that_wait_for_different_kinds_each_get_theirs(served, beside):
    mailbox, chan = served
    kinds = mailbox.typed()
    runs = {kind: beside(kinds.get, kind, 10) for kind in ("a", "b", "c")}
    anything = beside(lambda: [kinds.get("d", 10)])
    asleep(mailbox)
    for kind in ("c", "d", "b", "a"):
        chan.put((kind, 1))
    assert {kind: run.join() for kind, run in runs.items()} == {kind: (kind, 1) for kind in runs}
    assert anything.join() == [("d", 1)]


def test_what_several_threads_put_aside_stays_in_order(served, beside):
    mailbox, chan = served
    kinds = mailbox.typed()
    runs = [beside(kinds.get, ("stop", number), 10) for number in range(3)]
    for number in range(300):
        chan.put(number)
    for number in range(3):
        chan.put({"type": ("stop", number)})
    assert [run.join()["type"] for run in runs] == [("stop", number) for number in range(3)]
    assert [mailbox.get(timeout=5) for _ in range(300)] == list(range(300))


def test_the_channel_is_used_as_before(served):
    mailbox, chan = served
    kinds = chan.typed()
    kinds.put("x")
    assert (mailbox.get(timeout=5), kinds.channel is chan) == ("x", True)
    assert repr(kinds) == "<TypedChannel of <Channel to place 5: 1 sent, 0 received>>"
