"""What stands for a communicator while fixtures are set up, before there are ranks.

In each rank it *becomes* the communicator: the very object, so that fixtures which hold it hold the right thing.
"""

from __future__ import annotations

from typing import Any, NoReturn

from rmpi.comm.communicator import Comm
from rmpi.errors import UsageError


class StandIn(Comm):
    """Knows its size, and nothing else yet."""

    def __init__(self, size: int) -> None:
        self.size = size

    def become(self, comm: Comm) -> None:
        """Be ``comm`` from now on."""
        self.__class__ = Comm  # type: ignore[assignment]
        self.__dict__ = comm.__dict__

    def __getattribute__(self, name: str) -> Any:
        if name in ("size", "become") or name.startswith("__"):
            return super().__getattribute__(name)
        return _refuse(name)

    def __repr__(self) -> str:
        return f"<Comm of {self.size} ranks that have not started>"


def _refuse(name: str) -> NoReturn:
    raise UsageError(f"comm.{name} is there only in the body of the test, which runs on ranks; fixtures have comm.size")
