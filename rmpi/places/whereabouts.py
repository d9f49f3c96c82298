"""Where the other side of a channel is: addresses, which travel, and whereabouts, which change.

A box is a receiving end, and has a number of its own. An `Address` says where it is: at an endpoint for good, or at a
place, which is behind another endpoint after every restart. The head alone knows where places are. It tells each
`Member` that asked, which keeps one `Whereabouts` for each place, and what changes there is told to whoever puts there.

**The order of news.** When an incarnation ends, a member first tells its endpoint (`Endpoint.peer_ended`) and then the
whereabouts (`Whereabouts.down` or `Whereabouts.gone`), both in the same turn, within progress. So whoever is refused by
the transport finds the reason here, and what the dead incarnation had sent is in its queue by then.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

from rmpi.errors import PeerLost
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.operation import Operation


class Address(NamedTuple):
    """Where to put: what travels when a channel is sent over a channel.

    Attributes:
        system: The system it belongs to.
        place: The place, if the box is a place's inbox, which stays the same when the place is restarted; else 0.
        endpoint: Whose endpoint the box is at; of no meaning if there is a place.
        box: The number of the box; 0 if what is put there goes nowhere.
        label: What to call the other side in messages to the user: ``"bank on host2"``.
    """

    system: int
    place: int
    endpoint: int
    box: int
    label: str


class Follower(Protocol):
    """Whoever puts to a place. Called within progress."""

    def place_moved(self) -> None:
        """The place is behind another endpoint now, or behind none."""

    def place_ended(self, former: int) -> None:
        """The incarnation behind that endpoint has ended; `place_moved` follows."""


class Whereabouts:
    """Where one place is, as far as this process has heard. Changed within progress.

    Attributes:
        place: Its number.
        label: What to call it in messages to the user.
        endpoint: Of the present incarnation; 0 while there is none.
        shares: The endpoint goes on when the place has ended: it is a thread.
        generation: How many incarnations there have been.
        why: How the latest one that ended did.
        error: Set when there is none, and will be none.
        change: Ends at the next change, and is replaced then. Read it before what may change.
    """

    def __init__(self, place: int, label: str, endpoint: int = 0) -> None:
        self.place = place
        self.label = label
        self.endpoint = endpoint
        self.generation = int(endpoint != 0)
        self.shares = False
        self.why: PeerLost | None = None
        self.error: PeerLost | None = None
        self.change = Operation()
        self._followers: WeakValueDictionary[int, Follower] = WeakValueDictionary()

    def follow(self, follower: Follower) -> None:
        """Tell it of changes, for as long as somebody else holds it. From any thread."""
        self._followers[id(follower)] = follower

    def moved(self, endpoint: int) -> None:
        """There is a new incarnation."""
        if self.endpoint:
            self._end(PeerLost(f"{self.label} was restarted"))
        self.endpoint = endpoint
        self.generation += 1
        self._tell()

    def down(self, why: PeerLost) -> None:
        """The incarnation has ended, and there may be another one."""
        self._end(why)
        self._tell()

    def gone(self, error: PeerLost) -> None:
        """The last incarnation has ended: `PeerExited` if it ended well."""
        self._end(error)
        self.error = error
        self._tell()

    def _end(self, why: PeerLost) -> None:
        former, self.endpoint, self.why = self.endpoint, 0, why
        if former:
            for follower in self._all():
                follower.place_ended(former)

    def _tell(self) -> None:
        for follower in self._all():
            follower.place_moved()
        change, self.change = self.change, Operation()
        change.finish()

    def _all(self) -> list[Follower]:
        """Those that are there at this moment; more may come from other threads, and are told later."""
        found = (reference() for reference in self._followers.valuerefs())
        return [follower for follower in found if follower is not None]

    def __repr__(self) -> str:
        where = f"endpoint {self.endpoint:#x}" if self.endpoint else "gone" if self.error is not None else "down"
        return f"<Whereabouts of {self.label}: {where}>"


class Member(Protocol):
    """This process' part in a system: what channels need of it."""

    @property
    def endpoint(self) -> Endpoint:
        """The traffic with other places."""

    @property
    def system(self) -> int:
        """Which system that is."""

    def new_box(self) -> int:
        """A number for a box, which no other box of the system has. From any thread."""

    def whereabouts(self, place: int) -> Whereabouts:
        """Where that place is; followed from then on. The same object each time. From any thread, without waiting."""

    def describe(self, endpoint: int) -> str:
        """What to call an endpoint in messages to the user."""
