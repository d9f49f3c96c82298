"""What workers do: a map task, which writes a file, and a reduce task, which reads a part of many.

A map task calls the mapper with its inputs, collects the pairs by their keys, combines them when they are many and at
the end, and writes them, partition by partition. They are not sorted: that would be done again by the reducer, which
must have all values of a key before it can begin, and sorts each key once.

Every attempt at a task writes a file of its own, under a name that no other has, and tells where it is when it is
complete. So two attempts at one task do not disturb each other, and nothing of one that died is ever read.
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

from rmpi.errors import UsageError
from rmpi.mapreduce.chunks import Chunk, ChunkFile, Piece, Segment, cut
from rmpi.mapreduce.errors import Failed, shortened
from rmpi.mapreduce.fetching import SegmentLost, chunks_of
from rmpi.mapreduce.groups import Folder, Groups, Pairs, keys_per_chunk, pairs_of
from rmpi.mapreduce.hashing import Partition, chosen_partitions, partitions_of
from rmpi.mapreduce.ordering import SortKey
from rmpi.mapreduce.runs import Runs
from rmpi.mapreduce.storage import Storage
from rmpi.mapreduce.sweeping import rare_sweeps
from rmpi.places.parcels import open_value
from rmpi.places.reporter import shortened as shortened_text

CHUNK_BYTES = 4 << 20
"""Of memory that the pairs of a chunk take, at most. They are several times smaller in the file."""

_ROOM = 16
"""Chunks that shall fit into the budget of a task."""

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


@dataclass(frozen=True, slots=True)
class Order:
    """What is sent with every task.

    Attributes:
        job: A `Job`, packed.
        storage: Where files go.
        name: Of the directory of the job in there.
    """

    job: bytes
    storage: Storage
    name: str

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
    try:
        job = _opened(order.job)
        sink = _Partitioned(job, file)
        with rare_sweeps():
            for chunk in mapped(job, inputs, doing):
                sink.write(chunk)
        file.close()  # here, because that may fail too
        return Written(tuple(Segment(path, shelf, tuple(pieces)) for pieces in sink.pieces))
    except (Exception, SystemExit) as error:
        _discard(file, path)
        return doing.failed(error)


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


class _Partitioned:
    """Writes chunks by partitions.

    Attributes:
        pieces: Of the file, for each partition.
    """

    def __init__(self, job: Job, file: ChunkFile) -> None:
        self._job = job
        self._file = file
        self.pieces: list[list[Piece]] = [[] for _ in range(job.partitions)]

    def write(self, chunk: Chunk) -> None:
        if not chunk.keys:
            return
        step = keys_per_chunk(chunk, chunk_bytes(self._job.memory))
        for pieces, part in zip(self.pieces, self._parts(chunk), strict=True):
            pieces += map(self._file.append, cut(part, step))

    def _parts(self, chunk: Chunk) -> list[Chunk]:
        job = self._job
        if job.partition is not None:
            numbers = chosen_partitions(job.partition, chunk.keys, job.partitions)
        else:
            numbers = partitions_of(chunk.keys, job.partitions)
        if job.partitions == 1:
            return [chunk]
        parts = [Chunk([], [], chunk.grouped) for _ in range(job.partitions)]
        adders = [(part.keys.append, part.values.append) for part in parts]  # type: ignore[attr-defined]
        for number, key, value in zip(numbers, chunk.keys, chunk.values, strict=True):
            add_key, add_value = adders[number]
            add_key(key)
            add_value(value)
        return parts


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
        with rare_sweeps():
            pieces = _reduced_to(file, job, segments, str(Path(path).parent), doing)
        file.close()
        return Written((Segment(path, shelf, pieces),))
    except SegmentLost as lost:
        _discard(file, path)
        return Missing(lost.segment.path, lost.shelf)
    except (Exception, SystemExit) as error:
        _discard(file, path)
        return doing.failed(error)


def _reduced_to(
    file: ChunkFile, job: Job, segments: Sequence[Segment], directory: str, doing: Doing
) -> tuple[Piece, ...]:
    """Where in ``file`` the results are."""
    groups = Groups(job.combiner, job.memory)
    runs = Runs(directory, job.sort_key, job.memory)
    try:
        for segment in segments:
            for chunk in chunks_of(segment):
                merge_in(chunk, groups, runs)
        results = reduced(job, groups, runs, doing)
        return tuple(
            file.append(Chunk([key for key, _ in pairs], [value for _, value in pairs], False)) for pairs in results
        )
    finally:
        runs.close()


def merge_in(chunk: Chunk, groups: Groups, runs: Runs) -> None:
    """Take a chunk into ``groups``, which become a run if they are too many."""
    groups.add(chunk)
    if groups.full and not groups.shrink():
        runs.spill(groups)


def reduced(job: Job, groups: Groups, runs: Runs, doing: Doing) -> Iterator[list[tuple[Any, Any]]]:
    """What the reducer gives for all keys, in their order; some thousand pairs at a time."""
    reducer = job.reducer
    pairs: list[tuple[Any, Any]] = []
    for key, values in runs.merged(groups):
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
