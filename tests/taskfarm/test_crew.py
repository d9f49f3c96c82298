"""Workers of the master's own: what follows when they are lost, stopped, or cannot live."""

import logging
import os
import signal

import chores
import pytest
from looking import is_alive, until

from rmpi import places, taskfarm
from rmpi.errors import PeerLost
from rmpi.taskfarm import BrokenFarm, WorkerLost, crew
from rmpi.taskfarm.crew import Crew
from rmpi.taskfarm.farm import Farm

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_all_workers_are_killed_again_and_again_and_the_farm_goes_on():
    with taskfarm.Master(2) as master:
        seen = set()
        for _ in range(3):
            master.wait_for_workers(2, 20)
            pids = {worker.pid for worker in master.workers}
            assert not pids & seen
            seen |= pids
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            until(lambda pids=pids: not pids & {worker.pid for worker in master.workers})
        assert master.with_options(retries=3).submit(pow, 2, 2).result(20) == 4


def test_a_worker_that_is_stopped_loses_its_task_to_another(monkeypatch, caplog):
    monkeypatch.setattr(crew, "PATIENCE", 0.2)
    monkeypatch.setattr(crew, "LOOK", 0.05)
    with taskfarm.Master(2, retries=1) as master:
        master.wait_for_workers(2, 20)
        tasks = [master.submit(_pid_after, 0.5) for _ in range(2)]
        until(lambda: all(task.running() for task in tasks))
        stopped = tasks[0].worker.pid
        os.kill(stopped, signal.SIGSTOP)
        assert tasks[0].result(20) != stopped
        assert not is_alive(stopped)
        assert "was stopped for 0.2 s, and is killed: others do its tasks" in caplog.text


def _pid_after(seconds):
    chores.nap(seconds)
    return os.getpid()


def stopped_for(pid):
    return next(place.stopped or 0.0 for place in places.here().status().places if place.pid == pid)


def test_a_worker_that_is_stopped_and_has_nothing_to_do_is_left_alone(monkeypatch):
    """However long that was, when it goes on and gets a task."""
    monkeypatch.setattr(crew, "PATIENCE", 0.3)
    monkeypatch.setattr(crew, "LOOK", 0.02)
    with taskfarm.Master(2) as master:
        master.wait_for_workers(2, 20)
        with master.worker() as idle:
            os.kill(idle.pid, signal.SIGSTOP)
            while stopped_for(idle.pid) <= crew.PATIENCE:
                pass
            assert list(master.map(chores.nap, [0.02] * 20, range(20))) == list(range(20))
            assert idle.alive
            os.kill(idle.pid, signal.SIGCONT)
            until(lambda: all(place.stopped is None for place in master.nodes[0].status().places))
            assert master.with_options(worker=idle).submit(chores.pid).result(20) == idle.pid


def test_a_stopped_worker_does_not_keep_the_farm_from_closing():
    with taskfarm.Master(1) as master:
        master.wait_for_workers(1, 20)
        pid = master.workers[0].pid
        os.kill(pid, signal.SIGSTOP)
        master.close(wait=False)
    assert not is_alive(pid)


def test_a_worker_that_exits_by_itself_is_lost_and_replaced():
    with taskfarm.Master(1) as master:
        task = master.submit(os._exit, 3)
        with pytest.raises(WorkerLost, match="3"):
            task.result(20)
        assert master.submit(pow, 2, 2).result(20) == 4


def test_a_task_that_waits_is_done_by_a_worker_that_comes():
    with taskfarm.Master(1) as master:
        dying = master.submit(chores.die)
        waiting = [master.submit(chores.square, number) for number in range(10)]
        assert isinstance(dying.exception(20), WorkerLost)
        results = [task.exception(20) or task.result() for task in waiting]
        assert results[1:] == [number**2 for number in range(1, 10)]


def test_workers_that_cannot_be_started_again_break_the_farm(monkeypatch, caplog):
    monkeypatch.setattr(crew, "LONGEST_PAUSE", 0.01)
    caplog.set_level(logging.WARNING)
    with taskfarm.Master(1) as master:
        master.wait_for_workers(1, 20)
        node = master.nodes[0]

        def refuse(*_args, **_kwargs):
            raise PeerLost("not today")

        monkeypatch.setattr(type(node), "spawn", refuse)
        dying, waiting = master.submit(chores.die), master.submit(pow, 2, 2)
        assert isinstance(dying.exception(20), WorkerLost)
        assert isinstance(waiting.exception(20), (BrokenFarm, WorkerLost))
        with pytest.raises(BrokenFarm, match="no workers, and none is about to come"):
            master.submit(pow, 2, 2).result(20)
    assert caplog.text.count("cannot be started: not today") == crew.HOPELESS


def test_a_crew_that_cannot_be_started_leaves_nothing(monkeypatch):
    node = places.here()
    spawn, calls = type(node).spawn, []

    def refuse_the_third(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise PeerLost("not today")
        return spawn(*args, **kwargs)

    monkeypatch.setattr(type(node), "spawn", refuse_the_third)
    with pytest.raises(PeerLost, match="not today"):
        taskfarm.Master(3)


def test_a_worker_that_dies_before_anybody_knows_it_is_replaced(monkeypatch):
    greet = Farm.greet
    first = []

    def greet_and_kill(self, channel, label, end=None):
        link = greet(self, channel, label, end)
        if not first:
            first.append(channel.pid)
            os.kill(channel.pid, signal.SIGKILL)
            until(lambda: link.gone)
        return link

    monkeypatch.setattr(Farm, "greet", greet_and_kill)
    with taskfarm.Master(1) as master:
        assert master.submit(chores.pid).result(20) != first[0]


def test_closing_while_workers_are_being_replaced_leaves_nothing(monkeypatch):
    started = []
    start = Crew._start

    def note(self):
        started.append(1)
        start(self)

    monkeypatch.setattr(Crew, "_start", note)
    master = taskfarm.Master(2)
    master.wait_for_workers(2, 20)
    for worker in master.workers:
        os.kill(worker.pid, signal.SIGKILL)
    until(lambda: len(started) > 2)
    master.close(wait=False)
