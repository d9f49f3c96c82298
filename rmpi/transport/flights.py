"""Flights: large messages over lanes, while both sides are there.

The protocol is that of `incoming` and `outgoing`, frame by frame. Only that a caller who waits for a large message,
or for its going out, does not turn the crank for each of them: one call of the extension takes the grant, and
writes or reads the payload while the other side does the opposite (`flight.c`). What it meets besides, and a peer that
makes it wait, end the flight, and the message goes on as any other, if need be in the middle of a frame.

A flight begins in a `Port`, which calls here only if it has stopped on the way (`Flights.adopt_send`, `adopt_receive`);
or else when the wait for an operation begins, for at most one message in each direction. Everything here happens
*within progress*, and with handlers deferred.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rmpi.errors import WireError
from rmpi.transport.base import Transfer
from rmpi.transport.incoming import Incoming
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.matching import ANY, Arrival, Receive
from rmpi.transport.operation import Operation
from rmpi.transport.peers import Peers
from rmpi.transport.stream import StreamLink
from rmpi.transport.threads import started
from rmpi.wire.codec import Array, encode_parts, encode_value
from rmpi.wire.frames import HEADER_SIZE, decode_header

if TYPE_CHECKING:
    from rmpi.transport._ring import Lane
    from rmpi.transport.crank import Crank

COMPANY = 20_000
"""Nanoseconds without movement after which a flight ends if there are other threads, which cannot run meanwhile."""

OFFERED, LANDED = 1, 3


class Flights:
    """Takes along what can fly of the messages of one endpoint."""

    def __init__(self, ident: int, peers: Peers, incoming: Incoming, crank: Crank) -> None:
        self._ident = ident
        self._peers = peers
        self._incoming = incoming
        self._crank = crank

    def adopt_send(
        self,
        lane: Lane,
        context: int,
        tag: int,
        fingerprint: int,
        value: Any,
        message: int,
        stage: int,
        offset: int,
        left: int,
    ) -> Transfer:
        """Go on with what a port has begun to send: a value, or a list of a pickle's parts."""
        shielded = SHIELD.enter()
        try:
            encoded = encode_parts(value) if type(value) is list else encode_value(value)
            peer = self._peers.peer(lane.peer)
            transfer = Transfer(
                self._ident, lane.peer, context, tag, fingerprint, encoded.metadata, encoded.segments, encoded.nbytes
            )
            transfer.offer(message, peer.sending)
            if stage > OFFERED:
                assert isinstance(peer.link, StreamLink)
                transfer.granted = True
                transfer.offset = offset + left
                peer.link.resume(transfer, left)
                peer.link.flush()
            return transfer
        finally:
            if shielded:  # a plain store: nothing may raise now; the wait that follows runs what came meanwhile
                SHIELD.depth -= 1

    def adopt_receive(
        self,
        lane: Lane,
        head: bytes,
        metadata: bytes,
        out: Array | None,
        begun: bytes | None,
        offset: int,
        frame: int,
        left: int,
    ) -> Receive:
        """Go on with what a port has begun to receive: into ``out``, or with a copy of what has ``begun`` to come."""
        shielded = SHIELD.enter()
        try:
            offer, _ = decode_header(head)
            offer.metadata = metadata
            receive = Receive(offer.context, offer.source, offer.tag, out)
            arrival = self._incoming.adopt(offer, receive, begun)
            rest = self._incoming.advance(arrival, offset, frame, left)
            link = self._peers.peer(lane.peer).link
            if rest is not None:
                assert isinstance(link, StreamLink)
                link.resume_reading(*rest)
            return receive
        finally:
            if shielded:  # a plain store: nothing may raise now; the wait that follows runs what came meanwhile
                SHIELD.depth -= 1

    def take(self, operations: Sequence[Operation]) -> None:
        """Move what is waited for, as far as it flies."""
        pending = [operation for operation in operations if not operation.done]
        transfers = [operation for operation in pending if isinstance(operation, Transfer)]
        receives = [operation for operation in pending if isinstance(operation, Receive)]
        if len(transfers) > 1 or len(receives) > 1:
            return
        out = self._departure(transfers[0]) if transfers else None
        into = self._expected(receives[0]) if receives else None
        if out is not None or into is not None:
            self._fly(out, into)

    def _link_to(self, ident: int) -> StreamLink | None:
        """The link to a peer, if it has a lane."""
        peer = self._peers.peer(ident)
        return peer.link if isinstance(peer.link, StreamLink) and peer.link.lane is not None else None

    def _departure(self, transfer: Transfer) -> _Departure | None:
        link = self._link_to(transfer.destination)
        if link is None or transfer.granted or not transfer.message:
            return None
        return _Departure(link, transfer)

    def _expected(self, receive: Receive) -> _Expected | None:
        link = self._link_to(receive.source) if receive.source != ANY else None
        return _Expected(link, receive, self._incoming) if link is not None else None

    def _fly(self, out: _Departure | None, into: _Expected | None) -> None:
        from rmpi.transport._ring import fly  # whoever has a lane has the extension

        limit = COMPANY if started() else int(self._crank.spin * 1e9)
        while (out or into) and not fly(
            out.flight if out else None, into.flight if into else None, limit, self._crank.crowded
        ):
            if into is None or not into.is_offered():
                break
            if not self._board(into):
                into = None
        if out is not None:
            out.end()
        if into is not None:
            into.end()

    def _board(self, into: _Expected) -> bool:
        """Whether the offer that came is the message that was expected, and under way."""
        try:
            return into.board()
        except WireError as error:
            self._peers.refuse(into.link, error)
            return False


class _Departure:
    """A message of ours that was offered."""

    def __init__(self, link: StreamLink, transfer: Transfer) -> None:
        from rmpi.transport._ring import Flight

        assert link.lane is not None
        self._link = link
        self._transfer = transfer
        self.flight = Flight(link.lane, transfer.message, transfer.context)
        self.flight.load([view for view in transfer.segments if len(view)], transfer.message, False)

    def end(self) -> None:
        """Let the transfer know how far it is, and the link go on with it."""
        flight, transfer = self.flight, self._transfer
        if flight.stage <= OFFERED:
            return
        transfer.granted = True
        transfer.offset = flight.offset + flight.left
        if flight.stage == LANDED:
            transfer.finish()
        else:
            self._link.resume(transfer, flight.left)
            self._link.flush()


class _Expected:
    """A message that we wait for: first its offer, then its payload."""

    def __init__(self, link: StreamLink, receive: Receive, incoming: Incoming) -> None:
        from rmpi.transport._ring import Flight

        self.link = link
        self._receive = receive
        self._incoming = incoming
        self._arrival: Arrival | None = None
        assert link.lane is not None
        self.flight = Flight(link.lane, 0, receive.context)

    def is_offered(self) -> bool:
        return self._arrival is None and self.flight.head is not None

    def board(self) -> bool:
        """Take the offer. Whether its payload is under way now, and is ours."""
        head = self.flight.head
        assert head is not None
        frame, _ = decode_header(head)
        frame.metadata = head[HEADER_SIZE:]
        arrival = self._incoming.offered(frame)
        if arrival is None or arrival.receive is not self._receive:
            return False
        self._arrival = arrival
        self.flight.load(arrival.rest[::-1], arrival.message, True)
        return True

    def end(self) -> None:
        """Let the message know how far it is, and the link go on with it."""
        flight = self.flight
        if self._arrival is None:
            return
        begun = self._incoming.advance(self._arrival, flight.offset, flight.frame, flight.left)
        if begun is not None:
            self.link.resume_reading(*begun)
