"""Counting words of one large file in five ways: what `mapreduce.py` runs, each in a process of its own.

    python benchmarks/mapreduce_work.py loop|alone|rmpi|pool|dask FILE PIECE_BYTES WORKERS

All call `count` for the same pieces, and end with a list of all words and their numbers, sorted. Printed are the
seconds that took, without the start of workers, which is printed beside, and a digest of the list. Nothing of rmpi is
imported but by ``alone`` and ``rmpi``.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Piece = tuple[str, int, int]
"""Of a file: from behind the first newline at or after one byte to behind the first at or after another."""

Pairs = list[tuple[str, int]]
Done = tuple[Pairs, float, float]
"""The result, and the seconds for starting and for work."""

FIND = re.compile(r"\w+").findall


def pieces(path: str, size: int) -> list[Piece]:
    length = Path(path).stat().st_size
    return [(path, start, min(start + size, length)) for start in range(0, length, size)]


def read(piece: Piece) -> str:
    path, *cuts = piece
    edges = []
    with Path(path).open("rb") as file:
        for cut in cuts:
            file.seek(cut)
            if cut:
                file.readline()
            edges.append(file.tell())
        file.seek(edges[0])
        return file.read(edges[1] - edges[0]).decode()


def count(piece: Piece) -> Counter[str]:
    return Counter(FIND(read(piece)))


def add_up(word: str, counts: list[int]) -> Iterator[tuple[str, int]]:
    yield word, sum(counts)


def merged(counters: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def loop(work: list[Piece], _workers: int) -> Done:
    """No library at all."""
    begun = time.perf_counter()
    pairs = sorted(merged(map(count, work)).items())
    return pairs, 0.0, time.perf_counter() - begun


def alone(work: list[Piece], _workers: int) -> Done:
    return rmpi(work, 0)


def rmpi(work: list[Piece], workers: int) -> Done:
    module = importlib.import_module("rmpi.mapreduce")
    begun = time.perf_counter()
    with module.MapReduce(workers) as mr:
        started = time.perf_counter()
        # By name: what this script defines would travel by value otherwise.
        pairs = mr.map_reduce(work, "mapreduce_work:count", "mapreduce_work:add_up")
        return pairs, started - begun, time.perf_counter() - started


def pool(work: list[Piece], workers: int) -> Done:
    begun = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(workers) as those:
        started = time.perf_counter()
        pairs = sorted(merged(those.imap_unordered(count, work)).items())
        return pairs, started - begun, time.perf_counter() - started


def dask(work: list[Piece], workers: int) -> Done:
    """Counters are merged as a tree, by the workers; they are started by `compute`."""
    bag = importlib.import_module("dask.bag").from_sequence(work, npartitions=len(work)).map(count)
    context = multiprocessing.get_context("fork")
    begun = time.perf_counter()
    with importlib.import_module("concurrent.futures").ProcessPoolExecutor(workers, context) as those:
        list(those.map(abs, range(workers)))
        started = time.perf_counter()
        total = bag.fold(_added, _added).compute(scheduler="processes", pool=those)
        pairs = sorted(total.items())
        return pairs, started - begun, time.perf_counter() - started


def _added(one: Counter[str], other: Counter[str]) -> Counter[str]:
    one.update(other)
    return one


WAYS: dict[str, Callable[[list[Piece], int], Done]] = {
    "loop": loop,
    "alone": alone,
    "rmpi": rmpi,
    "pool": pool,
    "dask": dask,
}


def main() -> None:
    way, path, size, workers = sys.argv[1:]
    pairs, starting, working = WAYS[way](pieces(path, int(size)), int(workers))
    digest = hashlib.sha256(repr(pairs).encode()).hexdigest()
    report: dict[str, Any] = {"start": starting, "seconds": working, "words": len(pairs), "digest": digest}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
