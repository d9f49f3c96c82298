"""Handing over: what came by a short cut, or left by it, until its caller has it.

A signal handler may raise between the return of a port and the next line of its caller, and unpickling may raise in
between too. The port remembers what it gave (`Shortcut.given`); whoever catches the exception comes here, and what
never got to its caller is the next in line again. So whoever receives by a short cut writes

    try:
        value = short.recv(source, tag, out)
        if type(value) is Receive:
            value = handover.finish(value, deadline)
        if value is not NOTHING:
            short.given = None  # a plain store: no handler can run between here and the caller
            return value
    except BaseException as error:
        handlers = short.thread == MAIN_THREAD
        SHIELD.depth += handlers  # plain stores, as above: no second handler may run before all is back
        handover.give_back(out, error, handlers)
        raise
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident, main_thread
from typing import Any

from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded
from rmpi.transport.base import Transfer
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.matching import Receive
from rmpi.transport.operation import Operation
from rmpi.transport.shortcut import NOTHING, Shortcut
from rmpi.wire.codec import Array, encode_parts, encode_value
from rmpi.wire.frames import EAGER_LIMIT

LONG_ENOUGH = 0.01
"""Seconds; a time-out from which on a millisecond more does not matter."""

MAIN_THREAD = main_thread().ident
"""Where signal handlers run."""


def is_long(timeout: object) -> bool:
    """Whether that much time allows for the short cut, which does not look at the clock."""
    return type(timeout) in (int, float) and timeout >= LONG_ENOUGH  # type: ignore[operator]


def give_up_send(endpoint: Endpoint, short: Shortcut, value: object, error: BaseException) -> None:
    """Sending by a short cut raised: what has begun goes on without us; if the value cannot be pickled, that is said.

    Raises:
        UsageError: It cannot.
    """
    begun = short.given
    if short.thread == get_ident() and isinstance(begun, Transfer):
        short.given = None
        endpoint.abandon((begun,))
    elif isinstance(error, Exception):
        encode_value(value)


class Handover:
    """From the short cut of one context to its callers.

    Args:
        member: The endpoint that a rank of the short cut is.
        name_of: What to call an endpoint in messages to the user.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        context: int,
        short: Shortcut,
        member: Callable[[int], int],
        name_of: Callable[[int], str],
    ) -> None:
        self._endpoint = endpoint
        self._context = context
        self._short = short
        self._member = member
        self._name_of = name_of

    def finish(self, receive: Receive, deadline: Deadline) -> Any:
        """Wait for a message that has begun to come; its value."""
        shielded = SHIELD.enter()
        try:
            self._endpoint.wait((receive,), deadline)
            return self.take(receive)
        finally:
            if shielded:
                SHIELD.leave()

    def take(self, receive: Receive) -> Any:
        """The value of a message that has come. If it cannot be unpickled, it is gone.

        Raises:
            Exception: Why not; its ``origin`` is the message's source and tag.
        """
        arrival = receive.arrival
        assert arrival is not None
        try:
            return receive.take()
        except Exception as error:
            receive.arrival = None  # it would fail again and again
            error.add_note(f"while unpickling a message from {self._name_of(arrival.source)}")
            error.__dict__["origin"] = arrival.source, arrival.tag
            raise

    def give_back(self, out: Array | None, error: BaseException, shielded: bool) -> None:
        """What came by the short cut, and never got to who asked for it, is the next in line again.

        Args:
            shielded: The caller has deferred handlers, until this returns.

        Raises:
            Exception: It cannot be unpickled, and is gone. That was the ``error`` then, not a signal handler's.
        """
        short = self._short
        try:
            value, landed = short.given, short.landed
            if short.thread != get_ident():
                return
            short.given = None
            if isinstance(value, Operation):
                self._endpoint.abandon((value,))
            elif landed or value is not NOTHING:
                encoded = encode_parts(value) if type(value) is list else encode_value(out if landed else value)
                member, tag = self._member(short.source), short.tag
                self._endpoint.put_back(self._context, member, tag, 0, encoded, eager=short.length <= EAGER_LIMIT)
                if type(value) is list and isinstance(error, Exception):
                    self._try_again(member, tag)
        finally:
            if shielded:
                SHIELD.leave()

    def _try_again(self, member: int, tag: int) -> None:
        """Unpickle the next message once more, with handlers deferred. If that succeeds, put it back."""
        shielded = SHIELD.enter()
        try:
            receive = self._endpoint.receive(self._context, member, tag, deadline=Deadline.after(0))
            self.take(receive)
            self._endpoint.abandon((receive,))
        except DeadlineExceeded:  # another thread was waiting for it
            pass
        finally:
            if shielded:
                SHIELD.leave()
