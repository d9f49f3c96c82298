"""A spawner, with its node played by the test: what it says when it comes up, and what becomes of a Fork."""

import errno
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from rmpi.places import ignition
from rmpi.places.birth import needs_exec
from rmpi.places.control import Control, control_pair, wait_for
from rmpi.places.ignition import Ignition, thread_limits
from rmpi.places.messages import NO_RANK, Fork, Note, Reaped, Refused, Up
from rmpi.places.spawner import Spawner
from rmpi.places.system_messages import NotStarted

pytestmark = pytest.mark.usefixtures("no_leak")

LIMIT = 30.0


class Stage:
    """The node's end of a spawner."""

    def __init__(self, directory, *, fork, preload):
        self.directory = str(directory)
        self.ignition = Ignition(
            sys.executable, os.environ, self.directory, 1, kind="code", target="", fork=fork, preload=preload
        )
        self.control = Control(self.ignition.control)
        self._heard = []

    def hears(self):
        while not self._heard:
            assert wait_for(self.control.fileno(), 1, LIMIT)
            self._heard = [message for message, _ in self.control.receive()]
        return self._heard.pop(0)

    def fork(self, code, **environment):
        """Have a place run some code; what it prints."""
        ours, theirs = control_pair()
        read, write = os.pipe()
        fork = Fork(1, 0, "code", code, ("-c",), environment, self.directory)
        with Path(os.devnull).open() as nothing:
            self.control.send(fork, (nothing.fileno(), write, 2, theirs.fileno()))
        os.close(write)
        theirs.close()
        with os.fdopen(read) as file:
            text = file.read()
        ours.close()
        return text


@contextmanager
def spawner(directory, *, fork=True, preload=()):
    stage = Stage(directory, fork=fork, preload=preload)
    try:
        yield stage
        stage.control.close()
        assert stage.ignition.process.wait(LIMIT) == 0
        stage.ignition.process.stderr.close()
    finally:
        stage.ignition.put_out()


# -- places -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fork", [True, False])
def test_a_place_is_forked_runs_and_is_reaped(tmp_path, fork):
    with spawner(tmp_path, fork=fork) as stage:
        assert stage.hears() == Up()
        assert stage.fork("import os, sys; print(os.getpid()); sys.exit(3)").strip() == str(stage.hears().pid)
        assert stage.hears() == Reaped(1, 3)


@pytest.mark.parametrize(
    ("environment", "code", "text"),
    [
        ({"ANY": "1"}, "import os, sys; print(os.environ['ANY'], 'numpy' in sys.modules)", "1 True\n"),
        ({"PYTHONOPTIMIZE": "2"}, "import sys; print(sys.flags.optimize, 'numpy' in sys.modules)", "2 False\n"),
        ({"OMP_NUM_THREADS": "77"}, "import os, sys; print('numpy' in sys.modules)", "False\n"),
    ],
)
def test_variables_that_act_at_import_come_in_time(tmp_path, environment, code, text):
    with spawner(tmp_path) as stage:
        assert stage.hears() == Up()
        assert stage.fork(code, **environment) == text


def test_only_other_values_of_such_variables_need_an_exec(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("LD_PRELOAD", raising=False)

    def place(kind="script", **environment):
        return Fork(1, 0, kind, "x.py", ("x.py",), environment, "/")

    assert not needs_exec(place(OMP_NUM_THREADS="2", RMPI_RANK="3"))
    assert needs_exec(place(OMP_NUM_THREADS="1"))
    assert needs_exec(place(LD_PRELOAD="x.so"))
    assert not needs_exec(place("command", LD_PRELOAD="x.so"))


def test_a_place_for_which_there_is_no_process_leaves_the_others_alone(monkeypatch):
    """But of a job, no rank is dispensable."""
    ends = [Control(sock) for pair in (control_pair(), control_pair()) for sock in pair]
    node, spawner_end, node_of_place, place = ends
    forking = Spawner(spawner_end)

    def no_more():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_more)
    fds = [0, 1, 2, place.fileno()]
    assert not forking._fork(Fork(7, NO_RANK, "code", "", ("x",), {}, "/"), fds)
    assert [message for message, _ in node.receive()] == [Reaped(7, 125)]
    ((said, _),) = node_of_place.receive()
    assert said == NotStarted(0, "LaunchError", "no process can be made for it here: Resource temporarily unavailable")
    with pytest.raises(BlockingIOError):
        forking._fork(Fork(8, 0, "code", "", ("x",), {}, "/"), fds)
    forking._give_back([])
    for end in ends:
        end.close()


# -- imports ------------------------------------------------------------------------------------------------


def test_it_refuses_what_it_cannot_import(tmp_path):
    stage = Stage(tmp_path, fork=True, preload=("no_such",))
    text = "--preload no_such: cannot be imported: ModuleNotFoundError: No module named 'no_such'"
    assert stage.hears() == Refused(text, 125)
    assert stage.ignition.process.wait(LIMIT) == 125
    stage.control.close()
    stage.ignition.process.stderr.close()


def test_after_an_import_that_started_threads_it_begins_anew(tmp_path):
    (tmp_path / "starts.py").write_text(
        "import threading\nfor _ in range(2): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    with spawner(tmp_path, preload=("starts",)) as stage:
        reason = "importing starts (--preload) started 2 threads"
        assert stage.hears() == Note(f"every rank starts an interpreter of its own: {reason}")
        assert stage.hears() == Up()
        assert len(list(Path(f"/proc/{stage.ignition.process.pid}/task").iterdir())) == 1
        assert stage.fork("import sys; print('starts' in sys.modules)") == "False\n"


# -- its start ----------------------------------------------------------------------------------------------


def test_put_out_ends_one_that_nobody_took_over(tmp_path):
    ignited = Ignition(sys.executable, os.environ, str(tmp_path), 1, kind="code", target="", fork=True, preload=())
    ignited.put_out()
    assert ignited.process.returncode is not None


@pytest.mark.parametrize(
    ("environment", "ranks", "limits"),
    [
        ({}, 1, {}),
        ({}, 2, {"OMP_NUM_THREADS": "2"}),
        ({}, 4, {"OMP_NUM_THREADS": "1"}),
        ({}, 9, {"OMP_NUM_THREADS": "1"}),
        ({"MKL_NUM_THREADS": "8"}, 4, {}),
        ({"OMP_NUM_THREADS": ""}, 4, {}),
    ],
)
def test_cores_are_shared_unless_somebody_has_decided(monkeypatch, environment, ranks, limits):
    monkeypatch.setattr(ignition.os, "sched_getaffinity", lambda _pid: set(range(5)))
    assert thread_limits(environment, ranks) == limits


def test_the_command_line_of_a_process_is_its_title_as_far_as_there_is_room():
    code = """
from rmpi.places.processes import name_process
name_process('a name of more than 15 bytes', 'long ' + 9999 * 'x')
print(open('/proc/self/comm').read(), end='')
print(open('/proc/self/cmdline').read(), end='')
"""
    words = [sys.executable, "-c", code]
    name, title = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")
    assert name == "a name of more "
    assert title == "long ".ljust(len("\0".join(words)), "x") + "\0"
