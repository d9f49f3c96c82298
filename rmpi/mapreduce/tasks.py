"""What workers do: a map task, which writes a file, and a reduce task, which reads a part of many.

A map task calls the mapper with its inputs, collects the pairs by their keys, combines them when they are many and at
the end, and writes them, partition by partition, with a number for each key that was in an earlier task of this worker
(see `vocabulary`). They are not sorted: that would be done again by the reducer, which must have all values of a key
before it can begin, and sorts each key once.

Every attempt at a task writes a file of its own, under a name that no other has, and tells where it is when it is
complete. So two attempts at one task do not disturb each other, and nothing of one that died is ever read. That the
file of a vocabulary is shared by the tasks of a worker does not change that: no pairs are in there.
"""

from __future__ import annotations

import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rmpi.errors import UsageError
from rmpi.mapreduce.chunks import Chunk, ChunkFile, Coded, Column, Piece, Segment, column_of, pack, pack_coded
from rmpi.mapreduce.columns import Columns, decoded
from rmpi.mapreduce.errors import Failed, shortened
from rmpi.mapreduce.fetching import FileLost, chunks_of
from rmpi.mapreduce.groups import Folder, Groups, Pairs, keys_per_chunk, pairs_of
from rmpi.mapreduce.hashing import Partition, chosen_partitions, partitions_of
from rmpi.mapreduce.ordering import SortKey
from rmpi.mapreduce.runs import Grouped, Runs
from rmpi.mapreduce.storage import Storage
from rmpi.mapreduce.sweeping import rare_sweeps
from rmpi.mapreduce.vocabulary import Glossary, Vocabularies, Vocabulary
from rmpi.places.parcels import open_value
from rmpi.places.reporter import shortened as shortened_text

CHUNK_BYTES = 4 << 20
"""Of memory that the pairs of a chunk take, at most. They are several times smaller in the file."""

_ROOM = 16
"""Chunks that shall fit into the budget of a task."""

_VOCABULARY_PART = 4
"""Of the budget of a task, one in so many bytes is for vocabularies, beside the pairs."""

_PAIRS = 10_000
"""That a reducer has given before they are written."""

_OURS = str(Path(__file__).parent) + "/"


@dataclass(frozen=True, slots=True)
class Job:
    """What all tasks of a job have in common. The names are those of the arguments of `map_reduce`."""

    mapper: Callable[[Any], Pairs]
    reducer: Folder
    combiner: Folder | None
    partition: Partition | None
    sort_key: SortKey | None
    partitions: int
    memory: int

    def partitions_of(self, keys: Sequence[Any]) -> Sequence[int]:
        """The partition of each key.

        Raises:
            UsageError: There is none.
        """
        if self.partition is not None:
            return chosen_partitions(self.partition, keys, self.partitions)
        return partitions_of(keys, self.partitions)


@dataclass(frozen=True, slots=True)
class Order:
    """What is sent with every task.

    Attributes:
        job: A `Job`, packed.
        storage: Where files go.
        name: Of the directory of the job in there.
        workers: About how many there are.
    """

    job: bytes
    storage: Storage
    name: str
    workers: int

    def new_file(self, kind: str) -> tuple[Callable[[], IO[bytes]], str, str]:
        """What opens a file that is new; its path, and the shelf that has it."""
        shelf, directory = self.storage.here()
        path = Path(directory) / self.name / f"{kind}-{uuid.uuid4().hex}"
        return (lambda: path.open("xb")), str(path), shelf


@dataclass(frozen=True, slots=True)
class Written:
    """What a task has done: a segment for each partition. A reduce task writes one."""

    segments: tuple[Segment, ...]

    @property
    def nbytes(self) -> int:
        return sum(segment.nbytes for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Missing:
    """A reduce task could not read what a map task has written.

    Attributes:
        path: Of the file.
        shelf: Its shelf, if all files there are lost; else "".
    """

    path: str
    shelf: str


@lru_cache(maxsize=4)
def _opened(job: bytes) -> Job:
    found: Job = open_value(job)
    return found


def run_map(order: Order, inputs: Sequence[Any]) -> Written | Failed:
    """Map ``inputs``, and write what that gives."""
    doing = Doing(lambda item: f"input {shortened(item)}")
    make, path, shelf = order.new_file("map")
    file = ChunkFile(make)
    vocabulary = None
    try:
        job = _opened(order.job)
        vocabulary = _VOCABULARIES.borrow(order.name, lambda: _new_vocabulary(order, job))
        sink = _Partitioned(job, file, vocabulary)
        with rare_sweeps():
            for chunk in mapped(job, inputs, doing):
                sink.write(chunk)
        file.close()  # here, because that may fail too
        _VOCABULARIES.give_back(order.name, vocabulary)
        return Written(tuple(sink.segment(path, shelf, number) for number in range(job.partitions)))
    except (Exception, SystemExit) as error:
        _discard(file, path)
        if vocabulary is not None:
            vocabulary.discard()
        return doing.failed(error)


_VOCABULARIES = Vocabularies()


def _new_vocabulary(order: Order, job: Job) -> Vocabulary:
    """One of a size that a reduce task has room for those of all workers."""
    _, path, _ = order.new_file("keys")
    budget = job.memory // _VOCABULARY_PART * min(1, job.partitions / order.workers)
    return Vocabulary(path, job.partitions_of, job.partitions, int(budget))


def _discard(file: ChunkFile, path: str) -> None:
    """Give back the room of an attempt that failed: perhaps there was too little."""
    with suppress(OSError):
        file.close()
    Path(path).unlink(missing_ok=True)


def mapped(job: Job, inputs: Sequence[Any], doing: Doing) -> Iterator[Chunk]:
    """What the mapper gives for ``inputs``, combined, as one chunk, or several if it would not fit into memory."""
    groups = Groups(job.combiner, job.memory)
    for item in inputs:
        doing.what = item
        returned = job.mapper(item)
        if len(inputs) == 1 and isinstance(returned, Mapping):
            yield Chunk([*returned.keys()], [*returned.values()], False)  # its keys are different: nothing to collect
            return
        yield from collected(groups, returned)
    groups.combine()
    if groups.table:
        yield groups.chunk()


def collected(groups: Groups, returned: Pairs) -> Iterator[Chunk]:
    """Take all pairs into ``groups``; what does not fit is given out."""
    pairs = iter(pairs_of(returned, "the mapper"))
    while groups.fill(pairs, "the mapper"):
        if not groups.shrink():
            yield groups.chunk()
            groups.clear()


_Numbers = npt.NDArray[np.uint32]
_Places = npt.NDArray[np.intp]
_Packed = Callable[[_Places], bytes]


class _Partitioned:
    """Writes chunks by partitions.

    Args:
        vocabulary: For keys that come again; None: they do not.
    """

    def __init__(self, job: Job, file: ChunkFile, vocabulary: Vocabulary | None) -> None:
        self._job = job
        self._file = file
        self._vocabulary = vocabulary
        self._has_codes = False
        self._pieces: list[list[Piece]] = [[] for _ in range(job.partitions)]

    def segment(self, path: str, shelf: str, partition: int) -> Segment:
        """What has been written for a partition."""
        head = self._vocabulary.head(partition) if self._vocabulary is not None and self._has_codes else None
        return Segment(path, shelf, tuple(self._pieces[partition]), head)

    def write(self, chunk: Chunk) -> None:
        if not chunk.keys:
            return
        numbers, packed = self._as_codes(chunk) or self._as_keys(chunk)
        step = keys_per_chunk(chunk, chunk_bytes(self._job.memory))
        order = np.argsort(numbers, kind="stable")
        ends = np.cumsum(np.bincount(numbers, minlength=self._job.partitions))
        for pieces, some in zip(self._pieces, np.split(order, ends[:-1]), strict=True):
            for start in range(0, len(some), step):
                pieces.append(self._file.write(packed(some[start : start + step])))

    def _as_codes(self, chunk: Chunk) -> tuple[_Numbers, _Packed] | None:
        """The partitions of the keys, and what packs those at some places; None if they have no codes."""
        encoded = None if self._vocabulary is None else self._vocabulary.encode(chunk.keys)
        if encoded is None:
            return None
        self._has_codes = True
        numbers, codes = encoded
        values = column_of(chunk.values)
        return numbers, lambda places: pack_coded(Coded(codes[places], _picked(values, places), chunk.grouped))

    def _as_keys(self, chunk: Chunk) -> tuple[_Numbers, _Packed]:
        keys, values, grouped = chunk
        numbers = np.asarray(self._job.partitions_of(keys), np.uint32)
        return numbers, lambda places: pack(Chunk(_listed(keys, places), _listed(values, places), grouped))


def _picked(column: Column, places: _Places) -> Column:
    """What is there at these places."""
    return column[places] if isinstance(column, np.ndarray) else _listed(column, places)


def _listed(items: Sequence[Any], places: _Places) -> list[Any]:
    return [*map(items.__getitem__, places.tolist())]


def chunk_bytes(memory: int) -> int:
    """Of memory, that a chunk may take in a task with such a budget."""
    return min(CHUNK_BYTES, memory // _ROOM)


def run_reduce(order: Order, partition: int, segments: Sequence[Segment]) -> Written | Failed | Missing:
    """Collect a partition, reduce it, and write what that gives.

    Args:
        segments: Of this partition, one of each map task, in the order of the tasks.
    """
    doing = Doing(lambda key: f"partition {partition}, key {shortened(key)}")
    make, path, shelf = order.new_file("reduce")
    file = ChunkFile(make)
    try:
        job = _opened(order.job)
        _VOCABULARIES.forget(order.name)
        with rare_sweeps():
            pieces = _reduced_to(file, job, segments, str(Path(path).parent), doing)
        file.close()
        return Written((Segment(path, shelf, pieces),))
    except FileLost as lost:
        _discard(file, path)
        return Missing(lost.path, lost.shelf)
    except (Exception, SystemExit) as error:
        _discard(file, path)
        return doing.failed(error)


def _reduced_to(
    file: ChunkFile, job: Job, segments: Sequence[Segment], directory: str, doing: Doing
) -> tuple[Piece, ...]:
    """Where in ``file`` the results are."""
    gathered = _Gathered(job, directory)
    try:
        for segment in segments:
            gathered.take(segment)
        results = reduced(job, gathered.merged(), doing)
        return tuple(
            file.append(Chunk([key for key, _ in pairs], [value for _, value in pairs], False)) for pairs in results
        )
    finally:
        gathered.runs.close()


class _Gathered:
    """What a reduce task has got: arrays, as long as it is of that kind and there is room; else groups and runs."""

    def __init__(self, job: Job, directory: str) -> None:
        self._job = job
        self._glossary = Glossary(job.memory // _VOCABULARY_PART)
        self._columns = Columns(self._glossary, job.memory)
        self._groups = Groups(job.combiner, job.memory)
        self.runs = Runs(directory, job.sort_key, job.memory)

    def take(self, segment: Segment) -> None:
        """All chunks of a segment."""
        for chunk in chunks_of(segment, self._glossary):
            if isinstance(chunk, Coded) and self._columns.add(chunk):
                if self._columns.is_full:
                    self._move()
                continue
            self._move()
            plain = decoded(chunk, self._glossary) if isinstance(chunk, Coded) else chunk
            merge_in(plain, self._groups, self.runs)
        if self._glossary.is_full:
            self._move()
            self._glossary.clear()

    def _move(self) -> None:
        """From the arrays to the groups, which come first."""
        for chunk in self._columns.chunks():
            merge_in(chunk, self._groups, self.runs)
        self._columns.clear()

    def merged(self) -> Grouped:
        """All keys in order, and the values of each."""
        if self._columns and not self._groups.table and not self.runs:
            return self._columns.grouped(self._job.sort_key)
        self._move()
        return self.runs.merged(self._groups)


def merge_in(chunk: Chunk, groups: Groups, runs: Runs) -> None:
    """Take a chunk into ``groups``, which become a run if they are too many."""
    groups.add(chunk)
    if groups.full and not groups.shrink():
        runs.spill(groups)


def reduced(job: Job, grouped: Grouped, doing: Doing) -> Iterator[list[tuple[Any, Any]]]:
    """What the reducer gives for all keys, in their order; some thousand pairs at a time."""
    reducer = job.reducer
    pairs: list[tuple[Any, Any]] = []
    for key, values in grouped:
        doing.what = key
        pairs.extend(pairs_of(reducer(key, values), "the reducer"))
        if len(pairs) >= _PAIRS:
            yield _checked(pairs)
            pairs = []
    if pairs:
        yield _checked(pairs)


def _checked(pairs: list[Any]) -> list[tuple[Any, Any]]:
    """Raise `UsageError` for what is no pair: a reducer that returns one, and not a list of one, gives its items."""
    if set(map(type, pairs)) == {tuple} and set(map(len, pairs)) == {2}:
        return pairs
    no_pair = next((each for each in pairs if not isinstance(each, (tuple, list)) or len(each) != 2), None)
    if no_pair is not None:
        raise UsageError(f"the reducer must give pairs (key, value), not {shortened(no_pair)}: one pair is [pair]")
    return [(key, value) for key, value in pairs]


_NOTHING = object()


class Doing:
    """What a task is at, so that it can be said if it fails.

    Args:
        say: Puts it into words.
    """

    def __init__(self, say: Callable[[Any], str]) -> None:
        self._say = say
        self.what: Any = _NOTHING

    def failed(self, error: BaseException) -> Failed:
        """What there is to be told of ``error``."""
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        lines = traceback.format_exception(kind, error, _theirs(error.__traceback__))
        text = shortened_text("".join(lines))
        where = "" if self.what is _NOTHING else self._say(self.what)
        return Failed(where, name, str(error), text, isinstance(error, UsageError))


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from behind our own first frames."""
    first = trace
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return trace or first
