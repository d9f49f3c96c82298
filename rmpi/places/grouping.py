"""Groups of places that depend on each other, as the `Directory` keeps them. [pure]

A group is made of places that run (`Unite`), each with the rule that it was spawned with; what follows when one of them
has ended is decided by a `Group` of the supervisor. Its children, which have names there, are numbers of places here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rmpi.errors import UsageError
from rmpi.places.ends import End
from rmpi.places.supervisor import GaveUp, Group, GroupAction, Rule, Start, Stop, Strategy

STOP_GRACE = 2.0
"""Seconds for a place to end between being asked to, for the sake of another one of its group, and being killed."""


@dataclass(frozen=True, slots=True)
class StopPlace:
    """End a place, which is to be started again, or not, with the others."""

    place: int


@dataclass(frozen=True, slots=True)
class StartPlace:
    """Start a place at that time."""

    place: int
    at: float


@dataclass(frozen=True, slots=True)
class LosePlace:
    """A place has ended for good."""

    place: int
    reason: str


Step = StopPlace | StartPlace | LosePlace


class Groups:
    """The groups of one system. A place is in one at most."""

    def __init__(self) -> None:
        self._group_of: dict[int, Group] = {}

    def __contains__(self, place: object) -> bool:
        return place in self._group_of

    def unite(self, strategy: str, rules: Mapping[int, Rule]) -> None:
        """Make a group of places, which run, in the order in which they are to be started.

        Raises:
            UsageError: There is no such strategy; a place is in a group already; or its rule does not restart it.
        """
        known = [each.value for each in Strategy]
        if strategy not in known:
            raise UsageError(f"a group is {', '.join(known)}, not {strategy!r}")
        if not rules:
            raise UsageError("a group has one place at least")
        if taken := [place for place in rules if place in self._group_of]:
            raise UsageError(f"{len(taken)} of these places are in another group already")
        group = Group(Strategy(strategy), {str(place): rule for place, rule in rules.items()})
        self._group_of.update(dict.fromkeys(rules, group))

    def leave(self, place: int, now: float) -> list[Step]:
        """A place will not come back, because it was ended on purpose: the others go on without it."""
        group = self._group_of.pop(place, None)
        return _steps(group.remove(str(place), now)) if group is not None else []

    def started(self, place: int, now: float) -> None:
        """A place runs again."""
        if place in self._group_of:
            self._group_of[place].started(str(place), now)

    def ended(self, place: int, end: End, now: float, *, final: bool = False) -> list[Step]:
        """What follows from the end of a place, for it and for the others of its group.

        Args:
            final: It cannot be started again, whatever its rule says.
        """
        group = self._group_of[place]
        steps = _steps(group.lose(str(place), now) if final else group.step(str(place), end, now))
        reason = next((step.reason for step in steps if isinstance(step, LosePlace)), end.cause)
        lost = [each for each, its in self._group_of.items() if its is group and group.is_gone(str(each))]
        for each in lost:
            del self._group_of[each]
        return [*(LosePlace(each, reason) for each in lost), *(s for s in steps if not isinstance(s, LosePlace))]


def _steps(actions: Iterable[GroupAction]) -> list[Step]:
    steps: list[Step] = []
    for action in actions:
        match action:
            case Stop(child):
                steps.append(StopPlace(int(child)))
            case Start(child, at):
                steps.append(StartPlace(int(child), at))
            case GaveUp(child, reason):
                steps.append(LosePlace(int(child), reason))
    return steps
