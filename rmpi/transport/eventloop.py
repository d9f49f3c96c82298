"""Event loops of asyncio that watch an endpoint's epoll while somebody in them awaits an operation.

`add_reader` of the one epoll is all they need: what is readable in it makes it readable itself (epoll(7)). Each loop
adds it once, however many tasks await something, under a descriptor of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from rmpi.transport.crank import Crank
from rmpi.transport.operation import Operation

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, TimerHandle

    from rmpi.transport.endpoint import Endpoint


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


async def ended(endpoint: Endpoint, operation: Operation) -> None:
    """Sleep in the running loop until the operation has ended."""
    from asyncio import get_running_loop  # whoever awaits has it

    loop = get_running_loop()
    future = loop.create_future()
    watcher = partial(_wake, loop, future)
    neglect = partial(endpoint.neglect, loop, operation, watcher)
    alarm: TimerHandle | None = None
    if operation.patience is not None:
        alarm = loop.call_later(operation.patience[0].left(), operation.lose_patience)
    try:
        endpoint.attend(loop, operation, watcher)
        await future
    except GeneratorExit:  # nobody will go on here; we may be the garbage collector's, in any thread
        _in_loop(loop, neglect)
        raise
    except BaseException:
        neglect()
        raise
    else:
        neglect()
    finally:
        if alarm is not None:
            alarm.cancel()


def _in_loop(loop: AbstractEventLoop, function: Callable[[], None]) -> None:
    """Call it in the loop's thread; at once if the loop is closed, because nothing else of it runs any more."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        function()


def _wake(loop: AbstractEventLoop, future: Future[None]) -> None:
    """From any thread; in a loop that was closed meanwhile nobody waits any more."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)
