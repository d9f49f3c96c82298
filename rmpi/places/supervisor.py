"""Supervision: what follows when something that is supervised has ended. [pure]

A supervised thing, a place or a node, has a *policy*: what its owner wrote as ``restart=``. The policy's *rule* is
plain data, so it can travel to the head, which decides but never unpickles; the functions in a policy stay with the
owner and run there. A `Supervisor` applies a rule to one thing, a `Group` to several that depend on each other. Both
are told what happened and at what time, and say what to do; they hold no clock and start nothing.

    restart=None                 nothing: gone is gone
    restart=function             the function is called, without arguments, instead of a restart
    restart=True                 restarted at once, for ever; after pauses while it dies young
    restart=restart_every(5)     restarted, but not over and over: see there

**Any end is followed by a restart**, also a good one (status 0), unless the policy says ``only_failures``: a place that
does its work and ends is done again and again. Who ends a thing on purpose does not ask its supervisor.

**One rule serves both kinds of restart.** A thing that lived longer than ``settled`` seconds is restarted at once.
One that died younger has to wait: ``seconds`` the first time, and each further time ``backoff`` times as long as
before, up to ``longest``; so what lives a while loses no time, and what dies as soon as it starts cannot keep a core
busy. The first restart of all is at once in any case. The restarts are counted; ``retries`` of them are made, and the
next end is final. Who lived longer than ``reset_after`` has a clean slate: no restarts so far, and the first pause
again. The slate is wiped *before* the limit is tested, so that a place which was restarted up to its limit, and then
ran for days, is restarted when it ends.

How long it lived is counted from when it ran (`Supervisor.started`), not from when it was to be started. A host that
cannot be reached takes half a minute to say so; that is no life, and wipes no slate.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Literal

from rmpi.errors import UsageError, WireError
from rmpi.places.ends import End

YOUNG = 1.0
"""Seconds. Under ``restart=True``, what lived for less is restarted after a pause; what lived longer, at once."""

FIRST_PAUSE = 0.1
"""Seconds of that pause, the first time. Starting and ending a place costs some 50 ms of a core."""

LONGEST_PAUSE = 5.0
"""Seconds up to which it doubles. What can never run again then costs about a hundredth of a core."""

LONGEST_BACKOFF = 3600.0
"""Seconds up to which the pauses of `restart_every` grow, unless they are longer from the beginning."""

Thunk = Callable[[], object]

Plain = tuple[int, bool, float, float, float, float, float, int]
"""A rule as it travels."""


def check_number(name: str, value: Any, wanted: str, right: Callable[[float], bool]) -> None:
    """Raise `UsageError` for what is no such number. NaN is never right."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not right(value):
        raise UsageError(f"{name} must be a number, {wanted}, not {value!r}")


def check_thunk(name: str, function: object) -> None:
    """Raise `UsageError` for what cannot be called without arguments."""
    if not callable(function):
        raise UsageError(f"{name} must be a function without arguments, not {function!r}")
    if inspect.iscoroutinefunction(function):
        raise UsageError(f"{name} must be an ordinary function, but nobody would await {function!r}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C: nobody knows
        return
    try:
        signature.bind()
    except TypeError as error:
        called = getattr(function, "__qualname__", repr(function))
        raise UsageError(f"{name} is called without arguments, but {called}{signature} needs some: {error}") from None


# ----------------------------------------------------------------------------------------- policies


class Then(IntEnum):
    """What follows an end."""

    NOTHING = 0
    CALL = 1
    RESTART = 2


@dataclass(frozen=True, slots=True)
class Rule:
    """The part of a policy that decides: plain data. The module's text says how the numbers act together.

    Attributes:
        then: What follows an end.
        only_failures: Only an end that is a failure counts; after a good one there is nothing to do.
        seconds: Of the first pause.
        settled: Who lived for more seconds is restarted without a pause.
        reset_after: Who lived for more seconds has a clean slate. Infinity: nobody ever has.
        backoff: By what each pause is longer than the last; 1 or more.
        longest: Seconds of the longest pause, unless the first one is longer.
        retries: How many restarts there are without a clean slate; None: any number.
    """

    then: Then = Then.RESTART
    only_failures: bool = False
    seconds: float = FIRST_PAUSE
    settled: float = YOUNG
    reset_after: float = YOUNG
    backoff: float = 2.0
    longest: float = LONGEST_PAUSE
    retries: int | None = None

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds, "more than 0", lambda n: 0 < n < math.inf)
        check_number("settled", self.settled, "0 or more", lambda n: 0 <= n < math.inf)
        check_number("reset_after", self.reset_after, "more than 0", lambda n: n > 0)
        check_number("backoff", self.backoff, "1 or more", lambda n: 1 <= n < math.inf)
        check_number("longest", self.longest, "more than 0", lambda n: 0 < n < math.inf)
        if self.retries is not None and (type(self.retries) is not int or self.retries < 0):
            raise UsageError(f"retries must be a whole number, 0 or more, or None for no limit, not {self.retries!r}")
        if type(self.only_failures) is not bool:
            raise UsageError(f"only_failures must be True or False, not {self.only_failures!r}")

    def to_plain(self) -> Plain:
        """What `from_plain` makes an equal rule of: numbers in a tuple, which msgpack can carry."""
        numbers = (self.seconds, self.settled, self.reset_after, self.backoff, self.longest)
        seconds, settled, reset_after, backoff, longest = map(float, numbers)
        retries = -1 if self.retries is None else self.retries
        return int(self.then), self.only_failures, seconds, settled, reset_after, backoff, longest, retries

    @classmethod
    def from_plain(cls, plain: Any) -> Rule:
        """The rule that came over the wire.

        Raises:
            WireError: It is none.
        """
        try:
            then, only_failures, seconds, settled, reset_after, backoff, longest, retries = plain
            limit = None if retries == -1 else retries
            return cls(Then(then), only_failures, seconds, settled, reset_after, backoff, longest, limit)
        except (TypeError, ValueError, UsageError) as error:
            raise WireError(f"not a rule of supervision: {plain!r} ({error})") from None


@dataclass(frozen=True, slots=True)
class Policy:
    """What was given as ``restart=``: a rule, and the functions that its owner runs. It pickles if they do.

    Attributes:
        rule: What decides.
        instead: To be called after an end, if the rule's answer is `Call`.
        on_final_fail: To be called if the answer is `GiveUp`.
    """

    rule: Rule
    instead: Thunk | None = None
    on_final_fail: Thunk | None = None


NEVER = Policy(Rule(Then.NOTHING))
"""``restart=None``"""


def policy_of(restart: object) -> Policy:
    """The policy that ``restart=`` stands for: True, False or None, a function without arguments, or a policy.

    Raises:
        UsageError: It is none of these, or the function needs arguments.
    """
    if isinstance(restart, Policy):
        return restart
    if restart is None or restart is False:
        return NEVER
    if restart is True:
        return restart_at_once()
    if callable(restart):
        check_thunk("restart", restart)
        return Policy(Rule(Then.CALL), instead=restart)
    raise UsageError(
        f"restart must be True, None, a function without arguments that is called instead of a restart, "
        f"or places.restart_every(seconds, …), not {restart!r}"
    )


def restart_at_once(*, only_failures: bool = False) -> Policy:
    """What ``restart=True`` stands for: restart at once, for ever.

    What dies within a second (`YOUNG`) of its start is restarted at once the first time, and then after pauses of
    0.1 s, 0.2 s, 0.4 s … up to 5 s (`LONGEST_PAUSE`), until it has lived for more than a second.

    Args:
        only_failures: Let it rest after a good end, one with status 0.
    """
    return Policy(Rule(only_failures=only_failures))


def restart_every(
    seconds: float,
    retries: int | None = None,
    reset_after: float | None = None,
    backoff: float = 1.0,
    on_final_fail: Thunk | None = None,
    *,
    only_failures: bool = False,
) -> Policy:
    """Restart what ends; at once if it lived for more than ``seconds``, else ``seconds`` after its end.

    The first restart is at once in any case. Something that lives for one second, under
    ``restart_every(5, retries=3)``, runs at 0 s, 1 s, 7 s and 13 s; when it ends at 14 s, that is final.

    Args:
        seconds: The pause; more than 0. (``restart=True`` restarts at once.)
        retries: How many restarts there may be. None: any number. 0: its first end is final.
        reset_after: Seconds. If it lived longer, its earlier restarts are forgotten. None: twice ``seconds``.
            ``math.inf``: they never are.
        backoff: Each pause is so many times as long as the one before; 1 or more. Pauses grow up to an hour.
        on_final_fail: Called, without arguments, in the owner's process, when it has ended after the last restart.
        only_failures: Let it rest after a good end, one with status 0.

    Raises:
        UsageError: One of them is out of range.
    """
    rule = Rule(seconds=seconds)  # checks it
    if on_final_fail is not None:
        check_thunk("on_final_fail", on_final_fail)
    rule = Rule(
        only_failures=only_failures,
        seconds=seconds,
        settled=seconds,
        reset_after=2 * seconds if reset_after is None else reset_after,
        backoff=backoff,
        longest=LONGEST_BACKOFF,
        retries=retries,
    )
    return Policy(rule, on_final_fail=on_final_fail)


# ---------------------------------------------------------------------------------------- decisions


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again.

    Attributes:
        at: When, by the clock of who asks; not before the moment of asking.
        attempt: Which restart this is since it last had a clean slate; from 1.
    """

    at: float
    attempt: int


@dataclass(frozen=True, slots=True)
class Call:
    """Have the owner call its function (`Policy.instead`); the thing is gone for good."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It is gone for good; have the owner call `Policy.on_final_fail`.

    Attributes:
        reason: In words.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """It is gone for good, and that is well."""


Decision = Restart | Call | GiveUp | Nothing


class Supervisor:
    """Decides about one thing, which is running when it is made.

    Attributes:
        restarts: How many there were since it last had a clean slate.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.restarts = 0
        self._pause = rule.seconds  # the next one
        self._since: float | None = -math.inf  # it runs; None: it was to be started, and did not run yet

    def started(self, now: float) -> None:
        """It runs again. If that is never said between two ends, it did not live at all."""
        self._since = now

    def step(self, end: End, now: float) -> Decision:
        """It has ended, or could not be started."""
        if self.rule.then is Then.NOTHING or (self.rule.only_failures and not end.failed):
            return Nothing()
        if self.rule.then is Then.CALL:
            return Call()
        lived = 0.0 if self._since is None else now - self._since
        if lived > self.rule.reset_after:
            self.restarts, self._pause = 0, self.rule.seconds
        if self.rule.retries is not None and self.restarts >= self.rule.retries:
            return GiveUp(_final(end, self.restarts))
        self.restarts += 1
        self._since = None
        return Restart(now + self._wait(lived), self.restarts)

    def _wait(self, lived: float) -> float:
        """Seconds until it is started again."""
        if lived > self.rule.settled:
            return 0.0
        pause = self._pause
        self._pause = min(pause * self.rule.backoff, max(pause, self.rule.longest))
        return pause


def _final(end: End, restarts: int) -> str:
    count = "once" if restarts == 1 else f"{restarts} times"
    return (
        f"{end.cause}, after having been restarted {count}" if restarts else f"{end.cause}, and no restart is allowed"
    )


# ------------------------------------------------------------------------------------------- groups


class Strategy(Enum):
    """Who depends on whom in a group: what has to be restarted with a thing that ended."""

    ONE_FOR_ONE = "one_for_one"  # nobody: that thing alone
    ONE_FOR_ALL = "one_for_all"  # everybody on everybody: the whole group
    REST_FOR_ONE = "rest_for_one"  # each on those before it: that thing, and those after it


@dataclass(frozen=True, slots=True)
class Stop:
    """End a child, and `Group.step` when it has ended; at once if it was not running or was yet to be started."""

    child: str


@dataclass(frozen=True, slots=True)
class Start:
    """Start a child.

    Attributes:
        at: When, by the clock of who asks; not before the moment of asking.
    """

    child: str
    at: float


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A child has ended for good; so do those that depend on it, which are stopped in the same breath.

    Attributes:
        reason: In words.
    """

    child: str
    reason: str


GroupAction = Stop | Start | GaveUp

_State = Literal["up", "stopping", "waiting", "done", "gone"]


@dataclass(slots=True)
class _Child:
    """A child of a group.

    Attributes:
        state: "up": runs, or was told to start. "stopping": was told to stop. "waiting": has ended, and is started when
            nobody is stopping any more. "done": ended well. "gone": ended for good.
        doomed: Will not be started when it has stopped.
        due: The earliest moment for its next start.
    """

    name: str
    supervisor: Supervisor
    state: _State = "up"
    doomed: bool = False
    due: float = -math.inf

    def doom(self) -> None:
        self.doomed = True
        if self.state != "stopping":
            self.state = "gone"

    def wait_for(self, at: float) -> None:
        self.due = max(self.due, at)
        if self.state == "done":
            self.state = "waiting"


class Group:
    """Decides about several things, *children*, that depend on each other. All are running when it is made.

    When a child has ended, its own rule says whether and when it is restarted. Those that depend on it are restarted
    with it, at the same time: first they are stopped, last child first; when all of them have ended, they are started,
    first child first. To be restarted for another's sake does not count against a child's own ``retries``.

    A child that its rule gives up takes along those that depend on it: they are stopped, and not started again. The
    rest of the group goes on. A child that ended well, and whose rule restarts ``only_failures``, rests until one is
    restarted on which it depends.

    Args:
        strategy: Who depends on whom.
        rules: The rule of each child by its name, in the order in which they are started.

    Raises:
        UsageError: A rule does not restart: in a group nobody is called instead.
    """

    def __init__(self, strategy: Strategy, rules: Mapping[str, Rule]) -> None:
        for name, rule in rules.items():
            if rule.then is not Then.RESTART:
                raise UsageError(f"{name!r} is in a group, so it needs restart=True or restart_every(seconds, …)")
        self.strategy = strategy
        self._children = [_Child(name, Supervisor(rule)) for name, rule in rules.items()]
        self._by_name = {child.name: child for child in self._children}

    def is_gone(self, child: str) -> bool:
        """Whether a child has ended for good."""
        return self._by_name[child].state == "gone"

    def remove(self, child: str, now: float) -> list[GroupAction]:
        """Go on without a child, which has ended on purpose; others may have waited for that."""
        self._children.remove(self._by_name.pop(child))
        return self._starts(now)

    def lose(self, child: str, now: float) -> list[GroupAction]:
        """A child has ended and cannot be started again, whatever its rule says."""
        ended = self._by_name[child]
        ended.state = "gone"
        return self._stops(ended, None) + self._starts(now)

    def started(self, child: str, now: float) -> None:
        """A child runs, as it was told to."""
        self._by_name[child].supervisor.started(now)

    def step(self, child: str, end: End, now: float) -> list[GroupAction]:
        """A child has ended: by itself, because it was stopped, or because it could not be started."""
        ended = self._by_name[child]
        if ended.state == "up":
            return self._fell(ended, end, now) + self._starts(now)
        if ended.state == "stopping":
            ended.state = "gone" if ended.doomed else "waiting"
        return self._starts(now)

    def _fell(self, ended: _Child, end: End, now: float) -> list[GroupAction]:
        """It ended by itself."""
        match ended.supervisor.step(end, now):
            case Restart(at):
                ended.state = "waiting"
                return self._stops(ended, at)
            case GiveUp(reason):
                ended.state = "gone"
                return [GaveUp(ended.name, reason), *self._stops(ended, None)]
            case _:
                ended.state = "done"
                return []

    def _stops(self, ended: _Child, at: float | None) -> list[GroupAction]:
        """Stop those that depend on it, to be started at that time, or never."""
        stops: list[GroupAction] = []
        for child in reversed(self._with(ended)):
            if child.state == "up":
                child.state = "stopping"
                stops.append(Stop(child.name))
            if at is None:
                child.doom()
            else:
                child.wait_for(at)
        return stops

    def _with(self, ended: _Child) -> list[_Child]:
        """The child and those that depend on it, in order."""
        if self.strategy is Strategy.ONE_FOR_ONE:
            return [ended]
        first = self._children.index(ended) if self.strategy is Strategy.REST_FOR_ONE else 0
        return self._children[first:]

    def _starts(self, now: float) -> list[GroupAction]:
        """Start those that wait, unless somebody is still to end."""
        if any(child.state == "stopping" for child in self._children):
            return []
        waiting = [child for child in self._children if child.state == "waiting"]
        for child in waiting:
            child.state = "up"
        return [Start(child.name, max(child.due, now)) for child in waiting]
