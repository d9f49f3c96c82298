"""Control sockets: messages, and file descriptors with them, between processes of one machine.

A unix socket of type SEQPACKET keeps messages apart, in order, and knows which descriptors came with which
message; so there is no framing to write and none to get wrong. The sockets are non-blocking on the node's
side: what a slow place does not take waits here, and nobody waits for it. A message too long for a packet (a
command line with ten thousand files) travels as a memory file, whose descriptor comes first.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Sequence

from rmpi.errors import WireError
from rmpi.places.messages import Message, pack, unpack

PACKET = 192 << 10
"""Bytes of the longest packet. Linux refuses packets beyond the send buffer, 208 KiB by default."""

IN_FILE = b"\xc1"
"""The packet that stands for a message in a memory file. No msgpack begins so."""

LONGEST = 64 << 20
"""Bytes of the longest message that is read from a memory file."""

NO_ROOM = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
"""Errors that pass: such as too many descriptors on their way between all processes of this user (unix(7))."""

GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNREFUSED, errno.EBADF})

FDS = 8
"""Descriptors in one message, at most."""


def wait_for(fd: int, events: int, seconds: float) -> bool:
    """Whether ``fd`` is ready for ``events`` within so many seconds. `select` refuses numbers from 1024 on."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(seconds * 1000))


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected control sockets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Control:
    """One end. `send` never blocks and never fails: a peer that is gone is found out by `receive`.

    Several threads may send: what each has sent before it is in order. So may a signal handler, in the middle of that:
    whoever finds that somebody is sending leaves it to them, who look again when they are done.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._sending = threading.Lock()
        self.closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message, fds: Sequence[int] = ()) -> bool:
        """Send now or queue; the descriptors stay the caller's. False: there is a queue, call `flush`."""
        if self.closed:
            return True
        data, sent = pack(message), [os.dup(fd) for fd in fds]
        if len(data) > PACKET:
            sent.insert(0, _memory_file(data))
            data = IN_FILE
        self._queue.append((data, tuple(sent)))
        return self.flush()

    def flush(self) -> bool:
        """Send what waits. False: the peer does not take more now; True: nothing is left, or others are sending it."""
        taken = True
        while taken and self._queue:
            if not self._sending.acquire(blocking=False):
                return True
            try:
                taken = self._send_all()
            finally:
                self._sending.release()
        return taken

    def _send_all(self) -> bool:
        while self._queue:
            data, fds = self._queue[0]
            try:
                _send_fds(self._socket, data, fds)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in NO_ROOM:
                    return False
                if error.errno not in GONE:
                    raise
                self._forget()  # the end of its file says so
                return True
            if self._queue:  # else it was closed meanwhile
                self._queue.popleft()
                _close_all(fds)
        return True

    def drain(self) -> None:
        """Send what waits, however long that takes: for a process that is about to end."""
        while self._queue:
            if not self.flush():
                wait_for(self._socket.fileno(), select.POLLOUT, 1.0)

    def receive(self) -> list[tuple[Message, list[int]]]:
        """The messages that have come, each with its descriptors; sets `closed` at the end.

        Raises:
            WireError: What came is not a control message.
        """
        messages = []
        while not self.closed:
            try:
                data, fds = _receive_fds(self._socket)
            except BlockingIOError:
                break
            except ConnectionResetError:  # it went without having read all of ours; what it said before comes now
                continue
            except OSError:
                data, fds = b"", []
            if not data:
                self.closed = True
                break
            try:
                messages.append((unpack(_read_file(fds) if data == IN_FILE else data), fds))
            except WireError:
                _close_all([fd for _, earlier in [*messages, (None, fds)] for fd in earlier])
                raise
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


def _send_fds(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Why not `socket.send_fds`: it ignores its flags, and a program may want to die of SIGPIPE, but not of this."""
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))], socket.MSG_NOSIGNAL)


def _receive_fds(sock: socket.socket) -> tuple[bytes, list[int]]:
    """A packet. Why not `socket.recv_fds`: it ignores its flags, and programs started here must inherit nothing."""
    fds = array.array("i")
    space = socket.CMSG_LEN((FDS + 1) * fds.itemsize)
    data, parts, _, _ = sock.recvmsg(PACKET, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, part in parts:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(part[: len(part) - len(part) % fds.itemsize])
    return data, list(fds)


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("rmpi-message", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd


def _read_file(fds: list[int]) -> bytes:
    """The message in the first of the descriptors, which is closed and taken from the list."""
    if not fds:
        raise WireError("a long control message came without its memory file")
    fd = fds.pop(0)
    try:
        size = os.fstat(fd).st_size
        if size > LONGEST:
            raise WireError(f"a control message of {size} bytes; they have at most {LONGEST}")
        return os.pread(fd, size, 0)
    except OSError as error:
        raise WireError(f"a long control message cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
