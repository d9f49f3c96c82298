"""What the head of a system decides: which nodes and places there are, what they are called, and what follows when one
of them ends. [pure]

Every request of a place comes here over the router of its node, and every decision leaves as actions for `System`,
which carries them out. Nothing here waits: a request that takes time, such as a node to be booted, is remembered until
the event comes that ends it.

    a place is to be spawned      it gets a number and an endpoint; its node is told to start it; when it says that its
                                  call has begun, who asked gets the answer, or else the error
    it has ended                  whoever knows its endpoint is told at once; its supervisor says what follows
    it is started again           the same place behind another endpoint: those who follow it are told
    a process opens a mailbox     it is a place to those who look for its name, behind the endpoint of that process
    a name is looked for          on one node or on all; who asks follows the place from then on
    a node is lost                so are its places, until a supervised node is there again: then they are started there
    two places of different nodes want each other    one dials the other's door; where neither can, they are relayed
    a guest joins         it is a node of its own, which has no door, with one place, itself
    a guest is gone       so is what it has started, but for what others can find, or know already

A place that is a thread shares process and endpoint with all other threads of its node: they live in a *thread host*, a
place without a call of its own that is started with the first of them.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from rmpi.errors import UsageError, WireError
from rmpi.places.books import (
    MAILBOX,
    MAIN,
    SIGKILL,
    SIGTERM,
    Action,
    Alarm,
    Behind,
    Boot,
    Booted,
    Due,
    Event,
    Heard,
    Log,
    Lost,
    NodeEntry,
    NotBooted,
    PlaceEntry,
    Post,
    Shown,
    Tell,
)
from rmpi.places.crossings import Crossings
from rmpi.places.ends import End, end_of
from rmpi.places.grouping import STOP_GRACE, Groups, LosePlace, StartPlace, Step, StopPlace
from rmpi.places.messages import (
    SERIAL_BITS,
    Carried,
    Carry,
    Connect,
    Crashed,
    Exited,
    FromPlace,
    Halted,
    Message,
    Signal,
    SignalPlace,
    Stop,
    ToPlace,
    Unreachable,
    pack,
    unpack,
)
from rmpi.places.router import node_of
from rmpi.places.supervisor import Call, GiveUp, Nothing, Plain, Restart, Rule, Supervisor, Then
from rmpi.places.system_messages import (
    ANY_NODE,
    LOCAL,
    AddNode,
    Answer,
    Attach,
    CloseMailbox,
    Declined,
    EndNode,
    EndpointGone,
    Enrolled,
    Find,
    Follow,
    Kill,
    NotStarted,
    OpenMailbox,
    PlaceAt,
    PlaceDown,
    PlaceGone,
    PlaceShown,
    Record,
    Running,
    RunThread,
    Spawn,
    Start,
    Started,
    StopThread,
    Survey,
    ThreadEnded,
    Unite,
    Withdraw,
    pack_values,
)

REMEMBERED = 1000
"""Places that have ended, the oldest of which is forgotten for the next."""

LOST = -SIGKILL
"""Exit status of a place whose node was lost: nobody can know."""

ORPHAN_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL for a place whose guest is gone."""


class Directory:
    """The books of one system, and the decisions made by them.

    Args:
        system: The number of the system, which nobody else has.
        key: What connections between its nodes are proved with.
        host: What this machine is called.
        label: What to call the head's node; by default the same.
    """

    def __init__(self, system: int, key: bytes, host: str, label: str = "") -> None:
        self.system = system
        self._places: dict[int, PlaceEntry] = {}
        self._place_numbers = itertools.count(MAIN + 1)
        self._behind: dict[int, set[int]] = {}  # the places behind each endpoint
        self._ended: dict[int, int] = {}  # by endpoint: the place that was there, until all it wrote was shown
        self._stopped: dict[int, float] = {}  # by endpoint: since when its process is
        self._silent: set[int] = set()  # endpoints that have not ended, and will not write anything more
        self._past: deque[int] = deque()  # the places of which nothing is left to be told
        self._labels: dict[int, str] = {}  # by endpoint, as long as it is in one of these
        self._members: set[int] = set()  # endpoints that have nobody's place behind them: programs
        self._nodes: dict[int, NodeEntry] = {}
        self._node_numbers = itertools.count(LOCAL + 1)
        self._nodes[LOCAL] = NodeEntry(LOCAL, label or host, None, 0, None, None, None, "up", host)
        self._crossings = Crossings(key, self._nodes, self._is_there, self._to)
        self._groups = Groups()
        self._now = 0.0

    @property
    def main(self) -> int:
        """The endpoint of the user's program."""
        return LOCAL << SERIAL_BITS | MAIN

    def enrol_main(self, cores: int, memory: int, pid: int) -> Enrolled:
        """What the user's program has to know to be a place of its own system."""
        self.describe_head(cores, memory, pid)
        machine = self._nodes[LOCAL].machine
        self._members.add(self.main)
        return Enrolled(
            self.system, self.main, MAIN, LOCAL, "the main program", machine, 0, 0, False, memory // 4, 0, b""
        )

    def describe_head(self, cores: int, memory: int, pid: int) -> None:
        """What the head's node is like."""
        local = self._nodes[LOCAL]
        local.cores, local.memory, local.pid = cores, memory, pid

    def open_door(self, key: bytes) -> None:
        """The head's node has a door, and guests prove to have this key there."""
        self._nodes[LOCAL].key = key

    def enrol_guest(self, guest: Attach) -> Enrolled:
        """What a process from outside has to know to be a place of this system, on a node of its own."""
        number = next(self._node_numbers)
        label = f"the guest from {guest.host} (pid {guest.pid})"
        node = NodeEntry(number, label, None, 0, None, None, None, "up", guest.host, pid=guest.pid, came_by=guest.door)
        self._nodes[number] = node
        endpoint, place = self._new_endpoint(node), next(self._place_numbers)
        self._members.add(endpoint)
        return Enrolled(self.system, endpoint, place, number, label, guest.host, 0, 0, False, guest.memory // 4, 0, b"")

    @property
    def places_run(self) -> bool:
        """Whether any place runs, apart from programs that have joined."""
        return bool(self._behind.keys() - self._members)

    def end(self) -> None:
        """Nothing is to be started any more."""
        for node in self._nodes.values():
            node.state = "gone" if node.state == "gone" else "ending"
        for entry in self._places.values():
            entry.stopping = True

    def step(self, event: Event, now: float) -> list[Action]:
        """What is to be done about ``event``, at this time.

        Raises:
            WireError: A node or place said what it may not say.
        """
        self._now = now
        match event:
            case Heard(node, message):
                return self._heard(node, message)
            case Booted():
                return self._booted(event)
            case NotBooted(node, text):
                return self._not_booted(self._nodes[node], text)
            case Lost(node, why, expected):
                return self._node_lost(self._nodes[node], why, expected)
            case Shown(endpoint):
                return self._shown(endpoint)
            case Due(key):
                return self._due(*key)

    # -------------------------------------------------------------------------- what comes in

    def _heard(self, node: int, message: Message) -> list[Action]:
        if node not in self._nodes:
            raise WireError(f"there is no node {node}")
        match message:
            case FromPlace(endpoint, packed) if node_of(endpoint) == node:
                return self._place_said(endpoint, unpack(packed))
            case Exited(endpoint, status, joined, left) if node_of(endpoint) == node:
                return self._endpoint_ended(endpoint, status, end_of(status, joined=joined, left=left))
            case Running(endpoint, pid) if node_of(endpoint) == node:
                return self._running(endpoint, pid)
            case Halted(endpoint, stopped) if node_of(endpoint) == node:
                return self._halted(endpoint, stopped)
            case Carry(source, destination) if node_of(source) == node:
                return [Post(node_of(destination), message)] if self._crossings.relays(source, destination) else []
            case Carried(source, destination, count) if node_of(destination) == node:
                return self._crossings.carried(source, destination, count)
        raise WireError(f"node {node} may not say {type(message).__name__}")

    def _place_said(self, endpoint: int, message: Message) -> list[Action]:
        """A place said something."""
        if not self._is_there(endpoint):
            return []
        match message:
            case Connect(peer):
                return self._crossings.connect(endpoint, peer)
            case Unreachable(peer, why):
                return self._crossings.unreachable(endpoint, peer, why)
            case Started(place):
                return [action for entry in self._of(endpoint, place) for action in self._begun(entry)]
            case NotStarted(place, error, text):
                return [
                    action for entry in self._of(endpoint, place) for action in self._not_started(entry, error, text)
                ]
            case ThreadEnded(place, status, text) if place:
                return self._thread_ended(endpoint, place, status, text)
            case Crashed(_, text):
                return self._crashed(endpoint, text)
            case Record():
                return [self._log(endpoint, message)]
            case Follow(place):
                return self._follow(endpoint, place)
            case Find(number, node, name):
                return self._find(endpoint, number, node, name)
            case Spawn():
                return self._spawn(endpoint, message)
            case AddNode():
                return self._add_node(endpoint, message)
            case EndNode(number, node):
                return self._end_node(endpoint, number, node, message)
            case Survey(number, node):
                return self._survey(endpoint, number, node)
            case Kill(number, place, signal):
                return self._kill(endpoint, number, place, signal)
            case Withdraw(number):
                return self._withdraw((endpoint, number))
            case OpenMailbox(number, name):
                return self._open_mailbox(endpoint, number, name)
            case CloseMailbox(place):
                mailboxes = [entry for entry in self._of(endpoint, place) if entry.is_mailbox]
                return [action for entry in mailboxes for action in self._close_mailbox(entry)]
            case Unite(number, strategy, places):
                return self._unite((endpoint, number), strategy, places)
        raise WireError(f"a place may not say {type(message).__name__}")

    def _of(self, endpoint: int, place: int) -> list[PlaceEntry]:
        """The entry that a place speaks of: its own, or that of one of its threads."""
        behind = self._behind.get(endpoint, set())
        numbers = {place} & behind if place else {each for each in behind if not self._places[each].shares}
        return [self._places[each] for each in numbers]

    # ---------------------------------------------------------------------------- what goes out

    def _to(self, endpoint: int, message: Message) -> list[Action]:
        """A message for the process behind an endpoint, if there is one."""
        if not self._is_there(endpoint):
            return []
        return [Post(node_of(endpoint), ToPlace(endpoint, pack(message)))]

    def _answer(self, asked: tuple[int, int] | None, *values: Any) -> list[Action]:
        if asked is None:
            return []
        return self._to(asked[0], Answer(asked[1], pack_values(values)))

    def _decline(self, asked: tuple[int, int] | None, error: str, text: str) -> list[Action]:
        return [] if asked is None else self._to(asked[0], Declined(asked[1], error, text))

    def _tell_followers(self, entry: PlaceEntry, message: Message) -> list[Action]:
        return [action for endpoint in sorted(entry.followers) for action in self._to(endpoint, message)]

    def _log(self, endpoint: int, record: Record) -> Log:
        node = self.node_label(node_of(endpoint))
        if endpoint in self._members:
            return Log("the main program" if endpoint == self.main else node, node, record)
        speaker = self._of(endpoint, record.place)
        return Log(speaker[0].label if speaker else self.place_label(endpoint), node, record)

    # ---------------------------------------------------------------------------------- places

    def _spawn(self, endpoint: int, order: Spawn) -> list[Action]:
        if order.kind not in KINDS or (order.kind == "command" and not order.argv):
            raise WireError(f"a place cannot be a {order.kind!r} of {order.argv!r}")
        asked = (endpoint, order.number)
        node = self._nodes.get(order.node)
        if node is None or node.state in ("gone", "ending") or node.is_guest or not self._may_use(endpoint, node):
            return self._decline(asked, "PeerLost", f"{self.node_label(order.node)} is gone; no place can be started")
        if order.name and (other := self._named(order.node, order.name)) is not None:
            return self._decline(asked, "UsageError", _taken(other, node))
        number = next(self._place_numbers)
        label = f"{order.name or _short(order)} on {node.label}"
        supervisor = Supervisor(Rule.from_plain(order.rule))
        entry = PlaceEntry(number, order.node, order, asked, asked, endpoint, supervisor, label)
        self._places[number] = entry
        entry.followers.add(endpoint)
        return self._launch(entry)

    def _launch(self, entry: PlaceEntry) -> list[Action]:
        """Have a place started, for the first time or again, as soon as its node is there."""
        node = self._nodes[entry.node]
        if node.state != "up":
            return []
        entry.state, entry.begun = "starting", False
        if entry.is_thread:
            return self._launch_thread(entry, node)
        entry.endpoint = self._new_endpoint(node)
        self._behind[entry.endpoint] = {entry.number}
        self._labels[entry.endpoint] = entry.label
        order = entry.order
        enrolled = Enrolled(
            self.system,
            entry.endpoint,
            entry.number,
            entry.node,
            entry.label,
            node.machine,
            entry.owner,
            order.reply,
            self._is_crowded(node),
            node.memory // (4 * max(4, self._count(node))),
            order.level,
            order.parcel,
        )
        kind, target = ("command", order.argv[0]) if order.kind == "command" else ("code", HOSTING)
        argv = order.argv if order.kind == "command" else (entry.label, *order.argv)
        start = Start(entry.endpoint, kind, target, argv, order.environment, order.directory, pack(enrolled))
        return [Post(entry.node, start)]

    def _launch_thread(self, entry: PlaceEntry, node: NodeEntry) -> list[Action]:
        """Threads wait for their host: those that do are started by `_started`."""
        if not node.host:
            node.host = next(self._place_numbers)
            order = Spawn(0, node.number, "", "process", ("threads",), b"", 0, NO_RULE, {}, "", entry.order.level)
            label = f"the threads of {node.label}"
            host = PlaceEntry(node.host, node.number, order, None, None, 0, Supervisor(Rule(Then.NOTHING)), label)
            self._places[node.host] = host
            return self._launch(host)
        host = self._places[node.host]
        if host.state != "up":
            return []
        entry.endpoint = host.endpoint
        self._behind[host.endpoint].add(entry.number)
        order = entry.order
        return self._to(host.endpoint, RunThread(entry.number, entry.label, entry.owner, order.reply, order.parcel))

    def _new_endpoint(self, node: NodeEntry) -> int:
        return node.number << SERIAL_BITS | next(iter(node.serials))

    def _count(self, node: NodeEntry) -> int:
        return sum(not entry.shares for entry in self._at_node(node))

    def _is_crowded(self, node: NodeEntry) -> bool:
        return self._count(node) + (node.number == LOCAL) > node.cores

    def _running(self, endpoint: int, pid: int) -> list[Action]:
        """A process has been made. That is all there is to know of the start of a command."""
        actions: list[Action] = []
        for entry in self._of(endpoint, 0):
            entry.pid = pid
            if entry.begun or entry.order.kind == "command":
                actions += self._started(entry)
        return actions

    def _halted(self, endpoint: int, stopped: bool) -> list[Action]:
        """Nothing follows from that here: whoever asks is told."""
        if stopped and endpoint in self._behind:
            self._stopped.setdefault(endpoint, self._now)
        else:
            self._stopped.pop(endpoint, None)
        return []

    def _begun(self, entry: PlaceEntry) -> list[Action]:
        """The call of a place has begun, as it says itself. Its process may have to be heard of yet."""
        entry.begun = True
        return self._started(entry) if entry.pid or entry.is_thread else []

    def _started(self, entry: PlaceEntry) -> list[Action]:
        """A place runs."""
        if entry.state != "starting":
            return []
        entry.state, entry.cause = "up", ""
        if entry.restarts:  # the first restart is at once in any case
            entry.supervisor.started(self._now)
            self._groups.started(entry.number, self._now)
        asked, entry.asked = entry.asked, None
        actions = self._tell_followers(entry, self._at(entry))
        actions += self._answer(asked, entry.number, entry.label, entry.pid)
        if entry.number == self._nodes[entry.node].host:
            waiting = [each for each in self._places.values() if each.node == entry.node and _waits_for_host(each)]
            actions += [action for each in waiting for action in self._launch(each)]
        if entry.stopping:
            actions += self._stop(entry, entry.signal)
        return actions

    def _at(self, entry: PlaceEntry) -> PlaceAt:
        return PlaceAt(entry.number, entry.endpoint, entry.label, entry.pid, entry.restarts, entry.shares)

    def _not_started(self, entry: PlaceEntry, error: str, text: str) -> list[Action]:
        """The call of a place cannot begin: who asked for it is told why; a restart has failed."""
        entry.cause = f"it could not be started: {_last_line(text)}"
        asked, entry.asked = entry.asked, None
        if asked is not None:
            entry.stopping = True
            actions = self._decline(asked, error, text)
        else:
            actions = [Tell(f"{entry.label} could not be started again:\n{text.rstrip()}")]
        if entry.is_thread:
            actions += self._sharer_over(entry, End(1, entry.cause), 1)
        return actions

    def _crashed(self, endpoint: int, text: str) -> list[Action]:
        actions: list[Action] = []
        for entry in self._of(endpoint, 0):
            entry.cause = _last_line(text)
            actions.append(Tell(f"{entry.label} failed:\n{text.rstrip()}"))
        return actions

    def _endpoint_ended(self, endpoint: int, status: int, end: End) -> list[Action]:
        """A process has ended: whoever knows its endpoint hears it first, and then what becomes of its places."""
        if not self._is_there(endpoint):
            return []
        behind = [self._places[number] for number in sorted(self._behind.pop(endpoint, set()))]
        self._members.discard(endpoint)
        self._stopped.pop(endpoint, None)
        for entry in self._places.values():
            entry.followers.discard(endpoint)
        own = next((entry for entry in behind if not entry.shares), None)
        label = own.label if own else self.node_label(node_of(endpoint))
        cause = own.cause if own and own.cause and end.failed else end.cause
        gone = EndpointGone(endpoint, label, cause, end.failed)
        actions: list[Action] = [
            Post(node.number, gone)
            for node in self._nodes.values()
            if node.state in ("up", "ending") and node.number != node_of(endpoint)
        ]
        if own is not None and endpoint not in self._silent:
            self._ended[endpoint] = own.number
        else:
            self._labels.pop(endpoint, None)
        self._silent.discard(endpoint)
        for entry in behind:
            actions += self._ended_place(entry, End(end.code, cause), status)
        actions += self._withdraw_all(endpoint)
        return [*actions, *self._stop_if_idle(self._nodes[node_of(endpoint)])]

    def _withdraw(self, asked: tuple[int, int]) -> list[Action]:
        """Whoever asked for a place or a node does not wait any more, and would not know what to do with it."""
        actions: list[Action] = []
        for entry in [each for each in self._places.values() if each.requested == asked and each.state != "gone"]:
            entry.asked = None
            actions += self._end_place(entry, SIGKILL)
        for node in [each for each in self._nodes.values() if each.requested == asked and each.state != "gone"]:
            node.asked = None
            actions += self._end_one_node(node, 0.0)
        return actions

    def _withdraw_all(self, endpoint: int) -> list[Action]:
        """A process has ended: what it asked for, and did not get yet, is not wanted any more."""
        books = (self._places.values(), self._nodes.values())
        waiting = [each.asked for book in books for each in book if each.asked and each.asked[0] == endpoint]
        return [action for asked in waiting for action in self._withdraw(asked)]

    def _ended_place(self, entry: PlaceEntry, end: End, status: int) -> list[Action]:
        """A place has ended; its supervisor says what follows."""
        node = self._nodes[entry.node]
        entry.endpoint = entry.pid = 0
        if entry.asked is not None:
            asked, entry.asked = entry.asked, None
            entry.stopping = True
            refused = self._decline(asked, "PeerLost", f"{entry.label} ended before it had begun: {end.cause}")
            return [*refused, *self._gone(entry, end, status)]
        if entry.number == node.host:
            return self._host_ended(entry, node, end, status)
        if entry.stopping:
            others = self._carry_out(self._groups.leave(entry.number, self._now))
            return [*self._gone(entry, end, status), *others]
        if entry.number in self._groups:
            return self._ended_in_group(entry, end, status)
        if node.state == "down":  # it is started again with its node
            return self._down(entry, end, status)
        match entry.supervisor.step(end, self._now):
            case Restart() if node.state == "gone":
                return self._gone(entry, end, status, "on_final_fail")
            case Restart(at):
                return [*self._down(entry, end, status), self._start_at(entry, at)]
            case GiveUp(reason):
                return self._gone(entry, End(end.code or 1, reason), status, "on_final_fail")
            case Call():
                return self._gone(entry, end, status, "instead")
            case Nothing():
                return self._gone(entry, end, status)

    def _start_at(self, entry: PlaceEntry, at: float) -> Alarm:
        entry.due = at
        return Alarm(("place", entry.number), at)

    def _unite(self, asked: tuple[int, int], strategy: str, places: tuple[int, ...]) -> list[Action]:
        """Supervise places together."""
        entries = [self._places[place] for place in dict.fromkeys(places) if place in self._places]
        if len(entries) != len(places) or not all(entry.state == "up" for entry in entries):
            return self._decline(asked, "UsageError", "a group is made of places that run, each once")
        try:
            self._groups.unite(strategy, {entry.number: entry.supervisor.rule for entry in entries})
        except UsageError as error:
            return self._decline(asked, "UsageError", str(error))
        return self._answer(asked)

    def _ended_in_group(self, entry: PlaceEntry, end: End, status: int) -> list[Action]:
        """A place has ended on which others may depend."""
        entry.due = math.inf  # others may have to end first
        final = self._nodes[entry.node].state == "gone"
        steps = self._groups.ended(entry.number, end, self._now, final=final)
        lost = LosePlace in [type(step) for step in steps if step.place == entry.number]
        down = self._down(entry, end, status)
        return [*([] if lost else down), *self._carry_out(steps)]

    def _carry_out(self, steps: Iterable[Step]) -> list[Action]:
        """Stop and start places for the sake of others of their group."""
        actions: list[Action] = []
        for step in steps:
            entry = self._places.get(step.place)
            match step:
                case StopPlace() if entry is not None and entry.endpoint:
                    kill = Alarm(("kill", entry.endpoint), self._now + STOP_GRACE)
                    actions += [*self._stop(entry, SIGTERM), kill]
                case StopPlace() if entry is not None:
                    actions += self._ended_in_group(entry, End(0, "it was about to start"), 0)
                case StartPlace(_, at) if entry is not None:
                    actions.append(self._start_at(entry, at))
                case LosePlace(_, reason) if entry is not None and entry.state == "down":
                    assert isinstance(entry.last, PlaceDown)
                    actions += self._gone(entry, End(1, reason), entry.last.status, "on_final_fail")
        return actions

    def _down(self, entry: PlaceEntry, end: End, status: int) -> list[Action]:
        """A place has ended, and will be started again."""
        entry.state, entry.last = "down", PlaceDown(entry.number, end.cause, status)
        return self._tell_followers(entry, entry.last)

    def _host_ended(self, host: PlaceEntry, node: NodeEntry, end: End, status: int) -> list[Action]:
        """The threads of a node have lost their host; the next one that is started begins another."""
        node.host = 0
        waiting = [each for each in self._places.values() if each.node == node.number and _waits_for_host(each)]
        why = End(end.code or 1, host.cause or end.cause)
        over = [action for each in waiting for action in self._ended_place(each, why, status)]
        return [*self._gone(host, end, status), *over]

    def _gone(self, entry: PlaceEntry, end: End, status: int, then: str = "") -> list[Action]:
        """A place has ended for good."""
        entry.state, entry.order = "gone", _without_burden(entry.order)
        entry.last = PlaceGone(entry.number, end.cause, status, end.failed, then)
        return [*self._tell_followers(entry, entry.last), *self._if_over(entry)]

    def _shown(self, endpoint: int) -> list[Action]:
        if endpoint in self._behind:
            self._silent.add(endpoint)
            return []
        self._labels.pop(endpoint, None)
        entry = self._places.get(self._ended.pop(endpoint, 0))
        return self._if_over(entry) if entry is not None and entry.state == "gone" else []

    def _if_over(self, entry: PlaceEntry) -> list[Action]:
        """A place has ended for good: was all shown that it wrote?"""
        if entry.number in self._ended.values():
            return []
        told = self._tell_followers(entry, PlaceShown(entry.number))
        self._past.append(entry.number)
        if len(self._past) > REMEMBERED:
            del self._places[self._past.popleft()]
        return [Behind(each) for each in told]  # how it failed may have been said a moment ago

    def _thread_ended(self, endpoint: int, place: int, status: int, text: str) -> list[Action]:
        actions: list[Action] = []
        for entry in self._of(endpoint, place):
            if text:
                actions.append(Tell(f"{entry.label} failed:\n{text.rstrip()}"))
            end = End(status, _last_line(text)) if text else end_of(status, joined=True, left=True)
            actions += self._sharer_over(entry, end, status)
        return actions

    def _sharer_over(self, entry: PlaceEntry, end: End, status: int) -> list[Action]:
        self._behind.get(entry.endpoint, set()).discard(entry.number)
        return self._ended_place(entry, end, status)

    def _due(self, what: str, number: int) -> list[Action]:
        if what == "node":
            node = self._nodes[number]
            if node.state != "down" or node.order is None:
                return []
            node.state = "booting"
            return [Boot(number, node.order)]
        if what == "stop":
            node = self._nodes[number]
            return [Post(number, Stop())] if node.state == "ending" else []
        if what == "kill":
            return [Post(node_of(number), SignalPlace(number, SIGKILL))] if number in self._behind else []
        entry = self._places.get(number)
        if what == "orphan":
            return self._end_place(entry, SIGKILL) if entry is not None and entry.state != "gone" else []
        return self._launch_again(entry) if entry is not None and entry.state == "down" else []

    def _launch_again(self, entry: PlaceEntry) -> list[Action]:
        """Restart a place if it is time, and its node is there: else it is restarted then."""
        if entry.due > self._now or self._nodes[entry.node].state != "up":
            return []
        entry.restarts += 1
        return self._launch(entry)

    def _kill(self, endpoint: int, number: int, place: int, signal: int) -> list[Action]:
        if not 0 < signal <= LAST_SIGNAL:
            raise WireError(f"there is no signal {signal}")
        entry = self._places.get(place)
        actions = self._end_place(entry, signal) if entry is not None and entry.state != "gone" else []
        return [*actions, *self._answer((endpoint, number))]

    def _end_place(self, entry: PlaceEntry, signal: int) -> list[Action]:
        """A place is not wanted any more."""
        entry.stopping = True
        entry.signal = SIGKILL if SIGKILL in (signal, entry.signal) else signal
        if entry.endpoint:
            return self._stop(entry, signal)
        if isinstance(entry.last, PlaceDown):
            others = self._carry_out(self._groups.leave(entry.number, self._now))
            return [*self._gone(entry, End(0, "ended while it was down"), entry.last.status), *others]
        return self._ended_place(entry, End(0, "it was ended"), 0)

    def _stop(self, entry: PlaceEntry, signal: int) -> list[Action]:
        if entry.is_thread:
            return self._to(entry.endpoint, StopThread(entry.number))
        if entry.is_mailbox:
            return self._close_mailbox(entry)
        return [Post(entry.node, SignalPlace(entry.endpoint, signal))]

    # ------------------------------------------------------------------------------- mailboxes

    def _open_mailbox(self, endpoint: int, number: int, name: str) -> list[Action]:
        asked = (endpoint, number)
        node = self._nodes[node_of(endpoint)]
        if not name:
            raise WireError("a mailbox without a name cannot be found")
        if (other := self._named(node.number, name)) is not None:
            return self._decline(asked, "UsageError", _taken(other, node))
        order = Spawn(number, node.number, name, MAILBOX, (), b"", 0, NO_RULE, {}, "", 0)
        place, label = next(self._place_numbers), f"{name} on {node.label}"
        nothing = Supervisor(Rule(Then.NOTHING))
        self._places[place] = PlaceEntry(
            place, node.number, order, None, asked, endpoint, nothing, label, endpoint=endpoint, state="up"
        )
        self._behind.setdefault(endpoint, set()).add(place)
        return self._answer(asked, place, label)

    def _close_mailbox(self, entry: PlaceEntry) -> list[Action]:
        return self._sharer_over(entry, End(0, "it was closed"), 0)

    # ----------------------------------------------------------------------- names and numbers

    def _find(self, endpoint: int, number: int, node: int, name: str) -> list[Action]:
        asked = (endpoint, number)
        if node != ANY_NODE and node not in self._nodes:
            return self._decline(asked, "NameNotFound", f"there is no node {node}")
        nodes = [self._nodes[node]] if node != ANY_NODE else list(self._nodes.values())
        usable = {each.number for each in nodes if self._may_use(endpoint, each)}
        found = [each for each in self._named_places() if each.order.name == name and each.node in usable]
        if not found:
            return self._decline(asked, "NameNotFound", self._not_found(name, node, endpoint))
        entry = found[0]
        entry.followers.add(endpoint)
        return [*self._to(endpoint, self._news(entry)), *self._answer(asked, entry.number, entry.label)]

    def _news(self, entry: PlaceEntry) -> Message:
        """Where a place is, for somebody who asks for the first time."""
        if entry.state == "up":
            return self._at(entry)
        return entry.last or PlaceDown(entry.number, "it is about to start", 0)

    def _named_places(self) -> list[PlaceEntry]:
        """Those that can be found. A place that was ended before it began, as one that cannot begin, bears no name."""
        named = [entry for entry in self._places.values() if entry.order.name and entry.state != "gone"]
        return [entry for entry in named if not (entry.stopping and entry.state == "starting")]

    def _named(self, node: int, name: str) -> PlaceEntry | None:
        return next((each for each in self._named_places() if each.node == node and each.order.name == name), None)

    def _not_found(self, name: str, node: int, endpoint: int) -> str:
        """What there is instead, as far as it concerns who asks."""
        known = [each for each in self._named_places() if self._may_use(endpoint, self._nodes[each.node])]
        here = [each for each in known if node in (ANY_NODE, each.node)]
        where = "in this system" if node == ANY_NODE else f"on {self.node_label(node)}"
        text = f"there is no place named {name!r} {where}"
        elsewhere = [each for each in known if each.order.name == name]
        names = sorted({each.order.name for each in here})
        near = get_close_matches(name, names)
        if elsewhere:
            return f"{text}; it is on {self.node_label(elsewhere[0].node)}"
        if near:
            return f"{text}; did you mean {' or '.join(map(repr, near))}?"
        listed = ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")
        return f"{text}; there are {listed}" if names else f"{text}, nor any other"

    def _follow(self, endpoint: int, place: int) -> list[Action]:
        entry = self._places.get(place)
        if place == MAIN and self.main in self._members:
            return self._to(endpoint, PlaceAt(MAIN, self.main, "the main program", self._nodes[LOCAL].pid, 0, False))
        if entry is None:
            gone = PlaceGone(place, "nobody knows that place", 0, True, "")
            return [*self._to(endpoint, gone), *self._to(endpoint, PlaceShown(place))]
        entry.followers.add(endpoint)
        actions = self._to(endpoint, self._news(entry))
        if entry.state == "gone" and entry.number not in self._ended.values():
            actions += self._to(endpoint, PlaceShown(place))
        return actions

    def _is_there(self, endpoint: int) -> bool:
        return endpoint in self._behind or endpoint in self._members

    # ----------------------------------------------------------------------------------- nodes

    def _may_use(self, endpoint: int, node: NodeEntry) -> bool:
        """A solo node is its creator's alone, and that of its own places."""
        return not node.is_solo or endpoint == node.owner or node_of(endpoint) == node.number

    def _add_node(self, endpoint: int, order: AddNode) -> list[Action]:
        asked = (endpoint, order.number)
        if order.name in self._labels_of_nodes():
            return self._decline(asked, "UsageError", f"there is a node {order.name!r} already; names are used once")
        number = next(self._node_numbers)
        label = order.name or self._free_label(order.host or self._nodes[LOCAL].label)
        rule = Rule.from_plain(order.rule)
        supervisor = Supervisor(rule) if rule.then is Then.RESTART else None
        node = NodeEntry(number, label, order, endpoint, asked, asked, supervisor)
        self._nodes[number] = node
        return [Boot(number, order)]

    def _labels_of_nodes(self) -> set[str]:
        return {node.label for node in self._nodes.values() if node.state != "gone"}

    def _free_label(self, wanted: str) -> str:
        labels = self._labels_of_nodes()
        numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        return next(label for number in numbers if (label := wanted + number) not in labels)

    def _booted(self, event: Booted) -> list[Action]:
        node = self._nodes[event.node]
        if node.state != "booting":
            return [Post(node.number, Stop())]
        node.state, node.machine, node.door, node.pid = "up", event.host, event.door, event.pid
        node.cores, node.memory = event.cores, event.memory
        if node.supervisor is not None and node.asked is None:  # its first restart is at once in any case
            node.supervisor.started(self._now)
        asked, node.asked = node.asked, None
        actions = self._answer(asked, node.number, node.label)
        for entry in self._at_node(node):
            if entry.state == "down":
                actions += self._launch_again(entry)
            elif entry.state == "starting":
                actions += self._launch(entry)
        return actions

    def _not_booted(self, node: NodeEntry, text: str) -> list[Action]:
        asked, node.asked = node.asked, None
        if asked is not None or node.state == "ending":
            return [*self._decline(asked, "LaunchError", text), *self._node_gone(node, text)]
        return self._restart_node(node, "could not be started again", text)

    def _end_node(self, endpoint: int, number: int, node: int, order: EndNode) -> list[Action]:
        asked = (endpoint, number)
        if node == LOCAL:
            return self._decline(asked, "UsageError", self._why_not_ended())
        entry = self._nodes.get(node)
        if entry is None or entry.is_guest:
            return self._decline(asked, "UsageError", f"there is no node {node}")
        if entry.state == "gone":
            return self._answer(asked)
        entry.ending.append(asked)
        return self._end_one_node(entry, order.seconds if order.graceful else 0.0)

    def _why_not_ended(self) -> str:
        if self.main in self._members:
            return "the node of the program itself ends with it"
        return f"{self.node_label(LOCAL)} was started by hand, and is ended there: by Ctrl-C, or SIGTERM"

    def _end_one_node(self, node: NodeEntry, seconds: float) -> list[Action]:
        """A node is not wanted any more, nor are its places, which may have some time to end by themselves."""
        before, node.state = node.state, "ending"
        for place in self._at_node(node):
            place.stopping = True
        if before == "down":
            return self._node_gone(node, "it was ended")
        if before == "booting":
            return []
        if not seconds > 0:
            return [Post(node.number, Stop())]
        alarm = Alarm(("stop", node.number), self._now + seconds)
        return [Post(node.number, Signal(SIGTERM)), alarm, *self._stop_if_idle(node)]

    def _stop_if_idle(self, node: NodeEntry) -> list[Action]:
        """A node that is to end need not wait when all its places have."""
        if node.state != "ending" or not node.ending:
            return []
        busy = any(node_of(endpoint) == node.number for endpoint in self._behind)
        return [] if busy else [Post(node.number, Stop())]

    def _node_lost(self, node: NodeEntry, why: str, expected: bool) -> list[Action]:
        """A node is gone, and what ran there with it."""
        if node.is_guest:
            return self._guest_left(node, why)
        expected = expected or node.state == "ending"
        restart = not expected and node.supervisor is not None
        node.state = "down" if restart else "gone"
        node.door, node.pid = ("", 0), 0
        actions: list[Action] = []
        for endpoint in [each for each in self._behind if node_of(each) == node.number]:
            actions += self._crossings.end(endpoint)
            actions += self._endpoint_ended(endpoint, LOST, End(1, why))
        if restart:
            return [*actions, *self._restart_node(node, "was lost", why)]
        if not expected:
            actions.append(Tell(f"node {node.label} was lost: {why}"))
        return [*actions, *self._node_gone(node, why)]

    def _guest_left(self, node: NodeEntry, why: str) -> list[Action]:
        """A guest is gone. Of what it has started, what has a name stays, and what somebody else knows."""
        actions: list[Action] = []
        for endpoint in self._crossings.relayed_at(node.number):
            actions += self._crossings.end(endpoint)
        for endpoint in [each for each in self._members if node_of(each) == node.number]:
            actions += self._endpoint_ended(endpoint, LOST, End(1, why))
        for other in [each for each in self._nodes.values() if each.is_solo]:
            if node_of(other.owner) == node.number and other.state not in ("ending", "gone"):
                actions += self._end_one_node(other, 0.0)
        for entry in [each for each in self._places.values() if node_of(each.owner) == node.number]:
            if self._is_orphan(entry):
                actions += [*self._end_place(entry, SIGTERM), Alarm(("orphan", entry.number), self._now + ORPHAN_GRACE)]
        self._crossings.forget(node.number)
        del self._nodes[node.number]
        return actions

    def _is_orphan(self, entry: PlaceEntry) -> bool:
        """Nobody who is left can reach it."""
        return not entry.order.name and not entry.followers and entry.state != "gone" and not entry.stopping

    def _restart_node(self, node: NodeEntry, what: str, why: str) -> list[Action]:
        """A supervised node is gone, or could not be started again, as these words say."""
        assert node.supervisor is not None
        decision = node.supervisor.step(End(1, why), self._now)
        if isinstance(decision, Restart):
            node.state = "down"
            again = Alarm(("node", node.number), decision.at)
            return [Tell(f"node {node.label} {what}, and is tried again: {why}"), again]
        return [Tell(f"node {node.label} {what}, and is given up: {why}"), *self._node_gone(node, why)]

    def _node_gone(self, node: NodeEntry, why: str) -> list[Action]:
        """A node is gone for good, and with it those of its places that waited for it."""
        node.state = "gone"
        asked, node.asked = node.asked, None
        waiting, node.ending = node.ending, []
        actions = self._decline(asked, "PeerLost", f"{node.label} was ended before it was up")
        for entry in self._at_node(node):
            if entry.state != "gone":  # with another one of its group
                actions += self._ended_place(entry, End(1, why), LOST)
        return [*actions, *(action for each in waiting for action in self._answer(each))]

    def _at_node(self, node: NodeEntry) -> list[PlaceEntry]:
        """The places of a node that are not gone."""
        return [each for each in self._places.values() if each.node == node.number and each.state != "gone"]

    # ---------------------------------------------------------------------------------- status

    def _survey(self, endpoint: int, number: int, node: int) -> list[Action]:
        asked = (endpoint, number)
        if node == ANY_NODE:
            nodes = [each for each in self._nodes.values() if each.state != "gone"]
            return self._answer(asked, [each.row() for each in nodes if not each.is_guest and not each.is_solo])
        entry = self._nodes.get(node)
        if entry is None:
            return self._decline(asked, "UsageError", f"there is no node {node}")
        return self._answer(asked, [entry.row(), *(self._row(each) for each in self._at_node(entry))])

    def _row(self, entry: PlaceEntry) -> dict[str, Any]:
        since = self._stopped.get(entry.endpoint)
        return {**entry.row(), "stopped": None if since is None else self._now - since}

    def node_label(self, node: int) -> str:
        """What a node is called."""
        return self._nodes[node].label if node in self._nodes else f"node {node}"

    def unshown(self, node: int) -> list[int]:
        """Endpoints of a node that have ended, and some of what was written there is still to be shown."""
        return [endpoint for endpoint in self._ended if node_of(endpoint) == node]

    def place_label(self, endpoint: int) -> str:
        """Whose process is behind an endpoint, or was until all it wrote was shown. From any thread."""
        return "the main program" if endpoint in self._members else self._labels.get(endpoint, "a place")


HOSTING = "from rmpi.places.hosting import main; main()"
"""What a place runs that is no command. It is code, and not that module by name, so that its ``__main__`` is empty."""

NO_RULE: Plain = Rule(Then.NOTHING).to_plain()


KINDS = ("process", "thread", "command")

LAST_SIGNAL = 64


def _taken(other: PlaceEntry, node: NodeEntry) -> str:
    what = "mailbox" if other.is_mailbox else "place"
    return f"a {what} named {other.order.name!r} is on {node.label} already ({other.state}); names are used once"


def _waits_for_host(entry: PlaceEntry) -> bool:
    return entry.is_thread and entry.state == "starting" and not entry.endpoint


def _short(order: Spawn) -> str:
    """What a place without a name is called."""
    return order.argv[0] if order.argv else "place"


def _last_line(text: str) -> str:
    lines = text.strip().split("\n")
    return next((line for line in reversed(lines) if line[:1].strip()), lines[-1])


def _without_burden(order: Spawn) -> Spawn:
    """What is remembered of an order that is not carried out any more."""
    return Spawn(order.number, order.node, order.name, order.kind, (), b"", 0, NO_RULE, {}, "", 0)
