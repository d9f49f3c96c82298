"""Open ports: the short cut to and from boxes, many lanes, threads in turn, and who dozes until something comes."""

import os
import random
import signal
import socket

import pytest
from joined import add_lane, settle, tcp_loopback
from random_programs import by_the_long_way, draw_value, same

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, PeerLost
from rmpi.transport.base import Transfer
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.incoming import CREDIT_STEP
from rmpi.transport.matching import ANY, Receive
from rmpi.transport.media import why_no_shm
from rmpi.transport.peers import CREDIT, FRAME_COST
from rmpi.transport.shortcut import NOTHING

pytestmark = pytest.mark.skipif(why_no_shm() is not None, reason=str(why_no_shm()))

BOX = 0x0B0C_0000_0000_0002
SERVER = 1 << 20 | 1
CLIENT = 1 << 20 | 2
SOCKETS = {"shm": socket.socketpair, "tcp": tcp_loopback}


class Place:
    """An endpoint with a box of its own, which sends to the boxes of others; by the short cut, wherever that goes."""

    def __init__(self, ident, **options):
        self.endpoint = Endpoint(ident, lambda _peer: None, **options)
        self.ident = ident
        self.short = self.endpoint.open_box(box_of(ident))
        self.routes = {}
        self.shortly = 0  # messages that took the short cut in

    def put(self, value, dest, tag=0):
        if dest not in self.routes:
            self.routes[dest] = self.endpoint.open_route(box_of(dest), dest)
        short = self.routes[dest]
        sent = short.send(value, dest, tag)
        if sent is False:
            self.endpoint.send(dest, box_of(dest), tag, value, deadline=Deadline.after(20))
        elif sent is not True:
            assert type(sent) is Transfer
            self.endpoint.wait((sent,), Deadline.after(20))
            short.given = None

    def get(self, source=ANY, tag=ANY):
        """A message with its source and tag: by the short cut, by that after a doze, or the long way."""
        found = self.taken(source, tag)
        if found is None:
            self.endpoint.doze(box_of(self.ident), source, tag, deadline=Deadline.after(20))
            found = self.taken(source, tag)
        return found or self.waited_for(self.endpoint.start_receive(box_of(self.ident), source, tag))

    def taken(self, source=ANY, tag=ANY):
        """What the short cut has; None: nothing."""
        value = self.short.recv(source, tag, None)
        if value is NOTHING:
            return None
        self.shortly += 1
        if type(value) is Receive:
            found = self.waited_for(value)
            self.short.given = None
            return found
        found = value, self.short.source, self.short.tag
        self.short.given = None
        return found

    def soon(self, source=ANY, tag=ANY):
        """What the short cut has, or will have as soon as the network has brought it."""
        deadline = Deadline.after(20)
        while (found := self.taken(source, tag)) is None:
            assert not deadline.passed()
        return found

    def waited_for(self, receive):
        self.endpoint.wait((receive,), Deadline.after(20))
        return receive.take(), receive.arrival.source, receive.arrival.tag


def box_of(ident):
    return BOX + 2 * ident


@pytest.fixture
def new():
    """``new(ident, **options)``: a place of this process, closed after the test."""
    places = []

    def make(ident, **options):
        places.append(Place(ident, **options))
        return places[-1]

    yield make
    for place in places:
        place.endpoint.close()


@pytest.fixture(params=SOCKETS)
def sockets(request):
    """What joins two places: shared memory, or a socket with a lane."""
    return SOCKETS[request.param]


def join(one, other, sockets=socket.socketpair):
    for place, peer, sock in zip((one, other), (other, one), sockets(), strict=True):
        add_lane(place.endpoint, peer.ident, sock)
    settle(one.endpoint, other.endpoint)


@pytest.fixture
def served(new, sockets):
    """``served(count)``: a server, and so many clients of it."""

    def make(count, **options):
        server = new(SERVER, **options)
        clients = [new(CLIENT + i, **options) for i in range(count)]
        for client in clients:
            join(server, client, sockets)
        return server, clients

    return make


def over_memory(new, clients):
    """A server and its clients, over shared memory: what was sent has come."""
    places = [new(SERVER + i) for i in range(clients + 1)]
    for client in places[1:]:
        join(places[0], client)
    return places


# -- what goes by the short cut -------------------------------------------------------------------------------


def test_a_box_has_a_short_cut_for_lanes_that_come_after_it(new, sockets):
    server = new(SERVER)
    for ident in (CLIENT + 5, CLIENT, CLIENT + 3):
        client = new(ident)
        join(server, client, sockets)
        client.put(ident, SERVER, tag=ident)
        assert server.soon() == (ident, ident, ident)
        server.put("thanks", ident)
        assert client.soon(SERVER, 0) == ("thanks", SERVER, 0)


def test_a_source_is_the_number_of_an_endpoint(served):
    server, clients = served(3)
    for client in clients:
        client.put("hello", SERVER)
    assert server.soon(CLIENT + 1) == ("hello", CLIENT + 1, 0)
    assert server.taken(CLIENT + 1) is None
    assert server.taken(CLIENT + 7) is None
    assert {server.soon()[1], server.soon()[1]} == {CLIENT, CLIENT + 2}


def test_nobody_who_sends_much_keeps_the_others_waiting(served):
    server, clients = served(6)
    for client in clients:
        for number in range(10):
            client.put(number, SERVER)
    for number in range(10):
        assert sorted(server.soon()[:2] for _ in clients) == [(number, client.ident) for client in clients]


def test_what_is_for_another_box_waits_where_it_is(new):
    """As requests do while a server waits for an answer of its own."""
    server, *clients = over_memory(new, 2)
    inbox = server.endpoint.open_box(BOX)
    assert clients[0].endpoint.open_route(BOX, SERVER).send("a request", SERVER, 0)
    clients[1].put("an answer", SERVER)
    assert server.taken() == ("an answer", CLIENT + 1, 0)
    assert inbox.recv(ANY, ANY, None) == "a request"


def test_what_lies_behind_something_for_another_box_is_found_the_long_way(served):
    server, (client,) = served(1)
    inbox = server.endpoint.open_box(BOX)
    assert client.endpoint.open_route(BOX, SERVER).send("a request", SERVER, 0)
    client.put("an answer", SERVER)
    assert server.taken() is None
    assert server.get() == ("an answer", CLIENT, 0)
    assert inbox.recv(ANY, ANY, None) is NOTHING
    assert server.endpoint.receive(BOX, ANY, ANY, deadline=Deadline.after(0)).take() == "a request"


def test_credit_that_comes_does_not_keep_anybody_waiting(new):
    """Whoever finds it looks for a message elsewhere, too."""
    server, *clients = over_memory(new, 2)
    for _ in range(CREDIT_STEP // FRAME_COST):
        server.put(None, CLIENT)
    for _ in range(CREDIT_STEP // FRAME_COST):
        clients[0].taken()
    lane = next(lane for lane in server.endpoint._shortcuts._lanes if lane.peer == CLIENT)
    assert lane.credit < CREDIT
    clients[1].put("hello", SERVER)
    assert server.taken() == ("hello", CLIENT + 1, 0)
    assert lane.credit == CREDIT


def test_what_waits_the_long_way_comes_first(served):
    server, clients = served(2)
    clients[0].put("first", SERVER, tag=4)
    settle(server.endpoint)
    clients[0].put("second", SERVER, tag=4)
    assert server.taken() is None
    assert server.taken(CLIENT, 4) is None
    clients[1].put("somebody else's", SERVER, tag=4)
    assert server.soon(CLIENT + 1, 4) == ("somebody else's", CLIENT + 1, 4)
    assert [server.get()[0] for _ in range(2)] == ["first", "second"]


def test_a_route_receives_nothing(new):
    server, client = new(SERVER), new(CLIENT)
    join(server, client)
    route = server.endpoint.open_route(box_of(SERVER), SERVER)
    client.put(1, SERVER)
    assert route.recv(ANY, ANY, None) is NOTHING
    assert server.taken() == (1, CLIENT, 0)


def test_lanes_of_peers_that_have_ended_are_gone(served):
    server, clients = served(2)
    clients[0].put("last words", SERVER)
    clients[0].endpoint.close()
    server.endpoint.crank.post(lambda: server.endpoint.peer_ended(CLIENT, PeerLost("it was killed")))
    settle(server.endpoint)
    assert [lane.peer for lane in server.endpoint._shortcuts._lanes] == [CLIENT + 1]
    with pytest.raises(PeerLost):
        server.put("too late", CLIENT)
    clients[1].put("I am here", SERVER)
    assert [server.get()[0] for _ in range(2)] == ["last words", "I am here"]


def test_many_sockets_are_asked_about_at_once(new):
    """Also whether something has happened that is not a matter of lanes: then the long way follows."""
    server, clients = new(SERVER), [new(CLIENT + i) for i in range(30)]
    for client in clients:
        join(server, client, tcp_loopback)
    for client in clients:
        client.put("hello", SERVER)
    assert {server.soon()[1] for _ in clients} == {client.ident for client in clients}
    os.eventfd_write(server.endpoint.crank._bell, 1)
    clients[0].put("more", SERVER)
    assert server.taken() is None
    settle(server.endpoint, turns=1)
    assert server.get() == ("more", CLIENT, 0)


# -- threads --------------------------------------------------------------------------------------------------


def test_an_open_port_belongs_to_whoever_comes_once_the_last_has_what_he_was_given(new, beside):
    server, client = new(SERVER), new(CLIENT)
    join(server, client)
    for number in range(3):
        client.put(number, SERVER)
    assert server.short.recv(ANY, ANY, None) == 0
    assert beside(server.short.recv, ANY, ANY, None).result(5) is NOTHING
    server.short.given = None
    assert beside(server.taken).result(5) == (1, CLIENT, 0)
    assert server.taken() == (2, CLIENT, 0)


def test_threads_receive_from_boxes_of_their_own(new, beside):
    """As places that are threads do: each gets all that was sent to it, in order."""
    count, boxes = 300, range(4)
    server, client = new(SERVER, spin=0.0001), new(CLIENT, spin=0.0001)
    join(server, client)
    shorts = [server.endpoint.open_box(BOX + 2 * i) for i in boxes]
    routes = [client.endpoint.open_route(BOX + 2 * i, SERVER) for i in boxes]

    def receive(i):
        got = []
        while len(got) < count:
            value = shorts[i].recv(ANY, ANY, None)
            if value is NOTHING:
                server.endpoint.doze(BOX + 2 * i, ANY, ANY, deadline=Deadline.after(20))
                value = shorts[i].recv(ANY, ANY, None)
            if value is NOTHING:
                value = server.endpoint.receive(BOX + 2 * i, ANY, ANY, deadline=Deadline.after(20)).take()
            shorts[i].given = None
            got.append(value)
        return got

    def send(i):
        for number in range(count):
            if routes[i].send((i, number), SERVER, 0) is not True:
                client.endpoint.send(SERVER, BOX + 2 * i, 0, (i, number), deadline=Deadline.after(20))

    sending, receiving = [beside(send, i) for i in boxes], [beside(receive, i) for i in boxes]
    for i in boxes:
        sending[i].result(25)
        assert receiving[i].result(25) == [(i, number) for number in range(count)]


# -- who dozes ------------------------------------------------------------------------------------------------


def doze(place, source=ANY, tag=ANY, timeout=20):
    place.endpoint.doze(box_of(place.ident), source, tag, deadline=Deadline.after(timeout))


def test_who_dozes_wakes_for_a_message_and_leaves_it_to_the_port(served, beside):
    server, (client,) = served(1)
    dozing = beside(doze, server)
    client.put("hello", SERVER)
    dozing.result(10)
    assert server.soon() == ("hello", CLIENT, 0)


def test_who_dozes_wakes_for_whatever_is_posted_and_when_time_is_up(new, beside):
    server = new(SERVER)
    doze(server, timeout=0.001)
    dozing = beside(doze, server)
    server.endpoint.crank.post(lambda: server.endpoint.peer_ended(CLIENT, PeerLost("it was killed")))
    dozing.result(10)
    with pytest.raises(PeerLost):
        server.get(CLIENT)


def test_nobody_dozes_over_what_has_come_the_long_way_or_cannot_come(served):
    server, (client,) = served(1)
    client.put("hello", SERVER, tag=3)
    until_read(server)
    doze(server)
    doze(server, CLIENT, 3)
    assert server.get() == ("hello", CLIENT, 3)
    server.endpoint.crank.post(lambda: server.endpoint.peer_ended(CLIENT, PeerLost("it was killed")))
    settle(server.endpoint)
    doze(server, CLIENT)


def test_who_dozes_wakes_when_somebody_gives_a_message_back(served, beside):
    server, (client,) = served(1)
    taken = server.endpoint.start_receive(box_of(SERVER), ANY, ANY)
    client.put("hello", SERVER)
    until_read(server)
    dozing = beside(doze, server)
    server.endpoint.abandon([taken])
    dozing.result(10)
    assert server.get()[0] == "hello"


def test_who_dozes_wakes_when_the_box_or_the_endpoint_is_closed(new, beside):
    server = new(SERVER)
    dozing = beside(doze, server)
    server.endpoint.close_box(box_of(SERVER), server.short)
    _ended_or_closed(dozing)
    server.short = server.endpoint.open_box(box_of(SERVER))
    dozing = beside(doze, server)
    server.endpoint.close()
    _ended_or_closed(dozing)


def _ended_or_closed(dozing):
    """It woke, or found all closed before it slept."""
    assert isinstance(dozing.exception(10), ChannelClosed | None)


def until_read(place):
    """Have the place take the next thing that comes the long way."""
    deadline = Deadline.after(20)
    while not place.endpoint._peers.known[CLIENT].link.taken():
        place.endpoint.progress()
        assert not deadline.passed()


def test_who_dozes_hears_of_the_end_of_a_link(served, beside):
    server, (client,) = served(1)
    dozing = beside(doze, server)
    client.endpoint.finish()
    client.endpoint.close()
    dozing.result(10)
    with pytest.raises(PeerLost):
        server.get(CLIENT)


def test_nobody_dozes_while_another_leads(served, beside):
    server, (client,) = served(1)
    leading = beside(server.endpoint.receive, box_of(SERVER), ANY, ANY)
    while not server.endpoint.crank.leads:
        pass
    doze(server)
    client.put("for who waits", SERVER)
    assert leading.result(10).take() == "for who waits"


def test_a_signal_that_raises_wakes_who_dozes_and_nothing_is_lost(served):
    server, (client,) = served(1)

    def interrupt(*_):
        raise KeyboardInterrupt

    def doze_until_then():
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        doze(server)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            doze_until_then()
    finally:
        signal.signal(signal.SIGALRM, before)
    client.put("hello", SERVER)
    assert server.get() == ("hello", CLIENT, 0)


# -- between processes ----------------------------------------------------------------------------------------


def fork(ident, main, joined):
    """Run ``main(place)`` in a fork that is joined with this process; its pid, and a place here."""
    ours, theirs = joined()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            place = Place(ident, spin=0.0)
            add_lane(place.endpoint, SERVER, theirs)
            main(place)
            place.endpoint.finish(Deadline.after(10))
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    return pid, ours


def test_no_wake_up_is_lost_where_both_sides_sleep_for_each_message(new, sockets):
    rounds = 1500

    def echo(place):
        for _ in range(rounds):
            value, source, tag = place.get()
            place.put(value, source, tag)

    pid, sock = fork(CLIENT, echo, sockets)
    server = new(SERVER, spin=0.0)
    add_lane(server.endpoint, CLIENT, sock)
    for number in range(rounds):
        server.put(number, CLIENT, number)
        assert server.get() == (number, CLIENT, number)
    assert server.shortly > rounds / 2
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("seed", range(2))
def test_random_values_come_in_the_order_of_each_sender(new, sockets, seed):
    """Small and large, by the short cut and the long way, from three clients to one box, and back."""
    clients, count = 3, 60

    def value(ident, number):
        return draw_value(f"{seed} {ident} {number}")

    def talk(place):
        choose = random.Random(f"{seed} {place.ident}")
        for number in range(count):
            place.put(value(place.ident, number), SERVER, number)
            if choose.random() < 0.3:
                assert same(place.get(SERVER, number)[0], by_the_long_way(value(SERVER, number)))
            else:
                place.endpoint.receive(box_of(place.ident), ANY, number, deadline=Deadline.after(20))

    server, pids = new(SERVER, spin=0.0001), []
    for i in range(clients):
        pid, sock = fork(CLIENT + i, talk, sockets)
        add_lane(server.endpoint, CLIENT + i, sock)
        pids.append(pid)
    came = dict.fromkeys(range(CLIENT, CLIENT + clients), 0)
    for _ in range(clients * count):
        got, source, tag = server.get()
        assert tag == came[source]
        expected = draw_value(f"{seed} {source} {tag}")
        assert same(got, by_the_long_way(expected))
        came[source] += 1
        server.put(value(SERVER, tag), source, tag)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * clients
