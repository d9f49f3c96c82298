"""What ``rmpi-run --info`` shows: versions, this machine, and the links that can be made here."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from rmpi import __version__
from rmpi.transport.media import why_no_shm

PACKAGES = ("numpy", "msgpack", "psutil", "paramiko")

GIB = 1 << 30


def info_text() -> str:
    """Some lines, each beginning with what it is about."""
    why = why_no_shm()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    return "\n".join(
        [
            f"rmpi:     {__version__}",
            f"Python:   {platform.python_version()}, {sys.executable}",
            f"packages: {', '.join(f'{name} {_version(name)}' for name in PACKAGES)}",
            f"machine:  {platform.node()}, {_cores()}, {memory:.1f} GiB of memory",
            f"links:    memory, unix, tcp{', shm' if why is None else ''}",
            *([] if why is None else [f"no shm:   {why}"]),
        ]
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(missing)"


def _cores() -> str:
    ours, all_cores = len(os.sched_getaffinity(0)), os.cpu_count()
    cores = "1 core" if ours == 1 else f"{ours} cores"
    return cores if ours == all_cores else f"{cores} of {all_cores}"
