"""What all tests share: random examples that are the same on every run, and the machines in miniature."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from cluster import cluster

__all__ = ["cluster"]

settings.register_profile("rmpi", derandomize=True, deadline=None)
settings.load_profile("rmpi")
