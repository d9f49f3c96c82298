"""Channels between members in one process: what arrives where, what is lost, and who is told.

One thread drives everybody where it can, so that each interleaving is the one that is written down.
"""

import asyncio
import pickle
from itertools import chain

import numpy as np
import pytest
from realm import HERE, SYSTEM, asleep, inbox

from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerExited, PeerLost, UsageError
from rmpi.places import inlet
from rmpi.places.channel import Address, Channel, Mailbox, Message, Outlet

SERVER, CLIENT, OTHER, AGAIN = 11, 21, 22, 12
ECHO = 5


@pytest.fixture
def served(realm):
    """A named place with a mailbox, and a client's channel to it."""
    realm.places[ECHO] = SERVER
    mailbox = realm.member(SERVER).mailbox(ECHO)
    return mailbox, realm.member(CLIENT).connect(ECHO)


def restart(realm, place, ident):
    """Kill the place, and have it run again behind another endpoint; the mailbox of that incarnation."""
    realm.end(place, restarts=True)
    here = HERE.member
    mailbox = realm.member(ident).mailbox(place)
    HERE.member = here
    realm.start(place, ident)
    return mailbox


# -- messages -------------------------------------------------------------------------------------------------


VALUES = [None, True, 0, -1, 1 << 70, 1.5, "text", "", b"bytes", b"", (1, "two"), [], {"a": [1]}, {3}, 2 + 1j, print]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_any_value_arrives_as_it_was(served, value):
    mailbox, chan = served
    chan.put(value)
    assert mailbox.get(timeout=5) == value


def test_arrays_arrive_with_dtype_shape_and_order(served):
    mailbox, chan = served
    for array in (
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.eye(4, dtype="f4")),
        np.empty((0, 3)),
        np.array(7),
    ):
        chan.put({"array": array})
        got = mailbox.get(timeout=5)["array"]
        assert (got.dtype, got.shape, got.flags.f_contiguous) == (array.dtype, array.shape, array.flags.f_contiguous)
        assert np.array_equal(got, array)


def test_messages_come_in_the_order_in_which_they_were_put(served):
    mailbox, chan = served
    for number in range(100):
        chan.put(number)
    assert [mailbox.get(timeout=5) for _ in range(100)] == list(range(100))


def test_small_and_large_messages_keep_their_order(served, beside):
    mailbox, chan = served
    run = beside(lambda: [chan.put(bytes(size)) for size in (1, 1 << 20, 2, 70_000, 3)])
    assert [len(mailbox.get(timeout=5)) for _ in range(5)] == [1, 1 << 20, 2, 70_000, 3]
    run.join()


def test_each_client_gets_its_own_answers(realm, served):
    mailbox, first = served
    second = realm.member(OTHER).connect(ECHO)
    first.put("one")
    second.put("two")
    for _ in range(2):
        message, reply = mailbox.receive(timeout=5)
        reply.put(f"answer to {message}")
    assert second.get(timeout=5) == "answer to two"
    assert first.get(timeout=5) == "answer to one"


def test_a_conversation_goes_on_both_ways(served):
    mailbox, chan = served
    chan.put("question")
    reply = mailbox.receive(timeout=5).reply
    reply.put("counter-question")
    message, back = chan.receive(timeout=5)
    back.put("counter-answer")
    assert (message, mailbox.get(timeout=5)) == ("counter-question", "counter-answer")


def test_the_way_back_to_a_client_is_made_once(served):
    mailbox, chan = served
    chan.put(1)
    chan.put(2)
    first, second = mailbox.receive(timeout=5), mailbox.receive(timeout=5)
    assert isinstance(first, Message)
    assert first.reply is second.reply


def test_ways_back_that_nobody_holds_are_not_kept_for_ever(served, monkeypatch):
    monkeypatch.setattr(inlet, "REPLIES", 2)
    mailbox, _ = served
    clients = [HERE.member.connect(ECHO) for _ in range(5)]
    for client in clients:
        client.put("x")
    messages = [mailbox.receive(timeout=5) for _ in clients]
    assert len(mailbox._replies) == 2
    for message in messages:
        message.reply.put("y")
    assert [client.get(timeout=5) for client in clients] == ["y"] * 5
    del messages, message
    mailbox.endpoint.progress()
    mailbox.endpoint._count_routes()
    assert len(mailbox.endpoint._routed) == 2


def test_a_reply_channel_is_for_answers_only(served):
    mailbox, chan = served
    chan.put("x")
    reply = mailbox.receive(timeout=5).reply
    for call in (reply.get, reply.receive, reply.poll, lambda: next(iter(reply))):
        with pytest.raises(UsageError, match="for answers only"):
            call()


def test_what_a_place_puts_goes_to_whoever_spawned_it(realm):
    parent = realm.member(CLIENT)
    realm.places[ECHO] = SERVER
    handle = parent.connect(ECHO)
    child = realm.member(SERVER).mailbox(ECHO, Address(SYSTEM, 0, CLIENT, handle.box, "the parent"))
    child.put("I am up")
    assert handle.get(timeout=5) == "I am up"
    handle.put("work")
    assert child.get(timeout=5) == "work"


def test_a_place_that_nobody_spawned_has_nobody_to_put_to(served):
    with pytest.raises(UsageError, match="whoever spawned this place"):
        served[0].put("x")


def test_what_cannot_be_pickled_is_said_and_harms_nothing(served):
    mailbox, chan = served
    with pytest.raises(UsageError, match="pickle"):
        chan.put(lambda: 1)
    chan.put("next")
    assert mailbox.get(timeout=5) == "next"
    assert chan.statistics().sent == 1


class Breaks:
    def __reduce__(self):
        return _break, ()


def _break():
    raise ValueError("not here")


def test_what_cannot_be_unpickled_is_said_and_gone(served):
    mailbox, chan = served
    chan.put(Breaks())
    chan.put("next")
    with pytest.raises(ValueError, match="not here") as caught:
        mailbox.get(timeout=5)
    assert caught.value.__notes__ == ["while unpickling a message from member 21"]
    assert mailbox.get(timeout=5) == "next"


# -- channels over channels -----------------------------------------------------------------------------------


def test_a_channel_that_is_sent_carries_the_right_to_put_and_a_way_back(realm, served):
    mailbox, chan = served
    realm.places[6] = OTHER
    clerk_box = realm.member(OTHER).mailbox(6)
    HERE.member = chan._member
    chan.put(chan._member.connect(6))
    HERE.member = mailbox._member
    to_clerk = mailbox.get(timeout=5)
    assert isinstance(to_clerk, Channel)
    to_clerk.put("by way of the server")
    message, reply = clerk_box.receive(timeout=5)
    reply.put("to the server")
    assert (message, to_clerk.get(timeout=5)) == ("by way of the server", "to the server")


def test_a_reply_channel_can_be_sent_and_another_place_answers(realm, served):
    mailbox, chan = served
    realm.places[6] = OTHER
    worker = realm.member(OTHER).mailbox(6)
    to_worker = mailbox._member.connect(6)
    chan.put("work")
    to_worker.put(mailbox.receive(timeout=5))
    message, reply = worker.get(timeout=5)
    reply.put(f"{message} done")
    assert chan.get(timeout=5) == "work done"


def test_answers_may_go_to_another_channel(served):
    mailbox, chan = served
    into = Channel(chan._member, None, label="nobody")
    outlet = Outlet(chan._member, chan.address, answers=into.box)
    outlet.put("question")
    mailbox.receive(timeout=5).reply.put("answer")
    assert into.get(timeout=5) == "answer"


def test_a_channel_of_a_system_that_is_not_ours_is_refused(served):
    packed = pickle.dumps(served[1]).replace(SYSTEM.to_bytes(2, "little"), b"\x99\x99")
    with pytest.raises(UsageError, match="is no part of"):
        pickle.loads(packed)


def test_a_mailbox_without_a_parent_cannot_be_sent(served):
    with pytest.raises(UsageError, match="cannot be sent"):
        pickle.dumps(served[0])


# -- time-outs, looking, counting -----------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.001, 0.02])
def test_a_get_that_times_out_loses_nothing(served, timeout):
    mailbox, chan = served
    with pytest.raises(DeadlineExceeded, match="get from anybody: timeout passed"):
        mailbox.get(timeout=timeout)
    chan.put("late")
    assert mailbox.get(timeout=5) == "late"


def test_get_with_no_time_takes_what_is_there(served):
    mailbox, chan = served
    chan.put("there")
    assert mailbox.get(timeout=0) == "there"


def test_poll_says_whether_something_is_there_and_leaves_it(served):
    mailbox, chan = served
    assert not mailbox.poll()
    chan.put("x")
    assert mailbox.poll()
    assert mailbox.poll()
    assert mailbox.get() == "x"
    assert not mailbox.poll()


def test_statistics_count_what_was_sent_received_and_waits(served):
    mailbox, chan = served
    for number in range(3):
        chan.put(number)
    assert mailbox.get() == 0
    assert mailbox.statistics() == (0, 1, 2, 0)
    assert chan.statistics() == (3, 0, 0, 0)


def flood(chan):
    while True:
        chan.put(bytes(60_000), timeout=0.02)


def test_a_flood_waits_for_its_receiver(realm, beside):
    """Back-pressure: a process that does not receive takes no more than its limit, and the sender waits."""
    realm.places[ECHO] = SERVER
    mailbox = realm.member(SERVER, unmatched_limit=0).mailbox(ECHO)
    chan = realm.member(CLIENT).connect(ECHO)
    chan.put("first")
    mailbox.get()
    with pytest.raises(DeadlineExceeded, match="withdrawn"):
        flood(chan)
    sent = chan.statistics().sent
    assert 10 < sent < 30
    run = beside(chan.put, "the one that waits")
    assert {len(mailbox.get(timeout=5)) for _ in range(sent - 1)} == {60_000}
    assert mailbox.get(timeout=5) == "the one that waits"
    run.join()


# -- threads --------------------------------------------------------------------------------------------------


def test_several_threads_get_from_one_channel(served, beside):
    mailbox, chan = served
    runs = [beside(lambda: [mailbox.get(timeout=5) for _ in range(50)]) for _ in range(3)]
    for number in range(150):
        chan.put(number)
    got = [run.join() for run in runs]
    assert sorted(chain(*got)) == list(range(150))
    assert all(numbers == sorted(numbers) for numbers in got)


def test_who_waits_for_a_channel_that_another_thread_closes_is_told(served, beside):
    mailbox, _ = served
    run = beside(mailbox.get)
    asleep(mailbox)
    mailbox.close()
    with pytest.raises(ChannelClosed, match="this channel to whoever spawned this place was closed"):
        run.join()


def test_a_get_in_asyncio_lets_others_run(served):
    mailbox, chan = served

    async def main():
        task = asyncio.create_task(mailbox.aget())
        await asyncio.sleep(0)
        assert not task.done()
        chan.put("x")
        return await asyncio.wait_for(task, 5)

    assert asyncio.run(main()) == "x"


def test_a_cancelled_get_in_asyncio_takes_nothing(served):
    mailbox, chan = served

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(mailbox.aget(), 0.01)
        chan.put("x")
        return await mailbox.aget()

    assert asyncio.run(main()) == "x"
    assert not any(context.probes for context in mailbox.endpoint._incoming.matching.contexts.values())


# -- restarts -------------------------------------------------------------------------------------------------


def test_after_a_restart_messages_reach_the_next_incarnation(realm, served):
    mailbox, chan = served
    chan.put("to the first")
    mailbox.receive().reply.put("from the first")
    assert chan.get() == "from the first"
    mailbox = restart(realm, ECHO, AGAIN)
    chan.put("to the second")
    message, reply = mailbox.receive(timeout=5)
    reply.put("from the second")
    assert (message, chan.get(timeout=5)) == ("to the second", "from the second")
    assert chan.statistics() == (2, 2, 0, 0)


def test_a_call_under_way_at_the_death_fails_and_the_next_one_does_not(realm, served):
    _, chan = served
    chan.put("lost")
    mailbox = restart(realm, ECHO, AGAIN)
    with pytest.raises(PeerLost, match="place 5 was killed"):
        chan.get(timeout=5)
    assert chan.statistics().lost == 1
    chan.put("found")
    mailbox.receive(timeout=5).reply.put("answer")
    assert chan.get(timeout=5) == "answer"


def test_a_call_under_way_is_told_of_even_if_another_was_put_since(realm, served):
    _, chan = served
    chan.put("lost")
    mailbox = restart(realm, ECHO, AGAIN)
    chan.put("found")
    with pytest.raises(PeerLost, match="killed"):
        chan.get(timeout=5)
    message, reply = mailbox.receive(timeout=5)
    reply.put("answer")
    assert (message, chan.get(timeout=5)) == ("found", "answer")


def test_a_get_that_waits_at_the_death_is_told(realm, served, beside):
    _, chan = served
    chan.put("x")
    run = beside(chan.get)
    asleep(chan)
    realm.end(ECHO, restarts=True)
    with pytest.raises(PeerLost, match="killed"):
        run.join()
    with pytest.raises(DeadlineExceeded):  # at most once for each death
        chan.get(timeout=0)


def test_what_came_before_the_death_is_delivered_first(realm, served):
    mailbox, chan = served
    chan.put("question")
    reply = mailbox.receive().reply
    reply.put("one answer")
    reply.put("another")
    realm.end(ECHO, restarts=True)
    assert chan.get() == "one answer"
    assert chan.get() == "another"
    assert chan.statistics().lost == 0
    with pytest.raises(PeerLost, match="killed"):
        chan.get(timeout=5)


def test_a_death_that_nobody_waited_at_with_nothing_under_way_is_not_told(realm, served):
    mailbox, chan = served
    chan.put("question")
    mailbox.receive().reply.put("answer")
    mailbox = restart(realm, ECHO, AGAIN)
    chan.endpoint.progress()
    chan.put("next")
    assert chan.get() == "answer"
    mailbox.receive(timeout=5).reply.put("next answer")
    assert chan.get(timeout=5) == "next answer"
    assert chan.statistics() == (2, 2, 0, 0)


def test_lost_are_those_put_since_something_was_heard(realm, served):
    mailbox, chan = served
    for number in range(3):
        chan.put(number)
    mailbox.receive().reply.put("heard")
    assert chan.get() == "heard"
    for number in range(2):
        chan.put(number)
    restart(realm, ECHO, AGAIN)
    chan.endpoint.progress()
    assert chan.statistics().lost == 2


def test_a_put_waits_for_the_next_incarnation(realm, served, beside):
    _, chan = served
    realm.end(ECHO, restarts=True)
    chan.endpoint.progress()
    with pytest.raises(
        DeadlineExceeded, match=r"put to place 5: .*not restarted \(place 5 was killed\).*nothing was sent"
    ):
        chan.put("too early", timeout=0.01)
    run = beside(chan.put, "patient")
    asleep(chan)
    mailbox = realm.member(AGAIN).mailbox(ECHO)
    realm.start(ECHO, AGAIN)
    run.join()
    assert mailbox.get(timeout=5) == "patient"
    assert chan.statistics() == (1, 0, 0, 0)


def test_a_put_under_way_at_the_death_fails_once(realm, beside):
    realm.places[ECHO] = SERVER
    realm.member(SERVER, unmatched_limit=0).mailbox(ECHO)
    chan = realm.member(CLIENT).connect(ECHO)
    run = beside(chan.put, bytes(1 << 20))
    asleep(chan)
    realm.end(ECHO, restarts=True)
    with pytest.raises(PeerLost, match="killed"):
        run.join()
    with pytest.raises(DeadlineExceeded):
        chan.get(timeout=0)
    assert chan.statistics().lost == 1


def test_who_connects_while_a_place_is_down_waits_for_it(realm, beside):
    chan = realm.member(CLIENT).connect(ECHO)
    run = beside(chan.put, "early")
    asleep(chan)
    mailbox = realm.member(SERVER).mailbox(ECHO)
    realm.start(ECHO, SERVER)
    run.join()
    assert mailbox.get(timeout=5) == "early"


def test_a_get_while_the_place_is_down_gets_what_the_next_incarnation_sends(realm, served, beside):
    _, chan = served
    box = chan.box
    realm.end(ECHO, restarts=True)
    with pytest.raises(PeerLost):
        chan.get()
    run = beside(chan.get)
    asleep(chan)
    child = realm.member(AGAIN).mailbox(ECHO, Address(SYSTEM, 0, CLIENT, box, "the parent"))
    realm.start(ECHO, AGAIN)
    child.put("up again")
    assert run.join() == "up again"


def test_a_restart_that_was_missed_counts_as_a_death(realm, served):
    _, chan = served
    chan.put("lost")
    where = chan._member.whereabouts(ECHO)
    realm.member(AGAIN)
    where.moved(AGAIN)
    assert (where.generation, chan.statistics().lost) == (2, 1)
    with pytest.raises(PeerLost, match="place 5 was restarted"):
        chan.get()


# -- ends -----------------------------------------------------------------------------------------------------


def test_a_place_that_is_gone_for_good_is_lost_at_once(realm, served):
    _, chan = served
    chan.put("x")
    realm.end(ECHO, restarts=False)
    for _ in range(2):
        with pytest.raises(PeerLost, match="killed"):
            chan.get(timeout=5)
        with pytest.raises(PeerLost, match="killed"):
            chan.put("y")
    assert chan.statistics() == (1, 0, 0, 1)


def test_a_loop_over_a_channel_ends_when_the_place_ends_well(realm, served):
    mailbox, chan = served
    chan.put("count")
    reply = mailbox.receive().reply
    for number in range(3):
        reply.put(number)
    realm.end(ECHO, restarts=False, well=True)
    assert list(chan) == [0, 1, 2]
    with pytest.raises(PeerExited, match="place 5 has ended"):
        chan.get()


def test_a_loop_over_a_channel_does_not_hide_a_death(realm, served):
    mailbox, chan = served
    chan.put("count")
    mailbox.receive().reply.put(0)
    realm.end(ECHO, restarts=False)
    values = iter(chan)
    assert next(values) == 0
    with pytest.raises(PeerLost, match="killed"):
        next(values)


def test_the_end_of_a_client_does_not_disturb_a_mailbox(realm, served):
    mailbox, chan = served
    realm.places[99] = CLIENT
    chan.put("x")
    reply = mailbox.receive().reply
    realm.end(99, restarts=False)
    with pytest.raises(DeadlineExceeded):
        mailbox.get(timeout=0)
    with pytest.raises(PeerLost, match="killed"):
        reply.put("nobody is there")
    second = realm.member(OTHER).connect(ECHO)
    second.put("y")
    assert mailbox.get(timeout=5) == "y"


def test_whether_the_other_side_is_there_can_be_asked_without_sending(realm, served):
    mailbox, chan = served
    realm.places[99] = CLIENT
    chan.put("x")
    reply = mailbox.receive().reply
    reply.check()
    realm.end(99, restarts=False)
    with pytest.raises(PeerLost, match="killed"):
        reply.check()
    chan = realm.member(OTHER).connect(ECHO)
    chan.check()
    restart(realm, ECHO, AGAIN)
    chan.check()
    realm.end(ECHO, restarts=False)
    with pytest.raises(PeerLost, match="killed"):
        chan.check()
    chan.close()
    with pytest.raises(ChannelClosed):
        chan.check()


def test_a_received_channel_hears_of_the_end_of_its_other_side(realm, served):
    mailbox, chan = served
    chan.put("x")
    back = pickle.loads(pickle.dumps(mailbox.receive().reply))
    back._member, back._endpoint = mailbox._member, mailbox.endpoint
    realm.places[99] = CLIENT
    realm.end(99, restarts=False)
    with pytest.raises(PeerLost, match="killed"):
        back.get(timeout=5)


def test_a_mailbox_ends_when_its_parent_closes_the_handle(realm):
    realm.places[ECHO] = SERVER
    parent = realm.member(CLIENT)
    handle = Channel(parent, Address(SYSTEM, ECHO, 0, inbox(ECHO), "the child"), announces=True)
    child = realm.member(SERVER).mailbox(ECHO, Address(SYSTEM, 0, CLIENT, handle.box, "the parent"))
    handle.put("last words")
    handle.close()
    assert list(child) == ["last words"]
    with pytest.raises(PeerExited, match="has closed its end"):
        child.put("too late")


def test_a_closed_channel_says_so(served):
    _, chan = served
    with chan as same:
        assert same is chan
    assert chan.closed
    chan.close()
    for call in (chan.get, chan.receive, chan.poll, lambda: chan.put(1)):
        with pytest.raises(ChannelClosed, match="this channel to place 5 was closed"):
            call()
    assert list(chan) == []
    assert repr(chan) == "<Channel to place 5: closed>"


def test_a_channel_that_nobody_holds_leaves_nothing_behind(served):
    mailbox, chan = served
    member = chan._member
    for _ in range(3):
        one = member.connect(ECHO)
        one.put("x")
        mailbox.receive(timeout=5).reply.put("nobody gets this")
        one.poll()
    del one
    member.endpoint.progress()
    contexts = member.endpoint._incoming.matching.contexts
    member.endpoint._count_routes()
    assert (contexts, dict(member.endpoint._routed)) == ({}, {})


def test_a_mailbox_is_a_channel_that_anybody_may_write_to(served):
    assert isinstance(served[0], Mailbox)
    assert repr(served[0]) == "<Mailbox to whoever spawned this place: 0 sent, 0 received>"
