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

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerExited, PeerLost, UsageError
from rmpi.places import membership
from rmpi.places.aside import EVERY, Aside, KindOf, kind_of
from rmpi.places.attendant import attend, neglect
from rmpi.places.inlet import END, PASSED, Inlet, Message
from rmpi.places.outlet import ChannelStatistics, Outlet
from rmpi.places.whereabouts import Address, Member, Whereabouts
from rmpi.transport.eventloop import ended
from rmpi.transport.operation import Operation

if TYPE_CHECKING:
    from rmpi.places.typed import TypedChannel

__all__ = ["Address", "Channel", "ChannelStatistics", "Mailbox", "Member", "Message", "Outlet", "Whereabouts"]


class Channel(Inlet):
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
        self._announces = announces
        self._callback: Callable[[Channel, Any], object] | None = None
        self._callback_replies = False
        self._claimed = False
        super().__init__(member, address, box=box, label=label)

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
            kind_of: Says of a message of which kind it is; it must not use this channel.
            limit: How many messages of other kinds may wait, put aside, before `TypedChannel.get` refuses to go on.
        """
        from rmpi.places.typed import TypedChannel

        with self._sorting:
            aside = Aside(kind_of, limit)
            while self._aside:
                came = self._aside.take_first()
                assert came is not None
                aside.put(came)
            self._aside = aside
        return TypedChannel(self)

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

    @property
    def handled(self) -> bool:
        """Whether a function was given to `on_message`."""
        return self._callback is not None

    def next_call(self) -> Callable[[], object] | None:
        """Take the next message: the call with it of the function that was given to `on_message`.

        Returns:
            None: There is no message now, or no function.

        Raises:
            PeerLost, PeerExited, ChannelClosed: As for `get`; what the function raises is another matter.
        """
        callback = self._callback
        if callback is None:
            return None
        try:
            message = self._get(PASSED, EVERY, self._callback_replies)
        except DeadlineExceeded:
            return None
        return partial(callback, self, message)

    def claim(self) -> None:
        """Whoever calls this will ask for each `next_call`, and nobody else, until `release`.

        Raises:
            UsageError: Somebody else has claimed it.
        """
        with self._lock:
            if self._claimed:
                raise UsageError(f"{self!r} is served by another MessageRouter")
            self._claimed = True
        self._be_attended()

    def release(self) -> None:
        """The opposite of `claim`."""
        self._claimed = False
        self._be_attended()

    def _be_attended(self) -> None:
        attended = self._callback is not None and not self._claimed and not self._closed
        (attend if attended else neglect)(self)

    def _shut(self) -> None:
        """Say good-bye, where somebody waits for that, and drop what has come."""
        if self._announces:
            self._announce()
        super()._shut()
        if self._callback is not None:
            neglect(self)

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
        self._open_box()  # at once: of a thread's, one that was closed before may come again, and would drop what comes

    def _members(self) -> frozenset[int]:
        """Somebody may always come."""
        return frozenset()

    def _whence(self) -> str:
        return "anybody"


def reach(system: int, place: int, endpoint: int, box: int, label: str) -> Channel:
    """A channel to an address that has come from elsewhere."""
    return Channel(membership.member_of(system), Address(system, place, endpoint, box, label))
