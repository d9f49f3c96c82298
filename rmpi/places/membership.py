"""Which systems this process is part of.

A process joins a system once, as a *member*. Channels that arrive from elsewhere find theirs here by its number. Where
it is only a guest (`rmpi.places.attach`), it is for nothing but what belongs to that system.

A process that is part of no system can have channels too (`rmpi.places.channel_pair`), and start a system later. So it
gets an endpoint of its own when it first needs one, whose number is that of whoever starts a system, and whoever makes
the endpoint of a member asks for that one first (`new_endpoint`). No thread and no node is started for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import blake2b
from itertools import count

from rmpi.errors import PeerLost, UsageError
from rmpi.places.whereabouts import Member, Whereabouts
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.peers import Connect

FOUNDER = 1
"""The endpoint of the process that starts a system: the first of node 0."""


def box_number(*names: int) -> int:
    """The box that these numbers name, the first of them a system's: even, positive, and below 2**63.

    Boxes share their numbers with communicators. They are hashes, so that nobody has to hand them out.
    """
    text = ",".join(["box", *map(str, names)])
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 & ~1 or 2


class Loner:
    """The membership of a process that is part of no system (yet): it reaches only itself."""

    def __init__(self) -> None:
        self._number = int.from_bytes(os.urandom(8), "little") >> 1  # no other process' channels are taken for ours
        self._counter = count()
        self._connect: Connect | None = None
        self._name_of: Callable[[int], str] = "endpoint {:#x}".format
        self._joined: Member | None = None
        self.endpoint = Endpoint(FOUNDER, self._reach, name_of=lambda endpoint: self._name_of(endpoint))

    @property
    def system(self) -> int:
        """The system that it has joined; else, a number of its own."""
        return self._number if self._joined is None else self._joined.system

    def new_box(self) -> int:
        return box_number(self._number, next(self._counter))

    def whereabouts(self, place: int) -> Whereabouts:
        if self._joined is None:
            raise UsageError(f"this process is part of no system, so there is no place {place:#x}")
        return self._joined.whereabouts(place)

    def describe(self, endpoint: int) -> str:
        if self._joined is not None:
            return self._joined.describe(endpoint)
        return "this process" if endpoint == FOUNDER else f"endpoint {endpoint:#x}"

    def join(self, member: Member) -> None:
        """The endpoint is that of ``member`` too, from now on."""
        self._joined = member

    def lend(self, connect: Connect, name_of: Callable[[int], str]) -> Endpoint:
        """The endpoint, for a member of a system; the only one."""
        self._connect, self._name_of = connect, name_of
        return self.endpoint

    @property
    def is_free(self) -> bool:
        """Whether it may join a system."""
        return self._connect is None and not self.endpoint.crank.closed

    def _reach(self, peer: int) -> None:
        if self._connect is not None:
            self._connect(peer)
        else:
            self.endpoint.link_failed(peer, PeerLost(f"endpoint {peer:#x} is in no system of this process"))


_members: dict[int, Member] = {}
_guests: dict[int, Member] = {}
_loner: Loner | None = None


def register(member: Member, *, guest: bool = False) -> None:
    """This process has become part of a system, which is its own unless it is a ``guest``."""
    if guest:
        _guests[member.system] = member
        return
    if _loner is not None and member.endpoint is _loner.endpoint:
        _loner.join(member)
    _members[member.system] = member


def unregister(member: Member) -> None:
    """It is so no more."""
    for kind in (_members, _guests):
        if kind.get(member.system) is member:
            del kind[member.system]


def member_of(system: int) -> Member:
    """This process' membership of that system.

    Raises:
        UsageError: It is no part of it.
    """
    if _loner is not None and system == _loner._number:
        return _loner
    member = find(system)
    if member is None:
        raise UsageError(
            "this channel belongs to a system that this process is no part of: channels can be sent among the places "
            "of one system, and not by other means"
        )
    return member


def find(system: int) -> Member | None:
    """The same, if there is one."""
    return _members.get(system) or _guests.get(system)


def current() -> Member:
    """The membership of its own system that was joined last; of none, if there is none: that is made now."""
    global _loner
    if _members:
        return next(reversed(_members.values()))
    if _loner is None or not _loner.is_free:
        _loner = Loner()
    return _loner


def new_endpoint(
    ident: int,
    connect: Connect,
    *,
    spin: float = 0.0,
    crowded: bool = False,
    unmatched_limit: int = 1 << 30,
    name_of: Callable[[int], str] = "endpoint {:#x}".format,
) -> Endpoint:
    """The endpoint of a process that joins a system: the one that its channels have already, if it can be that.

    Args, which are those of `Endpoint`:
        ident: Its number there.
    """
    if _loner is None or ident != FOUNDER or not _loner.is_free:
        return Endpoint(ident, connect, spin=spin, crowded=crowded, unmatched_limit=unmatched_limit, name_of=name_of)
    endpoint = _loner.lend(connect, name_of)
    endpoint.suit(spin, crowded, unmatched_limit)
    return endpoint


def _forget() -> None:
    """In a forked child: what the parent is part of, it is not."""
    global _loner
    if _loner is not None:
        _loner.endpoint.disown()
    _loner = None
    _members.clear()
    _guests.clear()


os.register_at_fork(after_in_child=_forget)
