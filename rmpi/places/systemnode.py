"""A node of a system: it starts a place when the head asks for one, and goes on when the last of them has ended.

What a `Node` does for a place it does here too: control socket, pipes, links, door. The differences: nothing is known
beforehand; a spawner is started for the first place, and again after it was lost; and this process may be one of the
places itself (`adopt`), as the user's program is in the head's process.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rmpi.errors import LaunchError
from rmpi.places.control import Control, control_pair
from rmpi.places.ignition import Ignition, make_room
from rmpi.places.loop import Loop
from rmpi.places.messages import (
    NO_RANK,
    Carried,
    Carry,
    Fork,
    FromPlace,
    Halted,
    Message,
    SignalPlace,
    Up,
    pack,
    unpack,
)
from rmpi.places.node import Node, NodePlace, Outside, memory_of_machine
from rmpi.places.outpost import Outpost, PlaceStarts
from rmpi.places.processes import become_subreaper, kill_descendants, kill_groups
from rmpi.places.router import HEAD, CameIn, NodeSaid, PlaceExited, PlaceSaid
from rmpi.places.spawnerprocess import SpawnerProcess
from rmpi.places.system_messages import GUEST, Enrolled, NotStarted, Serve, Serving, Start

HOSTING_MODULE = "rmpi.places.hosting"
"""What every place that is no command imports; the spawner does it once for all of them."""

FAILED_TO_START = 125
"""Exit status of a place that was not started, because its node could not."""


class SystemNode(Node):
    """One node's part of a system."""

    def __init__(
        self,
        loop: Loop,
        outside: Outside,
        spared: Callable[[], frozenset[int]] = frozenset,
        *,
        guest: bool = False,
        admit: Callable[[socket.socket], None] | None = None,
    ) -> None:
        """A node that serves nobody yet. The other arguments are those of `Node`.

        Args:
            admit: Takes connections of those who want to join the system; None: they are turned away.
        """
        super().__init__(loop, outside, spared, guest=guest)
        self._admit = admit
        self._outpost: Outpost | None = None
        self._order: Serve | None = None
        self._starting: list[Start] = []  # until the spawner is up
        self._spawner_is_up = False
        self._adopted: set[int] = set()
        self._closing = False

    # ------------------------------------------------------------------------------- beginning

    def serve(self, order: Serve) -> Serving:
        """Be what the head says.

        Raises:
            LaunchError: It cannot be done here: no such directory or address, or its port is taken.
        """
        if not Path(order.directory).is_dir():
            raise LaunchError(f"there is no directory {order.directory} here; choose another with directory=")
        if not self._guest:
            become_subreaper()
        self._order = order
        self._outpost = Outpost(order.node)
        port = self.open_door(order.address, order.key, order.port) if order.address else 0
        return Serving(port, os.getpid(), len(os.sched_getaffinity(0)), memory_of_machine())

    def adopt(self, enrolled: Enrolled) -> socket.socket:
        """Have this process, or one that has come from outside, as a place too; its control socket."""
        ours, theirs = control_pair()
        place = self._places[enrolled.endpoint] = NodePlace(enrolled.endpoint, NO_RANK, Control(ours))
        self._adopted.add(enrolled.endpoint)
        self._loop.register(place.control.fileno(), partial(self._place_ready, place))
        self._begins(enrolled.endpoint, enrolled.label)
        self._tell(place, enrolled)
        return theirs

    def start(self, order: Start) -> None:
        """Start a place; what it says, and how it ends, is passed on to the head."""
        self._starting.append(order)
        self._begins(order.endpoint, order.argv[0])
        if self._spawner is None:
            self._start_spawner()
        elif self._spawner_is_up:
            self._start_all()

    def _begins(self, endpoint: int, label: str) -> None:
        self.step(PlaceStarts(endpoint, label))

    def _start_spawner(self) -> None:
        assert self._order is not None
        environment = {**os.environ, **self._order.environment}
        try:
            ignition = Ignition(
                self._order.python,
                environment,
                self._order.directory,
                1,
                kind="code",
                target="",
                fork=True,
                preload=(HOSTING_MODULE,),
            )
        except LaunchError as error:
            self._fail_all(str(error))
            return
        self._spawner = SpawnerProcess(self._loop, ignition, self._spawner_said, self._spawner_ended)

    def _spawner_said(self, message: Message) -> None:
        if isinstance(message, Up):
            self._spawner_is_up = True
            self._start_all()
        elif isinstance(message, Halted):
            self._outside.send(HEAD, message)
        else:
            super()._spawner_said(message)

    def _start_all(self) -> None:
        orders, self._starting = self._starting, []
        for order in orders:
            try:
                make_room(len(self._places) + 1)
                self._start_one(order)
            except LaunchError as error:
                self._fail(order, str(error))
            except OSError as error:
                self._fail(order, f"it could not be started here: {error}")

    def _start_one(self, order: Start) -> None:
        assert self._order is not None
        directory = order.directory or self._order.directory
        if not Path(directory).is_dir():
            raise LaunchError(f"there is no directory {directory} here")
        target = order.target
        if order.kind == "command":
            target = _program(order.argv[0], order.environment, directory)
        fork = Fork(order.endpoint, NO_RANK, order.kind, target, order.argv, order.environment, directory)
        self._launch(fork, unpack(order.enrolled) if order.kind != "command" else None)

    def _fail(self, order: Start, text: str) -> None:
        """A place cannot be started."""
        self._outside.send(HEAD, FromPlace(order.endpoint, pack(NotStarted(0, "LaunchError", text))))
        self._never_ran(order, FAILED_TO_START)

    def _never_ran(self, order: Start, status: int) -> None:
        """The end of a place that had no process, as of one that had."""
        self.step(PlaceExited(order.endpoint, status))
        for stream in (1, 2):
            self._outside.output(order.endpoint, stream, b"")

    def _fail_all(self, text: str) -> None:
        orders, self._starting = self._starting, []
        for order in orders:
            self._fail(order, text)

    # --------------------------------------------------------------------------------- actions

    def step(self, event: PlaceSaid | PlaceExited | NodeSaid | CameIn | PlaceStarts) -> None:
        """Let the router decide, and do it."""
        assert self._outpost is not None
        self.act(self._outpost.step(event))

    def _came_in(self, sock: socket.socket, source: int, destination: int) -> None:
        if destination == GUEST and source == GUEST and self._admit is not None:
            self._admit(sock)
            return
        self._connections[sock.fileno()] = sock
        self.step(CameIn(sock.fileno(), source, destination))

    def _pumped(self, message: Carry | Carried) -> None:
        self._outside.send(HEAD, message)

    def _relayed_all(self) -> None:
        """More may come: a node of a system does not end of itself, unless it closes up."""
        if self._closing:
            self._finish()

    def signal_place(self, order: SignalPlace) -> None:
        """Send a signal to a place and what it started."""
        waiting = [each for each in self._starting if each.endpoint == order.endpoint]
        for each in waiting:
            self._starting.remove(each)
            self._never_ran(each, -order.number)
        if not waiting and self._spawner is not None:
            self._spawner.send(order)

    def _name_of(self, place: NodePlace) -> str:
        assert self._outpost is not None
        return self._outpost.label_of(place.endpoint)

    def _disgraced(self, place: NodePlace) -> None:
        """Without its node a place is of no use to anybody, and nobody's to end."""
        self.signal_place(SignalPlace(place.endpoint, signal.SIGKILL))

    def _forked(self, endpoint: int, pid: int) -> None:
        super()._forked(endpoint, pid)
        assert self._outpost is not None
        self.act(self._outpost.runs(endpoint, pid))

    # --------------------------------------------------------------------------------- endings

    def _hear(self, place: NodePlace) -> None:
        super()._hear(place)
        if place.control.closed and place.endpoint in self._adopted:
            self._adopted.discard(place.endpoint)
            del self._places[place.endpoint]
            self.step(PlaceExited(place.endpoint, 0))

    def abandon(self) -> None:
        """Close everything at once. A spawner ends of that, and all that it has started."""
        if isinstance(self._spawner, SpawnerProcess):
            self._spawner.abandon()
        self.close()

    def close_up(self) -> None:
        """There is no place here any more. `Outside.gone` follows, when what it has said is where it belongs."""
        self._closing = True
        self._finish()

    def _settled(self, place: NodePlace) -> None:
        del self._places[place.endpoint]

    def _spawner_ended(self, expected: bool) -> None:
        """Without a spawner, all that it had started is gone; another one is started with the next place."""
        spawner, self._spawner, self._spawner_is_up = self._spawner, None, False
        assert spawner is not None
        lost = bool(self._pids)
        if not spawner.ended_well and self._guest:
            kill_groups(self._pids.values())
        elif not spawner.ended_well:
            kill_descendants(self._spared())
        for place in [place for place in self._places.values() if place.endpoint not in self._adopted]:
            if place.status is None:
                self._reaped(place, -signal.SIGKILL)
            if not place.ended:
                self._drained(place)
        self._fail_all("its node was ended" if expected else spawner.last_words())
        if lost and not expected:
            self._outside.warn(f"all places of this node have ended: {spawner.last_words()}")
        if self._stopping:
            self._finish()


def _program(name: str, environment: dict[str, str], directory: str) -> str:
    """The path of a program, looked for as a shell would in that directory.

    Raises:
        LaunchError: There is none, or it cannot be run.
    """
    if "/" not in name:
        found = shutil.which(name, path=environment.get("PATH") or os.environ.get("PATH"))
    else:
        found = str(Path(directory, name)) if Path(directory, name).is_file() else None
    if found is None:
        raise LaunchError(f"there is no program {name} here")
    if not os.access(found, os.X_OK):
        raise LaunchError(f"{name} cannot be run here: it is not executable")
    return found
