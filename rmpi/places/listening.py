"""Channels, places, programs and nodes as sources of a `messagerouter.MessageRouter`.

    chan.on_message(lambda channel, message: print(message))
    MessageRouter(chan).run()

A channel with a function for its messages has a thread of the router to itself, which takes a message, calls the
function with it, and takes the next one. So at most one message of a channel is in anybody's hands: the others are
still in the channel when the router ends, and who puts there notices if the function is slow.

When the other side has ended well, or has closed the channel, or it was closed here, the source has finished. That the
other side has died, for good, is an error like those that functions raise. The death of a place that is to be restarted
is logged, as a warning; messages of its next incarnation are served.

Other things have nothing to be served, but a router that has them runs for as long as something may come of them: a
place or a program finishes when it has ended for good, and a node never does. A channel without a function that is no
place is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerExited, PeerLost
from rmpi.places.channel import Channel
from rmpi.places.handles import Command, Node
from rmpi.places.monitoring import monitor
from rmpi.places.selecting import Selector

if TYPE_CHECKING:
    from rmpi.places.dispatching import Desk, EventSource

log = logging.getLogger(__name__)


def source_of(thing: object) -> EventSource | None:
    """What serves it; None: that cannot be."""
    match thing:
        case Channel():
            return Listener(thing)
        case Command():
            return Lifetime(thing)
        case Node():
            return Presence()
    return None


class Presence:
    """A node."""

    def register(self, desk: Desk) -> None:
        """It keeps the router running."""


class Lifetime:
    """A place or program, until its end."""

    def __init__(self, thing: Command) -> None:
        self._thing = thing

    def register(self, desk: Desk) -> None:
        """Wait for its end."""
        events = monitor(self._thing)
        _attend(desk, events, lambda: _has_ended(events), events.close)


class Listener:
    """A channel with a function for its messages, or without."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def register(self, desk: Desk) -> None:
        """Listen from now on.

        Raises:
            UsageError: Another router does.
        """
        if self._channel.handled:
            self._channel.claim()
            _attend(desk, self._channel, lambda: self._serve(desk), self._channel.release)
        elif isinstance(self._channel, Command):  # so are places
            Lifetime(self._channel).register(desk)
        else:
            desk.finish()

    def _serve(self, desk: Desk) -> bool:
        """Serve what is there; whether nothing will come any more."""
        channel = self._channel
        while not desk.ending and channel.handled:
            try:
                call = channel.next_call()
            except (PeerExited, ChannelClosed):
                return channel.over
            except PeerLost as error:
                if channel.over:
                    desk.fail(error)
                    return True
                log.warning("%s; it is to be restarted", error)
                continue
            except Exception as error:  # a message that cannot be unpickled, and is gone
                desk.fail(error)
                continue
            if call is None:
                return False
            desk.do(call)
        return True


def _has_ended(events: Channel) -> bool:
    """Whether they tell of the end of what is monitored."""
    try:
        while True:
            if events.get(0).kind == "gone":
                return True
    except DeadlineExceeded:
        return False


def _attend(desk: Desk, channel: Channel, serve: Callable[[], bool], leave: Callable[[], object]) -> None:
    """Have the desk's thread serve the channel whenever it has something, until ``serve`` says that it is over."""
    selector = Selector([channel])

    def listen() -> None:
        try:
            while not (desk.ending or serve() or desk.ending):
                selector.select()
        except ChannelClosed:  # this process has left the system
            pass
        finally:
            selector.close()
            leave()
            desk.finish()

    desk.when_ending(selector.wake)
    desk.attend(listen)
