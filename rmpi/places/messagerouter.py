"""The message router: calls functions when something happens, until it is told to stop.

    place.on_message(lambda channel, message: print(message))
    MessageRouter(place, every(1, look), after(10, sys.exit)).run()

What can happen is described by *sources* (`EventSource`): timers, channels and places with a function for their
messages, processes, nodes. `MessageRouter.run` opens them, and then sleeps until something is due or comes in. It never
calls a function of the user itself: each source has a *desk*, where it hands in what is to be done, and a thread that
does it.

**One at a time per source, in order; sources beside each other.** So a function may wait for as long as it likes, in an
RPC for example: meanwhile the timers go on and other sources are served. It needs no lock against itself, only
for what it shares with functions of other sources. While its function is busy, a source leaves things where they are:
messages stay in their channel, whose sender is slowed down, and ticks are skipped.

**An error ends the router.** If a function raises, the router stops, and `run` raises that exception. Why not log it
and go on? The reply which that function did not send, or the count it did not raise, is what another part of the
program waits for: it would look alive and hang. A program for which one bad message is no reason to end says so,
``on_error=log_error``, or decides by a function of its own. ``sys.exit()`` in a function is no error: it has `run`
raise SystemExit, and so ends the program.

**The end.** `run` returns when its time is up, `stop` was called, or nothing can come any more because all sources have
finished. Then nothing more is handed in; what was handed in is still done; sources are closed, processes ended, threads
joined. After an error, and after Ctrl-C, what has not begun is dropped, and what has begun is waited for a second at
most (`GRACE`), because it may wait for what will never come; then it is left behind, in a daemon thread, with a warning
in the log.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from rmpi.deadline import Deadline, now
from rmpi.errors import DeadlineExceeded, UsageError
from rmpi.places.supervisor import check_number

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

GLANCE = 0.1
"""Seconds between two looks at a condition (``until=function``) while nothing happens that could have changed it."""

LONGEST_NAP = 86400.0
"""Seconds the router sleeps at a time; a lock cannot be waited for much longer than a century."""

GRACE = 1.0
"""Seconds that functions under way have to end after Ctrl-C, before `MessageRouter.run` leaves them behind."""

Until = float | Callable[[], bool] | None

log = logging.getLogger(__name__)


@runtime_checkable
class EventSource(Protocol):
    """Something that a router serves."""

    def register(self, desk: Desk) -> None:
        """The router runs: hand in at ``desk`` what happens from now on, until it ends (`Desk.when_ending`).

        Called whenever the router begins to run, or by `MessageRouter.add`. Must not block.
        """


class Bell:
    """Wakes one thread. Once rung it stays rung until that thread has heard it.

    Why not a condition or an event? A signal handler may ring while its own thread is about to sleep: a condition
    forgets that, and an event's lock may be held.
    """

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        """Wake the thread, or keep it from sleeping. From any thread and any signal handler."""
        try:
            self._silence.release()
        except RuntimeError:  # it rings already
            pass

    def wait(self, seconds: float) -> None:
        """Sleep so long at most, or until it rings."""
        self._silence.acquire(timeout=max(0.0, min(seconds, LONGEST_NAP)))

    @property
    def rings(self) -> bool:
        """It was rung, and not heard yet."""
        return not self._silence.locked()


class _Given(NamedTuple):
    """What a router was given, and what serves that: often itself."""

    thing: Any
    source: EventSource


class Clock:
    """The time by which a router goes. Tests have one of their own."""

    def now(self) -> float:
        """Seconds; only differences mean anything."""
        return now()

    def wait(self, bell: Bell, until: float) -> None:
        """Sleep until the bell rings, or that time has come."""
        bell.wait(until - self.now())


def log_error(source: object, error: Exception) -> None:
    """``MessageRouter(…, on_error=log_error)``: log what functions raise, with its traceback, and go on."""
    log.error("a function of %r failed: %s", source, error, exc_info=error)


OnError = Callable[[Any, Exception], object]


class SourceStatistics(NamedTuple):
    """What became of what a source has handed in.

    Attributes:
        source: Which, as it was given to the router.
        done: How many functions were called and have ended.
        waiting: How many are still to be called.
        busy: Whether one is being called now.
        finished: The source will hand in no more.
    """

    source: Any
    done: int
    waiting: int
    busy: bool
    finished: bool


class Desk:
    """Where a source hands in what is to be done. All methods may be called by any thread, and return at once."""

    def __init__(self, run: _Run, source: object) -> None:
        self._run = run
        self.source = source  # as it was given to the router
        self._jobs: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._more = threading.Condition(run.lock)
        self._thread: threading.Thread | None = None
        self._busy = False
        self._finished = False
        self._gone = True  # there is no thread
        self._done = 0

    @property
    def idle(self) -> bool:
        """Nothing is being done for this source, or waits to be."""
        return not self._busy and not self._jobs

    def now(self) -> float:
        """The time, for `at`."""
        return self._run.clock.now()

    def submit(self, function: Callable[..., object], *args: Any) -> bool:
        """Have the thread of this source call a function, after those it was given before.

        What it raises ends the router, or goes to ``on_error``.

        Returns:
            False: the router is ending, and it will not be called.
        """
        with self._run.lock:
            if self._run.closing:
                return False
            self._jobs.append((function, args))
            self._more.notify()
            if self._thread is None:
                self._hire(self._serve)
        return True

    def at(self, moment: float, function: Callable[[], object]) -> None:
        """Have the router call a function at that time, in its own thread; so that must not block or fail."""
        self._run.at(moment, function)

    def attend(self, function: Callable[[], object]) -> None:
        """Have the thread of this source call ``function``, which waits for things itself, and says so: `do`.

        It returns when the source has finished, or soon after `ending`, when what was given to `when_ending` has been
        called. A source that does this has no use for `submit`.
        """
        self._hire(function)

    def do(self, function: Callable[[], object]) -> None:
        """In what was given to `attend`: call a function. What it raises ends the router, or goes to ``on_error``."""
        with self._run.lock:
            self._busy = True
        self._call(function)

    @property
    def ending(self) -> bool:
        """Nothing more is to be done: the router ends."""
        return self._run.closing

    def when_ending(self, function: Callable[[], object]) -> None:
        """Have it called when the router ends, and nothing can be handed in any more; at once if it has ended."""
        self._run.when_ending(function)

    def finish(self) -> None:
        """This source will hand in no more. A router without any that will ends."""
        with self._run.lock:
            self._finished = True
        self._run.bell.ring()

    def fail(self, error: Exception) -> None:
        """As if a function had raised ``error``, which ends the router, or goes to ``on_error``."""
        self._run.judge(self.source, error)

    def statistics(self) -> SourceStatistics:
        with self._run.lock:
            return SourceStatistics(self.source, self._done, len(self._jobs), self._busy, self._finished)

    # ------------------------------------------------------------------- for the router, its lock held

    @property
    def over(self) -> bool:
        """Nothing will come of this source any more."""
        return self._finished and self.idle

    @property
    def gone(self) -> bool:
        """Its thread has nothing more to do."""
        return self._gone

    def dismiss(self, *, drop: bool) -> None:
        """Have the thread end: when all is done, or ``drop`` what has not begun."""
        if drop:
            self._jobs.clear()
        self._more.notify()

    # ----------------------------------------------------------------------------------- its thread

    def _hire(self, work: Callable[[], object]) -> None:
        self._gone = False
        name = f"rmpi-router {self.source!r}"[:60]
        self._thread = threading.Thread(target=self._work, args=(work,), name=name, daemon=True)
        self._thread.start()

    def _work(self, work: Callable[[], object]) -> None:
        _serving.run = self._run
        try:
            work()
        except BaseException as error:
            self._run.fail(error)
        finally:
            self._gone = True
            self._run.bell.ring()

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            self._call(*job)

    def _call(self, function: Callable[..., object], args: tuple[Any, ...] = ()) -> None:
        try:
            function(*args)
        except Exception as error:
            self._run.judge(self.source, error)
        except BaseException as error:  # sys.exit() in a function
            self._run.fail(error)
        with self._run.lock:
            self._busy = False
            self._done += 1
        self._run.bell.ring()

    def _next(self) -> tuple[Callable[..., object], tuple[Any, ...]] | None:
        """The next function to call; None when the router ends and there is none."""
        with self._run.lock:
            while not self._jobs and not self._run.closing:
                self._more.wait()
            if not self._jobs:
                return None
            self._busy = True
            return self._jobs.popleft()

    def join(self) -> None:
        if self._thread is not None and self._gone:
            self._thread.join()

    def __repr__(self) -> str:
        return f"<desk of {self.source!r}>"


_serving = threading.local()
"""``run``: the router whose function this thread calls."""


class _Run:
    """A router while it runs.

    Attributes:
        lock: Guards what is below. Re-entrant, because a signal handler may cancel a timer.
        bell: Rings when there is something that the router must look at.
        ended: Done when the run is over, with what it raises.
    """

    def __init__(self, clock: Clock, until: Until, on_error: OnError | None) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.bell = Bell()
        self.closing = False
        self.ended: Future[None] = Future()
        self._condition = until if callable(until) else None
        self._limit = math.inf if until is None or callable(until) else clock.now() + until
        self._on_error = on_error
        self._desks: list[Desk] = []
        self._moments: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._undo: list[Callable[[], object]] = []
        self._errors: list[BaseException] = []
        self._stopped = False
        self.ended.set_running_or_notify_cancel()

    # ----------------------------------------------------------------------------- from any thread

    def stop(self) -> None:
        self._stopped = True
        self.bell.ring()

    def at(self, moment: float, function: Callable[[], object]) -> None:
        with self.lock:
            heapq.heappush(self._moments, (moment, next(self._order), function))
        self.bell.ring()

    def when_ending(self, function: Callable[[], object]) -> None:
        with self.lock:
            if not self.closing:
                self._undo.append(function)
                return
        function()

    def judge(self, source: object, error: Exception) -> None:
        """A function of a source has raised."""
        error.add_note(f"This was raised in a MessageRouter that served {source!r}.")
        if self._on_error is None:
            self.fail(error)
            return
        try:
            self._on_error(source, error)
        except BaseException as worse:
            self.fail(worse)

    def fail(self, error: BaseException) -> None:
        with self.lock:
            self._errors.append(error)
        self.bell.ring()

    def statistics(self) -> list[SourceStatistics]:
        return [desk.statistics() for desk in self._desks]

    # ---------------------------------------------------------------------------- the router's own

    def add(self, given: _Given) -> None:
        desk = Desk(self, given.thing)
        with self.lock:
            self._desks = [*self._desks, desk]
        try:
            given.source.register(desk)
        except BaseException:
            desk.finish()
            raise

    def open(self, sources: list[_Given]) -> None:
        """Clocks start. What goes wrong is raised by `go`."""
        try:
            for given in sources:
                self.add(given)
        except BaseException as error:
            self.fail(error)

    @property
    def failed(self) -> bool:
        """`go` would only close what was opened, and raise."""
        return bool(self._errors)

    def go(self) -> None:
        """Serve until the end, and raise what there is to raise."""
        interrupt: KeyboardInterrupt | None = None
        try:
            while not self._is_over():
                self._turn()
        except KeyboardInterrupt as caught:
            interrupt = caught
        except BaseException as error:  # a condition that raises
            self.fail(error)
        self._close(hurry=interrupt is not None or self.failed)
        self._raise(interrupt)

    def _is_over(self) -> bool:
        with self.lock:
            if self._errors or self._stopped or all(desk.over for desk in self._desks):
                return True
            if self.clock.now() >= self._limit and not self._due_before_the_limit():
                return True
        return self._condition is not None and bool(self._condition())

    def _due_before_the_limit(self) -> bool:
        return bool(self._moments) and self._moments[0][0] < self._limit

    def _turn(self) -> None:
        """Wait until there is something to do, and do it."""
        self.clock.wait(self.bell, self._next_moment())
        for function in self._take_due():
            function()

    def _next_moment(self) -> float:
        with self.lock:
            first = self._moments[0][0] if self._moments else math.inf
        glance = self.clock.now() + GLANCE if self._condition is not None else math.inf
        return min(first, glance, self._limit)

    def _take_due(self) -> list[Callable[[], object]]:
        """What is due, but for what is due only at the end of a limited time."""
        due, moment = [], self.clock.now()
        with self.lock:
            while self._moments and self._moments[0][0] <= moment and self._due_before_the_limit():
                due.append(heapq.heappop(self._moments)[2])
        return due

    # --------------------------------------------------------------------------------------- the end

    def _close(self, *, hurry: bool) -> None:
        """Nothing more is handed in; all that is under way ends. ``hurry``: what has not begun is not done."""
        with self.lock:
            self.closing = True
            for desk in self._desks:
                desk.dismiss(drop=hurry)
        for undo in reversed(self._undo):
            try:
                undo()
            except Exception as error:
                self.fail(error)
        self._wait(Deadline.after(GRACE if hurry else None))
        for desk in self._desks:
            desk.join()

    def _wait(self, deadline: Deadline) -> None:
        """Until all functions have ended."""
        while late := [desk for desk in self._desks if not desk.gone]:
            if deadline.passed():
                names = ", ".join(f"a function of {desk.source!r}" for desk in late)
                log.warning("left behind, still at work: %s", names)
                return
            self.bell.wait(deadline.left())

    def _raise(self, interrupt: KeyboardInterrupt | None) -> None:
        """All that went wrong: one by itself, several as a group. What is to end the program comes before errors."""
        errors = [error for error in self._errors if isinstance(error, Exception)]
        exits = [error for error in self._errors if not isinstance(error, Exception)]
        failure = (
            ExceptionGroup("functions of a MessageRouter", errors) if len(errors) > 1 else next(iter(errors), None)
        )
        leave = interrupt or next(iter(exits), None)
        if leave is not None:
            raise leave from failure
        if failure is not None:
            raise failure


class MessageRouter:
    """Calls functions when something happens; see the text of this module.

    Args:
        sources: What to serve: `timers.after`, `timers.every`, `managedprocess.process`, channels and places, or
            anything else with a method ``register`` (`EventSource`). More can be added while it runs (`add`).
        until: When to return, unless `run` says otherwise: after so many seconds; or when a function returns true,
            which is called, in the router's thread, whenever something was done, and ten times a second; or, None, when
            `stop` is called.
        on_error: Called with the source and the exception when a function has raised, in the thread of that source; the
            router then goes on, unless this raises as well. `log_error` is one. None: an error ends the router.
        clock: The time it goes by.

    Raises:
        UsageError: Something is not a source, or ``until`` is none of the above.
    """

    def __init__(
        self, *sources: Any, until: Until = None, on_error: OnError | None = None, clock: Clock | None = None
    ) -> None:
        self._sources = [_source(source) for source in sources]
        self._until = _checked(until)
        self._on_error = on_error
        self._clock = clock if clock is not None else Clock()
        self._lock = threading.RLock()
        self._run: _Run | None = None  # the last one

    # ----------------------------------------------------------------------------------- running

    def run(self, until: Until = None) -> None:
        """Serve the sources, in this thread and some of its own, until the end; see the text of this module.

        What is due at the very end of a limited time is not served: ``every(1, f)`` is, in ``run(5)``, five times. A
        router may run again; then clocks start anew.

        Args:
            until: As for the constructor. None: as given there.

        Raises:
            Exception: What a function raised; an ExceptionGroup if several did.
            SystemExit: A function called ``sys.exit()``.
            KeyboardInterrupt: Ctrl-C, after everything was closed.
            UsageError: It runs already.
        """
        run = self._begin(until)
        self._go(run)

    def start(self, until: Until = None) -> Self:
        """`run` in a thread of its own. What it raises is logged at once, and raised by `join`.

        When this returns, all sources are open.

        Raises:
            UsageError: It runs already.
            Exception: A source cannot be opened.
        """
        self._start(until, logged=True)
        return self

    def _start(self, until: Until, *, logged: bool) -> _Run:
        run = self._begin(until)
        if run.failed:
            self._go(run)  # which raises
        args = run, logged
        threading.Thread(target=_go_in_thread, args=args, name="rmpi-router", daemon=True).start()
        return run

    def _go(self, run: _Run) -> None:
        try:
            run.go()
        finally:
            run.ended.set_result(None)

    async def run_async(self, until: Until = None) -> None:
        """`run`, for a task of asyncio: the loop goes on meanwhile. Functions are called in threads, as always.

        When the task is cancelled, the router stops, and functions under way are waited for.
        """
        import asyncio  # late: a program without it need not load it

        ended = asyncio.wrap_future(self._start(until, logged=False).ended)
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            self.stop()
            await ended
            raise

    def stop(self) -> None:
        """End the run there is, and return at once. From any thread, any function and any signal handler."""
        if self._run is not None:
            self._run.stop()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, and raise what it has raised since `start`.

        Raises:
            DeadlineExceeded: It has not ended within ``timeout`` seconds; it goes on.
            UsageError: It was never started; or this is a function of the router itself, which would wait for itself.
        """
        run = self._run
        if run is None:
            raise UsageError("this router was not started: call start() before join()")
        if run is getattr(_serving, "run", None):
            raise UsageError("a function of a router cannot wait for its end: call stop() and return")
        deadline = Deadline.after(timeout)
        if not wait([run.ended], deadline.left_or_none()).done:
            raise DeadlineExceeded(f"the router has not ended within {timeout} s; stop() would have it end")
        run.ended.result()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop and join. If the body has raised, that is raised; what the router has raised was logged."""
        self.stop()
        try:
            self.join()
        except Exception:
            if error is None:
                raise

    # ----------------------------------------------------------------------------------- sources

    def add(self, source: Any) -> None:
        """Serve one more source; at once, if the router runs.

        Raises:
            UsageError: It is none.
            Exception: It cannot be opened, as `EventSource.register` says. The router goes on without it.
        """
        new = _source(source)
        with self._lock:
            self._sources.append(new)
            run = self._run
        if run is None or run.closing:
            return
        try:
            run.add(new)
        except BaseException:
            self._sources.remove(new)
            raise

    def statistics(self) -> list[SourceStatistics]:
        """For each source what became of what it has handed in, in this run or the last."""
        return self._run.statistics() if self._run is not None else []

    def _begin(self, until: Until) -> _Run:
        limit = self._until if until is None else _checked(until)
        with self._lock:
            if self.running:
                raise UsageError("this router runs already")
            run = self._run = _Run(self._clock, limit, self._on_error)
            sources = [*self._sources]
        run.open(sources)
        return run

    @property
    def running(self) -> bool:
        """It was run or started, and has not ended."""
        return self._run is not None and not self._run.ended.done()

    def __repr__(self) -> str:
        state = "running" if self.running else "at rest"
        return f"<MessageRouter, {state}, sources: {[given.thing for given in self._sources]}>"


def _go_in_thread(run: _Run, logged: bool) -> None:
    """What the run raises is for `MessageRouter.join`."""
    try:
        run.go()
    except BaseException as error:
        if logged and isinstance(error, Exception):
            log.error("the message router has ended", exc_info=error)  # noqa: TRY400 (the traceback is there)
        run.ended.set_exception(error)
    else:
        run.ended.set_result(None)


def _source(source: Any) -> _Given:
    if isinstance(source, EventSource):
        return _Given(source, source)
    from rmpi.places.listening import source_of  # late: a router of timers and programs needs no transport

    found = source_of(source)
    if found is not None:
        return _Given(source, found)
    hint = "; for a function, write after(seconds, function) or every(seconds, function)" if callable(source) else ""
    raise UsageError(f"a MessageRouter serves timers, channels, places, processes and nodes, not {source!r}{hint}")


def _checked(until: Until) -> Until:
    if until is None or callable(until):
        return until
    check_number("until, unless a function or None,", until, "0 or more", lambda n: n >= 0)
    return until
