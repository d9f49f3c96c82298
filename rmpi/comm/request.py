"""Requests: operations that were begun and go on while their caller does something else.

The caller makes progress, so "go on" means: whenever this process is in any call of the library. The kernel and the
other side do what they can in between. A long loop without calls says ``comm.progress()`` now and then.

A request ends once. Waiting for it does not use it up: a time-out leaves it as it was, and `Request.wait` gives
the same result again. Nothing is waited for twice at the price of once: `wait_all` and friends sleep a single time.

In asyncio a request is awaited. The loop then watches the one epoll in which all of our descriptors are
(`Crank.attend`); nobody polls, and no thread is made.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from threading import RLock
from typing import Any, Generic, TypeVar

from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded, Deadlock, UsageError
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.eventloop import ended
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.matching import Receive
from rmpi.transport.operation import Operation
from rmpi.transport.peers import fresh

T = TypeVar("T")

_UNSET: Any = object()


class Request(Generic[T]):
    """Something that was begun: `Comm.isend`, `Comm.irecv` and the nonblocking collectives return one.

    Any thread may wait for it, several at once too; awaiting it needs a running asyncio loop.
    """

    def __init__(self, endpoint: Endpoint, operation: Operation, what: str, finish: Callable[[], T]) -> None:
        """``finish`` gives the result of an operation that is done without error, when it is first asked for."""
        self._endpoint = endpoint
        self._operation = operation
        self._what = what
        self._finish = finish
        self._result: T = _UNSET
        self._failure: BaseException | None = None
        self._lock = RLock()  # not needed in progress: it is held while user code unpickles

    @property
    def done(self) -> bool:
        """Whether it has ended, well or badly, as far as is known without looking; see `test`."""
        return self._operation.done

    def test(self) -> bool:
        """Make progress, without waiting; whether it has ended, well or badly: `wait` says which.

        Raises:
            Deadlock: It ended so: that is a verdict on the program.
        """
        operation = self._operation
        if not operation.done:
            self._endpoint.progress()
            if operation.patience is not None and operation.patience[0].passed():
                operation.lose_patience()
        self._raise_verdict()
        return operation.done

    def _raise_verdict(self) -> None:
        """An error of one request is for whoever waits for that one; but nobody may overlook a deadlock."""
        error = self._operation.error
        if isinstance(error, Deadlock):
            raise _again(error)

    def wait(self, timeout: float | None = None) -> T:
        """Wait until it has ended.

        Returns:
            What the blocking call returns; the same object each time.

        Raises:
            DeadlineExceeded: ``timeout`` seconds passed first. It goes on, and can be waited for again.
            RmpiError: What the blocking call raises.
        """
        if not self._operation.done and not self._endpoint.watch((self._operation,), Deadline.after(timeout)):
            raise DeadlineExceeded(f"{self._what}: timeout of {timeout} s passed; the request goes on")
        return self._outcome()

    def cancel(self) -> bool:
        """Take back a receive to which no message has been matched yet: it will not take one, and has ended.

        Returns:
            Whether it was taken back; `wait` then raises `UsageError`. False: it has a message, or is no receive.
            What others wait for in us, a send or a collective, cannot be taken back.
        """
        operation = self._operation
        if not isinstance(operation, Receive) or self.test():
            return False
        return self._endpoint.cancel(operation, UsageError(f"{self._what} was cancelled"))

    def _outcome(self) -> T:
        if self._operation.error is not None:
            raise _again(self._operation.error)
        shielded = SHIELD.enter()  # a value that was made is kept, whatever a signal handler raises
        try:
            with self._lock:
                if self._result is _UNSET and self._failure is None:
                    self._settle()
                if self._failure is not None:
                    raise _again(self._failure)
                return self._result
        finally:
            if shielded:
                SHIELD.leave()

    def _settle(self) -> None:
        """Make the result, and forget what it was made of."""
        try:
            self._result = self._finish()
        except Exception as error:
            self._failure = error
        del self._finish
        self._operation = DONE

    def __await__(self) -> Generator[Any, None, T]:
        if not self.test():
            yield from ended(self._endpoint, self._operation).__await__()
        return self._outcome()

    def __repr__(self) -> str:
        failed = self._failure is not None or self._operation.error is not None
        return f"<Request {self._what}: {'failed' if failed else 'done' if self.done else 'pending'}>"


DONE = Operation()
"""What a request waits for that was done before it was made."""

DONE.finish()


def _again(error: BaseException) -> BaseException:
    """An error to raise once more, with the traceback of where it came from."""
    twin = fresh(error)
    twin.__cause__ = error.__cause__
    return twin.with_traceback(error.__traceback__)


def _timed_out(requests: Sequence[Request[Any]], timeout: float | None) -> DeadlineExceeded:
    pending = [request for request in requests if not request.done]
    first = f", first {pending[0]._what}" if pending else ""
    return DeadlineExceeded(f"timeout of {timeout} s passed: {len(pending)} of {len(requests)} go on{first}")


def _endpoint_of(requests: Sequence[Request[Any]]) -> Endpoint:
    for request in requests:
        if not isinstance(request, Request):
            raise UsageError(f"{request!r} is no request")
    endpoint = requests[0]._endpoint
    for request in requests:
        if request._endpoint is not endpoint:
            raise UsageError("requests of different processes or test ranks cannot be waited for together")
    return endpoint


def wait_all(requests: Iterable[Request[Any]], timeout: float | None = None) -> list[Any]:
    """Wait until all have ended; their results in order.

    Raises:
        DeadlineExceeded: Time ran out; those that have not ended go on.
        RmpiError: The first of them in order that failed, as soon as any has. The others go on.
    """
    waiting = list(requests)
    if waiting:
        endpoint = _endpoint_of(waiting)
        operations = [request._operation for request in waiting]
        if not endpoint.watch(operations, Deadline.after(timeout)):
            raise _timed_out(waiting, timeout)
        failed = next((request for request in waiting if request._operation.error is not None), None)
        if failed is not None:
            failed._outcome()
    return [request._outcome() for request in waiting]


def wait_any(requests: Iterable[Request[Any]], timeout: float | None = None) -> int:
    """Wait until one of them has ended, well or badly; its position. Of several that have, the first.

    Raises:
        UsageError: There are none.
        DeadlineExceeded: Time ran out; all go on.
        Deadlock: It ended so. Any other error is raised by its own `Request.wait`.
    """
    waiting = list(requests)
    if not waiting:
        raise UsageError("wait_any needs at least one request")
    endpoint, deadline = _endpoint_of(waiting), Deadline.after(timeout)
    ended = _first_ended(waiting)
    if ended is None and endpoint.watch([request._operation for request in waiting], deadline, first=True):
        ended = _first_ended(waiting)
    if ended is None:
        raise _timed_out(waiting, timeout)
    waiting[ended]._raise_verdict()
    return ended


def _first_ended(requests: Sequence[Request[Any]]) -> int | None:
    return next((position for position, request in enumerate(requests) if request.done), None)


def as_completed(requests: Iterable[Request[T]], timeout: float | None = None) -> Iterator[Request[T]]:
    """The requests, each as soon as it has ended, well or badly: ``for request in as_completed(…): request.wait()``.

    Args:
        timeout: Seconds for all of them together.

    Raises:
        DeadlineExceeded: Time ran out; the others go on.
        Deadlock: One ended so. Any other error is raised by its own `Request.wait`.
    """
    waiting, deadline = list(requests), Deadline.after(timeout)
    return _one_by_one(waiting, _endpoint_of(waiting), deadline, timeout) if waiting else iter(())


def _one_by_one(
    requests: list[Request[T]], endpoint: Endpoint, deadline: Deadline, timeout: float | None
) -> Iterator[Request[T]]:
    series = endpoint.series([request._operation for request in requests])
    try:
        for _ in requests:
            if not series.ended and not endpoint.watch_next(series, deadline):
                raise _timed_out(requests, timeout)
            ended = requests[series.ended.popleft()]
            ended._raise_verdict()
            yield ended
    finally:
        series.let_go()
