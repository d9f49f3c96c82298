"""Whole lines out of a pipe that delivers bytes as it likes.

Many ranks write to one terminal. A rank's `print` may arrive in pieces, or many of them at once; what is
handed on is cut only where a line ends, so that no other rank's text gets into the middle of one. Bytes stay
bytes: no decoding, nothing added, nothing dropped. The invariant: all that came out, then what is held, is
all that went in.

Two things are let go before their newline: a progress display that has come to rest at a carriage return,
which is meant to be seen now, and a line so long that holding on to it would cost memory without bound.
"""

from __future__ import annotations

LINE_LIMIT = 64 << 10
"""Bytes of an unfinished line held back; a longer one goes out in parts, and others may get between them."""


class LineSplitter:
    """Cuts one stream after its newlines. Does no I/O.

    Args:
        limit: Bytes of an unfinished line held between two calls; 0 lets everything through as it comes.
    """

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._held = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> bytes:
        """Take what was read; return what may be shown now: any number of whole lines, or nothing.

        It ends with a newline; or with the carriage return that ``data`` ended with; or anywhere, if what is
        left of an unfinished line would have exceeded ``limit``.
        """
        searched = len(self._held)
        self._held += data
        return self._release(self._ready(searched))

    def finish(self) -> bytes:
        """What is held of an unfinished line, at the end of the stream or when a prompt should be seen.

        Afterwards nothing is held, and `feed` may go on.
        """
        return self._release(len(self._held))

    def _ready(self, searched: int) -> int:
        """How many of the held bytes may go; the first ``searched`` are known to contain no newline."""
        if self._held.endswith(b"\r"):
            return len(self._held)
        lines = self._held.rfind(b"\n", searched) + 1
        return lines if len(self._held) - lines <= self._limit else len(self._held)

    def _release(self, count: int) -> bytes:
        released = bytes(self._held[:count])
        del self._held[:count]
        return released

    def __repr__(self) -> str:
        return f"<LineSplitter, {len(self._held)} bytes of an unfinished line held>"
