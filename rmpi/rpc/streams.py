"""What a client gets of a generator on a server: its items, one by one.

The server is at most `WINDOW` items ahead. What the client has taken it acknowledges in halves of that, when it asks
for more; and a heavy item is fetched when it is asked for, so nothing large is sent to who does not wait for it.
"""

from __future__ import annotations

import _thread
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rmpi.rpc.messages import FETCH, MORE, NO_VALUES, STREAM, WINDOW, Announced, Ended, Probe

if TYPE_CHECKING:
    from rmpi.places.channel import Channel
    from rmpi.rpc.connection import Connection

T = TypeVar("T")


class Stream(Iterator[T], Generic[T]):
    """The items of a generator on a server; it was begun when it was called. One thread at a time may iterate.

    Leaving a loop over it early, or `close`, ends the generator there, as it would a local one.
    """

    def __init__(
        self,
        connection: Connection,
        qualname: str,
        request: tuple[Any, ...],
        timeout: float | None,
    ) -> None:
        self._connection = connection
        self._qualname = qualname
        self._timeout = timeout
        self._taken = 0  # items that were not acknowledged yet
        self._line: Channel | None = None
        line = connection.line()
        try:
            line.put((STREAM, *request), timeout)
        except BaseException:
            line.close()
            raise
        self._line = line

    def __next__(self) -> T:
        """The next item.

        Raises:
            RemoteError: The generator raised.
            DeadlineExceeded: There was none within the time-out of the stub; the stream is closed.
            PeerLost: The place died; the stream is closed.
        """
        line = self._line
        if line is None:
            raise StopIteration
        try:
            item = self._receive(line)
        except BaseException:
            self.close()
            raise
        if type(item) not in NO_VALUES:
            self._taken += 1
            return item  # type: ignore[no-any-return]
        self._line = None
        self._connection.idle.append(line)
        raise StopIteration if type(item) is Ended else self._connection.error_of(item, self._qualname)

    def _receive(self, line: Channel) -> Any:
        if self._taken >= WINDOW // 2:
            line.put((MORE, self._taken), self._timeout)
            self._taken = 0
        item = line.get(self._timeout)
        while type(item) in (Announced, Probe):
            if type(item) is Announced:
                line.put((FETCH,), self._timeout)
            item = line.get(self._timeout)
        return item

    def close(self) -> None:
        """End the generator on the server, if it has not ended. What was not taken is dropped."""
        line, self._line = self._line, None
        if line is not None:
            self._connection.give_up(line, cancel=True)

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        line = self._line
        if line is not None:
            # Whoever collects us may be in the middle of a message: only another thread may send now.
            with suppress(RuntimeError):  # the interpreter is ending
                _thread.start_new_thread(self._connection.give_up, (line,), {"cancel": True})

    def __repr__(self) -> str:
        state = "closed" if self._line is None else "open"
        return f"<stream of {self._qualname} in {self._connection.label}, {state}>"
