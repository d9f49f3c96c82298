"""Event loops of asyncio that watch an endpoint's epoll while somebody in them awaits an operation.

`add_reader` of the one epoll is all they need: what is readable in it makes it readable itself (epoll(7)). Each loop
adds it once, however many tasks await something, under a descriptor of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from rmpi.transport.crank import Crank

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class EventLoops:
    """The loops that attend a crank. Each is named by its own thread, or by anybody once it is closed. No lock."""

    def __init__(self, crank: Crank, progress: Callable[[], None]) -> None:
        self._crank = crank
        self._progress = progress
        self._readers: dict[AbstractEventLoop, int] = {}
        self._tasks: dict[AbstractEventLoop, set[object]] = {}

    def attend(self, loop: AbstractEventLoop, task: object) -> None:
        """One more task of ``loop`` waits."""
        tasks = self._tasks.setdefault(loop, set())
        tasks.add(task)
        if loop not in self._readers:
            fd = self._readers[loop] = self._crank.attend(loop)
            loop.add_reader(fd, self._progress)

    def neglect(self, loop: AbstractEventLoop, task: object) -> None:
        """One task of ``loop`` waits no more."""
        tasks = self._tasks.get(loop, set())
        tasks.discard(task)
        if tasks:
            return
        self._tasks.pop(loop, None)
        fd = self._readers.pop(loop, None)
        if fd is not None:
            self._crank.neglect(loop)
            if not loop.is_closed():
                loop.remove_reader(fd)
            os.close(fd)
