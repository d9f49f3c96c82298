"""The machines in miniature themselves, and a first job for them: booting nodes over real ssh."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster as machines
import pytest
from cluster import Cluster, Machine, cluster, need_cluster

pytestmark = pytest.mark.cluster
__all__ = ["cluster"]  # the fixture

TESTS = Path(__file__).resolve().parent


@pytest.fixture
def two() -> Iterator[Cluster]:
    """Two machines that the test may ruin."""
    need_cluster()
    with Cluster(2) as made:
        yield made


# --- What a machine is --------------------------------------------------------------------------------------


def test_everyone_logs_in_everywhere_by_name_and_address(cluster: Cluster) -> None:
    for source, target in zip(cluster.machines, [*cluster.machines[1:], cluster[0]], strict=True):
        for name in (target.name, target.address):
            done = cluster.run(source, ["ssh", name, "hostname; echo $SSH_CONNECTION"], check=True)
            hostname, connection = done.stdout.splitlines()
            assert hostname == target.name
            assert connection.split()[::2] == [source.address, target.address]


def test_machines_share_no_namespace_with_each_other_or_with_us(cluster: Cluster) -> None:
    kinds = ["mnt", "net", "uts", "ipc", "pid"]
    question = ["readlink", *(f"/proc/self/ns/{kind}" for kind in kinds)]
    answers = [cluster.run(machine, question, check=True).stdout.split() for machine in cluster.machines]
    answers.append([str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in kinds])
    for column in zip(*answers, strict=True):
        assert len(set(column)) == len(cluster) + 1


@pytest.mark.parametrize("directory", ["/tmp", "/run", "/dev/shm", "~"])
def test_directories_are_private(directory: str, cluster: Cluster) -> None:
    file = Path(directory).expanduser() / "left-by-a-test"
    cluster.run(cluster[0], ["touch", file], check=True)
    assert cluster.run(cluster[0], ["test", "-e", file]).returncode == 0
    assert cluster.run(cluster[1], ["test", "-e", file]).returncode == 1
    assert not file.exists()
    cluster.run(cluster[0], ["rm", file], check=True)


def test_shared_memory_is_as_small_as_in_containers(cluster: Cluster) -> None:
    size = cluster.run(cluster[1], ["df", "--output=size", "-B1", "/dev/shm"], check=True).stdout.split()[1]
    assert int(size) == 64 << 20


def test_interpreter_and_project_are_there(cluster: Cluster) -> None:
    script = "import rmpi, numpy, sys; print(rmpi.__file__)"
    for machine in cluster.machines:
        path = cluster.run(machine, [sys.executable, "-c", script], check=True).stdout.strip()
        assert Path(path) == machines.PROJECT / "rmpi/__init__.py"


def test_no_name_server_is_asked(cluster: Cluster) -> None:
    assert "Name or service not known" in cluster.run(cluster[0], ["ssh", "nosuch", "true"]).stderr


def test_orphans_are_reaped(cluster: Cluster) -> None:
    machine = cluster[1]
    cluster.run(machine, ["sh", "-c", "(sleep 0 & true) & true"], check=True)
    until_none_is_left = "while cat /proc/[0-9]*/stat 2>/dev/null | grep -q ' Z '; do :; done"
    cluster.run(machine, ["sh", "-c", until_none_is_left], check=True)  # for ever, if they are not


# --- What can befall it -------------------------------------------------------------------------------------


def test_a_killed_machine_is_dead_with_all_that_ran_on_it(two: Cluster) -> None:
    running = two.popen(two[1], ["sh", "-c", "echo ready; exec sleep 1000"], stdout=subprocess.PIPE)
    assert running.stdout is not None
    with running.stdout:
        assert running.stdout.readline() == b"ready\n"
    assert two[1].processes() == ["sleep 1000"]
    two[1].kill()
    assert not two[1].alive()
    assert running.wait(10) != 0
    assert two.run(two[0], ["ssh", "-o", "ConnectTimeout=1", "n1", "true"]).returncode == 255
    assert two[0].alive()


def _serve(machine: Machine, serve: Callable[[socket.socket], object]) -> tuple[threading.Thread, int]:
    """A server on ``machine``'s network, in a thread of ours, for one connection; returns its port."""
    ports: list[int] = []
    listening = threading.Event()

    def run() -> None:
        with machine.network(), socket.create_server((machine.address, 0)) as server:
            ports.append(server.getsockname()[1])
            listening.set()
            connection, _ = server.accept()
            with connection:
                serve(connection)

    thread = threading.Thread(target=run)
    thread.start()
    assert listening.wait(10)
    return thread, ports[0]


def test_a_cut_cable_loses_everything_in_silence_until_mended(two: Cluster) -> None:
    thread, port = _serve(two[1], lambda connection: connection.sendall(b"hello"))
    two.cut(two[1])
    with two[0].network(), pytest.raises(OSError, match=r"timed out|No route"):
        socket.create_connection((two[1].address, port), timeout=0.2)
    two.mend(two[1])
    with two[0].network(), socket.create_connection((two[1].address, port), timeout=10) as connection:
        assert connection.recv(5) == b"hello"
    thread.join()


def test_a_limited_link_is_slow(two: Cluster) -> None:
    size = 500_000
    two.limit(two[1], "8mbit")
    thread, port = _serve(two[1], lambda connection: connection.sendall(bytes(size)))
    started = time.monotonic()
    with two[0].network(), socket.create_connection((two[1].address, port), timeout=10) as connection:
        assert sum(map(len, iter(lambda: connection.recv(65536), b""))) == size
    thread.join()
    assert time.monotonic() - started > 0.3  # 0.5 s, less the first burst


# --- Nothing stays behind -----------------------------------------------------------------------------------


def test_nothing_is_left_when_a_test_fails() -> None:
    need_cluster()
    links = sorted(path.name for path in Path("/sys/class/net").iterdir())
    made = Cluster(2)
    with pytest.raises(ZeroDivisionError), made:
        raise ZeroDivisionError
    inits = [machine.spaces.pid for machine in made.machines]
    assert all(inits)
    assert not made[0].state.parent.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in inits)
    assert sorted(path.name for path in Path("/sys/class/net").iterdir()) == links


def test_nothing_is_left_when_the_tests_are_killed() -> None:
    need_cluster()
    script = (
        "import sys; from cluster import Cluster\n"
        "with Cluster(2) as made:\n"
        "    pids = [made.switch.pid, *(machine.spaces.pid for machine in made.machines)]\n"
        "    print(made[0].state.parent, *pids, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tests:
        assert tests.stdout is not None
        state, *pids = tests.stdout.readline().split()
        handles = [os.pidfd_open(int(pid)) for pid in pids]
        tests.send_signal(signal.SIGKILL)
    for handle in handles:
        assert select.select([handle], [], [], 10)[0]
        os.close(handle)
    assert not Path(state).exists()


def test_where_there_can_be_none_tests_skip_or_fail_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "why_no_cluster", lambda: "no namespaces here")
    monkeypatch.delenv("RMPI_REQUIRE_CLUSTER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no namespaces here"):
        need_cluster()
    monkeypatch.setenv("RMPI_REQUIRE_CLUSTER", "1")
    with pytest.raises(pytest.fail.Exception, match="no namespaces here"):
        need_cluster()


# --- A first job: booting nodes -----------------------------------------------------------------------------

BOOT = """
import sys
from pathlib import Path
from rmpi.deadline import Deadline
from rmpi.errors import LaunchError
from rmpi.places.boot import boot_all, here
from rmpi.places.hosts import HostSpec
from rmpi.places.ssh import SshBooter

hosts = [HostSpec(name, port=int(port)) for name, _, port in (word.partition(":") for word in sys.argv[2:])]
try:
    nodes = boot_all(
        SshBooter(connect_timeout=1), hosts, pythons=[sys.argv[1]], deadline=Deadline.after(20), module="echo_node"
    )
except LaunchError as error:
    sys.exit(str(error))
for node in nodes:
    node.control.sendall(b"hello")
    said = node.control.recv(5).decode()
    print(node.facts.hostname, node.address, said, node.facts.same_machine(here()))
    node.close()
"""


@pytest.fixture
def boot_from_n0(cluster: Cluster) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Boots echo nodes on ``host:port`` arguments, from a process on n0."""
    python = Path("/run/python")
    for machine in cluster.machines:
        wrapper = machine.state / python.relative_to("/")
        wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={TESTS}/stubs exec {sys.executable} "$@"\n')
        wrapper.chmod(0o755)
    return lambda *hosts: cluster.run(cluster[0], [sys.executable, "-c", BOOT, str(python), *hosts])


def test_nodes_boot_on_other_machines(boot_from_n0: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = boot_from_n0("n1:22", "n2:22", "n0:22")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "n1 10.77.0.2 hello False", "n2 10.77.0.3 hello False", "n0 10.77.0.1 hello True",
    ]  # fmt: skip


def test_all_bad_machines_are_in_one_table(boot_from_n0: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = boot_from_n0("n1:22", "nosuch:22", "n1:23", "10.77.0.99:22")
    title, _, *rows = done.stderr.splitlines()
    assert (done.returncode, title) == (1, "3 of 4 hosts cannot be used:")
    for row, (host, what) in zip(
        rows,
        [
            ("nosuch", "the name 'nosuch' does not resolve"),
            ("n1", "connection refused by n1:23"),
            ("10.77.0.99", "no answer from 10.77.0.99:22 within 1 s"),
        ],
        strict=True,
    ):
        assert row.split("  ")[1] == host
        assert what in row
