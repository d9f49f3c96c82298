"""One job on workers: what is to be done next is the `Schedule`'s to decide; here it is done."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from typing import Any, Protocol

from rmpi.errors import PeerLost
from rmpi.mapreduce.chunks import Segment
from rmpi.mapreduce.errors import Failed, MapReduceError, Stage, shortened
from rmpi.mapreduce.fetching import FileLost, chunks_of
from rmpi.mapreduce.progress import Progress, State
from rmpi.mapreduce.schedule import MOST_LOSSES, Attempt, Schedule
from rmpi.mapreduce.tasks import Missing, Order, Written, run_map, run_reduce

TICK = 0.1
"""Seconds after which we look again for tasks that take too long, and for workers that have come."""


class Farm(Protocol):
    """What executes tasks: `rmpi.taskfarm.Master`."""

    @property
    def workers(self) -> Sequence[object]:
        """Those that there are now."""

    @property
    def greeted(self) -> int:
        """How many there are, or will be soon."""

    def submit(self, function: Any, /, *args: Any) -> Future[Any]:
        """Have a function called by one of them."""


Outcome = Written | Failed | Missing


class Running:
    """A job.

    Args:
        batches: Inputs, for each map task.
        reduces: How many reduce tasks there are.
        retries, speculative, progress: As for `map_reduce`.
    """

    def __init__(
        self,
        farm: Farm,
        order: Order,
        batches: Sequence[Sequence[Any]],
        reduces: int,
        retries: int,
        speculative: bool,
        progress: bool | None,
    ) -> None:
        self._farm = farm
        self._order = order
        self._batches = batches
        self._reduces = reduces
        self._schedule = Schedule(len(batches), reduces, retries, speculative)
        self._running: dict[Future[Outcome], Attempt] = {}
        self._written: list[Written | None] = [None] * len(batches)
        self._results: list[list[tuple[Any, Any]]] = [[] for _ in range(reduces)]
        self._progress = Progress(sys.stderr, progress, time.monotonic())

    def run(self) -> list[tuple[Any, Any]]:
        """What all reducers have given, partition after partition.

        Raises:
            MapReduceError: A task failed too often.
            UsageError: A task cannot be sent, or what functions give cannot be used.
        """
        schedule = self._schedule
        try:
            while not schedule.is_done:
                self._start_what_can_be()
                done, _ = wait(self._running, TICK, FIRST_COMPLETED)
                for future in done:
                    self._settle(self._running.pop(future), future)
                if self._progress.shown:
                    self._progress.show(self._state(), time.monotonic())
        finally:
            self._progress.end()
            for future in self._running:
                future.cancel()
        return [pair for pairs in self._results for pair in pairs]

    def _start_what_can_be(self) -> None:
        """One task for each worker, so that when it was started is when it has begun."""
        while len(self._running) < max(1, len(self._farm.workers)):
            attempt = self._schedule.start(time.monotonic())
            if attempt is None:
                return
            self._running[self._submitted(attempt)] = attempt

    def _submitted(self, attempt: Attempt) -> Future[Outcome]:
        if attempt.stage == "map":
            return self._farm.submit(run_map, self._order, self._batches[attempt.task])
        segments = [written.segments[attempt.task] for written in self._written if written is not None]
        return self._farm.submit(run_reduce, self._order, attempt.task, segments)

    def _settle(self, attempt: Attempt, future: Future[Outcome]) -> None:
        error = future.exception()
        if error is not None:
            self._fail(attempt, _failure(error))
            return
        match future.result():
            case Failed() as failed:
                self._fail(attempt, failed)
            case Missing() as missing:
                self._do_again(attempt, missing)
            case Written() as written:
                self._take(attempt, written)

    def _fail(self, attempt: Attempt, failed: Failed) -> None:
        failures = self._schedule.failed(attempt)
        if failures or failed.final:
            where = failed.where or self._given_to(attempt.stage, attempt.task)
            raise MapReduceError(attempt.stage, where, max(1, failures), failed)

    def _given_to(self, stage: Stage, task: int) -> str:
        if stage == "reduce":
            return f"partition {task}"
        first, *others = self._batches[task]
        return f"input {shortened(first)}" + (f" and the {len(others)} after it" if others else "")

    def _do_again(self, attempt: Attempt, missing: Missing) -> None:
        """Map tasks whose files could not be read."""
        lost = [
            number
            for number, written in enumerate(self._written)
            if written is not None and any(_is_of(segment, missing) for segment in written.segments)
        ]
        hopeless = self._schedule.postponed(attempt, lost)
        if hopeless is not None:
            text = f"what it had written was lost {MOST_LOSSES} times, at last {missing.path}"
            raise MapReduceError("map", self._given_to("map", hopeless), MOST_LOSSES, Failed("", "", text, ""))

    def _take(self, attempt: Attempt, written: Written) -> None:
        if not self._schedule.succeeded(attempt, time.monotonic()):
            return
        if attempt.stage == "map":
            self._written[attempt.task] = written
            return
        try:
            chunks = [*chunks_of(written.segments[0])]
        except FileLost:
            self._schedule.undone(attempt)
            return
        self._results[attempt.task] = [pair for keys, values, _ in chunks for pair in zip(keys, values, strict=True)]

    def _state(self) -> State:
        return State(
            self._schedule.done("map"),
            len(self._batches),
            sum(written.nbytes for written in self._written if written is not None),
            self._schedule.done("reduce"),
            self._reduces,
        )


def _is_of(segment: Segment, missing: Missing) -> bool:
    """Whether it cannot be read without what is missing."""
    paths = (segment.path, segment.head and segment.head.path)
    return missing.path in paths or segment.shelf == missing.shelf != ""


def _failure(error: BaseException) -> Failed:
    """What a task has met with before it could catch it.

    Raises:
        BrokenExecutor: There are no workers, and there will be none.
    """
    is_lost = isinstance(error, PeerLost)
    if isinstance(error, BrokenExecutor) and not is_lost:
        raise error
    text = "" if is_lost else "".join(traceback.format_exception(error))
    return Failed("", type(error).__name__, str(error), text)
