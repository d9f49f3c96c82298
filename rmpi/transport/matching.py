"""Which message answers which receive.

A message is matched by (context, source, tag), in the order in which its sender sent it; a receive may
leave source or tag open (`ANY`). Two tables per context hold what waits for the other: *arrivals* that no
receive has asked for, and *receives* that no arrival has answered. At least one of any two that fit is
always gone: that is the invariant.

Exact keys are found by one look-up however many messages wait. A wildcard compares the heads of the queues
that fit, and arrival (or posting) order decides, by serial number.

Collectives share the table: their tag is the sequence number of the call, and each arrival carries the
fingerprint of what its sender called. `Context.calls` remembers what was called *here*, so that a frame
which belongs to another call is found when it arrives, even if nobody waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rmpi.errors import RmpiError
from rmpi.transport.operation import Awaited, Operation
from rmpi.wire.codec import Array, Landing, misfit, open_value
from rmpi.wire.frames import Frame

ANY = -1
"""In place of a source or a tag: whichever comes first."""

REMEMBERED_CALLS = 64
"""Collectives per context whose fingerprints are kept. A later frame of an older one goes unnoticed."""


REMEMBERED_CONTEXTS = 4096
"""Closed contexts whose late messages are still recognised. Those of older ones stay in memory."""


class Arrival:
    """A message that has come, or of which at least the header has."""

    __slots__ = (
        "complete",
        "context",
        "counted",
        "fingerprint",
        "frame",
        "granted",
        "landed",
        "landing",
        "length",
        "lent",
        "message",
        "metadata",
        "receive",
        "rest",
        "serial",
        "source",
        "tag",
    )

    def __init__(self, source: int, context: int, tag: int, fingerprint: int = 0) -> None:
        self.source = source
        self.context = context
        self.tag = tag
        self.fingerprint = fingerprint
        self.message = 0  # its number if it was offered, 0 if it came eagerly
        self.metadata = b""
        self.length = 0
        self.serial = 0
        self.receive: Receive | None = None  # who gets it
        self.landing: Landing | None = None
        self.rest: list[memoryview] = []  # memory that no DATA frame has been lent yet, last piece first
        self.lent = 0  # bytes of memory that DATA frames have been lent
        self.landed = 0  # bytes that those frames have filled
        self.frame: Frame | None = None  # the EAGER frame that is being read; while it is kept, its id is its own
        self.granted = False
        self.counted = False  # among the bytes that nobody has asked for
        self.complete = False

    @classmethod
    def of(cls, frame: Frame) -> Arrival:
        arrival = cls(frame.source, frame.context, frame.tag, frame.fingerprint)
        arrival.message = frame.message
        arrival.metadata = frame.metadata
        arrival.length = frame.length
        return arrival

    def open(self, *, own: bool = False) -> None:
        """Have memory for the value: the receiver's ``out``, if it has one and not ``own``."""
        out = self.receive.out if self.receive is not None and not own else None
        self.landing = open_value(self.metadata, self.length, out)
        self.rest = [view for view in reversed(self.landing.views) if view.nbytes]


class Receive(Operation):
    """A receive that was asked for. When done without error, `arrival` is the message.

    ``out`` is where an array shall land. A message that does not fit it makes a receive fail that is
    ``strict``; for any other, ``out`` is an offer that is then not taken.
    """

    __slots__ = ("arrival", "context", "members", "out", "serial", "source", "strict", "tag")

    def __init__(
        self,
        context: int,
        source: int,
        tag: int,
        out: Array | None = None,
        members: frozenset[int] = frozenset(),
        strict: bool = True,
    ) -> None:
        super().__init__()
        self.strict = strict
        self.context = context
        self.source = source
        self.tag = tag
        self.out = out
        self.members = members
        self.serial = 0
        self.arrival: Arrival | None = None

    def take(self) -> Any:
        """The value of the message, in ``out`` if that was given. Call it once, when done without error."""
        assert self.arrival is not None
        assert self.arrival.landing is not None
        return self.arrival.landing.value() if self.out is None else self.out

    def deliver(self, arrival: Arrival) -> None:
        """Be done, with this message, which is whole. Its value is in ``out`` then, if that was given."""
        self.arrival = arrival
        if self.out is not None:
            assert arrival.landing is not None
            value = arrival.landing.value()
            if value is not self.out:
                np.copyto(self.out, value, casting="no")
        self.finish()

    def refuses(self, arrival: Arrival) -> str | None:
        """Why the message cannot land in ``out`` as asked; None if it can, or need not."""
        if self.out is None:
            return None
        reason = misfit(arrival.metadata, self.out)
        if reason is None or self.strict:
            return reason
        self.out = None
        return None

    def awaited(self) -> Awaited:
        source, tag = (None if asked == ANY else asked for asked in (self.source, self.tag))
        return Awaited(source, self.context, tag, incoming=True)

    def fits(self, arrival: Arrival) -> bool:
        return self.source in (ANY, arrival.source) and self.tag in (ANY, arrival.tag)


class Probe(Receive):
    """Somebody wants to know of the next message that fits, and not to have it. When done, `arrival` is that
    message."""

    __slots__ = ()


class Context:
    """The two tables of one context, and what was called in it."""

    __slots__ = ("arrivals", "calls", "collective", "members", "probes", "receives")

    def __init__(self) -> None:
        self.members: frozenset[int] = frozenset()
        self.collective = False
        self.arrivals: dict[tuple[int, int], deque[Arrival]] = {}
        self.receives: dict[tuple[int, int], deque[Receive]] = {}
        self.probes: list[Probe] = []
        self.calls: dict[int, int] = {}

    def remember_call(self, sequence: int, fingerprint: int) -> None:
        """Calls are numbered one after the other."""
        self.calls[sequence] = fingerprint
        self.calls.pop(sequence - REMEMBERED_CALLS, None)


class Matching:
    """The tables of all contexts of one endpoint. Not thread-safe: its endpoint holds a lock."""

    def __init__(self) -> None:
        self.contexts: dict[int, Context] = {}
        self._closed: dict[int, RmpiError] = {}  # and why, in the order in which they were closed
        self._serial = 0
        self._earliest = 0

    def open(self, context: int, members: frozenset[int], collective: bool) -> Context:
        """Make a context known. Messages may have arrived in it before."""
        self._closed.pop(context, None)
        known = self._context(context)
        known.members = members
        known.collective = collective
        return known

    def _context(self, context: int) -> Context:
        known = self.contexts.get(context)
        if known is None:
            known = self.contexts[context] = Context()
        return known

    def arrive(self, arrival: Arrival) -> Receive | None:
        """Match a message that has come, or that its receive gave up; None: it waits for a receive that fits."""
        if arrival.context in self._closed:
            return Receive(arrival.context, ANY, ANY)
        context = self._context(arrival.context)
        arrival.serial = arrival.serial or self.in_turn()
        receive = self._first_receive(context, arrival) if context.receives else None
        if receive is not None:
            _take(context.receives, (receive.source, receive.tag), receive)
            return receive
        _insert(context.arrivals.setdefault((arrival.source, arrival.tag), deque()), arrival)
        if context.probes:
            self._tell_probes(context, arrival)
        return None

    def _tell_probes(self, context: Context, arrival: Arrival) -> None:
        for probe in [probe for probe in context.probes if probe.fits(arrival)]:
            context.probes.remove(probe)
            probe.arrival = arrival
            probe.finish()

    def probe(self, probe: Probe) -> None:
        """Find the message that a receive would get; else the probe waits for one."""
        probe.arrival = self.find(probe)
        if probe.arrival is not None:
            probe.finish()
        else:
            self._context(probe.context).probes.append(probe)

    def post(self, receive: Receive) -> Arrival | None:
        """Match a receive that is asked for, or whose message was withdrawn; None: it waits for one that fits."""
        context = self._context(receive.context)
        receive.serial = receive.serial or self.in_turn()
        arrival = _first_arrival(context, receive) if context.arrivals else None
        if arrival is not None:
            _take(context.arrivals, (arrival.source, arrival.tag), arrival)
            return arrival
        _insert(context.receives.setdefault((receive.source, receive.tag), deque()), receive)
        return None

    def find(self, receive: Receive) -> Arrival | None:
        """The message that ``receive`` would get now; it stays where it is."""
        context = self.contexts.get(receive.context)
        return _first_arrival(context, receive) if context is not None else None

    def queued(self, context: int, source: int) -> int:
        """How many messages wait, of that source or of `ANY`. One look, which needs no lock."""
        known = self.contexts.get(context)
        queues = list(known.arrivals.items()) if known is not None else []
        return sum(len(queue) for (sender, _), queue in queues if source in (ANY, sender))

    def cancel(self, receive: Receive) -> bool:
        """Forget a receive or probe; False: it is not waiting any more."""
        context = self.contexts.get(receive.context)
        if context is None:
            return False
        if isinstance(receive, Probe):
            waits = receive in context.probes
            if waits:
                context.probes.remove(receive)
            return waits
        return _take(context.receives, (receive.source, receive.tag), receive)

    def why_closed(self, context: int) -> RmpiError | None:
        """What `close` was told; None: it was not closed, or so long ago that this is forgotten."""
        return self._closed.get(context)

    def withdraw(self, arrival: Arrival) -> bool:
        """Forget a message that nobody has received; False: somebody has."""
        return _take(self.contexts[arrival.context].arrivals, (arrival.source, arrival.tag), arrival)

    def receives(self, contexts: Iterable[int] | None = None) -> Iterator[Receive]:
        """All receives and probes that wait in these contexts, or in any."""
        for context in self.contexts if contexts is None else contexts:
            known = self.contexts.get(context)
            if known is not None:
                yield from known.probes
                for queue in known.receives.values():
                    yield from queue

    def close(self, context: int, why: RmpiError) -> list[Arrival]:
        """Forget a context; what has come and nobody received. What comes later is received by nobody (`arrive`)."""
        self._closed[context] = why
        if len(self._closed) > REMEMBERED_CONTEXTS:
            del self._closed[next(iter(self._closed))]
        known = self.contexts.pop(context)
        return [arrival for queue in known.arrivals.values() for arrival in queue]

    def before_all(self) -> int:
        """A serial number for a message that came before all that wait."""
        self._earliest -= 1
        return self._earliest

    def in_turn(self) -> int:
        """A serial number for what comes now."""
        self._serial += 1
        return self._serial

    def _first_receive(self, context: Context, arrival: Arrival) -> Receive | None:
        source, tag, table = arrival.source, arrival.tag, context.receives
        first: Receive | None = None
        for key in ((source, tag), (ANY, tag), (source, ANY), (ANY, ANY)):
            queue = table.get(key)
            if queue and (first is None or queue[0].serial < first.serial):
                first = queue[0]
        return first


def _first_arrival(context: Context, receive: Receive) -> Arrival | None:
    source, tag = receive.source, receive.tag
    if source != ANY and tag != ANY:
        queue = context.arrivals.get((source, tag))
        return queue[0] if queue else None
    heads = (queue[0] for queue in context.arrivals.values() if receive.fits(queue[0]))
    return min(heads, key=lambda arrival: arrival.serial, default=None)


def _take(table: dict[tuple[int, int], deque[Any]], key: tuple[int, int], item: Any) -> bool:
    """Remove ``item`` from its queue; queues that become empty go, so that wildcards look at few."""
    queue = table.get(key)
    if not queue:
        return False
    if queue[0] is item:
        queue.popleft()
    elif item in queue:
        queue.remove(item)
    else:
        return False
    if not queue:
        del table[key]
    return True


def take_views(rest: list[memoryview], count: int) -> list[memoryview]:
    """The next ``count`` bytes of memory that is to be filled in order; ``rest`` has its last piece first."""
    views = []
    while count:
        view = rest.pop()
        if view.nbytes > count:
            rest.append(view[count:])
            view = view[:count]
        views.append(view)
        count -= view.nbytes
    return views


def _insert(queue: deque[Any], item: Any) -> None:
    """Put ``item`` where its serial number says: at the end if it is new, else at or near the front."""
    if not queue or queue[-1].serial < item.serial:
        queue.append(item)
        return
    position = 0
    while position < len(queue) and queue[position].serial < item.serial:
        position += 1
    queue.insert(position, item)
