"""The examples with places as a person runs them, and what they must print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/places"

NAP = ["BEGINING SLEEP", "SLEEP DONE"]

SHARED_TUPLES = ["100", "200", "100", "200", "100", "200"]


def run(example: str, cwd: Path) -> tuple[str, str]:
    """Run an example; its stdout and stderr. It must end well."""
    words = [sys.executable, str(EXAMPLES / example)]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("example", "printed"),
    [
        (
            "hello_world.py",
            "hello-world received: Hello\nhello-world sent: Hello World\nmessage-router received: Hello World\n\n",
        ),
        ("one_place.py", "hello-world received: Hello\nhello-world sent: Hello World\nmain received: Hello World\n\n"),
        (
            "named.py",
            "Hello from define-cast\nHello from define-cast\n100\n200\n100\n200\n100\n200\n"
            "('created', 'user0')\n('ok', 10)\n('ok', 5)\n",
        ),
        ("thread.py", "('created', 'user0')\n('ok', 10)\n('ok', 5)\n"),
        ("restarter.py", "BEGINING SLEEP\nSLEEP DONE\n" * 4 + "Already retried to restart 3 times\n"),
        ("write_flush.py", "'Hello World'\n"),
    ],
)
def test_an_example_prints_what_it_says(example: str, printed: str, tmp_path: Path) -> None:
    assert run(example, tmp_path) == (printed, "")


def test_a_store_in_two_copies_loses_nothing_when_either_is_killed(tmp_path: Path) -> None:
    printed, complaints = run("replicated.py", tmp_path)
    expected = (
        "killed the replica on left, restarts: 1\nkilled the replica on right, restarts: 1\n"
        r"writes acknowledged: \d{3,}, lost from left: 0, lost from right: 0\n"
    )
    assert re.fullmatch(expected, printed)
    assert complaints == ""


def test_what_servers_log_is_on_the_log_of_the_program_and_not_among_results(tmp_path: Path) -> None:
    printed, logged = run("log_to_parent.py", tmp_path)
    assert printed.splitlines() == [*SHARED_TUPLES, "('created', 'user1')", "('ok', 10)", "('ok', 5)"]
    assert sorted(logged.splitlines()) == [
        "Logging new account for user1",
        "user0 set to 100",
        "user2 set to 200",
    ]


def test_a_place_that_is_restarted_whenever_it_ends_does_it_all_again_ten_times(tmp_path: Path) -> None:
    """It is ended in its eleventh nap, or before, or after."""
    printed, complaints = run("restart.py", tmp_path)
    lines = printed.splitlines()
    assert lines == (NAP * len(lines))[: len(lines)]
    assert 20 <= len(lines) <= 22
    assert complaints == ""


def test_many_places_and_timers_at_once(tmp_path: Path) -> None:
    printed, complaints = run("multiple.py", tmp_path)
    lines = printed.splitlines()
    greetings = [int(found[1]) for line in lines if (found := re.fullmatch(r"\(\d+\.\d+, 'HI', (\d)\)", line))]
    assert sorted(greetings) == sorted([*range(5), *range(7), *range(9)])
    assert [line for line in lines if line.startswith("('")] == ["('created', 'user0')", "('ok', 10)", "('ok', 5)"]
    naps = [line for line in lines if line in NAP]
    assert naps
    assert naps == (NAP * len(naps))[: len(naps)]
    assert lines.count("Hello from every-seconds") >= 2
    assert len(lines) == len(greetings) + 3 + len(naps) + lines.count("Hello from every-seconds")
    assert complaints == ""
