"""Reading what a task has written: from the file, if it is on this machine, else from the shelf that has it.

A file's path holds a random number, so if there is a file of that path it is the one, whichever machine this is; nobody
needs to know which machines share a file system.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rmpi import places, rpc
from rmpi.errors import NameNotFound, PeerLost, RemoteError
from rmpi.mapreduce.chunks import Chunk, Coded, Piece, Segment, read_pieces, unpack
from rmpi.mapreduce.shelf import Shelf
from rmpi.mapreduce.vocabulary import Glossary


class FileLost(Exception):
    """What a task has written is not there any more.

    Attributes:
        path: Of the file.
        shelf: Its shelf, if that is gone, and all it had; else "".
    """

    def __init__(self, path: str, shelf: str) -> None:
        super().__init__(path)
        self.path = path
        self.shelf = shelf


def chunks_of(segment: Segment, glossary: Glossary | None = None) -> Iterator[Chunk | Coded]:
    """The chunks of a segment, in turn.

    Args:
        glossary: If there can be codes; they are replaced by numbers of its keys.

    Raises:
        FileLost: They cannot be had, or the keys for their codes cannot.
    """
    if not segment.pieces:
        return
    chunks = map(unpack, _read(segment.path, segment.shelf, segment.pieces))
    if segment.head is None or glossary is None:
        yield from chunks
        return
    numbers = glossary.numbers(segment.head, lambda path, piece: next(_read(path, segment.shelf, [piece])))
    for chunk in chunks:
        yield chunk._replace(codes=numbers[chunk.codes]) if isinstance(chunk, Coded) else chunk


def _read(path: str, shelf: str, pieces: Sequence[Piece]) -> Iterator[bytes | memoryview]:
    if shelf and not _is_here(path):
        yield from _from_shelf(path, shelf, pieces)
        return
    try:
        yield from read_pieces(path, pieces)
    except (FileNotFoundError, EOFError) as error:
        raise FileLost(path, "") from error


def _is_here(path: str) -> bool:
    return Path(path).exists()


def _from_shelf(path: str, name: str, pieces: Sequence[Piece]) -> Iterator[memoryview]:
    try:
        shelf = Shelf.over(places.connect(name))
    except (NameNotFound, PeerLost) as error:
        raise FileLost(path, name) from error
    try:
        for data in shelf.read(path, pieces):
            yield data.data
    except PeerLost as error:
        raise FileLost(path, name) from error
    except RemoteError as error:
        raise FileLost(path, "") from error
    finally:
        rpc.close(shelf)
