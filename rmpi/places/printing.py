"""What places write becomes whole lines, and somebody shows them.

Output comes over routers in pieces cut anywhere. `Lines` puts the lines of each source together; `Printer` hands them
on in a thread of its own, so that a terminal that was stopped stops nobody else, and tells when they are out: whoever
sends output sends no more than a budget that is not.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Literal

OutputTo = Callable[[int, int, str], object] | Literal["discard"] | None
"""Who gets the lines that ranks write: called with the rank, the stream (1 or 2) and the line without its end."""

HOLD = 1 << 20
"""Bytes of an unfinished line that are held; a longer one is passed on in parts."""


class Lines:
    """Puts together the lines of each source (a rank, a place) and stream."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], bytearray] = {}

    def feed(self, source: int, stream: int, data: bytes) -> list[str]:
        """The lines that ``data`` finishes, without their ends; empty data ends the stream, and its last line."""
        held = self._held.setdefault((source, stream), bytearray())
        held += data
        if data and b"\n" not in data and len(held) <= HOLD:
            return []
        *lines, rest = bytes(held).split(b"\n")
        if not data or len(rest) > HOLD:
            lines, rest = [*lines, *([rest] if rest else [])], b""
        if data:
            held[:] = rest
        else:
            del self._held[source, stream]
        return [line.decode(errors="replace") for line in lines]


def write_line(_source: int, stream: int, line: str) -> None:
    """To the stream that is ours at this moment: notebooks and tests put others in its place."""
    target = sys.stdout if stream == 1 else sys.stderr
    try:
        target.write(line + "\n")
        target.flush()
    except Exception:  # nobody reads it, it was closed, there is none, or it is the program's own and fails
        pass  # for want of a place to say so; the thread that writes has others to serve


class Printer:
    """Writes what ranks write, in whole lines, in a thread of its own.

    Attributes:
        error: What the callable that was given for the output raised; ``failed`` was called then.
    """

    def __init__(self, output: OutputTo, failed: Callable[[], None]) -> None:
        self._output = write_line if output is None else output
        self._failed = failed
        self.error: Exception | None = None
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lines = Lines()
        self._thread = threading.Thread(target=self._run, name="rmpi output", daemon=True)
        self._thread.start()

    def write(self, source: int, stream: int, data: bytes, shown: Callable[[], None]) -> None:
        """Take what was written, cut anywhere; empty at the end of the stream."""
        if self._output != "discard":
            self._queue.put(partial(self._take, source, stream, data))
        self._queue.put(shown)

    def say(self, line: str) -> None:
        """A line of our own."""
        self._queue.put(partial(write_line, -1, 2, line))

    def then(self, work: Callable[[], None]) -> None:
        """Call this when all that was given so far is out. In the thread that writes."""
        self._queue.put(work)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()

    def _take(self, source: int, stream: int, data: bytes) -> None:
        for line in self._lines.feed(source, stream, data):
            self._put(source, stream, line)

    def _put(self, source: int, stream: int, line: str) -> None:
        if self.error is not None or isinstance(self._output, str):
            return
        try:
            self._output(source, stream, line)
        except Exception as error:
            self.error = error
            self._failed()
