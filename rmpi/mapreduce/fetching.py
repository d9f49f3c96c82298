"""Reading what a task has written: from the file, if it is on this machine, else from the shelf that has it.

A file's path holds a random number, so if there is a file of that path it is the one, whichever machine this is; nobody
needs to know which machines share a file system.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rmpi import places, rpc
from rmpi.errors import NameNotFound, PeerLost, RemoteError
from rmpi.mapreduce.chunks import Chunk, Segment, read_pieces, unpack
from rmpi.mapreduce.shelf import Shelf


class SegmentLost(Exception):
    """What a task has written is not there any more.

    Attributes:
        segment: Which.
        shelf: Its shelf, if that is gone, and all it had; else "".
    """

    def __init__(self, segment: Segment, shelf: str) -> None:
        super().__init__(segment.path)
        self.segment = segment
        self.shelf = shelf


def chunks_of(segment: Segment) -> Iterator[Chunk]:
    """The chunks of a segment, in turn.

    Raises:
        SegmentLost: They cannot be had.
    """
    if not segment.pieces:
        return
    if not segment.shelf or _is_here(segment.path):
        try:
            yield from map(unpack, read_pieces(segment.path, segment.pieces))
        except (FileNotFoundError, EOFError) as error:
            raise SegmentLost(segment, "") from error
        return
    yield from _from_shelf(segment)


def _is_here(path: str) -> bool:
    return Path(path).exists()


def _from_shelf(segment: Segment) -> Iterator[Chunk]:
    try:
        shelf = Shelf.over(places.connect(segment.shelf))
    except (NameNotFound, PeerLost) as error:
        raise SegmentLost(segment, segment.shelf) from error
    try:
        for data in shelf.read(segment.path, segment.pieces):
            yield unpack(data.data)
    except PeerLost as error:
        raise SegmentLost(segment, segment.shelf) from error
    except RemoteError as error:
        raise SegmentLost(segment, "") from error
    finally:
        rpc.close(shelf)
