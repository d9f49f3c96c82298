"""What is written is what is read, whatever the types."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rmpi.errors import UsageError
from rmpi.mapreduce.chunks import Chunk, ChunkFile, cut, pack, read_pieces, unpack

CHUNKS = {
    "simple": Chunk(["a", b"b", 1, 2.5, True], [1, 2.5, None, False, 10**30], False),
    "lists": Chunk(["a", "b"], [[1, 2], [3]], True),
    "tuples": Chunk([(1, "a"), None], [("file", 3), ("file", 4)], False),
    "NumPy scalars": Chunk([np.int64(1), np.str_("a")], [np.float32(0.5), np.bool_(True)], False),
    "subclasses": Chunk(["a"], [[Counter("abc")]], True),
    "lone surrogates": Chunk(["\ud800"], [1], False),
    "nothing": Chunk([], [], False),
}


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_chunk_is_the_same_when_it_was_read(kind):
    chunk = CHUNKS[kind]
    read = unpack(memoryview(pack(chunk)))
    assert (list(read.keys), list(read.values), read.grouped) == chunk
    assert [*map(type, read.keys)] == [*map(type, chunk.keys)]
    assert [*map(type, read.values)] == [*map(type, chunk.values)]


def test_arrays_are_values():
    (array,) = unpack(pack(Chunk(["a"], [np.arange(5)], False))).values
    assert (array == np.arange(5)).all()


def test_what_cannot_be_pickled_says_so():
    with pytest.raises(UsageError, match="a key or a value cannot be pickled"):
        pack(Chunk(["a"], [{"a": iter([1]).__class__.__next__, "b": (each for each in ())}], False))


def test_pieces_of_a_file_are_read_alone(tmp_path):
    path = tmp_path / "chunks"
    file = ChunkFile(lambda: path.open("xb"))
    assert not path.exists()
    pieces = [file.append(chunk) for chunk in CHUNKS.values()]
    file.close()
    assert file.nbytes == path.stat().st_size == sum(length for _, length in pieces)
    assert [unpack(data) for data in read_pieces(str(path), pieces[1:3])] == [CHUNKS["lists"], CHUNKS["tuples"]]
    os.truncate(path, pieces[2][0] + 1)
    with pytest.raises(EOFError, match="in the middle of a chunk"):
        [*read_pieces(str(path), pieces)]
    with pytest.raises(FileNotFoundError):
        [*read_pieces(str(Path(tmp_path) / "other"), pieces)]


def test_a_chunk_is_cut():
    assert [*cut(Chunk("abc", [1, 2, 3], False), 2)] == [Chunk("ab", [1, 2], False), Chunk("c", [3], False)]
