"""What a receive may leave open, and what it hears of the message that came."""

from __future__ import annotations

from dataclasses import dataclass

ANY_SOURCE = -1
"""In place of a source: whoever sends first."""

ANY_TAG = -1
"""In place of a tag: whichever comes first."""


@dataclass(slots=True)
class Status:
    """Filled in by a receive, and returned by a probe.

    Attributes:
        source: Rank the message came from.
        tag: Its tag.
        nbytes: Bytes of its payload on the wire; 0 for what travels in the header (None, int, float, bool).
    """

    source: int = ANY_SOURCE
    tag: int = ANY_TAG
    nbytes: int = 0
