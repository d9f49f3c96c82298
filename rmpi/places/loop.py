"""The event loop of a node: descriptors, timers, and work posted by other threads.

Nothing in a callback may block. A signal handler of the program that runs the loop may `post`; it wakes the
loop like any other thread.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
from collections import deque
from collections.abc import Callable

from rmpi.deadline import now

LONGEST_SLEEP = 86400.0
"""Seconds. epoll takes some weeks at most; whoever wants to be woken later or never is asked again."""

Callback = Callable[[int], None]
"""Called with the epoll mask."""


class Timer:
    """Something to be done later, unless cancelled."""

    __slots__ = ("work",)

    def __init__(self, work: Callable[[], None]) -> None:
        self.work: Callable[[], None] | None = work

    def cancel(self) -> None:
        self.work = None


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._posted: deque[Callable[[], None]] = deque()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ringing = threading.RLock()  # re-entered by a signal handler that posts while its thread does
        self._closed = False
        self.register(self._bell, lambda _mask: self._hush())

    def register(self, fd: int, callback: Callback, events: int = select.EPOLLIN) -> None:
        self._callbacks[fd] = callback
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        if fd in self._callbacks:
            self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, seconds: float, work: Callable[[], None]) -> Timer:
        timer = Timer(work)
        heapq.heappush(self._timers, (now() + seconds, next(self._order), timer))
        return timer

    def post(self, work: Callable[[], None]) -> None:
        """Have ``work`` done by the loop, unless that is closed. From any thread, and from signal handlers."""
        self._posted.append(work)
        with self._ringing:
            if not self._closed:
                os.eventfd_write(self._bell, 1)

    def run_once(self) -> None:
        """Wait for something to happen, and do what follows from it."""
        for fd, mask in self._epoll.poll(self._patience()):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback(mask)
        while self._posted:
            self._posted.popleft()()
        self._fire()

    def _patience(self) -> float:
        """Seconds until the next timer; -1 waits for ever."""
        if self._posted:  # left over from a turn that an exception ended
            return 0.0
        while self._timers and self._timers[0][2].work is None:
            heapq.heappop(self._timers)
        return min(max(0.0, self._timers[0][0] - now()), LONGEST_SLEEP) if self._timers else -1.0

    def _fire(self) -> None:
        moment = now()
        while self._timers and self._timers[0][0] <= moment:
            timer = heapq.heappop(self._timers)[2]
            if timer.work is not None:
                timer.work()

    def _hush(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Free the descriptors; what is posted from now on is never done."""
        self._callbacks.clear()
        with self._ringing:
            self._closed = True
            self._epoll.close()
            os.close(self._bell)
