"""What is compared: the operations, what each rank puts in, what it must get out, and what is asked of each.

It knows no library and no clock. An `Operation` names a method of the adapters (`adapters.py`) that makes one *step*
of it, so that all libraries are driven by the same loop with the same values, and it says what a step must return:
a benchmark of wrong results measures nothing. To add an operation, add its row here and its method to each adapter.

Rows of all tables are named ``section: label``, as in ``2 ranks: array 64 KB``; ``--only`` is matched against that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

POINT_SIZES = [8, 64, 1 << 10, 8 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20]
"""Bytes of an array sent from one rank to another."""

COLLECTIVE_SIZES = [8, 1 << 10, 64 << 10, 1 << 20, 8 << 20]
"""Bytes of the array that each rank puts in."""


Values = Sequence[Any]


@dataclass(frozen=True)
class Operation:
    """One row.

    Attributes:
        label: Its name within a section.
        method: The adapters' method: called once with this rank's value, it returns the step that is timed.
        value: What a rank puts in, by rank.
        expect: What a step returns, from the values of all ranks and one's own rank.
        trips: Messages that cross one after the other in a step; the figure is the time of one.
    """

    label: str
    method: str
    value: Callable[[int], Any]
    expect: Callable[[Values, int], Any]
    trips: int = 1


def operations(section: str) -> list[Operation]:
    """All rows that one job measures, in order: ``2 ranks`` and ``4 ranks`` on one machine, or ``tcp``."""
    pairwise = [] if section == "4 ranks" else [*_points()]
    together = [] if section == "tcp" else [*_collectives()]
    return pairwise + together


# --- What is put in ------------------------------------------------------------------------------------------------


def array(nbytes: int) -> Callable[[int], NDArray[np.float64]]:
    return lambda rank: np.full(nbytes // 8, rank + 1.0)


def number(rank: int) -> int:
    return 1000 + rank


def fraction(rank: int) -> float:
    return rank + 0.25


def small_dict(rank: int) -> dict[str, Any]:
    return {"rank": rank, "name": "worker", "loss": 0.125, "done": False}


def dict_of_arrays(rank: int) -> dict[str, Any]:
    """A layer of a model: 64 KB and 1 KB of numbers, and a step."""
    return {"step": 7, "weights": np.full((128, 64), rank + 1.0), "bias": np.full(128, rank + 1.0)}


def nothing(_: int) -> None:
    return None


# --- What must come out --------------------------------------------------------------------------------------------


def the_others(values: Values, rank: int) -> Any:
    """Between ranks 0 and 1."""
    return values[1 - rank]


def the_roots(values: Values, _: int) -> Any:
    return values[0]


def the_sum_on_the_root(values: Values, rank: int) -> Any:
    return sum(values) if rank == 0 else None


def the_sum(values: Values, _: int) -> Any:
    return sum(values)


def all_of_them(values: Values, _: int) -> Any:
    return list(values)


def a_share_of_each(values: Values, _: int) -> Any:
    """Of arrays whose elements are all alike, so that it does not matter which."""
    return np.concatenate([value[: len(value) // len(values)] for value in values])


def nobody(_values: Values, _rank: int) -> None:
    return None


RESULTS: dict[str, Callable[[Values, int], Any]] = {
    "broadcast": the_roots,
    "reduce": the_sum_on_the_root,
    "allreduce": the_sum,
    "allgather": all_of_them,
    "alltoall": all_of_them,
}
"""Of the collectives that carry something."""

# --- The rows ------------------------------------------------------------------------------------------------------


OBJECT_COLLECTIVES = [
    ("broadcast", "dict", small_dict),
    ("broadcast", "dict of arrays", dict_of_arrays),
    ("reduce", "int", number),
    ("allreduce", "int", number),
    ("allgather", "int", number),
    ("allgather", "dict", small_dict),
    ("alltoall", "int", number),
]


def _points() -> Iterator[Operation]:
    """There and back between ranks 0 and 1, half of it."""
    for nbytes in POINT_SIZES:
        yield Operation(f"array {size_name(nbytes)}", "ping_arrays", array(nbytes), the_others, trips=2)
    for label, value in [
        ("int", number),
        ("float", fraction),
        ("dict", small_dict),
        ("array 8 KB as object", array(8 << 10)),
        ("dict of arrays", dict_of_arrays),
    ]:
        yield Operation(label, "ping_objects", value, the_others, trips=2)


def _collectives() -> Iterator[Operation]:
    yield Operation("barrier", "barrier", nothing, nobody)
    for verb in ("broadcast", "reduce", "allreduce", "allgather"):
        for nbytes in COLLECTIVE_SIZES:
            yield Operation(f"{verb} {size_name(nbytes)}", f"{verb}_arrays", array(nbytes), RESULTS[verb])
    for nbytes in COLLECTIVE_SIZES[1:]:  # one number cannot be cut
        yield Operation(f"alltoall {size_name(nbytes)}", "alltoall_arrays", array(nbytes), a_share_of_each)
    for verb, what, value in OBJECT_COLLECTIVES:
        yield Operation(f"{verb} {what}", f"{verb}_objects", value, RESULTS[verb])


def size_name(nbytes: int) -> str:
    for unit, name in [(1 << 20, "MB"), (1 << 10, "KB")]:
        if nbytes >= unit:
            return f"{nbytes // unit} {name}"
    return f"{nbytes} B"


# --- The goals -----------------------------------------------------------------------------------------------------

SMALL, LARGE = "(8 B|1 KB)", "(64 KB|1 MB|8 MB)"

GOALS: list[tuple[str, float]] = [
    (r"2 ranks: array (8 B|64 B|1 KB)", 1.2),
    (r"2 ranks: array (64 KB|256 KB|1 MB)", 0.5),
    (r"2 ranks: array (4|16) MB", 0.9),
    (r"2 ranks: array 64 MB", 1.0),
    (r"2 ranks: (int|float)", 0.9),
    (r"2 ranks: dict", 0.8),
    (r"2 ranks: array 8 KB as object", 0.35),
    (r"2 ranks: dict of arrays", 0.5),
    (r". ranks: \w+ (int|dict|dict of arrays)", 0.8),
    (rf". ranks: \w+ {LARGE}", 0.9),
    (rf"2 ranks: (barrier|\w+ {SMALL})", 2.0),
    (rf"4 ranks: (barrier|\w+ {SMALL})", 1.2),
    (r"tcp: array 8 B", 1.1),
    (r"tcp: array 1 MB", 1.3),
    (r"tcp: array 16 MB", 1.05),
    (r"launch: 2 ranks", 2.0),
    (r"launch: 8 ranks", 0.8),
    (r"launch: 32 ranks", 0.3),
    (r"launch: 128 ranks", 0.2),
    (r"k-means: .*", 1.0),
]
"""The most that the ratio of a row may be: time of rmpi to that of the better MPI. The first that fits counts.

A barrier is held to the goal of the small collectives: it is the smallest."""

MOST_IDLE = 0.02
"""Of a core, that waiting in a receive may cost; of itself, not against a peer."""


def goal(row: str) -> float | None:
    return next((most for pattern, most in GOALS if re.fullmatch(pattern, row)), None)
