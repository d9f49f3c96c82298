"""Random programs of collectives against a sequential model: on threads, and on processes by any medium."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import programs

from rmpi.testing.ranks import run_ranks

PROGRAM = Path(programs.__file__)
AGENT = 'shift; SSH_CONNECTION="127.0.0.1 1 127.0.0.1 2" exec sh -c "$*"'
"""Pretends that another host, which is this machine, was reached by ssh."""


@settings(max_examples=14)
@given(
    seed=st.integers(0, 1 << 30),
    size=st.sampled_from([1, 2, 3, 4, 5, 7, 8]),
    machines=st.integers(1, 3),
    interleaved=st.booleans(),
)
def test_every_rank_gets_what_a_sequential_program_gets(seed: int, size: int, machines: int, interleaved: bool) -> None:
    places = [rank % machines if interleaved else rank * machines // size for rank in range(size)]
    run_ranks(size, programs.main, seed, 12, hosts=[f"host{place}" for place in places])


@pytest.mark.parametrize(
    ("medium", "ranks"), [*((medium, ranks) for medium in ("shm", "unix", "tcp") for ranks in (2, 3, 4)), ("relay", 4)]
)
def test_the_same_on_processes(ranks: int, medium: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "launcher", "-q", "-x", f"RMPI_SHM={int(medium != 'unix')}"]
    if medium in ("tcp", "relay"):
        agent = tmp_path / "agent.sh"
        agent.write_text(AGENT)
        words += ["--rsh-agent", f"sh {agent}", "-H", f"hosta:1,hostb:{ranks - 1}"]
        words += ["--route", "relay" if medium == "relay" else "direct"]
    words += ["-n", str(ranks), str(PROGRAM), str(ranks * 7), "40"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n" * ranks, "")
