"""The line on the terminal."""

from __future__ import annotations

import io

import pytest

from rmpi.mapreduce.progress import EVERY, EVERY_PLAIN, Progress, State, line

HALF = State(32, 64, 35_400_000, 0, 2)
DONE = State(64, 64, 71_000_000_000, 2, 2)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_what_the_line_says():
    assert line(HALF, None) == "maps 32/64, shuffle 35.4 MB, reduces 0/2"
    assert line(HALF, 14.2) == "maps 32/64, shuffle 35.4 MB, reduces 0/2, about 14 s left"
    assert line(DONE, 0.0) == "maps 64/64, shuffle 71.0 GB, reduces 2/2"
    assert line(State(0, 1, 900, 0, 1), 3000.0) == "maps 0/1, shuffle 1 KB, reduces 0/1, about 50 min left"
    assert line(State(0, 1, 0, 0, 1), 30_000.0).endswith("about 8 h left")


def test_on_a_terminal_one_line_is_rewritten_and_goes_away():
    out = Terminal()
    progress = Progress(out, None, 0.0)
    progress.show(State(1, 64, 0, 0, 2), EVERY / 2)
    assert out.getvalue() == ""
    progress.show(HALF, 10.0)
    progress.show(HALF, 10.0 + EVERY / 2)
    progress.show(DONE, 20.0)
    progress.end()
    clear = "\r\x1b[K"
    assert out.getvalue() == f"{clear}{line(HALF, 10.0)}{clear}{line(DONE, None)}{clear}"


@pytest.mark.parametrize("wanted", [None, False])
def test_elsewhere_there_is_nothing(wanted):
    out = io.StringIO()
    progress = Progress(out, wanted, 0.0)
    progress.show(DONE, 100.0)
    progress.end()
    assert out.getvalue() == ""


def test_unless_it_is_wanted():
    out = io.StringIO()
    progress = Progress(out, True, 0.0)
    progress.show(HALF, EVERY_PLAIN)
    progress.show(State(64, 64, 0, 1, 2), EVERY_PLAIN + 4)
    progress.show(DONE, EVERY_PLAIN + 5)
    progress.end()
    assert out.getvalue().splitlines() == [
        "maps 32/64, shuffle 35.4 MB, reduces 0/2, about 2 s left",
        "maps 64/64, shuffle 0 KB, reduces 1/2, about 4 s left",
        "maps 64/64, shuffle 71.0 GB, reduces 2/2",
    ]
