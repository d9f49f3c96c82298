"""What tests of places share: a count of file descriptors, a clock, threads, and a system without a head."""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from realm import Realm, member_here

from rmpi.places import membership


@pytest.fixture
def descriptors() -> Callable[[], int]:
    """How many descriptors this process has."""
    return lambda: len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def no_leak(descriptors: Callable[[], int]) -> Iterator[None]:
    """When the test and the fixtures made after this one are done, there are as many descriptors as before."""
    before = descriptors()
    yield
    assert descriptors() == before


class Clock:
    """Seconds, as loops and their timers see them. It stands still until it is set."""

    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("loop", "nodelink"):
        monkeypatch.setattr(f"rmpi.places.{module}.now", lambda: clock.now)
    return clock


class Run:
    """A function that runs in a thread."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(function, args), daemon=True)
        self.thread.start()

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            self.result = function(*args)
        except BaseException as error:
            self.error = error

    def join(self) -> Any:
        """What the function returns, or raises."""
        self.thread.join(10)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def beside() -> Iterator[Callable[..., Run]]:
    """``beside(function, *args)``: a `Run`."""
    runs: list[Run] = []

    def run(function: Callable[..., Any], *args: Any) -> Run:
        runs.append(Run(function, *args))
        return runs[-1]

    yield run
    for each in runs:
        each.thread.join(10)


@pytest.fixture
def realm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Realm]:
    monkeypatch.setattr(membership, "member_of", member_here)
    realm = Realm()
    yield realm
    realm.close()
