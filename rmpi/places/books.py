"""What the directory of a system is told, what it has done, and its books: of nodes and of places. [pure]"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rmpi.places.messages import Message
from rmpi.places.supervisor import Supervisor
from rmpi.places.system_messages import AddNode, PlaceDown, PlaceGone, Record, Spawn

MAIN = 1
"""The number of the user's program as a place, and the serial number of its endpoint on the head's node."""

SIGTERM, SIGKILL = 15, 9

MAILBOX = "mailbox"
"""The kind of what is no place of its own; nobody can spawn that."""


# ------------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Heard:
    """A node said something, or passed it on."""

    node: int
    message: Message


@dataclass(frozen=True, slots=True)
class Booted:
    """A node is up and serves. ``door`` is where its places can be reached; port 0 if they cannot."""

    node: int
    host: str
    door: tuple[str, int]
    pid: int
    cores: int
    memory: int


@dataclass(frozen=True, slots=True)
class NotBooted:
    """A node could not be started."""

    node: int
    text: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A node is gone; ``expected`` if it was told to end."""

    node: int
    why: str
    expected: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """All that was written from behind an endpoint that has ended was shown."""

    endpoint: int


@dataclass(frozen=True, slots=True)
class Due:
    """An alarm goes off."""

    key: tuple[str, int]


Event = Heard | Booted | NotBooted | Lost | Shown | Due


# ----------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Post:
    """Send a message to a node."""

    node: int
    message: Message


@dataclass(frozen=True, slots=True)
class Boot:
    """Start a node. Answered by `Booted` or `NotBooted`."""

    node: int
    order: AddNode


@dataclass(frozen=True, slots=True)
class Alarm:
    """Come back with `Due` at that time."""

    key: tuple[str, int]
    at: float


@dataclass(frozen=True, slots=True)
class Log:
    """A record of logging, for the logging of the head's process."""

    label: str
    node: str
    record: Record


@dataclass(frozen=True, slots=True)
class Tell:
    """A text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Behind:
    """Do this when all that was said to the user so far was shown."""

    action: Action


Action = Post | Boot | Alarm | Log | Tell | Behind


# ---------------------------------------------------------------------------------------- the books


@dataclass(slots=True)
class NodeEntry:
    """A node.

    Attributes:
        asked: Who waits for it: an endpoint, and the number of its request; None once that was answered.
        requested: The same, for good.
        state: "booting", "up", "down" (lost, and to be booted again), "ending", "gone".
        serials: Numbers for endpoints; never used twice, whatever becomes of the node.
        host: The place that runs its threads; 0 if there is none.
        ending: Who waits for its end.
        came_by: Of a guest: the door of the head by which it came, as it sees that.
        key: What connections to its door are proved with, if not with the key of the system.
    """

    number: int
    label: str
    order: AddNode | None
    owner: int
    asked: tuple[int, int] | None
    requested: tuple[int, int] | None
    supervisor: Supervisor | None
    state: str = "booting"
    machine: str = ""
    door: tuple[str, int] = ("", 0)
    pid: int = 0
    cores: int = 1
    memory: int = 1 << 30
    serials: Iterable[int] = field(default_factory=lambda: itertools.count(MAIN + 1))
    host: int = 0
    ending: list[tuple[int, int]] = field(default_factory=list)
    came_by: tuple[str, int] | None = None
    key: bytes = b""

    @property
    def is_guest(self) -> bool:
        """It is a process that has joined from outside: nothing can be started there."""
        return self.came_by is not None

    @property
    def route(self) -> str:
        """Which ways data may go to and from its places; see `routes`."""
        return self.order.route if self.order is not None else "auto"

    @property
    def is_solo(self) -> bool:
        """Only its creator and its own places hear of it."""
        return self.order is not None and self.order.solo

    @property
    def is_here(self) -> bool:
        """It is on the head's machine. Doors there are found only from there, and by guests."""
        return not self.is_guest and (self.order is None or not self.order.host)

    def row(self) -> dict[str, Any]:
        """What `Survey` tells of it."""
        return {"node": self.number, "label": self.label, "host": self.machine, "state": self.state, "pid": self.pid}


@dataclass(slots=True)
class PlaceEntry:
    """A place.

    Attributes:
        asked: Who waits for it: an endpoint, and the number of its request; None once that was answered.
        requested: The same, for good.
        state: "starting", "up", "down" (has ended, and is to be restarted), "gone".
        begun: Its call has; it is up when, besides, its process is known.
        stopping: Somebody has ended it on purpose: it is not restarted.
        signal: What it is to be stopped with, should it start all the same.
        restarts: How often it was.
        due: When it is to be restarted; before, alarms mean nothing any more.
        cause: Why it has ended, if it is known better than by its exit status.
        followers: Endpoints that hear of what becomes of it.
    """

    number: int
    node: int
    order: Spawn
    asked: tuple[int, int] | None
    requested: tuple[int, int] | None
    owner: int
    supervisor: Supervisor
    label: str
    endpoint: int = 0
    pid: int = 0
    state: str = "starting"
    begun: bool = False
    stopping: bool = False
    signal: int = SIGTERM
    restarts: int = 0
    due: float = -math.inf
    cause: str = ""
    followers: set[int] = field(default_factory=set)
    last: PlaceDown | PlaceGone | None = None

    @property
    def is_thread(self) -> bool:
        return self.order.kind == "thread"

    @property
    def is_mailbox(self) -> bool:
        """It is one more name of a process that is there anyway."""
        return self.order.kind == MAILBOX

    @property
    def shares(self) -> bool:
        """The process behind its endpoint goes on without it."""
        return self.is_thread or self.is_mailbox

    def row(self) -> dict[str, Any]:
        """What `Survey` tells of it."""
        return {
            "place": self.number,
            "label": self.label,
            "name": self.order.name,
            "kind": self.order.kind,
            "state": self.state,
            "pid": self.pid,
            "restarts": self.restarts,
        }
