"""The half of a channel that gets: a box, and what is known of those who put there.

A message comes by the short cut of the transport, or the long way. In either case it is its taker's only when the call
has returned: if a signal handler raises before, the message is the next in line again.

Messages that somebody took who wanted one of another kind are put *aside* (`Aside`). They are the first of all then,
and until they are gone nothing is received by the short cut.

The module `rmpi.places.channel` says who hears of which end.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from functools import partial
from threading import RLock
from typing import Any, NamedTuple, NoReturn

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerExited, PeerLost
from rmpi.places.aside import EVERY, Aside, Came
from rmpi.places.outlet import NO_SHORTCUT, ChannelStatistics, Outlet
from rmpi.places.whereabouts import Address, Member
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.handover import MAIN_THREAD, Handover, is_long
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.matching import ANY, Receive
from rmpi.transport.operation import Operation
from rmpi.transport.peers import fresh
from rmpi.transport.shortcut import NOTHING, Shortcut

REPLIES = 256
"""Ways back that a channel keeps open, the oldest first to go; whoever holds a reply channel keeps it anyway."""

PASSED = Deadline(0.0)

READY = Operation()
"""What a channel is watched by that has something."""

READY.finish()

OVER = Operation()
"""What a channel is watched by that has nothing, and will have nothing."""

OVER.finish(PeerExited("nothing will come any more"))


class _End:
    """What a channel puts last, when it is closed."""

    def __reduce__(self) -> str:
        return "END"


END = _End()


class Message(NamedTuple):
    """A message, and the channel to answer it by."""

    value: Any
    reply: Outlet


_new_message = tuple.__new__  # a third of what Message(…) takes


class Inlet(Outlet):
    """What can be got from, besides being put into."""

    def __init__(self, member: Member, address: Address | None, *, box: int = 0, label: str = "") -> None:
        """Make one.

        Args:
            member: This process' part in the system.
            address: Where to put; None: nowhere.
            box: Where to get from; 0: a new box, when it is needed.
            label: What to call the other side, if there is no address.
        """
        self._in: Shortcut = NO_SHORTCUT
        self._port: Shortcut | None = None
        self._handover: Handover | None = None
        self._box = box
        self._received = 0
        self._replies: dict[tuple[int, int], Outlet] = {}
        self._ended: PeerLost | None = None  # the other side has closed its end
        self._pending = False  # there was a death that `get` has to tell of,
        self._former = 0  # of this endpoint,
        self._in_doubt = False  # and something may be lost by it
        self._doubtful = 0  # so many messages
        self._aside: Aside | None = None
        self._sorting = RLock()  # held while messages are put aside; not while waiting
        self._laid_aside = Operation()  # ends, and is replaced, when some were
        super().__init__(member, address, answers=box, label=label)

    # ------------------------------------------------------------------------------------ by the short cut

    def get(self, timeout: float | None = None) -> Any:
        """The next message: its value, which belongs to the caller.

        Args:
            timeout: Seconds; None waits as long as it takes; 0 takes what is there.

        Raises:
            DeadlineExceeded: No message came in time. Nothing is lost: a later `get` gets it.
            PeerLost: The other side died; once for each death of a place that is restarted.
            PeerExited: The other side ended well, or closed its end, and nothing of it is left to be got.
            ChannelClosed: This channel was closed here.

        Neither is a message lost when a signal handler raises out of this call: it is the next in line again.
        """
        return self._next(timeout, whole=False)

    def receive(self, timeout: float | None = None) -> Message:
        """The next message, with the channel to answer it by.

        Args, errors: As for `get`.

        Returns:
            ``message, reply = channel.receive()``: what is put to ``reply`` is got by whoever has put the message, and
            by nobody else. ``reply`` may be kept, and sent to others, who then can answer.

        Raises:
            Exception: The message cannot be unpickled here, and is gone. Its ``reply`` is the channel to answer it by.
        """
        try:
            message: Message = self._next(timeout, whole=True)
        except Exception as error:
            if "origin" in error.__dict__:
                error.__dict__["reply"] = self._reply_to(*error.__dict__.pop("origin"))
            raise
        return message

    def _next(self, timeout: float | None, *, whole: bool) -> Any:
        """The next value; ``whole``: as a `Message`."""
        short = self._in
        deadline = None
        if timeout is None or is_long(timeout):
            try:
                value = short.recv(ANY, ANY, None)
                if value is NOTHING and self._may_doze():
                    deadline = Deadline.after(timeout)
                    self._endpoint.doze(self._box, ANY, ANY, members=self._members(), deadline=deadline)
                    value = short.recv(ANY, ANY, None)
                if type(value) is Receive:
                    value, origin = self._landed(value, deadline or Deadline.after(timeout))
                    if whole and value is not END:  # the port tells of an earlier message still
                        whole, value = False, Message(value, self._reply_to(*origin))
                if value is END:
                    self._note_end()
                    short.given = None
                elif value is not NOTHING:
                    if whole:
                        reply = self._replies.get((short.source, short.tag))
                        if reply is None or reply._closed:
                            reply = self._reply_to(short.source, short.tag)
                        value = _new_message(Message, (value, reply))
                    self._received += 1
                    self._answered = self._sent
                    short.given = None  # a plain store: no handler can run between here and the caller
                    return value
            except BaseException as error:
                handlers = short.thread == MAIN_THREAD
                SHIELD.depth += handlers  # plain stores, as above: no second handler may run before all is back
                self._give_back(error, handlers)
        return self._get(deadline or Deadline.after(timeout), EVERY, whole)

    def _may_doze(self) -> bool:
        """Whether only a message, or what the transport knows, can end the wait."""
        return (
            self._aside is None
            and self._in is not NO_SHORTCUT
            and (self._where is None or (self._where.endpoint != 0 and not self._where.shares))
            and self._why_over() is None
        )

    def _landed(self, receive: Receive, deadline: Deadline) -> tuple[Any, tuple[int, int]]:
        """A large message that has begun to come: its value, and where an answer to it goes."""
        assert self._handover is not None
        value = self._handover.finish(receive, deadline)
        assert receive.arrival is not None
        return value, (receive.arrival.source, receive.arrival.tag)

    def _give_back(self, error: BaseException, handlers: bool) -> NoReturn:
        if self._handover is not None:
            self._handover.give_back(None, error, handlers)
        self._fail(f"get from {self._whence()}", error)

    # ------------------------------------------------------------------------------------ the long way

    def _get(self, deadline: Deadline, kind: Hashable, whole: bool) -> Any:
        """The next value of a kind."""
        shielded = SHIELD.enter()
        try:
            came = self._take(deadline, kind)
            result = Message(came.value, self._reply_to(came.source, came.tag)) if whole else came.value
        except BaseException as error:
            if shielded:
                SHIELD.leave()
            self._fail(f"get from {self._whence()}", error)
        self._received += 1
        self._answered = self._sent
        if self._in_doubt and came.source == self._former:  # it came in the same breath as the news of the end
            self._lost -= self._doubtful
            self._in_doubt = False
        if shielded:
            SHIELD.leave(self._put_back, came)
        return result

    def _put_back(self, came: Came) -> None:
        """Nobody got it: it is the next in line again."""
        self._received -= 1
        if came.receive is not None:
            self._endpoint.abandon((came.receive,))
        elif self._aside is not None:
            with self._sorting:
                self._aside.put_back(came)
                self._in = NO_SHORTCUT

    def _take(self, deadline: Deadline, kind: Hashable) -> Came:
        """The next message of a kind."""
        while kind is EVERY:
            laid_aside = self._laid_aside
            came = self._take_aside(EVERY) or self._take_new(deadline, laid_aside)
            if came is not None:
                return came
        return self._sort(deadline, kind)

    def _take_new(self, deadline: Deadline, laid_aside: Operation) -> Came | None:
        """The next message that comes. None: something has changed, look again."""
        self._check_open()
        self._open_box()
        receive = self._await(deadline, laid_aside)
        if receive is None:
            return None
        assert self._handover is not None
        assert receive.arrival is not None
        source, tag = receive.arrival.source, receive.arrival.tag
        value = self._handover.take(receive)
        if value is END:
            self._note_end()
            return None
        return Came(value, source, tag, receive)

    def _await(self, deadline: Deadline, laid_aside: Operation) -> Receive | None:
        """A receive that is done. None: something has changed."""
        where = self._where
        changes = [where.change] if where is not None else []  # a thread may end, whose endpoint goes on
        over = self._why_over()
        if over is not None:
            return self._look(over)
        members = self._members()
        if self._aside is not None:
            changes.append(laid_aside)
        receive = self._endpoint.start_receive(self._box, ANY, ANY, members=members)
        if changes:
            try:
                self._endpoint.watch((receive, *changes), deadline, first=True)
            except BaseException:
                self._endpoint.abandon((receive,))
                raise
            if not receive.done and not deadline.passed():
                self._endpoint.abandon((receive,))
                return None
        self._endpoint.wait((receive,), deadline)
        return receive

    def _look(self, over: PeerLost) -> Receive:
        """What there is; else raise why nothing will come."""
        try:
            return self._endpoint.receive(self._box, ANY, ANY, deadline=PASSED)
        except DeadlineExceeded:
            self._pending = False
            raise fresh(over) from None

    # ------------------------------------------------------------------------------------ by kind

    def _sort(self, deadline: Deadline, kind: Hashable) -> Came:
        """The next message of a kind. Those before it are put aside, by one thread at a time: their order stays.

        Who puts one aside tells the others, who may wait for just that.
        """
        while True:
            laid_aside = self._laid_aside
            with self._sorting:
                came = self._take_aside(kind) or self._take_of(kind)
            if came is not None:
                return came
            operations = (*self._probe(), laid_aside)
            try:
                stirred = self._endpoint.watch(operations, deadline, first=True)
            finally:
                self._endpoint.abandon(operations)
            if not stirred:
                raise DeadlineExceeded("timeout passed and no such message came; nothing is lost")

    def _take_aside(self, kind: Hashable) -> Came | None:
        if not self._aside:
            return None
        with self._sorting:
            came = self._aside.take_kind(kind)
            if not self._aside and self._port is not None:
                self._in = self._port
            return came

    def _take_of(self, kind: Hashable) -> Came | None:
        """Of those that have come, the first of that kind."""
        with suppress(DeadlineExceeded):
            while True:
                came = self._take_new(PASSED, self._laid_aside)
                if came is not None and self._suits(came, kind):
                    return came
        return None

    def _suits(self, came: Came, kind: Hashable) -> bool:
        """Whether it is of that kind; else it is put aside."""
        aside = self._aside
        assert aside is not None
        assert came.receive is not None
        try:
            suits = aside.kind_of(came.value) == kind
            if not suits:
                aside.check_room()
        except BaseException:
            self._endpoint.abandon((came.receive,))
            raise
        if not suits:
            aside.put(came._replace(receive=None))
            self._in = NO_SHORTCUT
            laid_aside, self._laid_aside = self._laid_aside, Operation()
            self._endpoint.end(laid_aside)
        return suits

    # ------------------------------------------------------------------------------------ who is there

    def _why_over(self) -> PeerLost | None:
        """Why it is of no use to wait; None: it is.

        Who has ended well may have sent more, which is on its way; the transport knows when all has come (`_members`),
        unless others go on there. These send all before it is told that they have ended.
        """
        where = self._where
        if where is None:
            return self._ended
        if self._pending:
            return None if isinstance(where.why, PeerExited) and not where.shares else where.why
        return where.error or self._ended

    def _members(self) -> frozenset[int]:
        """The endpoint without which nothing will come."""
        if self._where is not None:
            endpoint = self._former if self._pending else self._where.endpoint
        else:
            endpoint = self._address.endpoint if self._address is not None else 0
        return frozenset((endpoint,)) if endpoint else frozenset()

    def _whence(self) -> str:
        """From whom something is got, in words."""
        return self._label

    def _note_end(self) -> None:
        """The other side has closed its end; nothing of it follows."""
        self._ended = PeerExited(f"{self._label} has closed its end of this channel; nothing more will come")

    def _reply_to(self, source: int, tag: int) -> Outlet:
        """The way back to a box."""
        key = source, tag
        reply = self._replies.get(key)
        if reply is None or reply._closed:
            address = Address(self._member.system, 0, source, tag, self._member.describe(source))
            reply = self._replies[key] = Outlet(self._member, address, answers=self._box)
            if len(self._replies) > REPLIES:
                self._replies.pop(next(iter(self._replies)), None)
        return reply

    # ------------------------------------------------------------------------------------ news

    def poll(self) -> bool:
        """Whether `get` would not wait: there is a message, or an error to be raised."""
        self._check_open()
        self._endpoint.progress()
        return self._glance()[0]

    @property
    def over(self) -> bool:
        """Whether nothing is left to be got, and nothing will come any more."""
        return not self._pending and self._glance()[1] is not None

    def _glance(self) -> tuple[bool, BaseException | None]:
        """Whether the first operation of `readiness` has ended, and with which error."""
        operations = self.readiness()
        seen = operations[0].done, operations[0].error
        self._endpoint.abandon(operations)
        return seen

    def readiness(self) -> tuple[Operation, ...]:
        """For whoever waits for several things, as a `Selectable`.

        If the first operation has ended with an error, nothing will come any more.
        """
        laid_aside = self._laid_aside
        return (READY,) if self._aside else (*self._probe(), laid_aside)

    def _probe(self) -> tuple[Operation, ...]:
        """`readiness`, but for what was put aside."""
        where = self._where
        change = where.change if where is not None else None
        if self._closed or self._why_over() is not None:
            return (READY,) if self._pending or self._endpoint.queued(self._box) else (OVER,)
        try:
            self._open_box()
            probe: Operation = self._endpoint.start_probe(self._box, ANY, ANY, self._members())
        except ChannelClosed:
            return (OVER,)
        return (probe,) if change is None else (probe, change)

    def place_ended(self, former: int) -> None:
        """As a `Follower`: `get` tells of it, once."""
        lost = self._lost
        super().place_ended(former)
        self._doubtful = self._lost - lost
        self._in_doubt = self._doubtful > 0 or (self._pending and self._in_doubt)
        self._pending, self._former = True, former

    def _unheard(self, former: int) -> int:
        return 0 if self._box and self._endpoint.queued(self._box, former) else super()._unheard(former)

    def _why_lost(self, error: PeerLost) -> BaseException:
        if not self._pending or self._where is None or self._where.why is None:
            return error
        self._pending = False
        return fresh(self._where.why)

    # ------------------------------------------------------------------------------------ itself

    @property
    def box(self) -> int:
        """The number of the box from which this gets."""
        if not self._box:
            with self._lock:
                self._box = self._tag = self._box or self._member.new_box()
        return self._box

    def _open_box(self) -> None:
        if self._port is not None:
            return
        box = self.box
        with self._lock:
            if self._port is None:
                self._check_open()
                port = self._endpoint.open_box(box)
                self._handover = Handover(self._endpoint, box, port, int, self._member.describe)
                self._port = self._in = port

    def _prepare(self) -> None:
        super()._prepare()
        if self._ended is not None:
            raise fresh(self._ended)
        if not self._in_doubt:
            self._pending = False  # who puts again has not waited for what the dead one owed
        if not self._tag:
            self._tag = self.box

    def statistics(self) -> ChannelStatistics:
        """What went through this end so far; makes progress."""
        if not self._closed:
            self._endpoint.progress()
        queued = self._endpoint.queued(self._box) + len(self._aside or ())
        return ChannelStatistics(self._sent, self._received, queued, self._lost)

    def _shut(self) -> None:
        """Drop what has come."""
        super()._shut()
        self._in = NO_SHORTCUT
        if self._box:
            _drop_box(self._endpoint, self._box, self._port)

    def _releases(self) -> Iterator[Callable[[], None]]:
        yield from super()._releases()
        if self._box:
            yield partial(_drop_box, self._endpoint, self._box, self._port)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._sent} sent, {self._received} received"
        return f"<{type(self).__name__} to {self._label}: {state}>"


def _drop_box(endpoint: Endpoint, box: int, port: Shortcut | None) -> None:
    """Nobody gets from it any more: what is in it, and what comes, is dropped."""
    with suppress(ChannelClosed):
        endpoint.close_box(box, port or endpoint.open_box(box))
