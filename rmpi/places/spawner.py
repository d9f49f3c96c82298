"""The spawner: a node's single-threaded child that forks places and reaps them.

It is started by exec, in a session of its own (a terminal's Ctrl-C reaches the launcher, which forwards it) and as
a subreaper. It knows three things: what to fork, which signal to pass on, and that when its node is gone,
everything below must go. For Python programs it first imports what they share; see `rmpi.places.zygote`.

    node ── Fork + 4 descriptors ──▶ spawner ── fork ──▶ place
    node ◀── Forked, Halted, Reaped ─ spawner

The life line is the control socket: at its end, for whatever reason, the spawner kills all that is below it,
daemonised grandchildren included, and exits. While it imports it does not look there, and the kernel kills it when its
node ends. Places ask the kernel to be killed when the spawner ends.

A forked place does not run inside the loop: `Spawner.serve` *returns* in it, so that the program runs from
the outermost frame and the interpreter ends the ordinary way.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterable

from rmpi.errors import LaunchError, WireError
from rmpi.places.birth import HELD, become_place, needs_exec, start_fresh
from rmpi.places.control import Control
from rmpi.places.messages import NO_RANK, Fork, Forked, Halted, Note, Reaped, Refused, Signal, SignalPlace, Up
from rmpi.places.processes import (
    become_subreaper,
    die_with_parent,
    kill_descendants,
    name_process,
    outlive_parent,
    python_words,
    reset_signals,
)
from rmpi.places.zygote import import_ahead, renew_secrets


class Spawner:
    """Forks and reaps, until its node is gone."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._endpoint_of: dict[int, int] = {}  # by pid
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        self._poll = select.epoll()
        self._poll.register(control.fileno(), select.EPOLLIN)
        self._poll.register(self._woken.fileno(), select.EPOLLIN)

    def serve(self) -> tuple[Fork, list[int]] | None:
        """Work until the node is gone: None then. In a forked place: what it is to be, with descriptors."""
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self._control.send(Up())
        while not self._control.closed:
            self._poll.poll()
            self._drain()
            self._reap()
            came = deque(self._control.receive())
            while came:
                message, fds = came.popleft()
                if isinstance(message, Fork):
                    if self._fork(message, fds):
                        self._give_back(fd for _, others in came for fd in others)
                        return message, fds
                    for fd in fds:
                        os.close(fd)
                elif isinstance(message, Signal):
                    for pid in self._endpoint_of:
                        _signal(pid, message.number)
                elif isinstance(message, SignalPlace):
                    for pid, endpoint in self._endpoint_of.items():
                        if endpoint == message.endpoint:
                            _signal(pid, message.number)
            room = 0 if self._control.flush() else select.EPOLLOUT
            self._poll.modify(self._control.fileno(), select.EPOLLIN | room)
        signal.set_wakeup_fd(-1)
        return None

    def _fork(self, message: Fork, fds: list[int]) -> bool:
        """True in the child."""
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
            if message.rank != NO_RANK:  # a job cannot do without it
                raise
            self._say_for(message, fds[3], f"no process can be made for it here: {error.strerror}")
            return False
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
            self._endpoint_of[pid] = message.endpoint
            self._control.send(Forked(message.endpoint, pid))
            return False
        die_with_parent(parent)
        reset_signals()
        return True

    def _say_for(self, message: Fork, control: int, text: str) -> None:
        """A place of a system that cannot be forked: the others go on, and whoever wanted it is told."""
        from rmpi.places.system_messages import NotStarted  # late: a job has no use for them

        place = Control(socket.socket(fileno=os.dup(control)))
        place.send(NotStarted(0, "LaunchError", text))
        place.close()
        self._control.send(Reaped(message.endpoint, 125))

    def _give_back(self, fds: Iterable[int]) -> None:
        """In a forked place: close what is the spawner's, and only that; preloaded modules may have files open."""
        for fd in fds:
            os.close(fd)
        self._control.close()
        self._wake.close()
        self._woken.close()
        self._poll.close()

    def _drain(self) -> None:
        try:
            while self._woken.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _reap(self) -> None:
        """Collect whoever has ended; orphans that became our children too. And notice who is stopped, or goes on."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if not pid:
                return
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                endpoint = self._endpoint_of.get(pid)
                if endpoint is not None:
                    self._control.send(Halted(endpoint, os.WIFSTOPPED(status)))
                continue
            endpoint = self._endpoint_of.pop(pid, None)
            if endpoint is not None:
                self._control.send(Reaped(endpoint, os.waitstatus_to_exitcode(status)))


def _signal(pid: int, number: int) -> None:
    """To a place and what it started, as a terminal would."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:  # it has not got as far as its own group
        os.kill(pid, number)  # and cannot be gone: it is reaped here
    except PermissionError:  # it runs as somebody else
        pass


def main(fd: str, fork: str, kind: str, target: str, *preload: str) -> None:
    """The spawner's process; and, after a fork, a place's.

    Args:
        fd: Of the control socket.
        fork: "fork" if places may be forked from this interpreter; else it starts another one for each.
        kind, target: The program; of what is not a script only the kind.
        preload: Modules to import before any fork.
    """
    if os.getpid() != os.getsid(0):
        os.setsid()
    become_subreaper()
    name_process("rmpi-spawner", "rmpi spawner")
    control = Control(socket.socket(fileno=int(fd)))
    os.set_inheritable(control.fileno(), False)
    if kind != "command" and fork == "fork":
        _import_ahead(control, kind, target, preload)
    try:
        task = Spawner(control).serve()
    except (WireError, OSError) as error:  # such as: no room for another process
        sys.stderr.write(f"rmpi: the spawner stops: {error}\n")
        sys.stderr.flush()
        kill_descendants()
        sys.exit(1)
    if task is None:
        kill_descendants()
        return
    if task[0].kind != "command" and (fork != "fork" or needs_exec(task[0])):
        start_fresh(*task)
    renew_secrets()
    become_place(*task)


def _import_ahead(control: Control, kind: str, target: str, preload: tuple[str, ...]) -> None:
    """What places share; or, where none may be forked from here after that, begin again without it."""
    die_with_parent(os.getppid())
    try:
        reason = import_ahead(kind, target, preload)
    except LaunchError as error:
        control.send(Refused(str(error), error.status))
        control.drain()
        sys.exit(error.status)
    outlive_parent()
    if reason is not None:
        control.send(Note(f"every rank starts an interpreter of its own: {reason}"))
        control.drain()
        os.set_inheritable(control.fileno(), True)
        os.execv(sys.executable, python_words(sys.executable, "spawner", control.fileno(), "exec", kind, target))
