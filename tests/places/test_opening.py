"""A program's own system, into which it lets guests: other programs, in processes of their own."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import standing
from standing import Program

from rmpi import places
from rmpi.errors import LaunchError, NameNotFound, PeerLost, UsageError
from rmpi.places.keyfile import write_new_key
from rmpi.places.selecting import Selector

LIMIT = 20
"""Seconds for what should take none."""


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("opening") / "team.key"
    write_new_key(path)
    return path


@pytest.fixture(scope="module")
def here():
    threads = threading.active_count()
    yield places.here()
    places.shutdown()
    assert threading.active_count() == threads


@pytest.fixture(scope="module")
def door(here, key_file):
    """Where this program listens, which had started a place and a node before."""
    early = here.spawn(standing.echo, name="early")
    node = places.create_node(name="annex")
    node.spawn(standing.echo, name="aside")
    yield SimpleNamespace(at=places.listen(key_file=key_file), key_file=key_file)
    node.shutdown()
    early.kill()


@pytest.fixture(scope="module")
def guest(door):
    guest = Program(door)
    yield guest
    assert guest.end() == 0


@pytest.fixture
def victim(door):
    """Another guest, which the test kills."""
    victim = Program(door)
    yield victim
    victim.kill()


JOINS = ("ours, theirs = places.channel_pair(of=node)", "node.connect('tasks').put(theirs)")
"""What a worker does: it sends the program a channel, by a mailbox that it knows the name of."""


@pytest.fixture
def tasks(door):
    assert door
    with places.open_mailbox("tasks") as tasks:
        yield tasks


def says(channel, value):
    channel.put(value)
    return channel.get(timeout=LIMIT)


# -- what guests can do -------------------------------------------------------------------------------------


def test_a_guest_finds_what_the_program_had_started_before_and_after(here, guest):
    for name in ("early", "aside"):
        guest.run(f"place = places.connect({name!r}, of=node)", "print()")
        assert guest.run(f"place.put({name!r} * 100_000); print(place.get(timeout=20) == {name!r} * 100_000)") == "True"
    assert guest.run("print(set(node.member.endpoint.media().values()))") == "{'tcp'}"  # none of it goes through nodes
    with here.spawn(standing.echo, name="late"):
        assert guest.run("late = node.connect('late'); late.put(1); print(late.get(timeout=20))") == "1"


def test_a_guest_starts_places_and_nodes_which_belong_to_the_program(here, guest):
    guest.run("import standing", "place = node.spawn(standing.echo, name='guests own')", "print()")
    assert says(here.connect("guests own"), 1) == 1
    guest.run("far = places.create_node(name='far', of=node)", "print()")
    assert "far" in [node.label for node in places.nodes()]
    guest.run("far.shutdown(); place.kill(); place.wait()", "print()")
    with pytest.raises(NameNotFound):
        here.connect("guests own")


def test_a_guest_and_the_program_exchange_channels(tasks, guest):
    guest.begin(*JOINS, "for _ in range(100):", " n, reply = ours.receive()", " reply.put(n * n)", "print()")
    worker = tasks.get(timeout=LIMIT)
    assert [says(worker, n) for n in range(100)] == [n * n for n in range(100)]
    guest.answer()


def test_a_guest_may_have_a_mailbox_too(victim):
    victim.run("desk = places.open_mailbox('guest desk', of=node)", "print()")
    desk = places.connect("guest desk")
    victim.begin("message, reply = desk.receive(); reply.put(message)")
    assert says(desk, "hello") == "hello"
    victim.process.kill()
    with pytest.raises(PeerLost, match="control stream"):
        desk.get(timeout=LIMIT)
    with pytest.raises(NameNotFound):
        places.connect("guest desk")


def test_two_guests_reach_each_other(guest, victim):
    guest.run("desk = places.open_mailbox('guest desk', of=node)", "print()")
    guest.begin("message, reply = desk.receive(); reply.put(message + '!'); print()")
    assert (
        victim.run("desk = places.connect('guest desk', of=node); desk.put('hi'); print(desk.get(timeout=20))") == "hi!"
    )
    guest.answer()


def test_a_place_or_the_program_itself_that_attaches_is_no_guest(here, door):
    with places.attach(door.at, key_file=door.key_file) as again:
        assert again == here
    place = here.spawn(standing.join, door.at, str(door.key_file))
    assert place.get(timeout=LIMIT) == (here.label, False)
    assert place.wait(LIMIT) == 0


# -- ends ---------------------------------------------------------------------------------------------------


def test_whoever_waits_for_a_guest_that_is_killed_is_told(tasks, guest, victim, beside):
    workers = []
    for each in (guest, victim):
        each.begin(*JOINS, "ours.get(); print()")
        workers.append(tasks.get(timeout=LIMIT))
    selector = Selector(workers)
    assert selector.select(timeout=0) == []
    waiting = beside(workers[1].get, LIMIT)
    victim.process.kill()
    assert selector.select(timeout=LIMIT) == [workers[1]]
    lost = rf"the guest from .* \(pid {victim.process.pid}\) has failed"
    for call in (waiting.join, lambda: workers[1].get(timeout=LIMIT), lambda: workers[1].put("task")):
        with pytest.raises(PeerLost, match=lost):
            call()
    workers[0].put("task")
    guest.answer()


def test_a_selector_tells_of_places_that_have_died_and_of_those_of_a_lost_node(here):
    """As of guests, above."""
    node = places.create_node()
    near, far, well = (each.spawn(standing.wait) for each in (here, node, here))
    selector = Selector([near, far, well])
    os.kill(near.pid, signal.SIGKILL)
    assert selector.select(timeout=LIMIT) == [near]
    with pytest.raises(PeerLost, match="killed by SIGKILL"):
        near.get()
    selector.remove(near)
    os.kill(node.status().pid, signal.SIGKILL)
    assert selector.select(timeout=LIMIT) == [far]
    with pytest.raises(PeerLost):
        far.get()
    selector.close()
    well.kill()


OPEN = """
    import sys
    from rmpi import places
    with places.open_mailbox("desk") as desk:
        print(places.listen(key_file=sys.argv[1]), flush=True)
        client = desk.get()
        for number in range(100):
            client.put(number)
    client.put("x" * 1_000_000)
    sys.stdin.read()
"""


@pytest.fixture
def program(key_file):
    """Another program that listens."""
    words = [sys.executable, "-c", textwrap.dedent(OPEN), str(key_file)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        yield SimpleNamespace(at=process.stdout.readline().strip(), process=process)
        process.kill()


def test_guests_of_a_program_that_ends_get_what_it_had_put_and_are_told(program, key_file, beside):
    with places.attach(program.at, key_file=key_file) as node:
        ours, theirs = places.channel_pair(of=node)
        node.connect("desk").put(theirs)
        assert [ours.get(timeout=LIMIT) for _ in range(100)] == [*range(100)]
        assert len(ours.get(timeout=LIMIT)) == 1_000_000
        waiting = [beside(each.get) for each in (ours, theirs)]
        desk = places.open_mailbox("guest desk", of=node)
        assert places.select([ours, desk], timeout=0) == []
        program.process.stdin.close()  # now it ends
        assert set(places.select([ours, desk], timeout=LIMIT)) <= {ours, desk}
        assert program.process.wait(LIMIT) == 0
        assert program.process.stderr.read() == ""
        for call in (*(each.join for each in waiting), desk.get, ours.get, node.status):
            with pytest.raises(PeerLost, match="has ended its system, or the connection"):
                call()


def test_a_fork_does_not_keep_the_door_open(door):
    host, _, port = door.at.partition(":")
    child = os.fork()
    if not child:
        listening = [link for fd in Path("/proc/self/fd").iterdir() if _is_door(fd, int(port)) for link in [fd]]
        os._exit(len(listening))
    assert os.waitpid(child, 0)[1] == 0
    socket.create_connection((host, int(port))).close()


def _is_door(fd, port):
    try:
        sock = socket.socket(fileno=os.dup(int(fd.name)))
    except OSError:
        return False
    with sock:
        try:
            return sock.getsockname()[1:2] == (port,) and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except (OSError, TypeError):
            return False


# -- who does not get in, and what cannot be ----------------------------------------------------------------


def test_the_wrong_key_opens_nothing(door, tmp_path):
    write_new_key(tmp_path / "wrong.key")
    with pytest.raises(LaunchError, match=f"cannot join {door.at}: the listener holds another key than we do"):
        places.attach(door.at, key_file=tmp_path / "wrong.key")


def test_a_program_listens_at_one_address_with_one_key(door, tmp_path):
    assert places.listen(key_file=door.key_file) == door.at
    write_new_key(tmp_path / "other.key")
    for address, port, key in (("0.0.0.0", 0, door.key_file), ("127.0.0.1", 0, tmp_path / "other.key")):
        with pytest.raises(UsageError, match=rf"listens at {door.at} already.*stop_listening\(\)"):
            places.listen(address, port, key_file=key)


def test_it_may_stop_and_those_who_are_in_stay(here, door, guest):
    assert guest.run("print(node.label)") == here.label
    places.stop_listening()
    places.stop_listening()
    with pytest.raises(LaunchError, match="nobody listens"):
        places.attach(door.at, key_file=door.key_file, timeout=0.1)
    with here.spawn(standing.echo, name="later"):  # the door that leads there is closed, so the nodes pass it on
        assert guest.run("later = node.connect('later'); later.put(1); print(later.get(timeout=20))") == "1"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            LaunchError, match=f"cannot listen at 127.0.0.1 port {port}: Address already in use; port=0"
        ):
            places.listen(port=port, key_file=door.key_file)
    door.at = places.listen(key_file=door.key_file)
    with places.attach(door.at, key_file=door.key_file) as again:
        assert again == here


def test_what_cannot_be_is_refused(here, tmp_path, key_file):
    with pytest.raises(UsageError, match="port must be a number"):
        places.listen(port="7000", key_file=key_file)
    with pytest.raises(LaunchError, match=r"is not there.*places\.write_new_key"):
        places.listen(key_file=tmp_path / "none.key")
    place = here.spawn(_listen, str(key_file))
    assert place.get(timeout=LIMIT) == "this place's system is another program's, which alone can let guests in"
    assert place.wait(LIMIT) == 0


def _listen(mailbox, key_file):
    try:
        places.listen(key_file=key_file)
    except UsageError as error:
        mailbox.put(str(error))
