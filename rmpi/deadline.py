"""Deadlines: made once where a time-out enters, passed down, never restarted by a layer below.

This module is the one reader of the clock. It reads `time.monotonic`, which no administrator sets back,
so nothing here is comparable between machines.
"""

from __future__ import annotations

import math
import time

from rmpi.errors import UsageError


def now() -> float:
    """Seconds of this machine's monotonic clock; only differences mean anything."""
    return time.monotonic()


class Deadline:
    """A moment after which a call gives up. ``Deadline.NEVER`` is the one that never comes."""

    __slots__ = ("at",)

    NEVER: Deadline

    def __init__(self, at: float) -> None:
        self.at = at

    @classmethod
    def after(cls, timeout: float | None) -> Deadline:
        """The moment ``timeout`` seconds from now; None never comes, 0 or less has passed.

        Raises:
            UsageError: ``timeout`` is not a number.
        """
        if timeout is None:
            return cls.NEVER
        try:
            seconds = float(timeout)
        except (TypeError, ValueError):
            raise UsageError(f"timeout must be seconds or None, not {timeout!r}") from None
        if math.isnan(seconds):
            raise UsageError("timeout must be seconds or None, not NaN")
        return cls(now() + seconds)

    def left(self) -> float:
        """Seconds left; 0.0 when passed, infinity for `NEVER`."""
        return max(0.0, self.at - now()) if self.at != math.inf else math.inf

    def left_or_none(self) -> float | None:
        """Seconds left in the spelling of the standard library: None for `NEVER`."""
        return None if self.at == math.inf else self.left()

    def passed(self) -> bool:
        return self.at != math.inf and now() >= self.at

    def __repr__(self) -> str:
        return "Deadline.NEVER" if self.at == math.inf else f"<Deadline in {self.left():.3f} s>"


Deadline.NEVER = Deadline(math.inf)
