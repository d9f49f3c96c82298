"""Channels: FIFO, any Python value, between two places of a system, or within one.

A channel has an address, where it puts (`Outlet`), and a *box* of its own, where answers come and `Channel.get` gets
them. Whoever receives a message gets with it a way to answer (`Message.reply`), because the message carries the number
of that box. So one inbox serves any number of clients, and each gets its own answers.

**Sending a channel** over a channel gives the other side the right to put where this one puts. It arrives as a channel
with a box of its own, for the answers to what is put there. The box of the channel that was sent does not move: what
others put there is still got here.

**One box, many threads.** Any thread may get, several at once too, and each message goes to one of them. A message that
nobody waits for can be told to a function (`Channel.on_message`).

**When the other side ends.** What it had sent comes first. After that, if the place will not come back, `get` raises
`PeerLost`, or `PeerExited` if it ended well or closed the channel; a ``for`` loop over the channel then ends. A place
that is restarted keeps its inbox: later messages reach its next incarnation. Each death makes `get` raise `PeerLost` at
most once: if it waits when the news comes, or if nothing was put since; or else if something was put before that may
be lost (`ChannelStatistics.lost`). So a call that was under way fails, and one that comes later does not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerExited, PeerLost
from rmpi.places import membership
from rmpi.places.aside import EVERY, Aside, Came, KindOf, kind_of
from rmpi.places.attendant import attend, neglect
from rmpi.places.outlet import NO_SHORTCUT, ChannelStatistics, Outlet
from rmpi.places.whereabouts import Address, Member, Whereabouts
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.eventloop import ended
from rmpi.transport.handover import MAIN_THREAD, Handover, is_long
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.matching import ANY, Receive
from rmpi.transport.operation import Operation
from rmpi.transport.peers import fresh
from rmpi.transport.shortcut import NOTHING, Shortcut

if TYPE_CHECKING:
    from rmpi.places.typed import TypedChannel

__all__ = ["Address", "Channel", "ChannelStatistics", "Mailbox", "Member", "Message", "Outlet", "Whereabouts"]

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


class Channel(Outlet):
    """One end of a channel: `put` to the other side, `get` what it answers.

    `rmpi.places.channel_pair`, `Node.connect` and `Node.spawn` return channels, and a channel that is sent over a
    channel arrives as one:

        chan = node.connect("echo")
        chan.put("Hello")
        print(chan.get(timeout=5))

        for value in chan:  # until the other side ends, or closes its end
            print(value)

    Any thread may put and get. A channel that nobody holds any more is closed by itself.
    """

    def __init__(
        self, member: Member, address: Address | None, *, box: int = 0, announces: bool = False, label: str = ""
    ) -> None:
        """Make one.

        Args:
            member: This process' part in the system.
            address: Where to put; None: nowhere.
            box: Where to get from; 0: a new box, when it is needed.
            announces: The other side waits for nobody else: tell it when this end is closed.
            label: What to call the other side, if there is no address.
        """
        self._in: Shortcut = NO_SHORTCUT
        self._port: Shortcut | None = None
        self._handover: Handover | None = None
        self._box = box
        self._announces = announces
        self._received = 0
        self._replies: dict[tuple[int, int], Outlet] = {}
        self._ended: PeerLost | None = None  # the other side has closed its end
        self._pending = False  # there was a death that `get` has to tell of
        self._former = 0  # of the endpoint that died last
        self._in_doubt = False  # and whether something may be lost by it
        self._aside: Aside | None = None
        self._callback: Callable[[Channel, Any], object] | None = None
        self._callback_replies = False
        self._claimed = False
        self._laid_aside = Operation()  # ends, and is replaced, when something was put aside
        super().__init__(member, address, answers=box, label=label)

    # ------------------------------------------------------------------------------------ to get

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
                    value = self._landed(value, deadline or Deadline.after(timeout))
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
            and (self._where is None or self._where.endpoint != 0)
            and self._why_over() is None
        )

    def _landed(self, receive: Receive, deadline: Deadline) -> Any:
        """A large message that has begun to come."""
        assert self._handover is not None
        return self._handover.finish(receive, deadline)

    def _give_back(self, error: BaseException, handlers: bool) -> NoReturn:
        if self._handover is not None:
            self._handover.give_back(None, error, handlers)
        self._fail(f"get from {self._whence()}", error)

    def _get(self, deadline: Deadline, kind: Hashable, whole: bool) -> Any:
        """The next value of a kind, the long way."""
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
        if shielded:
            SHIELD.leave(self._put_back, came)
        return result

    def _put_back(self, came: Came) -> None:
        """Nobody got it: it is the next in line again."""
        self._received -= 1
        if came.receive is not None:
            self._endpoint.abandon((came.receive,))
        elif self._aside is not None:
            with self._lock:
                self._aside.put_back(came)
                self._in = NO_SHORTCUT

    def _take(self, deadline: Deadline, kind: Hashable) -> Came:
        """The next message of a kind; those before it are put aside."""
        while True:
            laid_aside = self._laid_aside
            came = self._take_aside(kind) or self._take_new(deadline, laid_aside)
            if came is not None and self._suits(came, kind):
                return came

    def _take_aside(self, kind: Hashable) -> Came | None:
        if not self._aside:
            return None
        with self._lock:
            aside = self._aside
            came = aside.take_kind(kind)
            if not aside and self._port is not None:
                self._in = self._port
            return came

    def _suits(self, came: Came, kind: Hashable) -> bool:
        """Whether it is of that kind; else it is put aside."""
        aside = self._aside
        if kind is EVERY or aside is None or came.receive is None:
            return True
        try:
            with self._lock:
                suits = aside.kind_of(came.value) == kind
                if not suits:
                    aside.check_room()
                    aside.put(came._replace(receive=None))
                    self._in = NO_SHORTCUT
        except BaseException:
            self._endpoint.abandon((came.receive,))
            raise
        if not suits:
            self._tell_laid_aside()
        return suits

    def _tell_laid_aside(self) -> None:
        """Others may wait for what was put aside."""
        laid_aside, self._laid_aside = self._laid_aside, Operation()
        self._endpoint.end(laid_aside)

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
        changes = [laid_aside] if self._aside is not None else []
        if where is not None:
            changes += [] if where.endpoint else [where.change]
        over = self._why_over()
        if over is not None and not self._may_follow(over):
            return self._look(over)
        receive = self._endpoint.start_receive(self._box, ANY, ANY, members=self._members())
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

    def _why_over(self) -> PeerLost | None:
        """Why it is of no use to wait; None: it is."""
        where = self._where
        if where is not None and (self._pending or where.error is not None):
            return where.error or where.why
        return self._ended

    def _may_follow(self, over: PeerLost) -> bool:
        """Whether more may be on its way from who has ended: the transport knows when all has come."""
        return self._pending and isinstance(over, PeerExited)

    def _look(self, over: PeerLost) -> Receive:
        """What there is; else raise why nothing will come."""
        try:
            return self._endpoint.receive(self._box, ANY, ANY, deadline=PASSED)
        except DeadlineExceeded:
            self._pending = False
            raise fresh(over) from None

    def _members(self) -> frozenset[int]:
        """The endpoint without which nothing will come."""
        if self._where is not None:
            endpoint = self._former if self._pending else self._where.endpoint
        else:
            endpoint = self._address.endpoint if self._address is not None else 0
        return frozenset((endpoint,)) if endpoint else frozenset()

    def _whence(self) -> str:
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

    def poll(self) -> bool:
        """Whether `get` would not wait: there is a message, or an error to be raised."""
        self._check_open()
        self._endpoint.progress()
        operations = self.readiness()
        ready = operations[0].done
        self._endpoint.abandon(operations)
        return ready

    def __iter__(self) -> Iterator[Any]:
        """The messages, until the other side has ended well or closed its end, or this end is closed.

        Raises:
            PeerLost: As for `get`.
        """
        while True:
            try:
                value = self.get()
            except (PeerExited, ChannelClosed):
                return
            yield value

    async def aget(self) -> Any:
        """`get` in asyncio: other tasks run while none has come. A task that is cancelled takes no message."""
        while True:
            try:
                return self._get(PASSED, EVERY, whole=False)
            except DeadlineExceeded:
                pass
            operations = self.readiness()
            stirred = Operation()
            try:
                for operation in operations:
                    self._endpoint.hear(operation, stirred.finish)
                await ended(self._endpoint, stirred)
            finally:  # perhaps the garbage collector's, in any thread
                for operation in operations:
                    operation.unwatch(stirred.finish)
                self._endpoint.go_on(partial(self._endpoint.abandon, operations))

    def typed(self, kind_of: KindOf = kind_of, limit: int = 100_000) -> TypedChannel:
        """This channel, to get messages of a kind from: ``channel.typed().get("bank")``.

        Args:
            kind_of: Says of a message of which kind it is.
            limit: How many messages of other kinds may wait, put aside, before `TypedChannel.get` refuses to go on.
        """
        from rmpi.places.typed import TypedChannel

        with self._lock:
            aside = Aside(kind_of, limit)
            while self._aside:
                came = self._aside.take_first()
                assert came is not None
                aside.put(came)
            self._aside = aside
        return TypedChannel(self)

    # ------------------------------------------------------------------------------------ news

    def readiness(self) -> tuple[Operation, ...]:
        """For whoever waits for several things, as a `Selectable`.

        If the first operation has ended with an error, nothing will come any more.
        """
        where = self._where
        change = where.change if where is not None else None
        if self._aside or self._pending:
            return (READY,)
        if self._closed or self._why_over() is not None:
            return (READY,) if self._endpoint.queued(self._box) else (OVER,)
        try:
            self._open_box()
            probe: Operation = self._endpoint.start_probe(self._box, ANY, ANY, self._members())
        except ChannelClosed:
            return (OVER,)
        return (probe, self._laid_aside) if change is None else (probe, self._laid_aside, change)

    @property
    def over(self) -> bool:
        """Whether nothing is left to be got, and nothing will come any more."""
        operations = self.readiness()
        first = operations[0].done and operations[0].error is not None
        self._endpoint.abandon(operations)
        return first

    def on_message(self, callback: Callable[[Channel, Any], object] | None, *, replies: bool = False) -> None:
        """Have ``callback(channel, value)`` called for each message that nobody waits for; None: no more.

        A `MessageRouter` that has this channel calls it; where there is none, a thread of the library's own does. Calls
        come one after the other, and may use any channel. What ``callback`` raises there is logged (``rmpi.places``),
        and the next message is handled. The end of the other side is not told.

        Args:
            replies: Call it with a `Message`, which has the channel to answer it by, instead of the value.
        """
        self._callback, self._callback_replies = callback, replies
        self._be_attended()

    def handle(self) -> None:
        """Take the next message, and call the function that was given to `on_message`.

        Raises:
            DeadlineExceeded: There is none.
            Exception: What the function raises, and what `get` does.
        """
        callback = self._callback
        if callback is not None:
            callback(self, self._get(PASSED, EVERY, self._callback_replies))

    def claim(self) -> None:
        """Whoever calls this will call `handle`, and nobody else, until `release`."""
        self._claimed = True
        self._be_attended()

    def release(self) -> None:
        """The opposite of `claim`."""
        self._claimed = False
        self._be_attended()

    def _be_attended(self) -> None:
        attended = self._callback is not None and not self._claimed and not self._closed
        (attend if attended else neglect)(self)

    def place_ended(self, former: int) -> None:
        """As a `Follower`: `get` tells of it, once."""
        lost = self._lost
        super().place_ended(former)
        self._in_doubt = self._lost > lost or (self._pending and self._in_doubt)
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
        """Say good-bye, where somebody waits for that, and drop what has come."""
        if self._announces:
            self._announce()
        super()._shut()
        self._in = NO_SHORTCUT
        if self._callback is not None:
            neglect(self)
        if self._box:
            _drop_box(self._endpoint, self._box, self._port)

    def _announce(self) -> None:
        """As far as that is possible without waiting."""
        assert self._address is not None
        peer = self._address.endpoint if self._where is None else self._where.endpoint
        if not peer:
            return
        box = self._address.box
        with suppress(PeerLost, ChannelClosed):
            short = self._endpoint.open_route(box, peer)
            try:
                self._endpoint.start_send(peer, box, self._tag, END)
            finally:
                self._endpoint.close_route(box, peer, short)

    def _releases(self) -> Iterator[Callable[[], None]]:
        yield from super()._releases()
        if self._box:
            yield partial(_drop_box, self._endpoint, self._box, self._port)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._sent} sent, {self._received} received"
        return f"<{type(self).__name__} to {self._label}: {state}>"


class Mailbox(Channel):
    """What a place gets its messages from, whoever sends them; `put` goes to whoever spawned the place.

        def echo(channel):
            for message in channel:
                channel.put(message)

    Where there are many clients, each is answered on its own:

        while True:
            message, reply = channel.receive()
            reply.put(message)

    The loop over a mailbox ends when whoever spawned the place closes its handle.
    """

    def __init__(self, member: Member, box: int, parent: Address | None) -> None:
        """Make one.

        Args:
            box: The inbox of the place.
            parent: Where whoever spawned it gets what it puts; None: nowhere.
        """
        super().__init__(member, parent, box=box, label="whoever spawned this place")

    def _members(self) -> frozenset[int]:
        """Somebody may always come."""
        return frozenset()

    def _whence(self) -> str:
        return "anybody"


def reach(system: int, place: int, endpoint: int, box: int, label: str) -> Channel:
    """A channel to an address that has come from elsewhere."""
    return Channel(membership.member_of(system), Address(system, place, endpoint, box, label))


def _drop_box(endpoint: Endpoint, box: int, port: Shortcut | None) -> None:
    """Nobody gets from it any more: what is in it, and what comes, is dropped."""
    with suppress(ChannelClosed):
        endpoint.close_box(box, port or endpoint.open_box(box))
