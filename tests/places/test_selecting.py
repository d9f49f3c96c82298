"""Waiting for several channels, and functions that are called with their messages."""

import logging
import signal
import sys
import threading

import pytest
from realm import asleep

from rmpi.errors import ChannelClosed, PeerLost, UsageError
from rmpi.places import attendant
from rmpi.places.selecting import Selector, select

SERVER, OTHER, CLIENT = 11, 12, 21


@pytest.fixture
def two(realm):
    """A client's channels to two places, and the mailboxes of these."""
    realm.places |= {1: SERVER, 2: OTHER}
    boxes = [realm.member(SERVER).mailbox(1), realm.member(OTHER).mailbox(2)]
    client = realm.member(CLIENT)
    channels = [client.connect(1), client.connect(2)]
    for channel in channels:
        channel.put("hello")
    return channels, [box.receive(timeout=5).reply for box in boxes]


# -- select ---------------------------------------------------------------------------------------------------


def test_those_that_have_something_in_the_order_given(two):
    (first, second), (to_first, to_second) = two
    assert select([first, second], timeout=0) == []
    to_second.put("x")
    assert select([first, second], timeout=5) == [second]
    to_first.put("y")
    assert select([first, second], timeout=5) == [first, second]
    assert select([second, first], timeout=5) == [second, first]
    assert (first.get(), second.get()) == ("y", "x")
    assert select([first, second], timeout=0.01) == []


def test_select_wakes_up_for_the_first(two, beside):
    channels, replies = two
    run = beside(select, channels, 10)
    asleep(channels[0])
    replies[1].put("x")
    assert run.join() == [channels[1]]


def test_an_end_is_something_too(realm, two, beside):
    channels, _ = two
    run = beside(select, channels, 10)
    asleep(channels[0])
    realm.end(1, restarts=False)
    assert run.join() == [channels[0]]
    with pytest.raises(PeerLost):
        channels[0].get()
    assert select(channels, timeout=0) == [channels[0]]


def test_a_channel_that_is_closed_is_ready_to_say_so(two):
    channels, _ = two
    channels[1].close()
    assert select(channels, timeout=5) == [channels[1]]


def test_one_that_comes_back_is_waited_for_through_its_restart(realm, two, beside):
    (first, second), _ = two
    realm.end(1, restarts=True)
    assert select([first], timeout=5) == [first]
    with pytest.raises(PeerLost):
        first.get()
    run = beside(select, [first, second], 10)
    asleep(first)
    box = realm.member(13).mailbox(1)
    realm.start(1, 13)
    first.put("again")
    box.receive(timeout=5).reply.put("x")
    assert run.join() == [first]


def test_nothing_to_wait_for_is_an_error():
    with pytest.raises(UsageError, match="at least one channel"):
        select([])


def test_channels_of_different_systems_are_not_waited_for_together(realm, two):
    realm.places[3] = SERVER
    with pytest.raises(UsageError, match="another system"):
        select([two[0][0], realm.members[SERVER].mailbox(3)])


def test_select_leaves_nothing_behind(two):
    channels, replies = two
    for _ in range(3):
        assert select(channels, timeout=0) == []
    replies[0].put("x")
    assert select(channels, timeout=5) == [channels[0]]
    known = channels[0].endpoint._incoming.matching.contexts
    assert not any(context.probes for context in known.values())
    where = channels[0]._member.whereabouts(1)
    assert not where.change.watchers


# -- selectors ------------------------------------------------------------------------------------------------


def test_a_selector_is_woken_by_another_thread(two, beside):
    selector = Selector(two[0])
    run = beside(selector.select)
    asleep(two[0][0])
    selector.wake()
    assert run.join() == []
    selector.close()


def test_a_selector_that_was_woken_before_does_not_wait(two):
    selector = Selector(two[0])
    selector.wake()
    assert selector.select() == []
    assert selector.select(timeout=0) == []


def test_a_signal_handler_may_wake_a_selector(two, beside):
    """Again and again, because a signal just before the sleep is heard of only when it ends."""
    selector, woken = Selector(two[0]), threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: selector.wake())
    main = threading.main_thread().ident

    def interrupt():
        asleep(two[0][0])
        while not woken.wait(0.005):
            signal.pthread_kill(main, signal.SIGUSR1)

    try:
        run = beside(interrupt)
        assert selector.select() == []
        woken.set()
        run.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_channel_that_still_has_something_is_told_again(two):
    (first, second), (to_first, _) = two
    selector = Selector([first, second])
    to_first.put(1)
    to_first.put(2)
    for number in (1, 2):
        assert selector.select(timeout=5) == [first]
        assert selector.select(timeout=5) == [first]
        assert first.get() == number
    assert selector.select(timeout=0) == []


def test_channels_come_and_go_while_it_waits(two, beside):
    (first, second), (to_first, to_second) = two
    selector = Selector([first])
    to_second.put("x")
    run = beside(selector.select, 10)
    asleep(first)
    selector.add(second)
    assert run.join() == [second]
    selector.remove(second)
    assert selector.sources == [first]
    assert selector.select(timeout=0) == []
    to_first.put("y")
    assert selector.select(timeout=5) == [first]


def test_a_selector_hears_of_the_end_of_its_endpoint(two, beside):
    channels, _ = two
    run = beside(Selector(channels).select)
    asleep(channels[0])
    channels[0].endpoint.close()
    assert set(run.join()) == set(channels)
    with pytest.raises(ChannelClosed):
        channels[0].get()


def test_looking_costs_nothing_that_stays(two):
    channels, replies = two
    selector = Selector(channels)
    for number in range(20):
        replies[0].put(number)
        assert selector.select(timeout=5) == [channels[0]]
        assert channels[0].get() == number
    assert len(channels[1]._member.whereabouts(2).change.watchers) == 1


# -- functions ------------------------------------------------------------------------------------------------


class Calls:
    """A function to be called with messages; `wait` for so many of them."""

    def __init__(self):
        self.made = []
        self._more = threading.Condition()

    def __call__(self, *args):
        with self._more:
            self.made.append(args)
            self._more.notify_all()

    def wait(self, count):
        with self._more:
            assert self._more.wait_for(lambda: len(self.made) >= count, 10)
        return self.made


@pytest.fixture
def calls():
    yield Calls()
    assert wait_until(lambda: not attendant._attendants)


def wait_until(true):
    for _ in range(2000):
        if true():
            return True
        threading.Event().wait(0.002)
    return False


def test_a_function_is_called_with_channel_and_message(two, calls):
    (first, _), (to_first, _) = two
    first.on_message(calls)
    to_first.put("one")
    to_first.put("two")
    assert calls.wait(2) == [(first, "one"), (first, "two")]
    first.on_message(None)


def test_a_function_may_want_the_way_back(two, calls):
    (first, _), (to_first, _) = two
    first.on_message(lambda _, message: message.reply.put(message.value * 2), replies=True)
    to_first.put(21)
    first.on_message(None)
    assert wait_until(lambda: not attendant._attendants)
    calls(first)


def test_who_waits_gets_the_message_and_the_function_does_not(two, calls, beside):
    (first, _), (to_first, _) = two
    run = beside(first.get, 10)
    asleep(first)
    first.on_message(calls)
    to_first.put("for the one that waits")
    assert run.join() == "for the one that waits"
    to_first.put("for the function")
    assert calls.wait(1) == [(first, "for the function")]
    first.close()


def test_what_a_function_raises_is_logged_and_the_next_message_handled(two, calls, caplog):
    (first, _), (to_first, _) = two

    def fail(channel, value):
        calls(channel, value)
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, "rmpi.places"):
        first.on_message(fail)
        to_first.put(1)
        to_first.put(2)
        assert len(calls.wait(2)) == 2
        first.close()
        assert wait_until(lambda: len(caplog.records) == 2)
    assert "<Channel to place 1" in caplog.text
    assert "ZeroDivisionError" in caplog.text


class Unknown:
    """What can be pickled, and not be made again."""

    def __reduce__(self):
        return int, ("no number",)


def test_what_cannot_be_unpickled_is_logged_and_the_next_message_handled(two, calls, caplog):
    (first, _), (to_first, _) = two
    with caplog.at_level(logging.ERROR, "rmpi.places"):
        first.on_message(calls)
        to_first.put(Unknown())
        to_first.put("next")
        assert calls.wait(1) == [(first, "next")]
        first.close()
    assert "cannot be unpickled" in caplog.text


def test_a_function_that_wants_to_end_the_program_ends_nothing(two, calls, caplog):
    (first, _), (to_first, _) = two

    def leave(channel, value):
        calls(channel, value)
        sys.exit(value)

    with caplog.at_level(logging.ERROR, "rmpi.places"):
        first.on_message(leave)
        to_first.put(1)
        to_first.put(2)
        assert len(calls.wait(2)) == 2
        first.close()
        assert wait_until(lambda: len(caplog.records) == 2)
    assert "SystemExit: 1" in caplog.text


def test_one_thread_attends_all_channels_until_they_end(realm, two, calls):
    channels, replies = two
    for channel in channels:
        channel.on_message(calls)
    replies[1].put("x")
    replies[0].put("y")
    calls.wait(2)
    assert sum(thread.name == "rmpi attendant" for thread in threading.enumerate()) == 1
    for place in (1, 2):
        realm.end(place, restarts=False)
    assert wait_until(lambda: not attendant._attendants)


def test_a_function_outlives_a_restart(realm, two, calls):
    (first, _), _ = two
    first.on_message(calls)
    first.put("lost")
    realm.end(1, restarts=True)
    box = realm.member(13).mailbox(1)
    realm.start(1, 13)
    first.put("found")
    box.receive(timeout=5).reply.put("x")
    assert calls.wait(1) == [(first, "x")]
    first.close()


def test_whoever_claims_a_channel_calls_its_function(two, calls):
    (first, _), (to_first, _) = two
    first.claim()
    first.on_message(calls)
    assert not attendant._attendants
    to_first.put("x")
    assert select([first], timeout=5) == [first]
    call = first.next_call()
    assert call is not None
    call()
    assert calls.made == [(first, "x")]
    to_first.put("y")
    first.release()
    assert calls.wait(2)[1] == (first, "y")
    first.close()
