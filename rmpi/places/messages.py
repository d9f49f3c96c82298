"""Control messages between places, nodes and spawners. [pure]

Immutable records, packed by msgpack as ``[code, field, field, …]``. Routers never unpickle: what arrives is
checked against the field's type before a message is made of it, and anything else is a `WireError`.

To a type checker they are dataclasses. Real ones would write and compile the methods of each class anew, 50 ms for
all of them at every start of every process; these share the methods of `Message`, and the annotations stay
objects (no ``from __future__ import annotations``), because they are what arriving values are checked against.

    place → its router     Joined  Left  Connect  Unreachable  Called  Ask  Crashed  Revoke  Abort  Returned
                           Blocked  Awake
    router → its place     Welcome  LinkTo  Dial  NoLink  Ended  Broken  WhatCalled  StillBlocked
    head → node            OpenDoor  Begin  Go  Everyone  ToPlace  Input  Signal  Consumed  Stop  Ping
    node → head            DoorIs  Ready  Refused  FromPlace  Exited  Output  Fed  Ping  Gone  Note
    node → its spawner     Fork  Signal  SignalPlace
    spawner → its node     Up  Forked  Reaped  Refused  Note
    node → node, by head   DialBack  NoWay  Carry  Carried
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar, dataclass_transform, get_args, get_origin

import msgpack

from rmpi.errors import WireError

M = TypeVar("M", bound="type[Message]")

UNICODE_ERRORS = "surrogatepass"
"""Any Python string travels: file names that are not UTF-8, and what programs put into exceptions."""

SERIAL_BITS = 20
"""Endpoint numbers are ``node << SERIAL_BITS | serial``: a million places per node."""


ALL = -1
"""In place of a context: every communicator."""

NO_RANK = -1
"""In place of a rank: a place that is none of a job."""


class Message:
    """Something one process tells another about the job. Two are equal if their kinds and fields are."""

    _names = tuple[str, ...]()

    def __init__(self, *values: Any, **named: Any) -> None:
        names = self._names
        if len(values) + len(named) != len(names) or not named.keys() <= set(names[len(values) :]):
            raise TypeError(f"{type(self).__name__} takes exactly ({', '.join(names)})")
        self.__dict__.update(zip(names, values, strict=False), **named)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"cannot set {name}: a message does not change")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *map(self.__dict__.get, self._names)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._names)})"


_BY_CODE: dict[int, type[Message]] = {}
_CODES: dict[type[Message], int] = {}
_CHECKS: dict[type[Message], tuple[Callable[[Any], bool], ...]] = {}


def _check_for(wanted: Any) -> Callable[[Any], bool]:
    """Tells whether a value is of this type, all the way down."""
    inside = tuple(_check_for(part) for part in get_args(wanted) if part is not Ellipsis)
    if get_origin(wanted) is dict:
        key, item = inside
        return lambda value: type(value) is dict and all(key(k) and item(v) for k, v in value.items())
    if get_origin(wanted) is tuple and Ellipsis in get_args(wanted):
        return lambda value: type(value) is tuple and all(map(inside[0], value))
    if get_origin(wanted) is tuple:
        return lambda value: type(value) is tuple and _fit(inside, value)
    return lambda value: type(value) is wanted


def _fit(checks: tuple[Callable[[Any], bool], ...], values: Sequence[Any]) -> bool:
    return len(values) == len(checks) and all(check(value) for check, value in zip(checks, values, strict=True))


@dataclass_transform(frozen_default=True)
def register(code: int) -> Callable[[M], M]:
    """Make a class of annotations a message with this code on the wire."""

    def enter(kind: M) -> M:
        kind._names = tuple(kind.__annotations__)
        assert code not in _BY_CODE, f"{kind.__name__} has the code of {_BY_CODE[code].__name__}"
        kind.__match_args__ = kind._names  # type: ignore[attr-defined,misc]
        _BY_CODE[code] = kind
        _CODES[kind] = code
        _CHECKS[kind] = tuple(map(_check_for, kind.__annotations__.values()))
        return kind

    return enter


def pack(message: Message) -> bytes:
    """The bytes of a message."""
    values = [getattr(message, name) for name in message._names]
    return msgpack.packb([_CODES[type(message)], *values], unicode_errors=UNICODE_ERRORS)  # type: ignore[no-any-return]


def unpack(data: bytes | memoryview) -> Message:
    """The message in ``data``.

    Raises:
        WireError: It is not one of ours.
    """
    try:
        parts = msgpack.unpackb(data, use_list=False, strict_map_key=False, unicode_errors=UNICODE_ERRORS)
    except Exception as error:  # msgpack raises its own kinds, TypeError, ValueError, …
        raise WireError(f"not a control message: {type(error).__name__}: {error}") from None
    if type(parts) is not tuple or not parts or type(parts[0]) is not int or parts[0] not in _BY_CODE:
        raise WireError("not a control message: it does not begin with the code of one")
    kind, values = _BY_CODE[parts[0]], parts[1:]
    if not _fit(_CHECKS[kind], values):
        raise WireError(f"malformed control message {kind.__name__}")
    return kind(*values)


# ------------------------------------------------------------------------------ place → its router


@register(1)
class Joined(Message):
    """`rmpi.init` was called: from now on this place must leave properly."""


@register(2)
class Left(Message):
    """All that was sent is out; this place may end."""


@register(3)
class Connect(Message):
    """A link to ``peer`` is wanted."""

    peer: int


@register(4)
class Called(Message):
    """``what`` was called here as collective number ``sequence``; ``last`` if this rank leaves after it."""

    context: int
    sequence: int
    fingerprint: int
    what: str
    last: bool


@register(5)
class Ask(Message):
    """``other`` called something else: find out what."""

    other: int
    context: int
    sequence: int


@register(6)
class Crashed(Message):
    """An exception nobody caught is about to end this place.

    ``consequence`` is True if it is the end of another rank that was raised here.
    """

    kind: str
    text: str
    consequence: bool


@register(7)
class Revoke(Message):
    """Nobody shall use this communicator any more; the text says who revoked it, and where."""

    context: int
    text: str


@register(8)
class Abort(Message):
    """The job shall end with this exit code; the text says where that was decided."""

    code: int
    text: str


@register(9)
class Blocked(Message):
    """All of this place waits without a limit, has for a while, and nothing in it could send of its own accord.

    ``round`` is that of the `StillBlocked` which this answers; 0 says that nobody has asked. As long as ``stay`` is the
    same, so are the waits: ``(endpoints, what, where, context, sequence)``. The endpoints are those that must act, none
    if they cannot be told; the sequence is -1 where the wait is not for a collective. How much was ``sent`` to each
    peer and ``taken`` of what came from it are counted alike on both sides. ``unread`` are ``(source, tag, how many)``
    messages that nobody has asked for, ``calls`` the last collective of each communicator, -1 if there was none.
    """

    round: int
    stay: int
    sent: dict[int, int]
    taken: dict[int, int]
    waits: tuple[tuple[tuple[int, ...], str, str, int, int], ...]
    unread: tuple[tuple[int, int, int], ...]
    calls: dict[int, int]


@register(10)
class Awake(Message):
    """The answer to `StillBlocked` of a place that is not, or not quite."""

    round: int


@register(12)
class Returned(Message):
    """A piece of what the function that this place was started for has returned or raised, for the owner of the job.

    Pieces come in order; ``last`` is True for the last one. What they mean is the owner's business.
    """

    data: bytes
    last: bool


@register(15)
class Unreachable(Message):
    """``peer`` was dialled, and no connection came about; the text says why."""

    peer: int
    why: str


# ------------------------------------------------------------------------------ router → its place


@register(16)
class Welcome(Message):
    """What a rank needs to know; waiting in its socket before it starts."""

    rank: int
    members: tuple[int, ...]
    hosts: tuple[str, ...]
    context: int
    crowded: bool
    unmatched_limit: int


@register(17)
class LinkTo(Message):
    """A connected socket to ``peer`` comes with this message. ``relayed``: its other end is read by routers."""

    peer: int
    relayed: bool


@register(18)
class Dial(Message):
    """Connect to ``peer`` through its node's door at one of these ``(address, port)``; else answer `Unreachable`.

    An address at which nothing answers for ``patience`` seconds cannot be reached from here.
    """

    peer: int
    doors: tuple[tuple[str, int], ...]
    key: bytes
    patience: float


@register(19)
class Ended(Message):
    """A place has ended: well (``failed`` False) or not."""

    endpoint: int
    rank: int
    host: str
    cause: str
    failed: bool


@register(20)
class Broken(Message):
    """A communicator cannot be used any more. ``error`` is the name of the exception that says so, in `rmpi.errors`."""

    context: int
    error: str
    text: str


@register(21)
class WhatCalled(Message):
    """Answer with `Called`, if that collective has been called."""

    context: int
    sequence: int


@register(22)
class StillBlocked(Message):
    """Every place has said that it is blocked: is this one still? Answered by `Blocked` or `Awake`, with its number."""

    round: int


@register(23)
class NoLink(Message):
    """There will be no link to ``peer``; the text says why."""

    peer: int
    why: str


# ------------------------------------------------------------------------------------ head → node


@register(32)
class OpenDoor(Message):
    """Listen at this address for places of other nodes."""

    address: str
    key: bytes


@register(33)
class Begin(Message):
    """The job, for one node. It checks that it can be done, and answers `Ready` or `Refused`.

    ``places`` are pairs ``(endpoint, rank)`` to be started here; ``doors`` maps a node to its doors, and ``route``
    is which ways data may go (`rmpi.places.routes`). ``fork`` is whether places may be forked from an interpreter that
    has imported ``preload``, besides what all programs need.
    """

    node: int
    key: bytes
    context: int
    members: tuple[int, ...]
    hosts: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    doors: dict[int, tuple[tuple[str, int], ...]]
    route: str
    kind: str
    target: str
    argv: tuple[str, ...]
    python: str
    environment: dict[str, str]
    inherit: bool
    directory: str
    stdin_rank: int
    fork: bool
    preload: tuple[str, ...]


@register(34)
class Go(Message):
    """Every node is ready: start the places."""


@register(35)
class Everyone(Message):
    """Give this packed message to every place of the node."""

    packed: bytes


@register(36)
class ToPlace(Message):
    """Give this packed message to one place."""

    endpoint: int
    packed: bytes


@register(37)
class Input(Message):
    """Standard input for a place; empty at its end."""

    endpoint: int
    data: bytes


@register(38)
class Signal(Message):
    """Send a signal to every place."""

    number: int


@register(39)
class Consumed(Message):
    """So many bytes of output were shown: so many more may come."""

    count: int


@register(40)
class Stop(Message):
    """End every place and everything it started, and the node."""


@register(41)
class Ping(Message):
    """I am here."""


# ------------------------------------------------------------------------------------ node → head


@register(48)
class DoorIs(Message):
    """The door that was asked for is at this port."""

    address: str
    port: int


@register(49)
class Ready(Message):
    """Everything is checked and the spawner is up."""


@register(50)
class Refused(Message):
    """This node, or its spawner, cannot do its part, and nothing was started."""

    text: str
    status: int


@register(51)
class FromPlace(Message):
    """A place said this."""

    endpoint: int
    packed: bytes


@register(52)
class Exited(Message):
    """A place has ended. ``status`` is its exit status, or minus the signal that killed it."""

    endpoint: int
    status: int
    joined: bool
    left: bool


@register(53)
class Output(Message):
    """What a place wrote to ``stream`` 1 or 2; empty at its end."""

    endpoint: int
    stream: int
    data: bytes


@register(54)
class Gone(Message):
    """All places of this node have ended, and nothing they started is left."""


@register(55)
class Fed(Message):
    """The input that was sent has been taken: more may come."""

    endpoint: int


@register(56)
class Note(Message):
    """Something for whoever wants to know what is being done."""

    text: str


# ------------------------------------------------------------------------------- node ⇄ its spawner


@register(64)
class Fork(Message):
    """Start a place. With it come its stdin, stdout, stderr and control socket. Of a system it has `NO_RANK`."""

    endpoint: int
    rank: int
    kind: str
    target: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    directory: str


@register(65)
class Up(Message):
    """The spawner runs, and has imported what it was to import."""


@register(66)
class Forked(Message):
    """A place runs as process ``pid``."""

    endpoint: int
    pid: int


@register(67)
class Reaped(Message):
    """A place has ended with this status (minus the signal that killed it)."""

    endpoint: int
    status: int


@register(69)
class Halted(Message):
    """A place was stopped (SIGSTOP), or goes on."""

    endpoint: int
    stopped: bool


@register(68)
class SignalPlace(Message):
    """Send a signal to a place and what it started."""

    endpoint: int
    number: int


# -------------------------------------------------------------------- node → node, by way of the head


@register(80)
class DialBack(Message):
    """Place ``source`` wants ``destination`` and cannot connect to its node; can it be done the other way round?"""

    source: int
    destination: int
    why: str


@register(81)
class NoWay(Message):
    """Neither of two nodes can connect to the other: ``why`` not the source's, and ``back`` why not the destination's.

    If the job relays, what the two places say to each other comes as `Carry` from now on; else they get `NoLink`.
    """

    source: int
    destination: int
    why: str
    back: str


@register(82)
class Carry(Message):
    """A piece of the stream of bytes from one place to another; empty at its end."""

    source: int
    destination: int
    data: bytes


@register(83)
class Carried(Message):
    """So many bytes of that stream were taken: as many more may come. 0: its end was, or nobody takes any more of it.

    Travels against the stream: from the node of ``destination`` to that of ``source``.
    """

    source: int
    destination: int
    count: int
