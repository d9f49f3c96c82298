"""What is written is what is read, whatever the types."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rmpi.errors import UsageError
from rmpi.mapreduce.chunks import Chunk, ChunkFile, Coded, column_of, cut, pack, pack_coded, read_pieces, unpack

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


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "uint8"),
        ([-1, 300], "int16"),
        ([0, 2**40], "uint64"),
        ([-1, 128], "int16"),
        ([-128, 127], "int8"),
        ([-1, 2**63 - 1], "int64"),
        ([0.5, float("inf")], "float64"),
        ([1, 2.5], None),
        ([True], None),
        ([2**70], None),
        (["a"], None),
        ([[1], [2, 3]], None),
    ],
    ids=repr,
)
def test_values_are_arrays_if_they_come_out_as_they_are(values, kind):
    column = column_of(values)
    assert (column.dtype.name if isinstance(column, np.ndarray) else None) == kind
    codes = np.arange(len(values), dtype=np.uint32)
    read = unpack(pack_coded(Coded(codes, column, False)))
    assert isinstance(read, Coded)
    assert read.codes.tolist() == codes.tolist()
    found = read.values.tolist() if isinstance(read.values, np.ndarray) else read.values
    assert (found, [*map(type, found)]) == (values, [*map(type, values)])
