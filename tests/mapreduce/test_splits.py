"""Pieces of text: together they are the file, line by line."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpi.errors import UsageError
from rmpi.mapreduce import TextSplit, text_splits
from rmpi.mapreduce.splits import LARGEST, SMALLEST

TEXTS = {
    "empty": "",
    "one newline": "\n",
    "only newlines": "\n\n\n\n",
    "no newline": "abc",
    "no final newline": "one\ntwo\nthree",
    "final newline": "one\ntwo\nthree\n",
    "empty lines": "\n\none\n\n\ntwo\n\n",
    "Windows": "one\r\ntwo\r\n\r\nthree",
    "other line ends": "a\rb\x0bc\u2028d\x85e\nf",
    "several bytes for a character": "äöü\n€uro\n😀\n漢字 in the middle\n",
    "a long line": "a\n" + "b" * 50 + "\nc\n",
}


def lines_of(text):
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
@pytest.mark.parametrize("kind", TEXTS)
def test_no_line_is_lost_or_read_twice(tmp_path, kind, size):
    path = tmp_path / "text"
    path.write_bytes(TEXTS[kind].encode())
    splits = text_splits(path, size)
    assert [line for split in splits for line in split] == lines_of(TEXTS[kind])
    assert "".join(split.read() for split in splits) == TEXTS[kind]
    assert b"".join(split.read_bytes() for split in splits) == TEXTS[kind].encode()


@given(st.text("ab\n\r😀", max_size=60), st.integers(1, 20))
def test_any_text_cut_anywhere(tmp_path_factory, text, size):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(text.encode())
    splits = text_splits([path], size)
    assert [line for split in splits for line in split] == lines_of(text)
    assert "".join(split.read() for split in splits) == text


def test_blocks_end_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("rmpi.mapreduce.splits._BLOCK", 7)
    path = tmp_path / "text"
    path.write_text(text := "".join(f"line {number} ä\n" for number in range(50)))
    assert [line for split in text_splits(path, 100) for line in split] == lines_of(text)


def test_a_piece_is_small_when_it_travels_and_finds_its_file_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "text").write_text("a\nb\n")
    monkeypatch.chdir(tmp_path)
    (split,) = text_splits("text")
    monkeypatch.chdir("/")
    assert len(pickle.dumps(split)) < 300
    assert [*pickle.loads(pickle.dumps(split))] == ["a", "b"]
    assert split == TextSplit(str(tmp_path / "text"), 0, 4)


def test_sizes_suit_what_there_is(tmp_path):
    for length, size in ((100, SMALLEST), (320 << 20, 5 << 20), (64 << 30, LARGEST)):
        path = tmp_path / "sparse"
        with path.open("wb") as file:
            file.truncate(length)
        splits = text_splits([path])
        assert max(split.stop - split.start for split in splits) == min(size, length)
        assert (splits[0].start, splits[-1].stop) == (0, length)


def test_other_encodings(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("ä\nß\n".encode("latin-1"))
    assert [*text_splits(path, encoding="latin-1")[0]] == ["ä", "ß"]
    assert text_splits(path, errors="replace")[0].read() == "\ufffd\n\ufffd\n"
    with pytest.raises(UnicodeDecodeError):
        text_splits(path)[0].read()


def test_what_cannot_be_cut_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        text_splits(tmp_path / "nothing")
    (tmp_path / "text").write_text("a")
    for size in (0, -1, 1.5, "1"):
        with pytest.raises(UsageError, match="positive number of bytes"):
            text_splits(tmp_path / "text", size)
    with pytest.raises(UsageError, match="recode it to UTF-8"):
        text_splits(tmp_path / "text", encoding="utf-16")
    with pytest.raises(UsageError, match="there is no encoding"):
        text_splits(tmp_path / "text", encoding="utf-88")
