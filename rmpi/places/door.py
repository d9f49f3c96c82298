"""The door of a node: the one TCP port where places of other nodes come in.

Whoever comes must prove to know the job's key (`wire.handshake`) before a single byte of it is taken for a
frame. A stranger who is silent, slow or wrong costs one descriptor for at most `PATIENCE` seconds and
disturbs nobody; when too many wait, the oldest goes. After the handshake the connected socket is handed to the place
that was asked for, with nothing read beyond the handshake.
"""

from __future__ import annotations

import errno
import math
import os
import random
import select
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial

from rmpi.deadline import Deadline
from rmpi.errors import PeerLost, WireError
from rmpi.places.loop import Loop, Timer
from rmpi.wire.handshake import NONCE_SIZE, Acceptor, Connector

PATIENCE = 5.0
"""Seconds that somebody at the door has to prove who they are."""

WAITING_LIMIT = 128
"""Connections in the middle of their handshake; beyond, the oldest is closed."""

AT_ONCE = 64
"""Visitors let in before the loop's other work has its turn, however many more stand outside."""

REST = 0.5
"""Seconds for which nobody is let in after this process has run out of descriptors."""

_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

KNOCK_AGAIN = 0.05
"""Seconds before a connection that was reset is tried again; doubled each time, at most 1 s."""

Entered = Callable[[socket.socket, int, int], None]
"""Called with a connection that proved to be from ``source`` and asks for ``destination``."""


class Door:
    """Listens at one address of this machine.

    Args:
        entered: See `Entered`; it owns the socket from then on.
        turned_away: Told about everybody who did not get in, in words.
        port: Where to listen; 0 for any that is free.
    """

    def __init__(
        self,
        loop: Loop,
        address: str,
        key: bytes,
        entered: Entered,
        turned_away: Callable[[str], None],
        port: int = 0,
    ) -> None:
        self._loop = loop
        self._key = key
        self._entered = entered
        self._turned_away = turned_away
        self._waiting: dict[int, _Visitor] = {}
        self._resting: Timer | None = None
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, port), family=family, backlog=256)
        self._listener.setblocking(False)
        self.address = address
        self.port: int = self._listener.getsockname()[1]
        loop.register(self._listener.fileno(), lambda _mask: self._accept())

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _SHORTAGES:
                    self._rest()
                    return
                continue  # this visitor is gone again (accept(2)); others still come
            if len(self._waiting) >= WAITING_LIMIT:
                self._dismiss(next(iter(self._waiting.values())), "too many others wait at the door")
            self._admit(_Visitor(sock, f"{address[0]}:{address[1]}", Acceptor(self._key, os.urandom(NONCE_SIZE))))

    def _admit(self, visitor: _Visitor) -> None:
        fd = visitor.sock.fileno()
        self._waiting[fd] = visitor
        visitor.timer = self._loop.call_later(PATIENCE, partial(self._dismiss, visitor, "too slow"))
        self._loop.register(fd, lambda _mask: self._talk(visitor))

    def _rest(self) -> None:
        """Whoever cannot be accepted stays in the backlog, and would wake the loop again at once."""
        fd = self._listener.fileno()
        self._loop.modify(fd, 0)
        self._resting = self._loop.call_later(REST, lambda: self._loop.modify(fd, select.EPOLLIN))

    def _talk(self, visitor: _Visitor) -> None:
        try:
            visitor.listen()
        except BlockingIOError:
            return
        except (WireError, OSError) as error:
            self._dismiss(visitor, str(error))
            return
        if visitor.handshake.done:
            self._forget(visitor)
            self._entered(visitor.sock, visitor.handshake.source, visitor.handshake.destination)

    def _dismiss(self, visitor: _Visitor, why: str) -> None:
        if self._forget(visitor):
            visitor.sock.close()
            self._turned_away(f"turned away a connection from {visitor.address}: {why}")

    def _forget(self, visitor: _Visitor) -> bool:
        if self._waiting.pop(visitor.sock.fileno(), None) is None:
            return False
        self._loop.unregister(visitor.sock.fileno())
        if visitor.timer is not None:
            visitor.timer.cancel()
        return True

    def disown(self) -> None:
        """In a fork of this process: do not keep the port. The loop is shared, and left alone."""
        for sock in (self._listener, *(visitor.sock for visitor in self._waiting.values())):
            sock.close()

    def close(self) -> None:
        self._loop.unregister(self._listener.fileno())
        self._listener.close()
        if self._resting is not None:
            self._resting.cancel()
        for visitor in list(self._waiting.values()):
            self._forget(visitor)
            visitor.sock.close()


class _Visitor:
    """Somebody at the door, in the middle of the handshake."""

    def __init__(self, sock: socket.socket, address: str, handshake: Acceptor) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.address = address
        self.handshake = handshake
        self.timer: Timer | None = None

    def listen(self) -> None:
        """Read what the handshake wants, and answer. The answers fit any send buffer."""
        data = self.sock.recv(self.handshake.wanted())
        try:
            self.handshake.feed(data)
        finally:
            answer = self.handshake.outgoing()
            if answer:
                self.sock.send(answer)


def dial(
    doors: Sequence[tuple[str, int]],
    key: bytes,
    source: int,
    destination: int,
    deadline: Deadline,
    patience: float = math.inf,
) -> socket.socket:
    """Connect to one of a node's doors and prove to be ``source``; a socket to ``destination``.

    Args:
        patience: Seconds for the kernel of that machine to answer, which is never busy; the node itself may be, and has
            until the deadline.

    Raises:
        PeerLost: None of the doors opened; says why, for each.
    """
    tried: list[str] = []
    for address, port in doors:
        share = Deadline.after(deadline.left() / (len(doors) - len(tried)))  # a silent door leaves time for the next
        try:
            return knock(address, port, key, source, destination, share, patience)
        except (OSError, WireError) as error:
            tried.append(f"{address} port {port}: {getattr(error, 'strerror', None) or error}")
    raise PeerLost("; ".join(tried) or "its node has no door")


def knock(
    address: str, port: int, key: bytes, source: int, destination: int, deadline: Deadline, patience: float
) -> socket.socket:
    """Connect to one door, as `dial` does. Where too many wait, the oldest are reset: knock again, after longer pauses.

    Raises:
        OSError: It cannot be reached.
        WireError: It did not let us in: says why.
    """
    pause = KNOCK_AGAIN
    while True:
        handshake = Connector(key, source, destination, os.urandom(NONCE_SIZE))
        try:
            return _dial_one(address, port, handshake, deadline, patience)
        except ConnectionResetError:
            if deadline.left() < 2 * pause:
                raise
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(1.0, 2 * pause)


def _dial_one(address: str, port: int, handshake: Connector, deadline: Deadline, patience: float) -> socket.socket:
    sock = socket.create_connection((address, port), timeout=_time_left(Deadline.after(min(patience, deadline.left()))))
    try:
        while True:
            sock.sendall(handshake.outgoing())
            if handshake.done:
                return sock
            sock.settimeout(_time_left(deadline))
            handshake.feed(sock.recv(handshake.wanted()))
    except BaseException:
        sock.close()
        raise


def _time_left(deadline: Deadline) -> float | None:
    """A socket's time-out; to sockets 0 means not to wait at all, and has an error of its own."""
    left = deadline.left_or_none()
    return None if left is None else max(0.001, left)
