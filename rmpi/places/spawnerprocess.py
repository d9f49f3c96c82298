"""A node's side of its spawner: the process that `Ignition` has started, its control socket and its last words.

Whoever forks and reaps places for a node is its `Parent`. Usually that is a spawner, a process of its own; where places
are forks of the node's own process, as under pytest, it is something else.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Protocol

from rmpi.places.control import Control
from rmpi.places.ends import signal_name
from rmpi.places.ignition import Ignition
from rmpi.places.loop import Loop
from rmpi.places.messages import Begin, Message, Refused, Up

SPAWNER_GRACE = 2.0
"""Seconds for a spawner to end what is below it, before it is killed itself."""

STDERR_KEPT = 4096
"""Bytes of what the spawner said last, for the message when it does not come up."""

READ_SIZE = 64 << 10


class Parent(Protocol):
    """Whoever forks and reaps places for a node: `_SpawnerProcess`, or the node's own process."""

    @property
    def ended_well(self) -> bool:
        """Once it has ended: whether it did so itself, and all that was below it first."""

    def send(self, message: Message, fds: Iterable[int] = ()) -> None:
        """`Fork`, with descriptors that stay the caller's, or `Signal`. Answered by `Up`, `Forked`, `Reaped`."""

    def end(self) -> None:
        """End all that is below it, and itself."""

    def last_words(self) -> str:
        """Why it ended without being asked to."""

    def disown(self) -> None:
        """In a fork of the node's process: close our end of the life line, which is not the fork's."""


MakeParent = Callable[[Loop, Begin, Callable[[Message], None], Callable[[bool], None]], Parent]
"""Called with the loop, the job, what to call with each message, and what to call at the end: whether `Parent.end`
was called before."""


class SpawnerProcess:
    """The node's side of its spawner."""

    def __init__(
        self,
        loop: Loop,
        ignition: Ignition,
        said: Callable[[Message], None],
        ended: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._said = said
        self._ended = ended
        self._expected = False
        self._up = False
        self._refusal: str | None = None
        self._stderr = b""
        self._python = ignition.python
        self._process = ignition.process
        self._control = Control(ignition.control)
        assert self._process.stderr is not None
        self._stderr_fd = self._process.stderr.fileno()
        os.set_blocking(self._stderr_fd, False)
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.register(self._pidfd, lambda _mask: self._collect())
        loop.register(self._control.fileno(), self._stir)
        loop.register(self._stderr_fd, lambda _mask: self._read_stderr())

    def send(self, message: Message, fds: Iterable[int] = ()) -> None:
        if not self._control.send(message, tuple(fds)):
            self._loop.modify(self._control.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def end(self) -> None:
        """Have it kill what is below it, and exit."""
        if self._expected or self._control.closed:
            return
        self._expected = True
        self._control.shut()
        if self._up:
            self._loop.call_later(SPAWNER_GRACE, self._insist)
        else:  # it is importing, and does not listen
            self._insist()

    def disown(self) -> None:
        self._control.close()

    def abandon(self) -> None:
        """Have it end, as `end` does, and wait for that: the loop turns no more."""
        self._control.close()
        try:
            self._process.wait(SPAWNER_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._pidfd)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _insist(self) -> None:
        if self._process.poll() is None:
            self._process.kill()

    def _stir(self, mask: int) -> None:
        if mask & select.EPOLLOUT and self._control.flush():
            self._loop.modify(self._control.fileno(), select.EPOLLIN)
        if mask & ~select.EPOLLOUT:
            self._hear()

    def _hear(self) -> None:
        for message, _ in self._control.receive():
            if isinstance(message, Refused):
                self._refusal = message.text
                continue
            self._up = self._up or isinstance(message, Up)
            self._said(message)
        if self._control.closed:
            self._loop.unregister(self._control.fileno())

    def _collect(self) -> None:
        """The process has ended."""
        self._hear()
        self._process.wait()
        self._read_stderr()
        for fd in (self._pidfd, self._control.fileno(), self._stderr_fd):
            self._loop.unregister(fd)
        os.close(self._pidfd)
        self._control.close()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._ended(self._expected)

    def _read_stderr(self) -> None:
        try:
            data = os.read(self._stderr_fd, READ_SIZE)
        except BlockingIOError:
            return
        if not data:
            self._loop.modify(self._stderr_fd, 0)
        elif self._up:
            sys.stderr.write(data.decode(errors="replace"))
            sys.stderr.flush()
        self._stderr = (self._stderr + data)[-STDERR_KEPT:]

    @property
    def ended_well(self) -> bool:
        """Whether it has ended itself, and all that was below it first."""
        return self._process.returncode == 0

    def last_words(self) -> str:
        """Why it ended without being asked to."""
        status = self._process.returncode
        how = f"was killed by {signal_name(-status)}" if status < 0 else f"ended with exit status {status}"
        if self._refusal is not None:
            return self._refusal
        if self._up:
            return f"its spawner {how}"
        said = self._stderr.decode(errors="replace").strip()
        if said.endswith("No module named 'rmpi'"):
            return f"{self._python} has no rmpi: install it there, or choose another interpreter with --python"
        return f"{self._python} cannot be the ranks' interpreter: it {how}" + (f", and said:\n{said}" if said else "")
