"""Messages between two ranks: the part of a communicator that sends and receives.

It translates ranks into endpoints, takes the short cut where there is one (`transport.shortcut`), and names ranks in
errors. Blocking and nonblocking calls are the same operations of the endpoint: one waits for them, the other hands them
out as a `Request`.

Two contexts per communicator, so that messages and collectives never match each other: point to point uses
``context``, collectives use ``context + 1``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from rmpi.comm.arguments import check_out, check_status, checked_rank, checked_tag, is_wildcard
from rmpi.comm.family import Family
from rmpi.comm.request import DONE, Request
from rmpi.comm.status import ANY_SOURCE, ANY_TAG, Status
from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded, UsageError
from rmpi.transport.base import Transfer
from rmpi.transport.callsite import call_site
from rmpi.transport.handover import MAIN_THREAD, Handover, give_up_send, is_long
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.matching import ANY, Arrival, Receive
from rmpi.transport.operation import Operation
from rmpi.transport.shortcut import NOTHING, NoShortcut, Shortcut
from rmpi.wire.codec import Array

T = TypeVar("T")
Begun = TypeVar("Begun", bound=Operation)


class PointToPoint:
    """An ordered group of ranks ``0 … size-1`` that send each other messages.

    Attributes:
        rank: Mine, from 0.
        size: How many there are.
    """

    rank: int
    size: int

    def __init__(self, family: Family, members: Sequence[int], context: int) -> None:
        self._family = family
        self._endpoint = family.endpoint
        self._members = tuple(members)
        self._everybody = frozenset(members)
        self._rank_of = {member: rank for rank, member in enumerate(members)}
        self._context = context
        self.rank = self._rank_of[self._endpoint.ident]
        self.size = len(members)
        self._short: Shortcut = self._endpoint.open_context(context, members, collective=False)
        rank_of = self._rank_of
        self._handover = Handover(
            self._endpoint, context, self._short, self._members.__getitem__, lambda member: f"rank {rank_of[member]}"
        )

    def _close(self) -> None:
        """Forget the context of messages."""
        self._endpoint.close_context(self._context, self._short)
        self._short = NoShortcut()

    # ------------------------------------------------------------------------------ point to point

    def send(self, value: object, dest: int, tag: int = 0, *, timeout: float | None = None) -> None:
        """Send ``value`` to rank ``dest``.

        An array travels as raw memory and arrives with the same dtype, shape and order; any other object
        is pickled, and arrays inside it travel raw too. When this returns, ``value`` may be changed. Up to
        64 KiB it usually returns at once; larger messages, and floods, wait for the receiver to have room.

        Args:
            value: Anything that can be pickled. It is not modified.
            dest: A rank, one's own included.
            tag: From 0 to 2**63-1; the receiver can ask for it.

        Raises:
            RankError: There is no rank ``dest``.
            UsageError: The tag is not an integer, or the value cannot be pickled.
            DeadlineExceeded: The text says whether the message was withdrawn, or still goes on.

        Whatever is raised, the message arrives whole, once, or not at all. If a signal handler raises out of this
        call (Ctrl-C), it may already have left; a program that goes on and must know numbers its messages.
        """
        try:
            sent = self._short.send(value, dest, tag)
            if sent is True:
                return
            if sent is not False:
                self._endpoint.wait((sent,), Deadline.after(timeout))
                self._short.given = None
                return
        except BaseException as error:
            give_up_send(self._endpoint, self._short, value, error)
            if isinstance(error, DeadlineExceeded):
                raise _named(error, "send to", dest, tag) from None
            raise
        destination = self._member(dest, "dest")
        tag = checked_tag(tag)
        try:
            self._endpoint.send(destination, self._context, tag, value, deadline=Deadline.after(timeout))
        except DeadlineExceeded as error:
            raise _named(error, "send to", dest, tag) from None

    def recv(
        self,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        *,
        out: Array | None = None,
        timeout: float | None = None,
        status: Status | None = None,
    ) -> Any:
        """Receive the next message from ``source`` with ``tag``, in the order in which they were sent.

        Args:
            source: A rank, or `ANY_SOURCE`.
            tag: A tag, or `ANY_TAG`.
            out: An array to receive in place; the message must be an array of its shape and dtype.
            status: Filled with source, tag and size of what came.

        Returns:
            The value, which belongs to the caller; ``out`` if that was given.

        Raises:
            UsageError: The message does not fit ``out``; it stays the next in line.
            DeadlineExceeded: No message came in time. Nothing is lost: a later `recv` gets it.

        Neither is a message lost when a signal handler raises out of this call: it is the next in line again.
        """
        short = self._short
        if timeout is None or is_long(timeout):
            try:
                value = short.recv(source, tag, out)
                if type(value) is Receive:
                    value = self._finish(value, Deadline.after(timeout), status)
                elif value is not NOTHING and status is not None:
                    status.source, status.tag, status.nbytes = short.source, short.tag, short.length
                if value is not NOTHING:
                    if out is None:
                        short.given = None  # a plain store: no handler can run between here and the caller
                    return value
            except BaseException as error:
                handlers = short.thread == MAIN_THREAD
                SHIELD.depth += handlers  # plain stores, as above: no second handler may run before all is back
                self._handover.give_back(out, error, handlers)
                if isinstance(error, DeadlineExceeded):
                    raise _named(error, "recv from", source, tag) from None
                raise
        return self._recv(source, tag, out, timeout, status)

    def _recv(self, source: int, tag: int, out: Array | None, timeout: float | None, status: Status | None) -> Any:
        """`recv` the long way."""
        check_status(status)
        asked, tag = self._asked(source, tag)
        if out is not None:
            check_out(out)
        deadline = Deadline.after(timeout)
        shielded = SHIELD.enter()
        try:
            receive = self._endpoint.receive(
                self._context, asked, tag, out=out, members=self._everybody, deadline=deadline
            )
            value = self._take(receive, status)
        except BaseException as error:
            if shielded:
                SHIELD.leave()
            if isinstance(error, DeadlineExceeded):
                raise _named(error, "recv from", source, tag) from None
            raise
        if shielded:
            SHIELD.leave(self._endpoint.abandon, (receive,))
        return value

    def sendrecv(
        self,
        value: object,
        dest: int,
        source: int = ANY_SOURCE,
        *,
        sendtag: int = 0,
        recvtag: int = ANY_TAG,
        out: Array | None = None,
        timeout: float | None = None,
        status: Status | None = None,
    ) -> Any:
        """Send to ``dest`` and receive from ``source`` at the same time, so that a ring cannot block.

        Arguments, result and errors are those of `send` and `recv`; ``out`` must not share memory with
        ``value``. After an error each half is done or undone, as it would be by itself.
        """
        check_status(status)
        destination = self._member(dest, "dest")
        sendtag = checked_tag(sendtag)
        asked, recvtag = self._asked(source, recvtag)
        if out is not None:
            check_out(out)
            if isinstance(value, np.ndarray) and np.may_share_memory(out, value):
                raise UsageError("sendrecv: out= shares memory with the value; receive into another array")
        deadline = Deadline.after(timeout)
        operations: list[Operation] = []
        shielded = SHIELD.enter()
        try:
            receive = self._endpoint.start_receive(self._context, asked, recvtag, out=out, members=self._everybody)
            operations.append(receive)
            operations.append(self._endpoint.start_send(destination, self._context, sendtag, value))
            self._endpoint.wait(operations, deadline)
            result = self._take(receive, status)
        except BaseException as error:
            self._endpoint.abandon(operations)
            if shielded:
                SHIELD.leave()
            if isinstance(error, DeadlineExceeded):
                raise _named(error, "sendrecv with", dest, sendtag) from None
            raise
        if shielded:
            SHIELD.leave(self._endpoint.abandon, operations)
        return result

    def _finish(self, receive: Receive, deadline: Deadline, status: Status | None) -> Any:
        """Wait for a message that has begun to come."""
        value = self._handover.finish(receive, deadline)
        self._fill(status, receive)
        return value

    def _take(self, receive: Receive, status: Status | None) -> Any:
        self._fill(status, receive)
        return self._handover.take(receive)

    def _fill(self, status: Status | None, receive: Receive) -> None:
        """What is to be known of a message besides its value."""
        arrival = receive.arrival
        if status is not None and arrival is not None:
            status.source = self._rank_of[arrival.source]
            status.tag = arrival.tag
            status.nbytes = arrival.length

    # -------------------------------------------------------------------------------- nonblocking

    def isend(self, value: object, dest: int, tag: int = 0) -> Request[None]:
        """Begin to send; the request is done when ``value`` may be changed again, and not before.

        Small messages usually leave at once. For larger ones memory is lent, not copied: an array that is changed too
        early arrives changed. A program that ends with a request which is not done is told so on stderr.

        Args, errors: As for `send`; a destination that ends is an error of the request.
        """
        destination = self._member(dest, "dest")
        tag = checked_tag(tag)
        what = f"isend to rank {dest}, tag {tag}"
        if self._short.post(value, dest, tag, 0):
            return Request(self._endpoint, DONE, what, _none)
        return self._begun(partial(self._start_send, value, destination, tag, what), what, _none)

    def _start_send(self, value: object, destination: int, tag: int, what: str) -> Transfer:
        transfer = self._endpoint.start_send(destination, self._context, tag, value)
        if not transfer.done:
            self._family.note_begun(transfer, f"{what}, {transfer.length} bytes, at {call_site()[1]}")
        return transfer

    def irecv(
        self,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        *,
        out: Array | None = None,
        status: Status | None = None,
    ) -> Request[Any]:
        """Begin to receive: the request takes the next message that fits, before any later receive.

        Nobody may read or change ``out`` until the request is done. The value is made (unpickled) by whoever
        waits, and ``status`` is filled then.

        Args, errors: As for `recv`. A request that is dropped still takes its message: `Request.cancel` it.
        """
        asked, wanted = self._asked(source, tag)
        check_status(status)
        if out is not None:
            check_out(out)
        begin = partial(self._endpoint.start_receive, self._context, asked, wanted, out=out, members=self._everybody)
        what = f"irecv from {_whom(source)}, {_which(wanted)}"
        return self._begun(begin, what, partial(self._take, status=status))

    def _begun(self, begin: Callable[[], Begun], what: str, finish: Callable[[Begun], T]) -> Request[T]:
        """A request for what ``begin`` begins. If a signal handler raises before the caller has it, it is undone."""
        shielded = SHIELD.enter()
        try:
            operation = begin()
            request = Request(self._endpoint, operation, what, partial(finish, operation))
        except BaseException:
            if shielded:
                SHIELD.leave()
            raise
        if shielded:
            SHIELD.leave(self._endpoint.abandon, (operation,))
        return request

    def probe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, *, timeout: float | None = None) -> Status:
        """Wait for the next message that fits, and leave it where it is.

        With several threads, another may receive it in between; give each thread tags of its own.

        Raises:
            DeadlineExceeded, RankFailed, PeerExited, RankError: As for `recv`.
        """
        asked, wanted = self._asked(source, tag)
        probe = self._endpoint.start_probe(self._context, asked, wanted, self._everybody)
        try:
            self._endpoint.wait((probe,), Deadline.after(timeout))
        except DeadlineExceeded as error:
            raise _named(error, "probe of", source, wanted) from None
        assert probe.arrival is not None
        return self._status_of(probe.arrival)

    def iprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Status | None:
        """The next message that fits, if it has come; it stays where it is. None: not yet. Makes progress.

        Raises:
            RankFailed, PeerExited, RankError: As for `recv`: none will come any more.
        """
        asked, wanted = self._asked(source, tag)
        self._endpoint.progress()
        probe = self._endpoint.start_probe(self._context, asked, wanted, self._everybody)
        if not probe.done:
            self._endpoint.abandon((probe,))
            return None
        self._endpoint.wait((probe,))  # raises what it failed with
        assert probe.arrival is not None
        return self._status_of(probe.arrival)

    def progress(self) -> None:
        """Move whatever can move now, of all communicators, without waiting.

        For long loops without other calls, while requests are under way. The library has no thread of its own: large
        messages and nonblocking collectives go on only while their ranks are in some call of it.
        """
        self._endpoint.progress()

    def _asked(self, source: int, tag: int) -> tuple[int, int]:
        """The endpoint and the tag that a receive or probe asks for, each of which may be `ANY`."""
        asked = ANY if is_wildcard(source, ANY_SOURCE) else self._member(source, "source")
        return asked, ANY if is_wildcard(tag, ANY_TAG) else checked_tag(tag)

    def _status_of(self, arrival: Arrival) -> Status:
        return Status(self._rank_of[arrival.source], arrival.tag, arrival.length)

    def _member(self, rank: int, argument: str) -> int:
        """The endpoint of a rank."""
        return self._members[checked_rank(rank, self.size, argument)]


def _none(_transfer: Transfer | None = None) -> None:
    """The result of a send."""


def _named(error: DeadlineExceeded, doing: str, rank: int, tag: int) -> DeadlineExceeded:
    """A time-out that says which call it was."""
    return DeadlineExceeded(f"{doing} {_whom(rank)}, {_which(tag)}: {error}")


def _whom(rank: int) -> str:
    return "any rank" if is_wildcard(rank, ANY_SOURCE) else f"rank {rank}"


def _which(tag: int) -> str:
    return "any tag" if tag == ANY else f"tag {tag}"
