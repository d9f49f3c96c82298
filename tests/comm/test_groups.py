"""Communicators made of communicators: who is in them, what keeps them apart, and how they end."""

import gc
import threading
import time

import numpy as np
import pytest

from rmpi.comm.communicator import Comm
from rmpi.errors import ChannelClosed, CollectiveMismatch, RankError, UsageError
from rmpi.testing import run_ranks
from rmpi.transport.matching import REMEMBERED_CONTEXTS

LARGE = 300_000
"""Bytes that do not travel eagerly."""


def error_of(kind, call, *args, **kwargs):
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def members(comm, within):
    """The ranks of ``comm`` as ``within`` numbers them, in their order: asked for by a collective."""
    return None if comm is None else comm.allgather(within.rank)


every_size = pytest.mark.parametrize("size", [1, 2, 3, 4, 7], ids="n={}".format)


# -------------------------------------------------------------------------------------------- split


@every_size
def test_split_puts_equal_colours_together_in_the_order_of_ranks(size):
    def main(comm):
        sub = comm.split(comm.rank % 2)
        assert (sub.rank, sub.size) == (comm.rank // 2, len(range(comm.rank % 2, size, 2)))
        return members(sub, comm)

    assert run_ranks(size, main) == [list(range(rank % 2, size, 2)) for rank in range(size)]


@every_size
def test_keys_order_the_ranks_and_ties_keep_their_order(size):
    def main(comm):
        backwards = comm.split("all", -comm.rank)
        in_pairs = comm.split("all", -(comm.rank // 2))
        return members(backwards, comm), members(in_pairs, comm)

    ranks = list(range(size))
    pairs = sorted(ranks, key=lambda rank: -(rank // 2))
    assert run_ranks(size, main) == [(ranks[::-1], pairs)] * size


def test_a_rank_without_a_colour_takes_part_and_gets_nothing():
    def main(comm):
        sub = comm.split(None if comm.rank == 1 else "others")
        assert comm.split(None) is None
        return members(sub, comm)

    assert run_ranks(3, main) == [[0, 2], None, [0, 2]]


@pytest.mark.parametrize(
    "colors",
    [("a", b"a", "a"), ((1, "x"), (1, "y"), (1, "x")), (1, 2.0, 1.0), ([1], [2], [1]), ({"k": 1}, {}, {"k": 1})],
    ids=["text and bytes", "tuples", "numbers of two types", "lists", "dicts"],
)
def test_a_colour_is_any_value_that_can_be_compared(colors):
    def main(comm):
        return members(comm.split(colors[comm.rank]), comm)

    assert run_ranks(3, main) == [[0, 2], [1], [0, 2]]


def test_a_colour_that_equals_nothing_is_a_colour_of_its_own():
    def main(comm):
        return members(comm.split(float("nan")), comm)

    assert run_ranks(2, main) == [[0], [1]]


@pytest.mark.parametrize(
    ("colors", "keys", "text"),
    [
        (("a", "a", "b"), (1, "x", 2), "split: the keys of colour 'a' cannot be ordered"),
        (("b", "a", "a"), (0, None, 2), "split: the keys of colour 'a' cannot be ordered"),
        ((np.zeros(2), np.zeros(2), 3), (0, 0, 0), "split: the colours cannot be compared"),
        (("a", "a", "a"), (np.zeros(2), np.ones(2), 0), "split: the keys of colour 'a' cannot be ordered"),
    ],
    ids=["texts and numbers", "None", "arrays as colours", "arrays as keys"],
)
def test_what_cannot_be_compared_is_an_error_on_all_ranks_of_any_colour(colors, keys, text):
    def main(comm):
        said = error_of(UsageError, comm.split, colors[comm.rank], keys[comm.rank])
        assert said.startswith(text), said
        return members(comm.split(0), comm)  # all of them may go on

    assert run_ranks(3, main) == [[0, 1, 2]] * 3


def test_split_of_a_split_knows_its_hosts():
    hosts = ["one", "two", "one", "two"]

    def main(comm):
        sub = comm.split(comm.rank < 3, -comm.rank)
        half = sub.split(sub.rank % 2)
        return sub.hosts, half.hosts

    answers = run_ranks(4, main, hosts=hosts)
    assert answers[0] == (("one", "two", "one"), ("one", "one"))
    assert answers[1] == (("one", "two", "one"), ("two",))
    assert answers[3] == (("two",), ("two",))


def test_split_by_host_makes_one_communicator_for_each_machine():
    hosts = ["one", "two", "one", "three", "two"]

    def main(comm):
        near = comm.split_by_host()
        assert set(near.hosts) == {hosts[comm.rank]}
        return members(near, comm)

    assert run_ranks(5, main, hosts=hosts) == [[0, 2], [1, 4], [0, 2], [3], [1, 4]]


def test_split_on_another_call_is_a_mismatch_for_all():
    def main(comm):
        call = (comm.dup, comm.split_by_host, lambda: comm.split(1))[comm.rank]
        return error_of(CollectiveMismatch, call)

    for text in run_ranks(3, main):
        assert sum(name in text for name in ("dup()", "split_by_host()", "split()")) == 2


# ------------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize(
    ("chosen", "ranks"),
    [
        (slice(None, 2), [0, 1]),
        (slice(None, None, 2), [0, 2]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        ([3, 1], [3, 1]),
        ((0,), [0]),
        (range(1, 4), [1, 2, 3]),
        (np.array([2, 0]), [2, 0]),
        ({1, 2}, [1, 2]),
        ({3: "c", 0: "a"}.keys(), [3, 0]),
    ],
    ids=str,
)
def test_some_ranks_in_the_order_given(chosen, ranks):
    chosen = chosen if isinstance(chosen, slice) else list(chosen)

    def main(comm):
        if comm.rank not in ranks:
            return error_of(RankError, lambda: comm[chosen])
        sub = comm[chosen]
        assert sub.rank == ranks.index(comm.rank)
        return members(sub, comm)

    for rank, answer in enumerate(run_ranks(4, main)):
        refused = f"comm[…] is called by the ranks that it is made of, {ranks}; this is {rank}"
        assert answer == (ranks if rank in ranks else refused)


@pytest.mark.parametrize(
    ("chosen", "kind", "text"),
    [
        (0, UsageError, "comm[…] takes a slice or several ranks, like comm[:2] or comm[[0, 2]], not 0"),
        ("01", UsageError, "comm[…] takes a slice or several ranks, like comm[:2] or comm[[0, 2]], not '01'"),
        (..., UsageError, "comm[…] takes a slice or several ranks, like comm[:2] or comm[[0, 2]], not Ellipsis"),
        ([0, 2], RankError, "a rank in comm[…]=2: there are only ranks 0 to 1"),
        ([0, -1], RankError, "a rank in comm[…]=-1: there are only ranks 0 to 1"),
        ([0, 1, 0], RankError, "comm[…]: a rank is there twice: [0, 1, 0]"),
        ([0, 1.0], RankError, "a rank in comm[…] must be a rank from 0 to 1, not 1.0"),
        ([], RankError, "comm[…] is called by the ranks that it is made of, []; this is 0"),
        (slice(2, 2), RankError, "comm[…] is called by the ranks that it is made of, []; this is 0"),
    ],
    ids=str,
)
def test_what_are_no_ranks_is_said(chosen, kind, text):
    def main(comm):
        if comm.rank == 0:
            assert error_of(kind, lambda: comm[chosen]) == text

    run_ranks(2, main)


def test_a_communicator_is_no_sequence():
    def main(comm):
        with pytest.raises(TypeError):
            iter(comm)

    run_ranks(1, main)


def test_the_same_ranks_chosen_again_are_another_communicator():
    def main(comm):
        if comm.rank == 2:
            return
        one, two = comm[:2], comm[[0, 1]]
        if comm.rank == 0:
            two.send("two", 1)
            one.send("one", 1)
        else:
            assert (one.recv(0), two.recv(0)) == ("one", "two")

    run_ranks(3, main)


def test_messages_wait_for_a_communicator_that_their_receiver_has_not_made_yet():

    def main(comm):
        if comm.rank == 0:
            sub = comm[[0, 1]]
            sub.send("early", 1)
            request = sub.isend(np.arange(LARGE), 1)
            comm.send("made", 1)
            request.wait()
            assert sub.allreduce(1) == 2
            return
        assert comm.recv(0) == "made"
        sub = comm[[0, 1]]
        assert sub.recv(0) == "early"
        assert (sub.recv(0) == np.arange(LARGE)).all()
        assert sub.allreduce(1) == 2

    run_ranks(2, main, unmatched_limit=0)


# ------------------------------------------------------------------------------------------- apart


def descendants(comm):
    """Communicators of all kinds, made by all ranks alike, two levels deep."""

    def children(parent):
        made = [parent.dup(), parent.dup(), parent[:], parent[:], parent.split(0), parent.split(0)]
        return [*made, parent.split_by_host(), parent.split("all", -parent.rank)]

    first = children(comm)
    return [*first, *children(first[0]), *children(first[4])]


def test_no_two_communicators_share_a_context_and_all_ranks_agree_on_it():
    def main(comm):
        made = [comm, *descendants(comm)]
        alone = [comm[[comm.rank]], comm.split(comm.rank)]
        return [each._context for each in made], [each._context for each in alone]

    common, alone = zip(*run_ranks(3, main), strict=True)
    assert common[0] == common[1] == common[2]
    everything = [*common[0], *(context for contexts in alone for context in contexts)]
    assert len(set(everything)) == len(everything)
    assert all(context % 2 == 0 for context in everything)


def test_messages_of_parent_children_and_siblings_do_not_meet():
    def main(comm):
        group = [comm, *descendants(comm)]
        other = 1 - comm.rank
        mates = [each.allgather(comm.rank).index(other) for each in group]
        sent = [each.isend(number, mate, 5) for number, (each, mate) in enumerate(zip(group, mates, strict=True))]
        backwards = reversed(list(enumerate(zip(group, mates, strict=True))))
        assert all(each.recv(mate, 5) == number for number, (each, mate) in backwards)
        for request in sent:
            request.wait()

    run_ranks(2, main)


@pytest.mark.parametrize("size", [2, 3, 4], ids="n={}".format)
def test_collectives_of_several_communicators_go_on_at_the_same_time(size):
    """Begun in one order, waited for in another on every rank."""

    def main(comm):
        group = [comm, *descendants(comm)]
        values = [np.full(20_000, 100 * number + 1.0) for number in range(len(group))]
        requests = [each.iallreduce(value) for each, value in zip(group, values, strict=True)]
        order = sorted(range(len(group)), key=lambda number: (number * 7 + comm.rank * 5) % len(group))
        for number in order:
            assert (requests[number].wait() == size * (100 * number + 1)).all()

    run_ranks(size, main)


def test_threads_run_collectives_of_siblings_at_the_same_time():
    threads, laps = 4, 15

    def main(comm):
        wrong = []

        def work(number, sub):
            for lap in range(laps):
                total = sub.allreduce((number, lap, comm.rank), op=lambda low, high: (*low, *high))
                if total != (number, lap, 0, number, lap, 1, number, lap, 2):
                    wrong.append(total)

        subs = [comm.dup() for _ in range(threads)]
        running = [threading.Thread(target=work, args=pair) for pair in enumerate(subs)]
        for thread in running:
            thread.start()
        for lap in range(laps):
            assert comm.allreduce(lap) == 3 * lap
        for thread in running:
            thread.join()
        return wrong

    assert run_ranks(3, main) == [[], [], []]


def test_a_communicator_that_is_broken_leaves_the_others_alone():
    def main(comm):
        sub, sibling = comm.dup(), comm.dup()
        error_of(CollectiveMismatch, sub.barrier if comm.rank else sub.dup)
        error_of(CollectiveMismatch, sub.barrier)
        assert comm.allreduce(1) == sibling.allreduce(1) == 3

    run_ranks(3, main)


# --------------------------------------------------------------------------------------------- free


CALLS = {
    "send": lambda comm: comm.send(1, 0),
    "send large": lambda comm: comm.send(bytes(LARGE), 0),
    "recv": lambda comm: comm.recv(),
    "sendrecv": lambda comm: comm.sendrecv(1, 0),
    "isend": lambda comm: comm.isend(1, 0),
    "irecv": lambda comm: comm.irecv(),
    "probe": lambda comm: comm.probe(),
    "iprobe": lambda comm: comm.iprobe(),
    "barrier": lambda comm: comm.barrier(),
    "ibarrier": lambda comm: comm.ibarrier(),
    "dup": lambda comm: comm.dup(),
}


def test_a_communicator_that_was_freed_says_so_and_may_be_freed_again():
    def main(comm):
        sub = comm.dup()
        child = sub.dup()
        sub.free()
        sub.free()
        for call in CALLS.values():
            assert error_of(ChannelClosed, call, sub) == "this communicator was freed"
        assert child.allreduce(1) == comm.allreduce(1) == 2  # what was made of it stays

    run_ranks(2, main)


def test_the_first_communicator_cannot_be_freed():
    def main(comm):
        text = "the communicator of rmpi.init cannot be freed: it ends with the program or its block"
        assert error_of(UsageError, comm.free) == text
        return comm.allreduce(1)

    assert run_ranks(2, main) == [2, 2]


def test_a_block_frees_what_it_made():
    def main(comm):
        with comm.dup() as sub:
            assert sub.allreduce(1) == 2
        error_of(ChannelClosed, sub.barrier)
        return comm.allreduce(1)

    assert run_ranks(2, main) == [2, 2]


@pytest.mark.parametrize(
    "call",
    [
        lambda comm: comm.recv(1),
        lambda comm: comm.send(bytes(LARGE), 1),
        lambda comm: comm.probe(1),
        lambda comm: comm.irecv(1).wait(),
        lambda comm: comm.barrier(),
        lambda comm: comm.ibarrier().wait(),
        lambda comm: comm.iallreduce(np.zeros(LARGE)).wait(),
    ],
    ids=["recv", "send", "probe", "irecv", "barrier", "ibarrier", "iallreduce"],
)
def test_calls_that_wait_hear_that_their_communicator_was_freed(call):
    def main(comm):
        sub = comm.dup()
        if comm.rank == 1:
            return comm.recv(0)
        texts = []
        thread = threading.Thread(target=lambda: texts.append(error_of(ChannelClosed, call, sub)))
        thread.start()
        while not comm._endpoint.crank.leads:  # the thread waits
            time.sleep(0)
        sub.free()
        thread.join(10)
        assert texts == ["this communicator was freed"]
        comm.send("done", 1)
        return None

    run_ranks(2, main, unmatched_limit=0)


def test_requests_of_a_freed_communicator_fail_and_its_rank_still_leaves_properly():
    """A rank with a broken communicator says no BYE; one that freed it does."""

    def main(comm):
        sub = comm.dup()
        if comm.rank == 0:
            requests = [sub.ibarrier(), sub.iallreduce(np.ones(LARGE)), sub.irecv(1), sub.isend(bytes(LARGE), 1)]
            sub.free()
            for request in requests:
                assert error_of(ChannelClosed, request.wait) == "this communicator was freed"
            assert comm._endpoint._ends.broken == {}
        else:
            sub.free()
        comm.barrier()

    run_ranks(2, main, unmatched_limit=0)


@pytest.mark.parametrize("freed", ["before", "after"])
def test_small_messages_to_a_freed_communicator_are_dropped_and_their_credit_comes_back(freed):
    """They are more than a pair's credit; some come before it is freed, some later."""

    def main(comm):
        sub = comm.dup()
        if comm.rank == 0:
            if freed == "before":
                assert comm.recv(1) == "freed"
            for _ in range(60):
                request = sub.isend(bytes(50_000), 1)
            comm.send("sent", 1)
            if freed == "after":
                assert comm.recv(1) == "freed"
            request.wait()
            for number in range(60):
                comm.send((number, bytes(50_000)), 1)
            return None
        if freed == "after":
            assert comm.recv(0) == "sent"
        sub.free()
        comm.send("freed", 0)
        if freed == "before":
            assert comm.recv(0) == "sent"
        assert [comm.recv(0)[0] for _ in range(60)] == list(range(60))
        return comm._endpoint._incoming.unmatched

    assert run_ranks(2, main) == [None, 0]


@pytest.mark.parametrize("freed", ["before", "after"])
def test_large_messages_to_a_freed_communicator_complete_at_their_sender(freed):
    def main(comm):
        sub = comm.dup()
        if comm.rank == 0:
            if freed == "before":
                assert comm.recv(1) == "freed"
            request = sub.isend(np.zeros(LARGE), 1)
            comm.send("offered", 1)
            request.wait()
            comm.send("done", 1)
            return None
        if freed == "after":
            assert comm.recv(0) == "offered"
        sub.free()
        comm.send("freed", 0)
        if freed == "before":
            assert comm.recv(0) == "offered"
        assert comm.recv(0) == "done"
        return comm._endpoint._incoming.unmatched

    assert run_ranks(2, main, unmatched_limit=0) == [None, 0]


def known(comm):
    """How much the endpoint remembers of its communicators."""
    endpoint = comm._endpoint
    gc.collect()
    contexts, ports = endpoint._incoming.matching.contexts, endpoint._shortcuts._ports
    return len(contexts), len(ports), len(endpoint._ends.broken), len(comm._family._drivers)


def test_making_and_freeing_leaves_nothing_behind():
    def main(comm):
        for number in range(100):
            sub = comm.dup() if number % 2 else comm.split(number)
            assert sub.allreduce(number) == 2 * number
            if number % 10 == 0:
                sub.ibarrier()
                sub.irecv()
            sub.free()
        del sub
        return comm

    for comm in run_ranks(2, main):
        assert known(comm) == (2, 2, 0, 1)  # the contexts of the first one, their ports, and its driver


def test_thousands_of_communicators_that_were_freed_take_no_memory():
    """5000, of which the numbers of some are remembered, for messages that come late."""

    def main(comm):
        def make(count):
            for _ in range(count):
                comm.dup().free()
            return known(comm), len(gc.get_objects())

        (before, objects), (after, more) = make(2), make(5000)
        assert before == after
        assert more - objects < 100
        assert len(comm._endpoint._incoming.matching._closed) == REMEMBERED_CONTEXTS

    run_ranks(1, main)


def test_a_communicator_says_who_it_is():
    def main(comm):
        sub = comm.split(0, -comm.rank)
        assert isinstance(sub, Comm)
        return repr(sub)

    assert run_ranks(2, main) == ["<Comm rank 1 of 2>", "<Comm rank 0 of 2>"]


def test_ranks_agree_on_the_next_one_though_the_making_of_one_was_interrupted_at_its_end(monkeypatch):
    """As by a signal handler that raises when all is done but the object."""

    def main(comm):
        if comm.rank == 0:
            with monkeypatch.context() as patch:
                patch.setattr(comm, "_make", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    comm.dup()
        else:
            comm.dup()
        return comm.dup().allreduce(1, timeout=10)

    assert run_ranks(2, main) == [2, 2]
