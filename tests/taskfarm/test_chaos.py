"""Workers that die and stop at random while tasks are done: every result is right, and nothing is left."""

import pytest
from farm_soak import soak

from rmpi.taskfarm import crew


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_ten_thousand_tasks_among_workers_that_die_and_stop(monkeypatch):
    monkeypatch.setattr(crew, "PATIENCE", 0.1)
    monkeypatch.setattr(crew, "LOOK", 0.05)
    monkeypatch.setattr(crew, "SHORT", 0.0)  # or there would be longer and longer pauses before one is replaced
    blows = soak(1, tasks=10_000, workers=3, seconds=2.0)
    assert blows > 5
