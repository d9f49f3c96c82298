"""Starting a spawner: its interpreter, environment, control socket, and room for what it will hold.

A spawner needs longer to import NumPy than anything else takes until ranks run. So a launcher starts the one of
its own machine as soon as it knows the program and its environment, and imports the rest of itself meanwhile.
This module is therefore small, and imports little. Nothing runs in a spawner until its node says so; one that no
node takes over is put out again.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
from collections.abc import Mapping, Sequence

from rmpi.errors import LaunchError
from rmpi.places.processes import python_words

DESCRIPTORS = 8
"""Descriptors for each place: its pipes and control socket, and those on their way to the spawner."""

DESCRIPTORS_BESIDES = 64

THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
"""Variables that say how many threads a rank's linear algebra uses. Without them each rank would take every core."""


class Ignition:
    """A spawner that was started: its process, and our end of its control socket."""

    def __init__(
        self,
        python: str,
        environment: Mapping[str, str],
        directory: str,
        places: int,
        *,
        kind: str,
        target: str,
        fork: bool,
        preload: Sequence[str],
    ) -> None:
        """Start it.

        Args:
            environment: All of it, but for `thread_limits`, which are added.
            directory: Where it starts; what a relative PYTHONPATH is relative to.
            places: How many it is to start, at most.
            kind, target: The program.
            fork: Whether places may be forked from an interpreter that has imported what they need.
            preload: Modules that it imports besides.

        Raises:
            LaunchError: It cannot be started.
        """
        make_room(places)
        self.python = python
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = (kind, target if kind == "script" else "")
        try:
            self.process = subprocess.Popen(
                python_words(python, "spawner", theirs.fileno(), "fork" if fork else "exec", *program, *preload),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env={**environment, **thread_limits(environment, places)},
                cwd=directory,
                start_new_session=True,
            )
        except OSError as error:
            self.control.close()
            raise LaunchError(f"cannot start {python}: {error.strerror}") from None
        finally:
            theirs.close()

    def put_out(self) -> None:
        """End it, unless it was taken over and has ended."""
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()
            self.control.close()
            assert self.process.stderr is not None
            self.process.stderr.close()


def make_room(places: int) -> None:
    """Have file descriptors for so many places, by raising our own limit if that is what it takes.

    Raises:
        LaunchError: The system does not allow as many.
    """
    wanted = DESCRIPTORS * places + DESCRIPTORS_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise LaunchError(f"{places} ranks here need {wanted} file descriptors, and {hard} is the limit (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def thread_limits(environment: Mapping[str, str], ranks: int) -> dict[str, str]:
    """The variable that shares this machine's cores among the threads of so many ranks, unless one is set already.

    OpenMP, OpenBLAS, MKL and BLIS all read this one. A rank alone may use what it would without us.
    """
    if ranks <= 1 or any(name in environment for name in THREAD_COUNTS):
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // ranks))}
