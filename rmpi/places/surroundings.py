"""What every way to start a job does alike: hosts from a file, names of this machine, variables that travel, ssh.

It imports little, because a launcher needs it before it starts anything, and every start counts.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rmpi.errors import LaunchError
from rmpi.places.hosts import HostSpec, decode_hostfile, parse_hostfile

if TYPE_CHECKING:
    from rmpi.places.boot import Booter

PASSED_ON = (
    "RMPI_*",
    "PYTHON*",
    "OMP_*",
    "MKL_*",
    "OPENBLAS_*",
    "VIRTUAL_ENV",
    "CONDA_*",
    "LANG",
    "LC_*",
    "TERM",
)
"""Variables that ranks on other hosts get from the environment here; those here inherit all of it."""

OURS = ("RMPI_FD", "RMPI_RANK", "RMPI_SIZE", "RMPI_TERMINAL")
"""Variables that a rank has and must not hand on to a job it starts itself."""


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that ranks on other hosts get."""
    return {
        name: value
        for name, value in environ.items()
        if name not in OURS and any(fnmatchcase(name, pattern) for pattern in PASSED_ON)
    }


def own_names() -> list[str]:
    """The names by which this machine knows itself."""
    name = socket.gethostname()
    return [name, name.partition(".")[0]]


def interpreters(asked: str | None) -> tuple[str, ...]:
    """Interpreters to look for on other hosts: the one asked for, or ours, or one of the same version."""
    if asked is not None:
        return (asked,)
    major, minor = sys.version_info[:2]
    return (sys.executable, f"python{major}.{minor}", "python3")


def read_hostfile(name: str) -> list[HostSpec]:
    """The hosts of a file; ``-`` is standard input.

    Raises:
        LaunchError: Status 2: it cannot be read or understood.
    """
    source = "<stdin>" if name == "-" else name
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        hint = " (a hostfile lists one host per line, like: node1 slots=4)"
        raise LaunchError(f"cannot read hostfile {name}: {error.strerror}{hint}", status=2) from None
    return parse_hostfile(decode_hostfile(data, source), source)


def booter(
    rsh_agent: str | None = None,
    host_key_policy: Literal["strict", "accept-new", "off"] = "strict",
    ssh_config: str | None = None,
) -> Callable[[], Booter]:
    """Makes what opens sessions to other hosts; paramiko is imported only then."""

    def make() -> Booter:
        if rsh_agent is not None:
            from rmpi.places.agent import AgentBooter

            return AgentBooter(rsh_agent)
        from rmpi.places.ssh import SshBooter

        return SshBooter(host_key_policy, Path(ssh_config).expanduser() if ssh_config else None)

    return make
