"""Fixtures: ranks over memory, shared memory and TCP."""

import sys
from pathlib import Path

import pytest

from rmpi.testing.ranks import run_ranks
from rmpi.transport.crank import SPIN
from rmpi.transport.media import why_no_shm

sys.path.insert(0, str(Path(__file__).parent.parent / "transport"))

from joined import fork_ranks, tcp_loopback


@pytest.fixture(params=["memory", "shm", "tcp"])
def run(request):
    """``run(size, main)``: the results of ``main(comm)`` on ranks that are threads, or forks of this process.

    Shared memory is as scarce as with 64 ranks: 128 KiB for each direction of a pair.
    """
    if request.param == "memory":
        return run_ranks
    if request.param == "tcp":
        return lambda size, main: fork_ranks(size, main, sockets=tcp_loopback, spin=SPIN)
    if why_no_shm() is not None:
        pytest.skip(str(why_no_shm()))
    return lambda size, main: fork_ranks(size, main, spin=SPIN, neighbours=64)
