"""The communicator: an ordered group of places, and what they can do together.

One class, one spelling: the same method takes arrays and objects. It translates ranks into endpoints,
calls into schedules, and failures into errors that name ranks. It moves no byte itself.

Two contexts per communicator, so that messages and collectives never match each other: point to point uses
``context``, collectives use ``context + 1`` with the sequence number of the call as tag. Every collective
frame carries the fingerprint of what was called. A frame that does not belong to the call made here under
its number is a *mismatch*; the finder tells the `Keeper`, which breaks the communicator on all members with
both call sites in the text.

After an error inside a collective a communicator cannot be used any more, and says so: its peers may be in
the middle of it, and their bytes would answer the wrong call.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from operator import index
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np

from rmpi.comm import choose
from rmpi.comm.ops import SUM, Operator, as_operator
from rmpi.comm.partition import partition
from rmpi.comm.schedule import Recv, Schedule, Send, Step
from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, DeadlineExceeded, RankError, RmpiError, UsageError
from rmpi.transport.base import Transfer
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.matching import ANY, Arrival, Receive
from rmpi.transport.operation import Operation
from rmpi.wire.codec import Array, encode_parts, encode_value

T = TypeVar("T")

ANY_SOURCE = -1
"""In place of a source: whoever sends first."""

ANY_TAG = -1
"""In place of a tag: whichever comes first."""

REMEMBERED = 64
"""Collectives whose call sites are kept, to name both sides of a mismatch."""

PATIENCE = 0.25
"""Seconds in a collective after which a rank reports what it called. Ranks that called different things may
wait for each other without any frame that could disagree; their reports do."""

LONG_ENOUGH = 0.01
"""Seconds; a time-out from which on a millisecond more does not matter."""

_PACKAGE = f"{Path(__file__).resolve().parent.parent}/"

Op = Operator | Callable[[Any, Any], Any]


class Keeper(Protocol):
    """Whoever can reach all ranks of the job besides their links: the router, or a test's fabric."""

    def called(self, context: int, sequence: int, fingerprint: int, what: str) -> None:
        """This rank called ``what`` and has waited a while: compare with what others called."""

    def mismatch(self, context: int, sequence: int, fingerprint: int, what: str, other: int) -> None:
        """This rank called ``what``, and endpoint ``other`` something else: ask it, and break the context."""

    def leave(self) -> None:
        """This rank will not communicate any more."""


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


@dataclass(frozen=True, slots=True)
class Call:
    """A collective that was called here."""

    sequence: int
    fingerprint: int
    what: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.what} at {self.file}:{self.line}"


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
        self._collective = context + 1
        self._sequence = 0
        self._calls: deque[Call] = deque(maxlen=REMEMBERED)
        self._reported: Call | None = None
        self._left = False
        self.rank = self._rank_of[endpoint.ident]
        self.size = len(members)
        self.hosts = tuple(hosts)
        self._short = endpoint.open_context(context, members, collective=False)
        self._short_collective = endpoint.open_context(self._collective, members, collective=True)

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
            if self._short.send(value, dest, tag):
                return
        except Exception:
            encode_value(value)  # if it cannot be pickled, this says so; else it was a signal handler that raised
            raise
        destination = self._member(dest, "dest")
        tag = _checked_tag(tag)
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
        if timeout is None or _is_long(timeout):
            try:
                value = short.recv(source, tag, out)
                if value is not NotImplemented:
                    if status is not None:
                        status.source, status.tag, status.nbytes = short.source, short.tag, short.length
                    if out is None:
                        short.given = None  # a plain store: no handler can run between here and the caller
                    return value
            except BaseException as error:
                self._give_back(out, error)
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

    def _give_back(self, out: Array | None, error: BaseException) -> None:
        """What came by the short cut, and never got to who asked for it, is the next in line again.

        Raises:
            Exception: It cannot be unpickled, and is gone. That was the ``error`` then, not a signal handler's.
        """
        short = self._short
        value, short.given = short.given, None
        if short.thread != get_ident() or (value is None and not short.landed):
            return
        encoded = encode_parts(value) if type(value) is list else encode_value(out if short.landed else value)
        source, tag = short.source, short.tag
        self._endpoint.put_back(self._context, self._members[source], tag, 0, encoded)
        if type(value) is list and isinstance(error, Exception):
            self._try_again(source, tag)

    def _try_again(self, source: int, tag: int) -> None:
        """Unpickle the next message once more, with handlers deferred. If that succeeds, put it back."""
        shielded = SHIELD.enter()
        try:
            receive = self._endpoint.receive(self._context, self._members[source], tag)
            self._take(receive, None)
            self._endpoint.abandon((receive,))
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
        self._collect("barrier", "", choose.barrier(self.rank, self.size), timeout)

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
        self._member(root, "root")
        out = None if self.rank == index(root) else _checked_out(out)
        schedule = choose.broadcast(self.rank, self.size, root, value, out)
        return _in(out, self._collect("broadcast", f"root={root}", schedule, timeout))

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
        self._member(root, "root")
        operator = as_operator(op)
        out = _checked_out(out) if self.rank == index(root) else None
        schedule = choose.reduce(self.rank, self.size, root, value, operator, out)
        what = f"root={root}, op={operator.name}, {_kind_of(value)}"
        return _in(out, self._collect("reduce", what, schedule, timeout))

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
        return _in(out, self._collect("allreduce", f"op={operator.name}, {_kind_of(value)}", schedule, timeout))

    def gather(self, value: object, root: int = 0, *, timeout: float | None = None) -> list[Any] | None:
        """The values of all ranks as a list in rank order on the root; None elsewhere.

        Values may be of any types and sizes. The root's own is in the list itself, not a copy.
        """
        self._member(root, "root")
        schedule = choose.gather(self.rank, self.size, root, value)
        return self._collect("gather", f"root={root}", schedule, timeout)

    def allgather(self, value: object, *, timeout: float | None = None) -> list[Any]:
        """The values of all ranks as a list in rank order, on every rank; one's own is not a copy."""
        return self._collect("allgather", "", choose.allgather(self.rank, self.size, value), timeout)

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
        self._member(root, "root")
        schedule = choose.scatter(self.rank, self.size, root, values, _checked_out(out))
        return _in(out, self._collect("scatter", f"root={root}", schedule, timeout))

    def partition(self, n: int) -> tuple[int, int]:
        """This rank's share of ``n`` items: ``(start, count)``. The first ``n % size`` ranks get one more.

        10 items over 3 ranks: (0, 4), (4, 3), (7, 3). Nothing is communicated.
        """
        return partition(n, self.size, self.rank)

    def _collect(self, name: str, detail: str, schedule: Schedule[T], timeout: float | None) -> T:
        """Run one collective: number it, say what was called, and follow its schedule."""
        deadline = Deadline.after(timeout)
        what = f"{name}({detail})"
        try:
            call = Call(self._sequence, fingerprint_of(what), what, *_call_site())
            self._sequence += 1
            self._calls.append(call)
            self._endpoint.begin_call(self._collective, call.sequence, call.fingerprint)
            return self._follow(schedule, call, deadline)
        except BaseException as error:
            self._spoil(what, error)
            if isinstance(error, DeadlineExceeded):
                raise DeadlineExceeded(f"{what}: timeout of {timeout} s passed; {_UNUSABLE}") from None
            raise

    def _follow(self, schedule: Schedule[T], call: Call, deadline: Deadline) -> T:
        """The driver of blocking collectives."""
        endpoint = self._endpoint
        patience = Deadline.after(PATIENCE), partial(self._report, call)
        result: Any = None
        try:
            while True:
                steps = schedule.send(result)
                alone = not isinstance(steps, tuple)
                done = self._take_shortcuts((steps,) if alone else steps, call)  # type: ignore[arg-type]
                left = [operation for operation in done if isinstance(operation, Operation)]
                if left:
                    endpoint.wait(left, deadline, patience)
                    done = [_result(item) if isinstance(item, Operation) else item for item in done]
                result = done[0] if alone else done
        except StopIteration as finished:
            return finished.value  # type: ignore[no-any-return]

    def _report(self, call: Call) -> None:
        """Patience is lost, perhaps not for the first time in this collective."""
        if self._reported is call:
            return
        self._reported = call
        self._keeper.called(self._context, call.sequence, call.fingerprint, str(call))

    def _take_shortcuts(self, steps: tuple[Step, ...], call: Call) -> list[Any]:
        """The results of these steps, in order; in place of one that must be waited for, its operation.

        Sends go first, as far as they can, and receives follow: so nobody waits for what we have not sent. The first
        receive that has no short cut ends them, because the messages of a pair have an order.
        """
        short, quick = self._short_collective, True
        done: list[Any] = [None] * len(steps)
        try:
            for i, step in enumerate(steps):
                if isinstance(step, Send) and not short.send(step.value, step.peer, call.sequence, call.fingerprint):
                    done[i] = self._start_one(step, call)
            for i, step in enumerate(steps):
                if isinstance(step, Recv):
                    if quick:
                        done[i] = short.recv(step.peer, call.sequence, step.out, call.fingerprint)
                        quick = done[i] is not NotImplemented
                    if not quick:
                        done[i] = self._start_one(step, call)
        except BaseException:
            self._endpoint.abandon([item for item in done if isinstance(item, Operation)])
            raise
        short.given = None
        return done

    def _start_one(self, step: Step, call: Call) -> Transfer | Receive:
        peer = self._members[step.peer]
        if isinstance(step, Send):
            return self._endpoint.start_send(
                peer, self._collective, call.sequence, step.value, fingerprint=call.fingerprint
            )
        return self._endpoint.start_receive(self._collective, peer, call.sequence, out=step.out, strict=False)

    def _spoil(self, what: str, error: BaseException) -> None:
        """A collective did not end well: nothing may follow it on this communicator."""
        if isinstance(error, RmpiError) and not isinstance(error, DeadlineExceeded | UsageError):
            reason: RmpiError = error
        else:
            reason = ChannelClosed(f"an earlier {what} ended with {type(error).__name__}; {_UNUSABLE}")
        self._endpoint.give_up(self._collective, reason)

    # ---------------------------------------------------------------------------- disagreement, end

    def call(self, sequence: int) -> Call | None:
        """What this rank called as collective ``sequence``; None if not yet, or forgotten."""
        return next((call for call in list(self._calls) if call.sequence == sequence), None)

    @property
    def last_call(self) -> Call | None:
        """The last collective that this rank called."""
        return self._calls[-1] if self._calls else None

    def report_mismatch(self, arrival: Arrival) -> None:
        """A frame came that belongs to another call than was made here: have everybody told."""
        call = self.call(arrival.tag)
        if call is not None:
            self._keeper.mismatch(self._context, call.sequence, call.fingerprint, str(call), arrival.source)

    @property
    def context(self) -> int:
        """The number that keeps this communicator's messages apart from all others'."""
        return self._context

    def rank_of(self, endpoint: int) -> int | None:
        """The rank at an endpoint, if it is a member."""
        return self._rank_of.get(endpoint)

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


def _is_long(timeout: object) -> bool:
    """Whether that much time allows for the short cut, which does not look at the clock."""
    return type(timeout) in (int, float) and timeout >= LONG_ENOUGH  # type: ignore[operator]


_UNUSABLE = "this communicator cannot be used for collectives any more, because ranks may be in the middle of it"


def _named(error: DeadlineExceeded, doing: str, rank: int, tag: int) -> DeadlineExceeded:
    """A time-out that says which call it was."""
    whom = "any rank" if _is(rank, ANY_SOURCE) else f"rank {rank}"
    which = "any tag" if tag == ANY else f"tag {tag}"
    return DeadlineExceeded(f"{doing} {whom}, {which}: {error}")


def _result(operation: Operation) -> Any:
    return operation.take() if isinstance(operation, Receive) else None


def _kind_of(value: object) -> str:
    """What ranks must agree on: dtype and shape of an array, or only that it is none."""
    if not isinstance(value, np.ndarray):
        return "object"
    plain = type(value) in (np.ndarray, np.memmap)
    return f"{'array' if plain else type(value).__qualname__} {value.shape} of {value.dtype}"


@lru_cache(maxsize=1024)
def fingerprint_of(what: str) -> int:
    """64 bits of BLAKE2b (RFC 7693) of what was called, never 0."""
    return int.from_bytes(blake2b(what.encode(), digest_size=8).digest(), "little") or 1


def _call_site() -> tuple[str, int]:
    """File and line of the first caller outside this package."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


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
