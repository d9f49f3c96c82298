"""Random programs of collectives, against the model without messages.

A program is a list of collectives that all ranks call in turn, each with an operator, a root and a kind of value; the
ranks may be on any machines. One program is one schedule, so a message that one collective leaves over would answer
the next.
"""

from __future__ import annotations

import numpy as np
import sequential
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sequential import assert_same, both_ways, one_after_the_other

from rmpi.comm import choose
from rmpi.comm.ops import MAX, SUM, as_operator
from rmpi.comm.topology import Machines


def mixed(left, right):
    """Neither commutes nor associates; the bits tell in which order it was applied."""
    return left * 0.7 - right * 1.3


OPERATORS = [SUM, MAX, as_operator(np.subtract), as_operator(np.true_divide), as_operator(mixed)]

NUMBERS = {
    "number": lambda seed: 1.5 + seed % 17,
    "scalar array": lambda seed: np.array(2.5 + seed % 13),
    "array": lambda seed: np.random.default_rng(seed).standard_normal((2, 3)),
    "float32 column": lambda seed: np.random.default_rng(seed).standard_normal((5, 1)).astype(np.float32),
    "empty": lambda _seed: np.zeros((0, 2)),
    "every other": lambda seed: np.random.default_rng(seed).standard_normal(12)[::2],
    "large": lambda seed: np.random.default_rng(seed).standard_normal(choose.LARGE_ARRAY // 8 + 3),
}
THINGS = NUMBERS | {
    "nothing": lambda _seed: None,
    "text": lambda seed: str(seed) * (seed % 5),
    "uneven array": lambda seed: np.arange(seed % 7 * 1500),
    "dict": lambda seed: {"seed": seed, "array": np.arange(seed % 4)},
    "list": lambda seed: [seed, (seed, None)],
}

REDUCTIONS = ["reduce", "allreduce", "reduce_scatter", "scan", "exscan"]
MOVES = ["barrier", "broadcast", "gather", "allgather", "scatter", "alltoall"]

calls = st.one_of(
    st.tuples(
        st.sampled_from(REDUCTIONS), st.sampled_from(list(NUMBERS)), st.sampled_from(OPERATORS), st.integers(0, 99)
    ),
    st.tuples(st.sampled_from(MOVES), st.sampled_from(list(THINGS)), st.none(), st.integers(0, 99)),
)


@st.composite
def programs(draw):
    size = draw(st.integers(1, 9))
    ids = draw(st.none() | st.lists(st.integers(0, 3), min_size=size, max_size=size))
    machines = None if ids is None else Machines.of(tuple(ids))
    return size, machines, draw(st.lists(calls, min_size=1, max_size=5))


def value_of(kind, rank, to=0):
    if kind in NUMBERS:
        return NUMBERS[kind](rank * 100 + to)
    kinds = list(THINGS)
    return THINGS[kinds[(kinds.index(kind) + rank + to) % len(kinds)]](rank * 100 + to)


def called(call, rank, size, machines):
    """The schedule of a call on one rank."""
    name, kind, operator, root = call
    root %= size
    one, each = value_of(kind, rank), [value_of(kind, rank, to) for to in range(size)]
    if name == "barrier":
        return choose.barrier(rank, size, machines=machines)
    if name == "alltoall":
        return choose.alltoall(rank, size, each)
    if name in ("broadcast", "gather"):
        return getattr(choose, name)(rank, size, root, one, machines=machines)
    if name == "allgather":
        return choose.allgather(rank, size, one, machines=machines)
    if name == "scatter":
        return choose.scatter(rank, size, root, each if rank == root else None, machines=machines)
    if name == "reduce":
        return choose.reduce(rank, size, root, one, operator, machines=machines)
    value = each if name == "reduce_scatter" else one
    return getattr(choose, name)(rank, size, value, operator, machines=machines)


def modelled(call, size):
    """The results of a call on all ranks."""
    name, kind, operator, root = call
    root %= size
    ones = [value_of(kind, rank) for rank in range(size)]
    each = [[value_of(kind, rank, to) for to in range(size)] for rank in range(size)]

    def at_root(result):
        return [result if rank == root else None for rank in range(size)]

    model = {
        "barrier": lambda: [None] * size,
        "broadcast": lambda: [ones[root]] * size,
        "gather": lambda: at_root(ones),
        "allgather": lambda: [ones] * size,
        "scatter": lambda: each[root],
        "alltoall": lambda: sequential.alltoall(each),
        "reduce": lambda: at_root(sequential.reduction(ones, operator)),
        "allreduce": lambda: [sequential.reduction(ones, operator)] * size,
        "reduce_scatter": lambda: sequential.reduce_scatter(each, operator),
        "scan": lambda: sequential.scan(ones, operator),
        "exscan": lambda: sequential.exscan(ones, operator),
    }
    return model[name]()


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(programs())
def test_any_program_of_collectives_does_what_the_model_says(program):
    size, machines, calls = program
    with np.errstate(all="ignore"):
        expected = [modelled(call, size) for call in calls]
        for results in both_ways(
            lambda rank: one_after_the_other(called(call, rank, size, machines) for call in calls), size
        ):
            for got, wanted in zip(zip(*results, strict=True), expected, strict=True):
                assert_same(list(got), wanted)
