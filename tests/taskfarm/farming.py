"""Jobs, supplies and workers for the scheduler, and a farm that runs on a virtual clock."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from rmpi.taskfarm.scheduler import AHEAD, Hand, Scheduler


@dataclass(eq=False)
class Job:
    """A task, or a piece of a supply."""

    name: object
    kind: object = "task"
    size: int = 1
    alone: bool = False
    bound: bool = False
    expected: float = 0.0
    divisible: bool = False

    def __repr__(self):
        return f"<{self.name}>"


@dataclass(eq=False)
class Supply:
    """Tasks ``first``, ``first + 1``, …; what was cut is noted."""

    size: int
    kind: object = "task"
    grain: int = 0
    alone: bool = False
    divisible: bool = True
    cuts: list[int] = field(default_factory=list)

    def cut(self, size):
        assert 0 < size <= self.size
        self.size -= size
        name = range(sum(self.cuts), sum(self.cuts) + size)
        self.cuts.append(size)
        return Job(name, self.kind, size, self.alone)


class Farm:
    """A scheduler, its workers by letters, and what they were given and have not answered."""

    def __init__(self, workers: str = "ab", **known: float) -> None:
        self.scheduler = Scheduler()
        self.hands = {letter: Hand() for letter in workers}
        for hand in self.hands.values():
            self.scheduler.joined(hand)
        for kind, seconds in known.items():
            self.scheduler.estimates.measured(kind, 1, seconds)

    def add(self, *jobs: Job | Supply) -> None:
        for job in jobs:
            self.scheduler.add(job)

    def jobs(self, names: Iterable[object], kind: object = "task", **more: bool) -> list[Job]:
        """That many jobs, added."""
        jobs = [Job(name, kind, **more) for name in names]
        self.add(*jobs)
        return jobs

    def given(self) -> dict[str, list[object]]:
        """What is to be given now: names, by worker."""
        return {self.letter(hand): [job.name for job in jobs] for hand, jobs in self.scheduler.plan()}

    def has(self, letter: str) -> list[object]:
        """What that worker has."""
        return [job.name for job in self.hands[letter].jobs]

    def answer(self, letter: str, seconds: float, *, times: int = 1) -> None:
        """It has done the first of what it has, in that time."""
        hand = self.hands[letter]
        for _ in range(times):
            assert self.scheduler.answered(hand, next(iter(hand.jobs)), seconds)

    def give_back(self, letter: str) -> None:
        """It is at something that takes long, and gives back the rest."""
        hand = self.hands[letter]
        self.scheduler.returned(hand, list(hand.jobs)[1:])

    def letter(self, hand: Hand) -> str:
        return next(letter for letter, each in self.hands.items() if each is hand)


def makespan(supply: Supply | None, seconds: list[float], workers: int) -> float:
    """How long a farm takes for those tasks, in virtual seconds, if messages take no time.

    They are submitted one by one, or mapped by way of ``supply``. As in `rmpi.taskfarm.working`: what was not begun is
    given back when a task takes longer than `AHEAD`.
    """
    scheduler = Scheduler()
    hands = [Hand() for _ in range(workers)]
    for hand in hands:
        scheduler.joined(hand)
    for entry in [supply] if supply else [Job(range(n, n + 1)) for n in range(len(seconds))]:
        scheduler.add(entry)
    events: list[tuple[float, int, str, Hand]] = []
    number = count()
    now = 0.0
    working: set[Hand] = set()

    def begin(hand: Hand) -> None:
        if hand.jobs and hand not in working:
            working.add(hand)
            takes = sum(seconds[n] for n in next(iter(hand.jobs)).name)
            heapq.heappush(events, (now + takes, next(number), "done", hand))
            if takes > AHEAD:
                heapq.heappush(events, (now + AHEAD, next(number), "long", hand))

    while True:
        for hand, _ in scheduler.plan():
            begin(hand)
        if not events:
            assert scheduler.waiting == 0
            return now
        now, _, what, hand = heapq.heappop(events)
        job = next(iter(hand.jobs))
        if what == "long":
            scheduler.returned(hand, list(hand.jobs)[1:])
        else:
            working.discard(hand)
            scheduler.answered(hand, job, sum(seconds[n] for n in job.name))
            begin(hand)
