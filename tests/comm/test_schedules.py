"""Every collective on 1 … 33 ranks, buffered and synchronous, without any transport.

The simulator itself fails a run that deadlocks or leaves a message over.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from rmpi.comm import choose
from rmpi.comm.collectives import direct, gathering, reduction
from rmpi.comm.ops import MAX, MIN, PROD, SUM, Operator, as_operator
from rmpi.errors import UsageError
from rmpi.testing.simulate import simulate

SIZES = [*range(1, 18), 31, 32, 33]
FEW_SIZES = [1, 2, 3, 4, 5, 7, 8, 13]
LARGE = choose.LARGE_PIECE + 1

every_size = pytest.mark.parametrize("size", SIZES, ids="n={}".format)
few_sizes = pytest.mark.parametrize("size", FEW_SIZES, ids="n={}".format)
both_modes = pytest.mark.parametrize("synchronous", [False, True], ids=["buffered", "synchronous"])


def rounds(size):
    return (size - 1).bit_length()


def odd_arrays():
    """Arrays that naive transports and algorithms spoil."""
    return [
        np.array(2.5),
        np.zeros((0, 3), np.int32),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(20)[::3],
        np.array([(1, 2.0)], [("x", "i2"), ("y", "f8")]),
    ]


def assert_same_array(got, expected):
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert (got == expected).all()


# ---- broadcast ------------------------------------------------------------------------------------------


@both_modes
@every_size
def test_broadcast_reaches_everyone_from_every_root(size, synchronous):
    for root in range(size):
        run = simulate(
            lambda rank, root=root: choose.broadcast(rank, size, root, f"from {rank}"),
            size,
            synchronous=synchronous,
        )
        assert run.results == [f"from {root}"] * size
        assert len(run.messages) == size - 1


def test_broadcast_trace():
    """Golden. If this diff surprises you, draw the tree before you accept it."""
    run = simulate(lambda rank: choose.broadcast(rank, 5, 3, "x"), 5)
    assert run.trace == ["3 -> 2 x", "3 -> 0 x", "3 -> 4 x", "0 -> 1 x"]


@both_modes
@few_sizes
def test_broadcast_of_large_arrays_in_place(size, synchronous):
    value = np.arange(choose.LARGE_ARRAY, dtype=np.int32)
    outs = [np.empty_like(value) for _ in range(size)]
    run = simulate(
        lambda rank: choose.broadcast(rank, size, 0, value if rank == 0 else None, outs[rank]),
        size,
        synchronous=synchronous,
    )
    assert run.results[0] is value
    for result, out in zip(run.results[1:], outs[1:], strict=True):
        assert result is out
        assert_same_array(out, value)


@pytest.mark.parametrize("array", odd_arrays(), ids=str)
def test_broadcast_keeps_dtype_shape_and_order(array):
    for got in simulate(lambda rank: choose.broadcast(rank, 4, 1, array), 4).results:
        assert_same_array(got, array)
        assert got.flags.f_contiguous or not array.flags.f_contiguous


# ---- barrier --------------------------------------------------------------------------------------------


@both_modes
@every_size
def test_barrier_takes_log_rounds_of_one_message_each(size, synchronous):
    run = simulate(lambda rank: choose.barrier(rank, size), size, synchronous=synchronous)
    assert run.results == [None] * size
    assert len(run.messages) == size * rounds(size)


@few_sizes
def test_nobody_leaves_a_barrier_before_everybody_has_come(size):
    """The ranks that a rank's leaving depends on, over all rounds, are all."""
    for last in range(size):
        came = set()

        def schedule(rank, last=last, came=came):
            came.add(rank)
            yield from choose.barrier(rank, size)
            assert last in came

        simulate(schedule, size)


def test_barrier_trace():
    run = simulate(lambda rank: choose.barrier(rank, 3), 3)
    assert run.trace == [
        *("0 -> 1 None", "1 -> 2 None", "2 -> 0 None"),
        *("1 -> 0 None", "0 -> 2 None", "2 -> 1 None"),
    ]


# ---- reduce and allreduce -------------------------------------------------------------------------------


def bracket(left, right):
    return f"({left} {right})"


BRACKETS = {
    1: "0",
    2: "(0 1)",
    3: "((0 1) 2)",
    4: "((0 1) (2 3))",
    5: "(((0 1) 2) (3 4))",
    6: "(((0 1) (2 3)) (4 5))",
    7: "(((0 1) (2 3)) ((4 5) 6))",
    8: "(((0 1) (2 3)) ((4 5) (6 7)))",
}


@pytest.mark.parametrize("size", BRACKETS)
def test_there_is_one_bracketing_whatever_the_root(size):
    operator = as_operator(bracket)
    for root in range(size):
        run = simulate(lambda rank, root=root: choose.reduce(rank, size, root, str(rank), operator), size)
        assert run.results[root] == BRACKETS[size]
    everywhere = simulate(lambda rank: choose.allreduce(rank, size, str(rank), operator), size)
    assert everywhere.results == [BRACKETS[size]] * size


@pytest.mark.parametrize("size", [size for size in BRACKETS if size > 1])
def test_the_bracketing_is_the_same_in_one_round(size):
    operator = as_operator(bracket)
    everywhere = simulate(lambda rank: direct.allreduce(rank, size, str(rank), operator), size)
    assert everywhere.results == [BRACKETS[size]] * size
    for root in range(size):
        run = simulate(lambda rank, root=root: direct.reduce(rank, size, root, str(rank), operator), size)
        assert run.results == [BRACKETS[size] if rank == root else None for rank in range(size)]


@both_modes
@every_size
def test_reduce_keeps_rank_order_at_every_root_without_an_extra_hop(size, synchronous):
    letters = [chr(ord("A") + rank) for rank in range(size)]
    for root in range(size):
        run = simulate(
            lambda rank, root=root: choose.reduce(rank, size, root, letters[rank], SUM),
            size,
            synchronous=synchronous,
        )
        assert run.results == ["".join(letters) if rank == root else None for rank in range(size)]
        assert len(run.messages) == size - 1


@both_modes
@every_size
@pytest.mark.parametrize("operator", [SUM, as_operator(lambda left, right: left + right)], ids=repr)
def test_allreduce_keeps_rank_order(size, operator, synchronous):
    letters = [chr(ord("A") + rank) for rank in range(size)]
    run = simulate(lambda rank: choose.allreduce(rank, size, letters[rank], operator), size, synchronous=synchronous)
    assert run.results == ["".join(letters)] * size


def test_reduce_trace():
    """Golden: 5 ranks, so 0 and 1 are folded; root 3 is where every path ends."""
    run = simulate(lambda rank: choose.reduce(rank, 5, 3, "abcde"[rank], SUM), 5)
    assert run.trace == ["1 -> 0 b", "2 -> 0 c", "4 -> 3 e", "0 -> 3 abc"]


def test_recursive_doubling_trace():
    run = simulate(lambda rank: reduction.recursive_doubling(rank, 3, "abc"[rank], SUM), 3)
    assert run.trace == ["1 -> 0 b", "2 -> 0 c", "0 -> 2 ab", "0 -> 1 abc"]


def test_a_callable_is_applied_once_per_pair():
    for size in FEW_SIZES:
        calls = []

        def add(left, right, calls=calls):
            calls.append((left, right))
            return left + right

        operator = as_operator(add)
        run = simulate(lambda rank, op=operator, n=size: choose.allreduce(rank, n, rank, op), size)
        assert run.results == [size * (size - 1) // 2] * size
        assert len(calls) == size - 1


def test_an_operator_that_raises_does_so_on_its_rank():
    def fails(_left, _right):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        simulate(lambda rank: choose.allreduce(rank, 4, rank, as_operator(fails)), 4)
    assert caught.value.__notes__ == ["in the schedule of rank 0 of 4"]


def every_reduction(size, values, operator):
    """The result of every algorithm, at every root, on every rank that gets one."""
    for allreduce in (
        lambda rank: reduction.recursive_doubling(rank, size, values[rank], operator),
        lambda rank: reduction.rabenseifner(rank, size, values[rank], operator),
        lambda rank: reduction.tree_then_broadcast(rank, size, values[rank], operator, large=0),
        lambda rank: direct.allreduce(rank, size, values[rank], operator),
    ):
        for synchronous in (False, True):
            yield from simulate(allreduce, size, synchronous=synchronous).results
    for root in range(size):
        for reduce in (reduction.tree, direct.reduce):
            run = simulate(lambda rank, root=root, f=reduce: f(rank, size, root, values[rank], operator), size)
            yield run.results[root]


@pytest.mark.parametrize("size", range(2, 18))
@pytest.mark.parametrize("operator", [SUM, PROD], ids=repr)
def test_every_algorithm_gives_every_rank_the_same_bits(size, operator):
    random = np.random.default_rng(size)
    values = [random.standard_normal(37).astype(np.float32) for _ in range(size)]
    results = list(every_reduction(size, values, operator))
    assert {result.tobytes() for result in results} == {results[0].tobytes()}
    assert all(result.dtype == np.float32 for result in results)
    expected = functools.reduce(operator, [value.astype(np.float64) for value in values])
    assert np.allclose(results[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 4, 6, 8])
def test_large_arrays_are_reduced_in_parts(size):
    """Rabenseifner: less than two whole arrays leave each rank; one more where two are folded."""
    values = [np.full((130, 130), rank, np.float64) for rank in range(size)]
    run = simulate(lambda rank: choose.allreduce(rank, size, values[rank], SUM), size, synchronous=True)
    for result in run.results:
        assert_same_array(result, sum(values))
    blocks = 1 << (size.bit_length() - 1)
    assert len(run.messages) == 2 * blocks * rounds(blocks) + 2 * (size - blocks)
    assert run.nbytes == values[0].nbytes * (2 * (blocks - 1) + 2 * (size - blocks))


def test_rabenseifner_with_fewer_elements_than_ranks():
    run = simulate(lambda rank: reduction.rabenseifner(rank, 13, np.array([rank, 1]), SUM), 13)
    assert [result.tolist() for result in run.results] == [[78, 13]] * 13


@pytest.mark.parametrize(
    ("op", "dtype", "messages"),
    [
        (SUM, "f8", 16),  # Rabenseifner
        (SUM, ">f8", 8),  # recursive doubling: the result has another dtype, the native one
        (np.logaddexp, "f8", 16),  # each element on one rank: need not be exact
        (PROD, "c16", 16),
        (lambda left, right: left + right, "f8", 6),  # reduce, then broadcast
        (np.frompyfunc(max, 2, 1), "f8", 6),
    ],
)
def test_the_way_a_large_array_goes(op, dtype, messages):
    value = np.ones(choose.LARGE_ARRAY // 4, dtype)
    run = simulate(lambda rank: choose.allreduce(rank, 4, value, as_operator(op)), 4)
    assert len(run.messages) == messages


@pytest.mark.parametrize(
    ("op", "value", "messages"),
    [
        (SUM, np.ones(3), 12),  # all to all
        (SUM, 5, 12),
        (SUM, np.ones(choose.SMALL_ARRAY // 8 + 1), 8),  # recursive doubling
        (PROD, np.ones(3, complex), 6),  # rounds differently on different processors
        (np.logaddexp, np.ones(3), 6),
        (np.matmul, np.eye(2), 6),
    ],
)
def test_the_way_a_small_value_goes(op, value, messages):
    run = simulate(lambda rank: choose.allreduce(rank, 4, value, as_operator(op)), 4)
    assert len(run.messages) == messages


@pytest.mark.parametrize("size", [3, 4])
def test_few_ranks_need_one_round(size):
    """Every message of a small collective leaves its rank before anything has to arrive."""

    def in_one_round(schedule):
        result = yield next(schedule)
        with pytest.raises(StopIteration):
            schedule.send(result)

    for make in (
        lambda rank: choose.reduce(rank, size, 1, np.ones(3), SUM),
        lambda rank: choose.allreduce(rank, size, rank, MAX),
        lambda rank: choose.gather(rank, size, 1, rank),
        lambda rank: choose.allgather(rank, size, rank),
        lambda rank: choose.scatter(rank, size, 1, range(size) if rank == 1 else None),
    ):
        simulate(lambda rank, make=make: in_one_round(make(rank)), size)


def test_an_operator_of_ones_own_keeps_the_tree_on_few_ranks():
    """It may take long, so that two ranks had better apply it at the same time."""
    run = simulate(lambda rank: choose.reduce(rank, 4, 0, "abcd"[rank], as_operator(bracket)), 4)
    assert run.trace == ["1 -> 0 b", "3 -> 2 d", "2 -> 0 (c d)"]


def test_matrices_multiply_in_rank_order():
    random = np.random.default_rng(0)
    matrices = [random.integers(-2, 3, (100, 100)) for _ in range(5)]
    run = simulate(lambda rank: choose.allreduce(rank, 5, matrices[rank], as_operator(np.matmul)), 5)
    for result in run.results:
        assert (result == np.linalg.multi_dot(matrices)).all()


@few_sizes
@pytest.mark.parametrize("count", [3, 20_000], ids=["small", "large"])
@both_modes
def test_allreduce_leaves_the_input_alone_and_aliases_nothing(size, count, synchronous):
    values = [np.full(count, rank + 1.0) for rank in range(size)]
    run = simulate(lambda rank: choose.allreduce(rank, size, values[rank], MAX), size, synchronous=synchronous)
    for rank, result in enumerate(run.results):
        assert (result == size).all()
        assert (values[rank] == rank + 1).all()
        assert not any(np.shares_memory(result, value) for value in values)


@few_sizes
def test_an_operator_that_returns_an_operand_does_not_leak_the_input(size):
    values = [[rank] for rank in range(size)]
    arrays = [np.array([rank]) for rank in range(size)]
    first = as_operator(lambda left, _right: left[:])
    for run in (
        simulate(lambda rank: choose.allreduce(rank, size, values[rank], MIN), size),
        simulate(lambda rank: choose.allreduce(rank, size, arrays[rank], first), size),
    ):
        assert [list(result) for result in run.results] == [[0]] * size
    assert not np.shares_memory(run.results[0], arrays[0])
    assert simulate(lambda rank: choose.reduce(rank, size, 0, values[rank], MIN), size).results[0] is not values[0]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("count", [3, 20_000], ids=["small", "large"])
@both_modes
def test_reductions_are_received_and_combined_in_out(size, count, synchronous):
    values = [np.full(count, rank) for rank in range(size)]
    outs = [np.empty(count, int) for _ in range(size)]
    total = size * (size - 1) // 2
    run = simulate(
        lambda rank: choose.allreduce(rank, size, values[rank], SUM, outs[rank]),
        size,
        synchronous=synchronous,
    )
    for result, out in zip(run.results, outs, strict=True):
        assert result is out
        assert (out == total).all()
    for root in range(size):
        out = np.empty(count, int)
        run = simulate(lambda rank, root=root, out=out: choose.reduce(rank, size, root, values[rank], SUM, out), size)
        assert run.results[root] is out
        assert (out == total).all()


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize("count", [3, 20_000], ids=["small", "large"])
def test_out_may_be_the_input(size, count):
    values = [np.full(count, rank + 1) for rank in range(size)]
    run = simulate(lambda rank: choose.allreduce(rank, size, values[rank], SUM, values[rank]), size, synchronous=True)
    for result in run.results:
        assert (result == size * (size + 1) // 2).all()


@pytest.mark.parametrize("out", [np.empty(20_001), np.empty(20_000, "f4"), np.empty(40_000)[::2]])
def test_an_out_that_does_not_fit_is_left_to_the_caller(out):
    out[...] = -1
    value = np.ones(20_000)
    for result in simulate(lambda rank: choose.allreduce(rank, 3, value, SUM, out), 3).results:
        assert result is not out
        assert (result == 3).all()
    assert (out == -1).all()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(), (0,), (4, 0), (3, 2), (150, 130)], ids=str)
def test_reductions_keep_shape_and_fortran_order(size, shape):
    value = np.asfortranarray(np.ones(shape, np.float32))
    for result in simulate(lambda rank: choose.allreduce(rank, size, value, SUM), size).results:
        assert isinstance(result, np.ndarray)
        assert result.flags.f_contiguous
        assert_same_array(result, value * np.float32(size))


def test_ranks_may_lay_out_a_large_array_differently():
    array = np.arange(150.0 * 130).reshape(150, 130)
    layouts = [array, np.asfortranarray(array), np.repeat(array, 2, axis=1)[:, ::2]]
    for result in simulate(lambda rank: choose.allreduce(rank, 3, layouts[rank], SUM), 3).results:
        assert_same_array(result, 3 * array)


def test_a_rank_may_map_its_large_array_from_a_file(tmp_path):
    array = np.ones(20_000)
    array.tofile(tmp_path / "array")
    mapped = np.memmap(tmp_path / "array", np.float64, "r")
    run = simulate(lambda rank: choose.allreduce(rank, 2, [array, mapped][rank], SUM), 2)
    for result in run.results:
        assert type(result) is np.ndarray
        assert (result == 2).all()


def test_masks_are_kept():
    masked = np.ma.masked_array(np.ones(20_000), mask=np.arange(20_000) < 3)
    for result in simulate(lambda rank: choose.allreduce(rank, 3, masked, SUM), 3).results:
        assert result.sum() == 3 * (20_000 - 3)


def test_objects_of_mixed_types_are_reduced():
    values = [1, 2.5, np.float32(0.5), True, 10**30]
    for result in simulate(lambda rank: choose.allreduce(rank, 5, values[rank], SUM), 5).results:
        assert result == pytest.approx(1e30)


def test_objects_keep_the_bracketing_even_where_any_order_is_permitted():
    free = Operator(bracket, commutes=True, reproducible=False)
    assert simulate(lambda rank: choose.allreduce(rank, 4, str(rank), free), 4).results == [BRACKETS[4]] * 4


# ---- gather, allgather, scatter -------------------------------------------------------------------------


def pieces_of_all_sorts(size):
    """Uneven, mixed, every third of them large."""
    kinds = [
        lambda rank: rank,
        lambda rank: np.full(rank, rank, np.int16),
        lambda rank: np.full(LARGE, rank % 100, np.int8),
        lambda rank: {"rank": rank, "list": [None] * rank},
        lambda rank: None,  # noqa: ARG005
        lambda rank: bytes([rank]) * LARGE,
    ]
    return [kinds[rank % len(kinds)](rank) for rank in range(size)]


def assert_same_pieces(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert type(one) is type(other)
        if isinstance(other, np.ndarray):
            assert_same_array(one, other)
        else:
            assert one == other


@both_modes
@every_size
def test_gather_at_every_root(size, synchronous):
    for root in range(size):
        run = simulate(lambda rank, root=root: choose.gather(rank, size, root, rank), size, synchronous=synchronous)
        assert run.results == [list(range(size)) if rank == root else None for rank in range(size)]
        assert len(run.messages) == size - 1


@both_modes
@few_sizes
def test_gather_of_pieces_of_all_sorts(size, synchronous):
    pieces = pieces_of_all_sorts(size)
    for root in range(size):
        run = simulate(
            lambda rank, root=root: choose.gather(rank, size, root, pieces[rank]),
            size,
            synchronous=synchronous,
        )
        assert_same_pieces(run.results[root], pieces)


def test_gather_trace():
    """Golden: 3 is large, so it is announced by way of 2 and goes straight; 1, next to the root, need not."""
    pieces = ["a", "b" * LARGE, "c", "d" * LARGE]
    run = simulate(lambda rank: gathering.gather(rank, 4, 0, pieces[rank], large=choose.LARGE_PIECE), 4)
    assert [line[:24] for line in run.trace] == [
        "1 -> 0 " + "b" * 17,
        "3 -> 2 [[None], [0]]",
        "3 -> 0 " + "d" * 17,
        "2 -> 0 [['c', None], [1]]"[:24],
    ]


@both_modes
@every_size
def test_allgather(size, synchronous):
    run = simulate(lambda rank: choose.allgather(rank, size, rank), size, synchronous=synchronous)
    assert run.results == [list(range(size))] * size
    assert len(run.messages) == size * (size - 1 if size <= choose.FEW_RANKS else rounds(size))


@both_modes
@few_sizes
def test_allgather_of_pieces_of_all_sorts(size, synchronous):
    pieces = pieces_of_all_sorts(size)
    run = simulate(lambda rank: choose.allgather(rank, size, pieces[rank]), size, synchronous=synchronous)
    for result in run.results:
        assert_same_pieces(result, pieces)


def test_allgather_of_large_pieces_goes_around_the_ring():
    pieces = [np.full(LARGE, rank, np.int8) for rank in range(5)]
    run = simulate(lambda rank: choose.allgather(rank, 5, pieces[rank]), 5, synchronous=True)
    large = [message for message in run.messages if message.nbytes >= LARGE]
    assert len(large) == 5 * 4
    assert {(message.dest - message.source) % 5 for message in large} == {1}


def test_allgather_sends_a_single_large_piece_down_a_tree():
    pieces = [np.full(LARGE if rank == 3 else 1, rank, np.int8) for rank in range(16)]
    run = simulate(lambda rank: choose.allgather(rank, 16, pieces[rank]), 16, synchronous=True)
    large = [message for message in run.messages if message.nbytes >= LARGE]
    assert len(large) == 15
    assert [message.source for message in large].count(3) == 4
    for result in run.results:
        assert_same_pieces(result, pieces)


@pytest.mark.parametrize("owners", [[], [0], [1, 4], [0, 1, 2, 3, 4]], ids=str)
@both_modes
def test_the_ring_passes_only_what_it_is_told(owners, synchronous):
    run = simulate(lambda rank: gathering.ring(rank, 5, rank * 10, owners), 5, synchronous=synchronous)
    assert run.results == [{owner: owner * 10 for owner in owners}] * 5
    assert len(run.messages) == 4 * len(owners)


@both_modes
@every_size
def test_scatter_from_every_root(size, synchronous):
    for root in range(size):
        run = simulate(
            lambda rank, root=root: choose.scatter(rank, size, root, range(size) if rank == root else None),
            size,
            synchronous=synchronous,
        )
        assert run.results == list(range(size))
        assert len(run.messages) == size - 1


@both_modes
@few_sizes
def test_scatter_of_pieces_of_all_sorts(size, synchronous):
    pieces = pieces_of_all_sorts(size)
    for root in range(size):
        run = simulate(
            lambda rank, root=root: choose.scatter(rank, size, root, pieces if rank == root else None),
            size,
            synchronous=synchronous,
        )
        assert_same_pieces(run.results, pieces)


def test_scatter_trace():
    """Golden: 3 is large and comes straight from the root, and 2 and 3 learn so from the bundle."""
    pieces = ["a", "b" * LARGE, "c", "d" * LARGE]
    run = simulate(lambda rank: gathering.scatter(rank, 4, 0, pieces, large=choose.LARGE_PIECE), 4)
    assert [line[:24] for line in run.trace] == [
        "0 -> 2 [['c', None], [1]]"[:24],
        "0 -> 1 " + "b" * 17,
        "0 -> 3 " + "d" * 17,
        "2 -> 3 [[None], [0]]",
    ]


@few_sizes
@both_modes
def test_scatter_of_large_arrays_in_place(size, synchronous):
    pieces = np.arange(size * LARGE).reshape(size, LARGE)
    outs = [np.empty(LARGE, int) for _ in range(size)]
    run = simulate(
        lambda rank: choose.scatter(rank, size, 0, pieces if rank == 0 else None, outs[rank]),
        size,
        synchronous=synchronous,
    )
    for rank in range(1, size):
        assert run.results[rank] is outs[rank]
        assert_same_array(outs[rank], pieces[rank])


@pytest.mark.parametrize("array", odd_arrays(), ids=str)
def test_pieces_keep_dtype_shape_and_order(array):
    for results in (
        simulate(lambda rank: choose.scatter(rank, 4, 0, [array] * 4), 4).results,
        simulate(lambda rank: choose.gather(rank, 4, 0, array), 4).results[0],
        *simulate(lambda rank: choose.allgather(rank, 4, array), 4).results,
    ):
        for got in results:
            assert_same_array(got, array)
            assert got.flags.f_contiguous or not array.flags.f_contiguous


@pytest.mark.parametrize("values", [None, 7, [1, 2, 3], [1] * 5, np.array(4.0)])
def test_scatter_refuses_anything_but_one_value_for_each_rank_before_it_sends(values):
    with pytest.raises(UsageError, match="scatter needs 4 values on the root"):
        choose.scatter(0, 4, 0, values)


# ---- alone ----------------------------------------------------------------------------------------------


def test_one_rank_never_yields():
    for schedule, expected in (
        (choose.barrier(0, 1), None),
        (choose.broadcast(0, 1, 0, "x"), "x"),
        (choose.gather(0, 1, 0, "x"), ["x"]),
        (choose.allgather(0, 1, "x"), ["x"]),
        (choose.scatter(0, 1, 0, ["x"]), "x"),
        (choose.reduce(0, 1, 0, "x", SUM), "x"),
        (choose.allreduce(0, 1, "x", SUM), "x"),
    ):
        with pytest.raises(StopIteration) as end:
            next(schedule)
        assert end.value.value == expected


def test_one_rank_reduces_to_a_copy():
    value = np.ones(3)
    alone = simulate(lambda rank: choose.allreduce(rank, 1, value, SUM), 1).results[0]
    assert not np.shares_memory(alone, value)
