"""The short cut of small messages: which ports there are, and what stands in for one where there is none.

A `Port` (`_ring.c`) sends or receives a whole small message over a lane in one call, if nothing at all
speaks against it; else it does nothing and says so, and the caller takes the long way through the endpoint. What it
reads of the endpoint's state, and why that is safe, its text says. So whoever communicates writes

    sent = port.send(value, rank, tag)
    if sent is False:
        ... endpoint.send(...)

and needs to know only one thing more: a large message that was begun, and has stopped on the way, is an operation
of the endpoint from then on, which is returned instead of True or of the value, and must be waited for.

Ports of boxes and routes are *open*: any thread may receive by them, one at a time. Whoever does reads ``source``,
``tag`` and ``length`` first, and then assigns to ``given``, which lets the next one in. As nobody knows when a client
comes, receiving there has a step between the short cut and the long way:

    value = port.recv(ANY, ANY, None)
    if value is NOTHING:
        endpoint.doze(context, ANY, ANY, deadline=deadline)
        value = port.recv(ANY, ANY, None)
    if value is NOTHING:
        ... endpoint.receive(...)
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
    from rmpi.transport._ring import Hub, Lane, Port
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
    """The ports of one endpoint, and the lanes that they use. Changed within progress.

    Ports of communicators are listed, and told of each lane. Open ports find all lanes in the `Hub`, so there may be
    thousands, and they are forgotten with their last reference.
    """

    def __init__(self, broken: dict[int, RmpiError], crank: Crank, flights: Flights) -> None:
        self._flights = flights
        self._broken = broken
        self._crank = crank
        self._ports: list[Port] = []
        self._lanes: list[Lane] = []
        self._hub: Hub | None = None

    def open(self, number: int, members: tuple[int, ...], context: Context) -> Shortcut:
        """A port for the members of a context, in rank order."""
        if len(members) == 1 or why_no_extension() is not None:
            return NoShortcut()
        port = self._port(number, members, context)
        for lane in self._lanes:
            port.attach(lane)
        self._ports.append(port)
        return port

    def open_box(self, number: int, context: Context) -> Shortcut:
        """A port that receives from anybody, by endpoint number."""
        return NoShortcut() if why_no_extension() is not None else self._port(number, None, context)

    def open_route(self, number: int) -> Shortcut:
        """A port that sends to anybody, by endpoint number."""
        return NoShortcut() if why_no_extension() is not None else self._port(number, None, None)

    def _port(self, number: int, members: tuple[int, ...] | None, context: Context | None) -> Port:
        from rmpi.transport._ring import Port

        arrivals = receives = None
        if context is not None:
            arrivals, receives = context.arrivals, context.receives
        return Port(self._made_hub(), number, members, arrivals, receives)

    def _made_hub(self) -> Hub:
        if self._hub is None:
            from rmpi.transport._ring import Hub

            self._hub = Hub(
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
                self._crank.fileno(),
            )
        return self._hub

    def begin_anew(self) -> None:
        """The crank has changed: ports that are made from now on are made for that."""
        self._hub = None

    def close(self, port: Shortcut) -> None:
        """The context of this port is of no use any more."""
        self._ports = [each for each in self._ports if each is not port]

    def add(self, lane: Lane) -> None:
        """Messages to and from the peer of ``lane`` may take it."""
        self._lanes.append(lane)
        self._made_hub().add(lane)
        for port in self._ports:
            port.attach(lane)

    def clear(self) -> None:
        """There are no lanes any more, nor an epoll to ask about them."""
        self._lanes.clear()
        if self._hub is not None:
            self._hub.clear()

    def remove(self, lane: Lane) -> None:
        """Nothing comes or goes on it any more."""
        if lane in self._lanes:
            self._lanes.remove(lane)
            self._made_hub().remove(lane)
            for port in self._ports:
                port.detach(lane)
