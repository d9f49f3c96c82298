"""Jobs on several machines: real sshd, real networks, no shared process or socket; only the source is shared."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Machine, need_cluster

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parent.parent
RUN = [sys.executable, "-m", "launcher"]
HOSTS = "n0 slots=1\nn1 slots=1\nn2 slots=2\n"

WAITS = """
import os, sys, rmpi
comm = rmpi.init()
comm.barrier()
print("up", comm.rank, os.getpid(), os.getppid(), flush=True)
if len(sys.argv) > 1 and comm.rank == int(sys.argv[2]):
    print("now", flush=True)
    exec(sys.argv[1])
comm.barrier()
comm.recv(source=comm.rank, timeout=60)
"""


def write(machine: Machine, cluster: Cluster, name: str, text: str) -> str:
    """A file in a directory that only this machine has."""
    path = f"/run/{name}"
    cluster.run(machine, ["sh", "-c", f"cat > {path}"], text=True, input=text, check=True)
    return path


def everywhere(cluster: Cluster, name: str, text: str) -> str:
    paths = [write(cluster[i], cluster, name, text) for i in range(3)]
    return paths[0]


def run(cluster: Cluster, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """``rmpi-run`` on the first machine."""
    return cluster.run(cluster[0], [*RUN, *words], capture_output=True, text=True, timeout=50, **options)


@pytest.fixture
def hostfile(cluster: Cluster) -> str:
    return write(cluster[0], cluster, "hosts", HOSTS)


@pytest.fixture
def waiting(cluster: Cluster, hostfile: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a job of four ranks that wait for ever, and returns when all of them do, or one has a deed to do."""
    script = everywhere(cluster, "waits.py", WAITS)
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        job = cluster.popen(
            cluster[0],
            [*RUN, "-f", hostfile, script, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(job)
        if not arguments:
            await_ranks(job)
        return job

    yield start
    for job in started:
        job.kill()
        for stream in (job.stdout, job.stderr):
            assert stream is not None
            stream.close()
        job.wait()


def await_ranks(job: subprocess.Popen[str]) -> None:
    assert job.stdout is not None
    for _ in range(4):
        assert job.stdout.readline().startswith("up")


@pytest.fixture
def own() -> Iterator[tuple[Cluster, subprocess.Popen[str]]]:
    """Three machines that the test may ruin, and four ranks that wait on them."""
    need_cluster()
    with Cluster(3) as cluster:
        hosts = write(cluster[0], cluster, "hosts", HOSTS)
        script = everywhere(cluster, "waits.py", WAITS)
        with cluster.popen(
            cluster[0],
            [*RUN, "-f", hosts, script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as job:
            await_ranks(job)
            yield cluster, job
            job.kill()


def ours(machine: Machine) -> list[str]:
    """Processes of jobs on a machine: no sshd, no pid 1."""
    return [line for line in machine.processes() if "rmpi" in line or "waits" in line]


def nothing_left(*machines: Machine, within: float = 2.0) -> None:
    deadline = time.monotonic() + within
    while left := [line for machine in machines for line in ours(machine)]:
        assert time.monotonic() < deadline, f"still running: {left}"


def ended(job: subprocess.Popen[str], within: float) -> tuple[int, str, float]:
    """Exit code, stderr, and seconds it took from now."""
    began = time.monotonic()
    _, errors = job.communicate(timeout=within + 10)
    took = time.monotonic() - began
    assert took < within, errors
    return job.returncode, errors, took


def checksum(output: str) -> str:
    found = re.search(r"centroids ([0-9a-f]{16})", output)
    assert found, output
    return found.group(1)


def test_kmeans_gives_the_same_bits_on_three_machines_and_on_one(cluster: Cluster, hostfile: str) -> None:
    job = [str(ROOT / "examples" / "kmeans.py"), "--k", "8", "--output", "/run/out.png"]
    three = run(cluster, "-f", hostfile, *job)
    one = run(cluster, "-n", "4", *job)
    assert three.returncode == one.returncode == 0, three.stderr + one.stderr
    assert checksum(three.stdout) == checksum(one.stdout)


@pytest.mark.parametrize("ranks", [3, 4])
def test_random_programs_of_collectives_give_what_a_sequential_program_gives(
    cluster: Cluster, hostfile: str, ranks: int
) -> None:
    program = str(ROOT / "tests" / "comm" / "programs.py")
    job = run(cluster, "-q", "-f", hostfile, "-n", str(ranks), program, str(ranks), "40")
    assert (job.returncode, job.stdout, job.stderr) == (0, "ok\n" * ranks, "")


def test_ranks_run_where_the_hostfile_says_and_are_named_after_it(cluster: Cluster, hostfile: str) -> None:
    job = run(cluster, "-f", hostfile, "-l", "-c", "import rmpi, socket; print(rmpi.init().rank, socket.gethostname())")
    assert sorted(job.stdout.splitlines()) == ["[0@n0] 0 n0", "[1@n1] 1 n1", "[2@n2] 2 n2", "[3@n2] 3 n2"], job.stderr


def test_between_machines_links_are_tcp_and_within_one_they_are_shm(cluster: Cluster, hostfile: str) -> None:
    code = (
        "import rmpi\ncomm = rmpi.init()\ncomm.allgather(comm.rank)\n"
        "for r in range(comm.size): comm.sendrecv(0, (comm.rank + r) % 4, (comm.rank - r) % 4)\n"
        "media = comm._endpoint.media()\n"
        "print(comm.rank, {comm._members.index(e): m for e, m in sorted(media.items())})"
    )
    job = run(cluster, "-f", hostfile, "-c", code)
    assert "2 {0: 'tcp', 1: 'tcp', 2: 'memory', 3: 'shm'}" in job.stdout, job.stdout + job.stderr


@pytest.mark.parametrize("user", ["root@n1:1,root@n2:2"])
def test_hosts_may_be_given_in_the_command_line(cluster: Cluster, user: str) -> None:
    job = run(cluster, "-H", user, "--python", sys.executable, "-c", "import rmpi; print(rmpi.init().hosts)")
    assert job.returncode == 0, job.stderr
    assert set(job.stdout.splitlines()) == {"('n1', 'n2', 'n2')"}


def test_a_machine_that_dies_takes_its_ranks_along_and_ends_the_job(own: Any) -> None:
    cluster, job = own
    cluster[2].kill()
    code, errors, _ = ended(job, within=3.0)
    assert code == 125
    assert "n2 was lost" in errors
    nothing_left(cluster[0], cluster[1])


def test_a_machine_that_is_cut_off_is_lost_after_the_silence(own: Any) -> None:
    cluster, job = own
    cluster.cut(cluster[1])
    code, errors, _ = ended(job, within=9.0)
    assert code == 125
    assert "nothing was heard from it for 5 s" in errors


def test_a_network_that_comes_back_in_time_costs_nothing(cluster: Cluster, hostfile: str) -> None:
    """Two seconds without a network, in the middle of a stream of messages."""
    code = """
import sys, rmpi
comm = rmpi.init()
for i in range(1000):
    assert comm.allreduce(i) == 4 * i
    if i == 300 and comm.rank == 0:
        print("cut", flush=True)
print("done")
"""
    script = everywhere(cluster, "stream.py", code)
    with cluster.popen(
        cluster[0], [*RUN, "-f", hostfile, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "cut\n"
        cluster.cut(cluster[1])
        threading.Timer(2.0, cluster.mend, [cluster[1]]).start()
        output, errors = job.communicate(timeout=40)
    assert (job.returncode, output.count("done")) == (0, 4), errors


@pytest.mark.parametrize(
    ("deed", "code", "words"),
    [
        ("raise ValueError('boom')", 1, "ValueError: boom"),
        ("sys.exit(3)", 3, "exit status 3"),
        ("os._exit(0)", 70, "left without finishing"),
        ("os.kill(os.getpid(), 9)", 137, "killed by SIGKILL"),
    ],
)
def test_a_failure_on_another_machine_ends_the_job_with_its_code(
    waiting: Any, cluster: Cluster, deed: str, code: int, words: str
) -> None:
    job = waiting(deed, "3")
    while job.stdout.readline() != "now\n":
        pass
    status, errors, _ = ended(job, within=3.0)
    assert status == code, errors
    assert words in errors.strip().splitlines()[-1]
    nothing_left(cluster[0], cluster[1], cluster[2])


@pytest.mark.parametrize("name", ["rmpi-node", "rmpi-spawner"])
def test_killing_a_node_or_its_spawner_loses_that_host(waiting: Any, cluster: Cluster, name: str) -> None:
    job = waiting()
    killed = cluster.run(cluster[2], ["pkill", "-9", "-x", name], capture_output=True, text=True)
    assert killed.returncode == 0, killed.stderr
    status, errors, _ = ended(job, within=3.0)
    assert status == 125, errors
    assert "n2 was lost" in errors
    nothing_left(cluster[0], cluster[1], cluster[2])


def test_killing_the_launcher_leaves_nothing_on_any_machine(waiting: Any, cluster: Cluster) -> None:
    job = waiting()
    cluster.run(cluster[0], ["pkill", "-9", "-f", "launcher"])
    job.wait(5)
    nothing_left(cluster[0], cluster[1], cluster[2])


def test_ctrl_c_reaches_ranks_on_all_machines(waiting: Any, cluster: Cluster) -> None:
    job = waiting()
    cluster.run(cluster[0], ["pkill", "-INT", "-o", "-f", "launcher"])
    status, errors, _ = ended(job, within=3.0)
    assert status == 128 + signal.SIGINT
    assert "KeyboardInterrupt" in errors
    nothing_left(cluster[0], cluster[1], cluster[2])


def test_ranks_of_several_machines_that_wait_for_each_other_are_told_so(cluster: Cluster, hostfile: str) -> None:
    """After messages of all sizes over the network, also in both directions of connections that two have dialled."""
    script = """
import numpy as np, rmpi, sys, time
comm = rmpi.init()
for turn in range(60):
    for step in range(1, 4):
        value = np.zeros((turn % 5) ** 7)
        comm.sendrecv(value, (comm.rank + step) % 4, (comm.rank - step) % 4)
    comm.allreduce(np.ones(10 ** (turn % 6)))
if comm.rank == 3:
    time.sleep(1)
    print("waits", flush=True)
comm.recv((comm.rank + 1) % 4, tag=5)
"""
    path = everywhere(cluster, "deadlock.py", script)
    with cluster.popen(
        cluster[0], [*RUN, "-f", hostfile, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "waits\n"
        code, errors, _ = ended(job, within=4.0)
    assert code == 1
    assert errors.count("Deadlock") == 1
    assert "rank 3 waits for rank 0 in recv(source=0, tag=5) at /run/deadlock.py:12" in errors
    assert errors.endswith("cycle: 0 → 1 → 2 → 3 → 0\n")


def test_all_bad_hosts_are_reported_in_one_table(cluster: Cluster) -> None:
    job = run(cluster, "-H", "n1,nowhere,n0:1,10.77.0.99,n2", "--start-timeout", "15", "-n", "5", "hostname")
    assert job.returncode == 125
    assert "nowhere" in job.stderr
    assert "10.77.0.99" in job.stderr
    nothing_left(cluster[0], cluster[1], cluster[2])


def test_what_is_missing_on_a_host_is_said_before_anything_starts(cluster: Cluster) -> None:
    only_here = write(cluster[0], cluster, "only_here.py", "print('started')")
    job = run(cluster, "-H", "n0,n1", only_here)
    assert job.returncode == 125
    assert "n1" in job.stderr
    assert "only_here.py" in job.stderr
    assert "started" not in job.stdout


def test_strangers_at_the_door_do_not_disturb_the_job(cluster: Cluster, hostfile: str) -> None:
    """One that is silent, one that sends noise, while the job goes on; its doors are open to them."""
    script = """
import rmpi, os, socket, subprocess, sys
comm = rmpi.init()
if comm.rank == 1:
    lines = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True).stdout.splitlines()
    doors = [line.split()[3].rsplit(":", 1) for line in lines if not line.split()[3].endswith(":22")]
    strangers = [socket.create_connection((host, int(port))) for host, port in doors for _ in range(3)]
    for stranger in strangers[::3]:
        stranger.sendall(os.urandom(4096))
    print("doors", len(doors), doors[0][0])
print(comm.allreduce(comm.rank))
"""
    path = everywhere(cluster, "strangers.py", script)
    job = run(cluster, "-f", hostfile, path)
    assert job.returncode == 0, job.stderr
    assert "doors 1 10.77.0.2" in job.stdout
    assert job.stdout.count("6\n") == 4


def test_a_hundred_megabytes_cross_the_network_whole(cluster: Cluster) -> None:
    code = """
import numpy as np, rmpi
comm = rmpi.init()
mine = np.arange(13_000_000, dtype=np.float64) + comm.rank
theirs = comm.sendrecv(mine, 1 - comm.rank, 1 - comm.rank)
print((theirs == mine + 1 - 2 * comm.rank).all())
"""
    job = run(cluster, "-H", "n1,n2", "-c", code)
    assert job.stdout.splitlines() == ["True", "True"], job.stderr


def test_a_rank_may_work_while_its_next_block_comes() -> None:
    """Over TCP at a limited rate, where the kernels move the bytes; a look now and then is enough."""
    code = """
import numpy as np, rmpi
comm = rmpi.init()
block = np.arange(1 << 18, dtype=np.float64)
if comm.rank == 0:
    comm.send(block, 1)
else:
    coming, passes = comm.irecv(0), 0
    while not coming.test():
        np.sin(block[:1 << 12])
        passes += 1
    print(passes >= 100, np.array_equal(coming.wait(), block))
"""
    need_cluster()
    with Cluster(2) as cluster:
        for machine in cluster.machines:
            cluster.limit(machine, "80mbit")
        hosts = f"{cluster[0].name},{cluster[1].name}"
        job = run(cluster, "-q", "-H", hosts, "-c", code)
        assert job.stdout.splitlines() == ["True True"], job.stderr
        job = run(cluster, "-q", "-H", hosts, str(ROOT / "examples/pipeline.py"))
        assert job.returncode == 0, job.stderr
        assert "as made by one rank alone: yes" in job.stdout
