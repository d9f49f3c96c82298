"""Output that is there at once."""

from __future__ import annotations

from typing import TextIO


def write_flush(value: object, file: TextIO | None = None) -> None:
    """Write ``repr(value)``, without a newline, and flush: a string has its quotes.

    Args:
        file: A text file; None: what ``sys.stdout`` is at that moment.
    """
    print(repr(value), end="", file=file, flush=True)
