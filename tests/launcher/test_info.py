"""``rmpi-run --info``: what is here, and what connects the hosts."""

from __future__ import annotations

import sys

import pytest
from running import Jobs

from rmpi.comm.survey import pairs


def test_info_names_versions_machine_and_links(jobs: Jobs) -> None:
    done = jobs.run("--info")
    shown = dict(line.split(":", 1) for line in done.out.splitlines())
    assert done.code == 0
    assert shown["Python"].split()[1] == sys.executable
    assert all(name in shown["packages"] for name in ("numpy", "msgpack", "psutil", "paramiko"))
    assert "memory, unix, tcp" in shown["links"]
    assert ("shm" in shown["links"]) != ("no shm" in shown)


def test_info_says_what_is_missing(jobs: Jobs) -> None:
    out = jobs.run("--info", env={"RMPI_SHM": "0"}).out
    assert out.endswith("links:    memory, unix, tcp\nno shm:   RMPI_SHM=0 says not to use it\n")


def test_info_connects_the_hosts(jobs: Jobs) -> None:
    done = jobs.run("--info", "-v", "-n", 3, env={"RMPI_SHM": "0"})
    assert (done.code, done.said, done.out.splitlines()[-1]) == (0, "", "  localhost  localhost  unix")
    assert jobs.run("--info", "-v", "-n", 1).out.endswith("\n  localhost  localhost  (one rank)\n")
    assert jobs.run("--info", "-n", 3).out == jobs.run("--info", "-v").out == jobs.run("--info").out


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("a", [("a", "a", 0, 0)]),
        ("aa", [("a", "a", 0, 1)]),
        ("aab", [("a", "a", 0, 1), ("a", "b", 0, 2), ("b", "b", 2, 2)]),
        ("aba", [("a", "a", 0, 2), ("a", "b", 0, 1), ("b", "b", 1, 1)]),
        ("abc", [(x, y, "abc".index(x), "abc".index(y)) for x in "abc" for y in "abc" if x <= y]),
    ],
)
def test_one_pair_of_ranks_speaks_for_each_pair_of_hosts(hosts: str, expected: list[tuple[str, str, int, int]]) -> None:
    assert list(pairs(hosts)) == expected
