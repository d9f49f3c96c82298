"""What comes of the ranks of a function: results, and errors that name ranks.

Whoever runs functions on ranks (`rmpi.launch`, the test kit) is told what their functions returned or raised, in
pieces, and at the end how each rank ended. Here that becomes values, and one `ExceptionGroup` whose first error is
the cause.
"""

from __future__ import annotations

from typing import Any

from rmpi import errors
from rmpi.comm.launch import Outcome, RankFailure
from rmpi.errors import DeadlineExceeded, RankFailed, RemoteError, RmpiError
from rmpi.places.parcels import Failure, open_outcome, open_value


class Told:
    """What ranks have handed to the owner of their job, put together from its pieces."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[bytes]] = {}
        self._whole: set[int] = set()

    def add(self, rank: int, data: bytes, last: bool) -> None:
        self._pieces.setdefault(rank, []).append(data)
        if last:
            self._whole.add(rank)

    def get(self, rank: int) -> Failure | bytes | None:
        """What the rank's function raised, or returned, packed; None if it did not come to that, or not to us."""
        return open_outcome(b"".join(self._pieces[rank])) if rank in self._whole else None


def results(told: Told, size: int) -> list[Any]:
    """What the functions of all ranks returned; None for a rank that ended well by `sys.exit`."""
    packed = [told.get(rank) for rank in range(size)]
    return [open_value(each) if isinstance(each, bytes) else None for each in packed]


def out_of_time(outcome: Outcome, told: Told, timeout: float | None) -> DeadlineExceeded:
    """The error of a job that took too long. Its ranks were interrupted, and said where."""
    failures = sorted(outcome.failures, key=lambda failure: failure.rank)
    ranks = ", ".join(str(failure.rank) for failure in failures)
    error = DeadlineExceeded(f"the job was ended after {timeout:g} s, in which these ranks had not: {ranks}")
    for failure in failures:
        said = told.get(failure.rank)
        where = said.text.rstrip() if isinstance(said, Failure) else f"it does not say ({failure.cause})"
        error.add_note(f"where rank {failure.rank} on {failure.host} was:\n{where}")
    return error


def group(outcome: Outcome, told: Told, size: int) -> ExceptionGroup[Exception]:
    """All failures of a job, in the order of time but for the cause, which is the first."""
    failures = outcome.failures
    of_themselves = [failure for failure in failures if not failure.stopped]
    failed = [_error_of(failure, told.get(failure.rank), size) for failure in of_themselves or failures]
    reason = _named_error(outcome.reason)
    if reason is not None:
        return ExceptionGroup(f"the job of {size} ranks was ended", [reason, *failed])
    text = f"{len(failed)} of {size} ranks failed"
    if outcome.reason:
        text = f"the job was {outcome.reason}; {text}"
    elif len(failed) > 1:
        text += f", rank {failures[0].rank} on {failures[0].host} first"
    return ExceptionGroup(text, failed)


def _error_of(failure: RankFailure, said: Failure | bytes | None, size: int) -> Exception:
    """What a rank raised, or what became of it, with a note on where, and the traceback if the error has none."""
    where = f"in rank {failure.rank} of {size} on {failure.host}"
    text = (said.text if isinstance(said, Failure) else failure.traceback or "").rstrip()
    error: Exception
    if isinstance(said, Failure):
        error = said.error()
    elif text:
        error = RemoteError(text)
    else:
        error = RankFailed(failure.rank, failure.host, failure.cause)
    error.add_note(f"{where}:\n{text}" if text and not isinstance(error, RemoteError) else where)
    return error


def _named_error(reason: str) -> RmpiError | None:
    """The error of ours that a reason begins with the name of: ``"CollectiveMismatch: …"``."""
    name, _, text = reason.partition(": ")
    kind = getattr(errors, name, None) if name.isidentifier() else None
    return kind(text) if isinstance(kind, type) and issubclass(kind, RmpiError) else None
