"""Channels, places and nodes as sources of a message router: what is handed to whom, and which end is what."""

import queue
import threading

import pytest
from realm import Realm, member_here

from rmpi import places
from rmpi.errors import PeerLost, UsageError
from rmpi.places import membership
from rmpi.places.messagerouter import MessageRouter, log_error
from rmpi.places.pair import channel_pair
from rmpi.places.timers import after, every

LONG = 20.0
SERVER, AGAIN, CLIENT = 11, 12, 21
ECHO = 5


@pytest.fixture
def pair():
    ours, theirs = channel_pair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def realm(monkeypatch):
    monkeypatch.setattr(membership, "member_of", member_here)
    realm = Realm()
    yield realm
    realm.close()


@pytest.fixture
def served(realm):
    """A place with a mailbox, and a client's channel to it."""
    realm.places[ECHO] = SERVER
    mailbox = realm.member(SERVER).mailbox(ECHO)
    return mailbox, realm.member(CLIENT).connect(ECHO)


def listen(channel):
    """Have its messages put into a queue."""
    came = queue.SimpleQueue()
    channel.on_message(lambda _, message: came.put(message))
    return came


# ------------------------------------------------------------------------------------------------- messages


def test_a_function_is_called_with_each_message_and_its_channel(pair):
    ours, theirs = pair
    came = queue.SimpleQueue()
    ours.on_message(lambda channel, message: came.put((channel, message)))
    with MessageRouter(ours):
        theirs.put("one")
        theirs.put(["two"])
        assert came.get(timeout=LONG) == (ours, "one")
        assert came.get(timeout=LONG) == (ours, ["two"])


class Unknown:
    """What can be pickled, and not be made again."""

    def __reduce__(self):
        return int, ("no number",)


def test_a_message_that_cannot_be_unpickled_is_an_error_like_those_of_functions(pair):
    ours, theirs = pair
    came, errors = listen(ours), queue.SimpleQueue()
    with MessageRouter(ours, on_error=lambda source, error: errors.put((source, error))):
        theirs.put(Unknown())
        theirs.put("next")
        assert came.get(timeout=LONG) == "next"
    source, error = errors.get(timeout=LONG)
    assert source is ours
    assert isinstance(error, ValueError)


def test_messages_of_a_channel_keep_their_order_and_those_of_several_do_not_wait(pair):
    """The function of the first channel takes its time; that of the second goes on."""
    other, others = channel_pair()
    ours, theirs = pair
    answered, order = threading.Event(), queue.SimpleQueue()

    def slow(_, message):
        answered.wait(LONG)
        order.put(message)

    ours.on_message(slow)
    quick = listen(other)
    with MessageRouter(ours, other), other, others:
        for number in range(20):
            theirs.put(number)
        others.put("quick")
        assert quick.get(timeout=LONG) == "quick"
        answered.set()
        assert [order.get(timeout=LONG) for _ in range(20)] == [*range(20)]


def test_a_function_can_converse_while_timers_go_on(pair):
    """The ancestor's loop stood still during such a call, and mixed up the answers of two channels."""
    ours, theirs = pair
    ticks = queue.SimpleQueue()

    def serve():
        for _ in range(3):
            ticks.get(timeout=LONG)
        theirs.put("answer")

    def ask():
        ours.put("question")
        assert ours.get(timeout=LONG) == "answer"

    theirs.on_message(lambda *_: serve())
    router = MessageRouter(theirs, every(0.001, lambda: ticks.put(1)), after(0, lambda: (ask(), router.stop())))
    router.run()


def test_answers_go_to_whoever_asked(served):
    mailbox, client = served
    mailbox.on_message(lambda _, message: message.reply.put(message.value * 2), replies=True)
    with MessageRouter(mailbox):
        client.put(21)
        assert client.get(timeout=LONG) == 42


def test_what_the_function_raises_ends_the_router(pair):
    ours, theirs = pair
    ours.on_message(lambda _, message: 1 / message)
    router = MessageRouter(ours).start()
    theirs.put(0)
    with pytest.raises(ZeroDivisionError):
        router.join(LONG)


def test_or_the_router_goes_on(pair):
    ours, theirs = pair
    errors, came = queue.SimpleQueue(), queue.SimpleQueue()
    ours.on_message(lambda _, message: came.put(1 / message))
    with MessageRouter(ours, on_error=lambda source, error: errors.put((source, error))):
        theirs.put(0)
        theirs.put(2)
        assert came.get(timeout=LONG) == 0.5
    source, error = errors.get_nowait()
    assert source is ours
    assert isinstance(error, ZeroDivisionError)


def test_a_function_can_stop_the_router_which_then_takes_no_more(pair):
    """What follows stays in the channel; here the library's own thread takes it."""
    ours, theirs = pair
    came, all_put = queue.SimpleQueue(), threading.Event()

    def handle(_, message):
        all_put.wait(LONG)
        came.put((message, threading.current_thread().name.split()[0]))
        if message == "last":
            router.stop()

    ours.on_message(handle)
    router = MessageRouter(ours).start()
    for message in ("first", "last", "for somebody else"):
        theirs.put(message)
    all_put.set()
    router.join(LONG)
    served = [came.get(timeout=LONG) for _ in range(3)]
    assert served == [("first", "rmpi-router"), ("last", "rmpi-router"), ("for somebody else", "rmpi")]


def test_a_condition_is_looked_at_after_each_message(pair, monkeypatch):
    monkeypatch.setattr("rmpi.places.dispatching.GLANCE", LONG)
    ours, theirs = pair
    seen = []
    ours.on_message(lambda _, message: seen.append(message))
    with MessageRouter(ours, until=lambda: len(seen) == 2) as router:
        theirs.put("one")
        theirs.put("two")
        router.join(LONG / 2)


def test_two_routers_cannot_have_the_same_channel(pair):
    ours, _ = pair
    listen(ours)
    with MessageRouter(ours), pytest.raises(UsageError, match="is served by another MessageRouter"):
        MessageRouter(ours).run()


def test_it_can_be_served_again(pair):
    ours, theirs = pair
    came = listen(ours)
    for number in range(3):
        with MessageRouter(ours):
            theirs.put(number)
            assert came.get(timeout=LONG) == number


def test_statistics_count_messages(pair):
    ours, theirs = pair
    came = listen(ours)
    router = MessageRouter(ours)
    with router:
        for number in range(3):
            theirs.put(number)
            came.get(timeout=LONG)
    [found] = router.statistics()
    assert (found.done, found.waiting, found.busy, found.finished) == (3, 0, False, True)


# ----------------------------------------------------------------------------------------------------- ends


def test_it_finishes_when_the_other_side_closes_after_what_it_has_put(pair):
    ours, theirs = pair
    came = listen(ours)
    with MessageRouter(ours) as router:
        theirs.put("last words")
        theirs.close()
        router.join(LONG)
    assert came.get_nowait() == "last words"


def test_or_this_one(pair):
    ours, _ = pair
    listen(ours)
    with MessageRouter(ours) as router:
        ours.close()
        router.join(LONG)


def test_or_when_the_function_is_taken_away(pair):
    ours, theirs = pair
    ours.on_message(lambda channel, _: channel.on_message(None))
    with MessageRouter(ours) as router:
        theirs.put("enough")
        router.join(LONG)


def test_a_channel_without_a_function_is_left_alone(pair):
    ours, theirs = pair
    theirs.put("for somebody else")
    MessageRouter(ours).run()
    assert ours.get(timeout=LONG) == "for somebody else"


def test_it_finishes_when_the_other_side_has_ended_well(realm, served):
    _, client = served
    listen(client)
    with MessageRouter(client) as router:
        realm.end(ECHO, restarts=False, well=True)
        router.join(LONG)


def test_that_the_other_side_has_died_is_an_error(realm, served):
    _, client = served
    listen(client)
    router = MessageRouter(client).start()
    realm.end(ECHO, restarts=False)
    with pytest.raises(PeerLost, match="place 5 was killed"):
        router.join(LONG)


def test_which_can_be_just_logged(realm, served, caplog):
    _, client = served
    listen(client)
    with MessageRouter(client, on_error=log_error) as router:
        realm.end(ECHO, restarts=False)
        router.join(LONG)
    assert "place 5 was killed" in caplog.text


def test_the_next_incarnation_is_served_too(realm, served, monkeypatch):
    _, client = served
    came, warnings = listen(client), queue.SimpleQueue()
    monkeypatch.setattr("rmpi.places.listening.log.warning", lambda text, *values: warnings.put(text % values))
    with MessageRouter(client):
        realm.end(ECHO, restarts=True)
        assert warnings.get(timeout=LONG) == "place 5 was killed; it is to be restarted"
        again = realm.member(AGAIN).mailbox(ECHO)
        realm.start(ECHO, AGAIN)
        client.put("are you there")
        _, reply = again.receive(timeout=LONG)
        reply.put("again")
        assert came.get(timeout=LONG) == "again"


# ----------------------------------------------------------------------------------------- places and nodes


def napper(mailbox):
    """A place that ends when it is told to."""
    mailbox.get()


def test_places_programs_and_nodes():
    """A place keeps the router running until it has ended, a program too, and a node for ever."""
    node = places.here()
    try:
        with (
            node.spawn(napper) as place,
            node.spawn_command(["cat", "/dev/null"]) as program,
            MessageRouter(place, program) as router,
        ):
            assert router.running
            place.put("good night")
            router.join(LONG)
        with MessageRouter(node, after(0, print)) as router, pytest.raises(TimeoutError):
            router.join(0.05)
    finally:
        places.shutdown()
