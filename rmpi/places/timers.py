"""Timers: functions that are called at a time, or at times. [pure]

    router = MessageRouter(after(2, greet), every(1, look))
    router.run(until=10)

A timer is a source of a `messagerouter.MessageRouter`, and its clock starts when that runs, not when the timer is made.

**No drift.** The n-th tick of ``every(s, f)`` is due at start + n·s, whenever the ones before were served.

**No piling up.** A tick that comes while ``f`` still works on an earlier one is skipped, and so are those that passed
while this process was stopped: however many there were, one is served, late, and the next is due on the beat.
`Every.skipped` counts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rmpi.errors import UsageError
from rmpi.places.supervisor import Thunk, check_number, check_thunk

if TYPE_CHECKING:
    from rmpi.places.dispatching import Desk

BRISKEST = 0.001
"""Seconds of the shortest period of `every`. Handing one tick to a thread takes a twentieth of that."""


class Ticks:
    """The moments start, start + period, start + 2·period, …

    Attributes:
        due: The next of them.
    """

    def __init__(self, start: float, period: float, *, immediate: bool) -> None:
        self._start = start
        self._period = period
        self._number = 0 if immediate else 1
        self.due = self._at(self._number)

    def go_on(self, now: float) -> int:
        """Make the first that is later than ``now`` the next one; how many were passed."""
        number = math.floor((now - self._start) / self._period)
        while self._at(number) <= now:
            number += 1
        passed, self._number = number - self._number, number
        self.due = self._at(number)
        return passed

    def _at(self, number: int) -> float:
        return self._start + number * self._period


class Timer:
    """What `after` and `every` have in common."""

    def __init__(self, seconds: float, function: Thunk) -> None:
        self.seconds = seconds
        self.function = function
        self._desk: Desk | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Do not call the function any more; a call under way goes on. From any thread, and from the function."""
        self._cancelled, desk = True, self._desk
        if desk is not None:
            desk.finish()

    def register(self, desk: Desk) -> None:
        """`dispatching.EventSource`: the clock starts.

        Raises:
            UsageError: It runs in another router.
        """
        if self._desk is not None:
            raise UsageError(f"{self!r} is in a router that runs; make one for each router")
        self._desk = desk
        desk.when_ending(self._leave)
        if self._cancelled:
            desk.finish()
        else:
            self._begin(desk)

    def _begin(self, desk: Desk) -> None:
        raise NotImplementedError

    def _leave(self) -> None:
        self._desk = None

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", None) or repr(self.function)
        return f"{type(self).__name__.lower()}({self.seconds:g}, {name})"


class After(Timer):
    """See `after`."""

    def _begin(self, desk: Desk) -> None:
        desk.at(desk.now() + self.seconds, lambda: self._fire(desk))

    def _fire(self, desk: Desk) -> None:
        if not self._cancelled:
            desk.submit(self.function)
            desk.finish()


class Every(Timer):
    """See `every`.

    Attributes:
        skipped: Ticks that were not served since the router runs.
    """

    def __init__(self, seconds: float, function: Thunk, *, immediate: bool) -> None:
        super().__init__(seconds, function)
        self.immediate = immediate
        self.skipped = 0

    def _begin(self, desk: Desk) -> None:
        self.skipped = 0
        ticks = Ticks(desk.now(), self.seconds, immediate=self.immediate)
        desk.at(ticks.due, lambda: self._tick(desk, ticks))

    def _tick(self, desk: Desk, ticks: Ticks) -> None:
        if self._cancelled:
            return
        served = desk.idle
        if served:
            desk.submit(self.function)
        self.skipped += ticks.go_on(desk.now()) - served
        desk.at(ticks.due, lambda: self._tick(desk, ticks))


def after(seconds: float, function: Thunk) -> After:
    """Call ``function`` once, so many seconds after the router began to run.

    Args:
        seconds: 0 or more.
        function: Called without arguments, in a thread of the router.

    Raises:
        UsageError: One of them is not that.
    """
    check_number("the seconds of after(seconds, function)", seconds, "0 or more", lambda n: 0 <= n < math.inf)
    check_thunk("the function of after(seconds, function)", function)
    return After(seconds, function)


def every(seconds: float, function: Thunk, *, immediate: bool = True) -> Every:
    """Call ``function`` again and again, every so many seconds from when the router began to run.

    Args:
        seconds: The period; 0.001 or more. A call that takes longer has ticks skipped.
        function: Called without arguments, in a thread of the router; never twice at the same time.
        immediate: The first call is when the router begins to run; else one period later.

    Raises:
        UsageError: One of them is not that.
    """
    wanted = f"{BRISKEST} or more"
    check_number("the seconds of every(seconds, function)", seconds, wanted, lambda n: BRISKEST <= n < math.inf)
    check_thunk("the function of every(seconds, function)", function)
    return Every(seconds, function, immediate=immediate)
