"""What tests of map-reduce share: functions to map and reduce with, workers, and a farm of threads."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from rmpi.mapreduce import MapReduce


class Threads(ThreadPoolExecutor):
    """A farm whose workers are threads of this process.

    Attributes:
        before: Called with each function and its arguments before it is; what it raises, the task does.
        after: Called with each function and its result; what it returns is the result.
    """

    def __init__(self, count: int = 2) -> None:
        super().__init__(count)
        self.workers = range(count)
        self.greeted = count
        self.before: Callable[..., object] = lambda *_: None
        self.after: Callable[[Any, Any], Any] = lambda _function, result: result
        self.submitted = 0

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.submitted += 1
        return super().submit(self._call, function, args)

    def _call(self, function: Any, args: Any) -> Any:
        self.before(function, *args)
        return self.after(function, function(*args))


@pytest.fixture
def threads() -> Iterator[Threads]:
    with Threads() as farm:
        yield farm


@pytest.fixture
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Files of jobs are in a directory of the test, and gone in the end."""
    directory = tmp_path / "files"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    assert [*directory.iterdir()] == []


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MapReduce]:
    directory = tmp_path_factory.mktemp("two")
    with MapReduce(2, directory=directory) as mr:
        yield mr
        assert [*directory.rglob("map-*"), *directory.rglob("reduce-*")] == []
    assert [*directory.iterdir()] == []


@pytest.fixture(params=["here", "workers"])
def mr(request: pytest.FixtureRequest) -> MapReduce:
    """In this process, and with two workers: nobody shall see a difference."""
    if request.param == "here":
        return MapReduce(0)
    workers: MapReduce = request.getfixturevalue("two_workers")
    return workers
