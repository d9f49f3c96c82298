"""Pairs on disk: chunks of them, in files that are written once, from the front to the end, and read in pieces.

A *chunk* is some thousand keys and what belongs to them, as one string of bytes: a value for each key, or a list of
values. In place of the keys there may be numbers, the codes of a `vocabulary`. A *segment* is what one reduce task is
to read of one file: the places of its chunks. The index of a file is not in the file; it travels as the result of the
task that wrote it.

Of the two ways in which Python writes objects, `marshal` takes two thirds of the time that `pickle` does, and knows
only Python's simplest types. (Where it meets NumPy's scalars it writes their bytes, without a word; so the types are
looked at first.) It repeats strings that occur often, so values that are strings are left to `pickle`. Codes, and
values that are all whole numbers or all floats, are written as arrays, of the smallest type that holds them.
"""

from __future__ import annotations

import marshal
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rmpi.places.parcels import pack_value

Piece = tuple[int, int]
"""Of a file: where it begins, and its bytes."""

Column = Sequence[Any] | npt.NDArray[Any]
"""Of values: one for each key."""

_SIMPLE_KEYS = {str, int, float, bool, bytes}
_SIMPLE_VALUES = {int, float, bool, type(None)}

_MARSHAL, _PICKLE, _CODED, _ARRAYS = b"m", b"p", b"c", b"a"
MARSHAL_VERSION = 2
"""Without references, which take time to find."""


class Chunk(NamedTuple):
    """Keys, and for each a value, or a list of values if ``grouped``."""

    keys: Sequence[Any]
    values: Sequence[Any]
    grouped: bool


class Coded(NamedTuple):
    """A chunk with codes in place of the keys, or with numbers of another kind that somebody has keys for."""

    codes: npt.NDArray[np.integer[Any]]
    values: Column
    grouped: bool


def pack(chunk: Chunk) -> bytes:
    """A chunk as bytes.

    Raises:
        UsageError: A key or value cannot be pickled.
    """
    keys, values, grouped = chunk
    types = set(map(type, chain.from_iterable(values) if grouped else values))
    if types <= _SIMPLE_VALUES and set(map(type, keys)) <= _SIMPLE_KEYS:
        return _MARSHAL + marshal.dumps((list(keys), list(values), grouped), MARSHAL_VERSION)
    try:
        return _PICKLE + pickle.dumps((keys, values, grouped), pickle.HIGHEST_PROTOCOL)
    except Exception:  # perhaps it holds what a script has defined, which travels by value
        return _PICKLE + pack_value((keys, values, grouped), "a key or a value")


def pack_coded(chunk: Coded) -> bytes:
    """Such a chunk as bytes.

    Raises:
        UsageError: A value cannot be pickled.
    """
    codes, values, grouped = chunk
    if isinstance(values, np.ndarray):
        columns = (codes.tobytes(), values.tobytes(), values.dtype.char)
        return _ARRAYS + marshal.dumps(columns, MARSHAL_VERSION)
    return _CODED + pack(Chunk(codes.tolist(), values, grouped))


def column_of(values: Sequence[Any]) -> Column:
    """The values as an array, if they come out of it as they are: all of type ``int``, of 64 bits, or ``float``."""
    types = set(map(type, values))
    if types == {float}:
        return np.fromiter(values, np.float64, len(values))
    if types != {int}:
        return values
    try:
        numbers = np.fromiter(values, np.int64, len(values))
    except OverflowError:
        return values
    least, most = int(numbers.min()), int(numbers.max())
    return numbers.astype(np.min_scalar_type(most if least >= 0 else min(least, -1 - most)))


def unpack(data: bytes | memoryview) -> Chunk | Coded:
    """The chunk that was packed."""
    kind, body = data[:1], memoryview(data)[1:]
    if kind == _ARRAYS:
        codes, values, char = marshal.loads(body)
        return Coded(np.frombuffer(codes, np.uint32), np.frombuffer(values, char), False)
    if kind == _CODED:
        keys, values, grouped = unpack(body)
        return Coded(np.asarray(keys, np.uint32), values, grouped)
    return Chunk(*(marshal.loads(body) if kind == _MARSHAL else pickle.loads(body)))


class Head(NamedTuple):
    """What one partition needs of the file of a vocabulary: the last record of those that tell of each other."""

    path: str
    record: Piece


@dataclass(frozen=True, slots=True)
class Segment:
    """What one task reads of a file that another one has written.

    Attributes:
        path: Of the file, on the machine that has it.
        shelf: The name of the server there from which others can get it; "" if there is none, because all are there.
        pieces: Where its chunks are.
        head: Of the vocabulary whose codes are in them, on the same machine; None if there are no codes.
    """

    path: str
    shelf: str
    pieces: tuple[Piece, ...]
    head: Head | None = None

    @property
    def nbytes(self) -> int:
        return sum(length for _, length in self.pieces)


class ChunkFile:
    """Chunks that are appended to a file.

    Args:
        make: Opens the file, which is new, for writing; called when there is something to write.
    """

    def __init__(self, make: Callable[[], IO[bytes]]) -> None:
        self._make = make
        self._file: IO[bytes] | None = None
        self.nbytes = 0

    def append(self, chunk: Chunk) -> Piece:
        """Write a chunk; where it is.

        Raises:
            UsageError: As `pack`; OSError: as `write`.
        """
        return self.write(pack(chunk))

    def write(self, data: bytes) -> Piece:
        """Write what is packed already; where it is.

        Raises:
            OSError: The disk is full, or the directory is gone.
        """
        if self._file is None:
            self._file = self._make()
        self._file.write(data)
        piece = (self.nbytes, len(data))
        self.nbytes += len(data)
        return piece

    def read(self, piece: Piece) -> Chunk:
        """A chunk again, if the file was opened for that too."""
        assert self._file is not None
        self._file.flush()
        chunk = unpack(_read_fully(self._file.fileno(), *piece))
        assert isinstance(chunk, Chunk)
        return chunk

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_pieces(path: str, pieces: Iterable[Piece]) -> Iterator[bytes]:
    """Each piece of a file, in turn.

    Raises:
        OSError: It is not there; EOFError: it has been cut short.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, length in pieces:
            yield _read_fully(file, start, length)
    finally:
        os.close(file)


def _read_fully(file: int, start: int, length: int) -> bytes:
    data = os.pread(file, length, start)
    while len(data) < length:  # Linux reads 2 GiB at most
        more = os.pread(file, length - len(data), start + len(data))
        if not more:
            raise EOFError(f"a file of pairs ends at byte {start + len(data)}, in the middle of a chunk")
        data += more
    return data


def cut(chunk: Chunk, step: int) -> Iterator[Chunk]:
    """The same as chunks of ``step`` keys at most."""
    keys, values, grouped = chunk
    for start in range(0, len(keys), step):
        yield Chunk(keys[start : start + step], values[start : start + step], grouped)
