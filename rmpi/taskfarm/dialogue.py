"""Tasks that talk: a procedure here and one in a worker, and what they say to each other while both run.

    def count(i, o):                 # in the worker
        o.put("how far?")
        return sum(range(i.get()))

    def answer(i, o):                # here, in a thread
        assert i.get() == "how far?"
        o.put(10)
        return i.get()               # what `count` has returned comes last

    master.make_task(count, answer).result()    # 45

Both get the same `Dialogue` twice, because dpfw's procedures have a port for input and one for output. What is said
goes the way that tasks and answers go. So it needs no connection of its own, and a worker that is lost is noticed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from threading import Condition
from typing import Any

from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded, PeerExited, UsageError
from rmpi.taskfarm.packing import Packed, pack, unpack

Say = Callable[[Packed, "float | None"], None]
"""Sends a value to the other side."""


class Inbox:
    """What the other side has said. One thread gets, any may put."""

    def __init__(self) -> None:
        self._values: deque[Packed] = deque()
        self._end: BaseException | None = None
        self._changed = Condition()

    def put(self, value: Packed) -> None:
        """It has said this. It is unpacked by whoever gets it, who so hears if it cannot be."""
        with self._changed:
            self._values.append(value)
            self._changed.notify_all()

    def end(self, why: BaseException) -> None:
        """It says nothing more: whoever waits is told why."""
        with self._changed:
            self._end = self._end or why
            self._changed.notify_all()

    @property
    def stirred(self) -> bool:
        """Whether `take` returns or raises."""
        return bool(self._values) or self._end is not None

    def take(self) -> Any:
        """The first value. There is one, or the end."""
        if self._values:
            return unpack(*self._values.popleft()[:2])
        assert self._end is not None
        raise self._end

    def wait(self, deadline: Deadline) -> None:
        """Wait until something was said, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.stirred, deadline.left_or_none())


class Dialogue:
    """One side of a dialogue: `get` what the other side puts."""

    def __init__(self, inbox: Inbox, say: Say, wait: Callable[[Deadline], None]) -> None:
        """For the library.

        Args:
            inbox: What comes.
            say: Sends what goes.
            wait: Returns when something has come, or before.
        """
        self._inbox = inbox
        self._say = say
        self._wait = wait

    def put(self, value: object, timeout: float | None = None) -> None:
        """Send a value, which may be changed when this returns.

        Raises:
            UsageError: The value cannot be pickled.
            PeerLost: The other side is gone.
            DeadlineExceeded: It was not possible within ``timeout`` seconds.
        """
        packed = pack(value, "what is put into the dialogue")
        if packed.handles:
            raise UsageError("a handle of scatter() can be an argument of a task, and not be put into a dialogue")
        self._say(packed, timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The next value. Behind all that the remote procedure has put comes what it has returned.

        Raises:
            Exception: Whatever the remote procedure raised.
            WorkerLost: The worker died.
            PeerExited: The other procedure has ended, and all was got.
            DeadlineExceeded: Nothing came within ``timeout`` seconds.
        """
        deadline = Deadline.after(timeout)
        while not self._inbox.stirred:
            if deadline.passed():
                raise DeadlineExceeded(f"the other side of the dialogue has said nothing for {timeout:g} s")
            self._wait(deadline)
        return self._inbox.take()

    def poll(self) -> bool:
        """Whether `get` would not wait."""
        if not self._inbox.stirred:
            self._wait(Deadline.after(0))
        return self._inbox.stirred

    def __iter__(self) -> Iterator[Any]:
        """What comes, until the other procedure has ended."""
        while True:
            try:
                value = self.get()
            except PeerExited:
                return
            yield value


Procedure = Callable[[Dialogue, Dialogue], Any]


def read_result(i: Dialogue, _o: Dialogue) -> Any:
    """The local procedure for remote ones that only return something: that."""
    return i.get()
