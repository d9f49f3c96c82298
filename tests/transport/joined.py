"""Two endpoints joined by one link: over which media, and how to drive both from one thread."""

import socket
from functools import partial

from rmpi.transport.memory import MemoryLink
from rmpi.transport.stream import StreamLink

CONTEXT = 0xC0
COLLECTIVE = 0xC1


def tcp_loopback():
    """Two connected TCP sockets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


def _join_memory(a, b):
    links = MemoryLink.pair((a.ident, a, a.notify), (b.ident, b, b.notify))
    for endpoint, link in zip((a, b), links, strict=True):
        endpoint.crank.post(partial(endpoint.add_link, link))


def _join_sockets(sockets, a, b):
    for endpoint, peer, sock in zip((a, b), (b, a), sockets(), strict=True):
        endpoint.crank.post(partial(endpoint.add_link, StreamLink(peer.ident, sock, endpoint)))


MEDIA = {
    "memory": _join_memory,
    "unix": partial(_join_sockets, socket.socketpair),
    "tcp": partial(_join_sockets, tcp_loopback),
}


def settle(*endpoints, turns=20):
    """Let everything that is on its way arrive, as far as it can without anybody's waiting."""
    for _ in range(turns):
        for endpoint in endpoints:
            endpoint.progress()


def move(a, b, *operations):
    """Let both sides work until the operations are done."""
    while not all(operation.done for operation in operations):
        a.progress()
        b.progress()
