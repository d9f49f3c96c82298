"""Timers: when which tick is due, and what is handed in. No router, no thread, no clock but one that is set."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpi.errors import UsageError
from rmpi.places.timers import Ticks, after, every


class Desk:
    """Of a router that is set to a time; what is handed in is written down with it."""

    def __init__(self, now=100.0):
        self.moment = now
        self.moments = []
        self.calls = []
        self.ends = []
        self.idle = True
        self.finished = False

    def now(self):
        return self.moment

    def at(self, moment, function):
        self.moments.append((moment, function))

    def submit(self, function):
        self.calls.append((self.moment, function))

    def finish(self):
        self.finished = True

    def when_ending(self, function):
        self.ends.append(function)

    def set(self, moment):
        """Go there; what becomes due by then is done at that time, late."""
        self.moment = moment
        while due := [entry for entry in self.moments if entry[0] <= moment]:
            self.moments.remove(min(due))
            min(due)[1]()

    @property
    def times(self):
        return [moment for moment, _ in self.calls]


def nothing():
    pass


def serving(timer, now=100.0):
    desk = Desk(now)
    timer.register(desk)
    return desk


# ------------------------------------------------------------------------------------------------- every


def test_every_is_immediate_and_on_the_beat():
    desk = serving(every(3.5, nothing))
    for moment in (100, 103.5, 107, 110.5):
        desk.set(moment)
    assert desk.calls == [(100, nothing), (103.5, nothing), (107, nothing), (110.5, nothing)]


def test_or_begins_one_period_later():
    desk = serving(every(3.5, nothing, immediate=False))
    desk.set(100)
    assert desk.calls == []
    desk.set(103.5)
    assert desk.times == [103.5]


def test_late_service_does_not_move_the_beat():
    desk = serving(every(1, nothing))
    for moment in (100.2, 101.3, 102.4):
        desk.set(moment)
    assert [moment for moment, _ in desk.moments] == [103]


def test_ticks_that_passed_unseen_are_one_tick():
    """This process was stopped for a while."""
    timer = every(1, nothing)
    desk = serving(timer)
    desk.set(100)
    desk.set(107.5)
    assert desk.times == [100, 107.5]
    assert [moment for moment, _ in desk.moments] == [108]
    assert timer.skipped == 6


def test_ticks_during_a_call_are_skipped():
    timer = every(1, nothing)
    desk = serving(timer)
    desk.set(100)
    desk.idle = False
    desk.set(101)
    desk.set(102)
    desk.idle = True
    desk.set(103)
    assert desk.times == [100, 103]
    assert timer.skipped == 2


def test_a_cancelled_beat_is_silent():
    timer = every(1, nothing)
    desk = serving(timer)
    desk.set(100)
    timer.cancel()
    assert desk.finished
    desk.set(105)
    assert desk.times == [100]


start, period = st.floats(0, 1e7), st.floats(0.001, 1e5)


@given(start, period, st.booleans(), st.lists(st.floats(0, 1e5), max_size=20))
def test_the_next_tick_is_the_first_to_come(start, period, immediate, steps):
    ticks, now = Ticks(start, period, immediate=immediate), start
    first = number = 0 if immediate else 1
    for step in steps:
        now += step
        number += ticks.go_on(now)
        assert ticks.due == start + number * period, "it has drifted"
        assert ticks.due > now
        assert start + (number - 1) * period <= now or number == first


# ------------------------------------------------------------------------------------------------- after


def test_after_counts_from_when_the_router_runs():
    timer = after(2, nothing)
    desk = serving(timer, now=500.0)
    desk.set(501.9)
    assert desk.calls == []
    assert not desk.finished
    desk.set(502.0)
    assert desk.calls == [(502.0, nothing)]
    assert desk.finished
    desk.set(600)
    assert len(desk.calls) == 1


def test_a_cancelled_one_is_never_called():
    timer = after(2, nothing)
    desk = serving(timer)
    timer.cancel()
    assert desk.finished
    desk.set(110)
    assert desk.calls == []


def test_also_if_it_was_cancelled_before():
    timer = after(2, nothing)
    timer.cancel()
    desk = serving(timer)
    assert desk.finished
    assert desk.moments == []


# ------------------------------------------------------------------------------------------- both of them


@pytest.mark.parametrize("timer", [after(2, nothing), every(2, nothing)])
def test_a_timer_is_in_one_router_at_a_time(timer):
    desk = serving(timer)
    with pytest.raises(UsageError, match="is in a router that runs"):
        serving(timer)
    for end in desk.ends:
        end()
    serving(timer)


def test_they_print_themselves():
    assert repr(after(2, nothing)) == "after(2, nothing)"
    assert repr(every(0.5, nothing)) == "every(0.5, nothing)"


async def coroutine():
    pass


@pytest.mark.parametrize("make", [after, every])
@pytest.mark.parametrize(
    ("seconds", "function", "says"),
    [
        (-1, nothing, r"seconds of {}\(seconds, function\) must be a number, 0.* or more, not -1"),
        ("2", nothing, "must be a number, 0.* or more, not '2'"),
        (math.nan, nothing, "must be a number, 0.* or more, not nan"),
        (math.inf, nothing, "must be a number, 0.* or more, not inf"),
        (2, "f", r"function of {}\(seconds, function\) must be a function without arguments, not 'f'"),
        (2, lambda x: x, "is called without arguments, but .*lambda.* needs some"),
        (2, coroutine, "nobody would await"),
    ],
)
def test_a_mistake_is_named(make, seconds, function, says):
    with pytest.raises(UsageError, match=says.format(make.__name__)):
        make(seconds, function)


def test_a_beat_has_a_length():
    after(0, nothing)
    with pytest.raises(UsageError, match=r"0\.001 or more, not 0"):
        every(0, nothing)
