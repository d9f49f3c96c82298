"""Task farms on several machines: workers over ssh, workers that listen or come, and a machine that is cut off."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from cluster import Cluster, Machine, need_cluster

pytestmark = pytest.mark.cluster

KEY = "/run/team.key"

WORK = """
import socket, time

def square(n):
    time.sleep(0.005)
    return n * n

def where(seconds):
    time.sleep(seconds)
    return socket.gethostname()
"""

BEGIN = """
import sys
sys.path.insert(0, "/run")
from farmwork import square, where
from rmpi import taskfarm

def say(*words):
    print(*words, flush=True)
"""


@pytest.fixture
def own() -> Iterator[Cluster]:
    """Machines that the test may cut off; what tasks call is on each."""
    need_cluster()
    with Cluster(3) as cluster:
        for machine in cluster.machines:
            install(cluster, machine, "farmwork.py", WORK)
            install(cluster, machine, "team.key", "5a" * 32)
        yield cluster
        for machine in cluster.machines:
            machine.kill()


def install(cluster: Cluster, machine: Machine, name: str, text: str) -> None:
    cluster.run(machine, ["sh", "-c", f"umask 077; cat > /run/{name}"], input=text, check=True, text=True)


def begin(cluster: Cluster, machine: Machine, *words: str) -> subprocess.Popen[str]:
    return cluster.popen(
        machine,
        [sys.executable, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PYTHONPATH": "/run", "PYTHONUNBUFFERED": "1"},
    )


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_tasks_of_a_machine_that_is_cut_off_are_done_by_others(own: Cluster) -> None:
    """Each result counts once, whatever was under way when the cable was pulled."""
    program = begin(
        own,
        own[0],
        "-c",
        BEGIN
        + """
with taskfarm.Master(hosts=["n1:2", "n2:1"], retries=3) as master:
    master.wait_for_workers(3)
    say(*sorted({worker.host for worker in master.workers}))
    results = master.map(square, range(3000), chunksize=5)
    say(next(results))
    say(sum(results) == sum(n * n for n in range(3000)))
    say(*{worker.host for worker in master.workers})
""",
    )
    with program:
        assert says(program) == "n1 n2"
        assert says(program) == "0"
        own.cut(own[2])
        said = [*iter(lambda: says(program), "True")]  # the result is exact
        assert "node n2 was lost: nothing was heard from it for 5 s" in said
        assert says(program) == "n1"
        assert program.wait(30) == 0
        own.mend(own[2])


def test_workers_that_listen_and_workers_that_come(own: Cluster) -> None:
    """One master goes to n1, and n2 comes to it; what one does not do the other does."""
    listening = begin(
        own, own[1], "-m", "rmpi.taskfarm", "worker", "--listen", "0.0.0.0:7000", "--key-file", KEY, "-n", "1"
    )
    assert "1 worker" in says(listening)
    program = begin(
        own,
        own[0],
        "-c",
        BEGIN
        + f"""
with taskfarm.Master(0) as master:
    say(master.listen("0.0.0.0", 7000, key_file={KEY!r}))
    master.connect("n1:7000", key_file={KEY!r})
    master.wait_for_workers(2)
    say(*sorted({{*master.map(where, [0.2] * 4, chunksize=1)}}))
""",
    )
    assert says(program) == "0.0.0.0:7000"
    coming = begin(own, own[2], "-m", "rmpi.taskfarm", "worker", "--connect", "n0:7000", "--key-file", KEY, "-n", "1")
    assert "1 worker" in says(coming)
    assert says(program) == "n1 n2"
    with program, coming:
        assert program.wait(20) == 0
        assert coming.wait(20) == 0  # its only master has ended
    own[1].kill()  # it would stand for ever
    with listening:
        listening.wait(20)


def test_the_ranks_of_a_job_are_workers(own: Cluster) -> None:
    install(own, own[0], "hosts", "n0\nn1\nn2\n")
    script = BEGIN + "with taskfarm.Executor() as executor:\n    say(*sorted({*executor.map(where, [0.2] * 4)}))\n"
    install(own, own[0], "script.py", script)
    words = ["-m", "launcher", "-f", "/run/hosts", "-m", "rmpi.taskfarm", "/run/script.py"]
    program = begin(own, own[0], *words)
    out, _ = program.communicate(timeout=40)
    assert (out, program.returncode) == ("n1 n2\n", 0)
