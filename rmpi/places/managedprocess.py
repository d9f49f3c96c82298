"""Programs of this machine that a `messagerouter.MessageRouter` starts, watches and ends.

    backup = process(["rsync", "-a", "data/", "copy/"], on_exit=lambda status: print("rsync ended with", status))
    MessageRouter(backup, every(1, look)).run()

A program is started when the router runs, and ended when the router ends: SIGTERM, and SIGKILL a second later. It
leads a process group of its own, so that what it has started goes with it, and Ctrl-C in a terminal reaches the router
alone. Its output goes where ours goes; it has no input.

A signal is sent only as long as the program was not reaped, when its number cannot be somebody else's yet; so one
thread, which does nothing else, waits for the end without reaping, and reaps with the lock held.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded, UsageError
from rmpi.places.ends import end_of
from rmpi.places.supervisor import Call, Decision, GiveUp, Nothing, Policy, Restart, Supervisor, policy_of

if TYPE_CHECKING:
    from rmpi.places.dispatching import Desk

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL when the router ends."""

LONGEST_DEATH = 10.0
"""Seconds to wait for what was killed: longer takes only what the kernel cannot end, which is left to it."""

log = logging.getLogger(__name__)

OnExit = Callable[[int], object]


class ManagedProcess:
    """See `process`. Methods may be called by any thread, also by functions of the router."""

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        on_exit: OnExit | None,
        policy: Policy,
        cwd: str | os.PathLike[str] | None,
        env: Mapping[str, str] | None,
    ) -> None:
        self.argv = [os.fspath(word) for word in argv]
        self._on_exit = on_exit
        self._policy = policy
        self._cwd = cwd
        self._env = env
        self._supervisor = Supervisor(policy.rule)
        self._lock = threading.RLock()  # a signal handler may call `kill`
        self._popen: subprocess.Popen[bytes] | None = None  # the last that was started
        self._desk: Desk | None = None
        self._unwanted = False  # it was ended on purpose
        self._over = threading.Event()

    # ---------------------------------------------------------------------------------- for the user

    @property
    def pid(self) -> int:
        """Of the program that runs, or was the last to.

        Raises:
            UsageError: None was started yet.
        """
        return self._last().pid

    @property
    def returncode(self) -> int | None:
        """The exit status of the last, minus the signal if it was killed; None while it runs, or if there is none."""
        return None if self._popen is None else self._popen.returncode

    def terminate(self) -> None:
        """Ask it, and what it has started in its process group, to end (SIGTERM). It is not restarted."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it, and what it has started in its process group (SIGKILL). It is not restarted."""
        self._end(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended for good; its last exit status, minus the signal if it was killed.

        Raises:
            DeadlineExceeded: It has not within ``timeout`` seconds.
            UsageError: It was not started yet.
        """
        self._last()
        if not self._over.wait(Deadline.after(timeout).left_or_none()):
            raise DeadlineExceeded(f"{self!r} has not ended within {timeout} s")
        return self._last().returncode

    def _last(self) -> subprocess.Popen[bytes]:
        if self._popen is None:
            raise UsageError(f"{self!r} was not started yet: that happens when its MessageRouter runs")
        return self._popen

    # -------------------------------------------------------------------------------- for the router

    def register(self, desk: Desk) -> None:
        """`dispatching.EventSource`: start the program.

        Raises:
            OSError: It cannot be started.
            UsageError: It runs, in another router.
        """
        with self._lock:
            if self._desk is not None:
                raise UsageError(f"{self!r} is in a router that runs; make one for each router")
            self._supervisor = Supervisor(self._policy.rule)
            self._unwanted = False
            self._over.clear()
            self._start(desk)
            self._desk = desk
        desk.when_ending(lambda: self._leave(desk))

    def _start(self, desk: Desk) -> None:
        self._popen = subprocess.Popen(
            self.argv, stdin=subprocess.DEVNULL, cwd=self._cwd, env=self._env, process_group=0
        )
        watcher = threading.Thread(
            target=self._watch, args=(self._popen, desk), name=f"rmpi-process {self._popen.pid}", daemon=True
        )
        watcher.start()

    def _watch(self, popen: subprocess.Popen[bytes], desk: Desk) -> None:
        """Wait for the end, in a thread of its own."""
        try:
            os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # the kernel reaps for those who ignore SIGCHLD
            pass
        with self._lock:
            status = popen.wait()
            if self._on_exit is not None:
                desk.submit(self._on_exit, status)
            self._decide(status, desk)

    def _decide(self, status: int, desk: Desk) -> None:
        decision: Decision = Nothing()
        if not self._unwanted:
            decision = self._supervisor.step(end_of(status, joined=False, left=False), desk.now())
        match decision:
            case Restart(at):
                desk.at(at, lambda: self._restart(desk))
                return
            case Call() if self._policy.instead is not None:
                desk.submit(self._policy.instead)
            case GiveUp(reason):
                log.warning("%r is not restarted any more: %s", self, reason)
                if self._policy.on_final_fail is not None:
                    desk.submit(self._policy.on_final_fail)
        self._conclude(desk)

    def _restart(self, desk: Desk) -> None:
        with self._lock:
            if self._unwanted:
                return
            try:
                self._start(desk)
            except OSError as error:
                self._conclude(desk)
                desk.fail(error)
            else:
                self._supervisor.started(desk.now())

    def _end(self, number: signal.Signals) -> None:
        with self._lock:
            self._unwanted = True
            desk = self._desk
            if self._runs:
                try:
                    os.killpg(self._last().pid, number)
                except ProcessLookupError:  # the kernel has reaped it
                    pass
            elif desk is not None:
                desk.at(desk.now(), lambda: self._conclude(desk))  # not here: this may be a signal handler

    @property
    def _runs(self) -> bool:
        """Whether it was started, and not reaped. The lock is held."""
        return self._popen is not None and self._popen.returncode is None

    def _conclude(self, desk: Desk) -> None:
        self._over.set()
        desk.finish()

    def _leave(self, desk: Desk) -> None:
        """The router ends."""
        self.terminate()
        if not self._runs:
            self._conclude(desk)
        if not self._over.wait(GRACE):
            self.kill()
            self._over.wait(LONGEST_DEATH)
        with self._lock:
            self._desk = None

    def __repr__(self) -> str:
        return f"process({self.argv})"


def process(
    argv: Sequence[str | os.PathLike[str]],
    on_exit: OnExit | None = None,
    *,
    restart: object = None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> ManagedProcess:
    """A program for a `messagerouter.MessageRouter` to start, watch and end. See the text of this module.

    Args:
        argv: The program and its arguments.
        on_exit: Called with its exit status, minus the signal if it was killed, whenever it has ended by itself or was
            ended by `ManagedProcess.kill` or `ManagedProcess.terminate`; not if the router ended it.
        restart: What follows an end, unless that was on purpose: None, True, a function that is called instead, or
            `supervisor.restart_every`.
        cwd: The directory where it runs; None: ours.
        env: All of its environment; None: ours.

    Raises:
        UsageError: One of them is not that.
    """
    if isinstance(argv, str | bytes) or not argv:
        raise UsageError(f"process(argv): a list of words such as ['ls', '-l'], not {argv!r}")
    if on_exit is not None and not callable(on_exit):
        raise UsageError(f"process(argv, on_exit): a function of the exit status, not {on_exit!r}")
    return ManagedProcess(argv, on_exit, policy_of(restart), cwd, env)
