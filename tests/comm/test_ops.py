"""Operators: what they do to arrays and objects, what they are called, and when they are exact."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from rmpi.comm.ops import (
    BAND,
    BOR,
    BXOR,
    LAND,
    LOR,
    LXOR,
    MAX,
    MAXLOC,
    MIN,
    MINLOC,
    PROD,
    SUM,
    Operator,
    as_operator,
)
from rmpi.errors import UsageError

NAN = math.nan
PAIR = np.dtype([("value", "f8"), ("location", "i4")])


def concatenate(left, right):
    return np.concatenate([left, right])


class Merge:
    def __call__(self, left, right):
        return {**left, **right}


@pytest.mark.parametrize(
    ("operator", "expected"),
    [(SUM, [5, 7]), (PROD, [4, 12]), (MIN, [1, 3]), (MAX, [4, 4]), (BAND, [0, 0]), (BOR, [5, 7]), (BXOR, [5, 7])],
    ids=repr,
)
def test_arrays_are_combined_element_by_element(operator, expected):
    left, right = np.array([1, 3], np.int16), np.array([4, 4], np.int16)
    result = operator(left, right)
    assert result.tolist() == expected
    assert result.dtype == np.int16
    assert (left.tolist(), right.tolist()) == ([1, 3], [4, 4])


@pytest.mark.parametrize(
    ("operator", "expected"), [(SUM, 5), (PROD, 6), (MIN, 2), (MAX, 3), (BAND, 2), (BOR, 3), (BXOR, 1)], ids=repr
)
def test_objects_are_combined_as_python_does(operator, expected):
    assert operator(2, 3) == operator(3, 2) == expected
    assert type(operator(2, 3)) is int


def test_left_comes_first():
    assert SUM("ab", "c") == "abc"
    assert SUM([1], [2]) == [1, 2]


def test_of_equals_min_and_max_keep_the_left():
    left, right = (1.0, "x"), (1.0, "x")
    assert MIN(left, right) is left
    assert MAX(left, right) is left


@pytest.mark.parametrize("operator", [MIN, MAX], ids=repr)
@pytest.mark.parametrize("make", [float, np.float32, np.array])
def test_a_nan_on_either_side_is_the_result(operator, make):
    assert math.isnan(operator(make(math.nan), make(1.0)))
    assert math.isnan(operator(make(1.0), make(math.nan)))


def test_bits_of_sets_and_bools():
    assert BAND({1, 2}, {2, 3}) == {2}
    assert BOR({1, 2}, {2, 3}) == {1, 2, 3}
    assert BXOR(True, True) is False


LOGICAL = {
    LAND: [False, False, False, True],
    LOR: [False, True, True, True],
    LXOR: [False, True, True, False],
}
every_logical = pytest.mark.parametrize(("operator", "expected"), LOGICAL.items(), ids=repr)


@every_logical
def test_truth_of_objects(operator, expected):
    pairs = [(0, ""), ([], "x"), (2.5, None), ({1}, -1)]
    assert [operator(left, right) for left, right in pairs] == expected
    assert all(type(operator(left, right)) is bool for left, right in pairs)


@every_logical
def test_truth_of_arrays(operator, expected):
    left, right = np.array([0.0, 0, NAN, -1]), np.array([0.0, 2, 0, 7])
    result = operator(left, right)
    assert (result.tolist(), result.dtype) == (expected, bool)
    assert operator.keeps(np.dtype(bool))
    assert not operator.keeps(left.dtype)


@every_logical
@pytest.mark.parametrize("value", [5, None, "x", np.float32(0)])
def test_what_takes_part_is_the_truth_of_a_value(operator, expected, value):  # noqa: ARG001
    assert operator.prepare(value) is bool(value)


@every_logical
def test_what_takes_part_is_the_truth_of_each_element(operator, expected):  # noqa: ARG001
    value = np.asfortranarray([[0, 3], [-1, 0]])
    truth = operator.prepare(value)
    assert (truth.dtype, truth.tolist()) == (bool, [[False, True], [True, False]])
    assert truth.flags.f_contiguous
    assert operator.prepare(truth) is truth


@pytest.mark.parametrize("operator", [SUM, MIN, BOR, MAXLOC, as_operator(np.logical_and)], ids=repr)
def test_for_other_operators_the_value_itself_takes_part(operator):
    value = np.array([1, 2])
    assert operator.prepare(value) is value


@pytest.mark.parametrize(
    ("left", "right", "least", "greatest"),
    [
        ((1, 5), (2, 3), 0, 1),
        ((2, 3), (1, 5), 1, 0),
        ((2, 5), (2, 3), 1, 1),  # of equals, the lower location
        ((2, 3), (2, 3), 0, 0),  # of equal pairs, the left one
        ((NAN, 5), (2, 3), 0, 0),
        ((2, 3), (NAN, 5), 1, 1),
        ((NAN, 5), (NAN, 3), 1, 1),
        ((math.inf, 1), (NAN, 2), 1, 1),
    ],
)
def test_extremes_with_their_locations(left, right, least, greatest):
    operands = left, right
    assert MINLOC(left, right) is operands[least]
    assert MAXLOC(left, right) is operands[greatest]
    lefts, rights = np.array([left, left], PAIR), np.array([right, right], PAIR)
    for operator, index in ((MINLOC, least), (MAXLOC, greatest)):
        assert operator(lefts, rights).tobytes() == (lefts, rights)[index].tobytes()
        assert operator(lefts[0], rights[0]).tobytes() == operator(lefts, rights)[0].tobytes()
        for into in (lefts.copy(), np.empty_like(lefts)):
            got = operator.combine(lefts, rights, into=into)
            assert got is into
            assert got.tobytes() == (lefts, rights)[index].tobytes()
        again = rights.copy()
        assert operator.combine(lefts, again, into=again) is again
        assert again.tobytes() == (lefts, rights)[index].tobytes()


def test_locations_of_any_type_and_shape():
    assert MAXLOC(("b", "node2"), ("b", "node1")) == ("b", "node1")
    dates = np.array([("2026-01-02", 1), ("NaT", 2)], [("at", "M8[D]"), ("rank", "u1")])
    other = np.array([("2026-01-01", 3), ("2026-01-01", 4)], dates.dtype)
    assert MINLOC(dates, other)["rank"].tolist() == [3, 2]
    assert MAXLOC(dates[0:1].reshape(()), other[0:1].reshape(())).shape == ()
    grid = np.zeros((2, 3), PAIR)
    assert MAXLOC(grid, np.asfortranarray(grid)).shape == (2, 3)
    assert MAXLOC(grid[:, ::2], grid[:, 1:]).shape == (2, 2)


@pytest.mark.parametrize("operator", [MINLOC, MAXLOC], ids=repr)
@pytest.mark.parametrize("value", [3, (1, 2, 3), [1, 2], np.ones(2), np.zeros(2, "i4,i4,i4"), np.zeros(2, "2i4,i4")])
def test_what_is_no_pair_is_refused(operator, value):
    with pytest.raises(UsageError, match=f"{operator.name} combines pairs: tuples .value, location."):
        operator(value, value)


def test_numpy_scalars_stay_numpy_scalars():
    total = SUM(np.float32(1), np.float32(2))
    assert (type(total), total) == (np.float32, 3)


def test_zero_dimensional_arrays_stay_arrays():
    total = SUM(np.array(1.0), np.array(2.0))
    assert isinstance(total, np.ndarray)
    assert (total.shape, total.item()) == ((), 3.0)


def test_an_array_and_a_number_broadcast():
    assert MAX(np.array([1, 5]), 3).tolist() == [3, 5]


def test_results_are_accumulated_in_memory_that_is_given():
    left, right = np.arange(3.0), np.ones(3)
    assert SUM.combine(left, right, into=right) is right
    assert right.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (np.ones(3), np.ones(3, np.float32)),  # the result is wider than one of them
        (np.ones(3), np.ones(1)),
        (np.ones(3, ">f8"), np.ones(3, ">f8")),  # the result has native byte order
        (np.array(["ab"]), np.array(["cd"])),  # the result is longer
        (2, np.ones(3)),
    ],
)
def test_memory_that_does_not_fit_is_left_alone(left, right):
    before = right.copy()
    operator = SUM if right.dtype.kind != "U" or np.__version__ >= "2" else MAX
    result = operator.combine(left, right, into=right)
    assert result is not right
    assert (right == before).all()


def test_read_only_memory_is_left_alone():
    right = np.ones(3)
    right.flags.writeable = False
    assert SUM.combine(np.ones(3), right, into=right).tolist() == [2, 2, 2]


def test_a_callable_gets_whole_values():
    assert as_operator(concatenate)(np.arange(2), np.arange(3)).tolist() == [0, 1, 0, 1, 2]


def test_a_generalised_ufunc_gets_whole_values():
    matmul = as_operator(np.matmul)
    left, right = np.array([[0, 1], [1, 0]]), np.array([[1, 2], [3, 4]])
    assert matmul(left, right).tolist() == [[3, 4], [1, 2]]
    assert not matmul.keeps(left.dtype)


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (SUM, "SUM"),
        (MAXLOC, "MAXLOC"),
        (LXOR, "LXOR"),
        (np.add, "numpy.add"),
        (concatenate, f"{__name__}.concatenate"),
        (Merge(), f"{__name__}.Merge"),
        (functools.partial(max, key=abs), "functools.partial"),
        (Operator(concatenate, name="join"), "join"),
        (np.frompyfunc(math.gcd, 2, 1), "ufunc gcd (vectorized)"),
    ],
)
def test_names_are_the_same_on_every_rank(op, name):
    assert as_operator(op).name == name
    assert repr(as_operator(op)) == f"<Operator {name}>"


def test_an_operator_stays_the_one_it_is():
    assert as_operator(MAX) is MAX


@pytest.mark.parametrize("op", ["sum", None, 3, [np.add]])
def test_what_cannot_combine_is_refused_by_name(op):
    with pytest.raises(UsageError, match=r"op must be rmpi\.SUM.* not "):
        as_operator(op)


@pytest.mark.parametrize(("function", "instead"), [(np.any, "LOR"), (np.all, "LAND"), (np.argmax, "MAXLOC")])
def test_what_reduces_one_array_is_refused_with_what_to_use(function, instead):
    with pytest.raises(UsageError, match=f"reduces one array, and does not combine two values; use rmpi.{instead}"):
        as_operator(function)


@pytest.mark.parametrize("ufunc", [np.negative, np.divmod])
def test_ufuncs_of_another_arity_are_refused(ufunc):
    with pytest.raises(UsageError, match=f"numpy.{ufunc.__name__} takes {ufunc.nin} and returns {ufunc.nout}"):
        as_operator(ufunc)


@pytest.mark.parametrize(
    ("op", "value", "exact"),
    [
        (SUM, np.ones(2), True),
        (SUM, "objects", True),
        (PROD, np.ones(2), True),
        (PROD, np.ones(2, complex), False),  # fused multiply-add on some processors
        (PROD, 1j, True),
        (MAXLOC, np.ones(2, "f8,i4"), True),
        (MINLOC, (1.0, 2), True),
        (LXOR, np.ones(2), True),
        (BAND, 3, True),
        (np.maximum, np.ones(2), True),
        (np.add, 3, True),
        (np.multiply, 3, False),  # another rank may bring a complex number
        (np.logaddexp, np.ones(2), False),  # the mathematical library's choice
        (np.matmul, np.ones((2, 2)), False),  # the BLAS's choice
        (concatenate, np.ones(2), False),
    ],
)
def test_exact_is_what_surely_gives_equal_bits(op, value, exact):
    assert as_operator(op).exact_for(value) is exact


@pytest.mark.parametrize(
    ("op", "dtype", "keeps"),
    [
        (SUM, "f4", True),
        (SUM, "i1", True),
        (SUM, "m8[s]", True),
        (SUM, "M8[s]", False),
        (SUM, ">f4", False),
        (SUM, "O", False),
        (SUM, [("x", "f8")], False),
        (np.less, "f8", False),
        (np.true_divide, "i4", False),
        (MAXLOC, "f8,i4", True),
        (MAXLOC, "f8,i4,i4", False),
        (MAXLOC, "3f8,i4", False),
        (MAXLOC, "O,i4", False),
        (MAXLOC, "f8", False),
        (BXOR, "u2", True),
        (BXOR, "f8", False),
        (LAND, "?", True),
        (np.logaddexp, "f4", True),
        (np.frompyfunc(max, 2, 1), "f8", False),
        (concatenate, "f8", False),
    ],
)
def test_keeps_says_whether_parts_can_be_combined_in_place(op, dtype, keeps):
    assert as_operator(op).keeps(np.dtype(dtype)) is keeps
