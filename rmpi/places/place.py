"""This process as a place: its control socket to the router, and the endpoint behind which its peers are.

The control socket is inherited (``RMPI_FD=number:inode``, checked, because a number alone may be anybody's).
It brings the `Welcome`, then what `Links` makes links of: connected sockets, or doors of other nodes to dial.

What the router says arrives within progress, like everything else: a place that computes hears nothing
until it calls the library again.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from rmpi.errors import (
    ChannelClosed,
    CollectiveMismatch,
    Deadlock,
    LaunchError,
    PeerExited,
    PeerLost,
    RankFailed,
    RmpiError,
)
from rmpi.places.attachment import Attachment
from rmpi.places.control import Control, wait_for
from rmpi.places.messages import (
    ALL,
    Abort,
    Ask,
    Broken,
    Called,
    Ended,
    Joined,
    Left,
    Message,
    Revoke,
    StillBlocked,
    Welcome,
    WhatCalled,
)
from rmpi.places.reporter import Reporter
from rmpi.places.witness import Witness, only_these_threads

if TYPE_CHECKING:
    pass

FD_VARIABLE = "RMPI_FD"

WELCOME_LIMIT = 1.0
"""Seconds to wait for the router's first message, which it sends before it starts us."""

_ERRORS: dict[str, type[RmpiError]] = {kind.__name__: kind for kind in (CollectiveMismatch, ChannelClosed, Deadlock)}
"""What `Broken` may say."""

_reporter: Reporter | None = None
_control: Control | None = None


def reporter_at(fd: int) -> Reporter:
    """The reporter of this process over the control socket ``fd``, which it shares with `Place`.

    A process that is forked from here is no place: it has neither.
    """
    global _control, _reporter
    if _reporter is None:
        _control = Control(socket.socket(fileno=fd))
        _reporter = Reporter(_control)
        os.register_at_fork(after_in_child=_control.close)
    return _reporter


def control_at(fd: int) -> Control:
    """The control socket ``fd`` of this process, for a place that is none of a job."""
    reporter_at(fd)
    assert _control is not None
    return _control


def reporter_of_this_process() -> Reporter | None:
    """The reporter, where this process is a place."""
    return _reporter


def forget() -> None:
    """In a fork that is to be a place of another job: what this process was before is not so any more."""
    global _control, _reporter
    _control = _reporter = None


def inherited_fd(environ: Mapping[str, str]) -> int | None:
    """The control socket that this process was started with; None if it was not started by a node.

    Raises:
        LaunchError: The environment names one, and it is not there.
    """
    given = environ.get(FD_VARIABLE)
    if given is None:
        return None
    try:
        number, inode = map(int, given.split(":"))
        found = os.fstat(number)
    except (ValueError, OSError):
        number, inode, found = -1, 0, None
    if found is None or found.st_ino != inode or not stat.S_ISSOCK(found.st_mode):
        raise LaunchError(
            f"{FD_VARIABLE}={given} names a socket that this process does not have: something between "
            f"rmpi-run and this program closed it, or this is a child of a rank. Unset {FD_VARIABLE} to run alone"
        )
    return number


class Calls(Protocol):
    """What was called in a place, for its router to compare."""

    def call_of(self, context: int, sequence: int) -> tuple[int, str] | None:
        """Fingerprint and text of what was called as collective ``sequence``; None: nothing yet."""

    def last_calls(self) -> list[tuple[int, int, int, str]]:
        """Context, number, fingerprint and text of the last collective of each communicator."""

    def unfinished(self) -> list[str]:
        """What was begun and has not ended, in words."""


class Place(Attachment):
    """This process' part in a job.

    Attributes:
        welcome: What the router said first.
    """

    def __init__(self, fd: int) -> None:
        """Join the job."""
        self._calls: Calls | None = None
        self._reporter = reporter_at(fd)
        self._reporter.install()
        assert _control is not None
        self._left = self._aborted = False
        os.set_inheritable(fd, False)
        self.welcome, early = _await_welcome(_control)
        super().__init__(
            _control,
            self.welcome.members[self.welcome.rank],
            early,
            crowded=self.welcome.crowded,
            unmatched_limit=self.welcome.unmatched_limit,
        )
        self._witness = self._make_witness()
        self._tell(Joined())

    def serve(self, calls: Calls) -> None:
        """Answer for ``calls``, which are made in this place."""
        self._calls = calls

    def _make_witness(self) -> Witness:
        self.endpoint.stays.quiet = only_these_threads
        self.endpoint.stays.descriptors.add(self._control.fileno())
        return Witness(self.endpoint, self._tell, self.welcome.members.index, self._called)

    def _called(self, context: int, sequence: int) -> tuple[int, str] | None:
        return self._calls.call_of(context, sequence) if self._calls is not None else None

    def _name_of(self, endpoint: int) -> str:
        rank = self.welcome.members.index(endpoint)
        return f"rank {rank} on {self.welcome.hosts[rank]}"

    def _neighbours(self) -> int:
        hosts = self.welcome.hosts
        return hosts.count(hosts[self.welcome.rank])

    # ------------------------------------------------------------------------ towards the router

    def called(self, context: int, sequence: int, fingerprint: int, what: str) -> None:
        self._tell(Called(context, sequence, fingerprint, what, self._left))  # who leaves will not raise it

    def mismatch(self, context: int, sequence: int, fingerprint: int, what: str, other: int) -> None:
        self.called(context, sequence, fingerprint, what)
        self._tell(Ask(other, context, sequence))

    def revoke(self, context: int, why: str) -> None:
        self._tell(Revoke(context, why))

    def abort(self, code: int, why: str) -> None:
        """Have the job ended; this process leaves it as it is, and owes nobody anything any more."""
        self._aborted = True
        self._tell(Abort(code, why))
        self._control.drain()

    def leave(self) -> None:
        """Send out what waits, tell every peer and the router; nothing can be communicated afterwards."""
        if self._left or self.pid != os.getpid():
            return
        self._left = True
        if not (self._reporter.crashed or self._aborted):
            if self._calls is not None:
                for line in self._calls.unfinished():
                    print(f"rmpi: rank {self.welcome.rank}: {line}", file=sys.stderr, flush=True)
                for last in self._calls.last_calls():
                    self.called(*last)
            self.endpoint.finish()
            self._tell(Left())
            self._control.drain()
        self.endpoint.close()

    # ---------------------------------------------------------------------- what the router says

    def _heard(self, message: Message) -> None:
        match message:
            case Ended():
                self._peer_ended(message)
            case Broken(context, error, text) if context == ALL:
                self.endpoint.break_all(_ERRORS[error](text))
            case StillBlocked(round_):
                self._witness.asked(round_)
            case Broken(context, error, text):
                self.endpoint.break_contexts([context, context + 1], _ERRORS[error](text))
            case WhatCalled(context, sequence):
                mine = self._called(context, sequence)
                if mine is not None:
                    self.called(context, sequence, *mine)

    def _peer_ended(self, ended: Ended) -> None:
        if ended.endpoint == self.endpoint.ident:
            return
        error: PeerLost
        if ended.failed:
            error = RankFailed(ended.rank, ended.host, ended.cause)
        else:
            error = PeerExited(
                f"rank {ended.rank} on {ended.host} has ended; nothing more will come from it, and it will take nothing"
            )
        self.endpoint.peer_ended(ended.endpoint, error)

    def _lost_router(self) -> None:
        """Without a router nobody would tell us of the death of others: everything ends here."""
        for rank, member in enumerate(self.welcome.members):
            if member != self.endpoint.ident:
                self.endpoint.peer_ended(
                    member, RankFailed(rank, self.welcome.hosts[rank], "the router of this host is gone")
                )


def _await_welcome(control: Control) -> tuple[Welcome, list[tuple[Message, list[int]]]]:
    """What the router says first, and what has come behind it."""
    ready = wait_for(control.fileno(), select.POLLIN, WELCOME_LIMIT)
    messages = control.receive() if ready else []
    if not messages or not isinstance(messages[0][0], Welcome):
        raise LaunchError(
            "the router that started this process does not answer: either it is gone, or another program that was "
            "started as this rank has joined the job already, and a rank can join only once"
        )
    return messages[0][0], messages[1:]
