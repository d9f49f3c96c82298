"""The clock, held against closed forms: what LogGP says of a message, and of the algorithms made of messages.

Times are small integers and powers of two, so that equal means equal.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest

from rmpi.comm import choose
from rmpi.comm.collectives import gathering, reduction
from rmpi.comm.ops import SUM, Operator
from rmpi.comm.schedule import Recv, Send, finished
from rmpi.errors import Deadlock
from rmpi.testing.clock import Charged, Cpu, Level, Network, simulate_cost
from rmpi.testing.simulate import simulate

L, O, G = 8, 2, 0.25  # noqa: E741  # of the paper
PLAIN = Network.uniform(latency=L, overhead=O, byte_gap=G)
KILO = bytes(1025)

PING = 2 * O + L + 1024 * G
"""What one message of `KILO` takes."""

EMPTY = 2 * O + L + 7 * G
"""What one takes that says nothing: an object without a length counts for 8 bytes."""

LARGE = bytes(64 * 1024 + 1)
LARGE_WIRE = 64 * 1024 * G


def network(local=None, remote=None, **cpu):
    """One where what is not asked for costs nothing."""
    level = local or Level(L, O, byte_gap=G)
    return Network(level, remote or level, Cpu(**{"combine_byte": 0.0, **cpu}))


def one_way(*values):
    """From rank 0 to rank 1, one after the other."""

    def schedule(rank):
        for value in values:
            yield Send(1, value) if rank == 0 else Recv(0)

    return schedule


def fan_out(size, value=KILO):
    """From rank 0 to all others, in one tuple."""

    def schedule(rank):
        if rank == 0:
            yield tuple(Send(peer, value) for peer in range(1, size))
        else:
            yield Recv(0)

    return schedule


def fan_in(size, value=KILO):
    """From all others to rank 0, in one tuple."""

    def schedule(rank):
        if rank:
            yield Send(0, value)
        else:
            yield tuple(Recv(peer) for peer in range(1, size))

    return schedule


def exchange(value=KILO):
    def schedule(rank):
        yield Send(1 - rank, value), Recv(1 - rank)

    return schedule


# ---- one message ----------------------------------------------------------------------------------------


def test_a_message_takes_what_loggp_says():
    cost = simulate_cost(one_way(KILO), 2, PLAIN)
    assert cost.times == [O, PING]  # the sender goes on when its core is done
    assert (cost.seconds, cost.messages, cost.nbytes) == (PING, 1, 1025)


def test_there_and_back_takes_twice_as_long():
    def schedule(rank):
        steps = Send(1 - rank, KILO), Recv(1 - rank)
        first, then = steps if rank == 0 else reversed(steps)
        yield first
        yield then

    assert simulate_cost(schedule, 2, PLAIN).times == [2 * PING, PING + O]


def test_an_exchange_goes_both_ways_at_once():
    assert simulate_cost(exchange(), 2, PLAIN).times == [PING, PING]


def test_a_late_receiver_finds_the_message_there():
    assert simulate_cost(one_way(KILO), 2, PLAIN, start=[0, 1000]).times == [O, 1000 + O]


def test_ranks_begin_when_they_are_told():
    assert simulate_cost(one_way(KILO), 2, PLAIN, start=[100, 0]).times == [100 + O, 100 + PING]


# ---- several messages -----------------------------------------------------------------------------------


def test_small_sends_of_a_rank_follow_each_other_by_their_overhead():
    assert simulate_cost(fan_out(4, b"x"), 4, PLAIN).times == [3 * O, *(k * O + L + O for k in (1, 2, 3))]


def test_a_gap_between_messages_counts_if_it_is_longer():
    gap = 16
    spaced = Network.uniform(latency=L, overhead=O, gap=gap, byte_gap=G)
    assert simulate_cost(fan_out(4, b"x"), 4, spaced).times == [3 * O, *(2 * O + L + k * gap for k in (0, 1, 2))]


def test_large_sends_of_a_rank_share_its_port():
    assert simulate_cost(fan_out(4), 4, PLAIN).times == [3 * O, *(PING + k * 1024 * G for k in (0, 1, 2))]


def test_what_comes_to_a_rank_shares_its_port():
    assert simulate_cost(fan_in(4), 4, PLAIN).times[0] == PING + 2 * 1024 * G


def test_a_core_takes_one_message_after_the_other():
    assert simulate_cost(fan_in(4, b"x"), 4, PLAIN).times[0] == 2 * O + L + 2 * O


def test_one_step_after_the_other_waits_for_each():
    assert simulate_cost(one_way(KILO, KILO), 2, PLAIN).times == [2 * O, PING + 1024 * G]


# ---- large messages -------------------------------------------------------------------------------------


def test_a_large_message_takes_a_round_trip_more():
    asked = 2 * (O + L)
    cost = simulate_cost(one_way(LARGE), 2, PLAIN)
    assert cost.times == [O + asked + LARGE_WIRE, 2 * O + L + asked + LARGE_WIRE]


def test_a_large_message_waits_for_its_receive():
    cost = simulate_cost(one_way(LARGE), 2, PLAIN, start=[0, 1000])
    assert cost.times == [1000 + (O + L) + LARGE_WIRE, 1000 + (O + L) + LARGE_WIRE + L + O]


def test_the_round_trip_and_its_limit_can_be_told():
    quick = network(Level(L, O, byte_gap=G, eager_limit=1024, rendezvous=4))
    assert simulate_cost(one_way(KILO), 2, quick).seconds == PING + 4


def test_messages_of_a_pair_stay_in_order_whichever_arrives_first():
    def schedule(rank):
        if rank == 0:
            yield Send(1, LARGE), Send(1, "small")
            return None
        first = yield Recv(0)
        return len(first), (yield Recv(0))

    assert simulate_cost(schedule, 2, PLAIN).results[1] == (len(LARGE), "small")


# ---- cores that copy, and cores that are shared ---------------------------------------------------------


COPIED = network(Level(L, O, byte_gap=G, copied=True))


def test_copying_takes_no_longer_where_the_cores_have_nothing_else_to_do():
    assert simulate_cost(one_way(KILO), 2, COPIED).times == [O + 1024 * G, PING]


def test_a_core_that_copies_does_one_direction_after_the_other():
    sent = O + 1024 * G
    assert simulate_cost(exchange(), 2, COPIED).times == [sent + 1024 * G + O] * 2


def test_a_late_receiver_still_has_to_copy():
    assert simulate_cost(one_way(KILO), 2, COPIED, start=[0, 1000]).times[1] == 1000 + 1024 * G + O


def test_ranks_of_one_core_work_in_turn():
    def schedule(rank):
        yield Send(rank ^ 1, b"x"), Recv(rank ^ 1)

    apart = simulate_cost(schedule, 4, PLAIN).seconds
    shared = simulate_cost(schedule, 4, PLAIN, core_of=[0, 1, 0, 1])
    assert apart == 2 * O + L
    assert shared.times == [2 * O + L, 2 * O + L, 3 * O + L, 3 * O + L]


def test_leaving_the_core_to_another_rank_costs_time():
    cost = simulate_cost(one_way(b"x"), 2, network(switch=100), core_of=[0, 0])
    assert cost.times == [O, O + L + 100 + O]


# ---- what the core does besides -------------------------------------------------------------------------


def test_a_call_costs_what_it_costs():
    assert simulate_cost(finished, 3, network(call=5)).times == [5, 5, 5]


def test_packing_costs_time_for_each_item_at_both_ends():
    items = [b"ab", [b"cd"], {"key": b"ef"}]  # three, one in the second, and two in the third
    plain, packed = (simulate_cost(one_way(items), 2, each).seconds for each in (PLAIN, network(item=50)))
    assert packed - plain == 2 * 6 * 50


def test_combining_is_charged_for_when_it_is_done():
    adding = Charged(SUM)
    costs = network(combine=5, combine_byte=0.5)
    values = [np.full(16, rank) for rank in range(2)]
    cost = simulate_cost(lambda rank: choose.allreduce(rank, 2, values[rank], adding), 2, costs, operator=adding)
    assert cost.times == [2 * O + L + 127 * G + 5 + 128 * 0.5] * 2
    assert [result.tolist() for result in cost.results] == [[1] * 16] * 2


def test_a_charged_operator_is_otherwise_the_same():
    joined = Charged(Operator(lambda left, right: left + right, name="join"))
    assert (joined("a", "b"), joined.name, joined.exact_for("a")) == ("ab", "join", False)
    assert joined.spent(Cpu(combine=3)) == 3
    assert joined.spent(Cpu(combine=3)) == 0
    assert Charged(SUM).keeps(np.dtype(float))


# ---- two levels -----------------------------------------------------------------------------------------

FAR = Level(latency=1000, overhead=50, byte_gap=1.0)
TWO_LEVELS = network(remote=FAR)


def test_a_message_between_machines_costs_what_is_said_of_that_level():
    near = simulate_cost(one_way(KILO), 2, TWO_LEVELS, machine_of=[0, 0])
    far = simulate_cost(one_way(KILO), 2, TWO_LEVELS, machine_of=[0, 1])
    assert (near.seconds, far.seconds) == (PING, 2 * 50 + 1000 + 1024)


def test_the_ranks_of_a_machine_share_its_port():
    def schedule(rank):
        yield Send(rank + 2, KILO) if rank < 2 else Recv(rank - 2)

    narrow = network(remote=Level(latency=1000, overhead=50, port=1.0))
    through = 50 + 1025 + 1000 + 50
    cost = simulate_cost(schedule, 4, narrow, machine_of=[0, 0, 1, 1])
    assert cost.times[2:] == [through, through + 1025]
    alone = simulate_cost(schedule, 4, narrow, machine_of=[0, 1, 2, 3])
    assert alone.times[2:] == [through, through]


def test_what_comes_to_a_machine_shares_its_port_too():
    def schedule(rank):
        yield Send(rank + 2, KILO) if rank < 2 else Recv(rank - 2)

    narrow = network(remote=Level(latency=1000, overhead=50, port=1.0))
    cost = simulate_cost(schedule, 4, narrow, machine_of=[0, 1, 2, 2])
    assert cost.times[2:] == [50 + 1025 + 1000 + 50, 50 + 1025 + 1000 + 1025 + 50]


# ---- algorithms -----------------------------------------------------------------------------------------


def rounds(size):
    return (size - 1).bit_length()


@pytest.mark.parametrize("size", [2, 3, 4, 7, 8, 33, 1000])
def test_a_dissemination_barrier_takes_log_rounds(size):
    cost = simulate_cost(lambda rank: choose.barrier(rank, size), size, PLAIN)
    assert cost.times == [rounds(size) * EMPTY] * size


@pytest.mark.parametrize("size", [2, 4, 8, 64, 1024])
def test_a_binomial_broadcast_takes_as_many_messages_as_the_tree_is_deep(size):
    cost = simulate_cost(lambda rank: choose.broadcast(rank, size, 0, KILO), size, PLAIN)
    assert cost.seconds == rounds(size) * PING


@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_a_ring_takes_as_many_rounds_as_there_are_others(size):
    cost = simulate_cost(lambda rank: gathering.ring(rank, size, KILO, range(size)), size, PLAIN)
    assert cost.times == [(size - 1) * PING] * size


@pytest.mark.parametrize("size", [2, 4, 16])
def test_rabenseifner_moves_halves_there_and_back(size):
    value, adding = np.ones(64 * size), Charged(SUM)
    cost = simulate_cost(
        lambda rank: reduction.rabenseifner(rank, size, value, adding),
        size,
        network(combine_byte=0.5),
        operator=adding,
    )
    halves = [value.nbytes >> level for level in range(1, rounds(size) + 1)]
    ways = sum(2 * (2 * O + L + (half - 1) * G) for half in halves)
    assert cost.times == [ways + 0.5 * sum(halves)] * size


# ---- the very same schedules ----------------------------------------------------------------------------


def collectives(size, operator):
    """Of a value so large that it goes by rendezvous, and of a small one."""
    for count in (3, choose.LARGE_ARRAY // 8 + 5):
        mine = [np.arange(count) + rank for rank in range(size)]
        yield lambda rank, mine=mine: choose.broadcast(rank, size, 1, mine[rank])
        yield lambda rank, mine=mine: choose.reduce(rank, size, 1, mine[rank], operator)
        yield lambda rank, mine=mine: choose.allreduce(rank, size, mine[rank], operator)
        yield lambda rank, mine=mine: choose.gather(rank, size, 1, mine[rank])
        yield lambda rank, mine=mine: choose.allgather(rank, size, mine[rank])
        yield lambda rank, mine=mine: choose.scatter(rank, size, 1, mine if rank == 1 else None)


@pytest.mark.parametrize("size", [2, 4, 7])
def test_results_and_messages_are_those_of_the_simulator_without_a_clock(size):
    adding = Charged(SUM)
    for make in collectives(size, adding):
        plain, timed = simulate(make, size), simulate_cost(make, size, PLAIN, operator=adding)
        np.testing.assert_equal(timed.results, plain.results)
        assert (timed.messages, timed.nbytes) == (len(plain.messages), plain.nbytes)


@pytest.mark.parametrize("size", [2, 4, 7])
def test_phantoms_take_as_long_as_values(size):
    machines = [rank // 2 for rank in range(size)]
    adding, pretending = Charged(SUM), Charged(SUM, phantom=True)
    costs = network(remote=Level(100, 20, 4, 0.5, copied=True, port=0.25), call=3, combine=5, combine_byte=1, item=7)
    for real, phantom in zip(collectives(size, adding), collectives(size, pretending), strict=True):
        expected = simulate_cost(real, size, costs, machine_of=machines, operator=adding)
        got = simulate_cost(phantom, size, costs, machine_of=machines, operator=pretending, phantom=True)
        assert (got.times, got.messages, got.nbytes) == (expected.times, expected.messages, expected.nbytes)


def test_a_run_is_the_same_every_time():
    def run():
        adding = Charged(SUM)
        value = np.ones(100)
        return simulate_cost(
            lambda rank: choose.allreduce(rank, 13, value, adding),
            13,
            network(remote=FAR, switch=1, combine_byte=0.125),
            machine_of=[rank // 3 for rank in range(13)],
            core_of=[rank // 2 for rank in range(13)],
            operator=adding,
        ).times

    assert run() == run()


def test_phantoms_need_no_memory():
    """32 GB, if each rank had its own."""
    size, adding = 256, Charged(SUM, phantom=True)
    value, out = np.empty(8 << 20), np.empty(8 << 20)
    make = lambda rank: choose.allreduce(rank, size, value, adding, out)  # noqa: E731
    cost = simulate_cost(make, size, PLAIN, operator=adding, phantom=True)
    assert cost.nbytes == 2 * value.nbytes * (size - 1)


def test_containers_of_phantoms_are_the_receivers_own():
    mine = {"pieces": [np.ones(2)], "text": ("a", 1)}
    received = simulate_cost(one_way_result(mine), 2, PLAIN, phantom=True).results[1]
    received["pieces"].append(None)
    assert len(mine["pieces"]) == 1
    assert received["text"] == ("a", 1)
    assert received["pieces"][0].shape == (2,)


def one_way_result(value):
    def schedule(rank):
        if rank == 0:
            return (yield Send(1, value))
        return (yield Recv(0))

    return schedule


def test_thousands_of_ranks_take_seconds():
    size = 4096
    cost = simulate_cost(lambda rank: choose.barrier(rank, size), size, TWO_LEVELS, phantom=True)
    assert cost.messages == size * 12


# ---- what is wrong with a schedule ----------------------------------------------------------------------


def test_a_deadlock_is_named_not_waited_for():
    def each_waits_first(rank):
        value = yield Recv(1 - rank)
        yield Send(1 - rank, value)

    with pytest.raises(Deadlock, match=r"^0 waits for 1, 1 waits for 0$"):
        simulate_cost(each_waits_first, 2, PLAIN)


def test_large_sends_that_nobody_can_receive_are_a_deadlock():
    def each_sends_first(value):
        def schedule(rank):
            yield Send(1 - rank, value)
            yield Recv(1 - rank)

        return schedule

    assert simulate_cost(each_sends_first(KILO), 2, PLAIN).seconds == PING
    with pytest.raises(Deadlock, match=r"^0 waits for 1, 1 waits for 0$"):
        simulate_cost(each_sends_first(LARGE), 2, PLAIN)


def test_of_many_that_wait_some_are_named():
    def schedule(rank):
        if rank:
            yield Recv(0)

    with pytest.raises(Deadlock, match=r"8 waits for 0 \(which has finished\), 991 more wait too$"):
        simulate_cost(schedule, 1000, PLAIN)


def test_a_message_that_nobody_receives_is_an_error():
    def schedule(rank):
        if rank == 0:
            yield Send(1, "unwanted")

    with pytest.raises(AssertionError, match="left over that nobody receives: 0 -> 1"):
        simulate_cost(schedule, 2, PLAIN)


@pytest.mark.parametrize("peer", [0, 2, -1])
def test_a_peer_must_be_another_rank(peer):
    def schedule(rank):
        if rank == 0:
            yield Recv(peer)

    with pytest.raises(AssertionError, match=f"rank 0 of 2 names peer {peer}"):
        simulate_cost(schedule, 2, PLAIN)


def test_an_exception_comes_out_with_the_rank_it_was_on():
    def schedule(rank):
        if rank == 1:
            raise ValueError("mine")
        yield Recv(1)

    assert gc.isenabled()
    with pytest.raises(ValueError, match="mine") as caught:
        simulate_cost(schedule, 3, PLAIN)
    assert caught.value.__notes__ == ["in the schedule of rank 1 of 3"]
    assert gc.isenabled()


def test_an_empty_tuple_is_complete_at_once():
    def schedule(rank):
        return (yield ()), rank

    cost = simulate_cost(schedule, 2, PLAIN)
    assert (cost.results, cost.times) == ([([], 0), ([], 1)], [0, 0])
