"""A node: the router process of one machine, and the loop that does what the router decides.

It starts a spawner, gives every place its control socket and pipes, reads their output, passes signals and
input on, opens a door for places of other nodes, and hands every event to the `Router`. It never blocks. What
concerns the rest of the job goes to the `Outside`: on the head the job itself, elsewhere the stream to the
head.

Life lines, each ended by end of file:

    head ── ssh session ──▶ node ── control socket ──▶ spawner ── PDEATHSIG ──▶ places

If the spawner dies, the node kills all that is below it and is lost to the job; if the node dies, the
spawner does the same. What a booter starts on another machine is in `rmpi.places.remote`.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import signal
import socket
import termios
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

from rmpi.errors import LaunchError, WireError
from rmpi.places.control import Control, control_pair
from rmpi.places.door import Door
from rmpi.places.ignition import Ignition, thread_limits
from rmpi.places.loop import Loop, Timer
from rmpi.places.messages import (
    Begin,
    Carried,
    Carry,
    Fork,
    Forked,
    LinkTo,
    Message,
    NoLink,
    Note,
    Reaped,
    Signal,
    Up,
    Welcome,
)
from rmpi.places.processes import become_subreaper, kill_descendants, kill_groups
from rmpi.places.relay import Relays
from rmpi.places.router import (
    Aborted,
    Action,
    Announcement,
    Book,
    CameIn,
    Deadlocked,
    Detour,
    Disagreement,
    HandOver,
    Join,
    NodeSaid,
    PlaceExited,
    PlaceSaid,
    Pump,
    RankCrashed,
    RankEnded,
    RankReturned,
    Relay,
    Router,
    Send,
    Tell,
    TellAll,
    TurnAway,
    Undelivered,
)
from rmpi.places.sparing import Sparing
from rmpi.places.spawnerprocess import READ_SIZE, MakeParent, Parent, SpawnerProcess

OUTPUT_BUDGET = 1 << 20
"""Bytes of output under way to whoever shows it; beyond, pipes are not read and ranks wait in write."""

DRAIN = 0.2
"""Seconds after a place's end to read its pipes; a process it left behind may hold them open for ever."""


class Outside(Protocol):
    """The rest of the job, as a node sees it."""

    def send(self, node: int, message: Message) -> None:
        """Send a message to another node."""

    def announce(self, announcement: Announcement) -> None:
        """Something the owner of the job should know. Only on the head."""

    def output(self, endpoint: int, stream: int, data: bytes) -> None:
        """What a place wrote; empty at the end of the stream. Answered by `Node.consumed`."""

    def fed(self, endpoint: int) -> None:
        """Input was taken by its place: more may come."""

    def ready(self) -> None:
        """The spawner is up: `Node.go` may be called."""

    def gone(self) -> None:
        """All places have ended, and nothing of them is left."""

    def failed(self, reason: str) -> None:
        """This node cannot go on; what it had started has been killed."""

    def warn(self, text: str) -> None:
        """Something worth a line in a log."""

    def note(self, text: str) -> None:
        """Something for whoever wants to know what is being done."""


class NodePlace:
    """What the node holds of one place."""

    def __init__(self, endpoint: int, rank: int, control: Control) -> None:
        self.endpoint = endpoint
        self.rank = rank
        self.control = control
        self.pipes: dict[int, int] = {}  # stream by descriptor
        self.stdin: int | None = None
        self.input: deque[bytes] = deque()
        self.status: int | None = None
        self.ended = False  # and all it wrote was read
        self.timer: Timer | None = None


class Node:
    """One machine's part of a job."""

    def __init__(
        self,
        loop: Loop,
        outside: Outside,
        spared: Callable[[], frozenset[int]] = frozenset,
        ignition: Ignition | None = None,
        parent: MakeParent | None = None,
        guest: bool = False,
    ) -> None:
        """A node that has nothing to do yet.

        Args:
            spared: Children of this process that are not ours to kill when the spawner is lost.
            ignition: The spawner, if it was started already.
            parent: Makes what forks places instead of a spawner.
            guest: This process has a life and children besides the job: it does not adopt orphans, and if the spawner
                is lost, only what is in the process groups of places is killed.
        """
        self._make_parent = parent or self._make_spawner
        self._guest = guest
        self._pids: dict[int, int] = {}  # of places that run, by endpoint
        self._loop = loop
        self._outside = outside
        self._spared = spared
        self._ignition = ignition
        self._router: Router | None = None
        self._begin: Begin | None = None
        self._door: Door | None = None
        self._spawner: Parent | None = None
        self._places: dict[int, NodePlace] = {}
        self._connections: dict[int, socket.socket] = {}  # that came in by the door
        self._early: list[tuple[socket.socket, int, int]] = []  # came in for a place that is about to start
        self._relays = Relays(loop, self._pumped, self._relayed_all)
        self._budget = OUTPUT_BUDGET
        self._paused = False
        self._stopping = False
        self._over = False

    # ------------------------------------------------------------------------------- beginning

    def open_door(self, address: str, key: bytes, port: int = 0) -> int:
        """Listen at ``address``, at that port or at any; the port.

        Raises:
            LaunchError: This machine has no such address, or the port is taken.
        """
        try:
            turned_away = Sparing(self._loop, self._outside.warn, "connections that were turned away")
            self._door = Door(self._loop, address, key, self._came_in, turned_away, port)
        except OSError as error:
            where = f"{address} port {port}" if port else address
            raise LaunchError(f"cannot listen at {where}: {_reason(error)}") from None
        return self._door.port

    def close_door(self) -> None:
        """Let nobody in any more. Who is in stays."""
        if self._door is not None:
            self._door.close()
            self._door = None

    def begin(self, begin: Begin) -> None:
        """Prepare: check what can be checked, and start the spawner. `Outside.ready` follows.

        Raises:
            LaunchError: It cannot be done here; nothing was started.
        """
        check_program(begin)
        if not self._guest:
            become_subreaper()  # for daemons of places whose spawner was killed
        self._begin = begin
        self._router = Router(Book(begin.node, begin.members, begin.hosts, begin.doors, begin.key, begin.route))
        self._spawner = self._make_parent(self._loop, begin, self._spawner_said, self._spawner_ended)

    def _make_spawner(
        self, loop: Loop, begin: Begin, said: Callable[[Message], None], ended: Callable[[bool], None]
    ) -> Parent:
        environment = {**(os.environ if begin.inherit else {}), **begin.environment}
        for name, count in thread_limits(environment, len(begin.places)).items():
            self._outside.note(f"{name}={count}: {len(begin.places)} ranks share {len(os.sched_getaffinity(0))} cores")
        ignition = self._ignition or Ignition(
            begin.python,
            environment,
            begin.directory,
            len(begin.places),
            kind=begin.kind,
            target=begin.target,
            fork=begin.fork,
            preload=begin.preload,
        )
        return SpawnerProcess(loop, ignition, said, ended)

    def attend(self, book: Book) -> None:
        """Route for a job of which no place runs here."""
        self._router = Router(book)

    @property
    def busy(self) -> bool:
        """Whether there is a spawner, and hence maybe places."""
        return self._spawner is not None

    def go(self) -> None:
        """Start the places."""
        assert self._begin is not None
        crowded = len(self._begin.places) > len(os.sched_getaffinity(0))
        limit = memory_of_machine() // (4 * max(1, len(self._begin.places)))
        for endpoint, rank in self._begin.places:
            self._start(self._begin, endpoint, rank, crowded, limit)
        for sock, endpoint, peer in self._early:
            self._connections[sock.fileno()] = sock
            self._hand_over(sock.fileno(), endpoint, peer)
        self._early.clear()
        if not self._begin.places:
            self._finish()

    def _start(self, begin: Begin, endpoint: int, rank: int, crowded: bool, limit: int) -> None:
        environment = {"RMPI_RANK": str(rank), "RMPI_SIZE": str(len(begin.members))}
        fork = Fork(endpoint, rank, begin.kind, begin.target, begin.argv, environment, begin.directory)
        welcome = Welcome(rank, begin.members, begin.hosts, begin.context, crowded, limit)
        self._launch(fork, welcome, reads=rank == begin.stdin_rank)

    def _launch(self, fork: Fork, first: Message | None, *, reads: bool = False) -> NodePlace:
        """Have a place forked, with pipes that are read here.

        Args:
            first: What it finds in its control socket from the beginning; it does not wait for that for long.
            reads: Whether its standard input is what `feed` is given; else it is empty.
        """
        ours, theirs = control_pair()
        place = self._places[fork.endpoint] = NodePlace(fork.endpoint, fork.rank, Control(ours))
        self._loop.register(place.control.fileno(), partial(self._place_ready, place))
        if first is not None:
            self._tell(place, first)
        inherited = [self._open_stdin(place, reads), *self._open_pipes(place), theirs.fileno()]
        assert self._spawner is not None
        self._spawner.send(fork, inherited)
        theirs.close()
        for fd in inherited[:3]:
            os.close(fd)
        return place

    def _open_stdin(self, place: NodePlace, reads: bool) -> int:
        if not reads:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(ours, False)
        place.stdin = ours
        return theirs

    def _open_pipes(self, place: NodePlace) -> Iterable[int]:
        for stream in (1, 2):
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(ours, False)
            place.pipes[ours] = stream
            if not self._paused:
                self._loop.register(ours, partial(self._read, place, ours))
            yield theirs

    # --------------------------------------------------------------------------------- actions

    def step(self, event: PlaceSaid | PlaceExited | NodeSaid | CameIn) -> None:
        """Let the router decide, and do it."""
        if self._router is not None:
            self.act(self._router.step(event))

    @property
    def router(self) -> Router:
        assert self._router is not None
        return self._router

    def act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case Tell(endpoint, message):
                if endpoint in self._places:
                    self._tell(self._places[endpoint], message)
            case TellAll(message):
                for place in self._places.values():
                    self._tell(place, message)
            case Join(first, second):
                self._join(first, second)
            case HandOver(connection, endpoint, peer):
                self._hand_over(connection, endpoint, peer)
            case TurnAway(connection):
                self._connections.pop(connection).close()
            case Send(node, message):
                self._outside.send(node, message)
            case Relay(endpoint, peer):
                with self._relays.open(endpoint, peer) as sock:
                    self._link(endpoint, peer, sock, relayed=True)
            case Pump(message):
                self._relays.heard(message)
            case (
                RankEnded()
                | RankCrashed()
                | Disagreement()
                | Aborted()
                | Deadlocked()
                | Undelivered()
                | RankReturned()
                | Detour()
            ):
                self._outside.announce(action)

    def _tell(self, place: NodePlace, message: Message, fds: Iterable[int] = ()) -> None:
        if not place.control.send(message, tuple(fds)):
            self._loop.modify(place.control.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _join(self, first: int, second: int) -> None:
        try:
            one, two = socket.socketpair()
        except OSError as error:
            for endpoint, peer in ((first, second), (second, first)):
                self._no_link(endpoint, peer, error)
            return
        for place, peer, sock in ((first, second, one), (second, first, two)):
            self._link(place, peer, sock)
            sock.close()

    def _link(self, endpoint: int, peer: int, sock: socket.socket, *, relayed: bool = False) -> None:
        if endpoint in self._places:
            try:
                self._tell(self._places[endpoint], LinkTo(peer, relayed), (sock.fileno(),))
            except OSError as error:
                self._no_link(endpoint, peer, error)

    def _no_link(self, endpoint: int, peer: int, error: OSError) -> None:
        """That this process has too many files open is bad for two places, and no reason to end all of them."""
        if endpoint in self._places:
            self._tell(self._places[endpoint], NoLink(peer, f"its node cannot join them: {_reason(error)}"))

    def _hand_over(self, connection: int, endpoint: int, peer: int) -> None:
        sock = self._connections.pop(connection)
        if not self._places and self._begin is not None:  # other nodes were told to go before this one
            self._early.append((sock, endpoint, peer))
            return
        self._link(endpoint, peer, sock)
        sock.close()

    def _pumped(self, message: Carry | Carried) -> None:
        self.act(self.router.pass_on(message))

    def _relayed_all(self) -> None:
        if self._spawner is None:
            self._finish()

    def _came_in(self, sock: socket.socket, source: int, destination: int) -> None:
        if self._router is None:  # the key is known before the job has begun; nobody can be meant yet
            sock.close()
            return
        self._connections[sock.fileno()] = sock
        self.step(CameIn(sock.fileno(), source, destination))

    # ------------------------------------------------------------------------------ places say

    def _place_ready(self, place: NodePlace, mask: int) -> None:
        if mask & select.EPOLLOUT and place.control.flush():
            self._loop.modify(place.control.fileno(), select.EPOLLIN)
        if mask & ~select.EPOLLOUT:
            self._hear(place)

    def _hear(self, place: NodePlace) -> None:
        if place.control.closed:
            return
        try:
            for message, fds in place.control.receive():
                for fd in fds:
                    os.close(fd)
                self.step(PlaceSaid(place.endpoint, message))
        except WireError as error:
            self._outside.warn(f"{self._name_of(place)} speaks nonsense to its router: {error}")
            place.control.closed = True
            self._disgraced(place)
        if place.control.closed:
            self._hang_up(place)

    def _name_of(self, place: NodePlace) -> str:
        return f"rank {place.rank}"

    def _disgraced(self, place: NodePlace) -> None:
        """Nothing that a place says will be heard any more. It finds that out itself."""

    def _hang_up(self, place: NodePlace) -> None:
        if place.control.fileno() >= 0:
            self._loop.unregister(place.control.fileno())
            place.control.close()

    def _read(self, place: NodePlace, fd: int, _mask: int) -> None:
        if self._budget <= 0:
            self._pause(True)
            return
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return
        stream = place.pipes[fd]
        if data:
            self._budget -= len(data)
            self._outside.output(place.endpoint, stream, data)
            return
        self._close_pipe(place, fd)
        if not place.pipes and place.status is not None:
            self._drained(place)

    def _close_pipe(self, place: NodePlace, fd: int) -> None:
        self._loop.unregister(fd)
        os.close(fd)
        self._outside.output(place.endpoint, place.pipes.pop(fd), b"")

    def _read_rest(self, place: NodePlace, fd: int) -> None:
        """What is in a pipe whose writer has ended, but not what others go on writing there."""
        try:
            data = os.read(fd, _bytes_in(fd))
        except BlockingIOError:
            data = b""
        if data:
            self._budget -= len(data)
            self._outside.output(place.endpoint, place.pipes[fd], data)
        self._close_pipe(place, fd)

    def consumed(self, count: int) -> None:
        """Output was shown: read on."""
        self._budget += count
        if self._paused and self._budget > 0:
            self._pause(False)

    def _pause(self, paused: bool) -> None:
        """Why not an empty mask: epoll always tells of a pipe whose writer is gone, again and again."""
        self._paused = paused
        for place in self._places.values():
            for fd in place.pipes:
                self._loop.unregister(fd)
                if not paused:
                    self._loop.register(fd, partial(self._read, place, fd))

    # ------------------------------------------------------------------------------------ input

    def feed(self, endpoint: int, data: bytes) -> None:
        """Standard input for a place; empty at its end. `Outside.fed` follows when it was taken."""
        place = self._places.get(endpoint)
        if place is None or place.stdin is None:
            return
        place.input.append(data)
        if len(place.input) == 1:
            self._pour(place)

    def _pour(self, place: NodePlace, _mask: int = 0) -> None:
        fd = place.stdin
        assert fd is not None
        while place.input:
            data = place.input[0]
            try:
                sent = os.write(fd, data) if data else 0
            except BlockingIOError:
                self._watch_stdin(place, fd)
                return
            except OSError:  # nobody reads there any more
                data = b""
                sent = 0
            if sent < len(data):
                place.input[0] = data[sent:]
                continue
            place.input.popleft()
            if not data:
                self._close_stdin(place)
                return
            self._outside.fed(place.endpoint)
        self._loop.unregister(fd)

    def _watch_stdin(self, place: NodePlace, fd: int) -> None:
        self._loop.unregister(fd)
        self._loop.register(fd, partial(self._pour, place), select.EPOLLOUT)

    def _close_stdin(self, place: NodePlace) -> None:
        if place.stdin is not None:
            self._loop.unregister(place.stdin)
            os.close(place.stdin)
            place.stdin = None
            place.input.clear()

    # --------------------------------------------------------------------------------- endings

    def signal(self, number: int) -> None:
        """Send a signal to every place."""
        if self._spawner is not None:
            self._spawner.send(Signal(number))

    def stop(self) -> None:
        """End every place and everything they started. `Outside.gone` follows."""
        self._stopping = True
        if self._spawner is not None:
            self._spawner.end()
        else:
            self._finish()

    def _spawner_said(self, message: Message) -> None:
        match message:
            case Up():
                self._outside.ready()
            case Reaped(endpoint, status):
                self._reaped(self._places[endpoint], status)
            case Note(text):
                self._outside.note(text)
            case Forked(endpoint, pid):
                self._forked(endpoint, pid)

    def _forked(self, endpoint: int, pid: int) -> None:
        self._pids[endpoint] = pid

    def _reaped(self, place: NodePlace, status: int) -> None:
        """A place has ended. The job hears of it now, whoever may hold its pipes or be slow to show its output."""
        place.status = status
        self._pids.pop(place.endpoint, None)
        self._hear(place)
        self._hang_up(place)
        self._close_stdin(place)
        self._relays.ended(place.endpoint)
        self.step(PlaceExited(place.endpoint, status))
        if place.pipes:
            place.timer = self._loop.call_later(DRAIN, partial(self._drain, place))
        else:
            self._drained(place)

    def _drain(self, place: NodePlace) -> None:
        """Somebody still holds the pipes of a place that has ended, or we do not read at the moment."""
        if self._paused:
            place.timer = self._loop.call_later(DRAIN, partial(self._drain, place))
        else:
            self._drained(place)

    def _drained(self, place: NodePlace) -> None:
        """A place has ended, and what it wrote was taken, but for the rest that is in its pipes."""
        place.ended = True
        if place.timer is not None:
            place.timer.cancel()
        for fd in list(place.pipes):
            self._read_rest(place, fd)
        self._settled(place)

    def _settled(self, _place: NodePlace) -> None:
        """Nothing more will come of a place: if it was the last one, the node's work is done."""
        if all(place.ended for place in self._places.values()) and self._spawner is not None:
            self._spawner.end()

    def _spawner_ended(self, expected: bool) -> None:
        spawner, self._spawner = self._spawner, None
        assert spawner is not None
        if not spawner.ended_well and self._guest:
            kill_groups(self._pids.values())
        elif not spawner.ended_well:
            kill_descendants(self._spared())
        if not expected:
            self._outside.failed(spawner.last_words())
        for place in list(self._places.values()):
            if place.status is None:
                self._reaped(place, -signal.SIGKILL)
            if not place.ended:
                self._drained(place)
        self._finish()

    def _finish(self) -> None:
        """End, but not before what places have left behind is where it belongs."""
        if not self._over and (self._stopping or not self._relays.busy):
            self._over = True
            self.close()
            self._outside.gone()

    def disown(self) -> None:
        """In a fork of this process: close our ends of control sockets. The loop is shared, and left alone."""
        if self._door is not None:
            self._door.disown()
        if self._spawner is not None:
            self._spawner.disown()
        self._relays.disown()
        for place in self._places.values():
            place.control.close()

    def close(self) -> None:
        """Give back every descriptor."""
        self.close_door()
        self._relays.close()
        for place in self._places.values():
            self._hang_up(place)
        for sock in (*self._connections.values(), *(sock for sock, _, _ in self._early)):
            sock.close()
        self._connections.clear()
        self._early.clear()


def check_program(begin: Begin) -> None:
    """Whether the program and its directory are on this machine.

    Raises:
        LaunchError: Says what is missing.
    """
    if not Path(begin.directory).is_dir():
        raise LaunchError(f"there is no directory {begin.directory} here; choose another with --wdir")
    if begin.kind in ("script", "command") and not Path(begin.directory, begin.target).exists():
        raise LaunchError(f"there is no {begin.target} here; copy it, or use a shared directory")


def _reason(error: OSError) -> str:
    """In words, without what Python adds for sockets; errors of name resolution have negative numbers of their own."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else str(error.strerror)


def _bytes_in(pipe: int) -> int:
    """How many bytes can be read there now."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def memory_of_machine() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    from rmpi.places.standingcommand import main

    raise SystemExit(main())
