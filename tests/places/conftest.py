"""What tests of places share: a count of file descriptors, and a clock."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


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
