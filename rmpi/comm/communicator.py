"""The communicator: an ordered group of places, and what they can do together.

One class, one spelling: the same method takes arrays and objects. It translates ranks into endpoints,
calls into schedules, and failures into errors that name ranks. It moves no byte itself.

Two contexts per communicator, so that messages and collectives never match each other: point to point uses
``context``, collectives use ``context + 1``. Collectives are the business of the `Driver`; here their arguments are
checked, and their schedules chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from threading import current_thread, get_ident, main_thread
from types import TracebackType
from typing import Any

import numpy as np

from rmpi.comm import choose
from rmpi.comm.driver import Driver, Keeper, signature, signature_of_reduction
from rmpi.comm.ops import SUM, Operator, as_operator
from rmpi.comm.partition import partition
from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded, RankError, UsageError
from rmpi.transport.base import Transfer
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.matching import ANY, Receive
from rmpi.transport.operation import Operation
from rmpi.transport.shortcut import NOTHING
from rmpi.wire.codec import Array, encode_parts, encode_value
from rmpi.wire.frames import EAGER_LIMIT

ANY_SOURCE = -1
"""In place of a source: whoever sends first."""

ANY_TAG = -1
"""In place of a tag: whichever comes first."""

LONG_ENOUGH = 0.01
"""Seconds; a time-out from which on a millisecond more does not matter."""

Op = Operator | Callable[[Any, Any], Any]


@dataclass(slots=True)
class Status:
    """Filled in by a receive.

    Attributes:
        source: Rank the message came from.
        tag: Its tag.
        nbytes: Bytes of its payload on the wire; 0 for what travels in the header (None, int, float, bool).
    """

    source: int = ANY_SOURCE
    tag: int = ANY_TAG
    nbytes: int = 0


_BARRIER = signature("barrier")
_ALLGATHER = signature("allgather")


class Comm:
    """An ordered group of ranks ``0 … size-1``.

    Made by `rmpi.init`. Every method that can wait takes ``timeout`` in seconds (None waits for ever) and
    raises `DeadlineExceeded` when it passes, `RankFailed` when a rank it needs dies, and `PeerExited` when
    that rank ended well without doing what this call waits for.

    Collectives are called by every rank, in the same order, with the same root and operator, and for
    reductions with arrays of the same shape and dtype; else all of them raise `CollectiveMismatch`.

    Attributes:
        rank: Mine, from 0.
        size: How many there are.
        hosts: Where each rank runs, by rank.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        keeper: Keeper,
        members: Sequence[int],
        context: int,
        hosts: Sequence[str],
    ) -> None:
        self._endpoint = endpoint
        self._keeper = keeper
        self._members = tuple(members)
        self._everybody = frozenset(members)
        self._rank_of = {member: rank for rank, member in enumerate(members)}
        self._context = context
        self._left = False
        self.rank = self._rank_of[endpoint.ident]
        self.size = len(members)
        self.hosts = tuple(hosts)
        self._short = endpoint.open_context(context, members, collective=False)
        self._shields = int(current_thread() is main_thread())  # where handlers run, if that is also who receives
        self._driver = Driver(endpoint, keeper, members, context)

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
            self._give_up_send(value, error)
            if isinstance(error, DeadlineExceeded):
                raise _named(error, "send to", dest, tag) from None
            raise
        destination = self._member(dest, "dest")
        tag = _checked_tag(tag)
        try:
            self._endpoint.send(destination, self._context, tag, value, deadline=Deadline.after(timeout))
        except DeadlineExceeded as error:
            raise _named(error, "send to", dest, tag) from None

    def _give_up_send(self, value: object, error: BaseException) -> None:
        """The short cut raised: what has begun goes on without us; if the value cannot be pickled, that is said."""
        short = self._short
        begun = short.given
        if short.thread == get_ident() and isinstance(begun, Transfer):
            short.given = None
            self._endpoint.abandon((begun,))
        elif isinstance(error, Exception):
            encode_value(value)

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
        if timeout is None or _is_long(timeout):
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
                SHIELD.depth += self._shields  # a plain store, as above: no second handler may run before all is back
                self._give_back(out, error)
                if isinstance(error, DeadlineExceeded):
                    raise _named(error, "recv from", source, tag) from None
                raise
        return self._recv(source, tag, out, timeout, status)

    def _recv(self, source: int, tag: int, out: Array | None, timeout: float | None, status: Status | None) -> Any:
        """`recv` the long way."""
        asked = ANY if _is(source, ANY_SOURCE) else self._member(source, "source")
        tag = ANY if _is(tag, ANY_TAG) else _checked_tag(tag)
        if out is not None:
            _check_out(out)
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
        destination = self._member(dest, "dest")
        asked = ANY if _is(source, ANY_SOURCE) else self._member(source, "source")
        sendtag = _checked_tag(sendtag)
        recvtag = ANY if _is(recvtag, ANY_TAG) else _checked_tag(recvtag)
        if out is not None:
            _check_out(out)
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
        shielded = SHIELD.enter()
        try:
            self._endpoint.wait((receive,), deadline)
            return self._take(receive, status)
        finally:
            if shielded:
                SHIELD.leave()

    def _give_back(self, out: Array | None, error: BaseException) -> None:
        """What came by the short cut, and never got to who asked for it, is the next in line again.

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
                member, tag = self._members[short.source], short.tag
                self._endpoint.put_back(self._context, member, tag, 0, encoded, eager=short.length <= EAGER_LIMIT)
                if type(value) is list and isinstance(error, Exception):
                    self._try_again(member, tag)
        finally:
            if self._shields:
                SHIELD.leave()

    def _try_again(self, member: int, tag: int) -> None:
        """Unpickle the next message once more, with handlers deferred. If that succeeds, put it back."""
        shielded = SHIELD.enter()
        try:
            receive = self._endpoint.receive(self._context, member, tag, deadline=Deadline.after(0))
            self._take(receive, None)
            self._endpoint.abandon((receive,))
        except DeadlineExceeded:  # another thread was waiting for it
            pass
        finally:
            if shielded:
                SHIELD.leave()

    def _take(self, receive: Receive, status: Status | None) -> Any:
        arrival = receive.arrival
        assert arrival is not None
        if status is not None:
            status.source = self._rank_of[arrival.source]
            status.tag = arrival.tag
            status.nbytes = arrival.length
        try:
            return receive.take()
        except Exception as error:
            receive.arrival = None  # it would fail again and again
            error.add_note(f"while unpickling a message from rank {self._rank_of[arrival.source]}")
            raise

    # -------------------------------------------------------------------------------- collectives

    def barrier(self, *, timeout: float | None = None) -> None:
        """Return when every rank has called it. ⌈log₂ size⌉ rounds."""
        self._driver.run(_BARRIER, choose.barrier(self.rank, self.size), timeout)

    def broadcast(
        self,
        value: object = None,
        root: int = 0,
        *,
        out: Array | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Give the root's value to every rank.

        Args:
            value: On the root, anything that can be sent; elsewhere it is ignored.
            root: The rank that has the value.
            out: An array to receive in place, on ranks other than the root; the root ignores it.

        Returns:
            On the root ``value`` itself, elsewhere a value of one's own, or ``out``.

        Raises:
            UsageError: What came does not fit ``out``.
        """
        root = self._root(root)
        out = None if self.rank == root else _checked_out(out)
        schedule = choose.broadcast(self.rank, self.size, root, value, out)
        return _in(out, self._driver.run(signature("broadcast", root), schedule, timeout))

    def reduce(
        self,
        value: object,
        op: Op = SUM,
        root: int = 0,
        *,
        out: Array | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Combine the values of all ranks, in rank order, on the root.

        Args:
            value: Arrays of one shape and dtype on all ranks (combined element by element), or any objects
                (combined as wholes: ``+`` joins strings and lists). Not modified.
            op: `SUM`, `PROD`, `MIN`, `MAX`, a ufunc of two inputs, or a callable ``op(lower, higher)``. It
                need not commute; it must be associative up to rounding, return its result, and leave its
                operands alone. Arrays follow NumPy's rules: the sum of bools is their *or*, and small
                integers wrap around; convert first where that is not meant.
            out: On the root, an array for the result; it may be ``value`` itself.

        Returns:
            On the root a value of its own (or ``out``), elsewhere None. The bracketing depends on the number
            of ranks alone, so the bits are the same from run to run and wherever the ranks run.
        """
        root = self._root(root)
        operator = as_operator(op)
        out = _checked_out(out) if self.rank == root else None
        schedule = choose.reduce(self.rank, self.size, root, value, operator, out)
        called = signature_of_reduction("reduce", root, operator.name, value)
        return _in(out, self._driver.run(called, schedule, timeout))

    def allreduce(
        self,
        value: object,
        op: Op = SUM,
        *,
        out: Array | None = None,
        timeout: float | None = None,
    ) -> Any:
        """`reduce`, with the result on every rank: the same bits on all of them.

        Returns:
            A value of one's own, never an alias of ``value``; or ``out``, which may be ``value`` itself.
        """
        operator = as_operator(op)
        out = _checked_out(out)
        schedule = choose.allreduce(self.rank, self.size, value, operator, out)
        called = signature_of_reduction("allreduce", None, operator.name, value)
        return _in(out, self._driver.run(called, schedule, timeout))

    def gather(self, value: object, root: int = 0, *, timeout: float | None = None) -> list[Any] | None:
        """The values of all ranks as a list in rank order on the root; None elsewhere.

        Values may be of any types and sizes. The root's own is in the list itself, not a copy.
        """
        root = self._root(root)
        schedule = choose.gather(self.rank, self.size, root, value)
        return self._driver.run(signature("gather", root), schedule, timeout)

    def allgather(self, value: object, *, out: Array | None = None, timeout: float | None = None) -> Any:
        """The values of all ranks as a list in rank order, on every rank; one's own is not a copy.

        Args:
            out: An array to receive in place, of shape ``(size, *value.shape)`` and the values' dtype; it must not
                share memory with ``value``. Without it, large arrays cost new memory in every call.

        Returns:
            The list; or ``out``, if that was given.

        Raises:
            UsageError: What came does not fit ``out``, or ``out`` has not one place for each rank.
        """
        rows = None if out is None else _rows(out, self.size)
        pieces = self._driver.run(_ALLGATHER, choose.allgather(self.rank, self.size, value, rows), timeout)
        if rows is None:
            return pieces
        for row, piece in zip(rows, pieces, strict=True):
            _in(row, np.asarray(piece) if row.ndim == 0 else piece)
        return out

    def scatter(
        self,
        values: Sequence[Any] | None = None,
        root: int = 0,
        *,
        out: Array | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Give each rank its item of the root's sequence.

        Args:
            values: On the root, a sequence (or an array, split along axis 0) of exactly ``size`` items of any
                types and sizes; elsewhere it is ignored.
            out: An array to receive in place.

        Returns:
            ``out`` if that was given; else ``values[rank]``: on the root the very item, elsewhere one's own.

        Raises:
            UsageError: On the root, ``values`` does not have ``size`` items. Nothing was sent.
        """
        root = self._root(root)
        schedule = choose.scatter(self.rank, self.size, root, values, _checked_out(out))
        return _in(out, self._driver.run(signature("scatter", root), schedule, timeout))

    def partition(self, n: int) -> tuple[int, int]:
        """This rank's share of ``n`` items: ``(start, count)``. The first ``n % size`` ranks get one more.

        10 items over 3 ranks: (0, 4), (4, 3), (7, 3). Nothing is communicated.
        """
        return partition(n, self.size, self.rank)

    # ------------------------------------------------------------------------------------------ end

    def __enter__(self) -> Comm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._left:
            self._left = True
            self._keeper.leave()

    def __repr__(self) -> str:
        return f"<Comm rank {self.rank} of {self.size}>"

    # ----------------------------------------------------------------------------------- checking

    def _member(self, rank: int, argument: str) -> int:
        try:
            number = index(rank)
        except TypeError:
            raise RankError(f"{argument} must be a rank from 0 to {self.size - 1}, not {rank!r}") from None
        if not 0 <= number < self.size:
            raise RankError(f"{argument}={number}: there are only ranks 0 to {self.size - 1}")
        return self._members[number]

    def _root(self, root: int) -> int:
        """``root`` as a plain number."""
        if type(root) is int and 0 <= root < self.size:
            return root
        self._member(root, "root")
        return int(index(root))


def driver_of(comm: Comm) -> Driver:
    """The driver of its collectives: for whoever connects a communicator with its `Keeper`."""
    return comm._driver


def _is_long(timeout: object) -> bool:
    """Whether that much time allows for the short cut, which does not look at the clock."""
    return type(timeout) in (int, float) and timeout >= LONG_ENOUGH  # type: ignore[operator]


def _named(error: DeadlineExceeded, doing: str, rank: int, tag: int) -> DeadlineExceeded:
    """A time-out that says which call it was."""
    whom = "any rank" if _is(rank, ANY_SOURCE) else f"rank {rank}"
    which = "any tag" if tag == ANY else f"tag {tag}"
    return DeadlineExceeded(f"{doing} {whom}, {which}: {error}")


def _is(given: object, wildcard: int) -> bool:
    return type(given) is int and given == wildcard


def _checked_tag(tag: int) -> int:
    try:
        number = index(tag)
    except TypeError:
        raise UsageError(f"tag must be an integer from 0 to 2**63-1, not {tag!r}") from None
    if isinstance(tag, bool) or not 0 <= number < 1 << 63:
        raise UsageError(f"tag must be an integer from 0 to 2**63-1, not {tag!r}")
    return number


def _check_out(out: Array) -> None:
    if not isinstance(out, np.ndarray):
        raise UsageError(f"out= must be a NumPy array, not {type(out).__name__}")
    if not out.flags.writeable:
        raise UsageError("out= is a read-only array; receive into one that can be written")


def _checked_out(out: Array | None) -> Array | None:
    if out is not None:
        _check_out(out)
    return out


def _rows(out: Array, size: int) -> list[Array]:
    """One array for each rank, which is a part of ``out``."""
    _check_out(out)
    if out.ndim < 1 or len(out) != size:
        raise UsageError(
            f"out= needs one place for each of {size} ranks along its first axis, but has shape {out.shape}"
        )
    return [out[rank, ...] for rank in range(size)]


def _in(out: Array | None, result: Any) -> Any:
    """The result, in ``out`` if that was given.

    Raises:
        UsageError: It does not fit there.
    """
    if out is None or result is out:
        return result
    if not isinstance(result, np.ndarray):
        raise UsageError(f"out= is an array, but the result is {type(result).__name__} {result!r:.60}")
    if result.shape != out.shape or result.dtype != out.dtype:
        raise UsageError(
            f"out= is an array {out.shape} of {out.dtype}, but the result is an array {result.shape} of {result.dtype}"
        )
    np.copyto(out, result)
    return out
