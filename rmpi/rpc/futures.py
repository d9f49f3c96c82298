"""Calls that go on while their caller does something else, and who takes their answers.

Futures of one connection share a line; numbers say which answer is whose. One thread at a time takes answers from it,
the *leader*, and settles whichever future each belongs to. Whoever waits in `Future.result` leads, if nobody does: then
no thread hands anything to another, which costs more than the call. A thread of our own leads as soon as somebody
expects to be told without waiting here (a callback, ``await``, `concurrent.futures.wait`, a look at `Future.done`), and
for as long as answers are outstanding.

An outstanding number is either a future's in `Answers._pending`, or in `Answers._dropped` because its future was
cancelled. Whoever takes it out of the first, which one operation of a dict does, settles the future.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from concurrent.futures import Future as StandardFuture
from itertools import count
from threading import Condition, Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerLost
from rmpi.rpc.messages import CANCEL, NUMBERED, Raised, Refused

if TYPE_CHECKING:
    from rmpi.places.channel import Channel
    from rmpi.rpc.connection import Connection

T = TypeVar("T")

_LOG = logging.getLogger("rmpi.rpc")

CANCEL_PATIENCE = 0.05
"""Seconds that `Future.cancel` waits for room; beyond, the server is not told, and may execute the call in vain."""

GLANCE = 64
"""After so many calls what has come is taken, so that answers for which nobody waits yet do not pile up."""


class Future(StandardFuture[T]):
    """The answer of a call that was begun; ``await`` it, or use it as any `concurrent.futures.Future`.

    `cancel` succeeds until the answer was taken. The server does not begin a call of whose cancellation it has heard;
    one that it has begun runs to its end.
    """

    def __init__(self, answers: Answers, number: int, qualname: str) -> None:
        super().__init__()
        self._waiters: list[Any] = _Waiters(answers)
        self._answers = answers
        self._number = number
        self._qualname = qualname

    def result(self, timeout: float | None = None) -> T:
        """Wait for the answer.

        Raises:
            RemoteError: The method raised.
            PeerLost: The place died; the call may have been executed, and is not repeated.
            TimeoutError: It has not come within ``timeout`` seconds; it can be waited for again.
            concurrent.futures.CancelledError: It was cancelled.
        """
        self._answers.lead_until(super().done, timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the answer; what `result` would raise, or None."""
        self._answers.lead_until(super().done, timeout)
        return super().exception(0)

    def done(self) -> bool:
        """Whether it has an answer, or was cancelled."""
        if not super().done():
            self._answers.have_led()
        return super().done()

    def add_done_callback(self, fn: Callable[[StandardFuture[T]], object]) -> None:
        """Call ``fn(future)`` when it has an answer, in some thread; at once, if it has one."""
        super().add_done_callback(fn)
        self._answers.have_led()

    def cancel(self) -> bool:
        """Forget the answer. False: it has come."""
        if self._answers.drop(self._number):
            super().cancel()
            self.set_running_or_notify_cancel()  # tells `concurrent.futures.wait` that it is over
        return self.cancelled()

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()


class _Waiters(list[Any]):
    """Who waits by `concurrent.futures.wait` or `as_completed`: they put something here, and sleep."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._answers = answers

    def append(self, waiter: Any) -> None:
        super().append(waiter)
        self._answers.have_led()


class Answers:
    """The futures of one connection that are not settled yet."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._line: Channel = connection.line()
        self._sending = Lock()
        self._numbers = count(1)
        self._pending: dict[int, Future[Any]] = {}
        self._dropped: set[int] = set()
        self._changed = Condition(Lock())  # of the two below; and futures were settled, or nobody leads any more
        self._led = False
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
        if number % GLANCE == 0:
            self._glance()
        return future

    def drop(self, number: int) -> bool:
        """A future wants to be cancelled. False: it is settled."""
        self._dropped.add(number)  # first: whoever leads must not find that nothing is outstanding
        if self._pending.pop(number, None) is None:
            self._dropped.discard(number)
            return False
        try:
            self._line.put((CANCEL, number), CANCEL_PATIENCE)
        except (PeerLost, ChannelClosed, DeadlineExceeded):
            pass
        return True

    def close(self) -> None:
        """Fail what is outstanding."""
        self._line.close()
        self._fail_all(ChannelClosed(f"this stub of {self._connection.label} was closed"))

    # ------------------------------------------------------------------------------------- leading

    def lead_until(self, done: Callable[[], bool], timeout: float | None) -> None:
        """Wait until ``done`` or the time is over, and take answers meanwhile, unless somebody else does."""
        deadline = Deadline.NEVER if timeout is None else Deadline.after(timeout)
        while not done() and self._may_lead(done, deadline):
            try:
                self._take(deadline.left_or_none())
            except DeadlineExceeded:
                return
            finally:
                self._lead_no_more()

    def have_led(self) -> None:
        """Somebody wants to be told without waiting here."""
        with self._changed:
            if self._thread is None and self._pending:
                self._thread = Thread(target=self._lead, name=f"answers of {self._connection.label}", daemon=True)
                self._thread.start()

    def _lead(self) -> None:
        """Until nothing is outstanding."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._led)
                if not self._pending and not self._dropped:
                    self._thread = None
                    return
                self._led = True
            try:
                self._take(None)
            except SystemExit:  # of a callback: here it would end this thread alone, and others wait for their answers
                _LOG.exception("a callback of an answer of %s called sys.exit()", self._connection.label)
            finally:
                self._lead_no_more()

    def _glance(self) -> None:
        """Take what has come, if nobody else does."""
        if not self._may_lead(lambda: False, PASSED):
            return
        try:
            while self._pending and self._line.poll():
                self._take(None)
        except ChannelClosed as error:
            self._fail_all(error)
        finally:
            self._lead_no_more()

    def _may_lead(self, done: Callable[[], bool], deadline: Deadline) -> bool:
        """Wait until we are to lead. False: it is done, or time ran out."""
        with self._changed:
            if self._led:
                self._changed.wait_for(lambda: done() or not self._led, deadline.left_or_none())
            if self._led or done():
                return False
            self._led = True
            return True

    def _lead_no_more(self) -> None:
        with self._changed:
            self._led = False
            self._changed.notify_all()

    def _take(self, timeout: float | None) -> None:
        """The next answer. Whoever calls this leads."""
        try:
            answer = self._line.get(timeout)
        except DeadlineExceeded:
            raise
        except ChannelClosed as error:
            self._fail_all(error)
        except PeerLost as error:
            error.add_note("calls that were under way may have been executed; they are not repeated")
            self._fail_all(error)
        except Exception as error:  # it cannot be unpickled here; answers come in the order of the calls
            self._fail_first(error)
        else:
            self._settle(answer)

    # ------------------------------------------------------------------------------------ settling

    def _settle(self, numbered: Any) -> None:
        if type(numbered) is not tuple:  # the call could not be unpickled there, and so its number is not known
            self._fail_first(self._connection.error_of(numbered, "the call"))
            return
        number, answer = numbered
        future = self._pending.pop(number, None)
        if future is None:
            self._dropped.discard(number)
        elif type(answer) in (Raised, Refused):
            future.set_exception(self._connection.error_of(answer, future._qualname))
        else:
            future.set_result(answer)

    def _fail_all(self, error: Exception) -> None:
        self._dropped.clear()
        while self._pending:
            self._fail_first(error)

    def _fail_first(self, error: Exception) -> None:
        number = min(list(self._pending), default=0)
        future = self._pending.pop(number, None)
        if future is not None:
            future.set_exception(error)


PASSED = Deadline(0.0)
