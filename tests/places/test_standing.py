"""Nodes that people start by hand, and programs that join them: real processes, which talk over loopback."""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import standing
from standing import NODE, Program, StandingNode

from rmpi import places
from rmpi.deadline import Deadline
from rmpi.errors import LaunchError, NameNotFound, PeerLost, UsageError
from rmpi.places import membership
from rmpi.places.door import dial
from rmpi.places.keyfile import read_key, write_new_key
from rmpi.places.messages import FromPlace, Left, Refused, pack, unpack
from rmpi.places.standing import _moment
from rmpi.places.standingcommand import main
from rmpi.places.system_messages import GUEST, Attach, Enrolled, Kill
from rmpi.wire.decoder import FrameDecoder
from rmpi.wire.frames import Frame, Kind, encode

LIMIT = 20
"""Seconds for what should take none."""


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("standing") / "team.key"
    write_new_key(path)
    return path


@pytest.fixture(scope="module")
def node(key_file):
    """A node for all tests that leave it standing."""
    node = StandingNode(key_file)
    yield node
    assert node.end() == 0


@pytest.fixture(scope="module")
def program(node):
    """Another guest of the node, in a process of its own."""
    program = Program(node)
    yield program
    assert program.end() == 0


@pytest.fixture
def own(key_file):
    """A node that the test may ruin."""
    node = StandingNode(key_file, name="beta")
    yield node
    if node.process.returncode is None:
        node.end(signal.SIGKILL)


@pytest.fixture
def there(node):
    """This process as a guest of the node; when it has left, nothing of that is left here."""
    threads = threading.active_count()
    with places.attach(node.at, key_file=node.key_file) as there:
        yield there
    assert threading.active_count() == threads


def gone(pid):
    """Whether a process is no more, as soon as that is so."""
    deadline = time.monotonic() + LIMIT
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def asked(channel, message):
    channel.put(message)
    return channel.get(timeout=LIMIT)


# -- joining ------------------------------------------------------------------------------------------------


def test_a_guest_spawns_and_finds_places_and_asks_how_the_node_is(there):
    place = there.spawn(standing.echo, name="first")
    assert there.label == "alpha"
    assert asked(place, "a") == "a"
    assert asked(there.connect("first"), "b") == "b"
    assert [each.label for each in there.status().places if each.name == "first"] == ["first on alpha"]
    with pytest.raises(NameNotFound, match="did you mean 'first'"):
        there.connect("frist")
    place.terminate()
    assert place.wait(LIMIT) == -signal.SIGTERM


def test_what_has_a_name_stays_when_its_guest_leaves_and_is_there_for_others(node, program):
    with places.attach(node.at, key_file=node.key_file) as there:
        shelf = there.spawn(standing.keep, name="shelf")
        shelf.put("kept")
        assert asked(shelf, None) == "kept"
        nameless = there.spawn(standing.wait)
    assert gone(nameless.pid)  # nobody could find it any more
    find = f"shelf = places.connect('shelf', at={node.at!r}, key_file={str(node.key_file)!r})"
    assert program.run(find, "shelf.put(None); print(shelf.get(timeout=20))") == "kept"
    with places.attach(node.at, key_file=node.key_file) as there:
        (shelf,) = [each for each in there.status().places if each.name == "shelf"]
        os.kill(shelf.pid, signal.SIGKILL)
        assert gone(shelf.pid)


def test_two_guests_of_one_place_get_each_their_own_answers(there, program):
    echo = there.spawn(standing.echo, name="shared")
    program.run("shared = node.connect('shared')", "print()")
    program.begin("for i in range(200): shared.put(i)", "print(all(shared.get(timeout=20) == i for i in range(200)))")
    for i in range(200):
        echo.put(-i)
    assert [echo.get(timeout=LIMIT) for _ in range(200)] == [-i for i in range(200)]
    assert program.answer() == "True"
    echo.kill()


def test_guests_talk_to_each_other_by_channels_that_places_there_have_passed_on(there, program):
    ours, theirs = places.channel_pair(of=there)
    shelf = there.spawn(standing.keep, name="exchange")
    shelf.put(theirs)
    assert asked(shelf, None) is not None
    program.begin(
        "exchange = node.connect('exchange')",
        "exchange.put(None)",
        "other = exchange.get(timeout=20)",
        "other.put('hello'); print(other.get(timeout=20))",
    )
    message, reply = ours.receive(timeout=LIMIT)
    assert message == "hello"
    reply.put("and a large one: " + "x" * 3_000_000)
    assert program.answer() == "and a large one: " + "x" * 3_000_000
    program.run("other.close(); exchange.close()", "print()")
    shelf.kill()


def test_large_messages_take_the_direct_way(there):
    echo = there.spawn(standing.echo)
    assert asked(echo, b"x" * 5_000_000) == b"x" * 5_000_000
    assert set(there.member.endpoint.media().values()) == {"tcp"}


def test_a_call_may_be_as_large_as_nodes_pass_on(there):
    size = 14 << 20
    place = there.spawn(standing.length, b"x" * size)
    assert place.get(timeout=LIMIT) == size
    with pytest.raises(UsageError, match="the call is 15 MiB pickled, 15 are the most"):
        there.spawn(standing.length, b"x" * (15 << 20))


def test_its_own_system_is_another_one_and_places_of_that_may_join_too(there, node):
    own = places.here().spawn(standing.echo, name="same")
    foreign = there.spawn(standing.echo, name="same")
    try:
        assert (asked(own, 1), asked(foreign, 2)) == (1, 2)
        assert places.connect("same", of=there).address.system == foreign.address.system != own.address.system
        assert places.connect("same").address.system == own.address.system
        assert places.here().label not in [each.label for each in places.nodes(of=there)]
        assert places.here() != there
        joins = places.here().spawn(standing.join, node.at, str(node.key_file))
        assert joins.get(timeout=LIMIT) == ("alpha", True)
        assert joins.wait(LIMIT) == 0
    finally:
        foreign.kill()
        places.shutdown()


def test_a_place_that_joins_the_system_it_is_of_is_no_guest(there, node):
    place = there.spawn(standing.join, node.at, str(node.key_file))
    assert place.get(timeout=LIMIT) == ("alpha", False)
    assert place.wait(LIMIT) == 0


def test_members_may_add_nodes_to_it(there, program):
    with places.create_node(name="gamma", of=there) as added:
        assert [each.label for each in places.nodes(of=there)] == ["alpha", "gamma"]
        assert asked(added.spawn(standing.echo, name="far"), 1) == 1
        assert program.run("from rmpi.places import connect", "far = connect('far', of=node)", "print(far.label)")
        assert program.run("far.put(2)", "print(far.get(timeout=20))") == "2"
    assert [each.label for each in places.nodes(of=there)] == ["alpha"]


def test_the_node_itself_is_ended_only_where_it_was_started(there):
    with pytest.raises(UsageError, match="alpha was started by hand, and is ended there"):
        there.shutdown()


def test_who_joins_twice_is_one_member_until_both_have_left(node, there):
    again = places.attach(node.at.replace("127.0.0.1", "localhost"), key_file=node.key_file)
    assert again == there
    assert again.member is there.member
    again.detach()
    again.detach()
    assert there.status().label == "alpha"


def test_a_fork_of_a_guest_is_none_and_does_no_harm_by_ending(there):
    echo = there.spawn(standing.echo)
    child = os.fork()
    if not child:
        os._exit(membership.find(there.member.system) is not None)
    assert os.waitpid(child, 0)[1] == 0
    assert asked(echo, 1) == 1


def test_two_nodes_at_once_are_two_systems(there, own):
    with places.attach(own.at, key_file=own.key_file) as other:
        one, two = there.spawn(standing.name, name="who"), other.spawn(standing.name, name="who")
        assert (one.get(timeout=LIMIT), two.get(timeout=LIMIT)) == ("alpha", "beta")
        one.kill()
    assert own.end(signal.SIGINT) == 0
    assert gone(two.pid)


def test_what_places_write_and_log_appears_where_the_node_was_started(node, there):
    assert there.spawn(standing.speak).wait(LIMIT) == 0
    assert node.heard("written to stdout") == "written to stdout"
    assert node.heard("written to stderr") == "written to stderr"
    assert " WARNING [speak on alpha] tests: logged" in node.heard("logged")
    assert there.spawn(standing.fail).wait(LIMIT) == 1
    node.heard("fail on alpha failed")
    node.heard("ZeroDivisionError")


# -- ends ---------------------------------------------------------------------------------------------------


def test_a_guest_that_is_killed_takes_along_only_what_nobody_else_knows(node, there):
    victim = Program(node)
    named, nameless = map(
        int,
        victim.run(
            "import standing",
            "named = node.spawn(standing.echo, name='survivor')",
            "nameless = node.spawn(standing.wait, restart=True)",
            "alone = places.create_node(solo=True, of=node)",
            "print(named.pid, nameless.pid)",
        ).split(),
    )
    survivor = there.connect("survivor")
    victim.kill()
    assert node.heard(f"(pid {victim.process.pid}) was lost")
    assert gone(nameless)
    assert asked(survivor, "still") == "still"
    assert [each.pid for each in there.status().places if each.name == "survivor"] == [named]
    os.kill(named, signal.SIGKILL)


def test_when_the_node_ends_its_guests_are_told(own):
    with places.attach(own.at, key_file=own.key_file) as there:
        echo = there.spawn(standing.echo, name="echo")
        assert asked(echo, 1) == 1
        assert own.end() == 0
        with pytest.raises(PeerLost, match=f"beta \\({own.at}\\) has ended its system, or the connection"):
            there.status()
        for call in (lambda: echo.get(timeout=LIMIT), lambda: echo.put(2), lambda: there.connect("echo")):
            with pytest.raises(PeerLost):
                call()
        assert not echo.alive


def test_a_node_that_is_killed_leaves_nothing_behind(own):
    with places.attach(own.at, key_file=own.key_file) as there:
        place = there.spawn(standing.wait)
        pids = [own.process.pid, place.pid, places.create_node(of=there).status().pid]
        assert own.end(signal.SIGKILL) == -signal.SIGKILL
        assert all(map(gone, pids))
        with pytest.raises(PeerLost):
            place.wait(LIMIT)


def test_a_guest_that_is_stopped_is_not_lost(node, program):
    """Nothing is heard of it for as long as that takes; its kernel answers."""
    program.process.send_signal(signal.SIGSTOP)
    with places.attach(node.at, key_file=node.key_file) as there:
        echo = there.spawn(standing.echo)
        assert asked(echo, 1) == 1
    program.process.send_signal(signal.SIGCONT)
    assert program.run("print(node.status().label)") == "alpha"


# -- who does not get in ------------------------------------------------------------------------------------


def test_a_taken_port_is_said_with_what_to_do(node, tmp_path):
    words = ["--key-file", str(tmp_path / "new.key"), "--new-key", "--listen", node.at]
    again = subprocess.run([*NODE, *words], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert again.returncode == 125
    assert again.stderr == (
        f"rmpi: cannot listen at 127.0.0.1 port {node.port}: Address already in use; "
        "--listen ADDRESS:PORT chooses another port, and port 0 any that is free\n"
    )
    assert not (tmp_path / "new.key").exists()


def test_a_key_that_others_can_read_is_no_key(key_file, tmp_path, capsys):
    copy = tmp_path / "copy.key"
    copy.write_bytes(key_file.read_bytes())
    copy.chmod(0o644)
    assert main(["--key-file", str(copy)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"rmpi: the key file {copy} can be used by others (mode 644); say: chmod 600 {copy}\n"
    with pytest.raises(LaunchError, match="chmod 600"):
        places.attach("localhost", key_file=copy)


@pytest.mark.parametrize("words", [[], ["--key-file"], ["--key", "x"], ["--key-file", "x", "--listen", "a:b"], ["x"]])
def test_what_cannot_be_understood_is_refused_with_the_usage_or_an_example(words, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "usage: python -m rmpi.places.node" in said or "Write, for example" in said


def test_the_wrong_key_opens_nothing(node, tmp_path):
    write_new_key(tmp_path / "wrong.key")
    with pytest.raises(LaunchError, match=f"cannot join {node.at}: the listener holds another key than we do"):
        places.attach(node.at, key_file=tmp_path / "wrong.key")
    node.heard("turned away a connection")


def test_where_nobody_listens_is_said(key_file):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(LaunchError, match=f"nobody listens at {where}: is the node running"):
            places.attach(where, key_file=key_file, timeout=0.1)
        with pytest.raises(UsageError, match="key_file"):
            places.connect("name", at=where)


def test_a_node_that_is_about_to_start_is_waited_for(key_file):
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{reserved.getsockname()[1]}"
        labels = []
        joining = threading.Thread(target=lambda: labels.append(_label_at(where, key_file)))
        joining.start()
    node = StandingNode(key_file, listen=where, name="late")
    joining.join(LIMIT)
    assert labels == ["late"]
    assert node.end() == 0


def _label_at(where, key_file):
    with places.attach(where, key_file=key_file, timeout=LIMIT) as node:
        return node.label


# -- nonsense -----------------------------------------------------------------------------------------------


class Stranger:
    """Somebody with the right key, who speaks to the node as the test likes."""

    def __init__(self, node):
        self.sock = dial([("127.0.0.1", node.port)], read_key(node.key_file), GUEST, GUEST, Deadline.after(LIMIT))
        self.sock.settimeout(LIMIT)
        self.name = f"port {self.sock.getsockname()[1]}"
        self._decoder = FrameDecoder(lambda frame: [memoryview(bytearray(frame.length))])

    def says(self, message, kind=Kind.CONTROL):
        data = message if isinstance(message, bytes) else pack(message)
        self.sock.sendall(b"".join(map(bytes, encode(Frame(kind, 0, 0, length=len(data), segments=(data,))))))

    def attaches(self, python):
        self.says(Attach("far", self.sock.getsockname()[1], 1, 1 << 30, python, ("127.0.0.1", 1)))

    def joins(self):
        """The endpoint it gets, and what it is called."""
        self.attaches(VERSION)
        enrolled = self.hears(Enrolled)
        return enrolled.endpoint, enrolled.label

    def hears(self, kind):
        """The first message of a kind."""
        while True:
            count = self.sock.recv_into(self._decoder.writable())
            assert count, "the node has hung up"
            for frame in self._decoder.wrote(count):
                message = unpack(b"".join(frame.segments))
                if isinstance(message, kind):
                    return message

    def is_dropped(self):
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        self.sock.close()
        return True


VERSION = "{}.{}".format(*sys.version_info)


def from_place(message):
    return lambda endpoint: FromPlace(endpoint, pack(message))


NONSENSE = [
    (False, lambda _: b"\x00nonsense", "not a control message"),
    (False, lambda _: FromPlace(1, b""), "FromPlace is not for guests to say now"),
    (True, lambda _: b"", "not a control message"),
    (True, lambda _: FromPlace(1, b""), "may not say FromPlace"),
    (True, lambda endpoint: FromPlace(endpoint, b"\xc1"), "not a control message"),
    (True, lambda _: Refused("", 1), "Refused is not for guests to say now"),
    (True, from_place(Left()), "may not say Left"),
    (True, from_place(Kill(1, 1, 9999)), "there is no signal 9999"),
]


@pytest.mark.parametrize(("joined", "nonsense", "words"), NONSENSE)
def test_a_guest_that_speaks_nonsense_is_dropped_with_one_line(node, there, joined, nonsense, words):
    stranger = Stranger(node)
    endpoint, name = stranger.joins() if joined else (0, stranger.name)
    before = len(node.said)
    stranger.says(nonsense(endpoint))
    assert stranger.is_dropped()
    assert words in node.heard(f"{name} was lost")
    assert there.status().label == "alpha"
    assert len([line for line in node.said[before:] if "was lost" in line]) == 1


def test_what_is_no_frame_ends_it_too(node):
    for data in (b"GET / HTTP/1.1\r\n".ljust(64), encode(Frame(Kind.EAGER, 1, 2, length=1 << 16))[0]):
        stranger = Stranger(node)
        stranger.sock.sendall(data)
        assert stranger.is_dropped()
        node.heard(f"{stranger.name} was lost: its control stream broke")


def test_a_guest_with_another_python_is_told_why_it_is_not_taken(node):
    stranger = Stranger(node)
    stranger.attaches("2.7")
    assert f"it runs Python {VERSION}, and we 2.7" in stranger.hears(Refused).text
    assert stranger.is_dropped()


def test_a_stranger_at_the_door_disturbs_nobody(node, there):
    with socket.create_connection(("127.0.0.1", node.port)) as sock:
        sock.sendall(b"x" * 1000)
        node.heard(f"turned away a connection from 127.0.0.1:{sock.getsockname()[1]}: not an rmpi peer")
    with dial([("127.0.0.1", node.port)], read_key(node.key_file), GUEST, 5, Deadline.after(LIMIT)) as sock:
        sock.settimeout(LIMIT)
        assert sock.recv(1) == b""  # there is no such place
    assert there.status().label == "alpha"


def test_the_moment_of_a_record_may_be_none():
    """It is what a place says, and no reason for a node to end."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", _moment(0.0))
    assert [_moment(seconds) for seconds in (1e20, math.nan, math.inf)] == ["at 1e+20", "at nan", "at inf"]
