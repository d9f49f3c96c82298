"""A rank as a witness of its own standstill: it tells the head when it is blocked, and answers its questions.

What the head makes of that is `deadlock`; what makes an endpoint one at which nothing would happen by itself is
`transport.stays`. Here that is put into words, and here it is judged whether this *process* would do anything by
itself (`only_these_threads`): another thread may send at any time, and so may a signal handler that a timer is about to
call. A signal from outside cannot be foreseen, and is not looked for.

A question is asked only when every rank has reported. Whoever was asked reports once more, if it is still blocked after
a while, because that question has come to nothing.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING

from rmpi.places.messages import Awake, Blocked, Message
from rmpi.transport.interrupts import SHIELD, Shield
from rmpi.transport.threads import started

if TYPE_CHECKING:
    from rmpi.transport.endpoint import Endpoint
    from rmpi.transport.operation import Awaited
    from rmpi.transport.stays import Standing, Stay

CallOf = Callable[[int, int], tuple[int, str] | None]
"""For a communicator's context and a sequence number, fingerprint and text of what was called here."""

MOST_OPERATIONS = 4
"""Operations of one wait that are named."""


class Witness:
    """Reports and answers for one endpoint, from now on."""

    def __init__(
        self,
        endpoint: Endpoint,
        tell: Callable[[Message], None],
        rank_of: Callable[[int], int],
        call_of: CallOf,
    ) -> None:
        """Listen to the stays of ``endpoint``.

        Args:
            tell: Sends a message to the head; called by any thread, the endpoint's lock held or not.
            rank_of: The rank of an endpoint in the job.
        """
        self._endpoint = endpoint
        self._tell = tell
        self._rank_of = rank_of
        self._call_of = call_of
        self._reported = -1
        self._asked = False
        endpoint.stays.observer = self._stays

    def _stays(self, standing: Standing | None) -> None:
        """A thread stays, or still does: tell the head, if it does not know or has asked meanwhile."""
        if standing is not None and (standing.number != self._reported or self._asked):
            self._reported, self._asked = standing.number, False
            self._tell(self._report(standing, 0))

    def asked(self, round_: int) -> None:
        """The head asks whether we are still blocked. Within progress."""
        self._asked = True
        standing = self._endpoint.stays.standing()
        self._tell(Awake(round_) if standing is None else self._report(standing, round_))

    def _report(self, standing: Standing, round_: int) -> Blocked:
        return Blocked(
            round_,
            standing.number,
            standing.sent,
            standing.taken,
            tuple(self._wait(stay, standing) for stay in standing.stays),
            standing.unread,
            {context - 1: sequence for context, sequence in standing.calls.items()},
        )

    def _wait(self, stay: Stay, standing: Standing) -> tuple[tuple[int, ...], str, str, int, int]:
        """As `Blocked` has it."""
        awaited = stay.awaited()
        peers = tuple(dict.fromkeys(each.peer for each in awaited if each.peer is not None))
        if not awaited:
            return peers, f"{stay.name}()", stay.where, 0, -1
        context, sequence = awaited[0].context, awaited[0].tag
        if context not in standing.calls or sequence is None:
            return peers, f"{stay.name}({self._arguments(awaited)})", stay.where, context, -1
        called = self._call_of(context - 1, sequence)
        what, _, where = called[1].rpartition(" at ") if called is not None else (f"{stay.name}()", "", stay.where)
        return peers, what, where, context - 1, sequence

    def _arguments(self, awaited: list[Awaited]) -> str:
        """``source=1, tag=5``; of several operations the first few."""
        parts = [self._argument(each) for each in awaited[:MOST_OPERATIONS]]
        return "; ".join(parts if len(awaited) <= MOST_OPERATIONS else [*parts, "…"])

    def _argument(self, awaited: Awaited) -> str:
        tag = "ANY_TAG" if awaited.tag is None else str(awaited.tag)
        peer = "ANY_SOURCE" if awaited.peer is None else str(self._rank_of(awaited.peer))
        return f"{'source' if awaited.incoming else 'dest'}={peer}, tag={tag}"


def only_these_threads(threads: frozenset[int]) -> bool:
    """Whether this process does nothing but wait in these threads, of which the caller is one.

    A signal handler runs in the main thread, also while that sleeps: it could do anything. So all but the caller must
    be asleep at this very moment, in the one function that sleeps.
    """
    frames = sys._current_frames()
    return (
        frames.keys() <= threads
        and are_asleep(threads - {threading.get_ident()}, frames)
        and started() <= len(threads - {threading.main_thread().ident})  # also those that have not begun to run
        and not SHIELD.pending
        and not _handlers_are_due()
    )


def are_asleep(threads: frozenset[int], frames: Mapping[int, FrameType]) -> bool:
    """Whether each of these threads, by its frame, is in the one function that sleeps, and runs no handler."""
    return all(ident in frames and frames[ident].f_code is Shield.sleep.__code__ for ident in threads)


def _handlers_are_due() -> bool:
    """Whether a signal will come, or may at any time, that a handler of the program waits for."""
    timer = signal.getitimer(signal.ITIMER_REAL)[0] > 0
    return timer or callable(signal.getsignal(signal.SIGCHLD))
