"""Channels of messages that have a kind: get one of a kind, and leave the others queued."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from rmpi.deadline import Deadline

if TYPE_CHECKING:
    from rmpi.places.channel import Channel, Message


class TypedChannel:
    """A channel, by the kind of its messages: the first item of a tuple or list, or what a dict has under ``"type"``.

        kinds = chan.typed()
        kinds.get("bank", timeout=5)  # ("bank", …), or {"type": "bank", …}

    Messages of other kinds stay queued in the order in which they came: for a later `get` of their kind, for
    `Channel.get` of the channel itself, which gets the first of all, and in what its `Channel.poll` and `select` say.
    What has no kind is of kind None.

    Attributes:
        channel: The channel itself.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def get(self, kind: Hashable, timeout: float | None = None) -> Any:
        """The first message of that kind.

        Raises:
            UsageError: Too many messages of other kinds wait; see `Channel.typed`. None of them is lost.
            PeerLost, PeerExited, DeadlineExceeded, ChannelClosed: As for `Channel.get`.
        """
        return self.channel._get(Deadline.after(timeout), kind, whole=False)

    def receive(self, kind: Hashable, timeout: float | None = None) -> Message:
        """The same, with the channel to answer it by; see `Channel.receive`."""
        message: Message = self.channel._get(Deadline.after(timeout), kind, whole=True)
        return message

    def put(self, value: object, timeout: float | None = None) -> None:
        """`Channel.put`."""
        self.channel.put(value, timeout)

    def __repr__(self) -> str:
        return f"<TypedChannel of {self.channel!r}>"
