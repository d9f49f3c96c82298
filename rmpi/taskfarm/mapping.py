"""Mapping a function over many arguments, in pieces whose size follows what one of them takes.

A piece costs a message and a future, some twenty microseconds altogether; one more call in it costs next to nothing. A
piece that takes long, however, keeps its worker from what others wait for, most of all at the end. So a piece is cut
when there is a worker for it, and only as large as is worth a fiftieth of a second (`Scheduler`); the first ones,
before anything is known, are of one call each. Compare guided self-scheduling (Polychronopoulos and Kuck, 1987), which
halves what is left instead, and measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from threading import Condition
from typing import TYPE_CHECKING, Any, Literal

from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded
from rmpi.taskfarm.packing import Buffers, Packed, PackedFunction, pack, unpack
from rmpi.taskfarm.tasks import Assignment, Options, Task, opened_failure
from rmpi.taskfarm.working import PIECE

if TYPE_CHECKING:
    from rmpi.taskfarm.workers import Worker

Arguments = tuple[Any, ...]


class Piece(Assignment):
    """Some calls of a mapping, one after the other in one worker."""

    way = PIECE

    __slots__ = ("_arguments", "_index", "_mapping")

    def __init__(self, mapping: Mapping, index: int, arguments: list[Arguments]) -> None:
        """For `Mapping.cut`."""
        super().__init__(mapping.next_number(), mapping.function, NOT_PACKED, Task(), mapping.options)
        self.kind = mapping.kind
        self.size = len(arguments)
        self._mapping = mapping
        self._index = index
        self._arguments = arguments

    def begin(self, worker: Worker) -> bool:
        self.attempts += 1
        return not self._mapping.over

    def pack(self) -> Packed:
        return pack(self._arguments, "the arguments of the mapped function")

    def succeed(self, data: bytes, buffers: Buffers | None) -> None:
        try:
            values, failure = unpack(data, buffers)
        except BaseException as error:  # it is what the user's own classes raise, and this thread is ours
            error.add_note("this happened while results of a mapped function were unpickled")
            self.fail(error)
        else:
            self._mapping.done(self._index, values, None if failure is None else opened_failure(failure))

    def fail(self, error: BaseException) -> None:
        self._mapping.done(self._index, [], error)

    def cancel(self) -> None:
        self.fail(CancelledError())

    def wait_again(self, *, begun: bool) -> None:
        self.attempts -= not begun


NOT_PACKED = Packed(b"", None)


class Mapping:
    """A function, its arguments, and what has come of them so far (`scheduler.Supply`).

    Attributes:
        function: What is called.
        options: How it is to be done.
        next_number: Makes numbers for pieces.
        withdraw: Has what no worker has of this not done.
        over: Nobody wants the rest.
    """

    divisible: Literal[True] = True

    def __init__(
        self,
        function: PackedFunction,
        arguments: list[Arguments],
        options: Options,
        grain: int,
        next_number: Callable[[], int],
        withdraw: Callable[[Mapping], object],
    ) -> None:
        self.function = function
        self.options = options
        self.next_number = next_number
        self.withdraw = withdraw
        self.kind: object = function.key
        self.alone = options.timeout is not None
        self.grain = 1 if self.alone else grain
        self.size = len(arguments)
        self.over = False
        self._arguments = arguments
        self._cut = 0
        self._pieces = 0
        self._results: dict[int, tuple[list[Any], BaseException | None]] = {}
        self._changed = Condition()

    def cut(self, size: int) -> Piece:
        """The next piece. The lock of the farm is held."""
        arguments = self._arguments[self._cut : self._cut + size]
        self._cut += size
        self.size -= size
        self._pieces += 1
        return Piece(self, self._pieces - 1, arguments)

    def done(self, index: int, values: list[Any], error: BaseException | None) -> None:
        """A piece has come to an end. If that is an error, what was not cut yet comes after it, and is not wanted."""
        with self._changed:
            self._results[index] = values, error
            self._changed.notify_all()
        if error is not None and self.size:
            self.withdraw(self)

    def fail(self, error: BaseException) -> None:
        """What was not cut yet will not be done."""
        self._pieces += 1
        self.size = 0
        self.done(self._pieces - 1, [], error)

    def cancel(self) -> None:
        """As `fail`."""
        self.fail(CancelledError())

    def results(self, deadline: Deadline, ordered: bool) -> Iterator[Any]:
        """The results, in the order of the arguments or as they come.

        Raises:
            Exception: What the function raised; instead of its result.
            DeadlineExceeded: There was no further result in time.
        """
        left = len(self._arguments)
        index = 0 if ordered else None
        while left:
            values, error = self._take(index, deadline)
            left -= len(values)
            values.reverse()
            while values:
                yield values.pop()
            if error is not None:
                raise error
            index = None if index is None else index + 1

    def _take(self, index: int | None, deadline: Deadline) -> tuple[list[Any], BaseException | None]:
        """What has come of that piece, or of any."""

        def has_come() -> bool:
            return bool(self._results) if index is None else index in self._results

        with self._changed:
            if not self._changed.wait_for(has_come, deadline.left_or_none()):
                raise DeadlineExceeded("the results of map() did not come in time")
            return self._results.pop(next(iter(self._results)) if index is None else index)
