"""What a schedule costs: all ranks of it in one thread, under a clock after LogGP.

    >>> from rmpi.comm import choose
    >>> network = Network.uniform(latency=1e-6, overhead=0.5e-6, byte_gap=1e-9)
    >>> cost = simulate_cost(lambda rank: choose.barrier(rank, 1000), 1000, network)
    >>> f"{cost.seconds * 1e6:.2f} µs, {cost.messages} messages"
    '20.07 µs, 10000 messages'

`rmpi.testing.simulate` knows in which order things can happen; this knows when. It runs the very generators that the
communicator runs, and books what each of their steps uses: the core of a rank, the rank's port in either direction,
the port of its machine. Everything is served in the order in which it is asked for, so a run is the same every time.

**The model.** A message of n bytes keeps the sender for the overhead *o*; then its bytes leave, one every *G* seconds;
each is under way for the latency *L*; when the last has come, the receiver is kept for *o*. So it takes
2o + L + (n-1)G. The next message leaves, and the next arrives, a gap *g* after the last byte of the one before. That is

- LogP: Culler et al.: LogP: towards a realistic model of parallel computation, 1993, doi:10.1145/155332.155333;
- and G from LogGP: Alexandrov, Ionescu, Schauser, Scheiman: LogGP: incorporating long messages into the LogP model,
  1995, doi:10.1145/215399.215427.

What is added, because rmpi does it: there are two *levels*, within a machine and between machines; a message above the
eager limit waits for its receive to be posted, and then for one round trip; bytes may be copied by the cores at both
ends (`Level.copied`); the ranks of a machine may share its port (`Level.port`), and ranks may share a core. Calling a
collective, combining, and packing containers cost time of the core (`Cpu`).

The steps of a tuple go on at the same time, but the core starts one send after the other, and receives as messages
come. A message is matched when both ends have posted it; one that arrives early waits without limit, as there is no
credit in the model. Nothing is ever late by chance, and no two links but those of one machine disturb each other.

**Phantoms.** At 65,536 ranks of 8 MB the values fit in no memory, and a clock has no use for what is in them. With
``phantom=True`` nothing is copied, and an array that arrives is one *like* the one that was sent: the same for all
messages of its shape and dtype, of arbitrary content. All ranks may then pass one array, and receive into the same
``out``. Schedules do not notice as long as nothing they decide depends on content; their operators are wrapped
in `Charged`, which leaves arrays alone. Containers are still copied, so n ranks that gather from all take n²
references.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from rmpi.comm.ops import Operator
from rmpi.comm.schedule import Recv, Schedule, Send, Step, raw_bytes
from rmpi.testing.simulate import check_peer, copied, deadlock, landed, nbytes_of, note_rank
from rmpi.wire.frames import EAGER_LIMIT

T = TypeVar("T")

# --- What is known of a machine and its network -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Level:
    """How messages travel between two ranks of one machine, or of two. Times in seconds, per byte where it says so.

    Attributes:
        latency: L: from when a byte has left until it has come.
        overhead: o: of the core at either end, for a message.
        gap: g: between the last byte of a message and the first of the next, at a rank's port.
        byte_gap: G: between two bytes of a message.
        eager_limit: Bytes up to which a message leaves without asking.
        rendezvous: How long a larger one asks and is answered; None for a round trip, 2 (o + L).
        copied: The core of either end copies the bytes, and can do nothing else meanwhile: so shared memory, and tcp.
            Else something else moves them while the core goes on.
        port: Per byte, for which a message keeps its machine's port in its direction. 0: the machine has no limit.
    """

    latency: float
    overhead: float
    gap: float = 0.0
    byte_gap: float = 0.0
    eager_limit: int = EAGER_LIMIT
    rendezvous: float | None = None
    copied: bool = False
    port: float = 0.0

    @property
    def round_trip(self) -> float:
        """What a message above the eager limit takes more."""
        return 2 * (self.overhead + self.latency) if self.rendezvous is None else self.rendezvous


@dataclass(frozen=True, slots=True)
class Cpu:
    """What a core does besides passing messages. Seconds.

    Attributes:
        call: To call a collective, whatever it is.
        combine: To apply an operator, whatever to.
        combine_byte: γ: per byte of an array that comes of it. The default was seen for sums of doubles in cache
            (AMD EPYC, NumPy 2.4).
        item: To pack, and again to unpack, one item of a list, tuple or dict that is sent.
        switch: To leave a core to another rank that shares it.
    """

    call: float = 0.0
    combine: float = 0.0
    combine_byte: float = 0.08e-9
    item: float = 0.0
    switch: float = 0.0


@dataclass(frozen=True, slots=True)
class Network:
    """The two levels, and the cores."""

    local: Level
    remote: Level
    cpu: Cpu = field(default_factory=Cpu)

    @classmethod
    def uniform(cls, latency: float, overhead: float, gap: float = 0.0, byte_gap: float = 0.0) -> Network:
        """Plain LogGP: one level, nothing shared, cores that do nothing else."""
        level = Level(latency, overhead, gap, byte_gap)
        return cls(level, level, Cpu(combine_byte=0.0))


# --- What is asked, and what comes of it --------------------------------------------------------------------------


class Charged(Operator):
    """``operator``, counting what it has combined, for `simulate_cost` to charge for.

    With ``phantom`` two arrays of one shape are not looked at: the result is ``into``, or an operand.
    """

    __slots__ = ("applications", "nbytes", "phantom")

    def __init__(self, operator: Operator, *, phantom: bool = False) -> None:
        for name in Operator.__slots__:
            setattr(self, name, getattr(operator, name))
        self.phantom = phantom
        self.applications = 0
        self.nbytes = 0

    def combine(self, left: Any, right: Any, into: Any = None) -> Any:
        self.applications += 1
        if not isinstance(right, np.ndarray):
            return super().combine(left, right, into)
        self.nbytes += right.nbytes
        if not self.phantom or getattr(left, "shape", None) != right.shape:
            return super().combine(left, right, into)
        return right if into is None else into

    def spent(self, cpu: Cpu) -> float:
        """Seconds for what was combined since this was last asked."""
        seconds = self.applications * cpu.combine + self.nbytes * cpu.combine_byte
        self.applications = self.nbytes = 0
        return seconds


@dataclass(frozen=True, slots=True)
class Cost(Generic[T]):
    """What came of a run.

    Attributes:
        times: When each rank's schedule ended, in seconds, by rank.
        results: What it returned, by rank.
        messages: How many were sent.
        nbytes: Their payload together, in bytes; objects of no length of their own count for 8.
    """

    times: list[float]
    results: list[T]
    messages: int
    nbytes: int

    @property
    def seconds(self) -> float:
        """When the last rank ended."""
        return max(self.times)


def simulate_cost(
    make: Callable[[int], Schedule[T]],
    size: int,
    network: Network,
    *,
    machine_of: Sequence[int] | None = None,
    core_of: Sequence[int] | None = None,
    start: Sequence[float] | None = None,
    operator: Charged | None = None,
    phantom: bool = False,
) -> Cost[T]:
    """Run ``make(rank)`` for every rank to the end, and say when that was.

    Args:
        make: Makes the schedule of one rank.
        size: The number of ranks.
        network: What things cost.
        machine_of: The number of each rank's machine, from 0; None: all are on one.
        core_of: The number of each rank's core, from 0, over all machines; None: each has its own.
        start: When each rank calls, in seconds; None: all at 0.
        operator: The one that the schedules apply; without it combining costs nothing.
        phantom: Arrays are sent without their content, see the module.

    Raises:
        Deadlock: The ranks that are left wait for each other.
        AssertionError: Messages are left over that nobody receives, or a step names no other rank.
        Exception: What a schedule raised, with a note that says on which rank. The run ends there.
    """
    machines = machine_of if machine_of is not None else [0] * size
    cores = core_of if core_of is not None else range(size)
    ranks = [_Rank(rank, make(rank), machines[rank], cores[rank]) for rank in range(size)]
    run = _Run(ranks, network, operator, _Phantoms() if phantom else _Values())
    try:
        with _without_collections():
            run.to_the_end(start if start is not None else [0.0] * size)
    finally:
        run.close()
    times, results = [rank.now for rank in ranks], [rank.result for rank in ranks]
    return Cost(times, results, run.messages, run.nbytes)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Millions of small objects that refer to each other in no circle: looking for circles takes as long as the run."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# --- What crosses -------------------------------------------------------------------------------------------------

_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
"""Types whose values nobody can change, nor look into: they are not copied."""


Parcel: TypeAlias = tuple[Any, int, int]
"""A value as it arrives, its bytes, and how many values are packed in it if it is a container."""


class _Values:
    """Values as they are."""

    def parcel(self, value: Any) -> Parcel:
        return copied(value), nbytes_of(value), _items(value)

    def landed(self, value: Any, step: Recv) -> Any:
        return landed(value, step)


class _Phantoms:
    """Arrays without content: one for each shape and dtype."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[object, object], npt.NDArray[Any]] = {}

    def parcel(self, value: Any) -> Parcel:
        """A container of its own; the arrays in it are the same for all."""
        kind = type(value)
        if kind is np.ndarray:
            return self._like(value), raw_bytes(value), 0
        if kind is list or kind is tuple:
            return self._sequence(value)
        if kind is dict:
            values, nbytes, items = self._sequence(list(value.values()))
            return dict(zip(value, values, strict=True)), nbytes + nbytes_of(list(value)), items + len(value)
        return (value if kind in _PLAIN else copied(value)), nbytes_of(value), 0

    def landed(self, value: Any, step: Recv) -> Any:
        out = step.out
        if out is None or type(value) is not np.ndarray or (value.dtype, value.shape) != (out.dtype, out.shape):
            return value
        return out

    def _sequence(self, value: list[Any] | tuple[Any, ...]) -> Parcel:
        """Most of it is the same few phantoms, again and again: each is looked at once."""
        names = list(map(id, value))
        parcels = {name: self.parcel(each) for name, each in dict(zip(names, value, strict=True)).items()}
        counts = Counter(names)
        nbytes = sum(count * parcels[name][1] for name, count in counts.items())
        items = sum(count * (1 + parcels[name][2]) for name, count in counts.items())
        values = {name: parcel[0] for name, parcel in parcels.items()}
        return type(value)(map(values.__getitem__, names)), nbytes, items

    def _like(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Memory that is never touched, and so never there."""
        found = self._arrays.get((array.dtype, array.shape))
        if found is None:
            found = self._arrays[array.dtype, array.shape] = np.empty(array.shape, array.dtype)
        return found


def _items(value: Any) -> int:
    """How many values are packed in a container, and in those in it."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if not isinstance(value, (list, tuple)):
        return 0
    return len(value) + sum(_items(each) for each in value if isinstance(each, (list, tuple, dict)))


# --- The run ------------------------------------------------------------------------------------------------------


class _Rank:
    """A schedule, where it runs, the steps it waits for and what they gave so far.

    Attributes:
        now: When its schedule was last resumed, and had computed.
        ready: When the last of its steps so far was complete.
        posted: By source: the receives, as indices of steps, that have no message yet.
        sent: By source: the messages for this rank that have no receive yet.
    """

    __slots__ = (
        *("number", "schedule", "machine", "core"),
        *("now", "ready", "single", "steps", "results", "pending", "begun", "finished", "result"),
        *("posted", "sent"),
    )

    def __init__(self, number: int, schedule: Schedule[Any], machine: int, core: int) -> None:
        self.number = number
        self.schedule = schedule
        self.machine = machine
        self.core = core
        self.now = self.ready = 0.0
        self.single = True
        self.steps: tuple[Step, ...] = ()
        self.results: list[Any] = [None]
        self.pending = 0
        self.begun = self.finished = False
        self.result: Any = None
        self.posted: dict[int, list[int]] = {}
        self.sent: dict[int, list[_Message]] = {}


class _Message:
    """A message on its way.

    Attributes:
        wire: Seconds that its bytes take to leave, or to come, one after the other.
        work: Seconds of the core at either end.
        sent: When the sender was done with its overhead.
        first: When the first byte was where it is now: at the sender's port, at the receiver's, in its memory.
        last: When the last one was.
        step: Its receive, as an index of the receiver's steps; -1 while there is none.
    """

    __slots__ = (
        *("source", "dest", "value", "nbytes", "level", "wire", "work"),
        *("sent", "first", "last", "step", "here"),
    )

    def __init__(self, source: _Rank, dest: _Rank, value: Any, nbytes: int, level: Level, work: float) -> None:
        self.source = source
        self.dest = dest
        self.value = value
        self.nbytes = nbytes
        self.level = level
        self.wire = (nbytes - 1) * level.byte_gap if nbytes > 1 else 0.0
        self.work = work
        self.sent = self.first = self.last = 0.0
        self.step = -1
        self.here = False


class _Run:
    """Events in the order of time, and among equals in the order in which they were foreseen.

    An event is a method of this class and what it is called with. `resume` begins a rank's steps; a message goes
    through `launch` at the sender's core, `leave` at its machine's port, `arrive` at the receiver's, and `take` at its
    core.
    """

    def __init__(
        self, ranks: list[_Rank], network: Network, operator: Charged | None, values: _Values | _Phantoms
    ) -> None:
        self.ranks = ranks
        self.network = network
        self.cpu = network.cpu
        self.operator = operator
        self.values = values
        self.messages = self.nbytes = 0
        self.clock = 0.0
        self.events: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self.foreseen = 0
        machines = 1 + max((rank.machine for rank in ranks), default=0)
        self.sending, self.receiving = [0.0] * len(ranks), [0.0] * len(ranks)  # when each rank's ports are free
        self.leaving, self.coming = [0.0] * machines, [0.0] * machines  # and each machine's
        self.idle = [0.0] * (1 + max((rank.core for rank in ranks), default=0))  # when each core is
        self.runs: list[_Rank | None] = [None] * len(self.idle)  # whom each core ran last

    def to_the_end(self, start: Sequence[float]) -> None:
        for rank, time in zip(self.ranks, start, strict=True):
            self.at(time, self.resume, rank)
        events = self.events
        while events:
            time, _, happen, what = heappop(events)
            self.clock = time
            happen(time, what)
        if any(not rank.finished for rank in self.ranks):
            raise deadlock(self.waiting(), lambda peer: self.ranks[peer].finished)
        left = [f"{source} -> {rank.number}" for rank in self.ranks for source in rank.sent]
        assert not left, f"messages left over that nobody receives: {', '.join(left)}"

    def waiting(self) -> list[tuple[int, list[int]]]:
        """Who has not finished, and for whose message, or receive, it waits."""
        peers = {rank.number: set(rank.posted) for rank in self.ranks if not rank.finished}
        for rank in self.ranks:
            for source, messages in rank.sent.items():
                if source in peers and any(message.nbytes > message.level.eager_limit for message in messages):
                    peers[source].add(rank.number)
        return [(number, sorted(others)) for number, others in peers.items()]

    def close(self) -> None:
        for rank in self.ranks:
            rank.schedule.close()

    def at(self, time: float, happen: Callable[[float, Any], None], what: Any) -> None:
        self.foreseen += 1
        heappush(self.events, (time, self.foreseen, happen, what))

    def occupy(self, rank: _Rank, time: float, seconds: float) -> float:
        """Have the rank's core work for it, from ``time`` on or as soon as it is free; when it is done."""
        core = rank.core
        begin = self.idle[core]
        if begin < time:
            begin = time
        if self.runs[core] is not rank:
            if self.runs[core] is not None:
                begin += self.cpu.switch
            self.runs[core] = rank
        end = self.idle[core] = begin + seconds
        return end

    # ------------------------------------------------------------------------------------ ranks

    def resume(self, time: float, rank: _Rank) -> None:
        """Run the schedule up to its next steps, or to its end, and post those."""
        spent = 0.0 if rank.begun else self.cpu.call
        rank.begun = True
        try:
            yielded = rank.schedule.send(rank.results[0] if rank.single else rank.results)
        except StopIteration as end:
            rank.finished, rank.result, yielded = True, end.value, ()
        except Exception as error:
            note_rank(error, rank.number, len(self.ranks))
            raise
        if self.operator is not None:
            spent += self.operator.spent(self.cpu)
        rank.now = rank.ready = self.occupy(rank, time, spent) if spent else time
        rank.single = not isinstance(yielded, tuple)
        rank.steps = yielded if isinstance(yielded, tuple) else (yielded,)
        if not rank.finished:
            self.post(rank)

    def post(self, rank: _Rank) -> None:
        steps, ranks = rank.steps, self.ranks
        rank.results = [None] * len(steps)
        rank.pending = len(steps)
        for index, step in enumerate(steps):
            peer = step.peer
            if not 0 <= peer < len(ranks) or peer == rank.number:
                check_peer(peer, rank.number, len(ranks))
            if type(step) is Send:
                self.send(rank, ranks[peer], step.value)
            else:
                self.receive(rank, peer, index)
        if not steps:
            self.at(rank.ready, self.resume, rank)

    def complete(self, rank: _Rank, time: float) -> None:
        """One of its steps is complete."""
        if time > rank.ready:
            rank.ready = time
        rank.pending -= 1
        if not rank.pending:
            self.at(rank.ready, self.resume, rank)

    def send(self, rank: _Rank, dest: _Rank, value: Any) -> None:
        level = self.network.local if rank.machine == dest.machine else self.network.remote
        work = level.overhead
        if value is None:
            nbytes = nbytes_of(value)
        else:
            value, nbytes, items = self.values.parcel(value)
            work += items * self.cpu.item
        message = _Message(rank, dest, value, nbytes, level, work)
        self.messages += 1
        self.nbytes += nbytes
        message.sent = self.occupy(rank, rank.now, work)
        _match_message(message)
        if nbytes <= level.eager_limit:
            self.launch(message.sent, message)
        elif message.step >= 0:
            self.grant(message)

    def receive(self, rank: _Rank, source: int, index: int) -> None:
        message = _matching_message(rank, source)
        if message is None:
            rank.posted.setdefault(source, []).append(index)
            return
        message.step = index
        if message.here:
            self.pick_up(message)
        elif message.nbytes > message.level.eager_limit:
            self.grant(message)

    # --------------------------------------------------------------------------------- messages

    def grant(self, message: _Message) -> None:
        """Both ends have posted it: the offer comes, and is answered."""
        half = message.level.round_trip / 2
        self.at(max(message.sent + half, message.dest.now) + half, self.launch, message)

    def launch(self, time: float, message: _Message) -> None:
        """The sender may let the bytes go."""
        rank, level, wire = message.source, message.level, message.wire
        first = self.sending[rank.number]
        if first < time:
            first = time
        if level.copied and wire:
            first = self.occupy(rank, first, wire) - wire
        message.first, message.last = first, first + wire
        self.sending[rank.number] = message.last + level.gap
        buffered = not level.copied and message.nbytes <= level.eager_limit
        self.complete(rank, message.sent if buffered else message.last)
        if level.port:
            self.at(first, self.leave, message)
        else:
            self.at(first + level.latency, self.arrive, message)

    def leave(self, time: float, message: _Message) -> None:
        """The first byte is at the machine's port, which lets all of them through, one message after the other."""
        machine = message.source.machine
        first = max(time, self.leaving[machine])
        self.leaving[machine] = through = first + message.nbytes * message.level.port
        message.last = max(through, first + message.wire)
        self.at(first + message.level.latency, self.arrive, message)

    def arrive(self, time: float, message: _Message) -> None:
        """The first byte is at the receiver's machine."""
        rank, level = message.dest, message.level
        first, last = time, message.last + level.latency
        if level.port:
            first = max(first, self.coming[rank.machine])
            self.coming[rank.machine] = through = first + message.nbytes * level.port
            last = max(last, through, first + message.wire)
        free = self.receiving[rank.number]
        if first < free:
            first, last = free, max(last, free + message.wire)
        message.first, message.last = first, last
        self.receiving[rank.number] = last + level.gap
        message.here = True
        if message.step >= 0:
            self.pick_up(message)

    def pick_up(self, message: _Message) -> None:
        """Have the receiver take it as soon as both are there: the first byte if the core copies, else the last."""
        time, now = message.first if message.level.copied else message.last, message.dest.now
        if time < now:
            time = now
        if time <= self.clock:
            self.take(time, message)
        else:
            self.at(time, self.take, message)

    def take(self, time: float, message: _Message) -> None:
        rank, work = message.dest, message.work
        if message.level.copied and message.wire:
            end = max(self.occupy(rank, time, message.wire + work), message.last + work)
            self.idle[rank.core] = end
        else:
            end = self.occupy(rank, time, work)
        step: Any = rank.steps[message.step]
        rank.results[message.step] = message.value if step.out is None else self.values.landed(message.value, step)
        self.complete(rank, end)


def _match_message(message: _Message) -> None:
    """Give the message to the receive that has waited for it longest, or leave it for one to come."""
    dest, source = message.dest, message.source.number
    waiting = dest.posted.get(source)
    if waiting is None:
        dest.sent.setdefault(source, []).append(message)
        return
    message.step = waiting.pop(0)
    if not waiting:
        del dest.posted[source]


def _matching_message(rank: _Rank, source: int) -> _Message | None:
    """The first message of that source without a receive."""
    messages = rank.sent.get(source)
    if messages is None:
        return None
    message = messages.pop(0)
    if not messages:
        del rank.sent[source]
    return message
