"""Links over shared memory, between two places of one machine.

Each direction is a ring (`ring.h`) in a memfd of the side that writes it: without a name, so that nothing is
left behind after any kind of death; sealed, so that the peer cannot shrink it under us; and reserved when it is
made, so that a machine short of memory refuses here instead of killing us later. The unix socket that the router
handed out stays beside the rings. Over it

- each side sends, at once, one greeting with the descriptor of the ring that it will write;
- a byte wakes a sleeping peer (the *bell*);
- end of file says that the peer is gone, or will send nothing more: whatever is in its ring then still counts.

What travels in the rings is the byte stream that a socket would carry, so everything above reading and writing
bytes is `StreamLink`'s. Only that the decoder never reads ahead: between two frames, the next one lies whole in
the ring, where a `Port` may take the short cut and receive it without us.

**Sleeping.** A side that waits raises its flag in the ring and looks once more (`Lane.arm`); the other rings only if
the flag is up. `ring.h` argues why no wake-up is lost. A byte in the socket means only: look at the rings.

**Memory.** At most `MEMORY` bytes of rings per machine: `capacity_for` divides it among the pairs. Both sides send
their capacity along, and use for each ring what its writer said, within limits.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from rmpi.errors import WireError
from rmpi.transport._ring import CREDIT, DATA, Lane
from rmpi.transport.base import Sink
from rmpi.transport.stream import NOTHING_NOW, StreamLink
from rmpi.wire.frames import Buffer

MEMORY = 256 << 20
"""Bytes of rings on one machine, unless ranks are so many that each ring has its least already."""

LEAST, MOST = 16 << 10, 1 << 20
"""Bytes of a ring. More than 1 MiB falls out of the processor's cache."""

_GREETING = struct.Struct("<4sQ")
_MAGIC = b"ring"
_DESCRIPTORS = 2  # room for one too many, to see it
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def capacity_for(ranks: int) -> int:
    """Bytes of each ring where ``ranks`` run on one machine: a power of two from `LEAST` to `MOST`.

    64 ranks have 4032 rings: 64 KiB each.
    """
    share = MEMORY // max(1, ranks * (ranks - 1))
    return max(LEAST, min(MOST, 1 << (share.bit_length() - 1)))


class ShmLink(StreamLink):
    """A link over two rings, with a unix socket as bell and life line; it owns the socket from now on."""

    def __init__(self, peer: int, sock: socket.socket, sink: Sink, ident: int, ranks: int) -> None:
        """Make the ring that we write, and send it to the peer.

        Args:
            ident: Our endpoint's number.
            ranks: How many share the memory for rings on this machine.

        Raises:
            OSError: No memory, or no descriptors, for it.
        """
        self.lane: Lane
        super().__init__(peer, sock, sink, Lane(ident, peer, sock.fileno(), CREDIT))
        self.medium = "shm"
        self._greeted = False
        self._hung_up = False
        self._greet(capacity_for(ranks))

    def _greet(self, capacity: int) -> None:
        fd = _new_memory(DATA + capacity)
        try:
            self.lane.map_out(fd, capacity)
            socket.send_fds(self._socket, [_GREETING.pack(_MAGIC, capacity)], [fd])
        except (BrokenPipeError, ConnectionResetError):
            self._break()  # the peer has gone already; what it sent may still be here
        finally:
            os.close(fd)

    def hear(self) -> None:
        """Something came over the socket: the greeting, the bell, the end."""
        if self._greeted and self.lane.hush():
            return
        while not self._hung_up:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, 4096, _DESCRIPTORS)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            try:
                if not data:
                    self._hung_up = True
                    self.lane.quick = False  # whatever is sent to it now is for nobody
                elif not self._greeted:
                    self._meet(data, fds)
            finally:
                for fd in fds:
                    os.close(fd)

    def _meet(self, data: bytes, fds: list[int]) -> None:
        """Map the peer's ring. The greeting is the first thing in the socket, and small enough to come whole."""
        self._greeted = True
        try:
            magic, capacity = _GREETING.unpack_from(data)
            self._check_ring(magic, capacity, fds)
            self.lane.map_in(fds[0], capacity)
        except (struct.error, ValueError, OSError) as error:
            raise WireError(f"the peer's shared memory is of no use: {error}") from None
        self.lane.quick = not (self._broken or self._finishing)

    def _check_ring(self, magic: bytes, capacity: int, fds: list[int]) -> None:
        if magic != _MAGIC or not LEAST <= capacity <= MOST:
            raise WireError("the peer's greeting is not one")
        if not fds:  # the kernel drops those that find no room (unix(7))
            raise WireError("the peer's shared memory did not come: too many open files here (ulimit -n)")
        if len(fds) > 1:
            raise WireError("the peer's greeting brings more than its shared memory")
        if fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & _SEALS != _SEALS or os.fstat(fds[0]).st_size != DATA + capacity:
            raise WireError("the peer's shared memory is not sealed, or not as large as it says")

    def _read(self, view: memoryview) -> int:
        count = self.lane.read_into(view)
        if count:
            return count
        return 0 if self._hung_up and self.lane.empty() else NOTHING_NOW

    def _write(self, buffers: list[Buffer]) -> int:
        if self._broken or (self._hung_up and self._is_gone()):
            self._break()
            return 0
        written = 0
        for buffer in buffers:
            count = self.lane.write(buffer)
            written += count
            if count < len(buffer):
                break
        return written

    def _is_gone(self) -> bool:
        """Whether the peer, from whom nothing more comes, will not read either. Ringing its bell says so."""
        try:
            self._socket.send(b"!", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    def flush(self) -> bool:
        done = super().flush()
        self.lane.wants_room = not done
        return done

    def settled(self) -> bool:
        """Nothing waits here. What lies in the ring, or in the socket, outlives us; the peer need not have looked."""
        return self._broken or not (self._pending or self._streams)


def _new_memory(size: int) -> int:
    """A memfd of ``size`` bytes that are there, and stay.

    Raises:
        OSError: There is not as much.
    """
    fd = os.memfd_create("rmpi-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
