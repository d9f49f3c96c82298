"""Where the head of a system lets guests in, and what it does with them (`rmpi.places.guest`).

Whoever comes by the door has proved to hold its key, and may run here what they like. What a guest says is checked all
the same, like what any node says; one that speaks nonsense is dropped, with one line of why, and nothing that it
pickled is unpickled here.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rmpi.errors import WireError
from rmpi.places.books import Event, Heard, Lost
from rmpi.places.directory import Directory
from rmpi.places.door import PATIENCE
from rmpi.places.loop import Loop, Timer
from rmpi.places.messages import Carried, Carry, Exited, FromPlace, Gone, Message, Refused
from rmpi.places.nodelink import NodeLink, keep_watch
from rmpi.places.system_messages import Attach, Serve


@dataclass(eq=False)
class _Guest:
    """Somebody who was let in by the door, and the stream to them.

    Attributes:
        name: What to call them.
        node: The node that they are; 0 until they have joined.
    """

    name: str
    link: NodeLink
    node: int = 0
    timer: Timer | None = None


class Reception:
    """The guests of one head. All its methods are for the thread of the head's loop.

    Args:
        decide: Has the head decide what follows from an event.
        warn: Told of guests that were lost, in words.
        note: Told of guests that come, and that leave.
    """

    def __init__(
        self,
        loop: Loop,
        directory: Directory,
        decide: Callable[[Event], None],
        warn: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._decide = decide
        self._warn = warn
        self._note = note
        self._guests: dict[int, _Guest] = {}  # by node
        self._newcomers: set[_Guest] = set()

    def __bool__(self) -> bool:
        """Whether there is any guest."""
        return bool(self._guests)

    def admit(self, sock: socket.socket) -> None:
        """Somebody who holds the key wants to join."""
        try:
            keep_watch(sock)
            address, port = sock.getpeername()[:2]
        except OSError:  # they are gone again
            sock.close()
            return
        link = NodeLink(
            self._loop,
            sock,
            lambda message: self._said(guest, message),
            lambda why: self._drop(guest, why),
            silence=float("inf"),
        )
        guest = _Guest(f"the guest from {address} port {port}", link)
        guest.timer = self._loop.call_later(PATIENCE, partial(self._drop, guest, "it did not say who it is"))
        self._newcomers.add(guest)

    def send(self, node: int, message: Message) -> bool:
        """Send a message to the guest that is this node; whether there is one."""
        guest = self._guests.get(node)
        if guest is not None:
            guest.link.send(message)
        return guest is not None

    def close(self) -> None:
        """Hang up on everybody: they hear from that that the system has ended."""
        for guest in (*self._newcomers, *self._guests.values()):
            self._stop_waiting(guest)
            guest.link.close()

    def disown(self) -> None:
        """In a fork of this process, whose guests they are not."""
        for guest in (*self._newcomers, *self._guests.values()):
            guest.link.disown()

    def _said(self, guest: _Guest, message: Message) -> None:
        try:
            self._do(guest, message)
        except WireError as error:
            self._drop(guest, f"it speaks nonsense: {error}")
        except Exception as error:  # a fault of ours, for which not everybody's system shall end
            self._drop(guest, f"we cannot deal with what it says: {type(error).__name__}: {error}")

    def _do(self, guest: _Guest, message: Message) -> None:
        match message:
            case Attach() if not guest.node:
                self._enrol(guest, message)
            case Exited() | FromPlace() | Carry() | Carried() if guest.node:
                self._decide(Heard(guest.node, message))
            case Gone() if guest.node:
                self._note(f"{guest.name} has left")
                self._part_from(guest, "it has left")
            case _:
                raise WireError(f"{type(message).__name__} is not for guests to say now")

    def _enrol(self, guest: _Guest, message: Attach) -> None:
        ours = "{}.{}".format(*sys.version_info)
        if message.python != ours:
            guest.link.send(Refused(f"it runs Python {ours}, and we {message.python}: pickles would not travel", 125))
            raise WireError(f"it runs Python {message.python}, and we {ours}")
        enrolled = self._directory.enrol_guest(message)
        self._newcomers.discard(guest)
        self._stop_waiting(guest)
        guest.node, guest.name = enrolled.node, enrolled.label
        self._guests[guest.node] = guest
        guest.link.send(Serve(guest.node, b"", "", 0, "", {}, ""))
        guest.link.send(enrolled)
        self._note(f"{guest.name} has joined")

    def _drop(self, guest: _Guest, why: str) -> None:
        """The stream to a guest has ended, or is to."""
        if guest in self._newcomers or guest.node in self._guests:
            self._warn(f"{guest.name} was lost: {why}")
            self._part_from(guest, why)

    def _part_from(self, guest: _Guest, why: str) -> None:
        guest.link.close()
        self._stop_waiting(guest)
        self._newcomers.discard(guest)
        if self._guests.pop(guest.node, None) is not None:
            self._decide(Lost(guest.node, why, True))

    def _stop_waiting(self, guest: _Guest) -> None:
        if guest.timer is not None:
            guest.timer.cancel()
            guest.timer = None
