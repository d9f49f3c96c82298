"""Broadcast: one rank's value to all."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from rmpi.comm.collectives.tree import seat
from rmpi.comm.schedule import Recv, Schedule, Send, raw_bytes


def binomial(
    rank: int, size: int, root: int, value: object, out: npt.NDArray[Any] | None = None, *, large: int
) -> Schedule[Any]:
    """Binomial tree: ⌈log₂ size⌉ rounds, size-1 messages. Only the root's ``value`` is looked at.

    A value of more than ``large`` bytes goes to one child after the other, the largest subtree first: that
    child then has all the bandwidth, and passes the value on while we serve the next. A smaller one goes to
    all children at once, so that one who comes late does not hold up the others. Each rank decides this by
    the value it holds; nobody else needs to know.
    """
    here = seat(rank, size, root)
    if here.parent is not None:
        value = yield Recv(here.parent, out)
    sends = [Send(child.rank, value) for child in reversed(here.children)]
    if len(sends) <= 1 or raw_bytes(value) > large:
        yield from sends
    else:
        yield tuple(sends)
    return value
