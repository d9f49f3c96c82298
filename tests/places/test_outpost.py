"""What a node of a system decides by itself: conversations. Nothing is started here.

This is node 1. `A` and `B` are places of it, `FAR` is one of another node.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpi.errors import WireError
from rmpi.places.messages import (
    SERIAL_BITS,
    Carried,
    Carry,
    Connect,
    Crashed,
    Dial,
    Everyone,
    Exited,
    FromPlace,
    Joined,
    Left,
    NoLink,
    Stop,
    ToPlace,
    Unreachable,
    Welcome,
    pack,
)
from rmpi.places.outpost import Outpost, PlaceStarts
from rmpi.places.router import (
    HEAD,
    CameIn,
    HandOver,
    Join,
    NodeLost,
    NodeSaid,
    PlaceExited,
    PlaceSaid,
    Pump,
    Relay,
    Send,
    Tell,
    TurnAway,
)
from rmpi.places.system_messages import EndpointGone, Find, PlaceShown, RelayTo, Running, Started

A, B = 1 << SERIAL_BITS | 2, 1 << SERIAL_BITS | 3
FAR = 2 << SERIAL_BITS | 2


@pytest.fixture
def node():
    """A node on which two places have begun."""
    outpost = Outpost(1)
    for endpoint, label in ((A, "a on n1"), (B, "b on n1")):
        assert outpost.step(PlaceStarts(endpoint, label)) == []
        assert outpost.step(PlaceSaid(endpoint, Joined())) == []
    return outpost


# -- links --------------------------------------------------------------------------------------------------


def test_two_places_of_a_node_are_joined_once(node):
    assert node.step(PlaceSaid(A, Connect(B))) == [Join(A, B)]
    assert node.step(PlaceSaid(B, Connect(A))) == []
    assert node.step(PlaceSaid(A, Connect(B))) == []


def test_for_a_place_elsewhere_the_head_is_asked(node):
    assert node.step(PlaceSaid(A, Connect(FAR))) == [Send(HEAD, FromPlace(A, pack(Connect(FAR))))]


def test_a_connection_at_the_door_is_handed_over(node):
    assert node.step(CameIn(7, FAR, A)) == [HandOver(7, A, FAR)]


def test_a_connection_for_nobody_is_turned_away(node):
    node.step(PlaceExited(A, 0))
    assert node.step(CameIn(7, FAR, A)) == [TurnAway(7)]
    assert node.step(CameIn(8, A, FAR)) == [TurnAway(8)]


def test_a_place_is_relayed(node):
    assert node.step(NodeSaid(HEAD, RelayTo(A, FAR))) == [Relay(A, FAR)]
    for message in (Carry(FAR, A, b"data"), Carried(A, FAR, 4)):
        assert node.step(NodeSaid(HEAD, message)) == [Pump(message)]
    gone = EndpointGone(FAR, "far on n2", "killed by SIGKILL", True)
    assert node.step(NodeSaid(HEAD, gone)) == [Tell(A, gone)]


def test_a_place_has_ended_before_it_could_be_relayed(node):
    """The other side finds the end of a link, as if there had been one."""
    node.step(PlaceExited(A, 0))
    assert node.step(NodeSaid(HEAD, RelayTo(A, FAR))) == [
        Send(HEAD, Carried(FAR, A, 0)),
        Send(HEAD, Carry(A, FAR, b"")),
    ]


# -- ends ---------------------------------------------------------------------------------------------------


def ended(node, endpoint, status=0):
    """What the head is told of an end, and then who else is."""
    *told, to_head = node.step(PlaceExited(endpoint, status))
    assert isinstance(to_head, Send)
    return to_head.message, told


def test_a_place_leaves_and_ends(node):
    node.step(PlaceSaid(A, Left()))
    assert ended(node, A) == (Exited(A, 0, True, True), [])


def test_a_place_ends_in_the_middle(node):
    assert ended(node, A) == (Exited(A, 0, True, False), [])


def test_a_command_never_joins(node):
    node.step(PlaceStarts(9, "sleep on n1"))
    assert ended(node, 9) == (Exited(9, 0, False, False), [])


@pytest.mark.parametrize(
    ("known_by", "how"),
    [
        ([], None),
        ([B], PlaceSaid(A, Connect(B))),
        ([B], PlaceSaid(B, Connect(A))),
    ],
)
def test_only_those_hear_of_an_end_here_that_were_connected(node, known_by, how):
    if how:
        node.step(how)
    _, told = ended(node, A, -9)
    assert told == [Tell(each, EndpointGone(A, "a on n1", "killed by SIGKILL", True)) for each in known_by]


DIALS = NodeSaid(HEAD, ToPlace(A, pack(Dial(FAR, (("10.0.0.2", 4000),), bytes(32), 2.0))))
"""Because the other one asked for a link, and does not find the door here."""


@pytest.mark.parametrize("how", [PlaceSaid(A, Connect(FAR)), CameIn(7, FAR, A), NodeSaid(HEAD, RelayTo(A, FAR)), DIALS])
def test_only_those_hear_of_an_end_elsewhere_that_were_connected(node, how):
    node.step(how)
    gone = EndpointGone(FAR, "far on n2", "finished", False)
    assert node.step(NodeSaid(HEAD, gone)) == [Tell(A, gone)]
    assert node.step(NodeSaid(HEAD, gone)) == []


def test_nobody_is_told_who_has_ended(node):
    node.step(PlaceSaid(A, Connect(B)))
    ended(node, A)
    assert ended(node, B) == (Exited(B, 0, True, False), [])


def test_an_endpoint_is_nobody_s_heir(node):
    """Nothing is kept of one that is gone."""
    node.step(PlaceSaid(A, Connect(FAR)))
    node.step(PlaceSaid(A, Left()))
    ended(node, A)
    node.step(PlaceStarts(A, "another on n1"))
    assert node.step(NodeSaid(HEAD, EndpointGone(FAR, "far on n2", "finished", False))) == []
    assert ended(node, A, 1) == (Exited(A, 1, False, False), [])


# -- what is passed on --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message", [Started(0), Find(1, -1, "bank"), Crashed("E", "E: x", False), Unreachable(FAR, "closed")]
)
def test_what_a_place_says_goes_to_the_head(node, message):
    assert node.step(PlaceSaid(A, message)) == [Send(HEAD, FromPlace(A, pack(message)))]


def test_what_the_head_says_goes_to_the_place_it_is_for(node):
    message = NoLink(FAR, "closed")
    assert node.step(NodeSaid(HEAD, ToPlace(A, pack(message)))) == [Tell(A, message)]
    assert node.step(NodeSaid(HEAD, ToPlace(FAR, pack(message)))) == []
    assert node.step(NodeSaid(HEAD, Everyone(pack(message)))) == [Tell(A, message), Tell(B, message)]


def test_the_head_hears_of_processes(node):
    assert node.runs(A, 500) == [Send(HEAD, Running(A, 500))]


# -- what may not be said -----------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [Stop(), PlaceShown(2), Welcome(0, (), (), 1, False, 1), Exited(B, 0, True, True)])
def test_a_place_says_what_it_may_not(node, message):
    with pytest.raises(WireError, match=f"a place may not say {type(message).__name__}"):
        node.step(PlaceSaid(A, message))


@pytest.mark.parametrize("message", [Stop(), Joined(), ToPlace(A, b"nonsense"), Everyone(b"nonsense")])
def test_the_head_says_what_makes_no_sense(node, message):
    with pytest.raises(WireError):
        node.step(NodeSaid(HEAD, message))


def test_events_of_a_job(node):
    with pytest.raises(WireError, match="no use for NodeLost"):
        node.step(NodeLost(2, "cut off"))


# -- whatever happens ---------------------------------------------------------------------------------------

endpoints = st.sampled_from([A, B, FAR])
events = st.one_of(
    st.builds(PlaceStarts, st.sampled_from([A, B]), st.just("label")),
    st.builds(
        PlaceSaid,
        st.sampled_from([A, B]),
        st.one_of(st.builds(Connect, endpoints), st.just(Joined()), st.just(Left()), st.just(Stop())),
    ),
    st.builds(PlaceExited, st.sampled_from([A, B]), st.sampled_from([0, 1, -9])),
    st.builds(CameIn, st.integers(5, 6), endpoints, endpoints),
    st.builds(
        NodeSaid,
        st.just(HEAD),
        st.one_of(
            st.builds(EndpointGone, endpoints, st.just("x"), st.just("y"), st.booleans()),
            st.builds(RelayTo, endpoints, endpoints),
            st.builds(ToPlace, endpoints, st.sampled_from([b"", pack(Stop())])),
            st.just(Stop()),
        ),
    ),
)


@given(st.lists(events, max_size=30))
def test_only_places_that_run_are_told_anything(script):
    """Nothing but WireError leaves it, and nobody is addressed whose end was told."""
    node, running = Outpost(1), set()
    for event in script:
        match event:
            case PlaceStarts(endpoint):
                running.add(endpoint)
            case PlaceExited(endpoint) | PlaceSaid(endpoint) if endpoint not in running:
                continue
            case PlaceExited(endpoint):
                running.discard(endpoint)
        try:
            actions = node.step(event)
        except WireError:
            continue
        for action in actions:
            match action:
                case Tell(endpoint) | HandOver(_, endpoint) | Relay(endpoint):
                    assert endpoint in running
                case Join(first, second):
                    assert {first, second} <= running
