"""Running a program as a rank, in a process that was forked for it.

What ``python script.py`` does, step by step, in an interpreter that is already up: a fresh ``__main__``,
argv, ``sys.path[0]``, and then the code. Uncaught exceptions leave through the interpreter's ordinary end, so
that threads are joined and exit functions run; only the traceback goes to the router instead of stderr, without
the frames of this module, so that the launcher can show the root cause last and once.

A ``command`` is any other program: this process becomes it.
"""

from __future__ import annotations

import builtins
import errno
import importlib.machinery
import io
import os
import runpy
import signal
import sys
import types
from pathlib import Path

NOT_FOUND = 127
NOT_EXECUTABLE = 126


def import_root(kind: str, target: str, directory: str) -> str:
    """What stands first in ``sys.path`` of a program that starts in ``directory``: imports are from there."""
    if kind != "script":
        return directory
    return str(Path(target).resolve().parent) if _is_source(target) else target


def run_program(kind: str, target: str, argv: tuple[str, ...]) -> None:
    """Run it. Returns, or raises what the program raises, as the program would at its top level.

    Args:
        kind: ``"script"`` for what ``python target`` runs, ``"module"`` for ``python -m target``, ``"code"``
            for ``python -c target``, ``"command"`` for any other program.
        argv: All of it; the first word is how the user named the program.
    """
    if kind == "command":
        _become(target, argv)
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    if "__mp_main__" in sys.modules:  # the name that multiprocessing gave to our own when it was imported
        sys.modules["__mp_main__"] = main
    sys.argv = list(argv)
    if kind == "code":
        _put_first("")
        exec(compile(target, "<string>", "exec", dont_inherit=True), main.__dict__)
    elif kind == "module":
        _put_first(str(Path.cwd()))
        runpy._run_module_as_main(target)  # type: ignore[attr-defined]  # what the interpreter calls for -m
    elif _is_source(target):
        _run_script(target, main)
    else:
        _put_first(target)
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]


def _is_source(target: str) -> bool:
    """A script by its name; else it is a directory or archive with a ``__main__.py``."""
    return Path(target).suffix in (".py", ".pyw")


def _run_script(path: str, main: types.ModuleType) -> None:
    with io.open_code(str(Path(path).absolute())) as file:
        source = file.read()
    _put_first(str(Path(path).resolve().parent))
    main.__file__ = path
    main.__dict__["__cached__"] = None
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)


def _put_first(entry: str) -> None:
    """Make ``entry`` the first place to import from, as the interpreter does unless told not to (-P)."""
    if not sys.flags.safe_path:
        sys.path.insert(0, entry)


def _become(target: str, argv: tuple[str, ...]) -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a program would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(target, argv)
    except OSError as error:
        sys.stderr.write(f"rmpi: cannot run {target}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE)
