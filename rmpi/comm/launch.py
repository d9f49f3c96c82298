"""From hosts and ranks to a running job, on the head.

`Job` boots a node on every other machine, runs the head's own node, tells all of them what is to be done,
and ends the job when its time has come. It is the `Outside` of the head's node and the far end of every
`NodeLink`. What the user sees is the `Watcher`'s business, and so are signals: they call `interrupt`.

    boot          sessions to all other hosts, in parallel; versions compared
    prepare       doors opened, programs checked, spawners started: everywhere, before any rank starts
    go            ranks start
    run           the first failure is noted; the others have `SETTLE` seconds to say what it did to them,
                  then they are asked to end (SIGTERM), and after the grace they are killed
    over          every node has said that nothing of it is left

The exit code is that of the rank that failed first in time.
"""

from __future__ import annotations

import secrets
import signal
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from rmpi.comm.placement import Placement
from rmpi.deadline import Deadline
from rmpi.errors import LaunchError, WireError
from rmpi.places.boot import Booted, Booter, boot_all
from rmpi.places.ends import End
from rmpi.places.hosts import HostSpec, is_local
from rmpi.places.ignition import Ignition
from rmpi.places.loop import Loop, Timer
from rmpi.places.messages import (
    SERIAL_BITS,
    Begin,
    Carried,
    Carry,
    Consumed,
    DialBack,
    DoorIs,
    Exited,
    Fed,
    FromPlace,
    Go,
    Gone,
    Input,
    Message,
    Note,
    NoWay,
    OpenDoor,
    Output,
    Ready,
    Refused,
    Signal,
    Stop,
)
from rmpi.places.node import Node
from rmpi.places.nodelink import NodeLink
from rmpi.places.router import (
    HEAD,
    LOST,
    Aborted,
    Announcement,
    Book,
    Deadlocked,
    Detour,
    Disagreement,
    NodeDone,
    NodeLost,
    NodeSaid,
    RankCrashed,
    RankEnded,
    RankReturned,
    Undelivered,
)
from rmpi.places.spawnerprocess import MakeParent

SETTLE = 0.3
"""Seconds between the first failure and asking the other ranks to end: time for them to raise `RankFailed`
and to run their ``finally`` clauses."""

STOP_LIMIT = 4.0
"""Seconds for another machine's node to kill everything and say so."""

KEY_SIZE = 32

CRASHED = 1
"""Python's exit status after an exception that nobody caught."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What one host has otherwise than the others; None is what the others have.

    Attributes:
        python: The interpreter there.
        environment: Variables for its ranks, besides those of all ranks.
        directory: Where its ranks start.
    """

    python: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    directory: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to run, and where.

    Attributes:
        kind, target, argv: The program; see `rmpi.places.program.run_program`.
        environment: Variables for all ranks.
        passed_on: Further variables for ranks on other hosts, which do not inherit ours.
        pythons: Interpreters to look for on other hosts, in this order.
        python: The interpreter on this machine.
        stdin_rank: The rank that gets standard input; -1 for none.
        settle: Seconds between the first failure and that signal; see `SETTLE`.
        kill_grace: Seconds between the first signal that asks ranks to end, and SIGKILL.
        on_deadlock: ``"abort"``: ranks that wait for each other for ever raise `Deadlock`; ``"report"``: they are left
            alone, and the user is told; ``"off"``: nobody looks.
        route: Which ways data may go between hosts; see `rmpi.places.routes`.
        fork: Whether ranks may be forked from an interpreter that has imported NumPy and rmpi.
        preload: Modules that it imports besides.
        own: What hosts have for themselves, by name.
    """

    placement: Placement
    kind: str
    target: str
    argv: tuple[str, ...]
    directory: str
    environment: dict[str, str] = field(default_factory=dict)
    passed_on: dict[str, str] = field(default_factory=dict)
    pythons: tuple[str, ...] = ()
    python: str = sys.executable
    stdin_rank: int = 0
    start_timeout: float = 60.0
    settle: float = SETTLE
    kill_grace: float = 5.0
    on_deadlock: str = "abort"
    route: str = "auto"
    fork: bool = True
    preload: tuple[str, ...] = ()
    own: dict[str, Surroundings] = field(default_factory=dict)


class Watcher(Protocol):
    """Whoever shows the user what happens."""

    def output(self, rank: int, host: str, stream: int, data: bytes, shown: Callable[[], None]) -> None:
        """A rank wrote something (empty: the end of the stream). Call ``shown`` when it is out."""

    def input_taken(self) -> None:
        """The input given to `Job.feed` was taken: more may come."""

    def warn(self, text: str) -> None:
        """A line for the user."""

    def note(self, text: str) -> None:
        """A line for the user who wants to know what is being done."""

    def progress(self, text: str) -> None:
        """What the job is waiting for while it starts."""

    def overdue(self, ranks: Collection[int]) -> None:
        """These ranks were asked to end, did not within the grace, and are killed."""


@dataclass(frozen=True, slots=True)
class RankFailure:
    """How a rank failed: `RankEnded`, and the traceback if it sent one."""

    rank: int
    host: str
    code: int
    cause: str
    traceback: str | None
    consequence: bool  # it was the end of another rank that ended it
    stopped: bool  # it ended after the job had asked it to


@dataclass(slots=True)
class Outcome:
    """How a job ended. The first of ``failures`` is the cause, the others follow in the order of time."""

    code: int = 0
    reason: str = ""  # in words, if it was ended for another reason than a failure
    failures: list[RankFailure] = field(default_factory=list)


class Job:
    """One job. `run` blocks until it is over; everything else is called from its loop or before.

    Args:
        booter: Opens sessions to other hosts; made only if there are any.
        ignition: This machine's spawner, if it was started already, for just this plan.
        returned: Called with a rank, a piece of what its function returned, and whether that is the last one.
        parent, guest: As for `Node`.
    """

    def __init__(
        self,
        plan: Plan,
        watcher: Watcher,
        booter: Callable[[], Booter],
        own_names: Sequence[str] = (),
        ignition: Ignition | None = None,
        *,
        returned: Callable[[int, bytes, bool], None] = lambda _rank, _data, _last: None,
        parent: MakeParent | None = None,
        guest: bool = False,
    ) -> None:
        self._plan = plan
        self._watcher = watcher
        self._make_booter = booter
        self._own_names = own_names
        self._loop = Loop()
        self._node = Node(self._loop, self, self._spared, ignition, parent, guest)
        self._returned = returned
        self._key = secrets.token_bytes(KEY_SIZE)
        self._context = secrets.randbits(62) << 1  # the lowest bit tells messages from collectives
        self._links: dict[int, NodeLink] = {}
        self._booted: dict[int, Booted] = {}
        self._waiting: set[int] = set()  # nodes whose answer is awaited while preparing
        self._refused: dict[int, LaunchError] = {}
        self._ports: dict[int, int] = {}
        self._remaining: set[int] = set()  # nodes that are not over
        self._crashes: dict[int, RankCrashed] = {}
        self._host_of_node: dict[int, str] = {}
        self._members: tuple[int, ...] = ()
        self._alive: set[int] = set()  # ranks that run
        self._notes: set[str] = set()
        self._warned_of_detour = False
        self._opening_doors = False
        self._ending = False
        self._abandoned = False
        self._grace: Timer | None = None
        self._running = False
        self.outcome = Outcome()

    @property
    def loop(self) -> Loop:
        """To post work into, from signal handlers and other threads."""
        return self._loop

    # ---------------------------------------------------------------------------------- the course

    @property
    def running(self) -> bool:
        """Whether the ranks have been started."""
        return self._running

    @property
    def alive(self) -> frozenset[int]:
        """The ranks that have started, and have not ended."""
        return frozenset(self._alive)

    def run(self, started: Callable[[], None] = lambda: None) -> Outcome:
        """Start the job, and wait for its end; ``started`` is called when the ranks are.

        Raises:
            LaunchError: It could not be started; nothing of it is left.
        """
        deadline = Deadline.after(self._plan.start_timeout)
        try:
            self._boot(deadline)
            self._prepare(deadline)
            self._check_wanted()
            self._go()
            started()
            while self._remaining:
                self._loop.run_once()
        finally:
            self._close()
        return self.outcome

    def _boot(self, deadline: Deadline) -> None:
        self._number_places()
        away = {
            node: host
            for node, host in zip(self._node_of_host(), self._plan.placement.hosts, strict=True)
            if node != HEAD
        }
        if not away:
            return
        booted = boot_all(
            self._make_booter(),
            [_with_python(host, self._plan.own) for host in away.values()],
            pythons=self._plan.pythons,
            deadline=deadline,
            on_progress=self._progress,
            on_stderr=lambda host, line: self._watcher.warn(f"{host.name}: {line}"),
        )
        for node, session in zip(away, booted, strict=True):
            self._booted[node] = session
            for warning in session.warnings:
                self._watcher.warn(warning)
            self._links[node] = NodeLink(
                self._loop, session.control, partial(self._heard, node), partial(self._lost, node)
            )

    def abandon(self) -> None:
        """Give the job up, unless its ranks have been started: `run` raises. May be called from any thread."""
        self._abandoned = True
        self._loop.post(lambda: None)

    def _check_wanted(self) -> None:
        if self._abandoned:
            raise LaunchError("the job was ended before its ranks had started")

    def _progress(self, text: str) -> None:
        self._check_wanted()
        self._watcher.progress(text)

    def _node_of_host(self) -> list[int]:
        """Node numbers by host; this machine, by whatever name, is the head's node."""
        hosts = self._plan.placement.hosts
        return [HEAD if is_local(host, self._own_names) else i + 1 for i, host in enumerate(hosts)]

    def _number_places(self) -> None:
        """Give every rank an endpoint number, and every node a name."""
        placement, node_of_host = self._plan.placement, self._node_of_host()
        for node, host in zip(node_of_host, placement.hosts, strict=True):
            self._host_of_node.setdefault(node, host.name)
        serials = dict.fromkeys(node_of_host, 0)
        members = []
        for host_index in placement.host_of:
            node = node_of_host[host_index]
            serials[node] += 1
            members.append(node << SERIAL_BITS | serials[node])
        self._members = tuple(members)

    def _prepare(self, deadline: Deadline) -> None:
        """Have everybody check and get ready; nothing has started when this raises."""
        doors = self._open_doors(deadline)
        if HEAD not in self._host_of_node:
            self._node.attend(Book(HEAD, self._members, self._hosts(), doors, self._key, self._plan.route))
        for node in self._host_of_node:
            self._ask(node, self._begin_for(node, doors))
        self._await_answers(deadline)
        self._node.router.seeks_deadlocks = self._plan.on_deadlock != "off"

    def _hosts(self) -> tuple[str, ...]:
        """Names of hosts, by rank."""
        return tuple(self._host_of_node[member >> SERIAL_BITS] for member in self._members)

    def _open_doors(self, deadline: Deadline) -> dict[int, tuple[tuple[str, int], ...]]:
        """One door per node, if there are several nodes and anybody may come in; else nobody listens anywhere."""
        if len(self._host_of_node) < 2 or self._plan.route == "relay":
            return {}
        addresses = {node: booted.address for node, booted in self._booted.items()}
        self._opening_doors = True
        for node, address in addresses.items():
            self._ask(node, OpenDoor(address, self._key))
        if HEAD in self._host_of_node:
            self._open_own_door(addresses)
        self._await_answers(deadline)
        self._opening_doors = False
        return {node: ((addresses[node], port),) for node, port in self._ports.items()}

    def _open_own_door(self, addresses: dict[int, str]) -> None:
        try:
            addresses[HEAD] = _address_towards(next(iter(addresses.values())))
            self._ports[HEAD] = self._node.open_door(addresses[HEAD], self._key)
        except LaunchError as error:
            self._refuse(HEAD, str(error), error.status)

    def _begin_for(self, node: int, doors: dict[int, tuple[tuple[str, int], ...]]) -> Begin:
        plan = self._plan
        here = node == HEAD
        own = plan.own.get(self._host_of_node[node], _NOTHING_OWN)
        passed_on = {} if here else plan.passed_on
        return Begin(
            node=node,
            key=self._key,
            context=self._context,
            members=self._members,
            hosts=self._hosts(),
            places=tuple((member, rank) for rank, member in enumerate(self._members) if member >> SERIAL_BITS == node),
            doors=doors,
            route=plan.route,
            kind=plan.kind,
            target=plan.target,
            argv=plan.argv,
            python=(own.python or plan.python) if here else self._booted[node].facts.executable,
            environment={**passed_on, **plan.environment, **own.environment},
            inherit=True,
            directory=own.directory or plan.directory,
            stdin_rank=plan.stdin_rank,
            fork=plan.fork,
            preload=plan.preload,
        )

    def _ask(self, node: int, message: OpenDoor | Begin) -> None:
        """Send a node what it answers with `DoorIs`, `Ready` or `Refused`."""
        self._waiting.add(node)
        if node != HEAD:
            self._links[node].send(message)
            return
        assert isinstance(message, Begin)
        try:
            self._node.begin(message)
        except LaunchError as error:
            self._answered(HEAD, error)

    def _await_answers(self, deadline: Deadline) -> None:
        timer = self._loop.call_later(deadline.left(), self._too_late)
        while self._waiting:
            self._loop.run_once()
            self._check_wanted()
        timer.cancel()
        if self._refused:
            raise self._refusal()

    def _too_late(self) -> None:
        for node in list(self._waiting):
            self._answered(node, LaunchError(f"was not ready after {self._plan.start_timeout:g} s"))

    def _answered(self, node: int, refusal: LaunchError | None = None) -> None:
        self._waiting.discard(node)
        if refusal is not None:
            self._refused.setdefault(node, refusal)  # what follows is its consequence

    def _refusal(self) -> LaunchError:
        """All refusals as one error; a single one keeps its status."""
        rows = [f"{self._host_of_node[node]}: {error}" for node, error in sorted(self._refused.items())]
        statuses = {error.status for error in self._refused.values()}
        return LaunchError("\n".join(rows), status=statuses.pop() if len(statuses) == 1 else LOST)

    def _go(self) -> None:
        self._running = True
        self._remaining = set(self._host_of_node)
        self._alive = set(range(len(self._members)))
        for node, link in self._links.items():
            if node in self._host_of_node:
                link.send(Go())
        if HEAD in self._host_of_node:
            self._node.go()

    def _close(self) -> None:
        """Nothing may be left, however this ends."""
        self._node.stop()
        while HEAD in self._host_of_node and self._node.busy:
            self._loop.run_once()
        for link in self._links.values():
            link.close()
        for booted in self._booted.values():
            booted.close()
        self._node.close()
        self._loop.close()

    def disown(self) -> None:
        """In a fork of this process: close the life lines of what runs for this job, which are not the fork's."""
        self._node.disown()
        for booted in self._booted.values():
            booted.session.disown()

    # ------------------------------------------------------------------------------- being told

    def _heard(self, node: int, message: Message) -> None:
        """A node of another machine said something."""
        match message:
            case DoorIs(_, port):
                self._ports[node] = port
                self._answered(node)
            case Ready():
                self._answered(node)
            case Refused(text, status):
                self._refuse(node, text, status)
            case Note(text):
                self.note(text)
            case Output(endpoint, stream, data):
                self._show(node, endpoint, stream, data)
            case Fed():
                self._watcher.input_taken()
            case Gone():
                if not self._running:
                    self._answered(node, LaunchError("was ended while the job was starting"))
                self._links[node].close()
                self._remaining.discard(node)
                if self._running:
                    self._decide(node, NodeDone(node))
            case Exited() | FromPlace() | DialBack() | NoWay() | Carry() | Carried():
                self._decide(node, NodeSaid(node, message))
            case _:
                raise WireError(f"node {node} may not say {type(message).__name__}")

    def _decide(self, node: int, event: NodeSaid | NodeLost | NodeDone) -> None:
        """The head's router decides for the whole job, also where the head has no ranks itself."""
        try:
            self._node.act(self._node.router.step(event))
        except WireError as error:
            self._links[node].close()
            self._lost(node, str(error))

    def _refuse(self, node: int, text: str, status: int) -> None:
        if self._running:
            self._lost(node, text)
        elif self._opening_doors and self._plan.route == "auto":
            self.note(f"{self._host_of_node[node]} has no door: {text}")
            self._answered(node)
        else:
            self._answered(node, LaunchError(text, status=status))

    def _lost(self, node: int, why: str) -> None:
        """A node is gone, and its ranks with it."""
        if not self._running:
            self._answered(node, LaunchError(f"the node was lost: {why}"))
            return
        self._links[node].close()
        if node in self._remaining:
            self._remaining.discard(node)
            self._decide(node, NodeLost(node, f"the node on {self._host_of_node[node]} was lost: {why}"))

    def send(self, node: int, message: Message) -> None:
        if node in self._links:
            self._links[node].send(message)

    def announce(self, announcement: Announcement) -> None:
        match announcement:
            case RankCrashed(rank, host) if not self._ending:
                self._crashes[rank] = announcement
                self._loop.call_later(self._plan.kill_grace, partial(self._lingers, rank, host))
            case RankEnded(rank, _, end):
                self._alive.discard(rank)
                if end.failed:
                    self._failed(announcement)
            case RankReturned(rank, data, last):
                self._returned(rank, data, last)
            case Disagreement(text):
                self.end(CRASHED, f"CollectiveMismatch: {text}")
                self._loop.call_later(self._plan.settle, self.terminate)
            case Aborted(rank, host, code, text):
                self.end(code, f"rank {rank} on {host} {text}")
                self._loop.call_later(self._plan.settle, self.terminate)
            case Deadlocked(text) if self._plan.on_deadlock == "abort":
                self._node.act(self._node.router.condemn(text))
            case Deadlocked(text):
                self._watcher.warn(f"Deadlock: {text}")
            case Undelivered(text):
                self._watcher.warn(text)
            case Detour(text, slower) if slower and not self._warned_of_detour:
                self._warned_of_detour = True
                self._watcher.warn(text)
            case Detour(text):
                self._watcher.note(text)

    def output(self, endpoint: int, stream: int, data: bytes) -> None:
        self._show(HEAD, endpoint, stream, data)

    def _show(self, node: int, endpoint: int, stream: int, data: bytes) -> None:
        rank = self._members.index(endpoint)
        shown = partial(self._loop.post, partial(self._shown, node, len(data)))
        self._watcher.output(rank, self._host_of_node[node], stream, data, shown)

    def _shown(self, node: int, count: int) -> None:
        if node == HEAD:
            self._node.consumed(count)
        elif node in self._links:
            self._links[node].send(Consumed(count))

    def fed(self, endpoint: int) -> None:
        self._watcher.input_taken()

    def ready(self) -> None:
        self._answered(HEAD)

    def gone(self) -> None:
        self._remaining.discard(HEAD)

    def failed(self, reason: str) -> None:
        """The head's own spawner is gone."""
        if self._running:
            why = f"the node on {self._host_of_node[HEAD]} was lost: {reason}"
            self._node.act(self._node.router.step(NodeLost(HEAD, why)))
        else:
            self._answered(HEAD, LaunchError(reason))

    def warn(self, text: str) -> None:
        self._watcher.warn(text)

    def note(self, text: str) -> None:
        """What several nodes say alike is said once."""
        if text not in self._notes:
            self._notes.add(text)
            self._watcher.note(text)

    # ----------------------------------------------------------------------------------- ending

    def _failed(self, ended: RankEnded) -> None:
        if any(failure.rank == ended.rank for failure in self.outcome.failures):
            return
        crash = self._crashes.get(ended.rank)
        code = CRASHED if crash and self._ending else ended.end.code  # we may have killed what had crashed
        self._note(
            RankFailure(
                ended.rank,
                ended.host,
                code,
                ended.end.cause,
                crash.text if crash else None,
                crash.consequence if crash else False,
                self._ending and crash is None,
            )
        )

    def _note(self, failure: RankFailure) -> None:
        """Put the cause first. A rank that leaves takes a moment to end, and then `PeerExited` comes before it."""
        failures = self.outcome.failures
        first = not failures
        if first or (failures[0].consequence and not (failure.consequence or failure.stopped)):
            failures.insert(0, failure)
            if not self.outcome.reason:
                self.outcome.code = failure.code
        else:
            failures.append(failure)
        if first and not self.outcome.reason:
            self._loop.call_later(self._plan.settle, self.terminate)

    def _lingers(self, rank: int, host: str) -> None:
        """A rank crashed a while ago and does not end: a thread of it waits for others, who wait for it."""
        if rank in self._alive and not self._ending:
            self._failed(RankEnded(rank, host, End(CRASHED, "it crashed, but did not end")))

    def ask(self, number: int) -> None:
        """Ask every rank to end, by a signal. What is left after the grace is killed."""
        self.signal(number)
        if self._grace is None:
            self._grace = self._loop.call_later(self._plan.kill_grace, self._grace_is_over)

    def terminate(self, number: int = signal.SIGTERM) -> None:
        """The same; and ranks that fail from now on do so because they were asked."""
        if not self._ending:
            self._ending = True
            self.ask(number)

    def _grace_is_over(self) -> None:
        if self._alive:
            self._watcher.overdue(self._alive)
        self.kill()

    def kill(self) -> None:
        """End every rank and everything it started, at once."""
        self._ending = True
        for link in self._links.values():
            link.send(Stop())
        self._node.stop()
        self._loop.call_later(STOP_LIMIT, self._give_up_nodes)

    def _give_up_nodes(self) -> None:
        for node in [node for node in self._remaining if node != HEAD]:
            self._lost(node, f"it did not stop within {STOP_LIMIT:g} s")

    def _spared(self) -> frozenset[int]:
        """Processes of ssh sessions: not ours to kill when the head's spawner is lost."""
        pids = (getattr(booted.session, "pid", None) for booted in self._booted.values())
        return frozenset(pid for pid in pids if pid is not None)

    def signal(self, number: int) -> None:
        """Send a signal to every rank."""
        for link in self._links.values():
            link.send(Signal(number))
        self._node.signal(number)

    def end(self, code: int, reason: str) -> None:
        """The job shall end for a reason of the launcher's: its exit code and why, in words. The first one counts."""
        if not self.outcome.reason and not self.outcome.failures:
            self.outcome.code, self.outcome.reason = code, reason

    def feed(self, data: bytes) -> None:
        """Standard input for the rank that gets it; empty at its end."""
        endpoint = self._members[self._plan.stdin_rank]
        node = endpoint >> SERIAL_BITS
        if node == HEAD:
            self._node.feed(endpoint, data)
        elif node in self._links:
            self._links[node].send(Input(endpoint, data))


_NOTHING_OWN = Surroundings()


def _with_python(host: HostSpec, own: Mapping[str, Surroundings]) -> HostSpec:
    """The host with the interpreter that it has for itself."""
    python = own.get(host.name, _NOTHING_OWN).python
    return replace(host, python=python) if python is not None else host


def _address_towards(address: str) -> str:
    """The address of this machine that packets to ``address`` leave from. Nothing is sent (connect(2))."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError as error:
            raise LaunchError(f"no route to {address}: {error.strerror}") from None
        return str(probe.getsockname()[0])
