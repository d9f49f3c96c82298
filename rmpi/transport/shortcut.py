"""The short cut of small messages: which ports there are, and what stands in for one where there is none.

A `Port` (`_ring.c`) sends or receives a whole small message over a lane in one call, if nothing at all
speaks against it; else it does nothing and says so, and the caller takes the long way through the endpoint. What it
reads of the endpoint's state, and why that is safe, its text says. So whoever communicates writes

    sent = port.send(value, rank, tag)
    if sent is False:
        ... endpoint.send(...)

and needs to know only one thing more: a large message that was begun, and has stopped on the way, is an operation
of the endpoint from then on, which is returned instead of True or of the value, and must be waited for.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rmpi.transport.media import why_no_extension
from rmpi.transport.threads import counter
from rmpi.wire.codec import describe_array, new_array

if TYPE_CHECKING:
    from rmpi.errors import RmpiError
    from rmpi.transport._ring import Lane
    from rmpi.transport.crank import Crank
    from rmpi.transport.flights import Flights
    from rmpi.transport.matching import Context


class _Nothing:
    __slots__ = ()

    def __repr__(self) -> str:
        return "NOTHING"


NOTHING = _Nothing()
"""What a port returns in place of a value: it has none. No message can hold this object."""


class Shortcut(Protocol):
    """What `Port` and `NoShortcut` have in common; see ``_ring.pyi``."""

    @property
    def source(self) -> int: ...
    @property
    def tag(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def landed(self) -> bool: ...
    @property
    def thread(self) -> int: ...

    given: Any

    def send(self, value: object, rank: int, tag: int, fingerprint: int = 0, /) -> Any: ...
    def recv(self, rank: int, tag: int, out: Any, fingerprint: int = 0, /) -> Any: ...
    def post(self, value: object, rank: int, tag: int, fingerprint: int, /) -> bool: ...
    def exchange(
        self, value: object, to: int, source: int, tag: int, out: Any, fingerprint: int, /
    ) -> tuple[Any, Any]: ...


class NoShortcut:
    """Every message takes the long way."""

    source = tag = length = thread = 0
    landed = False
    given: Any = NOTHING

    def send(self, value: object, rank: int, tag: int, fingerprint: int = 0, /) -> Any:
        return False

    def recv(self, rank: int, tag: int, out: Any, fingerprint: int = 0, /) -> Any:
        return NOTHING

    def post(self, value: object, rank: int, tag: int, fingerprint: int, /) -> bool:
        return False

    def exchange(self, value: object, to: int, source: int, tag: int, out: Any, fingerprint: int, /) -> tuple[Any, Any]:
        return False, NOTHING


class Shortcuts:
    """The ports of one endpoint, one for each context, and the lanes that they use. Changed within progress."""

    def __init__(self, broken: dict[int, RmpiError], crank: Crank, flights: Flights) -> None:
        self._flights = flights
        self._broken = broken
        self._crank = crank
        self._ports: list[Any] = []
        self._lanes: list[Lane] = []

    def open(self, number: int, members: tuple[int, ...], context: Context) -> Shortcut:
        """A port for the members of a context, in rank order."""
        if len(members) == 1 or why_no_extension() is not None:
            return NoShortcut()
        from rmpi.transport._ring import Port

        port = Port(
            number,
            members,
            context.arrivals,
            context.receives,
            self._broken,
            self._crank.lock.locked,
            self._crank.lock.acquire,
            self._crank.lock.release,
            counter(),
            np.ndarray,
            describe_array,
            new_array,
            pickle.dumps,
            pickle.loads,
            self._flights.adopt_send,
            self._flights.adopt_receive,
            NOTHING,
            self._crank.spin,
            self._crank.crowded,
        )
        for lane in self._lanes:
            port.attach(lane)
        self._ports.append(port)
        return port

    def open_box(self, number: int, context: Context) -> Shortcut:
        """A port that receives from anybody, by endpoint number."""
        return NoShortcut()

    def open_route(self, number: int, peer: int) -> Shortcut:
        """A port that sends to one peer, by endpoint number."""
        return NoShortcut()

    def close(self, port: Shortcut) -> None:
        """The context of this port is of no use any more."""
        if port in self._ports:
            self._ports.remove(port)

    def add(self, lane: Lane) -> None:
        """Messages to and from the peer of ``lane`` may take it."""
        self._lanes.append(lane)
        for port in self._ports:
            port.attach(lane)
