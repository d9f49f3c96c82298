"""Linux' means against processes that outlive their job, and for naming them (prctl(2), proc(5))."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)

_STARTER = (
    "import sys; sys.path[:1] = [] if sys.path[:1] == [''] else sys.path[:1]; "
    "from rmpi.places.{} import main; main(*sys.argv[1:])"
)
"""A module in the directory where a process starts must not shadow ours."""

ROUNDS = 50
"""Looks at what is left before giving up; processes that fork while being killed need more than one."""


def python_words(python: str, module: str, *words: object) -> list[str]:
    """The command line that has an interpreter call ``main(*words)`` of a module of this package, words as text."""
    return [python, "-c", _STARTER.format(module), *map(str, words)]


def become_subreaper() -> None:
    """Orphaned descendants become our children instead of init's, so that they can be found and ended."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent ends; at once if that has happened already.

    The signal comes when the *thread* ends that forked us, so only single-threaded parents may be meant.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def outlive_parent() -> None:
    """Undo `die_with_parent`."""
    _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def reset_signals() -> None:
    """In a fork: handle signals as an interpreter does that has just started."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):  # those that the C library keeps for itself
                pass
    signal.signal(signal.SIGINT, signal.default_int_handler)


def name_process(name: str, title: str) -> None:
    """What ``ps`` and ``top`` show: ``name``, its first 15 bytes, for ``comm``, and ``title`` for the command line.

    The title is written over the words this process was started with; what finds no room there is left out.
    """
    _libc.prctl(_PR_SET_NAME, os.fsencode(name)[:15], 0, 0, 0)
    try:
        with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 (no pathlib before the program)
            fields = file.read().rpartition(b")")[2].split()
    except OSError:  # there is no /proc
        return
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, from the third field on
    if 0 < start < end:
        ctypes.memmove(start, os.fsencode(title)[: end - start - 1].ljust(end - start, b"\0"), end - start)


def kill_descendants(spare: frozenset[int] = frozenset()) -> list[int]:
    """SIGKILL everything below this process, daemonised grandchildren included, but not ``spare`` and below.

    Returns:
        The pids that were killed.
    """
    if not _has_children():
        return []
    import psutil  # late: 15 ms, and most jobs leave nothing

    killed: list[int] = []
    me = psutil.Process()
    for _ in range(ROUNDS):
        below = _below(me, spare)
        if not below:
            break
        for process in below:
            try:
                process.kill()
                killed.append(process.pid)
            except psutil.Error:  # it is gone, or runs as somebody else
                pass
        psutil.wait_procs(below, timeout=0.1)
    return killed


def kill_groups(leaders: Iterable[int]) -> None:
    """SIGKILL what is left of these process groups."""
    for leader in leaders:
        try:
            os.killpg(leader, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # nothing is, or it runs as somebody else
            pass


def _below(process: psutil.Process, spare: frozenset[int]) -> list[psutil.Process]:
    """Children, and theirs, but for those that are spared."""
    import psutil

    found: list[psutil.Process] = []
    for child in process.children():
        if child.pid not in spare:
            try:
                found += [child, *child.children(recursive=True)]
            except psutil.Error:  # it is gone
                pass
    return found


def _has_children() -> bool:
    """Without children there is nothing below: orphans of a subreaper's children are its children."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
