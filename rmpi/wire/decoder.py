"""Bytes in, frames out, without owning the payload's memory.

A parser with a ``feed(bytes)`` method copies every payload out of its buffer. This one *lends*: it says
where the next bytes should be written (`FrameDecoder.writable`), is told how many arrived
(`FrameDecoder.wrote`), and asks its owner for the payload's memory as soon as header and metadata are
known. The kernel then writes straight into the final array.

Two modes. Between small frames it lends a staging buffer, so that one read brings many frames; a payload
that came along is copied out. After a large payload it lends exactly one header, so that the next payload
of the same transfer is never read into staging. `staged` counts the payload bytes that were copied.

Told not to read ahead, it always lends exactly what the frame at hand still needs: then whatever lies beyond a frame
is still where it came from, for somebody else to read.

Frames are handed out one at a time, and memory for a frame is not asked for before the one in front of it
was handed out: whoever matches messages sees them in the order in which they were sent, whether they have a
payload or not.

The invariant: between calls, the staging buffer holds less than one header plus metadata, or `_views` is
not empty and the staging buffer is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rmpi.errors import WireError
from rmpi.wire.frames import HEADER_SIZE, METADATA_LIMIT, Frame, Kind, decode_header

STAGING = 64 << 10
"""Bytes of the staging buffer; at least a header with the longest metadata."""

FEW = 512
"""Bytes of the staging buffer that suffice for most frames, where nothing is read ahead."""

LARGE = 16 << 10
"""Bytes of payload from which the next read asks for one header only."""

assert STAGING >= HEADER_SIZE + METADATA_LIMIT

Lend = Callable[[Frame], list[memoryview]]
"""Called with a frame's header and metadata; returns writable memory of together ``length`` bytes."""


class FrameDecoder:
    """Turns a stream of bytes into frames.

    Args:
        lend: Where the payload of a frame shall go. It may raise `WireError` to refuse the frame.
        ahead: Whether bytes of later frames may be asked for together with those of the present one.

    Raises `WireError` from `wrote` for anything that is not a stream of frames; it is unusable then.
    """

    def __init__(self, lend: Lend, *, ahead: bool = True) -> None:
        self._lend = lend
        self._ahead = ahead
        self._staging = memoryview(bytearray(STAGING if ahead else FEW))
        self._start = 0  # of what is staged and not yet parsed
        self._end = 0
        self._want = 0 if ahead else HEADER_SIZE  # bytes missing to parse what is staged; 0: as many as come
        self._frame: Frame | None = None  # whose payload is being filled
        self._views: list[memoryview] = []  # what is left of its memory, last piece first
        self.staged = 0

    def writable(self) -> memoryview:
        """Where the next bytes go: pass it to ``recv_into``. Never empty."""
        if self._views:
            return self._views[-1]
        if self._want:
            if self._end + self._want > len(self._staging):
                self._grow()
            return self._staging[self._end : self._end + self._want]
        return self._staging[self._end :]

    def wrote(self, count: int) -> Iterator[Frame]:
        """Account for ``count`` > 0 bytes written there: the frames they finish, in order, often none.

        Exhaust it before anything else is asked of the decoder.
        """
        if not self._views:
            self._end += count
            yield from self._parse()
        elif self._fill(count):
            yield self._finish()

    def resume(self, frame: Frame, views: list[memoryview]) -> None:
        """Go on in the middle of a payload that somebody else has read so far; ``views`` are what is left of it.

        Only between two frames, of a decoder that does not read ahead.
        """
        frame.segments = views
        self._frame = frame
        self._views = [view for view in reversed(views) if view.nbytes]

    def relocate(self, belongs: Callable[[Frame], bool], views: list[memoryview]) -> None:
        """Let the payload being read, if its frame ``belongs``, go on at the same place in other memory.

        Args:
            views: Memory in order whose *end* is where the end of this payload belongs; what was
                written before must have been copied there by the caller.
        """
        if self._frame is None or not belongs(self._frame):
            return
        missing = sum(view.nbytes for view in self._views)
        self._views = []
        for view in reversed(views):
            if not missing:
                break
            piece = view[max(0, view.nbytes - missing) :]
            if piece.nbytes:
                self._views.append(piece)
                missing -= piece.nbytes

    def mid_frame(self) -> bool:
        """Whether a frame has begun and is not finished. At end of file: True means it was torn."""
        return self._frame is not None or self._end > self._start

    def _fill(self, count: int) -> bool:
        """Whether the payload is whole with ``count`` bytes more."""
        view = self._views.pop()
        if count < view.nbytes:
            self._views.append(view[count:])
        return not self._views

    def _finish(self) -> Frame:
        frame, self._frame = self._frame, None
        assert frame is not None
        self._want = HEADER_SIZE if frame.length >= LARGE or not self._ahead else 0
        return frame

    def _parse(self) -> Iterator[Frame]:
        exactly, self._want = self._want > 0, 0
        while not self._views:
            have = self._end - self._start
            if have < HEADER_SIZE:
                self._want = HEADER_SIZE - have if (exactly and have) or not self._ahead else 0
                break
            frame, metadata = decode_header(self._staging, self._start)
            body = self._start + HEADER_SIZE
            if have < HEADER_SIZE + metadata:
                self._want = HEADER_SIZE + metadata - have if self._start == 0 else 0
                break
            frame.metadata = bytes(self._staging[body : body + metadata])
            self._start = body + metadata
            if self._open(frame):
                yield frame
        self._compact()

    def _open(self, frame: Frame) -> bool:
        """Borrow memory for the payload and move into it what is already here. Whether that was all of it."""
        if not frame.length or frame.kind is Kind.OFFER:
            return True
        views = self._lend(frame)
        if sum(view.nbytes for view in views) != frame.length:
            raise WireError(f"memory lent for {frame} does not have its length")
        frame.segments = views
        self._frame = frame
        self._views = [view for view in reversed(views) if view.nbytes]
        self._drain()
        if self._views:
            return False
        self._frame = None
        return True

    def _drain(self) -> None:
        """Copy staged payload bytes to where they belong."""
        while self._views and self._start < self._end:
            view = self._views[-1]
            count = min(view.nbytes, self._end - self._start)
            view[:count] = self._staging[self._start : self._start + count]
            self._start += count
            self.staged += count
            if count == view.nbytes:
                self._views.pop()
            else:
                self._views[-1] = view[count:]

    def _grow(self) -> None:
        """Have room for the longest metadata."""
        staging = memoryview(bytearray(STAGING))
        staging[: self._end] = self._staging[: self._end]
        self._staging = staging

    def _compact(self) -> None:
        have = self._end - self._start
        if have and self._start:
            self._staging[:have] = bytes(self._staging[self._start : self._end])
        self._start, self._end = 0, have
