"""Where files of jobs are, on each machine, and how they are got rid of.

A *store* is a directory among the temporary files, of one owner: a process that holds a lock on a file in it for as
long as it lives (`flock`, which the kernel releases however a process ends). It removes the store in the end; and since
a process that is killed cannot, everybody who makes a store first removes those whose lock nobody holds.

Its name is random, so who finds a file by its path has found that file, and is on the machine that has it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rmpi import places
from rmpi.errors import UsageError

if TYPE_CHECKING:
    from rmpi.places.handles import Node

_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Storage:
    """The stores of all machines, as tasks are told of them.

    Attributes:
        directory: The store, if there is one machine; else "".
        shelves: Of each node the name of its shelf, and the store of that.
    """

    directory: str
    shelves: tuple[tuple[Node, str, str], ...] = ()

    def here(self) -> tuple[str, str]:
        """The shelf of this machine, "" if there is none, and its store.

        Raises:
            UsageError: This is a machine that has none.
        """
        if not self.shelves:
            return "", self.directory
        node = places.here()
        for known, shelf, directory in self.shelves:
            if known == node:
                return shelf, directory
        raise UsageError(f"this worker is on {node.label}, where there is no store for the files of jobs")


class Store:
    """A store whose owner is this process.

    Args:
        parent: Where it shall be; None: where temporary files are (``TMPDIR``).
        name: Of the store; one of that name whose owner has died is taken over. "": a new one.
    """

    def __init__(self, parent: str | None = None, name: str = "") -> None:
        ours = Path(parent or tempfile.gettempdir()) / f"rmpi-mapreduce-{os.getuid()}"
        lock = None
        while lock is None:
            ours.mkdir(mode=0o700, exist_ok=True)
            _check_owner(ours)
            remove_abandoned(ours, but=name)
            self.path = ours / (name or uuid.uuid4().hex)
            lock = _locked(self.path)
        self._lock = lock

    def job(self, name: str) -> Path:
        """Make the directory of a job."""
        path = self.path / name
        path.mkdir()
        return path

    def end_job(self, name: str) -> None:
        """Remove it. Tasks that still run fail when they make a file there."""
        ended = self.path / f"{name}-ended"
        try:
            (self.path / name).rename(ended)  # else one could appear while it is being removed
        except FileNotFoundError:
            return
        shutil.rmtree(ended, ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        self._remove()
        self._lock.close()
        try:
            self.path.parent.rmdir()
        except OSError:
            pass  # of others; or it is gone already

    def _remove(self) -> None:
        for path in self.path.glob("*"):
            if path.name != _LOCK:
                self.end_job(path.name)
        shutil.rmtree(self.path, ignore_errors=True)


def _check_owner(path: Path) -> None:
    """Raise `UsageError` if others could put something there, which we would open as ours."""
    status = path.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or not path.is_dir() or path.is_symlink():
        raise UsageError(f"{path} must be a directory of yours that nobody else can use; remove it, or set TMPDIR")


def _locked(path: Path) -> IO[bytes] | None:
    """Make a store; its lock, held. None if somebody was faster, who has taken it for abandoned."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        lock = (path / _LOCK).open("ab")
    except FileNotFoundError:
        return None
    if _is_held_by_us(lock) and (path / _LOCK).exists():
        return lock
    lock.close()
    return None


def _is_held_by_us(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_abandoned(parent: Path, but: str = "") -> None:
    """Remove the stores whose owners are dead, except for one."""
    for path in parent.iterdir():
        if path.name != but:
            _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    try:
        lock = (path / _LOCK).open("rb")
    except OSError:  # somebody was ended while making or removing it; or does so now, and will see
        shutil.rmtree(path, ignore_errors=True)
        return
    with lock:
        if _is_held_by_us(lock):
            shutil.rmtree(path, ignore_errors=True)
