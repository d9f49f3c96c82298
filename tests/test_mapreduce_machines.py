"""Map-reduce on several machines: files are fetched from where they are, and machines get lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
from cluster import Cluster, need_cluster

pytestmark = pytest.mark.cluster

PROGRAM = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent / "mapreduce")!r})
from functions import add_up, numbered, told_half
from rmpi.mapreduce import MapReduce

expected = MapReduce(0).map_reduce(range(60), numbered, add_up)
with MapReduce(hosts=["n1", "n2"]) as mr:
    print(mr.map_reduce(range(60), told_half, add_up) == expected, flush=True)
"""


def popen(cluster: Cluster) -> subprocess.Popen[str]:
    return cluster.popen(
        cluster[0],
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left(cluster: Cluster) -> list[str]:
    """Files of jobs on machines that live."""
    found = [cluster.run(each, ["find", "/tmp", "-name", "rmpi-mapreduce*"]) for each in cluster.machines[:2]]
    return [line for done in found for line in done.stdout.splitlines()]


def test_machines_give_each_other_what_they_have() -> None:
    need_cluster()
    with Cluster(3) as cluster:
        out, err = popen(cluster).communicate(timeout=50)
        assert out == "half\nTrue\n", err
        assert left(cluster) == []


def test_a_machine_that_is_lost_takes_nothing_with_it() -> None:
    need_cluster()
    with Cluster(3) as cluster:
        program = popen(cluster)
        said: IO[str] | Any = program.stdout
        assert said.readline() == "half\n"
        cluster[2].kill()
        out, err = program.communicate(timeout=50)
        assert out.splitlines()[-1:] == ["True"], err
        assert program.returncode == 0
        assert left(cluster) == []
