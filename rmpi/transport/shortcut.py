"""The short cut of small messages: which ports there are, and what stands in for one where there is none.

A `Port` (`_ring.c`) sends or receives a whole small message over shared memory in one call, if nothing at all
speaks against it; else it does nothing and says so, and the caller takes the long way through the endpoint. What it
reads of the endpoint's state, and why that is safe, its text says. So whoever communicates writes

    if not port.send(value, rank, tag):
        ... endpoint.send(...)

and needs to know no more.
"""

from __future__ import annotations

import _thread
import pickle
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rmpi.transport.media import why_no_shm
from rmpi.wire.codec import describe_array, new_array

if TYPE_CHECKING:
    from rmpi.errors import RmpiError
    from rmpi.transport._ring import Lane
    from rmpi.transport.crank import Crank
    from rmpi.transport.matching import Context


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

    def send(self, value: object, rank: int, tag: int, fingerprint: int = 0, /) -> bool: ...
    def recv(self, rank: int, tag: int, out: Any, fingerprint: int = 0, /) -> Any: ...


class NoShortcut:
    """Every message takes the long way."""

    source = tag = length = thread = 0
    landed = False
    given = None

    def send(self, value: object, rank: int, tag: int, fingerprint: int = 0, /) -> bool:
        return False

    def recv(self, rank: int, tag: int, out: Any, fingerprint: int = 0, /) -> Any:
        return NotImplemented


class Shortcuts:
    """The ports of one endpoint, one for each context, and the lanes that they use. Changed within progress."""

    def __init__(self, ident: int, broken: dict[int, RmpiError], crank: Crank) -> None:
        self._ident = ident
        self._broken = broken
        self._crank = crank
        self._ports: list[Any] = []
        self._lanes: list[Lane] = []

    def open(self, number: int, members: tuple[int, ...], context: Context) -> Shortcut:
        """A port for the members of a context, in rank order."""
        if len(members) == 1 or why_no_shm() is not None:
            return NoShortcut()
        from rmpi.transport._ring import Port

        port = Port(
            self._ident,
            number,
            members,
            context.arrivals,
            context.receives,
            self._broken,
            self._crank.lock.locked,
            _thread._count,
            self._crank.spin,
            self._crank.crowded,
            np.ndarray,
            describe_array,
            new_array,
            pickle.dumps,
            pickle.loads,
        )
        for lane in self._lanes:
            port.attach(lane)
        self._ports.append(port)
        return port

    def add(self, lane: Lane) -> None:
        """Messages to and from the peer of ``lane`` may take it."""
        self._lanes.append(lane)
        for port in self._ports:
            port.attach(lane)
