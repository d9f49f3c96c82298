"""A collective of some of the ranks, as a part of a collective of all."""

from __future__ import annotations

from collections.abc import Sequence

from rmpi.comm.schedule import Recv, Schedule, Send, Step, T


def within(ranks: Sequence[int], schedule: Schedule[T]) -> Schedule[T]:
    """``schedule``, whose rank i is ``ranks[i]``. Followed by those ranks alone."""
    result = None
    while True:
        try:
            steps = schedule.send(result)
        except StopIteration as finished:
            return finished.value  # type: ignore[no-any-return]
        if isinstance(steps, tuple):
            result = yield tuple([_renamed(step, ranks) for step in steps])
        else:
            result = yield _renamed(steps, ranks)


def _renamed(step: Step, ranks: Sequence[int]) -> Step:
    if isinstance(step, Send):
        return Send(ranks[step.peer], step.value)
    return Recv(ranks[step.peer], step.out)
