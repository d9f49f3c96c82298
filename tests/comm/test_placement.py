"""Placement: which rank goes where, and what is refused."""

import re

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from rmpi.comm.placement import MAX_RANKS, Placement, place
from rmpi.errors import LaunchError
from rmpi.places.hosts import HostSpec, parse_host_list


def layout(hosts, ranks=None, *, cores=2, **options):
    """``"a4 b2"``: the hosts of a placement, each with its number of ranks."""
    placement = place(parse_host_list(hosts), ranks, cores=cores, **options)
    return " ".join(f"{host}{len(placement.ranks_on(index))}" for index, host in enumerate(placement.hosts))


# ---- how many ----


@pytest.mark.parametrize(
    ("hosts", "options", "expected"),
    [
        ("localhost", {}, "localhost1"),
        ("a:4,b:2", {}, "a4 b2"),
        ("a:4,b", {}, "a4 b1"),
        ("a,b,c", {}, "a1 b1 c1"),
        ("a max_slots=4", {}, "a1"),
        ("a,b", {"per_host": 3}, "a3 b3"),
        ("a:4,b:8", {"per_host": 3}, "a3 b3"),
        ("a:4,b", {"per_host": 3}, "a3 b3"),
        ("a:2,b:4", {"per_host": 3, "oversubscribe": True}, "a3 b3"),
        ("a,b", {"oversubscribe": False}, "a1 b1"),
    ],
)
def test_without_a_number_every_slot_gets_a_rank(hosts, options, expected):
    assert layout(hosts, **options) == expected


@pytest.mark.parametrize(
    ("hosts", "ranks", "options", "expected"),
    [
        ("a:4,b:2,c:4", 7, {}, "a4 b2 c1"),
        ("a:4,b:2,c:4", 4, {}, "a4"),
        ("a:4,b:2", 1, {}, "a1"),
        ("a,b,c", 2, {}, "a1 b1"),
        ("a,b:4", 3, {}, "a1 b2"),
        ("a:4,b:4", 4, {"per_host": 2}, "a2 b2"),
        ("a:4,b:4", 3, {"per_host": 2}, "a2 b1"),
        ("a:1,b:4", 4, {"per_host": 3}, "a1 b3"),
        ("a,b", 4, {"per_host": 3}, "a3 b1"),
    ],
)
def test_ranks_fill_host_after_host(hosts, ranks, options, expected):
    assert layout(hosts, ranks, **options) == expected


# ---- more ranks than slots ----


@pytest.mark.parametrize(
    ("hosts", "ranks", "expected"),
    [
        ("localhost", 8, "localhost8"),
        ("a,b", 8, "a4 b4"),
        ("a,b,c", 7, "a3 b2 c2"),
        ("a,b,c", 8, "a3 b3 c2"),
        ("a,b max_slots=2,c", 8, "a3 b2 c3"),
        ("a max_slots=1,b max_slots=2,c", 9, "a1 b2 c6"),
    ],
)
def test_slots_that_nobody_stated_bind_nobody(hosts, ranks, expected):
    assert layout(hosts, ranks) == expected
    assert layout(hosts, ranks, oversubscribe=True) == expected


@pytest.mark.parametrize(
    ("hosts", "ranks", "expected"),
    [
        ("a:4,b:2", 7, "a5 b2"),
        ("a:4,b:2", 10, "a6 b4"),
        ("a:4,b", 8, "a6 b2"),
        ("a:4 max_slots=5,b:2", 20, "a5 b15"),
        ("a:4 max_slots=5,b:2 max_slots=3", 8, "a5 b3"),
    ],
)
def test_stated_slots_are_exceeded_evenly_and_only_on_request(hosts, ranks, expected):
    assert layout(hosts, ranks, oversubscribe=True) == expected
    for unasked in (None, False):
        with pytest.raises(LaunchError, match="--oversubscribe"):
            layout(hosts, ranks, oversubscribe=unasked)


def test_no_oversubscribe_binds_this_machine_to_its_cores_and_others_to_one_rank():
    assert layout("localhost", 2, oversubscribe=False, cores=2) == "localhost2"
    for hosts, ranks in [("localhost", 3), ("a", 2), ("a,b", 3), ("localhost,b", 3)]:
        with pytest.raises(LaunchError):
            layout(hosts, ranks, oversubscribe=False, cores=2)


# ---- what is refused, in full ----


@pytest.mark.parametrize(
    ("hosts", "ranks", "options", "message"),
    [
        (
            "a:4,b:2",
            9,
            {},
            "9 ranks asked for, but there are 6 slots (a 4, b 2): "
            "ask for fewer, state more slots, or add --oversubscribe",
        ),
        (
            "ann@a:1",
            2,
            {},
            "2 ranks asked for, but there is 1 slot (ann@a 1): ask for fewer, state more slots, or add --oversubscribe",
        ),
        (
            "a:8,b:2",
            None,
            {"per_host": 4},
            "8 ranks asked for, but there are 6 slots at no more than 4 per host (a 4, b 2): "
            "ask for fewer, state more slots, or add --oversubscribe",
        ),
        (
            "n[1-9]:2",
            20,
            {},
            "20 ranks asked for, but there are 18 slots (n1 2, n2 2, n3 2, n4 2, 5 more hosts): "
            "ask for fewer, state more slots, or add --oversubscribe",
        ),
        (
            "localhost",
            3,
            {"oversubscribe": False},
            "3 ranks asked for, but there are 2 slots (localhost 2): "
            "state slots=N in the hostfile, or replace --no-oversubscribe by --oversubscribe",
        ),
        (
            "a:4 max_slots=5,b:2 max_slots=2",
            8,
            {"oversubscribe": True},
            "8 ranks asked for, but max_slots leaves room for 7 (a 5, b 2): add hosts or raise max_slots",
        ),
        (
            "a max_slots=3",
            4,
            {},
            "4 ranks asked for, but max_slots leaves room for 3 (a 3): add hosts or raise max_slots",
        ),
        (
            "a,b",
            7,
            {"per_host": 3, "oversubscribe": True},
            "7 ranks asked for, but 2 hosts with at most 3 each take 6: add hosts or allow more ranks per host",
        ),
        ("a", 0, {}, "0 ranks: a job has 1 to 65536"),
        ("a", -1, {}, "-1 ranks: a job has 1 to 65536"),
        ("a", 65537, {}, "65537 ranks: a job has 1 to 65536"),
        ("a:65536,b:1", None, {}, "65537 ranks: a job has 1 to 65536"),
        ("a", 1, {"per_host": 0}, "0 ranks per host: a job has 1 to 65536"),
    ],
)
def test_refused_with_what_would_fit(hosts, ranks, options, message):
    with pytest.raises(LaunchError, match=f"^{re.escape(message)}$") as caught:
        layout(hosts, ranks, **options)
    assert caught.value.status == 2


def test_no_host_at_all_is_refused():
    with pytest.raises(LaunchError, match="no host"):
        place([], 1, cores=2)


# ---- warnings ----


@pytest.mark.parametrize(
    ("hosts", "ranks", "cores", "warnings"),
    [
        ("localhost", 8, 2, ("8 ranks share 2 cores of localhost: they will wait for one another",)),
        ("localhost:3", None, 1, ("3 ranks share 1 core of localhost: they will wait for one another",)),
        ("localhost", 2, 2, ()),
        ("node1", 8, 2, ()),
        ("localhost,node1", 8, 2, ()),
        ("ann@localhost", 8, 2, ()),
    ],
)
def test_more_ranks_than_cores_are_mentioned_where_the_cores_are_known(hosts, ranks, cores, warnings):
    assert place(parse_host_list(hosts), ranks, cores=cores).warnings == warnings


# ---- asking a placement ----


def test_a_placement_answers_for_ranks_and_hosts():
    a, b, c = hosts = parse_host_list("a:2,b:3,c:2")
    placement = place(hosts, 6, cores=2)
    assert placement == Placement((a, b, c), (0, 0, 1, 1, 1, 2))
    assert placement.size == 6
    assert [placement.ranks_on(host) for host in range(3)] == [(0, 1), (2, 3, 4), (5,)]
    assert [placement.local_rank(rank) for rank in range(6)] == [0, 1, 0, 1, 2, 0]


def test_hosts_without_ranks_are_left_out():
    assert [str(host) for host in place(parse_host_list("a:2,b:2,c:2"), 3, cores=2).hosts] == ["a", "b"]


def test_the_largest_job_is_placed():
    assert layout("n[1-10000]", MAX_RANKS).startswith("n17 n27 ")
    assert layout("a", MAX_RANKS) == "a65536"


# ---- whatever is asked ----


@st.composite
def host_specs(draw):
    slots = draw(st.none() | st.integers(1, 20))
    max_slots = draw(st.none() | st.integers(slots or 1, 30))
    return HostSpec(draw(st.sampled_from(["localhost", "a", "b"])), slots, max_slots)


HOSTS = st.lists(host_specs(), min_size=1, max_size=6)
QUESTIONS = st.fixed_dictionaries(
    {
        "ranks": st.none() | st.integers(1, 100),
        "per_host": st.none() | st.integers(1, 20),
        "oversubscribe": st.none() | st.booleans(),
        "cores": st.integers(1, 8),
    }
)


def answer(hosts, question):
    """The placement; if it is refused, properly, there is nothing more to check."""
    try:
        return place(hosts, **question)
    except LaunchError as error:
        refused = error
    assert refused.status == 2
    return reject()


@settings(deadline=None)
@given(HOSTS, QUESTIONS)
def test_a_placement_keeps_its_promises(hosts, question):
    placement = answer(hosts, question)
    assert question["ranks"] in (None, placement.size)
    assert list(placement.host_of) == sorted(placement.host_of)
    assert set(placement.host_of) == set(range(len(placement.hosts)))
    remaining = iter(hosts)
    assert all(host in remaining for host in placement.hosts)  # in order
    for index, host in enumerate(placement.hosts):
        ranks = placement.ranks_on(index)
        assert ranks == tuple(range(ranks[0], ranks[0] + len(ranks)))
        assert [placement.local_rank(rank) for rank in ranks] == list(range(len(ranks)))
        assert len(ranks) <= min(host.max_slots or 100, question["per_host"] or 100)


@settings(deadline=None)
@given(HOSTS, QUESTIONS)
def test_slots_are_exceeded_only_as_allowed(hosts, question):
    placement = answer(hosts, question)
    stated = any(host.slots for host in hosts)
    if question["oversubscribe"] is False or (stated and not question["oversubscribe"]):
        unstated = question["cores"] if question["oversubscribe"] is False else question["per_host"]
        for index, host in enumerate(placement.hosts):
            assert len(placement.ranks_on(index)) <= (host.slots or unstated or 1)


@settings(deadline=None)
@given(HOSTS, st.integers(1, 100))
def test_the_excess_is_even(hosts, beyond):
    slots = [host.slots or 1 for host in hosts]
    placement = answer(hosts, {"ranks": sum(slots) + beyond, "oversubscribe": True, "cores": 1})
    counts = [len(placement.ranks_on(index)) for index in range(len(hosts))]
    table = zip(hosts, counts, slots, strict=True)
    excess = [count - slot for host, count, slot in table if count != host.max_slots]
    assert excess == sorted(excess, reverse=True)  # the first hosts take the odd ones
    assert not excess or excess[0] - excess[-1] <= 1
