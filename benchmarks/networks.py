"""Two machines for the section tcp: those of ``tests/cluster.py``, where nothing is shared but the files.

Each has its own network, process, IPC and mount namespace and its own /dev/shm, so that what crosses between them
can cross by tcp alone. They need root, and the programs that the tests need.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from peers import ROOT

INTERFACE = "eth0"
"""By which each machine is reached."""

Run = Callable[[Sequence[str], float], "subprocess.CompletedProcess[str]"]
"""Runs a command for at most so many seconds."""


def why_no_machines() -> str | None:
    """Why there can be none here, in a few words; None if there can."""
    try:
        reason: str | None = _cluster().why_no_cluster()
    except ImportError as missing:
        return f"tests/cluster.py needs {missing.name}"
    return reason


@contextmanager
def machines() -> Iterator[Run]:
    """Within the block the machines n0 and n1 are up, and what is run is run on n0, which may ssh to both."""
    with _cluster().Cluster(2) as cluster:

        def run(words: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
            done: subprocess.CompletedProcess[str] = cluster.run(
                cluster[0], list(words), timeout=timeout, stdin=subprocess.DEVNULL
            )
            return done

        yield run


def _cluster() -> Any:
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        return import_module("cluster")
    finally:
        sys.path.remove(str(ROOT / "tests"))
