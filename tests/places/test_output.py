"""Output of ranks is cut into whole lines, and nothing else happens to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpi.places.output import LINE_LIMIT, LineSplitter

LIMIT = 8
pieces = st.lists(
    st.one_of(st.binary(max_size=20), st.text("ab\n\r", max_size=20).map(str.encode)), max_size=20
)


def test_an_unfinished_line_waits_for_its_newline():
    splitter = LineSplitter()
    assert splitter.feed(b"hel") == b""
    assert splitter.feed(b"lo\nwor") == b"hello\n"
    assert splitter.feed(b"ld\n") == b"world\n"
    assert splitter.finish() == b""


def test_many_lines_leave_in_one_piece():
    assert LineSplitter().feed(b"1\n2\n\n3\n4") == b"1\n2\n\n3\n"


def test_the_end_of_the_stream_lets_go_what_is_left():
    splitter = LineSplitter()
    splitter.feed(b"last words")
    assert splitter.finish() == b"last words"
    assert splitter.finish() == b""


def test_a_prompt_can_be_let_go_and_the_stream_goes_on():
    splitter = LineSplitter()
    splitter.feed(b"name? ")
    assert splitter.finish() == b"name? "
    assert splitter.feed(b"thanks\n") == b"thanks\n"


def test_progress_that_rests_at_a_carriage_return_is_shown_at_once():
    splitter = LineSplitter()
    assert splitter.feed(b"start\n10 %\r") == b"start\n10 %\r"
    assert splitter.feed(b"20 %") == b""
    assert splitter.feed(b"\r") == b"20 %\r"


def test_a_carriage_return_inside_a_line_does_not_cut_it():
    splitter = LineSplitter()
    assert splitter.feed(b"10 %\r20 %") == b""
    assert splitter.feed(b"\r\n") == b"10 %\r20 %\r\n"


@pytest.mark.parametrize(("length", "held"), [(LINE_LIMIT, True), (LINE_LIMIT + 1, False)])
def test_a_line_beyond_the_limit_goes_in_parts(length, held):
    splitter = LineSplitter()
    line = b"x" * length
    assert splitter.feed(line) == (b"" if held else line)
    assert splitter.feed(b"yz\n") == (line + b"yz\n" if held else b"yz\n")


def test_a_limit_of_nothing_lets_everything_through():
    splitter = LineSplitter(limit=0)
    assert splitter.feed(b"a\nb") == b"a\nb"


def test_bytes_that_are_no_text_pass_unharmed():
    every_byte = bytes(range(256))
    splitter = LineSplitter()
    assert splitter.feed(every_byte) + splitter.finish() == every_byte


@given(pieces)
def test_what_comes_out_is_what_went_in(pieces):
    splitter = LineSplitter(LIMIT)
    released = [splitter.feed(piece) for piece in pieces]
    assert b"".join([*released, splitter.finish()]) == b"".join(pieces)


@given(pieces)
def test_every_cut_is_at_the_end_of_a_line_unless_the_limit_was_hit(pieces):
    splitter = LineSplitter(LIMIT)
    unfinished = b""
    for piece in pieces:
        unfinished += piece
        released = splitter.feed(piece)
        over_limit = len(unfinished) - unfinished.rfind(b"\n") - 1 > LIMIT
        assert released.endswith((b"\n", b"\r")) or not released or over_limit
        unfinished = unfinished[len(released) :]
        assert len(unfinished) <= LIMIT
        assert b"\n" not in unfinished
    assert splitter.finish() == unfinished
