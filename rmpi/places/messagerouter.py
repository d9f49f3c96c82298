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

import logging
import threading
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded, UsageError
from rmpi.places.dispatching import Clock, EventSource, Given, OnError, Run, SourceStatistics, Until, serving_run
from rmpi.places.supervisor import check_number

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

log = logging.getLogger(__name__)


def log_error(source: object, error: Exception) -> None:
    """``MessageRouter(…, on_error=log_error)``: log what functions raise, with its traceback, and go on."""
    log.error("a function of %r failed: %s", source, error, exc_info=error)


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
        self._run: Run | None = None  # the last one

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

    def _start(self, until: Until, *, logged: bool) -> Run:
        run = self._begin(until)
        if run.failed:
            self._go(run)  # which raises
        args = run, logged
        threading.Thread(target=_go_in_thread, args=args, name="rmpi-router", daemon=True).start()
        return run

    def _go(self, run: Run) -> None:
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
        if run is serving_run():
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

    def _begin(self, until: Until) -> Run:
        limit = self._until if until is None else _checked(until)
        with self._lock:
            if self.running:
                raise UsageError("this router runs already")
            run = self._run = Run(self._clock, limit, self._on_error)
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


def _go_in_thread(run: Run, logged: bool) -> None:
    """What the run raises is for `MessageRouter.join`."""
    try:
        run.go()
    except BaseException as error:
        if logged and isinstance(error, Exception):
            log.error("the message router has ended", exc_info=error)  # noqa: TRY400 (the traceback is there)
        run.ended.set_exception(error)
    else:
        run.ended.set_result(None)


def _source(source: Any) -> Given:
    if isinstance(source, EventSource):
        return Given(source, source)
    from rmpi.places.listening import source_of  # late: a router of timers and programs needs no transport

    found = source_of(source)
    if found is not None:
        return Given(source, found)
    hint = "; for a function, write after(seconds, function) or every(seconds, function)" if callable(source) else ""
    raise UsageError(f"a MessageRouter serves timers, channels, places, processes and nodes, not {source!r}{hint}")


def _checked(until: Until) -> Until:
    if until is None or callable(until):
        return until
    check_number("until, unless a function or None,", until, "0 or more", lambda n: n >= 0)
    return until
