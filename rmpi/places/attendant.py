"""The thread that calls functions with messages, where nobody else does (`Channel.on_message`).

There is one for each system that the process is part of, from the first such channel on until the last. It waits for
its channels as anybody would, and takes a message only while no other thread waits for it in `Channel.get`.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

from rmpi.errors import ChannelClosed, PeerLost
from rmpi.places.selecting import Selector

if TYPE_CHECKING:
    from rmpi.places.channel import Channel
    from rmpi.transport.endpoint import Endpoint

_LOG = logging.getLogger("rmpi.places")


class Attendant:
    """One thread, and the channels that it attends. Changed with `_LOCK` held."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.selector = Selector()
        self._channels: dict[int, Channel] = {}

    def start(self) -> None:
        threading.Thread(target=self._run, name="rmpi attendant", daemon=True).start()

    def add(self, channel: Channel) -> None:
        self._channels[id(channel)] = channel
        self.selector.add(channel)

    def remove(self, channel: Channel) -> None:
        if self._channels.pop(id(channel), None) is not None:
            self.selector.remove(channel)
            self.selector.wake()

    def _run(self) -> None:
        try:
            while not self._is_over():
                ready = {id(source) for source in self.selector.select()}
                for channel in [channel for key, channel in list(self._channels.items()) if key in ready]:
                    self._serve(channel)
        except ChannelClosed:  # this process has left the system
            with _LOCK:
                _attendants.pop(self._endpoint, None)

    def _is_over(self) -> bool:
        with _LOCK:
            if not self._channels:
                _attendants.pop(self._endpoint, None)
            return not self._channels

    def _serve(self, channel: Channel) -> None:
        """One message."""
        try:
            call = channel.next_call()
        except (PeerLost, ChannelClosed) as error:
            if channel.over:
                _LOG.debug("%r is attended no more: %s", channel, error)
                neglect(channel)
            return
        except Exception:
            _LOG.exception("a message of %r cannot be unpickled, and is gone", channel)
            return
        try:
            if call is not None:
                call()
        except BaseException:  # SystemExit too: nobody would hear of it, and all channels would be left alone
            _LOG.exception("a function called with a message of %r raised", channel)


_LOCK = threading.Lock()
_attendants: dict[Endpoint, Attendant] = {}


def attend(channel: Channel) -> None:
    """Have each `Channel.next_call` called, whenever there is a message."""
    with _LOCK:
        attendant = _attendants.get(channel.endpoint)
        if attendant is not None:
            attendant.add(channel)
            return
        attendant = _attendants[channel.endpoint] = Attendant(channel.endpoint)
        attendant.add(channel)
        attendant.start()


def neglect(channel: Channel) -> None:
    """Do so no more."""
    with _LOCK:
        attendant = _attendants.get(channel.endpoint)
        if attendant is not None:
            attendant.remove(channel)


def _forget() -> None:
    """In a forked child there is no such thread, and perhaps one held the lock."""
    global _LOCK
    _LOCK = threading.Lock()
    _attendants.clear()


os.register_at_fork(after_in_child=_forget)
