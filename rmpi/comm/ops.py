"""Operators: how a reduction combines two values.

``operator(left, right)`` combines what comes from lower ranks (left) with what comes from higher ones
(right), so an operator need not commute; it must be associative up to rounding. Neither operand is changed,
and an operator of yours must not change them either.

Three kinds:

- The built-ins, element by element for arrays (`numpy.add`, …), and by the Python operator for everything else
  (``+`` also joins strings, ``&`` intersects sets):

  - `SUM`, `PROD`, `MIN`, `MAX`. A NaN makes the result of MIN and MAX a NaN, for floats as for arrays.
  - `BAND`, `BOR`, `BXOR`: bit by bit.
  - `LAND`, `LOR`, `LXOR`: of truth values. What takes part is the truth of each rank's value, so the result is a bool
    or an array of bools, on one rank too.
  - `MINLOC`, `MAXLOC`: of pairs ``(value, location)``, the one with the least or greatest value; among equal values the
    one with the lower location. A pair is a tuple of two, or an element of an array with exactly two fields. A NaN is
    less, and greater, than any number.

- A NumPy ufunc of two inputs and one output, applied as it is.
- Any other callable of two arguments, called with whole values. (`numpy.matmul` is of this kind too: it is
  a *generalised* ufunc, which cannot be applied to parts of an array.)

The invariant that the choice of algorithm rests on: `Operator.exact_for` is True only where equal operands
give equal bits on every machine. That is less than one would think. NumPy picks its inner loops by what the
processor can do, and with AVX2 or AVX512 switched off (``NPY_DISABLE_CPU_FEATURES``, NumPy 2.4) other bits
were seen from complex multiply (fused multiply-add), power, arctan2, and fmin and fmax of signed zeros. So
exact is what a list names, and all others are applied on one rank per element, whose result is sent to the
rest.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rmpi.errors import UsageError

Array: TypeAlias = npt.NDArray[Any]

_EXACT_UFUNCS = frozenset(
    {np.add, np.subtract, np.multiply, np.minimum, np.maximum}
    | {np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.logical_and, np.logical_or, np.logical_xor}
    | {np.gcd, np.lcm}
)


class _Located:
    """MINLOC or MAXLOC for arrays of two fields; called like a ufunc.

    It only chooses between elements, and comparing is exact: so is this.
    """

    def __init__(self, name: str, better: np.ufunc) -> None:
        self._name = name
        self._better = better

    def keeps(self, dtype: np.dtype[Any]) -> bool:
        """Whether elements of ``dtype`` are pairs."""
        names = dtype.names or ()
        return len(names) == 2 and all(dtype[name].shape == () for name in names)

    def __call__(self, left: Any, right: Any, out: Array | None = None) -> Any:
        """The better of each two elements, in ``out`` if given: one of the operands, or memory apart from both."""
        takes = self._takes_right(left, right)
        if out is None:
            out = left.copy()
        elif out is right:
            np.copyto(out, left, where=~takes)
            return out
        elif out is not left:
            np.copyto(out, left)
        np.copyto(out, right, where=takes)
        return out

    def _takes_right(self, left: Any, right: Any) -> Any:
        for operand in (left, right):
            if not isinstance(operand, np.ndarray) or not self.keeps(operand.dtype):
                raise _no_pair(self._name, operand)
        ours, theirs = ([array[name] for name in array.dtype.names] for array in (left, right))
        nan, their_nan = (values != values for values in (ours[0], theirs[0]))  # only NaN does that
        tie = (ours[0] == theirs[0]) | (nan & their_nan)
        return self._better(theirs[0], ours[0]) | (their_nan & ~nan) | (tie & (theirs[1] < ours[1]))


Elementwise: TypeAlias = np.ufunc | _Located


class Operator:
    """A named way to combine two values.

    Args:
        function: A NumPy ufunc of two inputs and one output, or any callable of two arguments.
        name: The same on every rank: ranks that reduce with differently named operators are told so.
            By default the ufunc's name, or the module and name of the callable.
        commutes: Operands may change places.
        reproducible: False gives up equal bits from run to run. With ``commutes=True`` it permits orders
            other than the binary tree over adjacent ranks.

    Raises:
        UsageError: ``function`` cannot be called with two values.
    """

    __slots__ = (
        "_exact",
        "_exact_arrays",
        "_function",
        "_kept",
        "_prepare",
        "_ufunc",
        "commutes",
        "name",
        "reproducible",
    )

    def __init__(
        self,
        function: Callable[[Any, Any], Any],
        *,
        name: str | None = None,
        commutes: bool = False,
        reproducible: bool = True,
    ) -> None:
        _check(function)
        self.name = name or _name(function)
        self.commutes = commutes
        self.reproducible = reproducible
        self._function = function
        self._kept: np.dtype[Any] | None = None  # the last dtype that was seen to be kept
        self._prepare: Callable[[Any], Any] | None = None
        self._apply_to_arrays(function if isinstance(function, np.ufunc) and function.signature is None else None)
        # np.multiply may be given complex scalars too, which it rounds as the processor likes.
        self._exact = self._exact_arrays and self._ufunc is not np.multiply

    def _apply_to_arrays(self, ufunc: Elementwise | None) -> None:
        self._ufunc = ufunc
        self._exact_arrays = ufunc in _EXACT_UFUNCS or isinstance(ufunc, _Located)

    def prepare(self, value: Any) -> Any:
        """What takes part in the reduction for a rank's ``value``: its truth for LAND, LOR and LXOR, else itself.

        Whoever reduces does this once to each rank's value. So the result is of one type on any number of ranks.
        """
        return value if self._prepare is None else self._prepare(value)

    def __call__(self, left: Any, right: Any) -> Any:
        """Combine two values, left from the lower ranks. For ufuncs the result is always a new value."""
        return self.combine(left, right)

    def combine(self, left: Any, right: Any, into: Any = None) -> Any:
        """Combine two values, in the memory of ``into`` where possible; then the result *is* ``into``.

        ``into`` is whatever belongs to the caller of this method, often one of the operands. It is used when
        it and both operands are arrays of one shape and dtype, which the operator keeps.
        """
        ufunc = self._ufunc
        if ufunc is None or not (isinstance(left, np.ndarray) or isinstance(right, np.ndarray)):
            return self._function(left, right)
        if type(left) is type(right) is np.ndarray and (into is right or into is left):
            dtype = left.dtype  # the usual case, at the price of a few comparisons
            if dtype is self._kept and dtype is right.dtype and left.shape == right.shape and into.flags.writeable:
                return ufunc(left, right, out=into)
        if self._fits(ufunc, left, right, into):
            return ufunc(left, right, out=into)
        return np.asanyarray(ufunc(left, right))  # a ufunc of 0-d arrays returns a scalar

    def _fits(self, ufunc: Elementwise, left: Any, right: Any, into: Any) -> bool:
        if not (type(into) is type(left) is type(right) is np.ndarray):
            return False
        dtype = into.dtype
        if dtype is not self._kept:
            if not _keeps(ufunc, dtype):
                return False
            self._kept = dtype
        return (
            into.shape == left.shape == right.shape
            and (left.dtype is dtype or left.dtype == dtype)
            and (right.dtype is dtype or right.dtype == dtype)
            and into.flags.writeable
        )

    def exact_for(self, value: object) -> bool:
        """Whether equal operands like ``value`` surely give equal bits wherever this is applied.

        Of values that are not arrays only that is looked at, because ranks may bring different types.
        """
        if not isinstance(value, np.ndarray):
            return self._exact
        fused = self._ufunc is np.multiply and value.dtype.kind == "c"
        return self._exact_arrays and not fused

    def keeps(self, dtype: np.dtype[Any]) -> bool:
        """Whether arrays of ``dtype`` are combined element by element into the same dtype."""
        return self._ufunc is not None and not dtype.hasobject and _keeps(self._ufunc, dtype)

    def __repr__(self) -> str:
        return f"<Operator {self.name}>"


def as_operator(op: Operator | Callable[[Any, Any], Any]) -> Operator:
    """``op`` as an `Operator`: one already, a NumPy ufunc, or a callable of two arguments.

    Raises:
        UsageError: It is none of these.
    """
    if isinstance(op, Operator):
        return op
    return _of_ufunc(op) if isinstance(op, np.ufunc) else Operator(op)


@lru_cache(maxsize=256)
def _of_ufunc(ufunc: np.ufunc) -> Operator:
    return Operator(ufunc)


def _check(function: object) -> None:
    if isinstance(function, np.ufunc) and (function.nin, function.nout) != (2, 1):
        raise UsageError(
            f"a reduction combines two values into one, but {_name(function)} takes {function.nin} and "
            f"returns {function.nout}; use a ufunc like numpy.add"
        )
    instead = _NOT_OPERATORS.get(function) if callable(function) else None
    if instead is not None:
        name = _name(function)
        raise UsageError(f"{name} reduces one array, and does not combine two values; use {instead}")
    if not callable(function):
        raise UsageError(
            "op must be rmpi.SUM, PROD, MIN, MAX or another of rmpi's, an Operator, a NumPy ufunc of two inputs, or "
            f"a callable of two arguments, not {function!r}"
        )


_NOT_OPERATORS: dict[object, str] = {
    sum: "rmpi.SUM",
    np.sum: "rmpi.SUM or numpy.add",
    np.prod: "rmpi.PROD or numpy.multiply",
    np.min: "rmpi.MIN or numpy.minimum",
    np.max: "rmpi.MAX or numpy.maximum",
    np.any: "rmpi.LOR",
    np.all: "rmpi.LAND",
    np.argmin: "rmpi.MINLOC",
    np.argmax: "rmpi.MAXLOC",
}
"""What comes to mind first, takes two arguments, and means something else: the second is an axis."""


def _name(function: object) -> str:
    if isinstance(function, np.ufunc):
        short = function.__name__
        return f"numpy.{short}" if getattr(np, short, None) is function else f"ufunc {short}"
    if not hasattr(function, "__qualname__"):  # an object; its repr may have an address in it
        function = type(function)
    return f"{function.__module__}.{function.__qualname__}"


@lru_cache(maxsize=256)
def _keeps(ufunc: Elementwise, dtype: np.dtype[Any]) -> bool:
    if isinstance(ufunc, _Located):
        return ufunc.keeps(dtype)
    try:
        found = ufunc.resolve_dtypes((dtype, dtype, None))
    except TypeError:  # no loop for this dtype: applying it will say so better
        return False
    return bool(found == (dtype, dtype, dtype))


def _builtin(name: str, ufunc: Elementwise, function: Callable[[Any, Any], Any]) -> Operator:
    made = Operator(function, name=name, commutes=True)
    made._apply_to_arrays(ufunc)
    made._exact = True
    return made


def _logical(name: str, ufunc: np.ufunc, function: Callable[[bool, bool], bool]) -> Operator:
    made = _builtin(name, ufunc, lambda left, right: function(bool(left), bool(right)))
    made._prepare = _truth
    return made


def _min(left: Any, right: Any) -> Any:
    return right if right < left or right != right else left  # only a NaN differs from itself


def _max(left: Any, right: Any) -> Any:
    return right if right > left or right != right else left


def _minloc(left: Any, right: Any) -> Any:
    return _better_pair("MINLOC", operator.lt, left, right)


def _maxloc(left: Any, right: Any) -> Any:
    return _better_pair("MAXLOC", operator.gt, left, right)


def _better_pair(name: str, better: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """``left`` or ``right`` itself."""
    for operand in (left, right):
        if not _is_pair(operand):
            raise _no_pair(name, operand)
    ours, theirs = left[0], right[0]
    nan, their_nan = ours != ours, theirs != theirs
    if nan != their_nan:
        return left if nan else right
    if nan or ours == theirs:
        return right if right[1] < left[1] else left
    return right if better(theirs, ours) else left


def _is_pair(value: object) -> bool:
    if isinstance(value, np.void):  # an element of an array with fields
        return value.dtype.names is not None and len(value.dtype.names) == 2
    return isinstance(value, tuple) and len(value) == 2


def _no_pair(name: str, value: object) -> UsageError:
    given = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"{value!r:.60}"
    return UsageError(
        f"{name} combines pairs: tuples (value, location), or arrays with exactly these two fields, not {given}"
    )


def _truth(value: Any) -> Any:
    return value.astype(bool, copy=False) if isinstance(value, np.ndarray) else bool(value)


SUM = _builtin("SUM", np.add, operator.add)
PROD = _builtin("PROD", np.multiply, operator.mul)
MIN = _builtin("MIN", np.minimum, _min)
MAX = _builtin("MAX", np.maximum, _max)
MINLOC = _builtin("MINLOC", _Located("MINLOC", np.less), _minloc)
MAXLOC = _builtin("MAXLOC", _Located("MAXLOC", np.greater), _maxloc)
LAND = _logical("LAND", np.logical_and, operator.and_)
LOR = _logical("LOR", np.logical_or, operator.or_)
LXOR = _logical("LXOR", np.logical_xor, operator.xor)
BAND = _builtin("BAND", np.bitwise_and, operator.and_)
BOR = _builtin("BOR", np.bitwise_or, operator.or_)
BXOR = _builtin("BXOR", np.bitwise_xor, operator.xor)
