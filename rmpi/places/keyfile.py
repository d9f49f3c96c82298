"""Key files: what a node that people start by hand shares with those who may join it; or a program that lets guests in.

A key file is one line of 64 hexadecimal digits. Whoever can read it may run programs where that runs, as its user.
So a file that others may read is refused, and one that is made here nobody else can.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rmpi.errors import LaunchError
from rmpi.wire.handshake import KEY_SIZE

LONGEST = 4096
"""Bytes that are read of a file; a key is shorter by far."""


def read_key(path: str | Path) -> bytes:
    """The key in a file, 32 bytes.

    Raises:
        LaunchError: Status 2: there is no such file, others may read or write it, or there is no key in it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer must not hold us up
    except FileNotFoundError:
        why = "is not there; the node's --new-key makes one, or places.write_new_key, and all who join need the same"
        raise _refused(path, why) from None
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from None
    try:
        _check_owner(path, os.fstat(fd))
        text = os.read(fd, LONGEST).strip()
    finally:
        os.close(fd)
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_SIZE:
        raise _refused(path, f"holds no key: that is one line of {2 * KEY_SIZE} hexadecimal digits")
    return key


def write_new_key(path: str | Path) -> bytes:
    """Make a file with a fresh key in it; the key.

    Raises:
        LaunchError: Status 2: there is a file of that name already, or none can be made.
    """
    key = secrets.token_bytes(KEY_SIZE)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise _refused(path, "is there already, and can be used as it is; without --new-key, it is") from None
    except OSError as error:
        raise _refused(path, f"cannot be made: {error.strerror}") from None
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(f"{key.hex()}\n")
    return key


@contextmanager
def key_for(path: str | Path, *, new: bool) -> Iterator[bytes]:
    """The key of a file, or a ``new`` one; if what it is for cannot be, that is removed, so that one may try again."""
    key = write_new_key(path) if new else read_key(path)
    try:
        yield key
    except LaunchError:
        if new:
            Path(path).unlink()
        raise


def _check_owner(path: str | Path, status: os.stat_result) -> None:
    """Of the open file, so that nobody can put another in its place meanwhile."""
    if not stat.S_ISREG(status.st_mode):
        raise _refused(path, "is no file")
    if status.st_uid not in (0, os.geteuid()):
        raise _refused(path, f"belongs to somebody else (user id {status.st_uid}), who could change it")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise _refused(path, f"can be used by others (mode {mode:03o}); say: chmod 600 {path}")


def _refused(path: str | Path, why: str) -> LaunchError:
    return LaunchError(f"the key file {path} {why}", status=2)
