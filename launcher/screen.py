"""Writing to the terminal, and reading from it, without ever keeping the job waiting.

A terminal may be stopped (Ctrl-S), a pipe full, a reader slow; a heartbeat must go out all the same. So two
threads stand between the job's loop and the launcher's own standard streams. They are bounded by the job's
own flow control: output counts as shown only when it was written, and input is read only when the last piece
was taken.
"""

from __future__ import annotations

import os
import queue
import select
import sys
import threading
from collections.abc import Callable

CHUNK = 64 << 10


def complain(text: str) -> None:
    """Write to standard error. That nobody can read it any more must not change the exit code."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        to_nowhere(2)


def to_nowhere(fd: int) -> None:
    """Have a stream that cannot be written end at /dev/null, lest the interpreter complains of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)


class Screen:
    """Writes in a thread of its own, in order.

    Args:
        broken: Called, from the thread, when standard output cannot be written any more.
    """

    def __init__(self, broken: Callable[[OSError], None]) -> None:
        self._queue: queue.SimpleQueue[tuple[int, bytes, Callable[[], None] | None] | None] = queue.SimpleQueue()
        self._broken = broken
        self.error: OSError | None = None  # why standard output cannot be written any more
        self._closed: set[int] = set()
        self._thread = threading.Thread(target=self._work, name="screen", daemon=True)
        self._thread.start()

    def write(self, fd: int, data: bytes, done: Callable[[], None] | None = None) -> None:
        """Write ``data`` to ``fd`` after all that was given before; then call ``done``, from the thread."""
        self._queue.put((fd, data, done))

    def close(self, patience: float | None = None) -> None:
        """Return when everything is written, or ``patience`` (seconds) is lost."""
        self._queue.put(None)
        self._thread.join(patience)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            fd, data, done = item
            if fd not in self._closed:
                self._write(fd, data)
            if done is not None:
                done()

    def _write(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[_write_some(fd, view) :]
        except OSError as error:
            self._closed.add(fd)
            if fd == 1:
                self.error = error
                self._broken(error)


def _write_some(fd: int, data: memoryview) -> int:
    """``write``, also where somebody who shares the terminal or pipe with us has made it non-blocking."""
    while True:
        try:
            return os.write(fd, data)
        except BlockingIOError:
            select.select([], [fd], [])


class Keyboard:
    """Reads standard input in a thread of its own, a piece at a time.

    Args:
        typed: Called, from the thread, with each piece; empty at the end. `more` asks for the next one.
    """

    def __init__(self, typed: Callable[[bytes], None]) -> None:
        self._typed = typed
        self._wanted = threading.Semaphore(1)

    def start(self) -> None:
        threading.Thread(target=self._work, name="keyboard", daemon=True).start()

    def more(self) -> None:
        """The last piece was taken."""
        self._wanted.release()

    def _work(self) -> None:
        data = b"-"
        while data:
            self._wanted.acquire()
            try:
                data = os.read(0, CHUNK) if _may_read() else b""
            except OSError:
                data = b""
            self._typed(data)


def _may_read() -> bool:
    """Whether reading standard input is harmless: a background job that reads a terminal is stopped."""
    try:
        return not os.isatty(0) or os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return True
