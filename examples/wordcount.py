"""Count the words of many files, or of a large one, with map and reduce.

    python examples/wordcount.py
    python examples/wordcount.py -n 4 README.md docs/*.md
    python examples/wordcount.py --hosts node1:4,node2:4 /data/large.txt

Files are cut into pieces at line ends. A worker counts the words of a piece, each word's numbers meet in one place,
where they are added up, and the result comes sorted. Without files the sources of Python's own library are read.
Printed are all words in order with how often they occur, and in the end how many there are together:

    …
    zone - 19
    zoneinfo - 6
    534700

Words are what `\\w+` finds in the text in lower case. Bytes that are not UTF-8 count as spaces.
"""

from __future__ import annotations

import argparse
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rmpi.mapreduce import MapReduce, TextSplit, text_splits


def count(split: TextSplit) -> Counter[str]:
    """How often each word is in a piece of text."""
    return Counter(re.findall(r"\w+", split.read().lower()))


def add_up(word: str, counts: list[int]) -> Iterator[tuple[str, int]]:
    yield word, sum(counts)


def show(pairs: list[tuple[str, int]]) -> int:
    """Print the result; how many words there are together."""
    total = sum(times for _, times in pairs)
    lines = [f"{word} - {times}" for word, times in pairs]
    sys.stdout.write("\n".join([*lines, str(total), ""]))
    return total


def sources() -> list[Path]:
    """Of Python's library."""
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", type=int, metavar="WORKERS", help="on this machine; 0: all in this process")
    parser.add_argument("--hosts", help="other machines, as for rmpi-run -H: host1:4,host2:4")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args(argv)
    splits = text_splits(options.files or sources(), errors="replace")
    with MapReduce(options.n, hosts=options.hosts) as mr:
        mr.map_reduce(splits, "wordcount:count", "wordcount:add_up", outputer=show)


if __name__ == "__main__":
    main(sys.argv[1:])
