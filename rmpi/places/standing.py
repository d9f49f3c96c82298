"""A node that people start by hand: a head whose system has no main program, and whose door is open to guests.

It stands until it is told to end, whoever comes and goes (`rmpi.places.reception`). What it prints is what its places
write and log; they are started for guests.
"""

from __future__ import annotations

import logging
import os
import socket
from datetime import datetime

from rmpi.places.books import Log
from rmpi.places.node import memory_of_machine
from rmpi.places.system import GRACE, Head


class Standing(Head):
    """The head of a system that has no program of its own.

    Attributes:
        label: What this node is called.
        port: Where its door is.
    """

    def __init__(self, address: str, port: int, key: bytes, name: str = "", *, verbose: bool = False) -> None:
        """Open the door.

        Args:
            address: Where to listen, at that port or at any (0).
            key: What guests must prove to have.
            name: What to call this node; by default what this machine is called.
            verbose: Say who comes and goes.

        Raises:
            LaunchError: Nobody can listen there.
        """
        self.label = name or socket.gethostname()
        super().__init__(key, self.label)
        self._directory.describe_head(len(os.sched_getaffinity(0)), memory_of_machine(), os.getpid())
        self._verbose = verbose
        try:
            self.port = self._serve(address, port)
        except BaseException:
            self._node.close()
            self._loop.close()
            self._let_go()
            raise

    def run(self) -> None:
        """Stand until `end` was called and everything has ended."""
        self._run()
        self._let_go()

    def end(self) -> None:
        """End all places and nodes: they are asked to, and killed after a grace; when this is called again, at once.

        For signal handlers.
        """
        self._loop.post(self._end_all)

    def _end_all(self) -> None:
        if self._ending:
            self._end()
        else:
            self._begin_end(GRACE)

    # ------------------------------------------------------------------------------- what is shown

    def _came_or_went(self, text: str) -> None:
        if self._verbose:
            self.warn(text)

    def _log(self, log: Log) -> None:
        """Where it was started, people read it: what they want to, they said when they spawned the place."""
        record = log.record
        moment = _moment(record.created)
        level = logging.getLevelName(record.level)
        for line in record.text.split("\n"):
            self._printer.say(f"{moment} {level} [{log.label}] {record.logger}: {line}")


def _moment(seconds: float) -> str:
    """When a record was made, as whoever made it says: that may be no time at all."""
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"at {seconds:g}"
