"""How a stub reaches its server: lines, of which every call that waits has one to itself.

A *line* is a channel to the server's inbox with a reply box of its own. A call takes an idle line, and puts it back
when it has its answer. One that was given up (time ran out, Ctrl-C, the place died) closes its line, so whatever
comes late is dropped and nobody else can take it for an answer. All lines of a process to one place share the link,
so what this process sends arrives in the order in which it was sent, whichever line it takes.

Threads need nothing more than that: each call has its own line, and they wait beside each other.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerLost, RemoteError, UsageError
from rmpi.rpc.messages import CANCEL, STOP, Raised, Refused

if TYPE_CHECKING:
    from rmpi.places.channel import Channel
    from rmpi.places.handles import Place
    from rmpi.rpc.futures import Answers

STOP_PATIENCE = 0.5
"""Seconds that a place which is being restarted has to come up before it is ended without having been told."""

_REFUSALS: dict[str, type[Exception]] = {
    "AttributeError": AttributeError,
    "TypeError": TypeError,
    "UsageError": UsageError,
}


class Connection:
    """A client's way to one server; stubs made from each other share it.

    Attributes:
        channel: To the server's inbox; the template of all lines, and what casts take.
        kind: The name of the server's class.
        place: The handle of the place, if it was spawned here; else None.
        restarts: It was spawned to be restarted when it ends.
        idle: Lines that nobody uses at the moment.
        answers: What futures wait for; None while none was asked for.
    """

    __slots__ = ("__weakref__", "answers", "channel", "closed", "idle", "kind", "place", "restarts")

    def __init__(self, channel: Channel, kind: str, place: Place | None = None, restarts: bool = False) -> None:
        self.channel = channel
        self.kind = kind
        self.place = place
        self.restarts = restarts
        self.idle: list[Channel] = []
        self.answers: Answers | None = None
        self.closed = False

    @property
    def label(self) -> str:
        """What to call the server in errors."""
        label: str = self.channel.label
        return label

    def line(self) -> Channel:
        """A line for one call; `idle` gets it back, or it is closed."""
        try:
            return self.idle.pop()
        except IndexError:
            pass
        if self.closed:
            raise ChannelClosed(f"this stub of {self.label} was closed")
        return copy(self.channel)

    def give_up(self, line: Channel, *, cancel: bool = False) -> None:
        """Nobody waits on this line any more.

        Args:
            cancel: Say so to the server, which need not begin what it has not begun, and ends a stream.
        """
        try:
            if cancel:
                line.put((CANCEL, 0), 0)
        except Exception:  # then it learns it when it answers
            pass
        finally:
            line.close()

    def stop(self, deadline: Deadline) -> None:
        """Have the server end when it has done what came before; wait until then. It is not restarted."""
        line = self.line()
        try:
            if not self.restarts:
                line.put((STOP,), deadline.left_or_none())
            elif not self._reaches(line, deadline):
                return
            line.get(deadline.left_or_none())
        except PeerLost:
            pass
        finally:
            line.close()
            if self.restarts and self.place is not None:
                self.place.terminate()

    def _reaches(self, line: Channel, deadline: Deadline) -> bool:
        """Whether the server, which may be down for long between two restarts, can be told to stop."""
        try:
            line.put((STOP,), min(STOP_PATIENCE, deadline.left()))
        except DeadlineExceeded:
            return False
        return True

    def close(self) -> None:
        """Close all lines: who still waits for an answer gets `ChannelClosed`."""
        self.closed = True
        if self.answers is not None:
            self.answers.close()
        while self.idle:
            self.idle.pop().close()
        self.channel.close()

    def error_of(self, answer: Raised | Refused, qualname: str) -> Exception:
        """The exception for an answer that is no value."""
        if type(answer) is Refused:
            error = _REFUSALS.get(answer.kind, RemoteError)(answer.text)
            if answer.kind != "UsageError":  # a stub of the same class would have said it
                error.add_note(f"said by {self.label}: its class is not the {self.kind} that is here")
            return error
        assert type(answer) is Raised
        text = f"{answer.type_name}: {answer.message}" if answer.message else answer.type_name
        remote = RemoteError(
            f"{text} (raised by {qualname} in {self.label})",
            type_name=answer.type_name,
            message=answer.message,
            traceback=answer.traceback,
        )
        remote.add_note(f"in {self.label}:\n{answer.traceback.rstrip()}")
        return remote
