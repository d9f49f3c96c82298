"""The user ends a job before it runs: by a signal, which must leave nothing of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a job."""


class EndedByUser(BaseException):
    """A signal while the job was starting."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def handled(number: int) -> bool:
    """Whether a signal is not ignored, as under nohup."""
    return signal.getsignal(number) is not signal.SIG_IGN


@contextmanager
def raising() -> Iterator[None]:
    """Have those signals raise `EndedByUser`, from when something has been started that must be ended."""
    before = {number: signal.signal(number, _raise) for number in ENDING if handled(number)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise EndedByUser(number)
