"""Links within one process: for ranks that are threads, and for a place that sends to itself.

It is the reference the other media are compared with, so it behaves as a wire would: frames are copied on
the way in and again on the way out, and only `CAPACITY` bytes are on the way at a time. No file
descriptor: whoever puts a frame into an inbox, or makes room in one, tells the endpoint on the other side
through `Notify`.

Thread safety is that of `collections.deque`: each inbox has one writer and one reader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from rmpi.transport.base import Link, Sink, Transfer
from rmpi.wire.frames import CHUNK, Frame, Kind

CAPACITY = 4 * CHUNK
"""Bytes of DATA on their way in one direction; beyond, the sender waits for room."""

Notify = Callable[["MemoryLink"], None]
"""Called, from any thread, when a link has frames to receive or room to send."""


class MemoryLink(Link):
    medium = "memory"

    def __init__(self, peer: int, sink: Sink, notify: Notify) -> None:
        super().__init__(peer)
        self._sink = sink
        self._notify = notify
        self._inbox: deque[tuple[Frame, bytes] | None] = deque()  # None: nothing will follow
        self._under_way = 0  # bytes of DATA in the inbox, counted by the reader's and the writer's end
        self._taken = 0
        self._sent = self._received = 0  # frames
        self._streams: deque[Transfer] = deque()
        self._finishing = self._ended = False
        self._other: MemoryLink = self

    @classmethod
    def pair(cls, first: tuple[int, Sink, Notify], second: tuple[int, Sink, Notify]) -> tuple[MemoryLink, MemoryLink]:
        """Two ends; each argument is an endpoint's number, sink and notify."""
        here = cls(second[0], first[1], first[2])
        there = cls(first[0], second[1], second[2])
        here._other, there._other = there, here
        return here, there

    @classmethod
    def loop(cls, ident: int, sink: Sink, notify: Notify) -> MemoryLink:
        """A link whose other end is itself."""
        return cls(ident, sink, notify)

    def send(self, frame: Frame) -> None:
        if self._other.closed:
            return
        payload = b"".join(frame.segments)
        bare = Frame(
            frame.kind,
            frame.source,
            frame.destination,
            frame.context,
            frame.tag,
            frame.fingerprint,
            frame.message,
            frame.length,
            frame.metadata,
        )
        self._put((bare, payload))

    def _put(self, item: tuple[Frame, bytes] | None) -> None:
        self._sent += 1
        self._other._inbox.append(item)
        self._other._notify(self._other)

    def stream(self, transfer: Transfer) -> None:
        self._streams.append(transfer)
        self.flush()

    def flush(self) -> bool:
        while self._streams:
            transfer = self._streams[0]
            while transfer.offset < transfer.length:
                if self._under_way - self._other._taken >= CAPACITY:
                    return False
                frame = transfer.next_data()
                self._under_way += frame.length
                self.send(frame)
            self._streams.popleft()
            transfer.finish()
        if self._finishing:
            self._end()
        return True

    def receive(self) -> Iterator[Frame]:
        while self._inbox and not self.closed:
            item = self._inbox.popleft()
            self._received += 1
            if item is None:
                self.closed = True
                return
            self._land(*item)
            yield item[0]

    def _land(self, frame: Frame, payload: bytes) -> None:
        if not payload:
            return
        views = self._sink.lend(frame)
        frame.segments = views
        position = 0
        for view in views:
            view[:] = payload[position : position + view.nbytes]
            position += view.nbytes
        if frame.kind is Kind.DATA:
            self._taken += frame.length
            self._other._notify(self._other)

    def fileno(self) -> int:
        return -1

    def relocate(self, belongs: Callable[[Frame], bool], views: list[memoryview]) -> None:
        """Nothing to do: frames are landed whole."""

    def detach(self) -> None:
        """Nothing to do: frames are copied on their way in."""

    def finish(self) -> None:
        self._finishing = True
        self.flush()

    def _end(self) -> None:
        """Let the other side see the end of this direction, once."""
        if not self._ended:
            self._ended = True
            self._put(None)

    def settled(self) -> bool:
        return not self._streams

    def sent(self) -> int:
        return self._sent + len(self._streams)

    def taken(self) -> int:
        return self._received

    def close(self) -> None:
        self.closed = True
        self._inbox.clear()
        self._streams.clear()
        self._end()
