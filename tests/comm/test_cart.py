"""Grids of ranks: the arithmetic alone, the schedule of a halo exchange alone, and both in a communicator."""

from __future__ import annotations

from itertools import combinations_with_replacement, product
from math import prod

import numpy as np
import pytest

from rmpi.comm.collectives import halo
from rmpi.comm.communicator import Comm
from rmpi.comm.grid import Grid, balanced, completed
from rmpi.errors import CollectiveMismatch, DeadlineExceeded, RankError, UsageError
from rmpi.testing.ranks import run_ranks
from rmpi.testing.simulate import simulate

# ------------------------------------------------------------------------------ balanced dimensions


@pytest.mark.parametrize("ndims", [1, 2, 3, 4])
def test_dimensions_are_as_close_to_each_other_as_possible(ndims):
    for size in range(1, 100):
        dims = balanced(size, ndims)
        divisors = [number for number in range(1, size + 1) if size % number == 0]
        all_there_are = [each for each in combinations_with_replacement(divisors, ndims) if prod(each) == size]
        assert prod(dims) == size
        assert dims == tuple(sorted(dims, reverse=True))
        assert dims[0] - dims[-1] == min(each[-1] - each[0] for each in all_there_are)


@pytest.mark.parametrize(
    ("size", "dims"),
    [
        (72, (9, 8)),
        (16, (4, 4)),
        (16, (4, 2, 2)),
        (36, (4, 3, 3)),
        (7, (7, 1)),
        (1, (1, 1, 1)),
        (1 << 16, (64, 32, 32)),
    ],
)
def test_dimensions_that_a_greedy_choice_of_factors_gets_wrong_and_others(size, dims):
    assert balanced(size, len(dims)) == dims


@pytest.mark.parametrize(
    ("dims", "size", "expected"),
    [
        (1, 6, (6,)),
        (2, 6, (3, 2)),
        ([0, 0], 6, (3, 2)),
        ([2, 0], 6, (2, 3)),
        ((0, 2, 0), 24, (4, 2, 3)),
        ((0, 3), 3, (1, 3)),
        ((2, 2), 7, (2, 2)),
        ((), 4, ()),
    ],
)
def test_dimensions_that_are_0_are_chosen(dims, size, expected):
    assert completed(dims, size) == expected


@pytest.mark.parametrize(
    ("dims", "text"),
    [
        ((3, 3), r"a grid \(3, 3\) needs 9 ranks, but there are 6; dims=\(3, 2\) would be right"),
        ((4, 0), r"6 ranks cannot be laid out as \(4, 0\), because 4 does not divide 6; dims=\(3, 2\) would"),
        ((7, 0, 0), r"as \(7, 0, 0\), because 7 does not divide 6; dims=\(3, 2, 1\) would be right"),
        ((-1, 6), r"dims is the number of dimensions, like 2, or the ranks along each, .* not \(-1, 6\)"),
        (0, "not 0"),
        ("xy", "not 'xy'"),
        (2.0, "not 2.0"),
        ((2.0, 3), "not "),
    ],
)
def test_dimensions_that_cannot_be_are_refused_with_some_that_can(dims, text):
    with pytest.raises(UsageError, match=text):
        completed(dims, 6)


# --------------------------------------------------------------------------------------- coordinates

GRIDS = [Grid((6,), (False,)), Grid((3, 2), (False, True)), Grid((2, 3, 4), (True, False, True)), Grid((), ())]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_ranks_are_in_row_major_order(grid):
    everywhere = list(product(*map(range, grid.dims)))
    assert [grid.coords_of(rank) for rank in range(grid.size)] == everywhere
    assert [grid.rank_of(coords) for coords in everywhere] == list(range(grid.size))


def test_coordinates_count_on_along_rings_and_end_at_borders():
    grid = Grid((3, 2), (False, True))
    assert grid.rank_of((2, -1)) == grid.rank_of((2, 1)) == grid.rank_of((2, 5)) == 5
    for beyond in (-1, 0), (3, 0):
        with pytest.raises(RankError, match=r"is outside of the grid \(3, 2\)"):
            grid.rank_of(beyond)
    for wrong in (1,), (1, 2, 3), (1, "x"), 5:
        with pytest.raises(RankError, match=r"coordinates are 2 integers in the grid \(3, 2\)"):
            grid.rank_of(wrong)


def test_a_shift_names_who_is_before_and_who_is_behind():
    grid = Grid((3, 2), (False, True))
    assert grid.shift((0, 0), 0, 1) == (None, 2)
    assert grid.shift((1, 0), 0, 1) == (0, 4)
    assert grid.shift((2, 1), 0, 1) == (3, None)
    assert grid.shift((0, 0), 0, -2) == (4, None)
    assert grid.shift((1, 0), 1, 1) == (3, 3)
    assert grid.shift((1, 0), 1, 2) == (2, 2)


# ------------------------------------------------------------------------------------ halo exchange


def distributed(grid, shape, widths, dtype="i8"):
    """A global array with boundary layers, and of each rank its window on it: as it shall be, and to begin with.

    What neighbours have to give is -1 in the beginning.
    """
    ndims = len(grid.dims)
    whole = np.arange(1, prod(shape) + 1).reshape(shape).astype(dtype)
    open_ones = [(w, w) if axis < ndims and not grid.periods[axis] else (0, 0) for axis, w in enumerate(widths)]
    rings = [(w, w) if axis < ndims and grid.periods[axis] else (0, 0) for axis, w in enumerate(widths)]
    padded = np.pad(whole, open_ones, constant_values=99)
    padded = np.pad(padded, rings, mode="wrap")
    rights, befores = [], []
    for rank in range(grid.size):
        coords = grid.coords_of(rank)
        block = grid.block(coords, shape)
        window = tuple(slice(s.start, s.stop + 2 * w) for s, w in zip(block, widths, strict=True))
        right = padded[window].copy()
        before = right.copy()
        for axis in range(ndims):
            source, dest = grid.shift(coords, axis, 1)
            if source is not None:
                _ends(before, axis, slice(0, widths[axis]))[...] = -1
            if dest is not None:
                _ends(before, axis, slice(before.shape[axis] - widths[axis], None))[...] = -1
        rights.append(right)
        befores.append(before)
    return rights, befores


def _ends(array, axis, part):
    return array[(slice(None),) * axis + (part,)]


HALOS = [
    (Grid((1,), (True,)), (5,), (2,)),
    (Grid((2,), (True,)), (4,), (1,)),
    (Grid((2,), (True,)), (4,), (2,)),
    (Grid((4,), (False,)), (9,), (1,)),
    (Grid((1, 1), (False, True)), (3, 3), (1, 1)),
    (Grid((2, 2), (True, True)), (4, 6), (2, 1)),
    (Grid((3, 2), (False, True)), (7, 5), (1, 2)),
    (Grid((2, 3), (False, False)), (4, 9), (1, 3)),
    (Grid((3, 2), (True, False)), (6, 6), (0, 2)),
    (Grid((2, 2), (True, False)), (4, 5, 3), (1, 1, 0)),
    (Grid((2, 1, 3), (False, True, True)), (5, 2, 6), (1, 2, 2)),
    (Grid((2, 2, 2), (True, True, True)), (4, 4, 4, 2), (1, 2, 1, 0)),
]
every_halo = pytest.mark.parametrize(("grid", "shape", "widths"), HALOS, ids=lambda each: str(each)[:40])


def schedule(grid, arrays, widths, rank, corners):
    coords = grid.coords_of(rank)
    sides = [halo.Side(*grid.shift(coords, axis, 1), widths[axis]) for axis in range(len(grid.dims))]
    return halo.exchange(rank, arrays[rank], sides, corners=corners)


@pytest.mark.parametrize("synchronous", [False, True])
@every_halo
def test_every_rank_sees_its_window_of_the_whole_corners_included(grid, shape, widths, synchronous):
    rights, arrays = distributed(grid, shape, widths)
    simulate(lambda rank: schedule(grid, arrays, widths, rank, True), grid.size, synchronous=synchronous)
    for array, right in zip(arrays, rights, strict=True):
        np.testing.assert_array_equal(array, right)


@pytest.mark.parametrize("synchronous", [False, True])
@every_halo
def test_without_corners_the_rest_is_the_same_and_corners_are_left_alone(grid, shape, widths, synchronous):
    rights, arrays = distributed(grid, shape, widths)
    befores = [array.copy() for array in arrays]
    simulate(lambda rank: schedule(grid, arrays, widths, rank, False), grid.size, synchronous=synchronous)
    for array, before, right in zip(arrays, befores, rights, strict=True):
        beside = sum(_layers(array.shape, axis, width) for axis, width in enumerate(widths[: len(grid.dims)]))
        np.testing.assert_array_equal(array, np.where(beside <= 1, right, before))


def _layers(shape, axis, width):
    """1 where an element is in the outermost layers of an axis, as an array of that shape."""
    places = np.arange(shape[axis])
    outside = (places < width) | (places >= shape[axis] - width)
    return np.broadcast_to(outside.reshape([-1 if each == axis else 1 for each in range(len(shape))]), shape).astype(
        int
    )


def test_with_corners_there_is_a_round_for_each_axis_and_two_messages_each():
    grid = Grid((3, 3), (True, True))
    _, arrays = distributed(grid, (9, 9), (1, 1))
    run = simulate(lambda rank: schedule(grid, arrays, (1, 1), rank, True), 9)
    assert [str(message) for message in run.messages if message.source == 4] == [
        "4 -> 7 int64[1, 5]",
        "4 -> 1 int64[1, 5]",
        "4 -> 5 int64[5, 1]",
        "4 -> 3 int64[5, 1]",
    ]


# -------------------------------------------------------------------------------- the communicator


def test_a_grid_is_a_communicator_with_coordinates():
    def main(comm):
        cart = comm.cart(2, (False, True))
        assert isinstance(cart, Comm)
        assert (cart.dims, cart.periods, cart.rank, cart.size) == ((3, 2), (False, True), comm.rank, 6)
        assert cart.coords == cart.coords_of(cart.rank) == divmod(comm.rank, 2)
        assert cart.rank_of(cart.coords) == cart.rank
        source, dest = cart.shift(1)
        assert cart.shift(-1) == (source, dest)
        return cart.sendrecv(cart.coords, dest, source), cart.allreduce(1), repr(cart)

    results = run_ranks(6, main)
    assert results[2] == ((1, 1), 6, "<Cart rank 2 at (1, 0) of (3, 2)>")
    assert results[5][0] == (2, 0)


def test_ranks_beyond_the_grid_get_none():
    def main(comm):
        cart = comm.cart((2, 1))
        return cart and cart.allgather(cart.coords)

    assert run_ranks(3, main) == [[(0, 0), (1, 0)]] * 2 + [None]


def test_what_is_no_rank_coordinate_or_axis_is_refused_by_name():
    def main(comm):
        cart = comm.cart(2)
        with pytest.raises(RankError, match="rank=4: there are only ranks 0 to 3"):
            cart.coords_of(4)
        with pytest.raises(RankError, match=r"\(2, 0\) is outside of the grid \(2, 2\)"):
            cart.rank_of((2, 0))
        with pytest.raises(UsageError, match="axis 2: this grid has axes 0 to 1"):
            cart.shift(2)
        with pytest.raises(UsageError, match="axis 'x': this grid has axes 0 to 1"):
            cart.sub("x")
        with pytest.raises(UsageError, match=r"periods is one bool, or one for each of 2 dimensions"):
            comm.cart(2, (True,))
        return cart.allreduce(1)

    assert run_ranks(4, main) == [4] * 4


@pytest.mark.parametrize("keep", [0, 1, (0, 2), [2, 1], (0, 1, 2), ()])
def test_sub_keeps_axes(keep):
    def main(comm):
        cart = comm.cart((2, 3, 2), (True, False, True))
        sub = cart.sub(keep)
        axes = sorted({keep} if isinstance(keep, int) else {*keep})
        assert sub.dims == tuple(cart.dims[axis] for axis in axes)
        assert sub.periods == tuple(cart.periods[axis] for axis in axes)
        assert sub.coords == tuple(cart.coords[axis] for axis in axes)
        others = [axis for axis in range(3) if axis not in axes]
        for coords in sub.allgather(cart.coords):
            assert all(coords[axis] == cart.coords[axis] for axis in others)
        return sub.allreduce(1) == sub.size == prod(sub.dims)

    assert all(run_ranks(12, main))


def test_rows_and_columns_do_not_meet_and_a_grid_may_be_made_of_a_grid():
    def main(comm):
        cart = comm.cart((2, 2))
        row, column, again = cart.sub(1), cart.sub(0), cart.cart((4, 1))
        for each in (row, column, again, cart):
            each.send(repr(each), (each.rank + 1) % each.size)
        return [each.recv() for each in (cart, again, column, row)]

    got = run_ranks(4, main)[0]
    assert [text.split(" of ")[1] for text in got] == ["(2, 2)>", "(4, 1)>", "(2,)>", "(2,)>"]


def test_what_is_made_of_a_grid_by_other_means_is_a_plain_communicator():
    def main(comm):
        cart = comm.cart(1)
        made = [cart.dup(), cart.split(0), cart.split_by_host(), cart[:]]
        return [type(each) is Comm for each in made]

    assert run_ranks(2, main) == [[True] * 4] * 2


def test_local_blocks_cover_an_array_once():
    def main(comm):
        cart = comm.cart((3, 2))
        return cart.local((7, 5, 4))

    counts = np.zeros((7, 5, 4), int)
    for block in run_ranks(6, main):
        counts[block] += 1
    assert (counts == 1).all()


def test_an_array_with_fewer_axes_than_the_grid_has_no_blocks():
    def main(comm):
        cart = comm.cart(2)
        with pytest.raises(UsageError, match=r"an array of shape \(4,\) has fewer axes than the grid \(1, 1\)"):
            cart.local(4)
        return comm.cart(1).local(4)

    assert run_ranks(1, main) == [(slice(0, 4),)]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("blocking", [True, False])
@every_halo
def test_halos_are_exchanged_among_ranks(grid, shape, widths, blocking, order):
    rights, arrays = distributed(grid, shape, widths, "f8")

    def main(comm):
        cart = comm.cart(grid.dims, grid.periods)
        array = np.array(arrays[cart.rank], order=order)
        width = widths[: len(grid.dims)]
        if blocking:
            assert cart.halo_exchange(array, width) is None
        else:
            assert cart.ihalo_exchange(array, width).wait() is None
        np.testing.assert_array_equal(array, rights[cart.rank])

    run_ranks(grid.size, main)


@pytest.mark.parametrize("corners", [True, False])
def test_large_halos_go_both_ways_at_once(corners):
    """Strips of 400 KB, which do not travel eagerly, in a ring of two."""
    grid = Grid((2, 2), (True, True))
    rights, arrays = distributed(grid, (300, 400), (50, 100), "f8")

    def main(comm):
        cart = comm.cart(grid.dims, True)
        array = arrays[cart.rank]
        for _ in range(3):
            cart.halo_exchange(array, (50, 100), corners=corners)
        inner = np.s_[50:-50, :] if not corners else np.s_[:, :]
        np.testing.assert_array_equal(array[inner], rights[cart.rank][inner])

    run_ranks(4, main)


def test_other_dtypes_travel_too():
    def main(comm):
        cart = comm.cart(1, True)
        records = np.array([(0, 0.0)] * 4, [("who", "i4"), ("x", "f8")])
        records["who"][1:-1] = comm.rank
        objects = np.array([None, comm.rank, str(comm.rank), None], dtype=object)
        cart.halo_exchange(records)
        cart.halo_exchange(objects)
        return records["who"].tolist(), objects.tolist()

    assert run_ranks(3, main)[1] == ([0, 1, 1, 2], ["0", 1, "1", 2])


def test_a_halo_exchange_and_messages_do_not_meet():
    def main(comm):
        cart = comm.cart(1, True)
        _, dest = cart.shift(0)
        cart.send("mine", dest)
        array = np.full(3, cart.rank)
        cart.halo_exchange(array)
        return cart.recv(), array.tolist()

    assert run_ranks(2, main) == [("mine", [1, 0, 1]), ("mine", [0, 1, 0])]


@pytest.mark.parametrize(
    ("array", "width", "text"),
    [
        (
            np.zeros((5, 4)),
            2,
            r"along axis 0 the array has 5 layers: 2 × 2 ghosts leave 1 inside, and neighbours need 2",
        ),
        (np.zeros((5, 1)), 1, "along axis 1 the array has 1 layers: 2 × 1 ghosts leave 0 inside"),
        (np.zeros(5), 1, r"shape \(5,\) has fewer axes than the grid, 2"),
        (np.zeros((5, 5)), (1, 1, 1), "width is one number of layers, or one for each of 2 axes"),
        (np.zeros((5, 5)), -1, "width is one number of layers"),
        (np.zeros((5, 5)), 1.0, "width is one number of layers"),
        ([[1]], 1, "must be a NumPy array, not list"),
        (np.broadcast_to(1, (5, 5)), 1, "read-only"),
    ],
)
def test_an_array_without_room_for_the_exchange_is_refused_and_does_no_harm(array, width, text):
    def main(comm):
        cart = comm.cart((2, 1), True)
        with pytest.raises(UsageError, match=text):
            cart.halo_exchange(array, width)
        right = np.full((3, 3), cart.rank)
        cart.halo_exchange(right)
        return int(right[0, 0])

    assert run_ranks(2, main) == [1, 0]


def test_blocks_that_do_not_fit_are_named():
    def main(comm):
        cart = comm.cart((2, 1))
        cart.halo_exchange(np.zeros((3, 4 + cart.rank)))

    with pytest.raises(ExceptionGroup) as caught:
        run_ranks(2, main)
    texts = [str(error) for error in caught.value.exceptions]
    assert any("the ghost layers are (1, 4), but rank 1 sent (1, 5): blocks" in text for text in texts)


@pytest.mark.parametrize(
    "call",
    [
        lambda cart: cart.halo_exchange(np.zeros((3, 3), "f8" if cart.rank else "f4")),
        lambda cart: cart.halo_exchange(np.zeros((9, 9)), 1 + cart.rank),
        lambda cart: cart.halo_exchange(np.zeros((3, 3))) if cart.rank else cart.barrier(),
        lambda cart: cart.sub(cart.rank),
        lambda cart: cart.cart((2, 1), periods=bool(cart.rank)),
    ],
)
def test_ranks_that_disagree_are_told(call):
    def main(comm):
        with pytest.raises(CollectiveMismatch) as caught:
            call(comm.cart((2, 1)))
        return str(caught.value)

    texts = run_ranks(2, main)
    assert all("rank 0" in text and "rank 1" in text for text in texts)


def test_a_neighbour_that_does_not_come_is_waited_for_as_long_as_was_said():
    def main(comm):
        cart = comm.cart(1)
        if cart.rank:
            with pytest.raises(DeadlineExceeded, match=r"halo_exchange\(width=\(1,\), .*timeout of 0.02 s passed"):
                cart.halo_exchange(np.zeros(3), timeout=0.02)
        comm.barrier()

    run_ranks(2, main)
