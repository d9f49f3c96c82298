"""What the head of a system decides about guests: processes that have joined from outside, each a node of its own."""

import pytest
from test_directory import KEY, SIGKILL, SIGTERM, Stage

from rmpi.places.books import Alarm, Due, Heard, Log, Lost, Post
from rmpi.places.directory import LOST, Directory
from rmpi.places.messages import Carried, Carry, Connect, Dial, SignalPlace, Stop, Unreachable
from rmpi.places.router import node_of
from rmpi.places.supervisor import restart_at_once
from rmpi.places.system_messages import (
    ANY_NODE,
    LOCAL,
    Attach,
    Declined,
    EndNode,
    EndpointGone,
    Enrolled,
    Find,
    Follow,
    OpenMailbox,
    PlaceAt,
    PlaceGone,
    Record,
    RelayTo,
    Survey,
)

DOOR = ("gate", 7000)
"""Where guests came in, as they see it: perhaps through a tunnel."""


class Standing(Stage):
    """A directory without a main program, as that of a node that was started by hand."""

    def __init__(self):
        super().__init__()
        self.directory = Directory(77, KEY, "vm", "alpha")
        self.directory.describe_head(4, 1 << 30, 100)

    def joins(self, host="laptop", pid=9):
        enrolled = self.directory.enrol_guest(Attach(host, pid, 2, 1 << 30, "3.11", DOOR))
        assert isinstance(enrolled, Enrolled)
        return enrolled.endpoint

    def leaves(self, guest):
        self.exits(guest)
        self.happens(Lost(node_of(guest), "it has left", True))

    def breaks(self, guest):
        self.happens(Lost(node_of(guest), "cut off", True))


@pytest.fixture
def stage():
    return Standing()


@pytest.fixture
def guest(stage):
    return stage.joins()


def test_each_guest_has_a_node_and_an_endpoint_of_its_own(stage, guest):
    other = stage.joins()
    assert len({LOCAL, node_of(guest), node_of(other)}) == 3
    assert len({stage.directory.enrol_guest(Attach("x", 1, 1, 1, "3.11", DOOR)).place for _ in range(3)}) == 3


def test_guests_are_not_among_the_nodes(stage, guest):
    (rows,) = stage.outcome(stage.asks(guest, Survey, ANY_NODE), guest)
    assert rows == ({"node": LOCAL, "label": "alpha", "host": "vm", "state": "up", "pid": 100},)


def test_a_guest_spawns_and_finds_like_anybody(stage, guest):
    place, endpoint = stage.place(LOCAL, "bank", by=guest)
    other = stage.joins()
    assert stage.outcome(stage.asks(other, Find, ANY_NODE, "bank"), other) == (place, "bank on alpha")
    assert PlaceAt(place, endpoint, "bank on alpha", 500, 0, False) in stage.heard(other)


def test_nothing_is_started_or_ended_on_the_node_of_a_guest(stage, guest):
    _, endpoint = stage.spawn(node_of(guest), by=stage.joins())
    assert not endpoint
    ended = stage.outcome(stage.asks(guest, EndNode, node_of(guest), False, 0.0), guest)
    assert isinstance(ended, Declined)


def test_the_node_itself_is_not_ended_by_guests(stage, guest):
    declined = stage.outcome(stage.asks(guest, EndNode, LOCAL, False, 0.0), guest)
    assert declined.text == "alpha was started by hand, and is ended there: by Ctrl-C, or SIGTERM"


def test_there_is_no_main_program_to_follow(stage, guest):
    stage.says(guest, Follow(1))
    assert [type(each) for each in stage.heard(guest)][:1] == [PlaceGone]


def test_what_a_guest_logs_bears_its_name(stage, guest):
    record = Record(0, 30, "x", "text", 1.0)
    stage.says(guest, record)
    assert stage.did() == [Log("the guest from laptop (pid 9)", "the guest from laptop (pid 9)", record)]


# -- links --------------------------------------------------------------------------------------------------


def test_a_guest_dials_whoever_wants_the_link(stage, guest):
    """The head's machine it finds where it came in; other nodes there at that address; far ones where they are."""
    here, far = stage.node("", by=guest), stage.node("far", by=guest)
    for node, door in ((LOCAL, DOOR), (here, ("gate", 4000)), (far, ("10.0.0.2", 4000))):
        _, place = stage.place(node, by=guest)
        for wants, wanted in ((guest, place), (place, guest)):
            stage.says(wants, Connect(wanted))
            (dial,) = [each for each in stage.heard(guest) if isinstance(each, Dial)]
            assert (dial.peer, dial.doors, dial.key) == (place, (door,), KEY)


def test_two_guests_are_relayed_without_a_word(stage, guest):
    other = stage.joins()
    stage.says(guest, Connect(other))
    assert stage.did() == [Post(node_of(guest), RelayTo(guest, other)), Post(node_of(other), RelayTo(other, guest))]


def test_a_guest_that_cannot_reach_a_door_is_relayed_and_forgotten_with_that(stage, guest):
    far = stage.node("far", by=guest)
    _, place = stage.place(far, by=guest)
    stage.says(guest, Unreachable(place, "refused"))
    assert len(stage.posted(RelayTo)) == 2
    stage.breaks(guest)
    assert {type(message) for _, message in stage.posted((Carry, Carried))} == {Carry, Carried}
    again = stage.joins()
    stage.says(again, Connect(place))
    assert [type(each) for each in stage.heard(again)] == [Dial]


# -- ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [Standing.leaves, Standing.breaks])
def test_a_guest_is_gone(stage, guest, how):
    """All nodes hear of it, and nothing of it is remembered."""
    here, other = stage.node("", by=guest), stage.joins()
    how(stage, guest)
    told = {node for node, message in stage.posted(EndpointGone) if message.endpoint == guest}
    assert told == {LOCAL, here, node_of(other)}
    stage.says(other, Connect(guest))
    assert isinstance(stage.heard(other)[-1], EndpointGone)
    assert isinstance(stage.outcome(stage.asks(other, Survey, node_of(guest)), other), Declined)


def test_a_guest_that_was_cut_off_has_failed_and_one_that_left_has_not(stage):
    for how, failed in ((Standing.leaves, False), (Standing.breaks, True)):
        guest = stage.joins()
        stage.did()
        how(stage, guest)
        assert {message.failed for _, message in stage.posted(EndpointGone)} == {failed}


def test_named_places_stay_when_their_guest_is_gone(stage, guest):
    stage.place(LOCAL, "bank", by=guest)
    stage.breaks(guest)
    assert stage.posted(SignalPlace) == []
    other = stage.joins()
    assert stage.outcome(stage.asks(other, Find, ANY_NODE, "bank"), other)


def test_places_that_nobody_can_find_any_more_are_ended(stage, guest):
    _, endpoint = stage.place(LOCAL, by=guest, rule=restart_at_once().rule)
    stage.did()
    stage.breaks(guest)
    assert stage.posted(SignalPlace) == [(LOCAL, SignalPlace(endpoint, SIGTERM))]
    stage.happens(Due(("kill", endpoint)))
    assert stage.posted(SignalPlace) == [(LOCAL, SignalPlace(endpoint, SIGKILL))]
    stage.exits(endpoint, LOST)
    assert stage.did(Alarm) == []  # it is not started again
    stage.happens(Due(("kill", endpoint)))
    assert stage.posted(SignalPlace) == []


def test_a_place_without_a_name_that_somebody_knows_stays(stage, guest):
    place, _ = stage.place(LOCAL, by=guest)
    stage.says(stage.joins(), Follow(place))
    stage.breaks(guest)
    assert stage.posted(SignalPlace) == []


def test_a_place_that_is_about_to_be_restarted_is_not_when_its_guest_is_gone(stage, guest):
    place, endpoint = stage.place(LOCAL, by=guest, rule=restart_at_once().rule)
    stage.exits(endpoint, 1)
    stage.breaks(guest)
    stage.did()
    stage.happens(Due(("place", place)))
    assert stage.did() == []


def test_a_solo_node_ends_with_its_guest_and_another_one_stays(stage, guest):
    solo, listed = stage.node("", by=guest, solo=True), stage.node("", by=guest)
    stage.did()
    stage.leaves(guest)
    assert stage.posted(Stop) == [(solo, Stop())]
    other = stage.joins()
    (rows,) = stage.outcome(stage.asks(other, Survey, ANY_NODE), other)
    assert [row["node"] for row in rows] == [LOCAL, listed]


def test_what_comes_for_a_guest_that_is_gone_is_dropped(stage, guest):
    other = stage.joins()
    stage.says(guest, Connect(other))
    stage.leaves(guest)
    stage.did()
    for message in (Carry(other, guest, b"late"), Carried(guest, other, 1)):
        stage.happens(Heard(node_of(other), message))
    assert stage.did() == []


def test_a_guest_has_mailboxes_which_others_find_until_it_is_gone(stage, guest):
    place, label = stage.outcome(stage.asks(guest, OpenMailbox, "desk"), guest)
    assert label == "desk on the guest from laptop (pid 9)"
    other = stage.joins()
    assert stage.outcome(stage.asks(other, Find, ANY_NODE, "desk"), other) == (place, label)
    stage.heard(other)
    stage.breaks(guest)
    assert PlaceGone(place, "cut off", LOST, True, "") in stage.heard(other)
    assert isinstance(stage.outcome(stage.asks(other, Find, ANY_NODE, "desk"), other), Declined)


def test_guests_dial_the_door_of_the_head_with_the_key_that_they_came_with(stage, guest):
    _, endpoint = stage.place(LOCAL, by=guest)
    stage.says(guest, Connect(endpoint))
    stage.directory.open_door(b"a key of its own")
    stage.says(guest, Connect(endpoint))
    before, after = [each.key for each in stage.heard(guest) if isinstance(each, Dial)]
    assert (before, after) == (KEY, b"a key of its own")
