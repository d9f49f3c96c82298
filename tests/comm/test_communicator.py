"""The communicator: what every method gives, refuses and leaves usable, on ranks that are threads."""

from __future__ import annotations

import re
import threading
from functools import reduce
from itertools import product

import numpy as np
import pytest

from rmpi.comm.ops import MAX, MIN, PROD, SUM
from rmpi.comm.status import ANY_SOURCE, ANY_TAG, Status
from rmpi.errors import (
    ChannelClosed,
    CollectiveMismatch,
    DeadlineExceeded,
    PeerExited,
    RankError,
    RankFailed,
    UsageError,
)
from rmpi.testing.ranks import run_ranks

SIZES = [1, 2, 3, 4, 7]
MANY = [2, 3, 4, 7]
BRIEFLY = 0.02
LARGE = 100_000
"""Bytes: more than travels eagerly."""

every_size = pytest.mark.parametrize("size", SIZES)
many_ranks = pytest.mark.parametrize("size", MANY)

RECORD = np.dtype([("name", "S4"), ("position", "f8", 3), ("count", "i2")])


def _record(rank):
    made = np.zeros(3, RECORD)
    made["name"], made["position"], made["count"] = b"abc", rank + 0.5, [rank, 1, 2]
    return made


def _numbers(rank, count, dtype):
    return (np.arange(count) % 50 + rank).astype(dtype)


NUMBERS = {
    "float64": lambda rank: _numbers(rank, 10, "f8"),
    "float32": lambda rank: _numbers(rank, 7, "f4"),
    "int8": lambda rank: _numbers(rank, 5, "i1"),
    "uint64": lambda rank: _numbers(rank, 5, "u8"),
    "complex": lambda rank: _numbers(rank, 4, "c16") * (1 + 2j),
    "big-endian": lambda rank: _numbers(rank, 6, ">i4"),
    "0-d": lambda rank: np.array(rank + 0.25),
    "empty": lambda _rank: np.zeros(0, "i4"),
    "empty axis": lambda _rank: np.zeros((3, 0, 2)),
    "strided": lambda rank: _numbers(rank, 40, "i4").reshape(5, 8)[::2, 1::3],
    "backwards": lambda rank: _numbers(rank, 9, "i8")[::-1],
    "fortran": lambda rank: np.asfortranarray(_numbers(rank, 12, "f8").reshape(3, 4)),
    "over 64 KiB": lambda rank: _numbers(rank, 9_000, "f8"),
    "over 256 KiB": lambda rank: _numbers(rank, 70_001, "f4"),
    "large fortran": lambda rank: np.asfortranarray(_numbers(rank, 40_000, "f8").reshape(100, 400)),
    "large strided": lambda rank: _numbers(rank, 60_000, "i4")[::2],
}

OTHERS = {
    "bool array": lambda rank: np.arange(5) % 2 == rank % 2,
    "structured": _record,
    "datetime": lambda rank: np.array(["2024-02-29", "1970-01-01"], "M8[D]") + rank,
    "text array": lambda rank: np.array(["alpha", f"β{rank}"]),
    "object array": lambda rank: np.array([rank, "two", None], dtype=object),
    "numpy scalar": lambda rank: np.float32(rank),
    "None": lambda _rank: None,
    "bool": lambda rank: rank % 2 == 0,
    "int": lambda rank: rank - 3,
    "long int": lambda rank: rank - 10**40,
    "float": lambda rank: rank / 3,
    "str": lambda rank: f"rank {rank} ☃",
    "bytes": lambda rank: bytes(range(rank + 1)),
    "large bytes": lambda rank: bytes([rank]) * 300_000,
    "containers": lambda rank: {"a": [rank, (1, {2})], rank: bytearray(b"x")},
    "arrays inside": lambda rank: [np.full(3, rank), {"large": np.full(20_000, rank, "f8")}],
}

VALUES = NUMBERS | OTHERS

every_value = pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
every_number = pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)


def alike(one, two):
    """Whether two values are equal, of the same type, dtype and shape."""
    if type(one) is not type(two):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and one.shape == two.shape and bool(np.all(one == two))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(alike(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(alike, one, two))
    return bool(one == two)


def arrays_in(value):
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [array for item in value for array in arrays_in(item)] if isinstance(value, list | tuple) else []


def apart(one, two):
    """Whether no array in one value shares memory with an array in the other."""
    return not any(np.shares_memory(a, b) for a, b in product(arrays_in(one), arrays_in(two)))


def error_of(kind, function, *args, **options):
    """The text of the error that a call must raise."""
    with pytest.raises(kind) as caught:
        function(*args, **options)
    assert type(caught.value) is kind
    return str(caught.value)


# ---------------------------------------------------------------------------------- point to point


@every_size
@every_value
def test_a_value_arrives_as_it_was_and_belongs_to_the_receiver(size, make):
    sent = [make(rank) for rank in range(size)]

    def main(comm):
        for dest in range(size):
            comm.send(sent[comm.rank], dest)
        return [comm.recv(source) for source in range(size)]

    for received in run_ranks(size, main):
        for source, value in enumerate(received):
            assert alike(value, make(source))
            assert apart(value, sent)
    assert alike(sent, [make(rank) for rank in range(size)])


@pytest.mark.parametrize("make", [NUMBERS["fortran"], NUMBERS["large fortran"]])
def test_the_order_of_an_array_in_memory_arrives_too(make):
    def main(comm):
        comm.send(make(0), 0)
        return comm.recv(0)

    (received,) = run_ranks(1, main)
    assert received.flags.f_contiguous


def test_after_a_send_the_value_may_change():
    def main(comm):
        if comm.rank == 0:
            for count in (10, LARGE):
                value = np.ones(count)
                comm.send(value, 1)
                value[:] = 2
            comm.send(None, 1, tag=9)
            return None
        comm.recv(0, 9)
        return [comm.recv(0, 0) for _ in range(2)]

    for received in run_ranks(2, main)[1]:
        assert (received == 1).all()


@every_number
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_an_array_is_received_in_place(make, order):
    def out_for(value):
        if order == "strided":
            return np.empty(tuple(2 * extent for extent in value.shape), value.dtype)[
                (slice(None, None, 2),) * value.ndim
            ]
        return np.empty(value.shape, value.dtype, order=order)

    def main(comm):
        if comm.rank == 0:
            comm.send(make(0), 1)
            return
        out = np.asarray(out_for(make(0)))
        assert comm.recv(0, out=out) is out
        assert alike(out, make(0))

    run_ranks(2, main)


def test_a_message_that_does_not_fit_out_stays_the_next_in_line():
    def main(comm):
        if comm.rank == 0:
            comm.send(np.arange(4.0), 1)
            comm.send("text", 1)
            return
        wrong_shape = error_of(UsageError, comm.recv, 0, out=np.empty(3))
        assert wrong_shape == "out= is an array (3,) of float64, but the message holds an array (4,) of float64"
        wrong_dtype = error_of(UsageError, comm.recv, 0, out=np.empty(4, "f4"))
        assert wrong_dtype == "out= is an array (4,) of float32, but the message holds an array (4,) of float64"
        assert comm.recv(0).tolist() == [0, 1, 2, 3]
        assert "but the message holds a str" in error_of(UsageError, comm.recv, 0, out=np.empty(4))
        assert comm.recv(0) == "text"

    run_ranks(2, main)


def read_only():
    array = np.empty(4)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "text"), [(read_only(), "out= is a read-only array"), ([0.0], "out= must be a NumPy array, not list")]
)
@pytest.mark.parametrize(
    "call",
    [
        lambda comm, out: comm.recv(0, out=out),
        lambda comm, out: comm.sendrecv(1, 0, 0, out=out),
        lambda comm, out: comm.reduce(np.ones(4), root=comm.rank, out=out),
        lambda comm, out: comm.allreduce(np.ones(4), out=out),
        lambda comm, out: comm.broadcast(np.ones(4), 1 - comm.rank, out=out),
        lambda comm, out: comm.scatter([1, 2], comm.rank, out=out),
    ],
    ids=["recv", "sendrecv", "reduce", "allreduce", "broadcast", "scatter"],
)
def test_an_out_that_cannot_be_written_is_refused_before_anything_is_sent(call, out, text):
    def main(comm):
        assert text in error_of(UsageError, call, comm, out)
        comm.barrier()
        assert "no message came" in error_of(DeadlineExceeded, comm.recv, timeout=0)
        comm.barrier()

    run_ranks(2, main)


def test_a_status_tells_source_tag_and_size():
    def main(comm):
        if comm.rank == 2:
            comm.send(np.zeros(10), 0, tag=7)
            comm.send(5, 0, tag=2**63 - 1)
        if comm.rank == 0:
            status = Status()
            comm.recv(status=status)
            assert status == Status(source=2, tag=7, nbytes=80)
            comm.sendrecv("to myself", 0, 2, status=status)
            assert status == Status(source=2, tag=2**63 - 1, nbytes=0)
            assert comm.recv(0) == "to myself"

    run_ranks(3, main)


@many_ranks
def test_any_source_takes_messages_in_the_order_of_their_arrival(size):
    hello, token = 100, 101

    def main(comm):
        if comm.rank:
            comm.send(None, 0, hello)
            comm.recv(comm.rank - 1, token)
            comm.send(f"from {comm.rank}", 0, comm.rank)
            comm.send(None, (comm.rank + 1) % size, token)
            return None
        for rank in range(1, size):
            comm.recv(rank, hello)
        comm.send(None, 1, token)
        comm.recv(size - 1, token)
        status, got = Status(), []
        for _ in range(1, size):
            value = comm.recv(ANY_SOURCE, ANY_TAG, status=status)
            got.append((value, status.source, status.tag))
        return got

    assert run_ranks(size, main)[0] == [(f"from {rank}", rank, rank) for rank in range(1, size)]


@many_ranks
def test_any_source_with_a_tag_leaves_other_tags_alone(size):
    def main(comm):
        comm.send(("other", comm.rank), 0, 1)
        comm.send(("asked", comm.rank), 0, 2)
        if comm.rank == 0:
            assert sorted(comm.recv(tag=2) for _ in range(size)) == [("asked", rank) for rank in range(size)]
            assert sorted(comm.recv(tag=1) for _ in range(size)) == [("other", rank) for rank in range(size)]

    run_ranks(size, main)


def test_tags_keep_messages_apart():
    def main(comm):
        if comm.rank == 0:
            for tag in (5, 3, 4, 3):
                comm.send(tag * 10, 1, tag)
            return None
        return [comm.recv(0, 4), comm.recv(0, 3), comm.recv(0), comm.recv(0, ANY_TAG)]

    assert run_ranks(2, main)[1] == [40, 30, 50, 30]


@pytest.mark.parametrize("unmatched_limit", [0, 1 << 30])
def test_messages_of_one_sender_keep_their_order_whatever_their_size(unmatched_limit):
    sizes = [1, LARGE, 0, 3, 5 * LARGE, LARGE, 2] * 3

    def main(comm):
        if comm.rank == 0:
            for number, size in enumerate(sizes):
                comm.send((number, bytes(size)), 1)
            return None
        return [(number, len(payload)) for number, payload in (comm.recv(0) for _ in sizes)]

    assert run_ranks(2, main, unmatched_limit=unmatched_limit)[1] == list(enumerate(sizes))


@every_size
@pytest.mark.parametrize("unmatched_limit", [0, 1 << 30])
@pytest.mark.parametrize("count", [10, 40_000])
def test_sendrecv_makes_a_ring(size, unmatched_limit, count):
    def main(comm):
        right, left = (comm.rank + 1) % size, (comm.rank - 1) % size
        value = np.full(count, comm.rank)
        out = np.empty_like(value)
        for lap in range(3):
            got = comm.sendrecv(value, right, left, sendtag=lap, recvtag=lap, out=out if lap == 2 else None)
            assert (got == left).all()
            assert apart(got, value)
        assert got is out
        assert (value == comm.rank).all()

    run_ranks(size, main, unmatched_limit=unmatched_limit)


@pytest.mark.parametrize("count", [1, 10_000, 100_000])
def test_a_rank_sends_to_itself(count):
    def main(comm):
        value = np.arange(count)
        comm.send(value, comm.rank)
        got = comm.recv(comm.rank)
        assert alike(got, value)
        assert apart(got, value)

    run_ranks(2, main)


def test_two_ranks_that_send_each_other_large_messages_first_both_finish():
    def main(comm):
        comm.send(np.full(500_000, comm.rank), 1 - comm.rank)
        return int(comm.recv(1 - comm.rank)[-1])

    assert run_ranks(2, main) == [1, 0]


# ---------------------------------------------------------------------------------------- timeouts


@pytest.mark.parametrize("count", [1, LARGE])
def test_a_recv_that_times_out_loses_nothing(count):
    def main(comm):
        if comm.rank == 0:
            text = error_of(DeadlineExceeded, comm.recv, 1, timeout=BRIEFLY)
            assert text == "recv from rank 1, any tag: timeout passed and no message came; nothing is lost"
            text = error_of(DeadlineExceeded, comm.recv, tag=4, timeout=0)
            assert text.startswith("recv from any rank, tag 4:")
            comm.send("go", 1)
            return comm.recv(1)
        comm.recv(0)
        return comm.send(bytes(count), 0)

    assert run_ranks(2, main)[0] == bytes(count)


def test_a_timeout_of_zero_takes_what_has_come():
    def main(comm):
        comm.send("here", comm.rank)
        assert comm.recv(timeout=0) == "here"

    run_ranks(1, main)


def test_a_large_message_nobody_takes_is_withdrawn_when_its_time_is_out():
    def main(comm):
        if comm.rank == 0:
            text = error_of(DeadlineExceeded, comm.send, bytes(LARGE), 1, 3, timeout=BRIEFLY)
            assert text.startswith("send to rank 1, tag 3: timeout passed before the receiver took the message")
            assert text.endswith("it was withdrawn")
            comm.send("small", 1, 4)
            comm.send(bytes(LARGE + 1), 1, 5)
            return
        assert comm.recv(0, 4) == "small"
        assert "no message came" in error_of(DeadlineExceeded, comm.recv, 0, 3, timeout=0)
        assert len(comm.recv(0)) == LARGE + 1

    run_ranks(2, main, unmatched_limit=0)


def test_a_sendrecv_that_times_out_undoes_both_halves():
    def main(comm):
        if comm.rank == 0:
            text = error_of(DeadlineExceeded, comm.sendrecv, bytes(LARGE), 1, 1, sendtag=2, timeout=BRIEFLY)
            assert text.startswith("sendrecv with rank 1, tag 2:")
            comm.send("go", 1, 4)
            assert comm.recv(1) == "later"
            return
        assert comm.recv(0, 4) == "go"
        assert "no message came" in error_of(DeadlineExceeded, comm.recv, 0, timeout=0)
        comm.send("later", 0)

    run_ranks(2, main, unmatched_limit=0)


@pytest.mark.parametrize("timeout", ["soon", float("nan"), [1]])
def test_a_timeout_that_is_no_number_is_refused_and_does_no_harm(timeout):
    def main(comm):
        for call in (comm.barrier, comm.recv, comm.broadcast):
            assert "timeout must be seconds or None" in error_of(UsageError, call, timeout=timeout)
        comm.barrier()

    run_ranks(2, main)


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda comm: comm.send(1, 2), "dest=2: there are only ranks 0 to 1"),
        (lambda comm: comm.send(1, -1), "dest=-1: there are only ranks 0 to 1"),
        (lambda comm: comm.send(1, "1"), "dest must be a rank from 0 to 1, not '1'"),
        (lambda comm: comm.send(1, 1.0), "dest must be a rank from 0 to 1, not 1.0"),
        (lambda comm: comm.recv(2), "source=2: there are only ranks 0 to 1"),
        (lambda comm: comm.recv(-2), "source=-2: there are only ranks 0 to 1"),
        (lambda comm: comm.sendrecv(1, 2, 0), "dest=2: there are only ranks 0 to 1"),
        (lambda comm: comm.sendrecv(1, 0, 2), "source=2: there are only ranks 0 to 1"),
        (lambda comm: comm.broadcast(1, 2), "root=2: there are only ranks 0 to 1"),
        (lambda comm: comm.reduce(1, root=-1), "root=-1: there are only ranks 0 to 1"),
        (lambda comm: comm.gather(1, root=None), "root must be a rank from 0 to 1, not None"),
        (lambda comm: comm.scatter([1, 2], 9), "root=9: there are only ranks 0 to 1"),
    ],
)
def test_an_unknown_rank_is_named_and_does_no_harm(call, text):
    def main(comm):
        assert error_of(RankError, call, comm) == text
        assert comm.allreduce(1) == 2

    run_ranks(2, main)


@pytest.mark.parametrize("tag", [-2, 2**63, 1.0, "1", None, True])
def test_a_tag_is_an_integer_from_0_to_2_63(tag):
    text = f"tag must be an integer from 0 to 2**63-1, not {tag!r}"

    def main(comm):
        assert error_of(UsageError, comm.send, 1, 0, tag) == text
        assert error_of(UsageError, comm.recv, 0, tag) == text
        assert error_of(UsageError, comm.sendrecv, 1, 0, 0, sendtag=tag) == text
        assert error_of(UsageError, comm.sendrecv, 1, 0, 0, recvtag=tag) == text

    run_ranks(1, main)


def test_any_tag_is_no_tag_to_send_with():
    def main(comm):
        assert "tag must be an integer" in error_of(UsageError, comm.send, 1, 0, ANY_TAG)
        assert "there are only ranks" in error_of(RankError, comm.send, 1, ANY_SOURCE)

    run_ranks(1, main)


def test_numpy_integers_are_ranks_and_tags():
    def main(comm):
        comm.send("x", np.int64(0), np.uint8(3))
        assert comm.recv(np.int32(0), np.int64(3)) == "x"
        assert comm.broadcast("y", np.int8(0)) == "y"

    run_ranks(1, main)


@pytest.mark.parametrize("value", [threading.Lock(), lambda: None, [1, (n for n in "ab")]])
def test_a_value_that_cannot_be_pickled_is_refused_and_nothing_is_sent(value):
    def main(comm):
        assert "cannot be pickled" in error_of(UsageError, comm.send, value, 1 - comm.rank)
        assert "cannot be pickled" in error_of(UsageError, comm.sendrecv, value, 1 - comm.rank, 1 - comm.rank)
        comm.send("fine", 1 - comm.rank)
        assert comm.recv(1 - comm.rank) == "fine"
        comm.barrier()

    run_ranks(2, main)


class Poison:
    """Can be pickled, and not be unpickled."""

    def __reduce__(self):
        return int, ("not a number",)


def test_a_value_that_cannot_be_unpickled_is_said_to_and_does_not_block_the_next():
    def main(comm):
        if comm.rank == 0:
            comm.send(Poison(), 1)
            comm.send("next", 1)
            return
        with pytest.raises(ValueError, match="not a number") as caught:
            comm.recv(0)
        assert caught.value.__notes__ == ["while unpickling a message from rank 0"]
        assert comm.recv(0) == "next"

    run_ranks(2, main)


@pytest.mark.parametrize("op", ["sum", None, 3, np.sqrt, np.divmod])
def test_an_operator_must_take_two_values(op):
    def main(comm):
        assert "op must be" in (text := error_of(UsageError, comm.allreduce, 1, op)) or "use a ufunc" in text
        error_of(UsageError, comm.reduce, 1, op)
        assert comm.allreduce(1) == 2

    run_ranks(2, main)


def test_sendrecv_refuses_to_receive_over_what_it_sends():
    def main(comm):
        value = np.arange(10)
        assert "out= shares memory" in error_of(UsageError, comm.sendrecv, value, 0, 0, out=value[5:])

    run_ranks(1, main)


@many_ranks
@pytest.mark.parametrize("wrong", [[], [1] * 9, None, 5])
def test_scatter_refuses_another_number_of_values_and_may_be_called_again(size, wrong):
    def main(comm):
        if comm.rank == 1:
            assert "scatter needs " in error_of(UsageError, comm.scatter, wrong, 1)
        return comm.scatter(range(size), 1)

    assert run_ranks(size, main) == list(range(size))


# -------------------------------------------------------------------------------------- collectives


@every_size
@every_value
def test_broadcast_gives_everybody_the_value_of_the_root(size, make):
    def main(comm, sent):
        got = [comm.broadcast(sent[root] if comm.rank == root else "ignored", root) for root in range(size)]
        assert got[comm.rank] is sent[comm.rank]
        for root, value in enumerate(got):
            assert alike(value, make(root))
            assert comm.rank == root or apart(value, sent)

    sent = [make(rank) for rank in range(size)]
    run_ranks(size, main, sent)
    assert alike(sent, [make(rank) for rank in range(size)])


@every_size
@every_value
def test_gather_and_allgather_list_the_values_in_rank_order(size, make):
    def main(comm, sent):
        mine = sent[comm.rank]
        for root in range(size):
            gathered = comm.gather(mine, root)
            assert (gathered is None) == (comm.rank != root)
            if gathered is not None:
                check(comm, gathered, sent)
        check(comm, comm.allgather(mine), sent)

    def check(comm, gathered, sent):
        assert alike(gathered, [make(rank) for rank in range(size)])
        assert gathered[comm.rank] is sent[comm.rank]
        assert all(apart(value, sent) for rank, value in enumerate(gathered) if rank != comm.rank)

    sent = [make(rank) for rank in range(size)]
    run_ranks(size, main, sent)
    assert alike(sent, [make(rank) for rank in range(size)])


@every_size
@pytest.mark.parametrize("shape", [(), (3,), (2, 5_000)])
def test_allgather_can_receive_in_place(size, shape):
    def main(comm):
        out = np.zeros((size, *shape))
        assert comm.allgather(np.full(shape, comm.rank + 1.0), out=out) is out
        for rank in range(size):
            assert (out[rank] == rank + 1).all()

    run_ranks(size, main)


def test_allgather_refuses_an_array_that_does_not_fit():
    def main(comm):
        with pytest.raises(UsageError, match=r"one place for each of 2 ranks .* shape \(3, 4\)"):
            comm.allgather(np.zeros(4), out=np.zeros((3, 4)))
        with pytest.raises(UsageError, match="but the result is an array"):
            comm.allgather(np.zeros(4), out=np.zeros((2, 5)))
        assert comm.allgather(comm.rank) == [0, 1]

    run_ranks(2, main)


@every_size
def test_gathered_values_may_differ_in_type_and_size(size):
    kinds = [
        lambda: None,
        lambda: np.arange(50_000),
        lambda: "text",
        lambda: [1, np.zeros(9_000)],
        lambda: bytes(70_000),
    ]

    def main(comm):
        mine = kinds[comm.rank % len(kinds)]()
        expected = [kinds[rank % len(kinds)]() for rank in range(size)]
        assert alike(comm.allgather(mine), expected)
        assert alike(comm.gather(mine, size - 1), expected if comm.rank == size - 1 else None)
        assert alike(comm.scatter(expected if comm.rank == 0 else None), mine)

    run_ranks(size, main)


@every_size
@every_value
def test_scatter_gives_each_rank_its_item(size, make):
    def main(comm, sent):
        for root in range(size):
            got = comm.scatter(sent if comm.rank == root else None, root)
            assert alike(got, make(comm.rank))
            assert got is sent[root] if comm.rank == root else apart(got, sent)

    sent = [make(rank) for rank in range(size)]
    run_ranks(size, main, sent)
    assert alike(sent, [make(rank) for rank in range(size)])


@every_size
def test_scatter_cuts_an_array_along_its_first_axis_as_partition_does(size):
    whole = np.arange((2 * size + 1) * 3).reshape(2 * size + 1, 3)

    def main(comm):
        mine = whole[comm.share(len(whole))]
        out = np.empty(mine.shape, whole.dtype)
        assert comm.scatter(whole if comm.rank == 0 else None, out=out) is out
        assert alike(out, mine.copy())
        piece = comm.scatter(whole if comm.rank == 0 else None)
        assert alike(piece, mine.copy())
        assert apart(piece, whole)

    run_ranks(size, main)


@every_size
@every_number
def test_reduce_and_allreduce_combine_arrays_element_by_element(size, make):
    def main(comm, sent):
        expected = np.asarray(reduce(np.add, (make(rank) for rank in range(size))))
        mine = sent[comm.rank]
        for root in range(size):
            result = comm.reduce(mine, SUM, root)
            assert (result is None) == (comm.rank != root)
            assert result is None or (alike(native(result), native(expected)) and apart(result, sent))
        result = comm.allreduce(mine)
        assert alike(native(result), native(expected))
        assert apart(result, sent)
        return result

    def native(array):
        return array.astype(array.dtype.newbyteorder("="))

    sent = [make(rank) for rank in range(size)]
    results = run_ranks(size, main, sent)
    assert all(apart(a, b) for i, a in enumerate(results) for b in results[:i])
    assert alike(sent, [make(rank) for rank in range(size)])


@every_size
@pytest.mark.parametrize("count", [3, 20_000])
@pytest.mark.parametrize(("op", "ufunc"), [(MIN, np.minimum), (MAX, np.maximum), (PROD, np.multiply), (SUM, np.add)])
def test_the_built_in_operators_take_arrays_and_numbers(size, count, op, ufunc):
    values = [np.arange(count) % 3 + (rank * 5) % 3 + 1 for rank in range(size)]

    def main(comm):
        mine = values[comm.rank]
        assert alike(comm.allreduce(mine, op), reduce(ufunc, values))
        assert alike(comm.allreduce(mine, ufunc), reduce(ufunc, values))
        assert comm.allreduce(int(mine[0]), op) == reduce(ufunc, values)[0]

    run_ranks(size, main)


@every_size
def test_operands_are_combined_in_rank_order(size):
    matrices = [np.array([[rank, 1], [1, rank + 2]]) for rank in range(size)]
    letters = "abcdefg"[:size]

    def main(comm):
        for root in range(size):
            result = comm.reduce(letters[comm.rank], root=root)
            assert result == (letters if comm.rank == root else None)
        assert comm.allreduce(letters[comm.rank]) == letters
        assert comm.allreduce([comm.rank]) == list(range(size))
        assert comm.allreduce((comm.rank, comm.rank), lambda lower, higher: (lower[0], higher[1])) == (0, size - 1)
        assert alike(comm.allreduce(matrices[comm.rank], np.matmul), reduce(np.matmul, matrices))

    run_ranks(size, main)


@every_size
@pytest.mark.parametrize("count", [1, 1_000, 70_001])
def test_a_float_reduction_has_the_same_bits_on_every_rank_root_and_run(size, count):
    random = np.random.default_rng(size * count)
    values = [(random.standard_normal(count) * 10.0 ** random.integers(-9, 9, count)).astype("f4") for _ in range(size)]

    def main(comm):
        mine = values[comm.rank]
        reduced = [comm.reduce(mine, root=root) for root in range(size)][comm.rank]
        return reduced.tobytes(), comm.allreduce(mine).tobytes(), comm.allreduce(mine, lambda a, b: a + b).tobytes()

    results = [bits for _ in range(2) for rank in run_ranks(size, main) for bits in rank]
    assert len(set(results)) == 1


@every_size
@pytest.mark.parametrize("count", [5, 20_000, 70_001])
@pytest.mark.parametrize("order", ["C", "F"])
def test_collectives_put_their_result_in_out(size, count, order):
    def main(comm):
        value = np.full((count, 2), float(comm.rank))
        for root in range(size):
            out = np.empty((count, 2), order=order)
            there = comm.rank == root
            got = comm.broadcast(value, root, out=out)
            assert got is (value if there else out)
            assert (got == root).all()
            assert comm.reduce(value, root=root, out=out) is (out if there else None)
            assert not there or (out == sum(range(size))).all()
            assert comm.scatter([value + rank for rank in range(size)], root, out=out) is out
            assert (out == root + comm.rank).all()
        assert comm.allreduce(value, MAX, out=out) is out
        assert (out == size - 1).all()
        assert (value == comm.rank).all()

    run_ranks(size, main)


@every_size
@pytest.mark.parametrize("count", [5, 20_000, 70_001])
def test_a_reduction_may_replace_its_value(size, count):
    def main(comm):
        value = np.full(count, comm.rank)
        assert comm.allreduce(value, out=value) is value
        assert (value == sum(range(size))).all()
        for root in range(size):
            value = np.full(count, comm.rank)
            comm.reduce(value, root=root, out=value)
            assert (value == (sum(range(size)) if comm.rank == root else comm.rank)).all()

    run_ranks(size, main)


@many_ranks
@pytest.mark.parametrize("count", [5, 20_000])
def test_a_result_that_does_not_fit_out_is_said_to_and_the_communicator_goes_on(size, count):
    root = 1
    calls = [
        lambda comm, value, out: comm.broadcast(value, root, out=out),
        lambda comm, value, out: comm.reduce(value, root=root, out=out),
        lambda comm, value, out: comm.allreduce(value, out=out),
        lambda comm, value, out: comm.scatter([value] * size, root, out=out),
    ]

    def main(comm):
        value = np.ones(count)
        for call, out in product(calls, [np.empty(count + 1), np.empty(count, "f4"), np.empty((count, 1))]):
            try:
                call(comm, value, out)
                fine = True
            except UsageError as error:
                fine = False
                assert f"out= is an array {out.shape} of {out.dtype}, but" in str(error)  # noqa: PT017
            expected = {0: comm.rank == root, 1: comm.rank != root, 2: False, 3: False}[calls.index(call)]
            assert fine == expected
        assert comm.allreduce(1) == size

    run_ranks(size, main)


@every_size
def test_a_barrier_ends_for_nobody_before_all_have_come(size):
    arrived = [0] * size

    def main(comm):
        for lap in range(1, 20):
            arrived[comm.rank] = lap
            comm.barrier()
            assert min(arrived) >= lap
            comm.barrier()

    run_ranks(size, main)


@every_size
def test_partition_shares_everything_out(size):
    shares = run_ranks(size, lambda comm: comm.partition(10))
    assert [start + offset for start, count in shares for offset in range(count)] == list(range(10))


@every_size
def test_messages_and_collectives_do_not_meet(size):
    def main(comm):
        right, left = (comm.rank + 1) % size, (comm.rank - 1) % size
        for tag in range(10):
            comm.send((comm.rank, tag), right, tag)
            assert comm.allreduce(1) == size
        assert [comm.recv(left, tag) for tag in reversed(range(10))] == [(left, tag) for tag in reversed(range(10))]

    run_ranks(size, main)


def test_a_communicator_says_who_it_is():
    def main(comm):
        return repr(comm), comm.rank, comm.size, comm.hosts

    hosts = ("this process", "this process")
    assert run_ranks(2, main) == [(f"<Comm rank {rank} of 2>", rank, 2, hosts) for rank in range(2)]


def test_leaving_a_with_block_ends_the_rank():
    def main(comm):
        with comm:
            comm.barrier()
            if comm.rank == 0:
                comm.send("last words", 1)
                return
            assert comm.recv(0) == "last words"
            error_of(PeerExited, comm.recv, 0)

    run_ranks(2, main)


# ------------------------------------------------------------------------------------- disagreement


def lower(a, b):
    return min(a, b)


def higher(a, b):
    return max(a, b)


MISMATCHES = {
    "collectives": (
        lambda comm: comm.barrier(),
        lambda comm: comm.allgather(1),
        "barrier()",
        "allgather()",
    ),
    "opposite directions": (
        lambda comm: comm.gather(1),
        lambda comm: comm.broadcast(1),
        "gather(root=0)",
        "broadcast(root=0)",
    ),
    "roots": (
        lambda comm: comm.broadcast(1, 0),
        lambda comm: comm.broadcast(1, 1),
        "broadcast(root=0)",
        "broadcast(root=1)",
    ),
    "roots that wait": (
        lambda comm: comm.gather(1, 0),
        lambda comm: comm.gather(1, 1),
        "gather(root=0)",
        "gather(root=1)",
    ),
    "shapes": (
        lambda comm: comm.allreduce(np.zeros(3)),
        lambda comm: comm.allreduce(np.zeros(4)),
        "allreduce(op=SUM, array (3,) of float64)",
        "allreduce(op=SUM, array (4,) of float64)",
    ),
    "sizes": (
        lambda comm: comm.allreduce(np.zeros(3)),
        lambda comm: comm.allreduce(np.zeros(90_000)),
        "allreduce(op=SUM, array (3,) of float64)",
        "allreduce(op=SUM, array (90000,) of float64)",
    ),
    "dtypes": (
        lambda comm: comm.reduce(np.zeros(3, "f4")),
        lambda comm: comm.reduce(np.zeros(3, "f8")),
        "reduce(root=0, op=SUM, array (3,) of float32)",
        "reduce(root=0, op=SUM, array (3,) of float64)",
    ),
    "array and object": (
        lambda comm: comm.allreduce(np.zeros(())),
        lambda comm: comm.allreduce(0.0),
        "allreduce(op=SUM, array () of float64)",
        "allreduce(op=SUM, object)",
    ),
    "operators": (
        lambda comm: comm.allreduce(1, lower),
        lambda comm: comm.allreduce(1, higher),
        f"allreduce(op={__name__}.lower, object)",
        f"allreduce(op={__name__}.higher, object)",
    ),
}


def site(function):
    return f"{__file__}:{function.__code__.co_firstlineno}"


def first_failure(comm, call, together):
    """The error of a collective, or of one that follows: where nobody waits, a mismatch shows only later.

    A rank that catches it and ends at once may be gone before another hears of the mismatch, which then finds a
    peer that has ended; so all wait here for each other.
    """
    with pytest.raises(CollectiveMismatch) as caught:  # noqa: PT012
        call(comm)
        for _ in range(200):
            comm.barrier()
    together.wait(10)
    return str(caught.value)


@pytest.mark.parametrize(("size", "stranger"), [(2, 1), (3, 0), (4, 3), (7, 3)])
@pytest.mark.parametrize(("first", "second", "one", "other"), MISMATCHES.values(), ids=MISMATCHES)
def test_a_mismatch_is_told_to_every_rank_with_both_call_sites(size, stranger, first, second, one, other):
    together = threading.Barrier(size)

    def main(comm):
        text = first_failure(comm, second if comm.rank == stranger else first, together)
        assert error_of(CollectiveMismatch, comm.barrier) == text
        return text

    texts = run_ranks(size, main)
    assert len(set(texts)) == 1
    assert re.match(r"ranks disagree about collective 0: rank \d called .*, rank \d called ", texts[0])
    assert f"{one} at {site(first)}" in texts[0]
    assert f"rank {stranger} called {other} at {site(second)}" in texts[0]


@many_ranks
def test_a_mismatch_is_numbered_by_the_calls_before_it(size):
    together = threading.Barrier(size)

    def main(comm):
        comm.barrier()
        comm.barrier()
        together.wait(10)  # the verdict also reaches ranks that are still in an earlier call
        return first_failure(comm, lambda comm: comm.barrier() if comm.rank else comm.allreduce(1), together)

    assert "ranks disagree about collective 2:" in run_ranks(size, main)[0]


def test_one_rank_that_skips_a_collective_is_found():
    together = threading.Barrier(3)

    def calls_both(comm):
        comm.barrier()
        comm.allgather(1)

    def skips(comm):
        comm.allgather(1)

    def main(comm):
        return first_failure(comm, skips if comm.rank == 0 else calls_both, together)

    texts = run_ranks(3, main)
    assert len(set(texts)) == 1
    assert "barrier()" in texts[0]
    assert "allgather()" in texts[0]


# --------------------------------------------------------------------------------- unusable afterwards


@many_ranks
def test_a_timeout_in_a_collective_ends_collectives_and_not_messages(size):
    together = threading.Barrier(size)

    def main(comm):
        if comm.rank:
            text = error_of(DeadlineExceeded, comm.barrier, timeout=BRIEFLY)
            assert text.startswith(f"barrier(): timeout of {BRIEFLY} s passed; this communicator cannot be used")
            text = error_of(ChannelClosed, comm.allreduce, 1)
            assert text.startswith("an earlier barrier() ended with DeadlineExceeded; this communicator cannot be used")
            comm.send("still here", 0)
            together.wait(10)
            return
        together.wait(10)
        assert [comm.recv(rank) for rank in range(1, size)] == ["still here"] * (size - 1)

    run_ranks(size, main)


@many_ranks
@pytest.mark.parametrize("count", [1, 20_000])
def test_an_operator_that_raises_ends_collectives(size, count):
    def fails(_left, _right):
        raise ZeroDivisionError("oops")

    def main(comm):
        if comm.rank != 0:
            comm.allreduce(np.ones(count), fails, timeout=10)
            return
        with pytest.raises(ZeroDivisionError):
            comm.allreduce(np.ones(count), fails)
        assert " ended with ZeroDivisionError; " in error_of(ChannelClosed, comm.barrier)
        raise ZeroDivisionError("as it would be")

    with pytest.raises(ExceptionGroup) as caught:
        run_ranks(size, main)
    assert len(caught.value.exceptions) == size
    assert {type(error) for error in caught.value.exceptions} <= {ZeroDivisionError, RankFailed}


def test_a_value_that_cannot_be_pickled_ends_collectives():
    def main(comm):
        if comm.rank == 0:
            assert "cannot be pickled" in error_of(UsageError, comm.broadcast, threading.Lock())
            assert " ended with UsageError; " in error_of(ChannelClosed, comm.barrier)
            raise ValueError("oops")
        assert "rank 0 on this process failed: ValueError: oops" in error_of(RankFailed, comm.broadcast)
        error_of(RankFailed, comm.barrier)

    with pytest.raises(ExceptionGroup, match="1 of 3 ranks failed"):
        run_ranks(3, main)


# ----------------------------------------------------------------------------------- ranks that end


@pytest.mark.parametrize("source", [0, ANY_SOURCE])
@pytest.mark.parametrize("count", [1, 5 * LARGE])
def test_a_rank_that_has_ended_is_told_after_its_last_message(source, count):
    def main(comm):
        if comm.rank == 0:
            for number in range(5):
                comm.send((number, bytes(count)), 1)
            return
        for number in range(5):
            assert comm.recv(source)[0] == number
        text = error_of(PeerExited, comm.recv, source)
        assert text == "rank 0 has ended; nothing more will come from it, and it will take nothing"
        error_of(PeerExited, comm.send, 1, 0)
        error_of(PeerExited, comm.barrier)

    run_ranks(2, main)


@many_ranks
def test_a_rank_that_fails_is_named_by_whatever_needs_it(size):
    survivors = threading.Barrier(size - 1)

    def main(comm):
        if comm.rank == 1:
            comm.recv(0)  # a link stands: what a failing rank still holds back for one is lost
            comm.send("last words", 0)
            raise ValueError("oops")
        if comm.rank == 0:
            comm.send("go", 1)
            assert comm.recv(1) == "last words"
        for call in (lambda: comm.recv(1), comm.recv, comm.barrier):
            assert error_of(RankFailed, call) == "rank 1 on this process failed: ValueError: oops"
        with pytest.raises(RankFailed) as caught:
            comm.send(1, 1)
        assert (caught.value.rank, caught.value.host) == (1, "this process")
        survivors.wait(10)

    with pytest.raises(ExceptionGroup, match=f"1 of {size} ranks failed"):
        run_ranks(size, main)


def test_survivors_still_exchange_messages():
    def main(comm):
        if comm.rank == 2:
            raise ValueError("oops")
        error_of(RankFailed, comm.recv, 2)
        return comm.sendrecv(comm.rank, 1 - comm.rank, 1 - comm.rank)

    with pytest.raises(ExceptionGroup, match="1 of 3 ranks failed"):
        run_ranks(3, main)


# ------------------------------------------------------------------------------------------ threads


@pytest.mark.parametrize("unmatched_limit", [0, 1 << 30])
def test_threads_of_one_communicator_lose_and_mix_nothing(unmatched_limit):
    threads, laps = 8, 60
    sizes = [0, 10, LARGE, 1, 3 * LARGE]

    def main(comm):
        other, wrong = 1 - comm.rank, []

        def exchange(tag):
            for lap in range(laps):
                payload = bytes([tag]) * sizes[lap % len(sizes)]
                expected = (other, tag, lap, payload)
                try:
                    got = comm.sendrecv((comm.rank, tag, lap, payload), other, other, sendtag=tag, recvtag=tag)
                except Exception as error:
                    wrong.append(error)
                    return
                if got != expected:
                    wrong.append((tag, lap))

        running = [threading.Thread(target=exchange, args=(tag,)) for tag in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return wrong

    assert run_ranks(2, main, unmatched_limit=unmatched_limit) == [[], []]


def test_threads_send_while_others_of_their_rank_receive():
    count = 100

    def main(comm):
        other = 1 - comm.rank

        def send(tag):
            for number in range(count):
                comm.send(number, other, tag)

        senders = [threading.Thread(target=send, args=(tag,)) for tag in range(4)]
        for thread in senders:
            thread.start()
        status, got = Status(), {tag: [] for tag in range(4)}
        for _ in range(4 * count):
            value = comm.recv(other, status=status)
            got[status.tag].append(value)
        for thread in senders:
            thread.join()
        return all(numbers == list(range(count)) for numbers in got.values())

    assert run_ranks(2, main) == [True, True]
