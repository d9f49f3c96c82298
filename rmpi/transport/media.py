"""Which links can be made here, and which one joins two places.

Two places of one node get the ends of a unix socket from their router. Where the extension was built, that socket
becomes the life line of two rings in shared memory; where it was not, it carries the frames itself. Both sides must
choose alike. They do, because they run on the same machine with the same installation and environment.

A socket that carries frames has a lane all the same where the extension was built, so that ports and flights may use
it. That is each side's own affair: what travels is the same.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rmpi.transport.base import Sink
from rmpi.transport.stream import StreamLink

if TYPE_CHECKING:
    from rmpi.transport._ring import Lane

SWITCH = "RMPI_SHM"
"""Set to 0, it makes places of one machine talk over unix sockets."""


@cache
def why_no_shm() -> str | None:
    """Why there is no shared memory between places of this machine; None if there is."""
    if os.environ.get(SWITCH, "1") == "0":
        return f"{SWITCH}=0 says not to use it"
    return why_no_extension()


@cache
def why_no_extension() -> str | None:
    """Why there are no lanes here at all, neither over shared memory nor over sockets; None if there are."""
    if sys.byteorder != "little":
        return "this processor is big-endian"
    if find_spec("rmpi.transport._ring") is None:
        return "the extension was not built; with a C compiler installed, reinstall rmpi"
    try:
        from rmpi.transport import _ring  # noqa: F401
    except ImportError as error:
        return f"the extension cannot be loaded: {error}"
    return None


def link_over(
    sock: socket.socket, ident: int, peer: int, sink: Sink, neighbours: int, *, relayed: bool = False
) -> StreamLink:
    """The best link that a connected socket from the router can become.

    Args:
        neighbours: Ranks on this machine, with whom memory for rings is shared.
        relayed: The other end is not the peer's: routers read and write it.

    Raises:
        OSError: There is no memory for it; the socket is closed.
    """
    if relayed or sock.family != socket.AF_UNIX or why_no_shm() is not None:
        return StreamLink(peer, sock, sink, socket_lane(sock, ident, peer), "relay" if relayed else None)
    from rmpi.transport.shm import ShmLink

    try:
        return ShmLink(peer, sock, sink, ident, neighbours)
    except OSError:
        sock.close()
        raise


def socket_lane(sock: socket.socket, ident: int, peer: int) -> Lane | None:
    """A lane over a connected stream socket, if there can be one."""
    if why_no_extension() is not None:
        return None
    from rmpi.transport._ring import CREDIT, Lane

    lane = Lane(ident, peer, sock.fileno(), CREDIT)
    lane.use_socket()
    lane.quick = True
    return lane
