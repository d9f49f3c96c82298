"""The test kit: ranks as threads or forks, a simulator for collectives, a conformance suite for links.

The names below are loaded when they are first used, because pytest imports this package for its plugin, and most test
sessions have no use for NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmpi.testing.forks import fork_ranks as fork_ranks
    from rmpi.testing.ranks import run_ranks as run_ranks

_HOME_OF = {"fork_ranks": "rmpi.testing.forks", "run_ranks": "rmpi.testing.ranks"}

__all__ = [*_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'rmpi.testing' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
