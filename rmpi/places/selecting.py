"""Waiting for several channels at once.

A source says by which operations one may tell that it has something (`Selectable.readiness`), and the operations tell
the selector. So what a wait costs depends on how many sources have something, and not on how many there are: nothing is
gone through again because one of them has stirred.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from rmpi.deadline import Deadline
from rmpi.errors import UsageError
from rmpi.places.membership import current
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.operation import Operation


class Selectable(Protocol):
    """What can be waited for with others."""

    @property
    def endpoint(self) -> Endpoint:
        """Whose progress has to be made."""

    def readiness(self) -> Sequence[Operation]:
        """As soon as one of these has ended, look again. If the first has ended already, there is something.

        They are abandoned by who asked for them.
        """


Source = TypeVar("Source", bound=Selectable)


class _Watch:
    """One source of a selector, and by what it is watched."""

    def __init__(self, source: Selectable, selector: Selector) -> None:
        self.source = source
        self._selector = selector
        self._operations: Sequence[Operation] = ()
        self._noted = False

    def look(self) -> bool:
        """Whether there is something; if not, the selector will hear of it."""
        self.let_go()
        self._noted = False
        self._operations = self.source.readiness()
        if self._operations[0].done:
            return True
        for operation in self._operations:
            self.source.endpoint.hear(operation, self.stir)
        return False

    def stir(self) -> None:
        """Have the selector look. Within progress."""
        if not self._noted:
            self._noted = True
            self._selector.stirred(self)

    def let_go(self) -> None:
        for operation in self._operations:
            operation.unwatch(self.stir)
        self.source.endpoint.abandon(self._operations)
        self._operations = ()


class Selector:
    """Channels that are waited for again and again, by one thread, which others may wake.

    selector = Selector([orders, echo])
    while True:
        for channel in selector.select(timeout=1):
            handle(channel, channel.get())
    """

    def __init__(self, sources: Iterable[Selectable] = ()) -> None:
        self._endpoint: Endpoint | None = None
        self._watches: dict[int, _Watch] = {}  # by identity of their sources
        self._stirred: deque[_Watch] = deque()
        self._ready: list[_Watch] = []  # when last looked at
        self._news = Operation()
        self._woken = False
        for source in sources:
            self.add(source)

    @property
    def sources(self) -> list[Selectable]:
        """What is waited for, in the order in which it was added."""
        return [watch.source for watch in list(self._watches.values())]

    def add(self, source: Selectable) -> None:
        """Wait for this one too. From any thread; what is there already is not added again.

        Raises:
            UsageError: It belongs to another system than those that are there.
        """
        if self._endpoint is None:
            self._endpoint = source.endpoint
        if source.endpoint is not self._endpoint:
            raise UsageError(f"{source!r} cannot be waited for together with channels of another system")
        if id(source) not in self._watches:
            watch = self._watches[id(source)] = _Watch(source, self)
            self._stirred.append(watch)
            self._endpoint.crank.post(self._tell)

    def remove(self, source: Selectable) -> None:
        """Wait for this one no more. From any thread."""
        watch = self._watches.pop(id(source), None)
        if watch is not None:
            watch.let_go()

    def select(self, timeout: float | None = None) -> list[Selectable]:
        """Wait until some have something, or somebody calls `wake`.

        Returns:
            Those that have something; none if time ran out, or after `wake`.

        Raises:
            ChannelClosed: This process has left the system.
        """
        deadline = Deadline.after(timeout)
        endpoint = self._endpoint = self._endpoint or current().endpoint
        endpoint.progress()
        while True:
            news = self._news = Operation()
            ready = self._look()
            if ready or self._woken:
                self._woken = False
                return ready
            if not endpoint.watch((news,), deadline):
                return []

    def _look(self) -> list[Selectable]:
        again, self._ready = self._ready, []
        again += [self._stirred.popleft() for _ in range(len(self._stirred))]
        for watch in again:
            if self._watches.get(id(watch.source)) is watch and watch.look():
                self._ready.append(watch)
        return [watch.source for watch in self._ready]

    def wake(self) -> None:
        """Have `select` return, the one that waits or else the next. From any thread, and from signal handlers."""
        self._woken = True
        if self._endpoint is not None:
            self._endpoint.crank.post(self._tell)

    def stirred(self, watch: _Watch) -> None:
        """Look at it soon. Within progress."""
        self._stirred.append(watch)
        self._tell()

    def _tell(self) -> None:
        self._news.finish()

    def close(self) -> None:
        """Wait for nothing any more."""
        for source in self.sources:
            self.remove(source)


def select(channels: Iterable[Source], timeout: float | None = None) -> list[Source]:
    """Wait until at least one of the channels has something to be got.

    Args:
        channels: Channels of one system.
        timeout: Seconds; None waits as long as it takes; 0 looks.

    Returns:
        Those whose `Channel.get` would not wait, in the given order: there is a message, or an error to be raised.
        None of them if time ran out.

    Raises:
        UsageError: There are no channels, or they belong to different systems.
    """
    sources = list(channels)
    if not sources:
        raise UsageError("select needs at least one channel")
    selector = Selector(sources)
    try:
        ready = {id(source) for source in selector.select(timeout)}
    finally:
        selector.close()
    return [source for source in sources if id(source) in ready]
