"""The other endpoints, and the links to them: where frames leave, and where they come in.

A peer is known from the moment somebody names it. Frames for it leave on one link, the first that stands, so
they keep their order; until then they wait here, and a link is asked for once. What comes over any link goes
to the handler of its kind. Nothing here looks into a frame beyond its kind and destination.

Two ends may dial each other at once, so a peer may have several links. We send on one and hear on all; only
when the last of them has ended is the peer *silent*: nothing that it sent is missing any more.

`Peer` also keeps the books that both halves of the protocol share (`incoming`, `outgoing`): one row per peer.

Once a peer has ended and is silent it is *over*: nobody looks at its lane any more. Whoever meets many peers has them
forgotten then (`forget`), and all that is left is that they have ended, of the last `REMEMBERED`.

Everything here happens *within progress*, the lock of the crank held, but for `Peers.notify`.
"""

from __future__ import annotations

import copy
import select
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol

from rmpi.errors import PeerLost, WireError
from rmpi.transport.base import Link, Sink, Transfer
from rmpi.transport.crank import Crank
from rmpi.transport.matching import Arrival
from rmpi.transport.memory import MemoryLink
from rmpi.wire.frames import Frame, Kind

if TYPE_CHECKING:
    from rmpi.transport._ring import Lane

CREDIT = 1 << 20
"""Bytes of eager messages that one peer may have unmatched here; beyond, it offers instead."""

FRAME_COST = 512
"""Bytes that any unmatched message counts for beyond its payload: about what it costs us to remember it."""

REMEMBERED = 1024
"""Forgotten peers of which it is known that they have ended. An older one that is named again is asked for again."""

Connect = Callable[[int], None]
"""Called, the lock held, when a link to a peer is wanted; somebody then posts `Endpoint.add_link`."""

Handler = Callable[[Link, Frame], None]
"""Takes one kind of frame; raises `WireError` if the peer cannot have meant it."""


class Account(Protocol):
    """Credit between two endpoints. Of a link over shared memory its `Lane`, so that ports can read and write it.

    Attributes:
        credit: Bytes of eager messages that the peer will take unasked.
        owed: Bytes of its that were consumed, whose credit has not been given back.
        quick: Messages may take the short cut.
    """

    credit: int
    owed: int
    quick: bool


class _Account:
    __slots__ = ("credit", "owed", "quick")

    def __init__(self) -> None:
        self.credit = CREDIT
        self.owed = 0
        self.quick = False


class Peer:
    """What an endpoint knows of another one."""

    __slots__ = (
        "account",
        "bye",
        "ended",
        "forgotten",
        "heard",
        "link",
        "links",
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
        self.heard = 0  # what was taken from links that are no more
        self.account: Account = _Account()
        self.sending: dict[int, Transfer] = {}  # offered, or on their way
        self.receiving: dict[int, Arrival] = {}  # offered to us, not yet complete
        self.bye = False
        self.ended: PeerLost | None = None
        self.forgotten = False  # as soon as it is over

    def open_account(self, account: Account) -> None:
        """Keep the books in ``account`` from now on."""
        account.credit = self.account.credit
        account.owed = self.account.owed
        self.account = account

    def sent(self) -> int:
        """How much was ever sent to it; what waits here is among it."""
        return len(self.waiting) + sum(link.sent() for link in self.all_links())

    def taken(self) -> int:
        """How much of what it ever sent has been taken, counted as it is there."""
        return self.heard + sum(link.taken() for link in self.all_links())

    def all_links(self) -> list[Link]:
        """Each once, also the one that we only send on."""
        spare = [] if self.link is None or self.link in self.links else [self.link]
        return [*self.links, *spare]


class Lanes(Protocol):
    """Whoever takes short cuts over lanes."""

    def add(self, lane: Lane) -> None: ...
    def remove(self, lane: Lane) -> None: ...


class Verdict(Protocol):
    """Whoever decides what the end of a link means."""

    def end_peer(self, ident: int, error: PeerLost) -> None:
        """What comes from that peer is of no use."""

    def silent(self, ident: int) -> None:
        """The last link of that peer has ended; everything before its end was handled."""


class Peers:
    """The peers of one endpoint, by number. `listen` is called once, before anything else."""

    _sink: Sink
    _handlers: Mapping[Kind, Handler]
    _verdict: Verdict
    _lanes: Lanes

    def __init__(self, ident: int, name_of: Callable[[int], str], crank: Crank, connect: Connect) -> None:
        self.known: dict[int, Peer] = {}
        self._gone: dict[int, PeerLost] = {}  # forgotten, in the order in which they were
        self._ident = ident
        self._name_of = name_of
        self._crank = crank
        self._connect = connect

    def listen(self, sink: Sink, handlers: Mapping[Kind, Handler], verdict: Verdict, lanes: Lanes) -> None:
        """Say who lends memory for the link to oneself, who takes the frames, who hears of ends, and who of lanes."""
        self._sink = sink
        self._handlers = handlers
        self._verdict = verdict
        self._lanes = lanes

    def peer(self, ident: int) -> Peer:
        """What is known of a peer; of one that was forgotten, only that it has ended."""
        peer = self.known.get(ident)
        if peer is None:
            peer = Peer()
            peer.ended = self._gone.get(ident)
            if peer.ended is None:
                self.known[ident] = peer
            if ident == self._ident:
                self.add_link(MemoryLink.loop(ident, self._sink, self.notify))
        return peer

    def add_link(self, link: Link) -> None:
        """Use a link from now on."""
        if link.peer in self._gone:
            link.close()  # it came too late
            return
        peer = self.peer(link.peer)
        peer.links.append(link)
        if link.fileno() >= 0:
            self._crank.register(link.fileno(), partial(self._stir, link))
        if link.lane is not None:
            self._crank.watch(link.lane, partial(self._look, link))
        if peer.link is None:
            peer.link = link
            if link.lane is not None:
                peer.open_account(link.lane)
                self._lanes.add(link.lane)
            waiting, peer.waiting = peer.waiting, []
            for frame in waiting:
                self.put(link, frame)

    def notify(self, link: MemoryLink) -> None:
        """A memory link has something to receive, or room. From any thread."""
        self._crank.post(partial(self._stir, link, select.EPOLLIN | select.EPOLLOUT))

    # ------------------------------------------------------------------------------------ out

    def dispatch(self, peer: Peer, frame: Frame) -> None:
        """Send a small frame to ``peer``, its destination, now or as soon as a link stands."""
        if peer.link is not None:
            self.put(peer.link, frame)
            return
        frame.segments = [bytes(segment) for segment in frame.segments]
        peer.waiting.append(frame)
        if not peer.wanted:
            peer.wanted = True
            self._connect(frame.destination)

    def put(self, link: Link, frame: Frame) -> None:
        link.send(frame)
        self.push(link)

    def push(self, link: Link) -> None:
        """Let go what waits in a link, now and whenever it has room."""
        if not link.flush() and (link.lane is None or link.lane.socket):
            self._want_room(link, True)

    def _want_room(self, link: Link, wanted: bool) -> None:
        """Whether the epoll shall tell when a socket takes more. Shared memory has a bell for that."""
        self._crank.want_room(link.fileno(), wanted)
        if link.lane is not None:
            link.lane.wants_room = wanted

    # ------------------------------------------------------------------------------------ in

    def _stir(self, link: Link, mask: int) -> None:
        """A link can move."""
        if mask & select.EPOLLOUT and link.flush():
            self._want_room(link, False)
        if mask & ~select.EPOLLOUT:
            self._serve(link, heard=True)

    def _look(self, link: Link) -> None:
        """A lane can move."""
        self.push(link)
        self._serve(link)

    def _serve(self, link: Link, *, heard: bool = False) -> None:
        """Take what has come over a link; ``heard``: its descriptor is readable."""
        try:
            if heard:
                link.hear()
            for frame in link.receive():
                self._handle(link, frame)
        except WireError as error:
            self.refuse(link, error)
            return
        if link.closed:
            self._drop(link)

    def refuse(self, link: Link, error: WireError) -> None:
        """What came over a link is no frame, or not one that the peer can have meant."""
        self._drop(link)
        link.close()
        self._verdict.end_peer(link.peer, PeerLost(f"the link to {self._name_of(link.peer)} broke: {error}"))

    def _handle(self, link: Link, frame: Frame) -> None:
        if frame.destination != self._ident:
            raise WireError(f"misdirected frame: {frame} came to {self._ident:#x}")
        handler = self._handlers.get(frame.kind)
        if handler is None:
            raise WireError(f"no place has a use for {frame}")
        handler(link, frame)

    def drain(self, peer: Peer) -> None:
        """Take all that has come from a peer, however much it is."""
        for link in list(peer.links):
            self._serve(link, heard=True)  # perhaps nobody has listened to it yet
            while link.more and not link.closed:
                self._serve(link)

    # ------------------------------------------------------------------------------------ the end of links

    def _drop(self, link: Link) -> None:
        """The peer will send nothing more over this link."""
        self._crank.unregister(link.fileno())
        peer = self.peer(link.peer)
        if link in peer.links:
            peer.links.remove(link)
        if link is not peer.link:
            if link.lane is not None:
                self._crank.unwatch(link.lane)
            peer.heard += link.taken()
            link.close()  # a second connection: we never send on it
        if not peer.links:
            self._verdict.silent(link.peer)

    def drop(self, peer: Peer) -> None:
        """Hear nothing more of a peer, whatever may still be on its way."""
        for link in list(peer.links):
            self._drop(link)

    def leave_alone(self, peer: Peer) -> None:
        """Nothing will come from this peer or go there any more: nobody need look at its lane."""
        if peer.link is not None and peer.link.lane is not None:
            self._crank.unwatch(peer.link.lane)
            self._lanes.remove(peer.link.lane)

    def forget(self, ident: int) -> None:
        """Give back all that is known of a peer that is over."""
        peer = self.known.pop(ident)
        assert peer.ended is not None
        if peer.link is not None:
            peer.link.close()
        self._gone[ident] = peer.ended
        if len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]

    def close(self) -> None:
        """Drop all links at once."""
        for peer in self.known.values():
            for link in peer.all_links():
                link.close()


def fresh(error: BaseException) -> BaseException:
    """A copy to raise: several callers may get the same error, each with a traceback of its own.

    An exception of the program's that cannot be copied is shared.
    """
    try:
        return copy.copy(error).with_traceback(None)
    except Exception:
        return error
