"""The communicator on real processes, where the kernel is between the ranks: what threads cannot show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run(ranks: int, code: str, *, timeout: float = 50.0) -> list[str]:
    """The lines that ranks print, sorted. The job must end well."""
    words = [sys.executable, "-m", "launcher", "-q", "-n", str(ranks), "-c", "import rmpi, numpy as np\n" + code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_collective_on_every_root(ranks: int) -> None:
    code = """
comm = rmpi.init()
r, n = comm.rank, comm.size
for root in range(n):
    assert comm.broadcast({"from": r} if r == root else None, root) == {"from": root}
    assert comm.reduce(str(r), root=root) == ("".join(map(str, range(n))) if r == root else None)
    assert comm.gather([r] * r, root) == ([[k] * k for k in range(n)] if r == root else None)
    assert comm.scatter([k * k for k in range(n)] if r == root else None, root) == r * r
big = np.arange(300_000.0).reshape(3, -1) + r
total = comm.allreduce(big)
assert (total == n * np.arange(300_000.0).reshape(3, -1) + n * (n - 1) / 2).all()
assert [len(piece) for piece in comm.allgather(np.zeros(r * 50_000))] == [k * 50_000 for k in range(n)]
comm.barrier()
print("ok")
"""
    assert run(ranks, code) == ["ok"] * ranks


def test_sixty_four_ranks_of_one_machine_reduce_small_and_large_arrays() -> None:
    code = """
comm = rmpi.init()
for count in (1, 100_000):
    total = comm.allreduce(np.full(count, comm.rank, np.int64))
    assert (total == 64 * 63 // 2).all()
print(sum(range(64)) == total[-1])
"""
    assert run(64, code) == ["True"] * 64


def test_waiting_costs_no_processor_time() -> None:
    """Some seconds in ``recv`` take less than 2 % of a core."""
    code = """
import time
comm = rmpi.init()
comm.barrier()
began = time.process_time()
if comm.rank == 0:
    comm.recv(1)
else:
    try:
        comm.recv(0, timeout=2.5)
    except rmpi.DeadlineExceeded:
        comm.send("they have passed", 0)
used = time.process_time() - began
print("ok" if used < 0.05 else used)
"""
    assert run(2, code) == ["ok", "ok"]


def test_two_ranks_send_each_other_a_gigabyte_at_the_same_moment() -> None:
    """Mostly zeros that nobody has written, for which the kernel need not find memory on the side that sends."""
    code = """
comm = rmpi.init()
mine = np.zeros(1 << 30, np.uint8)
mine[:: 1 << 24] = mine[-1] = comm.rank + 1
comm.send(mine, 1 - comm.rank)
theirs = comm.recv(1 - comm.rank)
marks = *theirs[:: 1 << 24], theirs[-1]
print(theirs.nbytes == 1 << 30 and {*marks} == {2 - comm.rank} and np.count_nonzero(theirs.view("u8")) == len(marks))
"""
    assert run(2, code) == ["True", "True"]


def test_a_mismatch_is_told_to_every_rank_with_both_call_sites() -> None:
    code = """
import sys
comm = rmpi.init()
try:
    if comm.rank == 1:
        comm.broadcast(1)
    else:
        comm.reduce(1)
    comm.barrier()
except rmpi.CollectiveMismatch as error:
    text = str(error)
    print("called broadcast(root=0) at <string>:7" in text and "called reduce(root=0" in text)
"""
    assert run(3, code) == ["True"] * 3


def test_ranks_that_disagreed_without_waiting_for_each_other_end_the_job_with_1(tmp_path: Path) -> None:
    """Two roots that broadcast both return; what they called is compared when they leave."""
    script = tmp_path / "roots.py"
    script.write_text("import rmpi\ncomm = rmpi.init()\ncomm.broadcast('x', root=comm.rank % 2)\n")
    words = [sys.executable, "-m", "launcher", "-q", "-n", "3", str(script)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert "CollectiveMismatch" in done.stderr
    assert "broadcast(root=0)" in done.stderr
    assert "broadcast(root=1)" in done.stderr
