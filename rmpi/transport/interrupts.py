"""Signal handlers that raise must not raise inside the progress engine.

Python runs signal handlers in the main thread, between any two bytecodes. Ctrl-C or a test's time limit
may therefore raise after a system call has moved bytes and before their number is stored: the stream
would be torn. Masking signals costs two system calls per operation, and committing every step by a single
store would shape the whole engine.

So the handlers are *deferred* instead. While the main thread is inside the engine (`Shield.depth` > 0), the
handlers it may be interrupted by are wrapped: a wrapped handler that is called inside notes the signal and
returns; the engine runs it at its next safe point, where nothing is half done. While the engine sleeps,
depth is 0 and handlers run at once, as they would anywhere.

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

    def enter(self) -> bool:
        """Begin a section that handlers may not tear; False in threads that no handler runs in."""
        if threading.get_ident() != _MAIN:
            return False
        for number in _WATCHED:
            handler = getsignal(number)
            if handler.__class__ is not _Deferred and callable(handler):
                signal.signal(number, _Deferred(handler))
        self.depth += 1
        return True

    def leave(self) -> None:
        """End the section, and run what came meanwhile. May raise whatever the handlers raise."""
        self.depth -= 1
        if self.pending and not self.depth:
            self.deliver()

    def deliver(self) -> None:
        """A safe point: run the handlers that were deferred. The first that raises is the last that runs."""
        depth, self.depth = self.depth, 0
        try:
            while self.pending:
                handler, number, frame = self.pending.pop(0)
                handler(number, frame)
        finally:
            self.depth = depth

    def sleep(self) -> int:
        """From here to `wake` handlers run at once. Returns what `wake` wants."""
        depth, self.depth = self.depth, 0
        return depth

    def wake(self, depth: int) -> None:
        self.depth = depth


SHIELD = Shield()
