"""Sessions on this machine: a node of its own, without ssh.

It is started as another host's would be, by the same command and with the same first lines, only that a shell of ours
runs it.
"""

from __future__ import annotations

from rmpi.deadline import Deadline
from rmpi.places.agent import AgentBooter, AgentSession
from rmpi.places.hosts import HostSpec

LOOPBACK = "127.0.0.1"


class LocalBooter(AgentBooter):
    """Opens sessions by running commands here."""

    def __init__(self) -> None:
        super().__init__("/bin/sh -c")

    def open(self, host: HostSpec, command: str, deadline: Deadline) -> AgentSession:
        """Start the command.

        Raises:
            HostFailed: There is no shell.
        """
        session = super().open(host, command, deadline)
        session.address = LOOPBACK
        return session

    def argv(self, host: HostSpec, command: str) -> list[str]:
        """What runs; which host is meant, is known."""
        return [*self._argv, command]
