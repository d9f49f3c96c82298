"""Which worker gets which task, and when. Nothing here waits, sends, or knows what a task is.

A worker that has nothing to do until its answer was heard and the next task has come would idle for two messages. For
a task of a second that is nothing; for one of ten microseconds it is most of the time. So a worker is given work
*ahead*: tasks worth up to `AHEAD` seconds, by what tasks of the same kind have taken so far. What takes longer, and
what was never measured, is given alone. Near the end nobody gets more than a fair share of what waits.

What comes while all are busy waits until one answers, and then goes in one message with whatever came meanwhile. To
wake up a worker takes as long as ten tasks of a few microseconds, so it is not worth it for less than `WORTH` seconds
of work while another one is awake and will answer soon (`_is_worth_it`); and where tasks are submitted faster than they
amount to that, it pays to wait for some more of them (`lingers`), as a network card does before it interrupts. So the
more there is to do, the less each task costs.

An estimate may be wrong: behind one task that takes a minute there may sit a hundred that would take no time. A worker
gives back what it has not begun when the task at hand takes longer than `AHEAD` (`rmpi.taskfarm.working`), and it is
given to others (`returned`). So the order in which tasks begin is that of their submission but for that.

Estimates are exponential moving averages per kind, with a weight of `WEIGHT` for the newest: after a change of what
tasks take, some ten of them set it right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

AHEAD = 0.02
"""Seconds of work that a worker may have: more than it takes to answer, and to get the attention of a busy master,
which in CPython may be 5 ms (`sys.getswitchinterval`)."""

MOST_AHEAD = 1000
"""Tasks that a worker may have, however short they are."""

WORTH = 5e-4
"""Seconds of work for which one more worker is woken."""

WEIGHT = 0.1
"""Of the newest measurement in an estimate."""

PRIOR = AHEAD
"""Seconds that a task is expected to take as long as nothing is known."""

KINDS = 10_000
"""Kinds of which it is known what they take; the one that was measured first is forgotten when there are more."""


class Entry(Protocol):
    """What may wait: a `Job` or a `Supply`."""

    def cancel(self) -> None:
        """It is not wanted any more."""

    def fail(self, error: BaseException) -> None:
        """It will not be done."""


class Job(Entry, Protocol):
    """What is scheduled: one task, or a piece of a `Supply`.

    Attributes:
        kind: Tasks of one kind take a similar time.
        size: How many tasks of that kind it is.
        alone: It is given to a worker that has nothing else.
        bound: It is for one worker and no other. Set here.
        expected: Seconds that it was expected to take when it was given to a worker. Set here.
        divisible: It is not.
    """

    divisible: Literal[False]
    kind: object
    size: int
    alone: bool
    bound: bool
    expected: float


class Supply(Entry, Protocol):
    """Many tasks of one kind, of which a job is cut when there is a worker for it.

    Attributes:
        kind: As for jobs.
        size: How many tasks are left.
        grain: How many a job shall have; 0: as many as take a certain time.
        alone: Its jobs are given to workers that have nothing else.
        divisible: It is.
    """

    divisible: Literal[True]
    kind: object
    size: int
    grain: int
    alone: bool

    def cut(self, size: int) -> Job:
        """A job of the next ``size`` of them."""


class Hand:
    """A worker, as far as scheduling is concerned.

    Attributes:
        jobs: What it was given and has not answered.
        load: Seconds that these are expected to take.
        leased: It gets only what is given to it by name.
        stuck: It gave jobs back, and has answered nothing since: it gets nothing ahead.
    """

    __slots__ = ("jobs", "leased", "load", "stuck")

    def __init__(self) -> None:
        self.jobs: dict[Job, None] = {}
        self.load = 0.0
        self.leased = self.stuck = False

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return not self.jobs


class Estimates:
    """What tasks of each kind take, in seconds."""

    def __init__(self) -> None:
        self._seconds: dict[object, float] = {}

    def known(self, kind: object) -> float | None:
        """Seconds for one task, if any was measured."""
        return self._seconds.get(kind)

    def measured(self, kind: object, size: int, seconds: float) -> None:
        """So many tasks took so long together."""
        each = seconds / size
        known = self._seconds.get(kind)
        self._seconds[kind] = each if known is None else known + (each - known) * min(1.0, WEIGHT * size)
        if len(self._seconds) > KINDS:
            del self._seconds[next(iter(self._seconds))]


class Scheduler:
    """Tasks that wait, and workers that have room. Not thread-safe; its caller holds a lock.

    `add`, `joined`, `answered`, `returned` and `lost` say what has happened; `plan` then says what is to be done.
    """

    def __init__(self, piece: float = AHEAD) -> None:
        """Nothing waits, and there is nobody.

        Args:
            piece: Seconds that a job of a supply should take.
        """
        self.estimates = Estimates()
        self._piece = piece
        self._queue: deque[Job | Supply] = deque()
        self._bound: dict[Hand, deque[Job]] = {}
        self._hands: dict[Hand, None] = {}
        self._roomy: dict[Hand, None] = {}  # those that may have room, in the order in which they got it
        self._unemployed: set[Hand] = set()  # those that have nothing to do, leased ones too
        self._waiting = 0
        self._stuck = 0  # how many are
        self.lingering = False  # somebody waits for more before he asks for a plan

    @property
    def waiting(self) -> int:
        """How many tasks no worker has."""
        return self._waiting

    @property
    def wants_plan(self) -> bool:
        """Whether somebody should have something to do. Else it is early enough to plan when somebody answers."""
        if not self._unemployed:
            return False
        return bool(self._bound) or (self._is_enough() if self.lingering else self._is_worth_it())

    @property
    def lingers(self) -> bool:
        """Whether to wait a moment for more: tasks are coming, and those that wait are not worth a message yet."""
        return bool(self._queue) and not self._bound and not self._is_enough()

    @property
    def hands(self) -> Iterable[Hand]:
        """All workers."""
        return self._hands.keys()

    # ------------------------------------------------------------------------------- what has happened

    def add(self, job: Job | Supply) -> None:
        """There is something to be done."""
        self._queue.append(job)
        self._waiting += job.size

    def add_for(self, hand: Hand, job: Job) -> None:
        """There is something to be done by that worker and no other."""
        job.bound = True
        self._bound.setdefault(hand, deque()).append(job)
        self._waiting += job.size
        self._roomy[hand] = None

    def joined(self, hand: Hand) -> None:
        """There is one more worker."""
        self._hands[hand] = self._roomy[hand] = None
        self._unemployed.add(hand)

    def answered(self, hand: Hand, job: Job, seconds: float) -> bool:
        """A worker has done a job in that time. False: it was not that worker's, or not any more."""
        self._unstick(hand)
        if job not in hand.jobs:
            return False
        self._taken_from(hand, job)
        self.estimates.measured(job.kind, job.size, seconds)
        return True

    def returned(self, hand: Hand, jobs: Iterable[Job]) -> None:
        """A worker is at something that takes long, and gives back what it has not begun, if anything.

        That comes first again, in its order; what only this worker may do waits for it.
        """
        if not hand.stuck and hand in self._hands:
            hand.stuck = True
            self._stuck += 1
        back = [job for job in jobs if job in hand.jobs]
        for job in back:
            self._taken_from(hand, job)
        self.put_back([job for job in back if not job.bound])
        bound = [job for job in back if job.bound]
        if bound:
            self._bound.setdefault(hand, deque()).extendleft(reversed(bound))
            self._waiting += sum(job.size for job in bound)

    def discard(self, hand: Hand, job: Job) -> None:
        """A worker was to have that job, and has not: it is not wanted any more."""
        if job in hand.jobs:
            self._taken_from(hand, job)

    def lost(self, hand: Hand) -> tuple[list[Job], list[Job]]:
        """A worker is gone: the jobs that it had, and those that only it could do. None of them waits here."""
        self._hands.pop(hand, None)
        self._roomy.pop(hand, None)
        self._unemployed.discard(hand)
        self._unstick(hand)
        had, hand.jobs, hand.load = list(hand.jobs), {}, 0.0
        bound = list(self._bound.pop(hand, ()))
        self._waiting -= sum(job.size for job in bound)
        return had, bound

    def put_back(self, jobs: Sequence[Job]) -> None:
        """These wait again, before all others, in their order."""
        self._queue.extendleft(reversed(jobs))
        self._waiting += sum(job.size for job in jobs)

    def withdraw(self, job: Job | Supply) -> bool:
        """What no worker has is not wanted any more. False: it is not here."""
        queues: list[deque[Any]] = [self._queue, *self._bound.values()]
        for queue in queues:
            if job in queue:
                queue.remove(job)
                self._waiting -= job.size
                return True
        return False

    def clear(self) -> list[Job | Supply]:
        """Nothing that no worker has is wanted any more: all of that."""
        jobs: list[Job | Supply] = [*self._queue, *(job for queue in self._bound.values() for job in queue)]
        self._queue.clear()
        self._bound.clear()
        self._waiting = 0
        return jobs

    def lease(self) -> Hand | None:
        """Have a worker that has nothing to do for its own; None: there is none."""
        for hand in self._hands:
            if hand.idle and not hand.leased and not self._bound.get(hand):
                hand.leased = True
                return hand
        return None

    def release(self, hand: Hand) -> None:
        """It takes part again."""
        hand.leased = False
        self._roomy[hand] = None

    # ------------------------------------------------------------------------------- what is to be done

    def plan(self) -> Iterator[tuple[Hand, list[Job]]]:
        """Give jobs to workers that have room: to which, and which."""
        full = []
        for hand in [*self._roomy]:
            if not self._queue and not self._bound:
                break
            jobs = [*self._serve(hand)]
            if jobs:
                yield hand, jobs
            if not self._has_room(hand):
                full.append(hand)
        for hand in full:
            self._roomy.pop(hand, None)

    def _serve(self, hand: Hand) -> Iterator[Job]:
        bound = self._bound.get(hand)
        while bound and self._fits(hand, bound[0]):
            yield self._given(hand, bound.popleft())
        if bound is not None and not bound:
            del self._bound[hand]
        if hand.leased or bound or not (hand.jobs or self._is_worth_it()):
            return
        share = max(1, self._waiting // max(1, len(self._hands)))
        while self._queue and share > 0:
            job = self._next(hand, share)
            if job is None:
                return
            share -= job.size
            yield self._given(hand, job)

    def _is_worth_it(self) -> bool:
        """Whether to wake a worker: nobody else is awake who will answer soon, or there is enough to do."""
        return bool(self._queue) and (len(self._unemployed) + self._stuck >= len(self._hands) or self._is_enough())

    def _is_enough(self) -> bool:
        """Whether what waits is worth the while. What was never measured is, and what is given alone."""
        if not self._queue:
            return False
        first = self._queue[0]
        known = self.estimates.known(first.kind)
        return known is None or known * self._waiting >= WORTH or first.alone

    def _next(self, hand: Hand, share: int) -> Job | None:
        """The first job that waits, or a piece of it, if the worker has room for that."""
        first = self._queue[0]
        if not first.divisible:
            if not self._fits(hand, first):
                return None
            self._queue.popleft()
            return first
        size = self._size_of_piece(first, share)
        seconds = size * (self.estimates.known(first.kind) or PRIOR)
        if not self._goes_with(hand, first) or (hand.jobs and hand.load + seconds > 2 * self._piece):
            return None
        job = first.cut(size)
        if not first.size:
            self._queue.popleft()
        return job

    def _size_of_piece(self, supply: Supply, share: int) -> int:
        """So many tasks that they take `piece` seconds, but half of a fair share at most: the last is not late."""
        if supply.grain:
            return min(supply.grain, supply.size)
        known = self.estimates.known(supply.kind)
        if known is None:
            return 1
        wanted = int(self._piece / known) if known > 0 else supply.size
        return max(1, min(wanted, (share + 1) // 2, supply.size))

    def _fits(self, hand: Hand, job: Job) -> bool:
        return self._goes_with(hand, job) and (not hand.jobs or hand.load + self._seconds(job) <= AHEAD)

    def _goes_with(self, hand: Hand, job: Job | Supply) -> bool:
        """Whether a worker may have that besides what it has, if there is the time."""
        jobs = hand.jobs
        if not jobs:
            return True
        return not (job.alone or hand.stuck or len(jobs) >= MOST_AHEAD or next(reversed(jobs)).alone)

    def _has_room(self, hand: Hand) -> bool:
        return hand.load < AHEAD and not hand.stuck and len(hand.jobs) < MOST_AHEAD

    def _seconds(self, job: Job) -> float:
        return job.size * (self.estimates.known(job.kind) or PRIOR)

    def _given(self, hand: Hand, job: Job) -> Job:
        job.expected = self._seconds(job)
        hand.load += job.expected
        hand.jobs[job] = None
        self._unemployed.discard(hand)
        self._waiting -= job.size
        return job

    def _unstick(self, hand: Hand) -> None:
        if hand.stuck:
            hand.stuck = False
            self._stuck -= 1

    def _taken_from(self, hand: Hand, job: Job) -> None:
        del hand.jobs[job]
        hand.load = hand.load - job.expected if hand.jobs else 0.0
        if hand in self._hands:
            self._roomy[hand] = None
            if not hand.jobs:
                self._unemployed.add(hand)
