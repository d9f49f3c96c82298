"""Which partition a key belongs to: the same in every process, on every machine, and for all keys that are equal.

Python's own ``hash`` is not that: for strings it is different in every process (PEP 456), and for many other objects
it is their address. For numbers, though, it is: equal numbers have equal hashes, whatever their types, NumPy's
included, and nothing about them is random. So numbers are hashed by `hash`, strings and bytes by CRC-32 (in C: 40 ns
for a word, of which most is the call; BLAKE2 takes ten times as long), and what is made of these by combining theirs.

CRC-32 is linear, and small numbers are their own hashes, so the bits of either may be all the same where keys resemble
each other. A multiplication spreads them (Fibonacci hashing: Knuth, TAOCP 3, 6.4), and the partition is taken from the
upper bits, ``hash × partitions ÷ 2³²``.
"""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from binascii import crc32
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from struct import pack
from typing import Any

import numpy as np

from rmpi.errors import UsageError

BITS = 32

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1
"""2³² over the golden ratio, and prime."""

_GOLDEN_64 = 0x9E3779B97F4A7C15
_MASK_64 = 0xFFFFFFFFFFFFFFFF

Partition = Callable[[Any, int], int]
"""Of a key, and how many partitions there are."""


def stable_hash(key: object) -> int:
    """A number of 32 bits, equal for equal keys, in every process.

    Keys may be numbers, ``str``, ``bytes``, ``None``, `datetime` and `UUID` objects, paths, members of an ``Enum``, and
    tuples, frozensets and frozen dataclasses of these.

    Raises:
        UsageError: It is something else, or NaN, which equals nothing, not even itself.
    """
    hasher = _EXACTLY.get(type(key))
    if hasher is None:
        hasher = next((each for kind, each in _KINDS if isinstance(key, kind)), _of_dataclass)
    return hasher(key)


def partitions_of(keys: Sequence[Any], count: int) -> list[int]:
    """The partition of each key, as ``stable_hash(key) * count >> 32`` gives it, and faster.

    Raises:
        UsageError: As `stable_hash`.
    """
    try:
        sums = np.fromiter(map(crc32, map(str.encode, keys)), np.uint64, len(keys))
    except (TypeError, UnicodeEncodeError):  # not all are strings, or there are lone surrogates in them
        return [stable_hash(key) * count >> BITS for key in keys]
    hashes = sums * np.uint64(_GOLDEN) & np.uint64(_MASK)
    return (hashes * np.uint64(count) >> np.uint64(BITS)).tolist()  # type: ignore[no-any-return]


def chosen_partitions(partition: Partition, keys: Sequence[Any], count: int) -> list[int]:
    """The partition of each key by a function of the user's.

    Raises:
        UsageError: It gave something else than a number from 0 on below ``count``.
    """
    numbers = []
    for key in keys:
        number = partition(key, count)
        if not isinstance(number, (int, np.integer)) or not 0 <= number < count:
            raise UsageError(f"partition({key!r}, {count}) must be a number from 0 to {count - 1}, not {number!r}")
        numbers.append(int(number))
    return numbers


# ---- of each kind ----


def _of_number(number: Any) -> int:
    if number != number:
        raise UsageError("NaN cannot be a key: it equals nothing, not even itself. Leave it out, or use None instead")
    return (hash(number) * _GOLDEN_64 & _MASK_64) >> 32


def _of_bytes(key: bytes) -> int:
    return crc32(key) * _GOLDEN & _MASK


def _of_str(key: str) -> int:
    return crc32(key.encode("utf-8", "surrogatepass")) * _GOLDEN & _MASK


def _of_hashes(kind: bytes, hashes: Iterable[int]) -> int:
    parts = [*hashes]
    return _of_bytes(kind + pack(f"<{len(parts)}I", *parts))


def _of_tuple(key: tuple[Any, ...]) -> int:
    return _of_hashes(b"tuple", map(stable_hash, key))


def _of_set(key: frozenset[Any]) -> int:
    return _of_hashes(b"set", sorted(map(stable_hash, key)))


def _of_enum(key: Enum) -> int:
    """By name, or, for combinations of flags, which have none, by value."""
    return _of_tuple((type(key).__qualname__, key.name or key.value))


def _of_datetime(key: datetime.datetime) -> int:
    """Aware ones are equal if they are the same moment, in whatever time zone."""
    if key.utcoffset() is None:
        return _of_delta(key.replace(tzinfo=None) - datetime.datetime.min)
    return _of_delta(key - datetime.datetime.min.replace(tzinfo=datetime.UTC))


def _of_time(key: datetime.time) -> int:
    offset = key.utcoffset() or datetime.timedelta()
    of_day = datetime.timedelta(hours=key.hour, minutes=key.minute, seconds=key.second, microseconds=key.microsecond)
    return _of_delta(of_day - offset)


def _of_delta(key: datetime.timedelta) -> int:
    return _of_tuple((key.days, key.seconds, key.microseconds))


def _of_dataclass(key: Any) -> int:
    """By what it is compared by.

    Raises:
        UsageError: It is no dataclass that is frozen and compared by its fields.
    """
    parameters = getattr(type(key), "__dataclass_params__", None)
    if parameters is None or not (parameters.frozen and parameters.eq):
        raise UsageError(
            f"{type(key).__qualname__} cannot be a key: nothing is known of it that is the same in every process. "
            "Use a number, a string, a tuple or a frozen dataclass, or give map_reduce(partition=), a function of a "
            "key and the number of partitions"
        )
    compared = [getattr(key, field.name) for field in dataclasses.fields(key) if field.compare]
    return _of_tuple((type(key).__qualname__, *compared))


_EXACTLY: dict[type, Callable[[Any], int]] = {
    str: _of_str,
    bytes: _of_bytes,
    int: _of_number,
    float: _of_number,
    bool: _of_number,
    tuple: _of_tuple,
    frozenset: _of_set,
    type(None): lambda _: _of_bytes(b"None"),
}

_KINDS: tuple[tuple[type | tuple[type, ...], Callable[[Any], int]], ...] = (
    ((int, float, complex, Fraction, Decimal, np.number, np.bool_), _of_number),
    (str, _of_str),
    (bytes, _of_bytes),
    (tuple, _of_tuple),
    (frozenset, _of_set),
    (Enum, _of_enum),
    (datetime.datetime, _of_datetime),
    (datetime.date, lambda key: _of_number(key.toordinal())),
    (datetime.time, _of_time),
    (datetime.timedelta, _of_delta),
    (uuid.UUID, lambda key: _of_number(key.int)),
    (PurePath, lambda key: _of_str(key.as_posix())),
)
"""Subclasses are equal to what they derive from, so they hash like it; the first that fits."""
