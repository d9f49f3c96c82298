"""Workers that are started from the shell: they listen, or connect, and leave well."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import shellworkers

from rmpi import places, taskfarm
from rmpi.errors import LaunchError, UsageError
from rmpi.places.keyfile import write_new_key
from rmpi.taskfarm import WorkerLost, command

COMMAND = [sys.executable, "-m", "rmpi.taskfarm", "worker"]

IMPATIENT = [
    sys.executable,
    "-c",
    "from rmpi.taskfarm import crew; crew.PATIENCE, crew.LOOK = 0.5, 0.1\n"
    "from rmpi.taskfarm.command import main; raise SystemExit(main())",
    "worker",
]
"""The same, and workers that are stopped are so for a shorter time."""

HERE = Path(__file__).parent

SOON = 20
"""Seconds in which anything happens that will."""


class Keeper:
    """``python -m rmpi.taskfarm worker``; `said` is what it has written so far."""

    def __init__(self, *words, command=COMMAND):
        self.process = subprocess.Popen(
            [*command, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.said = []
        first = self.next_line()
        assert "pid" in first, first
        self.at = first.split()[-1]

    def next_line(self):
        line = self.process.stdout.readline().rstrip("\n")
        self.said.append(line)
        return line

    def workers(self):
        """Pids of its workers: processes that were forked for places."""
        return [each.pid for each in psutil.Process(self.process.pid).children(recursive=True)]

    def end(self, number=signal.SIGTERM):
        """Its exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        rest, _ = self.process.communicate(timeout=SOON)
        self.said += rest.splitlines()
        return self.process.returncode


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("farm") / "team.key"
    write_new_key(path)
    return path


@pytest.fixture
def keep(key_file):
    """Starts keepers, which are ended, and have left nothing, at the end."""
    keepers = []

    def keep(*words, **options):
        keeper = Keeper("--key-file", key_file, *words, **options)
        keepers.append(keeper)
        return keeper

    yield keep
    for keeper in keepers:
        if keeper.process.poll() is None:
            left = psutil.Process(keeper.process.pid).children(recursive=True)
            keeper.process.send_signal(signal.SIGTERM)
            keeper.process.send_signal(signal.SIGTERM)
            keeper.wait()
            assert psutil.wait_procs(left, SOON)[1] == []
        keeper.process.stdout.close()


@pytest.fixture
def master():
    with taskfarm.Master(0) as master:
        yield master
    places.shutdown()


# ------------------------------------------------------------------------------------ workers that listen


def test_masters_come_to_workers_that_listen(keep, master, key_file):
    keeper = keep("--listen", "127.0.0.1:0", "-n", 2)
    assert keeper.said == [f"rmpi: 2 workers (pid {keeper.process.pid}) listen at {keeper.at}"]
    master.connect(keeper.at, key_file=key_file)
    pids = {*master.map(shellworkers.where, [0.05] * 8, chunksize=1)}
    assert len(pids) == 2
    assert pids <= {*keeper.workers()}


def test_several_masters_share_a_worker_and_what_it_keeps(keep, master, key_file):
    keeper = keep("--listen", "127.0.0.1:0", "-n", 1)
    with taskfarm.Master(0) as other:
        for each in (master, other):
            each.connect(keeper.at, key_file=key_file)
        tasks = [each.submit(shellworkers.state, "made by the first") for each in (master, other)]
        assert len({task.result(SOON) for task in tasks}) == 1
    assert master.submit(shellworkers.where).result(SOON) in keeper.workers()  # the other one has gone


def test_a_worker_that_dies_is_started_again_and_found_again(keep, master, key_file):
    keeper = keep("--listen", "127.0.0.1:0", "-n", 1)
    master.connect(keeper.at, key_file=key_file)
    before = master.submit(shellworkers.where).result(SOON)
    with pytest.raises(WorkerLost, match=r"worker 1 on .* was lost while it had this task"):
        master.submit(shellworkers.die).result(SOON)
    assert master.submit(shellworkers.where).result(SOON) != before


def test_when_the_keeper_ends_its_tasks_raise_and_nothing_hangs(keep, master, key_file):
    keeper = keep("--listen", "127.0.0.1:0", "-n", 1)
    master.connect(keeper.at, key_file=key_file)
    task = master.submit(shellworkers.where, 60)
    while not task.running():
        pass
    keeper.process.kill()
    with pytest.raises(WorkerLost):
        task.result(SOON)
    with pytest.raises(taskfarm.BrokenFarm, match="no workers"):
        master.submit(shellworkers.where).result(SOON)


def test_a_worker_that_is_stopped_is_started_again(keep, master, key_file):
    keeper = keep("--listen", "127.0.0.1:0", "-n", 1, command=IMPATIENT)
    master.connect(keeper.at, key_file=key_file)
    patient = master.with_options(retries=1)
    os.kill(patient.submit(shellworkers.where).result(SOON), signal.SIGSTOP)
    task = patient.submit(shellworkers.where)
    assert "was stopped for 0.5 s, and is started again" in keeper.next_line()
    assert task.result(SOON)


def test_workers_leave_when_the_tasks_at_hand_are_done(keep, master, key_file):
    """What they have not begun, others do: nothing is lost, though nothing may be tried again."""
    keeper, other = keep("--listen", "127.0.0.1:0", "-n", 1), keep("--listen", "127.0.0.1:0", "-n", 1)
    for each in (keeper, other):
        master.connect(each.at, key_file=key_file)
    assert master.wait_for_workers(2, SOON)
    results = master.map(shellworkers.where, [0.1] * 12, chunksize=1)
    pids = {next(results)}
    assert keeper.end(signal.SIGINT) == 0
    assert keeper.said[1:] == [
        "rmpi: leaving as soon as the tasks at hand are done; the next signal ends them",
    ]
    assert pids | {*results} >= {*pids}
    assert len(master.workers) == 1


def test_a_second_signal_does_not_wait(keep, master, key_file):
    keeper = keep("--listen", "127.0.0.1:0", "-n", 1)
    master.connect(keeper.at, key_file=key_file)
    task = master.submit(shellworkers.where, 600)
    while not task.running():
        pass
    keeper.process.send_signal(signal.SIGTERM)
    assert "leaving" in keeper.next_line()
    assert keeper.end() == 0
    with pytest.raises(WorkerLost):
        task.result(SOON)


def test_a_master_that_dies_during_a_dialogue_leaves_the_worker_for_the_next(keep, master, key_file):
    keeper = keep("--listen", "127.0.0.1:0", "-n", 1)
    program = f"""
import os
from rmpi import taskfarm
import shellworkers
master = taskfarm.Master(0)
master.connect({keeper.at!r}, key_file={str(key_file)!r})
master.submit(shellworkers.where).result()
def die(i, o):
    o.put(os.getpid())
    os.kill(i.get(), 9)
master.make_task(shellworkers.ask_in_vain, die).result()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=HERE, check=False)
    assert done.returncode == -signal.SIGKILL
    master.connect(keeper.at, key_file=key_file)
    assert master.submit(shellworkers.where).result(SOON)


# ------------------------------------------------------------------------------------ workers that come


def test_workers_come_to_a_master_now_or_later_and_end_with_it(keep, key_file):
    with taskfarm.Master(0) as master:
        address = master.listen(key_file=key_file)
        task = master.submit(shellworkers.where)  # waits until somebody comes
        keeper = keep("--connect", address, "-n", 2)
        assert keeper.said == [f"rmpi: 2 workers (pid {keeper.process.pid}) of {address}"]
        assert task.result(SOON) in keeper.workers()
        assert master.wait_for_workers(2, SOON)
        assert len({*master.map(shellworkers.where, [0.05] * 8, chunksize=1)}) == 2
    assert keeper.wait() == 0
    assert keeper.said[1:] == []
    places.shutdown()


def test_a_worker_may_come_to_several_masters(keep, key_file):
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER_MASTER, str(key_file)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE,
    )
    with other, taskfarm.Master(0) as master:
        addresses = [master.listen(key_file=key_file), other.stdout.readline().strip()]
        keeper = keep("--connect", addresses[0], "--connect", addresses[1], "-n", 1)
        assert master.submit(shellworkers.state, "shared").result(SOON) == int(other.stdout.readline())
        other.wait(SOON)
        assert master.submit(shellworkers.where).result(SOON) in keeper.workers()  # it is still ours
    assert keeper.wait() == 0
    places.shutdown()


OTHER_MASTER = """
import sys
from rmpi import taskfarm
import shellworkers
with taskfarm.Master(0) as master:
    print(master.listen(key_file=sys.argv[1]), flush=True)
    print(master.submit(shellworkers.state, "shared").result(), flush=True)
"""


def test_workers_say_that_their_master_was_lost(keep, key_file):
    words = [sys.executable, "-c", LOST_MASTER, str(key_file)]
    master = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=HERE)
    with master:
        keeper = keep("--connect", master.stdout.readline().strip(), "-n", 1)
        assert master.wait(SOON) == -signal.SIGKILL
    assert keeper.wait() == 0
    assert any("is gone: " in line for line in keeper.said)


LOST_MASTER = """
import os, sys
from rmpi import taskfarm
import shellworkers
master = taskfarm.Master(0)
print(master.listen(key_file=sys.argv[1]), flush=True)
master.submit(shellworkers.where).result()
os.kill(os.getpid(), 9)
"""


# ------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "say either --listen ADDRESS or --connect ADDRESS"),
        (["--listen", "127.0.0.1:0", "--connect", "a"], "say either"),
        (["--listen", "127.0.0.1:0"], "--key-file FILE is missing"),
        (["--connect", "head", "--key-file", "k", "--new-key"], "--new-key goes with --listen"),
        (["--listen", "x", "--key-file", "k", "-n", "0"], "--workers must be at least 1, not 0"),
        (["--listen", "127.0.0.1:99999999", "--key-file", "k"], "99999999"),
        (["--listen", "127.0.0.1:0", "--key-file", "missing.key"], "missing.key"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_input_is_refused_before_anything_is_started(words, complaint, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads, heed = threading.active_count(), signal.getsignal(signal.SIGINT)
    assert command.main(["worker", *words]) != 0
    assert complaint in capfd.readouterr().err
    assert threading.active_count() == threads
    assert signal.getsignal(signal.SIGINT) is heed
    places.shutdown()


def test_help_is_shown(capfd):
    assert command.main(["--help"]) == 0
    assert "rmpi-run [options] -m rmpi.taskfarm SCRIPT" in capfd.readouterr().out
    assert command.main(["worker", "--help"]) == 0
    assert command.main([]) == 2


def test_who_has_another_key_is_no_worker(key_file, tmp_path):
    write_new_key(tmp_path / "other.key")
    with taskfarm.Master(0) as master:
        address = master.listen(key_file=key_file)
        words = [*COMMAND, "--connect", address, "--key-file", str(tmp_path / "other.key"), "-n", "1"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=SOON, check=False)
        assert done.returncode == 125
        assert f"cannot join {address}" in done.stderr
        assert master.workers == []
    places.shutdown()


def test_a_master_that_goes_where_no_workers_are_hears_so(master, key_file):
    with pytest.raises(LaunchError, match=r"nobody listens at 127\.0\.0\.1:1"):
        master.connect("127.0.0.1:1", key_file=key_file, timeout=0.1)
    with pytest.raises(LaunchError, match="there are no workers at"):
        master.connect(places.listen(key_file=key_file), key_file=key_file)


def test_one_master_of_a_program_listens(master, key_file):
    address = master.listen(key_file=key_file)
    assert master.listen(key_file=key_file) == address
    with taskfarm.Master(0) as other, pytest.raises(UsageError):
        other.listen(key_file=key_file)


# ------------------------------------------------------------------------------------ the ranks of a job


def run_job(tmp_path, script, *words, ranks=3):
    (tmp_path / "script.py").write_text(script)
    argv = [sys.executable, "-m", "launcher", "-n", str(ranks), "--oversubscribe", "-m", "rmpi.taskfarm", "script.py"]
    return subprocess.run([*argv, *words], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)


def test_the_other_ranks_are_the_workers_of_each_master_in_turn(tmp_path):
    done = run_job(
        tmp_path,
        """
import sys
from rmpi import taskfarm
with taskfarm.Master() as master:
    master.wait_for_workers(2)
    print(sys.argv[1:], __name__, sorted(worker.label.split()[1] for worker in master.workers))
with taskfarm.Executor() as executor:
    print(sum(executor.map(abs, range(-5, 5))))
sys.exit(0)
""",
        "one",
        "two",
    )
    assert (done.stdout, done.stderr) == ("['one', 'two'] __main__ ['1', '2']\n25\n", "")


def test_a_script_that_fails_ends_the_job_with_its_status(tmp_path):
    done = run_job(tmp_path, "import sys\nsys.exit(7)\n")
    assert done.returncode == 7
    done = run_job(tmp_path, "1 / 0\n")
    assert done.returncode == 1
    assert 'File "script.py", line 1' in done.stderr


def test_one_rank_is_too_few(tmp_path):
    done = run_job(tmp_path, "print('never')\n", ranks=1)
    assert done.returncode == 2
    assert "there must be two ranks at least: rmpi-run -n 4 -m rmpi.taskfarm script.py" in done.stderr


def test_a_script_that_is_not_there(tmp_path):
    argv = [sys.executable, "-m", "launcher", "-n", "2", "-m", "rmpi.taskfarm", "missing.py"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 127
    assert "there is no script 'missing.py'" in done.stderr
