"""Workers that come to masters: ``python -m rmpi.taskfarm worker --connect head:7000``.

Each master's system is another one, and channels of different systems cannot be waited for together. So there is a
thread for each master, which hands on what comes from there, and notices the master's end.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, DeadlineExceeded, NameNotFound, PeerExited, RmpiError
from rmpi.places.channel import Message
from rmpi.places.guest import attach
from rmpi.places.pair import channel_pair
from rmpi.places.selecting import Selector
from rmpi.taskfarm.meeting import GATE
from rmpi.taskfarm.working import BYE, Working

if TYPE_CHECKING:
    from rmpi.places.channel import Channel, Mailbox, Outlet

MEET_LIMIT = 30.0
"""Seconds until a master must have let us in."""


class Entrance:
    """Where one master is heard."""

    def __init__(self, address: str, key_file: str, label: str, heard: queue.SimpleQueue[Message]) -> None:
        """Go there, and say that we are here.

        Raises:
            RmpiError: There is no master, or it does not let us in.
        """
        self._where = address
        self._heard = heard
        node = attach(address, key_file=key_file, timeout=MEET_LIMIT)
        self._ours, theirs = channel_pair(of=node)
        try:
            self._gate = node.connect(GATE)
        except NameNotFound:
            raise RmpiError(f"there is no master at {address}, or it takes no more workers") from None
        self._gate.put((label, theirs))
        self._said_good_bye = False
        self._from: Outlet = theirs  # or whoever has said something
        threading.Thread(target=self._run, name=f"rmpi hears {address}", daemon=True).start()

    def _run(self) -> None:
        selector = Selector([self._ours, self._gate])
        why = "it has ended"
        try:
            while True:
                ready = {id(channel) for channel in selector.select()}
                if id(self._ours) in ready:
                    self._take_all(self._ours)
                if id(self._gate) in ready:
                    self._take_all(self._gate)  # which says nothing, but that it is over
        except ChannelClosed:  # it is us who leave
            return
        except PeerExited:  # it has closed its mailbox, as masters do that end well
            self._said_good_bye = True
        except RmpiError as error:
            why = str(error)
        if not self._said_good_bye:
            sys.stderr.write(f"rmpi: the master at {self._where} is gone: {why}\n")
        self._heard.put(Message((BYE,), self._from))

    def _take_all(self, channel: Channel) -> None:
        try:
            while True:
                message = channel.receive(0)
                self._from = message.reply
                self._said_good_bye = message.value[0] == BYE
                self._heard.put(message)
        except DeadlineExceeded:
            pass


class Comers:
    """What all masters say, and whoever has started this worker, for `Working`."""

    def __init__(self, mailbox: Channel, addresses: Sequence[str], key_file: str, label: str) -> None:
        self._heard: queue.SimpleQueue[Message] = queue.SimpleQueue()
        for address in addresses:
            Entrance(address, key_file, label, self._heard)
        threading.Thread(target=self._hear, args=(mailbox,), name="rmpi hears its keeper", daemon=True).start()

    def _hear(self, mailbox: Channel) -> None:
        for word in mailbox:
            self._heard.put(Message(word, mailbox))

    def receive(self, timeout: float | None) -> Message:
        """As `Channel.receive`."""
        try:
            return self._heard.get(timeout=Deadline.after(timeout).left_or_none())
        except queue.Empty:
            raise DeadlineExceeded("no master has said anything") from None


def come(mailbox: Mailbox, addresses: Sequence[str], key_file: str, number: int) -> None:
    """The function of a place that is such a worker. It ends when all masters have ended."""
    label = f"worker {number} on {socket.gethostname()} (pid {os.getpid()})"
    try:
        source = Comers(mailbox, addresses, key_file, label)
    except RmpiError as error:
        sys.stderr.write(f"rmpi: {error}\n")
        return
    Working(source, leaves=True).run()
