"""Files of one machine, read from another: two nodes here, which do not look at each other's files."""

from __future__ import annotations

import os
import signal

import pytest
from functions import add_up, numbered, words

from rmpi import places, rpc
from rmpi.mapreduce import MapReduce
from rmpi.mapreduce.chunks import Chunk, ChunkFile, Segment
from rmpi.mapreduce.fetching import FileLost, chunks_of
from rmpi.mapreduce.shelf import Shelf

pytestmark = pytest.mark.usefixtures("nothing_is_left")

CHUNK = Chunk(["a", "b"], [1, 2], False)


@pytest.fixture
def elsewhere(monkeypatch):
    """Whatever is read here is on another machine."""
    monkeypatch.setattr("rmpi.mapreduce.fetching._is_here", lambda _path: False)


@pytest.fixture
def shelf(nothing_is_left):
    stub = Shelf.at(places.here(), str(nothing_is_left), "store", name="the shelf", restart=True)
    stub.begin_job("job")
    yield stub
    stub.clear()
    rpc.stop(stub)


def written(shelf, *chunks):
    path = f"{shelf.directory()}/job/map-1"
    file = ChunkFile(lambda: open(path, "xb"))  # noqa: SIM115, PTH123
    pieces = tuple(map(file.append, chunks))
    file.close()
    return Segment(path, "the shelf", pieces)


@pytest.mark.usefixtures("elsewhere")
def test_a_segment_comes_from_the_shelf_that_has_it(shelf):
    large = Chunk([*range(300_000)], [1.5] * 300_000, False)
    assert [*chunks_of(written(shelf, CHUNK, large, CHUNK))] == [CHUNK, large, CHUNK]


@pytest.mark.usefixtures("elsewhere")
def test_a_shelf_that_is_killed_has_everything_when_it_is_back(shelf):
    segment = written(shelf, CHUNK)
    with places.monitor(rpc.place_of(shelf)) as events:
        assert events.get(timeout=20).kind == "up"
        os.kill(rpc.place_of(shelf).pid, signal.SIGKILL)
        assert [events.get(timeout=20).kind for _ in range(2)] == ["down", "up"]
    assert [*chunks_of(segment)] == [CHUNK]


@pytest.mark.usefixtures("elsewhere")
def test_what_is_not_there_is_lost(shelf):
    segment = written(shelf, CHUNK)
    shelf.end_job("job")
    with pytest.raises(FileLost) as caught:
        [*chunks_of(segment)]
    assert (caught.value.path, caught.value.shelf) == (segment.path, "")


@pytest.mark.usefixtures("elsewhere")
def test_a_shelf_that_is_gone_has_lost_everything():
    segment = Segment("/nowhere", "no such shelf", ((0, 1),))
    with pytest.raises(FileLost) as caught:
        [*chunks_of(segment)]
    assert caught.value.shelf == "no such shelf"
    assert [*chunks_of(Segment("/nowhere", "no such shelf", ()))] == []


@pytest.mark.usefixtures("elsewhere")
def test_a_job_of_two_nodes():
    expected = MapReduce(0).map_reduce(range(20), numbered, add_up)
    with MapReduce(1, hosts="localhost:1") as mr:
        assert mr.map_reduce(range(20), numbered, add_up) == expected
        assert mr.map_reduce(["a b", "b"], words, add_up) == [("a", 1), ("b", 2)]
