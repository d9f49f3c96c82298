"""Pieces of text files, cut at line ends, so that a large file is work for many.

A file is cut every so many bytes, and then each cut moves to the next line end: to behind the first newline at or
after it. Both neighbours of a cut move it in the same way, so no line is lost, and none is read twice; a piece in
which no line ends is empty. A newline is the byte 10 and nothing else is: in UTF-8 no other character contains that
byte, so none is torn apart.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rmpi.errors import UsageError

SMALLEST, LARGEST = 1 << 20, 32 << 20
"""Bytes of a piece, if nobody says how many. Starting a task costs what reading some 10 KB does, and what a piece has
found must be merged with what others have, so larger is cheaper; smaller ones spread better."""

PIECES = 64
"""That a large collection of files is cut into, if nobody says how large pieces shall be: even work for 16 workers."""

_BLOCK = 1 << 20
"""Bytes that are read at once."""


@dataclass(frozen=True, slots=True)
class TextSplit:
    """A piece of a text file. It holds no text: that is read where it is needed, which must have the file.

    Iterating gives the lines, without their ends (``\\n``, or ``\\r\\n``). `read` gives all the text at once.

    Attributes:
        path: Of the file, absolute.
        start, stop: Bytes between which it was cut. The piece begins behind the first newline at or after
            ``start``, if that is not 0, and ends behind the first one at or after ``stop``, or with the file.
        encoding, errors: As for `open`.
    """

    path: str
    start: int
    stop: int
    encoding: str = "utf-8"
    errors: str = "strict"

    def read(self) -> str:
        """The text, line ends as in the file."""
        return self.read_bytes().decode(self.encoding, self.errors)

    def read_bytes(self) -> bytes:
        """The text as it is in the file."""
        with Path(self.path).open("rb") as file:
            start, stop = self._edges(file)
            file.seek(start)
            return file.read(stop - start)

    def __iter__(self) -> Iterator[str]:
        with Path(self.path).open("rb") as file:
            start, stop = self._edges(file)
            file.seek(start)
            while start < stop:
                block = file.read(min(stop - start, _BLOCK))
                if not block:
                    return  # the file was made shorter meanwhile
                if start + len(block) < stop:
                    block += file.readline()
                start += len(block)
                yield from self._lines(block)

    def _lines(self, block: bytes) -> Iterator[str]:
        lines = block.decode(self.encoding, self.errors).split("\n")
        if not lines[-1]:
            del lines[-1]  # what comes behind the last line end
        return (line.removesuffix("\r") for line in lines)

    def _edges(self, file: BinaryIO) -> tuple[int, int]:
        """The bytes of the file between which the lines of this piece are."""
        return _edge(file, self.start), _edge(file, self.stop)


def _edge(file: BinaryIO, cut: int) -> int:
    """To where a cut moves."""
    if cut == 0:
        return 0
    file.seek(cut)
    file.readline()
    return file.tell()


def text_splits(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    size: int | None = None,
    *,
    encoding: str = "utf-8",
    errors: str = "strict",
) -> list[TextSplit]:
    """Cut text files into pieces of about ``size`` bytes, at line ends.

    Args:
        paths: A file, or several; a piece is of one file.
        size: Bytes. By default a 64th of all, but at least 1 MiB and at most 32 MiB.
        encoding, errors: As for `open`; one in which a newline is a byte of its own, as in UTF-8.

    Raises:
        OSError: A file cannot be found.
        UsageError: ``size`` is not positive, or the encoding is one of 16 or 32 bits.
    """
    files = [Path(each).absolute() for each in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    _check_encoding(encoding)
    lengths = [path.stat().st_size for path in files]
    if size is None:
        size = min(max(sum(lengths) // PIECES, SMALLEST), LARGEST)
    if type(size) is not int or size < 1:
        raise UsageError(f"a piece of text has a positive number of bytes, not {size!r}")
    return [
        TextSplit(str(path), start, min(start + size, length), encoding, errors)
        for path, length in zip(files, lengths, strict=True)
        for start in range(0, length, size)
    ]


def _check_encoding(encoding: str) -> None:
    try:
        fits = "a\nb".encode(encoding) == b"a\nb"
    except LookupError:
        raise UsageError(f"there is no encoding {encoding!r}") from None
    if not fits:
        raise UsageError(f"text in {encoding} cannot be cut at bytes that are newlines; recode it to UTF-8 first")
