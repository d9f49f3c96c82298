"""The receiver's half of the protocol: messages on their way in, and the memory that they land in.

    EAGER    <-   a whole message; it is matched when its header has come, so that it lands in place
    OFFER    <-   a message's place in the matching order; its payload waits at the sender
    GRANT    ->   we have memory for it
    DATA     <-   its payload, piece by piece
    WITHDRAW <-   the sender gave up; it may cross our grant
    CREDIT   ->   eager bytes that were consumed, in steps of `CREDIT_STEP`

**Flow control.** An offer is granted at once while the bytes that nobody has asked for stay under
``unmatched_limit``, else when it is matched. So two ranks that send each other a gigabyte both finish, and a
flood to a rank that does not receive is bounded at both ends: here by that limit and the credit of each peer.

**Giving up.** A message that was matched and whose receive is given up goes back to the head of its queue, or to
the next receive that waits for it. If it was landing in an array that the caller has back, it moves to memory
of its own first, with whatever is being read at this moment.

Where an arrival is: complete ones are in `Matching`, or `Receive.arrival` has them. One that is not complete is
in `Peer.receiving` if it was offered, and among the *landings* while it is an eager frame that is being read;
it is in `Matching` as well, unless `Arrival.receive` says who gets it or it conflicts with what was called here.

Everything here happens *within progress*, the lock of the crank held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from rmpi.errors import DeadlineExceeded, PeerExited, PeerLost, RmpiError, UsageError, WireError
from rmpi.transport.base import Link
from rmpi.transport.matching import ANY, Arrival, Matching, Probe, Receive, take_views
from rmpi.transport.peers import FRAME_COST, Handler, Peers
from rmpi.wire.codec import Encoded, check_value
from rmpi.wire.frames import Buffer, Frame, Kind

CREDIT_STEP = 128 << 10
"""Consumed bytes after which credit goes back: few frames, and a sender is never starved for long."""

Conflict = Callable[[Arrival, int], None]
"""Called, the lock held, with a frame of a collective and the fingerprint of what was called here instead."""


class Incoming:
    """The messages that one endpoint receives.

    Attributes:
        matching: The messages and receives that wait for each other.
        unmatched: Bytes of granted messages that nobody has asked for yet, `FRAME_COST` for each included.
        unmatched_limit: So many of them are granted at once.
    """

    def __init__(self, ident: int, peers: Peers, unmatched_limit: int, conflict: Conflict) -> None:
        self.matching = Matching()
        self.unmatched = 0
        self.unmatched_limit = unmatched_limit
        self._landings: dict[int, Arrival] = {}  # by id of the EAGER frame whose payload is being read
        self._ident = ident
        self._peers = peers
        self._conflict = conflict

    def handlers(self) -> dict[Kind, Handler]:
        return {
            Kind.EAGER: self._on_eager,
            Kind.OFFER: self._on_offer,
            Kind.DATA: self._on_data,
            Kind.WITHDRAW: self._on_withdraw,
        }

    # ------------------------------------------------------------------------------- flights

    def offered(self, frame: Frame) -> Arrival | None:
        """Take an offer; the message, if it was granted at once and somebody waits for it."""
        self._on_offer(None, frame)
        arrival = self._peers.peer(frame.source).receiving.get(frame.message)
        return arrival if arrival is not None and arrival.granted and arrival.receive is not None else None

    def adopt(self, offer: Frame, receive: Receive, begun: bytes | None) -> Arrival:
        """A message that was granted to ``receive`` by somebody else; what has ``begun`` to come is copied."""
        arrival = Arrival.of(offer)
        arrival.serial = self.matching.in_turn()
        arrival.receive = receive
        arrival.granted = True
        arrival.open()
        if begun:
            _fill(arrival, [begun])
        self._peers.peer(offer.source).receiving[offer.message] = arrival
        return arrival

    def advance(self, arrival: Arrival, count: int, frame: int, left: int) -> tuple[Frame, list[memoryview]] | None:
        """``count`` bytes of a granted message were read for us.

        Returns:
            In the middle of a DATA frame, of which ``left`` of ``frame`` bytes are missing: the frame, and where
            they belong.
        """
        take_views(arrival.rest, count)
        arrival.landed = arrival.lent + count - (frame - left if left else 0)
        arrival.lent += count + left
        if arrival.landed == arrival.length:
            self._complete(arrival)
        if not left:
            return None
        begun = Frame(Kind.DATA, arrival.source, self._ident, tag=arrival.landed, message=arrival.message, length=frame)
        return begun, take_views(arrival.rest, left)

    # ------------------------------------------------------------------------------- asking

    def post(self, receive: Receive) -> None:
        """Match a receive that is asked for, or whose message was withdrawn."""
        arrival = self.matching.post(receive)
        if arrival is None:
            error = self._why_hopeless(receive)
            if error is not None:
                self._give_up_hope(receive, error)
            return
        reason = receive.refuses(arrival)
        if reason is not None:
            self.matching.arrive(arrival)  # no other receive fits it, or it would not have been here
            receive.finish(UsageError(reason))
            return
        self._meet(arrival, receive)

    def probe(self, probe: Probe) -> None:
        """Look for a message, or wait for one without taking it."""
        self.matching.probe(probe)
        error = self._why_hopeless(probe) if not probe.done else None
        if error is not None:
            self._give_up_hope(probe, error)

    def may_doze(self, probe: Probe) -> bool:
        """Whether a message may come of which nobody would know but for the probe, which is told of all others then."""
        known = self.matching.contexts[probe.context]
        if known.arrivals or ((probe.source != ANY or probe.members) and self._why_hopeless(probe) is not None):
            return False
        known.probes.append(probe)
        return True

    def _give_up_hope(self, receive: Receive, error: PeerLost) -> None:
        """End what waits for others who will not answer, unless what we have sent to ourselves does."""
        self._hear_ourselves()
        if self.matching.cancel(receive):
            receive.finish(error)

    def _hear_ourselves(self) -> None:
        own = self._peers.known.get(self._ident)
        if own is not None:
            self._peers.drain(own)

    def close_context(self, context: int, why: RmpiError) -> None:
        """Nobody will receive in this context any more: what was sent in it is consumed, and dropped."""
        for arrival in self.matching.close(context, why):
            self._meet(arrival, Receive(context, ANY, ANY))

    def _why_hopeless(self, receive: Receive) -> PeerLost | None:
        """Why nobody will answer a receive; None while somebody may."""
        if receive.source != ANY:
            return self._peers.peer(receive.source).ended
        own = self._peers.known.get(self._ident)
        if own is not None and own.ended is not None and self._ident in receive.members:
            return own.ended
        others = receive.members - {self._ident}
        ends = [self._peers.peer(member).ended for member in others]
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
        receive.deliver(arrival)

    def _give_credit(self, arrival: Arrival) -> None:
        """An eager message is consumed: its credit goes back, in large steps."""
        peer = self._peers.peer(arrival.source)
        account = peer.account
        account.owed += arrival.length + FRAME_COST
        if account.owed >= CREDIT_STEP and peer.ended is None:
            owed, account.owed = account.owed, 0
            self._peers.dispatch(peer, Frame(Kind.CREDIT, self._ident, arrival.source, message=owed))

    def _count(self, arrival: Arrival, counted: bool) -> None:
        """Whether a granted message counts as one that nobody has asked for."""
        if arrival.counted != counted:
            arrival.counted = counted
            cost = arrival.length + FRAME_COST
            self.unmatched += cost if counted else -cost

    def begin_call(self, context: int, sequence: int, fingerprint: int) -> None:
        """Compare the collective that is called here as number ``sequence`` with what has come of it."""
        known = self.matching.contexts[context]
        early = [queue[0] for (_, tag), queue in known.arrivals.items() if tag == sequence]
        for arrival in early:
            if arrival.fingerprint != fingerprint:
                self.matching.withdraw(arrival)
                self._conflict(arrival, fingerprint)

    # ------------------------------------------------------------------------------- frames

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
        peer = self._peers.peer(frame.source)
        arrival = peer.receiving.get(frame.message)
        if arrival is None and peer.ended is not None:
            return [memoryview(bytearray(frame.length))]  # the rest of what was lost; other messages may follow
        if arrival is None or not arrival.granted:
            raise WireError(f"payload that was not granted: {frame}")
        if frame.tag != arrival.lent or frame.tag + frame.length > arrival.length:
            raise WireError(f"payload out of order: {frame}")
        arrival.lent += frame.length
        return take_views(arrival.rest, frame.length)

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
        context = self.matching.contexts.get(arrival.context)
        called = context.calls.get(arrival.tag) if context is not None else None
        if called is None or called == arrival.fingerprint:
            return False
        self._conflict(arrival, called)
        return True

    def _find_receiver(self, arrival: Arrival) -> Receive | None:
        """The receive that gets this message; those whose ``out`` does not fit it fail on the way."""
        while True:
            receive = self.matching.arrive(arrival)
            reason = receive.refuses(arrival) if receive is not None else None
            if receive is None or reason is None:
                return receive
            receive.finish(UsageError(reason))

    def _on_offer(self, _link: Link | None, frame: Frame) -> None:
        receiving = self._peers.peer(frame.source).receiving
        if not frame.message or frame.message in receiving:
            raise WireError(f"offer without a number of its own: {frame}")
        arrival = receiving[frame.message] = self._arrive(frame)
        if arrival.receive is not None:
            self._grant(arrival)
        elif self.unmatched + arrival.length + FRAME_COST <= self.unmatched_limit:
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
        grant = Frame(Kind.GRANT, self._ident, arrival.source, message=arrival.message)
        self._peers.dispatch(self._peers.peer(arrival.source), grant)
        if not arrival.length:
            self._complete(arrival)

    def _on_data(self, _link: Link, frame: Frame) -> None:
        peer = self._peers.peer(frame.source)
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
        peer = self._peers.peer(arrival.source)
        del peer.receiving[arrival.message]
        arrival.complete = True
        if arrival.receive is not None:
            self._deliver(arrival)

    def _on_withdraw(self, _link: Link, frame: Frame) -> None:
        """The sender gave up before we granted, or our grant crossed this on the way."""
        arrival = self._peers.peer(frame.source).receiving.pop(frame.message, None)
        if arrival is None:
            return
        self._count(arrival, False)
        if arrival.receive is not None:
            receive, arrival.receive = arrival.receive, None
            self.post(receive)
        else:
            self.matching.withdraw(arrival)

    # ------------------------------------------------------------------------------- giving up

    def abandon(self, receive: Receive) -> None:
        """Forget a receive; its message, if it has one, waits for the next. A probe has none."""
        if not self.matching.cancel(receive) and not isinstance(receive, Probe):
            arrival = receive.arrival or self._on_its_way_to(receive)
            if arrival is not None:
                self._unreceive(arrival, receive)
        receive.finish(DeadlineExceeded("this receive was abandoned"))

    def _on_its_way_to(self, receive: Receive) -> Arrival | None:
        """The message that was matched with ``receive`` and is not complete."""
        return next((arrival for arrival in self._under_way() if arrival.receive is receive), None)

    def _under_way(self) -> list[Arrival]:
        """Messages that are not complete."""
        offered = [arrival for peer in self._peers.known.values() for arrival in peer.receiving.values()]
        return [*offered, *self._landings.values()]

    def _unreceive(self, arrival: Arrival, receive: Receive) -> None:
        """Put a matched message back in its place, out of the memory of who gave it up."""
        if receive.out is not None and arrival.landing is not None:
            self._move_out(arrival)
        if arrival.message:
            self._count(arrival, True)
        elif arrival.complete:
            self._peers.peer(arrival.source).account.owed -= arrival.length + FRAME_COST
        arrival.receive = receive.arrival = None
        self._rematch(arrival)

    def put_back(self, arrival: Arrival, value: Encoded, eager: bool) -> None:
        """A message that came by the short cut, whose receive was given up after it was consumed."""
        arrival.metadata, arrival.length = value.metadata, value.nbytes
        arrival.open(own=True)
        _fill(arrival, value.segments)
        arrival.complete = True
        arrival.message = 0 if eager else 1  # as it was: what was offered has cost no credit
        arrival.serial = self.matching.before_all()
        if eager:
            self._peers.peer(arrival.source).account.owed -= arrival.length + FRAME_COST
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
        for link in self._peers.peer(arrival.source).links:
            link.relocate(partial(self._belongs, arrival), copied)

    def _belongs(self, arrival: Arrival, frame: Frame) -> bool:
        """Whether the payload of ``frame``, being read at this moment, is part of ``arrival``."""
        if frame.kind is Kind.DATA:
            return frame.message == arrival.message
        return self._landings.get(id(frame)) is arrival

    # ------------------------------------------------------------------------------- ends

    def lose_from(self, ident: int, error: PeerLost) -> None:
        """Nothing will come from that peer: end what was receiving from it."""
        for arrival in self._under_way():
            if arrival.source == ident:
                self._lose(arrival, error)

    def _lose(self, arrival: Arrival, error: PeerLost) -> None:
        """A message that is not complete, and perhaps never will be: nobody waits for it any more."""
        self._peers.peer(arrival.source).receiving.pop(arrival.message, None)
        self._count(arrival, False)
        receive, arrival.receive = arrival.receive, None
        if receive is None:
            self.matching.withdraw(arrival)
            return
        if receive.out is not None and arrival.landing is not None:
            self._move_out(arrival)
        receive.finish(error)

    def forget_torn(self, ident: int) -> None:
        """Nothing more comes from a peer: neither does the rest of what was being read."""
        self._landings = {key: arrival for key, arrival in self._landings.items() if arrival.source != ident}

    def fail_needing(self, ident: int, error: PeerLost) -> None:
        """Nothing will come from that peer: end what waits for it."""
        self._hear_ourselves()
        self._fail([receive for receive in self.matching.receives() if self._needs(receive, ident)], error)

    def _needs(self, receive: Receive, ident: int) -> bool:
        return receive.source == ident or (receive.source == ANY and self._why_hopeless(receive) is not None)

    def fail_in(self, contexts: frozenset[int], error: RmpiError) -> None:
        """End what waits in these contexts; what was on its way to it lands in memory of our own."""
        self._fail(list(self.matching.receives(contexts)), error)
        for arrival in self._under_way():
            if arrival.context in contexts and arrival.receive is not None:
                receive = arrival.receive
                self._unreceive(arrival, receive)
                receive.finish(error)

    def fail_all(self, error: RmpiError) -> None:
        self._fail(list(self.matching.receives()), error)

    def _fail(self, hopeless: list[Receive], error: RmpiError) -> None:
        for receive in hopeless:
            self.matching.cancel(receive)
            receive.finish(error)


def _fill(arrival: Arrival, segments: Sequence[Buffer]) -> None:
    """Copy the beginning of a message into the memory that it lands in; `Arrival.rest` stays whole."""
    assert arrival.landing is not None
    rest = [view for view in reversed(arrival.landing.views) if view.nbytes]
    for segment in segments:
        copied = memoryview(segment).cast("B")
        for view in take_views(rest, copied.nbytes):
            view[:] = copied[: view.nbytes]
            copied = copied[view.nbytes :]


def _cut(views: list[memoryview], like: list[memoryview]) -> list[memoryview]:
    """The beginning of ``views``, in pieces of the same sizes as ``like``."""
    rest = [view for view in reversed(views) if view.nbytes]
    return [piece for view in like for piece in take_views(rest, view.nbytes)]
