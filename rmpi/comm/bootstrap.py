"""How a process finds its communicator: `init`.

Started by a node, it inherits a socket to its router and learns everything from it. Started by plain
``python``, it is alone: a communicator of size 1. Started by *another* launcher, which says that there are more
ranks but knows nothing of us, it refuses: ranks that each believe to be rank 0 of 1 would compute nonsense.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
from collections.abc import Mapping

from rmpi.comm.channels import RankMember
from rmpi.comm.communicator import Comm
from rmpi.comm.family import Family, derived
from rmpi.errors import ChannelClosed, LaunchError
from rmpi.places.membership import FOUNDER
from rmpi.places.place import FD_VARIABLE, Place, forget, inherited_fd
from rmpi.transport.endpoint import Endpoint

OTHER_LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "WORLD_SIZE")
"""Variables in which MPICH, Open MPI, Slurm and torchrun say how many ranks there are."""

ALONE = "RMPI_ALONE"
"""Set to 1, it makes a process a communicator of size 1 whatever other launchers say."""

_world: Comm | None = None
_forked = False


def init() -> Comm:
    """Join the job this process was started for. Call it as often as you like; it returns the same `Comm`.

    At the interpreter's end everything sent is sent out and the rank leaves the job; nothing needs to be
    called for that. ``with rmpi.init() as comm:`` leaves at the end of the block instead.

    Raises:
        LaunchError: Another launcher says that there are more ranks, but this one did not start them; or the
            socket to the router is not there.
        ChannelClosed: This process is a fork of a rank; only the rank itself may communicate.
    """
    global _world
    if _forked:
        raise ChannelClosed("this process was forked from a rank; only the rank itself may communicate")
    if _world is None:
        refuse_pool_workers(os.environ)
        fd = inherited_fd(os.environ)
        _world = _join(fd) if fd is not None else _alone(os.environ)
    return _world


def begin_anew() -> None:
    """In a fork that is to be a rank of another job: `init` joins that, whatever this process was before."""
    global _forked, _world
    _forked, _world = False, None
    forget()


def _join(fd: int) -> Comm:
    place = Place(fd)
    family = Family(place.endpoint, place)
    place.serve(family)
    welcome = place.welcome
    family.member = RankMember(place.endpoint, derived(welcome.context, "channels"))
    comm = Comm(family, welcome.members, welcome.context, welcome.hosts)
    place.endpoint.mismatched = family.report_mismatch
    os.environ.pop(FD_VARIABLE, None)  # for programs that this rank starts: they are not the rank
    atexit.register(place.leave)
    os.register_at_fork(after_in_child=lambda: _disown(place))
    return comm


def _disown(place: Place) -> None:
    """In a forked child, and in children of its own: the links are the rank's, and this process is not it."""
    global _forked, _world
    if not _forked:
        _forked, _world = True, None
        place.disown()


def refuse_pool_workers(environ: Mapping[str, str]) -> None:
    """Refuse to make a worker that a rank has spawned (`multiprocessing`) a rank 0 of 1.

    Raises:
        ChannelClosed: This process is one.
    """
    if "RMPI_RANK" in environ and multiprocessing.parent_process() is not None:
        raise ChannelClosed(
            "this process was spawned by a rank; only the rank itself may communicate. Call rmpi.init() under "
            "if __name__ == '__main__':"
        )


class _Nobody:
    """The keeper of a communicator of size 1."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def called(self, context: int, sequence: int, fingerprint: int, what: str) -> None:
        """Nobody can disagree."""

    def mismatch(self, context: int, sequence: int, fingerprint: int, what: str, other: int) -> None:
        """Nobody can disagree."""

    def revoke(self, context: int, why: str) -> None:
        """Nobody else has it."""

    def abort(self, code: int, why: str) -> None:
        """What follows ends all there is."""

    def leave(self) -> None:
        self._endpoint.close()


def _alone(environ: Mapping[str, str]) -> Comm:
    refuse_other_launchers(environ)
    endpoint = Endpoint(FOUNDER, lambda _peer: None, name_of=lambda _endpoint: "rank 0")
    family = Family(endpoint, _Nobody(endpoint))
    family.member = RankMember(endpoint, int.from_bytes(os.urandom(8), "little"))
    return Comm(family, [FOUNDER], 2, [socket.gethostname()])


def refuse_other_launchers(environ: Mapping[str, str]) -> None:
    """Refuse to be rank 0 of 1 where another launcher has started more ranks.

    Raises:
        LaunchError: It has.
    """
    if environ.get(ALONE) == "1":
        return
    for variable in OTHER_LAUNCHERS:
        given = environ.get(variable, "")
        if given.isdecimal() and int(given) > 1:
            raise LaunchError(
                f"{variable}={given} says that this process is one of {given} ranks, but nothing connects them to "
                f"rmpi: start the program with rmpi-run -n {given} instead of that launcher. If this process is meant "
                f"to be alone, unset {variable} or set {ALONE}=1"
            )
