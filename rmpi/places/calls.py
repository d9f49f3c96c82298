"""Do the ranks of a communicator call the same collectives? [no I/O]

Each report says that somebody called a certain thing as collective number so-and-so of a context; equal
fingerprints are equal calls. The first two reports that differ are the verdict, and it is given once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Report:
    who: str
    fingerprint: int
    what: str


class CallBook:
    """What has been reported, per context and sequence number. Reports of older collectives are dropped."""

    def __init__(self) -> None:
        self._latest: dict[int, tuple[int, Report]] = {}
        self._judged: set[int] = set()

    def report(self, context: int, sequence: int, report: Report) -> str | None:
        """Note a report; the text of the verdict if it is the first to disagree, else None."""
        known = self._latest.get(context)
        if context in self._judged or (known is not None and known[0] > sequence):
            return None
        if known is None or known[0] < sequence:
            self._latest[context] = sequence, report
            return None
        first = known[1]
        if first.fingerprint == report.fingerprint:
            return None
        self._judged.add(context)
        return (
            f"ranks disagree about collective {sequence}: "
            f"{first.who} called {first.what}, {report.who} called {report.what}"
        )
