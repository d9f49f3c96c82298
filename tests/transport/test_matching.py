"""Which message answers which receive, without any transport."""

import random

import numpy as np
import pytest

from rmpi.transport.matching import ANY, REMEMBERED_CALLS, Arrival, Context, Matching, Receive, take_views
from rmpi.wire.codec import encode_value

C = 5


def arrival(source=0, tag=0, context=C, value=None):
    made = Arrival(source, context, tag)
    encoded = encode_value(value)
    made.metadata, made.length = encoded.metadata, encoded.nbytes
    return made


def receive(source=ANY, tag=ANY, context=C, **options):
    return Receive(context, source, tag, **options)


def test_a_message_meets_the_receive_that_waits():
    matching, waiting = Matching(), receive(1, 2)
    assert matching.post(waiting) is None
    assert matching.arrive(arrival(1, 2)) is waiting
    assert matching.post(receive(1, 2)) is None  # it is gone


def test_a_receive_meets_the_message_that_waits():
    matching, come = Matching(), arrival(1, 2)
    assert matching.arrive(come) is None
    assert matching.find(receive(1, 2)) is come
    assert matching.post(receive(1, 2)) is come
    assert matching.find(receive(1, 2)) is None


@pytest.mark.parametrize("asked", [(1, 2), (ANY, 2), (1, ANY), (ANY, ANY)])
@pytest.mark.parametrize("came", [(1, 2), (1, 9), (9, 2), (9, 9)])
def test_what_fits(asked, came):
    fits = all(a in (ANY, c) for a, c in zip(asked, came, strict=True))
    matching, waiting = Matching(), receive(*asked)
    matching.post(waiting)
    assert (matching.arrive(arrival(*came)) is waiting) == fits
    matching, come = Matching(), arrival(*came)
    matching.arrive(come)
    assert (matching.post(receive(*asked)) is come) == fits


def test_contexts_are_apart():
    matching = Matching()
    matching.arrive(arrival(context=C))
    assert matching.post(receive(context=C + 1)) is None
    assert matching.find(receive(context=C + 2)) is None
    assert len(list(matching.receives())) == 1


def test_wildcards_take_the_first_that_came():
    matching = Matching()
    come = [arrival(source, tag) for source, tag in [(3, 1), (1, 1), (3, 2), (2, 1), (3, 1)]]
    for one in come:
        matching.arrive(one)
    assert matching.post(receive(tag=2)) is come[2]
    assert matching.post(receive(source=3)) is come[0]
    assert [matching.post(receive()) for _ in range(3)] == [come[1], come[3], come[4]]


def test_a_message_takes_the_receive_that_was_posted_first():
    matching = Matching()
    asked = [receive(1, 2), receive(), receive(1, ANY), receive(ANY, 2), receive(1, 2)]
    for one in reversed(asked):
        matching.post(one)
    assert [matching.arrive(arrival(1, 2)) for _ in asked] == asked[::-1]


def test_a_cancelled_receive_gets_nothing():
    matching, first, second = Matching(), receive(), receive()
    matching.post(first)
    matching.post(second)
    assert matching.cancel(first)
    assert not matching.cancel(first)
    assert matching.arrive(arrival()) is second


def test_a_withdrawn_message_is_not_received():
    matching, first, second = Matching(), arrival(), arrival()
    matching.arrive(first)
    matching.arrive(second)
    assert matching.withdraw(first)
    assert not matching.withdraw(first)
    assert matching.post(receive()) is second


def test_a_message_that_comes_back_is_first_again():
    matching = Matching()
    come = [arrival(tag=7) for _ in range(4)]
    for one in come:
        matching.arrive(one)
    taken = [matching.post(receive(tag=7)) for _ in range(3)]
    for one in (taken[1], taken[2], taken[0]):
        assert matching.arrive(one) is None
    assert [matching.post(receive()) for _ in range(4)] == come


def test_a_message_that_comes_back_meets_the_receive_that_waits():
    matching, come, waiting = Matching(), arrival(), receive()
    matching.arrive(come)
    assert matching.post(receive()) is come
    matching.post(waiting)
    assert matching.arrive(come) is waiting


def test_a_receive_that_comes_back_is_first_again_and_meets_what_waits():
    matching, first, second = Matching(), receive(), receive()
    matching.post(first)
    matching.post(second)
    assert matching.arrive(arrival()) is first
    assert matching.post(first) is None
    assert matching.arrive(arrival()) is first
    assert matching.arrive(arrival()) is second
    late = arrival()
    matching.arrive(late)
    assert matching.post(first) is late


def test_random_histories_match_as_a_list_would():
    """The model: two lists, searched from the front."""
    for seed in range(50):
        choose, matching = random.Random(seed), Matching()
        arrivals, receives = [], []
        for _ in range(300):
            source, tag = choose.randrange(3), choose.randrange(3)
            if choose.random() < 0.5:
                new = arrival(source, tag)
                expected = next((one for one in receives if one.fits(new)), None)
                assert matching.arrive(new) is expected
                receives.remove(expected) if expected else arrivals.append(new)
            else:
                new = receive(choose.choice([source, ANY]), choose.choice([tag, ANY]))
                expected = next((one for one in arrivals if new.fits(one)), None)
                assert matching.post(new) is expected
                arrivals.remove(expected) if expected else receives.append(new)
        assert sorted(map(id, matching.receives())) == sorted(map(id, receives))


def test_an_out_that_does_not_fit_is_refused_or_only_an_offer():
    come = arrival(value=np.zeros(3))
    assert receive(out=np.empty(3)).refuses(come) is None
    assert "the message holds an array (3,) of float64" in receive(out=np.empty(4)).refuses(come)
    offered = receive(out=np.empty(4), strict=False)
    assert offered.refuses(come) is None
    assert offered.out is None


def test_calls_are_remembered_for_a_while():
    known = Context()
    for sequence in range(REMEMBERED_CALLS + 10):
        known.remember_call(sequence, sequence * 7)
    assert min(known.calls) == 10
    assert len(known.calls) == REMEMBERED_CALLS


@pytest.mark.parametrize("counts", [[10], [1] * 10, [3, 3, 4], [4, 6], [0, 10]])
def test_memory_is_taken_in_order(counts):
    memory = bytearray(10)
    pieces = [memoryview(memory)[:4], memoryview(memory)[4:5], memoryview(memory)[5:]]
    rest, written = pieces[::-1], 0
    for count in counts:
        for view in take_views(rest, count):
            view[:] = bytes(range(written, written + view.nbytes))
            written += view.nbytes
    assert memory == bytes(range(10))
    assert not rest
