"""What the workers of `taskfarm.py` do: in a module, so that every library can import it there."""

from __future__ import annotations

import time


def tiny(x: int) -> int:
    """Next to nothing."""
    return x + 1


def work(seconds: float) -> float:
    """Keep a core busy for so long, by this process' own clock: it takes longer where cores are shared."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return seconds


def total(array: object) -> float:
    """Of an array that every task needs."""
    return float(array.sum())  # type: ignore[attr-defined]
