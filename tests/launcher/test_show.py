"""Many ranks on one screen: nothing mixed, nothing lost; and the first failure last."""

from __future__ import annotations

from itertools import pairwise
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import show
from launcher.show import HOLD, WIPE, Display, Failure, failure_block
from rmpi.places.wording import ranks_text


def plain(**how: object) -> Display:
    return Display(**{"tag": False, "hosts": False, "terminal": False, "width": 80, **how})


def tagged(**how: object) -> Display:
    return plain(**{"tag": True, **how})


def on_terminal(**how: object) -> Display:
    return tagged(**{"terminal": True, **how})


def screen(writes: list[tuple[int, bytes]]) -> list[str]:
    """What a terminal shows after these writes: its lines, the cursor's last (knows ``\\n``, ``\\r``, erase)."""
    lines, column = [""], 0
    for part in b"".join(data for _, data in writes).decode().replace("\x1b[K", "\x00"):
        if part == "\n":
            lines, column = [*lines, ""], 0
        elif part == "\r":
            column = 0
        elif part == "\x00":
            lines[-1] = lines[-1][:column]
        else:
            lines[-1] = lines[-1][:column] + part + lines[-1][column + 1 :]
            column += 1
    return lines


# --- Whole lines ---


def test_a_line_is_shown_when_it_ends():
    display = plain()
    assert display.feed(0, "a", 1, b"hel") == []
    assert display.feed(0, "a", 1, b"lo\nwor") == [(1, b"hello\n")]
    assert display.feed(0, "a", 1, b"ld\n") == [(1, b"world\n")]


def test_lines_of_two_ranks_do_not_mix():
    display = tagged()
    display.feed(0, "a", 1, b"ze")
    display.feed(1, "a", 1, b"o")
    assert display.feed(0, "a", 1, b"ro\n") == [(1, b"[0] zero\n")]
    assert display.feed(1, "a", 1, b"ne\n") == [(1, b"[1] one\n")]


def test_the_two_streams_of_a_rank_do_not_mix():
    display = tagged()
    display.feed(3, "a", 1, b"out")
    assert display.feed(3, "a", 2, b"err\n") == [(2, b"[3] err\n")]
    assert display.feed(3, "a", 1, b"\n") == [(1, b"[3] out\n")]


def test_every_line_gets_its_tag():
    assert tagged().feed(3, "b", 1, b"x\n\ny\n") == [(1, b"[3] x\n[3] \n[3] y\n")]
    assert tagged(hosts=True).feed(3, "hostb", 2, b"text\n") == [(2, b"[3@hostb] text\n")]


@pytest.mark.parametrize("junk", [b"\x00\xff\xfe", b"\xc3", b"a\rb\r", b"\r", "ünï".encode(), b"\x1b[2J"])
@pytest.mark.parametrize("terminal", [False, True])
def test_junk_passes_unharmed(junk, terminal):
    if terminal:
        junk = junk.replace(b"\r", b"")
    assert plain(terminal=terminal).feed(1, "a", 1, junk + b"\n") == [(1, junk + b"\n")]


def test_a_last_line_without_newline_is_shown_and_ended():
    display = tagged()
    display.feed(1, "a", 1, b"no end")
    assert display.finish(1, 1) == [(1, b"[1] no end\n")]
    assert display.finish(1, 1) == []


def test_what_ended_with_its_line_needs_no_end():
    display = tagged()
    display.feed(1, "a", 1, b"end\n")
    assert display.finish(1, 1) == display.finish(7, 2) == []


def test_close_ends_all_lines_in_the_order_of_ranks():
    display = tagged()
    for rank in (2, 0, 1):
        display.feed(rank, "a", 1, b"x")
    assert b"".join(data for _, data in display.close()) == b"[0] x\n[1] x\n[2] x\n"
    assert display.close() == []


def test_one_rank_alone_is_passed_through():
    display = plain(alone=True, terminal=True)
    assert display.feed(0, "a", 1, b"name? ") == [(1, b"name? ")]
    assert display.feed(0, "a", 1, b"") == display.finish(0, 1) == display.close() == []


def test_the_launcher_may_speak():
    display = on_terminal()
    display.feed(0, "a", 1, b"\r50%")
    assert display.say(b"rmpi-run: note\n") == [(2, WIPE + b"rmpi-run: note\n[0] 50%")]


# --- Lines that are too long to hold ---


def test_a_line_up_to_the_limit_is_held():
    assert plain().feed(1, "a", 1, b"x" * HOLD) == []


def test_a_longer_line_passes_unharmed_while_nobody_else_speaks():
    display = tagged()
    written = [
        *display.feed(1, "a", 1, b"x" * (HOLD + 1)),
        *display.feed(2, "a", 1, b"waits"),
        *display.feed(1, "a", 1, b"y"),
        *display.feed(1, "a", 1, b"z\nnext\n"),
    ]
    assert b"".join(data for _, data in written) == b"[1] " + b"x" * (HOLD + 1) + b"yz\n[1] next\n"


def test_the_line_of_another_closes_it_and_the_rest_is_a_line_of_its_own():
    display = tagged()
    display.feed(1, "a", 1, b"x" * (HOLD + 1))
    assert display.feed(2, "a", 2, b"other\n") == [(1, b"\n"), (2, b"[2] other\n")]
    assert display.feed(1, "a", 1, b"rest") == []
    assert display.feed(1, "a", 1, b"\n") == [(1, b"[1] rest\n")]


def test_two_long_lines_take_turns():
    display = tagged()
    long = b"x" * (HOLD + 1)
    display.feed(1, "a", 1, long)
    assert display.feed(2, "a", 1, long) == [(1, b"\n[2] " + long)]
    assert display.finish(1, 1) == []
    assert display.finish(2, 1) == [(1, b"\n")]


def test_the_launcher_does_not_speak_into_a_long_line():
    display = plain()
    display.feed(1, "a", 1, b"x" * (HOLD + 1))
    assert display.say(b"note\n") == [(1, b"\n"), (2, b"note\n")]


# --- Carriage returns ---


def test_without_a_terminal_carriage_returns_pass():
    assert plain().feed(0, "a", 1, b"1%\r2%\r\nnext\n") == [(1, b"1%\r2%\r\nnext\n")]


def test_on_a_terminal_the_progress_of_others_is_the_line_it_ends_with():
    display = on_terminal()
    assert display.feed(3, "a", 2, b"\r10%\r50%") == []
    assert display.feed(3, "a", 2, b"\r100%\n") == [(2, b"[3] 100%\n")]


@pytest.mark.parametrize("line", [b"100%\r\n", b"\r100%\n", b"10%\r100%\n", b"10%\r100%\r\n"])
@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_seen_of_a_line(line, rank):
    assert on_terminal().feed(rank, "a", 1, line) == [(1, b"[%d] 100%%\n" % rank)]


def test_the_progress_of_hours_takes_no_memory():
    display = on_terminal()
    for percent in range(100):
        display.feed(1, "a", 1, b"\r%99d%%" % percent)
    assert "100 bytes held" in repr(display)


# --- The status line ---


def test_the_progress_of_rank_0_is_at_the_bottom_and_redrawn():
    display = on_terminal()
    assert display.feed(0, "a", 2, b"\r10%") == [(2, b"[0] 10%")]
    assert display.feed(0, "a", 2, b"\r20%") == [(2, WIPE + b"[0] 20%")]
    assert display.feed(1, "a", 1, b"hello\n") == [(1, WIPE + b"[1] hello\n[0] 20%")]
    assert display.feed(0, "a", 2, b"\n") == [(2, WIPE + b"[0] 20%\n")]


def test_nothing_is_drawn_twice():
    display = on_terminal()
    display.feed(0, "a", 2, b"\r10%")
    assert display.feed(0, "a", 2, b"\r") == []
    assert display.feed(1, "a", 1, b"unfinished") == []


def test_returns_may_come_before_or_behind():
    display = on_terminal()
    assert display.feed(0, "a", 1, b"10%\r") == [(1, b"[0] 10%")]
    assert display.feed(0, "a", 1, b"20%\r") == [(1, WIPE + b"[0] 20%")]


def test_a_prompt_is_shown():
    assert on_terminal().feed(0, "a", 1, b"name? ") == [(1, b"[0] name? ")]


def test_rank_0_may_print_beside_its_progress():
    display = on_terminal()
    written = [
        *display.feed(0, "a", 2, b"\r10%"),
        *display.feed(0, "a", 1, b"found\n"),
    ]
    assert screen(written) == ["[0] found", "[0] 10%"]


@pytest.mark.parametrize("gone", [b"\r   \r", b"\r\x1b[K", b"\r\x1b[2K\r"])
def test_progress_that_was_taken_away_leaves_nothing(gone):
    display = on_terminal()
    display.feed(0, "a", 2, b"\r10%")
    assert display.feed(0, "a", 2, gone) == [(2, WIPE)]
    assert display.finish(0, 2) == []


def test_the_last_progress_stays_as_a_line():
    display = on_terminal()
    written = [*display.feed(0, "a", 2, b"\r99%"), *display.close()]
    assert screen(written) == ["[0] 99%", ""]


def test_no_status_in_the_middle_of_a_long_line():
    display = on_terminal()
    display.feed(0, "a", 2, b"\r10%")
    assert display.feed(1, "a", 1, b"x" * (HOLD + 1)) == [(1, WIPE + b"[1] " + b"x" * (HOLD + 1))]
    assert display.feed(0, "a", 2, b"\r20%") == []
    assert display.feed(1, "a", 1, b"\n") == [(1, b"\n[0] 20%")]


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("0123456789", 9, "[0] 0123"),
        ("████████", 9, "[0] ████"),
        ("漢字漢字", 9, "[0] 漢字"),
        ("漢字漢字", 8, "[0] 漢"),
        ("e\u0301e\u0301e\u0301", 7, "[0] e\u0301e\u0301"),
        ("a\tb", 80, "[0] a b"),
        ("\x1b[32mgreen\x1b[0m", 7, "[0] \x1b[32mgr\x1b[m"),
        ("up\x1b[A\x1b[2Jdown", 80, "[0] updown\x1b[m"),
        ("x", 1, ""),
        ("x", 0, ""),
    ],
)
def test_the_status_line_is_cut_so_that_it_cannot_wrap(text, width, shown):
    written = on_terminal(width=width).feed(0, "a", 1, b"\r" + text.encode())
    assert b"".join(data for _, data in written).decode() == shown


def test_half_a_character_in_the_status_line_is_no_harm():
    assert on_terminal().feed(0, "a", 1, b"\r\xe2\x96") == [(1, b"[0] \xe2\x96")]


def test_a_window_may_change_its_width():
    display = on_terminal(width=80)
    display.feed(0, "a", 1, b"\r0123456789")
    display.width = 9
    assert display.feed(1, "a", 1, b"x\n") == [(1, WIPE + b"[1] x\n[0] 0123")]


# --- Any chopping ---

SOURCES = st.tuples(st.integers(0, 3), st.sampled_from([1, 2]))
PIECES = st.lists(st.tuples(SOURCES, st.binary(max_size=12) | st.sampled_from([b"\n", b"a\nb", b"\r"])), max_size=40)


def fed(display: Display, pieces: list[tuple[tuple[int, int], bytes]]) -> list[tuple[int, bytes]]:
    writes = [write for (rank, stream), data in pieces for write in display.feed(rank, "h", stream, data)]
    return writes + display.close()


@given(PIECES)
def test_every_rank_gets_all_its_bytes_onto_the_screen_in_order(pieces):
    written = fed(tagged(), pieces)
    for rank in range(4):
        for stream in (1, 2):
            sent = b"".join(data for source, data in pieces if source == (rank, stream))
            shown = b"".join(data for to, data in written if to == stream)
            mine = [line[4:] for line in shown.split(b"\n") if line.startswith(b"[%d] " % rank)]
            ended = sent if sent.endswith(b"\n") or not sent else sent + b"\n"
            assert b"".join(line + b"\n" for line in mine) == ended


@given(PIECES)
def test_each_line_is_of_one_rank(pieces):
    shown = b"".join(data for _, data in fed(tagged(), pieces))
    assert not shown or shown.endswith(b"\n")
    for line in shown.split(b"\n")[:-1]:
        assert line.startswith((b"[0] ", b"[1] ", b"[2] ", b"[3] "))


@given(PIECES)
def test_long_lines_are_broken_by_newlines_and_by_nothing_else(pieces):
    with mock.patch.object(show, "HOLD", 3):
        written = fed(tagged(), pieces)
    for stream in (1, 2):
        shown = b"".join(data for to, data in written if to == stream).split(b"\n")
        assert shown.pop() == b""
        for rank in range(4):
            sent = b"".join(data for source, data in pieces if source == (rank, stream))
            mine = b"".join(line[4:] for line in shown if line.startswith(b"[%d] " % rank))
            assert mine == sent.replace(b"\n", b"")


@given(st.lists(st.binary(max_size=12)))
def test_a_long_line_of_a_rank_that_speaks_alone_is_not_broken(chunks):
    text = b"".join(chunks)
    with mock.patch.object(show, "HOLD", 3):
        written = fed(plain(), [((1, 1), chunk) for chunk in chunks])
    assert b"".join(data for _, data in written) == (text + b"\n" if text[-1:] not in b"\n" else text)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)), st.booleans())
def test_chopping_changes_nothing(text, cuts, terminal):
    at = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    chopped = [((1, 1), text[i:j]) for i, j in pairwise(at)]
    assert b"".join(data for _, data in fed(plain(terminal=terminal), chopped)) == b"".join(
        data for _, data in fed(plain(terminal=terminal), [((1, 1), text)])
    )


TEXT = st.lists(st.tuples(SOURCES, st.text("ab\r\n", max_size=6).map(str.encode)), max_size=40)


@given(TEXT)
def test_the_status_line_leaves_no_trace_between_lines(pieces):
    """With a status line on and off the screen, what scrolls by is what would without one."""
    seen = screen(fed(on_terminal(), pieces))
    others = [line for line in seen if not line.startswith("[0]")]
    assert others == screen(fed(on_terminal(), [piece for piece in pieces if piece[0][0] != 0]))
    assert all(line.count("[") == 1 for line in seen[:-1])
    assert seen[-1] == ""


# --- The report at the end ---

BOOM = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\nValueError: boom\n'
NEWS = (
    'Traceback (most recent call last):\n  File "x.py", line 2, in <module>\n'
    "rmpi.errors.RankFailed: rank 1 on a failed: ValueError: boom\n"
)


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([], ""), ([3], "3"), ([0, 1], "0-1"), ([0, 1, 2, 5], "0-2, 5"), ([5, 0, 2, 1, 5], "0-2, 5")],
)
def test_ranks_text(ranks, text):
    assert ranks_text(ranks) == text


def test_the_traceback_of_the_first_failure_is_last():
    others = [
        Failure(3, "b", "exit status 4"),
        Failure(2, "b", "RankFailed", NEWS),
        Failure(0, "a", "killed by SIGTERM", stopped=True),
    ]
    assert failure_block(Failure(1, "a", "ValueError: boom", BOOM), others, 4) == (
        "rmpi-run: ranks 0, 2: stopped by the failure of rank 1\n"
        "rmpi-run: rank 3 on b failed later: exit status 4\n"
        "rmpi-run: rank 1 of 4 on a raised this:\n" + BOOM
    )


def test_a_rank_that_was_killed_has_no_traceback():
    block = failure_block(Failure(1, "a", "killed by SIGKILL"), [Failure(0, "a", "RankFailed", NEWS)], 2)
    assert block == (
        "rmpi-run: rank 0: stopped by the failure of rank 1\nrmpi-run: rank 1 of 2 on a failed: killed by SIGKILL\n"
    )


def test_a_failure_that_all_share_is_told_once():
    others = [Failure(rank, f"h{rank}", "ValueError: boom", BOOM) for rank in (3, 2, 0)]
    block = failure_block(Failure(1, "h1", "ValueError: boom", BOOM), others, 4)
    assert block == "rmpi-run: ranks 0-3 of 4 raised this (rank 1 on h1 first):\n" + BOOM


def test_a_later_failure_that_several_share_is_told_once():
    other = BOOM.replace("boom", "other")
    others = [Failure(rank, "b", "ValueError: other", other) for rank in (2, 3)]
    assert failure_block(Failure(1, "a", "ValueError: boom", BOOM), others, 4) == (
        "rmpi-run: ranks 2-3 on b raised this later:\n" + other + "rmpi-run: rank 1 of 4 on a raised this:\n" + BOOM
    )


def test_causes_that_ranks_share_are_told_once():
    others = [Failure(rank, "a", "exit status 3") for rank in (0, 2)]
    assert failure_block(Failure(1, "a", "exit status 3"), others, 3) == (
        "rmpi-run: ranks 0-2 of 3 on a failed (rank 1 on a first): exit status 3\n"
    )


def test_many_different_tracebacks_do_not_fill_the_screen():
    others = [Failure(rank, "a", f"ValueError: {rank}", BOOM.replace("boom", str(rank))) for rank in range(1, 9)]
    block = failure_block(Failure(0, "a", "ValueError: boom", BOOM), others, 9)
    assert block.count("Traceback") == 4
    assert all(f"ValueError: {rank}" in block for rank in range(1, 9))
    assert block.endswith(BOOM)


@pytest.mark.parametrize(
    "traceback",
    [
        BOOM + "\nDuring handling of the above exception, another exception occurred:\n\n" + NEWS,
        NEWS.replace("rmpi.errors.", ""),
        NEWS.replace("rank 1 on a", "rank 2 on b"),
    ],
)
def test_who_only_heard_of_a_failure_is_not_told_as_one(traceback):
    block = failure_block(Failure(1, "a", "x", BOOM), [Failure(0, "a", "RankFailed", traceback)], 2)
    assert block.startswith("rmpi-run: rank 0: stopped by the failure of rank 1\n")
    assert block.count("Traceback") == 1


def test_who_answered_the_news_with_a_failure_of_its_own_is_told():
    own = NEWS + "\nThe above exception was the direct cause of the following exception:\n\n" + BOOM
    block = failure_block(Failure(1, "a", "killed by SIGKILL"), [Failure(0, "a", "x", own)], 2)
    assert "stopped" not in block
    assert own in block


def test_the_root_is_not_told_twice():
    root = Failure(1, "a", "exit status 3")
    assert failure_block(root, [root], 2) == "rmpi-run: rank 1 of 2 on a failed: exit status 3\n"


STUCK = "rmpi.errors.Deadlock: every rank waits:\n  rank 0 waits for rank 1\n  rank 1 waits for rank 0\n"


def test_a_deadlock_is_told_once_without_where_each_rank_was():
    """The text says that, and is the same on all of them."""
    trace = "Traceback (most recent call last):\n  File 'x.py', line {}, in <module>\n"
    stuck = [Failure(rank, "a", "exit status 1", trace.format(rank) + STUCK) for rank in range(3)]
    assert failure_block(stuck[1], [stuck[0], stuck[2]], 3) == (
        "rmpi-run: ranks 0-2 of 3 on a raised this (rank 1 on a first):\n" + STUCK.removeprefix("rmpi.errors.")
    )


def test_an_error_on_the_way_out_of_a_deadlock_is_a_failure_of_its_own():
    trace = "Traceback (most recent call last):\n"
    during = "\nDuring handling of the above exception, another exception occurred:\n\n"
    clumsy = Failure(0, "a", "exit status 1", f"{trace}{STUCK}{during}{trace}KeyError: 7\n")
    assert failure_block(clumsy, [], 2).endswith("KeyError: 7\n")
