"""The control stream between two nodes: packed messages in CONTROL frames over one stream socket.

The socket is whatever the booter made: one end of a socketpair behind an ssh session. Each side says
`Ping` every second, and the head gives a node up after `SILENCE` seconds without a word: a machine that is
gone or cut off closes nothing. Time in which this process itself was stopped does not count.

What is relayed for places (`Carry`) waits until everything else has gone, one piece at a time: so news of a death never
queue behind more than one piece of somebody's data here. How much may wait is limited by who reads it (`relay`).
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable

from rmpi.deadline import now
from rmpi.errors import WireError
from rmpi.places.loop import Loop
from rmpi.places.messages import Carry, Message, Ping, pack, unpack
from rmpi.transport.stream import StreamLink
from rmpi.wire.frames import Frame, Kind

BEAT = 1.0
"""Seconds between two signs of life."""

SILENCE = 5.0
"""Seconds without a sign after which the other side is taken for lost."""

Heard = Callable[[Message], None]
Lost = Callable[[str], None]


class NodeLink:
    """Messages to and from another node.

    Args:
        heard: Called with each message but `Ping`.
        lost: Called once, in words, when nothing more will come.
        silence: Seconds without a sign of life to bear; infinity to wait for the end of the stream.
    """

    def __init__(self, loop: Loop, sock: socket.socket, heard: Heard, lost: Lost, *, silence: float = SILENCE) -> None:
        self._loop = loop
        self._heard = heard
        self._lost = lost
        self._silence = silence
        self._link = StreamLink(0, sock, self)
        self._data: deque[Carry] = deque()  # waits until nothing else does
        self._fd = sock.fileno()
        self._last_heard = self._last_beat = now()
        self.closed = False
        loop.register(self._fd, self._stir)
        self._timer = loop.call_later(BEAT, self._beat)

    def send(self, message: Message) -> None:
        if self.closed:
            return
        if isinstance(message, Carry):
            self._data.append(message)
        else:
            self._put(message)
        self._flush()

    def _put(self, message: Message) -> None:
        data = pack(message)
        self._link.send(Frame(Kind.CONTROL, 0, 0, length=len(data), segments=(data,)))

    def lend(self, frame: Frame) -> list[memoryview]:
        _check(frame)
        return [memoryview(bytearray(frame.length))]

    def _stir(self, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._flush()
        if mask & ~select.EPOLLOUT:
            self._receive()

    def _receive(self) -> None:
        self._last_heard = now()
        try:
            for frame in self._link.receive():
                message = _message_in(frame)
                if not isinstance(message, Ping) and not self.closed:
                    self._heard(message)
        except WireError as error:
            self._lose(f"its control stream broke: {error}")
            return
        if self._link.closed:
            self._lose("its control stream ended")

    def _flush(self) -> None:
        done = self._link.flush()
        while done and self._data:
            self._put(self._data.popleft())
            done = self._link.flush()
        self._loop.modify(self._fd, select.EPOLLIN | (0 if done else select.EPOLLOUT))

    def _beat(self) -> None:
        moment = now()
        if moment - self._last_beat > 2 * BEAT:  # we were stopped, or starved: silence was ours
            self._last_heard = moment
        self._last_beat = moment
        if moment - self._last_heard > self._silence:
            self._lose(f"nothing was heard from it for {self._silence:g} s")
            return
        self.send(Ping())
        self._timer = self._loop.call_later(BEAT, self._beat)

    def _lose(self, why: str) -> None:
        if not self.closed:
            self.close()
            self._lost(why)

    def disown(self) -> None:
        """In a fork of this process: close the socket. The loop is shared, and left alone."""
        self.closed = True
        self._link.close()

    def close(self) -> None:
        """Close without a word; `lost` is not called."""
        if self.closed:
            return
        self.closed = True
        self._timer.cancel()
        self._data.clear()
        self._loop.unregister(self._fd)
        self._link.close()


def keep_watch(sock: socket.socket) -> None:
    """Have the kernels watch a TCP connection instead (tcp(7)): it breaks when a machine is gone, or cut off.

    For a link to a process that people start and may stop, or keep busy, for as long as they like: its kernel answers.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE * 1000))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(BEAT))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, int(BEAT))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, int(SILENCE / BEAT))


def _message_in(frame: Frame) -> Message:
    _check(frame)
    return unpack(b"".join(frame.segments))


def _check(frame: Frame) -> None:
    if frame.kind is not Kind.CONTROL:
        raise WireError(f"a node has no use for {frame}")
