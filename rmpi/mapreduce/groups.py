"""Pairs in memory, as a dictionary of lists, with an eye on how much memory that is.

To measure every key and value would cost more than to collect them. So a sample is measured, and the dictionary
counted: bytes ≈ keys × (size of a key + of a place in the dictionary) + values × size of a value. It is an estimate,
which may be off by half; what it prevents is that memory grows with the data.
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import GeneratorType
from typing import Any

from rmpi.errors import UsageError
from rmpi.mapreduce.chunks import Chunk

Pairs = Iterable[tuple[Any, Any]] | Mapping[Any, Any]
Folder = Callable[[Any, list[Any]], Pairs]
"""A combiner or a reducer: of a key and its values."""

_PER_KEY = 160
"""Bytes: two thirds of a dictionary is used, of 104 bytes for an entry at worst; and the list, 56 and room for one."""

_PER_VALUE = 9
"""Bytes of a place in a list, which has an eighth to spare."""

_STRIDE = 1000
"""Pairs between two looks at the memory."""

_SAMPLES = 8
"""Of a chunk."""

_ITEMS, _DEPTH = 16, 4
"""How much of a container is measured."""


class Groups:
    """Keys and the values of each, in the order in which they came.

    Args:
        combiner: Applied by `combine`; None: there is none.
        budget: Bytes from which it is `full`.
    """

    def __init__(self, combiner: Folder | None, budget: int) -> None:
        self.table: defaultdict[Any, list[Any]] = defaultdict(list)
        self.values = 0
        self._combiner = combiner
        self._budget = budget
        self._key_size, self._value_size = _Mean(), _Mean()

    @property
    def nbytes(self) -> int:
        """About the memory of all."""
        per_key = _PER_KEY + self._key_size.mean
        return int(len(self.table) * per_key + self.values * (_PER_VALUE + self._value_size.mean))

    @property
    def full(self) -> bool:
        return self.nbytes >= self._budget

    def fill(self, pairs: Iterator[Any], source: str) -> bool:
        """Take pairs until there are no more, or there is no more room; whether there may be more.

        Raises:
            UsageError: ``source`` gave something that is no pair with a hashable key.
        """
        table = self.table
        stride = 0
        try:
            while not self.full:
                for key, value in islice(pairs, stride):
                    table[key].append(value)
                for key, value in islice(pairs, 1):
                    table[key].append(value)
                    break
                else:
                    self._recount()
                    return False
                self._sample(key, value)
                self.values += stride + 1
                stride = self._stride(stride)
        except (TypeError, ValueError) as error:
            check_pairs(error, source)
            raise
        return True

    def _stride(self, last: int) -> int:
        """How many pairs to take before looking again: more and more, but no more than a 16th of the budget holds."""
        a_pair = _PER_KEY + self._key_size.mean + self._value_size.mean
        return int(min(2 * last + 1, _STRIDE, self._budget / 16 / a_pair))

    def add(self, chunk: Chunk) -> None:
        """Take all of a chunk."""
        table = self.table
        keys, values, grouped = chunk
        if grouped:
            deque(map(list.extend, map(table.__getitem__, keys), values), 0)
            self.values += sum(map(len, values))
        else:
            deque(map(list.append, map(table.__getitem__, keys), values), 0)
            self.values += len(values)
        for index in range(0, len(keys), max(1, len(keys) // _SAMPLES)):
            self._sample(keys[index], values[index][0] if grouped else values[index])

    def _sample(self, key: object, value: object) -> None:
        self._key_size.add(size_of(key))
        self._value_size.add(size_of(value))

    def shrink(self) -> bool:
        """Combine; whether that made room worth going on with."""
        if self._combiner is not None:
            self.combine()
        return self.nbytes < self._budget / 2

    def combine(self) -> None:
        """Apply the combiner to every key that has several values."""
        if self._combiner is None:
            return
        table, combiner = self.table, self._combiner
        strays: list[tuple[Any, Any]] = []
        moved: list[Any] = []
        for key, values in table.items():
            if len(values) > 1:
                pairs = [*pairs_of(combiner(key, values), "the combiner")]
                kept, others = _told_apart(key, pairs)
                table[key] = kept
                strays += others
                if not kept:
                    moved.append(key)
        for key in moved:
            del table[key]
        for key, value in strays:
            table[key].append(value)
        self._recount()

    def _recount(self) -> None:
        self.values = sum(map(len, self.table.values()))

    def chunk(self) -> Chunk:
        """All of it; single values where no key has more."""
        keys, values = [*self.table], [*self.table.values()]
        if self.values == len(keys):
            return Chunk(keys, [value for (value,) in values], False)
        return Chunk(keys, values, True)

    def clear(self) -> None:
        self.table.clear()
        self.values = 0


def _told_apart(key: Any, pairs: list[Any]) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """The values that a combiner gave for its own key, and the pairs of others."""
    kept: list[Any] = []
    others: list[tuple[Any, Any]] = []
    try:
        for own, value in pairs:
            if own is key or own == key:
                kept.append(value)
            else:
                others.append((own, value))
    except (TypeError, ValueError) as error:
        check_pairs(error, "the combiner")
        raise
    return kept, others


_COMMON = (GeneratorType, list)


def pairs_of(returned: Pairs, source: str) -> Iterable[tuple[Any, Any]]:
    """What a function of the user's returned, as pairs.

    Raises:
        UsageError: Nobody can iterate over it.
    """
    if type(returned) in _COMMON:  # two questions to `collections.abc` cost more than a small reducer
        return returned
    if isinstance(returned, Mapping):
        return returned.items()
    if isinstance(returned, str) or not isinstance(returned, Iterable):
        raise UsageError(f"{source} must yield pairs (key, value), or return a list of them, not {returned!r}")
    return returned


def check_pairs(error: Exception, source: str) -> None:
    """For an error that came while pairs were taken apart, if it is not the function's own.

    Raises:
        UsageError: It gave something that is no pair with a hashable key.
    """
    trace = error.__traceback__
    if trace is None or trace.tb_next is None:
        raise UsageError(
            f"{source} must give pairs (key, value), with keys that can be those of a dictionary: {error}"
        ) from error


def keys_per_chunk(chunk: Chunk, nbytes: int) -> int:
    """How many of these keys, with their values, take about so many bytes of memory."""
    keys, values, _ = chunk
    return max(1, int(nbytes / (mean_size(keys) + mean_size(values) + 2 * _PER_VALUE)))


def mean_size(values: Sequence[Any]) -> float:
    """About how much memory each of some values takes, of which there may be none."""
    some = range(0, len(values), max(1, len(values) // _SAMPLES))
    return sum(size_of(values[index]) for index in some) / max(1, len(some))


class _Mean:
    """A mean."""

    __slots__ = ("_count", "_sum", "mean")

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0
        self.mean = 0.0

    def add(self, number: float) -> None:
        self._sum += number
        self._count += 1
        self.mean = self._sum / self._count


def size_of(value: object, depth: int = _DEPTH) -> float:
    """About how much memory an object takes, what it holds included."""
    size: float = sys.getsizeof(value, 64)
    if depth == 0 or type(value) in (str, int, float, bytes):
        return size
    held: Iterable[object]
    match value:
        case list() | tuple() | set() | frozenset():
            held, count = value, len(value)
        case Mapping():
            held, count = (each for item in value.items() for each in item), 2 * len(value)
        case _:
            attributes = getattr(value, "__dict__", None)
            return size if attributes is None else size + size_of(attributes, depth - 1)
    some = [size_of(each, depth - 1) for each in islice(held, _ITEMS)]
    return size + sum(some) * count / max(1, len(some))
