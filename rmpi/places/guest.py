"""Joining a system that is somebody else's: this process as a guest of a node that was started by hand.

    node = places.attach("host2:6340", key_file="team.key")
    bank = node.connect("bank")

A guest is a place of that system like any other, but for where it comes from. It asks the head for the same things,
and others reach it in the same ways. To the head it is a node of its own, which nobody has booted, without a door and
without a spawner, and its one place is the process itself:

    user's threads ── control socket ── "rmpi guest", a thread: SystemNode ══ one TCP connection ══ head

What the head says to that node, it does; what nodes do for places, it does for this process: it dials the doors of
those that the process talks to, and where there is none, as between two guests, data goes through the head.

The thread answers for this process while the user's program computes. Whether the other machine is still there is
asked by the kernels (`keep_watch`), so neither side is taken for dead because it was stopped, or busy.
"""

from __future__ import annotations

import atexit
import os
import queue
import random
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

from rmpi.deadline import Deadline
from rmpi.errors import LaunchError, RmpiError, WireError
from rmpi.places import membership
from rmpi.places.control import Control
from rmpi.places.door import KNOCK_AGAIN, knock
from rmpi.places.handles import Node
from rmpi.places.keyfile import read_key
from rmpi.places.loop import Loop
from rmpi.places.member import Member
from rmpi.places.messages import Carried, Carry, Exited, Gone, Message, Refused, ToPlace
from rmpi.places.node import memory_of_machine
from rmpi.places.nodelink import NodeLink, keep_watch
from rmpi.places.router import HEAD, Announcement, NodeSaid
from rmpi.places.system_messages import GUEST, LOCAL, Attach, EndpointGone, Enrolled, RelayTo, Serve, Survey
from rmpi.places.systemnode import SystemNode
from rmpi.places.whereto import DEFAULT_PORT, parse_where, show_where

LEAVE_LIMIT = 5.0
"""Seconds to send out what waits, when this process leaves."""


def attach(address: str, *, key_file: str | Path, timeout: float | None = 10.0) -> AttachedNode:
    """Join the system of a node that was started by hand (``python -m rmpi.places.node``).

    From then on this process is a member of it, besides of its own system: it spawns places there, finds those that
    have names, and exchanges channels with them. What it has started and given a name, or what others there know,
    stays when it leaves; the rest is ended.

        with places.attach("host2", key_file="team.key") as node:
            bank = node.connect("bank")

    Args:
        address: ``"host2:6340"``, or ``"host2"`` for `DEFAULT_PORT`. A node that is about to start is waited for.
        key_file: The same key as the node's. Whoever has it may run any program there.
        timeout: Seconds until it must have worked; None: as long as it takes.

    Returns:
        The node. If this process is a member of that system already, it is so only once.

    Raises:
        LaunchError: The node cannot be reached or does not let us in, or the key file cannot be used: says why.
    """
    host, port = parse_where(address, DEFAULT_PORT)
    key = read_key(key_file)
    return _find(host, port, key) or _join(host, port, key, Deadline.after(timeout))


class AttachedNode(Node):
    """The node that was attached to; see `attach`. At the end of a ``with`` this process leaves the system."""

    def __init__(self, member: Member, label: str, guest: Guest | None) -> None:
        """For `attach`. Without a guest, this process is a place there anyway."""
        super().__init__(member, LOCAL, label)
        self._guest = guest
        self._detached = False

    def detach(self) -> None:
        """Leave the system, if no other handle of `attach` is in use. Doing it again does nothing.

        What was put before still arrives. Channels and handles of that system are of no use here afterwards.
        """
        if not self._detached and self._guest is not None:
            self._guest.let_go()
        self._detached = True

    def __exit__(self, *_: object) -> None:
        self.detach()


class Guest:
    """This process in the system of somebody else: the node that it is there (`Outside`), and the thread for that.

    Attributes:
        where: The address of the node, with its port.
        label: What that node is called.
        member: This process as a place.
        handles: How many of those that `attach` has returned are in use.
        over: The connection is no more.
    """

    label: str
    member: Member

    def __init__(self, sock: socket.socket, where: tuple[str, int], key: bytes) -> None:
        """Begin to join, over a connection that was let in. `join` follows."""
        self.where = show_where(*where)
        self.handles = 0
        self._key = key
        self._joining: queue.SimpleQueue[socket.socket | str] = queue.SimpleQueue()
        self.over = False
        keep_watch(sock)
        self._loop = Loop()
        self._node = SystemNode(self._loop, self, guest=True)
        self._uplink = NodeLink(self._loop, sock, self._heard, self._lost, silence=float("inf"))
        version = "{}.{}".format(*sys.version_info)
        cores = len(os.sched_getaffinity(0))
        door = sock.getpeername()[:2]
        self._uplink.send(Attach(socket.gethostname(), os.getpid(), cores, memory_of_machine(), version, door))
        self._thread = threading.Thread(target=self._run, name=f"rmpi guest of {self.where}", daemon=True)
        self._thread.start()

    def join(self, deadline: Deadline) -> None:
        """Wait until we are a member.

        Raises:
            LaunchError: The node does not take us.
        """
        try:
            answer = self._joining.get(timeout=deadline.left_or_none())
        except queue.Empty:
            answer = "it does not answer"
        if isinstance(answer, str):
            raise LaunchError(f"the node at {self.where} does not take us: {answer}")
        self.member = Member(Control(answer))
        try:
            (rows,) = self.member.ask(lambda number: Survey(number, LOCAL), deadline.left_or_none())
        except BaseException as error:
            self.member.close()
            if isinstance(error, RmpiError):
                raise LaunchError(f"the node at {self.where} does not take us: {error}") from None
            raise
        self.label = rows[0]["label"]
        self.member.lost_because = f"{self.label} ({self.where}) has ended its system, or the connection to it broke"

    def is_at(self, where: str, key: bytes) -> bool:
        """Whether it is a member there, and still is."""
        return (self.where, self._key) == (where, key) and not self.over

    def handle(self) -> AttachedNode:
        """One handle more. The lock is held."""
        self.handles += 1
        return AttachedNode(self.member, self.label, self)

    def let_go(self) -> None:
        """One handle less; after the last, leave."""
        with _lock:
            self.handles -= 1
            if self.handles:
                return
            _forget(self)
        self.leave()

    def leave(self) -> None:
        """Send out what waits, say good-bye, and be a member no more."""
        if not self.over:
            self.member.leave(Deadline.after(LEAVE_LIMIT))
        self.member.close()
        self._thread.join(LEAVE_LIMIT)
        self.abandon()

    def abandon(self) -> None:
        """Drop the connection."""
        self._loop.post(partial(self._lost, "we have left"))
        self._thread.join(LEAVE_LIMIT)

    def disown(self) -> None:
        """In a fork of this process, which is no guest."""
        self._uplink.disown()
        self._node.disown()

    # ------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while not self.over:
                self._loop.run_once()
        finally:
            self._lost("its thread has failed")  # unless it is over
            self._node.close()
            self._uplink.close()
            self._loop.close()

    def _heard(self, message: Message) -> None:
        match message:
            case Serve():
                self._node.serve(message)
            case Enrolled():
                self._joining.put(self._node.adopt(message))
            case Refused(text):
                self._lost(text)
            case ToPlace() | EndpointGone() | RelayTo() | Carry() | Carried():
                self._node.step(NodeSaid(HEAD, message))
            case _:
                raise WireError(f"the head may not say {type(message).__name__} to a guest")

    def _lost(self, why: str) -> None:
        self._joining.put(why)
        self.over = True

    # ------------------------------------------------------------------ what our node says (Outside)

    def send(self, node: int, message: Message) -> None:
        assert node == HEAD
        self._uplink.send(message)
        if isinstance(message, Exited):
            self._loop.post(self._node.close_up)

    def gone(self) -> None:
        """All that we have said is on its way: the head hangs up when it has heard this."""
        self._uplink.send(Gone())

    def warn(self, text: str) -> None:
        sys.stderr.write(f"rmpi: {text}\n")

    def failed(self, reason: str) -> None:
        self.warn(reason)

    def announce(self, announcement: Announcement) -> NoReturn:
        raise AssertionError(f"only the head announces: {announcement}")

    def output(self, endpoint: int, stream: int, data: bytes) -> NoReturn:
        raise AssertionError("a guest starts nothing that writes")

    def fed(self, endpoint: int) -> NoReturn:
        raise AssertionError("a guest has no input for places")

    def ready(self) -> None:
        """There is no spawner."""

    def note(self, text: str) -> None:
        """Nobody asked."""


# -------------------------------------------------------------------------------------- of this process

_lock = threading.Lock()
_guests: list[Guest] = []


def _find(host: str, port: int, key: bytes) -> AttachedNode | None:
    """The guest that we are there already."""
    with _lock:
        known = next((guest for guest in _guests if guest.is_at(show_where(host, port), key)), None)
        return known.handle() if known is not None else None


def _join(host: str, port: int, key: bytes, deadline: Deadline) -> AttachedNode:
    guest = Guest(_knock(host, port, key, deadline), (host, port), key)
    try:
        guest.join(deadline)
    except BaseException:
        guest.abandon()
        raise
    with _lock:
        node = _settle(guest)
    if not guest.handles:
        guest.leave()
    return node


def _settle(guest: Guest) -> AttachedNode:
    """Be that guest, unless this process is a member of that system already. The lock is held."""
    for each in [each for each in _guests if each.over]:
        _forget(each)
    system = guest.member.system
    known = next((each for each in _guests if each.member.system == system), None)
    if known is not None:
        return known.handle()
    member = membership.find(system)
    if isinstance(member, Member):
        return AttachedNode(member, guest.label, None)
    _guests.append(guest)
    membership.register(guest.member, guest=True)
    return guest.handle()


def _knock(host: str, port: int, key: bytes, deadline: Deadline) -> socket.socket:
    """Be let in, as soon as somebody is there."""
    where, pause = show_where(host, port), KNOCK_AGAIN
    while True:
        try:
            return knock(host, port, key, GUEST, GUEST, deadline, deadline.left())
        except ConnectionRefusedError:
            if deadline.left() < pause:
                raise LaunchError(f"nobody listens at {where}: is the node running, and at that port?") from None
        except (OSError, WireError) as error:
            raise LaunchError(f"cannot join {where}: {getattr(error, 'strerror', None) or error}") from None
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(1.0, 2 * pause)


def _forget(guest: Guest) -> None:
    if guest in _guests:
        _guests.remove(guest)
        membership.unregister(guest.member)


def _leave_all() -> None:
    for guest in tuple(_guests):
        _forget(guest)
        guest.leave()


def _disown() -> None:
    global _lock
    _lock = threading.Lock()
    for guest in _guests:
        guest.disown()
        guest.member.disown()
    _guests.clear()


atexit.register(_leave_all)
os.register_at_fork(after_in_child=_disown)
