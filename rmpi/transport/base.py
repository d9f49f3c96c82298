"""The waist: what an endpoint asks of a link, and what a link asks of its endpoint.

A link carries frames between two endpoints over one medium, in order, in both directions. It decides
nothing: it does not match, count credit or know a communicator. An endpoint polls its links and hands
frames to them; nobody else does.

    send(frame)       the frame is on its way when this returns, and the caller may change its memory:
                      what the medium does not take at once is copied. Only for small frames.
    stream(transfer)  a large payload: DATA frames leave piece by piece, behind all small frames that are
                      waiting, straight from the sender's memory. `Transfer.finish` is called at the end.
    flush()           push what waits; True when nothing is left
    receive()         what has come, frame by frame; memory for payloads comes from `Sink.lend`
    fileno()          what to sleep on, or -1 for a link that rings its endpoint's doorbell instead
    hear()            the descriptor is readable

Every medium passes the same tests (`rmpi.testing.conformance`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from rmpi.transport.operation import Awaited, Operation
from rmpi.wire.frames import CHUNK, Buffer, Frame, Kind

if TYPE_CHECKING:
    from rmpi.transport._ring import Lane


class Sink(Protocol):
    """Whoever gets the frames that come over a link: an endpoint, or a node."""

    def lend(self, frame: Frame) -> list[memoryview]:
        """Memory for the payload of ``frame``, whose header and metadata have come.

        Every frame that was sent before this one has been handed out by `Link.receive`.
        """


class Transfer(Operation):
    """A message's way out. Small ones are done at once; large ones when their last byte has left."""

    __slots__ = (
        "context",
        "destination",
        "fingerprint",
        "granted",
        "length",
        "message",
        "metadata",
        "offset",
        "segments",
        "skipped",
        "source",
        "table",
        "tag",
    )

    def __init__(
        self,
        source: int,
        destination: int,
        context: int,
        tag: int,
        fingerprint: int,
        metadata: bytes,
        segments: Sequence[Buffer],
        length: int,
    ) -> None:
        super().__init__()
        self.source = source
        self.destination = destination
        self.context = context
        self.tag = tag
        self.fingerprint = fingerprint
        self.metadata = metadata
        self.segments = segments
        self.length = length
        self.message = 0
        self.offset = 0  # bytes handed to the medium
        self.skipped = 0  # bytes of the message that `segments` do not begin with any more
        self.granted = False
        self.table: dict[int, Transfer] | None = None  # where it is listed until done

    def offer(self, message: int, table: dict[int, Transfer]) -> None:
        """Become an offered message with this number, listed in ``table`` until done."""
        self.message = message
        self.table = table
        table[message] = self

    def finish(self, error: BaseException | None = None) -> None:
        if self.table is not None:
            self.table.pop(self.message, None)
        if error is None:
            self.segments = ()  # whoever keeps the request of a send need not keep what was sent
        super().finish(error)

    def awaited(self) -> Awaited:
        return Awaited(self.destination, self.context, self.tag, incoming=False)

    def frame(self, kind: Kind) -> Frame:
        """This message's EAGER or OFFER frame."""
        return Frame(
            kind,
            self.source,
            self.destination,
            self.context,
            self.tag,
            self.fingerprint,
            self.message,
            self.length,
            self.metadata,
            self.segments if kind is Kind.EAGER else (),
        )

    def own(self) -> None:
        """Copy what the medium has not been handed yet, so that the caller may change the value."""
        if all(isinstance(segment, bytes) for segment in self.segments):
            return  # nobody can change it
        self.segments = [bytes(view) for view in self.views(self.offset, self.length - self.offset)]
        self.skipped = self.offset

    def next_data(self) -> Frame:
        """The next DATA frame; moves `offset` past it."""
        views = self.views(self.offset, min(CHUNK, self.length - self.offset))
        length = sum(view.nbytes for view in views)
        frame = Frame(
            Kind.DATA,
            self.source,
            self.destination,
            self.context,
            self.offset,
            0,
            self.message,
            length,
            b"",
            views,
        )
        self.offset += length
        return frame

    def views(self, start: int, count: int) -> list[memoryview]:
        """``count`` bytes of the payload from ``start`` on, which must not have been forgotten."""
        views = []
        start -= self.skipped
        for segment in self.segments:
            view = memoryview(segment)
            if start < view.nbytes and count:
                piece = view[start : start + count]
                views.append(piece)
                count -= piece.nbytes
                start = 0
            else:
                start = max(0, start - view.nbytes)
        return views


class Link(ABC):
    """Frames between this endpoint and ``peer``.

    Attributes:
        peer: The endpoint at the other end.
        closed: The peer's direction has ended; nothing more will come.
        more: The last `receive` stopped to give others their turn; more may have come already.
        medium: ``"memory"``, ``"unix"``, ``"tcp"``, …
        lane: The shared memory that must be looked at as well, because no descriptor tells of it.
    """

    medium = "none"
    lane: Lane | None = None

    def __init__(self, peer: int) -> None:
        self.peer = peer
        self.closed = False
        self.more = False

    @abstractmethod
    def send(self, frame: Frame) -> None: ...

    @abstractmethod
    def stream(self, transfer: Transfer) -> None: ...

    @abstractmethod
    def flush(self) -> bool: ...

    @abstractmethod
    def receive(self) -> Iterator[Frame]:
        """What has come. Memory for a frame is asked for when those before it were taken from here.

        Raises:
            WireError: It is not a stream of frames; the link is of no use any more.
        """

    @abstractmethod
    def fileno(self) -> int: ...

    def hear(self) -> None:  # noqa: B027 (most media have nothing to do)
        """The descriptor is readable; `receive` follows.

        Raises:
            WireError: As for `receive`.
        """

    @abstractmethod
    def relocate(self, belongs: Callable[[Frame], bool], views: list[memoryview]) -> None:
        """Let the payload that is being read at this moment, if it ``belongs``, go on in other memory.

        The end of ``views`` is the place of that payload; what has come of it is copied there already.
        """

    @abstractmethod
    def detach(self) -> None:
        """Have copies of whatever waits here and is somebody's memory: `Transfer.own` was called."""

    @abstractmethod
    def finish(self) -> None:
        """Say that nothing will follow; what was sent still arrives, and then the peer's end is `closed`."""

    @abstractmethod
    def settled(self) -> bool:
        """Whether all that was sent is out of this process' hands for good."""

    @abstractmethod
    def sent(self) -> int:
        """How much was ever given to this link to carry; what waits here is among it."""

    @abstractmethod
    def taken(self) -> int:
        """How much of what was ever sent at the other end has been taken out of here, counted as it is there."""

    @abstractmethod
    def close(self) -> None:
        """Drop everything that waits; the peer's end is `closed` as if this end were broken off."""

    def __repr__(self) -> str:
        return f"<{self.medium} link to {self.peer:#x}{' closed' if self.closed else ''}>"
