"""Map-reduce: a function of each input gives pairs, and another one reduces all values of each key.

    from rmpi.mapreduce import MapReduce, text_splits

    def count(split):
        return Counter(split.read().split())

    def add_up(word, counts):
        yield word, sum(counts)

    with MapReduce(4) as mr:
        for word, times in mr.map_reduce(text_splits(files), count, add_up):
            print(word, times)

Bottom up: `hashing` and `ordering` are what keys need, and `vocabulary` what keys need that come again; `groups`,
`columns` and `runs` collect pairs in memory and beyond; `chunks`, `storage`, `shelf` and `fetching` are how they get
from task to task; `tasks` is what workers do, `schedule` decides, `running` acts, and `jobs` is the face. The names
below are loaded when they are first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmpi.mapreduce.errors import MapReduceError as MapReduceError
    from rmpi.mapreduce.hashing import stable_hash as stable_hash
    from rmpi.mapreduce.jobs import MapReduce as MapReduce
    from rmpi.mapreduce.jobs import make_workers as make_workers
    from rmpi.mapreduce.jobs import map_reduce as map_reduce
    from rmpi.mapreduce.splits import TextSplit as TextSplit
    from rmpi.mapreduce.splits import text_splits as text_splits

_HOME_OF = {
    "MapReduce": "rmpi.mapreduce.jobs",
    "MapReduceError": "rmpi.mapreduce.errors",
    "TextSplit": "rmpi.mapreduce.splits",
    "make_workers": "rmpi.mapreduce.jobs",
    "map_reduce": "rmpi.mapreduce.jobs",
    "stable_hash": "rmpi.mapreduce.hashing",
    "text_splits": "rmpi.mapreduce.splits",
}

__all__ = [*_HOME_OF]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'rmpi.mapreduce' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
