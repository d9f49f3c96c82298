"""The router: what a node decides. Events in, actions out. [pure]

No clock, socket, process or thread in here; `node` turns what happens into events and carries actions out.
Every node runs the same router. The one on the *head* also keeps the books of the job: it hears of every end
and tells everybody, settles who called what, and announces to its owner what the user should know.

    a place wants a link to a peer   same node: a socketpair, an end to each, once per pair
                                     other node: the place dials that node's door itself
    somebody came in by the door     hand the connection to the place it asked for
    a place has ended                to the head, which judges it and tells every place of the job
    a place says what it called      to the head, which compares; a disagreement breaks the communicator
    a place revokes a communicator   to the head, which breaks it for everybody
    a place aborts                   to the head, whose owner ends the job
    a place is blocked               to the head, which asks all once more if all are (`deadlock`)
    a node is lost                   all its places have failed

Two places that want each other at the same moment get one pair on one node, and on two nodes two
connections, of which each side sends on its own: order within a direction is kept, and nobody has to yield.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from rmpi.errors import WireError
from rmpi.places.calls import CallBook, Report
from rmpi.places.ends import End, end_of
from rmpi.places.messages import (
    ALL,
    SERIAL_BITS,
    Abort,
    Ask,
    Awake,
    Blocked,
    Broken,
    Called,
    Connect,
    Crashed,
    Dial,
    Ended,
    Everyone,
    Exited,
    FromPlace,
    Joined,
    Left,
    Message,
    Returned,
    Revoke,
    StillBlocked,
    ToPlace,
    WhatCalled,
    pack,
    unpack,
)

if TYPE_CHECKING:
    from rmpi.places.deadlock import DeadlockBook, Step

HEAD = 0
"""The number of the head's node."""


def node_of(endpoint: int) -> int:
    """The node that an endpoint's place runs on."""
    return endpoint >> SERIAL_BITS


# ------------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class PlaceSaid:
    """A place of this node sent a message."""

    endpoint: int
    message: Message


@dataclass(frozen=True, slots=True)
class PlaceExited:
    """A place of this node has ended, and all it said was heard. ``status`` as in `Exited`."""

    endpoint: int
    status: int


@dataclass(frozen=True, slots=True)
class NodeSaid:
    """Another node sent something that concerns places."""

    node: int
    message: Message


@dataclass(frozen=True, slots=True)
class NodeLost:
    """Another node cannot be reached any more."""

    node: int
    reason: str


@dataclass(frozen=True, slots=True)
class CameIn:
    """Somebody proved at the door to be place ``source``, and asks for ``destination``."""

    connection: int
    source: int
    destination: int


Event = PlaceSaid | PlaceExited | NodeSaid | NodeLost | CameIn


# ----------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a message to a place of this node."""

    endpoint: int
    message: Message


@dataclass(frozen=True, slots=True)
class TellAll:
    """Send a message to every place of this node."""

    message: Message


@dataclass(frozen=True, slots=True)
class Join:
    """Make a socketpair and give one end to each of two places of this node."""

    first: int
    second: int


@dataclass(frozen=True, slots=True)
class HandOver:
    """Give a connection that came in by the door to a place of this node."""

    connection: int
    endpoint: int
    peer: int


@dataclass(frozen=True, slots=True)
class TurnAway:
    """Close a connection that came in by the door."""

    connection: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to another node."""

    node: int
    message: Message


@dataclass(frozen=True, slots=True)
class RankEnded:
    """For the owner of the job: a rank has ended."""

    rank: int
    host: str
    end: End


@dataclass(frozen=True, slots=True)
class RankCrashed:
    """For the owner of the job: an uncaught exception is about to end a rank."""

    rank: int
    host: str
    kind: str
    text: str
    consequence: bool


@dataclass(frozen=True, slots=True)
class Disagreement:
    """For the owner of the job: ranks called different things, and left without noticing."""

    text: str


@dataclass(frozen=True, slots=True)
class Aborted:
    """For the owner of the job: a rank wants it to end with this exit code."""

    rank: int
    host: str
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class RankReturned:
    """For the owner of the job: a piece of what a rank's function has returned or raised."""

    rank: int
    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class Deadlocked:
    """For the owner of the job: every rank waits, and nothing will ever come. See `Router.condemn`."""

    text: str


@dataclass(frozen=True, slots=True)
class Undelivered:
    """For the owner of the job: every rank waits, and something that was sent does not arrive."""

    text: str


Announcement = RankEnded | RankCrashed | Disagreement | Aborted | Deadlocked | Undelivered | RankReturned
Action = Tell | TellAll | Join | HandOver | TurnAway | Send | Announcement


# ------------------------------------------------------------------------------------------ router


@dataclass
class Book:
    """What every node knows of the job."""

    node: int
    members: tuple[int, ...]  # endpoints by rank
    hosts: tuple[str, ...]  # host names by rank
    doors: dict[int, tuple[tuple[str, int], ...]]
    key: bytes
    rank_of: dict[int, int] = field(init=False)
    nodes: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self.rank_of = {endpoint: rank for rank, endpoint in enumerate(self.members)}
        self.nodes = frozenset(map(node_of, self.members)) - {HEAD}

    def host_of(self, endpoint: int) -> str:
        return self.hosts[self.rank_of[endpoint]]


class Router:
    """One node's decisions about one job.

    Attributes:
        seeks_deadlocks: Whether the head heeds the reports of blocked ranks.
    """

    def __init__(self, book: Book) -> None:
        self.book = book
        self._joined: set[int] = set()
        self._left: set[int] = set()
        self._gone: set[int] = set()  # on the head: places that have ended
        self._pairs: set[frozenset[int]] = set()
        self._last_words: dict[int, str] = {}  # on the head: how the traceback of a crash ends
        self._calls = CallBook()
        self.seeks_deadlocks = True
        self._failed = False
        self._deadlocks: DeadlockBook | None = None  # on the head, from the first report on

    def step(self, event: Event) -> list[Action]:
        """What is to be done about ``event``.

        Raises:
            WireError: A place or node said what it may not say.
        """
        match event:
            case PlaceSaid(endpoint, message):
                return self._place_said(endpoint, message)
            case PlaceExited(endpoint, status):
                joined, left = endpoint in self._joined, endpoint in self._left
                return self._to_head(Exited(endpoint, status, joined, left))
            case NodeSaid(node, message):
                return self._node_said(node, message)
            case NodeLost(node, reason):
                return self._lost(node, reason)
            case CameIn(connection, source, destination):
                known = source in self.book.rank_of and self._is_mine(destination)
                return [HandOver(connection, destination, source) if known else TurnAway(connection)]
        assert_never(event)

    def _is_mine(self, endpoint: int) -> bool:
        return endpoint in self.book.rank_of and node_of(endpoint) == self.book.node

    # ------------------------------------------------------------------------------ any node

    def _place_said(self, endpoint: int, message: Message) -> list[Action]:
        match message:
            case Joined():
                self._joined.add(endpoint)
                return []
            case Left():
                self._left.add(endpoint)
                return []
            case Connect(peer):
                return self._connect(endpoint, peer)
            case Called() | Ask() | Crashed() | Revoke() | Abort() | Returned() | Blocked() | Awake():
                return self._from_place(endpoint, message)
        raise WireError(f"a place may not say {type(message).__name__}")

    def _connect(self, endpoint: int, peer: int) -> list[Action]:
        if peer not in self.book.rank_of:
            raise WireError(f"endpoint {endpoint:#x} asks for {peer:#x}, which is not of this job")
        if not self._is_mine(peer):
            doors = self.book.doors.get(node_of(peer), ())
            return [Tell(endpoint, Dial(peer, doors, self.book.key))]
        pair = frozenset((endpoint, peer))
        if pair in self._pairs:
            return []
        self._pairs.add(pair)
        return [Join(endpoint, peer)]

    def _from_place(self, endpoint: int, message: Message) -> list[Action]:
        if self.book.node == HEAD:
            return self._head_hears(endpoint, message)
        return [Send(HEAD, FromPlace(endpoint, pack(message)))]

    def _to_head(self, message: Exited) -> list[Action]:
        return self._exited(message) if self.book.node == HEAD else [Send(HEAD, message)]

    def _node_said(self, node: int, message: Message) -> list[Action]:
        match message:
            case Exited(endpoint=endpoint) if self.book.node == HEAD and node_of(endpoint) == node:
                return self._exited(message)
            case FromPlace(endpoint, packed) if self.book.node == HEAD and node_of(endpoint) == node:
                return self._head_hears(endpoint, unpack(packed))
            case Everyone(packed) if node == HEAD:
                return [TellAll(unpack(packed))]
            case ToPlace(endpoint, packed) if node == HEAD and self._is_mine(endpoint):
                return [Tell(endpoint, unpack(packed))]
        raise WireError(f"node {node} may not say {type(message).__name__}")

    # ------------------------------------------------------------------------------ the head

    def _head_hears(self, endpoint: int, message: Message) -> list[Action]:
        if endpoint not in self.book.rank_of:
            raise WireError(f"endpoint {endpoint:#x} is not of this job")
        rank, host = self.book.rank_of[endpoint], self.book.host_of(endpoint)
        match message:
            case Called(context, sequence, fingerprint, what, last):
                verdict = self._calls.report(context, sequence, Report(f"rank {rank}", fingerprint, what))
                return self._disagree(context, verdict, last) if verdict else []
            case Ask(other, context, sequence):
                return self._to_place(other, WhatCalled(context, sequence))
            case Crashed(kind, text, consequence):
                self._last_words[endpoint] = _last_words(text)
                return [RankCrashed(rank, host, kind, text, consequence)]
            case Revoke(context, text):
                return self._to_everyone(Broken(context, "ChannelClosed", text))
            case Abort(code, text):
                self._last_words[endpoint] = text
                return [Aborted(rank, host, code, text)]
            case Returned(data, last):
                return [RankReturned(rank, data, last)]
            case Blocked() if self.seeks_deadlocks:
                return self._follow(self._deadlock_book().blocked(endpoint, message))
            case Awake(round_) if self.seeks_deadlocks:
                return self._follow(self._deadlock_book().awake(endpoint, round_))
            case Blocked() | Awake():
                return []
        raise WireError(f"a place may not say {type(message).__name__}")

    def _disagree(self, context: int, verdict: str, last: bool) -> list[Action]:
        """Break the communicator; if a rank is leaving already, the owner must say what it can no longer raise."""
        broken = self._to_everyone(Broken(context, "CollectiveMismatch", verdict))
        return [*broken, Disagreement(verdict)] if last else broken

    def _deadlock_book(self) -> DeadlockBook:
        """Made, and its module imported, when a rank is blocked for the first time: few jobs ever need it."""
        if self._deadlocks is None:
            from rmpi.places.deadlock import DeadlockBook

            self._deadlocks = DeadlockBook(self.book.rank_of)
            for endpoint in self._gone:
                self._deadlocks.ended(endpoint, failed=self._failed)
        return self._deadlocks

    def _follow(self, step: Step) -> list[Action]:
        """Do what the book of blocked ranks says."""
        from rmpi.places.deadlock import AskAll, InFlight, Verdict

        match step:
            case None:
                return []
            case AskAll(round_):
                return self._to_everyone(StillBlocked(round_))
            case Verdict(text):
                return [Deadlocked(text)]
            case InFlight(text):
                return [Undelivered(text)]
        assert_never(step)

    def condemn(self, text: str) -> list[Action]:
        """End what every rank waits for, with `Deadlock`."""
        return self._to_everyone(Broken(ALL, "Deadlock", text))

    def _exited(self, message: Exited) -> list[Action]:
        if message.endpoint not in self.book.rank_of or message.endpoint in self._gone:
            return []
        return self._end(message.endpoint, end_of(message.status, joined=message.joined, left=message.left))

    def _end(self, endpoint: int, end: End) -> list[Action]:
        self._gone.add(endpoint)
        self._failed = self._failed or end.failed
        rank, host = self.book.rank_of[endpoint], self.book.host_of(endpoint)
        cause = self._last_words.get(endpoint, end.cause) if end.failed else end.cause
        news = Ended(endpoint, rank, host, cause, end.failed)
        told = [*self._to_everyone(news), RankEnded(rank, host, end)]
        if self._deadlocks is not None:
            told += self._follow(self._deadlocks.ended(endpoint, failed=end.failed))
        return told

    def _lost(self, node: int, reason: str) -> list[Action]:
        lost = [e for e in self.book.members if node_of(e) == node and e not in self._gone]
        return [action for endpoint in lost for action in self._end(endpoint, End(LOST, reason))]

    def _to_everyone(self, message: Message) -> list[Action]:
        packed = pack(message)
        return [TellAll(message), *(Send(node, Everyone(packed)) for node in sorted(self.book.nodes))]

    def _to_place(self, endpoint: int, message: Message) -> list[Action]:
        if endpoint not in self.book.rank_of:
            return []
        if self._is_mine(endpoint):
            return [Tell(endpoint, message)]
        return [Send(node_of(endpoint), ToPlace(endpoint, pack(message)))]


def _last_words(text: str) -> str:
    """How a traceback ends: its exception. What an assert explains stands indented behind that."""
    lines = text.strip().split("\n")
    return next((line for line in reversed(lines) if not line[:1].isspace() and line), lines[-1])


LOST = 125
"""Exit code of a job that lost a host or a node's router: the launcher's own failure, not a rank's."""
