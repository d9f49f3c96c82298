"""Control messages of a system: what its places, its nodes and its head tell each other. [pure]

They are packed and checked like those of a job (`rmpi.places.messages`), of which a system also uses some:
`Connect`, `Crashed`, `Joined`, `Left`, `LinkTo`, `Dial`, `NoLink`, `Unreachable`, `Carry`, `Carried`, `Exited`,
`FromPlace`, `ToPlace`, `Output`, `Stop`, `Gone`.

    place → head        Find  Spawn  AddNode  EndNode  Survey  Kill  Unite  Follow  Withdraw  Started  NotStarted
                        Record  OpenMailbox  CloseMailbox
    head → place        Enrolled  Answer  Declined  PlaceAt  PlaceDown  PlaceGone  PlaceShown  EndpointGone
    place host ⇄ head   RunThread  StopThread  ThreadEnded
    head → node         Serve  Start  EndpointGone  RelayTo; and to that of a guest, Enrolled
    node → head         Serving  Running; and that of a guest, Attach

What has a ``number`` is a request: its place numbers them, and gets an `Answer` or is `Declined`. Optional things are
empty when they are not there; a ``rule`` says what follows when something has ended (`rmpi.places.supervisor.Rule`).
"""

from collections.abc import Sequence
from typing import Any

import msgpack

from rmpi.errors import WireError
from rmpi.places.messages import UNICODE_ERRORS, Connect, Crashed, Message, Unreachable, register
from rmpi.places.supervisor import Plain

LOCAL = 0
"""The number of the node that a system's head is itself, on its own machine."""

ANY_NODE = -1

GUEST = 0
"""In place of both endpoints, at a door: somebody wants to join the system. No endpoint has that number."""

# ------------------------------------------------------------------------------------ place → head


@register(128)
class Find(Message):
    """Which place has this name on that node, or any? Answered with ``(place, label)``; it is followed from then on."""

    number: int
    node: int
    name: str


@register(129)
class Spawn(Message):
    """Start a place on a node. Answered with ``(place, label, pid)`` when it runs.

    ``kind`` is ``"process"``, ``"thread"`` or ``"command"``; ``argv`` is the command, or for people; ``parcel`` is
    the call that a place is to make. ``reply`` is the box of whoever spawns it. Records of
    logging from that ``level`` on are wanted.
    """

    number: int
    node: int
    name: str
    kind: str
    argv: tuple[str, ...]
    parcel: bytes
    reply: int
    rule: Plain
    environment: dict[str, str]
    directory: str
    level: int


@register(130)
class AddNode(Message):
    """Start a node. Answered with ``(node, label)`` when it serves.

    ``host`` is empty for another node of the head's machine, which needs no ssh. A ``solo`` node is not listed, and
    only its creator may use it. ``port`` is that of its door, 0 for any.
    """

    number: int
    host: str
    name: str
    port: int
    python: str
    agent: str
    solo: bool
    output: str
    route: str
    rule: Plain
    environment: dict[str, str]
    directory: str
    seconds: float


@register(131)
class EndNode(Message):
    """End a node and all its places; ``graceful`` asks them first. Answered when nothing of it is left."""

    number: int
    node: int
    graceful: bool
    seconds: float


@register(132)
class Survey(Message):
    """Answered with a list of dictionaries: of the nodes there are, or of one node and its places."""

    number: int
    node: int


@register(133)
class Kill(Message):
    """Send a signal to a place, which is not restarted if it ends of it. Answered with nothing, at once."""

    number: int
    place: int
    signal: int


@register(134)
class Follow(Message):
    """Say where that place is, now and at every change."""

    place: int


@register(139)
class Unite(Message):
    """Supervise these places together, as ``"one_for_one"``, ``"one_for_all"`` or ``"rest_for_one"``.

    Answered with nothing.
    """

    number: int
    strategy: str
    places: tuple[int, ...]


@register(135)
class Started(Message):
    """The call of this place has begun; for a thread's, its number, else 0."""

    place: int


@register(136)
class NotStarted(Message):
    """The call of this place cannot begin: what was raised, and its traceback."""

    place: int
    error: str
    text: str


@register(137)
class Record(Message):
    """A record of the standard library's logging, for that of the head; of a thread's place, its number, else 0."""

    place: int
    level: int
    logger: str
    text: str
    created: float


@register(138)
class Withdraw(Message):
    """Nobody waits for the answer to that request of mine any more; a place or node that was asked for is ended."""

    number: int


# ------------------------------------------------------------------------------------ head → place


@register(140)
class OpenMailbox(Message):
    """This process has a mailbox of that name, besides what it was started with. Answered with ``(place, label)``.

    To everybody else it is a place like any other, which goes when it is closed, or with its process.
    """

    number: int
    name: str


@register(141)
class CloseMailbox(Message):
    """It has not any more."""

    place: int


@register(144)
class Enrolled(Message):
    """What a place needs to know of itself, and the call that it is to make.

    ``owner`` and ``reply`` are the endpoint and the box of whoever spawned it.
    """

    system: int
    endpoint: int
    place: int
    node: int
    label: str
    host: str
    owner: int
    reply: int
    crowded: bool
    unmatched_limit: int
    level: int
    parcel: bytes


@register(145)
class Answer(Message):
    """The answer to a request: packed by msgpack, it depends on the request."""

    number: int
    packed: bytes


def pack_values(values: Sequence[Any]) -> bytes:
    """What an `Answer` holds: values that msgpack knows."""
    return msgpack.packb(values, unicode_errors=UNICODE_ERRORS)  # type: ignore[no-any-return]


def unpack_values(packed: bytes) -> tuple[Any, ...]:
    """What `pack_values` was given.

    Raises:
        WireError: It is something else.
    """
    try:
        values = msgpack.unpackb(packed, use_list=False, strict_map_key=False, unicode_errors=UNICODE_ERRORS)
    except Exception as error:  # as in `unpack`
        raise WireError(f"not an answer: {type(error).__name__}: {error}") from None
    if type(values) is not tuple:
        raise WireError(f"not an answer: {type(values).__name__}")
    return values


@register(146)
class Declined(Message):
    """A request that cannot be granted. ``error`` is the name of an exception of ours."""

    number: int
    error: str
    text: str


@register(147)
class PlaceAt(Message):
    """A place that is followed runs, behind this endpoint; it was restarted so many times before.

    The endpoint of a ``thread`` goes on when that has ended.
    """

    place: int
    endpoint: int
    label: str
    pid: int
    restarts: int
    thread: bool


@register(148)
class PlaceDown(Message):
    """A place that is followed has ended, and will be restarted."""

    place: int
    cause: str
    status: int


@register(149)
class PlaceGone(Message):
    """A place that is followed has ended for good; ``then`` is what its owner should call, as in `Policy`."""

    place: int
    cause: str
    status: int
    failed: bool
    then: str


@register(150)
class PlaceShown(Message):
    """All that a place wrote, which has ended for good, was shown."""

    place: int


@register(151)
class EndpointGone(Message):
    """Nothing will come from that endpoint any more; ``failed`` if it did not say so itself."""

    endpoint: int
    label: str
    cause: str
    failed: bool


# ------------------------------------------------------------------------------ place host ⇄ head


@register(152)
class RunThread(Message):
    """Run a place as a thread of yours."""

    place: int
    label: str
    owner: int
    reply: int
    parcel: bytes


@register(153)
class StopThread(Message):
    """Close the mailbox of that place: it ends when it next looks there."""

    place: int


@register(154)
class ThreadEnded(Message):
    """The call of that place has returned (status 0), or raised."""

    place: int
    status: int
    text: str


FROM_PLACES = (
    Connect,
    Unreachable,
    Crashed,
    Find,
    Spawn,
    AddNode,
    EndNode,
    Survey,
    Kill,
    Unite,
    Follow,
    Withdraw,
    Started,
    NotStarted,
    Record,
    OpenMailbox,
    CloseMailbox,
    ThreadEnded,
)
"""What places may say to the head. Their nodes see to it."""

# -------------------------------------------------------------------------------------- head ⇄ node


@register(160)
class Serve(Message):
    """Be a node of this system. Answered by `Serving` or `Refused`."""

    node: int
    key: bytes
    address: str
    port: int
    python: str
    environment: dict[str, str]
    directory: str


@register(161)
class Serving(Message):
    """This node is ready, and its door is at that port; 0 if it has none."""

    port: int
    pid: int
    cores: int
    memory: int


@register(162)
class Start(Message):
    """Start a place. ``enrolled`` is packed, and for the place; ``kind``, ``target`` and ``argv`` are as for `Fork`."""

    endpoint: int
    kind: str
    target: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    directory: str
    enrolled: bytes


@register(164)
class Running(Message):
    """A place runs as process ``pid``."""

    endpoint: int
    pid: int


@register(165)
class RelayTo(Message):
    """Relay between a place of yours and a peer on another node, by `Carry` and `Carried`, which the head passes on."""

    endpoint: int
    peer: int


@register(166)
class Attach(Message):
    """What a process says first that has come in by the door to join. Answered by `Serve` and `Enrolled`, or `Refused`.

    ``door`` is where it came in, as it sees that: an address and a port. ``python`` is its version, ``"3.11"``.
    """

    host: str
    pid: int
    cores: int
    memory: int
    python: str
    door: tuple[str, int]
