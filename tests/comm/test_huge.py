"""Messages of 2 GiB and more, where 32 bits end. Slow and large: ``RMPI_HUGE=1 pytest tests/comm/test_huge.py``."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

GIB = 1 << 30

pytestmark = [
    pytest.mark.skipif(os.environ.get("RMPI_HUGE") != "1", reason="takes minutes and 13 GiB of memory: RMPI_HUGE=1"),
    pytest.mark.timeout(600),
]

MESSAGE = """
import sys
import numpy as np
import rmpi

comm, size = rmpi.init(), int(sys.argv[1])
marks = {0: 1, size // 3: 2, (1 << 31) - 1: 3, size - 1: 4}
marks = {at: mark for at, mark in marks.items() if at < size}
if comm.rank == 0:
    value = np.zeros(size, np.uint8)
    for at, mark in marks.items():
        value[at] = mark
    comm.send(value if sys.argv[2] == "array" else [value], 1, tag=(1 << 63) - 1)
else:
    status = rmpi.Status()
    value = comm.recv(status=status)
    value = value if sys.argv[2] == "array" else value[0]
    assert status.tag == (1 << 63) - 1 and status.nbytes >= size == value.nbytes
    assert all(value[at] == mark for at, mark in marks.items())
    assert np.count_nonzero(value) == len(marks)
    print("ok")
"""


def run(code: str, *arguments: object, shared: bool = True) -> str:
    words = [sys.executable, "-m", "launcher", "-q", "-x", f"RMPI_SHM={int(shared)}", "-n", "2", "-c", code]
    done = subprocess.run([*words, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def need(bytes_: int) -> None:
    if psutil.virtual_memory().available < bytes_:
        pytest.skip(f"needs {bytes_ / GIB:.0f} GiB of memory")


@pytest.mark.parametrize("shared", [True, False], ids=["shm", "unix"])
@pytest.mark.parametrize("kind", ["array", "object"])
@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 2**31 + 1])
def test_a_message_around_two_gib(size: int, kind: str, shared: bool) -> None:
    need(6 * GIB)
    assert run(MESSAGE, size, kind, shared=shared) == "ok\n"


def test_a_message_of_five_gib() -> None:
    need(13 * GIB)
    assert run(MESSAGE, 5 * GIB, "array") == "ok\n"


def test_a_collective_of_more_than_two_gib() -> None:
    need(10 * GIB)
    code = """
import numpy as np, rmpi
comm = rmpi.init()
value = np.full((1 << 31) + 8, comm.rank + 1, np.uint8)
comm.allreduce(value, out=value)
assert (value[:: 1 << 20] == 3).all() and value[-1] == 3
print("ok")
"""
    assert run(code) == "ok\nok\n"
