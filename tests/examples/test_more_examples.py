"""The larger examples: what they compute is what one rank alone computes, and they say so if it is not."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmpi.testing.ranks import run_ranks

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import matvec
import montecarlo
import pipeline
import sort
import stencil
import wordfreq

EXAMPLES = [matvec, montecarlo, pipeline, sort, stencil, wordfreq]
RANKS = [1, 2, 3, 4]

SMALLER = [
    (matvec, "EQUATIONS", 150),
    (montecarlo, "PATHS", 1000),
    (pipeline, "LENGTH", 1 << 11),
    (sort, "COUNT", 20_000),
    (stencil, "STEPS", 100),
]
"""In threads that share an interpreter; `test_launched` has the full size."""

every_size = pytest.mark.parametrize("size", RANKS)


@pytest.fixture(autouse=True)
def _smaller(monkeypatch):
    for example, name, value in SMALLER:
        monkeypatch.setattr(example, name, value)


@pytest.fixture
def printed(monkeypatch, tmp_path):
    """The lines that ranks print, in the order in which they do, in a directory of their own."""
    lines: list[str] = []
    for example in EXAMPLES:
        monkeypatch.setattr(example, "print", lines.append, raising=False)
    monkeypatch.chdir(tmp_path)
    return lines


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
@every_size
@pytest.mark.usefixtures("printed")
def test_every_example_finds_its_result_right_on_any_number_of_ranks(example, size):
    assert run_ranks(size, example.main) == [0] * size


def test_the_plate_is_painted(printed):
    run_ranks(3, stencil.main, ["plate.png"])
    assert printed[-2:] == ["as computed by one rank alone: yes", "wrote plate.png"]
    with Image.open("plate.png") as picture:
        pixels = np.asarray(picture).sum(axis=2, dtype=int)
    assert pixels.shape == (360, 480)
    assert pixels[0, 240] > 600  # nearly white in the middle of the upper edge
    assert pixels[-1].max() < 5


def test_without_pillow_there_is_no_picture(printed, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert run_ranks(2, stencil.main) == [0, 0]
    assert printed[-1] == 'no picture without Pillow: pip install "rmpi[examples]"'
    assert not list(Path().iterdir())


def test_the_plate_has_the_same_bits_on_any_grid(monkeypatch):
    """Also where blocks differ in size, and where one is a single row."""
    monkeypatch.setattr(stencil, "STEPS", 40)
    shape = (7, 5)

    def main(comm, dims):
        cart = comm.cart(dims)
        block, steps, _ = stencil.heat(cart, shape)
        plate = np.empty(shape)
        for where, piece in cart.allgather((cart.local(shape), block)):
            plate[where] = piece
        return plate, steps

    for dims in [(1, 1), (7, 1), (1, 4), (3, 2)]:
        for plate, steps in run_ranks(dims[0] * dims[1], main, dims):
            assert (plate == stencil.alone(shape, steps)).all()


@pytest.mark.parametrize(
    "numbers",
    [
        lambda rank: np.random.default_rng(rank).integers(-50, 50, 100 * rank),
        lambda _: np.full(200, 7),
        lambda rank: np.arange(rank * 100, 0, -1),
        lambda rank: np.arange(rank, 3),
    ],
    ids=["uneven", "all equal", "backwards", "a handful"],
)
@every_size
def test_any_numbers_are_sorted_across_ranks(size, numbers):
    everything = np.sort(np.concatenate([numbers(rank) for rank in range(size)]))
    found = run_ranks(size, lambda comm: sort.sample_sort(comm, numbers(comm.rank)))
    assert np.concatenate(found).tolist() == everything.tolist()


@every_size
def test_shares_are_even(size, printed):
    run_ranks(size, sort.main)
    largest = re.fullmatch(r"the largest share is (\d\.\d\d) times the mean", printed[1])
    assert largest
    assert float(largest[1]) < 1.1


@every_size
def test_a_system_of_equations_with_a_known_solution_is_solved(size):
    solution = np.cos(np.arange(matvec.EQUATIONS))
    right = matvec.rows_of(slice(0, matvec.EQUATIONS)) @ solution

    def main(comm):
        share = comm.share(matvec.EQUATIONS)
        mine, steps = matvec.solve(comm, matvec.rows_of(share), right[share])
        return np.abs(mine - solution[share]).max(), steps

    for off, steps in run_ranks(size, main):
        assert off < matvec.ROUNDING
        assert steps < 150


def test_a_price_does_not_depend_on_the_number_of_ranks():
    found = {result for size in (1, 2, 3, 4, 7) for result in run_ranks(size, montecarlo.estimate)}
    assert len(found) == 1


def test_words_of_a_file_are_counted(printed):
    Path("text").write_text("The cat, the dog;\nand THE bird\n\nand so on\n")
    assert run_ranks(3, wordfreq.main, ["text"]) == [0, 0, 0]
    assert printed[:3] == ["7 different words in 10, ranks: 3", "      3  the", "      2  and"]


@pytest.mark.parametrize(
    ("example", "spoil"),
    [
        (stencil, lambda patch: patch.setattr(stencil, "alone", lambda shape, _: np.zeros(shape))),
        (sort, lambda patch: patch.setattr(sort, "sample_sort", lambda _, numbers: numbers)),
        (matvec, lambda patch: patch.setattr(matvec, "SMALL", 1e-3)),
        (montecarlo, lambda patch: patch.setattr(montecarlo, "formula", lambda: 11.0)),
        (pipeline, lambda patch: patch.setattr(pipeline, "alone", lambda work: [work(np.ones(pipeline.LENGTH))] * 8)),
        (wordfreq, lambda patch: patch.setattr(wordfreq, "count", lambda lines: Counter([len(lines)]))),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
@pytest.mark.usefixtures("printed")
def test_a_result_that_is_wrong_is_a_failure(example, spoil, monkeypatch):
    spoil(monkeypatch)
    assert run_ranks(2, example.main)[0] == 1
