"""The driver of collectives: it numbers them, says what was called, and follows their schedules.

Every frame of a collective carries the number of the call as tag and the fingerprint of what was called. A frame
that does not belong to the call made here under its number is a *mismatch*; the finder tells the `Keeper`, which
breaks the communicator on all members with both call sites in the text. Ranks that called different things may also
wait for each other without any frame that could disagree: after `PATIENCE` each reports what it called.

After an error inside a collective the communicator cannot be used for collectives any more: its peers may be in the
middle of it, and their bytes would answer the wrong call.

**Cost.** Most collectives are small, and wait for nothing but a few messages by the short cut (`transport.shortcut`).
So what only an error or a long wait asks for is made only then: the text of a call site, the clock, the operations of
the endpoint. What is called again and again has its text and fingerprint in a cache.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from types import CodeType
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from rmpi.comm.ongoing import Ongoing
from rmpi.comm.schedule import Recv, Schedule, Send, Step, raw_bytes
from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, DeadlineExceeded, RmpiError, UsageError
from rmpi.transport.base import Transfer
from rmpi.transport.callsite import PACKAGE
from rmpi.transport.endpoint import PATIENCE, Endpoint
from rmpi.transport.matching import Arrival, Receive
from rmpi.transport.operation import Operation, Patience
from rmpi.transport.shortcut import NOTHING, NoShortcut, Shortcut
from rmpi.wire.frames import EAGER_LIMIT

T = TypeVar("T")

REMEMBERED = 64
"""Collectives whose call sites are kept, to name both sides of a mismatch."""

_UNUSABLE = "this communicator cannot be used for collectives any more, because ranks may be in the middle of it"


class Keeper(Protocol):
    """Whoever can reach all ranks of the job besides their links: the router, or a test's fabric."""

    def called(self, context: int, sequence: int, fingerprint: int, what: str) -> None:
        """This rank called ``what`` and has waited a while: compare with what others called."""

    def mismatch(self, context: int, sequence: int, fingerprint: int, what: str, other: int) -> None:
        """This rank called ``what``, and endpoint ``other`` something else: ask it, and break the context."""

    def revoke(self, context: int, why: str) -> None:
        """Break this context for everybody, with `ChannelClosed` and this text."""

    def abort(self, code: int, why: str) -> None:
        """End the job with this exit code. When it returns, that will be done whatever becomes of this rank."""

    def leave(self) -> None:
        """This rank will not communicate any more."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What was called, as ranks must agree on it: equal texts have equal fingerprints."""

    what: str
    fingerprint: int


@lru_cache(maxsize=1024)
def signature(
    name: str,
    root: int | None = None,
    operator: str | None = None,
    kind: type | None = None,
    shape: tuple[int, ...] = (),
    dtype: object = None,
) -> Signature:
    """The signature of a collective; of a reduction also operator, and ``kind`` of value (`object`: no array)."""
    details = []
    if root is not None:
        details.append(f"root={root:d}")
    if operator is not None:
        details.append(f"op={operator}")
    if kind is object:
        details.append("object")
    elif kind is not None:
        plain = kind in (np.ndarray, np.memmap)
        details.append(f"{'array' if plain else kind.__qualname__} {shape} of {dtype}")
    what = f"{name}({', '.join(details)})"
    return Signature(what, fingerprint_of(what))


def signature_of_reduction(name: str, root: int | None, operator: str, value: object) -> Signature:
    """As `signature`; ranks must agree on dtype and shape of an array, or only on that the value is none."""
    if not isinstance(value, np.ndarray):
        return signature(name, root, operator, object)
    kind: type = type(value)
    dtype = value.dtype
    # Equal dtypes surely have one text only if they are built in: the fields of others may be aligned or not.
    return signature(name, root, operator, kind, value.shape, dtype if dtype.isbuiltin == 1 else str(dtype))


def fingerprint_of(what: str) -> int:
    """64 bits of BLAKE2b (RFC 7693) of what was called, never 0."""
    return int.from_bytes(blake2b(what.encode(), digest_size=8).digest(), "little") or 1


Collective: TypeAlias = tuple[Signature, Schedule[Any], Callable[[Any], Any] | None]
"""One call: what to compare with the other ranks, what to do, and what to make of the schedule's result."""

Called: TypeAlias = tuple[int, Signature, CodeType, int]
"""A collective as it is remembered: number, signature, and the caller's code and instruction in it."""


@dataclass(frozen=True, slots=True)
class Call:
    """A collective that was called here."""

    sequence: int
    fingerprint: int
    what: str
    file: str
    line: int

    @classmethod
    def of(cls, called: Called) -> Call:
        sequence, signature, code, instruction = called
        return cls(sequence, signature.fingerprint, signature.what, code.co_filename, _line_of(code, instruction))

    def __str__(self) -> str:
        return f"{self.what} at {self.file}:{self.line}"


class Driver:
    """The collectives of one communicator.

    Attributes:
        context: The communicator's number, by which the `Keeper` knows it. Messages of collectives have the next one,
            so that they never match those from point to point.
    """

    def __init__(self, endpoint: Endpoint, keeper: Keeper, members: Sequence[int], context: int) -> None:
        self.context = context
        self._endpoint = endpoint
        self._keeper = keeper
        self._members = tuple(members)
        self._own_context = context + 1
        self._sequence = 0
        self._calls: deque[Called] = deque(maxlen=REMEMBERED)
        self._reported = -1
        self._short: Shortcut = endpoint.open_context(self._own_context, members, collective=True)

    @property
    def called(self) -> int:
        """How many collectives were called."""
        return self._sequence

    def close(self) -> None:
        """Forget the context of the collectives."""
        self._endpoint.close_context(self._own_context, self._short)
        self._short = NoShortcut()

    def run(self, call: Collective, timeout: float | None) -> Any:
        """Run one collective, called by whoever called the method that calls this."""
        signature, schedule, shape = call
        deadline = Deadline.NEVER if timeout is None else Deadline.after(timeout)
        try:
            sequence = self._number(signature)
            result = self._follow(schedule, sequence, signature.fingerprint, deadline)
        except BaseException as error:
            self._spoil(signature.what, error)
            if isinstance(error, DeadlineExceeded):
                raise DeadlineExceeded(f"{signature.what}: timeout of {timeout} s passed; {_UNUSABLE}") from None
            raise
        return result if shape is None else shape(result)

    def start(self, call: Collective) -> Ongoing:
        """Begin one collective, which goes on with any progress."""
        signature, schedule, shape = call
        try:
            sequence = self._number(signature)
        except BaseException as error:
            self._spoil(signature.what, error)
            raise
        ongoing = Ongoing(
            self._endpoint,
            schedule,
            shape,
            partial(self._post, sequence, signature.fingerprint),
            partial(self._spoil, signature.what),
            (Deadline.after(PATIENCE), partial(self._report, sequence)),
        )
        ongoing.start()
        return ongoing

    def _number(self, signature: Signature) -> int:
        """The number of a collective that is called now, by the first caller outside of this package."""
        frame = sys._getframe(3)
        while (code := frame.f_code).co_filename.startswith(PACKAGE) and frame.f_back is not None:
            frame = frame.f_back
        sequence = self._sequence
        self._sequence = sequence + 1
        self._calls.append((sequence, signature, code, frame.f_lasti))
        self._endpoint.begin_call(self._own_context, sequence, signature.fingerprint)
        return sequence

    def _follow(self, schedule: Schedule[T], sequence: int, fingerprint: int, deadline: Deadline) -> T:
        short, result = self._short, None
        patience: Patience | None = None
        while True:
            try:
                steps = schedule.send(result)
            except StopIteration as finished:
                short.given = None
                return finished.value  # type: ignore[no-any-return]
            if isinstance(steps, Recv):
                result = short.recv(steps.peer, sequence, steps.out, fingerprint)
                begun = isinstance(result, Receive)
                if result is not NOTHING and not begun:
                    continue
                done: list[Any] = [result if begun else self._start(steps, sequence, fingerprint)]
            elif isinstance(steps, Send):
                result, sent = None, short.send(steps.value, steps.peer, sequence, fingerprint)
                if sent is True:
                    continue
                done = [sent or self._start(steps, sequence, fingerprint)]
            else:
                result, whole = self._take_shortcuts(steps, sequence, fingerprint)
                if whole:
                    continue
                done = result
            patience = patience or (Deadline.after(PATIENCE), partial(self._report, sequence))
            self._endpoint.wait([item for item in done if isinstance(item, Operation)], deadline, patience)
            done = [_result(item) if isinstance(item, Operation) else item for item in done]
            result = done if isinstance(steps, tuple) else done[0]

    def _take_shortcuts(self, steps: tuple[Step, ...], sequence: int, fingerprint: int) -> tuple[list[Any], bool]:
        """The results of these steps, in order; in place of one that must be waited for, its operation.

        Returns:
            The results, and whether none of them must be waited for.
        """
        if len(steps) == 2 and isinstance(steps[0], Send) and isinstance(steps[1], Recv):  # most often
            sent, got = self._exchange(steps[0], steps[1], sequence, fingerprint)
            return [sent, got], not (isinstance(sent, Operation) or isinstance(got, Operation))
        sends = [(i, step) for i, step in enumerate(steps) if isinstance(step, Send)]
        receives = [(i, step) for i, step in enumerate(steps) if isinstance(step, Recv)]
        done: list[Any] = [None] * len(steps)
        pairwise = sends and len(sends) == len(receives)
        try:
            if pairwise and raw_bytes(sends[0][1].value) > EAGER_LIMIT:
                for (i, send), (j, recv) in zip(sends, receives, strict=True):
                    done[i], done[j] = self._exchange(send, recv, sequence, fingerprint)
            else:
                for i, send in sends:
                    posted = self._short.post(send.value, send.peer, sequence, fingerprint)
                    done[i] = None if posted else self._start(send, sequence, fingerprint)
                self._receive_all(receives, done, sequence, fingerprint)
        except BaseException:
            self._endpoint.abandon([item for item in done if isinstance(item, Operation)])
            raise
        return done, not any(isinstance(item, Operation) for item in done)

    def _exchange(self, send: Send, recv: Recv, sequence: int, fingerprint: int) -> tuple[Any, Any]:
        """Both at the same time, so that large values go both ways; an operation where something must be waited for."""
        sent, got = self._short.exchange(send.value, send.peer, recv.peer, sequence, recv.out, fingerprint)
        if sent is False:
            sent = self._start(send, sequence, fingerprint)
        if got is NOTHING:
            got = self._start(recv, sequence, fingerprint)
        return None if sent is True else sent, got

    def _receive_all(self, receives: list[tuple[int, Recv]], done: list[Any], sequence: int, fingerprint: int) -> None:
        """The first that has no short cut ends them, because the messages of a pair have an order."""
        quick = True
        for i, recv in receives:
            if quick:
                done[i] = self._short.recv(recv.peer, sequence, recv.out, fingerprint)
                quick = done[i] is not NOTHING
            if not quick:
                done[i] = self._start(recv, sequence, fingerprint)

    def _post(self, sequence: int, fingerprint: int, step: Step) -> Operation | None:
        """Begin a step of a nonblocking collective; None if it was a send, and is complete."""
        if isinstance(step, Send) and self._short.post(step.value, step.peer, sequence, fingerprint):
            return None
        return self._start(step, sequence, fingerprint)

    def _start(self, step: Step, sequence: int, fingerprint: int) -> Transfer | Receive:
        """Begin a step the long way."""
        peer = self._members[step.peer]
        if isinstance(step, Send):
            return self._endpoint.start_send(peer, self._own_context, sequence, step.value, fingerprint=fingerprint)
        return self._endpoint.start_receive(self._own_context, peer, sequence, out=step.out, strict=False)

    def _spoil(self, what: str, error: BaseException) -> None:
        """A collective did not end well: nothing may follow it on this communicator."""
        if isinstance(error, RmpiError) and not isinstance(error, DeadlineExceeded | UsageError):
            reason: RmpiError = error
        else:
            reason = ChannelClosed(f"an earlier {what} ended with {type(error).__name__}; {_UNUSABLE}")
        self._endpoint.give_up(self._own_context, reason)

    # --------------------------------------------------------------------------------- disagreement

    def call(self, sequence: int) -> Call | None:
        """What this rank called as collective ``sequence``; None if not yet, or forgotten."""
        found = (called for called in list(self._calls) if called[0] == sequence)
        return next(map(Call.of, found), None)

    def last_call(self) -> Call | None:
        """The last collective that this rank called."""
        calls = list(self._calls)
        return Call.of(calls[-1]) if calls else None

    def report_mismatch(self, arrival: Arrival) -> None:
        """A frame came that belongs to another call than was made here: have everybody told."""
        call = self.call(arrival.tag)
        if call is not None:
            self._keeper.mismatch(self.context, call.sequence, call.fingerprint, str(call), arrival.source)

    def _report(self, sequence: int) -> None:
        """Patience is lost, perhaps not for the first time in this collective."""
        call = self.call(sequence)
        if call is not None and self._reported != sequence:
            self._reported = sequence
            self._keeper.called(self.context, sequence, call.fingerprint, str(call))


def _result(operation: Operation) -> Any:
    return operation.take() if isinstance(operation, Receive) else None


def _line_of(code: CodeType, instruction: int) -> int:
    """The line of the instruction at that offset in the bytecode."""
    lines = (line for start, end, line in code.co_lines() if start <= instruction < end)
    return next(lines, None) or code.co_firstlineno
