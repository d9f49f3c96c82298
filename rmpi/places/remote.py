"""A node on another machine: a process that a booter has started, and what it does with what the head says.

Its outside is the stream to the head, which is its life line too: at the end of the stream everything it has started
is killed, and it ends.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from rmpi.errors import LaunchError
from rmpi.places.loop import Loop
from rmpi.places.messages import (
    Begin,
    Consumed,
    DoorIs,
    Fed,
    Go,
    Gone,
    Input,
    Message,
    Note,
    OpenDoor,
    Output,
    Ready,
    Refused,
    Signal,
    SignalPlace,
    Stop,
)
from rmpi.places.node import Node
from rmpi.places.nodelink import NodeLink
from rmpi.places.processes import become_subreaper, kill_descendants, name_process
from rmpi.places.router import HEAD, Announcement, NodeSaid
from rmpi.places.spawnerprocess import READ_SIZE
from rmpi.places.system_messages import Serve, Start
from rmpi.places.systemnode import SystemNode


class Remote:
    """A node that a booter has started: its outside is the stream to the head."""

    def __init__(self, sock: socket.socket) -> None:
        self.loop = Loop()
        self.node = Node(self.loop, self)
        self.system: SystemNode | None = None  # the node, if it is one of a system
        self.over = False
        self._uplink = NodeLink(self.loop, sock, self._heard, self._lost, silence=float("inf"))

    def run(self) -> None:
        while not self.over:
            self.loop.run_once()

    def _heard(self, message: Message) -> None:
        try:
            self._do(message)
        except LaunchError as error:
            self._uplink.send(Refused(str(error), error.status))

    def _do(self, message: Message) -> None:
        match message:
            case OpenDoor(address, key):
                self._uplink.send(DoorIs(address, self.node.open_door(address, key)))
            case Serve():
                self.system = SystemNode(self.loop, self)
                self.node = self.system
                self._uplink.send(self.system.serve(message))
            case Start() if self.system is not None:
                self.system.start(message)
            case SignalPlace() if self.system is not None:
                self.system.signal_place(message)
            case Begin():
                self.node.begin(message)
            case Go():
                self.node.go()
            case Input(endpoint, data):
                self.node.feed(endpoint, data)
            case Signal(number):
                self.node.signal(number)
            case Consumed(count):
                self.node.consumed(count)
            case Stop():
                self.node.stop()
            case _:
                self.node.step(NodeSaid(HEAD, message))

    def _lost(self, _why: str) -> None:
        """The head is gone: nothing may be left behind."""
        kill_descendants()
        self.over = True

    def send(self, node: int, message: Message) -> None:
        assert node == HEAD
        self._uplink.send(message)

    def announce(self, announcement: Announcement) -> None:
        raise AssertionError(f"only the head announces: {announcement}")

    def output(self, endpoint: int, stream: int, data: bytes) -> None:
        self._uplink.send(Output(endpoint, stream, data))

    def fed(self, endpoint: int) -> None:
        self._uplink.send(Fed(endpoint))

    def ready(self) -> None:
        self._uplink.send(Ready())

    def failed(self, reason: str) -> None:
        self._uplink.send(Refused(reason, 125))

    def gone(self) -> None:
        self._uplink.send(Gone())

    def warn(self, text: str) -> None:
        sys.stderr.write(f"rmpi: {text}\n")
        sys.stderr.flush()

    def note(self, text: str) -> None:
        self._uplink.send(Note(text))


def main(control_in: int, control_out: int) -> int:
    """A node on another machine, whose control stream is on two descriptors. Returns its exit status."""
    become_subreaper()
    name_process("rmpi-node", "rmpi node")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    remote = Remote(_as_socket(control_in, control_out))
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: remote.loop.post(remote.node.stop))
    remote.run()
    kill_descendants()
    return 0


def _as_socket(control_in: int, control_out: int) -> socket.socket:
    """One stream socket over two descriptors, which ssh makes pipes, or one socket."""
    if _is_socket(control_in):
        return socket.socket(fileno=control_in)
    ours, theirs = socket.socketpair()
    _pump(control_in, theirs.fileno())
    _pump(theirs.fileno(), control_out)
    theirs.detach()
    return ours


def _is_socket(fd: int) -> bool:
    try:
        socket.socket(fileno=os.dup(fd)).close()
    except OSError:
        return False
    return True


def _pump(source: int, target: int) -> None:
    """Copy from one descriptor to another in a thread of its own, and pass the end on."""
    import threading

    def copy() -> None:
        try:
            while data := os.read(source, READ_SIZE):
                view = memoryview(data)
                while view:
                    view = view[os.write(target, view) :]
        except OSError:
            pass
        try:
            socket.socket(fileno=os.dup(target)).shutdown(socket.SHUT_WR)
        except OSError:
            pass

    threading.Thread(target=copy, daemon=True).start()
