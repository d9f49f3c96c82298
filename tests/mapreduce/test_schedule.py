"""What a job does next: every task is taken once, whatever happens to attempts at it."""

from __future__ import annotations

import random

import pytest

from rmpi.mapreduce.schedule import LEAST_SECONDS, MOST_LOSSES, SLOW, Attempt, Schedule


def start_all(schedule, now=0.0):
    attempts = []
    while (attempt := schedule.start(now)) is not None:
        attempts.append(attempt)
    return attempts


def test_reduce_tasks_begin_when_all_map_tasks_are_done():
    schedule = Schedule(2, 2, 1, False)
    maps = start_all(schedule)
    assert maps == [Attempt("map", 0, 1), Attempt("map", 1, 1)]
    assert schedule.succeeded(maps[1], 1.0)
    assert schedule.start(1.0) is None
    assert schedule.succeeded(maps[0], 1.0)
    reduces = start_all(schedule, 1.0)
    assert reduces == [Attempt("reduce", 0, 1), Attempt("reduce", 1, 1)]
    for attempt in reduces:
        assert not schedule.is_done
        assert schedule.succeeded(attempt, 2.0)
    assert schedule.is_done


def test_without_tasks_all_is_done():
    assert Schedule(0, 0, 1, True).is_done


def test_a_task_that_failed_is_tried_again_before_others():
    schedule = Schedule(3, 1, 2, False)
    first, _ = schedule.start(0.0), schedule.start(0.0)
    assert schedule.failed(first) == 0
    assert schedule.start(0.0) == Attempt("map", 0, 2)
    assert schedule.start(0.0) == Attempt("map", 2, 1)


@pytest.mark.parametrize("retries", [1, 2, 5])
def test_a_task_that_has_failed_so_often_fails_the_job(retries):
    schedule = Schedule(1, 1, retries, False)
    assert [schedule.failed(schedule.start(0.0)) for _ in range(retries)] == [*[0] * (retries - 1), retries]


def slow_one(speculative=True):
    """A task that began at 0 and goes on; two others took a second."""
    schedule = Schedule(3, 1, 2, speculative)
    for attempt in start_all(schedule)[1:]:
        schedule.succeeded(attempt, 1.0)
    return schedule, Attempt("map", 0, 1)


def test_what_takes_much_longer_than_others_is_tried_beside():
    schedule, _ = slow_one()
    assert schedule.start(SLOW) is None
    assert schedule.start(SLOW + 0.1) == Attempt("map", 0, 2)
    assert schedule.start(SLOW + 100) is None  # no third
    assert slow_one(speculative=False)[0].start(100.0) is None


def test_nothing_that_is_quick_anyway_is_tried_beside():
    schedule = Schedule(2, 1, 1, True)
    _, quick = start_all(schedule)
    schedule.succeeded(quick, 0.001)
    assert schedule.start(0.9 * LEAST_SECONDS) is None
    assert schedule.start(1.1 * LEAST_SECONDS) == Attempt("map", 0, 2)


def test_without_a_measure_nothing_is_slow():
    schedule = Schedule(1, 1, 1, True)
    schedule.start(0.0)
    assert schedule.start(1000.0) is None


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_attempts_the_first_that_is_ready_counts(first):
    schedule, slow = slow_one()
    both = [slow, schedule.start(2.0)]
    assert schedule.succeeded(both[first], 3.0)
    assert not schedule.succeeded(both[1 - first], 4.0)
    assert schedule.done("map") == 3


def test_of_two_attempts_one_may_fail():
    schedule, slow = slow_one()
    second = schedule.start(2.0)
    assert schedule.failed(slow) == 0
    assert schedule.start(2.0) is None  # the other one goes on
    assert schedule.succeeded(second, 3.0)


def test_who_fails_after_another_has_succeeded_does_no_harm():
    schedule = Schedule(2, 1, 1, True)
    slow, quick = start_all(schedule)
    schedule.succeeded(quick, 1.0)
    second = schedule.start(9.0)
    assert schedule.succeeded(second, 10.0)
    assert schedule.failed(slow) == 0


def test_what_was_lost_is_mapped_again_and_then_reduced():
    schedule = Schedule(2, 1, 1, False)
    for attempt in start_all(schedule):
        schedule.succeeded(attempt, 1.0)
    reduce = schedule.start(1.0)
    assert schedule.postponed(reduce, [1]) is None
    again = schedule.start(2.0)
    assert again == Attempt("map", 1, 2)
    assert schedule.start(2.0) is None
    schedule.succeeded(again, 3.0)
    assert schedule.start(3.0) == Attempt("reduce", 0, 2)


def test_a_loss_that_two_have_missed_is_mapped_again_once():
    schedule = Schedule(1, 2, 1, False)
    schedule.succeeded(schedule.start(0.0), 1.0)
    one, two = start_all(schedule, 1.0)
    schedule.postponed(one, [0])
    schedule.postponed(two, [0])
    assert start_all(schedule, 2.0) == [Attempt("map", 0, 2)]


def test_losses_without_end_are_an_end():
    schedule = Schedule(1, 1, 1, False)
    hopeless = None
    for _ in range(MOST_LOSSES + 1):
        assert hopeless is None
        schedule.succeeded(schedule.start(0.0), 1.0)
        hopeless = schedule.postponed(schedule.start(1.0), [0])
    assert hopeless == 0


def test_a_result_that_was_lost_is_made_again():
    schedule = Schedule(1, 1, 1, False)
    schedule.succeeded(schedule.start(0.0), 1.0)
    reduce = schedule.start(1.0)
    schedule.succeeded(reduce, 2.0)
    schedule.undone(reduce)
    assert not schedule.is_done
    assert schedule.start(2.0) == Attempt("reduce", 0, 2)


@pytest.mark.parametrize("seed", range(50))
def test_whatever_happens_every_task_is_taken_and_the_job_ends(seed):
    dice = random.Random(seed)
    schedule = Schedule(dice.randint(1, 6), dice.randint(1, 4), 10**6, dice.random() < 0.5)
    running, now, losses = [], 0.0, 0
    taken = {"map": set(), "reduce": set()}
    while not schedule.is_done:
        now += dice.random()
        attempt = schedule.start(now) if len(running) < 4 else None
        if attempt is not None:
            assert attempt.stage == "map" or len(taken["map"]) == schedule.done("map")
            running.append(attempt)
            continue
        ended = running.pop(dice.randrange(len(running)))
        match dice.randrange(4):
            case 0:
                assert schedule.failed(ended) == 0
            case 1 if ended.stage == "reduce" and taken["map"] and losses < MOST_LOSSES:
                lost = dice.choice([*taken["map"]])
                taken["map"].discard(lost)
                losses += 1
                assert schedule.postponed(ended, [lost]) is None
            case _:
                assert schedule.succeeded(ended, now) == (ended.task not in taken[ended.stage])
                taken[ended.stage].add(ended.task)
