"""Functions that both sides remember: the first go first, by number and by size."""

import pytest

from rmpi.taskfarm import remembering
from rmpi.taskfarm.remembering import Remembered


@pytest.fixture
def functions(monkeypatch):
    monkeypatch.setattr(remembering, "MOST", 3)
    monkeypatch.setattr(remembering, "LARGEST", 100)
    return Remembered()


def remembered(functions):
    return [key for key in (b"a", b"b", b"c", b"d", b"e") if key in functions]


def test_what_was_sent_is_there(functions):
    functions.add(b"a", "the first", 10)
    assert functions[b"a"] == "the first"
    assert b"b" not in functions


def test_the_oldest_is_forgotten_when_there_are_too_many(functions):
    for key in (b"a", b"b", b"c", b"d"):
        functions.add(key, None, 1)
    assert remembered(functions) == [b"b", b"c", b"d"]


def test_as_many_are_forgotten_as_make_room(functions):
    functions.add(b"a", None, 50)
    functions.add(b"b", None, 40)
    functions.add(b"c", None, 60)
    assert remembered(functions) == [b"b", b"c"]
    functions.add(b"d", None, 90)
    assert remembered(functions) == [b"d"]


def test_the_latest_is_remembered_however_large(functions):
    functions.add(b"a", None, 1)
    functions.add(b"b", None, 1000)
    assert remembered(functions) == [b"b"]
    functions.add(b"c", None, 1)
    assert remembered(functions) == [b"c"]
