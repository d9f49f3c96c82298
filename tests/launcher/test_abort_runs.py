"""Jobs whose ranks call `Comm.abort` or `Comm.revoke`."""

from __future__ import annotations

import subprocess
import sys

import pytest
from running import Jobs

REVOKED = """
    import rmpi
    comm = rmpi.init()
    if comm.rank == 1:
        comm.revoke()
    try:
        comm.barrier()
    except rmpi.ChannelClosed as error:
        print(error)
"""

ABORTED = """
    import rmpi
    comm = rmpi.init()
    comm.barrier()
    if comm.rank == 1:
        comm.abort({code})
    {wait}
"""


def test_a_communicator_is_revoked_everywhere(jobs: Jobs) -> None:
    done = jobs.run("-n", 3, script := jobs.script(REVOKED))
    assert (done.code, done.said) == (0, "")
    assert done.lines == [f"this communicator was revoked by rank 1 at {script}:5"] * 3


@pytest.mark.parametrize(
    ("wait", "code"), [("comm.recv(source=1)", 3), ("comm.recv(source=2)", 0), ("while True: pass", 3)]
)
def test_a_rank_aborts_the_job(wait: str, code: int, jobs: Jobs) -> None:
    done = jobs.run("-n", 3, script := jobs.script(ABORTED.format(code=code, wait=wait)))
    assert done.code == code
    assert done.said == f"rmpi-run: rank 1 on localhost called abort({code}) at {script}:6\n"


def test_a_rank_alone_aborts() -> None:
    done = subprocess.run([sys.executable, "-c", "import rmpi; rmpi.init().abort(7)"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (7, b"")
