"""What follows when something that is supervised has ended: lives in, decisions out. Nothing is started here."""

import math
import pickle
from functools import partial

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpi.errors import UsageError, WireError
from rmpi.places.ends import End
from rmpi.places.supervisor import (
    NEVER,
    Call,
    GaveUp,
    GiveUp,
    Group,
    Nothing,
    Restart,
    Rule,
    Start,
    Stop,
    Strategy,
    Supervisor,
    Then,
    policy_of,
    restart_at_once,
    restart_every,
)

GOOD = End(0, "finished")
BAD = End(137, "killed by SIGKILL")


def runs(policy, lives, end=BAD):
    """When something ran that lives so many seconds each time, and what came of its last end, if it was final."""
    supervisor, started, now = Supervisor(policy.rule), [0.0], 0.0
    for life in lives:
        now += life
        decision = supervisor.step(end, now)
        if not isinstance(decision, Restart):
            return started, decision
        assert decision.at >= now
        now = decision.at
        supervisor.started(now)
        started.append(now)
    return started, None


def pauses(policy, lives, end=BAD):
    started, _ = runs(policy, lives, end)
    ends = [start + life for start, life in zip(started, lives, strict=False)]
    return [round(start - end, 6) for start, end in zip(started[1:], ends, strict=False)]


# ----------------------------------------------------------------------------------- what is given as restart=


def test_nothing_follows_without_a_policy():
    for nothing in (None, False):
        assert policy_of(nothing) == NEVER
    assert runs(NEVER, [3.0]) == ([0.0], Nothing())


def test_a_function_is_called_instead():
    policy = policy_of(print)
    assert policy.instead is print
    assert runs(policy, [3.0]) == ([0.0], Call())


def test_true_restarts_at_once_for_ever():
    lives = [5.0] * 100
    started, final = runs(policy_of(True), lives)
    assert final is None
    assert started == [5.0 * run for run in range(101)]


def test_a_good_end_is_followed_by_a_restart_too():
    assert runs(policy_of(True), [5.0, 5.0], GOOD) == ([0.0, 5.0, 10.0], None)


@pytest.mark.parametrize("policy", [restart_at_once(only_failures=True), restart_every(1, only_failures=True)])
def test_a_good_end_can_be_the_end(policy):
    assert runs(policy, [5.0], GOOD) == ([0.0], Nothing())
    assert runs(policy, [5.0], BAD) == ([0.0, 5.0], None)


def test_what_dies_young_is_restarted_after_longer_and_longer_pauses():
    assert pauses(policy_of(True), [0.01] * 9) == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]


def test_a_second_of_life_ends_the_pauses():
    assert pauses(policy_of(True), [0, 0, 0, 1.1, 0, 0]) == [0, 0.1, 0.2, 0, 0.1, 0.2]


@given(st.lists(st.floats(0, 0.99), min_size=40, max_size=80))
def test_a_crash_loop_cannot_burn_a_core(lives):
    """A start costs some 50 ms: in each minute but the first they come to a hundredth of it at most."""
    started, _ = runs(policy_of(True), lives)
    for first in range(8, len(started) - 12):
        assert started[first + 12] - started[first] >= 55


# --------------------------------------------------------------------------------------------- restart_every


def test_the_ancestors_example():
    """A place that lives for a second, under restart_every(5, retries=3): seen at 0, 1, 7 and 13 s."""
    started, final = runs(restart_every(5, retries=3), [1.0] * 9)
    assert started == [0, 1, 7, 13]
    assert final == GiveUp("killed by SIGKILL, after having been restarted 3 times")


def test_the_other_one():
    """0.7 s, under restart_every(1, retries=3): four runs, the last ends at 4.8 s."""
    started, final = runs(restart_every(1, retries=3), [0.7] * 9)
    assert started == pytest.approx([0, 0.7, 2.4, 4.1])
    assert isinstance(final, GiveUp)


def test_who_lived_longer_than_the_pause_is_restarted_at_once():
    assert pauses(restart_every(5), [1, 1, 6, 1]) == [0, 5, 0, 5]


def test_who_lived_exactly_as_long_is_not():
    assert pauses(restart_every(5), [5, 5]) == [0, 5]


def test_after_its_last_restart_it_may_still_live_long():
    """The slate is wiped before the limit is tested: three restarts, then days, and it is restarted."""
    started, final = runs(restart_every(5, retries=3), [1, 1, 1, 86400.0, 1, 1, 1])
    assert len(started) == 7
    assert final is not None


def test_a_slate_is_clean_after_more_than_reset_after():
    policy = restart_every(5, retries=1, reset_after=20)
    assert runs(policy, [1, 20]) == ([0, 1], GiveUp("killed by SIGKILL, after having been restarted once"))
    assert runs(policy, [1, 20.1]) == ([0, 1, 21.1], None)


def test_without_retries_it_goes_on_for_ever():
    assert runs(restart_every(5), [0.0] * 1000)[1] is None


def test_no_retry_at_all():
    assert runs(restart_every(5, retries=0), [1.0]) == ([0.0], GiveUp("killed by SIGKILL, and no restart is allowed"))


def test_pauses_grow_by_the_backoff_up_to_an_hour():
    found = pauses(restart_every(1, backoff=3), [0.0] * 12)
    assert found == [0, 1, 3, 9, 27, 81, 243, 729, 2187, 3600, 3600, 3600]


def test_a_pause_of_more_than_an_hour_stays_what_it_is():
    assert pauses(restart_every(7200, backoff=3), [0.0] * 3) == [0, 7200, 7200]


def test_a_clean_slate_has_the_first_pause_again():
    assert pauses(restart_every(1, backoff=3), [0, 0, 0, 2.1, 0]) == [0, 1, 3, 0, 1]


def test_a_start_that_fails_late_is_no_life():
    """A host that cannot be reached says so after 30 s. That is neither long enough, nor does it wipe the slate."""
    supervisor = Supervisor(restart_every(5, retries=2).rule)
    assert supervisor.step(BAD, 100.0) == Restart(100.0, 1)
    assert supervisor.step(BAD, 130.0) == Restart(135.0, 2)
    assert supervisor.step(BAD, 165.0) == GiveUp("killed by SIGKILL, after having been restarted 2 times")


short, long = st.floats(0, 10), st.floats(10.001, 1e6)


@given(st.lists(short | long, min_size=1, max_size=30), st.integers(0, 5), st.floats(1, 3))
def test_it_is_given_up_after_so_many_short_lives_in_a_row(lives, retries, backoff):
    """The life before the first restart does not count."""
    _, final = runs(restart_every(5, retries=retries, backoff=backoff), lives)
    expected = any(all(life <= 10 for life in lives[end - retries + 1 : end + 1]) for end in range(retries, len(lives)))
    assert isinstance(final, GiveUp) == expected


@given(st.lists(short | long, max_size=30), st.floats(0.01, 20), st.floats(1, 4))
def test_pauses_are_none_or_between_the_shortest_and_the_longest(lives, seconds, backoff):
    started, _ = runs(restart_every(seconds, backoff=backoff), lives)
    for before, life, after in zip(started, lives, started[1:], strict=False):
        pause = after - before - life
        assert pause == pytest.approx(0, abs=1e-6) or seconds - 1e-6 <= pause <= 3600 + 1e-6
        if life > seconds:
            assert pause == pytest.approx(0, abs=1e-6)


# -------------------------------------------------------------------------------------- what cannot be meant


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (partial(restart_every, 0), "seconds must be a number, more than 0, not 0"),
        (partial(restart_every, "5"), "seconds must be a number, more than 0, not '5'"),
        (partial(restart_every, True), "seconds must be a number"),
        (partial(restart_every, math.nan), "seconds must be a number"),
        (partial(restart_every, 5, retries=-1), "retries must be a whole number, 0 or more, or None"),
        (partial(restart_every, 5, retries=2.0), "retries must be a whole number"),
        (partial(restart_every, 5, reset_after=0), "reset_after must be a number, more than 0"),
        (partial(restart_every, 5, backoff=0.5), "backoff must be a number, 1 or more, not 0.5"),
        (partial(restart_every, 5, backoff=math.inf), "backoff must be a number"),
        (partial(restart_every, 5, on_final_fail="x"), "on_final_fail must be a function without arguments, not 'x'"),
        (partial(restart_every, 5, on_final_fail=lambda reason: reason), "on_final_fail is called without arguments"),
        (partial(restart_every, 5, only_failures=1), "only_failures must be True or False, not 1"),
        (partial(policy_of, 5), "restart must be True, None, a function"),
        (partial(policy_of, runs), r"restart is called without arguments, but runs\(policy, .*missing a required"),
    ],
)
def test_a_mistake_is_named(call, says):
    with pytest.raises(UsageError, match=says):
        call()


def test_a_function_whose_arguments_nobody_knows_is_taken():
    assert policy_of(dict).instead is dict


# ---------------------------------------------------------------------------------------------- how it travels


rules = st.builds(
    Rule,
    then=st.sampled_from(Then),
    only_failures=st.booleans(),
    seconds=st.floats(0.001, 1e9),
    settled=st.floats(0, 1e9) | st.integers(0, 9),
    reset_after=st.floats(0.001, 1e9) | st.just(math.inf),
    backoff=st.floats(1, 1e9),
    longest=st.floats(0.001, 1e9),
    retries=st.none() | st.integers(0, 1 << 40),
)


@given(rules)
def test_a_rule_travels_as_plain_data(rule):
    assert Rule.from_plain(msgpack.unpackb(msgpack.packb(rule.to_plain()))) == rule


PLAIN = restart_every(5, retries=3).rule.to_plain()


@pytest.mark.parametrize("wrong", [-2, "x", math.nan, -math.inf, [], {}])
@pytest.mark.parametrize("position", range(len(PLAIN)))
def test_what_is_no_rule_is_a_wire_error(position, wrong):
    with pytest.raises(WireError, match="not a rule of supervision"):
        Rule.from_plain((*PLAIN[:position], wrong, *PLAIN[position + 1 :]))


@pytest.mark.parametrize("wrong", [None, 7, (), PLAIN[:-1], (*PLAIN, 1)])
def test_neither_is_one_of_another_length(wrong):
    with pytest.raises(WireError, match="not a rule of supervision"):
        Rule.from_plain(wrong)


def test_policies_pickle_with_their_functions():
    policy = restart_every(5, retries=3, on_final_fail=print)
    assert pickle.loads(pickle.dumps(policy)) == policy


# ------------------------------------------------------------------------------------------------------ groups


def group(strategy, names="ABC", **rules):
    """Children by their initials; ``restart=True`` for those without a rule."""
    return Group(strategy, {name: rules.get(name, restart_at_once().rule) for name in names})


def test_one_for_one_leaves_the_others_alone():
    g = group(Strategy.ONE_FOR_ONE)
    assert g.step("B", BAD, 5.0) == [Start("B", 5.0)]


def test_one_for_all_stops_the_others_last_first_and_starts_all_first_first():
    g = group(Strategy.ONE_FOR_ALL)
    assert g.step("B", BAD, 5.0) == [Stop("C"), Stop("A")]
    assert g.step("A", GOOD, 5.1) == []
    assert g.step("C", GOOD, 5.2) == [Start("A", 5.2), Start("B", 5.2), Start("C", 5.2)]


def test_rest_for_one_does_so_with_those_that_were_started_later():
    g = group(Strategy.REST_FOR_ONE, "ABCD")
    assert g.step("B", BAD, 5.0) == [Stop("D"), Stop("C")]
    assert g.step("C", GOOD, 5.1) == []
    assert g.step("D", GOOD, 5.2) == [Start("B", 5.2), Start("C", 5.2), Start("D", 5.2)]


def test_all_wait_for_the_pause_of_the_one_that_died():
    g = group(Strategy.ONE_FOR_ALL, "AB", A=restart_every(60).rule)
    assert g.step("A", BAD, 1.0) == [Stop("B")]
    assert g.step("B", BAD, 1.1) == [Start("A", 1.1), Start("B", 1.1)]
    assert g.step("A", BAD, 2.0) == [Stop("B")]
    assert g.step("B", BAD, 2.1) == [Start("A", 62.0), Start("B", 62.0)]


def test_who_dies_while_the_others_are_stopped_was_stopped():
    """It has been taken down by the first one, as is to be expected: only the first one's death counts."""
    g = group(Strategy.ONE_FOR_ALL, A=restart_every(1, retries=0).rule)
    assert g.step("B", BAD, 5.0) == [Stop("C"), Stop("A")]
    assert g.step("A", BAD, 5.0) == []
    assert g.step("C", BAD, 5.0) == [Start("A", 5.0), Start("B", 5.0), Start("C", 5.0)]


def test_who_dies_before_those_that_are_being_stopped():
    """C is being stopped for B's sake when A dies, on which both depend: all three begin anew, when C has ended."""
    g = group(Strategy.REST_FOR_ONE)
    assert g.step("B", BAD, 5.0) == [Stop("C")]
    assert g.step("A", BAD, 5.1) == []
    assert g.step("C", GOOD, 5.2) == [Start("A", 5.2), Start("B", 5.2), Start("C", 5.2)]


def test_a_start_to_come_is_stopped_too_and_keeps_its_pause():
    g = group(Strategy.REST_FOR_ONE, "AB", B=restart_every(60).rule)
    g.step("B", BAD, 1.0)
    assert g.step("B", BAD, 2.0) == [Start("B", 62.0)]
    assert g.step("A", BAD, 3.0) == [Stop("B")]
    assert g.step("B", GOOD, 3.0) == [Start("A", 3.0), Start("B", 62.0)]


def test_who_is_given_up_takes_along_those_that_depend_on_it():
    g = group(Strategy.REST_FOR_ONE, B=restart_every(1, retries=0).rule)
    gone, *stops = g.step("B", BAD, 5.0)
    assert gone == GaveUp("B", "killed by SIGKILL, and no restart is allowed")
    assert stops == [Stop("C")]
    assert g.step("C", GOOD, 5.1) == []
    assert g.step("A", BAD, 9.0) == [Start("A", 9.0)]


def test_who_waits_is_given_up_with_the_one_it_depends_on():
    g = group(Strategy.REST_FOR_ONE, A=restart_every(1, retries=0).rule)
    assert g.step("B", BAD, 5.0) == [Stop("C")]
    assert isinstance(g.step("A", BAD, 5.1)[0], GaveUp)
    assert g.step("C", BAD, 5.2) == []


def test_who_ended_well_rests_until_the_others_begin_anew():
    g = group(Strategy.ONE_FOR_ALL, "AB", A=restart_at_once(only_failures=True).rule)
    assert g.step("A", GOOD, 1.0) == []
    assert g.step("B", BAD, 5.0) == [Start("A", 5.0), Start("B", 5.0)]


def test_being_restarted_for_anothers_sake_does_not_count():
    g = group(Strategy.ONE_FOR_ALL, "AB", B=restart_every(1, retries=1).rule)
    for now in range(100):
        assert g.step("A", BAD, now) == [Stop("B")]
        assert [type(action) for action in g.step("B", BAD, now)] == [Start, Start]
    assert g.step("B", BAD, 100) == [Stop("A")]


def test_a_group_restarts():
    with pytest.raises(UsageError, match="'A' is in a group, so it needs restart=True"):
        Group(Strategy.ONE_FOR_ALL, {"A": NEVER.rule})


class World:
    """Does what a group decides, and looks whether it may. Time passes as it has to."""

    def __init__(self, strategy, rules):
        self.group = Group(strategy, rules)
        self.strategy = strategy
        self.names = list(rules)
        self.running = set(rules)
        self.stopping = []  # have been told to
        self.due = {}  # name -> at
        self.gone = set()
        self.now = 0.0

    def dependants(self, name):
        """Of those besides it."""
        if self.strategy is Strategy.ONE_FOR_ONE:
            return set()
        first = self.names.index(name) if self.strategy is Strategy.REST_FOR_ONE else 0
        return {*self.names[first:]} - {name}

    def dies(self, name, end):
        self.running.discard(name)
        if name in self.stopping:
            self.stopping.remove(name)
        self.carry_out(self.group.step(name, end, self.now))

    def carry_out(self, actions):
        stops = [action.child for action in actions if isinstance(action, Stop)]
        starts = [action for action in actions if isinstance(action, Start)]
        assert stops == sorted(stops, reverse=True)
        assert [start.child for start in starts] == sorted(start.child for start in starts)
        assert [start.at for start in starts] == sorted(start.at for start in starts)
        self.gone |= {action.child for action in actions if isinstance(action, GaveUp)}
        for start in starts:
            assert start.at >= self.now
            assert not self.dependants(start.child) & self.running, "it starts below those that depend on it"
            assert start.child not in self.running
            assert start.child not in self.gone
            self.due[start.child] = start.at
        for name in stops:
            if self.due.pop(name, None) is None:
                assert name in self.running
                self.stopping.append(name)
            else:
                self.dies(name, GOOD)

    def settle(self, choose):
        """Let those that were told to stop do so, in any order, and start what is due."""
        while self.stopping or self.due:
            if self.stopping:
                self.dies(choose(self.stopping), choose([GOOD, BAD]))
            else:
                self.start(min(self.due, key=lambda name: (self.due[name], name)))

    def start(self, name):
        self.now = max(self.now, self.due.pop(name))
        self.running.add(name)
        self.group.started(name, self.now)


limited = st.builds(
    lambda seconds, retries, only: restart_every(seconds, retries=retries, only_failures=only).rule,
    st.sampled_from([0.5, 3.0]),
    st.sampled_from([None, 0, 1, 5]),
    st.booleans(),
)


@given(st.data(), st.sampled_from(Strategy), st.lists(limited, min_size=1, max_size=5))
def test_whatever_happens_everybody_runs_again_who_may(data, strategy, rules):
    world = World(strategy, dict(zip("ABCDE", rules, strict=False)))
    for _ in range(data.draw(st.integers(0, 25))):
        events = sorted({*world.running, *(f"start {name}" for name in world.due)})
        if not events:
            break
        event = data.draw(st.sampled_from(events))
        world.now += data.draw(st.sampled_from([0.0, 0.1, 2.0, 9.0]))
        if event in world.running:
            world.dies(event, data.draw(st.sampled_from([GOOD, BAD, BAD])))
        elif not world.stopping:
            world.start(event.removeprefix("start "))
    world.settle(lambda names: data.draw(st.sampled_from(names)))
    lost = {name for gone in world.gone for name in {gone, *world.dependants(gone)}}
    well = {name for name, rule in zip("ABCDE", rules, strict=False) if rule.only_failures}
    assert {*world.names} - lost - well <= world.running
    assert not world.running & lost
