"""Relaying: a node reads and writes for a place what it and a peer on another node say to each other.

    place ══ socketpair ══ pump ── Carry ──▶ head ── Carry ──▶ pump ══ socketpair ══ peer
                             ◀─── Carried ────────── Carried ───

For a place it is a link like any other, over a unix socket. Its node has the other end, and a *pump*, which knows
nothing of what the bytes mean. Nodes and head exchange them over the streams that they have anyway, which are the
ssh sessions: where ssh works, rmpi works.

**Nobody waits.** A pump has at most `WINDOW` bytes under way that the far end has not written to its place; beyond, it
does not read. So a place that is slow to read makes its peer wait, and no router; and that is all that ever has to be
kept for a pair and direction, wherever it is stuck. What nodes say to each other besides goes first (`nodelink`).

**Ends.** The two directions end one by one, as those of a socket do, and each end is answered. A direction is over for
the node that reads when its empty `Carry` was answered by a `Carried` of 0, which also comes unasked where nobody takes
any more. A pair is forgotten when both are over. So when a node has no direction left that it reads (`Relays.busy`),
all that its places have ever said is with those it was for, and the node may end.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable

from rmpi.errors import WireError
from rmpi.places.loop import Loop
from rmpi.places.messages import Carried, Carry

PIECE = 32 << 10
"""Bytes in one `Carry` at most: so long may what is more urgent have to wait for it."""

WINDOW = 256 << 10
"""Bytes under way in one direction of a pair, from socket to socket."""

LOT = WINDOW // 4
"""Bytes that are acknowledged at a time."""

Send = Callable[[Carry | Carried], None]


class Relays:
    """The pumps of one node.

    Args:
        send: Sends to the node of the peer.
        idle: Called when `busy` becomes False.
    """

    def __init__(self, loop: Loop, send: Send, idle: Callable[[], None]) -> None:
        self._loop = loop
        self._send = send
        self._idle = idle
        self._pumps: dict[tuple[int, int], _Pump] = {}

    @property
    def busy(self) -> bool:
        """Whether places of this node have said what did not arrive yet, or may go on."""
        return any(not pump.read_over for pump in self._pumps.values())

    def open(self, place: int, peer: int) -> socket.socket:
        """Begin to relay; the end of the socketpair that is for ``place``."""
        ours, theirs = socket.socketpair()
        self._pumps[place, peer] = _Pump(self._loop, ours, place, peer, self._send, self._over)
        return theirs

    def heard(self, message: Carry | Carried) -> None:
        """Something came from the peer's node. What comes for a pair that is forgotten was said before that was known.

        Raises:
            WireError: More than may be under way.
        """
        match message:
            case Carry(peer, place, data) if (place, peer) in self._pumps:
                self._pumps[place, peer].write(data)
            case Carried(place, peer, count) if (place, peer) in self._pumps:
                self._pumps[place, peer].acknowledge(count)

    def ended(self, place: int) -> None:
        """A place of this node has ended, whoever may still hold its descriptors."""
        for (whose, _), pump in list(self._pumps.items()):
            if whose == place:
                pump.abandon()

    def _over(self, pump: _Pump) -> None:
        """A direction of a pump is over."""
        if pump.read_over and pump.write_over:
            pump.close()
            self._pumps.pop((pump.place, pump.peer), None)
        if not self.busy:
            self._idle()

    def disown(self) -> None:
        """In a fork of this process: close the sockets. The loop is shared, and left alone."""
        for pump in self._pumps.values():
            pump.disown()

    def close(self) -> None:
        """Drop everything: places see the ends of their links."""
        pumps, self._pumps = self._pumps, {}
        for pump in pumps.values():
            pump.close()


class _Pump:
    """One pair at the node of one of the two.

    Attributes:
        read_over: Nothing more will come from the place, and all of it is where it belongs, or nobody wants it.
        write_over: Nothing more will be written to the place.
    """

    def __init__(
        self, loop: Loop, sock: socket.socket, place: int, peer: int, send: Send, over: Callable[[_Pump], None]
    ) -> None:
        sock.setblocking(False)
        self.place = place
        self.peer = peer
        self.read_over = self.write_over = False
        self._loop = loop
        self._socket = sock
        self._send = send
        self._over = over
        self._watched = 0  # for which events
        self._under_way = 0  # bytes that were read and are not acknowledged
        self._read_all = False  # the end of what the place says was reached
        self._abandoned = False  # the place is no more
        self._waiting: deque[memoryview] = deque()  # for room in the socket
        self._unwritten = 0  # bytes of that
        self._written = 0  # bytes that we have not acknowledged
        self._written_all = False  # the end of what the peer says has come
        self._watch()

    # ------------------------------------------------------------------------ from place to peer

    @property
    def _reads(self) -> bool:
        return not self._read_all and self._under_way < WINDOW

    def _read(self) -> bool:
        """Take a piece from the place, if there is one."""
        try:
            data = self._socket.recv(min(PIECE, WINDOW - self._under_way))
        except BlockingIOError:
            if not self._abandoned:
                return False
            data = b""
        except ConnectionResetError:  # it ended without having read all; what it had said before comes now
            return True
        self._under_way += len(data)
        self._read_all = not data
        self._send(Carry(self.place, self.peer, data))
        return bool(data)

    def acknowledge(self, count: int) -> None:
        """So many bytes arrived; 0: no more are wanted."""
        if not 0 <= count <= self._under_way:
            raise WireError(f"{count} bytes acknowledged, and {self._under_way} are under way")
        self._under_way -= count
        if count and self._abandoned:
            self._read_rest()
        elif count:
            self._watch()
        elif not self.read_over:
            self._read_all = self.read_over = True
            self._shut(socket.SHUT_RD)
            self._watch()
            self._over(self)

    def _read_rest(self) -> None:
        """What a place has left behind, as far as it may go now."""
        while self._reads and self._read():
            pass
        self._watch()

    # ------------------------------------------------------------------------ from peer to place

    def write(self, data: bytes) -> None:
        """Give the place what its peer says; empty at its end."""
        if self.write_over or self._written_all:  # the head has said the end for a node that is lost
            return
        if self._unwritten + len(data) > WINDOW:
            raise WireError(f"{self.peer:#x} says more to {self.place:#x} than may be under way")
        if data:
            self._waiting.append(memoryview(data))
            self._unwritten += len(data)
        else:
            self._written_all = True
        self._flush()

    def _flush(self) -> None:
        try:
            while self._waiting:
                sent = self._socket.send(self._waiting[0], socket.MSG_NOSIGNAL)
                self._count(sent)
        except BlockingIOError:
            pass
        except OSError:  # nobody reads there any more
            self._refuse()
            return
        if self._written >= LOT:
            self._send(Carried(self.peer, self.place, self._written))
            self._written = 0
        if self._written_all and not self._waiting:
            self._refuse()
        else:
            self._watch()

    def _count(self, sent: int) -> None:
        first = self._waiting.popleft()
        if sent < len(first):
            self._waiting.appendleft(first[sent:])
        self._unwritten -= sent
        self._written += sent

    def _refuse(self) -> None:
        """Nothing more will be written."""
        if self.write_over:
            return
        self.write_over = True
        self._waiting.clear()
        self._shut(socket.SHUT_WR)
        self._send(Carried(self.peer, self.place, 0))
        self._watch()
        self._over(self)

    # ------------------------------------------------------------------------ the socket

    def _watch(self) -> None:
        """Why not an empty mask: epoll tells of a socket whose other end is closed whatever it was asked."""
        wanted = (select.EPOLLIN if self._reads else 0) | (select.EPOLLOUT if self._waiting else 0)
        fd = self._socket.fileno()
        if wanted == self._watched or fd < 0:
            return
        if not self._watched:
            self._loop.register(fd, lambda _mask: self._stir(), wanted)
        elif wanted:
            self._loop.modify(fd, wanted)
        else:
            self._loop.unregister(fd)
        self._watched = wanted

    def _stir(self) -> None:
        if self._waiting:
            self._flush()
        if self._reads:
            self._read()
            self._watch()

    def _shut(self, how: int) -> None:
        try:
            self._socket.shutdown(how)
        except OSError:
            pass

    def abandon(self) -> None:
        """The place is no more: send on what it has said, and take nothing for it."""
        self._abandoned = True
        self._read_rest()
        self._refuse()

    def disown(self) -> None:
        self._socket.close()

    def close(self) -> None:
        if self._watched:
            self._loop.unregister(self._socket.fileno())
            self._watched = 0
        self._socket.close()
