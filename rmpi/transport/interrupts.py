"""Signal handlers that raise must not raise inside the progress engine.

Python runs signal handlers in the main thread, between any two bytecodes. Ctrl-C or a test's time limit
may therefore raise after a system call has moved bytes and before their number is stored: the stream
would be torn. Masking signals costs two system calls per operation, and committing every step by a single
store would shape the whole engine.

So the handlers are *deferred* instead. While the main thread is inside the engine (`Shield.depth` > 0), the
handlers it may be interrupted by are wrapped: a wrapped handler that is called inside notes the signal and
returns; the engine runs it at its next safe point, where nothing is half done. While the engine sleeps,
depth is 0 and handlers run at once, as they would anywhere.

The last safe point of a call is its return, when all is done: what a handler raises there would lose a message
that was received and not yet handed over. So `Shield.leave` is told how to undo the call. `Shield.depth` is
changed by plain stores where that matters: Python looks for signals when a function is entered, so a handler
could raise between the decision to call a function and its first line.

Handlers are looked up again whenever the engine is entered (10 ns each), because a test framework may
install one for each test. ``signal.getsignal`` then shows the wrapper; a handler saved and put back by its
owner simply is the wrapper, which still calls the original.
"""

from __future__ import annotations

import signal
import threading
from _signal import getsignal  # type: ignore[import-not-found]  # signal.getsignal adds 0.5 µs of enums
from collections.abc import Callable
from types import FrameType
from typing import Any

_WATCHED = tuple(
    int(number)
    for number in (
        signal.SIGINT,
        signal.SIGALRM,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGHUP,
        signal.SIGVTALRM,
        signal.SIGPROF,
    )
)
_MAIN = threading.main_thread().ident


class _Deferred:
    """A signal handler that waits for the engine's safe point."""

    __slots__ = ("handler",)

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> Any:
        if SHIELD.depth:
            SHIELD.pending.append((self.handler, number, frame))
            return None
        return self.handler(number, frame)


class Shield:
    """The one shield of this process; only the main thread touches `depth`."""

    def __init__(self) -> None:
        self.depth = 0
        self.pending: list[tuple[Callable[[int, FrameType | None], Any], int, FrameType | None]] = []
        self._seen: tuple[Any, ...] = ()

    def enter(self) -> bool:
        """Begin a section that handlers may not tear; False in threads that no handler runs in."""
        if threading.get_ident() != _MAIN:
            return False
        if not self.depth and tuple(map(getsignal, _WATCHED)) != self._seen:
            self._wrap()
        self.depth += 1
        return True

    def leave(self, undo: Callable[..., Any] | None = None, *args: Any) -> None:
        """End the section, and run what came meanwhile. If a handler raises, ``undo(*args)`` comes first."""
        self.depth -= 1
        if self.depth or not self.pending:
            return
        try:
            self._deliver()
        except BaseException:
            self.depth += 1
            try:
                if undo is not None:
                    undo(*args)
            finally:
                self.leave()
            raise

    def sleep(self, function: Callable[..., Any], *args: Any) -> Any:
        """A safe point: call what sleeps, while handlers run at once; first, those that were deferred."""
        if threading.get_ident() != _MAIN:
            return function(*args)
        depth = self.depth
        try:
            self.depth = 0
            self._deliver()
            return function(*args)
        finally:
            self.depth = depth

    def _deliver(self) -> None:
        """Run the handlers that were deferred; the first that raises is the last that runs."""
        while self.pending:
            handler, number, frame = self.pending.pop(0)
            handler(number, frame)

    def _wrap(self) -> None:
        for number in _WATCHED:
            handler = getsignal(number)
            if callable(handler) and not isinstance(handler, _Deferred):
                signal.signal(number, _Deferred(handler))
        self._seen = tuple(map(getsignal, _WATCHED))


SHIELD = Shield()
