"""Ends: of peers, of contexts, and our own. What waits for what cannot come is told so.

**Death** is what the router says (`Ends.peer_ended`), never what a socket says. A peer that left properly has said
BYE, and everything before it counts. Only a link on which nonsense came ends its peer from here.

A peer that finished ends what waits for it. One that failed also breaks the collective contexts it is a member
of: their collectives cannot be completed by anybody.

Once an end is noted, in `Peer.ended` or `Ends.broken`, nothing that needs what ended is waiting, and nothing
new that needs it will be begun.

Everything here happens *within progress*, the lock of the crank held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rmpi.errors import ChannelClosed, PeerExited, PeerLost, RmpiError
from rmpi.transport.base import Link
from rmpi.transport.incoming import Incoming
from rmpi.transport.matching import Context
from rmpi.transport.outgoing import Outgoing
from rmpi.transport.peers import Handler, Peer, Peers
from rmpi.wire.frames import Frame, Kind


class Ends:
    """What has ended, as one endpoint sees it.

    Attributes:
        broken: The contexts that cannot be used any more, and why.
    """

    def __init__(
        self, ident: int, name_of: Callable[[int], str], peers: Peers, incoming: Incoming, outgoing: Outgoing
    ) -> None:
        self.broken: dict[int, RmpiError] = {}
        self._ident = ident
        self._name_of = name_of
        self._peers = peers
        self._incoming = incoming
        self._outgoing = outgoing
        self._leaving = False

    def handlers(self) -> dict[Kind, Handler]:
        return {Kind.BYE: self._on_bye}

    # ------------------------------------------------------------------------------------ contexts

    def open_context(self, context: int, members: frozenset[int], collective: bool) -> Context:
        """Make a context known; a collective one is broken from the start if a member has failed."""
        known = self._incoming.matching.open(context, members, collective)
        for member in members:
            error = self._peers.peer(member).ended
            if collective and error is not None and not isinstance(error, PeerExited):
                self.broken.setdefault(context, error)
        return known

    def break_contexts(self, contexts: Iterable[int], error: RmpiError) -> None:
        """End what waits in these contexts; they cannot be used any more."""
        broken = frozenset(context for context in contexts if self._incoming.matching.why_closed(context) is None)
        for context in broken:
            self.broken.setdefault(context, error)
        self._incoming.fail_in(broken, error)
        self._outgoing.fail_in(broken, error)

    def close_context(self, context: int, error: ChannelClosed) -> None:
        """Nothing will be sent or received in this context any more."""
        self._incoming.fail_in(frozenset({context}), error)
        self._outgoing.fail_in(frozenset({context}), error)
        self._incoming.close_context(context, error)
        self.broken.pop(context, None)  # what is broken and gone keeps nobody from leaving properly

    # ------------------------------------------------------------------------------------ peers

    def peer_ended(self, ident: int, error: PeerLost) -> None:
        """The router says that a peer is gone; see `Endpoint.peer_ended`."""
        peer = self._peers.peer(ident)
        self._peers.drain(peer)
        if isinstance(error, PeerExited) and peer.links:
            peer.bye = True  # the end of its links brings the rest
            return
        self.end_peer(ident, error)

    def end_peer(self, ident: int, error: PeerLost) -> None:
        """Nothing will come from that peer any more: fail what needs it."""
        peer = self._peers.peer(ident)
        failed = not isinstance(error, PeerExited)
        if peer.ended is not None and (not failed or not isinstance(peer.ended, PeerExited)):
            return
        peer.ended = error
        peer.account.quick = False
        self._outgoing.fail_to(peer, error)
        self._incoming.lose_from(ident, error)
        if failed:
            self.break_contexts(self._collectives_with(ident), error)
        self._incoming.fail_needing(ident, error)
        self._settle_end(ident)

    def _collectives_with(self, ident: int) -> list[int]:
        contexts = self._incoming.matching.contexts.items()
        return [context for context, known in contexts if known.collective and ident in known.members]

    def _on_bye(self, _link: Link, frame: Frame) -> None:
        """The peer has left properly. Small frames overtake payload, so some may still be on its way."""
        peer = self._peers.peer(frame.source)
        peer.bye = True
        if not peer.receiving:
            self._exit_peer(frame.source)

    def silent(self, ident: int) -> None:
        """The peer's last link has ended: if it had said BYE, so has the peer."""
        if self._peers.peer(ident).bye:
            self._exit_peer(ident)
        self._settle_end(ident)

    def forget(self, ident: int, at_once: bool) -> None:
        """Give back all that is known of a peer as soon as it is over; see `Endpoint.forget`."""
        peer = self._peers.known.get(ident)
        if peer is None:
            return
        peer.forgotten = True
        if at_once and peer.ended is not None:
            self._peers.drop(peer)
        self._settle_end(ident)

    def _settle_end(self, ident: int) -> None:
        """If the peer has ended and is silent, it is over."""
        peer = self._peers.peer(ident)
        if peer.ended is None or peer.links:
            return
        self._incoming.forget_torn(ident)
        self._peers.leave_alone(peer)
        if peer.forgotten:
            self._peers.forget(ident)

    def _exit_peer(self, ident: int) -> None:
        name = self._name_of(ident)
        self.end_peer(ident, PeerExited(f"{name} has ended; nothing more will come from it, and it will take nothing"))

    # ------------------------------------------------------------------------------------ our own

    def leave(self) -> None:
        """Tell every peer that nothing more will come from here."""
        if not self._leaving:
            self._leaving = True
            for peer in self._peers.known.values():
                self._say_bye(peer)

    def link_added(self, link: Link) -> None:
        """A link stands; if it is the one to send on and we are leaving, its peer is told now."""
        peer = self._peers.peer(link.peer)
        if self._leaving and peer.link is link:
            self._say_bye(peer)

    def _say_bye(self, peer: Peer) -> None:
        """But not where a context was broken: a BYE must not overtake the reason, which the router tells first."""
        link = peer.link
        if link is not None and link.peer != self._ident:
            if not self.broken:
                self._peers.put(link, Frame(Kind.BYE, self._ident, link.peer))
            link.finish()

    def settled(self) -> bool:
        """Whether everything that was sent is out."""
        return not self.unsettled()

    def unsettled(self) -> frozenset[int]:
        """Peers to which something is still to go out."""
        others = ((i, peer) for i, peer in self._peers.known.items() if i != self._ident)
        return frozenset(i for i, peer in others if not self._is_settled(peer))

    def _is_settled(self, peer: Peer) -> bool:
        if peer.ended is not None:
            return True  # nobody is left who would receive anything
        return not peer.waiting and (peer.link is None or peer.link.settled())
