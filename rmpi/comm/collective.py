"""Collectives: the part of a communicator in which all ranks take part.

One name each, arrays and objects through the same call, and every call in two forms: ``allreduce`` waits,
``iallreduce`` returns a `Request`. What a call means is written once (`rmpi.comm.calls`), how it goes is a schedule
that `rmpi.comm.choose` picks, and the `Driver` follows it.

What belongs to whom, everywhere: a value that comes back belongs to the caller and shares no memory with what others
hold; values passed in are not modified, save by ``out=``. A nonblocking call lends its arguments until its request is
done.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, overload

from rmpi.comm import calls
from rmpi.comm.calls import Group, Op
from rmpi.comm.driver import Collective, Driver
from rmpi.comm.family import Family
from rmpi.comm.ongoing import Ongoing
from rmpi.comm.ops import SUM
from rmpi.comm.point_to_point import PointToPoint
from rmpi.comm.request import Request
from rmpi.comm.topology import Machines
from rmpi.transport.callsite import call_site
from rmpi.wire.codec import Array

T = TypeVar("T")
A = TypeVar("A", bound=Array)


class Collectives(PointToPoint):
    """Ranks that act together. Every rank calls the same collectives in the same order."""

    def __init__(self, family: Family, members: Sequence[int], context: int, machines: Sequence[Hashable]) -> None:
        """``machines`` names the machine of each rank: equal names are one machine."""
        super().__init__(family, members, context)
        self._group = Group(self.rank, self.size, Machines.of(tuple(machines)))
        self._driver = Driver(self._endpoint, family.keeper, members, context)
        family.add(self._driver)

    def _close(self) -> None:
        super()._close()
        self._driver.close()

    def _start(self, call: Collective) -> Request[Any]:
        ongoing = self._driver.start(call)
        what = call[0].what
        if not ongoing.done:
            self._family.note_begun(ongoing, f"nonblocking {what}, at {call_site()[1]}")
        return Request(self._endpoint, ongoing, what, partial(_value_of, ongoing))

    # ------------------------------------------------------------------------------------ barrier

    def barrier(self, *, timeout: float | None = None) -> None:
        """Return when every rank has called it."""
        self._driver.run(calls.barrier(self._group), timeout)

    def ibarrier(self) -> Request[None]:
        """`barrier` as a request, which is done when every rank has called it."""
        return self._start(calls.barrier(self._group))

    # ---------------------------------------------------------------------------------- broadcast

    @overload
    def broadcast(
        self, value: None = None, root: int = 0, *, out: Array | None = None, timeout: float | None = None
    ) -> Any: ...
    @overload
    def broadcast(
        self, value: T | None, root: int = 0, *, out: Array | None = None, timeout: float | None = None
    ) -> T: ...
    def broadcast(
        self, value: Any = None, root: int = 0, *, out: Array | None = None, timeout: float | None = None
    ) -> Any:
        """Give the root's value to every rank.

        Args:
            value: On the root, anything that can be sent; elsewhere it is ignored.
            root: The rank that has the value.
            out: An array to receive in place, on ranks other than the root; the root ignores it.

        Returns:
            On the root ``value`` itself, elsewhere a value of one's own, or ``out``.

        Raises:
            UsageError: What came does not fit ``out``.
        """
        return self._driver.run(calls.broadcast(self._group, value, root, out), timeout)

    def ibroadcast(self, value: Any = None, root: int = 0, *, out: Array | None = None) -> Request[Any]:
        """`broadcast` as a request."""
        return self._start(calls.broadcast(self._group, value, root, out))

    # --------------------------------------------------------------------------------- reductions

    def reduce(
        self, value: T, op: Op = SUM, root: int = 0, *, out: Array | None = None, timeout: float | None = None
    ) -> T | None:
        """Combine the values of all ranks, in rank order, on the root.

        Args:
            value: Arrays of one shape and dtype on all ranks (combined element by element), or any objects
                (combined as wholes: ``+`` joins strings and lists). Not modified.
            op: `SUM`, `PROD`, `MIN`, `MAX`, `MAXLOC`, `MINLOC`, `LAND`, `LOR`, `LXOR`, `BAND`, `BOR`, `BXOR`, a ufunc
                of two inputs, an `Operator`, or a callable ``op(lower, higher)``. It need not commute; it must be
                associative up to rounding, return its result, leave its operands alone, and not communicate. Arrays
                follow NumPy's rules: the sum of bools is their *or*, and small integers wrap around; convert
                first where that is not meant. MAXLOC and MINLOC combine pairs ``(value, location)``: tuples of two, or
                arrays with two fields.
            out: On the root, an array for the result; it may be ``value`` itself.

        Returns:
            On the root a value of its own (or ``out``), elsewhere None. The bracketing depends on the number
            of ranks alone, so the bits are the same from run to run and wherever the ranks run.
        """
        result: T | None = self._driver.run(calls.reduce(self._group, value, op, root, out), timeout)
        return result

    def ireduce(self, value: T, op: Op = SUM, root: int = 0, *, out: Array | None = None) -> Request[T | None]:
        """`reduce` as a request."""
        return self._start(calls.reduce(self._group, value, op, root, out))

    def allreduce(self, value: T, op: Op = SUM, *, out: Array | None = None, timeout: float | None = None) -> T:
        """`reduce`, with the result on every rank: the same bits on all of them.

        Returns:
            A value of one's own, never an alias of ``value``; or ``out``, which may be ``value`` itself.
        """
        result: T = self._driver.run(calls.allreduce(self._group, value, op, out), timeout)
        return result

    def iallreduce(self, value: T, op: Op = SUM, *, out: Array | None = None) -> Request[T]:
        """`allreduce` as a request."""
        return self._start(calls.allreduce(self._group, value, op, out))

    def scan(self, value: T, op: Op = SUM, *, out: Array | None = None, timeout: float | None = None) -> T:
        """The values of ranks 0 to this one, combined in rank order: the inclusive prefix.

        Args, errors: As for `reduce`; ``out`` on every rank, may be ``value`` itself.

        Returns:
            A value of one's own, or ``out``. Its bits depend on the values and the number of ranks alone.
        """
        result: T = self._driver.run(calls.scan(self._group, value, op, out), timeout)
        return result

    def iscan(self, value: T, op: Op = SUM, *, out: Array | None = None) -> Request[T]:
        """`scan` as a request."""
        return self._start(calls.scan(self._group, value, op, out))

    def exscan(self, value: T, op: Op = SUM, *, out: Array | None = None, timeout: float | None = None) -> T | None:
        """The values of the ranks before this one, combined in rank order: the exclusive prefix.

        Returns:
            A value of one's own, or ``out``; on rank 0, which has none before it, None, and ``out`` is left alone.
        """
        result: T | None = self._driver.run(calls.exscan(self._group, value, op, out), timeout)
        return result

    def iexscan(self, value: T, op: Op = SUM, *, out: Array | None = None) -> Request[T | None]:
        """`exscan` as a request."""
        return self._start(calls.exscan(self._group, value, op, out))

    @overload
    def reduce_scatter(
        self,
        values: A,
        op: Op = SUM,
        *,
        counts: Sequence[int] | None = None,
        out: Array | None = None,
        timeout: float | None = None,
    ) -> A: ...
    @overload
    def reduce_scatter(
        self, values: Sequence[T], op: Op = SUM, *, out: Array | None = None, timeout: float | None = None
    ) -> T: ...
    def reduce_scatter(
        self,
        values: Any,
        op: Op = SUM,
        *,
        counts: Sequence[int] | None = None,
        out: Array | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Combine the values of all ranks, and give each rank its piece of the result.

        Args:
            values: An array of one shape and dtype on all ranks, cut along axis 0 as `Comm.partition` does; or a
                sequence with one value for each rank.
            counts: How to cut the array instead: one length for each rank, the same everywhere.
            out: An array for this rank's piece.

        Returns:
            This rank's piece, with the bits that `reduce` would give; a value of one's own, or ``out``.
        """
        return self._driver.run(calls.reduce_scatter(self._group, values, op, counts, out), timeout)

    def ireduce_scatter(
        self, values: Any, op: Op = SUM, *, counts: Sequence[int] | None = None, out: Array | None = None
    ) -> Request[Any]:
        """`reduce_scatter` as a request."""
        return self._start(calls.reduce_scatter(self._group, values, op, counts, out))

    # ---------------------------------------------------------------------- one piece for each rank

    @overload
    def gather(
        self,
        value: T,
        root: int = 0,
        *,
        concatenate: Literal[False] = False,
        out: None = None,
        timeout: float | None = None,
    ) -> list[T] | None: ...
    @overload
    def gather(
        self,
        value: T,
        root: int = 0,
        *,
        concatenate: Literal[True],
        out: None = None,
        timeout: float | None = None,
    ) -> T | None: ...
    @overload
    def gather(
        self, value: Any, root: int = 0, *, concatenate: bool = False, out: A, timeout: float | None = None
    ) -> A | None: ...
    def gather(
        self,
        value: Any,
        root: int = 0,
        *,
        concatenate: bool = False,
        out: Array | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The values of all ranks as a list in rank order on the root; None elsewhere.

        Values may be of any types and sizes. The root's own is in the list itself, not a copy.

        Args:
            concatenate: Join arrays along axis 0, whatever their lengths: one new array instead of a list.
            out: On the root, an array for the result: of shape ``(size, *value.shape)``, or what ``concatenate``
                makes.

        Raises:
            UsageError: On the root: what came cannot be joined, or does not fit ``out``.
        """
        return self._driver.run(calls.gather(self._group, value, root, concatenate, out), timeout)

    def igather(
        self, value: Any, root: int = 0, *, concatenate: bool = False, out: Array | None = None
    ) -> Request[Any]:
        """`gather` as a request."""
        return self._start(calls.gather(self._group, value, root, concatenate, out))

    @overload
    def allgather(
        self, value: T, *, concatenate: Literal[False] = False, out: None = None, timeout: float | None = None
    ) -> list[T]: ...
    @overload
    def allgather(
        self, value: T, *, concatenate: Literal[True], out: None = None, timeout: float | None = None
    ) -> T: ...
    @overload
    def allgather(self, value: Any, *, concatenate: bool = False, out: A, timeout: float | None = None) -> A: ...
    def allgather(
        self, value: Any, *, concatenate: bool = False, out: Array | None = None, timeout: float | None = None
    ) -> Any:
        """The values of all ranks as a list in rank order, on every rank; one's own is not a copy.

        Args:
            concatenate: Join arrays along axis 0, whatever their lengths: one new array instead of a list.
            out: An array to receive in place, of shape ``(size, *value.shape)`` and the values' dtype, or what
                ``concatenate`` makes; ``value`` may be its row of it. Without it, large arrays cost new memory in
                every call.

        Raises:
            UsageError: What came cannot be joined, does not fit ``out``, or ``out`` has not one place for each rank.
        """
        return self._driver.run(calls.allgather(self._group, value, concatenate, out), timeout)

    def iallgather(self, value: Any, *, concatenate: bool = False, out: Array | None = None) -> Request[Any]:
        """`allgather` as a request."""
        return self._start(calls.allgather(self._group, value, concatenate, out))

    @overload
    def scatter(
        self, values: None = None, root: int = 0, *, out: Array | None = None, timeout: float | None = None
    ) -> Any: ...
    @overload
    def scatter(
        self,
        values: A | None,
        root: int = 0,
        *,
        counts: Sequence[int] | None = None,
        out: Array | None = None,
        timeout: float | None = None,
    ) -> A: ...
    @overload
    def scatter(
        self, values: Sequence[T] | None, root: int = 0, *, out: Array | None = None, timeout: float | None = None
    ) -> T: ...
    def scatter(
        self,
        values: Any = None,
        root: int = 0,
        *,
        counts: Sequence[int] | None = None,
        out: Array | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Give each rank its piece of what the root has.

        Args:
            values: On the root, an array, which is cut along axis 0 as `Comm.partition` does; or a sequence of exactly
                ``size`` values of any types and sizes. Elsewhere it is ignored.
            counts: On the root, how to cut the array instead: one length for each rank. Others need not know.
            out: An array to receive in place.

        Returns:
            ``out`` if that was given; else the piece, which is one's own. Of a sequence, the root gets its very item.

        Raises:
            UsageError: On the root, ``values`` cannot be cut so, or are not ``size``. Nothing was sent.
        """
        return self._driver.run(calls.scatter(self._group, values, root, counts, out), timeout)

    def iscatter(
        self, values: Any = None, root: int = 0, *, counts: Sequence[int] | None = None, out: Array | None = None
    ) -> Request[Any]:
        """`scatter` as a request."""
        return self._start(calls.scatter(self._group, values, root, counts, out))

    @overload
    def alltoall(
        self,
        values: A,
        *,
        counts: Sequence[int] | None = None,
        out: Array | None = None,
        timeout: float | None = None,
    ) -> A: ...
    @overload
    def alltoall(self, values: Sequence[T], *, timeout: float | None = None) -> list[T]: ...
    def alltoall(
        self,
        values: Any,
        *,
        counts: Sequence[int] | None = None,
        out: Array | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Give every rank a piece, and get one from every rank.

        Args:
            values: A sequence with one value for each rank, of any types and sizes; or an array, which is cut
                along axis 0 as `Comm.partition` does.
            counts: How to cut the array instead: one length for each rank. Others need not know: sizes travel with
                the data.
            out: For an array: where all that comes lies one after the other, in rank order.

        Returns:
            For a sequence the list of what came, in rank order; one's own is not a copy. For an array one array,
            the pieces that came joined along axis 0; or ``out``.

        Raises:
            UsageError: ``values`` cannot be cut so, or are not ``size``; or what came does not fit into one
                array, or into ``out``.
        """
        return self._driver.run(calls.alltoall(self._group, values, counts, out), timeout)

    def ialltoall(self, values: Any, *, counts: Sequence[int] | None = None, out: Array | None = None) -> Request[Any]:
        """`alltoall` as a request."""
        return self._start(calls.alltoall(self._group, values, counts, out))


def _value_of(ongoing: Ongoing) -> Any:
    return ongoing.value
