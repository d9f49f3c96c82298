"""One order for keys of any types.

Python has an order for two numbers, or two strings, and none for a number and a string. Here ``None`` comes first, then
numbers of all types (NaN after the others), ``str``, ``bytes``, tuples (item by item), and whatever else there is by
the names of the types, and within a type by its own ``<``; frozensets and members of enumerations, which have none,
by their items and values. Keys that are equal have equal places.

`place_of` gives a key's place as a tuple. Making one takes a microsecond, and comparing them is slow; nearly always all
keys are of one kind, and `native` tells whether Python can compare them as they are, with the same outcome.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from operator import itemgetter
from typing import Any

import numpy as np

from rmpi.errors import UsageError

SortKey = Callable[[Any], Any]

Kind = str | tuple[Any, ...]
"""Of keys that Python can compare: ``"number"``, ``"str"``, ``"bytes"``, or for tuples one of the kinds of items."""

_NATIVE: dict[type, str] = {int: "number", float: "number", bool: "number", str: "str", bytes: "bytes"}


def native(keys: Sequence[Any]) -> Kind | None:
    """The kind of all ``keys``, or None where they have no one kind, or one that Python does not order as we do."""
    types = set(map(type, keys))
    kinds = {_NATIVE.get(each) for each in types}
    if kinds == {"number"} and float in types and any(key != key for key in keys):
        return None
    if kinds == {None} and types == {tuple}:
        return _native_tuples(keys)
    return kinds.pop() if len(kinds) == 1 else None


def _native_tuples(keys: Sequence[tuple[Any, ...]]) -> Kind | None:
    if len(set(map(len, keys))) != 1:
        return None
    kinds = tuple(native([*map(itemgetter(item), keys)]) for item in range(len(keys[0])))
    return None if None in kinds else kinds


def order_for(keys: Sequence[Any], sort_key: SortKey | None) -> SortKey | None:
    """What to sort these keys by; None: as they are."""
    if sort_key is not None:
        return sort_key
    return None if not keys or native(keys) is not None else place_of


def sort_keys(keys: list[Any], sort_key: SortKey | None) -> None:
    """Sort ``keys`` in place.

    Raises:
        UsageError: There is no order among them.
    """
    try:
        keys.sort(key=order_for(keys, sort_key))
    except TypeError as error:
        raise _no_order(error, sort_key) from error


def sorted_places(keys: Sequence[Any], sort_key: SortKey | None) -> list[int]:
    """Where the keys are, in their order: ``keys[places[0]]`` is the first.

    Raises:
        UsageError: There is no order among them.
    """
    order = order_for(keys, sort_key)
    found = keys.__getitem__
    try:
        return sorted(range(len(keys)), key=found if order is None else lambda place: order(found(place)))
    except TypeError as error:
        raise _no_order(error, sort_key) from error


def sort_pairs(pairs: list[tuple[Any, Any]], sort_key: SortKey | None) -> None:
    """Sort pairs in place by their keys; those of equal keys stay in order.

    Raises:
        UsageError: There is no order among the keys.
    """
    first = itemgetter(0)
    order = order_for([*map(first, pairs)], sort_key)
    try:
        pairs.sort(key=first if order is None else lambda pair: order(pair[0]))
    except TypeError as error:
        raise _no_order(error, sort_key) from error


def _no_order(error: TypeError, sort_key: SortKey | None) -> UsageError:
    if sort_key is not None:
        return UsageError(f"the keys cannot be sorted by sort_key: {error}")
    return UsageError(f"the keys cannot be sorted: {error}. Give map_reduce(sort_key=), a function of a key")


def place_of(key: Any) -> tuple[Any, ...]:
    """Where a key comes among others, as what can be compared with the places of all others."""
    maker = _EXACTLY.get(type(key))
    if maker is None:
        maker = next((each for kind, each in _KINDS if isinstance(key, kind)), _of_other)
    return maker(key)


def _of_number(number: Any) -> tuple[Any, ...]:
    if number != number:
        return (1, 1)
    if isinstance(number, Decimal):  # which cannot be compared with a Fraction
        number = Fraction(number) if number.is_finite() else float(number)
    return (1, 0, number)


def _of_tuple(key: Iterable[Any]) -> tuple[Any, ...]:
    return (4, *map(place_of, key))


def _of_complex(key: complex) -> tuple[Any, ...]:
    return _of_number(key.real) if key.imag == 0 else (5, "complex", key.real, key.imag)


def _of_datetime(key: datetime.datetime | datetime.time) -> tuple[Any, ...]:
    """Aware and naive ones cannot be compared."""
    return (5, "datetime" if isinstance(key, datetime.datetime) else "time", key.utcoffset() is not None, key)


def _of_other(key: Any) -> tuple[Any, ...]:
    kind = type(key)
    if dataclasses.is_dataclass(key) and vars(kind).get("__lt__") is None:
        return (
            5,
            kind.__qualname__,
            *(place_of(getattr(key, each.name)) for each in dataclasses.fields(key) if each.compare),
        )
    return (5, kind.__qualname__, key)


_EXACTLY: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    type(None): lambda _: (0,),
    int: lambda key: (1, 0, key),
    bool: lambda key: (1, 0, key),
    float: _of_number,
    str: lambda key: (2, key),
    bytes: lambda key: (3, key),
    tuple: _of_tuple,
}

_KINDS: tuple[tuple[type | tuple[type, ...], Callable[[Any], tuple[Any, ...]]], ...] = (
    ((complex, np.complexfloating), _of_complex),
    ((int, float, Fraction, Decimal, np.number, np.bool_), _of_number),
    (str, lambda key: (2, str(key))),
    (bytes, lambda key: (3, bytes(key))),
    (tuple, _of_tuple),
    (frozenset, lambda key: (5, "frozenset", sorted(map(place_of, key)))),
    (Enum, lambda key: (5, type(key).__qualname__, place_of(key.value))),
    ((datetime.datetime, datetime.time), _of_datetime),
    (datetime.date, lambda key: (5, "date", key)),
)
