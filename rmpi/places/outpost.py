"""What a node of a system decides by itself; everything else it asks the head. [pure]

Places come and go, and only the head knows which there are, so a node decides little: two of its own places that want
each other get a socketpair; a connection at its door goes to the place it asks for, if that runs here. It remembers
which endpoints its places were connected to, because only those need to hear of their ends.

    a place wants a peer of its own node    it joins the two
    a place says anything else              to the head
    a place has ended                       its peers here are told, and the head
    the head speaks to a place              passed on
    the head says that an endpoint is gone  told to those places that know it
    the head wants two places relayed       done for the one that is here (`relay`)
    somebody comes in by the door           handed to the place, or turned away
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from rmpi.errors import WireError
from rmpi.places.ends import end_of
from rmpi.places.messages import (
    Carried,
    Carry,
    Connect,
    Dial,
    Everyone,
    Exited,
    FromPlace,
    Joined,
    Left,
    Message,
    ToPlace,
    pack,
    unpack,
)
from rmpi.places.router import (
    HEAD,
    Action,
    CameIn,
    Event,
    HandOver,
    Join,
    NodeSaid,
    PlaceExited,
    PlaceSaid,
    Pump,
    Relay,
    Send,
    Tell,
    TurnAway,
)
from rmpi.places.system_messages import FROM_PLACES, EndpointGone, RelayTo, Running


@dataclass(frozen=True, slots=True)
class PlaceStarts:
    """A place of this node is about to start, or has joined."""

    endpoint: int
    label: str


class Outpost:
    """The router of one node of a system."""

    def __init__(self, node: int) -> None:
        self.node = node
        self._labels: dict[int, str] = {}  # of the places that run here
        self._joined: set[int] = set()
        self._left: set[int] = set()
        self._peers: defaultdict[int, set[int]] = defaultdict(set)  # of places that run here

    def step(self, event: Event | PlaceStarts) -> list[Action]:
        """What is to be done about ``event``.

        Raises:
            WireError: A place said what it may not say.
        """
        match event:
            case PlaceStarts(endpoint, label):
                self._labels[endpoint] = label
                return []
            case PlaceSaid(endpoint, message):
                return self._place_said(endpoint, message)
            case PlaceExited(endpoint, status):
                return self._ended(endpoint, status)
            case NodeSaid(_, message):
                return self._head_said(message)
            case CameIn(connection, source, destination):
                if destination not in self._labels:
                    return [TurnAway(connection)]
                self._peers[destination].add(source)
                return [HandOver(connection, destination, source)]
        raise WireError(f"a node of a system has no use for {type(event).__name__}")

    def label_of(self, endpoint: int) -> str:
        """What to call a place of this node."""
        return self._labels.get(endpoint, "a place")

    def runs(self, endpoint: int, pid: int) -> list[Action]:
        """A place of this node has its process."""
        return [Send(HEAD, Running(endpoint, pid))]

    def _place_said(self, endpoint: int, message: Message) -> list[Action]:
        match message:
            case Joined():
                self._joined.add(endpoint)
                return []
            case Left():
                self._left.add(endpoint)
                return []
            case Connect(peer):
                return self._connect(endpoint, peer)
        if isinstance(message, FROM_PLACES):
            return [Send(HEAD, FromPlace(endpoint, pack(message)))]
        raise WireError(f"a place may not say {type(message).__name__}")

    def _connect(self, endpoint: int, peer: int) -> list[Action]:
        known = peer in self._peers[endpoint]
        self._peers[endpoint].add(peer)
        if peer not in self._labels:
            return [Send(HEAD, FromPlace(endpoint, pack(Connect(peer))))]
        self._peers[peer].add(endpoint)
        return [] if known else [Join(endpoint, peer)]

    def _ended(self, endpoint: int, status: int) -> list[Action]:
        label = self.label_of(endpoint)
        self._labels.pop(endpoint, None)
        joined, left = endpoint in self._joined, endpoint in self._left
        self._joined.discard(endpoint)
        self._left.discard(endpoint)
        self._peers.pop(endpoint, None)
        end = end_of(status, joined=joined, left=left)
        gone = EndpointGone(endpoint, label, end.cause, end.failed)
        return [*self._tell_peers(gone), Send(HEAD, Exited(endpoint, status, joined, left))]

    def _tell_peers(self, gone: EndpointGone) -> list[Action]:
        """Those that were connected to an endpoint, or wanted to be, hear that it is gone."""
        concerned = [endpoint for endpoint, peers in self._peers.items() if gone.endpoint in peers]
        for endpoint in concerned:
            self._peers[endpoint].discard(gone.endpoint)
        return [Tell(endpoint, gone) for endpoint in concerned]

    def _head_said(self, message: Message) -> list[Action]:
        match message:
            case ToPlace(endpoint, packed):
                told = unpack(packed)
                if endpoint not in self._labels:
                    return []
                if isinstance(told, Dial):  # perhaps for the other one's sake
                    self._peers[endpoint].add(told.peer)
                return [Tell(endpoint, told)]
            case EndpointGone():
                return self._tell_peers(message)
            case RelayTo(endpoint, peer) if endpoint in self._labels:
                self._peers[endpoint].add(peer)
                return [Relay(endpoint, peer)]
            case RelayTo(endpoint, peer):  # it has just ended
                return [Send(HEAD, Carried(peer, endpoint, 0)), Send(HEAD, Carry(endpoint, peer, b""))]
            case Carry() | Carried():
                return [Pump(message)]
            case Everyone(packed):
                return [Tell(endpoint, unpack(packed)) for endpoint in self._labels]
        raise WireError(f"the head may not say {type(message).__name__} to a node of a system")
