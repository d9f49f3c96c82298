"""The head of a system, in the process of the user's program: a thread that does what the `Directory` decides.

It is made when the program first spawns a place or adds a node, and ends with the program, and everything with it.
Nothing here touches what belongs to the process as a whole: no signal handler is set, no orphan adopted, no child
killed that is not ours. Nobody listens on this machine unless another node is started on it, or the program lets guests
in (`rmpi.places.opening`).

    user's threads     ask over a control socket, as every place does
    "rmpi head"        the loop: its own node, streams to other nodes, the directory
    "rmpi output"      writes whole lines
    booting            one thread for each node that is started
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from rmpi.deadline import Deadline, now
from rmpi.errors import LaunchError, UsageError, WireError
from rmpi.places.books import Action, Alarm, Behind, Boot, Due, Event, Heard, Log, Lost, NotBooted, Post, Shown, Tell
from rmpi.places.books import Booted as NodeBooted
from rmpi.places.boot import Booted, boot_all
from rmpi.places.directory import Directory
from rmpi.places.hosts import HostSpec, parse_host_list
from rmpi.places.local import LOOPBACK, LocalBooter
from rmpi.places.loop import Loop, Timer
from rmpi.places.messages import (
    SERIAL_BITS,
    Carried,
    Carry,
    Consumed,
    Exited,
    FromPlace,
    Gone,
    Halted,
    Message,
    Note,
    Output,
    Refused,
    Signal,
    SignalPlace,
    Stop,
)
from rmpi.places.node import memory_of_machine
from rmpi.places.nodelink import NodeLink
from rmpi.places.printing import Printer, write_line
from rmpi.places.reception import Reception
from rmpi.places.router import HEAD, Announcement, NodeSaid, node_of
from rmpi.places.surroundings import booter, interpreters, passed_on
from rmpi.places.system_messages import LOCAL, AddNode, Running, Serve, Serving, Start
from rmpi.places.systemnode import SystemNode
from rmpi.places.whereto import show_where

T = TypeVar("T")

KEY_SIZE = 32

STOP_LIMIT = 4.0
"""Seconds for another machine's node to kill everything and say so."""

GRACE = 0.5
"""Seconds for places to end, at the end of the program, between being asked to and being killed."""

LOOK = 0.01
"""Seconds between two looks at whether they have."""

KEPT_LINES = 10_000
"""Of the output of a node, where it is captured; older ones are forgotten."""

SYSTEM_BITS = 62

WILDCARDS = {"0.0.0.0": LOOPBACK, "::": "::1"}
"""What to dial for doors of this machine that are open to all sides."""


@dataclass
class _RemoteNode:
    """A node that is another process: the session that started it, and the stream to it."""

    order: AddNode
    address: str = ""  # where its door is
    link: NodeLink | None = None
    booted: Booted | None = None
    expected: bool = False  # it was told to end
    timer: Timer | None = None
    captured: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))


class Head:
    """The head of a system, whoever runs its loop."""

    def __init__(
        self,
        key: bytes,
        label: str = "",
        *,
        guest: bool = False,
    ) -> None:
        """A head that does nothing yet.

        Args:
            key: What connections to its nodes are proved with.
            label: What to call its own node; by default what this machine is called.
            guest: As in `SystemNode`.
        """
        self._loop = Loop()
        self._key = key
        self._directory = Directory(secrets.randbits(SYSTEM_BITS), self._key, socket.gethostname(), label)
        self._printer = Printer(self._show, lambda: None)
        self._reception = Reception(self._loop, self._directory, self._decide, self.warn, self._came_or_went)
        self._node = SystemNode(self._loop, self, self._spared, guest=guest, admit=self._reception.admit)
        self._remotes: dict[int, _RemoteNode] = {}
        self._streams: dict[int, int] = {}  # by endpoint: how many have ended
        self._events: deque[Event] = deque()
        self._deciding = False
        self._hanging_up: list[threading.Thread] = []
        self._arrived: dict[int, Booted] = {}  # nodes that are up, until the loop takes them over
        self._ending = False
        self._local_gone = False
        self._over = threading.Event()
        self._here = LOOPBACK  # where doors on this machine are

    def _serve(self, address: str = "", port: int = 0) -> int:
        """Have a node of our own, with a door if there is an address for it; its port.

        Raises:
            LaunchError: Nobody can listen there.
        """
        serve = Serve(LOCAL, self._key, address, port, sys.executable, {}, str(Path.cwd()))
        self._here = address or LOOPBACK
        return self._node.serve(serve).port

    # --------------------------------------------------------------------------- the loop's thread

    def _run(self) -> None:
        try:
            while not self._is_over():
                self._loop.run_once()
        except BaseException as error:
            self._ending = True
            self.warn(f"the head of this system has failed, which ends all of it: {type(error).__name__}: {error}")
            raise
        finally:
            for remote in self._remotes.values():
                self._hang_up(remote)
            self._reception.close()
            self._node.abandon()
            self._loop.close()
            self._over.set()

    def _is_over(self) -> bool:
        return self._local_gone and not any(remote.link for remote in self._remotes.values())

    def _decide(self, event: Event) -> None:
        """Let the directory decide, and do it; what follows from that at once comes after it."""
        self._events.append(event)
        if self._deciding:
            return
        self._deciding = True
        try:
            while self._events:
                for action in self._directory.step(self._events.popleft(), now()):
                    self._act(action)
        finally:
            self._deciding = False

    def _act(self, action: Action) -> None:
        match action:
            case Post(node, message):
                self._post(node, message)
            case Boot(node, order):
                self._boot(node, order)
            case Alarm(key, at):
                self._loop.call_later(max(0.0, at - now()), partial(self._decide, Due(key)))
            case Log():
                self._log(action)
            case Tell(text):
                for line in text.split("\n"):
                    self._printer.say(line)
            case Behind(other):
                self._printer.then(partial(self._loop.post, partial(self._act, other)))

    def _post(self, node: int, message: Message) -> None:
        if node != LOCAL:
            self._post_away(node, message)
            return
        match message:
            case Start():
                self._node.start(message)
            case SignalPlace():
                self._node.signal_place(message)
            case Signal(number):
                self._node.signal(number)
            case _:
                self._node.step(NodeSaid(HEAD, message))

    def _post_away(self, node: int, message: Message) -> None:
        if self._reception.send(node, message) or node not in self._remotes:  # a guest, who may have gone just now
            return
        remote = self._remotes[node]
        if isinstance(message, Stop):
            remote.expected = True
            self._loop.call_later(STOP_LIMIT, partial(self._give_up, node))
        if remote.link is not None:
            remote.link.send(message)

    def _log(self, log: Log) -> None:
        """As if it had been logged here."""
        logger = logging.getLogger(log.record.logger)
        if logger.isEnabledFor(log.record.level):
            record = logger.makeRecord(
                log.record.logger, log.record.level, "", 0, log.record.text, (), None, None,
                {"place": log.label, "node": log.node},
            )  # fmt: skip
            record.created = log.record.created
            try:
                logger.handle(record)
            except Exception as error:  # a filter's, or a handler's, that are the program's
                self.warn(f"logging a record of {log.label} raised {type(error).__name__}: {error}")

    # ---------------------------------------------------------------------------------- other nodes

    def _boot(self, node: int, order: AddNode) -> None:
        remote = self._remotes.setdefault(node, _RemoteNode(order))
        remote.expected = False
        label = self._directory.node_label(node)
        boot = partial(self._boot_away, node, label, order)
        threading.Thread(target=boot, name=f"rmpi boot {node}", daemon=True).start()

    def _boot_away(self, node: int, label: str, order: AddNode) -> None:
        """Start a node's process. In a thread of its own."""
        try:
            booted = boot_all(
                booter(order.agent or None)() if order.host else LocalBooter(),
                [_host(order)],
                pythons=interpreters(order.python or None),
                deadline=Deadline.after(order.seconds),
                on_progress=self._check_wanted,
                on_stderr=lambda _host, line: self._printer.say(f"{label}: {line}"),
            )[0]
        except LaunchError as error:
            self._loop.post(partial(self._decide, NotBooted(node, str(error))))
        except Exception as error:
            self._loop.post(partial(self._decide, NotBooted(node, f"{type(error).__name__}: {error}")))
        else:
            self._arrived[node] = booted
            self._loop.post(partial(self._meet, node, order, booted))
            if self._over.is_set():
                self._send_away()

    def _check_wanted(self, _progress: str) -> None:
        """While a node boots."""
        if self._ending:
            raise LaunchError("the program ends")

    def _send_away(self) -> None:
        """The loop has ended: close what has come since. In any thread."""
        while self._arrived:
            try:
                _, booted = self._arrived.popitem()
            except KeyError:  # another thread did
                return
            booted.close()

    def _meet(self, node: int, order: AddNode, booted: Booted) -> None:
        """A node's process is up: have it serve this system."""
        del self._arrived[node]
        remote = self._remotes[node]
        remote.booted = booted
        if self._ending:
            self._hang_up(remote)
            return
        for warning in booted.warnings:
            self._printer.say(f"rmpi: {warning}")
        remote.link = NodeLink(self._loop, booted.control, partial(self._heard_from, node), partial(self._lost, node))
        environment = {**(passed_on(os.environ) if order.host else {}), **order.environment}
        directory = order.directory or str(Path.cwd())
        address = booted.address if order.host else self._here
        remote.address = WILDCARDS.get(address, address)
        remote.link.send(Serve(node, self._key, address, order.port, booted.facts.executable, environment, directory))
        remote.timer = self._loop.call_later(order.seconds, partial(self._refused, node, "it did not answer in time"))

    def _heard_from(self, node: int, message: Message) -> None:
        remote = self._remotes[node]
        match message:
            case Serving(port, pid, cores, memory) if remote.timer is not None:
                self._served(remote)
                assert remote.booted is not None
                door = (remote.address, port)
                self._decide(NodeBooted(node, remote.booted.facts.hostname, door, pid, cores, memory))
            case Refused(text):
                self._refused(node, text)
            case Output(endpoint, stream, data) if node_of(endpoint) == node:
                self.output(endpoint, stream, data)
            case Note():
                pass
            case Gone():
                self._lost(node, "it has ended")
            case Exited() | FromPlace() | Running() | Halted() | Carry() | Carried():
                try:
                    self._decide(Heard(node, message))
                except WireError as error:
                    self._is_nonsense(node, message, error)
            case _:
                self._lost(node, f"it may not say {type(message).__name__}")

    def _is_nonsense(self, node: int, message: Message, error: WireError) -> None:
        """It costs the place that said it its life; or the node, if that did."""
        link = self._remotes[node].link
        if isinstance(message, FromPlace) and node_of(message.endpoint) == node and link is not None:
            self.warn(f"{self._directory.place_label(message.endpoint)} speaks nonsense to its router: {error}")
            link.send(SignalPlace(message.endpoint, signal.SIGKILL))
        else:
            self._lost(node, str(error))

    def _served(self, remote: _RemoteNode) -> None:
        if remote.timer is not None:
            remote.timer.cancel()
            remote.timer = None

    def _refused(self, node: int, text: str) -> None:
        remote = self._remotes[node]
        if remote.timer is None:
            self._lost(node, text)
            return
        self._served(remote)
        self._hang_up(remote)
        self._decide(NotBooted(node, text))

    def _lost(self, node: int, why: str) -> None:
        remote = self._remotes[node]
        if remote.timer is not None:
            self._refused(node, why)
            return
        self._hang_up(remote)
        self._decide(Lost(node, why, remote.expected))
        self._printer.then(partial(self._loop.post, partial(self._all_shown, node)))

    def _all_shown(self, node: int) -> None:
        """What had come of the output of a lost node was shown. Of some of its places, the end never came."""
        for endpoint in self._directory.unshown(node):
            self._streams.pop(endpoint, None)
            self._decide(Shown(endpoint))

    def _give_up(self, node: int) -> None:
        remote = self._remotes[node]
        if remote.expected and remote.link is not None:
            self._lost(node, f"it did not stop within {STOP_LIMIT:g} s")

    def _hang_up(self, remote: _RemoteNode) -> None:
        """End the stream to a node; if it still lives, it ends of that. Ending an ssh session may take a while."""
        if remote.link is not None:
            remote.link.close()
            remote.link = None
        if remote.booted is not None:
            thread = threading.Thread(target=remote.booted.close, name="rmpi hangs up", daemon=True)
            thread.start()
            self._hanging_up = [*(each for each in self._hanging_up if each.is_alive()), thread]
            remote.booted = None

    def _spared(self) -> frozenset[int]:
        pids = (getattr(each.booted.session, "pid", None) for each in self._remotes.values() if each.booted)
        return frozenset(pid for pid in pids if pid is not None)

    # ------------------------------------------------------------------ what our own node says (Outside)

    def send(self, node: int, message: Message) -> None:
        assert node == HEAD
        self._decide(Heard(LOCAL, message))

    def announce(self, announcement: Announcement) -> None:
        raise AssertionError(f"this is no job: {announcement}")

    def output(self, endpoint: int, stream: int, data: bytes) -> None:
        self._printer.write(endpoint, stream, data, partial(self._loop.post, partial(self._consumed, endpoint, data)))

    def _consumed(self, endpoint: int, data: bytes) -> None:
        """Output was shown: more may come. When both streams have ended, that was all."""
        node = node_of(endpoint)
        if not data:
            self._streams[endpoint] = self._streams.get(endpoint, 0) + 1
            if self._streams[endpoint] == 2:
                del self._streams[endpoint]
                self._decide(Shown(endpoint))
        elif node == LOCAL:
            self._node.consumed(len(data))
        elif (link := self._remotes[node].link) is not None:
            link.send(Consumed(len(data)))

    def fed(self, endpoint: int) -> None:
        raise AssertionError("places of a system have no input")

    def ready(self) -> None:
        """Nobody waits for the spawner."""

    def gone(self) -> None:
        self._local_gone = True

    def failed(self, reason: str) -> None:
        self.warn(reason)

    def warn(self, text: str) -> None:
        self._printer.say(f"rmpi: {text}")

    def note(self, text: str) -> None:
        """Nobody asked."""

    def _came_or_went(self, text: str) -> None:
        """A guest has; nobody asked."""

    # ------------------------------------------------------------------------------- what is shown

    def _show(self, endpoint: int, stream: int, line: str) -> None:
        """A line that a place has written. In the thread that writes."""
        remote = self._remotes.get(endpoint >> SERIAL_BITS) if endpoint >= 0 else None
        mode = remote.order.output if remote is not None else "forward"
        if mode == "label":
            line = f"[{self._directory.place_label(endpoint)}] {line}"
        if mode == "capture" and remote is not None:
            remote.captured.append(line)
        elif mode != "discard":
            write_line(endpoint, stream, line)

    def captured(self, node: int) -> list[str]:
        """The lines that places of a node have written, if it was added with ``output="capture"``."""
        return list(self._remotes[node].captured) if node in self._remotes else []

    # -------------------------------------------------------------------------------------- the end

    def _let_go(self) -> None:
        """After the loop: what was said is shown, and sessions are ended."""
        self._printer.close()
        self._send_away()
        for thread in self._hanging_up:
            thread.join(STOP_LIMIT)

    def _begin_end(self, grace: float) -> None:
        self._ending = True
        self._directory.end()
        self._node.signal(signal.SIGTERM)
        for remote in self._remotes.values():
            remote.expected = True
            if remote.link is not None:
                remote.link.send(Signal(signal.SIGTERM))
        self._end_when_empty(now() + grace)

    def _end_when_empty(self, limit: float) -> None:
        if self._directory.places_run and now() < limit:
            self._loop.call_later(LOOK, partial(self._end_when_empty, limit))
        else:
            self._end()

    def _end(self) -> None:
        self._node.stop()
        for node, remote in self._remotes.items():
            if remote.link is not None:
                remote.link.send(Stop())
                self._loop.call_later(STOP_LIMIT, partial(self._give_up, node))

    def disown(self) -> None:
        """In a fork of this process: the places are not its own, nor may it keep their life lines open."""
        self._node.disown()
        self._reception.disown()
        for booted in (*self._arrived.values(), *(remote.booted for remote in self._remotes.values())):
            if booted is not None:
                booted.session.disown()


class System(Head):
    """A system of the user's program, and its head in a thread. Any thread may call its methods."""

    def __init__(self) -> None:
        from rmpi.places.control import Control
        from rmpi.places.member import Member  # late: it imports NumPy, which a head does not need

        super().__init__(secrets.token_bytes(KEY_SIZE), guest=True)
        self._listens: tuple[str, int, bytes] | None = None  # address, port, key
        self._serve()
        cores = len(os.sched_getaffinity(0))
        enrolled = self._directory.enrol_main(cores, memory_of_machine(), os.getpid())
        self._thread = threading.Thread(target=self._run, name="rmpi head", daemon=True)
        self.member = Member(Control(self._node.adopt(enrolled)))
        self._thread.start()

    def listen(self, address: str, port: int, key: bytes) -> str:
        """Have a door where guests may come in; where that is. See `rmpi.places.listen`."""
        return self._in_loop(partial(self._open_door, address, port, key))

    def _open_door(self, address: str, port: int, key: bytes) -> str:
        if self._listens is not None:
            if self._listens != (address, port or self._listens[1], key):
                raise UsageError(
                    f"this program listens at {show_where(*self._listens[:2])} already, and can at one address and "
                    "with one key at a time; places.stop_listening() ends that"
                )
            return show_where(*self._listens[:2])
        if self._ending:
            raise UsageError("the system of this program is about to end: nobody can join it any more")
        self._listens = address, self._node.open_door(address, key, port), key
        self._directory.open_door(key)
        self._here = address
        return show_where(*self._listens[:2])

    def stop_listening(self) -> None:
        """Close that door."""
        self._in_loop(self._close_door)

    def _close_door(self) -> None:
        self._node.close_door()
        self._listens = None

    def _in_loop(self, function: Callable[[], T]) -> T:
        """What the function returns or raises, called by the thread of the head."""
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._loop.post(call)
        while not wait((future,), LOOK).done:
            if self._over.is_set():
                raise UsageError("the system of this program has ended")
        return future.result()

    def close(self, grace: float = GRACE) -> None:
        """End all places and nodes: they are asked to, and after the grace they are killed.

        What was put to guests is sent out before, as far as there is time.
        """
        if self._reception:
            self.member.leave(Deadline.after(grace))
        self.member.close("the system that this belongs to was ended, by places.shutdown()")
        self._loop.post(partial(self._begin_end, grace))
        self._over.wait(grace + STOP_LIMIT + 1.0)
        self._thread.join(STOP_LIMIT)
        self._let_go()

    def disown(self) -> None:
        """Besides, it is not this member of the system."""
        super().disown()
        self.member.disown()


def _host(order: AddNode) -> HostSpec:
    """What a booter wants to know; on this machine only the interpreter."""
    python = order.python or None
    if not order.host:
        return HostSpec("localhost", python=python)
    host = parse_host_list(order.host)[0]
    return HostSpec(host.name, host.slots, host.max_slots, host.user, host.port, host.python or python, host.origin)


# ----------------------------------------------------------------------------- the system of this process

_lock = threading.Lock()
_system: System | None = None


def system_of_this_process() -> System:
    """The system whose head this process is; it is begun if there was none."""
    global _system
    from rmpi.places import membership

    with _lock:
        if _system is None:
            _system = System()
            membership.register(_system.member)
        return _system


def running_system() -> System | None:
    """The same, if there is one."""
    return _system


def shutdown(grace: float = GRACE) -> None:
    """End the system of this process: all its places and nodes. The next one that is spawned begins another.

    Args:
        grace: Seconds for places to end, between SIGTERM and SIGKILL.

    Raises:
        UsageError: This process is a place, whose system is another program's.
    """
    from rmpi.places import membership
    from rmpi.places.member import Member

    if _system is None and isinstance(membership.current(), Member):
        raise UsageError("this place's system is another program's: Node.shutdown ends a node, Place.kill a place")
    _end_system(grace)


def _end_system(grace: float = GRACE) -> None:
    global _system
    with _lock:
        system, _system = _system, None
    if system is not None:
        from rmpi.places import membership

        membership.unregister(system.member)
        system.close(grace)


atexit.register(_end_system)


def _disown() -> None:
    global _system, _lock
    system, _system, _lock = _system, None, threading.Lock()
    if system is not None:
        system.disown()


os.register_at_fork(after_in_child=_disown)
