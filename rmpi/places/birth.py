"""From a fork of the spawner to a place that runs its program.

Two ways lead here, and what the program finds is the same:

    fork   the process goes on in the interpreter it was born with, which has imported NumPy and rmpi
    exec   it first becomes a fresh interpreter, told in a memory file what it is to be: with ``--no-fork``, where the
           spawner's imports have left threads behind, and for a place whose import-time variables are its own

A fork shares memory with the spawner, and a few things that no two ranks may have in common: the state of
NumPy's old global generator, and multiprocessing's key. Python's `random` sees to itself (`os.register_at_fork`). What
else a preloaded module made at import, such as a generator of its own or a temporary file, is shared, and the functions
it registered for the interpreter's end run in every rank, and at last in the spawner. So is the seed of string
hashes: the order of a set of strings is the same in all forked ranks of a host. A module of the same name beside the
script no longer hides one that the spawner has imported.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys

from rmpi.errors import WireError
from rmpi.places.messages import NO_RANK, Fork, pack, unpack
from rmpi.places.place import reporter_at
from rmpi.places.processes import name_process, python_words
from rmpi.places.program import run_program
from rmpi.places.reporter import Reporter

HELD = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Signals that wait, in a place that has just been forked, until it is one: they end it, but as the place."""

IMPORT_TIME = ("OMP_", "OPENBLAS_", "MKL_", "BLIS_", "GOTO_", "NUMEXPR_", "PYTHON", "LD_")
"""Beginnings of the variables that act when an interpreter starts or a library is loaded."""


def needs_exec(fork: Fork) -> bool:
    """Whether variables of this place would come too late in a fork. A command reads its own."""
    return fork.kind != "command" and any(
        name.startswith(IMPORT_TIME) and os.environ.get(name) != value for name, value in fork.environment.items()
    )


def start_fresh(fork: Fork, fds: list[int]) -> None:
    """Become an interpreter that calls `main`, with streams and control socket in place."""
    plan = os.memfd_create("rmpi-place")
    with open(plan, "wb", closefd=False) as file:
        file.write(pack(fork))
    place_streams(fds)
    for fd in (fds[3], plan):
        os.set_inheritable(fd, True)
    words = python_words(sys.executable, "birth", fds[3], plan)
    os.execve(sys.executable, words, {**os.environ, **fork.environment})


def main(control: str, plan: str) -> None:
    """A place's process, after an exec."""
    with open(int(plan), "rb") as file:  # noqa: PTH123 (a number is no Path)
        file.seek(0)
        fork = unpack(file.read())
    if not isinstance(fork, Fork):
        raise WireError(f"a place cannot be made of {type(fork).__name__}")
    become_place(fork, [0, 1, 2, int(control)])


def become_place(fork: Fork, fds: list[int]) -> None:
    """In its process: its own surroundings, and then the program, in the outermost frame."""
    os.setsid()
    reporter = _settle(fork, fds)
    os.environ.update(fork.environment)
    try:
        os.chdir(fork.directory)
    except OSError as error:
        sys.stderr.write(f"rmpi: cannot enter {fork.directory}: {error.strerror}\n")
        sys.exit(125)
    name_process(*_names(fork))
    faulthandler.enable()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        with reporter.running():
            run_program(fork.kind, fork.target, fork.argv)
    except SystemExit as ending:
        reporter.crashed = bool(ending.code)
        if isinstance(ending.code, int) and ending.code and not ending.code & 0xFF:
            ending.code = 1  # the kernel would cut it to 0, which is success
        raise


def _names(fork: Fork) -> tuple[str, str]:
    """The short and the long name that ``ps`` shows."""
    program = fork.argv[0] if fork.kind == "code" else fork.target.rpartition("/")[2]
    words = " ".join([*fork.argv[:1], *([fork.target] if fork.kind == "module" else []), *fork.argv[1:]])
    if fork.rank == NO_RANK:
        return program, f"rmpi place: {words}"
    return f"{fork.rank} {program}", f"rmpi rank {fork.rank}: {words}"


def _settle(fork: Fork, fds: list[int]) -> Reporter:
    """Standard streams in their place, and the control socket where the program finds it."""
    place_streams(fds)
    control = fds[3]
    os.set_inheritable(control, fork.kind == "command")
    os.environ["RMPI_FD"] = f"{control}:{os.fstat(control).st_ino}"
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return reporter_at(control)


def place_streams(fds: list[int]) -> None:
    """Move the first three descriptors to 0, 1 and 2, unless an exec has found them there."""
    for target, fd in enumerate(fds[:3]):
        if fd != target:
            os.dup2(fd, target, inheritable=True)
            os.close(fd)
