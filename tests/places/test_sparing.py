"""What strangers can have a node say is not more than people would read."""

import pytest

from rmpi.places.loop import Loop
from rmpi.places.sparing import MOST, PERIOD, Sparing


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def said():
    return []


def turn(loop):
    loop.post(lambda: None)
    loop.run_once()


def test_a_flood_is_summed_up(loop, said, clock):
    say = Sparing(loop, said.append, "visits")
    for number in range(MOST + 480):
        say(f"line {number}")
    assert said == [f"line {number}" for number in range(MOST)]
    clock.now += PERIOD
    turn(loop)
    assert said[MOST:] == ["there were 480 more visits in 60 s"]
    say("another")
    assert said[-1] == "another"


def test_a_few_lines_are_all_said_and_nothing_else(loop, said, clock):
    say = Sparing(loop, said.append, "visits")
    for period in range(3):
        for number in range(MOST):
            say(f"line {period} {number}")
        clock.now += PERIOD
        turn(loop)
    assert len(said) == 3 * MOST
