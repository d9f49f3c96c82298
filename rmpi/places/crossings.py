"""How places of different nodes of a system reach each other, as its head decides. [pure]

One of the two dials the door of the other's node. Where neither finds a door, or what was learnt forbids it, the nodes
relay, and the head passes on what they carry (`relay`); what is learnt of one pair of places holds for their nodes, as
in a job (`routes`), but that here each node may have been added with a route of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rmpi.places.books import Action, NodeEntry, Post, Tell
from rmpi.places.messages import Carried, Carry, Dial, Message, NoLink
from rmpi.places.router import node_of
from rmpi.places.routes import PATIENCE
from rmpi.places.system_messages import LOCAL, EndpointGone, RelayTo


class Crossings:
    """The ways between the nodes of one system.

    Args:
        key: What connections are proved with, unless a node has another.
        nodes: All of them, as they come and go.
        is_there: Whether there is a process behind an endpoint.
        to: A message for it, if there is.
    """

    def __init__(
        self,
        key: bytes,
        nodes: Mapping[int, NodeEntry],
        is_there: Callable[[int], bool],
        to: Callable[[int, Message], list[Action]],
    ) -> None:
        self._key = key
        self._nodes = nodes
        self._is_there = is_there
        self._to = to
        self._barred: dict[tuple[int, int], str] = {}  # nodes whose places cannot dial the other's, and why
        self._relayed: dict[tuple[int, int], set[int]] = {}  # pairs of endpoints; of which of them nothing is wanted
        self._announced: set[tuple[int, int]] = set()  # nodes whose detour was

    def connect(self, endpoint: int, peer: int) -> list[Action]:
        """A place wants a link to one of another node."""
        if not self._is_there(peer):
            return self._to(endpoint, EndpointGone(peer, "a place", "it has ended", True))
        mine, theirs = self._nodes[node_of(endpoint)], self._nodes[node_of(peer)]
        route = "direct" if "direct" in (mine.route, theirs.route) else "auto"
        patience = PATIENCE[route]
        if self._dials(mine, theirs):
            return self._to(endpoint, Dial(peer, (_door(mine, theirs),), theirs.key or self._key, patience))
        if self._dials(theirs, mine):
            return self._to(peer, Dial(endpoint, (_door(theirs, mine),), mine.key or self._key, patience))
        if route == "direct":
            return self._to(endpoint, NoLink(peer, self._why_not(mine, theirs)))
        if self.relays(endpoint, peer):
            return []
        self._relayed[_pair(endpoint, peer)] = set()
        return [
            Post(mine.number, RelayTo(endpoint, peer)),
            Post(theirs.number, RelayTo(peer, endpoint)),
            *self._announce_detour(mine, theirs),
        ]

    def _dials(self, node: NodeEntry, other: NodeEntry) -> bool:
        """Whether places of a node may find the door of another one, and are to."""
        if "relay" in (node.route, other.route) or (node.number, other.number) in self._barred:
            return False
        return _door(node, other)[1] != 0

    def unreachable(self, endpoint: int, peer: int, why: str) -> list[Action]:
        """A door was not to be reached; what was learnt holds for all places of the two nodes, in that direction."""
        if self._is_there(peer):
            self._barred.setdefault((node_of(endpoint), node_of(peer)), why)
        return self.connect(endpoint, peer)

    def _why_not(self, node: NodeEntry, other: NodeEntry) -> str:
        return f"{self._barriers(node, other)}. With route='auto' their data would go through the nodes"

    def _barriers(self, node: NodeEntry, other: NodeEntry) -> str:
        """Why no place of the one can connect to the other, and the other way round."""
        pairs = ((node.number, other.number), (other.number, node.number))
        whys = [self._barred[pair] for pair in pairs if pair in self._barred]
        return "; ".join(whys) or "neither node has a door for the other"

    def relays(self, source: int, destination: int) -> bool:
        return _pair(source, destination) in self._relayed

    def carried(self, source: int, destination: int, count: int) -> list[Action]:
        """A pair is forgotten when it was said for both directions that nothing more is wanted, as `relay` does."""
        pair = _pair(source, destination)
        if pair not in self._relayed:
            return []
        if not count:
            self._relayed[pair].add(source)
        if len(self._relayed[pair]) == len(pair):
            del self._relayed[pair]
        return [Post(node_of(source), Carried(source, destination, count))]

    def _announce_detour(self, node: NodeEntry, other: NodeEntry) -> list[Action]:
        """Once for two nodes, unless that was asked for."""
        pair = _pair(node.number, other.number)
        if pair in self._announced or "relay" in (node.route, other.route) or (node.is_guest and other.is_guest):
            return []
        self._announced.add(pair)
        why = self._barriers(node, other)
        text = f"{node.label} and {other.label} cannot connect ({why}): their data goes through the nodes"
        return [Tell(f"rmpi: {text}, which is slower")]

    def end(self, endpoint: int) -> list[Action]:
        """An endpoint is lost: whoever it was relayed to sees the end of its link."""
        actions: list[Action] = []
        for pair in [pair for pair in self._relayed if endpoint in pair]:
            del self._relayed[pair]
            peer = pair[0] + pair[1] - endpoint
            if self._nodes[node_of(peer)].state in ("up", "ending"):
                actions += [
                    Post(node_of(peer), Carry(endpoint, peer, b"")),
                    Post(node_of(peer), Carried(peer, endpoint, 0)),
                ]
        return actions

    def forget(self, node: int) -> None:
        """A node is gone, and its number is never used again."""
        self._barred = {pair: text for pair, text in self._barred.items() if node not in pair}
        self._announced = {pair for pair in self._announced if node not in pair}

    def relayed_at(self, node: int) -> list[int]:
        """The endpoints of a node that are relayed."""
        return sorted({each for pair in self._relayed for each in pair if node_of(each) == node})


def _door(node: NodeEntry, other: NodeEntry) -> tuple[str, int]:
    """Where places of a node find the door of another one; port 0: nowhere.

    All doors of the head's machine are at one address. What guests call it, the one by which they came has told.
    """
    if node.came_by is not None and other.is_here:
        address, port = node.came_by
        return address, port if other.number == LOCAL else other.door[1]
    return other.door if node.is_here or not other.is_here else ("", 0)


def _pair(one: int, other: int) -> tuple[int, int]:
    return min(one, other), max(one, other)
