"""What each rank runs: the words of the command line, looked up on this machine.

The module knows how a word names a program: as ``python`` takes it (a script, a directory or zip file with a
``__main__.py``, ``-m``, ``-c``), else as a shell takes it (an executable, by path or on PATH). It looks
at names, modes and the first bytes of a zip file. It refuses to know what the program does: no script is
compiled and no module imported, for either belongs to the ranks' interpreter, which may be another one.

The invariant: a `Program` can be started here as far as the file system can tell. Whether another host has
the same file is asked there, by those who start ranks there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rmpi.errors import LaunchError

SCRIPT_SUFFIXES = (".py", ".pyw")
ZIP_SUFFIXES = (".pyz", ".pyzw", ".zip")


@dataclass(frozen=True, slots=True)
class Program:
    """What each rank runs.

    Attributes:
        kind: ``"script"`` for what ``python TARGET`` runs, ``"module"`` for ``python -m TARGET``, ``"code"``
            for ``python -c TARGET``, and ``"command"`` for an executable that is no concern of Python's.
        target: The absolute path of a script or command; the dotted name of a module; the code itself.
        typed: How the command line named it; ``"-m"`` for a module and ``"-c"`` for code, as in ``sys.argv``.
        args: What follows it.
    """

    kind: Literal["script", "module", "code", "command"]
    target: str
    typed: str
    args: tuple[str, ...]

    @property
    def argv(self) -> list[str]:
        """What the rank finds in ``sys.argv``, or a command in its ``argv``."""
        return [self.typed, *self.args]

    @property
    def is_python(self) -> bool:
        """Whether the ranks' interpreter runs it; a command starts by itself."""
        return self.kind != "command"


def find_program(
    words: Sequence[str], *, module: str | None = None, code: str | None = None, cwd: str, path: str
) -> Program:
    """Look up what the command line names.

    A word with a slash is a path. A bare word is looked for in ``cwd`` first if it ends in ``.py`` or
    ``.pyw``, as ``python`` does, else on ``path`` first, as a shell does; then in the other one.

    Args:
        words: The program and its arguments; with ``module`` or ``code``, the arguments alone.
        cwd: The directory, absolute, from which relative paths are meant.
        path: The value of ``PATH``.

    Raises:
        LaunchError: With status 127 for a program that does not exist, 126 for one that exists and cannot be
            run, 2 for a word after ``-m`` that is not a module's name.
    """
    if code is not None:
        return Program("code", code, "-c", tuple(words))
    if module is not None:
        return Program("module", _module_name(module), "-m", tuple(words))
    word, args = words[0], tuple(words[1:])
    target = _locate(word, cwd, path)
    if target is None:
        raise _not_found(word, cwd)
    return Program(_kind(word, target), str(target), word, args)


def _module_name(name: str) -> str:
    """Names that no module can have; whether there is one of a possible name, only the ranks can tell."""
    if "/" in name or not all(name.split(".")):
        raise LaunchError(f"-m {name}: not a module's name (for example: -m package.train)", status=2)
    if name.endswith(SCRIPT_SUFFIXES):
        without = name.rpartition(".")[0]
        raise LaunchError(f"-m {name}: a module is named without its suffix (write: -m {without})", status=2)
    return name


# --- Finding it ------------------------------------------------------------------------------------------


def _locate(word: str, cwd: str, path: str) -> Path | None:
    here = Path(cwd) / word  # and ".." stays in it, for behind a symbolic link it is not what it seems
    if "/" in word:
        return _if_there(word, here)
    if word.endswith(SCRIPT_SUFFIXES):
        return _if_there(word, here) or _on_path(word, cwd, path)
    return _on_path(word, cwd, path) or _if_there(word, here)


def _if_there(word: str, target: Path) -> Path | None:
    """Why not `Path.exists`: "permission denied" is another answer than "no such script"."""
    try:
        target.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _cannot_run(word, os.strerror(error.errno or 0).lower()) from error
    return target


def _on_path(word: str, cwd: str, path: str) -> Path | None:
    """Why not `shutil.which`: it looks from the process's own directory, and costs its import."""
    directories = path.split(":") if path else []
    candidates = (Path(cwd, directory, word) for directory in directories)  # "" means cwd, by tradition
    return next((each for each in candidates if each.is_file() and os.access(each, os.X_OK)), None)


# --- What it is ------------------------------------------------------------------------------------------


def _kind(word: str, target: Path) -> Literal["script", "command"]:
    if target.is_dir():
        return _directory(word, target)
    if not target.is_file():  # a pipe such as <(…), which only one rank could read, or a device
        raise _cannot_run(word, "it is not a regular file")
    if target.suffix in SCRIPT_SUFFIXES:
        return _script(word, target)
    if target.suffix in ZIP_SUFFIXES or _begins_as_zip(target):
        return _zip_file(word, target)
    if os.access(target, os.X_OK):
        return "command"
    raise _cannot_run(
        word,
        "it is not executable, and not named .py "
        f"(write: rmpi-run python {word}, if it is Python; else: chmod +x {word})",
    )


def _directory(word: str, target: Path) -> Literal["script"]:
    if (target / "__main__.py").is_file():
        return "script"
    scripts = [name for name in _names(target) if name.endswith(SCRIPT_SUFFIXES)]
    hint = f" (there is {', '.join(scripts[:3])}{', …' if len(scripts) > 3 else ''})" if scripts else ""
    raise _cannot_run(word, f"it is a directory without a __main__.py{hint}")


def _script(word: str, target: Path) -> Literal["script"]:
    if os.access(target, os.R_OK):
        return "script"
    raise _cannot_run(word, f"permission to read it is denied (chmod +r {word}, perhaps)")


def _zip_file(word: str, target: Path) -> Literal["script"]:
    from zipfile import BadZipFile, ZipFile  # late: few programs are zip files

    _script(word, target)
    try:
        with ZipFile(target) as archive:
            if "__main__.py" in archive.namelist():
                return "script"
    except (BadZipFile, OSError):
        pass
    raise _cannot_run(word, "it is not a zip file with a __main__.py")


def _begins_as_zip(target: Path) -> bool:
    """A zip file of any other name is one only if it begins so: a command may well *end* with one."""
    try:
        with target.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False  # executables need not be readable


# --- Complaints ------------------------------------------------------------------------------------------


def _not_found(word: str, cwd: str) -> LaunchError:
    target = Path(cwd) / word
    bare = "/" not in word and not word.endswith(SCRIPT_SUFFIXES)
    noun, looked = ("program", "on PATH and in") if bare else ("script", "in")
    hint = _did_you_mean(target.parent, target.name)
    return LaunchError(f"no such {noun}: {word} (looked {looked} {target.parent}{hint})", status=127)


def _did_you_mean(directory: Path, base: str) -> str:
    from difflib import get_close_matches  # late: only complaints need it

    nearest = get_close_matches(base, _names(directory), n=3, cutoff=0.7)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def _names(directory: Path) -> list[str]:
    """What a directory holds, sorted; nothing where it cannot be read, for this is only a hint."""
    try:
        return sorted(entry.name for entry in directory.iterdir())
    except OSError:
        return []


def _cannot_run(word: str, why: str) -> LaunchError:
    return LaunchError(f"cannot run {word}: {why}", status=126)
