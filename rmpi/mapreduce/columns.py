"""Pairs of numbered keys and numeric values, in memory, as arrays.

Where keys have numbers already (see `vocabulary`) and values are numbers, nothing has to be looked up to bring together
the values of each key: it is a stable sort by number, which NumPy does for all pairs at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rmpi.mapreduce.chunks import Chunk, Coded
from rmpi.mapreduce.ordering import SortKey, sorted_places
from rmpi.mapreduce.runs import Grouped
from rmpi.mapreduce.vocabulary import Glossary

_PER_PAIR = 56
"""Bytes: a number and a value, once more when they are sorted, and at last an object in a list."""

_BLOCK = 4096
"""Keys whose values are taken out of the array at once."""


class Columns:
    """Such pairs, in the order in which they came.

    Args:
        glossary: Of the keys.
        budget: Bytes of memory from which it is full.
    """

    def __init__(self, glossary: Glossary, budget: int) -> None:
        self._glossary = glossary
        self._budget = budget
        self._parts: list[Coded] = []
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    @property
    def is_full(self) -> bool:
        return self._count * _PER_PAIR >= self._budget

    def add(self, chunk: Coded) -> bool:
        """Take all of a chunk, with numbers for codes; False, and nothing is done, if it cannot be among these."""
        values = chunk.values
        if not isinstance(values, np.ndarray):
            return False
        if self._parts and _kind(self._parts[0].values) != _kind(values):
            return False
        self._parts.append(chunk)
        self._count += len(values)
        return True

    def clear(self) -> None:
        self._parts = []
        self._count = 0

    def chunks(self) -> Iterator[Chunk]:
        """All of it, with keys."""
        return (decoded(part, self._glossary) for part in self._parts)

    def grouped(self, sort_key: SortKey | None) -> Grouped:
        """The keys in order, and the values of each.

        Raises:
            UsageError: Keys have no order.
        """
        numbers = np.concatenate([part.codes for part in self._parts])
        kind = _kind(self._parts[0].values)
        values = np.concatenate([part.values for part in self._parts], dtype=kind, casting="unsafe")
        self.clear()
        counts = np.bincount(numbers, minlength=len(self._glossary.keys))
        there = np.flatnonzero(counts)
        keys = [*map(self._glossary.keys.__getitem__, there.tolist())]
        places = sorted_places(keys, sort_key)
        ranks = np.empty(len(counts), np.intp)
        ranks[there[places]] = np.arange(len(places))
        values = values[_stable_order(ranks[numbers])]
        ends = np.cumsum(counts[there[places]])
        return _sliced([*map(keys.__getitem__, places)], values, ends)


def _sliced(keys: list[Any], values: npt.NDArray[Any], ends: npt.NDArray[np.intp]) -> Grouped:
    begin = 0
    for first in range(0, len(keys), _BLOCK):
        some = ends[first : first + _BLOCK]
        block = values[begin : some[-1]].tolist()
        start = 0
        for key, end in zip(keys[first : first + _BLOCK], (some - begin).tolist(), strict=True):
            yield key, block[start:end]
            start = end
        begin = int(some[-1])


def _stable_order(ranks: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """``argsort(ranks, kind="stable")``, in passes of 16 bits, for which NumPy has a radix sort."""
    order = np.argsort(ranks.astype(np.uint16), kind="stable")
    for shift in range(16, int(ranks.max()).bit_length(), 16):
        order = order[np.argsort((ranks[order] >> shift).astype(np.uint16), kind="stable")]
    return order


def _kind(values: Any) -> type[np.generic]:
    return np.float64 if values.dtype.kind == "f" else np.int64


def decoded(chunk: Coded, glossary: Glossary) -> Chunk:
    """The chunk with keys, whose numbers it has."""
    keys = [*map(glossary.keys.__getitem__, chunk.codes.tolist())]
    values = chunk.values.tolist() if isinstance(chunk.values, np.ndarray) else chunk.values
    return Chunk(keys, values, chunk.grouped)
