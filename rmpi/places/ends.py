"""How places end, and what that means for the job. [pure]

The exit-code rule: a rank's own exit status; 128 plus the signal that killed it; 70 if it joined the job and
ended with 0 without leaving properly (``os._exit(0)`` in the middle: nobody can know what it left undone).
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

LEFT_WITHOUT_FINISHING = 70
"""EX_SOFTWARE of sysexits(3): an internal error of the program."""


@dataclass(frozen=True, slots=True)
class End:
    """How a place ended.

    Attributes:
        code: What the job's exit code is if this is its first failure; 0 for a good end.
        cause: In words.
    """

    code: int
    cause: str

    @property
    def failed(self) -> bool:
        return self.code != 0


def end_of(status: int, *, joined: bool, left: bool) -> End:
    """Judge an exit status (minus the signal, for a place that was killed)."""
    if status < 0:
        return End(128 - status, f"killed by {signal_name(-status)}")
    if status:
        return End(status, f"exit status {status}")
    if joined and not left:
        return End(LEFT_WITHOUT_FINISHING, "left without finishing: exit status 0 in the middle of the job")
    return End(0, "finished")


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
