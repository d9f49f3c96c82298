"""Systems as their users see them: processes, threads, commands and nodes of this machine.

Most tests share one system, and after each nothing of it is left but what it needs itself.
"""

import gc
import io
import logging
import os
import re
import signal
import sys
import threading
from pathlib import Path

import played
import psutil
import pytest

from rmpi import places
from rmpi.errors import (
    DeadlineExceeded,
    LaunchError,
    NameNotFound,
    PeerExited,
    PeerLost,
    RemoteError,
    UsageError,
)
from rmpi.places import handles
from rmpi.places.messages import Stop, pack
from rmpi.places.system_messages import LOCAL, Spawn
from rmpi.places.systemnode import FAILED_TO_START

LIMIT = 30.0


def footprint():
    gc.collect()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    children = {child.pid for child in psutil.Process().children()}
    threads = {thread for thread in threading.enumerate() if thread.name.startswith("rmpi")}
    return descriptors, children, threads


@pytest.fixture(scope="module")
def system():
    """This program's own node, without what other tests had there."""
    places.shutdown()
    descriptors, children, threads = footprint()
    yield places.here()
    places.shutdown()
    left, *others = footprint()
    assert left <= descriptors
    assert others == [children, threads]


@pytest.fixture(scope="module")
def extra(system):
    """Another node of this machine."""
    with places.create_node(name="extra", output="capture") as node:
        assert node in places.nodes()
        assert system in places.nodes()
        yield node


def on(node):
    """The places of a node, without the host of its threads."""
    return [each.label for each in node.status().places if each.label != f"the threads of {node.label}"]


@pytest.fixture
def node(system):
    yield system
    while on(system):  # what could not begin may take a moment to end
        pass


def told(channel, count):
    return [channel.get(timeout=LIMIT) for _ in range(count)]


def kinds(events, count):
    return [event.kind for event in told(events, count)]


# -- spawning -----------------------------------------------------------------------------------------------


def closure(word):
    def answer(channel):
        for message in channel:
            channel.put((word, message))

    return answer


@pytest.mark.parametrize("kind", ["process", "thread"])
@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("played:echo", 7),
        (played.echo, 7),
        (lambda channel: channel.put(-channel.get()), -7),
        (closure("word"), ("word", 7)),
    ],
    ids=["name", "function", "lambda", "closure"],
)
def test_a_place_runs_what_it_was_spawned_for(node, target, answer, kind):
    with node.spawn(target, kind=kind) as place:
        place.put(7)
        assert place.get(timeout=LIMIT) == answer


def test_its_arguments_are_any_values(node):
    place = node.spawn("played:tell", 1, [2], three={"four": b"5"})
    assert place.get(timeout=LIMIT) == ((1, [2]), {"three": {"four": b"5"}})
    assert place.wait(LIMIT) == 0


def test_its_surroundings(node, tmp_path):
    with node.spawn("played:describe", environment={"PLAYED": "yes"}, directory=tmp_path) as place:
        place.put("PLAYED")
        assert place.get(timeout=LIMIT) == (place.pid, str(tmp_path), "yes")
    with node.spawn("played:describe") as place:
        place.put("PLAYED")
        assert place.get(timeout=LIMIT) == (place.pid, str(Path.cwd()), None)


@pytest.mark.parametrize("target", ["played", "played:", ":echo", "pl ayed:echo", "played:echo()", 5])
def test_what_is_no_target_is_not_even_tried(node, target):
    with pytest.raises(UsageError):
        node.spawn(target)


@pytest.mark.parametrize("kind", ["process", "thread"])
@pytest.mark.parametrize(
    ("target", "args", "told"),
    [
        ("played:missing", (), "rmpi.errors.UsageError: 'played:missing': played has no missing"),
        ("played:NUMBER", (), "rmpi.errors.UsageError: 'played:NUMBER' cannot be called: it is int"),
        ("no_such_module:f", (), "ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "raises:f",
            (),
            'File "{0}/raises.py", line 2, in <module>\\n    1 / 0\\n.*ZeroDivisionError: division by zero',
        ),
        ("exits:f", (), 'File "{0}/exits.py", line 2, in <module>\\n.*SystemExit: 3'),
        ("played:echo", (played.Unwilling(),), "in refuse\\n.*RuntimeError: never here"),
    ],
    ids=["missing", "number", "module", "raises", "exits", "argument"],
)
def test_why_a_place_cannot_begin_is_raised_where_it_was_spawned(node, tmp_path, monkeypatch, target, args, told, kind):
    (tmp_path / "raises.py").write_text("\n1 / 0\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RemoteError) as caught:
        node.spawn(target, *args, kind=kind)
    assert re.search(told.format(tmp_path), str(caught.value), re.DOTALL)
    assert "hosting.py" not in str(caught.value)


def test_what_cannot_be_started_here(node, tmp_path):
    (tmp_path / "text").write_text("no program")
    with pytest.raises(LaunchError, match="there is no directory /no/such here"):
        node.spawn("played:echo", directory="/no/such")
    with pytest.raises(LaunchError, match="there is no program no-such-program here"):
        node.spawn_command(["no-such-program"])
    with pytest.raises(LaunchError, match="text cannot be run here: it is not executable"):
        node.spawn_command(["./text"], directory=tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"environment": {"A": 1}},
        {"environment": {"A=B": "1"}},
        {"environment": {"A": "1\0"}},
        {"name": None},
        {"name": 5},
        {"restart": 5},
        {"kind": "daemon"},
    ],
    ids=str,
)
def test_what_cannot_be_asked_for(node, options):
    with pytest.raises(UsageError):
        node.spawn("played:echo", **options)


@pytest.mark.parametrize("words", ["sleep 5", [], [""], ["sleep", "5\0"]])
def test_what_is_no_command(node, words):
    with pytest.raises(UsageError):
        node.spawn_command(words)


def test_arguments_that_cannot_travel(node, monkeypatch):
    with pytest.raises(UsageError, match=r"cannot be pickled: TypeError: cannot pickle '_thread\.lock' object"):
        node.spawn("played:echo", threading.Lock())
    monkeypatch.setattr(handles, "PARCEL_LIMIT", 1 << 20)
    with pytest.raises(UsageError, match="send large arguments by put"):
        node.spawn("played:measure", bytes(2 << 20))


@pytest.mark.parametrize("where", ["here", "extra"])
def test_large_arguments_travel(system, extra, where):
    """Larger than a packet of a control socket, and than a frame of a stream."""
    place = {"here": system, "extra": extra}[where].spawn("played:measure", bytes(3 << 20))
    assert place.get(timeout=LIMIT) == 3 << 20
    assert place.wait(LIMIT) == 0


def test_a_place_that_does_not_begin_in_time_is_ended(node, tmp_path, monkeypatch):
    (tmp_path / "hangs.py").write_text("import threading\nthreading.Event().wait()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeadlineExceeded, match=r"starting slow on \S+ was not done after 0.3 s"):
        node.spawn("hangs:f", name="slow", timeout=0.3)
    with node.spawn("played:echo") as other:  # by now it was told to end
        other.put(1)
        assert other.get(timeout=LIMIT) == 1


def test_a_hundred_places(node):
    spawned = [node.spawn("played:tell", number) for number in range(100)]
    assert [place.get(timeout=LIMIT) for place in spawned] == [((number,), {}) for number in range(100)]
    assert [place.wait(LIMIT) for place in spawned] == [0] * 100


# -- ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["process", "thread"])
@pytest.mark.parametrize(
    ("deed", "status", "error"),
    [
        ("pass", 0, PeerExited),
        ("sys.exit()", 0, PeerExited),
        ("sys.exit(3)", 3, PeerLost),
        ("sys.exit('a text')", 1, PeerLost),
        ("raise KeyError('key')", 1, PeerLost),
    ],
)
def test_how_a_place_ends(node, monkeypatch, deed, status, error, kind):
    said = io.StringIO()  # capsys loses what is written while it is read
    monkeypatch.setattr(sys, "stderr", said)
    place = node.spawn("played:act", deed, kind=kind, name="one")
    assert place.wait(LIMIT) == status
    while "a text" in deed and "a text" not in said.getvalue():  # threads share what they write to
        pass
    assert not place.alive
    with pytest.raises(error) as caught:
        place.get(timeout=LIMIT)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"one on {node.label} has ")


@pytest.mark.parametrize(
    ("deed", "status", "cause"),
    [
        ("os._exit(0)", 0, "left without finishing: exit status 0 in the middle of the job"),
        ("os._exit(4)", 4, "exit status 4"),
        ("os.kill(os.getpid(), 9)", -9, "killed by SIGKILL"),
    ],
)
def test_how_a_process_ends(node, deed, status, cause):
    place = node.spawn("played:act", deed)
    assert place.wait(LIMIT) == status
    with pytest.raises(PeerLost, match=f"has failed: {cause}"):
        place.get(timeout=LIMIT)


def test_a_place_is_ended(node):
    for end, status in (("terminate", -signal.SIGTERM), ("kill", -signal.SIGKILL)):
        place = node.spawn("played:echo", restart=True)
        getattr(place, end)()
        assert place.wait(LIMIT) == status
        getattr(place, end)()
        assert (place.pid, place.alive, place.restarts) == (0, False, 0)


def test_what_had_come_before_the_end_comes_first(node):
    place = node.spawn("played:act", "channel.put(1); channel.put(2)")
    assert place.wait(LIMIT) == 0
    assert told(place, 2) == [1, 2]
    with pytest.raises(PeerExited):
        place.get(timeout=LIMIT)


def test_a_failure_is_shown_once_with_the_place_s_own_frames(node, capsys):
    place = node.spawn("played:fail", name="bank")
    assert place.wait(LIMIT) == 1
    line = (Path(__file__).parent / "played.py").read_text().splitlines().index('    raise ValueError("no luck")') + 1
    assert capsys.readouterr().err == (
        f"bank on {node.label} failed:\n"
        "Traceback (most recent call last):\n"
        f'  File "{Path(__file__).parent}/played.py", line {line}, in fail\n'
        '    raise ValueError("no luck")\n'
        "ValueError: no luck\n"
    )


def test_a_wait_ends_in_time(node):
    with node.spawn("played:echo", name="slow") as place:
        with pytest.raises(DeadlineExceeded, match=r"slow on \S+ had not ended after 0.01 s"):
            place.wait(0.01)
        assert place.alive


# -- restarts -----------------------------------------------------------------------------------------------


def test_a_killed_process_is_restarted_and_can_be_talked_to(node):
    with node.spawn("played:serve", name="bank", restart=True) as place, places.monitor(place) as events:
        assert kinds(events, 1) == ["up"]
        former = place.pid
        os.kill(former, signal.SIGKILL)
        down, up = told(events, 2)
        assert (down.kind, down.reason, down.status) == ("down", "killed by SIGKILL", -9)
        assert (up.kind, up.restarts) == ("up", 1)
        client = node.connect("bank")
        client.put("hello")
        message, pid = client.get(timeout=LIMIT)
        assert message == "hello"
        assert former != pid == place.pid


def test_a_supervisor_gives_up(node):
    given_up = threading.Event()
    policy = places.restart_every(0.01, retries=2, reset_after=100.0, on_final_fail=given_up.set)
    place = node.spawn("played:act", "os._exit(3)", restart=policy)
    assert place.wait(LIMIT) == 3
    assert place.restarts == 2
    assert given_up.wait(LIMIT)


def test_a_restart_fails(node, tmp_path, capsys):
    (tmp_path / "home").mkdir()
    leaves = ["sh", "-c", 'rmdir "$PWD"']
    policy = places.restart_every(0.01, retries=1)
    command = node.spawn_command(leaves, name="guest", directory=tmp_path / "home", restart=policy)
    assert command.wait(LIMIT) == FAILED_TO_START
    assert capsys.readouterr().err == (
        f"guest on {node.label} could not be started again:\nthere is no directory {tmp_path}/home here\n"
    )


def test_a_function_is_called_instead_of_a_restart(node):
    called = threading.Event()
    place = node.spawn("played:act", "pass", restart=called.set)
    assert place.wait(LIMIT) == 0
    assert called.wait(LIMIT)


# -- commands -----------------------------------------------------------------------------------------------


def test_a_command_runs_where_and_with_what_it_is_told(node, tmp_path, capfd):
    command = node.spawn_command(
        ["sh", "-c", 'pwd; echo "$0 $1 $PLAYED"; echo oops >&2; exit 4', "a b", "c"],
        environment={"PLAYED": "yes"},
        directory=tmp_path,
    )
    assert command.wait(LIMIT) == 4
    written = capfd.readouterr()
    assert written.out == f"{tmp_path}\na b c yes\n"
    assert written.err == "oops\n"


def test_a_command_is_restarted(node, tmp_path):
    once = 'if [ -e "$0" ]; then exit 0; else touch "$0"; exit 3; fi'
    command = node.spawn_command(
        ["sh", "-c", once, str(tmp_path / "been")], restart=places.restart_every(0.01, only_failures=True)
    )
    assert command.wait(LIMIT) == 0
    assert command.restarts == 1


def stopped(node):
    """Of each place that is stopped, for how many seconds."""
    return {each.label: each.stopped for each in node.status().places if each.stopped is not None}


@pytest.mark.parametrize("where", ["here", "beside"])
def test_what_is_stopped_is_seen_and_may_be_killed_or_go_on(node, extra, where):
    at = node if where == "here" else extra
    place, command = at.spawn(played.echo, name="echo"), at.spawn_command(["sleep", "1000"], name="sleep")
    assert stopped(at) == {}
    for each in (place, command):
        os.kill(each.pid, signal.SIGSTOP)
    while len(found := stopped(at)) < 2:
        pass
    assert found.keys() == {place.label, command.label}
    while stopped(at)[place.label] <= found[place.label]:  # the time that passes
        pass
    os.kill(place.pid, signal.SIGCONT)
    place.put("goes on")
    assert place.get(timeout=LIMIT) == "goes on"
    while stopped(at).keys() != {command.label}:
        pass
    command.kill()
    assert command.wait(LIMIT) == -signal.SIGKILL
    assert stopped(at) == {}
    place.kill()


def test_threads_are_stopped_with_their_process(node):
    place = node.spawn(played.echo, name="thread", kind="thread")
    (host,) = [each for each in node.status().places if each.label.startswith("the threads of")]
    os.kill(host.pid, signal.SIGSTOP)
    while stopped(node).keys() != {place.label, host.label}:
        pass
    os.kill(host.pid, signal.SIGCONT)
    place.terminate()


def test_a_command_is_ended_with_what_it_started(node):
    with node.spawn_command(["sh", "-c", "sleep 1000 & wait"]) as command:
        (child,) = await_children(psutil.Process(command.pid))
    assert not child.is_running()


def await_children(process):
    while not (children := process.children()):
        pass
    return children


# -- threads ------------------------------------------------------------------------------------------------


def test_threads_of_a_node_share_a_process(node):
    one, two = (node.spawn("played:count_threads", kind="thread", name=name) for name in ("one", "two"))
    (pid, first), (same, second) = one.get(timeout=LIMIT), two.get(timeout=LIMIT)
    assert pid == same != os.getpid()
    assert (first, second) == (f"place one on {node.label}", f"place two on {node.label}")
    one.terminate()
    assert one.wait(LIMIT) == 0
    two.put("go on")
    assert two.wait(LIMIT) == 0


def test_a_thread_is_found_by_its_name_and_restarted(node):
    policy = places.restart_every(0.01)
    with node.spawn(
        "played:act", "channel.put(channel.get() + 1)", kind="thread", name="next", restart=policy
    ) as place:
        client = node.connect("next")
        with places.monitor(place) as events:
            assert kinds(events, 1) == ["up"]
            for number in range(3):
                place.put(number)
                assert place.get(timeout=LIMIT) == number + 1
                assert kinds(events, 2) == ["down", "up"]
            assert client


def test_a_thread_fails_and_others_in_its_process_can_be_talked_to(node):
    """Also while somebody waits for it."""
    others = [node.spawn("played:echo", kind="thread") for _ in range(2)]
    failing = node.spawn("played:act", "channel.get(); raise ValueError('no luck')", kind="thread", name="one")
    failing.put("now")
    with pytest.raises(PeerLost, match=r"one on \S+ has failed: ValueError: no luck"):
        failing.get(timeout=LIMIT)
    assert failing.wait(LIMIT) == 1
    for other in others:
        with other:
            other.put("hello")
            assert other.get(timeout=LIMIT) == "hello"


def test_the_host_of_threads_is_killed(node):
    plain = node.spawn("played:count_threads", kind="thread")
    with node.spawn("played:describe", kind="thread", restart=True) as supervised:
        pid, _ = plain.get(timeout=LIMIT)
        with places.monitor(supervised) as events:
            assert kinds(events, 1) == ["up"]
            os.kill(pid, signal.SIGKILL)
            assert plain.wait(LIMIT) == -signal.SIGKILL
            assert kinds(events, 2) == ["down", "up"]
        supervised.put("HOME")
        another, _, _ = supervised.get(timeout=LIMIT)
        assert another != pid


# -- what is written and logged -----------------------------------------------------------------------------


def test_what_places_write_is_ours(node, capsys):
    assert node.spawn("played:write").wait(LIMIT) == 0
    written = capsys.readouterr()
    assert written.out == "to stdout\nan unfinished line\n"
    assert written.err == "to stderr\n"


def test_what_places_write_can_be_captured(extra, capsys):
    assert extra.spawn("played:write").wait(LIMIT) == 0
    assert sorted(extra.captured()[-3:]) == ["an unfinished line", "to stderr", "to stdout"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_what_places_log_is_logged_here(node, caplog, kind):
    with caplog.at_level(logging.WARNING):
        assert node.spawn("played:log", name="teller", kind=kind).wait(LIMIT) == 0
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("bank", "WARNING", "low on money")
    assert (record.place, record.node) == (f"teller on {node.label}", node.label)


# -- names, and what is sent --------------------------------------------------------------------------------


def test_named_places_are_found(system, extra):
    with system.spawn("played:serve", name="bank"), extra.spawn("played:serve", name="shop"):
        for channel in (system.connect("bank"), places.connect("bank"), places.connect("shop")):
            channel.put("hello")
            assert channel.get(timeout=LIMIT)[0] == "hello"
        with pytest.raises(NameNotFound, match=f"no place named 'shop' on {system.label}; it is on extra"):
            system.connect("shop")
        with pytest.raises(NameNotFound, match="no place named 'bnak' in this system; did you mean 'bank'"):
            places.connect("bnak")
        with pytest.raises(UsageError, match=f"a place named 'bank' is on {system.label} already"):
            system.spawn("played:serve", name="bank")


def test_a_client_is_killed_in_the_middle_and_the_others_are_served(node):
    with node.spawn("played:serve", name="bank") as bank:
        client = node.spawn("played:ask", node.connect("bank"))
        assert client.get(timeout=LIMIT)[0] == "first"
        os.kill(client.pid, signal.SIGKILL)
        assert client.wait(LIMIT) == -signal.SIGKILL
        other = node.connect("bank")
        for number in range(3):
            other.put(number)
            assert other.get(timeout=LIMIT) == (number, bank.pid)


def test_handles_are_sent_to_places_of_all_nodes(system, extra):
    with system.spawn("played:serve", name="bank") as bank:
        for node in (system, extra):
            place = node.spawn("played:pass_on")
            place.put((extra, bank))
            assert place.get(timeout=LIMIT) == ((f"bank on {system.label}",), {})
            assert place.wait(LIMIT) == 0


def test_a_place_starts_places_and_nodes_of_its_own(system):
    with system.spawn("played:found") as place:
        answers, label, nodes = place.get(timeout=LIMIT)
        assert answers == ["far", "near"]
        assert label == system.label
        assert {system.label, "made by a place"} <= set(nodes)
        (made,) = [node for node in places.nodes() if node.label == "made by a place"]
        assert on(made) == []
    made.shutdown()
    assert "made by a place" not in [node.label for node in places.nodes()]


def test_a_place_cannot_end_the_system_it_is_part_of(node):
    place = node.spawn("played:try_to_shut_down")
    assert place.get(timeout=LIMIT).startswith("UsageError: this place's system is another program's")
    assert place.wait(LIMIT) == 0


# -- nodes --------------------------------------------------------------------------------------------------


def test_a_node_ends_with_all_its_places_and_what_they_wrote_was_shown(system, capsys):
    with places.create_node(name="talks", output="label") as node:
        with pytest.raises(DeadlineExceeded):
            node.spawn("played:echo", timeout=0.001)  # before there is anything that could start it
        echo = node.spawn("played:echo", restart=True)
        thread = node.spawn("played:echo", restart=True, kind="thread")
        assert node.spawn("played:write", name="one").wait(LIMIT) == 0
        process = psutil.Process(node.status().pid)
    written = capsys.readouterr()
    assert written.out == "[one on talks] to stdout\n[one on talks] an unfinished line\n"
    assert written.err == "[one on talks] to stderr\n"
    assert echo.wait(LIMIT) == -signal.SIGTERM
    assert thread.wait(LIMIT) == -signal.SIGTERM
    process.wait(LIMIT)
    assert node.status().state == "gone"
    node.shutdown()
    with pytest.raises(PeerLost, match="is gone; no place can be started"):
        node.spawn("played:echo")
    with pytest.raises(UsageError, match="ends with it"):
        system.shutdown()


@pytest.mark.usefixtures("system")
def test_a_node_is_killed_and_what_ran_there_is_lost(capsys):
    node = places.create_node(name="unlucky")
    place = node.spawn("played:echo", name="bank", restart=True)
    command = node.spawn_command(["sh", "-c", "setsid sleep 1000 & wait"])
    below = psutil.Process(command.pid)
    (daemon,) = await_children(below)
    os.kill(node.status().pid, signal.SIGKILL)
    assert (place.wait(LIMIT), command.wait(LIMIT)) == (-9, -9)
    with pytest.raises(PeerLost, match="bank on unlucky has failed: its control stream ended"):
        place.get(timeout=LIMIT)
    gone, alive = psutil.wait_procs([below, daemon], LIMIT)
    assert len(gone) == 2, alive
    assert capsys.readouterr().err == "node unlucky was lost: its control stream ended\n"


@pytest.mark.usefixtures("system")
def test_a_supervised_node_is_killed_and_comes_back_with_its_places(capsys):
    with places.create_node(name="lucky", restart=True) as node:
        place, thread = node.spawn("played:serve", name="bank"), node.spawn("played:serve", kind="thread")
        with places.monitor(place) as one, places.monitor(thread) as other:
            assert kinds(one, 1) + kinds(other, 1) == ["up", "up"]
            os.kill(node.status().pid, signal.SIGKILL)
            assert kinds(one, 2) + kinds(other, 2) == ["down", "up"] * 2
        for each in (place, thread, node.connect("bank")):
            each.put("hello")
            assert each.get(timeout=LIMIT)[0] == "hello"
    assert capsys.readouterr().err == "node lucky was lost, and is tried again: its control stream ended\n"


@pytest.mark.parametrize("where", ["here", "extra"])
def test_the_spawner_of_a_node_is_killed(system, extra, capsys, where):
    node = {"here": system, "extra": extra}[where]
    with node.spawn("played:echo", restart=True) as supervised, places.monitor(supervised) as events:
        plain = node.spawn("played:echo")
        assert kinds(events, 1) == ["up"]
        psutil.Process(plain.pid).parent().kill()
        assert plain.wait(LIMIT) == -signal.SIGKILL
        assert kinds(events, 2) == ["down", "up"]
        supervised.put("hello")
        assert supervised.get(timeout=LIMIT) == "hello"
    who = {"here": "rmpi", "extra": "extra: rmpi"}[where]
    assert capsys.readouterr().err == f"{who}: all places of this node have ended: its spawner was killed by SIGKILL\n"


BAD_RULE = Spawn(1, LOCAL, "", "process", (), b"", 0, (9, False, 1.0, 1.0, 1.0, 1.0, 1.0, 0), {}, "", 0)


@pytest.mark.parametrize("nonsense", [b"nonsense", pack(Stop()), pack(BAD_RULE)], ids=["bytes", "node", "head"])
@pytest.mark.parametrize("where", ["here", "extra"])
def test_nonsense_costs_the_place_that_says_it_its_life(system, extra, capsys, where, nonsense):
    node = {"here": system, "extra": extra}[where]
    with node.spawn("played:echo") as other:
        place = node.spawn("played:babble", nonsense, name="fool")
        assert place.get(timeout=LIMIT) == "ready"
        place.put("go on")
        assert place.wait(LIMIT) == -signal.SIGKILL
        other.put("hello")
        assert other.get(timeout=LIMIT) == "hello"
    assert f"rmpi: fool on {node.label} speaks nonsense to its router: " in capsys.readouterr().err


@pytest.mark.usefixtures("system")
def test_nodes_are_started_together_or_not_at_all():
    before = places.nodes()
    first, second = places.create_nodes([None, {"name": "second"}], output="discard")
    assert places.nodes() == [*before, first, second]
    first.shutdown()
    second.shutdown()
    with pytest.raises(ExceptionGroup, match="1 of 2 nodes could not be started") as caught:
        places.create_nodes([None, {"python": "/no/such/python"}])
    (error,) = caught.value.exceptions
    assert isinstance(error, LaunchError)
    assert "/no/such/python" in str(error)
    assert places.nodes() == before


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"directory": "/no/such"}, LaunchError),
        ({"name": "extra"}, UsageError),
        ({"output": "loud"}, UsageError),
        ({"port": 1 << 16}, UsageError),
        ({"restart": print}, UsageError),
        ({"environment": {"A": 1}}, UsageError),
        ({"host": "one,two"}, UsageError),
    ],
    ids=str,
)
@pytest.mark.usefixtures("extra")
def test_a_node_that_cannot_be(options, error):
    before = places.nodes()
    with pytest.raises(error):
        places.create_node(**options)
    assert places.nodes() == before


def test_a_solo_node_is_its_creator_s_and_a_silent_one_shows_nothing(system, capsys):
    with places.create_node(solo=True, output="discard") as node, node.spawn("played:serve", name="hidden"):
        assert node not in places.nodes()
        assert node.spawn("played:write").wait(LIMIT) == 0
        assert capsys.readouterr().out == ""
        assert places.connect("hidden")
        stranger = system.spawn("played:look_for", "hidden")
        assert stranger.get(timeout=LIMIT).startswith("NameNotFound: there is no place named 'hidden' in this system")
        assert stranger.wait(LIMIT) == 0
