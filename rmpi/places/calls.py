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


REMEMBERED = 64
"""Collectives of a communicator that are compared; of older ones reports count as first reports again."""


class CallBook:
    """The first report of each collective, per context and sequence number."""

    def __init__(self) -> None:
        self._first: dict[int, dict[int, Report]] = {}
        self._judged: set[int] = set()

    def report(self, context: int, sequence: int, report: Report) -> str | None:
        """Note a report; the text of the verdict if it is the first to disagree, else None."""
        if context in self._judged:
            return None
        calls = self._first.setdefault(context, {})
        first = calls.setdefault(sequence, report)
        if first.fingerprint != report.fingerprint:
            self._judged.add(context)
            return (
                f"ranks disagree about collective {sequence}: "
                f"{first.who} called {first.what}, {report.who} called {report.what}"
            )
        if len(calls) > REMEMBERED:
            del calls[min(calls)]
        return None
