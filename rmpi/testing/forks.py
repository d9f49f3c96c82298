"""Ranks as forks of this very process: what tests run on, for a fork costs milliseconds.

    rmpi.testing.fork_ranks(4, main)      # main(comm) in four forks; what they return

A fork has everything that this process has: modules, fixtures, open files, asserts that were rewritten; nothing is
pickled on the way there. So nothing stands between the two but `os.fork`: the job is an ordinary one, with a node and
its router, that runs in the calling thread, and `_Parent` does for the node what a spawner does elsewhere. Each fork
becomes a rank where it was forked, deep inside that, and never returns from there: it leaves by `os._exit`, without
the caller's exit functions, ``finally`` clauses and buffers.

Life lines are those of any job. A rank is killed with the thread that forked it, and with the job, with all that it
started in its process group. A process with threads may be forked too, but locks that other threads hold at that moment
stay locked for ever in the forks; libraries that hold such (or a GPU) need ``start="exec"`` of `rmpi.testing.plugin`.

**Time limit.** When it passes, every rank writes its Python stack into a file of its own, even while it is stuck in C
(`faulthandler`, by a real-time signal), and then is killed.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from rmpi.comm.bootstrap import begin_anew, init
from rmpi.comm.communicator import Comm
from rmpi.comm.launch import Job, Outcome, Plan
from rmpi.comm.outcomes import Told, group, results
from rmpi.comm.placement import place
from rmpi.deadline import now
from rmpi.errors import DeadlineExceeded, UsageError
from rmpi.places.birth import place_streams
from rmpi.places.boot import Booter
from rmpi.places.hosts import HostSpec
from rmpi.places.ignition import make_room
from rmpi.places.loop import Loop
from rmpi.places.messages import Begin, Fork, Forked, Message, Reaped, Signal, Up
from rmpi.places.parcels import failure, frames_below, pack_outcome, pack_value
from rmpi.places.place import FD_VARIABLE, reporter_at
from rmpi.places.printing import Lines, write_line
from rmpi.places.processes import die_with_parent, kill_groups, name_process, reset_signals
from rmpi.places.spawnerprocess import MakeParent
from rmpi.places.zygote import import_media, renew_secrets

T = TypeVar("T")

Body = Callable[[Comm], tuple[bytes, BaseException | None]]
"""What a fork does as a rank: returns what the owner of the job is told, and what it failed with."""

STACK_SIGNAL = signal.SIGRTMAX - 3
"""Asks a rank to write its stack."""

STACKS_VARIABLE = "RMPI_TEST_STACKS"
"""Names the files for these stacks to ranks that are not forks."""

SETTLE = 1.0
"""Seconds for ranks to report what the first failure did to them. Tests run on busy machines."""

INTERRUPTING = (signal.SIGINT, signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals whose handlers may raise: Ctrl-C, and the time limits of test runners."""

QUIET = 0.1
"""Seconds without another line after which stacks are taken for complete."""

INNER = ("/rmpi/transport/", "/_pytest/")
"""Parts of the paths of files whose frames say nothing about a test."""

STACKS_LIMIT = 2.0
"""Seconds for ranks to write their stacks."""

NOT_OVER = 70
"""Exit status of a fork whose body could not be run to its end."""


def fork_ranks(size: int, function: Callable[..., T], *args: Any, timeout: float | None = 30.0) -> list[T]:
    """Run ``function(comm, *args)`` in ``size`` forks of this process; what they return, in rank order.

    What ranks write goes to ``sys.stdout`` and ``sys.stderr``, in whole lines. Results and exceptions are pickled, and
    nothing else is: the function may be any, and refer to anything.

    Args:
        timeout: Seconds for all of them together; None for no limit.

    Raises:
        ExceptionGroup: Every failure, as from `rmpi.launch`.
        DeadlineExceeded: Not all had ended in time. Its notes have each rank's stack.
        UsageError: ``size`` is not positive.

    Nothing of the ranks is left when this returns or raises.
    """

    def body(comm: Comm) -> tuple[bytes, BaseException | None]:
        try:
            return pack_outcome(pack_value(function(comm, *args), f"what rank {comm.rank} returned")), None
        except Exception as error:
            return pack_outcome(failure(error, frames_below(error, __file__))), error

    run = run_forks(size, body, timeout)
    if run.stacks is not None:
        error = DeadlineExceeded(f"{size} ranks had not all ended after {timeout:g} s")
        for rank, stack in run.stacks.items():
            error.add_note(f"where rank {rank} was:\n{stack}")
        raise error
    if run.outcome.failures or run.outcome.reason:
        raise group(run.outcome, run.told, size)
    return results(run.told, size)


@dataclass(frozen=True, slots=True)
class Run:
    """How ranks ended.

    Attributes:
        told: What each had to tell.
        stacks: If time ran out, where each rank was that still ran.
    """

    outcome: Outcome
    told: Told
    stacks: dict[int, str] | None


def run_forks(
    size: int, body: Body, timeout: float | None, show: Callable[[int, int, str], object] = write_line
) -> Run:
    """Run ``body`` in forks. ``show`` is called with rank, stream and line of what they write."""
    plan = Plan(_here(size), "code", "", ("fork",), str(Path.cwd()), stdin_rank=-1, settle=SETTLE, kill_grace=1.0)
    with Stacks(plan.placement.size) as stacks:
        return Course(plan, stacks, timeout, show, partial(_Parent, partial(_be_rank, body, stacks.names))).run()


def _here(size: int) -> Any:
    if not isinstance(size, int) or size < 1:
        raise UsageError(f"a number of ranks is at least 1, not {size!r}")
    return place([HostSpec("localhost")], size, cores=size)


class Course:
    """A job that runs in the calling thread, and its time limit."""

    def __init__(
        self,
        plan: Plan,
        stacks: Stacks,
        timeout: float | None,
        show: Callable[[int, int, str], object],
        parent: MakeParent | None = None,
    ) -> None:
        self._stacks = stacks
        self._timeout = timeout
        self._show = show
        self._lines = Lines()
        self._told = Told()
        self._size = plan.placement.size
        self._job = Job(plan, self, _no_booter, returned=self._told.add, parent=parent, guest=True)
        self._late: list[int] | None = None
        self._asked = 0.0

    def run(self) -> Run:
        with _Handlers(self._job.loop):
            outcome = self._job.run(self._started)
        stacks = None if self._late is None else {rank: self._stacks.read(rank) for rank in self._late}
        return Run(outcome, self._told, stacks)

    # ------------------------------------------------------------------------------------ time limit

    def _started(self) -> None:
        if self._timeout is not None:
            self._job.loop.call_later(self._timeout, self._time_is_up)

    def _time_is_up(self) -> None:
        self._late = sorted(self._job.alive)
        self._job.end(124, "time is up")
        self._job.signal(STACK_SIGNAL)
        self._asked = now()
        self._job.loop.call_later(QUIET, partial(self._stacks_are_written, None))

    def _stacks_are_written(self, before: list[int] | None) -> None:
        """Kill them once all have said something, and nothing more for a moment."""
        sizes = [self._stacks.size_of(rank) for rank in self._late or ()]
        if (sizes == before and all(sizes)) or now() - self._asked > STACKS_LIMIT:
            self._job.kill()
        else:
            self._job.loop.call_later(QUIET, partial(self._stacks_are_written, sizes))

    # -------------------------------------------------------------------------------------- watching

    def output(self, rank: int, host: str, stream: int, data: bytes, shown: Callable[[], None]) -> None:
        for line in self._lines.feed(rank, stream, data):
            self._show(rank, stream, line)
        shown()

    def input_taken(self) -> None:
        """There is none."""

    def warn(self, text: str) -> None:
        write_line(-1, 2, f"rmpi: {text}")

    def note(self, text: str) -> None:
        """Nobody asked."""

    def progress(self, text: str) -> None:
        """There is no other host."""

    def overdue(self, ranks: Collection[int]) -> None:
        """Their failures will tell."""


class _Handlers:
    """While ranks run: signal handlers of this process run between two steps of the loop, and the second that raises
    only after all has been closed. A handler that raised in the middle of a step would leave open what that had opened.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._later: list[tuple[int, FrameType | None]] = []
        self._raised = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():  # no handler runs here
            return
        for number in INTERRUPTING:
            handler = signal.getsignal(number)
            if callable(handler):
                self._before[number] = handler
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._loop.post(partial(self._handle, number, frame))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._raised:
            self._later.append((number, frame))
            return
        try:
            self._before[number](number, frame)
        except BaseException:
            self._raised = True
            raise

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for number, frame in self._later:
            self._before[number](number, frame)


def _no_booter() -> Booter:
    raise AssertionError("ranks of a test run on this machine")


# ----------------------------------------------------------------------------------------- stacks


class Stacks:
    """A file for the stack of each rank, in memory: nothing of it is left, however this process ends.

    Attributes:
        names: By which ranks open them, as one text.
    """

    def __init__(self, size: int) -> None:
        self._fds = [os.memfd_create(f"stack of rank {rank}") for rank in range(size)]
        self.names = ",".join(f"/proc/{os.getpid()}/fd/{fd}" for fd in self._fds)

    def size_of(self, rank: int) -> int:
        """Bytes that a rank has written so far."""
        return os.fstat(self._fds[rank]).st_size

    def read(self, rank: int) -> str:
        """What a rank wrote, without the frames that have brought it to its function."""
        text = os.pread(self._fds[rank], self.size_of(rank), 0).decode(errors="replace")
        return _own_frames(text) or "it does not say"

    def __enter__(self) -> Stacks:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)


def write_stack_when_asked(names: str, rank: int) -> None:
    """In a rank: from now on `STACK_SIGNAL` writes the stacks of all threads. The file stays open."""
    fd = os.open(names.split(",")[rank], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    faulthandler.register(STACK_SIGNAL, file=fd, all_threads=True)


def _own_frames(text: str) -> str:
    lines: list[str] = []
    skipping = False
    for line in text.splitlines():
        if not line.startswith("  "):  # another thread, or the blank line before it
            skipping = False
        skipping = skipping or any(f'File "{path}' in line for path in _ours())
        if not skipping and not any(part in line for part in INNER):
            lines.append(line)
    return "\n".join(lines).strip()


def _ours() -> Iterator[str]:
    """Below frames of these nothing is the program's; the most recent call stands first."""
    yield __file__
    yield str(Path(__file__).with_name("plugin.py"))
    for name in ("pluggy", "_pytest.python"):
        if name in sys.modules:
            yield str(Path(sys.modules[name].__file__ or name).with_suffix("")).removesuffix("__init__")


# ------------------------------------------------------------------------------- in place of a spawner


class _Parent:
    """Forks and reaps for a node, in the node's own process and thread.

    Args:
        become: What a fork becomes, with the descriptors of its streams and control socket; it does not return.
    """

    ended_well = True

    def __init__(
        self,
        become: Callable[[Fork, list[int]], NoReturn],
        loop: Loop,
        begin: Begin,
        said: Callable[[Message], None],
        ended: Callable[[bool], None],
    ) -> None:
        make_room(len(begin.places))
        import_media()
        self._become = become
        self._loop = loop
        self._said = said
        self._ended = ended
        self._pids: dict[int, int] = {}  # by pidfd
        self._ending = self._over = False
        loop.post(partial(said, Up()))

    def send(self, message: Message, fds: Iterable[int] = ()) -> None:
        match message:
            case Fork():
                self._fork(message, list(fds))
            case Signal(number):
                for pid in self._pids.values():
                    _signal(pid, number)

    def _fork(self, message: Fork, fds: list[int]) -> None:
        """No handler may raise here, or a fork would run that nobody knows."""
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        parent = os.getpid()
        with _undisturbed():
            pid = _forked()
            if pid:
                pidfd = os.pidfd_open(pid)
                self._pids[pidfd] = pid
                self._loop.register(pidfd, lambda _mask: self._reap(pidfd, message.endpoint))
                self._said(Forked(message.endpoint, pid))
                return
            try:
                die_with_parent(parent)
                self._become(message, fds)
            finally:
                os._exit(NOT_OVER)

    def _reap(self, pidfd: int, endpoint: int) -> None:
        """First what is left of its process group: only until it is reaped is that number its own."""
        pid = self._pids.pop(pidfd)
        kill_groups([pid])
        _, status = os.waitpid(pid, 0)
        self._loop.unregister(pidfd)
        os.close(pidfd)
        self._said(Reaped(endpoint, os.waitstatus_to_exitcode(status)))
        self._end_if_empty()

    def end(self) -> None:
        self._ending = True
        for pid in self._pids.values():
            _signal(pid, signal.SIGKILL)
        self._end_if_empty()

    def _end_if_empty(self) -> None:
        if self._ending and not self._pids and not self._over:
            self._over = True
            self._loop.post(partial(self._ended, True))

    def last_words(self) -> str:
        return "it has ended"

    def disown(self) -> None:
        """There is no life line but being the parent."""


@contextmanager
def _undisturbed() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forked() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads: see above
        return os.fork()


def _signal(pid: int, number: int) -> None:
    """To a rank and what it started. It is not reaped, so the number is its own."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:  # it has not got as far as its own group
        os.kill(pid, number)


# ---------------------------------------------------------------------------------------- in a fork


def _be_rank(body: Body, stacks: str, fork: Fork, fds: Sequence[int]) -> NoReturn:
    """Become the rank, do what is to be done, and leave."""
    gc.freeze()  # or the collector's first pass would write to, and so copy, every page
    os.setsid()
    reset_signals()
    place_streams(list(fds))
    _open_streams()
    control = fds[3]
    os.set_inheritable(control, False)
    os.environ.update(fork.environment)
    os.environ[FD_VARIABLE] = f"{control}:{os.fstat(control).st_ino}"
    name_process(f"{fork.rank} fork", f"rmpi rank {fork.rank}: a fork of {os.getppid()}")
    faulthandler.enable(file=2)
    write_stack_when_asked(stacks, fork.rank)
    renew_secrets()
    begin_anew()
    sys.excepthook = sys.__excepthook__
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    status = be_rank(body, control)
    _save_coverage()
    for stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}:
        if stream is not None:
            stream.flush()
    os._exit(status)


def be_rank(body: Body, control: int) -> int:
    """Join the job, run ``body``, tell its owner what came of it, and leave; the exit status."""
    reporter = reporter_at(control)
    try:
        with reporter.running(), init() as comm:
            told, error = body(comm)
            reporter.returned(told)
            if error is not None:
                raise error  # noqa: TRY301
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        return 1
    return 0


def _open_streams() -> None:
    """Python's standard streams over the descriptors, whatever stood there: a capture's file, or memory."""
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = _writer(1), _writer(2)
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))


def _writer(fd: int) -> Any:
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _save_coverage() -> None:
    """What coverage.py has seen here. It makes a file for each process, if it was told that there are several."""
    coverage = sys.modules.get("coverage")
    current = coverage.Coverage.current() if coverage is not None else None
    if current is not None and current.get_option("run:parallel"):
        current.stop()
        current.save()
