"""A node that people start by hand: a head whose system has no main program, and whose door is open to guests.

It stands until it is told to end, whoever comes and goes. What it prints is what its places write and log; they are
started for guests (`rmpi.places.guest`), who hold its key and so may run here what they like. What a guest says is
checked like what any node says, and one that speaks nonsense is dropped, with one line of why; nothing that it pickled
is unpickled here.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from rmpi.errors import WireError
from rmpi.places.books import Heard, Log, Lost
from rmpi.places.door import PATIENCE
from rmpi.places.loop import Timer
from rmpi.places.messages import Carried, Carry, Exited, FromPlace, Gone, Message, Refused
from rmpi.places.node import memory_of_machine
from rmpi.places.nodelink import NodeLink, keep_watch
from rmpi.places.system import GRACE, Head
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


class Standing(Head):
    """The head, its door, and the guests.

    Attributes:
        label: What this node is called.
        port: Where its door is.
    """

    def __init__(self, address: str, port: int, key: bytes, name: str = "", *, verbose: bool = False) -> None:
        """Open the door.

        Args:
            address: Where to listen, at that port or at any (0).
            key: What guests must prove to have.
            name: What to call this node; by default what this machine is called.
            verbose: Say who comes and goes.

        Raises:
            LaunchError: Nobody can listen there.
        """
        self.label = name or socket.gethostname()
        super().__init__(key, self.label, admit=self._admit)
        self._directory.describe_head(len(os.sched_getaffinity(0)), memory_of_machine(), os.getpid())
        self._guests: dict[int, _Guest] = {}  # by node
        self._newcomers: set[_Guest] = set()
        self._verbose = verbose
        try:
            self.port = self._serve(address, port)
        except BaseException:
            self._node.close()
            self._loop.close()
            self._let_go()
            raise

    def run(self) -> None:
        """Stand until `end` was called and everything has ended."""
        self._run()
        for guest in (*self._newcomers, *self._guests.values()):
            guest.link.close()
        self._let_go()

    def end(self) -> None:
        """End all places and nodes: they are asked to, and killed after a grace; when this is called again, at once.

        For signal handlers.
        """
        self._loop.post(self._end_all)

    def _end_all(self) -> None:
        if self._ending:
            self._end()
        else:
            self._begin_end(GRACE)

    # ----------------------------------------------------------------------------------- guests

    def _admit(self, sock: socket.socket) -> None:
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
            self.warn(f"{guest.name} was lost: {why}")
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

    def _post_away(self, node: int, message: Message) -> None:
        guest = self._guests.get(node)
        if guest is not None:
            guest.link.send(message)
        elif node in self._remotes:  # else it is a guest that has just gone
            super()._post_away(node, message)

    # ------------------------------------------------------------------------------- what is shown

    def _note(self, text: str) -> None:
        if self._verbose:
            self.warn(text)

    def _log(self, log: Log) -> None:
        """Where it was started, people read it: what they want to, they said when they spawned the place."""
        record = log.record
        moment = _moment(record.created)
        level = logging.getLevelName(record.level)
        for line in record.text.split("\n"):
            self._printer.say(f"{moment} {level} [{log.label}] {record.logger}: {line}")


def _moment(seconds: float) -> str:
    """When a record was made, as whoever made it says: that may be no time at all."""
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"at {seconds:g}"
