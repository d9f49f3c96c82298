"""What runs in the places of ``test_rows.py``. In a module of its own because places import it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import Any

import rmpi
from rmpi import places, rpc


def echo(mailbox: places.Mailbox) -> None:
    """Every message goes back to who spawned the place."""
    for message in mailbox:
        mailbox.put(message)


def answer(mailbox: places.Mailbox) -> None:
    """Every message goes back to who put it."""
    while True:
        message, reply = mailbox.receive()
        reply.put(message)


def pids(mailbox: places.Mailbox) -> None:
    """Whatever comes, the answer is the number of this process."""
    while True:
        mailbox.receive().reply.put((os.getpid(), threading.current_thread() is threading.main_thread()))


def arguments(mailbox: places.Mailbox, *args: Any, **kwargs: Any) -> None:
    mailbox.put((args, kwargs))
    mailbox.get()


def leave(mailbox: places.Mailbox, status: int) -> None:
    mailbox.put("last words")
    sys.exit(status)


def crash(_mailbox: places.Mailbox) -> None:
    raise ValueError("nothing works")


def write_and_die(_mailbox: places.Mailbox, lines: int) -> None:
    """Nothing is flushed."""
    for number in range(lines):
        print("line", number)
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_wait(mailbox: places.Mailbox) -> None:
    print("still here")
    mailbox.get()


def tidy(mailbox: places.Mailbox) -> None:
    """Ends well when it is asked to."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    mailbox.put("ready")
    mailbox.get()


def log(mailbox: places.Mailbox) -> None:
    """Log at the levels that come."""
    for level in mailbox:
        logging.getLogger("row").log(level, "at %d", level)
        mailbox.put("logged")


def spawn_there(mailbox: places.Mailbox, node: places.Node) -> None:
    """A place that spawns a place on another node, and gives its address away."""
    child = node.spawn(echo, name="child")
    child.put("from a place")
    mailbox.put((child.get(), places.connect("child")))
    mailbox.get()


def find(mailbox: places.Mailbox) -> None:
    """Connect to the names that come, wherever they are; say how that went, and which nodes there are."""
    for name in mailbox:
        try:
            channel = places.connect(name)
            channel.put("Hello")
            found = channel.get()
        except rmpi.NameNotFound as error:
            found = type(error).__name__
        mailbox.put((found, [node.label for node in places.nodes()]))


def use_what_comes(mailbox: places.Mailbox) -> None:
    """Channels come, with a word to put into each."""
    for word, channel in mailbox:
        channel.put(word)


class Counter(rpc.Server):
    """Counts."""

    def __init__(self, fail: bool = False) -> None:
        if fail:
            raise ValueError("no such counter")
        self._count = 0

    @rpc.call
    def up(self, by: int = 1) -> int:
        self._count += by
        return self._count

    @rpc.call
    def fail(self) -> None:
        raise KeyError("nobody")

    @rpc.call
    def wait_for(self, event: places.Channel) -> str:
        """Say that it waits, and answer when it has waited."""
        event.put("waiting")
        answer: str = event.get()
        return answer

    @rpc.cast
    def add(self, by: int) -> None:
        self._count += by
