"""What is to be done next in a job: nothing here waits, and nobody is asked for the time.

Map tasks run first, then reduce tasks, which need what all map tasks have written. Of a task there may be several
*attempts*, one after the other (it failed, or its worker died) or beside each other (it takes long, and a worker is
idle). The first that succeeds is taken, and all others are as if they had never been: so nothing counts twice.

What a map task has written can get lost later, with the machine it is on. Then that task is to be done again, and the
reduce task that missed it waits for that.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from rmpi.mapreduce.errors import Stage

SLOW = 1.5
"""Times the median of those that are done: a task that runs for longer is tried a second time."""

LEAST_SECONDS = 0.2
"""A task that runs for less is not, whatever the others took."""

MOST_LOSSES = 10
"""Of what one map task has written; beyond, machines come and go faster than work is done."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The ``number``-th attempt at a task, from 1 on."""

    stage: Stage
    task: int
    number: int


@dataclass(slots=True)
class _Task:
    running: dict[int, float] = field(default_factory=dict)  # attempts and when they began
    attempts: int = 0
    failures: int = 0
    losses: int = 0
    is_done: bool = False


class _Tasks:
    """The tasks of a stage."""

    def __init__(self, count: int) -> None:
        self.tasks = [_Task() for _ in range(count)]
        self.waiting = deque(range(count))
        self.done = 0
        self.seconds: list[float] = []  # that those took that were taken

    @property
    def all_done(self) -> bool:
        return self.done == len(self.tasks)

    def next_waiting(self) -> int | None:
        """A task that waits, unless an attempt has succeeded meanwhile."""
        while self.waiting:
            task = self.waiting.popleft()
            if not self.tasks[task].is_done:
                return task
        return None

    def slowest(self, now: float) -> int | None:
        """The task that has run longest of those that take much longer than others, and have one attempt."""
        if not self.seconds:
            return None
        limit = max(SLOW * statistics.median(self.seconds), LEAST_SECONDS)
        slow = [
            (begun, number)
            for number, task in enumerate(self.tasks)
            if not task.is_done and len(task.running) == 1 and now - (begun := min(task.running.values())) > limit
        ]
        return min(slow)[1] if slow else None


class Schedule:
    """The state of a job.

    Args:
        maps, reduces: How many tasks of either there are.
        retries: How often a task may fail; then the job does.
        speculative: Whether a slow task is tried a second time while nothing waits.
    """

    def __init__(self, maps: int, reduces: int, retries: int, speculative: bool) -> None:
        self._stages: dict[Stage, _Tasks] = {"map": _Tasks(maps), "reduce": _Tasks(reduces)}
        self._retries = retries
        self._speculative = speculative

    @property
    def is_done(self) -> bool:
        """Whether every task has succeeded."""
        return all(stage.all_done for stage in self._stages.values())

    def done(self, stage: Stage) -> int:
        """How many tasks have."""
        return self._stages[stage].done

    def start(self, now: float) -> Attempt | None:
        """What a worker that is idle shall do, as from now; None: nothing for the moment."""
        stage: Stage = "reduce" if self._stages["map"].all_done else "map"
        tasks = self._stages[stage]
        number = tasks.next_waiting()
        if number is None and self._speculative:
            number = tasks.slowest(now)
        if number is None:
            return None
        task = tasks.tasks[number]
        task.attempts += 1
        task.running[task.attempts] = now
        return Attempt(stage, number, task.attempts)

    def succeeded(self, attempt: Attempt, now: float) -> bool:
        """An attempt has; whether it is the first, whose result counts."""
        tasks, task = self._ended(attempt)
        begun = task.running.pop(attempt.number)
        if task.is_done:
            return False
        task.is_done = True
        tasks.done += 1
        tasks.seconds.append(now - begun)
        return True

    def failed(self, attempt: Attempt) -> int:
        """An attempt has failed; how often it has by now if the job fails with that, else 0."""
        tasks, task = self._ended(attempt)
        del task.running[attempt.number]
        task.failures += 1
        if task.is_done:
            return 0
        if task.failures >= self._retries:
            return task.failures
        self._again(tasks, attempt.task)
        return 0

    def postponed(self, attempt: Attempt, lost: Iterable[int]) -> int | None:
        """A reduce task could not begin, because what these map tasks have written is lost.

        Returns a map task with which that happens over and over, or None.
        """
        tasks, task = self._ended(attempt)
        del task.running[attempt.number]
        if not task.is_done:
            self._again(tasks, attempt.task)
        return next((number for number in [*map(self._lost, lost)] if number is not None), None)

    def undone(self, attempt: Attempt) -> None:
        """What the attempt at a reduce task has written, which was taken, is lost."""
        tasks, task = self._ended(attempt)
        task.is_done = False
        tasks.done -= 1
        self._again(tasks, attempt.task)

    def _lost(self, number: int) -> int | None:
        tasks = self._stages["map"]
        task = tasks.tasks[number]
        task.losses += 1
        if task.is_done:
            task.is_done = False
            tasks.done -= 1
            self._again(tasks, number)
        return number if task.losses > MOST_LOSSES else None

    def _ended(self, attempt: Attempt) -> tuple[_Tasks, _Task]:
        tasks = self._stages[attempt.stage]
        return tasks, tasks.tasks[attempt.task]

    def _again(self, tasks: _Tasks, number: int) -> None:
        """The task waits, before the others, unless another attempt still runs."""
        if not tasks.tasks[number].running:
            tasks.waiting.appendleft(number)
