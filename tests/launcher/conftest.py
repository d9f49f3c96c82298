"""The fixture of the launcher's end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Jobs


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    """Runs jobs in a directory of the test's own; when the test is over, nothing of them may be left."""
    made = Jobs(tmp_path)
    yield made
    made.close()
