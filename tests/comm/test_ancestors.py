"""What Racket's RMPI does, done here, and where it stumbled: the rows of ``docs/rmpi.md`` in few words.

Most rows have tests in detail elsewhere; the table names one for each, and here that is checked too.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import rmpi
from rmpi.testing.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs/rmpi.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", TABLE)))

every_size = pytest.mark.parametrize("size", [1, 2, 3, 5, 8])


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_table_names_tests_that_there_are(file, name):
    assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_the_table_has_a_test_in_every_row():
    rows = [line for line in TABLE.splitlines() if re.match(r"\| `?rmpi-|\| kmeans", line)]
    assert len(rows) >= 20
    assert [row for row in rows if "::" not in row] == []


# Rows 3 and 4: send and recv.


def test_a_rank_may_send_to_itself_and_what_is_mutable_stays_mutable():
    def main(comm):
        comm.send({"who": [comm.rank]}, comm.rank)
        got = comm.recv(comm.rank)
        got["who"].append("mine")
        return got

    assert run_ranks(2, main) == [{"who": [0, "mine"]}, {"who": [1, "mine"]}]


def test_a_rank_that_does_not_exist_is_named():
    def main(comm):
        with pytest.raises(rmpi.RankError, match="dest=2: there are only ranks 0 to 1"):
            comm.send("x", 2)

    run_ranks(2, main)


@pytest.mark.parametrize("value", [None, Path("file"), 1.5, np.arange(3.0), "☃"], ids=repr)
def test_values_that_could_not_cross_the_wire_do(value):
    def main(comm):
        return comm.sendrecv(value, 1 - comm.rank)

    for got in run_ranks(2, main):
        assert type(got) is type(value)
        np.testing.assert_equal(got, value)


# Rows 7 to 9: reductions and barrier.


@every_size
def test_a_reduction_takes_anything_in_rank_order_and_gives_others_nothing(size):
    def main(comm):
        return comm.reduce(str(comm.rank), lambda lower, higher: lower + higher, root=size - 1), comm.barrier()

    expected = "".join(map(str, range(size)))
    assert run_ranks(size, main) == [(None, None)] * (size - 1) + [(expected, None)]


def test_vectors_of_different_lengths_are_refused_and_not_padded():
    def main(comm):
        with pytest.raises(rmpi.CollectiveMismatch, match=r"array \(2,\).*array \(3,\)|array \(3,\).*array \(2,\)"):
            comm.allreduce(np.zeros(2 + comm.rank))

    run_ranks(2, main)


# Rows 12 and 13: alltoall and alltoallv.


@every_size
def test_alltoall_on_any_number_of_ranks(size):
    def main(comm):
        return comm.alltoall([(comm.rank, peer) for peer in range(size)])

    assert run_ranks(size, main) == [[(peer, rank) for peer in range(size)] for rank in range(size)]


@every_size
def test_alltoallv_needs_the_counts_of_the_sender_alone(size):
    """Rank r sends r + peer numbers to each peer."""

    def main(comm):
        counts = [comm.rank + peer for peer in range(size)]
        return comm.alltoall(np.full(sum(counts), comm.rank), counts=counts).tolist()

    for rank, got in enumerate(run_ranks(size, main)):
        assert got == [peer for peer in range(size) for _ in range(peer + rank)]


# Row 14: split.


def test_split_takes_any_key_and_any_colour_and_its_messages_are_its_own():
    def main(comm):
        half = comm.split("even" if comm.rank % 2 == 0 else "odd", key=-comm.rank)  # the highest first
        assert half is not None
        same = comm.split(0, key=0)  # equal keys: the order of ranks
        for each, text in (half, "half"), (same, "same"), (comm, "all"):
            each.send(text, (each.rank + 1) % each.size)
        assert [each.recv() for each in (comm, same, half)] == ["all", "same", "half"]
        return half.rank, same.rank, comm.split(None)

    assert run_ranks(4, main) == [(1, 0, None), (1, 1, None), (0, 2, None), (0, 3, None)]


# Row 15: partition.


@pytest.mark.parametrize(
    ("n", "size", "shares"), [(10, 3, [(0, 4), (4, 3), (7, 3)]), (2, 4, [(0, 1), (1, 1), (2, 0), (2, 0)])]
)
def test_partition_gives_what_the_ancestor_does(n, size, shares):
    assert run_ranks(size, lambda comm: comm.partition(n)) == shares


# Rows 17 and 21: launch and finish.


def late(comm: rmpi.Comm) -> str:
    """Rank 1 goes on when rank 0 has ended, and nobody cuts it short."""
    if comm.rank:
        with pytest.raises(rmpi.PeerExited):
            comm.recv(0)
    return f"rank {comm.rank} has finished"


def test_launch_waits_for_all_ranks_and_not_only_for_the_first():
    assert rmpi.launch(late, ranks=2) == ["rank 0 has finished", "rank 1 has finished"]


def broken(comm: rmpi.Comm) -> None:
    if comm.rank == 1:
        raise KeyError("lost")
    comm.barrier()


def test_an_error_of_a_rank_ends_the_launch_and_two_launches_may_follow_each_other():
    for _ in range(2):
        with pytest.raises(ExceptionGroup) as caught:
            rmpi.launch(broken, ranks=2)
        assert isinstance(caught.value.exceptions[0], KeyError)
