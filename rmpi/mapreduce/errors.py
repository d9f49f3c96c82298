"""How a job fails."""

from __future__ import annotations

from typing import Literal

from rmpi.errors import RemoteError

Stage = Literal["map", "reduce"]


class MapReduceError(RemoteError):
    """A task of a job failed as often as it may; there is no result. Workers go on, and can be given another job.

    Attributes:
        stage: ``"map"`` or ``"reduce"``.
        where: What the task had been given, shortened: the ``repr`` of an input, or ``"partition 2"`` and the key.
        failures: How often it has failed.
        type_name, message, traceback: As of any `RemoteError`: of the last failure.
    """

    def __init__(self, stage: Stage, where: str, failures: int, failure: Failed) -> None:
        times = "once" if failures == 1 else f"{failures} times, the last time"
        reason = f"\n{failure.traceback.rstrip()}" if failure.traceback else f" {failure.type_name}: {failure.message}"
        super().__init__(
            f"{stage} of {where} failed {times}:{reason}",
            type_name=failure.type_name,
            message=failure.message,
            traceback=failure.traceback,
        )
        self.stage = stage
        self.where = where
        self.failures = failures


class Failed:
    """What a task returns that failed: text, because the exception may not be one that can travel.

    Attributes:
        where: As of `MapReduceError`; "" where nobody could tell.
        final: It would fail in the same way again: what the program gave us cannot be used.
    """

    __slots__ = ("final", "message", "traceback", "type_name", "where")

    def __init__(self, where: str, type_name: str, message: str, traceback: str, final: bool = False) -> None:
        self.where = where
        self.type_name = type_name
        self.message = message
        self.traceback = traceback
        self.final = final


def shortened(value: object, most: int = 120) -> str:
    """``repr`` of a value, of which the middle is left out if it is long."""
    try:
        text = repr(value)
    except Exception as error:  # any class may have one that raises
        text = f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"
