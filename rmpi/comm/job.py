"""`launch`: a function on many ranks, from any Python program; and `Job`, the handle of one that runs.

The course of a job is that of `rmpi.comm.launch`, the same as under ``rmpi-run``; here it runs in a background thread
of somebody else's process. That is why nothing here touches what belongs to the process as a whole: no signal
handler is set, no orphan adopted, no child killed that is not ours, and what ranks write is written by a
thread of its own, so that a terminal that was stopped stops nobody else. When the process ends, however it does,
the ranks end too.

    caller's thread     pickles the call, waits, opens results and exceptions
    "rmpi job"          the head: boots, starts, watches, ends
    "rmpi output"       writes whole lines
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload
from weakref import WeakSet

from rmpi.comm import launch as course
from rmpi.comm.launch import SETTLE, Outcome, Plan, Surroundings
from rmpi.comm.outcomes import Told, group, out_of_time, results
from rmpi.comm.placement import Placement, place
from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded, UsageError
from rmpi.places.hosts import HostSpec, is_local, parse_host_list
from rmpi.places.parcels import Call
from rmpi.places.printing import OutputTo, Printer
from rmpi.places.routes import ROUTES
from rmpi.places.surroundings import booter, interpreters, own_names, passed_on, read_hostfile

T = TypeVar("T")

PROGRAM = "from rmpi.comm.calling import main; main()"
"""The ranks' program. It is code, and not that module by name, so that their ``__main__`` is empty."""

FEED = 1 << 20
"""Bytes of the call that are given to rank 0 at a time."""

STACKS = 0.5
"""Seconds for ranks whose time is up to say where they are, before they are terminated."""

LAST = 5.0
"""Seconds for a job to end when its process does."""

TIME_IS_UP = 124


@overload
def launch(
    function: Callable[..., T],
    ranks: int | None = None,
    hosts: Sequence[str | HostSpec] | str | os.PathLike[str] | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    wait: Literal[True] = True,
    timeout: float | None = None,
    output: OutputTo = None,
    python: str | None = None,
    environment: Mapping[str, str] | None = None,
    directory: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    preload: Sequence[str] = (),
    route: str = "auto",
    rsh_agent: str | None = None,
    start_timeout: float = 60.0,
    kill_grace: float = 5.0,
) -> list[T]: ...


@overload
def launch(
    function: Callable[..., T],
    ranks: int | None = None,
    hosts: Sequence[str | HostSpec] | str | os.PathLike[str] | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    wait: Literal[False],
    timeout: float | None = None,
    output: OutputTo = None,
    python: str | None = None,
    environment: Mapping[str, str] | None = None,
    directory: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    preload: Sequence[str] = (),
    route: str = "auto",
    rsh_agent: str | None = None,
    start_timeout: float = 60.0,
    kill_grace: float = 5.0,
) -> Job[T]: ...


def launch(
    function: Callable[..., T],
    ranks: int | None = None,
    hosts: Sequence[str | HostSpec] | str | os.PathLike[str] | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    wait: bool = True,
    timeout: float | None = None,
    output: OutputTo = None,
    python: str | None = None,
    environment: Mapping[str, str] | None = None,
    directory: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    preload: Sequence[str] = (),
    route: str = "auto",
    rsh_agent: str | None = None,
    start_timeout: float = 60.0,
    kill_grace: float = 5.0,
) -> list[T] | Job[T]:
    """Call ``function(comm, *args, **kwargs)`` on every rank of a new job; what the ranks return, in their order.

        def mean(comm, points):
            start, count = comm.partition(len(points))
            return comm.allreduce(points[start : start + count].sum(axis=0)) / len(points)

        rmpi.launch(mean, ranks=4, args=(points,))[0]

    Works in scripts, notebooks, tests and threads. The ranks are processes of their own, and do not run the caller's
    script again: a function in a module is imported by them, one of the script or notebook, a nested one or a lambda
    travels with all it refers to (for which ``cloudpickle`` must be installed: ``pip install 'rmpi[notebook]'``).
    Arguments, results and exceptions are pickled, so each rank has its own copy. Starting costs what an import of
    NumPy does; what ranks have imported is gone when the job is over.

    Args:
        function: Called once in each rank. What it returns must be picklable.
        ranks: How many. None: as many as ``hosts`` have slots, or this machine has cores.
        hosts: None for this machine; the path of a hostfile; or a list of hosts as ``rmpi-run -H`` takes them,
            ``["node1:4", "alice@node2:2"]``, which are reached by ssh.
        args, kwargs: What the function is called with besides the communicator.
        wait: False returns a `Job` at once, which goes on by itself.
        timeout: Seconds that the ranks may take; then the job is ended.
        output: Where lines go that ranks write: None to our ``sys.stdout`` and ``sys.stderr``; ``"discard"``; or a
            callable, called in another thread with rank, stream (1 or 2) and line.
        python: The interpreter of the ranks; by default this one, or one of the same version.
        environment: Variables for all ranks, besides ours here and those that travel (``rmpi-run --help``).
        directory: Where ranks start; by default the directory we are in.
        overrides: What single hosts have instead of those three:
            ``{"node2": {"python": "/opt/py/bin/python", "environment": {"OMP_NUM_THREADS": "2"}}}``.
        preload: Modules that all ranks share, imported once per host.
        route: How data goes between hosts: ``"auto"``: directly, or through the ssh sessions where a firewall is in the
            way; ``"direct"``: never through them, that is an error; ``"relay"``: always, and no port is opened.
        rsh_agent: A program to reach other hosts with, instead of our own ssh.
        start_timeout: Seconds until all ranks must have started.
        kill_grace: Seconds between asking ranks to end and killing them.

    Returns:
        One value per rank; or the `Job`.

    Raises:
        ExceptionGroup: Ranks failed: *every* failure, the one that came first in front. Each is the exception that the
            rank raised (`RemoteError` with its traceback if it cannot be pickled), or `RankFailed` for a rank that was
            killed or ended otherwise; its notes name rank and host, and hold the rank's traceback.
        DeadlineExceeded: ``timeout`` passed. Its notes say where each rank was.
        LaunchError: A host, or the job, could not be started; nothing of it is left.
        UsageError: Something cannot be pickled, or ``overrides`` or ``route`` name what there is not.
        KeyboardInterrupt: Ctrl-C, which is one in every rank too; they have ended. A second one kills them.

    With ``wait=True`` nothing of the job is left when this returns or raises.
    """
    call = Call.of(function, args, kwargs or {}, [entry or str(Path.cwd()) for entry in sys.path])
    placement = _placement(hosts, ranks)
    plan = Plan(
        placement=placement,
        kind="code",
        target=PROGRAM,
        argv=(getattr(function, "__qualname__", "function"),),
        directory=str(Path(directory or Path.cwd()).absolute()),
        environment=dict(environment or {}),
        passed_on=passed_on(os.environ),
        pythons=interpreters(python),
        python=python or sys.executable,
        start_timeout=start_timeout,
        settle=SETTLE,
        kill_grace=kill_grace,
        route=_route(route),
        preload=tuple(preload),
        own=_own(overrides or {}, placement),
    )
    job: Job[T] = Job(plan, call.to_bytes(), timeout, output, rsh_agent)
    if not wait:
        return job
    with job:
        return job.wait()


class Job(Generic[T]):
    """A job that `launch` has started with ``wait=False``. Any thread may call its methods.

        with rmpi.launch(simulate, ranks=8, wait=False) as job:
            ...
            print(job.wait(timeout=60))

    It goes on by itself, whether anybody waits or not. A ``with`` leaves nothing running: what has not ended at its end
    is terminated. A job ends with the process that launched it.
    """

    def __init__(self, plan: Plan, call: bytes, timeout: float | None, output: OutputTo, rsh_agent: str | None) -> None:
        self._plan = plan
        Deadline.after(timeout)  # refuses what is no number
        self._timeout = timeout
        self._printer = Printer(output, self.terminate)
        self._watcher = _Watcher(self._printer, call)
        self._course = course.Job(
            plan, self._watcher, booter(rsh_agent), own_names(), returned=self._watcher.told.add, guest=True
        )
        self._outcome = Outcome()
        self._out_of_time = False
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._opening = threading.Lock()
        self._results: list[T] | None = None
        self._thread = threading.Thread(target=self._run, name="rmpi job", daemon=True)
        _live.add(self)
        self._thread.start()

    def __repr__(self) -> str:
        state = "over" if self.done else "running" if self._course.running else "starting"
        return f"<Job of {self._plan.placement.size} ranks, {state}>"

    # ------------------------------------------------------------------------- the caller's threads

    @property
    def done(self) -> bool:
        """Whether it is over, well or not: whether `wait` returns or raises at once."""
        return self._over.is_set()

    @property
    def results(self) -> list[T]:
        """What the ranks returned, in their order, as from `wait` without a limit."""
        return self.wait()

    def wait(self, timeout: float | None = None) -> list[T]:
        """Wait for the job's end; what the ranks returned, in their order. May be called again.

        Raises:
            DeadlineExceeded: It was not over after ``timeout`` seconds, and goes on; or the time-out of the job itself
                had passed, and it is over: see `done`.
            ExceptionGroup, LaunchError, KeyboardInterrupt: As for `launch`.
        """
        deadline = Deadline.after(timeout)
        try:
            over = self._over.wait(deadline.left_or_none())
        except BaseException:  # Ctrl-C, or another handler that raises
            self._interrupt()
            raise
        if not over:
            raise DeadlineExceeded(f"the job was not over after {timeout:g} s; it goes on")
        self._thread.join()
        with self._opening:
            if self._results is None and self._error is None:
                self._settle()
        if self._error is not None:
            raise self._error
        assert self._results is not None
        return self._results

    def terminate(self) -> None:
        """Ask the ranks to end (SIGTERM), and kill what is left after the grace. Returns at once."""
        self._ask_for_end(signal.SIGTERM, "terminated")

    def kill(self) -> None:
        """End the ranks and everything they started. Returns at once."""
        self._ask_for_end(signal.SIGKILL, "killed")

    def __enter__(self) -> Job[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.done:
            self.terminate()
            self._until_over()
        self._thread.join()

    def _interrupt(self) -> None:
        """A KeyboardInterrupt in every rank; nothing is left when this returns."""
        self._ask_for_end(signal.SIGINT, "interrupted")
        self._until_over()

    def _ask_for_end(self, number: int, reason: str) -> None:
        self._course.abandon()
        self._course.loop.post(partial(self._end, number, reason))

    def _until_over(self) -> None:
        """Wait for the end of what was asked to end; not to be interrupted twice."""
        try:
            self._over.wait()
        except BaseException:
            self.kill()
            self._over.wait()
            raise

    # ------------------------------------------------------------------------------ the head's thread

    def _run(self) -> None:
        try:
            self._outcome = self._course.run(self._started)
        except BaseException as error:
            self._error = error
        finally:
            self._printer.close()
            _live.discard(self)
            self._over.set()

    def _started(self) -> None:
        self._watcher.feed = self._course.feed
        self._watcher.input_taken()
        if self._timeout is not None:
            self._course.loop.call_later(self._timeout, self._time_is_up)

    def _time_is_up(self) -> None:
        self._out_of_time = True
        self._course.end(TIME_IS_UP, "time is up")
        self._course.ask(signal.SIGINT)
        self._course.loop.call_later(STACKS, self._course.terminate)

    def _end(self, number: int, reason: str) -> None:
        if not self._course.running:  # and it never will: it is abandoned
            return
        self._course.end(128 + number, reason)
        if number == signal.SIGINT:
            self._course.ask(number)
        elif number == signal.SIGTERM:
            self._course.terminate()
        else:
            self._course.kill()

    # ------------------------------------------------------------------------------------- the end

    def _settle(self) -> None:
        """Open what came back: results, or the error that says why there are none."""
        size, told = self._plan.placement.size, self._watcher.told
        if self._printer.error is not None:
            self._error = self._printer.error
        elif self._out_of_time:
            self._error = out_of_time(self._outcome, told, self._timeout)
        elif self._outcome.failures or self._outcome.reason:
            self._error = group(self._outcome, told, size)
        else:
            self._results = results(told, size)


# ------------------------------------------------------------------------------------ what was asked for


def _placement(hosts: Sequence[str | HostSpec] | str | os.PathLike[str] | None, ranks: int | None) -> Placement:
    cores = len(os.sched_getaffinity(0))
    if hosts is None:
        return place([HostSpec("localhost")], cores if ranks is None else ranks, cores=cores)
    return place(list(_specs(hosts)), ranks, cores=cores)


def _specs(hosts: Sequence[str | HostSpec] | str | os.PathLike[str]) -> Iterator[HostSpec]:
    if isinstance(hosts, (str, os.PathLike)):
        name = os.fspath(hosts)
        if not Path(name).exists() and isinstance(hosts, str):
            raise UsageError(f"hosts={name!r}: there is no such hostfile; a list of hosts is written hosts=[{name!r}]")
        yield from read_hostfile(name)
        return
    given = list(hosts)
    if not given:
        raise UsageError("hosts=[] names no host; None is this machine")
    words = [host for host in given if isinstance(host, str)]
    yield from (host for host in given if isinstance(host, HostSpec))
    if words:
        yield from parse_host_list(",".join(words))


def _own(overrides: Mapping[str, Mapping[str, Any]], placement: Placement) -> dict[str, Surroundings]:
    """What single hosts have for themselves; a host that got no rank may be named, one that there is not may not."""
    names = [host.name for host in placement.hosts]
    own = {host.name: Surroundings(python=host.python) for host in placement.hosts if _needs_telling(host)}
    for name, given in overrides.items():
        if name not in names:
            raise UsageError(f"overrides name {name!r}, but no rank runs there{_nearest(name, names)}")
        known = ("python", "environment", "directory")
        for key in given:
            if key not in known:
                raise UsageError(f"overrides[{name!r}] has {key!r}{_nearest(key, known)}")
        own[name] = Surroundings(
            python=str(given["python"]) if given.get("python") else own.get(name, Surroundings()).python,
            environment=dict(given.get("environment") or {}),
            directory=str(given["directory"]) if given.get("directory") else None,
        )
    return own


def _route(route: str) -> str:
    if route not in ROUTES:
        raise UsageError(f"route={route!r}{_nearest(route, ROUTES)}")
    return route


def _needs_telling(host: HostSpec) -> bool:
    """A hostfile's interpreter for this machine: other hosts are told by whoever boots them."""
    return host.python is not None and is_local(host, own_names())


def _nearest(word: str, words: Sequence[str]) -> str:
    near = get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(words)}"


# ---------------------------------------------------------------------------------------- watching


class _Watcher:
    """What the head's thread tells."""

    def __init__(self, printer: Printer, call: bytes) -> None:
        self.feed: Callable[[bytes], None] = lambda _data: None
        self._printer = printer
        view = memoryview(call)
        self._input = iter([*(bytes(view[start : start + FEED]) for start in range(0, len(call), FEED)), b""])
        self.told = Told()

    def output(self, rank: int, host: str, stream: int, data: bytes, shown: Callable[[], None]) -> None:
        self._printer.write(rank, stream, data, shown)

    def input_taken(self) -> None:
        piece = next(self._input, None)
        if piece is not None:
            self.feed(piece)

    def warn(self, text: str) -> None:
        self._printer.say(f"rmpi: {text}")

    def note(self, text: str) -> None:
        """Nobody asked."""

    def progress(self, text: str) -> None:
        """Nobody looks."""

    def overdue(self, ranks: Collection[int]) -> None:
        """Their failures will tell."""


# ------------------------------------------------------------------------------- the caller's process

_live: WeakSet[Job[Any]] = WeakSet()


@atexit.register
def _end_all() -> None:
    """Nothing outlives the process that launched it; and what has time, ends in order."""
    for job in tuple(_live):
        job.kill()
        job._over.wait(LAST)


def _disown() -> None:
    """In a fork of the caller: the jobs are not its own, nor may it keep their life lines open."""
    for job in tuple(_live):
        job._course.disown()
    _live.clear()


os.register_at_fork(after_in_child=_disown)
