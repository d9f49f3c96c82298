"""How far a job is, on stderr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TextIO

EVERY = 0.1
"""Seconds between two looks of the line on a terminal."""

EVERY_PLAIN = 2.0
"""Seconds between two lines where there is none."""

_CLEAR = "\r\x1b[K"


@dataclass(frozen=True, slots=True)
class State:
    """Tasks that are done, of how many; and the bytes that map tasks have written."""

    maps: int
    all_maps: int
    nbytes: int
    reduces: int
    all_reduces: int

    @property
    def is_done(self) -> bool:
        return (self.maps, self.reduces) == (self.all_maps, self.all_reduces)


class Progress:
    """Shows it.

    Args:
        stream: Where.
        wanted: True: also if that is no terminal, as lines below each other. None: only if it is, as one line that is
            written again and again and goes away in the end. False: not at all.
        now: Seconds, when the job began.
    """

    def __init__(self, stream: TextIO, wanted: bool | None, now: float) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self.shown = self._is_terminal if wanted is None else wanted
        self._every = EVERY if self._is_terminal else EVERY_PLAIN
        self._began = self._reducing_since = now
        self._next = now + self._every
        self._last = ""

    def show(self, state: State, now: float) -> None:
        """That is how far it is."""
        if state.maps < state.all_maps:
            self._reducing_since = now
        if self.shown and (now >= self._next or state.is_done):
            self._next = now + self._every
            self._write(line(state, self._left(state, now)))

    def _left(self, state: State, now: float) -> float | None:
        """Seconds until all tasks of this stage are done, as fast as it went up to now."""
        if state.maps < state.all_maps:
            return _rest(now - self._began, state.maps, state.all_maps)
        return _rest(now - self._reducing_since, state.reduces, state.all_reduces)

    def _write(self, text: str) -> None:
        if text != self._last:
            self._last = text
            self._stream.write(f"{_CLEAR}{text}" if self._is_terminal else f"{text}\n")
            self._stream.flush()

    def end(self) -> None:
        """There is nothing more to be shown; a line on a terminal goes away."""
        if self._last and self._is_terminal:
            self._stream.write(_CLEAR)
            self._stream.flush()


def _rest(passed: float, done: int, of: int) -> float | None:
    return passed / done * (of - done) if done else None


def line(state: State, left: float | None) -> str:
    """``maps 12/64, shuffle 35 MB, reduces 0/2, about 14 s left``"""
    maps, reduces = f"{state.maps}/{state.all_maps}", f"{state.reduces}/{state.all_reduces}"
    text = f"maps {maps}, shuffle {_size(state.nbytes)}, reduces {reduces}"
    return text if left is None or state.is_done else f"{text}, about {_duration(left)} left"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"


def _size(nbytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes / 1000:.0f} KB"
