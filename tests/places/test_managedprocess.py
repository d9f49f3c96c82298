"""Programs that a message router starts, watches and ends: real ones, which say on a pipe when they run."""

import os
import queue
import signal
import sys
from pathlib import Path

import pytest

from rmpi.errors import DeadlineExceeded, UsageError
from rmpi.places.dispatching import Clock
from rmpi.places.managedprocess import process
from rmpi.places.messagerouter import MessageRouter
from rmpi.places.supervisor import restart_every

LONG = 20.0
FOR_EVER = ["sleep", "1000"]


class QuickClock(Clock):
    """Whatever is due later is due now."""

    def __init__(self):
        self.moment = 0.0

    def now(self):
        return self.moment

    def wait(self, news, until):
        if until < 1e9:
            self.moment = max(self.moment, until)
        else:
            super().wait(news, until)


def gone(pid):
    return not Path(f"/proc/{pid}").exists()


def shell(text, *args):
    return ["sh", "-c", text, "sh", *map(str, args)]


class Line:
    """A pipe for programs to write to, by its path."""

    def __init__(self):
        self.reading, self.writing = map(os.fdopen, os.pipe(), "rw")
        self.path = f"/proc/{os.getpid()}/fd/{self.writing.fileno()}"

    def read(self):
        """The next line; nothing, when `hang_up` was called and no program has it open any more."""
        return self.reading.readline()

    def hang_up(self):
        self.writing.close()


@pytest.fixture
def line():
    line = Line()
    with line.reading, line.writing:
        yield line


# -------------------------------------------------------------------------------------------- the end of one


def test_the_end_of_a_program_is_told_with_its_status():
    ended = []
    program = process(shell("exit 3"), ended.append)
    MessageRouter(program).run()
    assert ended == [3]
    assert program.returncode == program.wait() == 3
    assert gone(program.pid)


def test_how_it_was_killed_is_told_too():
    ended = []
    program = process(FOR_EVER, ended.append)
    with MessageRouter(program) as router:
        assert not gone(program.pid)
        program.kill()
        router.join(LONG)
    assert ended == [-signal.SIGKILL]


def test_it_can_be_asked_to_end():
    program = process(FOR_EVER)
    with MessageRouter(program):
        program.terminate()
        assert program.wait(LONG) == -signal.SIGTERM


def test_one_can_wait_for_it_only_so_long():
    program = process(FOR_EVER)
    with MessageRouter(program), pytest.raises(DeadlineExceeded, match=r"process\(\['sleep', '1000'\]\) has not ended"):
        program.wait(0.01)


def test_a_function_may_wait_for_it():
    """The ancestor's wait-for-die, in a handler: it stopped everything else there."""
    program, statuses = process(shell("exit 4")), queue.SimpleQueue()

    class Waits:
        def register(self, desk):
            desk.submit(lambda: statuses.put(program.wait(LONG)))
            desk.finish()

    MessageRouter(program, Waits()).run()
    assert statuses.get_nowait() == 4


# ------------------------------------------------------------------------------------- the end of the router


def test_it_ends_with_the_router():
    program = process(FOR_EVER)
    with MessageRouter(program):
        pid = program.pid
    assert gone(pid)
    assert program.returncode == -signal.SIGTERM


def test_also_if_it_does_not_want_to(line, monkeypatch):
    monkeypatch.setattr("rmpi.places.managedprocess.GRACE", 0.05)
    program = process(shell("trap '' TERM; echo ready >$1; while :; do sleep 1000; done", line.path))
    with MessageRouter(program):
        assert line.read() == "ready\n"
    assert program.returncode == -signal.SIGKILL
    assert gone(program.pid)


def test_and_so_does_what_it_has_started(line):
    program = process(shell("exec 3>$1; sleep 1000 & echo ready >&3; wait", line.path))
    with MessageRouter(program):
        assert line.read() == "ready\n"
    line.hang_up()
    assert line.read() == "", "somebody still has it open"


def test_and_if_the_router_ends_by_an_error():
    program = process(FOR_EVER)

    class Fails:
        def register(self, desk):
            desk.submit(lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        MessageRouter(program, Fails()).run()
    assert gone(program.pid)


# -------------------------------------------------------------------------------------------------- restarts


def test_it_is_restarted_as_its_policy_says():
    failed, ended = [], []
    policy = restart_every(5, retries=3, on_final_fail=lambda: failed.append(len(ended)))
    program = process(shell("exit 3"), ended.append, restart=policy)
    clock = QuickClock()
    MessageRouter(program, clock=clock).run()
    assert ended == [3, 3, 3, 3]
    assert failed == [4]
    assert clock.moment == 10, "at once, and then twice after 5 s"


def test_who_lived_long_is_restarted_again_and_again():
    """Each look at the clock is twenty seconds after the last."""

    class Clock20(Clock):
        moment = 0.0

        def now(self):
            self.moment += 20
            return self.moment

    ended = []
    program = process(["false"], ended.append, restart=restart_every(5, retries=1))
    MessageRouter(program, clock=Clock20()).run(until=lambda: len(ended) >= 4)
    assert len(ended) >= 4


def test_that_it_is_given_up_is_logged(caplog):
    MessageRouter(process(["false"], restart=restart_every(5, retries=0))).run()
    assert caplog.messages == ["process(['false']) is not restarted any more: exit status 1, and no restart is allowed"]


def test_a_function_can_be_called_instead():
    called = []
    MessageRouter(process(["true"], restart=lambda: called.append(1))).run()
    assert called == [1]


def test_who_is_killed_on_purpose_is_not_restarted():
    ended = []
    program = process(FOR_EVER, ended.append, restart=True)
    with MessageRouter(program) as router:
        program.kill()
        router.join(LONG)
    assert ended == [-signal.SIGKILL]


def test_neither_is_who_waits_for_its_restart():
    ended = queue.SimpleQueue()
    program = process(["false"], ended.put, restart=restart_every(1000))
    with MessageRouter(program) as router:
        for _ in range(2):
            assert ended.get(timeout=LONG) == 1
        program.kill()
        router.join(LONG)
    assert program.wait() == 1


def test_a_router_that_ends_does_not_wait_for_a_restart(monkeypatch):
    monkeypatch.setattr("rmpi.places.managedprocess.GRACE", 1000)
    ended = queue.SimpleQueue()
    program = process(["false"], ended.put, restart=restart_every(1000))
    with MessageRouter(program):
        for _ in range(2):
            assert ended.get(timeout=LONG) == 1
    assert program.wait() == 1


def test_a_program_that_is_no_longer_there_ends_the_router(tmp_path):
    script = tmp_path / "script"
    script.write_text('#!/bin/sh\nrm "$0"\n')
    script.chmod(0o755)
    with pytest.raises(FileNotFoundError):
        MessageRouter(process([script], restart=True)).run()


def test_it_can_run_again():
    ended = []
    router = MessageRouter(process(["true"], ended.append))
    router.run()
    router.run()
    assert ended == [0, 0]


# ---------------------------------------------------------------------------------------------- what it gets


def test_it_runs_where_and_with_what_was_said(tmp_path, line):
    program = process(shell('echo "$PWD $GREETING" >$1', line.path), cwd=tmp_path, env={"GREETING": "hello"})
    MessageRouter(program).run()
    assert line.read() == f"{tmp_path} hello\n"


@pytest.fixture
def typed():
    """This process has something to read."""
    before, (reading, writing) = os.dup(0), os.pipe()
    os.write(writing, b"for us")
    os.close(writing)
    os.dup2(reading, 0)
    os.close(reading)
    yield
    os.dup2(before, 0)
    os.close(before)


@pytest.mark.usefixtures("typed")
def test_it_leads_a_group_of_its_own_and_has_no_input(line):
    look = "import os, sys; print(os.getpgrp() == os.getpid(), repr(sys.stdin.read()), file=open(sys.argv[1], 'w'))"
    MessageRouter(process([sys.executable, "-c", look, line.path])).run()
    assert line.read() == "True ''\n"


# --------------------------------------------------------------------------------------------------- mistakes


def test_what_cannot_be_started_ends_the_router():
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        MessageRouter(process(["no-such-program"])).run()


def test_before_the_router_runs_there_is_no_pid():
    program = process(["true"])
    assert program.returncode is None
    for ask in (lambda: program.pid, program.wait):
        with pytest.raises(UsageError, match="was not started yet: that happens when its MessageRouter runs"):
            ask()


def test_it_is_in_one_router_at_a_time():
    program = process(FOR_EVER)
    with MessageRouter(program), pytest.raises(UsageError, match="is in a router that runs"):
        MessageRouter(program).run()


@pytest.mark.parametrize("argv", ["ls -l", b"ls", []])
def test_a_command_is_a_list_of_words(argv):
    with pytest.raises(UsageError, match=r"a list of words such as \['ls', '-l'\]"):
        process(argv)


def test_the_rest_is_checked_too():
    with pytest.raises(UsageError, match="a function of the exit status, not 3"):
        process(["ls"], 3)
    with pytest.raises(UsageError, match="restart must be"):
        process(["ls"], restart=3)
