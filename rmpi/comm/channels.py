"""Channels among the ranks of a job: `Comm.channel_pair`.

They are those of `rmpi.places`, over the endpoint that a rank has anyway: so they use its links, its shared memory, and
what its router says of ranks that end. A channel that is sent to another rank finds its way by the number of the job,
under which every rank is registered as a *guest* (`places.membership`): a rank's own system, if it begins one
(`places.here`), is another one.

A box has no members, as a communicator has, so it is neither revoked nor freed with one. What waits at a box is like
any other wait to those who look for deadlocks: what a rank was sent and has not taken is counted by links.
"""

from __future__ import annotations

import itertools

from rmpi.errors import UsageError
from rmpi.places import membership
from rmpi.places.whereabouts import Whereabouts
from rmpi.transport.endpoint import Endpoint


class RankMember:
    """This rank, as its channels see it (`places.whereabouts.Member`): the system is the job, and has no places."""

    def __init__(self, endpoint: Endpoint, job: int) -> None:
        """Be a member from now on.

        Args:
            job: Its number, the same on all ranks, which no other job has.
        """
        self.endpoint = endpoint
        self.system = job
        self._numbers = itertools.count(1)
        membership.register(self, guest=True)

    def new_box(self) -> int:
        return membership.box_number(self.system, self.endpoint.ident, next(self._numbers))

    def whereabouts(self, place: int) -> Whereabouts:
        raise UsageError(f"a job has ranks and no places, so there is no place {place:#x}")

    def describe(self, endpoint: int) -> str:
        return self.endpoint.name_of(endpoint)
