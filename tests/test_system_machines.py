"""Systems on several machines: real sshd, real networks, no shared process or socket; only the source is shared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
from cluster import Cluster, Machine, need_cluster

pytestmark = pytest.mark.cluster

BEGIN = f"""
import logging, sys
sys.path.insert(0, {str(Path(__file__).parent / "places")!r})
from rmpi import places
from rmpi.errors import PeerLost

def say(*words):
    print(*words, flush=True)
"""


def popen(cluster: Cluster, code: str) -> subprocess.Popen[str]:
    """A program on the first machine."""
    return cluster.popen(
        cluster[0],
        [sys.executable, "-c", BEGIN + code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ours(*machines: Machine) -> list[str]:
    return [line for machine in machines for line in machine.processes() if "rmpi" in line]


def test_places_of_three_machines_find_each_other_and_talk(cluster: Cluster) -> None:
    program = popen(
        cluster,
        """
one, two = places.create_nodes(["n1", "n2"])
here = places.here()
say(sorted(node.label for node in places.nodes()), here.status().host, one.status().host)
with here.spawn("played:serve", name="bank") as bank, one.spawn("played:serve", name="shop", kind="thread") as shop:
    for node in (here, one, two):
        place = node.spawn("played:visit", ["bank", "shop"])
        say(place.get(timeout=20), place.wait(20))
    shop.put("hello")
    say(shop.get(timeout=20)[0], "tcp" in shop.whose[0].endpoint.media().values())
    passing = two.spawn("played:pass_on")
    passing.put((one, bank))
    say(passing.get(timeout=20), passing.wait(20))
for node in (one, two):
    assert node.spawn("played:write").wait(20) == 0
    node.shutdown()
logging.basicConfig(format="%(levelname)s %(place)s %(message)s")
places.create_node("n1").spawn("played:log", name="teller").wait(20)
""",
    )
    out, err = program.communicate(timeout=50)
    assert out.splitlines() == [
        "['n0', 'n1', 'n2'] n0 n1",
        "['bank', 'shop'] 0",
        "['bank', 'shop'] 0",
        "['bank', 'shop'] 0",
        "hello True",
        "(('bank on n0',), {}) 0",
        *["to stdout", "an unfinished line"] * 2,
    ], err
    assert err.splitlines() == ["to stderr", "to stderr", "WARNING teller on n1 low on money"]
    assert program.returncode == 0
    while ours(*cluster.machines):
        pass


def test_a_machine_dies_and_its_supervised_node_comes_back_with_it() -> None:
    need_cluster()
    with Cluster(2) as cluster:
        program = popen(
            cluster,
            """
node = places.create_node("n1", restart=places.restart_every(0.1), start_timeout=3)
bank = node.spawn("played:serve", name="bank")
plain = places.create_node("n1", name="plain").spawn("played:echo")
with places.monitor(bank) as events:
    say(events.get(timeout=20).kind)
    try:
        plain.get()
    except PeerLost as error:
        say(error)
    for _ in range(2):
        say(events.get(timeout=50).kind)
    channel = node.connect("bank")
    channel.put("hello")
    say(channel.get(timeout=20)[0], plain.wait(20))
""",
        )
        said: IO[str] | Any = program.stdout
        assert said.readline() == "up\n"
        cluster[1].kill()
        assert said.readline().startswith("echo on plain has failed: ")
        assert said.readline() == "down\n"
        cluster.revive(cluster[1])
        out, err = program.communicate(timeout=50)
        assert out.splitlines() == ["up", "hello -9"], err
        assert "node n1-2 was lost" not in err
        assert "node plain was lost: " in err
        while ours(*cluster.machines):
            pass


@pytest.mark.parametrize("silently", [False, True], ids=["refused", "lost"])
def test_names_and_calls_go_through_the_nodes_where_machines_cannot_connect(cluster: Cluster, silently: bool) -> None:
    deed = (
        "from bank import Bank; bank = Bank.connect(channel.get(), 'bank'); channel.put([bank.add('ann', 5), {link}])"
    )
    code = f"""
sys.path.insert(0, {str(Path(__file__).parent.parent / "examples" / "places")!r})
from bank import Bank
one, two = places.create_nodes(["n1", "n2"])
bank = Bank.at(one, name="bank")
bank.new_account("ann")
client = two.spawn("played:act", {deed.format(link="sorted(set(channel.member.endpoint.media().values()))")!r})
client.put(one)
say(client.get(timeout=40))
say(bank.add("ann", 1))
"""
    with cluster.parted(cluster[1], cluster[2], silently=silently):
        out, err = popen(cluster, code).communicate(timeout=50)
    assert out.splitlines() == ["[('ok', 5), ['relay', 'tcp']]", "('ok', 6)"], err
    assert err.count("their data goes through the nodes") == 1, err
