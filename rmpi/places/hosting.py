"""What runs in a place: the call that it was spawned for, with its mailbox; or, in a thread host, many of them.

The call is unpacked here, so whatever it imports is imported here. Who spawned the place is told when it begins, or
why it cannot. An exception that leaves the call ends the place as it would end any program; its traceback goes to the
head, who shows it.

A place is no rank: `rmpi.init` gives it a communicator of its own alone.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import Any

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, LaunchError, UsageError
from rmpi.places import membership
from rmpi.places.channel import Address, Mailbox
from rmpi.places.member import OF_THREAD, ForwardLogs, Member
from rmpi.places.messages import Message
from rmpi.places.parcels import Call
from rmpi.places.place import FD_VARIABLE, control_at, inherited_fd
from rmpi.places.reporter import shortened, traceback_text
from rmpi.places.system_messages import NotStarted, RunThread, Started, StopThread, ThreadEnded

CRASHED = 1

FLUSH_LIMIT = 10.0
"""Seconds for what a thread has put to go out, before others are told that it has ended."""

with suppress(ImportError):
    import_module("cloudpickle")  # what travels by value needs it; the spawner imports this module for all its places


def main() -> None:
    """Make the call that this place was spawned for."""
    fd = inherited_fd(os.environ)
    if fd is None:
        raise LaunchError("this is the program of a place; it does nothing by itself")
    del os.environ[FD_VARIABLE]
    os.set_inheritable(fd, False)
    member = Member(control_at(fd))
    membership.register(member)
    os.register_at_fork(after_in_child=member.disown)
    _forward_logs(member)
    try:
        if not member.enrolled.parcel:
            ThreadHost(member).run()
        else:
            _run(member)
    except SystemExit:
        member.leave()
        raise
    except BaseException:  # the others hear of it from their routers
        member.endpoint.close()
        raise
    member.leave()


def _forward_logs(member: Member) -> None:
    root = logging.getLogger()
    root.addHandler(ForwardLogs(member))
    root.setLevel(member.enrolled.level)


def _run(member: Member) -> None:
    """The call of a place that is a process."""
    enrolled = member.enrolled
    mailbox = _mailbox(member, enrolled.place, enrolled.owner, enrolled.reply)
    begin = _prepared(0, enrolled.parcel, mailbox)
    if isinstance(begin, NotStarted):
        member.tell(begin)
        sys.exit(CRASHED)
    member.tell(Started(0))
    begin()


def _mailbox(member: Member, place: int, owner: int, reply: int) -> Mailbox:
    parent = Address(member.system, 0, owner, reply, "whoever spawned this place") if reply else None
    return Mailbox(member, member.inbox_of(place), parent)


def _prepared(place: int, parcel: bytes, mailbox: Mailbox) -> Callable[[], object] | NotStarted:
    """The call, ready to be made; or why it cannot be."""
    try:
        target, args, kwargs = Call.from_bytes(parcel).unpacked()
        function = resolve(target) if isinstance(target, str) else target
        prepare = getattr(function, "prepare", None)
        if prepare is not None:
            return prepare(mailbox, *args, **kwargs)  # type: ignore[no-any-return]
        return partial(function, mailbox, *args, **kwargs)
    except BaseException as error:  # also SystemExit: whoever spawned it is told
        return NotStarted(place, "RemoteError", shortened(traceback_text(error, _frames_of_users(error))).rstrip())


def _frames_of_users(error: BaseException) -> TracebackType | None:
    """Its traceback without ours, and without those of the import that we asked for."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(("rmpi.", "importlib")):
        trace = trace.tb_next
    return trace


def resolve(target: str) -> Callable[..., Any]:
    """The function that ``"module:function"`` names; the latter may have dots.

    Raises:
        UsageError: It is not of that form, or there is no such thing.
        Exception: The module cannot be imported.
    """
    check_target(target)
    module, _, path = target.partition(":")
    found: Any = import_module(module)
    for name in path.split("."):
        if not hasattr(found, name):
            raise UsageError(f"{target!r}: {module} has no {path}")
        found = getattr(found, name)
    if not callable(found):
        raise UsageError(f"{target!r} cannot be called: it is {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def check_target(target: str) -> None:
    """Whether it is of the form ``module:function``.

    Raises:
        UsageError: It is not.
    """
    module, colon, path = target.partition(":")
    names = [*module.split("."), *path.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        raise UsageError(f"{target!r} names no function: write 'module:function', or give the function itself")


class ThreadHost:
    """Runs the places of a node that are threads. One of them that fails leaves the others as they are."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._mailboxes: dict[int, Mailbox] = {}
        self._over = threading.Event()
        member.on_thread = self._ordered

    def run(self) -> None:
        """Wait for orders, for ever: the place is ended from outside."""
        self._member.tell(Started(0))
        inbox = _mailbox(self._member, self._member.enrolled.place, 0, 0)
        inbox.get()  # makes progress; nobody knows this place, so nothing comes

    def _ordered(self, order: RunThread | StopThread) -> None:
        """Within progress: what may block happens in the thread."""
        match order:
            case RunThread(place, label):
                name = f"place {label}"
                threading.Thread(target=self._run_one, args=(order,), name=name, daemon=True).start()
            case StopThread(place):
                threading.Thread(target=self._stop, args=(place,), daemon=True).start()

    def _stop(self, place: int) -> None:
        mailbox = self._mailboxes.get(place)
        if mailbox is not None:
            mailbox.close()

    def _run_one(self, order: RunThread) -> None:
        member, place = self._member, order.place
        mailbox = _mailbox(member, place, order.owner, order.reply)
        self._mailboxes[place] = mailbox
        OF_THREAD.place = place
        begin = _prepared(place, order.parcel, mailbox)
        if isinstance(begin, NotStarted):
            last: Message = begin
        else:
            member.tell(Started(place))
            last = ThreadEnded(place, *_outcome(begin, mailbox))
        del self._mailboxes[place]
        mailbox.close()  # before the head may start it again: its next incarnation has the same inbox
        member.endpoint.flush(Deadline.after(FLUSH_LIMIT))
        member.tell(last)


def _outcome(begin: Callable[[], object], mailbox: Mailbox) -> tuple[int, str]:
    """Make the call: its exit status as if it were a process, and its traceback."""
    try:
        begin()
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0, ""
        print(ending.code, file=sys.stderr)
        return CRASHED, ""
    except BaseException as error:
        if isinstance(error, ChannelClosed) and mailbox.closed:  # it was told to end
            return 0, ""
        return CRASHED, shortened(traceback_text(error, _frames_of_users(error)))
    return 0, ""
