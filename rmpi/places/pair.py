"""Two channels that are the two ends of one, and queues between them that hold so many messages and no more."""

from __future__ import annotations

from collections.abc import Hashable
from threading import Lock
from typing import TYPE_CHECKING, Any

from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded, PeerExited, UsageError
from rmpi.places.aside import EVERY, Came
from rmpi.places.channel import Channel
from rmpi.places.membership import current
from rmpi.places.whereabouts import Address, Member
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.operation import Operation

LABEL = "the other end of a pair"

if TYPE_CHECKING:
    from rmpi.places.handles import Node


class _Room:
    """How many messages more one queue holds, and who waits for that there are fewer."""

    def __init__(self, endpoint: Endpoint, limit: int) -> None:
        self._endpoint = endpoint
        self._limit = limit
        self._count = 0
        self._closed = False
        self._fewer = Operation()  # ends, and is replaced, when there are
        self._lock = Lock()

    def enter(self, deadline: Deadline) -> None:
        """One more, as soon as there is room."""
        while not self._entered():
            fewer = self._fewer
            if self._is_full() and not self._endpoint.watch((fewer,), deadline):
                raise DeadlineExceeded(
                    f"put to {LABEL}: timeout passed, and {self._limit} messages wait there; nothing was sent"
                )

    def _entered(self) -> bool:
        with self._lock:
            entered = not self._is_full()
            self._count += entered
            return entered

    def _is_full(self) -> bool:
        if self._closed:
            raise PeerExited(f"{LABEL} was closed: nobody gets what is put there")
        return self._count >= self._limit

    def enter_again(self) -> None:
        """One that had left, and comes back."""
        with self._lock:
            self._count += 1

    def leave(self, *, for_good: bool = False) -> None:
        """One less; or, ``for_good``, nobody will get any more."""
        with self._lock:
            self._count = max(0, self._count - 1)
            self._closed = self._closed or for_good
            fewer, self._fewer = self._fewer, Operation()
        self._endpoint.end(fewer)


class _Limited(Channel):
    """An end of a pair that waits with a message until there is room for it."""

    def __init__(self, member: Member, address: Address, box: int, rooms: tuple[_Room, _Room]) -> None:
        super().__init__(member, address, box=box, announces=True)
        self._mine, self._others = rooms

    def put(self, value: object, timeout: float | None = None) -> None:
        """`Channel.put`; it waits while as many messages as were allowed have not been got."""
        deadline = Deadline.after(timeout)
        shielded = SHIELD.enter()
        try:
            self._check_open()
            self._others.enter(deadline)
            try:
                self._put(value, deadline)
            except BaseException:
                self._others.leave()
                raise
        finally:
            if shielded:
                SHIELD.leave()

    def _next(self, timeout: float | None, *, whole: bool) -> Any:
        return self._get(Deadline.after(timeout), EVERY, whole)

    def _take(self, deadline: Deadline, kind: Hashable) -> Came:
        came = super()._take(deadline, kind)
        self._mine.leave()
        return came

    def _put_back(self, came: Came) -> None:
        super()._put_back(came)
        self._mine.enter_again()

    def _shut(self) -> None:
        super()._shut()
        self._mine.leave(for_good=True)


def channel_pair(limit: int | None = None, *, of: Node | None = None) -> tuple[Channel, Channel]:
    """Two channels in this process: what is put into one is got from the other.

        a, b = channel_pair()
        a.put("Hello")
        assert b.get() == "Hello"

    It needs no system; but if there is one, or will be, either end may be sent over any of its channels. Whoever gets
    ``b`` then can put what is got from ``a``, and ``a.receive()`` gets it with a channel for the answer. What is put
    into ``a`` is got from the ``b`` that was made here, which does not move.

    When one end is closed, the loop over the other ends.

    Args:
        limit: How many messages may wait in each direction; `Channel.put` waits for room. That holds for these two
            ends, and not for whom an end was sent to. None: as many as fit into the share of the machine's memory that
            this process takes unasked.
        of: A node of the system in which it can be sent; by default this process' own.

    Raises:
        UsageError: ``limit`` is no positive number.
    """
    return pair_of(of.member if of is not None else current(), limit)


def pair_of(member: Member, limit: int | None) -> tuple[Channel, Channel]:
    """`channel_pair`, of this member of a system."""
    boxes = member.new_box(), member.new_box()
    addresses = [Address(member.system, 0, member.endpoint.ident, box, LABEL) for box in boxes]
    if limit is None:
        one, other = (Channel(member, addresses[1 - i], box=boxes[i], announces=True) for i in (0, 1))
        return one, other
    if type(limit) is not int or limit < 1:
        raise UsageError(f"channel_pair: limit must be a number of messages from 1, not {limit!r}")
    rooms = _Room(member.endpoint, limit), _Room(member.endpoint, limit)
    return _Limited(member, addresses[1], boxes[0], rooms), _Limited(member, addresses[0], boxes[1], rooms[::-1])
