"""How jobs end that do not end well: who dies, what the user sees, the exit code, and that nothing is left.

The `jobs` fixture checks after each test that no process, file or shared memory of its jobs is left.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
from running import RMPI_RUN, SOON, Jobs, Running, Terminal, eventually, patience, reaches


def at_once() -> float:
    """Seconds from a rank's failure to the end of the job, at most."""
    return 1.0 * patience()


IN_A_BARRIER = """
    import os, signal, sys, time, rmpi
    comm = rmpi.init()
    comm.barrier()
    if comm.rank == 1:
        print("now", flush=True)
        {dies}
    comm.barrier()
    print("unreachable")
"""

DAEMON = """
    import os, subprocess, sys, time, rmpi
    comm = rmpi.init()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in 0, 1, 2:
                os.close(fd)
            os.execlp("sleep", "sleep", "1000")
        os._exit(0)
    os.wait()
    comm.barrier()
    print("ready", os.getpid(), flush=True)
    {then}
"""
"""Each rank leaves a daemon behind: orphaned, in a session of its own, and holding none of our descriptors."""


def daemons_run(job: Running) -> None:
    job.ready(2)
    eventually(lambda: len(job.pids("sleep 1000")) == 2, "the daemons run")


# --- One rank ends, the others wait for it ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dies", "code", "last"),
    [
        ("raise ValueError('seven')", 1, "ValueError: seven"),
        ("sys.exit(3)", 3, "rmpi-run: rank 1 of 3 on localhost failed: exit status 3"),
        ("os._exit(5)", 5, "rmpi-run: rank 1 of 3 on localhost failed: exit status 5"),
        ("os._exit(0)", 70, "left without finishing: exit status 0 in the middle of the job"),
        ("sys.exit('a last word')", 1, "rmpi-run: rank 1 of 3 on localhost failed: exit status 1"),
        ("raise SystemExit(256)", 1, "rmpi-run: rank 1 of 3 on localhost failed: exit status 1"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "rmpi-run: rank 1 of 3 on localhost failed: killed by SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", 139, "rmpi-run: rank 1 of 3 on localhost failed: killed by SIGSEGV"),
    ],
)
def test_a_rank_that_ends_badly_ends_the_job_at_once(dies: str, code: int, last: str, jobs: Jobs) -> None:
    job = jobs.start("-n", 3, jobs.script(IN_A_BARRIER.format(dies=dies)))
    job.until("now")
    done = job.wait()
    assert done.code == code
    assert done.after < at_once()
    assert done.out == "now\n"
    assert done.err.rstrip().endswith(last)
    assert "ranks 0, 2: stopped by the failure of rank 1" in done.err
    assert done.err.count("Traceback") == (1 if "raise Value" in dies else 0)
    assert done.err.count("a last word") == ("last word" in dies)


def test_a_traceback_is_the_users_own_and_the_last_thing_on_the_screen(jobs: Jobs) -> None:
    script = jobs.script(
        """
        import rmpi
        def fail():
            raise KeyError("lost")
        comm = rmpi.init()
        if comm.rank == 1:
            fail()
        comm.recv(1)
        """
    )
    done = jobs.run("-n", 2, script)
    assert done.code == 1
    assert done.said == (
        "rmpi-run: rank 0: stopped by the failure of rank 1\n"
        "rmpi-run: rank 1 of 2 on localhost raised this:\n"
        "Traceback (most recent call last):\n"
        f'  File "{script}", line 7, in <module>\n'
        "    fail()\n"
        f'  File "{script}", line 4, in fail\n'
        '    raise KeyError("lost")\n'
        "KeyError: 'lost'\n"
    )


def test_a_segmentation_fault_shows_the_python_stack(jobs: Jobs) -> None:
    script = jobs.script(
        """
        import ctypes
        def unwise():
            ctypes.string_at(0)
        unwise()
        """
    )
    done = jobs.run(script)
    assert done.code == 139
    assert "Fatal Python error: Segmentation fault" in done.err
    assert "line 4 in unwise" in done.err


def test_what_rmpi_raises_is_shown_where_the_program_called_it(jobs: Jobs) -> None:
    script = jobs.script(
        """
        import rmpi
        comm = rmpi.init()
        def ask():
            comm.send(1, 5)
        try:
            ask()
        except rmpi.RankError as error:
            raise ValueError("wrapped") from error
        """
    )
    done = jobs.run(script)
    assert done.code == 1
    assert "in ask\n    comm.send(1, 5)\nrmpi.errors.RankError: " in done.err
    assert f"{os.sep}rmpi{os.sep}" not in done.err
    assert done.err.endswith("ValueError: wrapped\n")


def test_a_syntax_error_is_shown_as_python_shows_it(jobs: Jobs) -> None:
    script = jobs.script("x = 1\nx = = 2\n")
    plain = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    done = jobs.run("-n", 2, script)
    assert done.code == plain.returncode == 1
    first_line, shown = done.said.split("\n", 1)
    assert re.fullmatch(r"rmpi-run: ranks 0-1 of 2 on localhost raised this \(rank . on localhost first\):", first_line)
    assert shown == plain.stderr


def test_the_same_error_of_all_ranks_is_told_once(jobs: Jobs) -> None:
    done = jobs.run("-n", 4, jobs.script("import rmpi\nrmpi.init().barrier()\nraise OSError('disk full')\n"))
    assert done.code == 1
    assert done.err.count("OSError: disk full") == 1
    assert re.search(r"ranks 0-3 of 4 on localhost raised this \(rank \d on localhost first\):", done.err)


def test_the_first_of_two_failures_is_the_cause_and_gives_the_exit_code(jobs: Jobs) -> None:
    """Although somebody still holds the first rank's output, so that its end is not known from that."""
    script = jobs.script(
        """
        import os, sys, time, rmpi
        comm = rmpi.init()
        comm.barrier()
        if comm.rank == 2:
            if os.fork() == 0:
                time.sleep(1000)
            os._exit(4)
        if comm.rank == 0:
            time.sleep(0.1)
            sys.exit(6)
        comm.barrier()
        """
    )
    done = jobs.run("-n", 3, script)
    assert done.code == 4
    assert "rmpi-run: rank 0 on localhost failed later: exit status 6\n" in done.err
    assert done.err.endswith("rmpi-run: rank 2 of 3 on localhost failed: exit status 4\n")


def test_others_may_handle_the_failure_and_clean_up(jobs: Jobs) -> None:
    script = jobs.script(
        """
        import os, sys, rmpi
        comm = rmpi.init()
        if comm.rank == 1:
            sys.exit(9)
        try:
            comm.recv(1)
        except rmpi.RankFailed as error:
            print(error)
            sys.exit(0)
        """
    )
    done = jobs.run("-n", 2, script)
    assert (done.code, done.out) == (9, "rank 1 on localhost failed: exit status 9\n")


def test_a_traceback_of_any_length_and_any_characters_arrives(jobs: Jobs) -> None:
    done = jobs.run(jobs.script(r"raise ValueError('\U0001F4A5' * 300_000 + '\udcff the end')"))
    assert done.code == 1
    assert done.err.count("Traceback") == 1
    assert "characters left out" in done.err
    assert done.err.rstrip().endswith("the end")
    assert len(done.stderr) < 300_000


# --- Ranks that end well ------------------------------------------------------------------------------------


def test_a_rank_that_never_joins_may_end(jobs: Jobs) -> None:
    done = jobs.run("-n", 2, "-c", "import os; print('done', flush=True); os._exit(0)")
    assert (done.code, done.out, done.said) == (0, "done\ndone\n", "")


def test_waiting_for_a_rank_that_has_ended_well_raises_after_its_last_message(jobs: Jobs) -> None:
    script = jobs.script(
        """
        import rmpi
        comm = rmpi.init()
        if comm.rank == 1:
            comm.send("small", 0)
            comm.send(b"x" * 3_000_000, 0)
        elif comm.rank == 0:
            print(comm.recv(1), len(comm.recv(1)))
            for rank in 1, 2:
                try:
                    comm.recv(rank)
                except rmpi.PeerExited as error:
                    print(error)
        """
    )
    done = jobs.run("-n", 3, script)
    assert (done.code, done.said) == (0, "")
    assert done.out.splitlines()[0] == "small 3000000"
    assert [f"rank {rank} on localhost has ended" in done.out for rank in (1, 2)] == [True, True]


# --- Somebody is killed -------------------------------------------------------------------------------------


def test_a_killed_rank_takes_its_job_and_its_daemons_along(jobs: Jobs) -> None:
    job = jobs.start("-n", 2, jobs.script(DAEMON.format(then="comm.recv(1 - comm.rank, timeout=60)")))
    daemons_run(job)
    os.kill(job.ranks()[1], signal.SIGKILL)
    done = job.wait()
    assert done.code == 137
    assert done.after < at_once()
    assert done.err.endswith("rmpi-run: rank 1 of 2 on localhost failed: killed by SIGKILL\n")


@pytest.mark.parametrize("victim", ["spawner", "launcher"])
def test_nothing_is_left_when_the_spawner_or_the_launcher_is_killed(victim: str, jobs: Jobs) -> None:
    job = jobs.start("-n", 2, jobs.script(DAEMON.format(then="comm.recv(1 - comm.rank, timeout=60)")))
    daemons_run(job)
    os.kill(job.spawner() if victim == "spawner" else job.pid, signal.SIGKILL)
    eventually(lambda: not jobs.processes(), "nothing left", SOON * patience())
    done = job.wait()
    assert done.code == (125 if victim == "spawner" else -signal.SIGKILL)
    if victim == "spawner":
        assert done.err.endswith(
            "rmpi-run: ranks 0-1 of 2 on localhost failed (rank 0 on localhost first): "
            "the node on localhost was lost: its spawner was killed by SIGKILL\n"
        )


def test_a_stopped_spawner_does_not_keep_the_job_alive(jobs: Jobs) -> None:
    job = jobs.start(
        "-n", 2, "--kill-grace", 0, jobs.script(DAEMON.format(then="comm.recv(1 - comm.rank, timeout=60)"))
    )
    daemons_run(job)
    os.kill(job.spawner(), signal.SIGSTOP)
    job.signal(signal.SIGTERM)
    assert job.wait().code == 143


def test_daemons_end_with_a_job_that_ends_well(jobs: Jobs) -> None:
    done = jobs.run("-n", 2, jobs.script(DAEMON.format(then="")))
    assert (done.code, done.said) == (0, "")


def test_a_child_that_holds_and_floods_the_output_of_a_dead_rank_is_no_reason_to_wait(jobs: Jobs) -> None:
    done = jobs.run("-n", 2, "sh", "-c", "if [ $RMPI_RANK = 1 ]; then yes & exit 3; fi; sleep 1000")
    assert done.code == 3
    assert done.took < 3 * at_once()


# --- Signals to the launcher --------------------------------------------------------------------------------

PATIENT = """
    import os, signal, sys, time, rmpi
    comm = rmpi.init()
    {handling}
    comm.barrier()
    print("ready", flush=True)
    while True:
        time.sleep(100)
"""


def test_ctrl_c_is_a_keyboard_interrupt_in_every_rank(jobs: Jobs) -> None:
    script = jobs.script(
        """
        import rmpi
        comm = rmpi.init()
        comm.barrier()
        try:
            print("ready", flush=True)
            comm.recv(comm.rank, timeout=60)
        finally:
            print("cleaned up")
        """
    )
    job = jobs.start("-n", 3, script)
    job.ready(3)
    job.signal(signal.SIGINT)
    done = job.wait()
    assert (done.code, done.out.count("cleaned up")) == (130, 3)
    assert done.after < at_once()
    assert done.err.count("KeyboardInterrupt") == 1
    assert "comm.recv(comm.rank, timeout=60)" in done.err
    assert "ranks 0-2 of 3" in done.err
    assert done.err.endswith("KeyboardInterrupt\nrmpi-run: interrupted\n")


def test_ctrl_c_in_a_terminal_reaches_the_ranks_once(jobs: Jobs) -> None:
    handling = "signal.signal(signal.SIGINT, lambda *_: (os.write(1, b'got it\\n'), os._exit(0)))"
    job = jobs.start("-n", 2, jobs.script(PATIENT.format(handling=handling)), terminal=True)
    job.ready(2)
    assert isinstance(job, Terminal)
    job.write(b"\x03")
    done = job.wait()
    assert (done.code, done.out.count("got it\r\n")) == (130, 2)
    assert "rmpi-run: interrupted: waiting for the ranks to end; press Ctrl-C again to terminate them" in done.out


def test_the_second_ctrl_c_terminates_and_the_third_kills(jobs: Jobs) -> None:
    handling = """
    signal.signal(signal.SIGINT, lambda *_: os.write(1, b"ignored\\n"))
    signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"defied\\n"))
    """
    job = jobs.start("-n", 2, "--kill-grace", 60, jobs.script(PATIENT.format(handling=handling)))
    job.ready(2)
    for answer in ("ignored", "defied"):
        job.signal(signal.SIGINT)
        job.until(answer, times=2)
    job.signal(signal.SIGINT)
    done = job.wait()
    assert done.code == 130
    assert done.after < at_once()
    assert done.lines == ["defied", "defied", "ignored", "ignored", "ready", "ready"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_term_and_hup_are_passed_on_as_themselves_and_once(number: signal.Signals, code: int, jobs: Jobs) -> None:
    handling = """
    caught = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: caught.append(signal.Signals(number).name))
    """
    text = PATIENT.format(handling=handling).replace("time.sleep(100)", "time.sleep(0.1)\n        if caught: break")
    script = jobs.script(text + "    time.sleep(0.1)\n    print(*caught)\n")
    job = jobs.start("-n", 2, script)
    job.ready(2)
    job.signal(number)
    done = job.wait()
    assert (done.code, done.lines) == (code, [number.name, number.name, "ready", "ready"])
    assert done.err.endswith(f"rmpi-run: ended by {number.name}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_rank_that_ignores_it_is_killed_after_the_grace(number: signal.Signals, jobs: Jobs) -> None:
    handling = "for each in 1, 2, 15: signal.signal(each, signal.SIG_IGN)"
    job = jobs.start("-n", 2, "--kill-grace", 0.3, jobs.script(PATIENT.format(handling=handling)))
    job.ready(2)
    job.signal(number)
    done = job.wait()
    assert done.code == 128 + number
    assert 0.3 <= done.after < 0.3 + at_once()
    assert "rmpi-run: ranks 0-1 did not end within 0.3 s: killed\n" in done.err


def test_closing_the_terminal_ends_the_job(jobs: Jobs) -> None:
    job = jobs.start("-n", 2, jobs.script(PATIENT.format(handling="")), terminal=True)
    job.ready(2)
    assert isinstance(job, Terminal)
    job.hang_up()
    assert job.process.wait(2 * patience()) == 129


def test_user_signals_go_to_the_ranks_and_nothing_else_happens(jobs: Jobs) -> None:
    handling = """
    signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"usr1\\n"))
    signal.signal(signal.SIGUSR2, lambda *_: (os.write(1, b"usr2\\n"), sys.exit(0)))
    """
    job = jobs.start("-n", 2, jobs.script(PATIENT.format(handling=handling)))
    job.ready(2)
    job.signal(signal.SIGUSR1)
    job.until("usr1", times=2)
    job.signal(signal.SIGUSR2)
    done = job.wait()
    assert (done.code, done.said) == (0, "")
    assert done.out.count("usr2") == 2


def test_ctrl_z_stops_launcher_and_ranks_and_cont_wakes_them(jobs: Jobs) -> None:
    job = jobs.start("-n", 2, jobs.script(PATIENT.format(handling="print('pid', os.getpid(), flush=True)")))
    job.ready(2)
    job.signal(signal.SIGTSTP)
    for pid in [job.pid, *job.ranks()]:
        reaches(pid, "T")
    job.signal(signal.SIGCONT)
    for pid in [job.pid, *job.ranks()]:
        reaches(pid, "S")
    job.signal(signal.SIGTERM)
    assert job.wait().code == 143


def test_a_launcher_under_nohup_does_not_hang_up(jobs: Jobs) -> None:
    job = jobs.start("-n", 1, jobs.script(PATIENT.format(handling="")), command=["nohup", *RMPI_RUN])
    job.ready(1)
    job.signal(signal.SIGHUP)
    job.signal(signal.SIGTERM)
    assert job.wait().code == 143


def test_out_of_time(jobs: Jobs) -> None:
    done = jobs.run("-n", 2, "--timeout", 0.5, "sleep", 1000)
    assert done.code == 124
    assert done.err == "rmpi-run: time is up: 0.5 s have passed (--timeout)\n"
    assert 0.5 < done.took < 0.5 + at_once()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_job_is_starting_leaves_nothing(number: signal.Signals, jobs: Jobs) -> None:
    """At whatever moment it comes: when the spawner has just been started, and when the ranks have."""
    script = jobs.script("import rmpi, time; rmpi.init().barrier(); time.sleep(100)")
    for processes_by_then in (2, 3, 4):
        job = jobs.start("-n", 2, script)
        _has_started(jobs, processes_by_then)
        job.signal(number)
        done = job.wait()
        assert done.code == 128 + number
        assert done.after < at_once()
        jobs.nothing_is_left()


def _has_started(jobs: Jobs, many: int) -> None:
    eventually(lambda: len(jobs.processes()) >= many, f"{many} processes")


def test_nobody_reads_the_output_any_more(jobs: Jobs) -> None:
    script = jobs.script("import rmpi, itertools\nrmpi.init()\nfor i in itertools.count(): print(i)")
    job = jobs.start("-n", 2, script, command=["sh", "-c", '"$0" "$@" | head -1', *RMPI_RUN])
    done = job.wait()
    assert done.out == "0\n"
    assert done.said == ""
    assert done.took < 5 * patience()
