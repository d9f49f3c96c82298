"""A system without a head: members in one process, joined by memory links, whose places are moved and ended by hand.

What was posted to a member's endpoint happens when it next makes progress, in whichever call.
"""

import threading
import time
from functools import partial
from itertools import count

from rmpi.errors import PeerExited, PeerLost
from rmpi.places import membership
from rmpi.places.channel import Address, Channel, Mailbox, Whereabouts
from rmpi.places.membership import box_number
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.memory import MemoryLink

SYSTEM = 0x5157
HERE = threading.local()
"""Whose thread this is: what arrives in it becomes channels of that member."""


class TestMember:
    __test__ = False
    system = SYSTEM

    def __init__(self, realm, ident, **options):
        self.realm = realm
        self.known = {}
        self.endpoint = Endpoint(ident, partial(realm.connect, ident), name_of=realm.describe, **options)
        self._counter = count()

    def new_box(self):
        return box_number(SYSTEM, self.endpoint.ident, next(self._counter))

    def whereabouts(self, place):
        if place not in self.known:
            self.known[place] = Whereabouts(place, f"place {place}", self.realm.places.get(place, 0))
        return self.known[place]

    def describe(self, endpoint):
        return self.realm.describe(endpoint)

    def connect(self, place):
        """A channel to a place."""
        return Channel(self, Address(SYSTEM, place, 0, inbox(place), f"place {place}"))

    def mailbox(self, place, parent=None):
        return Mailbox(self, inbox(place), parent)


class LoneMember:
    """A member by itself: its channels go to endpoints that its test has joined with it, and to no place."""

    system = SYSTEM

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self._counter = count()

    def new_box(self):
        return box_number(SYSTEM, self.endpoint.ident, next(self._counter))

    def describe(self, endpoint):
        return f"member {endpoint}"

    def channel_to(self, endpoint, box):
        return Channel(self, Address(SYSTEM, 0, endpoint, box, self.describe(endpoint)))


def inbox(place):
    return box_number(SYSTEM, 0, place)


class Realm:
    def __init__(self):
        self.members = {}
        self.places = {}  # the endpoint of each place that runs
        self._lock = threading.Lock()
        self._joined = set()

    def member(self, ident, **options):
        """One more member, joined with all others; in this thread, what arrives becomes channels of it."""
        member = self.members[ident] = TestMember(self, ident, **options)
        HERE.member = member
        for other in self.members:
            if other != ident:
                self.connect(ident, other)
        for each in self.members.values():
            each.endpoint.progress()
        return member

    def describe(self, endpoint):
        return f"member {endpoint}"

    def connect(self, first, second):
        pair = frozenset((first, second))
        with self._lock:
            if pair in self._joined:
                return
            self._joined.add(pair)
        one, two = self.members[first].endpoint, self.members[second].endpoint
        links = MemoryLink.pair((first, one, one.notify), (second, two, two.notify))
        one.crank.post(partial(one.add_link, links[0]))
        two.crank.post(partial(two.add_link, links[1]))

    def start(self, place, ident):
        """The place runs behind that endpoint now."""
        self.places[place] = ident
        for member in self.others(ident):
            where = member.known.get(place)
            if where is not None:
                member.endpoint.crank.post(partial(where.moved, ident))

    def end(self, place, *, restarts, well=False):
        """The place ends; it ``restarts`` some time later."""
        ident = self.places.pop(place)
        dead = self.members.pop(ident)
        if well:
            dead.endpoint.finish()
        dead.endpoint.close()
        kind, how = (PeerExited, "has ended") if well else (PeerLost, "was killed")
        for member in self.members.values():
            error = kind(f"place {place} {how}")
            where = member.known.get(place)
            member.endpoint.crank.post(partial(self._tell, member, where, ident, error, restarts))

    @staticmethod
    def _tell(member, where, ident, error, restarts):
        member.endpoint.peer_ended(ident, error)
        if where is not None:
            (where.down if restarts else where.gone)(error)

    def others(self, ident):
        return [member for other, member in self.members.items() if other != ident]

    def close(self):
        for member in self.members.values():
            member.endpoint.close()


_member_of = membership.member_of


def member_here(system):
    """In place of `membership.member_of`, for which a process is one member."""
    return HERE.member if system == SYSTEM else _member_of(system)


def asleep(channel):
    """Wait until some thread sleeps in a call of this channel's endpoint."""
    while not channel.endpoint.crank._asleep:
        time.sleep(0)
