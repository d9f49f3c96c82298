"""What Racket's Distributed Places and its RPC do, done here, and where they stumbled: the rows of ``docs/places.md``.

Most rows have tests in detail elsewhere; the table names one for each, and here that is checked too. What is here runs
as a program would: a head, nodes on this machine, places that are processes.
"""

from __future__ import annotations

import inspect
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path

import pages
import psutil
import pytest
import row_places
from row_places import Counter

import rmpi
from rmpi import places, rpc

ROOT = Path(__file__).resolve().parents[2]
TABLE = pages.read("places.md")
NAMED = pages.named_tests(TABLE)

SOON = 20
"""Seconds in which anything happens that will."""

pytestmark = pytest.mark.usefixtures("fleet")


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_table_names_tests_that_there_are(file, name):
    assert pages.has_test(file, name)


def test_the_table_has_a_test_in_every_row():
    _, _, table = TABLE.partition("| there | here | the difference | test |\n|---|---|---|---|\n")
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 63
    assert [row for row in rows if "::" not in row] == []


def test_the_code_of_the_page_runs(tmp_path):
    done = pages.run_code(TABLE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "did you mean 'prices'?" in done.stdout


@pytest.mark.parametrize("face", [places, rpc], ids=["places", "rpc"])
def test_no_public_name_is_hidden_by_a_module(face):
    assert [name for name in face.__all__ if inspect.ismodule(getattr(face, name))] == []


# ------------------------------------------------------------------------------------- the nodes


@pytest.fixture(scope="module")
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def fleet(port):
    """One node of each kind, by name."""
    options = [
        {"name": "other", "output": "capture"},
        {"name": "plain", "port": port},
        {"name": "labelled", "output": "label", "restart": True},
        {"name": "silent", "output": "discard"},
        {"name": "solo", "solo": True},
    ]
    nodes = places.create_nodes(options)
    yield {each["name"]: node for each, node in zip(options, nodes, strict=True)}
    places.shutdown()


@pytest.fixture
def other(fleet):
    return fleet["other"]


# Starting nodes.


def test_a_place_has_the_name_and_the_arguments_that_were_given(other):
    with other.spawn("row_places:arguments", "initial", message=1, name="greeter") as place:
        assert place.get(SOON) == (("initial",), {"message": 1})
        assert place.name == "greeter"
        assert other.status().places[0].name == "greeter"


def test_a_node_is_a_process_of_its_own_and_says_what_it_is(other):
    status = other.status()
    assert (status.label, status.state) == ("other", "up")
    assert psutil.pid_exists(status.pid)
    assert status.pid != os.getpid()


def test_a_node_comes_in_the_background_too():
    node = places.create_node_future(name="brief").result(SOON)
    assert node in places.nodes()
    node.shutdown()
    assert node not in places.nodes()


def test_nodes_start_together_and_come_in_the_order_asked_for(fleet):
    assert [node.label for node in fleet.values()] == ["other", "plain", "labelled", "silent", "solo"]


def test_if_some_nodes_cannot_start_all_failures_are_reported_and_the_rest_is_ended():
    before = places.nodes()
    wanted = [{"name": "good"}, {"name": "bad", "python": "/no/such/python"}]
    with pytest.raises(ExceptionGroup, match="1 of 2 nodes") as caught:
        places.create_nodes(wanted)
    (error,) = caught.value.exceptions
    assert isinstance(error, rmpi.LaunchError)
    assert "/no/such/python" in str(error)
    assert places.nodes() == before


@pytest.mark.parametrize(
    ("name", "shown"),
    [("plain", "still here\n"), ("labelled", "[writer on labelled] still here\n"), ("silent", ""), ("other", "")],
)
def test_what_a_place_writes_is_shown_as_its_node_was_told(fleet, name, shown, capsys):
    node = fleet[name]
    place = node.spawn("row_places:write_and_wait", name="writer")
    place.put("enough")
    assert place.wait(SOON) == 0
    assert capsys.readouterr().out == shown
    assert ("still here" in node.captured()) == (name == "other")


# Places, threads, programs.


@pytest.mark.parametrize(
    ("target", "said"),
    [("no_such_module:run", "No module named 'no_such_module'"), ("row_places:runs", "row_places has no runs")],
)
def test_a_place_that_cannot_begin_is_the_error_of_who_spawns_it(other, target, said):
    with pytest.raises(rmpi.RemoteError, match=said):
        other.spawn(target, name="unborn")
    with pytest.raises(rmpi.NameNotFound):
        other.connect("unborn")


def test_threads_of_a_node_share_a_process_and_are_restarted_like_any_place(other):
    first, second = (other.spawn("row_places:pids", kind="thread") for _ in range(2))
    process = other.spawn("row_places:pids")
    answers = []
    for place in (first, second, process):
        place.put("who?")
        answers.append(place.get(SOON))
        place.terminate()
        assert place.wait(SOON) in (0, -signal.SIGTERM)
    assert answers[0] == answers[1] != answers[2]
    assert [is_main for _, is_main in answers] == [False, False, True]
    place = other.spawn("row_places:leave", 0, kind="thread", restart=places.restart_every(0.01, retries=1))
    assert (place.wait(SOON), place.restarts) == (0, 1)


def test_a_program_runs_on_the_node_and_its_status_and_output_come_back(other):
    command = other.spawn_command(["sh", "-c", "echo $PPID from the program; exit 7"])
    assert command.wait(SOON) == 7
    assert any(line.endswith("from the program") for line in other.captured())
    with pytest.raises(rmpi.LaunchError, match="no-such-program"):
        other.spawn_command(["no-such-program"])


def test_a_program_can_be_restarted_and_killed(other):
    command = other.spawn_command(["sleep", "60"], restart=True)
    with places.monitor(command) as events:
        os.kill(command.pid, signal.SIGKILL)
        while events.get(SOON).restarts == 0:
            pass
    command.kill()
    assert command.wait(SOON) == -signal.SIGKILL


def test_a_place_is_the_same_thing_here_and_elsewhere(other):
    for node in (places.here(), other):
        with node.spawn(row_places.echo) as place:
            place.put("Hello")
            assert place.get(SOON) == "Hello"
            assert place.node == node
            assert place.alive
        assert not place.alive


def test_waiting_for_a_place_gives_its_status_and_takes_nobodys_messages(other):
    place = other.spawn("row_places:leave", 3)
    assert place.wait(SOON) == 3
    assert place.get(SOON) == "last words"


# Names, ends, what is there.


def test_a_name_that_is_not_there_is_an_error_that_lists_what_is(other):
    with other.spawn(row_places.answer, name="answers"):
        with pytest.raises(rmpi.NameNotFound, match="did you mean 'answers'"):
            other.connect("anwsers")
        with pytest.raises(rmpi.UsageError, match="answers"):
            other.spawn(row_places.answer, name="answers")


def test_a_connection_goes_on_with_the_next_incarnation(other):
    with other.spawn(row_places.pids, name="phoenix", restart=True) as place:
        channel = other.connect("phoenix")
        channel.put("who?")
        first, _ = channel.get(SOON)
        os.kill(first, signal.SIGKILL)
        with places.monitor(place) as events:
            while events.get(SOON).restarts == 0:
                pass
        channel.put("who?")
        second, _ = channel.get(SOON)
        assert second == place.pid != first


def test_a_node_that_is_shut_down_asks_its_places_and_one_that_is_killed_does_not():
    node = places.create_node(name="brief")
    with pytest.raises(rmpi.UsageError, match="ends with"):
        places.here().shutdown()
    place = node.spawn("row_places:tidy")
    assert place.get(SOON) == "ready"
    node.shutdown()
    assert place.wait(SOON) == 5
    node = places.create_node(name="briefer")
    place = node.spawn("row_places:tidy")
    assert place.get(SOON) == "ready"
    node.kill()
    assert place.wait(SOON) == -signal.SIGKILL
    with pytest.raises(rmpi.PeerLost, match="tidy on briefer"):
        place.put("too late")


def test_a_node_says_what_runs_on_it(other):
    with other.spawn(row_places.echo, name="one") as one, other.spawn(row_places.echo, name="two"):
        assert [place.name for place in other.status().places if place.name] == ["one", "two"]
        assert one.label == "one on other"


# Sources, restarts of nodes, strangers, channels.


def test_a_node_that_is_lost_is_started_again_with_its_places(fleet):
    node = fleet["labelled"]
    place = node.spawn(row_places.pids, name="resident", restart=True)
    place.put("who?")
    first, _ = place.get(SOON)
    os.kill(node.status().pid, signal.SIGKILL)
    with places.monitor(place) as events:
        while events.get(SOON).restarts == 0:
            pass
    place.put("who?")
    second, _ = place.get(SOON)
    assert second != first
    assert not psutil.pid_exists(first)
    place.kill()
    place.wait(SOON)


@pytest.mark.parametrize("words", [b"", b"(dcgm 1)\n", b"GET / HTTP/1.0\r\n\r\n"])
def test_a_stranger_at_the_door_harms_nobody(fleet, port, words):
    with fleet["plain"].spawn(row_places.echo) as place:
        with socket.create_connection(("127.0.0.1", port), timeout=SOON) as stranger:
            stranger.sendall(words)
        place.put("Hello")
        assert place.get(SOON) == "Hello"


def test_messages_that_nobody_waits_for_go_to_a_function_with_their_channel(other):
    heard, done = places.channel_pair()
    with other.spawn(row_places.echo) as place:
        place.on_message(lambda channel, message: heard.put((channel is place, message)))
        place.put("Hello")
        assert done.get(SOON) == (True, "Hello")


def test_what_a_place_printed_before_it_was_killed_is_shown_although_nothing_was_flushed(other):
    place = other.spawn("row_places:write_and_die", 1000)
    assert place.wait(SOON) == -signal.SIGKILL
    assert [line for line in other.captured() if line.startswith("line ")] == [f"line {n}" for n in range(1000)]


def test_an_error_that_ends_a_place_is_shown_from_its_first_line_on(other, capsys):
    place = other.spawn(row_places.crash)
    assert place.wait(SOON) == 1
    first, trace, where, *_, last = capsys.readouterr().err.splitlines()
    assert (first, trace) == ("crash on other failed:", "Traceback (most recent call last):")
    assert f'"{row_places.__file__}"' in where
    assert last == "ValueError: nothing works"


def test_who_waits_for_a_place_that_dies_is_told_how(other):
    with other.spawn(row_places.answer, name="mortal") as place:
        channel = other.connect("mortal")
        channel.put("there?")
        assert channel.get(SOON) == "there?"
        os.kill(place.pid, signal.SIGKILL)
        with pytest.raises(rmpi.PeerLost, match=r"mortal on other .*SIGKILL"):
            channel.get(SOON)


def test_a_place_can_be_given_a_channel_and_answer_by_it(other):
    ours, theirs = places.channel_pair()
    with other.spawn(row_places.use_what_comes) as place:
        place.put(("by another way", theirs))
        assert ours.get(SOON) == "by another way"


# Functions instead of restarts, and in routers. Timers and policies have tests of their own.


def test_a_function_is_called_instead_of_a_restart(other):
    ours, theirs = places.channel_pair()
    place = other.spawn("row_places:leave", 3, restart=lambda: ours.put("called"))
    assert theirs.get(SOON) == "called"
    assert place.restarts == 0


def test_calls_in_a_router_do_not_stop_its_timers_and_answers_are_not_crossed(other):
    """Two servers on one node, each called by a timer; the first answers when the second has."""
    ours, theirs = places.channel_pair()
    answers: list[object] = []
    with Counter.at(other) as first, Counter.at(other) as second:

        def call_second() -> None:
            _, reply = ours.receive(SOON)  # the first waits
            answers.append(second.up(7))
            reply.put("first")

        call_first = places.after(0, lambda: answers.append(first.wait_for(theirs)))
        places.MessageRouter(call_first, places.after(0, call_second)).run()
    assert answers == [7, "first"]


# Channels of every kind, routers, nodes of their own.


def test_channels_of_every_kind_are_used_alike(other):
    ours, theirs = places.channel_pair()
    with other.spawn(row_places.answer, name="answers") as place:
        for channel in (place, other.connect("answers"), places.connect("answers")):
            channel.put([1, "two"])
            assert channel.get(SOON) == [1, "two"]
        ours.put("here")
        assert theirs.poll()
        assert theirs.get(SOON) == "here"


def test_a_named_place_gets_a_channel_from_one_it_does_not_know(other):
    ours, theirs = places.channel_pair()
    with other.spawn(row_places.use_what_comes, name="taker"):
        places.connect("taker").put(("tagged", theirs))
        message, reply = ours.receive(SOON)
        assert message == "tagged"
        reply.put("an answer, which it may get by the channel that it was given")


def test_nobody_listens_for_places_of_this_machine_alone():
    listening = [each for each in psutil.Process().net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert listening == []


def test_a_solo_node_is_its_creators_alone(fleet, other):
    solo = fleet["solo"]
    with solo.spawn(row_places.answer, name="hermit"), other.spawn(row_places.find) as searcher:
        mine = solo.connect("hermit")
        mine.put("Hello")
        assert mine.get(SOON) == "Hello"
        searcher.put("hermit")
        assert searcher.get(SOON) == ("NameNotFound", [node.label for node in places.nodes() if node != solo])


def test_a_place_spawns_places_and_hears_that_they_have_begun(fleet, other):
    with fleet["plain"].spawn(row_places.spawn_there, other) as place:
        said, channel = place.get(SOON)
        assert said == "from a place"
        channel.close()
    child = other.status().places[-1]  # who spawned it has ended
    assert (child.name, child.state) == ("child", "up")
    os.kill(child.pid, signal.SIGKILL)


def test_a_place_finds_names_on_nodes_it_has_not_heard_of(fleet, other):
    with fleet["plain"].spawn(row_places.answer, name="far"), other.spawn(row_places.find) as searcher:
        searcher.put("far")
        assert searcher.get(SOON)[0] == "Hello"


def test_a_pair_of_channels_is_two_ends():
    one, two = places.channel_pair()
    one.put("to two")
    two.put("to one")
    assert (one.get(SOON), two.get(SOON)) == ("to one", "to two")
    assert places.select([one, two], timeout=0) == []
    one.put("more")
    assert places.select([one, two], timeout=SOON) == [two]
    one.close()
    assert list(two) == ["more"]


# Typed channels.


def test_a_typed_channel_gives_the_first_of_a_kind_and_keeps_the_others_in_order():
    ours, theirs = places.channel_pair()
    for message in (("tuple", 1), ("bank", 2), {"type": "tuple", "n": 3}, "plain", ("tuple", 4)):
        ours.put(message)
    kinds = theirs.typed()
    message, reply = kinds.receive("bank", SOON)
    assert message == ("bank", 2)
    reply.put("to who sent it")
    assert ours.get(SOON) == "to who sent it"
    with pytest.raises(rmpi.DeadlineExceeded):
        kinds.get("bank", timeout=0)
    assert kinds.get("tuple", SOON) == ("tuple", 1)
    assert kinds.get("tuple", SOON) == {"type": "tuple", "n": 3}
    assert [theirs.get(SOON), theirs.get(SOON)] == ["plain", ("tuple", 4)]


# The end of the program.


def test_when_the_program_is_killed_its_nodes_and_places_end_with_it():
    code = """
        import signal
        from rmpi import places
        node = places.create_node()
        print(node.spawn_command(["sleep", "100"], restart=True).pid, node.status().pid, flush=True)
        signal.pause()
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as program, ExitStack() as stack:
        assert program.stdout is not None
        ends = [os.pidfd_open(int(pid)) for pid in program.stdout.readline().split()]
        for end in ends:
            stack.callback(os.close, end)
        program.kill()
        assert len(ends) == 2
        assert [select.select([end], [], [], SOON)[0] for end in ends] == [[end] for end in ends]


# Logs.


def test_what_places_log_at_any_level_is_logged_by_the_program_and_nowhere_else(other, caplog):
    caplog.set_level(logging.INFO)
    for node in (places.here(), other):
        with node.spawn(row_places.log) as place:
            for level in (logging.DEBUG, logging.INFO, logging.ERROR, logging.CRITICAL):
                place.put(level)
                assert place.get(SOON) == "logged"
        place.wait(SOON)
        found = [(each.levelno, each.getMessage()) for each in caplog.records if each.name == "row"]
        assert found == [(level, f"at {level}") for level in (logging.INFO, logging.ERROR, logging.CRITICAL)]
        caplog.clear()


# Ports, ssh, interpreters, output.


@pytest.mark.parametrize("number", [-1, 65536, "6340", True, None])
def test_what_is_no_port_is_said_before_anything_starts(number):
    with pytest.raises(rmpi.UsageError, match="port must be a number from 0 to 65535"):
        places.create_node(port=number)


def test_the_default_port_is_the_ancestors():
    assert places.DEFAULT_PORT == 6340


def test_a_host_is_reached_by_ssh_or_whatever_takes_its_place():
    stub = str(ROOT / "tests/stubs/ssh")
    with places.create_node("somewhere", rsh_agent=stub) as node, node.spawn(row_places.echo) as place:
        place.put("Hello")
        assert place.get(SOON) == "Hello"
    with pytest.raises(rmpi.LaunchError, match="denied"):
        places.create_node("denied", rsh_agent=stub)


# Calls.


def test_one_class_serves_who_started_it_and_everybody_who_knows_its_name(other):
    with Counter.at(other) as private, Counter.at(other, name="counter") as named:
        clients = [named, Counter.connect(other, "counter"), Counter.connect(other, "counter")]
        assert [client.up() for client in clients] == [1, 2, 3]
        assert private.up() == 1


def test_state_is_made_before_the_first_call_and_an_error_there_is_the_callers(other):
    with pytest.raises(rmpi.RemoteError, match="ValueError: no such counter"):
        Counter.at(other, fail=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'start'"):
        Counter.at(other, start=1)  # type: ignore[call-arg]


def test_a_call_that_fails_there_is_raised_here_and_the_server_lives_on(other):
    with Counter.at(other) as counter:
        with pytest.raises(rmpi.RemoteError, match="KeyError: 'nobody'") as caught:
            counter.fail()
        assert 'raise KeyError("nobody")' in caught.value.traceback
        with pytest.raises(TypeError):
            counter.up("too", "many")  # type: ignore[call-arg]
        assert counter.up(by=5, timeout=SOON) == 5
        assert counter.up.future(2).result(SOON) == 7


def test_a_call_to_a_server_that_dies_fails_and_the_next_finds_the_next_one(other):
    with Counter.at(other, restart=True) as counter:
        assert counter.up() == 1
        ours, theirs = places.channel_pair()
        waiting = counter.wait_for.future(theirs)
        assert ours.get(SOON) == "waiting"
        place = rpc.place_of(counter)
        os.kill(place.pid, signal.SIGKILL)
        with pytest.raises(rmpi.PeerLost):
            waiting.result(SOON)
        assert counter.up() == 1


def test_a_cast_does_not_wait_and_what_it_raises_is_logged_by_the_program(other, caplog):
    with Counter.at(other) as counter:
        counter.add(3)
        counter.add("three")  # type: ignore[arg-type]
        assert counter.up() == 4
    assert "Counter.add, which was cast, raised" in caplog.text
