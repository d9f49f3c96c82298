"""What the head of a system decides: conversations, with what goes in and what comes out. Nothing is started here.

The program is the place `PROGRAM` on node 0; other places and nodes come and go.
"""

from collections import Counter, defaultdict
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmpi.errors import WireError
from rmpi.places import directory
from rmpi.places.books import MAIN, Alarm, Behind, Boot, Booted, Due, Heard, Log, Lost, NotBooted, Post, Shown, Tell
from rmpi.places.directory import LOST, Directory
from rmpi.places.grouping import STOP_GRACE
from rmpi.places.messages import (
    SERIAL_BITS,
    Carried,
    Carry,
    Connect,
    Crashed,
    Dial,
    Exited,
    FromPlace,
    Halted,
    Joined,
    NoLink,
    Signal,
    SignalPlace,
    Stop,
    ToPlace,
    Unreachable,
    pack,
    unpack,
)
from rmpi.places.router import node_of
from rmpi.places.supervisor import Rule, Then, restart_at_once, restart_every
from rmpi.places.system_messages import (
    ANY_NODE,
    LOCAL,
    AddNode,
    Answer,
    CloseMailbox,
    Declined,
    EndNode,
    EndpointGone,
    Enrolled,
    Find,
    Follow,
    Kill,
    NotStarted,
    OpenMailbox,
    PlaceAt,
    PlaceDown,
    PlaceGone,
    PlaceShown,
    Record,
    RelayTo,
    Running,
    RunThread,
    Spawn,
    Start,
    Started,
    StopThread,
    Survey,
    ThreadEnded,
    Unite,
    Withdraw,
    unpack_values,
)

SYSTEM, KEY = 77, bytes(32)
PROGRAM = LOCAL << SERIAL_BITS | MAIN
SIGTERM, SIGKILL = 15, 9

NEVER = Rule(Then.NOTHING)
INSTEAD = Rule(Then.CALL)
ALWAYS = restart_at_once().rule
ONCE = restart_every(1.0, retries=1).rule


class Stage:
    """A directory, on which nodes and places play. `told` is what each place was told, `done` everything else."""

    def __init__(self):
        self.directory = Directory(SYSTEM, KEY, "vm")
        self.directory.enrol_main(cores=4, memory=1 << 30, pid=100)
        self.now = 10.0
        self.told = defaultdict(list)
        self.done = []
        self._due = {}
        self._numbers = iter(range(1, 1 << 20))

    # What happens

    def happens(self, event):
        if isinstance(event, Due):
            self.now = max(self.now, self._due.get(event.key, 0.0))
        for each in self.directory.step(event, self.now):
            action = each.action if isinstance(each, Behind) else each
            match action:
                case Alarm(key, at):
                    self._due[key] = at
                    self.done.append(action)
                case Post(node, ToPlace(endpoint, packed)):
                    assert node == node_of(endpoint)
                    self.told[endpoint].append(unpack(packed))
                case _:
                    self.done.append(action)

    def says(self, endpoint, message):
        self.happens(Heard(node_of(endpoint), FromPlace(endpoint, pack(message))))

    def asks(self, endpoint, request, *args):
        """A request with a number of its own, which is returned."""
        number = next(self._numbers)
        self.says(endpoint, request(number, *args))
        return number

    def exits(self, endpoint, status=0, *, left=True):
        self.happens(Heard(node_of(endpoint), Exited(endpoint, status, True, left)))

    def runs(self, endpoint, pid=500):
        self.happens(Heard(node_of(endpoint), Running(endpoint, pid)))

    def at(self, seconds, event):
        self.now = seconds
        self.happens(event)

    # What came of it

    def heard(self, endpoint=PROGRAM):
        """What a place was told since it was last asked."""
        return self.told.pop(endpoint, [])

    def did(self, kind=object):
        """What else was decided since; of one kind, if that is all that is of interest."""
        done, self.done = self.done, []
        return [each for each in done if isinstance(each, kind)]

    def posted(self, kind):
        """What nodes were told: the messages of a kind, with the node."""
        return [(each.node, each.message) for each in self.did(Post) if isinstance(each.message, kind)]

    def outcome(self, number, endpoint=PROGRAM):
        """The answer to a request, as values, or why it was declined."""
        (found,) = [
            each for each in self.told[endpoint] if isinstance(each, (Answer, Declined)) and each.number == number
        ]
        self.told[endpoint].remove(found)
        return unpack_values(found.packed) if isinstance(found, Answer) else found

    # Whole scenes

    def spawn(self, node=LOCAL, name="", *, by=PROGRAM, kind="process", rule=NEVER, argv=("work",), parcel=b"call"):
        """Ask for a place: the number of the request, and the endpoint at which it is started (0: at none)."""
        self.did()
        order = (node, name, kind, argv, parcel, 40, rule.to_plain(), {"A": "1"}, "/there", 30)
        number = self.asks(by, Spawn, *order)
        starts = [message for _, message in self.posted(Start)]
        return number, starts[0].endpoint if starts else 0

    def place(self, *args, by=PROGRAM, pid=500, **options):
        """A place that runs: its number, and the endpoint."""
        number, endpoint = self.spawn(*args, by=by, **options)
        self.runs(endpoint, pid)
        self.says(endpoint, Started(0))
        place, _, _ = self.outcome(number, by)
        self.heard(by)
        self.did()
        return place, endpoint

    def thread(self, *args, **options):
        """A place that runs as a thread: its number, and the endpoint of the host, which is started if need be."""
        number, host = self.spawn(*args, kind="thread", **options)
        if host:
            self.runs(host)
            self.says(host, Started(0))
        host, order = next(
            (endpoint, each) for endpoint, told in self.told.items() for each in told if isinstance(each, RunThread)
        )
        self.says(host, Started(order.place))
        assert self.outcome(number)[0] == order.place
        self.heard(host)
        self.heard()
        self.did()
        return order.place, host

    def add_node(self, host="far", *, name="", rule=NEVER, solo=False, route="auto", by=PROGRAM):
        """Ask for a node: the number of the request, and the node's, which is to be booted now."""
        self.did()
        number = self.asks(
            by, AddNode, host, name, 0, "", "", solo, "forward", route, rule.to_plain(), {}, "/there", 60.0
        )
        (boot,) = self.did(Boot)
        return number, boot.node

    def node(self, host="far", *, by=PROGRAM, **options):
        """A node that is up."""
        number, node = self.add_node(host, by=by, **options)
        self.boots(node)
        self.outcome(number, by)
        self.did()
        return node

    def boots(self, node, door=("10.0.0.2", 4000)):
        self.happens(Booted(node, "host", door, 900 + node, 2, 1 << 30))


@pytest.fixture
def stage():
    return Stage()


# -- a place is spawned -------------------------------------------------------------------------------------


def test_a_place_is_spawned(stage):
    request = stage.asks(
        PROGRAM, Spawn, LOCAL, "bank", "process", ("Bank",), b"call", 40, NEVER.to_plain(), {"A": "1"}, "/there", 30
    )
    ((node, start),) = stage.posted(Start)
    assert node == node_of(start.endpoint) == LOCAL
    assert (start.kind, start.argv) == ("code", ("bank on vm", "Bank"))
    assert (start.environment, start.directory) == ({"A": "1"}, "/there")
    enrolled = unpack(start.enrolled)
    assert isinstance(enrolled, Enrolled)
    assert (enrolled.system, enrolled.endpoint, enrolled.label) == (SYSTEM, start.endpoint, "bank on vm")
    assert (enrolled.owner, enrolled.reply, enrolled.parcel, enrolled.level) == (PROGRAM, 40, b"call", 30)
    assert stage.heard() == []

    stage.runs(start.endpoint, 500)
    stage.says(start.endpoint, Started(0))
    at, _ = stage.told[PROGRAM]
    assert at == PlaceAt(enrolled.place, start.endpoint, "bank on vm", 500, 0, False)
    assert stage.outcome(request) == (enrolled.place, "bank on vm", 500)


def test_a_place_is_up_when_its_process_is_known_too(stage):
    """The place and who made its process speak over different sockets."""
    request, endpoint = stage.spawn()
    stage.says(endpoint, Started(0))
    assert stage.heard() == []
    stage.runs(endpoint, 500)
    assert [each.pid for each in stage.told[PROGRAM] if isinstance(each, PlaceAt)] == [500]
    assert stage.outcome(request)


def test_a_command_is_up_when_its_process_is(stage):
    request, endpoint = stage.spawn(kind="command", argv=("sleep", "5"))
    stage.runs(endpoint)
    _, label, pid = stage.outcome(request)
    assert (label, pid) == ("sleep on vm", 500)


def test_a_command_is_started_as_it_is(stage):
    stage.asks(PROGRAM, Spawn, LOCAL, "", "command", ("sleep", "5"), b"", 0, NEVER.to_plain(), {}, "", 0)
    ((_, start),) = stage.posted(Start)
    assert (start.kind, start.target, start.argv) == ("command", "sleep", ("sleep", "5"))


def test_a_place_that_cannot_begin(stage):
    request, endpoint = stage.spawn(name="bank", rule=ALWAYS)
    stage.runs(endpoint)
    stage.says(endpoint, NotStarted(0, "RemoteError", "Traceback …\nImportError: no such module"))
    assert stage.outcome(request) == Declined(request, "RemoteError", "Traceback …\nImportError: no such module")
    assert stage.place(name="bank")  # its name is free, although its process has not ended yet
    stage.exits(endpoint, 1)
    assert not [each for each in stage.heard() if isinstance(each, PlaceDown)]
    assert stage.did(Alarm) == []


def test_a_place_that_ends_before_it_has_begun(stage):
    request, endpoint = stage.spawn(name="bank", rule=ALWAYS)
    stage.runs(endpoint)
    stage.exits(endpoint, -SIGKILL)
    assert stage.outcome(request) == Declined(
        request, "PeerLost", "bank on vm ended before it had begun: killed by SIGKILL"
    )
    assert stage.did(Alarm) == []


def test_a_name_is_free_again_when_its_place_has_ended(stage):
    place, endpoint = stage.place(name="bank")
    request, _ = stage.spawn(name="bank")
    assert stage.outcome(request) == Declined(
        request, "UsageError", "a place named 'bank' is on vm already (up); names are used once"
    )
    stage.asks(PROGRAM, Kill, place, SIGKILL)
    request, _ = stage.spawn(name="bank")
    assert isinstance(stage.outcome(request), Declined)
    stage.exits(endpoint, -SIGKILL)
    assert stage.place(name="bank")


def test_the_same_name_on_two_nodes(stage):
    node = stage.node()
    assert stage.place(name="bank")[0] != stage.place(node, name="bank")[0]


def test_no_place_is_started_where_there_is_no_node(stage):
    request, _ = stage.spawn(5)
    assert stage.outcome(request) == Declined(request, "PeerLost", "node 5 is gone; no place can be started")


def test_a_node_is_crowded_when_it_has_more_places_than_cores_at_once(stage):
    def crowded():
        stage.did()
        stage.asks(PROGRAM, Spawn, LOCAL, "", "process", (), b"", 0, NEVER.to_plain(), {}, "", 0)
        ((_, start),) = stage.posted(Start)
        return start.endpoint, unpack(start.enrolled).crowded

    endpoints, answers = zip(*(crowded() for _ in range(4)), strict=True)
    assert answers == (False, False, False, True)
    for endpoint in endpoints:
        stage.exits(endpoint)
    assert [crowded()[1] for _ in range(4)] == [False, False, False, True]


# -- a place ends -------------------------------------------------------------------------------------------


def test_a_place_ends_and_all_it_wrote_was_shown(stage):
    place, endpoint = stage.place()
    stage.exits(endpoint, 3)
    assert stage.heard() == [PlaceGone(place, "exit status 3", 3, True, "")]
    stage.happens(Shown(endpoint))
    assert stage.heard() == [PlaceShown(place)]


def test_a_place_closes_its_output_before_it_ends(stage):
    place, endpoint = stage.place()
    stage.happens(Shown(endpoint))
    assert stage.heard() == []
    stage.exits(endpoint)
    assert stage.heard() == [PlaceGone(place, "finished", 0, False, ""), PlaceShown(place)]


def test_other_nodes_hear_of_an_end_first(stage):
    """Whoever was connected is to learn why before it learns what follows."""
    node = stage.node()
    _, endpoint = stage.place(node)
    stage.exits(endpoint, -SIGKILL)
    gone = EndpointGone(endpoint, "work on far", "killed by SIGKILL", True)
    assert stage.did() == [Post(LOCAL, gone)]


def test_the_cause_of_an_end_is_what_the_place_raised(stage):
    place, endpoint = stage.place(name="bank")
    stage.says(endpoint, Crashed("ValueError", "Traceback …\n  File …\nValueError: 3\n", False))
    assert stage.did() == [Tell("bank on vm failed:\nTraceback …\n  File …\nValueError: 3")]
    stage.exits(endpoint, 1)
    assert stage.heard() == [PlaceGone(place, "ValueError: 3", 1, True, "")]


def test_who_is_told_of_it_must_be_there(stage):
    place, endpoint = stage.place()
    _, follower = stage.place()
    stage.says(follower, Follow(place))
    stage.exits(follower)
    stage.heard(follower)
    stage.exits(endpoint)
    assert stage.heard(follower) == []


# -- a place is restarted -----------------------------------------------------------------------------------


def test_a_supervised_place_is_started_again(stage):
    place, first = stage.place(name="bank", rule=ALWAYS)
    stage.at(20.0, Heard(LOCAL, Exited(first, 1, True, False)))
    assert stage.heard() == [PlaceDown(place, "exit status 1", 1)]
    assert stage.did(Alarm) == [Alarm(("place", place), 20.0)]

    stage.happens(Due(("place", place)))
    ((_, start),) = stage.posted(Start)
    assert start.endpoint != first
    assert unpack(start.enrolled).place == place
    assert unpack(start.enrolled).parcel == b"call"
    stage.runs(start.endpoint, 501)
    stage.says(start.endpoint, Started(0))
    assert stage.heard() == [PlaceAt(place, start.endpoint, "bank on vm", 501, 1, False)]


def test_a_restart_that_fails_counts_as_a_short_life(stage):
    place, endpoint = stage.place(rule=ALWAYS)
    pauses = []
    for _ in range(4):
        stage.exits(endpoint, 1)
        (alarm,) = stage.did(Alarm)
        pauses.append(round(alarm.at - stage.now, 6))
        stage.at(alarm.at, Due(("place", place)))
        ((_, start),) = stage.posted(Start)
        endpoint = start.endpoint
        stage.says(endpoint, NotStarted(0, "RemoteError", "ImportError: gone"))
        assert stage.did(Tell) == [Tell("work on vm could not be started again:\nImportError: gone")]
    assert pauses == [0.0, 0.1, 0.2, 0.4]  # the first restart is at once in any case
    assert [each.cause for each in stage.heard() if isinstance(each, PlaceDown)][-1] == (
        "it could not be started: ImportError: gone"
    )


def test_a_place_is_given_up(stage):
    place, first = stage.place(rule=ONCE)
    stage.exits(first, 1)
    stage.heard()
    stage.happens(Due(("place", place)))
    ((_, start),) = stage.posted(Start)
    stage.runs(start.endpoint)
    stage.says(start.endpoint, Started(0))
    stage.heard()
    stage.exits(start.endpoint, 1)
    assert stage.heard() == [
        PlaceGone(place, "exit status 1, after having been restarted once", 1, True, "on_final_fail")
    ]


def test_a_function_is_called_instead(stage):
    place, endpoint = stage.place(rule=INSTEAD)
    stage.exits(endpoint)
    assert stage.heard() == [PlaceGone(place, "finished", 0, False, "instead")]


def test_what_one_incarnation_wrote_is_shown_while_the_next_runs(stage):
    """All is shown when the output of each has been."""
    place, first = stage.place(rule=ONCE)
    stage.exits(first, 1)
    stage.happens(Due(("place", place)))
    ((_, start),) = stage.posted(Start)
    stage.runs(start.endpoint)
    stage.says(start.endpoint, Started(0))
    stage.exits(start.endpoint, 1)
    stage.heard()
    stage.happens(Shown(start.endpoint))
    assert stage.heard() == []
    stage.happens(Shown(first))
    assert stage.heard() == [PlaceShown(place)]


def test_an_alarm_for_a_place_that_runs_already(stage):
    place, endpoint = stage.place(rule=ALWAYS)
    stage.happens(Due(("place", place)))
    assert stage.did() == []
    stage.exits(endpoint)
    stage.asks(PROGRAM, Kill, place, SIGKILL)
    stage.did()
    stage.happens(Due(("place", place)))
    assert stage.did() == []


# -- a place is ended on purpose ----------------------------------------------------------------------------


def test_a_place_is_killed(stage):
    place, endpoint = stage.place(rule=ALWAYS)
    request = stage.asks(PROGRAM, Kill, place, SIGKILL)
    assert stage.outcome(request) == ()
    assert stage.did() == [Post(LOCAL, SignalPlace(endpoint, SIGKILL))]
    stage.exits(endpoint, -SIGKILL)
    assert stage.heard() == [PlaceGone(place, "killed by SIGKILL", -SIGKILL, True, "")]
    assert stage.did(Alarm) == []


def test_a_place_is_killed_while_it_is_down(stage):
    place, endpoint = stage.place(rule=ALWAYS)
    stage.exits(endpoint, 1)
    stage.heard()
    stage.asks(PROGRAM, Kill, place, SIGTERM)
    gone, _ = stage.heard()
    assert gone == PlaceGone(place, "ended while it was down", 1, False, "")
    stage.happens(Shown(endpoint))
    assert stage.heard() == [PlaceShown(place)]


def test_a_place_is_killed_while_it_starts(stage):
    """It may have no process yet; so it is ended when it has one."""
    request, endpoint = stage.spawn(kind="command", rule=ALWAYS)
    place = 2
    stage.asks(PROGRAM, Kill, place, SIGTERM)
    stage.asks(PROGRAM, Kill, place, SIGKILL)
    stage.asks(PROGRAM, Kill, place, SIGTERM)
    stage.did()
    stage.runs(endpoint)
    assert stage.outcome(request)
    assert stage.did() == [Post(LOCAL, SignalPlace(endpoint, SIGKILL))]


def test_whoever_is_gone_already_can_be_killed(stage):
    place, endpoint = stage.place()
    stage.exits(endpoint)
    assert stage.outcome(stage.asks(PROGRAM, Kill, place, SIGKILL)) == ()
    assert stage.outcome(stage.asks(PROGRAM, Kill, 4711, SIGKILL)) == ()
    assert stage.did(Post) == []


@pytest.mark.parametrize("signal", [-1, 0, 65, 1 << 40])
def test_there_is_no_such_signal(stage, signal):
    place, _ = stage.place()
    with pytest.raises(WireError, match=f"no signal {signal}"):
        stage.asks(PROGRAM, Kill, place, signal)


def test_a_request_is_withdrawn_while_the_place_starts(stage):
    request, endpoint = stage.spawn(rule=ALWAYS)
    stage.says(PROGRAM, Withdraw(request))
    assert stage.did() == [Post(LOCAL, SignalPlace(endpoint, SIGKILL))]
    stage.exits(endpoint, -SIGKILL)
    assert [type(each) for each in stage.heard()] == [PlaceGone]
    assert stage.did(Alarm) == []


def test_a_request_is_withdrawn_when_the_answer_is_on_its_way(stage):
    request, endpoint = stage.spawn()
    stage.runs(endpoint)
    stage.says(endpoint, Started(0))
    stage.says(PROGRAM, Withdraw(request))
    assert stage.did() == [Post(LOCAL, SignalPlace(endpoint, SIGKILL))]


def test_nobody_withdraws_what_others_asked_for(stage):
    request, _ = stage.spawn()
    _, other = stage.place()
    stage.says(other, Withdraw(request))
    assert stage.did() == []


def test_whoever_asked_for_a_place_has_ended(stage):
    _, owner = stage.place()
    _, endpoint = stage.spawn(by=owner)
    stage.exits(owner)
    assert stage.posted(SignalPlace) == [(LOCAL, SignalPlace(endpoint, SIGKILL))]
    stage.says(owner, Find(1, ANY_NODE, "bank"))  # said before it ended
    assert stage.heard(owner) == []


# -- names --------------------------------------------------------------------------------------------------


def test_a_place_is_found_by_its_name_and_followed(stage):
    place, endpoint = stage.place(name="bank")
    _, client = stage.place()
    for where in (LOCAL, ANY_NODE):
        request = stage.asks(client, Find, where, "bank")
        assert stage.outcome(request, client) == (place, "bank on vm")
        assert stage.heard(client) == [PlaceAt(place, endpoint, "bank on vm", 500, 0, False)]
    stage.exits(endpoint)
    assert stage.heard(client) == [PlaceGone(place, "finished", 0, False, "")]


def test_a_place_is_found_while_it_starts_and_while_it_is_down(stage):
    request, endpoint = stage.spawn(name="bank", rule=ALWAYS)
    assert stage.outcome(stage.asks(PROGRAM, Find, LOCAL, "bank"))
    assert stage.heard() == [PlaceDown(2, "it is about to start", 0)]
    stage.runs(endpoint)
    stage.says(endpoint, Started(0))
    assert stage.outcome(request)
    stage.exits(endpoint, 1)
    _, client = stage.place()
    assert stage.outcome(stage.asks(client, Find, LOCAL, "bank"), client)
    assert stage.heard(client) == [PlaceDown(2, "exit status 1", 1)]


@pytest.mark.parametrize(
    ("names", "wanted", "told"),
    [
        ([], "bank", "there is no place named 'bank' on vm, nor any other"),
        (["bank"], "bnak", "there is no place named 'bnak' on vm; did you mean 'bank'?"),
        (["bank1", "bank2"], "bank", "there is no place named 'bank' on vm; did you mean 'bank2' or 'bank1'?"),
        (["zoo", "echo"], "bank", "there is no place named 'bank' on vm; there are 'echo', 'zoo'"),
        (list("abcdefghijkl"), "bank", "there are 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', …"),
    ],
)
def test_a_name_that_nobody_bears(stage, names, wanted, told):
    for name in names:
        stage.place(name=name)
    declined = stage.outcome(stage.asks(PROGRAM, Find, LOCAL, wanted))
    assert declined.error == "NameNotFound"
    assert declined.text.endswith(told)


def test_a_name_that_is_on_another_node(stage):
    stage.place(stage.node("far"), name="bank")
    declined = stage.outcome(stage.asks(PROGRAM, Find, LOCAL, "bank"))
    assert declined.text == "there is no place named 'bank' on vm; it is on far"


def test_a_name_on_a_node_that_does_not_exist(stage):
    assert stage.outcome(stage.asks(PROGRAM, Find, 5, "bank")).text == "there is no node 5"


def test_a_solo_node_is_for_its_creator_and_its_own_places(stage):
    _, stranger = stage.place()
    node = stage.node(solo=True)
    bank, _ = stage.place(node, name="bank")
    _, native = stage.place(node)
    for insider in (PROGRAM, native):
        assert stage.outcome(stage.asks(insider, Find, ANY_NODE, "bank"), insider)[0] == bank
    for where in (node, ANY_NODE):
        assert "nor any other" in stage.outcome(stage.asks(stranger, Find, where, "bank"), stranger).text
    request, endpoint = stage.spawn(node, by=stranger)
    assert endpoint == 0
    assert stage.outcome(request, stranger).error == "PeerLost"
    (rows,) = stage.outcome(stage.asks(PROGRAM, Survey, ANY_NODE))
    assert [row["label"] for row in rows] == ["vm"]


# -- followers ----------------------------------------------------------------------------------------------


def test_whoever_follows_hears_where_a_place_is(stage):
    place, endpoint = stage.place()
    _, client = stage.place()
    stage.says(client, Follow(place))
    assert stage.heard(client) == [PlaceAt(place, endpoint, "work on vm", 500, 0, False)]
    stage.exits(endpoint, 1)
    gone = PlaceGone(place, "exit status 1", 1, True, "")
    assert stage.heard(client) == [gone]
    _, late = stage.place()
    stage.says(late, Follow(place))
    assert stage.heard(late) == [gone]
    stage.happens(Shown(endpoint))
    assert stage.heard(late) == stage.heard(client) == [PlaceShown(place)]
    stage.says(late, Follow(place))
    assert stage.heard(late) == [gone, PlaceShown(place)]


def test_the_program_can_be_followed(stage):
    _, client = stage.place()
    stage.says(client, Follow(MAIN))
    assert stage.heard(client) == [PlaceAt(MAIN, PROGRAM, "the main program", 100, 0, False)]


def test_old_places_are_forgotten(stage, monkeypatch):
    monkeypatch.setattr(directory, "REMEMBERED", 3)
    gone = []
    for _ in range(5):
        place, endpoint = stage.place(name="bank", parcel=bytes(100))
        stage.exits(endpoint, 3)
        stage.happens(Shown(endpoint))
        gone.append(place)
    stage.heard()
    alive, _ = stage.place(name="bank")
    nobody = [PlaceGone(gone[0], "nobody knows that place", 0, True, ""), PlaceShown(gone[0])]
    stage.says(PROGRAM, Follow(gone[0]))
    assert stage.heard() == nobody
    stage.says(PROGRAM, Follow(gone[4]))
    assert stage.heard() == [PlaceGone(gone[4], "exit status 3", 3, True, ""), PlaceShown(gone[4])]
    assert stage.outcome(stage.asks(PROGRAM, Kill, gone[0], SIGKILL)) == ()
    ((_, row),) = stage.outcome(stage.asks(PROGRAM, Survey, LOCAL))
    assert row["place"] == alive


def test_a_place_is_not_forgotten_before_all_it_wrote_was_shown(stage, monkeypatch):
    monkeypatch.setattr(directory, "REMEMBERED", 0)
    place, endpoint = stage.place()
    stage.exits(endpoint)
    other, another = stage.place()
    stage.exits(another)
    stage.happens(Shown(another))
    stage.heard()
    stage.happens(Shown(endpoint))
    assert stage.heard() == [PlaceShown(place)]
    assert other != place


def test_nothing_is_kept_of_places_that_are_gone_but_what_is_remembered(stage, monkeypatch):
    """However many there have been, and however they ended."""
    monkeypatch.setattr(directory, "REMEMBERED", 5)

    def size():
        return len(repr({name: value for name, value in vars(stage.directory).items() if "numbers" not in name}))

    sizes = []
    for _ in range(4):
        for _ in range(10):
            _, endpoint = stage.place(name="bank", parcel=bytes(1000))
            stage.exits(endpoint)
            stage.happens(Shown(endpoint))
            thread, host = stage.thread()
            stage.says(host, ThreadEnded(thread, 0, ""))
        sizes.append(size())
    assert sizes[-1] < sizes[0] * 1.1


# -- threads ------------------------------------------------------------------------------------------------


def test_threads_share_a_host_that_is_started_with_the_first(stage):
    first, host = stage.spawn(kind="thread", name="one")
    second, no_other = stage.spawn(kind="thread", name="two")
    assert host
    assert not no_other
    stage.runs(host)
    stage.says(host, Started(0))
    one, two = stage.heard(host)
    assert one == RunThread(one.place, "one on vm", PROGRAM, 40, b"call")
    stage.says(host, Started(one.place))
    stage.says(host, Started(two.place))
    assert stage.outcome(first) == (one.place, "one on vm", 0)
    assert stage.outcome(second) == (two.place, "two on vm", 0)
    assert [each.endpoint for each in stage.heard()] == [host, host]


def test_a_thread_returns_and_the_others_go_on(stage):
    one, host = stage.thread()
    two, same = stage.thread()
    assert host == same
    stage.says(host, ThreadEnded(one, 0, ""))
    assert stage.heard() == [PlaceGone(one, "finished", 0, False, ""), PlaceShown(one)]
    stage.says(host, ThreadEnded(two, 1, "Traceback …\nValueError: 3"))
    assert stage.heard() == [PlaceGone(two, "ValueError: 3", 1, True, ""), PlaceShown(two)]
    assert stage.did() == [Tell("work on vm failed:\nTraceback …\nValueError: 3")]


def test_a_thread_is_started_again_in_the_same_host(stage):
    place, host = stage.thread(rule=ALWAYS)
    stage.says(host, ThreadEnded(place, 1, "ValueError: 3"))
    assert stage.heard() == [PlaceDown(place, "ValueError: 3", 1)]
    stage.happens(Due(("place", place)))
    assert stage.heard(host) == [RunThread(place, "work on vm", PROGRAM, 40, b"call")]
    stage.says(host, Started(place))
    assert stage.heard() == [PlaceAt(place, host, "work on vm", 0, 1, True)]


def test_a_thread_that_cannot_begin(stage):
    stage.thread()
    request, _ = stage.spawn(kind="thread")
    (host,) = stage.told
    (order,) = stage.heard(host)
    stage.says(host, NotStarted(order.place, "RemoteError", "ImportError: x"))
    assert stage.outcome(request) == Declined(request, "RemoteError", "ImportError: x")
    assert [type(each) for each in stage.heard()] == [PlaceGone, PlaceShown]


def test_the_host_of_threads_dies(stage):
    """The supervised ones come back in another host, the others do not."""
    plain, host = stage.thread()
    supervised, _ = stage.thread(rule=ALWAYS)
    stage.exits(host, -SIGKILL)
    assert stage.heard() == [
        PlaceGone(plain, "killed by SIGKILL", -SIGKILL, True, ""),
        PlaceShown(plain),
        PlaceDown(supervised, "killed by SIGKILL", -SIGKILL),
    ]
    stage.did()
    stage.happens(Due(("place", supervised)))
    ((_, start),) = stage.posted(Start)
    assert start.endpoint != host
    stage.runs(start.endpoint)
    stage.says(start.endpoint, Started(0))
    assert [each.place for each in stage.heard(start.endpoint)] == [supervised]


def test_the_host_dies_before_its_threads_have_begun(stage):
    first, host = stage.spawn(kind="thread")
    second, _ = stage.spawn(kind="thread", rule=ALWAYS)
    stage.says(host, NotStarted(0, "LaunchError", "no room"))
    stage.exits(host, 125)
    for request in (first, second):
        declined = stage.outcome(request)
        assert declined.error == "PeerLost"
        assert declined.text.endswith("ended before it had begun: it could not be started: no room")
    assert stage.did(Alarm) == []
    _, another = stage.spawn(kind="thread")
    assert another != host


def test_a_thread_is_asked_to_end(stage):
    place, host = stage.thread(rule=ALWAYS)
    stage.asks(PROGRAM, Kill, place, SIGKILL)
    assert stage.heard(host) == [StopThread(place)]
    stage.says(host, ThreadEnded(place, 0, ""))
    assert PlaceGone(place, "finished", 0, False, "") in stage.heard()


def test_a_thread_is_ended_before_its_host_runs(stage):
    request, host = stage.spawn(kind="thread")
    place = 2
    stage.asks(PROGRAM, Kill, place, SIGKILL)
    assert stage.outcome(request).text == "work on vm ended before it had begun: it was ended"
    stage.runs(host)
    stage.says(host, Started(0))
    assert stage.heard(host) == []


def test_the_host_is_nobody_s_to_restart(stage):
    _, host = stage.thread(stage.node(rule=ALWAYS), rule=ALWAYS)
    node = node_of(host)
    stage.happens(Lost(node, "cut off", expected=False))
    stage.happens(Due(("node", node)))
    stage.did()
    stage.boots(node)
    assert len(stage.posted(Start)) == 1


# -- groups -------------------------------------------------------------------------------------------------


def united(stage, strategy, *places):
    assert stage.outcome(stage.asks(PROGRAM, Unite, strategy, places)) == ()


def comes_back(stage, place):
    """Its alarm goes off, and it runs again; its new endpoint."""
    stage.happens(Due(("place", place)))
    ((_, start),) = stage.posted(Start)
    assert unpack(start.enrolled).place == place
    stage.runs(start.endpoint)
    stage.says(start.endpoint, Started(0))
    return start.endpoint


def test_those_behind_are_stopped_and_started_in_order(stage):
    (a, _), (b, at_b), (c, at_c), (d, at_d) = [stage.place(rule=ALWAYS) for _ in range(4)]
    united(stage, "rest_for_one", a, b, c)
    stage.exits(at_b, 1)
    assert stage.heard() == [PlaceDown(b, "exit status 1", 1)]
    assert [each for each in stage.did() if not isinstance(each, Post) or isinstance(each.message, SignalPlace)] == [
        Post(LOCAL, SignalPlace(at_c, SIGTERM)),
        Alarm(("kill", at_c), stage.now + STOP_GRACE),
    ]
    stage.happens(Due(("place", b)))
    assert stage.did() == []
    stage.exits(at_c, -SIGTERM)
    assert stage.did(Alarm) == [Alarm(("place", b), stage.now), Alarm(("place", c), stage.now)]
    assert stage.heard() == [PlaceDown(c, "killed by SIGTERM", -SIGTERM)]
    comes_back(stage, b)
    comes_back(stage, c)
    assert [type(each) for each in stage.heard()] == [PlaceAt, PlaceAt]
    assert d
    assert at_d in stage.directory._behind


def test_one_of_a_group_takes_too_long_to_end(stage):
    (a, at_a), (b, at_b) = [stage.place(rule=ALWAYS) for _ in range(2)]
    united(stage, "one_for_all", a, b)
    stage.exits(at_a, 1)
    stage.did()
    stage.happens(Due(("kill", at_b)))
    assert stage.did() == [Post(LOCAL, SignalPlace(at_b, SIGKILL))]
    stage.exits(at_b, -SIGKILL)
    stage.did()
    stage.happens(Due(("kill", at_b)))
    assert stage.did() == []


def test_one_of_a_group_is_given_up_and_takes_the_others_along(stage):
    a, at_a = stage.place(rule=restart_every(1.0, retries=0).rule)
    b, at_b = stage.place(rule=ALWAYS)
    united(stage, "one_for_all", a, b)
    stage.exits(at_a, 1)
    (gone,) = stage.heard()
    assert gone == PlaceGone(a, "exit status 1, and no restart is allowed", 1, True, "on_final_fail")
    stage.exits(at_b, -SIGTERM)
    assert stage.heard() == [PlaceGone(b, "killed by SIGTERM", -SIGTERM, True, "on_final_fail")]
    assert [each.key for each in stage.did(Alarm)] == [("kill", at_b)]


def test_a_group_is_given_up_while_one_of_it_waits_for_another(stage):
    a, at_a = stage.place(rule=restart_every(1.0, retries=0).rule)
    (b, at_b), (c, at_c) = [stage.place(rule=ALWAYS) for _ in range(2)]
    united(stage, "rest_for_one", a, b, c)
    stage.exits(at_b, 1)
    stage.exits(at_a, 1)
    ends = [each for each in stage.heard() if isinstance(each, PlaceGone)]
    assert {each.place: each.then for each in ends} == {a: "on_final_fail", b: "on_final_fail"}
    stage.exits(at_c)
    assert [each.place for each in stage.heard() if isinstance(each, PlaceGone)] == [c]
    stage.did()
    for place in (a, b, c):
        stage.happens(Due(("place", place)))
    assert stage.did() == []


def test_one_of_a_group_is_ended_on_purpose_and_the_others_go_on(stage):
    (a, at_a), (b, at_b) = [stage.place(rule=ALWAYS) for _ in range(2)]
    united(stage, "one_for_all", a, b)
    stage.asks(PROGRAM, Kill, a, SIGTERM)
    stage.exits(at_a, -SIGTERM)
    assert [each.place for each in stage.heard() if isinstance(each, PlaceGone)] == [a]
    stage.did()
    stage.exits(at_b, 1)
    assert stage.did(Alarm) == [Alarm(("place", b), stage.now)]
    comes_back(stage, b)


def test_one_of_a_group_is_ended_on_purpose_while_it_waits_for_another(stage):
    """It never comes back, whatever becomes of the others."""
    (a, first), (b, second) = (stage.place(rule=ALWAYS) for _ in "ab")
    united(stage, "one_for_all", a, b)
    stage.exits(first, 1, left=False)  # and the other is asked to end
    stage.asks(PROGRAM, Kill, a, SIGTERM)
    stage.exits(second, -SIGTERM)
    stage.heard()
    stage.did()
    stage.happens(Due(("place", a)))
    stage.happens(Due(("place", b)))
    ((_, start),) = stage.posted(Start)
    stage.runs(start.endpoint)
    stage.says(start.endpoint, Started(0))
    stage.exits(start.endpoint, 1, left=False)
    assert {each.place for each in stage.heard() if not isinstance(each, Answer)} == {b}


def test_the_node_of_one_of_a_group_is_lost_for_good(stage):
    a, _ = stage.place(stage.node(), rule=ALWAYS)
    b, at_b = stage.place(rule=ALWAYS)
    united(stage, "rest_for_one", a, b)
    stage.happens(Lost(1, "cut off", expected=False))
    assert stage.heard() == [PlaceGone(a, "cut off", LOST, True, "on_final_fail")]
    assert (LOCAL, SignalPlace(at_b, SIGTERM)) in stage.posted(SignalPlace)
    stage.exits(at_b, -SIGTERM)
    assert [type(each) for each in stage.heard()] == [PlaceGone]


def test_a_group_comes_back_with_the_node_of_one_of_it(stage):
    node = stage.node(rule=ALWAYS)
    a, _ = stage.place(node, rule=ALWAYS)
    b, at_b = stage.place(rule=ALWAYS)
    united(stage, "rest_for_one", a, b)
    stage.happens(Lost(node, "cut off", expected=False))
    stage.happens(Due(("node", node)))
    stage.boots(node)
    assert stage.posted(Start) == []
    stage.exits(at_b, -SIGTERM)
    comes_back(stage, a)
    comes_back(stage, b)


def test_what_cannot_be_a_group(stage):
    (a, at_a), (b, _), (c, _) = [stage.place(rule=ALWAYS) for _ in range(3)]
    plain, _ = stage.place()
    united(stage, "one_for_one", c)
    for strategy, places, told in [
        ("one_for_all", (a, 99), "a group is made of places that run, each once"),
        ("one_for_all", (a, a), "a group is made of places that run, each once"),
        ("one_for_all", (), "a group has one place at least"),
        ("one_for_all", (b, c), "1 of these places are in another group already"),
        ("one_for_none", (a, b), "a group is one_for_one, one_for_all, rest_for_one, not 'one_for_none'"),
    ]:
        assert stage.outcome(stage.asks(PROGRAM, Unite, strategy, places)).text == told
    assert "needs restart=True" in stage.outcome(stage.asks(PROGRAM, Unite, "one_for_all", (a, plain))).text
    stage.exits(at_a, 1)
    assert "places that run" in stage.outcome(stage.asks(PROGRAM, Unite, "one_for_all", (a, b))).text


# -- nodes --------------------------------------------------------------------------------------------------


def test_a_node_is_added(stage):
    request, node = stage.add_node("far")
    stage.boots(node)
    assert stage.outcome(request) == (node, "far")
    (rows,) = stage.outcome(stage.asks(PROGRAM, Survey, ANY_NODE))
    assert [(row["label"], row["state"]) for row in rows] == [("vm", "up"), ("far", "up")]


def test_nodes_of_one_machine_have_labels_of_their_own(stage):
    labels = [stage.directory._nodes[stage.node(host)].label for host in ("", "", "far", "far")]
    assert labels == ["vm-2", "vm-3", "far", "far-2"]
    stage.happens(Lost(1, "cut off", expected=False))
    assert stage.directory._nodes[stage.node("")].label == "vm-2"


def test_a_name_of_a_node_is_free_again_when_that_is_gone(stage):
    node = stage.node("far", name="left")
    taken = stage.asks(
        PROGRAM, AddNode, "", "left", 0, "", "", False, "forward", "auto", NEVER.to_plain(), {}, "", 60.0
    )
    assert stage.outcome(taken).text == "there is a node 'left' already; names are used once"
    stage.happens(Lost(node, "cut off", expected=False))
    assert stage.node("", name="left")


def test_a_node_that_cannot_be_started(stage):
    request, node = stage.add_node()
    stage.happens(NotBooted(node, "no such host"))
    assert stage.outcome(request) == Declined(request, "LaunchError", "no such host")
    assert stage.outcome(stage.spawn(node)[0]).text == "far is gone; no place can be started"


def test_a_node_is_lost_and_its_places_with_it(stage):
    node = stage.node()
    place, endpoint = stage.place(node)
    starting, _ = stage.spawn(node)
    stage.happens(Lost(node, "nothing was heard from it for 5 s", expected=False))
    gone, declined, _ = stage.heard()
    assert gone == PlaceGone(place, "nothing was heard from it for 5 s", LOST, True, "")
    assert (declined.number, declined.error) == (starting, "PeerLost")
    assert Tell("node far was lost: nothing was heard from it for 5 s") in stage.done
    assert (LOCAL, EndpointGone(endpoint, "work on far", "nothing was heard from it for 5 s", True)) in stage.posted(
        EndpointGone
    )
    stage.happens(Shown(endpoint))
    assert stage.heard() == [PlaceShown(place)]


def test_a_place_whose_node_is_lost_for_good_cannot_be_restarted(stage):
    """Its owner is told as when it is given up, or called instead."""
    node = stage.node()
    supervised, _ = stage.place(node, rule=ALWAYS)
    called, _ = stage.place(node, rule=INSTEAD)
    down, endpoint = stage.place(node, rule=ALWAYS)
    stage.exits(endpoint, 1)
    stage.heard()
    stage.happens(Lost(node, "cut off", expected=False))
    ends = {each.place: each for each in stage.heard() if isinstance(each, PlaceGone)}
    assert ends[supervised] == PlaceGone(supervised, "cut off", LOST, True, "on_final_fail")
    assert ends[called] == PlaceGone(called, "cut off", LOST, True, "instead")
    assert ends[down].then == "on_final_fail"


def test_a_supervised_node_comes_back_with_its_places(stage):
    node = stage.node(rule=ALWAYS)
    plain, first = stage.place(node, name="plain")
    supervised, second = stage.place(node, rule=ALWAYS)
    stage.at(30.0, Lost(node, "cut off", expected=False))
    assert stage.heard() == [PlaceDown(plain, "cut off", LOST), PlaceDown(supervised, "cut off", LOST)]
    assert stage.did(Alarm) == [Alarm(("node", node), 30.0)]
    stage.happens(Due(("place", supervised)))
    assert stage.did() == []

    stage.happens(Due(("node", node)))
    assert [each.node for each in stage.did(Boot)] == [node]
    stage.boots(node)
    starts = [start for _, start in stage.posted(Start)]
    assert [unpack(start.enrolled).place for start in starts] == [plain, supervised]
    assert not {first, second} & {start.endpoint for start in starts}
    for start in starts:
        stage.runs(start.endpoint)
        stage.says(start.endpoint, Started(0))
    assert [each.restarts for each in stage.heard()] == [1, 1]


def test_a_place_is_spawned_on_a_node_that_is_on_its_way_back(stage):
    node = stage.node(rule=ALWAYS)
    stage.happens(Lost(node, "cut off", expected=False))
    request, endpoint = stage.spawn(node)
    assert endpoint == 0
    stage.happens(Due(("node", node)))
    stage.did()
    stage.boots(node)
    ((_, start),) = stage.posted(Start)
    stage.runs(start.endpoint)
    stage.says(start.endpoint, Started(0))
    assert stage.outcome(request)


def test_a_node_that_does_not_come_back(stage):
    node = stage.node(rule=ONCE)
    place, _ = stage.place(node)
    stage.happens(Lost(node, "cut off", expected=False))
    waiting, _ = stage.spawn(node)
    stage.happens(Due(("node", node)))
    stage.heard()
    stage.happens(NotBooted(node, "no route"))
    assert Tell("node far could not be started again, and is given up: no route") in stage.did(Tell)
    assert stage.outcome(waiting).error == "PeerLost"
    assert [each.place for each in stage.heard() if isinstance(each, PlaceGone)] == [place, place + 1]


def test_a_node_is_shut_down_and_waits_for_its_places(stage):
    node = stage.node(rule=ALWAYS)
    place, endpoint = stage.place(node, rule=ALWAYS)
    request = stage.asks(PROGRAM, EndNode, node, True, 2.0)
    assert stage.did() == [Post(node, Signal(SIGTERM)), Alarm(("stop", node), stage.now + 2.0)]
    assert stage.outcome(stage.spawn(node)[0]).error == "PeerLost"
    stage.exits(endpoint, -SIGTERM)
    assert stage.posted(Stop) == [(node, Stop())]
    stage.happens(Lost(node, "it has ended", expected=True))
    assert stage.outcome(request) == ()
    assert stage.heard() == [PlaceGone(place, "killed by SIGTERM", -SIGTERM, True, "")]
    assert stage.did(Tell) == []
    assert stage.outcome(stage.asks(PROGRAM, EndNode, node, True, 2.0)) == ()


def test_a_node_is_stopped_when_its_places_take_too_long(stage):
    node = stage.node()
    stage.place(node)
    stage.asks(PROGRAM, EndNode, node, True, 2.0)
    stage.did()
    stage.happens(Due(("stop", node)))
    assert stage.did() == [Post(node, Stop())]


def test_a_node_without_places_is_shut_down_at_once(stage):
    node = stage.node()
    stage.asks(PROGRAM, EndNode, node, True, 2.0)
    assert stage.posted(Stop) == [(node, Stop())]


def test_a_node_is_killed(stage):
    node = stage.node(rule=ALWAYS)
    place, _ = stage.place(node, rule=ALWAYS)
    request = stage.asks(PROGRAM, EndNode, node, False, 0.0)
    assert stage.did() == [Post(node, Stop())]
    stage.happens(Lost(node, "it has ended", expected=True))
    assert stage.outcome(request) == ()
    assert stage.heard() == [PlaceGone(place, "it has ended", LOST, True, "")]


def test_a_node_is_ended_while_it_boots(stage):
    asked, node = stage.add_node()
    request = stage.asks(PROGRAM, EndNode, node, True, 2.0)
    assert stage.heard() == []
    stage.boots(node)
    assert stage.did() == [Post(node, Stop())]
    stage.happens(Lost(node, "it has ended", expected=True))
    assert stage.outcome(asked) == Declined(asked, "PeerLost", "far was ended before it was up")
    assert stage.outcome(request) == ()


def test_a_node_is_ended_while_it_boots_in_vain(stage):
    asked, node = stage.add_node()
    request = stage.asks(PROGRAM, EndNode, node, True, 2.0)
    stage.happens(NotBooted(node, "no route"))
    assert stage.outcome(asked).error == "LaunchError"
    assert stage.outcome(request) == ()


def test_a_node_is_ended_while_it_is_down(stage):
    node = stage.node(rule=ALWAYS)
    place, _ = stage.place(node, rule=ALWAYS)
    stage.happens(Lost(node, "cut off", expected=False))
    stage.heard()
    request = stage.asks(PROGRAM, EndNode, node, True, 2.0)
    assert stage.outcome(request) == ()
    assert [type(each) for each in stage.heard()] == [PlaceGone]
    stage.did()
    stage.happens(Due(("node", node)))
    assert stage.did() == []
    assert place


@pytest.mark.parametrize("comes", [True, False])
def test_a_node_is_ended_while_it_boots_again(stage, comes):
    node = stage.node(rule=ALWAYS)
    stage.happens(Lost(node, "cut off", expected=False))
    stage.happens(Due(("node", node)))
    request = stage.asks(PROGRAM, EndNode, node, True, 2.0)
    stage.did()
    if comes:
        stage.boots(node)
        assert stage.did() == [Post(node, Stop())]
        stage.happens(Lost(node, "it has ended", expected=True))
    else:
        stage.happens(NotBooted(node, "no route"))
    assert stage.outcome(request) == ()
    assert stage.did() == []


def test_a_node_is_lost_while_it_ends(stage):
    node = stage.node(rule=ALWAYS)
    request = stage.asks(PROGRAM, EndNode, node, True, 2.0)
    stage.did()
    stage.happens(Lost(node, "cut off", expected=False))
    assert stage.outcome(request) == ()
    assert stage.did() == []


def test_a_wish_for_a_node_is_withdrawn(stage):
    request, node = stage.add_node()
    stage.says(PROGRAM, Withdraw(request))
    stage.boots(node)
    assert stage.did() == [Post(node, Stop())]
    assert stage.heard() == []


def test_the_program_s_own_node_ends_with_it(stage):
    assert stage.outcome(stage.asks(PROGRAM, EndNode, LOCAL, True, 2.0)).error == "UsageError"


@pytest.mark.parametrize("ask", [Survey, partial(lambda number, node: EndNode(number, node, True, 2.0))])
def test_a_node_that_nobody_knows(stage, ask):
    assert stage.outcome(stage.asks(PROGRAM, ask, 7)).text == "there is no node 7"


def test_at_the_end_nothing_is_started_any_more(stage):
    node = stage.node(rule=ALWAYS)
    place, endpoint = stage.place(rule=ALWAYS)
    stage.place(node)
    stage.directory.end()
    assert stage.outcome(stage.spawn()[0]).error == "PeerLost"
    stage.exits(endpoint, 1)
    assert PlaceGone(place, "exit status 1", 1, True, "") in stage.heard()
    stage.happens(Lost(node, "it has ended", expected=True))
    assert stage.did(Alarm) == []
    assert not stage.directory.places_run


def test_a_node_and_its_places_are_surveyed(stage):
    place, endpoint = stage.place(name="bank", rule=ALWAYS)
    (rows,) = [stage.outcome(stage.asks(PROGRAM, Survey, LOCAL))]
    assert rows[0][0] == {"node": 0, "label": "vm", "host": "vm", "state": "up", "pid": 100}
    row = {"place": place, "label": "bank on vm", "name": "bank", "kind": "process"}
    assert rows[0][1:] == ({**row, "state": "up", "pid": 500, "restarts": 0, "stopped": None},)
    stage.exits(endpoint, 1)
    ((_, seen),) = stage.outcome(stage.asks(PROGRAM, Survey, LOCAL))
    assert (seen["state"], seen["pid"]) == ("down", 0)


# -- links --------------------------------------------------------------------------------------------------


def test_who_dials_whom(stage):
    """Nodes of this machine are at a loopback address, and the head's own has no door; other machines find neither."""
    here, far, further = stage.node(""), stage.node("far"), stage.node("further")
    _, near = stage.place(here)
    _, one = stage.place(far)
    _, two = stage.place(further)
    for wants, wanted, dials in [
        (PROGRAM, near, PROGRAM),
        (near, PROGRAM, PROGRAM),
        (near, one, near),
        (one, near, near),
        (one, PROGRAM, PROGRAM),
        (one, two, one),
        (two, one, two),
    ]:
        stage.says(wants, Connect(wanted))
        (dial,) = stage.heard(dials)
        assert isinstance(dial, Dial)
        assert {dials, dial.peer} == {wants, wanted}
        assert (dial.doors, dial.key) == ((("10.0.0.2", 4000),), KEY)


def test_the_peer_has_ended_before_the_link_was_made(stage):
    node = stage.node()
    _, endpoint = stage.place(node)
    stage.exits(endpoint)
    for wish in (Connect(endpoint), Unreachable(endpoint, "closed"), Connect(12345)):
        stage.says(PROGRAM, wish)
        (gone,) = stage.heard()[-1:]
        assert isinstance(gone, EndpointGone)


def test_places_that_cannot_connect_are_relayed(stage):
    far, further = stage.node("far"), stage.node("further")
    _, one = stage.place(far)
    _, two = stage.place(further)
    stage.says(one, Unreachable(two, "no route"))
    assert [type(each) for each in stage.heard(two)] == [Dial]
    stage.says(two, Unreachable(one, "refused"))
    assert stage.did() == [
        Post(further, RelayTo(two, one)),
        Post(far, RelayTo(one, two)),
        Tell("rmpi: further and far cannot connect (refused; no route): their data goes through the nodes, "
             "which is slower"),
    ]  # fmt: skip
    stage.says(one, Connect(two))
    assert stage.did() == []
    stage.happens(Heard(far, Carry(one, two, b"data")))
    stage.happens(Heard(further, Carried(one, two, 4)))
    assert stage.did() == [Post(further, Carry(one, two, b"data")), Post(far, Carried(one, two, 4))]


def test_a_relay_is_forgotten_when_nothing_is_wanted_in_either_direction(stage):
    far = stage.node("far", route="relay")
    _, one = stage.place(far)
    stage.says(one, Connect(PROGRAM))
    stage.did()
    stage.happens(Heard(far, Carry(one, PROGRAM, b"")))
    stage.happens(Heard(far, Carried(PROGRAM, one, 0)))
    assert len(stage.posted((Carry, Carried))) == 2
    stage.happens(Heard(LOCAL, Carried(one, PROGRAM, 0)))
    assert len(stage.posted((Carry, Carried))) == 1
    stage.happens(Heard(LOCAL, Carry(PROGRAM, one, b"late")))
    assert stage.did() == []


def test_a_node_is_lost_behind_a_relay(stage):
    far = stage.node("far", route="relay")
    _, one = stage.place(far)
    stage.says(one, Connect(PROGRAM))
    stage.did()
    stage.happens(Lost(far, "cut off", expected=False))
    assert (LOCAL, Carry(one, PROGRAM, b"")) in stage.posted((Carry, Carried))
    stage.happens(Heard(LOCAL, Carry(PROGRAM, one, b"late")))
    assert stage.did() == []


def test_there_is_no_link_where_only_direct_ones_are_wanted(stage):
    far, further = stage.node("far", route="direct"), stage.node("further")
    _, one = stage.place(far)
    _, two = stage.place(further)
    stage.says(one, Unreachable(two, "no route"))
    stage.heard(two)
    stage.says(two, Unreachable(one, "refused"))
    (no_link,) = stage.heard(two)
    assert isinstance(no_link, NoLink)
    assert no_link.why.startswith("refused; no route.")


# -- what is logged -----------------------------------------------------------------------------------------


def test_records_say_where_they_come_from(stage):
    record = Record(0, 30, "bank", "low on money", 1.5)
    _, endpoint = stage.place(stage.node(), name="bank")
    thread, host = stage.thread(name="till")
    of_thread = Record(thread, 30, "bank", "low on money", 1.5)
    for speaker, said in ((endpoint, record), (host, record), (host, of_thread), (PROGRAM, record)):
        stage.says(speaker, said)
    assert stage.did() == [
        Log("bank on far", "far", record),
        Log("the threads of vm", "vm", record),
        Log("till on vm", "vm", of_thread),
        Log("the main program", "vm", record),
    ]


def test_output_has_a_label_until_all_of_it_was_shown(stage):
    _, endpoint = stage.place(name="bank")
    assert stage.directory.place_label(endpoint) == "bank on vm"
    stage.exits(endpoint)
    assert stage.directory.place_label(endpoint) == "bank on vm"
    stage.happens(Shown(endpoint))
    assert stage.directory.place_label(endpoint) == "a place"


# -- what may not be said -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message", [Joined(), Stop(), Enrolled(1, 1, 1, 0, "", "", 0, 0, False, 1, 0, b""), PlaceShown(2)]
)
def test_a_place_says_what_it_may_not(stage, message):
    with pytest.raises(WireError, match=f"a place may not say {type(message).__name__}"):
        stage.says(PROGRAM, message)


@pytest.mark.parametrize(
    "message",
    [
        Spawn(1, LOCAL, "", "command", (), b"", 0, NEVER.to_plain(), {}, "", 0),
        Spawn(1, LOCAL, "", "daemon", (), b"", 0, NEVER.to_plain(), {}, "", 0),
        Spawn(1, LOCAL, "", "process", (), b"", 0, (7, False, 1.0, 1.0, 1.0, 1.0, 1.0, 0), {}, "", 0),
        ThreadEnded(0, 0, ""),
    ],
)
def test_a_place_says_what_makes_no_sense(stage, message):
    _, endpoint = stage.place()
    with pytest.raises(WireError):
        stage.says(endpoint, message)


def test_a_node_speaks_for_places_of_others(stage):
    node = stage.node()
    _, endpoint = stage.place()
    for message in (
        Exited(endpoint, 0, True, True),
        FromPlace(endpoint, pack(Connect(PROGRAM))),
        Running(endpoint, 1),
        Carry(endpoint, PROGRAM, b""),
        Carried(PROGRAM, endpoint, 0),
        Stop(),
    ):
        with pytest.raises(WireError, match=f"node {node} may not say"):
            stage.happens(Heard(node, message))


def test_a_node_speaks_for_places_that_are_not_there(stage):
    """They may have ended a moment ago."""
    for message in (
        Exited(999, 0, True, True),
        FromPlace(999, pack(Find(1, ANY_NODE, "bank"))),
        Running(999, 1),
        Carry(999, PROGRAM, b""),
    ):
        stage.happens(Heard(LOCAL, message))
    assert stage.did() == []


def test_names_may_be_any_text(stage):
    """Such as what a program read from the file system, in whatever encoding."""
    request, endpoint = stage.spawn(name="b\udcffnk")
    stage.runs(endpoint)
    stage.says(endpoint, Started(0))
    assert stage.outcome(request)[1] == "b\udcffnk on vm"


# -- whatever happens ---------------------------------------------------------------------------------------

whom = st.integers(0, 7)
"""Who speaks or ends: the program is 0, others are counted in the order of their endpoints, round and round."""

endpoints = st.sampled_from([PROGRAM, 2, 3, 4, 1 << SERIAL_BITS | 2, 2 << SERIAL_BITS | 2, 9 << SERIAL_BITS])
places = st.sampled_from([0, 1, 2, 2, 3, 3, 4, 5, 99])
nodes = st.sampled_from([-1, 0, 0, 1, 1, 2])
names = st.sampled_from(["", "bank", "b\udcff"])
rules = st.sampled_from([NEVER, INSTEAD, ALWAYS, ONCE]).map(Rule.to_plain)
texts = st.sampled_from(["", "\n", "E: x\n"])
number = st.just(0)
"""Of a request: replaced by one that was not used yet."""

orders = st.builds(
    Spawn, number, nodes, names, st.sampled_from(["process", "process", "thread", "thread", "command", "?"]),
    st.sampled_from([("x",), ("x",), ()]), st.just(b"call"), st.just(40), rules, st.just({}), st.just(""), st.just(0),
)  # fmt: skip
new_nodes = st.builds(
    AddNode, number, st.sampled_from(["", "far"]), names, st.just(0), st.just(""), st.just(""), st.booleans(),
    st.just("forward"), st.sampled_from(["auto", "direct", "relay"]), rules, st.just({}), st.just(""), st.just(1.0),
)  # fmt: skip
requests = st.one_of(
    st.builds(EndNode, number, nodes, st.booleans(), st.sampled_from([0.0, 1.0, float("inf"), float("nan")])),
    st.builds(Find, number, nodes, names),
    st.builds(Survey, number, nodes),
    st.builds(Kill, number, places, st.sampled_from([0, 9, 15])),
    st.builds(Unite, number, st.sampled_from(["one_for_all", "rest_for_one"]), st.lists(places, max_size=3).map(tuple)),
    st.builds(Withdraw, st.integers(0, 5)),
    st.builds(Follow, places),
    st.builds(OpenMailbox, number, names),
    st.builds(CloseMailbox, places),
)
news = st.one_of(
    st.builds(NotStarted, places, st.sampled_from(["LaunchError", "?"]), texts),
    st.builds(ThreadEnded, places, st.integers(-1, 1), texts),
    st.builds(Crashed, st.just("E"), texts, st.booleans()),
    st.builds(Record, places, st.just(30), st.just("x"), texts, st.just(1.0)),
    st.builds(Connect, endpoints),
    st.builds(Unreachable, endpoints, st.just("closed")),
    st.just(Joined()),
)
verbs = st.one_of(
    st.tuples(st.just("says"), whom, orders),
    st.tuples(st.just("says"), whom, orders),
    st.tuples(st.just("says"), st.just(0), new_nodes),
    st.tuples(st.just("says"), whom, requests),
    st.tuples(st.just("says"), whom, news),
    st.tuples(st.just("begins"), whom, places),
    st.tuples(st.just("begins"), whom, st.just(0)),
    st.tuples(st.just("ends"), whom, st.sampled_from([0, 1, -9])),
    st.tuples(st.just("was shown"), whom, st.none()),
    st.tuples(st.just("stops"), whom, st.booleans()),
    st.tuples(st.just("unites"), whom, st.sampled_from(["one_for_all", "rest_for_one", "one_for_one"])),
    st.tuples(st.just("carries"), whom, endpoints),
    st.tuples(st.just("wants no more"), whom, endpoints),
    st.tuples(st.just("babbles"), whom, st.binary(max_size=3)),
    st.tuples(st.just("boots"), st.none(), st.booleans()),
    st.tuples(st.just("is lost"), st.sampled_from([1, 2]), st.booleans()),
    st.tuples(st.just("alarms"), st.none(), st.none()),
)


class Play(Stage):
    """Places and nodes say whatever they like. What carries out the decisions keeps to its part: it boots what is to be
    booted, once, loses what is up, and rings the alarms that were set."""

    def __init__(self):
        super().__init__()
        self.booting, self.up, self.alarms, self.answers = [], set(), [], Counter()

    def perform(self, script):
        for verb, who, what in script:
            try:
                self._act(verb, who, what)
            except WireError:
                pass
            self._note()

    def _act(self, verb, who, what):
        match verb:
            case "says":
                self.says(self._speaker(who), self._numbered(what))
            case "begins":
                self.runs(self._speaker(who))
                self.says(self._speaker(who), Started(what))
            case "ends" if (endpoint := self._speaker(who)) != PROGRAM:
                self.exits(endpoint, what)
            case "stops":
                self.happens(Heard(node_of(self._speaker(who)), Halted(self._speaker(who), what)))
            case "was shown":
                self.happens(Shown(self._speaker(who)))
            case "unites":
                able = [each for each in self.directory._places.values() if each.supervisor.rule.then is Then.RESTART]
                up = tuple(each.number for each in able if each.state == "up")
                self.says(PROGRAM, Unite(next(self._numbers), what, up[: 2 + who % 3]))
            case "carries":
                self.happens(Heard(node_of(what), Carry(what, self._speaker(who), b"x")))
            case "wants no more":
                self.happens(Heard(node_of(what), Carried(self._speaker(who), what, 0)))
            case "babbles":
                self.happens(Heard(node_of(self._speaker(who)), FromPlace(self._speaker(who), what)))
            case "boots":
                self._answer_boots(succeed=what)
            case "is lost" if who in self.up:
                self.up.discard(who)
                self.happens(Lost(who, "cut off", what))
            case "alarms":
                alarms, self.alarms = self.alarms, []
                for alarm in alarms:
                    self.at(max(self.now, min(alarm.at, self.now + 10)), Due(alarm.key))

    def _speaker(self, who):
        there = sorted({PROGRAM, *self.directory._behind, *self.directory._ended})
        return there[who % len(there)]

    def _answer_boots(self, *, succeed):
        booting, self.booting = self.booting, []
        for node in booting:
            if succeed:
                self.up.add(node)
                self.boots(node)
            else:
                self.happens(NotBooted(node, "no route"))

    def _numbered(self, message):
        if getattr(message, "number", None) != 0 or isinstance(message, Withdraw):
            return message
        fields = {name: getattr(message, name) for name in message._names}
        return type(message)(**{**fields, "number": next(self._numbers)})

    def _note(self):
        for action in self.did():
            match action:
                case Boot(node):
                    assert node not in self.booting
                    assert node not in self.up
                    self.booting.append(node)
                case Alarm():
                    self.alarms.append(action)
        for endpoint in list(self.told):
            for message in self.heard(endpoint):
                if isinstance(message, (Answer, Declined)):
                    self.answers[endpoint, message.number] += 1

    def end_everything(self):
        for node in [node for node in self.directory._nodes if node != LOCAL]:
            self.says(PROGRAM, EndNode(next(self._numbers), node, False, 0.0))
            self._note()
        while self.booting or self.up:
            self._answer_boots(succeed=True)
            for node in sorted(self.up):
                self._act("is lost", node, True)
            self._note()
        for place in list(self.directory._places):
            self.says(PROGRAM, Kill(next(self._numbers), place, 9))
        for endpoint in list(self.directory._behind):
            self.exits(endpoint, -9)
        for endpoint in list(self.directory._ended):
            self.happens(Shown(endpoint))
        self._note()


@settings(max_examples=25)
@given(st.lists(verbs, min_size=20, max_size=60))
def test_nothing_but_wire_errors_and_every_request_is_answered_once(script):
    """Once everything was ended and was shown, nobody waits, and nothing is left but what is remembered."""
    play = Play()
    play.perform(script)
    play.end_everything()
    assert all(count == 1 for count in play.answers.values())
    books = play.directory
    assert not books.places_run
    assert not books._ended
    assert not books._labels
    assert not books._stopped
    assert all(entry.state == "gone" and entry.asked is None for entry in books._places.values())
    assert all(node.asked is None and not node.ending for node in books._nodes.values())
    assert sorted(books._past) == sorted(books._places)


# -- what is stopped ----------------------------------------------------------------------------------------


def test_a_place_that_is_stopped_says_for_how_long(stage):
    _, endpoint = stage.place(name="bank", rule=ALWAYS)

    def stopped():
        (_, bank), *_ = stage.outcome(stage.asks(PROGRAM, Survey, LOCAL))
        return bank["stopped"]

    assert stopped() is None
    for seconds in (10.0, 12.0):
        stage.at(seconds, Heard(LOCAL, Halted(endpoint, True)))
    stage.now = 14.0
    assert stopped() == 4.0
    stage.happens(Heard(LOCAL, Halted(endpoint, False)))
    assert stopped() is None
    stage.happens(Heard(LOCAL, Halted(endpoint, True)))
    stage.exits(endpoint, -SIGKILL)
    stage.happens(Heard(LOCAL, Halted(endpoint, True)))  # it crossed the news of its end
    assert stopped() is None


# -- mailboxes ----------------------------------------------------------------------------------------------


def test_a_mailbox_is_a_place_behind_the_endpoint_of_its_process(stage):
    place, label = stage.outcome(stage.asks(PROGRAM, OpenMailbox, "desk"))
    assert label == "desk on vm"
    _, client = stage.place()
    assert stage.outcome(stage.asks(client, Find, ANY_NODE, "desk"), client) == (place, label)
    assert stage.heard(client) == [PlaceAt(place, PROGRAM, label, 0, 0, True)]
    stage.says(PROGRAM, CloseMailbox(place))
    assert stage.heard(client) == [PlaceGone(place, "it was closed", 0, False, ""), PlaceShown(place)]


def test_a_mailbox_ends_with_its_process_and_does_not_come_back_with_it(stage):
    _, endpoint = stage.place(name="bank", rule=ALWAYS)
    place, _ = stage.outcome(stage.asks(endpoint, OpenMailbox, "desk"), endpoint)
    stage.says(PROGRAM, Follow(place))
    stage.heard()
    stage.exits(endpoint, -SIGKILL)
    assert PlaceGone(place, "killed by SIGKILL", -SIGKILL, True, "") in stage.heard()
    assert [message.argv for _, message in stage.posted(Start)] == []
    assert isinstance(stage.outcome(stage.asks(PROGRAM, Find, LOCAL, "desk")), Declined)


def test_nobody_can_close_anothers_mailbox_or_what_is_none(stage):
    bank, endpoint = stage.place(name="bank")
    place, _ = stage.outcome(stage.asks(PROGRAM, OpenMailbox, "desk"))
    for each in (place, bank, 99):
        stage.says(endpoint, CloseMailbox(each))
    assert stage.outcome(stage.asks(PROGRAM, Find, LOCAL, "desk")) == (place, "desk on vm")
    assert stage.outcome(stage.asks(PROGRAM, Find, LOCAL, "bank"))[0] == bank


def test_who_does_not_wait_for_a_mailbox_any_more_does_not_have_it(stage):
    request = stage.asks(PROGRAM, OpenMailbox, "desk")
    stage.says(PROGRAM, Withdraw(request))
    assert stage.outcome(stage.asks(PROGRAM, OpenMailbox, "desk"))


def test_mailboxes_of_the_program_do_not_keep_its_system_from_ending(stage):
    stage.asks(PROGRAM, OpenMailbox, "desk")
    assert not stage.directory.places_run


def test_a_mailbox_without_a_name_is_nonsense(stage):
    with pytest.raises(WireError):
        stage.says(PROGRAM, OpenMailbox(1, ""))
