"""Tasks: what is to be done, and the future of its result."""

from __future__ import annotations

import logging
import math
import pickle
from concurrent.futures import Future
from concurrent.futures._base import PENDING, RUNNING
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rmpi.errors import RemoteError
from rmpi.places.parcels import open_value
from rmpi.taskfarm.packing import Buffers, Packed, PackedFunction, unpack
from rmpi.taskfarm.working import CALL

if TYPE_CHECKING:
    from rmpi.taskfarm.workers import Worker

T = TypeVar("T")

_LOG = logging.getLogger("rmpi.taskfarm")


class Task(Future[T]):
    """The result of a task, or what became of it: a `concurrent.futures.Future`.

    `cancel` succeeds until a worker was given the task. ``await asyncio.wrap_future(task)`` waits for it in asyncio.

    Attributes:
        worker: The worker that has or had it; None before.
    """

    worker: Worker | None = None

    def set_result(self, result: T) -> None:
        """For the library."""
        try:
            super().set_result(result)
        except SystemExit:  # of a callback: here it would end the thread that hears answers, and all wait for theirs
            _LOG.exception("a callback of a task called sys.exit()")

    def set_exception(self, exception: BaseException | None) -> None:
        """For the library."""
        try:
            super().set_exception(exception)
        except SystemExit:
            _LOG.exception("a callback of a task called sys.exit()")

    def wait_again(self) -> None:
        """For the library: no worker has it any more, and one will; so it can be cancelled."""
        with self._condition:
            if self._state == RUNNING:
                self._state = PENDING


@dataclass(slots=True, frozen=True)
class Options:
    """How tasks are to be done.

    Attributes:
        retries: How often a task may be tried again whose worker was lost.
        timeout: Seconds that a worker may take for it; None: as long as it takes.
        worker: Who does it; None: anybody.
    """

    retries: int = 0
    timeout: float | None = None
    worker: Worker | None = None


class Assignment:
    """One task as it is scheduled (`scheduler.Job`) and sent.

    Attributes:
        number: Of the task, in messages.
        function: What is called.
        packed: Its arguments.
        task: Whose result it is.
        options: How it is to be done.
        attempts: How many workers it was given to.
        due: When it will have taken too long; infinity if there is no limit.
        way: How it is called (`working.CALL`, …).
    """

    way = CALL
    divisible: Literal[False] = False

    __slots__ = (
        "alone",
        "attempts",
        "bound",
        "due",
        "expected",
        "function",
        "kind",
        "number",
        "options",
        "packed",
        "size",
        "task",
    )

    def __init__(
        self, number: int, function: PackedFunction, packed: Packed, task: Task[Any], options: Options
    ) -> None:
        self.number = number
        self.function = function
        self.packed = packed
        self.task = task
        self.options = options
        self.size = 1
        self.kind: object = function.key
        self.alone = options.timeout is not None  # the clock runs from when it is sent
        self.bound = False
        self.expected = 0.0
        self.attempts = 0
        self.due = math.inf

    def begin(self, worker: Worker) -> bool:
        """That worker is to have it. False: it was cancelled. The lock of the farm is held."""
        if not self.task.set_running_or_notify_cancel():
            return False
        self.attempts += 1
        self.task.worker = worker
        return True

    def pack(self) -> Packed:
        """Its arguments as they are sent.

        Raises:
            UsageError: They cannot be pickled.
        """
        return self.packed

    def succeed(self, data: bytes, buffers: Buffers | None) -> None:
        """A worker has done it."""
        try:
            result = unpack(data, buffers)
        except BaseException as error:  # it is what the user's own classes raise, and this thread is ours
            error.add_note("this happened while the result of a task was unpickled")
            self.fail(error)
        else:
            self.task.set_result(result)

    def fail(self, error: BaseException) -> None:
        """It cannot be done, or raised that."""
        if self.task.running() or self.task.set_running_or_notify_cancel():
            self.task.set_exception(error)

    def cancel(self) -> None:
        """It is not wanted any more, and no worker has it."""
        self.task.cancel()
        self.task.set_running_or_notify_cancel()  # tells `concurrent.futures.wait` that it is over

    def wait_again(self, *, begun: bool) -> None:
        """The worker that had it will not do it; another will.

        Args:
            begun: Whether it may have begun to.
        """
        self.attempts -= not begun
        self.task.wait_again()

    def said(self, value: Packed) -> None:
        """The worker has said something, in a dialogue."""

    def retries_left(self) -> bool:
        """Whether it may be tried again after the worker that had it was lost."""
        return self.attempts <= self.options.retries


def opened_failure(data: bytes) -> BaseException:
    """What a task raised, with the traceback of there as its cause; `RemoteError` if that cannot be had."""
    pickled, text = pickle.loads(data)
    try:
        error = None if pickled is None else open_value(pickled)
    except BaseException:  # what runs here is the exception's own constructor
        error = None
    if not isinstance(error, BaseException):
        return RemoteError(text.rstrip(), traceback=text)
    error.__cause__ = RemoteError(f"\n{text.rstrip()}", traceback=text)
    return error
