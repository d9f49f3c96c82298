"""The book of calls: the first two reports that differ are the verdict, and it is given once."""

import itertools

import pytest

from rmpi.places.calls import REMEMBERED, CallBook, Report

BARRIER, SUM, REDUCE = ("barrier()", 1), ("allreduce(sum)", 2), ("reduce(root=0)", 3)


def by(rank, call):
    what, fingerprint = call
    return Report(f"rank {rank}", fingerprint, what)


def test_equal_calls_are_no_news():
    book = CallBook()
    assert [book.report(7, 0, by(rank, BARRIER)) for rank in range(4)] == [None] * 4


def test_the_verdict_names_the_number_and_both_sides():
    book = CallBook()
    assert book.report(7, 5, by(0, SUM)) is None
    verdict = book.report(7, 5, by(2, BARRIER))
    assert verdict == "ranks disagree about collective 5: rank 0 called allreduce(sum), rank 2 called barrier()"


def test_the_verdict_is_given_once_per_context():
    book = CallBook()
    verdicts = [book.report(7, 5, by(rank, call)) for rank, call in enumerate([SUM, BARRIER, REDUCE])]
    assert [verdict is not None for verdict in verdicts] == [False, True, False]
    assert book.report(7, 6, by(0, SUM)) is None
    assert book.report(7, 6, by(1, BARRIER)) is None


def test_contexts_and_numbers_are_apart():
    book = CallBook()
    assert book.report(7, 0, by(0, SUM)) is None
    assert book.report(7, 1, by(1, BARRIER)) is None
    assert book.report(8, 0, by(1, BARRIER)) is None
    assert book.report(8, 0, by(0, SUM)) is not None
    assert book.report(7, 1, by(0, SUM)) is not None


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_rank_that_is_ahead_hides_no_disagreement(order):
    """Ranks 0 and 1 disagree about number 5, while rank 2 has reported number 6 already."""
    reports = [(5, by(0, SUM)), (5, by(1, BARRIER)), (6, by(2, SUM))]
    book = CallBook()
    verdicts = [book.report(7, *reports[i]) for i in order]
    assert sum(verdict is not None for verdict in verdicts) == 1


def test_it_remembers_only_so_many_collectives():
    book = CallBook()
    for number in range(10 * REMEMBERED):
        assert book.report(7, number, by(0, SUM)) is None
    assert book.report(7, 0, by(1, BARRIER)) is None  # too long ago to compare with
    assert book.report(7, 10 * REMEMBERED - 1, by(1, BARRIER)) is not None
