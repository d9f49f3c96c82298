"""Stays: the waits of one endpoint that have no limit and take long. Deadlocks are proved from them.

A thread that waits without a time-out *stays* once it has waited for `BLOCKED_AFTER` seconds, until it leaves that
wait. Whoever listens (the `Observer`) is told then, and again every `AGAIN` seconds, how the endpoint stands: which
threads stay, for what, and how much was sent to each peer and taken from it. That costs one comparison and one look at
the clock for each wait, and nothing for messages: the counts are those that links keep anyway.

A `Standing` says more than that somebody waits. It is None unless nothing at all would happen here by itself:

- every thread of the place stays, and what it waits for has not come. Which threads those are is for the place to say
  (`Quiet`): besides its own there may be other ranks in this process.
- nothing is posted or put off until after a turn, and no descriptor but those of links and of the router is registered
  in the crank: another might bring anything at any time;
- no peer has left whose links are still open: their end, which is on its way, may end what waits for it.

What is on its way between two places, and what waits here to be written, is found by comparing the counts of both.
`Stays.number` changes with every thread that begins or ends to stay. So if it and the counts are found unchanged,
nothing happened meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rmpi.deadline import Deadline, now
from rmpi.transport.callsite import call_site
from rmpi.transport.crank import Crank
from rmpi.transport.matching import Matching
from rmpi.transport.operation import Awaited, Operation
from rmpi.transport.peers import Peers

BLOCKED_AFTER = 0.5
"""Seconds that a thread waits before it stays."""

AGAIN = 1.0
"""Seconds between two looks at how the endpoint stands, while a thread stays."""

MOST_UNREAD = 8
"""Kinds of messages that nobody has asked for which are listed; of more, those that came last are left out."""

MOST_CALLS = 64
"""Communicators whose last call is listed."""

Quiet = Callable[[frozenset[int]], bool]
"""Called, the lock held, by one of these threads: whether no other could do anything, nor any of the others of them."""


@dataclass(frozen=True, slots=True)
class Stay:
    """One thread's wait.

    Attributes:
        name: The public function that it is in.
        where: ``file:line`` of the call.
        whole: Done when the wait is over; ``operations`` are what it is made of.
    """

    thread: int
    name: str
    where: str
    whole: Operation
    operations: tuple[Operation, ...]

    def awaited(self) -> list[Awaited]:
        """What it still waits for, as far as that is known."""
        return [what for each in self.operations if not each.done and (what := each.awaited()) is not None]


@dataclass(frozen=True, slots=True)
class Standing:
    """An endpoint at which nothing would happen by itself.

    Attributes:
        number: As long as it is the same, so are the stays.
        sent, taken: By peer, where there is any; comparable with what the peer has taken and sent.
        unread: Source, tag and number of messages that nobody has asked for.
        calls: By context, the number of the last collective that was called; -1 if there was none.
    """

    number: int
    stays: tuple[Stay, ...]
    sent: dict[int, int]
    taken: dict[int, int]
    unread: tuple[tuple[int, int, int], ...]
    calls: dict[int, int]


Observer = Callable[[Standing | None], None]
"""Called without the lock by a thread that stays."""


class Stays:
    """Who stays at one endpoint.

    Attributes:
        observer: Told by each thread that stays; None: nobody listens, and no thread ever stays.
        after, again: Seconds before a thread stays, and between two calls of the observer.
        descriptors: Those in the crank that belong to no link and bring nothing of their own accord.
    """

    def __init__(self, crank: Crank, peers: Peers, matching: Matching) -> None:
        self.observer: Observer | None = None
        self.quiet: Quiet = lambda _threads: True
        self.after = BLOCKED_AFTER
        self.again = AGAIN
        self.descriptors: set[int] = set()
        self._crank = crank
        self._peers = peers
        self._matching = matching
        self._stays: list[Stay] = []
        self._number = 0

    @property
    def threads(self) -> frozenset[int]:
        """Those that stay at this moment."""
        return frozenset(stay.thread for stay in self._stays)

    def wait(self, operation: Operation, parts: Sequence[Operation]) -> bool:
        """Wait without a limit for an operation that is made of these parts; True."""
        if self._crank.wait(operation, Deadline(now() + self.after)):
            return True
        stay = Stay(threading.get_ident(), *call_site(), operation, tuple(parts))
        self._change(self._stays.append, stay)
        try:
            self._tell()
            while not self._crank.wait(operation, Deadline(now() + self.again)):
                self._tell()
        finally:
            self._change(self._stays.remove, stay)
        return True

    def _change(self, change: Callable[[Stay], None], stay: Stay) -> None:
        with self._crank.lock:
            self._number += 1
            change(stay)

    def _tell(self) -> None:
        with self._crank.lock:
            standing = None if self._crank.closed else self.standing()
        if self.observer is not None:
            self.observer(standing)

    def standing(self) -> Standing | None:
        """How the endpoint stands; None if something may happen here by itself. Within progress."""
        if not self._stays or any(stay.whole.done for stay in self._stays) or not self._is_at_rest():
            return None
        if not self.quiet(self.threads):
            return None
        sent = {ident: count for ident, peer in self._peers.known.items() if (count := peer.sent())}
        taken = {ident: count for ident, peer in self._peers.known.items() if (count := peer.taken())}
        return Standing(self._number, tuple(self._stays), sent, taken, self._unread(), self._calls())

    def _is_at_rest(self) -> bool:
        """Whether nothing is to be done, and only live peers and the router can bring something."""
        if any((peer.bye or peer.ended is not None) and peer.links for peer in self._peers.known.values()):
            return False
        links = {link.fileno() for peer in self._peers.known.values() for link in peer.links}
        return self._crank.is_at_rest(links | self.descriptors)

    def _unread(self) -> tuple[tuple[int, int, int], ...]:
        """Of messages from point to point."""
        contexts = [known for known in self._matching.contexts.values() if known.members and not known.collective]
        queues = [(key, queue) for known in contexts for key, queue in known.arrivals.items()]
        queues.sort(key=lambda item: item[1][0].serial)
        return tuple((source, tag, len(queue)) for (source, tag), queue in queues[:MOST_UNREAD])

    def _calls(self) -> dict[int, int]:
        contexts = [item for item in self._matching.contexts.items() if item[1].members and item[1].collective]
        return {context: max(known.calls, default=-1) for context, known in contexts[-MOST_CALLS:]}
