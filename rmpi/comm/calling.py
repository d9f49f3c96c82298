"""What a rank of `rmpi.launch` runs: the caller's function, once, with the communicator.

The call comes to rank 0 on its standard input, which reaches any host, a piece at a time and only as fast as it is
read. From rank 0 it goes to the others down a tree, for data does not go through routers where there are links. What
the function returns goes the other way, to the owner of the job, who is no rank and has no link; each rank hands its
outcome to its router, in pieces, as control messages, and needs no other rank for it. So what one rank has to say is
heard whatever became of the others. A gather would have been faster for large results, and silent after the first
death.

A function that raises ends its rank as any program does that raises: the others get `RankFailed`.
"""

from __future__ import annotations

import os
import sys

from rmpi.comm.bootstrap import init
from rmpi.comm.communicator import Comm
from rmpi.errors import LaunchError
from rmpi.places.parcels import Call, failure, frames_below, pack_outcome, pack_value
from rmpi.places.place import inherited_fd, reporter_at

TAG = 1
"""Of the messages that bring the call; all of them are over before the function begins."""


def main() -> None:
    """Fetch the call, do it, and hand its outcome to the owner of the job."""
    fd = inherited_fd(os.environ)
    if fd is None:
        raise LaunchError("this is the program of a rank that rmpi.launch starts; it does nothing by itself")
    reporter = reporter_at(fd)
    comm = init()
    try:
        reporter.returned(pack_outcome(_call(comm)))
    except SystemExit:
        raise
    except BaseException as error:
        reporter.returned(pack_outcome(failure(error, frames_below(error, __file__))))
        raise


def _call(comm: Comm) -> bytes:
    """What the function returns, packed."""
    function, args, kwargs = _fetch(comm).unpacked()
    return pack_value(function(comm, *args, **kwargs), f"what rank {comm.rank} returned")


def _fetch(comm: Comm) -> Call:
    """The call, once all below this rank have it.

    Why not `Comm.broadcast`: that returns when the data is on its way, and who then computes or sleeps makes no
    progress, so a link that was just asked for would not come about, and ranks further down would begin late or never.
    """
    parent, children = tree(comm.rank, comm.size)
    data = sys.stdin.buffer.read() if parent is None else comm.recv(parent, TAG)
    for child in children:
        comm.send(data, child, TAG)
    for child in children:
        comm.recv(child, TAG)
    if parent is not None:
        comm.send(None, parent, TAG)
    return Call.from_bytes(data)


def tree(rank: int, size: int) -> tuple[int | None, list[int]]:
    """Parent and children of a rank in the binomial tree over all ranks, whose root is 0; larger subtrees first."""
    reach = rank & -rank or 1 << size.bit_length()  # the rank's subtree is what follows it, up to there
    steps = (reach >> shift for shift in range(1, reach.bit_length()))
    return (rank & (rank - 1) if rank else None), [rank + step for step in steps if rank + step < size]
