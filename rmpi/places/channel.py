"""temporary"""

from __future__ import annotations

from typing import Any, NamedTuple

from rmpi.deadline import Deadline
from rmpi.transport.matching import ANY
from rmpi.transport.operation import Operation


class Address(NamedTuple):
    system: int
    place: int
    endpoint: int
    box: int
    label: str


class Whereabouts:
    def __init__(self, place: int) -> None:
        self.place = place
        self.label = "?"
        self.endpoint = 0
        self.generation = 0
        self.error = None
        self.change = Operation()

    def _c(self) -> None:
        c, self.change = self.change, Operation()
        c.finish()

    def moved(self, endpoint: int) -> None:
        self.endpoint = endpoint
        self.generation += 1
        self._c()

    def down(self, why: Any) -> None:
        self.endpoint = 0
        self._c()

    def gone(self, error: Any) -> None:
        self.endpoint = 0
        self.error = error
        self._c()


class Channel:
    def __init__(self, member: Any, address: Any, box: int = 0) -> None:
        self._member = member
        self._address = address
        self._box = box or member.new_box()
        self._short = member.endpoint.open_box(self._box)
        self._w = member.whereabouts(address.place) if address and address.place else None
        self._routes: dict[int, Any] = {}

    def _to(self, deadline: Any) -> int:
        if self._w is None:
            return self._address.endpoint
        while not self._w.endpoint:
            if self._w.error:
                raise self._w.error
            self._member.endpoint.wait((self._w.change,), deadline)
        return self._w.endpoint

    def put(self, value: Any, timeout: Any = None) -> None:
        d = Deadline.after(timeout)
        e = self._to(d)
        if e not in self._routes:
            self._routes[e] = self._member.endpoint.open_route(self._address.box, e)
        if self._routes[e].send(value, e, self._box) is True:
            return
        self._member.endpoint.send(e, self._address.box, self._box, value, deadline=d)

    def get(self, timeout: Any = None) -> Any:
        from rmpi.transport.shortcut import NOTHING

        if timeout is None:
            v = self._short.recv(-1, -1, None)
            if v is not NOTHING:
                return v
        return self._member.endpoint.receive(self._box, ANY, ANY, deadline=Deadline.after(timeout)).take()

    def close(self) -> None:
        self._member.endpoint.close_box(self._box, self._short)

    def __iter__(self) -> Any:
        while True:
            yield self.get()


class Mailbox(Channel):
    def __init__(self, member: Any, place: int, owner: Any, label: str) -> None:
        super().__init__(member, owner, member.inbox_of(place))

    def receive(self, timeout: Any = None) -> Any:
        r = self._member.endpoint.receive(self._box, ANY, ANY, deadline=Deadline.after(timeout))
        a = r.arrival
        return r.take(), Channel(
            self._member, Address(self._member.system, 0, a.source, a.tag, "client"), self._member.new_box()
        )
