"""Arguments of the communicator, checked before anything is begun: every error here says what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np

from rmpi.comm.status import Status
from rmpi.errors import RankError, UsageError
from rmpi.wire.codec import Array


def checked_rank(rank: object, size: int, argument: str) -> int:
    """``rank`` as a plain number.

    Raises:
        RankError: There is no such rank.
    """
    try:
        number = index(rank)  # type: ignore[arg-type]
    except TypeError:
        raise RankError(f"{argument} must be a rank from 0 to {size - 1}, not {rank!r}") from None
    if not 0 <= number < size:
        raise RankError(f"{argument}={number}: there are only ranks 0 to {size - 1}")
    return number


def is_wildcard(given: object, wildcard: int) -> bool:
    return type(given) is int and given == wildcard


def checked_tag(tag: int) -> int:
    try:
        number = index(tag)
    except TypeError:
        raise UsageError(f"tag must be an integer from 0 to 2**63-1, not {tag!r}") from None
    if isinstance(tag, bool) or not 0 <= number < 1 << 63:
        raise UsageError(f"tag must be an integer from 0 to 2**63-1, not {tag!r}")
    return number


def checked_code(code: int) -> int:
    try:
        number = index(code)
    except TypeError:
        number = -1
    if not 0 <= number < 256:
        raise UsageError(f"abort: code must be an exit status from 0 to 255, not {code!r}")
    return number


def check_status(status: object) -> None:
    if status is not None and not isinstance(status, Status):
        raise UsageError(f"status= is a rmpi.Status() to be filled, not {status!r:.60}")


def check_out(out: Array) -> None:
    if not isinstance(out, np.ndarray):
        raise UsageError(f"out= must be a NumPy array, not {type(out).__name__}")
    if not out.flags.writeable:
        raise UsageError("out= is a read-only array; receive into one that can be written")


def checked_out(out: Array | None) -> Array | None:
    if out is not None:
        check_out(out)
    return out


def rows_of(out: Array, size: int) -> list[Array]:
    """One array for each rank, which is a part of ``out``."""
    check_out(out)
    if out.ndim < 1 or len(out) != size:
        raise UsageError(
            f"out= needs one place for each of {size} ranks along its first axis, but has shape {out.shape}"
        )
    return [out[rank, ...] for rank in range(size)]


def put_in(out: Array | None, result: Any) -> Any:
    """The result, in ``out`` if that was given.

    Raises:
        UsageError: It does not fit there.
    """
    if out is None or result is out:
        return result
    if not isinstance(result, np.ndarray):
        raise UsageError(f"out= is an array, but the result is {type(result).__name__} {result!r:.60}")
    if result.shape != out.shape or result.dtype != out.dtype:
        raise UsageError(
            f"out= is an array {out.shape} of {out.dtype}, but the result is an array {result.shape} of {result.dtype}"
        )
    np.copyto(out, result)
    return out


def put_in_rows(out: Array, rows: Sequence[Array], pieces: Sequence[Any]) -> Array:
    """Each piece in its row of ``out``, where it may be already; the caller's own may lie anywhere in ``out``."""
    apart = [np.copy(piece) if _lies_in(piece, row, out) else piece for row, piece in zip(rows, pieces, strict=True)]
    for row, piece in zip(rows, apart, strict=True):
        put_in(row, np.asarray(piece) if row.ndim == 0 else piece)
    return out


def _lies_in(piece: Any, row: Array, out: Array) -> bool:
    """Whether writing to other rows of ``out`` may change it."""
    return piece is not row and isinstance(piece, np.ndarray) and np.may_share_memory(piece, out)


def concatenated(pieces: Sequence[Any], out: Array | None, name: str) -> Array:
    """The pieces of all ranks as one array along axis 0, in ``out`` if that was given.

    Raises:
        UsageError: One is no array with an axis, or they do not fit together or into ``out``.
    """
    for rank, piece in enumerate(pieces):
        if not isinstance(piece, np.ndarray) or piece.ndim == 0:
            what = "an array without an axis" if isinstance(piece, np.ndarray) else type(piece).__name__
            raise UsageError(f"{name} joins arrays along their first axis, but rank {rank} brought {what}")
    try:
        return put_in(out, np.concatenate(pieces))  # type: ignore[no-any-return]
    except ValueError as error:
        shapes = ", ".join(f"rank {rank}: {piece.shape}" for rank, piece in enumerate(pieces))
        raise UsageError(f"{name} joins arrays along their first axis, and the others must agree: {shapes}") from error
