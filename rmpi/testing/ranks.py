"""Ranks as threads of this process, over memory links: four ranks in a test, for the price of four threads.

`run_ranks` is for breadth: every number of ranks, every root, thousands of programs. The whole communicator
runs as it does between processes, except for starting, dying and the kernel. The `Fabric` stands where the
router stands in a job: it makes links, tells everybody who has ended, settles mismatches, and finds deadlocks. A rank
is its thread, and every thread that it starts: while one that was not there before the ranks does anything else than
wait for messages, nothing is taken for a deadlock.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident
from typing import Any, TypeVar

from rmpi.comm.communicator import Comm
from rmpi.comm.family import Family
from rmpi.deadline import Deadline
from rmpi.errors import (
    ChannelClosed,
    CollectiveMismatch,
    DeadlineExceeded,
    Deadlock,
    PeerExited,
    PeerLost,
    RankFailed,
    RmpiError,
)
from rmpi.places.calls import CallBook, Report
from rmpi.places.deadlock import AskAll, DeadlockBook, Step, Verdict
from rmpi.places.messages import Awake, Blocked, Message
from rmpi.places.witness import Witness, are_asleep
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.memory import MemoryLink
from rmpi.transport.stays import BLOCKED_AFTER

T = TypeVar("T")

CONTEXT = 0x7261_6E6B_7300
HOST = "this process"


class Fabric:
    """``size`` endpoints in one process, and what a router would do for them."""

    def __init__(
        self,
        size: int,
        unmatched_limit: int = 1 << 30,
        hosts: Sequence[str] | None = None,
        blocked_after: float | None = None,
    ) -> None:
        """The endpoints and communicators of ``size`` ranks.

        Args:
            hosts: Where each rank pretends to run.
            blocked_after: Seconds of waiting after which a rank counts as blocked; None: deadlocks are not found.
        """
        self._lock = threading.Lock()
        self._pairs: set[tuple[int, int]] = set()
        self._calls = CallBook()
        self.endpoints = [
            Endpoint(
                ident,
                partial(self.connect, ident),
                unmatched_limit=unmatched_limit,
                mismatched=partial(self._mismatched, ident),
                name_of="rank {}".format,
            )
            for ident in range(size)
        ]
        self.families = [Family(endpoint, _Keeper(self, endpoint.ident)) for endpoint in self.endpoints]
        self.comms = [Comm(family, range(size), CONTEXT, hosts or [HOST] * size) for family in self.families]
        self._outsiders = frozenset(sys._current_frames())
        self._thread_of: dict[int, int] = {}
        self._deadlocks = DeadlockBook({rank: rank for rank in range(size)})
        self._witnesses = (
            [] if blocked_after is None else [self._witness(each, blocked_after) for each in self.endpoints]
        )

    def _witness(self, endpoint: Endpoint, blocked_after: float) -> Witness:
        ident, stays = endpoint.ident, endpoint.stays
        stays.after, stays.again = blocked_after, 2 * blocked_after
        stays.quiet = partial(self._is_quiet, ident)
        return Witness(endpoint, partial(self._heard, ident), int, self.families[ident].call_of)

    def connect(self, first: int, second: int) -> None:
        """Make the link of a pair, once."""
        pair = (min(first, second), max(first, second))
        with self._lock:
            if pair in self._pairs:
                return
            self._pairs.add(pair)
        one, two = self.endpoints[first], self.endpoints[second]
        links = MemoryLink.pair((first, one, one.notify), (second, two, two.notify))
        one.crank.post(partial(one.add_link, links[0]))
        two.crank.post(partial(two.add_link, links[1]))

    def _mismatched(self, ident: int, arrival: Any, _called: int) -> None:
        self.families[ident].report_mismatch(arrival)

    def report(self, ident: int, context: int, sequence: int, fingerprint: int, what: str) -> None:
        """A rank says what it called. If that disagrees, break the communicator on every rank."""
        with self._lock:
            verdict = self._calls.report(context, sequence, Report(f"rank {ident}", fingerprint, what))
            if verdict is not None:
                self._break(context, CollectiveMismatch, verdict)

    def revoke(self, context: int, why: str) -> None:
        """Break a communicator on every rank, because one of them wants that."""
        with self._lock:
            self._break(context, ChannelClosed, why)

    def _break(self, context: int, kind: type[RmpiError], text: str) -> None:
        for endpoint in self.endpoints:
            endpoint.crank.post(partial(endpoint.break_contexts, [context, context + 1], kind(text)))

    def abort(self, ident: int, why: str) -> None:
        """End what every other rank does, and whatever it will try."""
        with self._lock:
            for endpoint in self.endpoints:
                if endpoint.ident != ident:
                    endpoint.crank.post(partial(endpoint.break_all, RankFailed(ident, HOST, why)))

    def _is_quiet(self, ident: int, threads: frozenset[int]) -> bool:
        """Whether no thread of that rank does anything; all threads of nobody's are every rank's."""
        frames = sys._current_frames()
        of_others = {thread for rank, thread in self._thread_of.items() if rank != ident}
        of_others.update(*(endpoint.stays.threads for endpoint in self.endpoints if endpoint.ident != ident))
        return frames.keys() - self._outsiders - of_others <= threads and are_asleep(threads - {get_ident()}, frames)

    def _heard(self, ident: int, message: Message) -> None:
        """What a witness says."""
        with self._lock:
            match message:
                case Blocked():
                    self._follow(self._deadlocks.blocked(ident, message))
                case Awake(round_):
                    self._follow(self._deadlocks.awake(ident, round_))

    def _follow(self, step: Step) -> None:
        match step:
            case AskAll(round_):
                for witness, endpoint in zip(self._witnesses, self.endpoints, strict=True):
                    endpoint.crank.post(partial(witness.asked, round_))
            case Verdict(text):
                for endpoint in self.endpoints:
                    endpoint.crank.post(partial(endpoint.break_all, Deadlock(text)))

    def began(self, ident: int) -> None:
        """This thread is that rank's."""
        self._thread_of[ident] = get_ident()

    def ended(self, ident: int, error: PeerLost) -> None:
        """Tell everybody that a rank has ended, and of no one's end before the verdict that led to it."""
        with self._lock:
            self._thread_of.pop(ident, None)
            for endpoint in self.endpoints:
                if endpoint.ident != ident:
                    endpoint.crank.post(partial(endpoint.peer_ended, ident, error))
            self._follow(self._deadlocks.ended(ident, failed=isinstance(error, RankFailed)))

    def close(self) -> None:
        for endpoint in self.endpoints:
            endpoint.close()


class _Keeper:
    def __init__(self, fabric: Fabric, ident: int) -> None:
        self._fabric = fabric
        self._ident = ident

    def called(self, context: int, sequence: int, fingerprint: int, what: str) -> None:
        self._fabric.report(self._ident, context, sequence, fingerprint, what)

    def mismatch(self, context: int, sequence: int, fingerprint: int, what: str, other: int) -> None:
        self.called(context, sequence, fingerprint, what)
        theirs = self._fabric.families[other].call_of(context, sequence)
        if theirs is not None:
            self._fabric.report(other, context, sequence, *theirs)

    def revoke(self, context: int, why: str) -> None:
        self._fabric.revoke(context, why)

    def abort(self, code: int, why: str) -> None:
        self._fabric.abort(self._ident, why)

    def leave(self) -> None:
        self._fabric.endpoints[self._ident].finish()


def run_ranks(
    size: int,
    main: Callable[..., T],
    *args: Any,
    timeout: float = 30.0,
    unmatched_limit: int = 1 << 30,
    hosts: Sequence[str] | None = None,
    blocked_after: float | None = BLOCKED_AFTER,
) -> list[T]:
    """Run ``main(comm, *args)`` on ``size`` ranks, a thread each; the results in rank order.

    Args:
        timeout: Seconds for all of it.
        unmatched_limit: Bytes that each rank takes unasked, beyond what travels eagerly.
        hosts: Where each rank pretends to run.
        blocked_after: Seconds of waiting after which a rank counts as blocked; None: deadlocks are not found.

    Raises:
        ExceptionGroup: Some ranks raised: *every* failure, each with a note that names its rank.
        DeadlineExceeded: Not all had ended after ``timeout`` seconds; the text has every rank's stack.
    """
    fabric = Fabric(size, unmatched_limit, hosts, blocked_after)
    results: list[Any] = [None] * size
    errors: list[tuple[int, BaseException]] = []

    def run(rank: int) -> None:
        fabric.began(rank)
        try:
            results[rank] = main(fabric.comms[rank], *args)
            fabric.endpoints[rank].finish(Deadline.after(timeout))
        except BaseException as error:
            error.add_note(f"in rank {rank} of {size}")
            errors.append((rank, error))
            fabric.ended(rank, RankFailed(rank, HOST, f"{type(error).__name__}: {error}"))
        else:
            fabric.ended(
                rank, PeerExited(f"rank {rank} has ended; nothing more will come from it, and it will take nothing")
            )

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank {rank}") for rank in range(size)]
    _run_threads(threads, fabric, timeout)
    if errors:
        failures = [error for _, error in sorted(errors, key=lambda pair: pair[0])]
        raise BaseExceptionGroup(f"{len(failures)} of {size} ranks failed", failures)
    return results


def _run_threads(threads: list[threading.Thread], fabric: Fabric, timeout: float) -> None:
    deadline = Deadline.after(timeout)
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join(deadline.left())
        stuck = [thread for thread in threads if thread.is_alive()]
        stacks = _stacks(stuck)
    finally:
        fabric.close()
        for thread in threads:
            thread.join(5.0)
    if stuck:
        raise DeadlineExceeded(f"ranks had not ended after {timeout} s:\n{stacks}")


def _stacks(threads: list[threading.Thread]) -> str:
    frames = sys._current_frames()
    return "\n".join(
        f"{thread.name}:\n{''.join(traceback.format_stack(frames[thread.ident]))}"
        for thread in threads
        if thread.ident in frames
    )
