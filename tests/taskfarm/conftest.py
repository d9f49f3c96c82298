"""What tests of task farms share: a farm of two workers, and a look at what is left."""

import gc
import os
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import chores
from looking import check_forgotten, is_alive, until

from rmpi import places, taskfarm
from rmpi.taskfarm import crew


@pytest.fixture(scope="module")
def farm():
    """Two workers, which all tests of a module share; when a test kills one, there is another one at once."""
    with pytest.MonkeyPatch.context() as patched, taskfarm.Master(2) as master:
        patched.setattr(crew, "SHORT", 0.0)
        assert master.wait_for_workers(2, 20)
        yield master
    places.shutdown()


@pytest.fixture
def master(farm):
    """The same; each test leaves it as it was: two workers, nothing to do."""
    yield farm
    until(lambda: len(farm.workers) == 2 and not any(worker.busy or worker.leased for worker in farm.workers))
    check_forgotten(farm)


NOTHING = (0, set(), [], set())


class Leftovers:
    """Descriptors, threads, processes and shared memory, now."""

    def __init__(self):
        self.descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        self.threads = {thread.name for thread in threading.enumerate()}
        self.shared = sorted(os.listdir("/dev/shm"))  # noqa: PTH208
        self.children = _descendants(os.getpid())

    def beyond(self, before):
        """What there is more than before."""
        return (
            max(0, self.descriptors - before.descriptors),
            self.threads - before.threads,
            [name for name in self.shared if name not in before.shared and "rmpi" in name],
            self.children - before.children,
        )


def _descendants(pid):
    found = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found.update(int(pid) for pid in children.read_text().split())
        except OSError:
            pass
    return {each for pid in found for each in ({pid} if is_alive(pid) else set()) | _descendants(pid)}


@pytest.fixture
def nothing_left():
    """After the test there is nothing that was not there before; this program's own node may be."""
    with places.here().spawn(chores.pid):
        pass  # so that all is there which the first place needs
    gc.collect()
    before = Leftovers()
    yield
    gc.collect()
    until(lambda: Leftovers().beyond(before) == NOTHING, what=lambda: Leftovers().beyond(before))


@pytest.fixture
def gate(tmp_path):
    """Tasks that run until the test lets them: give them ``gate`` and open it by ``gate.open()``."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


class Gate:
    def __init__(self, path):
        self.path = str(path)

    def open(self):
        Path(self.path).touch()

    def holds(self, master):
        """A task that has begun, and runs until the gate is open."""
        task = master.submit(chores.wait_for_file, self.path)
        until(lambda: task.running() and task.worker.stuck)
        return task
