"""Python's search for cycles, less often.

It begins after each 700 new containers, and pairs are containers: while a million of them are collected it looks at
all of them, and finds nothing. That doubles what it costs to bring together the values of keys.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

RARELY = 200_000
"""New containers between two searches: some 20 MB, if all were garbage."""


@contextmanager
def rare_sweeps() -> Iterator[None]:
    """Meanwhile it begins after each `RARELY` new containers, unless it is switched off, or rarer anyway."""
    first, *others = gc.get_threshold()
    if not 0 < first < RARELY:
        yield
        return
    gc.set_threshold(RARELY, *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)
