"""Control sockets: messages, and file descriptors with them, between processes of one machine.

A unix socket of type SEQPACKET keeps messages apart, in order, and knows which descriptors came with which
message; so there is no framing to write and none to get wrong. The sockets are non-blocking on the node's
side: what a slow place does not take waits here, and nobody waits for it.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence

from rmpi.places.messages import Message, pack, unpack

PACKET = 192 << 10
"""Bytes of the longest message. Linux refuses packets beyond the send buffer, 208 KiB by default."""

FDS = 8
"""Descriptors in one message, at most."""


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected control sockets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Control:
    """One end. `send` never blocks and never fails: a peer that is gone is found out by `receive`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self.closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message, fds: Sequence[int] = ()) -> bool:
        """Send now or queue; the descriptors stay the caller's. False: there is a queue, call `flush`."""
        if self.closed:
            return True
        self._queue.append((pack(message), tuple(os.dup(fd) for fd in fds)))
        return self.flush()

    def flush(self) -> bool:
        """Send what waits; True when nothing is left."""
        while self._queue:
            data, fds = self._queue[0]
            try:
                socket.send_fds(self._socket, [data], fds)
            except BlockingIOError:
                return False
            except OSError:  # the peer is gone; the end of its file says so
                self._forget()
                return True
            self._queue.popleft()
            _close_all(fds)
        return True

    def receive(self) -> list[tuple[Message, list[int]]]:
        """The messages that have come, each with its descriptors; sets `closed` at the end.

        Raises:
            WireError: What came is not a control message.
        """
        messages = []
        while not self.closed:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, PACKET + 4096, FDS)
            except BlockingIOError:
                break
            except OSError:
                data, fds = b"", []
            if not data:
                self.closed = True
                break
            messages.append((unpack(data), fds))
        return messages

    def shut(self) -> None:
        """Tell the peer that nothing will follow; what it says is still received."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self.closed = True
        self._forget()
        self._socket.close()

    def _forget(self) -> None:
        while self._queue:
            _close_all(self._queue.popleft()[1])


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
