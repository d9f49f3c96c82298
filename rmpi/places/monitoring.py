"""Monitoring: to hear what becomes of a place, and why, without waiting for its end.

Events come over a channel, so whoever monitors may wait for them, select among several, or have a function called.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from rmpi.errors import UsageError
from rmpi.places.channel import Channel
from rmpi.places.handles import Command
from rmpi.places.member import Member, News
from rmpi.places.pair import channel_pair
from rmpi.places.system_messages import PlaceAt, PlaceDown, PlaceGone


@dataclass(frozen=True, slots=True)
class PlaceEvent:
    """Something that has happened to a place.

    Attributes:
        label: Which place: ``"bank on host2"``.
        kind: ``"up"``: it runs; ``"down"``: it has ended and is to be restarted; ``"gone"``: it has ended for good.
        reason: Why it has ended, in words: ``"killed by SIGKILL"``; empty if it runs.
        status: Its exit status, minus the signal that killed it; 0 if it runs.
        restarts: How often it was restarted.
    """

    label: str
    kind: Literal["up", "down", "gone"]
    reason: str = ""
    status: int = 0
    restarts: int = 0


def monitor(place: Command | Channel) -> Channel:
    """A channel of the `PlaceEvent`s of a place: first how it is now, then whatever becomes of it.

        with places.monitor(bank) as events:
            for event in events:
                print(event.kind, event.reason)

    The loop ends after the event ``"gone"``. To hear no more, close the channel.

    Args:
        place: What `Node.spawn`, `Node.spawn_command` or `Node.connect` has returned, or an RPC stub's `rpc.place_of`.

    Raises:
        UsageError: It is a channel, and not to a place.
    """
    member, number, label = _place_behind(place)
    ours, theirs = channel_pair()
    fate = member.fate(number)
    restarts = 0

    def hear(news: News) -> None:
        nonlocal restarts
        restarts = news.restarts if isinstance(news, PlaceAt) else restarts
        event = _event_of(label, news, restarts)
        if theirs.closed:
            fate.hears.remove(hear)
        if event is None or theirs.closed:
            return
        member.endpoint.go_on(partial(_put, ours, event))
        if event.kind == "gone":
            member.endpoint.go_on(ours.close)

    def begin() -> None:
        fate.hears.append(hear)
        if fate.last is not None:
            hear(fate.last)

    member.endpoint.crank.post(begin)
    return theirs


def _place_behind(place: Command | Channel) -> tuple[Member, int, str]:
    """The membership by which we know a place, its number and its name for people."""
    if isinstance(place, Command):
        return place.whose
    if isinstance(place, Channel) and place.address.place and isinstance(place.member, Member):
        return place.member, place.address.place, place.label
    raise UsageError(f"only places are monitored, not {place!r}")


def _event_of(label: str, news: News, restarts: int) -> PlaceEvent | None:
    match news:
        case PlaceAt():
            return PlaceEvent(label, "up", restarts=restarts)
        case PlaceDown(_, cause, status):
            return PlaceEvent(label, "down", cause, status, restarts)
        case PlaceGone(_, cause, status):
            return PlaceEvent(label, "gone", cause, status, restarts)
    return None


def _put(channel: Channel, event: PlaceEvent) -> None:
    if not channel.closed:
        channel.put(event)
