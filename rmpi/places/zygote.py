"""The spawner as zygote: what it imports, once, for all the ranks that are forked from it.

Starting ``python -c 'import numpy'`` costs 0.1 s of CPU, a fork of a process that has imported it a few
milliseconds, and its pages are shared. So a spawner of Python programs imports NumPy, the rank's side of rmpi and
the modules of ``--preload`` before it forks. The job's environment, thread counts included, is its own from
its exec on, because libraries read it when they are loaded.

**Threads** do not survive a fork, but the locks they held do. OpenBLAS, told to use two threads or more, starts them
when NumPy is imported. It also ends them before each fork (pthread_atfork(3)), and starts them anew in the
process that multiplies next. The other way, importing with one thread and raising the number in each rank, would
need a call into a library whose name and symbols differ from wheel to wheel. So the question is not which
threads run after an import, but which are left by a fork: one is tried, and whatever has not ended its threads by
then does not know about forks. Then ranks start by exec; the spawner becomes a fresh interpreter first, rid of them.

**Memory.** `gc.freeze` moves what the imports made out of the collector's sight, or its first pass in each rank
would write to, and so copy, every page.

NumPy is imported as every program would, but for the directory of the script: a ``numpy.py`` there is not found.
Preloaded modules are imported as by the first line of the script. A NumPy that cannot be imported is for the
ranks to complain about: they start by exec, each with an interpreter of its own that has not tried yet.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from rmpi.errors import LaunchError
from rmpi.places.program import import_root

AHEAD = ("numpy", "rmpi.comm.bootstrap", "rmpi.transport.media")
"""What a rank needs until its first collective is done, with what these import; and shared memory, where it exists.

Names only: nothing here calls what lies above this layer."""


def import_ahead(kind: str, target: str, preload: Sequence[str]) -> str | None:
    """Import what Python programs share. Why ranks must not be forked from this process afterwards; None: they may.

    Args:
        preload: Modules to import as the program would, if it began with that.

    Raises:
        LaunchError: One of ``preload`` cannot be imported.
    """
    for name in AHEAD:
        try:
            import_module(name)
        except Exception as error:
            return f"importing {name} failed: {type(error).__name__}: {error}"
    import_media()
    if threads := _lasting_threads():
        return f"importing numpy started {_counted(threads)}"
    with _importing_from(import_root(kind, target, str(Path.cwd()))):
        for name in preload:
            _preload(name)
            if threads := _lasting_threads():
                return f"importing {name} (--preload) started {_counted(threads)}"
    gc.collect()
    gc.freeze()
    return None


def import_media() -> None:
    """Import what ranks of this machine will talk over."""
    media = import_module("rmpi.transport.media")
    if media.why_no_shm() is None:
        import_module("rmpi.transport.shm")


def renew_secrets() -> None:
    """In a forked rank: what no two ranks may have in common."""
    if "numpy.random" in sys.modules:
        import numpy as np

        np.random.seed()
    if "multiprocessing.process" in sys.modules:
        import multiprocessing

        multiprocessing.current_process().authkey = os.urandom(32)


@contextmanager
def _importing_from(root: str) -> Iterator[None]:
    """With the place to import from that the program will have, unless the interpreter was told not to (-P)."""
    if sys.flags.safe_path:
        yield
        return
    sys.path.insert(0, root)
    try:
        yield
    finally:
        if root in sys.path:  # it may be that a module has changed it
            sys.path.remove(root)


def _preload(name: str) -> None:
    try:
        import_module(name)
    except (Exception, SystemExit) as error:
        raise LaunchError(f"--preload {name}: cannot be imported: {type(error).__name__}: {error}") from None


def _lasting_threads() -> int:
    """Threads besides this one that are there after a fork; what knows about forks has ended its own by then."""
    if not _threads():
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads
        pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return _threads()


def _threads() -> int:
    return len(os.listdir("/proc/self/task")) - 1  # noqa: PTH208


def _counted(threads: int) -> str:
    return "a thread" if threads == 1 else f"{threads} threads"
