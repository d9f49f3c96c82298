"""In which files, and on which lines, each word is: an index, as books have them, by map and reduce.

    python examples/inverted_index.py
    python examples/inverted_index.py -n 4 docs/*.md
    python examples/inverted_index.py --find deadline docs/*.md

A worker reads a file, and gives for each of its words the lines where it is; what all files gave for a word becomes
one entry. Without files the sources of Python's ``json`` are read. Printed are all words in order, or one that was
asked for:

    deadline: docs/collectives.md 87; docs/places.md 12, 203, 205
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rmpi.mapreduce import MapReduce

Place = tuple[str, list[int]]
"""A file, and the lines in it, from 1 on."""


def index(path: str) -> dict[str, Place]:
    """The words of a file."""
    lines_of: dict[str, list[int]] = {}
    for number, line in enumerate(Path(path).read_text("utf-8", "replace").split("\n"), 1):
        for word in set(re.findall(r"\w+", line.lower())):
            lines_of.setdefault(word, []).append(number)
    return {word: (path, lines) for word, lines in lines_of.items()}


def collect(word: str, places: list[Place]) -> Iterator[tuple[str, list[Place]]]:
    yield word, sorted(places)


def entry(word: str, places: list[Place]) -> str:
    """As it is printed."""
    return f"{word}: " + "; ".join(f"{path} {', '.join(map(str, lines))}" for path, lines in places)


def main(argv: Sequence[str]) -> int:
    """The exit status: 1 if a word was asked for that is nowhere."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", type=int, metavar="WORKERS", help="on this machine; 0: all in this process")
    parser.add_argument("--find", metavar="WORD", help="print the entry of this word alone")
    parser.add_argument("files", nargs="*", help="to be read")
    options = parser.parse_args(argv)
    files = options.files or sorted(map(str, Path(json.__file__).parent.glob("*.py")))
    with MapReduce(options.n) as mr:
        pairs = mr.map_reduce(files, "inverted_index:index", "inverted_index:collect")
    entries = [entry(word, places) for word, places in pairs if options.find in (None, word)]
    print("\n".join(entries))
    return 0 if entries else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
