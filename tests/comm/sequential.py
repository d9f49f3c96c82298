"""What the collectives give, said without messages: the oracle of the tests of schedules.

Values are given for all ranks as a list in rank order, and so are results.
"""

from __future__ import annotations

import functools

import numpy as np

from rmpi.comm.topology import Machines
from rmpi.testing.simulate import simulate

# ---- the bracketing, as a tree: a rank, or a pair of trees ------------------------------------------------------


def tree(size):
    folded = size - (1 << (size.bit_length() - 1))
    nodes = [(2 * i, 2 * i + 1) for i in range(folded)] + list(range(2 * folded, size))
    while len(nodes) > 1:
        nodes = list(zip(nodes[::2], nodes[1::2], strict=True))
    return nodes[0]


def ranks_of(node):
    return [node] if isinstance(node, int) else [*ranks_of(node[0]), *ranks_of(node[1])]


def combined(node, values, combine):
    return values[node] if isinstance(node, int) else combine(*(combined(half, values, combine) for half in node))


def within(node, count):
    """The largest subtrees of which all ranks are below ``count``, from left to right."""
    ranks = ranks_of(node)
    if ranks[-1] < count:
        return [node]
    return [] if ranks[0] >= count else [*within(node[0], count), *within(node[1], count)]


# ---- the collectives --------------------------------------------------------------------------------------------


def reduction(values, combine):
    return combined(tree(len(values)), values, combine)


def scan(values, combine):
    """All inclusive prefixes."""
    size = len(values)
    rows = ([combined(node, values, combine) for node in within(tree(size), count)] for count in range(1, size + 1))
    return [functools.reduce(combine, row) for row in rows]


def exscan(values, combine):
    return [None, *scan(values, combine)[:-1]]


def reduce_scatter(pieces, combine):
    return [reduction(list(column), combine) for column in zip(*pieces, strict=True)]


def alltoall(values):
    return [list(column) for column in zip(*values, strict=True)]


# ---- running and comparing --------------------------------------------------------------------------------------


def both_ways(make, size):
    """The results of ``make(rank)`` for all ranks, with sends that complete at once, and with those that wait."""
    for synchronous in (False, True):
        yield simulate(make, size, synchronous=synchronous).results


def one_after_the_other(schedules):
    """One schedule of several; they may be made when it is their turn."""
    results = []
    for schedule in schedules:
        results.append((yield from schedule))  # noqa: PERF401  # a comprehension cannot yield
    return results


def assert_same(got, expected):
    """Of one type, dtype, shape and bits, through lists, tuples and dicts."""
    assert type(got) is type(expected), f"{got!r} is no {type(expected).__name__}"
    if isinstance(expected, (list, tuple)):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, dict):
        assert_same([*got.items()], [*expected.items()])
    elif isinstance(expected, np.ndarray):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert got.tolist() == expected.tolist() if got.dtype.hasobject else got.tobytes() == expected.tobytes()
    else:
        assert got == expected


def machine_layouts(size):
    """None, one machine, one for each rank, several: whole subtrees, uneven ones, interleaved, in no order."""
    yield None
    yield Machines.of((0,) * size)
    yield Machines.of(tuple(range(size)))
    if size > 2:
        yield Machines.of(tuple(rank // 2 for rank in range(size)))
        yield Machines.of(tuple(0 if rank < 4 else 1 + rank // 2 for rank in range(size)))
        yield Machines.of(tuple(rank // 3 for rank in range(size)))
        yield Machines.of(tuple(rank % 2 for rank in range(size)))
        yield Machines.of(tuple(rank * rank % 7 % 3 for rank in range(size)))
