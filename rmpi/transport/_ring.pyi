from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from rmpi.transport.operation import Operation

VERSION: int
EAGER_LIMIT: int
CREDIT: int
CREDIT_STEP: int
FRAME_COST: int
CHUNK: int
DATA: int

class Lane:
    """The two rings of one pair, or its socket. Raises `WireError` where the peer's positions are garbage.

    A socket lane (`use_socket`) is for ports and flights to write; whoever else writes does so to the socket.
    """

    peer: int
    fd: int  # the bell, or the socket
    edge: bool  # whoever reads stands between two frames
    wants_room: bool  # something waits to be written; of a socket lane also: and the epoll will tell of room
    quick: bool  # ports may use it
    closed: bool
    socket: bool
    hung_up: bool  # nothing more comes out of the socket, though some may be left in the ring
    credit: int
    owed: int

    def __new__(cls, ident: int, peer: int, bell: int, credit: int) -> Lane: ...
    def use_socket(self) -> None:
        """Be a socket lane: ``bell`` is the connected socket itself, non-blocking."""

    def map_out(self, fd: int, capacity: int, /) -> None: ...
    def map_in(self, fd: int, capacity: int, /) -> None: ...
    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Write what there is room for; how many bytes that was."""

    def read_into(self, memory: memoryview, /) -> int:
        """Read what there is, at most as much as fits; how many bytes that was."""

    def stirs(self) -> bool:
        """There is something to read, or there is room and it is wanted.

        Of a socket lane: something was read ahead, or a port has left something to be written; without a system call.
        """

    def arm(self) -> bool:
        """Have the bell rung as soon as the lane stirs. True: it does already.

        A socket lane is left alone by ports until the next `stirring`, so that whoever sleeps over its socket is woken.
        """

    def hush(self) -> bool:
        """The descriptor is readable: take the bytes with which the bell was rung. False: that is not what came.

        Of a socket lane: nothing is taken; whether what came is for ports.
        """

    def empty(self) -> bool:
        """Nothing is there to be read."""

    def queues(self, pending: deque[Any], streams: deque[Any], /) -> None:
        """What waits to be written: while there is any, no port may write.

        What a socket does not take of what a port writes joins ``pending``.
        """

    def sent(self) -> int:
        """Bytes that were ever written here; of a socket lane not those that went to the socket past it."""

    def taken(self) -> int:
        """Bytes of the peer's that were ever consumed; not those that were read ahead."""

    def close(self) -> None:
        """Never touch the memory again. It is unmapped with the object."""

class Hub:
    """What all ports of an endpoint share; among it the lanes to all peers, which open ports use."""

    def __new__(
        cls,
        broken: dict[Any, Any],
        locked: Callable[[], bool],
        acquire: Callable[[bool], bool],
        release: Callable[[], None],
        threads: Callable[[], int],
        array_type: type,
        describe: Callable[[Any], bytes | None],
        new_array: Callable[[bytes], Any],
        dumps: Callable[..., bytes],
        loads: Callable[..., Any],
        adopt_send: Callable[..., Operation],
        adopt_receive: Callable[..., Operation],
        nothing: object,
        spin: float,
        yields: bool,
        epoll: int,
    ) -> Hub: ...
    def add(self, lane: Lane, /) -> None:
        """Use this lane for messages to and from its peer, in place of any other."""

    def remove(self, lane: Lane, /) -> None: ...
    def clear(self) -> None:
        """Remove all of them."""

class Port:
    """The short cut of small messages in one context; what it does not do, it leaves untouched.

    Without ``members`` it is open: ranks are the numbers of endpoints, and its lanes those of the hub.
    """

    source: int  # rank, tag and payload bytes of what was received last
    tag: int
    length: int
    landed: bool  # it is in the caller's array
    given: (
        Any  # a value, a list of a pickle's parts, or an operation that the caller may not have got; assign to forget
    )
    thread: int  # that made it, and alone receives by it; of an open one: that does so at the moment, 0 if none has

    def __new__(
        cls,
        hub: Hub,
        context: int,
        members: tuple[int, ...] | None,
        arrivals: dict[Any, Any] | None,  # None: nothing is received by it
        receives: dict[Any, Any] | None,
    ) -> Port: ...
    def attach(self, lane: Lane, /) -> None:
        """Use this lane for the rank at its other end, if that is one of the members."""

    def detach(self, lane: Lane, /) -> None:
        """Use it no more."""

    def send(self, value: object, rank: int, tag: int, fingerprint: int = 0, /) -> Any:
        """Send it now and whole (True), or not at all (False); or a `Transfer` that has begun.

        Raises what pickling raises.
        """

    def post(self, value: object, rank: int, tag: int, fingerprint: int, /) -> bool:
        """As `send`, of what is small; it never waits."""

    def recv(self, rank: int, tag: int, out: Any, fingerprint: int = 0, /) -> Any:
        """The next message from ``rank`` with ``tag`` (-1: any), or ``nothing``; or a `Receive` that has begun.

        Raises what unpickling raises.
        """
    def exchange(self, value: object, to: int, source: int, tag: int, out: Any, fingerprint: int, /) -> tuple[Any, Any]:
        """What `send` and `recv` would return, but of both at the same time, so that neither waits for the other.

        If nothing was sent, nothing was received.
        """

class Flight:
    """A large message that has begun, outgoing if it has a ``message`` number from the start; see `fly`."""

    stage: int  # 0: awaited, 1: offered, 2: under way, 3: landed
    offset: int  # bytes of what was loaded that have left or come
    frame: int  # bytes of the DATA frame that is under way
    left: int  # those of them still to go; 0 between two frames
    head: bytes | None  # of an awaited one: the first OFFER that came, which was taken

    def __new__(cls, lane: Lane, message: int, context: int) -> Flight: ...
    def load(self, views: Sequence[Any], message: int, writable: bool, /) -> None:
        """Where the payload lies, or, writable, where it shall land."""

def fly(out: Flight | None, incoming: Flight | None, limit: int, yields: bool, /) -> bool:
    """Move both until they have landed (True), meet what Python must see, or do not move for ``limit`` ns."""

def stirring(lanes: list[Lane], /) -> list[Lane]:
    """Those that stir."""

def arm_all(lanes: list[Lane], /) -> bool:
    """Arm every one of them. True: one stirs already."""

def spin(lanes: list[Lane], limit: int, yields: bool, /) -> bool:
    """Look, without the GIL, for ``limit`` nanoseconds at most, until one stirs: True."""
