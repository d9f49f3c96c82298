"""How a program with places begins and ends: in whatever way, nothing of it is left.

Each test runs a program, in an environment with a mark that everything inherits which is started by it or on its
behalf. So what is left is known, daemons included.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

MARK = "RMPI_TEST_MARK"
HERE = Path(__file__).parent
LIMIT = 30.0

PROMPT = 3.0
"""Seconds that an end may take on a machine that is busy. It takes a tenth, and half a second if a place will not."""

BEGIN = """
import os, signal, sys, time
from rmpi import places

here = places.here()
"""


class Program:
    """A program that runs, and all that it starts."""

    def __init__(self, *words, cwd=HERE, **variables):
        self._mark = f"{MARK}={uuid4().hex}"
        name, value = self._mark.split("=")
        self.process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=cwd,
            env={**os.environ, name: value, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def says(self):
        return self.process.stdout.readline().rstrip("\n")

    def ends(self):
        """Its exit status, and the rest of what it writes."""
        out, err = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, out, err

    def left(self):
        """What is there of it."""
        mark = f"{self._mark}\0".encode()
        found = []
        for process in psutil.process_iter():
            try:
                if mark in Path(f"/proc/{process.pid}/environ").read_bytes():
                    found.append(process)
            except OSError:  # it is gone, or somebody else's
                pass
        return found

    def await_end(self, *spared):
        """Wait until nothing is left but these processes."""
        while {process.pid for process in self.left()} - set(spared):
            pass


@pytest.fixture
def run():
    programs = []

    def start(*words, **options):
        programs.append(Program(*words, **options))
        return programs[-1]

    yield start
    for program in programs:
        for process in program.left():
            process.kill()
        program.process.communicate()


def script(text):
    return "-c", BEGIN + text


def test_a_program_ends_at_once_and_without_a_word_while_places_run(run):
    """Also while a node boots, and a place does not want to end."""
    program = run(
        *script("""
def stubborn(channel):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel.put("ready")
    channel.get()

node = places.create_node()
running = [here.spawn("played:echo", restart=True), here.spawn("played:echo", kind="thread", restart=True),
           here.spawn_command(["sleep", "1000"], restart=True), node.spawn("played:echo", restart=True)]
assert here.spawn(stubborn).get(timeout=20) == "ready"
later = places.create_node_future()
print(time.monotonic())
""")
    )
    status, out, err = program.ends()
    took = time.monotonic() - float(out)
    assert (status, err) == (0, "")
    assert took < PROMPT
    program.await_end()


def test_a_program_is_killed_and_nothing_is_left(run):
    """Not even daemons; and a fork of the program that lives on holds nothing back."""
    program = run(
        *script("""
node = places.create_node()
running = [each.spawn("played:echo", kind=kind) for each in (here, node) for kind in ("process", "thread")]
daemon = ["sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & exit 0"]
for each in (here, node):
    assert each.spawn_command(daemon).wait(20) == 0
fork = os.fork()
if not fork:
    signal.pause()
print(fork, flush=True)
running[0].get()
""")
    )
    fork = int(program.says())
    while sum(process.name() == "sleep" for process in program.left()) < 2:
        pass
    program.process.kill()
    program.await_end(fork)
    assert psutil.pid_exists(fork)


def test_ctrl_c_ends_a_get_and_the_place_goes_on(run):
    program = run(
        *script("""
place = here.spawn("played:echo")
try:
    print("waiting", flush=True)
    place.get()
except KeyboardInterrupt:
    place.put("hello")
    print(place.get(timeout=20), flush=True)
print("waiting", flush=True)
place.get()
""")
    )
    for said in ("waiting", "hello", "waiting"):
        assert program.says() == said
        if said == "waiting":
            program.process.send_signal(signal.SIGINT)
    status, out, err = program.ends()
    assert (status, out) == (-signal.SIGINT, "")
    assert err.count("Traceback") == 1
    assert err.endswith("KeyboardInterrupt\n")
    program.await_end()


def test_a_program_may_fork_and_begin_anew(run, tmp_path):
    """What was begun is the parent's; a fork may begin a system of its own, and so may a program that has ended one."""
    path = tmp_path / "program.py"
    path.write_text(
        BEGIN
        + """
import multiprocessing

def double(channel):
    for message in channel:
        channel.put(2 * message)

def talk(place):
    place.put(21)
    return place.get(timeout=20)

def in_a_fork():
    try:
        talk(place)
    except Exception as error:
        print(type(error).__name__, flush=True)
    print("fork", talk(places.here().spawn(double)), flush=True)

if __name__ == "__main__":
    place = here.spawn(double, name="double")
    fork = os.fork()
    if not fork:
        in_a_fork()
        sys.exit(0)
    print("ended", os.waitpid(fork, 0)[1], flush=True)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print("pool", pool.map(abs, [-1]), flush=True)
    print("parent", talk(place))
    places.shutdown()
    try:
        talk(place)
    except Exception as error:
        print(type(error).__name__)
    print("anew", talk(places.here().spawn(double, name="double")))
    1 / 0
"""
    )
    status, out, err = (program := run(path)).ends()
    assert out.splitlines() == [
        "ChannelClosed",
        "fork 42",
        "ended 0",
        "pool [1]",
        "parent 42",
        "ChannelClosed",
        "anew 42",
    ]
    assert status == 1
    assert err.count("Traceback") == 1
    assert err.endswith("ZeroDivisionError: division by zero\n")
    program.await_end()


def test_places_in_a_test(run, tmp_path):
    (tmp_path / "test_inner.py").write_text(
        """
from rmpi import places

def square(channel):
    channel.put(channel.get() ** 2)

def test_it():
    with places.here().spawn(square) as place:
        place.put(3)
        assert place.get(timeout=20) == 9

def test_it_again():
    test_it()
"""
    )
    program = run("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_inner.py", cwd=tmp_path)
    status, out, _ = program.ends()
    assert status == 0, out
    assert "2 passed" in out
    program.await_end()


def test_places_without_shared_memory(run):
    program = run(
        *script("""
import numpy as np

for place in [here.spawn("played:echo", kind=kind) for kind in ("process", "thread")]:
    for value in (7, np.arange(100_000)):
        place.put(value)
        assert np.array_equal(place.get(timeout=20), value)
print(sorted(set(place.whose[0].endpoint.media().values())))
"""),
        RMPI_SHM="0",
    )
    status, out, err = program.ends()
    assert (status, err) == (0, "")
    assert "shm" not in out
    program.await_end()
