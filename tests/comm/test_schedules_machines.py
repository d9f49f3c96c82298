"""Collectives on several machines: the same results, and fewer messages between machines.

The layouts are those of `sequential.machine_layouts`: machines that are whole subtrees of the bracketing, uneven ones,
interleaved ones.
"""

from __future__ import annotations

import numpy as np
import pytest
import sequential
from sequential import assert_same, both_ways, machine_layouts, one_after_the_other

from rmpi.comm import choose
from rmpi.comm.ops import SUM, Operator, as_operator
from rmpi.comm.schedule import Send
from rmpi.comm.topology import Machines
from rmpi.testing.simulate import simulate

everywhere = pytest.mark.parametrize(
    ("size", "machines"),
    [
        pytest.param(size, machines, id=f"n={size}-{machines.groups if machines else None}".replace(" ", ""))
        for size in (1, 2, 3, 5, 8, 11)
        for machines in machine_layouts(size)
    ],
)

LARGE = np.ones(choose.LARGE_ARRAY // 8 + 1)
HUGE = np.arange(choose.HUGE_ARRAY // 8 + 7.0)
ANY_ORDER = Operator(np.add, name="any order", commutes=True, reproducible=False)
TWO_BY_FOUR = Machines.of(tuple("aaaabbbb"))
FOUR_BY_FOUR = Machines.of(tuple("aaaabbbbccccdddd"))
INTERLEAVED = Machines.of(tuple("abababab"))


def text(left, right):
    return f"({left} {right})"


def between(run, machines):
    """The messages that leave a machine."""
    return [message for message in run.messages if machines.mine(message.source) != machines.mine(message.dest)]


def knowing(rank, schedule):
    """Which ranks ``rank`` has heard of at the end, directly or not."""
    known, results = {rank}, None
    while True:
        try:
            steps = schedule.send(results)
        except StopIteration:
            return known
        results = yield tuple(Send(step.peer, set(known)) if isinstance(step, Send) else step for step in steps)
        known.update(*(heard for heard in results if heard is not None))


@everywhere
def test_nobody_leaves_a_barrier_before_everybody_has_come(size, machines):
    for results in both_ways(lambda rank: knowing(rank, choose.barrier(rank, size, machines=machines)), size):
        assert results == [set(range(size))] * size


@everywhere
def test_from_and_to_every_root(size, machines):
    texts = [str(rank) for rank in range(size)]
    pieces = [np.full(rank * 3000, rank) for rank in range(size)]
    bracket = as_operator(text)
    total = sequential.reduction(texts, text)

    def calls(rank, root):
        mine = pieces if rank == root else None
        yield choose.broadcast(rank, size, root, texts[rank], machines=machines)
        yield choose.reduce(rank, size, root, texts[rank], bracket, machines=machines)
        yield choose.gather(rank, size, root, pieces[rank], machines=machines)
        yield choose.scatter(rank, size, root, mine, machines=machines)

    for root in range(size):
        for results in both_ways(lambda rank, root=root: one_after_the_other(calls(rank, root)), size):
            for rank, got in enumerate(results):
                at_root = (total, pieces) if rank == root else (None, None)
                assert_same(got, [texts[root], *at_root, pieces[rank]])


@everywhere
def test_to_everybody(size, machines):
    texts = [str(rank) for rank in range(size)]
    pieces = [np.full(rank % 3 * 6000, rank) for rank in range(size)]
    rows = [[f"{rank}:{to}" for to in range(size)] for rank in range(size)]
    bracket = as_operator(text)

    def calls(rank):
        yield choose.allgather(rank, size, pieces[rank], machines=machines)
        yield choose.allreduce(rank, size, texts[rank], bracket, machines=machines)
        yield choose.allreduce(rank, size, texts[rank], SUM, machines=machines)
        yield choose.reduce_scatter(rank, size, rows[rank], bracket, machines=machines)
        yield choose.scan(rank, size, texts[rank], bracket, machines=machines)
        yield choose.exscan(rank, size, texts[rank], SUM, machines=machines)

    total, scattered = sequential.reduction(texts, text), sequential.reduce_scatter(rows, text)
    prefixes, before = sequential.scan(texts, text), sequential.exscan(texts, SUM)
    for results in both_ways(lambda rank: one_after_the_other(calls(rank)), size):
        for rank, got in enumerate(results):
            assert_same(got, [pieces, total, "".join(texts), scattered[rank], prefixes[rank], before[rank]])


@everywhere
@pytest.mark.parametrize("nbytes", [100, choose.LARGE_ARRAY + 100], ids=["small", "large"])
def test_bits_do_not_depend_on_where_ranks_run(size, machines, nbytes):
    random = np.random.default_rng(size)
    values = [random.standard_normal((size, nbytes // size // 4 + 1)).astype(np.float32) for _ in range(size)]
    minus = as_operator(np.subtract)
    total = sequential.reduction(values, minus)
    prefixes = sequential.scan(values, minus)

    def calls(rank):
        yield choose.allreduce(rank, size, values[rank], minus, machines=machines)
        yield choose.scan(rank, size, values[rank], minus, machines=machines)
        yield choose.reduce_scatter(rank, size, values[rank], minus, machines=machines)

    for results in both_ways(lambda rank: one_after_the_other(calls(rank)), size):
        for rank, got in enumerate(results):
            assert_same(got, [total, prefixes[rank], total[rank, :]])


@everywhere
def test_around_the_ring_machine_by_machine(size, machines):
    shape = size, choose.LARGE_ARRAY // size // 8 + 1
    values = [np.random.default_rng(rank).standard_normal(shape) for rank in range(size)]

    def calls(rank):
        yield choose.allreduce(rank, size, values[rank], ANY_ORDER, machines=machines)
        yield choose.reduce_scatter(rank, size, values[rank], ANY_ORDER, machines=machines)

    for results in both_ways(lambda rank: one_after_the_other(calls(rank)), size):
        assert len({whole.tobytes() for whole, _ in results}) == 1
        assert np.allclose(results[0][0], sum(values))
        assert np.allclose([part for _, part in results], sum(values))


@pytest.mark.parametrize("array", [HUGE, np.asfortranarray(HUGE[:65_540].reshape(145, 452)), HUGE[::-1]], ids=str)
@pytest.mark.parametrize(
    "machines", [Machines.of(tuple("abcde")), Machines.of(tuple("abcdeabc"))], ids=["flat", "nested"]
)
def test_a_huge_array_is_broadcast_in_parts_among_many_machines(array, machines):
    size = len(machines.order)
    for root in (0, 3):
        outs = [np.empty_like(array) for _ in range(size)]
        for offered in (outs, [None] * size):
            make = lambda rank, r=root, o=offered: choose.broadcast(  # noqa: E731
                rank, size, r, array if rank == r else None, o[rank], machines=machines
            )
            for results in both_ways(make, size):
                for rank, result in enumerate(results):
                    assert_same(result, array)
                    assert result is array or rank != root
                    assert result.flags.f_contiguous >= array.flags.f_contiguous
    run = simulate(make, size)
    sent = [sum(message.nbytes for message in run.messages if message.source == rank) for rank in range(size)]
    assert max(sent) < 2 * array.nbytes


def test_a_huge_out_of_another_order_is_left_to_the_caller():
    machines = Machines.of(tuple(range(5)))
    array = HUGE[:65_540].reshape(145, 452)
    outs = [np.empty_like(array, order="F") for _ in range(5)]
    run = simulate(lambda rank: choose.broadcast(rank, 5, 0, array, outs[rank], machines=machines), 5)
    assert not any(result is out for result, out in zip(run.results, outs, strict=True))
    assert_same(run.results, [array] * 5)


def test_few_machines_or_one_keep_the_tree():
    for machines in (None, Machines.of((0,) * 8), TWO_BY_FOUR):
        run = simulate(lambda rank, m=machines: choose.broadcast(rank, 8, 0, HUGE, machines=m), 8)
        assert len(run.messages) == 7


@pytest.mark.parametrize("machines", [TWO_BY_FOUR, INTERLEAVED], ids=["in a row", "interleaved"])
def test_messages_between_two_machines(machines):
    """One each way where all hear of all, and one where all hear of one or one of all."""
    small = np.ones(3)
    for make, expected in (
        (lambda rank: choose.barrier(rank, 8, machines=machines), 2),
        (lambda rank: choose.broadcast(rank, 8, 3, small, machines=machines), 1),
        (lambda rank: choose.gather(rank, 8, 3, small, machines=machines), 1),
        (lambda rank: choose.scatter(rank, 8, 3, [small] * 8, machines=machines), 1),
        (lambda rank: choose.allgather(rank, 8, small, machines=machines), 2),
    ):
        assert len(between(simulate(make, 8), machines)) == expected


def test_reductions_combine_on_each_machine_first_where_they_may():
    small, text_of = np.ones(3), as_operator(text)
    for make, expected in (
        (lambda rank: choose.reduce(rank, 16, 5, small, SUM, machines=FOUR_BY_FOUR), 3),
        (lambda rank: choose.allreduce(rank, 16, small, SUM, machines=FOUR_BY_FOUR), 4 * 2),
        (lambda rank: choose.allreduce(rank, 16, str(rank), text_of, machines=FOUR_BY_FOUR), 3 + 3),
    ):
        assert len(between(simulate(make, 16), FOUR_BY_FOUR)) == expected
    uneven = Machines.of(tuple("aaaabbcc"))
    run = simulate(lambda rank: choose.allreduce(rank, 8, small, SUM, machines=uneven), 8)
    assert len(between(run, uneven)) == 2 + 2
    run = simulate(lambda rank: choose.allreduce(rank, 8, small, SUM, machines=INTERLEAVED), 8)
    assert len(run.messages) == 8 * 3  # as on one machine


def test_scans_of_large_arrays_tell_the_last_rank_of_a_machine_only():
    for value, expected in ((np.ones(3), 8), (LARGE, 3)):
        run = simulate(lambda rank, v=value: choose.scan(rank, 8, v, SUM, machines=TWO_BY_FOUR), 8)
        assert len(between(run, TWO_BY_FOUR)) == expected


def test_large_pieces_enter_each_machine_once():
    for machines in (TWO_BY_FOUR, INTERLEAVED):
        run = simulate(lambda rank, m=machines: choose.allgather(rank, 8, LARGE, machines=m), 8)
        crossing = sum(message.nbytes for message in between(run, machines))
        assert crossing < 2 * 8 * LARGE.nbytes  # each way the pieces of all but one rank
        run = simulate(lambda rank, m=machines: choose.gather(rank, 8, 0, LARGE, machines=m), 8)
        assert 4 * LARGE.nbytes <= sum(message.nbytes for message in between(run, machines)) < 4.1 * LARGE.nbytes


def test_a_large_reduce_scatter_combines_on_each_machine_first():
    pieces = np.ones((8, 5000))
    run = simulate(lambda rank: choose.reduce_scatter(rank, 8, pieces, SUM, machines=TWO_BY_FOUR), 8)
    assert sum(message.nbytes for message in between(run, TWO_BY_FOUR)) == pieces.nbytes


def test_one_machine_and_one_rank_each_are_as_nobody_knew():
    values = [np.full(5, rank) for rank in range(6)]
    for function in (
        lambda rank, m: choose.allreduce(rank, 6, values[rank], SUM, machines=m),
        lambda rank, m: choose.allgather(rank, 6, values[rank], machines=m),
        lambda rank, m: choose.gather(rank, 6, 2, values[rank], machines=m),
        lambda rank, m: choose.scan(rank, 6, values[rank], SUM, machines=m),
        lambda rank, m: choose.barrier(rank, 6, machines=m),
    ):
        traces = [
            simulate(lambda rank, f=function, m=machines: f(rank, m), 6).trace
            for machines in (None, Machines.of((0,) * 6), Machines.of(tuple(range(6))))
        ]
        assert traces[0] == traces[1] == traces[2]


def test_barrier_trace():
    """Golden: 1 and 3 tell their leaders 0 and 2, the leaders each other, and the news goes down."""
    run = simulate(lambda rank: choose.barrier(rank, 4, machines=Machines.of(tuple("aabb"))), 4)
    assert run.trace == ["1 -> 0 None", "3 -> 2 None", "0 -> 2 None", "2 -> 0 None", "0 -> 1 None", "2 -> 3 None"]
