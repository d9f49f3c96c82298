"""Operators: what they do to arrays and objects, what they are called, and when they are exact."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from rmpi.comm.ops import MAX, MIN, PROD, SUM, Operator, as_operator
from rmpi.errors import UsageError


def concatenate(left, right):
    return np.concatenate([left, right])


class Merge:
    def __call__(self, left, right):
        return {**left, **right}


@pytest.mark.parametrize(
    ("operator", "expected"), [(SUM, [5, 7]), (PROD, [4, 12]), (MIN, [1, 3]), (MAX, [4, 4])], ids=repr
)
def test_arrays_are_combined_element_by_element(operator, expected):
    left, right = np.array([1, 3], np.int16), np.array([4, 4], np.int16)
    result = operator(left, right)
    assert result.tolist() == expected
    assert result.dtype == np.int16
    assert (left.tolist(), right.tolist()) == ([1, 3], [4, 4])


@pytest.mark.parametrize(("operator", "expected"), [(SUM, 5), (PROD, 6), (MIN, 2), (MAX, 3)], ids=repr)
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
        (np.logaddexp, "f4", True),
        (np.frompyfunc(max, 2, 1), "f8", False),
        (concatenate, "f8", False),
    ],
)
def test_keeps_says_whether_parts_can_be_combined_in_place(op, dtype, keeps):
    assert as_operator(op).keeps(np.dtype(dtype)) is keeps
