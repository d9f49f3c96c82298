"""Mailboxes with names: of the program, of places, of threads."""

import os
import signal

import pytest
import standing

from rmpi import places, rpc
from rmpi.errors import NameNotFound, PeerExited, PeerLost, RemoteError, UsageError

LIMIT = 20
"""Seconds for what should take none."""


@pytest.fixture(scope="module", autouse=True)
def here():
    yield places.here()
    places.shutdown()


@pytest.fixture
def desk():
    with places.open_mailbox("desk") as desk:
        yield desk


def test_places_find_the_program_by_the_name_of_its_mailbox(here, desk):
    visitors = [here.spawn(standing.visit, "desk", what) for what in ("a", "b")]
    for _ in visitors:
        message, reply = desk.receive(timeout=LIMIT)
        reply.put(message * 2)
    assert [visitor.get(timeout=LIMIT) for visitor in visitors] == ["aa", "bb"]
    assert [visitor.wait(LIMIT) for visitor in visitors] == [0, 0]


def test_the_program_finds_it_too_and_whoever_is_given_it(here, desk):
    known = here.connect("desk")
    shelf = here.spawn(standing.keep)
    shelf.put(desk)
    shelf.put(None)
    given = shelf.get(timeout=LIMIT)
    for channel in (known, given):
        channel.put("hello")
        message, reply = desk.receive(timeout=LIMIT)
        reply.put(message)
        assert channel.get(timeout=LIMIT) == "hello"
    shelf.kill()


@pytest.mark.usefixtures("desk")
def test_a_name_is_used_once_on_a_node_whatever_has_it(here):
    with pytest.raises(UsageError, match=r"a mailbox named 'desk' is on .* already \(up\); names are used once"):
        places.open_mailbox("desk")
    with pytest.raises(UsageError, match="a mailbox named 'desk'"):
        here.spawn(standing.wait, name="desk")
    with here.spawn(standing.wait, name="shop"), pytest.raises(UsageError, match="a place named 'shop'"):
        places.open_mailbox("shop")


def test_a_name_is_free_again_when_the_mailbox_is_closed_or_nobody_holds_it(here):
    for free in (lambda mailbox: mailbox.close(), lambda _: None):
        mailbox = places.open_mailbox("once")
        free(mailbox)
        del mailbox
        here.status()  # what nobody holds is closed when next something is waited for
        with pytest.raises(NameNotFound, match="there is no place named 'once'"):
            here.connect("once")


def test_clients_of_a_mailbox_that_is_closed_get_what_was_sent_and_hear_that_it_ended(here):
    keeper = here.spawn(standing.keep_desk, "far desk")
    assert keeper.get(timeout=LIMIT) == "open"
    client = places.connect("far desk")
    with places.monitor(client) as events:
        assert events.get(timeout=LIMIT).kind == "up"
        for number in range(10):
            client.put(number)
        assert client.get(timeout=LIMIT) == 0  # and so all of them have come
        keeper.put("close it")
        assert keeper.get(timeout=LIMIT) == "closed"
        event = events.get(timeout=LIMIT)
        assert (event.kind, event.reason) == ("gone", "it was closed")
    assert len(list(client)) <= 9
    with pytest.raises(PeerExited, match=r"far desk on .* has ended: it was closed"):
        client.put("more")
    assert keeper.alive
    keeper.kill()


def test_a_mailbox_goes_with_its_place(here):
    keeper = here.spawn(standing.keep_desk, "far desk")
    assert keeper.get(timeout=LIMIT) == "open"
    assert [(each.kind, each.pid) for each in here.status().places if each.name == "far desk"] == [("mailbox", 0)]
    client = places.connect("far desk")
    client.put(1)
    assert client.get(timeout=LIMIT) == 1
    os.kill(keeper.pid, signal.SIGKILL)
    with pytest.raises(PeerLost, match="killed by SIGKILL"):
        client.get(timeout=LIMIT)
    with pytest.raises(NameNotFound):
        places.connect("far desk")


def test_a_thread_may_have_one(here):
    keeper = here.spawn(standing.keep_desk, "thread's desk", kind="thread")
    assert keeper.get(timeout=LIMIT) == "open"
    client = here.connect("thread's desk")
    client.put(1)
    assert client.get(timeout=LIMIT) == 1
    keeper.put("close it")
    assert keeper.get(timeout=LIMIT) == "closed"
    with pytest.raises(PeerExited, match="it was closed"):
        client.get(timeout=LIMIT)
    keeper.terminate()


def test_a_program_serves_calls_itself(here, beside):
    with places.open_mailbox("till") as mailbox:
        till = standing.Till()
        serving = beside(rpc.serve, till, mailbox)
        customer = here.spawn(standing.pay, "till", 5)
        assert customer.get(timeout=LIMIT) == 5
        with standing.Till.connect(here, "till") as stub:
            assert stub.pay(2, timeout=LIMIT) == till.money == 7
            with pytest.raises(RemoteError, match="TypeError"):
                stub.pay("much")
    serving.join()  # the mailbox is closed
    assert customer.wait(LIMIT) == 0


def test_several_are_waited_for_at_once(desk):
    with places.open_mailbox("counter") as counter:
        assert places.select([desk, counter], timeout=0) == []
        places.connect("counter").put("a customer")
        assert places.select([desk, counter], timeout=LIMIT) == [counter]


def test_what_cannot_be_is_refused(desk):
    with pytest.raises(UsageError, match=r"answer a message by the channel that receive\(\) gives"):
        desk.put("to whom?")
    with pytest.raises(UsageError, match="a mailbox needs a name"):
        places.open_mailbox("")
    with pytest.raises(UsageError, match="must be a string"):
        places.open_mailbox(3)
    assert "desk on " in repr(desk)
