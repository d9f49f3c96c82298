"""What all tests share: random examples that are the same on every run, and the machines in miniature."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from cluster import cluster

__all__ = ["cluster"]

settings.register_profile("rmpi", derandomize=True, deadline=None)
settings.load_profile("rmpi")


def pytest_collection_finish() -> None:
    """Out of the collector's sight with what thousands of tests are made of: many a test collects all that is left."""
    gc.collect()
    gc.freeze()
