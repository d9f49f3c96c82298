"""Alltoall, reduce_scatter, scan and exscan on 1 … 33 ranks, without any transport."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sequential
from sequential import assert_same, both_ways, one_after_the_other

from rmpi.comm import choose
from rmpi.comm.collectives import direct, exchange, scanning, scattering
from rmpi.comm.collectives.bracket import prefixed
from rmpi.comm.ops import BAND, BOR, BXOR, LAND, LOR, LXOR, MAX, MAXLOC, MIN, MINLOC, PROD, SUM, Operator, as_operator
from rmpi.errors import UsageError
from rmpi.testing.simulate import simulate

every_size = pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 16, 33], ids="n={}".format)
few_sizes = pytest.mark.parametrize("size", [2, 3, 5, 6, 8, 11], ids="n={}".format)

SUBTRACT = as_operator(np.subtract)
"""Neither commutes nor associates, and is exact."""

ANY_ORDER = Operator(np.add, name="any order", commutes=True, reproducible=False)


def text(left, right):
    return f"({left} {right})"


def mixed(left, right):
    """Neither commutes nor associates, in floating point, and nobody knows that it is exact."""
    return left * 0.7 - right * 1.3


def rounds(size):
    return (size - 1).bit_length()


# ---- alltoall -----------------------------------------------------------------------------------------------------


def pieces_of_all_sorts(size):
    """``[i][j]`` goes from i to j: small, large and of unknown length."""
    kinds = [
        lambda i, j: (i, j),
        lambda i, j: i * 100 + j,
        lambda i, j: np.full((i + j) % 3, i, np.int16),
        lambda i, j: np.full(10_000, i - j),
        lambda i, j: f"{i}→{j}" * (1 + j % 2 * 100),
        lambda _i, _j: None,
    ]
    return [[kinds[(i + 2 * j) % len(kinds)](i, j) for j in range(size)] for i in range(size)]


@every_size
def test_alltoall_of_pieces_of_all_sorts(size):
    pieces = pieces_of_all_sorts(size)
    for results in both_ways(lambda rank: choose.alltoall(rank, size, pieces[rank]), size):
        assert_same(results, sequential.alltoall(pieces))
        assert all(results[rank][rank] is pieces[rank][rank] for rank in range(size))


@few_sizes
@pytest.mark.parametrize("small", [0, 256])
def test_every_algorithm_of_alltoall_gives_the_same(size, small):
    pieces = pieces_of_all_sorts(size)
    for make in (
        lambda rank: direct.alltoall(rank, size, pieces[rank]),
        lambda rank: exchange.pairwise(rank, size, pieces[rank]),
        lambda rank: exchange.pairwise(rank, size, pieces[rank], at_once=3),
        lambda rank: exchange.bruck(rank, size, pieces[rank], small=small),
        lambda rank: exchange.bruck(rank, size, pieces[rank], small=small, at_once=2),
    ):
        for results in both_ways(make, size):
            assert_same(results, sequential.alltoall(pieces))


@pytest.mark.parametrize("size", [1, 2, 5, 32])
def test_alltoall_in_place(size):
    for count in (2, 5000):
        values = [np.arange(size * count).reshape(size, count) + 1000 * rank for rank in range(size)]
        outs = [list(np.empty((size, count), int)) for _ in range(size)]
        run = simulate(lambda rank, v=values, o=outs: choose.alltoall(rank, size, v[rank], o[rank]), size)
        for rank, result in enumerate(run.results):
            assert_same(result, [values[peer][rank] for peer in range(size)])
            landed = [result[peer] is outs[rank][peer] for peer in range(size) if peer != rank]
            assert all(landed) or (size >= choose.BRUCK_RANKS and count == 2)


def test_alltoall_leaves_an_out_alone_that_shares_memory_with_the_values():
    values = [np.arange(20_000).reshape(4, 5000) + 100_000 * rank for rank in range(4)]
    before = [array.copy() for array in values]
    for results in both_ways(lambda rank: choose.alltoall(rank, 4, values[rank], list(values[rank])), 4):
        assert_same(results, [[before[peer][rank] for peer in range(4)] for rank in range(4)])
        assert_same(values, before)


def test_alltoall_trace():
    """Golden: three slots for small pieces, 2 and 3 go on together; the large one is announced, and follows."""
    pieces = [[f"{i}{j}" if (i, j) != (3, 1) else "x" * 999 for j in range(4)] for i in range(4)]
    run = simulate(lambda rank: exchange.bruck(rank, 4, pieces[rank], small=10), 4)
    assert run.trace == [
        *("0 -> 1 [['01', '03'], []]", "1 -> 2 [['12', '10'], []]"),
        *("2 -> 3 [['23', '21'], []]", "3 -> 0 [['30', '32'], []]"),
        *("1 -> 3 [['13', '03'], []]", "2 -> 0 [['20', '10'], []]"),
        *("0 -> 2 [['02', '32'], []]", "3 -> 1 [[None, '21'], [2]]"),
        "3 -> 1 " + "x" * 39 + "…",
    ]


def test_small_pieces_travel_together_among_many_ranks_only():
    for size, messages in ((5, 5 * 4), (32, 32 * 5)):
        run = simulate(lambda rank, n=size: choose.alltoall(rank, n, range(n)), size)
        assert len(run.messages) == messages


def test_a_rank_has_few_messages_under_way():
    for steps in (
        next(choose.alltoall(0, 31, ["object"] * 31)),
        next(exchange.pairwise(0, 99, ["object"] * 99, at_once=choose.AT_ONCE)),
    ):
        assert len(steps) <= 2 * choose.AT_ONCE


# ---- reduce_scatter -----------------------------------------------------------------------------------------------


def every_reduce_scatter(size, pieces, operator, outs=None):
    """Every algorithm, on every rank."""
    offered = outs or [None] * size
    arguments = [(rank, size, pieces[rank], operator, offered[rank]) for rank in range(size)]
    yield lambda rank: choose.reduce_scatter(*arguments[rank])
    yield lambda rank: scattering.halving(*arguments[rank])
    yield lambda rank: scattering.pairwise(*arguments[rank], at_once=2)
    yield lambda rank: direct.reduce_scatter(*arguments[rank])
    if isinstance(pieces[0][0], np.ndarray) and operator.keeps(pieces[0][0].dtype):
        yield lambda rank: scattering.packed_halving(*arguments[rank])


@every_size
def test_reduce_scatter_keeps_the_bracketing(size):
    pieces = [[f"{rank}:{to}" for to in range(size)] for rank in range(size)]
    for results in both_ways(lambda rank: choose.reduce_scatter(rank, size, pieces[rank], as_operator(text)), size):
        assert results == sequential.reduce_scatter(pieces, text)


@few_sizes
@pytest.mark.parametrize("op", [SUBTRACT, as_operator(np.true_divide), as_operator(mixed)], ids=repr)
@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
def test_every_reduce_scatter_gives_the_bits_of_reduce(size, op, uneven):
    random = np.random.default_rng(size)
    pieces = [[random.standard_normal((3 + to * uneven, 2)) for to in range(size)] for _ in range(size)]
    before = [[piece.copy() for piece in row] for row in pieces]
    expected = sequential.reduce_scatter(pieces, op)
    for make in every_reduce_scatter(size, pieces, op):
        for results in both_ways(make, size):
            assert_same(results, expected)
            assert_same(pieces, before)
    for to in range(size):
        reduced = simulate(lambda rank, to=to: choose.reduce(rank, size, to, pieces[rank][to], op), size)
        assert_same(reduced.results[to], expected[to])


@few_sizes
@pytest.mark.parametrize("count", [3, 5000], ids=["small", "large"])
def test_reduce_scatter_in_out(size, count):
    pieces = [np.full((size, count), rank) * np.arange(size)[:, None] for rank in range(size)]
    expected = sequential.reduce_scatter([list(array) for array in pieces], SUM)
    for index in range(5):
        outs = [np.empty(count, int) for _ in range(size)]
        make = list(every_reduce_scatter(size, pieces, SUM, outs))[index]
        for results in both_ways(make, size):
            assert_same(results, expected)
        if index != 1:  # in a list of pieces they cannot land
            assert all(result is out for result, out in zip(results, outs, strict=True))


@few_sizes
@pytest.mark.parametrize("count", [3, 5000], ids=["small", "large"])
def test_reduce_scatter_into_one_of_its_pieces(size, count):
    pieces = [np.full((size, count), rank + 1) for rank in range(size)]
    run = simulate(
        lambda rank: choose.reduce_scatter(rank, size, pieces[rank], SUM, pieces[rank][0]), size, synchronous=True
    )
    for result in run.results:
        assert (result == size * (size + 1) // 2).all()


@every_size
def test_reduce_scatter_applies_a_callable_once_per_pair(size):
    calls = []

    def add(left, right):
        calls.append(left)
        return left + right

    run = simulate(lambda rank: choose.reduce_scatter(rank, size, [rank] * size, as_operator(add)), size)
    assert run.results == [size * (size - 1) // 2] * size
    assert len(calls) == size * (size - 1)


@few_sizes
def test_results_of_reduce_scatter_are_apart_from_its_pieces(size):
    pieces = [[[rank] for _ in range(size)] for rank in range(size)]
    run = simulate(lambda rank: choose.reduce_scatter(rank, size, pieces[rank], MIN), size)
    assert run.results == [[0]] * size
    assert not any(result is piece for result in run.results for row in pieces for piece in row)


def test_the_way_a_reduce_scatter_goes():
    for size, count, op, messages in (
        (4, 10, SUM, 4 * 3),  # one round
        (8, 10, SUM, 8 * 3),  # halving
        (6, 10, SUM, 4 * 2 + 4),  # the same with two pairs folded
        (8, 5000, SUM, 8 * 7),  # pairwise
        (16, 600, SUM, 16 * 4),  # large, but with too little for each rank: halving
        (8, 5000, ANY_ORDER, 8 * 7),  # ring
    ):
        pieces = np.ones((size, count))
        run = simulate(lambda rank, n=size, p=pieces, o=op: choose.reduce_scatter(rank, n, p, o), size)
        assert len(run.messages) == messages
        assert all((result == size).all() for result in run.results)


# ---- every operator on objects ------------------------------------------------------------------------------------

OBJECTS = {
    SUM: lambda rank: [rank],
    PROD: lambda rank: 1 + rank % 3,
    MIN: lambda rank: -(rank % 5),
    MAX: lambda rank: 1.5 * (rank % 4),
    MINLOC: lambda rank: (rank * 3 % 4, rank),
    MAXLOC: lambda rank: (rank * 3 % 4 if rank != 2 else math.inf, -rank),
    LAND: lambda rank: rank % 6 - 5,
    LOR: lambda rank: "x" * (rank // 4),
    LXOR: lambda rank: rank % 3,
    BAND: lambda rank: 255 - rank,
    BOR: lambda rank: {rank, 2 * rank},
    BXOR: lambda rank: rank * rank,
}


@every_size
@pytest.mark.parametrize(("operator", "make"), OBJECTS.items(), ids=lambda given: getattr(given, "name", ""))
def test_every_operator_on_objects(size, operator, make):
    values = [make(rank) for rank in range(size)]
    prepared = [operator.prepare(value) for value in values]
    total, prefixes = sequential.reduction(prepared, operator), sequential.scan(prepared, operator)

    def calls(rank):
        yield choose.reduce(rank, size, size - 1, values[rank], operator)
        yield choose.allreduce(rank, size, values[rank], operator)
        yield choose.reduce_scatter(rank, size, [values[rank]] * size, operator)
        yield choose.scan(rank, size, values[rank], operator)
        yield choose.exscan(rank, size, values[rank], operator)

    run = simulate(lambda rank: one_after_the_other(calls(rank)), size, synchronous=True)
    for rank, got in enumerate(run.results):
        reduced = total if rank == size - 1 else None
        assert_same(got, [reduced, total, total, prefixes[rank], prefixes[rank - 1] if rank else None])


# ---- any order ----------------------------------------------------------------------------------------------------


@few_sizes
def test_around_the_ring_in_any_order(size):
    random = np.random.default_rng(size)
    pieces = [random.standard_normal((size, 5000)) for _ in range(size)]
    for results in both_ways(lambda rank: scattering.ring(rank, size, pieces[rank], ANY_ORDER), size):
        assert np.allclose(results, sum(pieces))
    for results in both_ways(lambda rank: choose.allreduce(rank, size, pieces[rank], ANY_ORDER), size):
        assert all(np.allclose(result, sum(pieces)) for result in results)
        assert len({result.tobytes() for result in results}) == 1


def test_the_ring_spares_the_fold_of_a_size_that_is_no_power_of_two():
    for size, op, nbytes in ((6, SUM, 2 * 3 + 2 * 2), (6, ANY_ORDER, 2 * 5), (8, ANY_ORDER, 2 * 7)):
        value = np.ones(24_000)
        run = simulate(lambda rank, n=size, o=op, v=value: choose.allreduce(rank, n, v, o), size)
        assert run.nbytes == nbytes * value.nbytes
    to_the_next = {(message.dest - message.source) % 6 for message in run.messages}
    assert to_the_next != {1}  # a power of two: halves
    run = simulate(lambda rank: choose.allreduce(rank, 6, value, ANY_ORDER), 6)
    assert {(message.dest - message.source) % 6 for message in run.messages} == {1}


# ---- scan and exscan ------------------------------------------------------------------------------------------------

PREFIXES = {
    5: ["0", "(0 1)", "((0 1) 2)", "(((0 1) 2) 3)", "(((0 1) 2) (3 4))"],
    6: ["0", "(0 1)", "((0 1) 2)", "((0 1) (2 3))", "(((0 1) (2 3)) 4)", "(((0 1) (2 3)) (4 5))"],
    8: [
        *("0", "(0 1)", "((0 1) 2)", "((0 1) (2 3))", "(((0 1) (2 3)) 4)", "(((0 1) (2 3)) (4 5))"),
        *("((((0 1) (2 3)) (4 5)) 6)", "(((0 1) (2 3)) ((4 5) (6 7)))"),
    ],
}


@pytest.mark.parametrize("size", PREFIXES)
def test_prefixes_are_the_largest_subtrees_from_left_to_right(size):
    texts = [str(rank) for rank in range(size)]
    assert sequential.scan(texts, text) == PREFIXES[size]
    assert [prefixed(texts[: rank + 1], size, text) for rank in range(size)] == PREFIXES[size]


def every_scan(size, values, operator, *, exclusive):
    """Every algorithm, on every rank."""
    chosen = choose.exscan if exclusive else choose.scan
    sweeps = scanning.exclusive_sweeps if exclusive else scanning.sweeps
    yield lambda rank: chosen(rank, size, values[rank], operator)
    if size > 1:
        yield lambda rank: sweeps(rank, size, values[rank], operator)
        yield lambda rank: scanning.doubling(rank, size, values[rank], operator, exclusive=exclusive)
        yield lambda rank: direct.scan(rank, size, values[rank], operator, exclusive=exclusive)
    if size > 1 and isinstance(values[0], np.ndarray) and operator.keeps(values[0].dtype):
        yield lambda rank: scanning.transposed(
            rank, size, values[rank], operator, exclusive=exclusive, at_once=1 + size % 4
        )


@every_size
@pytest.mark.parametrize("exclusive", [False, True], ids=["scan", "exscan"])
def test_every_scan_has_the_bracketing(size, exclusive):
    texts = [str(rank) for rank in range(size)]
    expected = (sequential.exscan if exclusive else sequential.scan)(texts, text)
    for make in every_scan(size, texts, as_operator(text), exclusive=exclusive):
        for results in both_ways(make, size):
            assert results == expected


@few_sizes
@pytest.mark.parametrize("exclusive", [False, True], ids=["scan", "exscan"])
@pytest.mark.parametrize("op", [SUBTRACT, as_operator(np.true_divide), as_operator(mixed)], ids=repr)
def test_every_scan_gives_the_same_bits(size, exclusive, op):
    random = np.random.default_rng(size)
    values = [random.standard_normal((5, 3)) for _ in range(size)]
    before = [value.copy() for value in values]
    expected = (sequential.exscan if exclusive else sequential.scan)(values, op)
    for make in every_scan(size, values, op, exclusive=exclusive):
        for results in both_ways(make, size):
            assert_same(results, expected)
            assert_same(values, before)
            assert not any(np.may_share_memory(result, value) for result in results[exclusive:] for value in values)


@every_size
def test_the_last_prefix_has_the_bits_of_the_reduction(size):
    values = [np.random.default_rng(rank).standard_normal(3).astype(np.float32) for rank in range(size)]
    prefixes = simulate(lambda rank: choose.scan(rank, size, values[rank], SUM), size).results
    total = simulate(lambda rank: choose.allreduce(rank, size, values[rank], SUM), size).results[0]
    assert_same(prefixes[-1], total)


@every_size
def test_an_operator_of_ones_own_is_applied_once_for_each_combination(size):
    calls = []

    def join(left, right):
        calls.append((left, right))
        return f"({left} {right})"

    simulate(lambda rank: choose.scan(rank, size, str(rank), as_operator(join)), size)
    assert len(calls) == len(set(calls))


def test_scan_traces():
    """Golden: doubling for sums; for an operator of one's own, up to the last ranks of subtrees and down again."""
    run = simulate(lambda rank: scanning.doubling(rank, 4, "abcd"[rank], SUM), 4)
    assert run.trace == [
        *("0 -> 1 a", "1 -> 0 b", "2 -> 3 c", "3 -> 2 d"),
        *("0 -> 2 ab", "1 -> 3 ab", "2 -> 0 cd", "3 -> 1 cd"),
    ]
    run = simulate(lambda rank: choose.scan(rank, 8, "abcdefgh"[rank], as_operator(text)), 8)
    assert run.trace == [
        *("0 -> 1 a", "2 -> 3 c", "4 -> 5 e", "6 -> 7 g"),
        *("1 -> 3 (a b)", "5 -> 7 (e f)", "1 -> 2 (a b)"),
        *("3 -> 7 ((a b) (c d))", "3 -> 5 ((a b) (c d))", "3 -> 4 ((a b) (c d))"),
        "5 -> 6 (((a b) (c d)) (e f))",
    ]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("count", [3, 20_000], ids=["small", "large"])
@pytest.mark.parametrize("op", [SUM, as_operator(np.logaddexp)], ids=repr)
def test_scans_in_out_and_in_the_value_itself(size, count, op):
    values = [np.full(count, rank + 1.0) for rank in range(size)]
    inclusive = sequential.scan(values, op)
    for function, expected in ((choose.scan, inclusive), (choose.exscan, [None, *inclusive[:-1]])):
        outs = [np.empty(count) for _ in range(size)]
        for results in both_ways(lambda rank, f=function, o=outs: f(rank, size, values[rank], op, o[rank]), size):
            assert_same(results, expected)
        for results in both_ways(lambda rank, f=function: f(rank, size, values[rank], op, values[rank]), size):
            assert_same(results, expected)


@few_sizes
def test_results_of_scans_are_apart_from_the_values(size):
    values = [[rank] for rank in range(size)]
    for operator in (MIN, MAX, as_operator(min)):
        for function in (choose.scan, choose.exscan):
            run = simulate(lambda rank, f=function, op=operator: f(rank, size, values[rank], op), size)
            assert not any(result is value for result in run.results for value in values)


@pytest.mark.parametrize(
    ("size", "value", "op", "messages"),
    [
        (4, 5, SUM, 6),  # one round
        (8, 5, SUM, 8 * 3),  # doubling
        (8, 5, as_operator(text), 7 + 4),  # sweeps
        (8, np.ones(20_000), SUM, 8 * 7 * 2),  # transposed
        (16, np.ones(10_000), SUM, 16 * 4),  # large, but with too little for each rank: doubling
        (8, np.ones(20_000), as_operator(mixed), 7 + 4),
    ],
)
def test_the_way_a_scan_goes(size, value, op, messages):
    run = simulate(lambda rank: choose.scan(rank, size, value, op), size)
    assert len(run.messages) == messages


# ---- what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [None, 7, [1, 2, 3], [1] * 5, np.array(4.0)])
def test_anything_but_one_value_for_each_rank_is_refused_before_it_is_sent(values):
    with pytest.raises(UsageError, match="alltoall needs 4 values, one for each rank"):
        choose.alltoall(0, 4, values)
    with pytest.raises(UsageError, match="reduce_scatter needs 4 values, one for each rank"):
        choose.reduce_scatter(0, 4, values, SUM)


# ---- alone --------------------------------------------------------------------------------------------------------


def test_one_rank_never_yields():
    for schedule, expected in (
        (choose.alltoall(0, 1, ["x"]), ["x"]),
        (choose.reduce_scatter(0, 1, ["x"], SUM), "x"),
        (choose.scan(0, 1, "x", SUM), "x"),
        (choose.exscan(0, 1, "x", SUM), None),
    ):
        with pytest.raises(StopIteration) as end:
            next(schedule)
        assert end.value.value == expected
