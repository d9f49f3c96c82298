"""An endpoint, and the control socket to the router that it belongs to.

What the router says arrives within progress, like everything else: a place that computes hears nothing until it calls
the library again.
"""

from __future__ import annotations

import os
import select
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rmpi.errors import WireError
from rmpi.places.control import Control
from rmpi.places.links import Links
from rmpi.places.messages import Dial, LinkTo, Message, NoLink
from rmpi.transport.interrupts import SHIELD

if TYPE_CHECKING:
    from rmpi.transport.endpoint import Endpoint


class Attachment(ABC):
    """What every place is: of a job or of a system.

    Attributes:
        endpoint: The traffic with other places.
        pid: The process to which all this belongs; a fork of it is nobody.

    Args:
        ident: The endpoint's number.
        early: What the router has said already.
    """

    def __init__(
        self,
        control: Control,
        ident: int,
        early: Sequence[tuple[Message, list[int]]],
        *,
        crowded: bool,
        unmatched_limit: int,
    ) -> None:
        self._control = control
        self.pid = os.getpid()
        self.endpoint = self._make_endpoint(ident, crowded=crowded, unmatched_limit=unmatched_limit)
        self._links = Links(self.endpoint, self._tell, self._name_of, self._neighbours)
        for message, fds in early:
            self.endpoint.crank.post(partial(self._receive, message, fds))
        self.endpoint.crank.register(control.fileno(), self._ready)

    def _make_endpoint(self, ident: int, *, crowded: bool, unmatched_limit: int) -> Endpoint:
        from rmpi.transport.crank import SPIN
        from rmpi.transport.endpoint import Endpoint

        return Endpoint(
            ident,
            lambda peer: self._links.connect(peer),
            spin=spin_seconds(SPIN),
            crowded=crowded,
            unmatched_limit=unmatched_limit,
            name_of=self._name_of,
        )

    def disown(self) -> None:
        """In a forked child: the links are the parent's."""
        self.endpoint.disown()

    def _tell(self, message: Message) -> None:
        shielded = SHIELD.enter()  # a handler that raises between sending and noting it would have it sent twice
        try:
            if not self._control.send(message):
                self.endpoint.crank.post(self._flush)
        finally:
            if shielded:
                SHIELD.leave()

    def _flush(self) -> None:
        """Send what the router was too slow to take. Within progress."""
        self.endpoint.crank.want_room(self._control.fileno(), not self._control.flush())

    def _ready(self, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._flush()
        try:
            for message, fds in self._control.receive():
                self._receive(message, fds)
        except WireError:
            self._control.closed = True
        if self._control.closed:
            self.endpoint.crank.unregister(self._control.fileno())
            self._control.close()
            self._lost_router()

    def _receive(self, message: Message, fds: list[int]) -> None:
        if isinstance(message, (LinkTo, Dial, NoLink)):
            self._links.heard(message, fds)
        else:
            self._heard(message)

    @abstractmethod
    def _heard(self, message: Message) -> None:
        """The router said something that is not about links. Within progress."""

    @abstractmethod
    def _lost_router(self) -> None:
        """Nobody would tell us of the death of others any more. Within progress."""

    @abstractmethod
    def _name_of(self, endpoint: int) -> str:
        """What to call an endpoint in messages to the user."""

    @abstractmethod
    def _neighbours(self) -> int:
        """How many endpoints share the memory that this machine has for rings, this one included."""


def spin_seconds(usual: float) -> float:
    """How long to look before sleeping: so long, unless the environment says otherwise."""
    return float(os.environ.get("RMPI_SPIN", usual))
