"""The head's book of blocked ranks: conversations, with what is reported and what follows. Nothing is started here.

Endpoints are 10, 11, 12, … for ranks 0, 1, 2, …
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from rmpi.places.deadlock import MANY, MOST_LINES, AskAll, DeadlockBook, InFlight, Verdict
from rmpi.places.messages import Blocked

WORLD = 1000


def endpoint(rank):
    return 10 + rank


def book(size):
    return DeadlockBook({endpoint(rank): rank for rank in range(size)})


def receives(source, tag=5, line=12):
    return ((endpoint(source),), f"recv(source={source}, tag={tag})", f"ring.py:{line}", WORLD, -1)


def calls(what, sequence, *peers, line=20):
    return (tuple(map(endpoint, peers)), what, f"ring.py:{line}", WORLD, sequence)


def blocked(*waits, stay=1, sent=(), taken=(), unread=(), called=-1, round=0):  # noqa: A002
    return Blocked(
        round,
        stay,
        {endpoint(rank): count for rank, count in dict(sent).items()},
        {endpoint(rank): count for rank, count in dict(taken).items()},
        waits,
        tuple((endpoint(source), tag, count) for source, tag, count in unread),
        {WORLD: called},
    )


def again(report, round):  # noqa: A002
    return Blocked(round, report.stay, report.sent, report.taken, report.waits, report.unread, report.calls)


def verdict_on(*reports):
    """The text that follows if every rank reports and answers just so."""
    judge = book(len(reports))
    steps = [judge.blocked(endpoint(rank), report) for rank, report in enumerate(reports)]
    assert steps == [None] * (len(reports) - 1) + [AskAll(1)]
    *answers, verdict = [judge.blocked(endpoint(rank), again(report, 1)) for rank, report in enumerate(reports)]
    assert answers == [None] * (len(reports) - 1)
    assert isinstance(verdict, Verdict)
    return verdict.text.splitlines()


# -- when there is a verdict ----------------------------------------------------------------------------------


def test_every_rank_is_asked_again_before_there_is_a_verdict():
    judge, zero, one = book(2), blocked(receives(1)), blocked(receives(0))
    assert judge.blocked(endpoint(0), zero) is None
    assert judge.blocked(endpoint(1), one) == AskAll(1)
    assert judge.blocked(endpoint(1), again(one, 1)) is None
    assert isinstance(judge.blocked(endpoint(0), again(zero, 1)), Verdict)


def test_there_is_one_verdict():
    judge, report = book(1), blocked(receives(0))
    judge.blocked(endpoint(0), report)
    assert isinstance(judge.blocked(endpoint(0), again(report, 1)), Verdict)
    assert judge.blocked(endpoint(0), report) is None
    assert judge.ended(endpoint(0), failed=False) is None


def test_a_rank_that_never_reports_means_no_question():
    judge = book(3)
    for _ in range(3):
        assert judge.blocked(endpoint(0), blocked(receives(1))) is None
        assert judge.blocked(endpoint(1), blocked(receives(0))) is None


def test_a_rank_that_does_not_answer_means_no_verdict():
    """It is stopped, or computes. Others report that they wait for something else now, and are not asked meanwhile."""
    judge, zero, one = book(2), blocked(receives(1)), blocked(receives(0))
    judge.blocked(endpoint(0), zero)
    assert judge.blocked(endpoint(1), one) == AskAll(1)
    assert judge.blocked(endpoint(0), again(zero, 1)) is None
    for stay in range(2, 5):
        assert judge.blocked(endpoint(0), blocked(receives(1), stay=stay)) is None


def test_a_rank_that_is_awake_ends_the_round_and_the_next_begins_with_its_report():
    judge, zero, one = book(2), blocked(receives(1)), blocked(receives(0))
    judge.blocked(endpoint(0), zero)
    assert judge.blocked(endpoint(1), one) == AskAll(1)
    assert judge.awake(endpoint(1), 1) is None
    assert judge.blocked(endpoint(0), again(zero, 1)) is None
    assert judge.blocked(endpoint(0), zero) is None
    assert judge.blocked(endpoint(1), blocked(receives(0), stay=2)) == AskAll(2)


def test_an_answer_to_an_earlier_question_is_none():
    judge, zero, one = book(2), blocked(receives(1)), blocked(receives(0))
    judge.blocked(endpoint(0), zero)
    judge.blocked(endpoint(1), one)
    judge.awake(endpoint(1), 1)
    judge.blocked(endpoint(1), one)
    assert judge.blocked(endpoint(0), zero) == AskAll(2)
    assert judge.blocked(endpoint(0), again(zero, 1)) is None
    assert judge.blocked(endpoint(1), again(one, 2)) is None
    assert isinstance(judge.blocked(endpoint(0), again(zero, 2)), Verdict)


@pytest.mark.parametrize(
    "later",
    [
        blocked(receives(0), stay=2),
        blocked(receives(0), sent={0: 7}),
        blocked(receives(0), taken={0: 7}),
    ],
    ids=["another wait", "sent something", "took something"],
)
def test_a_rank_that_has_moved_means_no_verdict(later):
    judge, zero, one = book(2), blocked(receives(1)), blocked(receives(0))
    judge.blocked(endpoint(0), zero)
    judge.blocked(endpoint(1), one)
    judge.blocked(endpoint(0), again(zero, 1))
    assert not isinstance(judge.blocked(endpoint(1), again(later, 1)), Verdict)


def test_counts_that_match_but_are_new_are_asked_for_once_more():
    judge = book(2)
    judge.blocked(endpoint(0), blocked(receives(1)))
    assert judge.blocked(endpoint(1), blocked(receives(0))) == AskAll(1)
    zero, one = blocked(receives(1), sent={1: 7}), blocked(receives(0), taken={0: 7})
    judge.blocked(endpoint(0), again(zero, 1))
    assert judge.blocked(endpoint(1), again(one, 1)) == AskAll(2)
    judge.blocked(endpoint(0), again(zero, 2))
    assert isinstance(judge.blocked(endpoint(1), again(one, 2)), Verdict)


def test_what_is_in_flight_for_two_rounds_is_noted_once_and_never_judged():
    judge, zero, one = book(2), blocked(receives(1), sent={1: 7}), blocked(receives(0), taken={0: 5})
    noted = []
    for round in (1, 2, 3):  # noqa: A001
        judge.blocked(endpoint(0), zero)
        assert judge.blocked(endpoint(1), one) == AskAll(round)
        judge.blocked(endpoint(0), again(zero, round))
        noted.append(judge.blocked(endpoint(1), again(one, round)))
    assert (noted[0], noted[2]) == (None, None)
    assert noted[1] == InFlight(
        "every rank waits, but not all that was sent has been consumed: rank 0 has sent 7 to rank 1, which took 5"
    )


def test_all_are_asked_again_only_when_all_have_reported_again():
    judge, zero, one = book(2), blocked(receives(1), sent={1: 7}), blocked(receives(0))
    judge.blocked(endpoint(0), zero)
    judge.blocked(endpoint(1), one)
    judge.blocked(endpoint(0), again(zero, 1))
    judge.blocked(endpoint(1), again(one, 1))
    assert [judge.blocked(endpoint(0), zero) for _ in range(5)] == [None] * 5
    assert judge.blocked(endpoint(1), one) == AskAll(2)


# -- ends -----------------------------------------------------------------------------------------------------


def test_a_rank_that_has_ended_well_is_not_waited_for():
    judge, zero, one = book(3), blocked(receives(1)), blocked(receives(0))
    judge.blocked(endpoint(0), zero)
    judge.blocked(endpoint(1), one)
    assert judge.ended(endpoint(2), failed=False) == AskAll(1)
    judge.blocked(endpoint(0), again(zero, 1))
    assert isinstance(judge.blocked(endpoint(1), again(one, 1)), Verdict)


def test_an_end_in_the_middle_of_a_round_begins_all_anew():
    """Who was asked before it was told of the end may have answered that it waits for whom has ended."""
    judge = book(3)
    reports = {rank: blocked(receives((rank + 1) % 2)) for rank in range(3)}
    steps = [judge.blocked(endpoint(rank), report) for rank, report in reports.items()]
    assert steps[-1] == AskAll(1)
    assert judge.ended(endpoint(2), failed=False) is None
    for rank in (0, 1):
        assert judge.blocked(endpoint(rank), again(reports[rank], 1)) is None
    judge.blocked(endpoint(0), reports[0])
    assert judge.blocked(endpoint(1), reports[1]) == AskAll(2)


def test_after_a_failure_nothing_can_be_proved():
    judge = book(3)
    judge.ended(endpoint(2), failed=True)
    assert judge.blocked(endpoint(0), blocked(receives(1))) is None
    assert judge.blocked(endpoint(1), blocked(receives(0))) is None


def test_strangers_are_not_heard():
    judge = book(1)
    assert judge.blocked(endpoint(9), blocked(receives(0))) is None


# -- what it says ---------------------------------------------------------------------------------------------


def test_two_ranks_wait_for_each_other():
    assert verdict_on(blocked(receives(1, 5, 12)), blocked(receives(0, 7, 14), unread=[(0, 6, 1)])) == [
        "every rank waits, and nothing is on its way:",
        "  rank 0 waits for rank 1 in recv(source=1, tag=5) at ring.py:12",
        "  rank 1 waits for rank 0 in recv(source=0, tag=7) at ring.py:14",
        "  rank 1 has 1 message from rank 0 with tag 6 that nobody asks for",
        "  cycle: 0 → 1 → 0",
    ]


def test_a_rank_waits_for_itself():
    assert verdict_on(blocked(receives(0))) == [
        "every rank waits, and nothing is on its way:",
        "  rank 0 waits for itself in recv(source=0, tag=5) at ring.py:12",
    ]


def test_a_rank_is_missing_in_a_collective():
    waiting = blocked(calls("barrier()", 12, 2), called=12)
    assert verdict_on(waiting, waiting, blocked(receives(0), called=11)) == [
        "every rank waits, and nothing is on its way:",
        "  rank 0 waits for rank 2 in barrier() #12 at ring.py:20",
        "  rank 1 waits for rank 2 in barrier() #12 at ring.py:20",
        "  rank 2 waits for rank 0 in recv(source=0, tag=5) at ring.py:12",
        "  rank 2 has not called barrier() #12",
        "  cycle: 0 → 2 → 0",
    ]


def test_who_is_through_with_a_collective_is_not_missing():
    """Rank 0 has sent its part of the gather, and gone on."""
    through = blocked(receives(1), called=12)
    lines = verdict_on(through, blocked(calls("gather(root=1)", 12, 2), called=12), blocked(receives(1), called=11))
    assert "  rank 2 has not called gather(root=1) #12" in lines
    assert not any("rank 0 has not" in line for line in lines)


def test_who_is_not_of_a_communicator_is_not_missing():
    outside = Blocked(0, 1, {}, {}, (receives(1),), (), {})
    lines = verdict_on(blocked(calls("barrier()", 3, 2), called=3), blocked(receives(0), called=2), outside)
    assert "  rank 1 has not called barrier() #3" in lines


def test_two_threads_of_a_rank_are_two_lines_and_prove_no_cycle():
    lines = verdict_on(blocked(receives(1), receives(0, 6)), blocked(receives(0)))
    assert lines[1:3] == [
        "  rank 0 waits for rank 1 in recv(source=1, tag=5) at ring.py:12",
        "  rank 0 waits for itself in recv(source=0, tag=6) at ring.py:12",
    ]
    assert not any("cycle" in line for line in lines)


def test_an_unknown_wait_has_a_line_too():
    assert verdict_on(blocked(((), "wait()", "ring.py:3", WORLD, -1)))[1:] == ["  rank 0 waits in wait() at ring.py:3"]


def test_many_ranks_at_one_place_are_one_line():
    size = MANY + 4
    reports = [blocked(calls("barrier()", 1, size - 1), called=1) for _ in range(size - 1)]
    assert verdict_on(*reports, blocked(receives(0), called=0)) == [
        "every rank waits, and nothing is on its way:",
        f"  ranks 0-{size - 2} wait in barrier() #1 at ring.py:20",
        f"  rank {size - 1} waits for rank 0 in recv(source=0, tag=5) at ring.py:12",
        f"  rank {size - 1} has not called barrier() #1",
        f"  cycle: 0 → {size - 1} → 0",
    ]


def test_a_large_ring_is_told_in_few_words():
    size = 100
    lines = verdict_on(*(blocked(receives((rank - 1) % size)) for rank in range(size)))
    assert lines[1] == "  ranks 0-99 wait in recv(…) at ring.py:12"
    assert lines[2] == "  cycle: 0 → 99 → 98 → 97 → 96 → 95 → 94 → 93 → … → 7 → 6 → 5 → 4 → 3 → 2 → 1 → 0"
    assert len(lines) == 3


def test_the_text_is_bounded():
    reports = [blocked(receives(0, line=rank), unread=[(0, 1, 1)]) for rank in range(500)]
    lines = verdict_on(*reports)
    assert len(lines) <= 2 * (MOST_LINES + 1) + 3
    assert "  … and 460 more like these" in lines


# -- no false verdict -----------------------------------------------------------------------------------------


@dataclass
class Rank:
    """A rank of a random program: while it waits, what comes is consumed, and may be what it waited for."""

    stay: int = 1
    waits: bool = False
    sent: dict = field(default_factory=dict)
    taken: dict = field(default_factory=dict)

    def report(self, round):  # noqa: A002
        return Blocked(round, self.stay, dict(self.sent), dict(self.taken), (receives(0),), (), {})


@pytest.mark.parametrize("seed", range(20))
def test_random_traffic_is_never_taken_for_a_deadlock(seed):
    """Messages, reports, questions and answers are delayed by chance, each kind in its order.

    There is always a rank that computes, or a message on its way: so any verdict is wrong. Ranks that wait report again
    and again, at any moment, far more often than real ones do.
    """
    chance, size = random.Random(seed), 4
    judge, ranks = book(size), [Rank() for _ in range(size)]
    wires = {(one, other): [] for one in range(size) for other in range(size)}
    up = [[] for _ in ranks]
    down = [[] for _ in ranks]

    def asked(step):
        assert not isinstance(step, Verdict)
        if isinstance(step, AskAll):
            for questions in down:
                questions.append(step.round)
            return 1
        return 0

    def send(me, rank):
        other = chance.randrange(size)
        rank.sent[endpoint(other)] = rank.sent.get(endpoint(other), 0) + 1
        wires[me, other].append("message")

    def hear(me, rank):
        source = chance.randrange(size)
        if wires[source, me] and rank.waits:
            wires[source, me].pop(0)
            rank.taken[endpoint(source)] = rank.taken.get(endpoint(source), 0) + 1
            if chance.random() < 0.5:  # it was not what it waited for
                send(me, rank)
                return
            rank.waits = False
            rank.stay += 1

    rounds = 0
    for _ in range(20_000):
        me = chance.randrange(size)
        rank = ranks[me]
        match chance.choice(["act", "hear", "report", "answer", "deliver"]):
            case "act" if not rank.waits:
                send(me, rank)
                rank.waits = True
            case "hear":
                hear(me, rank)
            case "report" if rank.waits and len(up[me]) < 3:
                up[me].append(rank.report(0))
            case "answer" if rank.waits and down[me]:
                up[me].append(rank.report(down[me].pop(0)))
            case "deliver" if up[me]:
                rounds += asked(judge.blocked(endpoint(me), up[me].pop(0)))
    assert rounds > 10
