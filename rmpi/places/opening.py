"""A program's own system, opened: other programs may join it, as they join a node that was started by hand.

    address = places.listen(port=7000, key_file="team.key")  # the program: "127.0.0.1:7000"
    node = places.attach("localhost:7000", key_file="team.key")  # others, for as long as it runs

The head of the program's system gets a door, and treats who comes by it like any head does (`rmpi.places.reception`).
"""

from __future__ import annotations

from pathlib import Path

from rmpi.errors import LaunchError, UsageError
from rmpi.places import membership
from rmpi.places.hosts import MAX_PORT
from rmpi.places.keyfile import read_key
from rmpi.places.local import LOOPBACK
from rmpi.places.member import Member
from rmpi.places.system import System, running_system, system_of_this_process


def listen(address: str = LOOPBACK, port: int = 0, *, key_file: str | Path) -> str:
    """Let other programs join the system of this one, by `attach`.

    They find its named places and mailboxes, spawn places on its nodes, and exchange channels with it and its places,
    until it ends. Data goes directly between them and those. When such a program ends, or is cut off for 5 s, whoever
    has a channel to it hears `PeerLost`, and what it has started and nobody else can find is ended.

    Args:
        address: One address of this machine, or ``"0.0.0.0"`` for all of them; by default only programs of this machine
            get here.
        port: 0 for any that is free.
        key_file: Who has the same key may join, and so run any program here, as this user. The file must be nobody
            else's (`write_new_key` makes one).

    Returns:
        Where it listens, for `attach`: ``"127.0.0.1:40123"``. The same again if it does so already.

    Raises:
        LaunchError: This machine has no such address, the port is taken, or the key file cannot be used: says why.
        UsageError: This process is a place, whose system is another program's; or it listens already, elsewhere or with
            another key.
    """
    if type(port) is not int or not 0 <= port <= MAX_PORT:
        raise UsageError(f"port must be a number from 0 to {MAX_PORT}, not {port!r}")
    key = read_key(key_file)
    try:
        return _own_system().listen(address, port, key)
    except LaunchError as error:
        hint = "; port=0 is any that is free" if port else ""
        raise LaunchError(f"{error}{hint}") from None


def stop_listening() -> None:
    """Let nobody join any more. Those who have joined stay; new ways to places of this node then lead through it.

    Raises:
        UsageError: This process is a place, whose system is another program's.
    """
    if running_system() is not None:
        _own_system().stop_listening()


def _own_system() -> System:
    if running_system() is None and isinstance(membership.current(), Member):
        raise UsageError("this place's system is another program's, which alone can let guests in")
    return system_of_this_process()
