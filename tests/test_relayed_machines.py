"""Jobs on machines that cannot reach each other, or only one way: real networks, with the direct path blocked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Machine

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parent.parent
RUN = [sys.executable, "-m", "launcher"]

EXCHANGE = """
import numpy as np, rmpi
comm = rmpi.init()
peer = comm.size - 1 - comm.rank
mine = np.arange(500_000, dtype=np.float64) + comm.rank
coming = comm.irecv(peer)
comm.send(mine, peer)
assert np.array_equal(coming.wait(), mine - comm.rank + peer)
assert comm.allreduce(comm.rank) == comm.size * (comm.size - 1) // 2
print(comm.hosts[comm.rank], comm._endpoint.media()[comm._members[peer]])
"""


def run(cluster: Cluster, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """``rmpi-run`` on the first machine."""
    return cluster.run(cluster[0], [*RUN, *words], timeout=50, **options)


def centroids(job: subprocess.CompletedProcess[str]) -> str:
    found = re.search(r"centroids ([0-9a-f]{16})", job.stdout)
    assert found, job.stdout + job.stderr
    return found.group(1)


def test_machines_that_refuse_each_other_compute_the_same(cluster: Cluster) -> None:
    """With one warning, however many pairs are relayed; others are not."""
    program = [str(ROOT / "examples" / "kmeans.py"), "--k", "8", "--output", "/run/relayed.png"]
    with cluster.parted(cluster[1], cluster[2], silently=False):
        job = run(cluster, "-H", "n1:1,n2:2,n0:1", *program)
    assert job.returncode == 0, job.stderr
    assert centroids(job) == centroids(run(cluster, "-n", "4", *program))
    [warning] = [line for line in job.stderr.splitlines() if "ssh sessions" in line]
    assert re.fullmatch(
        r"rmpi-run: n([12]) cannot connect to n([12]) \(10\.77\.0\.\d port \d+: Permission denied\), "
        r"nor n\2 to n\1 \(10\.77\.0\.\d port \d+: Permission denied\): "
        r"their data goes through the ssh sessions, which is slower",
        warning,
    )


def test_machines_between_which_packets_are_lost_exchange_large_arrays(cluster: Cluster) -> None:
    with cluster.parted(cluster[1], cluster[2], silently=True):
        job = run(cluster, "-H", "n1,n2", "-c", EXCHANGE)
    assert sorted(job.stdout.splitlines()) == ["n1 relay", "n2 relay"], job.stderr
    assert "timed out" in job.stderr


def test_a_rank_that_is_killed_behind_a_firewall_ends_the_job(cluster: Cluster) -> None:
    code = """
import os, rmpi
comm = rmpi.init()
comm.barrier()
if comm.rank == 1:
    os.kill(os.getpid(), 9)
try:
    comm.recv(1)
except rmpi.RankFailed as error:
    print("told:", error)
    raise
"""
    with cluster.parted(cluster[1], cluster[2], silently=False):
        job = run(cluster, "-H", "n1,n2", "-c", code)
    assert job.returncode == 137, job.stderr
    assert "told: rank 1 on n2 failed: killed by SIGKILL" in job.stdout
    assert job.stderr.strip().splitlines()[-1].endswith("killed by SIGKILL")


@pytest.fixture
def hidden(cluster: Cluster) -> Any:
    """The third machine under an address that only the first one reaches, as a login node in front of it."""
    machine, address = cluster[2], "10.78.0.3"
    cluster._ip(machine.spaces, [f"addr add {address}/32 dev eth0"])
    cluster._ip(cluster[0].spaces, [f"route add {address} via {machine.address}"])
    yield address
    cluster._ip(cluster[0].spaces, [f"route del {address}"])
    cluster._ip(machine.spaces, [f"addr del {address}/32 dev eth0"])


def test_a_machine_that_cannot_be_reached_reaches_the_other_itself(cluster: Cluster, hidden: str) -> None:
    """Whoever wants the link first; then nothing is relayed."""
    job = run(cluster, "-v", "--host-key-policy", "off", "-H", f"n1,{hidden}", "-c", EXCHANGE)
    assert sorted(job.stdout.splitlines()) == [f"{hidden} tcp", "n1 tcp"], job.stderr
    assert "ssh sessions" not in job.stderr


def listeners(machine: Machine, cluster: Cluster) -> list[str]:
    """Addresses and ports where somebody listens there, without sshd's."""
    lines = cluster.run(machine, ["ss", "-Hltn"], check=True).stdout.splitlines()
    return [line.split()[3] for line in lines if not line.split()[3].endswith(":22")]


def test_a_job_that_is_relayed_opens_no_port(cluster: Cluster) -> None:
    code = (
        "import subprocess, rmpi\ncomm = rmpi.init()\ncomm.barrier()\n"
        "print(subprocess.run(['ss', '-Hltn'], capture_output=True, text=True).stdout.count('LISTEN'))"
    )
    usual = len(listeners(cluster[1], cluster)) + 1
    job = run(cluster, "--route", "relay", "-H", "n0,n1,n2", "-c", code)
    assert (job.stdout.splitlines(), job.stderr) == ([str(usual)] * 3, "")
