"""The small examples print what their docstrings promise, on any number of ranks."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rmpi.testing.ranks import run_ranks

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import hello
import pi
import product

EXAMPLES = Path(hello.__file__).parent
RANKS = [1, 2, 3, 4, 7, 8]


@pytest.fixture
def printed(monkeypatch):
    """The lines that ranks print, in the order in which they do."""
    lines = []
    for example in hello, pi, product:
        monkeypatch.setattr(example, "print", lambda line, **_: lines.append(line), raising=False)
    return lines


@pytest.mark.parametrize("size", RANKS)
def test_hello_says_who_and_where(size, printed):
    run_ranks(size, hello.main)
    for rank, line in enumerate(sorted(printed)):
        assert re.fullmatch(rf"Hello from rank {rank} of {size} on this process, process \d+", line)
    assert len(printed) == size


@pytest.mark.parametrize("size", RANKS)
def test_every_rank_prints_the_product_and_then_rank_0_the_time(size, printed):
    run_ranks(size, product.main)
    *products, elapsed = printed
    assert sorted(products) == [f"{rank} - {math.factorial(size)}" for rank in range(size)]
    assert re.fullmatch(r"elapsed: \d\.\d{6} s", elapsed)


def test_on_eight_ranks_the_product_is_that_of_the_ancestor(printed):
    run_ranks(8, product.main)
    assert sorted(printed)[:8] == [f"{rank} - 40320" for rank in range(8)]


def test_the_product_is_exact_beyond_64_bits(printed):
    run_ranks(23, product.main)
    assert "22 - 25852016738884976640000" in printed


@pytest.mark.parametrize("size", RANKS)
def test_pi_is_pi(size, printed):
    assert run_ranks(size, pi.main) == [0] * size
    assert len(printed) == 1
    assert re.fullmatch(rf"3\.14159265\d+, off by \S+, ranks: {size}", printed[0])


@pytest.mark.parametrize("strips", [1, 2, 3, 100])
def test_the_area_is_as_good_as_the_midpoint_rule(strips):
    areas = run_ranks(4, pi.area, strips)
    assert len(set(areas)) == 1
    assert abs(areas[0] - math.pi) <= 1 / (3 * strips**2)


@pytest.mark.usefixtures("printed")
def test_pi_that_is_wrong_is_a_failure(monkeypatch):
    monkeypatch.setattr(pi, "area", lambda *_: 3.14159)
    assert run_ranks(2, pi.main) == [1, 1]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("hello.py", r"Hello from rank 0 of 1 on .+, process \d+\n"),
        ("product.py", r"0 - 1\nelapsed: .* s\n"),
        ("pi.py", r"3\.14159265\d+, off by \S+, ranks: 1\n"),
        ("kmeans.py", r"ok\.csv: 2 points into 2 clusters, ranks: 1\n(.*\n){2}wrote ok-2-clusters\.npz\n"),
    ],
)
def test_plain_python_is_one_rank(script, said, tmp_path):
    (tmp_path / "ok.csv").write_text("1,2\n3,4\n")
    arguments = ["--k", "2", "ok.csv"] if script == "kmeans.py" else []
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
    assert re.fullmatch(said, done.stdout)
    assert done.stderr == ""
