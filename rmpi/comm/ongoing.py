"""A collective that goes on by itself: the driver of nonblocking calls.

The same schedules as in blocking calls. Whenever the steps it waits for are complete, it is continued after the turn of
the crank in which that was found, by whoever makes progress, without the endpoint's lock: an operator may be any
Python code. It may not wait for messages itself.

An `Ongoing` is advanced by one thread at a time, because only what it began last can have it continued.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rmpi.comm.schedule import Schedule, Step
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.matching import Receive
from rmpi.transport.operation import Awaited, Operation, Patience
from rmpi.transport.peers import fresh


class Ongoing(Operation):
    """A collective under way.

    Args:
        shape: What to make of the schedule's result.
        begin: Begins a step; None if it is complete already, and has no result.
        spoil: Told of the error that ends it.
        patience: Whom to call if it takes long.

    Attributes:
        value: Its result, when done without error.
    """

    __slots__ = ("_begin", "_endpoint", "_many", "_parts", "_schedule", "_shape", "_spoil", "patience", "value")

    def __init__(
        self,
        endpoint: Endpoint,
        schedule: Schedule[Any],
        shape: Callable[[Any], Any] | None,
        begin: Callable[[Step], Operation | None],
        spoil: Callable[[BaseException], None],
        patience: Patience,
    ) -> None:
        super().__init__()
        self.value: Any = None
        self.patience: Patience | None = patience
        self._parts: Sequence[Operation | None] = ()  # what it waits for at the moment
        self._endpoint = endpoint
        self._schedule = schedule
        self._shape = shape
        self._begin = begin
        self._spoil = spoil
        self._many = False

    def awaited(self) -> Awaited | None:
        pending = (part for part in self._parts if part is not None and not part.done)
        return next((part.awaited() for part in pending), None)

    def start(self) -> None:
        """Go as far as that is possible without waiting."""
        self._endpoint.call_back(partial(self._advance, None))

    def lose_patience(self) -> None:
        patience, self.patience = self.patience, None
        if patience is not None and not self.done:
            patience[1]()

    def _go_on(self) -> None:
        self._advance(self._results)

    def _advance(self, results: Callable[[], Any] | None) -> None:
        try:
            result = results() if results is not None else None
            while self._take_steps(self._schedule.send(result)):
                result = self._results()
        except StopIteration as finished:
            self._end(finished.value)
        except BaseException as error:
            self._endpoint.abandon([part for part in self._parts if part is not None])
            self._schedule.close()
            self._spoil(error)
            self._endpoint.end(self, error)

    def _end(self, result: Any) -> None:
        """All is there. A result that does not fit is this rank's trouble alone."""
        self._parts = ()
        try:
            self.value = result if self._shape is None else self._shape(result)
        except Exception as error:
            self._endpoint.end(self, error)
        else:
            self._endpoint.end(self)

    def _take_steps(self, steps: Step | tuple[Step, ...]) -> bool:
        """Begin what the schedule says; whether all of it is complete at once."""
        self._many = isinstance(steps, tuple)
        parts: list[Operation | None] = []
        self._parts = parts  # should the second fail to begin, the first is abandoned
        parts.extend(map(self._begin, steps if isinstance(steps, tuple) else (steps,)))
        pending = [part for part in parts if part is not None and not (part.done and part.error is None)]
        return not pending or self._endpoint.when_done(pending, self._go_on)

    def _results(self) -> Any:
        """What the steps brought, as the schedule expects it."""
        for part in self._parts:
            if part is not None and part.error is not None:
                raise fresh(part.error)
        values = [part.take() if isinstance(part, Receive) else None for part in self._parts]
        return values if self._many else values[0]
