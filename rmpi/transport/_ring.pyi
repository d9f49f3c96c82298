from collections import deque
from collections.abc import Callable
from typing import Any

VERSION: int
EAGER_LIMIT: int
CREDIT: int
CREDIT_STEP: int
FRAME_COST: int
OUT_OF_BAND: int
DATA: int

class Lane:
    """The two rings of one pair. Raises `WireError` where the peer's positions are garbage."""

    peer: int
    edge: bool  # whoever reads stands between two frames
    wants_room: bool  # something waits to be written
    quick: bool  # ports may use it
    closed: bool
    credit: int
    owed: int

    def __new__(cls, ident: int, peer: int, bell: int, credit: int) -> Lane: ...
    def map_out(self, fd: int, capacity: int, /) -> None: ...
    def map_in(self, fd: int, capacity: int, /) -> None: ...
    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Write what there is room for; how many bytes that was."""

    def read_into(self, memory: memoryview, /) -> int:
        """Read what there is, at most as much as fits; how many bytes that was."""

    def stirs(self) -> bool:
        """There is something to read, or there is room and it is wanted."""

    def arm(self) -> bool:
        """Have the bell rung as soon as the lane stirs. True: it does already."""

    def empty(self) -> bool:
        """Nothing is there to be read."""

    def queues(self, pending: deque[Any], streams: deque[Any], /) -> None:
        """What waits to be written: while there is any, no port may write."""

    def close(self) -> None:
        """Never touch the memory again. It is unmapped with the object."""

class Port:
    """The short cut of small messages in one context; what it does not do, it leaves untouched."""

    source: int  # rank, tag and payload bytes of what was received last
    tag: int
    length: int
    given: Any  # a value received that its caller may not have got; a pickle as the list of its parts
    landed: bool  # what was received last is in the caller's array
    thread: int  # that received it

    def __new__(
        cls,
        ident: int,
        context: int,
        members: tuple[int, ...],
        arrivals: dict[Any, Any],
        receives: dict[Any, Any],
        broken: dict[Any, Any],
        locked: Callable[[], bool],
        threads: Callable[[], int],
        spin: float,
        yields: bool,
        array_type: type,
        describe: Callable[[Any], bytes | None],
        new_array: Callable[[bytes], Any],
        dumps: Callable[..., bytes],
        loads: Callable[..., Any],
    ) -> Port: ...
    def attach(self, lane: Lane, /) -> None:
        """Use this lane for the rank at its other end."""

    def send(self, value: object, rank: int, tag: int, fingerprint: int = 0, /) -> bool:
        """Send it now and whole, or False. Raises what pickling raises."""

    def recv(self, rank: int, tag: int, out: Any, fingerprint: int = 0, /) -> Any:
        """The next message from ``rank`` with ``tag`` (-1: any), or `NotImplemented`. Raises what unpickling raises."""

def stirring(lanes: list[Lane], /) -> list[Lane]:
    """Those that stir."""

def arm_all(lanes: list[Lane], /) -> bool:
    """Arm every one of them. True: one stirs already."""

def spin(lanes: list[Lane], limit: int, yields: bool, /) -> bool:
    """Look, without the GIL, for ``limit`` nanoseconds at most, until one stirs: True."""
