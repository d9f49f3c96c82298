"""How a message router works: the desks of its sources, and the loop that minds timers and the end.

What users see of it is `messagerouter`; whoever writes a source sees `EventSource` and `Desk`. A source registers at a
desk of its own whenever the router runs. There it either hands in functions (`Desk.submit`), or has the thread of the
desk wait for things (`Desk.attend`) and do them (`Desk.do`). The loop calls what sources want called at a time
(`Desk.at`), which must not block, and finds out when it is over. It never calls a function of the user.

A signal handler may interrupt the loop anywhere, and stop the router or cancel a timer. So the lock is re-entrant, and
what wakes the loop is a `Bell`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, runtime_checkable

from rmpi.deadline import Deadline, now

GLANCE = 0.1
"""Seconds between two looks at a condition (``until=function``) while nothing happens that could have changed it."""

LONGEST_NAP = 86400.0
"""Seconds the router sleeps at a time; a lock cannot be waited for much longer than a century."""

GRACE = 1.0
"""Seconds that functions under way have to end after an error or Ctrl-C, before they are left behind."""

Until = float | Callable[[], bool] | None

OnError = Callable[[Any, Exception], object]

log = logging.getLogger(__name__)


@runtime_checkable
class EventSource(Protocol):
    """Something that a router serves."""

    def register(self, desk: Desk) -> None:
        """The router runs: hand in at ``desk`` what happens from now on, until it ends (`Desk.when_ending`).

        Called whenever the router begins to run, or by `MessageRouter.add`. Must not block.
        """


class Given(NamedTuple):
    """What a router was given, and what serves that: often itself."""

    thing: Any
    source: EventSource


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


class Clock:
    """The time by which a router goes. Tests have one of their own."""

    def now(self) -> float:
        """Seconds; only differences mean anything."""
        return now()

    def wait(self, bell: Bell, until: float) -> None:
        """Sleep until the bell rings, or that time has come."""
        bell.wait(until - self.now())


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
    """Where a source hands in what is to be done, and the thread that does it. Any thread may call its methods."""

    def __init__(self, run: Run, source: object) -> None:
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
        if self._run.has_condition:  # else the router need not wake up for each message
            self._run.bell.ring()

    @property
    def ending(self) -> bool:
        """Nothing more is to be begun: the router ends, or is about to."""
        return self._run.ending

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
            self._run.bell.ring()

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


def serving_run() -> Run | None:
    """The run of a router in which this thread serves a source; None: it does no such thing."""
    return getattr(_serving, "run", None)


class Run:
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

    @property
    def ending(self) -> bool:
        """It has closed, or will at once."""
        return self.closing or self._stopped or bool(self._errors)

    @property
    def has_condition(self) -> bool:
        """Whatever was done, it may be the last thing."""
        return self._condition is not None

    def statistics(self) -> list[SourceStatistics]:
        return [desk.statistics() for desk in self._desks]

    # ---------------------------------------------------------------------------- the router's own

    def add(self, given: Given) -> None:
        desk = Desk(self, given.thing)
        with self.lock:
            self._desks = [*self._desks, desk]
        try:
            given.source.register(desk)
        except BaseException:
            desk.finish()
            raise

    def open(self, sources: list[Given]) -> None:
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
            if self.ending or all(desk.over for desk in self._desks):
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
