"""The driver of collectives: what it says was called, and what it remembers of it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from rmpi.comm.driver import REMEMBERED, signature, signature_of_reduction
from rmpi.testing.ranks import run_ranks


class Marked(np.ndarray):
    pass


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (signature("barrier"), "barrier()"),
        (signature("gather", 3), "gather(root=3)"),
        (signature("gather", True), "gather(root=1)"),
        (signature_of_reduction("reduce", 0, "SUM", 5), "reduce(root=0, op=SUM, object)"),
        (signature_of_reduction("reduce", 0, "SUM", np.float64(5)), "reduce(root=0, op=SUM, object)"),
        (
            signature_of_reduction("allreduce", None, "MAX", np.zeros((3, 2), ">i2")),
            "allreduce(op=MAX, array (3, 2) of >i2)",
        ),
        (
            signature_of_reduction("allreduce", None, "MAX", np.zeros(0).view(Marked)),
            "allreduce(op=MAX, Marked (0,) of float64)",
        ),
    ],
)
def test_a_signature_says_what_ranks_must_agree_on(made, text):
    assert made.what == text


def test_different_calls_have_different_fingerprints_and_equal_calls_equal_ones():
    arrays = [np.zeros(3), np.zeros((3, 1)), np.zeros(3, "f4"), np.zeros(3, ">f8"), np.zeros(3).view(Marked), None]
    made = [signature_of_reduction("reduce", root, op, array) for array in arrays for root in (0, 1) for op in "ab"]
    assert len({one.fingerprint for one in made}) == len(made)
    signature.cache_clear()
    again = [signature_of_reduction("reduce", root, op, array) for array in arrays for root in (0, 1) for op in "ab"]
    assert again == made


def test_an_array_in_a_file_is_called_what_one_in_memory_is(tmp_path):
    mapped = np.memmap(tmp_path / "array", np.float64, "w+", shape=(4,))
    assert signature_of_reduction("reduce", 0, "SUM", mapped) == signature_of_reduction("reduce", 0, "SUM", np.ones(4))


def test_dtypes_that_are_equal_and_not_the_same_have_texts_of_their_own():
    aligned = np.dtype([("a", "i4"), ("b", "i4")], align=True)
    packed = np.dtype([("a", "i4"), ("b", "i4")])
    texts = [signature_of_reduction("reduce", 0, "SUM", np.zeros(1, dtype)).what for dtype in (aligned, packed)]
    assert texts == [f"reduce(root=0, op=SUM, array (1,) of {dtype})" for dtype in (aligned, packed)]


def test_a_call_is_remembered_with_the_line_it_was_called_from():
    def main(comm):
        driver = comm._driver
        assert driver.last_call() is None
        first = sys._getframe().f_lineno + 1
        comm.barrier()
        comm.allreduce(
            [comm.rank],
        )
        assert str(driver.call(0)) == f"barrier() at {__file__}:{first}"
        assert str(driver.call(1)) == f"allreduce(op=SUM, object) at {__file__}:{first + 1}"
        assert driver.last_call() == driver.call(1)
        assert driver.call(2) is None

    run_ranks(2, main)


def test_calls_are_forgotten_after_a_while():
    def main(comm):
        for _ in range(REMEMBERED + 3):
            comm.barrier()
        driver = comm._driver
        assert [driver.call(sequence) is None for sequence in (0, 2, 3, REMEMBERED + 2)] == [True, True, False, False]

    run_ranks(2, main)


def test_a_name_of_many_ways_to_a_root_is_one_root():
    def main(comm):
        return [comm.broadcast(comm.rank, root) for root in (1, np.int64(1), True)]

    assert run_ranks(2, main) == [[1, 1, 1]] * 2
