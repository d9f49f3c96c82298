"""The endpoint: one per place. It owns the links, matches messages, counts credit and notices ends.

The caller makes progress: every blocking call turns the `Crank`, and any call moves everybody's messages.
What this module adds is the protocol between two endpoints.

**Nothing is lost.** A blocking call that is left by an exception, a time-out or Ctrl-C *abandons* its
operation: a message that was matched goes back to the head of its queue, an offer that was not granted is
withdrawn, and a payload already on its way goes on in the background, from or into memory of our own.
A send that an exception leaves has therefore sent its message whole or not at all, and which of the two the
caller cannot always know: the last moment at which a signal handler may raise is after the message has left.

**Flow control.** Up to `EAGER_LIMIT` a message travels at once, against a credit of `CREDIT` unmatched bytes
per pair which its receiver gives back as it matches them. Out of credit, or larger, only an OFFER travels;
it keeps the message's place in the matching order. The receiver grants it at once while the bytes that
nobody has asked for stay under `unmatched_limit`, else when it is matched. So two ranks that send each
other a gigabyte both finish, and a flood to a rank that does not receive is bounded at both ends.

**Death** is what the router says (`peer_ended`), never what a socket says. A peer that left properly has said
BYE, and everything before it counts.
"""

from __future__ import annotations

import copy
import select
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from rmpi.deadline import Deadline
from rmpi.errors import (
    ChannelClosed,
    DeadlineExceeded,
    PeerExited,
    PeerLost,
    RmpiError,
    UsageError,
    WireError,
)
from rmpi.transport.base import Link, Transfer
from rmpi.transport.crank import Crank
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.matching import ANY, Arrival, Context, Matching, Receive, take_views
from rmpi.transport.memory import MemoryLink
from rmpi.transport.operation import Operation, Together
from rmpi.wire.codec import Array, check_value, encode_value
from rmpi.wire.frames import EAGER_LIMIT, Frame, Kind

CREDIT = 1 << 20
"""Bytes of eager messages that one peer may have unmatched here; beyond, it offers instead."""

CREDIT_STEP = 128 << 10
"""Consumed bytes after which credit goes back: few frames, and a sender is never starved for long."""

FRAME_COST = 512
"""Bytes that any unmatched message counts for beyond its payload: about what it costs us to remember it."""

SETTLE_STEP = 0.01
"""Seconds between two looks at whether TCP has acknowledged everything; only while leaving."""

Connect = Callable[[int], None]
"""Called, the lock held, when a link to a peer is wanted; somebody then posts `Endpoint.add_link`."""

Patience = tuple[Deadline, Callable[[], None]]
"""When a wait has taken so long that somebody should hear of it, and whom to call then."""

Mismatched = Callable[[Arrival, int], None]
"""Called, without the lock, when a frame of a collective disagrees with what was called here."""


class Peer:
    """What an endpoint knows of another one."""

    __slots__ = (
        "bye",
        "credit",
        "ended",
        "link",
        "links",
        "owed",
        "receiving",
        "sending",
        "waiting",
        "wanted",
    )

    def __init__(self) -> None:
        self.link: Link | None = None  # the one we send on: the first that stood
        self.links: list[Link] = []  # those that may still bring something
        self.wanted = False
        self.waiting: list[Frame] = []  # for a link to stand
        self.credit = CREDIT
        self.owed = 0  # consumed bytes whose credit has not been given back
        self.sending: dict[int, Transfer] = {}  # offered, or on their way
        self.receiving: dict[int, Arrival] = {}  # offered to us, not yet complete
        self.bye = False
        self.ended: PeerLost | None = None


class Endpoint:
    """The traffic of one place.

    Methods that say *within progress* are called with the lock held: by what `Crank.post` runs or by a
    descriptor's callback. All others may be called by any thread of the place.

    Args:
        ident: This endpoint's number in the job.
        connect: Asks for a link to a peer; see `Connect`.
        spin: Seconds to look before sleeping; 0 where ranks outnumber cores, or are threads.
        unmatched_limit: Bytes of granted messages that nobody has asked for yet, `FRAME_COST` for each included.
        mismatched: Told of frames that disagree with the collective called here; see `Mismatched`.
        name_of: What to call an endpoint in messages to the user.
    """

    def __init__(
        self,
        ident: int,
        connect: Connect,
        *,
        spin: float = 0.0,
        unmatched_limit: int = 1 << 30,
        mismatched: Mismatched | None = None,
        name_of: Callable[[int], str] = "endpoint {:#x}".format,
    ) -> None:
        self.ident = ident
        self.name_of = name_of
        self.crank = Crank(spin, self._report_conflicts)
        self.mismatched = mismatched
        self._connect = connect
        self._unmatched_limit = unmatched_limit
        self._unmatched = 0
        self._matching = Matching()
        self._broken: dict[int, RmpiError] = {}  # contexts that cannot be used any more, and why
        self._conflicts: list[tuple[Arrival, int]] = []
        self._peers: dict[int, Peer] = {}
        self._landings: dict[int, Arrival] = {}  # by id of the EAGER frame whose payload is being read
        self._next_message = 0
        self._leaving = False

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """With the lock held and handlers deferred: for what is not called for every message."""
        shielded = SHIELD.enter()
        try:
            with self.crank.lock:
                yield
        finally:
            if shielded:
                SHIELD.leave()

    # ------------------------------------------------------------------------------------ contexts

    def open_context(self, context: int, members: Iterable[int], *, collective: bool) -> None:
        """Make a context known. In a collective one, the death of any member ends whatever waits."""
        with self._exclusively():
            known = self._matching.open(context, frozenset(members), collective)
            for member in known.members:
                error = self._peer(member).ended
                if collective and error is not None and not isinstance(error, PeerExited):
                    self._broken.setdefault(context, error)

    def begin_call(self, context: int, sequence: int, fingerprint: int) -> None:
        """Note which collective is called here as number ``sequence``, and compare with what has come."""
        shielded = SHIELD.enter()
        try:
            with self.crank.lock:
                self._check_open(context)
                self._begin_call(self._matching.contexts[context], sequence, fingerprint)
            if self.crank.attention:
                self._report_conflicts()
        finally:
            if shielded:
                SHIELD.leave()

    def _begin_call(self, known: Context, sequence: int, fingerprint: int) -> None:
        known.remember_call(sequence, fingerprint)
        early = [queue[0] for (_, tag), queue in known.arrivals.items() if tag == sequence]
        for arrival in early:
            if arrival.fingerprint != fingerprint:
                self._matching.withdraw(arrival)
                self._note_conflict(arrival, fingerprint)

    def break_contexts(self, contexts: Iterable[int], error: RmpiError) -> None:
        """End what waits in these contexts; they cannot be used any more. Within progress."""
        broken = frozenset(contexts)
        for context in broken:
            self._broken.setdefault(context, error)
        self._fail_receives(lambda receive: receive.context in broken, error)
        for arrival in self._under_way():
            if arrival.context in broken and arrival.receive is not None:
                receive = arrival.receive
                self._unreceive(arrival, receive)
                receive.finish(error)
        for transfer in self._transfers():
            if transfer.context in broken:
                self._abandon_transfer(transfer)
                transfer.finish(error)

    def give_up(self, context: int, error: RmpiError) -> None:
        """`break_contexts` of one context, from any thread and at once."""
        with self._exclusively():
            if not self.crank.closed:
                self.break_contexts([context], error)

    def _note_conflict(self, arrival: Arrival, called: int) -> None:
        self._conflicts.append((arrival, called))
        self.crank.attention = True

    def _report_conflicts(self) -> None:
        with self.crank.lock:
            conflicts, self._conflicts = self._conflicts, []
            self.crank.attention = False
        if self.mismatched is not None:
            for arrival, called in conflicts:
                self.mismatched(arrival, called)

    def _check_open(self, context: int) -> None:
        if self.crank.closed:
            raise ChannelClosed("this endpoint is closed")
        if context in self._broken:
            raise _fresh(self._broken[context])

    # ------------------------------------------------------------------------------------ messages

    def send(
        self,
        destination: int,
        context: int,
        tag: int,
        value: object,
        *,
        fingerprint: int = 0,
        deadline: Deadline = Deadline.NEVER,
    ) -> None:
        """Send ``value``; when this returns the caller may change it.

        Raises:
            PeerLost: The destination is gone.
            DeadlineExceeded: Time ran out; the text says whether the message was withdrawn or goes on.
            UsageError: The value cannot be pickled.
        """
        shielded = SHIELD.enter()
        try:
            transfer = self._start_send(destination, context, tag, value, fingerprint)
            if not transfer.done or transfer.error is not None:
                self.wait((transfer,), deadline)
        finally:
            if shielded:
                SHIELD.leave()

    def receive(
        self,
        context: int,
        source: int,
        tag: int,
        *,
        out: Array | None = None,
        members: frozenset[int] = frozenset(),
        deadline: Deadline = Deadline.NEVER,
    ) -> Receive:
        """The next message that fits; its value is ``Receive.take()``.

        Call it with handlers deferred (`SHIELD`), if it must not be lost between here and its taking.

        Args:
            members: Who may send it, where ``source`` is `ANY`: if all of them end, so does this call.

        Raises:
            PeerLost, DeadlineExceeded, UsageError (``out`` does not fit): a message that had come, or was
            on its way, is the first in its queue again.
        """
        shielded = SHIELD.enter()
        try:
            receive = self.start_receive(context, source, tag, out=out, members=members)
            self.wait((receive,), deadline)
        except BaseException:
            if shielded:
                SHIELD.leave()
            raise
        if shielded:
            SHIELD.leave(self.abandon, (receive,))
        return receive

    def start_send(self, destination: int, context: int, tag: int, value: object, *, fingerprint: int = 0) -> Transfer:
        """Begin to send; ``value`` must not change before the transfer is done."""
        shielded = SHIELD.enter()
        try:
            transfer = self._start_send(destination, context, tag, value, fingerprint)
        except BaseException:
            if shielded:
                SHIELD.leave()
            raise
        if shielded:
            SHIELD.leave(self.abandon, (transfer,))
        return transfer

    def _start_send(self, destination: int, context: int, tag: int, value: object, fingerprint: int) -> Transfer:
        encoded = encode_value(value)  # what a handler raised in here would be taken for an error of pickling
        transfer = Transfer(
            self.ident,
            destination,
            context,
            tag,
            fingerprint,
            encoded.metadata,
            encoded.segments,
            encoded.nbytes,
        )
        with self.crank.lock:
            self._begin(transfer)
        return transfer

    def start_receive(
        self,
        context: int,
        source: int,
        tag: int,
        *,
        out: Array | None = None,
        members: frozenset[int] = frozenset(),
        strict: bool = True,
    ) -> Receive:
        """Begin to receive; see `receive`. If not ``strict``, ``out`` is only an offer."""
        receive = Receive(context, source, tag, out, members, strict)
        shielded = SHIELD.enter()
        try:
            with self.crank.lock:
                self._check_open(receive.context)
                self._post(receive)
        except BaseException:
            if shielded:
                SHIELD.leave()
            raise
        if shielded:
            SHIELD.leave(self.abandon, (receive,))
        return receive

    def wait(
        self,
        operations: Sequence[Operation],
        deadline: Deadline = Deadline.NEVER,
        patience: Patience | None = None,
    ) -> None:
        """Make progress until all are done. If this raises, all of them were abandoned.

        Args:
            patience: Lost at most once; then the wait goes on.

        Raises:
            DeadlineExceeded: Time ran out; the text says what became of the first unfinished one.
            Exception: The first error of any of them, or what a signal handler raised.
        """
        shielded = SHIELD.enter()
        try:
            late = self._wait(operations, deadline, patience)
        except BaseException:
            self._leave_off(operations, shielded)
            raise
        if late is not None:
            self._leave_off(operations, shielded)
            raise DeadlineExceeded(_timed_out(late))
        if shielded:
            SHIELD.leave(self.abandon, operations)

    def _wait(self, operations: Sequence[Operation], deadline: Deadline, patience: Patience | None) -> Operation | None:
        """Wait for all, or for the first that fails; one that is not done, if time ran out."""
        pending = [operation for operation in operations if not operation.done]
        if pending:
            operation = pending[0] if len(operations) == 1 else self._together(operations)
            if patience is not None:
                self._be_patient(operation, deadline, patience)
            if not self.crank.wait(operation, deadline):
                return next((operation for operation in pending if not operation.done), pending[0])
        for operation in operations:
            if operation.error is not None:
                raise _fresh(operation.error)
        return None

    def _together(self, operations: Sequence[Operation]) -> Operation:
        with self.crank.lock:
            return Together(operations)

    def _be_patient(self, operation: Operation, deadline: Deadline, patience: Patience) -> None:
        """Wait until patience is lost, at most; then let somebody hear of it."""
        limit, lost = patience
        if not self.crank.wait(operation, Deadline(min(limit.at, deadline.at))) and limit.passed():
            lost()

    def _leave_off(self, operations: Sequence[Operation], shielded: bool) -> None:
        try:
            self.abandon(operations)
        finally:
            if shielded:
                SHIELD.leave()

    def progress(self) -> None:
        """Move whatever can move now, without waiting."""
        shielded = SHIELD.enter()
        try:
            self.crank.progress()
        finally:
            if shielded:
                SHIELD.leave()

    # ------------------------------------------------------------------------------------ links

    def add_link(self, link: Link) -> None:
        """Use a link from now on. Within progress."""
        peer = self._peer(link.peer)
        peer.links.append(link)
        if link.fileno() >= 0:
            self.crank.register(link.fileno(), partial(self._stir, link))
        if peer.link is None:
            peer.link = link
            waiting, peer.waiting = peer.waiting, []
            for frame in waiting:
                self._put(link, frame)
            if self._leaving:
                self._say_bye(peer)

    def link_failed(self, ident: int, error: PeerLost) -> None:
        """No link to that peer can be made: everything that needs it fails. Within progress."""
        self._end_peer(ident, error)

    def notify(self, link: MemoryLink) -> None:
        """A memory link has something to receive, or room. From any thread."""
        self.crank.post(partial(self._stir, link, select.EPOLLIN | select.EPOLLOUT))

    def media(self) -> dict[int, str]:
        """The medium by which each connected peer is reached."""
        with self._exclusively():
            return {i: peer.link.medium for i, peer in self._peers.items() if peer.link is not None}

    def _stir(self, link: Link, mask: int) -> None:
        """A link can move."""
        if mask & select.EPOLLOUT and link.flush():
            self.crank.want_room(link.fileno(), False)
        if mask & ~select.EPOLLOUT:
            self._serve(link)

    def _serve(self, link: Link) -> None:
        """Take what has come over a link."""
        try:
            for frame in link.receive():
                self._handle(link, frame)
        except WireError as error:
            self._drop_link(link)
            link.close()
            self._end_peer(link.peer, PeerLost(f"the link to {self.name_of(link.peer)} broke: {error}"))
            return
        if link.closed:
            self._drop_link(link)

    def _drain(self, link: Link) -> None:
        """Take all that has come over a link, however much it is."""
        self._serve(link)
        while link.more and not link.closed:
            self._serve(link)

    def _drop_link(self, link: Link) -> None:
        """The peer will send nothing more over this link."""
        self.crank.unregister(link.fileno())
        peer = self._peer(link.peer)
        if link in peer.links:
            peer.links.remove(link)
        if link is not peer.link:
            link.close()  # a second connection: we never send on it
        if peer.bye and not peer.links:
            self._end_peer(link.peer, self._exited(link.peer))
        self._forget_torn(link.peer)

    def _peer(self, ident: int) -> Peer:
        peer = self._peers.get(ident)
        if peer is None:
            peer = self._peers[ident] = Peer()
            if ident == self.ident:
                self.add_link(MemoryLink.loop(ident, self, self.notify))
        return peer

    def _put(self, link: Link, frame: Frame) -> None:
        link.send(frame)
        self._push(link)

    def _push(self, link: Link) -> None:
        if not link.flush():
            self.crank.want_room(link.fileno(), True)

    def _dispatch(self, ident: int, frame: Frame) -> None:
        """Send a small frame, now or as soon as a link stands."""
        peer = self._peer(ident)
        if peer.link is not None:
            self._put(peer.link, frame)
            return
        frame.segments = [bytes(segment) for segment in frame.segments]
        peer.waiting.append(frame)
        if not peer.wanted:
            peer.wanted = True
            self._connect(ident)

    # --------------------------------------------------------------------------------- sending

    def _begin(self, transfer: Transfer) -> None:
        self._check_open(transfer.context)
        peer = self._peer(transfer.destination)
        if peer.ended is not None:
            raise _fresh(peer.ended)
        cost = transfer.length + FRAME_COST
        if transfer.length <= EAGER_LIMIT and cost <= peer.credit:
            peer.credit -= cost
            self._dispatch(transfer.destination, transfer.frame(Kind.EAGER))
            transfer.finish()
            return
        self._next_message += 1
        transfer.offer(self._next_message, peer.sending)
        self._dispatch(transfer.destination, transfer.frame(Kind.OFFER))

    def _on_grant(self, link: Link, frame: Frame) -> None:
        peer = self._peer(frame.source)
        transfer = peer.sending.get(frame.message)
        if transfer is None or transfer.granted:
            return  # withdrawn meanwhile: the receiver learns it from our WITHDRAW
        transfer.granted = True
        if not transfer.length:
            transfer.finish()
            return
        send_on = peer.link or link
        send_on.stream(transfer)
        self._push(send_on)

    # ------------------------------------------------------------------------------- receiving

    def _post(self, receive: Receive) -> None:
        arrival = self._matching.post(receive)
        if arrival is None:
            error = self._why_hopeless(receive)
            if error is not None:
                self._matching.cancel(receive)
                receive.finish(error)
            return
        reason = receive.refuses(arrival)
        if reason is not None:
            self._matching.arrive(arrival)  # no other receive fits it, or it would not have been here
            receive.finish(UsageError(reason))
            return
        self._meet(arrival, receive)

    def _why_hopeless(self, receive: Receive) -> PeerLost | None:
        """Why nobody will answer a receive; None while somebody may."""
        if receive.source != ANY:
            return self._peer(receive.source).ended
        others = receive.members - {self.ident}
        ends = [self._peer(member).ended for member in others]
        lost = [end for end in ends if end is not None]
        failed = [end for end in lost if not isinstance(end, PeerExited)]
        if failed:
            return failed[0]
        return lost[0] if others and len(lost) == len(others) else None

    def _meet(self, arrival: Arrival, receive: Receive) -> None:
        """A message that was here first, and the receive that gets it."""
        arrival.receive = receive
        self._count(arrival, False)
        if arrival.complete:
            self._deliver(arrival)
        elif arrival.message and not arrival.granted:
            self._grant(arrival)

    def _deliver(self, arrival: Arrival) -> None:
        """The message is whole, and somebody wants it."""
        receive = arrival.receive
        assert receive is not None
        if not arrival.message:
            self._give_credit(arrival)
        receive.arrival = arrival
        receive.finish()

    def _give_credit(self, arrival: Arrival) -> None:
        """An eager message is consumed: its credit goes back, in large steps."""
        peer = self._peer(arrival.source)
        peer.owed += arrival.length + FRAME_COST
        if peer.owed >= CREDIT_STEP and peer.ended is None:
            owed, peer.owed = peer.owed, 0
            self._dispatch(arrival.source, Frame(Kind.CREDIT, self.ident, arrival.source, message=owed))

    def _count(self, arrival: Arrival, counted: bool) -> None:
        """Whether a granted message counts as one that nobody has asked for."""
        if arrival.counted != counted:
            arrival.counted = counted
            cost = arrival.length + FRAME_COST
            self._unmatched += cost if counted else -cost

    def lend(self, frame: Frame) -> list[memoryview]:
        """Memory for a payload (`Sink`); a new message is matched first, so that it lands in place."""
        if frame.kind is Kind.EAGER:
            arrival = self._arrive(frame)
            arrival.frame = frame
            self._landings[id(frame)] = arrival
            assert arrival.landing is not None
            return arrival.landing.views
        if frame.kind is Kind.DATA:
            return self._lend_piece(frame)
        raise WireError(f"no place has a use for a payload with {frame}")

    def _lend_piece(self, frame: Frame) -> list[memoryview]:
        peer = self._peer(frame.source)
        arrival = peer.receiving.get(frame.message)
        if arrival is None and peer.ended is not None:
            return [memoryview(bytearray(frame.length))]  # the rest of what was lost; other messages may follow
        if arrival is None or not arrival.granted:
            raise WireError(f"payload that was not granted: {frame}")
        if frame.tag != arrival.lent or frame.tag + frame.length > arrival.length:
            raise WireError(f"payload out of order: {frame}")
        arrival.lent += frame.length
        return take_views(arrival.rest, frame.length)

    def _handle(self, link: Link, frame: Frame) -> None:
        if frame.destination != self.ident:
            raise WireError(f"misdirected frame: {frame} came to {self.ident:#x}")
        handler = _HANDLERS.get(frame.kind)
        if handler is None:
            raise WireError(f"no place has a use for {frame}")
        handler(self, link, frame)

    def _on_eager(self, _link: Link, frame: Frame) -> None:
        arrival = self._landings.pop(id(frame), None) or self._arrive(frame)
        arrival.complete = True
        if arrival.receive is not None:
            self._deliver(arrival)

    def _arrive(self, frame: Frame) -> Arrival:
        """A new message: note it, match it, and have memory for it if it travels eagerly."""
        check_value(frame.metadata, frame.length)
        arrival = Arrival.of(frame)
        if not self._conflicts_with_call(arrival):
            arrival.receive = self._find_receiver(arrival)
        if frame.kind is Kind.EAGER:
            arrival.open()
        return arrival

    def _conflicts_with_call(self, arrival: Arrival) -> bool:
        """Whether this frame belongs to another collective than was called here under its number.

        Such a frame must not match: what waits here waits for the verdict instead.
        """
        if not arrival.fingerprint:
            return False
        context = self._matching.contexts.get(arrival.context)
        called = context.calls.get(arrival.tag) if context is not None else None
        if called is None or called == arrival.fingerprint:
            return False
        self._note_conflict(arrival, called)
        return True

    def _find_receiver(self, arrival: Arrival) -> Receive | None:
        """The receive that gets this message; those whose ``out`` does not fit it fail on the way."""
        while True:
            receive = self._matching.arrive(arrival)
            reason = receive.refuses(arrival) if receive is not None else None
            if receive is None or reason is None:
                return receive
            receive.finish(UsageError(reason))

    def _on_offer(self, _link: Link, frame: Frame) -> None:
        receiving = self._peer(frame.source).receiving
        if not frame.message or frame.message in receiving:
            raise WireError(f"offer without a number of its own: {frame}")
        arrival = receiving[frame.message] = self._arrive(frame)
        if arrival.receive is not None:
            self._grant(arrival)
        elif self._unmatched + arrival.length + FRAME_COST <= self._unmatched_limit:
            self._count(arrival, True)
            self._grant(arrival)

    def _grant(self, arrival: Arrival) -> None:
        """Have memory for an offered message, and ask for it."""
        try:
            arrival.open()
        except MemoryError as error:
            self._count(arrival, False)
            if arrival.receive is not None:
                receive, arrival.receive = arrival.receive, None
                receive.finish(error)
                self._rematch(arrival)
            return  # the offer stands; a later receive tries again
        arrival.granted = True
        self._dispatch(arrival.source, Frame(Kind.GRANT, self.ident, arrival.source, message=arrival.message))
        if not arrival.length:
            self._complete(arrival)

    def _on_data(self, _link: Link, frame: Frame) -> None:
        peer = self._peer(frame.source)
        arrival = peer.receiving.get(frame.message)
        if arrival is None and peer.ended is not None:
            return
        if arrival is None or not frame.length:
            raise WireError(f"payload of nothing: {frame}")
        arrival.landed += frame.length
        if arrival.landed == arrival.length:
            self._complete(arrival)

    def _complete(self, arrival: Arrival) -> None:
        """The last piece of an offered message has come."""
        peer = self._peer(arrival.source)
        del peer.receiving[arrival.message]
        arrival.complete = True
        if arrival.receive is not None:
            self._deliver(arrival)

    def _on_credit(self, _link: Link, frame: Frame) -> None:
        peer = self._peer(frame.source)
        peer.credit = min(CREDIT, peer.credit + frame.message)

    def _on_withdraw(self, _link: Link, frame: Frame) -> None:
        """The sender gave up before we granted, or our grant crossed this on the way."""
        arrival = self._peer(frame.source).receiving.pop(frame.message, None)
        if arrival is None:
            return
        self._count(arrival, False)
        if arrival.receive is not None:
            receive, arrival.receive = arrival.receive, None
            self._post(receive)
        else:
            self._matching.withdraw(arrival)

    def _on_bye(self, _link: Link, frame: Frame) -> None:
        """The peer has left properly. Small frames overtake payload, so some may still be on its way."""
        peer = self._peer(frame.source)
        peer.bye = True
        if not peer.receiving:
            self._end_peer(frame.source, self._exited(frame.source))

    # ---------------------------------------------------------------------------------- giving up

    def abandon(self, operations: Iterable[Operation]) -> None:
        """Undo operations whose caller gives up: no message is lost, no half of an exchange left behind."""
        with self._exclusively():
            for operation in operations:
                if operation.error is not None:
                    continue
                if isinstance(operation, Receive):
                    self._abandon_receive(operation)
                elif isinstance(operation, Transfer) and not operation.done:
                    self._abandon_transfer(operation)

    def _abandon_receive(self, receive: Receive) -> None:
        if not self._matching.cancel(receive):
            arrival = receive.arrival or self._on_its_way_to(receive)
            if arrival is not None:
                self._unreceive(arrival, receive)
        receive.finish(DeadlineExceeded("this receive was abandoned"))

    def _on_its_way_to(self, receive: Receive) -> Arrival | None:
        """The message that was matched with ``receive`` and is not complete."""
        return next((arrival for arrival in self._under_way() if arrival.receive is receive), None)

    def _under_way(self) -> list[Arrival]:
        """Messages that are not complete."""
        offered = [arrival for peer in self._peers.values() for arrival in peer.receiving.values()]
        return [*offered, *self._landings.values()]

    def _transfers(self) -> list[Transfer]:
        """Messages that are offered, or on their way out."""
        return [transfer for peer in self._peers.values() for transfer in peer.sending.values()]

    def _unreceive(self, arrival: Arrival, receive: Receive) -> None:
        """Put a matched message back in its place, out of the memory of who gave it up."""
        if receive.out is not None and arrival.landing is not None:
            self._move_out(arrival)
        if arrival.message:
            self._count(arrival, True)
        elif arrival.complete:
            self._peer(arrival.source).owed -= arrival.length + FRAME_COST
        arrival.receive = receive.arrival = None
        self._rematch(arrival)

    def _rematch(self, arrival: Arrival) -> None:
        """A message that its receive gave up: the next one that waits for it gets it."""
        receive = self._find_receiver(arrival)
        if receive is not None:
            self._meet(arrival, receive)

    def _move_out(self, arrival: Arrival) -> None:
        """Let the message land in memory of its own instead of an array the caller has back."""
        lent = arrival.lent if arrival.message else arrival.length
        old = arrival.landing
        assert old is not None
        arrival.open(own=True)
        copied = take_views(arrival.rest, lent)
        for source, target in zip(_cut(old.views, copied), copied, strict=True):
            target[:] = source
        for link in self._peer(arrival.source).links:
            link.relocate(partial(self._belongs, arrival), copied)

    def _belongs(self, arrival: Arrival, frame: Frame) -> bool:
        """Whether the payload of ``frame``, being read at this moment, is part of ``arrival``."""
        if frame.kind is Kind.DATA:
            return frame.message == arrival.message
        return self._landings.get(id(frame)) is arrival

    def _abandon_transfer(self, transfer: Transfer) -> None:
        peer = self._peer(transfer.destination)
        if transfer.granted:
            transfer.own()
            for link in _links_of(peer):
                link.detach()
            return
        if peer.sending.pop(transfer.message, None) is None:
            return
        frame = Frame(Kind.WITHDRAW, self.ident, transfer.destination, message=transfer.message)
        self._dispatch(transfer.destination, frame)

    # ----------------------------------------------------------------------------------- peers that end

    def peer_ended(self, ident: int, error: PeerLost) -> None:
        """The router says that a peer is gone: `PeerExited` if it had finished, else it failed.

        What it had sent is still delivered first. Within progress.
        """
        peer = self._peer(ident)
        for link in list(peer.links):
            self._drain(link)
        if isinstance(error, PeerExited) and peer.links:
            peer.bye = True  # the end of its links brings the rest
            return
        self._end_peer(ident, error)

    def _end_peer(self, ident: int, error: PeerLost) -> None:
        """Nothing will come from that peer any more: fail what needs it."""
        peer = self._peer(ident)
        failed = not isinstance(error, PeerExited)
        if peer.ended is not None and (not failed or not isinstance(peer.ended, PeerExited)):
            return
        peer.ended = error
        self._fail_transfers(peer, error)
        for arrival in self._under_way():
            if arrival.source == ident:
                self._lose(arrival, error)
        if failed:
            self.break_contexts(self._collectives_with(ident), error)
        self._fail_receives(lambda receive: self._needs(receive, ident), error)
        self._forget_torn(ident)

    def _collectives_with(self, ident: int) -> list[int]:
        contexts = self._matching.contexts.items()
        return [context for context, known in contexts if known.collective and ident in known.members]

    def _exited(self, ident: int) -> PeerExited:
        return PeerExited(f"{self.name_of(ident)} has ended; nothing more will come from it, and it will take nothing")

    def _needs(self, receive: Receive, ident: int) -> bool:
        return receive.source == ident or (receive.source == ANY and self._why_hopeless(receive) is not None)

    def _lose(self, arrival: Arrival, error: PeerLost) -> None:
        """A message that is not complete, and perhaps never will be: nobody waits for it any more."""
        self._peer(arrival.source).receiving.pop(arrival.message, None)
        self._count(arrival, False)
        receive, arrival.receive = arrival.receive, None
        if receive is None:
            self._matching.withdraw(arrival)
            return
        if receive.out is not None and arrival.landing is not None:
            self._move_out(arrival)
        receive.finish(error)

    def _forget_torn(self, ident: int) -> None:
        """Nothing more comes from a peer: neither does the rest of what was being read."""
        peer = self._peer(ident)
        if peer.ended is not None and not peer.links:
            self._landings = {key: arrival for key, arrival in self._landings.items() if arrival.source != ident}

    def _fail_receives(self, hopeless: Callable[[Receive], bool], error: RmpiError) -> None:
        for receive in [receive for receive in self._matching.receives() if hopeless(receive)]:
            self._matching.cancel(receive)
            receive.finish(error)

    def _fail_transfers(self, peer: Peer, error: RmpiError) -> None:
        for transfer in list(peer.sending.values()):
            transfer.finish(error)

    # -------------------------------------------------------------------------------------- the end

    def finish(self, deadline: Deadline = Deadline.NEVER) -> bool:
        """Leave properly: everything sent is out and every peer is told. False: time ran out first."""
        shielded = SHIELD.enter()
        try:
            with self.crank.lock:
                if not self._leaving:
                    self._leaving = True
                    for peer in self._peers.values():
                        self._say_bye(peer)
            while not self._settled():
                self.crank.nap(min(deadline.left(), SETTLE_STEP))
                if deadline.passed():
                    return self._settled()
            return True
        finally:
            if shielded:
                SHIELD.leave()

    def _say_bye(self, peer: Peer) -> None:
        """But not where a context was broken: a BYE must not overtake the reason, which the router tells first."""
        link = peer.link
        if link is not None and link.peer != self.ident:
            if not self._broken:
                self._put(link, Frame(Kind.BYE, self.ident, link.peer))
            link.finish()

    def _settled(self) -> bool:
        with self.crank.lock:
            return all(self._is_settled(peer) for i, peer in self._peers.items() if i != self.ident)

    def _is_settled(self, peer: Peer) -> bool:
        if peer.ended is not None:
            return True  # nobody is left who would receive anything
        return not peer.waiting and (peer.link is None or peer.link.settled())

    def close(self) -> None:
        """Drop everything at once. Operations that wait raise `ChannelClosed`."""
        with self._exclusively():
            if self.crank.closed:
                return
            error = ChannelClosed("this endpoint is closed")
            self._fail_receives(lambda _: True, error)
            for peer in self._peers.values():
                self._fail_transfers(peer, error)
                for link in _links_of(peer):
                    link.close()
            self.crank.close()

    def disown(self) -> None:
        """In a forked child: close its copies of the descriptors. The parent's links go on.

        Nothing is unregistered, because an epoll is shared with the parent, and no lock is taken, because
        a thread that does not exist here may hold it.
        """
        self.crank.disown()
        for peer in self._peers.values():
            for link in _links_of(peer):
                link.close()

    def __repr__(self) -> str:
        return f"<Endpoint {self.ident:#x}: {len(self._peers)} peers, {self._unmatched} bytes unmatched>"


def _links_of(peer: Peer) -> list[Link]:
    """All of its links, each once."""
    spare = [] if peer.link is None or peer.link in peer.links else [peer.link]
    return [*peer.links, *spare]


def _cut(views: list[memoryview], like: list[memoryview]) -> list[memoryview]:
    """The beginning of ``views``, in pieces of the same sizes as ``like``."""
    rest = [view for view in reversed(views) if view.nbytes]
    return [piece for view in like for piece in take_views(rest, view.nbytes)]


def _fresh(error: BaseException) -> BaseException:
    """A copy to raise: several callers may get the same error, each with a traceback of its own."""
    return copy.copy(error).with_traceback(None)


def _timed_out(operation: Operation) -> str:
    if not isinstance(operation, Transfer):
        return "timeout passed and no message came; nothing is lost"
    if operation.granted:
        return "timeout passed while the message was on its way; it goes on in the background"
    return "timeout passed before the receiver took the message; it was withdrawn"


_HANDLERS: dict[Kind, Any] = {
    Kind.EAGER: Endpoint._on_eager,
    Kind.OFFER: Endpoint._on_offer,
    Kind.GRANT: Endpoint._on_grant,
    Kind.DATA: Endpoint._on_data,
    Kind.CREDIT: Endpoint._on_credit,
    Kind.WITHDRAW: Endpoint._on_withdraw,
    Kind.BYE: Endpoint._on_bye,
}
