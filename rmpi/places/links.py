"""How links of an endpoint come about: asked for by it, brought by its router.

    endpoint ── wants a peer ──▶ Links ── Connect, Unreachable ──▶ router
    endpoint ◀── a link ──────── Links ◀── LinkTo, with a connected socket; or Dial, with doors of the peer's node
    endpoint ◀── no link ─────── Links ◀── NoLink

Where dialling is of no avail, the router is told, and knows what else there is: the socket that it brings then is read
and written by routers at its other end. A link over it is one like any other.

`Links` knows numbers of endpoints and nothing of what their processes are to each other. It dials in a thread of its
own, because a connection may take seconds and progress must not stop; everything else happens within progress.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from rmpi.deadline import Deadline
from rmpi.errors import PeerLost, RmpiError
from rmpi.places.door import dial
from rmpi.places.messages import Connect, Dial, LinkTo, Message, NoLink, Unreachable

if TYPE_CHECKING:
    from rmpi.transport.endpoint import Endpoint

HEAD_START = 0.02
"""Seconds that the peer has to connect to us, before we do it."""

DIAL_LIMIT = 30.0
"""Seconds for a connection to another node's door, all its addresses together."""


class Links:
    """Brings about the links of one endpoint.

    Args:
        endpoint: Whose links; `connect` is what it calls when it wants one.
        tell: Sends a message to the router. Called within progress.
        name_of: What to call an endpoint in messages to the user.
        neighbours: How many endpoints share the memory that this machine has for rings, this one included.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tell: Callable[[Message], None],
        name_of: Callable[[int], str],
        neighbours: Callable[[], int],
    ) -> None:
        self._endpoint = endpoint
        self._tell = tell
        self._name_of = name_of
        self._neighbours = neighbours

    def connect(self, peer: int) -> None:
        """A link to ``peer`` is wanted. Within progress."""
        self._tell(Connect(peer))

    def heard(self, message: LinkTo | Dial | NoLink, fds: list[int]) -> None:
        """What the router said about a link, with the descriptors that came with it. Within progress."""
        match message:
            case LinkTo(peer) if not fds:  # the kernel drops those that find no room (unix(7))
                self._fail(peer, "too many open files here (ulimit -n)")
            case LinkTo(peer, relayed):
                self._add(peer, socket.socket(fileno=fds[0]), relayed)
            case Dial():
                threading.Thread(target=self._dial, args=(message,), daemon=True).start()
            case NoLink(peer, why):
                self._fail(peer, why)

    def _add(self, peer: int, sock: socket.socket, relayed: bool = False) -> None:
        from rmpi.transport.media import link_over

        endpoint = self._endpoint
        try:
            link = link_over(sock, endpoint.ident, peer, endpoint, self._neighbours(), relayed=relayed)
        except OSError as error:
            self._fail(peer, f"no shared memory ({error.strerror}); give the job more, or set RMPI_SHM=0 to do without")
            return
        self._endpoint.add_link(link)

    def _fail(self, peer: int, why: str) -> None:
        self._endpoint.link_failed(peer, PeerLost(f"cannot reach {self._name_of(peer)}: {why}"))

    def _dial(self, order: Dial) -> None:
        """Connect to a peer on another node; in a thread of its own.

        Both sides may want to at the same moment, as in a collective. Then one link is enough, and better: where each
        sends on its own, none is the one that brings answers. So the higher number lets the lower one go first.
        """
        endpoint, peer = self._endpoint, order.peer
        if endpoint.ident > peer:
            threading.Event().wait(HEAD_START)
            if peer in endpoint.media():
                return
        deadline = Deadline.after(DIAL_LIMIT)
        try:
            sock = dial(order.doors, order.key, endpoint.ident, peer, deadline, order.patience)
        except RmpiError as error:
            if peer not in endpoint.media():
                endpoint.crank.post(partial(self._tell, Unreachable(peer, str(error))))
            return
        endpoint.crank.post(partial(self._add, peer, sock))
