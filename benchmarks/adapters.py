"""One function per operation and library: what its users write, and nothing else.

Each method takes this rank's value and returns a *step*, which does the operation once and returns what came out.
A step calls the library as its manual would: buffers by the upper-case methods of mpi4py and ``out=`` of rmpi, objects
by the lower-case methods and plain calls. Nothing is shared between the two classes, so that neither pays for a layer
that suits the other. A library is imported when its adapter is made: the peers' environments have no rmpi.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

Step = Callable[[], Any]


class Adapter(Protocol):
    """What `compare_ranks.py` asks of a library.

    Attributes:
        rank: Mine.
        size: How many there are.
        version: The library's own words.
    """

    rank: int
    size: int
    version: str

    def largest(self, figure: float) -> float:
        """The largest that any rank gave, on every rank."""

    def ping_arrays(self, mine: Any) -> Step: ...
    def ping_objects(self, mine: Any) -> Step: ...
    def barrier(self, mine: None) -> Step: ...
    def broadcast_arrays(self, mine: Any) -> Step: ...
    def broadcast_objects(self, mine: Any) -> Step: ...
    def reduce_arrays(self, mine: Any) -> Step: ...
    def reduce_objects(self, mine: Any) -> Step: ...
    def allreduce_arrays(self, mine: Any) -> Step: ...
    def allreduce_objects(self, mine: Any) -> Step: ...
    def allgather_arrays(self, mine: Any) -> Step: ...
    def allgather_objects(self, mine: Any) -> Step: ...
    def alltoall_arrays(self, mine: Any) -> Step: ...
    def alltoall_objects(self, mine: Any) -> Step: ...


class Rmpi:
    def __init__(self) -> None:
        import rmpi

        self._comm = rmpi.init()
        self._max = rmpi.MAX
        self.rank, self.size = self._comm.rank, self._comm.size
        self.version = f"rmpi {rmpi.__version__}"

    def largest(self, figure: float) -> float:
        return float(self._comm.allreduce(figure, self._max))

    def ping_arrays(self, mine: Any) -> Step:
        comm, theirs = self._comm, np.empty_like(mine)

        def first() -> Any:
            comm.send(mine, 1)
            return comm.recv(1, out=theirs)

        def second() -> Any:
            comm.recv(0, out=theirs)
            comm.send(mine, 0)
            return theirs

        return second if self.rank else first

    def ping_objects(self, mine: Any) -> Step:
        comm = self._comm

        def first() -> Any:
            comm.send(mine, 1)
            return comm.recv(1)

        def second() -> Any:
            theirs = comm.recv(0)
            comm.send(mine, 0)
            return theirs

        return second if self.rank else first

    def barrier(self, mine: None) -> Step:
        return self._comm.barrier

    def broadcast_arrays(self, mine: Any) -> Step:
        comm, out = self._comm, np.empty_like(mine)
        return lambda: comm.broadcast(mine, out=out)

    def broadcast_objects(self, mine: Any) -> Step:
        comm = self._comm
        return lambda: comm.broadcast(mine)

    def reduce_arrays(self, mine: Any) -> Step:
        comm, out = self._comm, np.empty_like(mine)
        return lambda: comm.reduce(mine, out=out)

    def reduce_objects(self, mine: Any) -> Step:
        comm = self._comm
        return lambda: comm.reduce(mine)

    def allreduce_arrays(self, mine: Any) -> Step:
        comm, out = self._comm, np.empty_like(mine)
        return lambda: comm.allreduce(mine, out=out)

    def allreduce_objects(self, mine: Any) -> Step:
        comm = self._comm
        return lambda: comm.allreduce(mine)

    def allgather_arrays(self, mine: Any) -> Step:
        comm, out = self._comm, np.empty((self.size, *mine.shape))
        return lambda: comm.allgather(mine, out=out)

    def allgather_objects(self, mine: Any) -> Step:
        comm = self._comm
        return lambda: comm.allgather(mine)

    def alltoall_arrays(self, mine: Any) -> Step:
        comm, out = self._comm, np.empty_like(mine)
        return lambda: comm.alltoall(mine, out=out)

    def alltoall_objects(self, mine: Any) -> Step:
        comm, values = self._comm, [mine] * self.size
        return lambda: comm.alltoall(values)


class Mpi4py:
    def __init__(self) -> None:
        from mpi4py import MPI  # type: ignore[import-not-found, unused-ignore]

        self._comm = MPI.COMM_WORLD
        self._max = MPI.MAX
        self.rank, self.size = self._comm.rank, self._comm.size
        self.version = " ".join(MPI.Get_library_version().split("\n")[0].split(",")[0].split())

    def largest(self, figure: float) -> float:
        return float(self._comm.allreduce(figure, self._max))

    def ping_arrays(self, mine: Any) -> Step:
        comm, theirs = self._comm, np.empty_like(mine)

        def first() -> Any:
            comm.Send(mine, 1)
            comm.Recv(theirs, 1)
            return theirs

        def second() -> Any:
            comm.Recv(theirs, 0)
            comm.Send(mine, 0)
            return theirs

        return second if self.rank else first

    def ping_objects(self, mine: Any) -> Step:
        comm = self._comm

        def first() -> Any:
            comm.send(mine, 1)
            return comm.recv(source=1)

        def second() -> Any:
            theirs = comm.recv(source=0)
            comm.send(mine, 0)
            return theirs

        return second if self.rank else first

    def barrier(self, mine: None) -> Step:
        comm = self._comm
        return lambda: comm.Barrier()

    def broadcast_arrays(self, mine: Any) -> Step:
        comm, out = self._comm, mine if self.rank == 0 else np.empty_like(mine)

        def step() -> Any:
            comm.Bcast(out)
            return out

        return step

    def broadcast_objects(self, mine: Any) -> Step:
        comm = self._comm
        return lambda: comm.bcast(mine)

    def reduce_arrays(self, mine: Any) -> Step:
        comm, out = self._comm, np.empty_like(mine) if self.rank == 0 else None

        def step() -> Any:
            comm.Reduce(mine, out)
            return out

        return step

    def reduce_objects(self, mine: Any) -> Step:
        comm = self._comm
        return lambda: comm.reduce(mine)

    def allreduce_arrays(self, mine: Any) -> Step:
        comm, out = self._comm, np.empty_like(mine)

        def step() -> Any:
            comm.Allreduce(mine, out)
            return out

        return step

    def allreduce_objects(self, mine: Any) -> Step:
        comm = self._comm
        return lambda: comm.allreduce(mine)

    def allgather_arrays(self, mine: Any) -> Step:
        comm, out = self._comm, np.empty((self.size, *mine.shape))

        def step() -> Any:
            comm.Allgather(mine, out)
            return out

        return step

    def allgather_objects(self, mine: Any) -> Step:
        comm = self._comm
        return lambda: comm.allgather(mine)

    def alltoall_arrays(self, mine: Any) -> Step:
        comm, out = self._comm, np.empty_like(mine)

        def step() -> Any:
            comm.Alltoall(mine, out)
            return out

        return step

    def alltoall_objects(self, mine: Any) -> Step:
        comm, values = self._comm, [mine] * self.size
        return lambda: comm.alltoall(values)


def adapter(library: str) -> Adapter:
    """Of ``rmpi`` or ``mpi4py``; joins the job."""
    return Rmpi() if library == "rmpi" else Mpi4py()
