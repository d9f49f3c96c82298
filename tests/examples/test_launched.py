"""The examples as a person runs them: started by the launcher, on real processes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def launch(ranks: int, example: str, *arguments: str, cwd: Path) -> list[str]:
    """Run an example on so many ranks; its lines. It must end well."""
    words = [sys.executable, "-m", "launcher", "-q", "-n", str(ranks), str(EXAMPLES / example), *arguments]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("ranks", [2, 3])
def test_hello_greets_from_every_rank(ranks: int, tmp_path: Path) -> None:
    lines = launch(ranks, "hello.py", cwd=tmp_path)
    assert sorted(re.sub(r"process \d+", "process P", line) for line in lines) == [
        f"Hello from rank {rank} of {ranks} on localhost, process P" for rank in range(ranks)
    ]


def test_product_prints_what_the_ancestor_did_on_eight_ranks(tmp_path: Path) -> None:
    *products, elapsed = launch(8, "product.py", cwd=tmp_path)
    assert sorted(products) == [f"{rank} - 40320" for rank in range(8)]
    assert elapsed.startswith("elapsed: ")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_pi_checks_itself(ranks: int, tmp_path: Path) -> None:
    assert any("3.14159265" in line for line in launch(ranks, "pi.py", cwd=tmp_path))


def test_kmeans_of_a_picture_gives_the_same_centroids_on_any_number_of_ranks(tmp_path: Path) -> None:
    checksums = set()
    for ranks in (1, 2, 3, 4):
        lines = launch(ranks, "kmeans.py", "--k", "4", "--max-iter", "5", cwd=tmp_path)
        checksums.add(next(line.split()[-1] for line in lines if "centroids" in line))
    assert len(checksums) == 1
    assert (tmp_path / "china-4-colours.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("ranks", "example", "last"),
    [
        (4, "stencil.py", "wrote stencil.png"),
        (3, "sort.py", "as NumPy sorts them: yes"),
        (4, "matvec.py", r"off by \S+ from numpy\.linalg\.solve"),
        (2, "montecarlo.py", r"the formula .* standard errors away"),
        (4, "wordfreq.py", "as counted by one rank alone: yes"),
        (3, "pipeline.py", "as made by one rank alone: yes"),
    ],
)
def test_larger_examples_find_their_results_right(ranks: int, example: str, last: str, tmp_path: Path) -> None:
    assert re.fullmatch(last, launch(ranks, example, cwd=tmp_path)[-1])


def test_a_mistake_in_the_arguments_ends_the_job_with_2_and_one_message(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "launcher", "-q", "-n", "3", str(EXAMPLES / "kmeans.py"), "--k", "0"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert done.stderr.count("--k must be 1 or more") == 1
    assert "Traceback" not in done.stderr
