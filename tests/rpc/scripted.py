"""A mailbox whose messages are written down, so that what a service does is read off what it answers."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rmpi.errors import ChannelClosed
from rmpi.places.outlet import ChannelStatistics


class Message(NamedTuple):
    value: Any
    reply: Any


@dataclass(eq=False)
class Client:
    """A reply box: what was answered to it, and optionally why nothing more can be."""

    address: str
    answers: list = field(default_factory=list)
    refuses: Exception | None = None

    def put(self, value, _timeout=None):
        if self.refuses is not None:
            raise self.refuses
        self.answers.append(value)

    def sends(self, *value):
        return Message(value, self)


@dataclass(eq=False)
class Script:
    """Messages that come one after the other; of an exception, the waiting for one.

    Each is there as soon as the one before was taken, up to a `PAUSE`: what follows that comes when the service
    would have to wait.
    """

    messages: deque

    def statistics(self):
        return ChannelStatistics(0, 0, int(bool(self.messages) and self.messages[0] is not PAUSE), 0)

    def receive(self, _timeout=None):
        if self.messages and self.messages[0] is PAUSE:
            self.messages.popleft()
        if not self.messages:
            raise ChannelClosed("end of the script")
        message = self.messages.popleft()
        if isinstance(message, Exception):
            raise message
        return message


PAUSE = object()
