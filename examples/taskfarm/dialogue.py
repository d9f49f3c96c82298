"""A dialogue during a task: the worker asks, while it works, for what only the master has.

    python examples/taskfarm/dialogue.py

The worker looks for a root by bisection, and does not know of what function: it asks for each value.
"""

from __future__ import annotations

import math

from rmpi import taskfarm
from rmpi.taskfarm import Dialogue


def bisect(i: Dialogue, o: Dialogue) -> float:
    """In the worker."""
    low: float
    high: float
    low, high = i.get()
    for _ in range(40):
        middle = (low + high) / 2
        o.put(middle)
        low, high = (low, middle) if i.get() > 0 else (middle, high)
    return (low + high) / 2


def answer(i: Dialogue, o: Dialogue) -> float:
    """Here: 40 questions, and what the worker has returned."""
    o.put((0.0, 2.0))
    for _ in range(40):
        x = i.get()
        o.put(x - math.cos(x))
    root: float = i.get()
    return root


if __name__ == "__main__":
    with taskfarm.Master(1) as master:
        print(f"cos(x) = x at {master.make_task(bisect, answer).result():.9f}")
