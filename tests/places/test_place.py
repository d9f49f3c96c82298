"""A place, with its router played by the test: what it says, and what it makes of what it is told.

It is rank 0 of three: A is this process, B another rank of its node, C one behind a door.
"""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from rmpi.deadline import Deadline
from rmpi.errors import CollectiveMismatch, Deadlock, LaunchError, PeerExited, PeerLost, RankFailed
from rmpi.places import place
from rmpi.places.control import Control, control_pair
from rmpi.places.door import Door
from rmpi.places.loop import Loop
from rmpi.places.messages import (
    ALL,
    SERIAL_BITS,
    Ask,
    Awake,
    Broken,
    Called,
    Connect,
    Dial,
    Ended,
    Joined,
    Left,
    LinkTo,
    NoLink,
    StillBlocked,
    Unreachable,
    Welcome,
    WhatCalled,
)
from rmpi.places.place import FD_VARIABLE, Place, inherited_fd
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.stream import StreamLink

A, B = 1, 2
C = 1 << SERIAL_BITS | 1
CONTEXT = 40
TAG = 5
KEY = bytes(range(32))
WELCOME = Welcome(0, (A, B, C), ("here", "here", "n2"), CONTEXT, True, 1 << 20)

pytestmark = pytest.mark.usefixtures("no_leak")


class Stage:
    """The router's end of a place's control socket, and the place once it is started."""

    def __init__(self):
        ours, theirs = control_pair()
        self.router = Control(ours)
        self.fd = theirs.detach()
        self.place = None
        self.calls = {}
        self.last_call = None
        self._heard = []

    def start(self, *messages):
        for message in messages or (WELCOME,):
            self.router.send(message)
        self.place = Place(self.fd)
        self.place.serve(self)
        self.place.endpoint.open_context(CONTEXT, WELCOME.members, collective=False)
        self.place.endpoint.open_context(CONTEXT + 1, WELCOME.members, collective=True)
        assert self.hears() == Joined()
        return self.place

    def call_of(self, context, sequence):
        return self.calls.get((context, sequence))

    def last_calls(self):
        return [] if self.last_call is None else [self.last_call]

    def unfinished(self):
        return []

    def hears(self):
        """The next thing that the place says to its router; it has said it when this is asked."""
        if not self._heard:
            self._heard = [message for message, _ in self.router.receive()]
        return self._heard.pop(0)

    def says(self, message, fds=()):
        self.router.send(message, fds)
        self.place.endpoint.progress()


@pytest.fixture
def stage(monkeypatch):
    monkeypatch.setattr(place, "_control", None)
    monkeypatch.setattr(place, "_reporter", None)
    monkeypatch.setattr("sys.excepthook", lambda *_: None)
    monkeypatch.setattr("rmpi.transport.media.why_no_shm", lambda: "the test plays its peers over plain sockets")
    monkeypatch.delenv("RMPI_SPIN", raising=False)
    stage = Stage()
    yield stage
    stage.router.close()
    if stage.place is not None:
        stage.place.endpoint.close()
    if place._control is not None:
        place._control.close()


@pytest.fixture
def other():
    """``other(ident)`` is the endpoint of another place, played by the test."""
    made = []

    def make(ident):
        endpoint = Endpoint(ident, lambda peer: pytest.fail(f"it has no need of a link to {peer}"))
        endpoint.open_context(CONTEXT, WELCOME.members, collective=False)
        made.append(endpoint)
        return endpoint

    yield make
    for endpoint in made:
        endpoint.close()


def receive(started, source, timeout=20):
    return started.endpoint.receive(CONTEXT, source, TAG, deadline=Deadline.after(timeout)).take()


def send(endpoint, destination, value):
    endpoint.start_send(destination, CONTEXT, TAG, value)


# -- joining ------------------------------------------------------------------------------------------------


def test_a_place_learns_from_the_welcome_who_it_is(stage):
    started = stage.start()
    assert started.welcome == WELCOME
    assert started.endpoint.ident == A
    assert started.endpoint.name_of(C) == "rank 2 on n2"


def test_what_the_router_said_right_after_the_welcome_counts(stage):
    started = stage.start(WELCOME, Ended(B, 1, "here", "exit status 3", True))
    with pytest.raises(RankFailed, match="rank 1 on here failed: exit status 3"):
        receive(started, B)


def test_a_router_that_is_gone_before_it_said_anything(stage):
    stage.router.close()
    with pytest.raises(LaunchError, match="does not answer"):
        Place(stage.fd)


def test_a_router_that_says_something_else_first(stage):
    stage.router.send(Ended(B, 1, "here", "x", True))
    with pytest.raises(LaunchError, match="does not answer"):
        Place(stage.fd)


def test_a_router_that_says_nothing(stage, monkeypatch):
    monkeypatch.setattr(place, "WELCOME_LIMIT", 0.01)
    with pytest.raises(LaunchError, match="does not answer"):
        Place(stage.fd)


# -- links --------------------------------------------------------------------------------------------------


def test_the_first_message_asks_for_a_link_and_goes_over_it(stage, other):
    started = stage.start()
    send(started.endpoint, B, "first")
    send(started.endpoint, B, "second")
    assert stage.hears() == Connect(B)
    near, far = socket.socketpair()
    stage.says(LinkTo(B, False), [near.fileno()])
    near.close()
    peer = other(B)
    peer.add_link(StreamLink(A, far, peer))
    assert peer.receive(CONTEXT, A, TAG).take() == "first"
    assert peer.receive(CONTEXT, A, TAG).take() == "second"
    assert stage.router.receive() == []  # it asked once
    assert started.endpoint.media()[B] == "unix"


def test_a_link_that_the_other_asked_for_is_used_both_ways(stage, other):
    started = stage.start()
    near, far = socket.socketpair()
    stage.says(LinkTo(B, False), [near.fileno()])
    near.close()
    peer = other(B)
    peer.add_link(StreamLink(A, far, peer))
    send(peer, A, {"from": "B"})
    assert receive(started, B) == {"from": "B"}
    send(started.endpoint, B, "an answer")
    assert peer.receive(CONTEXT, A, TAG).take() == "an answer"


def test_a_link_that_finds_no_room_for_its_descriptor(stage):
    """The kernel delivers the message without it (unix(7)): an error that says why, and no crash."""
    started = stage.start()
    stage.says(LinkTo(B, False))
    with pytest.raises(PeerLost, match=r"cannot reach rank 1 on here: too many open files here \(ulimit -n\)"):
        receive(started, B)


def test_more_wishes_than_the_router_takes_at_once_all_arrive(stage):
    started = stage.start()
    for number in range(2000):
        started.called(CONTEXT, number, 1, "barrier()")
    heard = []
    while len(heard) < 2000:
        heard += [message.sequence for message, _ in stage.router.receive()]
        started.endpoint.progress()
    assert heard == list(range(2000))


# -- other nodes --------------------------------------------------------------------------------------------


class Remote:
    """Another node: its door, and place C behind it, which has sent ``greeting`` already."""

    def __init__(self, endpoint, greeting):
        self._endpoint = endpoint
        self._greeting = greeting
        self._loop = Loop()
        self._came = []
        self._door = Door(self._loop, "127.0.0.1", KEY, lambda *who: self._came.append(who), self._came.append)
        self.address = ("127.0.0.1", self._door.port)

    def open(self):
        """Wait for somebody; who it is, and whom it wants."""
        while not self._came:
            self._loop.run_once()
        [(sock, source, destination)] = self._came
        self._endpoint.add_link(StreamLink(source, sock, self._endpoint))
        send(self._endpoint, source, self._greeting)
        return source, destination

    def close(self):
        self._door.close()
        self._loop.close()


def test_a_place_of_another_node_is_dialled(stage, other):
    started = stage.start()
    peer = other(C)
    with closing(Remote(peer, "welcome to n2")) as remote:
        stage.says(Dial(C, (remote.address,), KEY, 5.0))
        assert remote.open() == (A, C)
        assert receive(started, C) == "welcome to n2"
        send(started.endpoint, C, "thanks")
        assert peer.receive(CONTEXT, A, TAG).take() == "thanks"
        assert started.endpoint.media()[C] == "tcp"


def test_progress_goes_on_while_it_dials(stage, other):
    """The door does not answer; a neighbour does."""
    started = stage.start()
    near, far = socket.socketpair()
    peer = other(B)
    peer.add_link(StreamLink(A, far, peer))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stage.says(Dial(C, (silent.getsockname(),), KEY, 5.0))
        stage.says(LinkTo(B, False), [near.fileno()])
        near.close()
        send(peer, A, "still here")
        assert receive(started, B) == "still here"
        visitor, _ = silent.accept()
        silent.close()  # a connection that is reset is tried again; now there is no door any more
        visitor.close()
        assert hears_soon(stage).peer == C


@pytest.fixture
def shut():
    """An address where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


def test_the_router_is_told_of_a_door_that_is_shut_and_brings_a_socket_that_is_relayed(stage, other, shut):
    started = stage.start()
    send(started.endpoint, C, "by another way")
    assert stage.hears() == Connect(C)
    stage.says(Dial(C, (shut,), KEY, 5.0))
    assert hears_soon(stage) == Unreachable(C, f"127.0.0.1 port {shut[1]}: Connection refused")
    near, far = socket.socketpair()
    stage.says(LinkTo(C, True), [near.fileno()])
    near.close()
    peer = other(C)
    peer.add_link(StreamLink(A, far, peer))
    assert peer.receive(CONTEXT, A, TAG).take() == "by another way"
    assert started.endpoint.media()[C] == "relay"


def test_where_no_link_can_be_made_what_needs_it_fails(stage):
    started = stage.start()
    send(started.endpoint, C, "lost")
    stage.says(NoLink(C, "there is a firewall"))
    with pytest.raises(PeerLost, match="cannot reach rank 2 on n2: there is a firewall"):
        receive(started, C)


def test_a_relayed_socket_is_no_shared_memory(stage, other, monkeypatch):
    monkeypatch.setattr("rmpi.transport.media.why_no_shm", lambda: None)
    started = stage.start()
    near, far = socket.socketpair()
    stage.says(LinkTo(C, True), [near.fileno()])
    near.close()
    peer = other(C)
    peer.add_link(StreamLink(A, far, peer))
    send(peer, A, "from afar")
    assert receive(started, C) == "from afar"


# -- ends ---------------------------------------------------------------------------------------------------


def test_a_failed_peer_fails_what_waits_for_it(stage):
    started = stage.start()
    stage.says(Ended(C, 2, "n2", "killed by SIGKILL", True))
    with pytest.raises(RankFailed) as caught:
        receive(started, C)
    assert (caught.value.rank, caught.value.host, caught.value.cause) == (2, "n2", "killed by SIGKILL")


def test_a_peer_that_ended_well_is_gone_but_not_failed(stage):
    started = stage.start()
    stage.says(Ended(B, 1, "here", "finished", False))
    with pytest.raises(PeerExited, match="rank 1 on here has ended"):
        receive(started, B)


def test_what_a_peer_had_sent_is_delivered_before_its_end(stage, other):
    started = stage.start()
    near, far = socket.socketpair()
    stage.says(LinkTo(B, False), [near.fileno()])
    near.close()
    peer = other(B)
    peer.add_link(StreamLink(A, far, peer))
    send(peer, A, "my last words")
    peer.close()
    stage.says(Ended(B, 1, "here", "killed by SIGKILL", True))
    assert receive(started, B) == "my last words"
    with pytest.raises(RankFailed):
        receive(started, B)


def test_its_own_end_is_no_news_to_a_place(stage):
    started = stage.start()
    stage.says(Ended(A, 0, "here", "finished", False))
    send(started.endpoint, A, "to myself")
    assert receive(started, A) == "to myself"


def loses_its_router(stage):
    stage.router.close()


def is_told_nonsense(stage):
    stage.router._socket.send(b"nonsense")


@pytest.mark.parametrize("misfortune", [loses_its_router, is_told_nonsense])
def test_without_a_router_everybody_else_is_lost(stage, misfortune):
    started = stage.start()
    misfortune(stage)
    for rank, peer in [(1, B), (2, C)]:
        with pytest.raises(RankFailed, match=f"rank {rank} on .* the router of this host is gone"):
            receive(started, peer)
    started.called(CONTEXT, 1, 1, "nobody hears it")
    started.leave()


# -- standstill ---------------------------------------------------------------------------------------------


def hears_soon(stage):
    """The next thing the place says, which it may not have said yet."""
    deadline = Deadline.after(20)
    while True:
        try:
            return stage.hears()
        except IndexError:
            assert not deadline.passed()
            stage.place.endpoint.progress()


def test_a_place_that_waits_says_so_and_confirms_it(stage):
    """As often as it is asked, and of its own accord once for each time that it was."""
    started = stage.start()
    stays = started.endpoint.stays
    stays.quiet, stays.after, stays.again = lambda _threads: True, 0.0, 0.01  # the test itself is a thread, too
    stage.calls[CONTEXT, 4] = (99, "barrier() at x.py:7")
    with ThreadPoolExecutor(1) as pool:
        started.endpoint.begin_call(CONTEXT + 1, 4, 99)
        waiting = pool.submit(started.endpoint.receive, CONTEXT + 1, B, 4)
        report = hears_soon(stage)
        assert report.waits == (((B,), "barrier()", "x.py:7", CONTEXT, 4),)
        assert (report.round, report.calls) == (0, {CONTEXT: 4})
        stage.router.send(StillBlocked(3))
        answer, again = sorted((hears_soon(stage), hears_soon(stage)), key=lambda said: -said.round)
        assert (answer.round, again.round) == (3, 0)
        assert answer.stay == again.stay == report.stay
        stage.router.send(Broken(ALL, "Deadlock", "every rank waits"))
        assert isinstance(waiting.exception(20), Deadlock)
    stage.says(StillBlocked(4))
    assert hears_soon(stage) == Awake(4)


def test_a_place_with_another_thread_does_not_say_that_it_is_blocked(stage):
    started = stage.start()
    started.endpoint.stays.after, started.endpoint.stays.again = 0.0, 0.01
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(started.endpoint.receive, CONTEXT, B, TAG)
        while not started.endpoint.stays.threads:
            assert not waiting.done()
        stage.router.send(StillBlocked(1))
        assert hears_soon(stage) == Awake(1)
        stage.router.send(Broken(ALL, "Deadlock", "so that it ends"))
        assert isinstance(waiting.exception(20), Deadlock)


# -- disagreement -------------------------------------------------------------------------------------------


def test_a_broken_communicator_cannot_be_used_for_messages_nor_collectives(stage):
    started = stage.start()
    stage.says(Broken(CONTEXT, "CollectiveMismatch", "ranks disagree about collective 4"))
    for context in (CONTEXT, CONTEXT + 1):
        with pytest.raises(CollectiveMismatch, match="ranks disagree about collective 4"):
            started.endpoint.receive(context, B, TAG, deadline=Deadline.after(20))


def test_what_was_called_is_answered_if_it_was(stage):
    stage.start()
    stage.says(WhatCalled(CONTEXT, 4))
    stage.calls[CONTEXT, 4] = (99, "barrier()")
    stage.says(WhatCalled(CONTEXT, 4))
    assert stage.hears() == Called(CONTEXT, 4, 99, "barrier()", False)
    assert stage._heard == []


def test_who_finds_a_mismatch_reports_it_and_has_the_other_asked(stage):
    started = stage.start()
    started.mismatch(CONTEXT, 4, 99, "barrier()", C)
    assert stage.hears() == Called(CONTEXT, 4, 99, "barrier()", False)
    assert stage.hears() == Ask(C, CONTEXT, 4)


# -- leaving ------------------------------------------------------------------------------------------------


def test_leaving_tells_the_router_once(stage):
    started = stage.start()
    started.leave()
    started.leave()
    assert stage.hears() == Left()
    assert stage.router.receive() == []


def test_leaving_says_what_was_called_last(stage):
    started = stage.start()
    stage.last_call = (CONTEXT, 7, 99, "allreduce()")
    started.leave()
    assert stage.hears() == Called(CONTEXT, 7, 99, "allreduce()", True)
    assert stage.hears() == Left()


def test_everything_sent_is_out_and_the_peer_knows_that_nothing_follows(stage, other):
    started = stage.start()
    near, far = socket.socketpair()
    stage.says(LinkTo(B, False), [near.fileno()])
    near.close()
    peer = other(B)
    peer.add_link(StreamLink(A, far, peer))
    send(started.endpoint, B, "the last message")
    started.leave()
    assert peer.receive(CONTEXT, A, TAG).take() == "the last message"
    with pytest.raises(PeerExited):
        peer.receive(CONTEXT, A, TAG)


def test_leaving_waits_for_a_slow_router(stage):
    started = stage.start()
    for number in range(2000):
        started.called(CONTEXT, number, 1, "barrier()")
    leaving = threading.Thread(target=started.leave)
    leaving.start()
    heard = []
    while not heard or heard[-1] != Left():
        heard += [message for message, _ in stage.router.receive()]
    leaving.join()
    assert len(heard) == 2001


def test_a_place_that_crashed_has_not_left(stage):
    started = stage.start()
    place._reporter.crashed = True
    started.leave()
    assert stage.router.receive() == []


def test_a_fork_of_a_place_does_not_leave_for_it(stage):
    started = stage.start()
    started.pid += 1  # as it looks from the child
    started.leave()
    assert stage.router.receive() == []


# -- the inherited socket -----------------------------------------------------------------------------------


def variable(fd, inode=None):
    return {FD_VARIABLE: f"{fd}:{os.fstat(fd).st_ino if inode is None else inode}"}


def test_a_program_that_no_node_started_has_none():
    assert inherited_fd({}) is None


def test_the_socket_is_found_by_number_and_inode(stage):
    assert inherited_fd(variable(stage.fd)) == stage.fd
    os.close(stage.fd)


@pytest.mark.parametrize("given", ["", "7", "seven:8", "7:8:9", "999999:1", "-1:5", ":"])
def test_a_variable_that_names_nothing(given):
    with pytest.raises(LaunchError, match=f"Unset {FD_VARIABLE} to run alone"):
        inherited_fd({FD_VARIABLE: given})


def test_a_number_that_is_somebody_else_s_by_now():
    with socket.socket() as sock, pytest.raises(LaunchError, match="a socket that this process does not have"):
        inherited_fd(variable(sock.fileno(), inode=1))


def test_a_file_is_no_socket(tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(LaunchError, match="does not have"):
        inherited_fd(variable(file.fileno()))
