"""Values that are sent to each worker once, and not with every task.

    table = master.scatter(np.load("table.npy"))
    answers = master.map(lookup, [table] * len(questions), questions)

A `Handle` is given as an argument; the task gets the value. The master sends the value to a worker before the first
task that needs it, and tells workers to forget it when nobody holds the handle any more. It is pickled when the handle
is made, and unpickled by the first task that needs it, which so gets what that raises.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import numpy as np

from rmpi.errors import UsageError
from rmpi.taskfarm.packing import Packed, note_handle, pack, unpack

T = TypeVar("T")

_numbers = itertools.count(1)
_first = int.from_bytes(os.urandom(6), "little") << 20
"""Handles of several masters meet in one worker."""


class Handle(Generic[T]):
    """Stands for a value that `Master.scatter` was given; as an argument of a task, also inside lists and the like.

    Attributes:
        number: Of the handle; no other has it.
        value: What it stands for; it must not be changed.
        packed: That, as it is sent.
    """

    def __init__(self, value: T, forgotten: deque[int]) -> None:
        """For `Master.scatter`.

        Args:
            forgotten: Where to note the number when nobody holds the handle any more.

        Raises:
            UsageError: The value cannot be pickled.
        """
        self.packed = pack(value, "the value for scatter()")
        if self.packed.handles:
            raise UsageError("a value for scatter() cannot have handles of others in it")
        self.value = value
        self.number = _first + next(_numbers)
        self._forgotten = forgotten

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        note_handle(self)
        return value_of, (self.number,)

    def __del__(self) -> None:
        if hasattr(self, "_forgotten"):  # else it was never made
            self._forgotten.append(self.number)

    def __repr__(self) -> str:
        return f"<Handle {self.number - _first}>"


# -------------------------------------------------------------------------------------- at the worker

_packed: dict[int, Packed] = {}  # what has come and was not needed yet
_values: dict[int, Any] = {}


def keep_value(number: int, packed: Packed) -> None:
    """A value has come."""
    _packed[number] = packed


def forget_values(numbers: Iterable[int]) -> None:
    """Nobody will ask for these."""
    for number in numbers:
        _packed.pop(number, None)
        _values.pop(number, None)


def value_of(number: int) -> Any:
    """What a handle becomes where a task runs. Tasks share it, so arrays are read-only."""
    packed = _packed.get(number)
    if packed is not None:
        buffers = packed.buffers and [memoryview(buffer).toreadonly() for buffer in packed.buffers]
        value = unpack(packed.data, buffers)
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
        _values[number] = value
        _packed.pop(number, None)
    return _values[number]
