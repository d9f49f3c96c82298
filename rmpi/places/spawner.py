"""The spawner: a node's single-threaded child that forks places and reaps them.

It is started by exec, before anything in it could have threads, in a session of its own (a terminal's
Ctrl-C reaches the launcher, which forwards it) and as a subreaper. It knows three things: what to fork,
which signal to pass on, and that when its node is gone, everything below must go.

    node ── Fork + 4 descriptors ──▶ spawner ── fork ──▶ place
    node ◀── Forked, Reaped ─────── spawner

The life line is the control socket: at its end, for whatever reason, the spawner kills all that is below it,
daemonised grandchildren included, and exits. Places ask the kernel to be killed when the spawner ends.

A forked place does not run inside the loop: `Spawner.serve` *returns* in it, so that the program runs from
the outermost frame and the interpreter ends the ordinary way.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import socket
import sys

from rmpi.errors import WireError
from rmpi.places.control import Control
from rmpi.places.messages import Fork, Forked, Reaped, Signal, Up
from rmpi.places.place import reporter_at
from rmpi.places.processes import become_subreaper, die_with_parent, kill_descendants, name_process
from rmpi.places.program import run_program
from rmpi.places.reporter import Reporter

STARTER = (
    "import sys; sys.path[:1] = [] if sys.path[:1] == [''] else sys.path[:1]; "
    "from rmpi.places.spawner import main; main(int(sys.argv[1]))"
)
"""How a spawner is started: ``python -c STARTER FD``. A module in its directory must not shadow ours."""


HELD = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Signals that wait, in a place that has just been forked, until it is one: they end it, but as the place."""


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
            for message, fds in self._control.receive():
                if isinstance(message, Fork):
                    if self._fork(message):
                        return message, fds
                    for fd in fds:
                        os.close(fd)
                elif isinstance(message, Signal):
                    self._signal(message.number)
            room = 0 if self._control.flush() else select.EPOLLOUT
            self._poll.modify(self._control.fileno(), select.EPOLLIN | room)
        signal.set_wakeup_fd(-1)
        return None

    def _fork(self, message: Fork) -> bool:
        """True in the child."""
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
            self._endpoint_of[pid] = message.endpoint
            self._control.send(Forked(message.endpoint, pid))
            return False
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ):
                try:
                    signal.signal(number, signal.SIG_DFL)
                except (OSError, ValueError):  # those that the C library keeps for itself
                    pass
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return True

    def _signal(self, number: int) -> None:
        """To every place and what it started, as a terminal would."""
        for pid in self._endpoint_of:
            try:
                os.killpg(pid, number)
            except ProcessLookupError:  # it has not got as far as its own group
                os.kill(pid, number)  # and cannot be gone: it is reaped here
            except PermissionError:  # it runs as somebody else
                pass

    def _drain(self) -> None:
        try:
            while self._woken.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _reap(self) -> None:
        """Collect whoever has ended; orphans that became our children too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            endpoint = self._endpoint_of.pop(pid, None)
            if endpoint is not None:
                self._control.send(Reaped(endpoint, os.waitstatus_to_exitcode(status)))


def main(fd: int) -> None:
    """The spawner's process; and, after a fork, a place's."""
    if os.getpid() != os.getsid(0):
        os.setsid()
    become_subreaper()
    name_process("rmpi-spawner")
    try:
        task = Spawner(Control(socket.socket(fileno=fd))).serve()
    except (WireError, OSError) as error:  # such as: no room for another process
        sys.stderr.write(f"rmpi: the spawner stops: {error}\n")
        sys.stderr.flush()
        kill_descendants()
        sys.exit(1)
    if task is None:
        kill_descendants()
        return
    _become_place(*task)


def _become_place(fork: Fork, fds: list[int]) -> None:
    """In the forked process: its own surroundings, and then the program, in the outermost frame."""
    os.setsid()
    reporter = _settle(fork, fds)
    os.environ.update(fork.environment)
    try:
        os.chdir(fork.directory)
    except OSError as error:
        sys.stderr.write(f"rmpi: cannot enter {fork.directory}: {error.strerror}\n")
        sys.exit(125)
    name_process(f"{fork.rank} {os.path.basename(fork.target)}")  # noqa: PTH119 (no pathlib before the program)
    faulthandler.enable()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        with reporter.running():
            run_program(fork.kind, fork.target, fork.argv)
    except SystemExit as ending:
        reporter.crashed = bool(ending.code)
        if isinstance(ending.code, int) and ending.code and not ending.code & 0xFF:
            ending.code = 1  # the kernel would cut it to 0, which is success
        raise


def _settle(fork: Fork, fds: list[int]) -> Reporter:
    """Standard streams in their place, the control socket where the program finds it, all else closed."""
    for target, fd in enumerate(fds[:3]):
        os.dup2(fd, target, inheritable=True)
    control = fds[3]
    keep = {0, 1, 2, control}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:  # the descriptor of the listing itself
                pass
    os.set_inheritable(control, fork.kind == "command")
    os.environ["RMPI_FD"] = f"{control}:{os.fstat(control).st_ino}"
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return reporter_at(control)
