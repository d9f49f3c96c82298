"""Workers as the master's users see them."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rmpi.taskfarm.scheduler import Hand

if TYPE_CHECKING:
    from rmpi.taskfarm.farm import Farm


class Worker(Hand):
    """A worker of a `Master`.

    One that was leased by `Master.get_worker` gets only the tasks that are given to it by name, until `release`; at the
    end of a ``with`` it is released.

    Attributes:
        label: What messages call it: ``"worker 3 on host2"``.
        host: The machine that it runs on.
        pid: Of its process.
        done: How many tasks it has done.
        alive: Whether it is there.
    """

    __slots__ = ("__weakref__", "_farm", "alive", "done", "host", "label", "pid")

    def __init__(self, farm: Farm, label: str, host: str, pid: int) -> None:
        """For the library."""
        super().__init__()
        self._farm = farm
        self.label = label
        self.host = host
        self.pid = pid
        self.done = 0
        self.alive = True

    @property
    def busy(self) -> bool:
        """Whether it has tasks to do."""
        return not self.idle

    def release(self) -> None:
        """End the lease. Doing it again does nothing."""
        self._farm.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "lost" if not self.alive else "leased" if self.leased else "busy" if self.busy else "idle"
        return f"<Worker {self.label}: {state}, {self.done} tasks done>"
