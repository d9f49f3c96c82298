"""Which way data goes between places of two nodes. [pure]

Three ways, tried in this order, of which the user may have wanted only some (``route``):

    the place that wants a link dials the other one's node            auto, direct
    it cannot, so the other place dials this one's node               auto, direct
    neither can, so routers relay, over the ssh sessions if need be   auto, relay

What was learnt for one pair of places holds for all of their nodes, in that direction: a firewall drops the packets of
everybody, and nobody else shall wait as long for the same answer. The second way costs another wait, once; that is
little against a whole job through the ssh sessions, and networks that can be crossed one way only are common (address
translation; login nodes that cannot be reached from compute nodes).

A way that was taken is never left. So what was learnt concerns links that are yet to be made, and nothing that
travels can overtake anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

ROUTES = ("auto", "direct", "relay")

PATIENCE = {"auto": 2.0, "direct": 10.0, "relay": 0.0}
"""Seconds in which an address must answer a connection, by route. Linux asks again after 1 s, and then after 3 s."""


class Way(Enum):
    """How a link between two places may come about."""

    DIAL = "the place that wants it dials"
    DIAL_BACK = "the place that is wanted dials"
    NONE = "neither can dial"


class Routes:
    """What is known of the ways between nodes.

    Attributes:
        relays: Whether places that cannot connect are to be relayed; else that is an error.
        patience: Seconds; see `PATIENCE`.

    Args:
        route: One of `ROUTES`.
        doors: Where places of other nodes come in, by node. Looked at again for each link.
    """

    def __init__(self, route: str, doors: Mapping[int, Sequence[tuple[str, int]]]) -> None:
        self.relays = route != "direct"
        self.patience = PATIENCE[route]
        self._dials = route != "relay"
        self._doors = doors
        self._barred: dict[tuple[int, int], str] = {}

    def bar(self, source: int, destination: int, why: str) -> None:
        """Note that no place of node ``source`` can connect to node ``destination``, and why."""
        self._barred.setdefault((source, destination), why)

    def barred(self, source: int, destination: int) -> str | None:
        """Why no place of node ``source`` is to dial node ``destination``; None if it may. Empty: nobody is to dial."""
        if not self._dials:
            return ""
        if not self._doors.get(destination):
            return "it has no door"
        return self._barred.get((source, destination))

    def way(self, source: int, destination: int) -> Way:
        """How a place of node ``source`` gets a link to one of node ``destination``."""
        if self.barred(source, destination) is None:
            return Way.DIAL
        if self.barred(destination, source) is None:
            return Way.DIAL_BACK
        return Way.NONE
