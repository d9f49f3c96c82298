"""How many threads this process has besides its first.

Python counts those it has started, and goes on with that number in a fork, where none of them is. So what was counted
at the fork is taken off.
"""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable

_lost = 0


def _lose_threads() -> None:
    global _lost
    _lost = _thread._count()


os.register_at_fork(after_in_child=_lose_threads)


def started() -> int:
    """Threads that were started and have not ended, also if they have not begun to run."""
    return _thread._count() - _lost


def counter() -> Callable[[], int]:
    """`started`, in this process and not in its forks: as quick as it can be."""
    return started if _lost else _thread._count
