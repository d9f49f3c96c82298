"""Pairs that outgrew the memory: sorted runs on disk, and what they are merged to.

Groups that are full are written as a *run*, in the order of their keys. In the end all runs are merged, by blocks: of
each run one chunk is in memory; up to the smallest of their last keys everything has been seen, so that much of all
chunks is put together by a dictionary, sorted, and given out. It is the merge of the textbooks (Knuth, TAOCP 3, 5.4.1)
with a sort in C in place of a heap in Python.

There is one chunk in memory for each run, so not more than `FAN_IN` are merged at once; of more, neighbours are merged
to longer runs first. Values of a key stay in the order in which they came: runs are merged in the order in which they
were written.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any, cast

from rmpi.mapreduce.chunks import Chunk, ChunkFile, Piece, cut
from rmpi.mapreduce.groups import Groups, keys_per_chunk
from rmpi.mapreduce.ordering import Kind, SortKey, native, place_of, sort_keys

FAN_IN = 32
"""Runs that are merged at once."""

Grouped = Iterator[tuple[Any, list[Any]]]
"""Keys in order, each once, and the values of each."""


@dataclass(frozen=True, slots=True)
class Run:
    """Sorted keys and their values, in a file.

    Attributes:
        pieces: Where its chunks are, in that order.
        kind: Of all its keys, if they are of one.
        load: How many values the largest chunk has.
    """

    pieces: Sequence[Piece]
    kind: Kind | None
    load: int


class Runs:
    """The runs of one task. They are in a file without a name, which nobody has to remove.

    Args:
        directory: Of that file; None: where temporary files are.
        sort_key: As of the job.
        budget: Bytes of memory that merging may take.
    """

    def __init__(self, directory: str | None, sort_key: SortKey | None, budget: int) -> None:
        self._directory = directory
        self._sort_key = sort_key
        self._chunk_bytes = budget // (2 * FAN_IN)
        self._file = self._new_file()
        self._runs: list[Run] = []

    def __len__(self) -> int:
        return len(self._runs)

    def _new_file(self) -> ChunkFile:
        return ChunkFile(lambda: cast("IO[bytes]", tempfile.TemporaryFile(dir=self._directory)))

    def spill(self, groups: Groups) -> None:
        """Write all groups as a run, and clear them.

        Raises:
            UsageError: Their keys have no order, or cannot be pickled.
            OSError: The disk is full.
        """
        keys = [*groups.table]
        kind = native(keys) if self._sort_key is None else None
        sort_keys(keys, self._sort_key)
        chunk = Chunk(keys, [*map(groups.table.__getitem__, keys)], True)
        step = keys_per_chunk(chunk, self._chunk_bytes)
        groups.clear()
        chunks = cut(chunk, step)
        self._runs.append(_written(chunks, self._file, kind))

    def merged(self, rest: Groups) -> Grouped:
        """All groups, those in ``rest`` last; it is emptied."""
        if not self._runs:
            keys = [*rest.table]
            sort_keys(keys, self._sort_key)
            return ((key, rest.table.pop(key)) for key in keys)
        if rest.table:
            self.spill(rest)
        while len(self._runs) > FAN_IN:
            self._merge_neighbours()
        return _merge(self._file, self._runs, self._order(self._runs))

    def _merge_neighbours(self) -> None:
        longer: list[Run] = []
        file = self._new_file()
        for start in range(0, len(self._runs), FAN_IN):
            some = self._runs[start : start + FAN_IN]
            order = self._order(some)
            chunks = _chunks_of(_merge(self._file, some, order), max(run.load for run in some))
            longer.append(_written(chunks, file, some[0].kind if order is None else None))
        self._file.close()
        self._file, self._runs = file, longer

    def _order(self, runs: Sequence[Run]) -> SortKey | None:
        """By what the keys of these runs are compared; None: by themselves."""
        if self._sort_key is not None:
            return self._sort_key
        kinds = {run.kind for run in runs}
        return None if len(kinds) == 1 and None not in kinds else place_of

    def close(self) -> None:
        self._file.close()


def _written(chunks: Iterable[Chunk], file: ChunkFile, kind: Kind | None) -> Run:
    pieces, load = [], 0
    for chunk in chunks:
        pieces.append(file.append(chunk))
        load = max(load, sum(map(len, chunk.values)))
    return Run(pieces, kind, load)


def _chunks_of(grouped: Grouped, load: int) -> Iterator[Chunk]:
    """Chunks of about ``load`` values."""
    keys: list[Any] = []
    lists: list[list[Any]] = []
    count = 0
    for key, values in grouped:
        keys.append(key)
        lists.append(values)
        count += len(values)
        if count >= load:
            yield Chunk(keys, lists, True)
            keys, lists, count = [], [], 0
    if keys:
        yield Chunk(keys, lists, True)


class _Cursor:
    """Where we are in a run."""

    def __init__(self, file: ChunkFile, run: Run, order: SortKey | None) -> None:
        self._file = file
        self._pieces = iter(run.pieces)
        self._order = order
        self._load()

    def _load(self) -> None:
        """The next chunk. Without one, `places` is empty."""
        self._position = 0
        piece = next(self._pieces, None)
        self._chunk = Chunk((), (), True) if piece is None else self._file.read(piece)
        keys = self._chunk.keys
        self.places: Sequence[Any] = keys if self._order is None else [*map(self._order, keys)]

    def take(self, bound: Any) -> Iterator[tuple[Any, list[Any]]]:
        """All up to ``bound``, that included."""
        while self.places:
            start, self._position = self._position, bisect_right(self.places, bound, self._position)
            keys, values, _ = self._chunk
            yield from zip(keys[start : self._position], values[start : self._position], strict=True)
            if self._position < len(keys):
                return
            self._load()


def _merge(file: ChunkFile, runs: Sequence[Run], order: SortKey | None) -> Grouped:
    cursors = [_Cursor(file, run, order) for run in runs]
    while cursors := [each for each in cursors if each.places]:
        bound = min(each.places[-1] for each in cursors)
        table: dict[Any, list[Any]] = {}
        for key, values in chain.from_iterable(each.take(bound) for each in cursors):
            known = table.setdefault(key, values)
            if known is not values:
                known += values
        for key in sorted(table, key=order):
            yield key, table.pop(key)
