"""A process as a member of a system: its endpoint, what it asks of the head, and what it hears of other places.

The user's program is one, and every place that is a process. Requests are answered by the head, wherever that is;
whoever waits for an answer makes progress meanwhile, and any thread may ask.
"""

from __future__ import annotations

import itertools
import logging
import select
import threading
from collections.abc import Callable
from typing import Any

from rmpi import errors
from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded, LaunchError, PeerExited, PeerLost, RmpiError
from rmpi.places import membership
from rmpi.places.attachment import Attachment, spin_seconds
from rmpi.places.control import Control, wait_for
from rmpi.places.messages import Joined, Left, Message
from rmpi.places.place import WELCOME_LIMIT
from rmpi.places.reporter import shortened
from rmpi.places.system_messages import (
    Answer,
    Declined,
    EndpointGone,
    Enrolled,
    Follow,
    PlaceAt,
    PlaceDown,
    PlaceGone,
    PlaceShown,
    Record,
    RunThread,
    StopThread,
    Withdraw,
    unpack_values,
)
from rmpi.places.whereabouts import Whereabouts
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.operation import Operation

News = PlaceAt | PlaceDown | PlaceGone | PlaceShown


class Fate:
    """What becomes of a place, for those who wait for its end.

    Attributes:
        gone: Done when it has ended for good.
        over: Done when, besides, all that it wrote was shown.
        last: The last that was heard of it; None if nothing was.
        pid: Of its process; 0 while there is none.
        restarts: How often it was restarted.
        hears: Called with all news of it, within progress.
    """

    def __init__(self) -> None:
        self.gone = Operation()
        self.over = Operation()
        self.last: PlaceAt | PlaceDown | PlaceGone | None = None
        self.pid = self.restarts = 0
        self.hears: list[Callable[[News], None]] = []

    def begins(self, pid: int) -> None:
        """It was started, as the answer to who asked for it says; news follow."""
        if self.last is None:
            self.pid = pid

    def heard(self, news: News) -> None:
        if news == self.last:  # it is told to each that asks
            return
        if isinstance(news, PlaceShown) and not self.gone.done:  # the rest of what was told before we asked
            return
        match news:
            case PlaceAt(_, _, _, pid, restarts, _):
                self.pid, self.restarts = pid, restarts
            case PlaceDown():
                self.pid = 0
            case PlaceGone():
                self.pid = 0
        if not isinstance(news, PlaceShown):
            self.last = news
        for hear in tuple(self.hears):
            hear(news)
        if isinstance(news, PlaceGone):
            self.gone.finish()
        elif isinstance(news, PlaceShown):
            self.over.finish()

    def lose(self, place: int, error: PeerLost) -> None:
        """Nothing more will be heard of it: whoever waits gets that error. Within progress."""
        if self.gone.done:
            self.over.finish()
            return
        self.pid = 0
        for hear in tuple(self.hears):
            hear(PlaceGone(place, str(error), 0, True, ""))
        self.gone.finish(error)
        self.over.finish(error)


class _Reply(Operation):
    """What a request is waiting for."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        super().__init__()
        self.values: Any = None


class Member(Attachment):
    """This process in one system.

    Attributes:
        enrolled: What the head has said of us.
        on_thread: Called with orders to run places as threads; only a thread host has it. Within progress.
    """

    def __init__(self, control: Control) -> None:
        """Take what the head has said first, and say that we are here.

        Raises:
            LaunchError: Nothing was said.
        """
        self.enrolled, early = _await_enrolment(control)
        self._numbers = itertools.count(1)
        self._replies: dict[int, _Reply] = {}
        self._whereabouts: dict[int, Whereabouts] = {}
        self._fates: dict[int, Fate] = {}
        self._labels: dict[int, str] = {}
        self.on_thread: Callable[[RunThread | StopThread], None] | None = None
        self.lost_because = "the system has ended: this process has no head any more"
        self._lost: PeerLost | None = None
        super().__init__(
            control,
            self.enrolled.endpoint,
            early,
            crowded=self.enrolled.crowded,
            unmatched_limit=self.enrolled.unmatched_limit,
        )
        self._tell(Joined())

    def _make_endpoint(self, ident: int, *, crowded: bool, unmatched_limit: int) -> Endpoint:
        return membership.new_endpoint(
            ident,
            self._connect,
            spin=spin_seconds(SPIN),
            crowded=crowded,
            unmatched_limit=unmatched_limit,
            name_of=self._name_of,
        )

    def _connect(self, peer: int) -> None:
        if self._lost is not None:
            self.endpoint.link_failed(peer, self._lost)
        else:
            self._links.connect(peer)

    @property
    def system(self) -> int:
        """The number of the system."""
        return self.enrolled.system

    def new_box(self) -> int:
        """The number of a box that there was not yet."""
        return membership.box_number(self.system, self.endpoint.ident, next(self._numbers))

    def inbox_of(self, place: int) -> int:
        """The number of the box in which a place gets its messages, before and after a restart."""
        return membership.box_number(self.system, place)

    def describe(self, endpoint: int) -> str:
        """What to call whoever is behind an endpoint."""
        return self._name_of(endpoint)

    # ---------------------------------------------------------------------- towards the head

    def ask(self, make: Callable[[int], Message], timeout: float | None = None, what: str = "the request") -> Any:
        """Ask the head, and wait for the answer.

        Args:
            make: Makes the request of its number.

        Raises:
            DeadlineExceeded: No answer came in time; a place or node that was asked for is ended again.
            RmpiError: The head declines: whatever it says.
            PeerLost: There is no head any more.
        """
        number = next(self._numbers)
        reply = self._replies[number] = _Reply()
        if self._lost is not None:
            reply.finish(self._lost)
        try:
            self._tell(make(number))
            self.endpoint.wait((reply,), Deadline.after(timeout))
        except BaseException as error:  # such as Ctrl-C
            if error is not reply.error:
                self._tell(Withdraw(number))
            if isinstance(error, DeadlineExceeded):
                raise DeadlineExceeded(f"{what} was not done after {timeout:g} s") from None
            raise
        finally:
            self._replies.pop(number, None)
        return reply.values

    def tell(self, message: Message) -> None:
        """Say something that needs no answer."""
        self._tell(message)

    def log(self, record: Record) -> None:
        """Have a record of logging appear at the head."""
        self._tell(record)

    def whereabouts(self, place: int) -> Whereabouts:
        """Where that place is, kept up to date from now on."""
        fresh = Whereabouts(place, f"place {place}")
        known = self._whereabouts.setdefault(place, fresh)
        if known is fresh:
            self._follow(place)
        return known

    def fate(self, place: int) -> Fate:
        """What becomes of that place, from now on."""
        fresh = Fate()
        known = self._fates.setdefault(place, fresh)
        if known is fresh:
            self._follow(place)
        return known

    def _follow(self, place: int) -> None:
        self._tell(Follow(place))
        if self._lost is not None:
            self.endpoint.crank.post(self._lose_all)

    def leave(self, deadline: Deadline = Deadline.NEVER) -> None:
        """Send out what waits, as far as there is time, and tell everybody. Nothing can be communicated afterwards."""
        self.endpoint.finish(deadline)
        self._tell(Left())
        self._control.drain()
        self._close_endpoint("this process has left the system")

    def close(self, why: str = "this process has left the system") -> None:
        """Drop everything at once. Whoever wants something then is told ``why`` that cannot be."""
        self._close_endpoint(why)
        self._control.close()

    def _close_endpoint(self, why: str) -> None:
        self.endpoint.crank.why_closed = why
        self.endpoint.close()

    # ---------------------------------------------------------------------- what the head says

    def _heard(self, message: Message) -> None:
        match message:
            case Answer(number, packed):
                self._answered(number, unpack_values(packed))
            case Declined(number, error, text):
                self._answered(number, None, _error_of(error, text))
            case PlaceAt() | PlaceDown() | PlaceGone() | PlaceShown():
                self._news(message)
            case EndpointGone():
                self._endpoint_gone(message)
            case RunThread() | StopThread() if self.on_thread is not None:
                self.on_thread(message)

    def _answered(self, number: int, values: Any, error: RmpiError | None = None) -> None:
        reply = self._replies.get(number)
        if reply is not None:
            reply.values = values
            reply.finish(error)

    def _news(self, news: News) -> None:
        whereabouts = self._whereabouts.get(news.place)
        if whereabouts is not None:
            self._move(whereabouts, news)
        fate = self._fates.get(news.place)
        if fate is not None:
            fate.heard(news)
        if isinstance(news, PlaceGone):  # whoever asks again is told again
            self._whereabouts.pop(news.place, None)
        if fate is not None and fate.over.done:
            self._fates.pop(news.place, None)

    def _move(self, whereabouts: Whereabouts, news: News) -> None:
        match news:
            case PlaceAt(_, endpoint, label, _, _, thread):
                self._labels[endpoint] = whereabouts.label = label
                whereabouts.shares = thread
                if whereabouts.endpoint != endpoint:  # it is told to each that asks
                    whereabouts.moved(endpoint)
            case PlaceDown(_, cause, _):
                why = PeerLost(f"{whereabouts.label} has ended ({cause}), and is to be restarted")
                self._end_peer(whereabouts, why)
                whereabouts.down(why)
            case PlaceGone(_, cause, _, failed):
                final = _ending(whereabouts.label, cause, failed)
                self._end_peer(whereabouts, final)
                whereabouts.gone(final)

    def _end_peer(self, whereabouts: Whereabouts, error: PeerLost) -> None:
        """A place has ended, and with it its endpoint, of which we may not have heard because it was not connected.

        Unless it was a thread; what that had sent counts as well.
        """
        if whereabouts.endpoint and whereabouts.shares:
            self.endpoint.drain(whereabouts.endpoint)
        elif whereabouts.endpoint:
            self._end_endpoint(whereabouts.endpoint, error)

    def _end_endpoint(self, endpoint: int, error: PeerLost) -> None:
        self._labels.pop(endpoint, None)
        self.endpoint.peer_ended(endpoint, error)
        self.endpoint.forget(endpoint)

    def _endpoint_gone(self, gone: EndpointGone) -> None:
        """A process has ended; what is to become of its place follows."""
        error = _ending(gone.label, gone.cause, gone.failed)
        self._end_endpoint(gone.endpoint, error)
        for whereabouts in tuple(self._whereabouts.values()):
            if whereabouts.endpoint == gone.endpoint:
                whereabouts.down(error)

    def _lost_router(self) -> None:
        self._lost = PeerLost(self.lost_because)
        self._lose_all()

    def _lose_all(self) -> None:
        """Nothing will be heard any more: end all that waits. Within progress."""
        assert self._lost is not None
        for reply in tuple(self._replies.values()):
            reply.finish(self._lost)
        for whereabouts in tuple(self._whereabouts.values()):
            if whereabouts.error is None:
                whereabouts.gone(self._lost)
        for place, fate in tuple(self._fates.items()):
            fate.lose(place, self._lost)
        for peer in (*self.endpoint.peers(), self.endpoint.ident):  # whoever waits at a box of ours, waits for others
            self.endpoint.peer_ended(peer, self._lost)

    def _name_of(self, endpoint: int) -> str:
        return self._labels.get(endpoint, "another place")

    def _neighbours(self) -> int:
        """Places come and go, so nobody knows: the more links we have, the smaller are the next ones."""
        return max(NEIGHBOURS, 2 * self.endpoint.linked)


SPIN = 1e-4
"""Seconds to look before sleeping: a tenth of a rank's, for nobody knows how many places share the cores, and to be
waited for by a server that looks for longer than an answer takes costs the others more than it saves."""

NEIGHBOURS = 16
"""Among so many places of a machine the memory for rings is divided, as long as there are no more links than half."""


OF_THREAD = threading.local()
"""``place``: the number of the place that this thread is."""


class ForwardLogs(logging.Handler):
    """Sends records of the standard library's logging to that of the head's process."""

    def __init__(self, member: Member) -> None:
        super().__init__()
        self._member = member

    def emit(self, record: logging.LogRecord) -> None:
        try:
            place = getattr(OF_THREAD, "place", 0)
            text = shortened(self.format(record))
            level, created = int(record.levelno), float(record.created)  # routers take nothing that is only like them
            self._member.log(Record(place, level, record.name, text, created))
        except Exception:
            self.handleError(record)


def _ending(label: str, cause: str, failed: bool) -> PeerLost:
    return PeerLost(f"{label} has failed: {cause}") if failed else PeerExited(f"{label} has ended: {cause}")


def _error_of(name: str, text: str) -> RmpiError:
    kind = getattr(errors, name, RmpiError)
    error = kind(text)
    assert isinstance(error, RmpiError)
    return error


def _await_enrolment(control: Control) -> tuple[Enrolled, list[tuple[Message, list[int]]]]:
    ready = wait_for(control.fileno(), select.POLLIN, WELCOME_LIMIT)
    messages = control.receive() if ready else []
    if not messages or not isinstance(messages[0][0], Enrolled):
        raise LaunchError("the node that started this place does not answer")
    return messages[0][0], messages[1:]
