"""Event loops of asyncio that watch an endpoint's epoll while somebody in them awaits an operation.

`add_reader` of the one epoll is all they need: what is readable in it makes it readable itself (epoll(7)). Each loop
adds it once, however many tasks await something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rmpi.transport.crank import Crank

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class EventLoops:
    """The loops that attend a crank. Each is named by its own thread."""

    def __init__(self, crank: Crank, progress: Callable[[], None]) -> None:
        self._crank = crank
        self._progress = progress
        self._tasks: dict[AbstractEventLoop, int] = {}
        self._fd = -1

    def attend(self, loop: AbstractEventLoop) -> None:
        """One more task of ``loop`` waits."""
        tasks = self._tasks.get(loop, 0)
        self._tasks[loop] = tasks + 1
        if not tasks:
            self._fd = self._crank.attend()
            loop.add_reader(self._fd, self._progress)

    def neglect(self, loop: AbstractEventLoop) -> None:
        """One task of ``loop`` waits no more."""
        self._tasks[loop] -= 1
        if not self._tasks[loop]:
            del self._tasks[loop]
            self._crank.neglect()
            if not loop.is_closed():
                loop.remove_reader(self._fd)
