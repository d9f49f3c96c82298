"""The router: what a node decides. Events in, actions out. [pure]

No clock, socket, process or thread in here; `node` turns what happens into events and carries actions out.
Every node runs the same router. The one on the *head* also keeps the books of the job: it hears of every end
and tells everybody, settles who called what, and announces to its owner what the user should know.

    a place wants a link to a peer   same node: a socketpair, an end to each, once per pair
                                     other node: the place dials that node's door itself
    it cannot be reached             the peer dials back, or routers relay (`routes` says which, and `relay` how)
    somebody came in by the door     hand the connection to the place it asked for
    a place has ended                to the head, which judges it and tells every place of the job
    a place says what it called      to the head, which compares; a disagreement breaks the communicator
    a place revokes a communicator   to the head, which breaks it for everybody
    a place aborts                   to the head, whose owner ends the job
    a place is blocked               to the head, which asks all once more if all are (`deadlock`)
    a node is lost                   all its places have failed, and what was relayed to and from them ends

Two places that want each other at the same moment get one pair on one node, and on two nodes two
connections, of which each side sends on its own: order within a direction is kept, and nobody has to yield.

Relayed bytes may be overtaken by whatever nodes tell each other, but overtake nothing. So the node that begins a relay
says `NoWay` before anything of it can be under way, and the other place has its link before it can hear that the first
one has ended.
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
    Carried,
    Carry,
    Connect,
    Crashed,
    Dial,
    DialBack,
    Ended,
    Everyone,
    Exited,
    FromPlace,
    Joined,
    Left,
    Message,
    NoLink,
    NoWay,
    Returned,
    Revoke,
    StillBlocked,
    ToPlace,
    Unreachable,
    WhatCalled,
    pack,
    unpack,
)
from rmpi.places.routes import Routes, Way

if TYPE_CHECKING:
    from rmpi.places.deadlock import DeadlockBook, Step

HEAD = 0
"""The number of the head's node."""

HOW_ELSE = (
    "A firewall between the hosts must let one of these ports through; or let their data go through the ssh sessions, "
    "with --route auto"
)

Between = DialBack | NoWay | Carry | Carried
"""What concerns two places of different nodes, and travels by way of the head."""


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


@dataclass(frozen=True, slots=True)
class NodeDone:
    """Another node has no places any more, and is about to end."""

    node: int


Event = PlaceSaid | PlaceExited | NodeSaid | NodeLost | NodeDone | CameIn


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
class Relay:
    """Give a place of this node one end of a socketpair as its link to a peer, and pump the other."""

    endpoint: int
    peer: int


@dataclass(frozen=True, slots=True)
class Pump:
    """Something came for such a pair: bytes for its place, or leave to send more of what it says."""

    message: Carry | Carried


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


@dataclass(frozen=True, slots=True)
class Detour:
    """For the owner of the job: data of two hosts goes another way than would be best. ``slower`` if that matters."""

    text: str
    slower: bool


Announcement = RankEnded | RankCrashed | Disagreement | Aborted | Deadlocked | Undelivered | RankReturned | Detour
Action = Tell | TellAll | Join | HandOver | TurnAway | Send | Relay | Pump | Announcement


# ------------------------------------------------------------------------------------------ router


@dataclass
class Book:
    """What every node knows of the job."""

    node: int
    members: tuple[int, ...]  # endpoints by rank
    hosts: tuple[str, ...]  # host names by rank
    doors: dict[int, tuple[tuple[str, int], ...]]
    key: bytes
    route: str = "auto"
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
        self._ended: set[int] = set()  # places of this node
        self._pairs: set[frozenset[int]] = set()  # that are joined, have come in by the door, or cannot connect
        self._dialling: set[tuple[int, int]] = set()
        self._routes = Routes(book.route, book.doors)
        self._relayed: set[tuple[int, int]] = set()  # on the head: pairs of the whole job
        self._detours: set[tuple[type[Message], tuple[int, int]]] = set()  # on the head: announced
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
                self._ended.add(endpoint)
                return self._to_head(Exited(endpoint, status, joined, left))
            case NodeSaid(node, message):
                return self._node_said(node, message)
            case NodeLost(node, reason):
                return [*self._lost(node, reason), *self._end_relays(node)]
            case NodeDone(node):
                return self._end_relays(node)
            case CameIn(connection, source, destination):
                if source not in self.book.rank_of or not self._is_mine(destination):
                    return [TurnAway(connection)]
                self._pairs.add(frozenset((source, destination)))
                return [HandOver(connection, destination, source)]
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
            case Unreachable(peer, why):
                self._check_member(endpoint, peer)
                self._dialling.discard((endpoint, peer))
                self._routes.bar(self.book.node, node_of(peer), why)
                return self._reach(endpoint, peer)
            case Called() | Ask() | Crashed() | Revoke() | Abort() | Returned() | Blocked() | Awake():
                return self._from_place(endpoint, message)
        raise WireError(f"a place may not say {type(message).__name__}")

    def _check_member(self, endpoint: int, peer: int) -> None:
        if peer not in self.book.rank_of:
            raise WireError(f"endpoint {endpoint:#x} asks for {peer:#x}, which is not of this job")

    def _connect(self, endpoint: int, peer: int) -> list[Action]:
        self._check_member(endpoint, peer)
        if not self._is_mine(peer):
            return self._reach(endpoint, peer)
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
            case DialBack() | NoWay() | Carry() | Carried() if self._may_say(node, message):
                return self.pass_on(message)
        raise WireError(f"node {node} may not say {type(message).__name__}")

    # ------------------------------------------------------------------------------ between nodes

    def _reach(self, own: int, peer: int) -> list[Action]:
        """Bring a link about between a place of this node and one of another."""
        here, there = self.book.node, node_of(peer)
        if frozenset((own, peer)) in self._pairs or own in self._ended:
            return []
        why, back = self._routes.barred(here, there) or "", self._routes.barred(there, here) or ""
        match self._routes.way(here, there):
            case Way.DIAL if (own, peer) in self._dialling:
                return []
            case Way.DIAL:
                self._dialling.add((own, peer))
                return [Tell(own, Dial(peer, self.book.doors[there], self.book.key, self._routes.patience))]
            case Way.DIAL_BACK:
                return self.pass_on(DialBack(own, peer, why))
            case _:
                said = NoWay(own, peer, why, back)  # and maybe answered already, if the peer has ended
                return [*self._no_way(own, peer, said), *self.pass_on(said)]

    def _no_way(self, own: int, peer: int, said: NoWay) -> list[Action]:
        """What becomes of a pair that cannot connect, at the node of one of them."""
        pair = frozenset((own, peer))
        if pair in self._pairs:
            return []
        self._pairs.add(pair)
        if self._routes.relays:
            return [Relay(own, peer)]
        return [Tell(own, NoLink(peer, f"{self._in_words(said)}. {HOW_ELSE}"))]

    def pass_on(self, message: Between) -> list[Action]:
        """Bring what concerns two places of different nodes to the node that it is for, by way of the head."""
        goal = _goal(message)
        if self.book.node != HEAD:
            return self._take(message) if self._is_mine(goal) else [Send(HEAD, message)]
        news = self._note(message)
        if self._is_mine(goal):
            return [*news, *self._take(message)]
        if isinstance(message, NoWay) and goal in self._gone:
            return [*news, *self._end_relay(goal, message.source)]
        return [*news, Send(node_of(goal), message)]

    def _may_say(self, node: int, message: Between) -> bool:
        """A node speaks for its own places, and only the head passes on what others say."""
        origin, goal = _origin(message), _goal(message)
        if origin not in self.book.rank_of or goal not in self.book.rank_of:
            return False
        if self.book.node == HEAD:
            return node_of(origin) == node != node_of(goal)
        return node == HEAD and self._is_mine(goal) and not self._is_mine(origin)

    def _take(self, message: Between) -> list[Action]:
        """What concerns a place of this node and one of another."""
        match message:
            case DialBack(peer, own, why):
                self._routes.bar(node_of(peer), self.book.node, why)
                return self._reach(own, peer)
            case NoWay(peer, own, why, back):
                self._routes.bar(node_of(peer), self.book.node, why)
                self._routes.bar(self.book.node, node_of(peer), back)
                return self._end_relay(own, peer) if own in self._ended else self._no_way(own, peer, message)
            case Carry() | Carried():
                return [Pump(message)]

    def _end_relay(self, ended: int, peer: int) -> list[Action]:
        """In the name of a place that is not there any more: nothing comes from it, and it takes nothing."""
        return [*self.pass_on(Carry(ended, peer, b"")), *self.pass_on(Carried(peer, ended, 0))]

    def _hosts_of(self, message: Between) -> tuple[str, str]:
        return self.book.host_of(message.source), self.book.host_of(message.destination)

    def _in_words(self, said: NoWay) -> str:
        here, there = self._hosts_of(said)
        return f"{here} cannot connect to {there} ({said.why}), nor {there} to {here} ({said.back})"

    # ------------------------------------------------------------------------------ the head

    def _note(self, message: Between) -> list[Action]:
        """Remember which pairs are relayed, and announce it, once for all places of two nodes."""
        nodes = node_of(message.source), node_of(message.destination)
        match message:
            case DialBack(why=why):
                here, there = self._hosts_of(message)
                text, slower = f"{here} cannot connect to {there} ({why}): {there} is asked to connect to {here}", False
            case NoWay(source, destination, why) if self._routes.relays:
                self._relayed.add((min(source, destination), max(source, destination)))
                nodes = min(nodes), max(nodes)
                what = self._in_words(message) if why else " and ".join(sorted(self._hosts_of(message)))
                text, slower = f"{what}: their data goes through the ssh sessions, which is slower", bool(why)
            case _:
                return []
        if (type(message), nodes) in self._detours:
            return []
        self._detours.add((type(message), nodes))
        return [Detour(text, slower)]

    def _end_relays(self, node: int) -> list[Action]:
        """That node passes nothing on any more."""
        ends: list[Action] = []
        for pair in sorted(self._relayed):
            for ended, peer in (pair, pair[::-1]):
                if node_of(ended) == node != node_of(peer):
                    ends += self._end_relay(ended, peer)
                    self._relayed.discard(pair)
        return ends

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


def _goal(message: Between) -> int:
    """The place whose node it is for."""
    return message.source if isinstance(message, Carried) else message.destination


def _origin(message: Between) -> int:
    """The place whose node says it."""
    return message.destination if isinstance(message, Carried) else message.source


def _last_words(text: str) -> str:
    """How a traceback ends: its exception. What an assert explains stands indented behind that."""
    lines = text.strip().split("\n")
    return next((line for line in reversed(lines) if not line[:1].isspace() and line), lines[-1])


LOST = 125
"""Exit code of a job that lost a host or a node's router: the launcher's own failure, not a rank's."""
