"""What a node decides: conversations, with what goes in and what comes out. Nothing is started here.

Five ranks on three nodes: A and B on the head, C and D on node 1, E on node 2.
"""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpi.errors import WireError
from rmpi.places.ends import End
from rmpi.places.messages import (
    ALL,
    SERIAL_BITS,
    Abort,
    Ask,
    Awake,
    Blocked,
    Broken,
    Called,
    Carried,
    Carry,
    Connect,
    Crashed,
    Dial,
    DialBack,
    Ended,
    Everyone,
    Exited,
    FromPlace,
    Joined,
    Left,
    LinkTo,
    NoLink,
    NoWay,
    Ping,
    Returned,
    Revoke,
    StillBlocked,
    Stop,
    ToPlace,
    Unreachable,
    Up,
    Welcome,
    WhatCalled,
    pack,
)
from rmpi.places.router import (
    HEAD,
    LOST,
    Aborted,
    Book,
    CameIn,
    Deadlocked,
    Detour,
    HandOver,
    Join,
    NodeDone,
    NodeLost,
    NodeSaid,
    PlaceExited,
    PlaceSaid,
    Pump,
    RankCrashed,
    RankEnded,
    RankReturned,
    Relay,
    Router,
    Send,
    Tell,
    TellAll,
    TurnAway,
    Undelivered,
    node_of,
)

A, B = 1, 2
C, D = 1 << SERIAL_BITS | 1, 1 << SERIAL_BITS | 2
E = 2 << SERIAL_BITS | 1
MEMBERS = (A, B, C, D, E)
STRANGER = 1 << SERIAL_BITS | 77
KEY = bytes(32)
DOORS = {0: (("10.0.0.1", 4000),), 1: (("10.0.0.2", 4001), ("fe80::2", 4001)), 2: (("10.0.0.3", 4002),)}
CONTEXT = 1 << 63


HOSTS = ("head", "head", "one", "one", "two")


def router(node, route="auto", doors=DOORS):
    return Router(Book(node, MEMBERS, HOSTS, doors, KEY, route))


class Job:
    """The routers of all nodes. Messages between them arrive at once; what comes out is written down.

    `told` is what each place was told; `done` is what else was decided, with the node that decided it.
    """

    def __init__(self, route="auto", doors=DOORS):
        self.routers = {node: router(node, route, doors) for node in (0, 1, 2)}
        self.told = {member: [] for member in MEMBERS}
        self.done = []

    def happens(self, node, event):
        for action in self.routers[node].step(event):
            self._do(node, action)

    def says(self, endpoint, message):
        self.happens(node_of(endpoint), PlaceSaid(endpoint, message))

    def exits(self, endpoint, status):
        self.happens(node_of(endpoint), PlaceExited(endpoint, status))

    def _do(self, node, action):
        match action:
            case Send(to, message):
                self.happens(to, NodeSaid(node, message))
            case Tell(endpoint, message):
                self.told[endpoint].append(message)
            case TellAll(message):
                for member in MEMBERS:
                    if node_of(member) == node:
                        self.told[member].append(message)
            case _:
                self.done.append((node, action))

    def told_to_all(self):
        """What every place was told, which must be the same."""
        assert all(told == self.told[A] for told in self.told.values())
        return self.told[A]


# -- links --------------------------------------------------------------------------------------------------


def test_two_places_on_one_node_want_each_other():
    """At the same moment: they get one pair."""
    head = router(HEAD)
    assert head.step(PlaceSaid(A, Connect(B))) == [Join(A, B)]
    assert head.step(PlaceSaid(B, Connect(A))) == []


def test_places_of_a_node_that_is_not_the_head_are_joined_there():
    one = router(1)
    assert one.step(PlaceSaid(D, Connect(C))) == [Join(D, C)]
    assert one.step(PlaceSaid(C, Connect(D))) == []


def test_a_place_dials_the_door_of_another_node_itself():
    assert router(HEAD).step(PlaceSaid(A, Connect(C))) == [Tell(A, Dial(C, DOORS[1], KEY, 2.0))]
    assert router(1).step(PlaceSaid(C, Connect(A))) == [Tell(C, Dial(A, DOORS[0], KEY, 2.0))]
    assert router(2).step(PlaceSaid(E, Connect(D))) == [Tell(E, Dial(D, DOORS[1], KEY, 2.0))]


def test_who_comes_in_by_the_door_is_led_to_the_place():
    assert router(1).step(CameIn(12, A, D)) == [HandOver(12, D, A)]


@pytest.mark.parametrize(
    ("source", "destination"),
    [(A, E), (A, STRANGER), (STRANGER, D), (0, 0)],
    ids=["of another node", "nobody", "from nobody", "nobody to nobody"],
)
def test_who_asks_for_somebody_else_is_turned_away(source, destination):
    assert router(1).step(CameIn(12, source, destination)) == [TurnAway(12)]


# -- ways around what cannot be reached ---------------------------------------------------------------------


def dial(peer, patience=2.0):
    return Dial(peer, DOORS[node_of(peer)], KEY, patience)


def test_who_cannot_dial_is_dialled_by_the_other():
    job = Job()
    job.says(C, Connect(E))
    job.says(C, Unreachable(E, "timed out"))
    assert (job.told[C], job.told[E]) == ([dial(E)], [dial(C)])
    assert job.done == [(HEAD, Detour("one cannot connect to two (timed out): two is asked to connect to one", False))]


def test_what_crosses_when_neither_can_dial_and_both_are_relayed():
    """Each step at the router where it is taken, from the first wish to the two sockets."""
    one, head, two = router(1), router(HEAD), router(2)
    assert one.step(PlaceSaid(C, Connect(E))) == [Tell(C, dial(E))]
    back = DialBack(C, E, "refused")
    assert one.step(PlaceSaid(C, Unreachable(E, "refused"))) == [Send(HEAD, back)]
    assert head.step(NodeSaid(1, back))[-1] == Send(2, back)
    assert two.step(NodeSaid(HEAD, back)) == [Tell(E, dial(C))]
    no_way = NoWay(E, C, "timed out", "refused")
    assert two.step(PlaceSaid(E, Unreachable(C, "timed out"))) == [Relay(E, C), Send(HEAD, no_way)]
    [news, passed_on] = head.step(NodeSaid(2, no_way))
    assert news == Detour(
        "two cannot connect to one (timed out), nor one to two (refused): their data goes through the ssh sessions, "
        "which is slower",
        True,
    )
    assert passed_on == Send(1, no_way)
    assert one.step(NodeSaid(HEAD, no_way)) == [Relay(C, E)]


def relayed(job):
    """The pairs that are relayed, each with the node that pumps for the first of the two."""
    return [(node, action.endpoint, action.peer) for node, action in job.done if isinstance(action, Relay)]


def test_what_one_pair_has_found_out_holds_for_all_places_of_the_two_nodes():
    job = Job()
    job.says(C, Connect(E))
    job.says(C, Unreachable(E, "x"))
    job.says(E, Unreachable(C, "x"))
    job.says(E, Connect(D))
    assert job.told[E] == [dial(C)]
    assert relayed(job) == [(2, E, C), (1, C, E), (2, E, D), (1, D, E)]
    job.says(C, Connect(A))
    assert job.told[C][-1] == dial(A)  # other nodes are another matter


def test_a_direction_that_is_known_to_be_barred_is_not_tried_again():
    job = Job()
    job.says(C, Connect(E))
    job.says(C, Unreachable(E, "x"))
    job.says(D, Connect(E))
    assert (job.told[D], job.told[E]) == ([], [dial(C), dial(D)])
    assert len(job.done) == 1  # and it is said once


def test_both_dial_at_the_same_moment_in_vain():
    """No dial is begun twice, and one relay comes of it."""
    job = Job()
    job.says(C, Connect(E))
    job.says(E, Connect(C))
    job.says(C, Unreachable(E, "x"))
    assert job.told[E] == [dial(C)]
    job.says(E, Unreachable(C, "x"))
    assert (job.told[C], job.told[E]) == ([dial(E)], [dial(C)])
    assert sorted(relayed(job)) == [(1, C, E), (2, E, C)]


def test_both_begin_to_relay_at_the_same_moment():
    """Messages that cross: each has its socket once."""
    one, two = router(1, "relay"), router(2, "relay")
    assert one.step(PlaceSaid(C, Connect(E))) == [Relay(C, E), Send(HEAD, NoWay(C, E, "", ""))]
    assert two.step(PlaceSaid(E, Connect(C))) == [Relay(E, C), Send(HEAD, NoWay(E, C, "", ""))]
    assert one.step(NodeSaid(HEAD, NoWay(E, C, "", ""))) == []
    assert two.step(NodeSaid(HEAD, NoWay(C, E, "", ""))) == []


def test_a_detour_is_announced_once_for_two_nodes_whoever_says_it():
    head = router(HEAD)
    assert len(head.step(NodeSaid(1, NoWay(C, E, "x", "y")))) == 2
    assert head.step(NodeSaid(2, NoWay(E, C, "y", "x"))) == [Send(1, NoWay(E, C, "y", "x"))]
    assert head.step(NodeSaid(2, NoWay(E, D, "y", "x"))) == [Send(1, NoWay(E, D, "y", "x"))]


def test_a_pair_that_has_a_link_keeps_it():
    """The other one came in by the door while our place was dialling in vain."""
    one = router(1)
    one.step(PlaceSaid(C, Connect(E)))
    one.step(CameIn(12, E, C))
    assert one.step(PlaceSaid(C, Unreachable(E, "x"))) == []
    assert one.step(NodeSaid(HEAD, DialBack(E, C, "x"))) == []


@pytest.mark.parametrize(("pair", "nodes"), [((A, C), (0, 1)), ((C, B), (1, 0)), ((C, E), (1, 2))])
def test_where_everything_is_relayed_nobody_dials(pair, nodes):
    job = Job("relay")
    one, other = pair
    job.says(one, Connect(other))
    assert job.told[one] == job.told[other] == []
    assert sorted(relayed(job)) == sorted([(nodes[0], one, other), (nodes[1], other, one)])
    hosts = sorted(HOSTS[MEMBERS.index(member)] for member in pair)
    text = f"{hosts[0]} and {hosts[1]}: their data goes through the ssh sessions, which is slower"
    assert (HEAD, Detour(text, False)) in job.done  # no surprise to whoever asked for it


def test_where_nothing_may_be_relayed_both_are_told_how_else_it_could_be_done():
    job = Job("direct")
    job.says(C, Connect(E))
    job.says(C, Unreachable(E, "refused"))
    job.says(E, Unreachable(C, "timed out"))
    why = (
        "two cannot connect to one (timed out), nor one to two (refused). A firewall between the hosts must let one "
        "of these ports through; or let their data go through the ssh sessions, with --route auto"
    )
    assert job.told[C] == [dial(E, 10.0), NoLink(E, why)]
    assert job.told[E] == [dial(C, 10.0), NoLink(C, why)]
    assert relayed(job) == []


@pytest.mark.parametrize("doors", [{}, {1: DOORS[1]}, {2: DOORS[2]}])
def test_nobody_dials_a_node_without_a_door(doors):
    job = Job(doors=doors)
    job.says(C, Connect(E))
    dialled = {C: [dial(E)] if 2 in doors else [], E: [dial(C)] if 1 in doors else []}
    assert {C: job.told[C], E: job.told[E]} == dialled
    assert len(relayed(job)) == (0 if doors else 2)


def test_what_is_relayed_goes_by_way_of_the_head():
    one, head, two = router(1), router(HEAD), router(2)
    carry, carried = Carry(C, E, b"data"), Carried(C, E, 4)
    assert one.pass_on(carry) == [Send(HEAD, carry)]
    assert head.step(NodeSaid(1, carry)) == [Send(2, carry)]
    assert two.step(NodeSaid(HEAD, carry)) == [Pump(carry)]
    assert two.pass_on(carried) == [Send(HEAD, carried)]
    assert head.step(NodeSaid(2, carried)) == [Send(1, carried)]
    assert one.step(NodeSaid(HEAD, carried)) == [Pump(carried)]


def test_the_head_pumps_for_its_own_places():
    head = router(HEAD)
    assert head.pass_on(Carry(A, E, b"out")) == [Send(2, Carry(A, E, b"out"))]
    assert head.step(NodeSaid(2, Carry(E, A, b"in"))) == [Pump(Carry(E, A, b"in"))]
    assert head.step(NodeSaid(2, Carried(A, E, 3))) == [Pump(Carried(A, E, 3))]


@pytest.mark.parametrize(
    "message",
    [Carry(A, E, b"x"), Carry(C, D, b"x"), Carry(C, STRANGER, b"x"), Carried(C, E, 1), NoWay(E, C, "", "")],
    ids=["of another node", "within the node", "for nobody", "taken by somebody else", "another node's"],
)
def test_a_node_relays_for_its_own_places_alone(message):
    with pytest.raises(WireError, match="node 1 may not say"):
        router(HEAD).step(NodeSaid(1, message))


@pytest.mark.parametrize(
    ("node", "message"),
    [(2, Carry(E, C, b"x")), (HEAD, Carry(C, E, b"x")), (HEAD, Carry(D, C, b"x")), (HEAD, Carry(STRANGER, C, b"x"))],
)
def test_only_the_head_passes_on_and_only_what_is_for_us(node, message):
    with pytest.raises(WireError, match="may not say Carry"):
        router(1).step(NodeSaid(node, message))


def ends(ended, peer):
    """What a node hears of a relay whose other place is not there."""
    return [Carry(ended, peer, b""), Carried(peer, ended, 0)]


def test_a_relay_to_a_place_that_has_ended_ends_at_once():
    """Whether the news of its end is still on its way to the head, or is known there."""
    head, two = router(HEAD, "relay"), router(2, "relay")
    [exited] = two.step(PlaceExited(E, 0))
    assert two.step(NodeSaid(HEAD, NoWay(C, E, "", ""))) == [Send(HEAD, message) for message in ends(E, C)]
    head.step(NodeSaid(2, exited.message))
    assert head.step(NodeSaid(1, NoWay(C, E, "", "")))[1:] == [Send(1, message) for message in ends(E, C)]
    [relay, _, *answer] = head.step(PlaceSaid(A, Connect(E)))
    assert (relay, answer) == (Relay(A, E), [*map(Pump, ends(E, A))])


def test_a_place_that_has_ended_dials_nobody():
    one = router(1)
    one.step(PlaceExited(C, 0))
    assert one.step(NodeSaid(HEAD, DialBack(E, C, "x"))) == []


@pytest.mark.parametrize("event", [NodeDone(1), NodeLost(1, "gone")])
def test_when_a_node_is_no_more_so_are_its_relays(event):
    """Also those whose places had ended well before; what is relayed between others goes on."""
    job = Job("relay")
    for one, other in ((C, E), (A, D), (A, E)):
        job.says(one, Connect(other))
    job.exits(C, 0)
    actions = job.routers[HEAD].step(event)
    relays = [a for a in actions if isinstance(a, (Send, Pump)) and isinstance(a.message, (Carry, Carried))]
    assert relays == [*map(Pump, ends(D, A)), *(Send(2, message) for message in ends(C, E))]
    assert not any(isinstance(a, Send) and isinstance(a.message, Carry) for a in job.routers[HEAD].step(event))


# -- ends ---------------------------------------------------------------------------------------------------


def test_a_rank_of_the_head_ends_well():
    job = Job()
    job.says(A, Joined())
    job.says(A, Left())
    job.exits(A, 0)
    assert job.told_to_all() == [Ended(A, 0, "head", "finished", False)]
    assert job.done == [(HEAD, RankEnded(0, "head", End(0, "finished")))]


def test_a_rank_dies_on_another_node():
    """Its router tells the head, the head judges, and everybody hears, its own neighbour included."""
    job = Job()
    job.says(C, Joined())
    job.exits(C, -9)
    assert job.told_to_all() == [Ended(C, 2, "one", "killed by SIGKILL", True)]
    assert job.done == [(HEAD, RankEnded(2, "one", End(137, "killed by SIGKILL")))]


def test_what_crosses_when_a_rank_dies_on_another_node():
    one, head = router(1), router(HEAD)
    one.step(PlaceSaid(C, Joined()))
    assert one.step(PlaceExited(C, 3)) == [Send(HEAD, Exited(C, 3, True, False))]
    news = Ended(C, 2, "one", "exit status 3", True)
    assert head.step(NodeSaid(1, Exited(C, 3, True, False))) == [
        TellAll(news),
        Send(1, Everyone(pack(news))),
        Send(2, Everyone(pack(news))),
        RankEnded(2, "one", End(3, "exit status 3")),
    ]
    assert one.step(NodeSaid(HEAD, Everyone(pack(news)))) == [TellAll(news)]


@pytest.mark.parametrize("endpoint", [A, C])
def test_a_rank_joined_and_ended_with_0_without_leaving(endpoint):
    job = Job()
    job.says(endpoint, Joined())
    job.exits(endpoint, 0)
    [(_, ended)] = job.done
    assert ended.end.code == 70
    assert all(news.failed for news in job.told_to_all())


@pytest.mark.parametrize("endpoint", [A, C])
def test_a_program_that_never_joined_ends_well_with_0(endpoint):
    job = Job()
    job.exits(endpoint, 0)
    [(_, ended)] = job.done
    assert not ended.end.failed


def test_an_end_is_told_once():
    job = Job()
    job.exits(C, 0)
    job.exits(C, 0)
    job.happens(HEAD, NodeSaid(1, Exited(STRANGER, 0, False, False)))
    assert len(job.done) == len(job.told[A]) == 1


def test_a_node_is_lost():
    """All its ranks that have not ended have failed, in the order of ranks."""
    job = Job()
    job.exits(D, 0)
    job.done.clear()
    head = job.routers[HEAD]
    news = Ended(C, 2, "one", "the machine is gone", True)
    assert head.step(NodeLost(1, "the machine is gone")) == [
        TellAll(news),
        Send(1, Everyone(pack(news))),
        Send(2, Everyone(pack(news))),
        RankEnded(2, "one", End(LOST, "the machine is gone")),
    ]
    assert head.step(NodeLost(1, "again")) == []
    assert head.step(NodeSaid(1, Exited(C, 0, True, True))) == []  # it comes too late


def test_the_head_s_own_spawner_is_lost():
    ended = [action for action in router(HEAD).step(NodeLost(HEAD, "killed")) if isinstance(action, RankEnded)]
    assert [(end.rank, end.end) for end in ended] == [(0, End(LOST, "killed")), (1, End(LOST, "killed"))]


def test_a_crash_is_announced_with_rank_and_host():
    job = Job()
    job.says(A, Crashed("ValueError", "Traceback …", False))
    job.says(E, Crashed("RankFailed", "Traceback …", True))
    assert job.done == [
        (HEAD, RankCrashed(0, "head", "ValueError", "Traceback …", False)),
        (HEAD, RankCrashed(4, "two", "RankFailed", "Traceback …", True)),
    ]


def test_what_a_rank_s_function_returned_is_announced_piece_by_piece():
    job = Job()
    job.says(E, Returned(b"one", False))
    job.says(E, Returned(b"two", True))
    assert job.done == [(HEAD, RankReturned(4, b"one", False)), (HEAD, RankReturned(4, b"two", True))]


def test_the_others_hear_the_exception_and_not_what_an_assert_explains_below_it():
    job = Job()
    job.says(A, Crashed("AssertionError", "Traceback …\nAssertionError: assert 1 == 2\n  more about it\n", False))
    job.exits(A, 1)
    assert [ended.cause for ended in job.told[B]] == ["AssertionError: assert 1 == 2"]


# -- disagreement -------------------------------------------------------------------------------------------


def called(sequence, fingerprint, what):
    return Called(CONTEXT, sequence, fingerprint, what, False)


def test_a_communicator_is_revoked():
    job = Job()
    job.says(D, Revoke(CONTEXT, "revoked by rank 3"))
    assert job.told_to_all() == [Broken(CONTEXT, "ChannelClosed", "revoked by rank 3")]


def test_a_rank_aborts_the_job():
    """The owner ends it; whoever hears of the rank's end before that hears why."""
    job = Job()
    job.says(D, Joined())
    job.says(D, Abort(3, "called abort(3)"))
    job.exits(D, 3)
    assert job.told_to_all() == [Ended(D, 3, "one", "called abort(3)", True)]
    assert job.done == [
        (HEAD, Aborted(3, "one", 3, "called abort(3)")),
        (HEAD, RankEnded(3, "one", End(3, "exit status 3"))),
    ]


def blocked(round_=0):
    return Blocked(round_, 1, {}, {}, (((), "recv()", "x.py:1", CONTEXT, -1),), (), {})


def test_every_rank_is_blocked():
    """The head asks all of them again before it tells the owner, who may have them end it."""
    job = Job()
    for member in (A, B, C, D):
        job.says(member, blocked())
    assert job.told_to_all() == []
    job.says(E, blocked())
    assert job.told_to_all() == [StillBlocked(1)]
    for member in MEMBERS:
        job.says(member, blocked(1))
    [(head, verdict)] = job.done
    assert (head, type(verdict)) == (HEAD, Deadlocked)
    assert verdict.text.startswith("every rank waits, and nothing is on its way:\n  rank 0 waits in recv() at x.py:1\n")
    for action in job.routers[HEAD].condemn(verdict.text):
        job._do(HEAD, action)
    assert job.told_to_all()[1:] == [Broken(ALL, "Deadlock", verdict.text)]


def test_a_rank_that_is_awake_is_waited_for():
    job = Job()
    for member in MEMBERS:
        job.says(member, blocked())
    for member in (A, B, C, D):
        job.says(member, blocked(1))
    job.says(E, Awake(1))
    assert (job.told_to_all(), job.done) == ([StillBlocked(1)], [])


def test_what_does_not_arrive_is_announced():
    job = Job()
    for round_ in (0, 1, 0, 2):
        for member in MEMBERS:
            job.says(member, Blocked(round_, 1, {B: 7} if member == A else {}, {}, (), (), {}))
    [(_, news)] = job.done
    assert isinstance(news, Undelivered)
    assert news.text.endswith("rank 0 has sent 7 to rank 1, which took 0")


@pytest.mark.parametrize("first", ["ends", "reports"])
def test_ranks_that_have_ended_are_not_asked(first):
    """The book is made with the first report, and may have missed ends."""
    job = Job()
    steps = {"ends": partial(job.exits, E, 0), "reports": lambda: [job.says(m, blocked()) for m in (A, B, C, D)]}
    steps.pop(first)()
    next(iter(steps.values()))()
    assert job.told_to_all() == [Ended(E, 4, "two", "finished", False), StillBlocked(1)]


def test_after_a_failure_nobody_is_asked():
    job = Job()
    job.exits(E, 1)
    for member in (A, B, C, D):
        job.says(member, blocked())
    assert [type(message) for message in job.told_to_all()] == [Ended]


def test_a_job_that_does_not_want_to_know_is_not_asked():
    job = Job()
    job.routers[HEAD].seeks_deadlocks = False
    for member in MEMBERS:
        job.says(member, blocked())
        job.says(member, Awake(0))
    assert (job.told_to_all(), job.done) == ([], [])


def test_ranks_disagree():
    """Rank 2 finds it out, and has rank 0 asked; when both have reported, everybody hears the verdict."""
    job = Job()
    job.says(C, called(4, 11, "barrier()"))
    job.says(C, Ask(A, CONTEXT, 4))
    assert job.told == {A: [WhatCalled(CONTEXT, 4)], B: [], C: [], D: [], E: []}
    job.told[A].clear()
    job.says(A, called(4, 22, "bcast(root=0)"))
    [verdict] = job.told_to_all()
    text = "ranks disagree about collective 4: rank 2 called barrier(), rank 0 called bcast(root=0)"
    assert verdict == Broken(CONTEXT, "CollectiveMismatch", text)
    job.says(E, called(4, 33, "scan()"))
    assert len(job.told_to_all()) == 1


def test_the_one_who_is_asked_may_be_anywhere():
    job = Job()
    job.says(A, Ask(E, CONTEXT, 4))
    job.says(E, Ask(D, CONTEXT, 5))
    job.says(D, Ask(C, CONTEXT, 6))
    assert job.told == {
        A: [],
        B: [],
        C: [WhatCalled(CONTEXT, 6)],
        D: [WhatCalled(CONTEXT, 5)],
        E: [WhatCalled(CONTEXT, 4)],
    }


def test_ranks_agree():
    job = Job()
    for rank, member in enumerate(MEMBERS):
        job.says(member, called(rank // 3, 11, "barrier()"))
    assert job.told_to_all() == []


def test_nobody_is_asked_who_is_not_of_the_job():
    assert router(HEAD).step(PlaceSaid(A, Ask(STRANGER, CONTEXT, 4))) == []


# -- what may not be said -----------------------------------------------------------------------------------


@pytest.mark.parametrize("node", [HEAD, 1])
@pytest.mark.parametrize(
    "message", [Welcome(0, (), (), 1, False, 1), LinkTo(B, False), Stop(), Ping(), Up(), Exited(A, 0, True, True)]
)
def test_a_place_says_what_it_may_not(node, message):
    with pytest.raises(WireError, match=f"a place may not say {type(message).__name__}"):
        router(node).step(PlaceSaid(A if node == HEAD else C, message))


@pytest.mark.parametrize("wish", [Connect(STRANGER), Unreachable(STRANGER, "it is not there")])
def test_a_place_asks_for_a_link_out_of_the_job(wish):
    with pytest.raises(WireError, match="not of this job"):
        router(HEAD).step(PlaceSaid(A, wish))


@pytest.mark.parametrize(
    "message",
    [
        Exited(E, 0, True, True),
        FromPlace(A, pack(Crashed("E", "", False))),
        Everyone(pack(Stop())),
        ToPlace(A, pack(WhatCalled(CONTEXT, 1))),
        Stop(),
        Joined(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_node_speaks_for_places_of_others_or_as_the_head(message):
    with pytest.raises(WireError, match="node 1 may not say"):
        router(HEAD).step(NodeSaid(1, message))


@pytest.mark.parametrize("packed", [b"nonsense", pack(Stop()), pack(Connect(A)), pack(Joined())])
def test_a_node_passes_on_what_a_place_may_not_say(packed):
    with pytest.raises(WireError):
        router(HEAD).step(NodeSaid(1, FromPlace(C, packed)))


def test_a_node_speaks_for_a_place_that_does_not_exist():
    with pytest.raises(WireError, match="not of this job"):
        router(HEAD).step(NodeSaid(1, FromPlace(STRANGER, pack(Crashed("E", "", False)))))


@pytest.mark.parametrize("message", [Exited(C, 0, True, True), ToPlace(E, b""), ToPlace(STRANGER, b""), Stop()])
def test_the_head_tells_a_node_what_does_not_concern_it(message):
    with pytest.raises(WireError, match="node 0 may not say"):
        router(1).step(NodeSaid(HEAD, message))


def test_only_the_head_tells_everyone():
    with pytest.raises(WireError, match="node 2 may not say Everyone"):
        router(1).step(NodeSaid(2, Everyone(pack(Stop()))))


# -- whatever happens ---------------------------------------------------------------------------------------

endpoints = st.sampled_from([*MEMBERS, STRANGER])
from_places = st.one_of(
    st.builds(Joined),
    st.builds(Left),
    st.builds(Connect, endpoints),
    st.builds(Unreachable, endpoints, st.just("x")),
    st.builds(Called, st.just(CONTEXT), st.integers(0, 2), st.integers(0, 1), st.just("x"), st.booleans()),
    st.builds(Ask, endpoints, st.just(CONTEXT), st.integers(0, 2)),
    st.builds(Crashed, st.just("E"), st.just("text"), st.booleans()),
    st.just(Stop()),
)
between = st.one_of(
    st.builds(DialBack, endpoints, endpoints, st.just("x")),
    st.builds(NoWay, endpoints, endpoints, st.just("x"), st.just("y")),
    st.builds(Carry, endpoints, endpoints, st.sampled_from([b"", b"x"])),
    st.builds(Carried, endpoints, endpoints, st.sampled_from([0, 1])),
)
events = st.one_of(
    st.builds(PlaceSaid, st.sampled_from([A, B]), from_places),
    st.builds(PlaceExited, st.sampled_from([A, B]), st.sampled_from([0, 1, -9])),
    st.builds(NodeSaid, st.sampled_from([1, 2]), st.builds(FromPlace, endpoints, from_places.map(pack))),
    st.builds(
        NodeSaid, st.sampled_from([1, 2]), st.builds(Exited, endpoints, st.just(0), st.booleans(), st.booleans())
    ),
    st.builds(NodeSaid, st.sampled_from([1, 2]), between),
    st.builds(NodeLost, st.sampled_from([0, 1, 2]), st.just("gone")),
    st.builds(NodeDone, st.sampled_from([1, 2])),
    st.builds(CameIn, st.integers(10, 12), endpoints, endpoints),
)


def run(script):
    head, log = router(HEAD), []
    for event in script:
        try:
            log.append(head.step(event))
        except WireError as error:
            log.append([str(error)])
    return log


@given(st.lists(events, max_size=30))
def test_the_same_events_have_the_same_answers(script):
    """The router is a function of its events; nothing but WireError leaves it, and nothing is done twice."""
    log = run(script)
    assert log == run(script)
    actions = [action for actions in log for action in actions]
    ended = [action.rank for action in actions if isinstance(action, RankEnded)]
    joined = [frozenset((action.first, action.second)) for action in actions if isinstance(action, Join)]
    verdicts = [action for action in actions if isinstance(action, TellAll) and isinstance(action.message, Broken)]
    assert len(ended) == len(set(ended))
    relays = [(action.endpoint, action.peer) for action in actions if isinstance(action, Relay)]
    assert len(joined) == len(set(joined))
    assert len(relays) == len(set(relays))
    assert len(verdicts) <= 1
