"""What gives the files of a machine to others: one server on each, where a job has several machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from rmpi import rpc
from rmpi.mapreduce.chunks import Piece, read_pieces
from rmpi.mapreduce.storage import Store


class Shelf(rpc.Server):
    """The store of a machine. It is started again if it ends, and takes over what is there.

    Args:
        parent: As of `Store`.
        name: Of the store.
    """

    def __init__(self, parent: str | None, name: str) -> None:
        self._store = Store(parent, name)

    @rpc.call
    def directory(self) -> str:
        """Where tasks on this machine write."""
        return str(self._store.path)

    @rpc.call
    def begin_job(self, name: str) -> None:
        """Make the directory of a job."""
        self._store.job(name)

    @rpc.call
    def end_job(self, name: str) -> None:
        """Remove it."""
        self._store.end_job(name)

    @rpc.call
    def read(self, path: str, pieces: Sequence[Piece]) -> Iterator[npt.NDArray[np.uint8]]:
        """Each piece of a file of this store, in turn, as bytes.

        Raises:
            OSError: It is not there; EOFError: it has been cut short.
        """
        for data in read_pieces(path, pieces):
            yield np.frombuffer(data, np.uint8)

    @rpc.call
    def clear(self) -> None:
        """Remove everything; nothing can be put here afterwards."""
        self._store.close()
