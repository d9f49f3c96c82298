"""Who gets what, and when: the scheduler by scripts, without processes and clocks."""

import random

import pytest
from farming import Farm, Job, Supply, makespan
from hypothesis import given
from hypothesis import strategies as st

from rmpi.taskfarm.scheduler import AHEAD, KINDS, MOST_AHEAD, WORTH, Hand, Scheduler

TINY, LONG = 1e-5, 10.0


# ---- who gets what ----


def test_without_workers_everything_waits():
    farm = Farm("")
    farm.jobs("xyz")
    assert (farm.given(), farm.scheduler.waiting, farm.scheduler.wants_plan) == ({}, 3, False)


def test_tasks_of_which_nothing_is_known_are_given_one_by_one_in_their_order():
    farm = Farm("ab")
    farm.jobs("wxyz")
    assert farm.given() == {"a": ["w"], "b": ["x"]}
    assert farm.scheduler.waiting == 2
    farm.answer("b", 1.0)
    assert farm.given() == {"b": ["y"]}


def test_short_tasks_are_given_ahead_up_to_a_certain_time():
    farm = Farm("a", task=AHEAD / 10.5)
    farm.jobs(range(100))
    assert farm.given() == {"a": [*range(10)]}
    assert farm.given() == {}
    farm.answer("a", AHEAD / 10.5, times=3)
    assert farm.given() == {"a": [10, 11, 12]}


def test_long_tasks_are_given_alone():
    farm = Farm("a", task=AHEAD * 0.6)
    farm.jobs(range(3))
    assert farm.given() == {"a": [0]}


def test_never_more_ahead_than_a_limit_however_short_they_are():
    farm = Farm("a", task=1e-9)
    farm.jobs(range(2 * MOST_AHEAD))
    assert len(farm.given()["a"]) == MOST_AHEAD


def test_nobody_gets_more_than_a_fair_share_of_what_waits():
    farm = Farm("abcd", task=TINY)
    farm.jobs(range(400))
    assert {letter: len(names) for letter, names in farm.given().items()} == {"a": 100, "b": 75, "c": 56, "d": 42}


def test_what_a_kind_takes_is_learnt_and_learnt_anew():
    farm = Farm("a")
    farm.jobs(range(3))
    farm.given()
    farm.answer("a", 0.5)
    estimates = farm.scheduler.estimates
    assert (estimates.known("task"), estimates.known("other")) == (0.5, None)
    for _ in range(30):
        estimates.measured("task", 1, 0.001)
    assert estimates.known("task") == pytest.approx(0.001, abs=0.03)
    estimates.measured("task", 100, 100 * 0.001)
    assert estimates.known("task") == pytest.approx(0.001)


def test_estimates_of_kinds_that_never_come_again_do_not_pile_up():
    estimates = Scheduler().estimates
    for kind in range(3 * KINDS):
        estimates.measured(kind, 1, 1.0)
    assert (estimates.known(2 * KINDS - 1), estimates.known(2 * KINDS)) == (None, 1.0)


def test_kinds_do_not_mix():
    farm = Farm("a", short=TINY, long=LONG)
    farm.jobs("x", "short")
    farm.jobs("y", "long")
    farm.jobs("z", "short")
    assert farm.given() == {"a": ["x"]}
    farm.answer("a", TINY)
    assert farm.given() == {"a": ["y"]}
    assert farm.given() == {}


def test_a_task_that_is_to_be_alone_gets_an_idle_worker_and_nothing_is_put_behind_it():
    farm = Farm("a", task=TINY)
    farm.jobs("x")
    farm.jobs("y", alone=True)
    farm.jobs("z")
    for name in "xyz":
        assert farm.given() == {"a": [name]}
        assert farm.given() == {}
        farm.answer("a", TINY)


def test_pieces_are_not_put_behind_a_task_that_is_to_be_alone():
    farm = Farm("a", task=TINY)
    farm.jobs("x", alone=True)
    farm.add(Supply(10))
    assert farm.given() == {"a": ["x"]}


def test_pieces_that_are_to_be_alone_are_alone():
    farm = Farm("a", task=TINY)
    farm.jobs("x")
    farm.add(Supply(2, grain=1, alone=True))
    assert farm.given() == {"a": ["x"]}
    farm.answer("a", TINY)
    assert farm.given() == {"a": [range(1)]}
    assert farm.given() == {}


# ---- when it is worth to wake a worker ----


def test_an_idle_worker_is_not_woken_for_next_to_nothing_while_another_will_answer_soon():
    farm = Farm("ab", task=TINY)
    farm.jobs([0])
    assert farm.scheduler.wants_plan
    assert farm.given() == {"a": [0]}
    farm.jobs([1])
    assert not farm.scheduler.wants_plan
    assert "b" not in farm.given()


def test_an_idle_worker_is_woken_for_enough_of_it():
    farm = Farm("ab", task=TINY)
    farm.jobs([0])
    farm.given()
    farm.jobs(range(1, 1 + round(2 * WORTH / TINY)))
    assert farm.scheduler.wants_plan
    assert "b" in farm.given()


def test_an_idle_worker_is_woken_for_what_nobody_knows():
    farm = Farm("ab", task=TINY)
    farm.jobs([0])
    farm.given()
    farm.jobs([1], "new")
    assert farm.scheduler.wants_plan
    assert farm.given() == {"b": [1]}


def test_an_idle_worker_is_woken_for_anything_while_the_others_are_at_what_takes_long():
    farm = Farm("ab", task=TINY)
    farm.jobs([0])
    farm.given()
    farm.give_back("a")
    farm.jobs([1])
    assert farm.scheduler.wants_plan
    assert farm.given() == {"b": [1]}


def test_nobody_plans_while_all_are_busy():
    farm = Farm("a")
    farm.jobs([0])
    farm.given()
    farm.jobs(range(100))
    assert not farm.scheduler.wants_plan


def test_it_waits_for_more_where_tasks_come_that_are_not_worth_a_message_yet():
    farm = Farm("a", task=TINY)
    scheduler = farm.scheduler
    assert not scheduler.lingers, "nothing waits"
    farm.jobs([0])
    assert scheduler.lingers
    scheduler.lingering = True
    assert not scheduler.wants_plan
    farm.jobs(range(round(2 * WORTH / TINY)))
    assert (scheduler.lingers, scheduler.wants_plan) == (False, True)


def test_it_does_not_wait_for_more_for_a_worker_that_somebody_has_leased():
    farm = Farm("a", task=TINY)
    farm.scheduler.add_for(farm.hands["a"], Job("x"))
    assert not farm.scheduler.lingers


# ---- tasks that take long, with others behind them ----


def test_what_is_given_back_comes_first_again_in_its_order():
    farm = Farm("a", task=AHEAD / 4)
    farm.jobs(range(8))
    assert farm.given() == {"a": [0, 1, 2, 3]}
    farm.give_back("a")
    assert (farm.has("a"), farm.scheduler.waiting) == ([0], 7)
    assert farm.given() == {}, "nothing more for a worker that is stuck"
    farm.scheduler.joined(hand := Hand())
    farm.hands["b"] = hand
    assert farm.given() == {"b": [1, 2, 3]}, "its share"
    farm.answer("b", AHEAD / 4)
    farm.answer("b", AHEAD / 4)
    assert farm.given() == {"b": [4, 5]}


def test_a_worker_that_answers_is_not_stuck_any_more():
    farm = Farm("a", task=TINY)
    farm.jobs(range(5))
    farm.given()
    farm.give_back("a")
    farm.answer("a", TINY)
    assert farm.given() == {"a": [1, 2, 3, 4]}


def test_what_only_one_worker_may_do_is_given_back_to_that_worker():
    farm = Farm("ab", task=TINY)
    hand = farm.hands["a"]
    for name in "xyz":
        farm.scheduler.add_for(hand, Job(name))
    assert farm.given() == {"a": ["x", "y", "z"]}
    farm.give_back("a")
    assert (farm.given(), farm.scheduler.waiting) == ({}, 2)
    farm.scheduler.add_for(hand, Job("last"))
    farm.answer("a", LONG)
    assert farm.given() == {"a": ["y"]}
    farm.answer("a", TINY)
    assert farm.given() == {"a": ["z"]}


# ---- supplies ----


def test_the_first_pieces_are_of_one_task_each():
    farm = Farm("ab")
    farm.add(supply := Supply(100))
    farm.given()
    assert set(supply.cuts) == {1}


def test_pieces_are_as_large_as_takes_a_certain_time():
    farm = Farm("a", task=AHEAD / 50)
    farm.add(supply := Supply(100_000))
    farm.given()
    assert supply.cuts == [50, 50], "one, and one ahead"


def test_pieces_are_at_most_half_of_a_fair_share():
    farm = Farm("ab", task=TINY)
    farm.add(supply := Supply(100))
    farm.given()
    while supply.size:
        for letter in "ab":
            if farm.has(letter):
                farm.answer(letter, TINY)
        farm.given()
    assert max(supply.cuts) == supply.cuts[0] == 25
    assert supply.cuts[-1] <= 2


def test_pieces_have_the_size_that_was_asked_for():
    farm = Farm("a", task=1e-6)
    farm.add(supply := Supply(25, grain=10))
    farm.given()
    assert supply.cuts == [10, 10, 5]


def test_supplies_and_tasks_keep_their_order():
    farm = Farm("a", task=LONG)
    farm.jobs("x")
    farm.add(Supply(2))
    farm.jobs("y")
    order = []
    while farm.scheduler.waiting or farm.has("a"):
        order += [name for names in farm.given().values() for name in names]
        farm.answer("a", LONG)
    assert order == ["x", range(1), range(1, 2), "y"]


# ---- leases, and tasks for one worker ----


def test_a_worker_that_was_leased_gets_only_what_is_for_it():
    farm = Farm("ab")
    hand = farm.scheduler.lease()
    assert farm.letter(hand) == "a"
    farm.jobs("xyz")
    assert farm.given() == {"b": ["x"]}
    farm.scheduler.add_for(hand, Job("mine"))
    assert farm.scheduler.wants_plan
    assert farm.given() == {"a": ["mine"]}
    farm.answer("a", 1.0)
    farm.scheduler.release(hand)
    assert farm.given() == {"a": ["y"]}


def test_a_worker_with_something_to_do_cannot_be_leased():
    farm = Farm("a")
    farm.scheduler.add_for(farm.hands["a"], Job("x"))
    assert farm.scheduler.lease() is None
    farm.given()
    assert farm.scheduler.lease() is None
    farm.answer("a", 1.0)
    assert farm.scheduler.lease() is farm.hands["a"]
    assert farm.scheduler.lease() is None


def test_tasks_for_one_worker_come_before_others_and_wait_for_it():
    farm = Farm("ab")
    farm.jobs("xy")
    assert farm.given() == {"a": ["x"], "b": ["y"]}
    farm.scheduler.add_for(farm.hands["b"], Job("mine"))
    farm.jobs("z")
    farm.answer("a", 1.0)
    assert farm.given() == {"a": ["z"]}
    farm.answer("b", 1.0)
    assert farm.given() == {"b": ["mine"]}


# ---- workers that are lost, and tasks that are not wanted ----


def test_a_worker_that_is_lost_leaves_what_it_had_and_what_only_it_could_do():
    farm = Farm("ab", task=TINY)
    farm.jobs("x")
    assert farm.given() == {"a": ["x"]}
    farm.scheduler.add_for(farm.hands["a"], bound := Job("mine", alone=True))
    had, waited = farm.scheduler.lost(farm.hands["a"])
    assert ([job.name for job in had], waited, farm.scheduler.waiting) == (["x"], [bound], 0)
    farm.scheduler.put_back(had)
    assert farm.given() == {"b": ["x"]}


def test_losing_a_stuck_worker_leaves_nobody_stuck():
    farm = Farm("abc", task=TINY)
    farm.jobs([0])
    farm.given()
    farm.give_back("a")
    farm.scheduler.lost(farm.hands["a"])
    farm.jobs([1])
    farm.given()
    farm.jobs([2])
    assert not farm.scheduler.wants_plan, "b answers soon"


def test_answers_of_those_who_have_no_such_job_count_for_nothing():
    farm = Farm("ab")
    (job,) = farm.jobs("x")
    farm.given()
    assert not farm.scheduler.answered(farm.hands["b"], job, 1.0)
    assert farm.scheduler.estimates.known("task") is None


def test_what_is_withdrawn_is_not_given():
    farm = Farm("a")
    jobs = farm.jobs("xyz")
    farm.given()
    assert [farm.scheduler.withdraw(job) for job in jobs] == [False, True, True]
    assert farm.scheduler.waiting == 0
    farm.add(supply := Supply(7))
    farm.scheduler.add_for(farm.hands["a"], bound := Job("mine"))
    assert farm.scheduler.withdraw(supply)
    assert farm.scheduler.withdraw(bound)
    assert farm.scheduler.waiting == 0
    farm.answer("a", 1.0)
    assert farm.given() == {}


def test_what_is_discarded_makes_room():
    farm = Farm("a")
    job, _ = farm.jobs("xy")
    farm.given()
    farm.scheduler.discard(farm.hands["a"], job)
    farm.scheduler.discard(farm.hands["a"], job)
    assert farm.given() == {"a": ["y"]}


def test_what_is_cleared_is_all_that_waits():
    farm = Farm("a")
    jobs = farm.jobs("xyz")
    farm.add(supply := Supply(7))
    farm.scheduler.add_for(farm.hands["a"], bound := Job("mine"))
    farm.given()
    assert farm.scheduler.clear() == [*jobs, supply]
    assert farm.has("a") == [bound.name]
    assert farm.scheduler.waiting == 0


# ---- how good it is ----


def pareto(count, total):
    chance = random.Random(7)
    sizes = [chance.paretovariate(1.5) for _ in range(count)]
    return [size * total / sum(sizes) for size in sizes]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_uneven_tasks_end_within_a_tenth_of_the_best_that_is_possible(workers, mapped):
    seconds = pareto(2000, 5.0 * workers)
    best = max(5.0, *seconds)
    assert 0.999 * best <= makespan(Supply(2000) if mapped else None, seconds, workers) <= 1.1 * best


@pytest.mark.parametrize("mapped", [False, True])
def test_no_worker_is_without_work_until_the_last_task_has_begun(mapped):
    seconds = pareto(2000, 40.0)
    assert makespan(Supply(2000) if mapped else None, seconds, 8) <= 5.0 + max(seconds) + 2 * AHEAD


class Model:
    """A scheduler beside the plainest bookkeeping that can be."""

    def __init__(self):
        self.scheduler = Scheduler()
        self.hands = []
        self.waits = {}  # what waits: name: size
        self.has = {}  # who has what
        self.supplies = []
        self.done = set()
        self.names = 0

    def check(self):
        left = sum(supply.size for supply in self.supplies)
        assert self.scheduler.waiting == sum(self.waits.values()) + left
        for hand in self.hands:
            assert set(hand.jobs) == {job for job, who in self.has.items() if who is hand}
            assert hand.load == pytest.approx(sum(job.expected for job in hand.jobs))

    def name(self):
        self.names += 1
        return self.names

    def plan(self):
        for hand, jobs in self.scheduler.plan():
            for job in jobs:
                assert job not in self.has, "given twice"
                assert job not in self.done
                if self.waits.pop(job, None) is None:
                    assert any(supply.cuts for supply in self.supplies)
                self.has[job] = hand
            assert jobs
            assert not (len(hand.jobs) > 1 and any(job.alone for job in hand.jobs))
            assert not (hand.leased and not all(job.bound for job in jobs))

    def act(self, what, which):
        scheduler = self.scheduler
        hand = self.hands[which % len(self.hands)] if self.hands else None
        if what == "join":
            self.hands.append(Hand())
            scheduler.joined(self.hands[-1])
        elif what == "add":
            job = Job(self.name(), which % 3, alone=which % 7 == 0)
            self.waits[job] = 1
            scheduler.add(job)
        elif what == "supply":
            supply = Supply(which, which % 3, grain=which % 2, alone=which % 5 == 0)
            self.supplies.append(supply)
            scheduler.add(supply)
        elif hand is None:
            return
        elif what == "bind":
            job = Job(self.name(), which % 3)
            self.waits[job] = 1
            scheduler.add_for(hand, job)
        elif what == "answer" and hand.jobs:
            job = next(iter(hand.jobs))
            scheduler.answered(hand, job, (which % 5) ** 4 * 1e-5 * job.size)
            del self.has[job]
            self.done.add(job)
        elif what == "back" and hand.jobs:
            back = list(hand.jobs)[1:]
            scheduler.returned(hand, back)
            self.waits.update({job: job.size for job in back})
            for job in back:
                del self.has[job]
        elif what == "lose":
            had, bound = scheduler.lost(hand)
            self.hands.remove(hand)
            assert set(had) == {job for job, who in self.has.items() if who is hand}
            for job in bound:
                del self.waits[job]
            for job in had:
                del self.has[job]
            again = [job for job in had if not job.bound]
            scheduler.put_back(again)
            self.waits.update({job: job.size for job in again})
        elif what == "lease":
            scheduler.lease()
        elif what == "release":
            scheduler.release(hand)

    def finish(self):
        """All that waits gets done when the workers go on."""
        if not self.hands:
            self.act("join", 0)
        for hand in self.hands:
            self.scheduler.release(hand)
        for _ in range(10_000):
            self.plan()
            busy = [hand for hand in self.hands if hand.jobs]
            if not busy:
                break
            for hand in busy:
                self.act("answer", self.hands.index(hand))
        assert self.scheduler.waiting == 0
        assert not self.waits


ACTS = ["join", "add", "add", "add", "supply", "bind", "answer", "answer", "back", "lose", "lease", "release"]


@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(1, 60), st.booleans()), max_size=60))
def test_whatever_happens_each_task_is_given_once_and_what_waits_is_counted(acts):
    model = Model()
    for what, which, planned in acts:
        model.act(what, which)
        if planned:
            model.plan()
        model.check()
    model.finish()
    model.check()
