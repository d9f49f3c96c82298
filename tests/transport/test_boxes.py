"""Boxes: receiving ends for whoever comes and goes, and the routes that lead there.

Where nothing else is said, one thread drives all endpoints turn by turn, so that every interleaving is the one that is
written down.
"""

from pathlib import Path

import numpy as np
import pytest
from joined import MEDIA, move, settle

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerExited, PeerLost
from rmpi.transport import peers
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.matching import ANY
from rmpi.transport.media import why_no_shm
from rmpi.transport.peers import CREDIT, FRAME_COST

BOX = 0x0B0C_0000_0000_0002
ELSEWHERE = BOX + 2
SERVER = 1 << 20 | 1
CLIENT = 1 << 20 | 2

GONE = PeerLost("it was killed")
both_ends = pytest.mark.parametrize("error", [GONE, PeerExited("it has ended")], ids=["killed", "ended"])


@pytest.fixture
def new():
    """``new(ident, **options)``: an endpoint without any context, closed after the test."""
    endpoints = []

    def make(ident, **options):
        endpoints.append(Endpoint(ident, lambda _peer: None, **options))
        return endpoints[-1]

    yield make
    for endpoint in endpoints:
        endpoint.close()


@pytest.fixture(params=MEDIA)
def join(request):
    """``join(a, b)``: joins two endpoints, over each medium in turn."""
    if request.param == "shm" and why_no_shm() is not None:
        pytest.skip(str(why_no_shm()))

    def joined(a, b):
        MEDIA[request.param](a, b)
        settle(a, b)

    return joined


@pytest.fixture
def pair(new, join):
    """A server with a box, and a client with a route to it."""
    server, client = new(SERVER), new(CLIENT)
    server.open_box(BOX)
    client.open_route(BOX, SERVER)
    join(server, client)
    return server, client


def received(endpoint, source=ANY, tag=ANY, context=BOX):
    """The next message that has come, with its source and tag."""
    receive = endpoint.receive(context, source, tag, deadline=Deadline.after(5))
    return receive.take(), receive.arrival.source, receive.arrival.tag


def start(server, source=ANY, tag=ANY):
    return server.start_receive(BOX, source, tag)


# -- messages -------------------------------------------------------------------------------------------------


def test_a_box_receives_from_whoever_comes(new, join):
    server = new(SERVER)
    server.open_box(BOX)
    waiting = start(server)
    for ident in range(CLIENT, CLIENT + 3):
        client = new(ident)
        join(server, client)
        client.open_route(BOX, SERVER)
        client.send(SERVER, BOX, ident, f"from {ident}")
        move(server, client, waiting)
        assert (waiting.take(), waiting.arrival.source, waiting.arrival.tag) == (f"from {ident}", ident, ident)
        waiting = start(server)
    assert not waiting.done


def test_a_source_or_a_tag_is_chosen_among_what_has_come(new, join):
    server, clients = new(SERVER), [new(CLIENT), new(CLIENT + 1)]
    server.open_box(BOX)
    for client in clients:
        join(server, client)
        client.open_route(BOX, SERVER)
        for tag in (5, 6):
            client.send(SERVER, BOX, tag, client.ident + tag)
    settle(server, *clients)
    assert received(server, source=CLIENT + 1) == (CLIENT + 1 + 5, CLIENT + 1, 5)
    assert received(server, tag=6) == (CLIENT + 6, CLIENT, 6)
    assert received(server, CLIENT, 5) == (CLIENT + 5, CLIENT, 5)
    assert received(server) == (CLIENT + 1 + 6, CLIENT + 1, 6)


def test_large_values_arrive_and_answers_find_their_way(pair):
    server, client = pair
    client.open_box(ELSEWHERE)
    server.open_route(ELSEWHERE, CLIENT)
    array = np.arange(1 << 18)
    operations = [client.start_send(SERVER, BOX, ELSEWHERE, array), start(server)]
    move(server, client, *operations)
    question = operations[1]
    answer = [server.start_send(CLIENT, question.arrival.tag, 0, question.take()[::2])]
    answer.append(client.start_receive(ELSEWHERE, SERVER, 0))
    move(server, client, *answer)
    assert np.array_equal(answer[1].take(), array[::2])


def test_a_probe_finds_what_comes_from_anybody(pair):
    server, client = pair
    probe = server.start_probe(BOX, ANY, ANY)
    assert not probe.done
    client.send(SERVER, BOX, 3, "x")
    settle(server, client)
    assert (probe.done, probe.arrival.source, probe.arrival.tag) == (True, CLIENT, 3)
    assert received(server) == ("x", CLIENT, 3)


def test_a_box_in_the_same_place_is_reached_like_any_other(new):
    server = new(SERVER)
    server.open_box(BOX)
    server.open_route(BOX, SERVER)
    server.send(SERVER, BOX, 1, "to myself")
    assert received(server) == ("to myself", SERVER, 1)


# -- before and after -----------------------------------------------------------------------------------------


def test_what_comes_before_its_box_waits(pair):
    server, client = pair
    client.open_route(ELSEWHERE, SERVER)
    client.send(SERVER, ELSEWHERE, 0, "early")
    settle(server, client)
    server.open_box(ELSEWHERE)
    assert received(server, context=ELSEWHERE) == ("early", CLIENT, 0)


def test_what_comes_for_a_closed_box_is_dropped_and_costs_no_credit(new, join):
    server, client = new(SERVER), new(CLIENT)
    short = server.open_box(BOX)
    client.open_route(BOX, SERVER)
    join(server, client)
    client.send(SERVER, BOX, 0, b"unread")
    settle(server, client)
    server.close_box(BOX, short)
    large = client.start_send(SERVER, BOX, 0, bytes(1 << 20))
    move(server, client, large)
    for _ in range(CREDIT // FRAME_COST):
        client.send(SERVER, BOX, 0, b"", deadline=Deadline.after(0))
        settle(server, client, turns=1)
    assert "0 bytes unmatched" in repr(server)


def test_who_waits_at_a_box_that_is_closed_is_told(new):
    server = new(SERVER)
    short = server.open_box(BOX)
    waiting = start(server)
    server.close_box(BOX, short)
    for call in (lambda: server.wait((waiting,)), lambda: start(server), lambda: server.start_probe(BOX, ANY, ANY)):
        with pytest.raises(ChannelClosed, match="this channel was closed"):
            call()


def test_a_box_is_discarded_and_a_route_closed_while_the_lock_is_held(pair):
    """As by a finalizer, which the garbage collector runs in the middle of anything."""
    server, client = pair
    short, route = server.open_box(ELSEWHERE), client.open_route(ELSEWHERE, SERVER)
    with server.crank.lock, client.crank.lock:
        server.discard_box(ELSEWHERE, short)
        client.close_route(ELSEWHERE, SERVER, route)
    server.progress()
    for use in (lambda: server.start_receive(ELSEWHERE, ANY, ANY), lambda: client.send(SERVER, ELSEWHERE, 0, 0)):
        with pytest.raises(ChannelClosed):
            use()


def test_a_route_is_for_sending_until_it_is_closed(pair):
    server, client = pair
    short = client.open_route(BOX, SERVER)
    with pytest.raises(ChannelClosed):
        client.start_receive(BOX, ANY, ANY)
    for text in ("first", "second"):
        client.send(SERVER, BOX, 0, text)
        client.close_route(BOX, SERVER, short)
    with pytest.raises(ChannelClosed):
        client.send(SERVER, BOX, 0, "third")
    settle(server, client)
    assert [received(server)[0] for _ in range(2)] == ["first", "second"]
    with pytest.raises(DeadlineExceeded):
        server.receive(BOX, ANY, ANY, deadline=Deadline.after(0))


# -- peers that end -------------------------------------------------------------------------------------------


@both_ends
def test_the_end_of_one_peer_ends_what_waits_for_that_one_alone(new, join, error):
    server, clients = new(SERVER), [new(CLIENT), new(CLIENT + 1)]
    server.open_box(BOX)
    for client in clients:
        join(server, client)
        client.open_route(BOX, SERVER)
    anybody, one = start(server, tag=7), start(server, CLIENT, 8)
    clients[0].send(SERVER, BOX, 9, "last words")
    clients[0].close()
    server.crank.post(lambda: server.peer_ended(CLIENT, error))
    settle(server)
    assert one.done
    assert not anybody.done
    with pytest.raises(type(error)):
        server.wait((one,))
    assert received(server, CLIENT) == ("last words", CLIENT, 9)
    with pytest.raises(type(error)):
        server.wait((start(server, CLIENT),))
    clients[1].send(SERVER, BOX, 7, "I am here")
    move(server, clients[1], anybody)
    assert anybody.take() == "I am here"


def test_what_a_peer_sent_before_it_was_killed_counts_though_nobody_had_heard_of_it(new):
    """Its first sign of life, its last message and its death are one turn of the crank."""
    server, client = new(SERVER), new(CLIENT)
    server.open_box(BOX)
    client.open_route(BOX, SERVER)
    MEDIA["shm" if why_no_shm() is None else "unix"](server, client)
    server.progress()
    client.progress()
    client.send(SERVER, BOX, 0, "last words")
    client.close()
    server.crank.post(lambda: server.peer_ended(CLIENT, GONE))
    assert received(server, CLIENT) == ("last words", CLIENT, 0)
    with pytest.raises(PeerLost):
        server.receive(BOX, CLIENT, ANY)


def test_nobody_sends_to_a_box_of_who_has_ended(pair):
    server, client = pair
    server.close()
    client.crank.post(lambda: client.peer_ended(SERVER, PeerLost("it was killed")))
    settle(client)
    with pytest.raises(PeerLost, match="killed"):
        client.send(SERVER, BOX, 0, "too late")


def test_whoever_waits_for_ourselves_is_told_when_nobody_can_reach_us_any_more(new):
    """But what we had sent to ourselves comes first."""
    alone = new(SERVER)
    alone.open_box(BOX)
    alone.open_route(BOX, SERVER)
    alone.send(SERVER, BOX, 0, "the last")
    ourselves = frozenset((SERVER,))
    first, second = (alone.start_receive(BOX, ANY, ANY, members=ourselves) for _ in range(2))
    anybody = alone.start_receive(BOX, ANY, ANY)
    alone.crank.post(lambda: alone.peer_ended(SERVER, GONE))
    alone.progress()
    assert first.take() == "the last"
    assert isinstance(second.error, PeerLost)
    assert not anybody.done
    with pytest.raises(PeerLost, match="it was killed"):
        alone.receive(BOX, ANY, ANY, members=ourselves)
    alone.abandon((anybody,))


# -- forgetting -----------------------------------------------------------------------------------------------


def known_of_peers(endpoint):
    """Everything that an endpoint keeps for some peer."""
    crank, shortcuts = endpoint.crank, endpoint._shortcuts
    bell = {crank._bell}
    return [
        *endpoint._peers.known.keys() - {endpoint.ident},
        *crank._ready.keys() - bell,
        *crank._stirred,
        *crank._lane_at,
        *shortcuts._lanes,
        *endpoint._incoming._landings,
    ]


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def end(endpoint, ident, error=GONE):
    endpoint.crank.post(lambda: endpoint.peer_ended(ident, error))


def forget(endpoint, ident, **how):
    endpoint.crank.post(lambda: endpoint.forget(ident, **how))


@pytest.mark.parametrize("told_first", [True, False])
@both_ends
def test_a_peer_that_has_ended_is_forgotten_with_all_that_belongs_to_it(pair, error, told_first):
    server, client = pair
    client.send(SERVER, BOX, 1, "last words")
    client.start_send(SERVER, BOX, 2, bytes(1 << 20))
    settle(server, turns=2)  # it is granted, and no byte of it will come
    if not told_first:
        client.close()
        settle(server)
    end(server, CLIENT, error)
    forget(server, CLIENT)
    settle(server)
    client.close()
    settle(server)
    assert known_of_peers(server) == []
    assert received(server) == ("last words", CLIENT, 1)
    with pytest.raises(type(error)):
        server.receive(BOX, CLIENT, ANY)
    with pytest.raises(type(error)):
        server.send(CLIENT, BOX, 0, None)
    assert known_of_peers(server) == []


def test_a_peer_is_not_forgotten_before_it_has_ended(pair):
    server, client = pair
    forget(server, CLIENT)
    client.send(SERVER, BOX, 0, "I am here")
    settle(server, client)
    assert received(server)[0] == "I am here"
    client.finish()
    client.close()
    settle(server)
    assert known_of_peers(server) == []


def test_a_peer_whose_links_never_end_is_forgotten_at_once_if_that_is_asked(pair):
    server, _client = pair
    end(server, CLIENT)
    forget(server, CLIENT)
    settle(server)
    assert known_of_peers(server) != []
    forget(server, CLIENT, at_once=True)
    settle(server)
    assert known_of_peers(server) == []


def test_a_link_that_comes_after_its_peer_was_forgotten_is_closed(new, join):
    server, client = new(SERVER), new(CLIENT)
    for what in (end, forget):
        what(server, CLIENT)
    join(server, client)
    assert known_of_peers(server) == []


def test_many_peers_come_and_go_and_nothing_of_them_stays(new, monkeypatch):
    """Of those that were forgotten it is known that they have ended; of those long ago, not even that."""
    monkeypatch.setattr(peers, "REMEMBERED", 20)
    server = new(SERVER)
    server.open_box(BOX)
    settle(server)
    before = descriptors()
    for ident in range(CLIENT, CLIENT + 200):
        client = Endpoint(ident, lambda _peer: None)
        MEDIA["shm" if why_no_shm() is None else "unix"](server, client)
        settle(server, client, turns=2)
        client.open_route(BOX, SERVER)
        client.send(SERVER, BOX, 0, ident)
        assert received(server)[0] == ident
        client.finish()
        client.close()
        end(server, ident, PeerExited("it has ended"))
        forget(server, ident)
        settle(server, turns=2)
    assert known_of_peers(server) == []
    assert len(server._peers._gone) == 20
    assert descriptors() == before
