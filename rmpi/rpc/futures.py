"""Calls that go on while their caller does something else, and the thread that takes their answers.

A `concurrent.futures.Future` is settled without anybody waiting for it, so a thread has to take what comes. It lives
as long as answers are outstanding, and no longer: while it waits in the library, it hands the blocking calls of
others their answers, which takes longer. Futures of one connection share a line, and numbers say which answer is whose.

An outstanding number is either a future's in `Answers._pending`, or in `Answers._dropped` because its future was
cancelled. Whoever takes it out of the first, which one operation of a dict does, settles the future.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Future as StandardFuture
from itertools import count
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerLost
from rmpi.rpc.messages import CANCEL, NUMBERED, Raised, Refused, Skipped

if TYPE_CHECKING:
    from rmpi.places.channel import Channel
    from rmpi.rpc.connection import Connection

T = TypeVar("T")

CANCEL_PATIENCE = 0.05
"""Seconds that `Future.cancel` waits for room; beyond, the server is not told, and may execute the call in vain."""


class Future(StandardFuture[T]):
    """The answer of a call that was begun; ``await`` it, or use it as any `concurrent.futures.Future`.

    `cancel` succeeds until the answer has come. The server does not begin a call of whose cancellation it has heard;
    one that it has begun runs to its end.
    """

    def __init__(self, answers: Answers, number: int, qualname: str) -> None:
        super().__init__()
        self._answers = answers
        self._number = number
        self._qualname = qualname

    def cancel(self) -> bool:
        """Forget the answer. False: it has come."""
        if self._answers.drop(self._number):
            super().cancel()
            self.set_running_or_notify_cancel()  # tells `concurrent.futures.wait` that it is over
        return self.cancelled()

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()


class Answers:
    """The futures of one connection that are not settled yet."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._line: Channel = connection.line()
        self._sending = Lock()
        self._lock = Lock()  # of `_thread`; nobody waits for anything with it
        self._numbers = count(1)
        self._pending: dict[int, Future[Any]] = {}
        self._dropped: set[int] = set()
        self._thread: Thread | None = None

    def begin(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], qualname: str) -> Future[Any]:
        """Send a call. What cannot be sent at all is raised; that the place is gone is the future's."""
        with self._sending:  # numbers are sent in their order
            number = next(self._numbers)
            future = self._pending[number] = Future(self, number, qualname)
            try:
                self._line.put((NUMBERED, name, args, kwargs, number))
            except PeerLost as error:
                if self._pending.pop(number, None) is not None:
                    future.set_exception(error)
            except BaseException:
                self._pending.pop(number, None)
                raise
        self._have_collected()
        return future

    def _have_collected(self) -> None:
        with self._lock:
            if self._thread is None and self._pending:
                self._thread = Thread(target=self._collect, name=f"answers of {self._connection.label}", daemon=True)
                self._thread.start()

    def drop(self, number: int) -> bool:
        """A future wants to be cancelled. False: it is settled."""
        self._dropped.add(number)  # first: the thread must not find that nothing is outstanding
        if self._pending.pop(number, None) is None:
            self._dropped.discard(number)
            return False
        try:
            self._line.put((CANCEL, number), CANCEL_PATIENCE)
        except (PeerLost, ChannelClosed, DeadlineExceeded):
            pass
        return True

    def close(self) -> None:
        self._line.close()

    def _collect(self) -> None:
        """Take answers until none is outstanding."""
        while True:
            with self._lock:
                if not self._pending and not self._dropped:
                    self._thread = None
                    return
            try:
                number, answer = self._line.get()
            except ChannelClosed as error:
                self._fail_all(error)
            except PeerLost as error:
                error.add_note("calls that were under way may have been executed; they are not repeated")
                self._fail_all(error)
            except Exception as error:  # it cannot be unpickled here; answers come in the order of the calls
                self._fail_first(error)
            else:
                self._settle(number, answer)

    def _settle(self, number: int, answer: Any) -> None:
        future = self._pending.pop(number, None)
        if future is None:
            self._dropped.discard(number)
        elif type(answer) in (Raised, Refused):
            future.set_exception(self._connection.error_of(answer, future._qualname))
        else:
            assert type(answer) is not Skipped
            future.set_result(answer)

    def _fail_all(self, error: Exception) -> None:
        self._dropped.clear()
        while self._pending:
            future = self._take_first()
            if future is not None:
                future.set_exception(error)

    def _fail_first(self, error: Exception) -> None:
        future = self._take_first()
        if future is not None:
            future.set_exception(error)

    def _take_first(self) -> Future[Any] | None:
        number = min(list(self._pending), default=None)
        return None if number is None else self._pending.pop(number, None)
