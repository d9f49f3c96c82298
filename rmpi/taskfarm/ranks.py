"""A job whose rank 0 runs a script, and whose other ranks are its workers.

    rmpi-run -f hostfile -m rmpi.taskfarm script.py

`Master` and `Executor` without arguments use them, one master after the other. They end when the script has ended. A
rank that is lost ends the job, as in any job.
"""

from __future__ import annotations

import runpy
import socket
import sys
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from rmpi.taskfarm.working import LEAVE, Working

if TYPE_CHECKING:
    from rmpi.comm.communicator import Comm
    from rmpi.places.channel import Channel

_workers: list[tuple[str, Channel]] = []


def workers() -> list[tuple[str, Channel]]:
    """The other ranks, in rank 0 of such a job: what to call them, and a channel to each, which is the caller's."""
    return [(label, copy(channel)) for label, channel in _workers]


def run(comm: Comm, script: str, arguments: Sequence[str]) -> None:
    """Be rank 0, or one of the others, until the script has ended."""
    ours, theirs = comm.channel_pair()
    label = f"rank {comm.rank} on {socket.gethostname()}"
    channels = comm.gather((label, theirs), root=0)
    if comm.rank != 0:
        Working(ours).run()
        return
    assert channels is not None
    _workers.extend(channels[1:])
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)  # as for any script
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        for _, channel in _workers:
            channel.post((LEAVE,))
        _workers.clear()
