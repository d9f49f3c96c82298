"""Values that are sent to each worker once, and not with every task.

    table = master.scatter(np.load("table.npy"))
    answers = master.map(lookup, [table] * len(questions), questions)

A `Handle` is given as an argument; the task gets the value. The master sends the value to a worker before the first
task that needs it, and tells workers to forget it when nobody holds the handle any more.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import numpy as np

from rmpi.taskfarm.packing import note_handle

T = TypeVar("T")

_numbers = itertools.count(1)
_first = int.from_bytes(os.urandom(6), "little") << 20
"""Handles of several masters meet in one worker."""


class Handle(Generic[T]):
    """Stands for a value that `Master.scatter` was given; as an argument of a task, also inside lists and the like.

    Attributes:
        number: Of the handle; no other has it.
        value: What it stands for; it must not be changed.
    """

    def __init__(self, value: T, forgotten: deque[int]) -> None:
        """For `Master.scatter`.

        Args:
            forgotten: Where to note the number when nobody holds the handle any more.
        """
        self.number = _first + next(_numbers)
        self.value = value
        self._forgotten = forgotten

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        note_handle(self)
        return value_of, (self.number,)

    def __del__(self) -> None:
        self._forgotten.append(self.number)

    def __repr__(self) -> str:
        return f"<Handle {self.number - _first}>"


# -------------------------------------------------------------------------------------- at the worker

_values: dict[int, Any] = {}


def keep_value(number: int, value: Any) -> None:
    """A value has come. Tasks share it, so an array is made read-only."""
    if isinstance(value, np.ndarray):
        value.flags.writeable = False
    _values[number] = value


def forget_values(numbers: Iterable[int]) -> None:
    """Nobody will ask for these."""
    for number in numbers:
        _values.pop(number, None)


def value_of(number: int) -> Any:
    """What a handle becomes where a task runs."""
    return _values[number]
