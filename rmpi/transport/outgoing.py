"""The sender's half of the protocol: messages on their way out, and the credit to send them.

    EAGER    ->   the message itself, up to `EAGER_LIMIT` and against the receiver's credit
    OFFER    ->   its place in the matching order, everything but its payload
    GRANT    <-   the receiver has memory for it
    DATA     ->   the payload, piece by piece, behind any small frames
    WITHDRAW ->   the sender gave up before it was granted
    CREDIT   <-   eager bytes that were consumed

The `credit` of a peer's account is what it will still take unasked. Each eager message takes its length and
`FRAME_COST` from it; out of credit, or larger, only the offer travels, so that what waits at the receiver is bounded
and no order is lost.

A transfer is listed in `Peer.sending` from its offer until its last byte has left, it was withdrawn, or it
failed. One that is given up while its payload leaves goes on, from a copy: half a message is never sent.

Everything here happens *within progress*, the lock of the crank held.
"""

from __future__ import annotations

from rmpi.errors import RmpiError
from rmpi.transport.base import Link, Transfer
from rmpi.transport.peers import CREDIT, FRAME_COST, Handler, Peer, Peers, fresh
from rmpi.wire.frames import EAGER_LIMIT, Frame, Kind


class Outgoing:
    """The messages that one endpoint sends."""

    def __init__(self, ident: int, peers: Peers) -> None:
        self._ident = ident
        self._peers = peers
        self._next_message = 0

    def handlers(self) -> dict[Kind, Handler]:
        return {Kind.GRANT: self._on_grant, Kind.CREDIT: self._on_credit}

    def begin(self, transfer: Transfer) -> None:
        """Send a message or offer it. Raises `PeerLost` if its destination is gone."""
        peer = self._peers.peer(transfer.destination)
        if peer.ended is not None:
            raise fresh(peer.ended)
        cost = transfer.length + FRAME_COST
        if transfer.length <= EAGER_LIMIT and cost <= peer.account.credit:
            peer.account.credit -= cost
            self._peers.dispatch(peer, transfer.frame(Kind.EAGER))
            transfer.finish()
            return
        self._next_message += 1
        transfer.offer(self._next_message, peer.sending)
        self._peers.dispatch(peer, transfer.frame(Kind.OFFER))

    def _on_grant(self, link: Link, frame: Frame) -> None:
        peer = self._peers.peer(frame.source)
        transfer = peer.sending.get(frame.message)
        if transfer is None or transfer.granted:
            return  # withdrawn meanwhile: the receiver learns it from our WITHDRAW
        transfer.granted = True
        if not transfer.length:
            transfer.finish()
            return
        send_on = peer.link or link
        send_on.stream(transfer)
        self._peers.push(send_on)

    def _on_credit(self, _link: Link, frame: Frame) -> None:
        account = self._peers.peer(frame.source).account
        account.credit = min(CREDIT, account.credit + frame.message)

    # ---------------------------------------------------------------------------------- giving up

    def abandon(self, transfer: Transfer) -> None:
        """Withdraw an offer; what was granted goes on from memory of its own."""
        peer = self._peers.peer(transfer.destination)
        if transfer.granted:
            transfer.own()
            for link in peer.all_links():
                link.detach()
            return
        if peer.sending.pop(transfer.message, None) is None:
            return
        frame = Frame(Kind.WITHDRAW, self._ident, transfer.destination, message=transfer.message)
        self._peers.dispatch(peer, frame)

    def fail_to(self, peer: Peer, error: RmpiError) -> None:
        """Nothing can be sent to that peer any more."""
        for transfer in list(peer.sending.values()):
            transfer.finish(error)

    def fail_all(self, error: RmpiError) -> None:
        for peer in self._peers.known.values():
            self.fail_to(peer, error)

    def fail_in(self, contexts: frozenset[int], error: RmpiError) -> None:
        """Nobody waits for anything in these contexts any more."""
        for transfer in [transfer for peer in self._peers.known.values() for transfer in peer.sending.values()]:
            if transfer.context in contexts:
                self.abandon(transfer)
                transfer.finish(error)
