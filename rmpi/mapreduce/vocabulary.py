"""Keys that come again in task after task: written once for each worker, and as numbers from then on.

Most keys of a map task were there in an earlier one of the same worker: words of a text, say. To hash each again, write
it, read it, and look it up among the others costs more than anything else between a mapper and a reducer. So a worker
keeps a *vocabulary* of the job: each key has a *code*, counted for its partition from 0 on. Keys that are new are
hashed, and written to the vocabulary's file, and what a task writes are codes (dictionary encoding: Abadi, Madden and
Ferreira, "Integrating compression and execution in column-oriented database systems", SIGMOD 2006). To give out codes
is one look into a dictionary for each key; the rest is done by NumPy, for all keys at once.

The file only grows. What it gets at one time for one partition, a *record*, tells where the record before it is. So a
task says where the last record is that it needs, and who reads it goes back from there to what it knows already: those
who come later, and attempts that were not taken, make no difference. A task that fails does not give its
vocabulary back, because nobody knows what of it was written, and the next begins another one.

Vocabularies are bounded. One that is full is replaced, or, if its keys had come less than twice on average, given up:
then keys are all different, and codes are of no use.
"""

from __future__ import annotations

import marshal
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmpi.mapreduce.chunks import MARSHAL_VERSION, Head, Piece
from rmpi.mapreduce.groups import mean_size

Codes = npt.NDArray[np.uint32]

_KINDS = {str, bytes, int}
"""Of keys: none of one type equals one of another, and `marshal` knows them."""

_PER_KEY = 150
"""Bytes beside the key: two thirds of a dictionary is used, of 36 bytes for an entry; its number, and two in arrays."""

_USES = 2
"""How often keys must have come, on average, when a vocabulary is full; else there is no other one."""


class Vocabulary:
    """The keys that a worker has met in a job.

    Args:
        path: Of its file, which does not exist yet.
        partition: The partition of each of some keys.
        partitions: How many there are.
        budget: Bytes of memory from which it is full.

    Attributes:
        is_needed: Whether a task is complete that has used it.
    """

    def __init__(
        self, path: str, partition: Callable[[Sequence[Any]], Sequence[int]], partitions: int, budget: int
    ) -> None:
        self.path = path
        self._partition = partition
        self._budget = budget
        self._numbers: defaultdict[Any, int] = defaultdict(count().__next__)
        self._partitions: npt.NDArray[np.uint32] = np.empty(0, np.uint32)  # of each number
        self._codes: Codes = np.empty(0, np.uint32)
        self._counts: npt.NDArray[np.int64] = np.zeros(partitions, np.int64)
        self._records: list[Piece] = [(0, 0)] * partitions
        self._file_bytes = 0
        self._fresh: list[bytes] = []
        self._settled = 0  # keys that are copies of ours
        self._memory = 0.0
        self._uses = 0
        self.is_needed = False

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def is_full(self) -> bool:
        return self._memory >= self._budget

    @property
    def has_paid(self) -> bool:
        """Whether keys came often enough."""
        return self._uses >= _USES * len(self)

    @property
    def is_there(self) -> bool:
        """Whether the file is as we left it."""
        try:
            return Path(self.path).stat().st_size == self._file_bytes
        except FileNotFoundError:
            return self._file_bytes == 0

    def head(self, partition: int) -> Head:
        """What a segment of this partition needs whose codes have been given out."""
        return Head(self.path, self._records[partition])

    def encode(self, keys: Sequence[Any]) -> tuple[npt.NDArray[np.uint32], Codes] | None:
        """The partition of each of some different keys, and its code there; None if they are too many, or have none.

        Raises:
            UsageError: There is no partition for a key.
            OSError: The disk is full, or the directory is gone.
        """
        if not set(map(type, keys)) <= _KINDS or len(keys) * (_PER_KEY + mean_size(keys)) > self._budget:
            return None
        known = len(self._numbers)
        numbers = np.fromiter(map(self._numbers.__getitem__, keys), np.intp, len(keys))
        if len(self._numbers) > known:
            self._learn([*map(keys.__getitem__, np.flatnonzero(numbers >= known).tolist())])
        self._uses += len(keys)
        return self._partitions[numbers], self._codes[numbers]

    def settle(self) -> None:
        """Take copies of the new keys in place of those that tasks had.

        These lie where the mapper's data was, far from each other. As long as they are there, what the next task makes
        is put into the gaps, and both are slower to get at. So first they go, and with them all memory that was the
        task's.
        """
        fresh, self._fresh = self._fresh, []
        while len(self) > self._settled:
            self._numbers.popitem()
        for data in fresh:
            keys = marshal.loads(data)
            self._numbers.update(zip(keys, range(len(self), len(self) + len(keys)), strict=True))
        self._settled = len(self)

    def discard(self) -> None:
        """A task has failed: give back the room of the file, unless another one needs it."""
        if not self.is_needed:
            Path(self.path).unlink(missing_ok=True)

    def _learn(self, keys: list[Any]) -> None:
        """Give codes to keys that are new, and write them."""
        partitions = np.asarray(self._partition(keys), np.uint32)
        codes = np.empty(len(keys), np.uint32)
        order = np.argsort(partitions, kind="stable")
        counts = np.bincount(partitions, minlength=len(self._counts))
        with Path(self.path).open("ab") as file:
            if file.tell() != self._file_bytes:
                raise OSError(f"{self.path} was changed by somebody else")
            for partition, some in enumerate(np.split(order, np.cumsum(counts)[:-1])):
                if len(some):
                    first = int(self._counts[partition])
                    codes[some] = np.arange(first, first + len(some))
                    record = (*self._records[partition], [*map(keys.__getitem__, some.tolist())])
                    data = marshal.dumps(record, MARSHAL_VERSION)
                    file.write(data)
                    self._records[partition] = (self._file_bytes, len(data))
                    self._file_bytes += len(data)
        self._fresh.append(marshal.dumps(keys, MARSHAL_VERSION))
        self._counts += counts
        self._partitions = np.concatenate([self._partitions, partitions])
        self._codes = np.concatenate([self._codes, codes])
        self._memory += len(keys) * (_PER_KEY + mean_size(keys))


class Vocabularies:
    """Those of this process, between tasks: mostly one, and as many as tasks at once where workers are threads.

    Only those of one job are kept, which is the last that was asked for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._job = ""
        self._free: list[Vocabulary] = []
        self._is_useless = False

    def borrow(self, job: str, make: Callable[[], Vocabulary]) -> Vocabulary | None:
        """One for a task of this job, perhaps a new one; None if they are of no use."""
        with self._lock:
            if self._job != job:
                self._job, self._free, self._is_useless = job, [], False
            if self._is_useless:
                return None
            while self._free:
                vocabulary = self._free.pop()
                if vocabulary.is_there:
                    vocabulary.settle()
                    return vocabulary
        return make()

    def give_back(self, job: str, vocabulary: Vocabulary | None) -> None:
        """A task is complete."""
        with self._lock:
            if vocabulary is None or self._job != job:
                return
            vocabulary.is_needed = True
            if not vocabulary.is_full:
                self._free.append(vocabulary)
            elif not vocabulary.has_paid:
                self._is_useless = True

    def forget(self, job: str) -> None:
        """Give back the memory: there are no map tasks any more, or few."""
        with self._lock:
            if self._job == job:
                self._free = []


Read = Callable[[str, Piece], bytes | memoryview]
"""Reads a piece of a file."""


class Glossary:
    """The reader's side: the keys of all vocabularies that a reduce task meets, each once, numbered from 0 on.

    Args:
        budget: Bytes of memory from which it is full.

    Attributes:
        keys: By number.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self.clear()

    def clear(self) -> None:
        """Forget everything; it is read again if need be."""
        self.keys: list[Any] = []
        self._numbers: defaultdict[Any, int] = defaultdict(count().__next__)
        self._known: dict[str, _Known] = {}
        self._memory = 0.0

    @property
    def is_full(self) -> bool:
        return self._memory >= self._budget

    def numbers(self, head: Head, read: Read) -> npt.NDArray[np.intp]:
        """The number of the key of each code of a vocabulary; at least up to this record.

        Raises:
            Whatever ``read`` does.
        """
        known = self._known.setdefault(head.path, _Known())
        new: list[list[Any]] = []
        record = head.record
        while sum(record) > known.end:
            *before, keys = marshal.loads(read(head.path, record))
            new.append(keys)
            record = (before[0], before[1])
        for keys in reversed(new):
            self._learn(known, keys)
        known.end = max(known.end, sum(head.record))
        return known.numbers

    def _learn(self, known: _Known, keys: list[Any]) -> None:
        numbers = np.fromiter(map(self._numbers.__getitem__, keys), np.intp, len(keys))
        new = [*map(keys.__getitem__, np.flatnonzero(numbers >= len(self.keys)).tolist())]
        self.keys += new
        known.numbers = np.concatenate([known.numbers, numbers])
        self._memory += numbers.nbytes + len(new) * (_PER_KEY + mean_size(new))


class _Known:
    """What was read of a vocabulary: all of its partition up to byte ``end`` of the file."""

    __slots__ = ("end", "numbers")

    def __init__(self) -> None:
        self.numbers: npt.NDArray[np.intp] = np.empty(0, np.intp)
        self.end = 0
