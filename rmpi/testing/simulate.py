"""All ranks of a collective in one thread, without transport: for tests, and for looking at a schedule.

    >>> from rmpi.comm import choose
    >>> print(*simulate(lambda rank: choose.broadcast(rank, 3, 1, "x"), 3).trace, sep="\\n")
    1 -> 0 x
    1 -> 2 x

The simulator knows pairs of ranks with a first-in first-out queue of sends and one of receives between
them, and a queue of ranks that can go on, which it serves in order: so a run is the same every time. A
value that crosses is copied, as a wire would. It knows no time (`rmpi.testing.clock` runs the same schedules
under a clock); a run ends when no rank can go on, and then either all have finished or those left wait for
each other, which is a `Deadlock` that says who waits for whom.

Sends are buffered without limit, or not at all with ``synchronous=True``: then a send is complete only when
its receive was posted, and the value is read as late as that, so that one overwritten too early shows.
A schedule that passes both ways relies on nothing that a link need not give.
"""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from rmpi.comm.schedule import Recv, Schedule, Send, Step, raw_bytes
from rmpi.errors import Deadlock

T = TypeVar("T")

_SHOWN = 40  # characters of a value in the trace; the rest is cut off
_NAMED = 8  # ranks that a deadlock names; of more it gives the number
_WORD = 8  # bytes that an object without a length of its own counts for


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``nbytes`` is the length of arrays, bytes and str; other objects count for 8."""

    source: int
    dest: int
    nbytes: int
    text: str

    def __str__(self) -> str:
        return f"{self.source} -> {self.dest} {self.text}"


@dataclass(frozen=True, slots=True)
class Simulation(Generic[T]):
    """What came of a run: ``results`` in rank order, ``messages`` in the order of sending."""

    results: list[T]
    messages: list[Message]

    @property
    def trace(self) -> list[str]:
        """The messages as text: ``"0 -> 1 float64[2, 3]"``."""
        return [str(message) for message in self.messages]

    @property
    def nbytes(self) -> int:
        """The payload of all messages together, in bytes."""
        return sum(message.nbytes for message in self.messages)


def simulate(make: Callable[[int], Schedule[T]], size: int, *, synchronous: bool = False) -> Simulation[T]:
    """Run ``make(rank)`` for every rank to the end.

    Args:
        make: Makes the schedule of one rank.
        size: The number of ranks.
        synchronous: A send waits for its receive.

    Raises:
        Deadlock: The ranks that are left wait for each other.
        AssertionError: Messages are left over that nobody receives, or a step names no other rank.
        Exception: What a schedule raised, with a note that says on which rank. The run ends there.
    """
    run = _Run([make(rank) for rank in range(size)], synchronous)
    try:
        run.to_the_end()
    finally:
        run.close()
    return Simulation([rank.result for rank in run.ranks], run.messages)


class _Rank:
    """A schedule, the steps it waits for, and what they gave so far."""

    def __init__(self, number: int, schedule: Schedule[Any]) -> None:
        self.number = number
        self.schedule = schedule
        self.steps: tuple[Step, ...] = ()
        self.results: list[Any] = [None]
        self.pending: set[int] = set()
        self.single = True
        self.finished = False
        self.result: Any = None

    def resume(self) -> None:
        """Run the schedule up to its next steps, or to its end."""
        try:
            yielded = self.schedule.send(self.results[0] if self.single else self.results)
        except StopIteration as end:
            self.finished, self.result, self.steps = True, end.value, ()
        else:
            self.single = not isinstance(yielded, tuple)
            self.steps = yielded if isinstance(yielded, tuple) else (yielded,)
        self.results = [None] * len(self.steps)
        self.pending = set(range(len(self.steps)))

    def complete(self, index: int, result: Any) -> None:
        self.results[index] = result
        self.pending.remove(index)

    def waits_for(self) -> list[int]:
        return sorted({self.steps[index].peer for index in self.pending})


@dataclass(slots=True)
class _Posted:
    """A step that was posted, not yet matched."""

    rank: _Rank
    index: int
    value: Any = None  # of a buffered send: the copy


@dataclass(slots=True)
class _Pair:
    """What one rank sends to one other. At most one of the queues has something in it."""

    sends: deque[_Posted] = field(default_factory=deque)
    recvs: deque[_Posted] = field(default_factory=deque)


class _Run:
    def __init__(self, schedules: list[Schedule[Any]], synchronous: bool) -> None:
        self.ranks = [_Rank(number, schedule) for number, schedule in enumerate(schedules)]
        self.synchronous = synchronous
        self.messages: list[Message] = []
        self.pairs: defaultdict[tuple[int, int], _Pair] = defaultdict(_Pair)
        self.ready = deque(self.ranks)

    def to_the_end(self) -> None:
        while self.ready:
            self.advance(self.ready.popleft())
        stuck = [rank for rank in self.ranks if not rank.finished]
        if stuck:
            raise deadlock(((rank.number, rank.waits_for()) for rank in stuck), lambda peer: self.ranks[peer].finished)
        left = [f"{source} -> {dest}" for (source, dest), pair in self.pairs.items() for _ in pair.sends]
        assert not left, f"messages left over that nobody receives: {', '.join(left)}"

    def close(self) -> None:
        for rank in self.ranks:
            rank.schedule.close()

    def advance(self, rank: _Rank) -> None:
        try:
            rank.resume()
        except Exception as error:
            note_rank(error, rank.number, len(self.ranks))
            raise
        for index, step in enumerate(rank.steps):
            self.post(rank, index, step)
        if not rank.steps and not rank.finished:  # an empty tuple
            self.ready.append(rank)

    def post(self, rank: _Rank, index: int, step: Step) -> None:
        check_peer(step.peer, rank.number, len(self.ranks))
        posted = _Posted(rank, index)
        if isinstance(step, Send):
            pair = self.pairs[rank.number, step.peer]
            pair.sends.append(posted)
            self.sent(rank, step, posted)
        else:
            pair = self.pairs[step.peer, rank.number]
            pair.recvs.append(posted)
        self.match(pair)

    def sent(self, rank: _Rank, step: Send, posted: _Posted) -> None:
        self.messages.append(Message(rank.number, step.peer, nbytes_of(step.value), _text(step.value)))
        if not self.synchronous:
            posted.value = copied(step.value)
            self.complete(posted, None)

    def match(self, pair: _Pair) -> None:
        while pair.sends and pair.recvs:
            send, recv = pair.sends.popleft(), pair.recvs.popleft()
            value = self.read(send)
            step = recv.rank.steps[recv.index]
            assert isinstance(step, Recv)
            self.complete(recv, landed(value, step))

    def read(self, send: _Posted) -> Any:
        """The copy that crosses; a synchronous send is complete with it, not before."""
        if not self.synchronous:
            return send.value
        step = send.rank.steps[send.index]
        assert isinstance(step, Send)
        value = copied(step.value)
        self.complete(send, None)
        return value

    def complete(self, posted: _Posted, result: Any) -> None:
        posted.rank.complete(posted.index, result)
        if not posted.rank.pending:
            self.ready.append(posted.rank)


# --- What a simulator without a clock and one with a clock have in common -------------------------------------------


def check_peer(peer: int, rank: int, size: int) -> None:
    """A step of ``rank`` names another rank."""
    other = 0 <= peer < size and peer != rank
    assert other, f"rank {rank} of {size} names peer {peer}"


def note_rank(error: Exception, rank: int, size: int) -> None:
    """Say on which rank a schedule raised."""
    error.add_note(f"in the schedule of rank {rank} of {size}")


def deadlock(waiting: Iterable[tuple[int, list[int]]], finished: Callable[[int], bool]) -> Deadlock:
    """The error for ranks that wait for others for ever: who waits for whom, and who of those has finished."""
    ending = {True: " (which has finished)", False: ""}
    complaints = [
        f"{rank} waits for {' and '.join(f'{peer}{ending[finished(peer)]}' for peer in peers)}"
        for rank, peers in waiting
    ]
    more = [f"{len(complaints) - _NAMED} more wait too"] if len(complaints) > _NAMED else []
    return Deadlock(", ".join([*complaints[:_NAMED], *more]))


def landed(value: Any, step: Recv) -> Any:
    """``value`` where a driver would put it: in ``step.out`` if that fits."""
    out = step.out
    if out is None or type(value) is not np.ndarray or (value.dtype, value.shape) != (out.dtype, out.shape):
        return value
    out[...] = value
    return out


def copied(value: Any) -> Any:
    """What arrives of ``value`` elsewhere."""
    return copy.deepcopy(value)  # NumPy's keeps dtype, shape and memory order, and packs strided arrays


def nbytes_of(value: Any) -> int:
    """What a message weighs, roughly: enough to compare algorithms."""
    if isinstance(value, (list, tuple)):
        return sum(map(nbytes_of, value))
    if isinstance(value, dict):
        return nbytes_of([*value.keys(), *value.values()])
    return raw_bytes(value) if isinstance(value, (np.ndarray, bytes, bytearray, str)) else _WORD


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    text = str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
