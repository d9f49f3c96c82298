"""Links over a stream socket: unix within a machine, TCP between machines, or unix to a router that relays.

Small frames are written at once; what the kernel does not take is copied and waits. Large payloads leave
as DATA frames of `CHUNK` bytes, one at a time and only when nothing else waits, so a header or a grant
never queues behind more than one chunk. On the way in, `FrameDecoder` lends the payload's final memory
to ``recv_into``.

With a lane over the same socket, ports and flights may read and write it as well. Then all reading goes through the
lane, which may have read ahead, and the decoder never does: between two frames, the next one lies where a `Port` may
take it. Both write to the socket itself, a port only while nothing waits here.

The socket is non-blocking; the endpoint sleeps. A connection that breaks is reported as closed, not as an
error: whether the peer is dead is for its router to say.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rmpi.transport.base import Link, Sink, Transfer
from rmpi.wire.decoder import FrameDecoder
from rmpi.wire.frames import Buffer, Frame, encode

if TYPE_CHECKING:
    from rmpi.transport._ring import Lane

READS = 32
"""Reads from one link before the others get their turn."""

NOTHING_NOW = -1
"""Read: no byte, but it is not the end."""

VECTORS = 512
"""Buffers in one system call; Linux takes at most 1024 (IOV_MAX)."""

_SIOCOUTQ = termios.TIOCOUTQ  # tcp(7): bytes in the send queue not yet acknowledged


class StreamLink(Link):
    """A link over a connected stream socket, which it owns from now on."""

    def __init__(
        self, peer: int, sock: socket.socket, sink: Sink, lane: Lane | None = None, medium: str | None = None
    ) -> None:
        """Use a connected socket, if there is a lane only by that. It says itself what it is, unless it is relayed."""
        super().__init__(peer)
        self.lane = lane
        self.medium = medium or ("unix" if sock.family == socket.AF_UNIX else "tcp")
        sock.setblocking(False)
        if self.medium == "tcp":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._fd = sock.fileno()
        self._decoder = FrameDecoder(sink.lend, ahead=lane is None)
        self._pending: deque[Buffer] = deque()  # bytes that must go next, in this order
        self._streams: deque[Transfer] = deque()
        self._leaving: Transfer | None = None  # whose last chunk is among `_pending`
        self._finishing = False
        self._broken = False
        self._sent = self._taken = 0  # bytes that passed the lane, or for want of one
        self._tell_lane()

    def _tell_lane(self) -> None:
        """Which queues ports must find empty."""
        if self.lane is not None:
            self.lane.queues(self._pending, self._streams)

    def _slow_down(self) -> None:
        """No port may use this link any more."""
        if self.lane is not None:
            self.lane.quick = False

    @property
    def staged(self) -> int:
        """Payload bytes that were copied on their way in, for tests and statistics."""
        return self._decoder.staged

    def send(self, frame: Frame) -> None:
        if self._broken:
            return
        buffers = encode(frame)
        if self._pending:
            self._pending.append(b"".join(buffers))
            return
        sent = self._write(buffers)
        if sent < sum(map(len, buffers)):
            self._pending.append(memoryview(b"".join(buffers))[sent:])

    def stream(self, transfer: Transfer) -> None:
        self._streams.append(transfer)

    def resume(self, transfer: Transfer, left: int) -> None:
        """Go on with a transfer that has begun; its last frame, up to `Transfer.offset`, lacks ``left`` bytes."""
        if left:
            self._pending.extend(transfer.views(transfer.offset - left, left))
        if transfer.offset < transfer.length:
            self._streams.append(transfer)
        else:
            self._leaving = transfer

    def flush(self) -> bool:
        while self._pending or self._next_chunk():
            batch = [self._pending[i] for i in range(min(VECTORS, len(self._pending)))]
            sent = self._write(batch)
            if self._broken:
                return True
            self._forget(sent)
            if not self._pending and self._leaving is not None:
                leaving, self._leaving = self._leaving, None
                leaving.finish()
            elif self._pending and sent < sum(map(len, batch)):
                return False
        if self._finishing:
            self._shut()
        return True

    def _next_chunk(self) -> bool:
        """Put the next DATA frame of the first transfer among what must go next."""
        if not self._streams:
            return False
        transfer = self._streams[0]
        self._pending.extend(encode(transfer.next_data()))
        if transfer.offset == transfer.length:
            self._leaving = self._streams.popleft()
        return True

    def _write(self, buffers: list[Buffer]) -> int:
        """Bytes that the kernel took."""
        try:
            sent = self._socket.sendmsg(buffers)
        except BlockingIOError:
            return 0
        except OSError:  # reset, broken pipe: the peer cannot be reached over this link any more
            self._break()
            return 0
        self._sent += sent
        return sent

    def _forget(self, sent: int) -> None:
        while sent:
            first = self._pending[0]
            size = len(first)
            if sent < size:
                self._pending[0] = memoryview(first)[sent:]
                return
            self._pending.popleft()
            sent -= size

    def _break(self) -> None:
        self._broken = True
        self._pending.clear()
        self._slow_down()

    def receive(self) -> Iterator[Frame]:
        if self.lane is None:
            yield from self._receive()
            return
        self.lane.edge = False
        try:
            yield from self._receive()
        finally:
            self.lane.edge = not self._decoder.mid_frame()

    def _receive(self) -> Iterator[Frame]:
        self.more = False
        for _ in range(READS):
            view = self._decoder.writable()
            count = self._read(view)
            if count == NOTHING_NOW:
                return
            if not count:
                self.closed = True
                return
            yield from self._decoder.wrote(count)
            if count < view.nbytes:
                return
        self.more = True

    def _read(self, view: memoryview) -> int:
        """Bytes that were there, up to the length of ``view``; 0 at the end, `NOTHING_NOW` before it."""
        if self.lane is not None:
            count = self.lane.read_into(view)
            return count if count or (self.lane.hung_up and self.lane.empty()) else NOTHING_NOW
        try:
            count = self._socket.recv_into(view)
        except BlockingIOError:
            return NOTHING_NOW
        except OSError:
            return 0
        self._taken += count
        return count

    def resume_reading(self, frame: Frame, views: list[memoryview]) -> None:
        """Go on in the middle of a frame whose payload lacks ``views``."""
        self._decoder.resume(frame, views)

    def fileno(self) -> int:
        return self._fd

    def relocate(self, belongs: Callable[[Frame], bool], views: list[memoryview]) -> None:
        if not self.closed:
            self._decoder.relocate(belongs, views)

    def detach(self) -> None:
        self._pending = deque(bytes(buffer) for buffer in self._pending)
        self._tell_lane()

    def finish(self) -> None:
        self._slow_down()
        self._finishing = True
        self.flush()

    def _shut(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def settled(self) -> bool:
        """Nothing waits here and, for TCP, the peer's kernel has acknowledged every byte.

        A TCP socket that is closed while the peer still sends is reset, and a reset throws away what
        this side has sent but the other has not yet acknowledged.
        """
        if self._broken:
            return True
        if self._pending or self._streams:
            return False
        return self.medium != "tcp" or self.closed or self._unacknowledged() == 0

    def _unacknowledged(self) -> int:
        try:
            answer = fcntl.ioctl(self._fd, _SIOCOUTQ, b"\0" * 4)
        except OSError:
            return 0
        return int(struct.unpack("i", answer)[0])

    def sent(self) -> int:
        waiting = sum(map(len, self._pending)) + sum(transfer.length - transfer.offset for transfer in self._streams)
        return self._sent + waiting + (self.lane.sent() if self.lane is not None else 0)

    def taken(self) -> int:
        return self._taken + (self.lane.taken() if self.lane is not None else 0)

    def close(self) -> None:
        if self.lane is not None:
            self.lane.close()
        self.closed = True
        self._break()
        self._streams.clear()
        self._socket.close()
