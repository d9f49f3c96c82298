"""Nodes that people start by hand, on machines of their own: guests from elsewhere, and cables that are pulled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from cluster import Cluster, Machine, need_cluster

pytestmark = pytest.mark.cluster

KEY = "/run/team.key"

PLACES = """
import socket

def echo(mailbox):
    while True:
        message, reply = mailbox.receive()
        reply.put((socket.gethostname(), message))
"""


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def own() -> Iterator[Cluster]:
    """Machines that the test may cut off."""
    need_cluster()
    with Cluster(3) as cluster:
        yield cluster


@pytest.fixture
def start(own: Cluster) -> Iterator[Start]:
    """Starts an interpreter on a machine; what it writes is for `says`."""
    started: list[subprocess.Popen[str]] = []

    def start(machine: Machine, *words: str) -> subprocess.Popen[str]:
        process = own.popen(
            machine,
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PYTHONPATH": "/run", "PYTHONUNBUFFERED": "1"},
        )
        started.append(process)
        return process

    yield start
    for machine in own.machines:
        machine.kill()
    for process in started:
        with process:
            pass


def install(cluster: Cluster, machine: Machine, name: str, text: str) -> None:
    cluster.run(machine, ["sh", "-c", f"umask 077; cat > /run/{name}"], input=text, check=True)


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


GUEST = f"""
import standingplaces
from rmpi import places
from rmpi.errors import PeerLost

node = places.attach("n0", key_file={KEY!r})
far = places.create_node("n2", of=node)
one, two = node.spawn(standingplaces.echo, name="one"), far.spawn(standingplaces.echo, name="two")
one.put(1), two.put(2)
print(*one.get(timeout=20), *two.get(timeout=20), *sorted(set(node.member.endpoint.media().values())))
try:
    one.get()
except PeerLost as lost:
    print(lost)
"""


def test_a_guest_from_another_machine(own: Cluster, start: Start) -> None:
    """It reaches places on the node, and on nodes which that adds; when it is cut off, both sides hear of it."""
    for machine in own.machines:
        install(own, machine, "team.key", "5a" * 32)
        install(own, machine, "standingplaces.py", PLACES)
    node = start(own[0], "-m", "rmpi.places.node", "--key-file", KEY, "--listen", "0.0.0.0", "-v")
    assert says(node).endswith("listens at 0.0.0.0:6340")
    guest = start(own[1], "-c", GUEST)
    assert says(guest) == "n0 1 n2 2 tcp"
    assert "the guest from n1" in says(node)
    own.cut(own[1])
    assert says(guest).startswith("n0 (n0:6340) has ended its system, or the connection to it broke")
    assert "the guest from n1" in says(node)
