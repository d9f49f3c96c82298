"""The half of a channel that puts.

It knows where to put, and on which box the answers arrive: that number is the tag of every message, so that whoever
receives it can answer, and no envelope is needed. The short cut of the transport is tried first; what it does not do
goes the long way, in which a place that is being restarted is waited for.

**Restarts.** A message goes to whichever incarnation there is at the moment, at most once. The news of a death comes
within progress (`place_ended`), and what was put since something was last heard counts as lost from then on. So `put`
makes progress first, unless it did a moment ago.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from threading import Lock
from typing import Any, NamedTuple, NoReturn

from rmpi.deadline import Deadline, now
from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerLost, UsageError
from rmpi.places.whereabouts import Address, Member, Whereabouts
from rmpi.transport.base import Transfer
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.handover import give_up_send
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.peers import fresh
from rmpi.transport.shortcut import NoShortcut, Shortcut

NO_SHORTCUT = NoShortcut()

NEWS = 0.001
"""Seconds after which `Outlet.put` looks for news of the place: what is put to one that is dead is lost."""


class ChannelStatistics(NamedTuple):
    """What went through one end of a channel.

    Attributes:
        sent: Messages that were put here and have left, or are on their way.
        received: Messages that were got here.
        queued: Messages that have come and were not got yet.
        lost: Messages to an incarnation of a place that then died, which it may not have taken: those put since the
            last message that came here before the news of its death. Each counts once, at that news. One that it had
            taken, and was working on or had no answer for, counts too; one that was put before an answer came, and
            not read when that answer was written, does not.
    """

    sent: int
    received: int
    queued: int
    lost: int


class Outlet:
    """What can be put into, and not be got from: a reply channel, or one whose answers go to another channel.

    Any thread may put. An outlet that nobody holds any more is closed by itself.
    """

    _closed = True  # until it is made

    def __init__(self, member: Member, address: Address | None, *, answers: int = 0, label: str = "") -> None:
        """Make one.

        Args:
            member: This process' part in the system.
            address: Where to put; None: nowhere.
            answers: The box on which answers arrive.
            label: What to call the other side, if there is no address.
        """
        self._member = member
        self._endpoint = member.endpoint
        self._address = address
        self._label = address.label if address is not None else label
        self._where: Whereabouts | None = None
        self._tag = answers
        self._lock = Lock()  # held while boxes and routes are opened, and never while waiting
        self._out: Shortcut = NO_SHORTCUT
        self._to = 0
        self._route: tuple[int, Shortcut] | None = None
        self._sent = self._answered = self._lost = 0
        self._stale = 0.0  # from then on, news may have been missed
        if address is not None and address.place:
            self._where = member.whereabouts(address.place)
            if not self._where.generation:  # nothing was heard of it yet
                self._where.label = address.label
            self._where.follow(self)
        self._closed = False

    # ------------------------------------------------------------------------------------ to put

    def put(self, value: object, timeout: float | None = None) -> None:
        """Send ``value`` to the other side; it may be changed when this returns.

        An array travels as raw memory and arrives with its dtype, shape and order; anything else is pickled, and
        arrays inside it travel raw too. A channel inside it arrives as a channel to where this one puts.

        Usually this returns at once. A process that is in no call of the library takes a mebibyte, or two thousand
        small messages, and then this waits until it looks. What has come and was not got is kept there up to a limit (a
        share of the machine's memory), and then this waits until something is got: nobody is flooded. It also waits
        while a place is down that is being restarted.

        Args:
            value: Anything that can be pickled. It is not modified.
            timeout: Seconds; None waits as long as it takes.

        Raises:
            UsageError: The value cannot be pickled, or there is nobody to put to.
            PeerLost: The other side is gone for good (`PeerExited`: it ended well), or it died while it was taking
                this message, and may have it or not.
            DeadlineExceeded: Time ran out; the text says whether the message was withdrawn or goes on.
            ChannelClosed: This channel was closed here.
        """
        if self._where is not None and now() > self._stale:
            self._hear_news()
        out = self._out
        try:
            sent = out.send(value, self._to, self._tag)
            if sent is True:
                self._sent += 1
                return
            if sent is not False:
                self._sent += 1
                self._finish(sent, Deadline.after(timeout))
                out.given = None
                return
        except BaseException as error:
            give_up_send(self._endpoint, out, value, error)
            self._fail(f"put to {self._label}", error)
        self._put(value, Deadline.after(timeout))

    def post(self, value: object) -> None:
        """`put` without waiting: what cannot leave at once leaves when it can.

        Nothing limits what may wait so, but whoever uses this. Messages leave in the order of their `put` and `post`.

        Args:
            value: As for `put`; arrays in it must not be changed until it has left.

        Raises:
            As for `put`; and that the other side is lost later, is not told.
        """
        if self._where is not None and now() > self._stale:
            self._hear_news()
        out = self._out
        try:
            if out.send(value, self._to, self._tag) is not False:
                self._sent += 1
                out.given = None
                return
        except BaseException as error:
            give_up_send(self._endpoint, out, value, error)
            self._fail(f"put to {self._label}", error)
        shielded = SHIELD.enter()
        try:
            self._begin(value, Deadline.NEVER)
        except Exception as error:
            self._fail(f"put to {self._label}", error)
        finally:
            if shielded:
                SHIELD.leave()

    def check(self) -> None:
        """Whether the other side is there, as far as is known here; nothing is sent.

        Raises:
            PeerLost: It is gone for good (`PeerExited`: it ended well).
            ChannelClosed: This channel was closed here.
            UsageError: There is nobody to put to.
        """
        self._prepare()
        self._endpoint.progress()
        assert self._address is not None
        where = self._where
        error = where.error if where is not None else self._endpoint.end_of(self._address.endpoint)
        if error is not None:
            raise fresh(error)

    def _hear_news(self) -> None:
        """Who has not called the library for a while may have missed that the place is behind another endpoint now."""
        if not self._closed:
            self._endpoint.progress()
        self._stale = now() + NEWS

    def _put(self, value: object, deadline: Deadline) -> None:
        """`put` the long way."""
        shielded = SHIELD.enter()
        try:
            transfer = self._begin(value, deadline)
            if not transfer.done or transfer.error is not None:
                self._finish(transfer, deadline)
        except Exception as error:
            self._fail(f"put to {self._label}", error)
        finally:
            if shielded:
                SHIELD.leave()

    def _finish(self, transfer: Transfer, deadline: Deadline) -> None:
        try:
            self._endpoint.wait((transfer,), deadline)
        except PeerLost:
            raise
        except BaseException:
            if not transfer.granted:  # it was withdrawn
                self._sent -= 1
            raise

    def _begin(self, value: object, deadline: Deadline) -> Transfer:
        while True:
            self._prepare()
            peer = self._locate(deadline)
            self._open_route(peer)
            assert self._address is not None
            try:
                transfer = self._endpoint.start_send(peer, self._address.box, self._tag, value)
            except PeerLost:
                if self._where is None or self._where.endpoint == peer:
                    raise
                continue  # it has died, which is no reason yet: nothing has left
            self._sent += 1
            return transfer

    def _prepare(self) -> None:
        """Before something is sent the long way.

        Raises:
            UsageError, ChannelClosed, PeerExited: Nothing can be sent.
        """
        self._check_open()
        if self._address is None:
            raise UsageError(f"nothing can be put to {self._label}: nobody is at the other end")
        if not self._address.box:
            raise UsageError(f"{self._label} does not want an answer: its message came without a way back")

    def _locate(self, deadline: Deadline) -> int:
        """The endpoint to put to, which is waited for."""
        assert self._address is not None
        where = self._where
        if where is None:
            return self._address.endpoint
        while True:
            change = where.change
            if where.error is not None:
                raise fresh(where.error)
            if where.endpoint:
                return where.endpoint
            if not self._endpoint.watch((change,), deadline):
                raise DeadlineExceeded(f"timeout passed, and it was not restarted ({where.why}); nothing was sent")

    def _open_route(self, peer: int) -> None:
        assert self._address is not None
        box = self._address.box
        with self._lock:
            self._check_open()
            if self._route is not None and self._route[0] != peer:
                self._close_route()
            if self._route is None:
                self._route = peer, self._endpoint.open_route(box, peer)
            self._to, self._out = self._route

    def _close_route(self) -> None:
        if self._route is not None and self._address is not None:
            peer, short = self._route
            self._out, self._route = NO_SHORTCUT, None
            self._endpoint.close_route(self._address.box, peer, short)

    def _fail(self, doing: str, error: BaseException) -> NoReturn:
        """Raise what a call of ours failed with, so that it says which channel it was."""
        if isinstance(error, PeerLost):
            raise self._why_lost(error) from None
        if type(error) is DeadlineExceeded:
            raise DeadlineExceeded(f"{doing}: {error}") from None
        if type(error) is ChannelClosed and self._closed:
            raise self._why_closed() from None
        raise error

    def _why_lost(self, error: PeerLost) -> BaseException:
        """The transport says that the other side is lost: how the place has ended, if it is that."""
        where = self._where
        if where is None or where.why is None or where.endpoint == self._to:
            return error
        return fresh(where.why)

    # ------------------------------------------------------------------------------------ news

    def place_moved(self) -> None:
        """As a `Follower`: what is put next has to look where to."""
        self._out = NO_SHORTCUT

    def place_ended(self, former: int) -> None:
        """As a `Follower`: count what is lost."""
        self._lost += self._unheard(former)
        self._answered = self._sent

    def _unheard(self, former: int) -> int:
        """How many messages that endpoint may not have taken."""
        return max(0, self._sent - self._answered)

    # ------------------------------------------------------------------------------------ to get

    def get(self, timeout: float | None = None) -> Any:
        """Nothing comes here.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"the channel to {self._label} is for answers only: nothing can be got from it")

    def receive(self, timeout: float | None = None) -> Any:
        """As `get`."""
        return self.get(timeout)

    def poll(self) -> bool:
        """As `get`."""
        return bool(self.get())

    def __iter__(self) -> Iterator[Any]:
        yield self.get()

    # ------------------------------------------------------------------------------------ itself

    @property
    def closed(self) -> bool:
        """Whether `close` was called here."""
        return self._closed

    @property
    def endpoint(self) -> Endpoint:
        """The traffic of this process' part in the system."""
        return self._endpoint

    @property
    def label(self) -> str:
        """What the other side is called."""
        return self._label

    @property
    def member(self) -> Member:
        """This process' part in the system that the channel belongs to."""
        return self._member

    @property
    def address(self) -> Address:
        """Where it puts.

        Raises:
            UsageError: Nowhere.
        """
        if self._address is None:
            raise UsageError(f"{self!r} cannot be sent: nothing can be put to {self._label}")
        return self._address._replace(system=self._member.system)

    def statistics(self) -> ChannelStatistics:
        """What went through this end so far."""
        return ChannelStatistics(self._sent, 0, 0, self._lost)

    def close(self) -> None:
        """Put nothing more. What was put still arrives. Closing it again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._shut()

    def _shut(self) -> None:
        """Give back what the transport has opened for us."""
        self._close_route()

    def _check_open(self) -> None:
        if self._closed:
            raise self._why_closed()

    def _why_closed(self) -> ChannelClosed:
        return ChannelClosed(f"this channel to {self._label} was closed")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        """In any thread, within progress too: so the transport hears of it later."""
        if not self._closed and not self._endpoint.crank.closed:
            for release in self._releases():
                self._endpoint.go_on(release)

    def _releases(self) -> Iterator[Callable[[], None]]:
        """What remains to be done when nobody holds this any more; none of it holds this."""
        if self._route is not None and self._address is not None:
            yield partial(self._endpoint.close_route, self._address.box, *self._route)

    def __reduce__(self) -> tuple[Callable[..., Outlet], Address]:
        """What is sent: the right to put where this puts."""
        from rmpi.places.channel import reach

        return reach, self.address

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._sent} sent"
        return f"<{type(self).__name__} to {self._label}: {state}>"
