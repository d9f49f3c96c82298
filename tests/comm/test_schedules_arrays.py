"""Every collective on every kind of array: 0-d to n-d, empty, strided, Fortran, structured, objects, times.

Small ones by the ways of small values, repeated ones by the ways of large arrays.
"""

from __future__ import annotations

import numpy as np
import pytest
import sequential
from sequential import assert_same, both_ways, one_after_the_other

from rmpi.comm import choose
from rmpi.comm.ops import BAND, BOR, BXOR, LAND, LOR, LXOR, MAX, MAXLOC, MIN, MINLOC, PROD, SUM
from rmpi.comm.topology import Machines

PAIRS = [("value", "f8"), ("location", "i8")]
NUMBERS = np.arange(24.0).reshape(2, 3, 4)

ARRAYS = {
    "0-d": np.array(2.5),
    "one element": np.ones((1, 1)),
    "empty": np.zeros((0, 3), np.int32),
    "3-d": NUMBERS,
    "Fortran": np.asfortranarray(NUMBERS[0]),
    "strided": np.arange(20)[::3],
    "reversed": NUMBERS[:, ::-1, ::2],
    "transposed": NUMBERS.transpose(2, 0, 1),
    "broadcast": np.broadcast_to(np.float32(3), (3, 2)),
    "big-endian": np.arange(5, dtype=">i4"),
    "bool": np.array([True, False, True]),
    "complex": np.array([1 + 2j, -1j]),
    "half": np.ones(3, np.float16),
    "structured": np.array([(1, 2.0), (3, 4.0)], [("x", "i2"), ("y", "f8")]),
    "text": np.array(["one", "three"]),
    "bytes": np.array([b"one", b"three"]),
    "objects": np.array([1, 2.5, 10**30], object),
    "dates": np.array(["2026-01-01", "NaT"], "M8[s]"),
    "durations": np.array([1, 5], "m8[ms]"),
    "large": np.arange(40_000.0).reshape(200, 200),
    "large Fortran": np.asfortranarray(np.arange(40_000.0).reshape(200, 200)),
    "large strided": np.arange(80_000.0)[::2],
    "large structured": np.zeros(20_000, [("x", "i2"), ("y", "f8")]),
    "large dates": np.arange(20_000).astype("M8[s]"),
}
every_array = pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
LAYOUTS = {"alone": (1, None), "few": (3, None), "many": (6, None), "machines": (5, Machines.of((0, 1, 0, 1, 2)))}
every_layout = pytest.mark.parametrize(("size", "machines"), LAYOUTS.values(), ids=LAYOUTS)


@every_layout
@every_array
def test_values_that_are_moved_arrive_as_they_are(array, size, machines):
    root = size - 1

    def calls(rank):
        yield choose.broadcast(rank, size, root, array, machines=machines)
        yield choose.gather(rank, size, root, array, machines=machines)
        yield choose.allgather(rank, size, array, machines=machines)
        yield choose.scatter(rank, size, root, [array] * size, machines=machines)
        yield choose.alltoall(rank, size, [array] * size)

    for results in both_ways(lambda rank: one_after_the_other(calls(rank)), size):
        for rank, (sent, at_root, everywhere, scattered, exchanged) in enumerate(results):
            assert (at_root is None) == (rank != root)
            for got in (sent, scattered, *everywhere, *exchanged, *(at_root or ())):
                assert_same(got, array)
                assert got.flags.f_contiguous >= (array.flags.f_contiguous and array.ndim > 1)


@every_layout
@every_array
def test_values_that_are_moved_land_in_out(array, size, machines):
    root = 0
    outs = [[np.empty_like(array) for _ in range(size + 2)] for _ in range(size)]

    def calls(rank):
        one, other, *each = outs[rank]
        yield choose.broadcast(rank, size, root, array, one, machines=machines)
        yield choose.scatter(rank, size, root, [array] * size, other, machines=machines)
        yield choose.allgather(rank, size, array, each, machines=machines)

    for results in both_ways(lambda rank: one_after_the_other(calls(rank)), size):
        for rank, (sent, scattered, everywhere) in enumerate(results):
            assert_same([sent, scattered, *everywhere], [array] * (size + 2))
            if rank != root:
                assert sent is outs[rank][0]
            if array.nbytes > choose.LARGE_PIECE or size <= choose.FEW_RANKS:
                landed = [got is out for got, out in zip(everywhere, outs[rank][2:], strict=True)]
                assert landed == [peer != rank for peer in range(size)]
                assert (scattered is outs[rank][1]) == (rank != root)


COMBINED = [
    (SUM, "0-d"),
    (SUM, "one element"),
    (SUM, "empty"),
    (SUM, "3-d"),
    (SUM, "Fortran"),
    (SUM, "strided"),
    (SUM, "reversed"),
    (SUM, "transposed"),
    (SUM, "broadcast"),
    (SUM, "big-endian"),
    (SUM, "bool"),
    (SUM, "objects"),
    (SUM, "durations"),
    (SUM, "large"),
    (SUM, "large Fortran"),
    (SUM, "large strided"),
    (PROD, "half"),
    (PROD, "complex"),
    (MIN, "dates"),
    (MAX, "large dates"),
    (MAX, "durations"),
    (MAXLOC, "structured"),
    (MINLOC, "large structured"),
    (LAND, "strided"),
    (LOR, "large strided"),
    (LXOR, "objects"),
    (BAND, "strided"),
    (BOR, "bool"),
    (BXOR, "big-endian"),
]


def varied(array, rank):
    """Something else on every rank, in the layout of ``array``."""
    return np.roll(array, rank) if array.flags.c_contiguous else array[::1] if rank % 2 else array.copy(order="K")


@every_layout
@pytest.mark.parametrize(("op", "name"), COMBINED, ids=lambda given: getattr(given, "name", given))
def test_values_that_are_combined(op, name, size, machines):
    values = [varied(ARRAYS[name], rank) for rank in range(size)]
    before = [value.copy() for value in values]
    prepared = [op.prepare(value) for value in values]
    total, prefixes = sequential.reduction(prepared, op), sequential.scan(prepared, op)

    def calls(rank):
        value = values[rank]
        yield choose.reduce(rank, size, 0, value, op, machines=machines)
        yield choose.allreduce(rank, size, value, op, machines=machines)
        yield choose.reduce_scatter(rank, size, [value] * size, op, machines=machines)
        yield choose.scan(rank, size, value, op, machines=machines)
        yield choose.exscan(rank, size, value, op, machines=machines)

    for results in both_ways(lambda rank: one_after_the_other(calls(rank)), size):
        for rank, got in enumerate(results):
            assert_same(
                got, [total if rank == 0 else None, total, total, prefixes[rank], prefixes[rank - 1] if rank else None]
            )
            assert not any(np.may_share_memory(result, values[rank]) for result in got if result is not None)
    assert_same(values, before)


@every_layout
@pytest.mark.parametrize(("op", "name"), COMBINED, ids=lambda given: getattr(given, "name", given))
def test_values_that_are_combined_may_be_given_as_out(op, name, size, machines):
    """An ``out`` that is the value itself is never written to while it is being sent."""
    prepared = [op.prepare(varied(ARRAYS[name], rank)) for rank in range(size)]
    total, prefixes = sequential.reduction(prepared, op), sequential.scan(prepared, op)
    for apart in (True, False):

        def calls(rank, apart=apart):
            for function in (choose.allreduce, reduce_scatter, choose.scan, choose.exscan):
                value = varied(ARRAYS[name], rank).copy(order="K")
                out = np.empty_like(op.prepare(value)) if apart else value
                yield function(rank, size, value, op, out, machines=machines)

        for results in both_ways(lambda rank, c=calls: one_after_the_other(c(rank)), size):
            for rank, got in enumerate(results):
                assert_same(got, [total, total, prefixes[rank], prefixes[rank - 1] if rank else None])


def reduce_scatter(rank, size, value, op, out, machines):
    return choose.reduce_scatter(rank, size, [value] * size, op, out, machines=machines)
