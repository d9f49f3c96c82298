"""What can go wrong with a farm, besides what tasks raise."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pickle import PicklingError

from rmpi.errors import PeerLost, RmpiError, UsageError


class WorkerLost(PeerLost, BrokenProcessPool):
    """The worker that had the task died, or was cut off, and the task was not to be tried again.

    The task may have been executed, in whole or in part. The farm goes on.
    """


class BrokenFarm(RmpiError, BrokenProcessPool):
    """There are no workers, and there will be none: their initializer raised, or they cannot be started."""


class NotPicklable(UsageError, PicklingError):
    """A function, an argument or a result cannot be sent."""
