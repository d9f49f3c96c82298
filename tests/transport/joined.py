"""Two endpoints joined by one link: over which media, and how to drive both from one thread.

And communicators over shared memory, in this process (`new_comms`) or in forks of it (`fork_ranks`).
"""

import os
import pickle
import select
import signal
import socket
import traceback
from functools import partial
from itertools import combinations

from rmpi.comm.communicator import Comm
from rmpi.comm.family import Family
from rmpi.deadline import Deadline
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.media import link_over
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


def join_lanes(a, b, neighbours=2):
    """Shared memory, if there is any here: else, what stands in for it."""
    for endpoint, peer, sock in zip((a, b), (b, a), socket.socketpair(), strict=True):
        add_lane(endpoint, peer.ident, sock, neighbours)


def add_lane(endpoint, peer, sock, neighbours=2):
    """Join an endpoint with a peer over one end of a socket pair."""

    def add():
        endpoint.add_link(link_over(sock, endpoint.ident, peer, endpoint, neighbours))

    endpoint.crank.post(add)


def add_unix(endpoint, peer, sock):
    """The same without shared memory."""
    endpoint.crank.post(lambda: endpoint.add_link(StreamLink(peer, sock, endpoint)))


MEDIA = {
    "shm": join_lanes,
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


class Nobody:
    """The keeper of a communicator without a router."""

    def called(self, *_):
        pass

    def mismatch(self, *_):
        pass

    def leave(self):
        pass


def new_comm(rank, size, **options):
    endpoint = Endpoint(rank, lambda _peer: None, **options)
    return Comm(Family(endpoint, Nobody()), range(size), COMM, ["here"] * size)


def new_comms(size, neighbours=2, **options):
    """Communicators of one process, joined by lanes; the last step of whoever uses them is to close the endpoints."""
    comms = [new_comm(rank, size, **options) for rank in range(size)]
    endpoints = [comm._endpoint for comm in comms]
    for one, other in combinations(endpoints, 2):
        join_lanes(one, other, neighbours)
    settle(*endpoints)
    return comms


COMM = 64
"""The context of those communicators."""


def fork_ranks(size, main, *, neighbours=2, without=frozenset(), sockets=socket.socketpair, **options):
    """Run ``main(comm)`` in ``size`` forks of this process, joined by lanes; the results in rank order.

    Args:
        without: Ranks that have unix sockets only.
        sockets: Makes what joins a pair; `tcp_loopback` for lanes over TCP.

    Raises:
        AssertionError: Some of them raised; the text has every traceback.
    """
    pairs = {pair: sockets() for pair in combinations(range(size), 2)}
    children = []
    for rank in range(size):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run_forked(rank, size, main, neighbours, without, pairs, writer, options)
        os.close(writer)
        children.append((reader, pid))
    for pair in pairs.values():
        for sock in pair:
            sock.close()
    return _gather(dict(children))


def _gather(children):
    """What the children, by pipe, have written there; the first failure, or too long a wait, ends all of them."""
    pids, answers = dict(children), dict.fromkeys(children, b"")
    while children:
        ready = select.select(children, [], [], LONGEST_RUN)[0]
        for pipe in ready:
            data = os.read(pipe, 1 << 16)
            answers[pipe] += data
            if not data:
                del children[pipe]
        failed = [pipe for pipe in ready if pipe not in children and not _answer(answers[pipe])[0]]
        if failed or not ready:
            for pid in children.values():
                os.kill(pid, signal.SIGKILL)
            children = {}
    for pipe, pid in pids.items():
        os.close(pipe)
        os.waitpid(pid, 0)
    done = [_answer(answer) for answer in answers.values()]
    assert all(ended for ended, _ in done), "\n".join(str(text) for ended, text in done if not ended)
    return [result for _, result in done]


def _answer(data):
    return pickle.loads(data) if data else (False, "no answer: it died, waited too long, or another one failed")


LONGEST_RUN = 30.0
"""Seconds without any rank's ending, before all are killed."""


def _run_forked(rank, size, main, neighbours, without, pairs, writer, options):
    try:
        comm = new_comm(rank, size, **options)
        for pair, socks in pairs.items():
            for one, other, sock in zip(pair, pair[::-1], socks, strict=True):
                if one != rank:
                    sock.close()
                elif without & set(pair):
                    add_unix(comm._endpoint, other, sock)
                else:
                    add_lane(comm._endpoint, other, sock, neighbours)
        answer = True, main(comm)
        comm._endpoint.finish(Deadline.after(10))
    except BaseException:
        answer = False, f"rank {rank}: {traceback.format_exc()}"
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
    finally:
        os._exit(0)
