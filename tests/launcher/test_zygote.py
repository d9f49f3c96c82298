"""Ranks that are forked from an interpreter with NumPy in it, and ranks that start one of their own: no difference
but the time it takes.

`way` is how ranks start in a test that promises the same of both.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import Jobs, eventually

WAYS = {"fork": (), "exec": ("--no-fork",)}

THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return WAYS[request.param]


@pytest.fixture(autouse=True)
def _no_thread_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_COUNTS:
        monkeypatch.delenv(name, raising=False)


def told(jobs: Jobs, *words: object, **surroundings: Any) -> list[Any]:
    """What the ranks of a job print, each a line of JSON, in the order of ranks; the job must end well."""
    done = jobs.run("-l", *words, **surroundings)
    assert (done.code, done.said) == (0, "")
    labelled = [re.fullmatch(r"\[ *(\d+)\] (.*)", line) for line in done.out.splitlines()]
    return [json.loads(text) for _, text in sorted((int(match[1]), match[2]) for match in labelled if match)]


# --- What a program finds ---


def test_the_surroundings_are_those_of_plain_python(jobs: Jobs, way: tuple[str, ...]) -> None:
    script = jobs.script(
        """
        import gc, os, signal, sys, threading
        handlers = {n: str(signal.getsignal(n)) for n in signal.valid_signals()}
        print([
            sys.argv, __name__, __file__, sys.path, os.getcwd(), __spec__, __package__, str(sys.flags),
            sys.modules["__main__"].__file__, sorted(name for name in globals() if not name.startswith("_")),
            handlers, signal.pthread_sigmask(signal.SIG_BLOCK, []), threading.active_count(), gc.isenabled(),
            [(stream.fileno(), stream.encoding, stream.errors) for stream in (sys.stdin, sys.stdout, sys.stderr)],
            os.environ.get("PYTHONHASHSEED"), hash("text"), sys.warnoptions, sys.stdin.read(), os.nice(0),
        ])
        """
    )
    variables = {"PYTHONHASHSEED": "7", "PYTHONWARNINGS": "error::UserWarning", "PYTHONPATH": "somewhere"}
    plain = subprocess.run(
        [sys.executable, script, "a", "b c"],
        input="typed",
        capture_output=True,
        text=True,
        check=True,
        cwd=jobs.directory,
        env={**os.environ, **variables},
    )
    done = jobs.run(*way, script, "a", "b c", input=b"typed", env=variables)
    assert (done.code, done.said) == (0, "")
    assert done.out == plain.stdout


def test_a_variable_is_there_before_anything_is_imported(jobs: Jobs, way: tuple[str, ...]) -> None:
    code = "import sys, warnings; print(sys.flags.optimize, sys.flags.dont_write_bytecode, sys.warnoptions)"
    words = ("-x", "PYTHONOPTIMIZE=1", "-x", "PYTHONDONTWRITEBYTECODE=1", "-x", "PYTHONWARNINGS=ignore")
    assert jobs.run("-n", 2, *way, *words, "-c", code).out == "1 1 ['ignore']\n" * 2


def test_ranks_are_told_apart(jobs: Jobs, way: tuple[str, ...]) -> None:
    """By variables of their own, by their groups, and by random numbers of every kind."""
    script = jobs.script(
        """
        import json, multiprocessing, os, random, sys
        import numpy.random
        print(json.dumps([
            [os.environ["RMPI_RANK"], os.environ["RMPI_SIZE"]], os.getpid() == os.getsid(0),
            random.random(), numpy.random.random(), numpy.random.default_rng().random(),
            multiprocessing.current_process().authkey.hex(),
        ]))
        """
    )
    ranks = told(jobs, "-n", 3, *way, "--preload", "random,numpy.random", script)
    assert [rank[0] for rank in ranks] == [["0", "3"], ["1", "3"], ["2", "3"]]
    assert all(rank[1] for rank in ranks)
    for column in range(2, 6):
        assert len({rank[column] for rank in ranks}) == 3


@pytest.mark.parametrize(("code", "status"), [("pass", 0), ("sys.exit(3)", 3), ("1/0", 1), ("sys.exit(256)", 1)])
def test_exit_status(jobs: Jobs, way: tuple[str, ...], code: str, status: int) -> None:
    assert jobs.run("-n", 2, *way, "-c", f"import sys; {code}").code == status


def test_a_rank_ends_like_an_interpreter(jobs: Jobs, way: tuple[str, ...]) -> None:
    """Threads first, then exit functions; those of preloaded modules too, once in every rank."""
    jobs.script("import atexit, os\natexit.register(lambda: print('of the module'))", "registers.py")
    script = jobs.script(
        """
        import atexit, threading, registers
        atexit.register(print, "of the script")
        threading.Thread(target=lambda: (threading.main_thread().join(), print("thread"))).start()
        """
    )
    done = jobs.run("-n", 2, "-l", *way, "--preload", "registers", script)
    assert (done.code, done.said) == (0, "")
    for rank in "01":
        said = [line for line in done.out.splitlines() if rank in line.split()[0]]
        assert [line.split()[-1] for line in said] == ["thread", "script", "module"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(jobs: Jobs, way: tuple[str, ...], method: str) -> None:
    script = jobs.script(
        f"""
        import multiprocessing, rmpi

        class Point:
            def __init__(self, x):
                self.x = x

        def double(point):
            return Point(2 * point.x)

        if __name__ == "__main__":
            comm = rmpi.init()
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                doubled = [point.x for point in pool.map(double, [Point(1), Point(2)])]
            print(doubled, comm.allreduce(1))
        """
    )
    done = jobs.run("-n", 2, *way, script, env={"TMPDIR": "/tmp"})  # its forkserver needs a short path
    assert (done.code, done.out, done.said) == (0, "[2, 4] 2\n" * 2, "")


def test_ps_shows_script_and_rank(jobs: Jobs, way: tuple[str, ...]) -> None:
    text = "import rmpi, sys; comm = rmpi.init(); print('ready'); comm.rank or sys.stdin.read(); comm.barrier()"
    script = jobs.script(text, "long name of a script.py")
    job = jobs.start("-n", 2, *way, script, "--k", 3, stdin=subprocess.PIPE)
    job.until("ready", times=2)
    shown = sorted(words for words in jobs.processes().values() if words.startswith("rmpi rank"))
    names = sorted(Path(f"/proc/{pid}/comm").read_text() for pid in job.pids("rmpi rank"))
    job.end_input()
    assert job.wait().code == 0
    assert [words.rstrip() for words in shown] == [f"rmpi rank {rank}: {script} --k 3" for rank in range(2)]
    assert names == ["0 long name of \n", "1 long name of \n"]


# --- Forked ranks ---


def test_a_forked_rank_finds_numpy_and_all_of_rmpi_that_it_needs_imported(jobs: Jobs) -> None:
    """When this fails, what the message names belongs into `rmpi.places.zygote.AHEAD`."""
    script = jobs.script(
        """
        import json, sys
        before = set(sys.modules)
        import numpy, rmpi
        comm = rmpi.init()
        comm.barrier()
        print(json.dumps(sorted(set(sys.modules) - before)))
        """
    )
    assert told(jobs, "-n", 2, script) == [[], []]


def test_forked_ranks_share_what_they_have_not_written_to(jobs: Jobs) -> None:
    script = jobs.script(
        """
        import json, re
        private = re.search(r"Private_Dirty:\\s+(\\d+)", open("/proc/self/smaps_rollup").read())
        import numpy
        print(json.dumps([int(private[1])]))
        """
    )
    [[forked]], [[fresh]] = told(jobs, "-n", 1, script), told(jobs, "--no-fork", "-n", 1, "--preload", "numpy", script)
    assert forked < fresh


def test_preloaded_modules_are_there(jobs: Jobs) -> None:
    """Those beside the script too, found as the script would find them."""
    script = jobs.script("import sys; print('beside' in sys.modules, sys.modules['wave'].__name__)", "elsewhere/x.py")
    jobs.script("", "elsewhere/beside.py")
    done = jobs.run("-n", 2, "--preload", "beside", "--preload=wave,json.tool", script)
    assert (done.code, done.out) == (0, "True wave\n" * 2)


def test_open_files_of_preloaded_modules_stay_open(jobs: Jobs) -> None:
    jobs.script("file = open(__file__)", "opens.py")
    code = "import opens, rmpi; rmpi.init().barrier(); print(len(opens.file.read()), opens.file.close())"
    done = jobs.run("-n", 1, "--preload", "opens", "-c", code)
    assert (done.code, done.out, done.said) == (0, "21 None\n", "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "ModuleNotFoundError: No module named 'broken'"),
        ("raise ValueError('on purpose')", "ValueError: on purpose"),
        ("import sys; sys.exit('at once')", "SystemExit: at once"),
    ],
)
def test_a_module_that_cannot_be_preloaded_is_refused_before_any_rank_starts(
    jobs: Jobs, text: str | None, why: str
) -> None:
    if text is not None:
        jobs.script(text, "broken.py")
    done = jobs.run("-n", 2, "--preload", "broken", "-c", "print('started')")
    assert (done.code, done.out) == (125, "")
    assert done.said == f"rmpi-run: localhost: --preload broken: cannot be imported: {why}\n"


def test_on_every_host(jobs: Jobs) -> None:
    """Two hosts, both this machine, by an agent that runs what it is told to run there."""
    agent = jobs.script('shift; SSH_CONNECTION="127.0.0.1 1 127.0.0.1 2" exec sh -c "$*"', "agent.sh")
    words = ("--rsh-agent", f"sh {agent}", "-H", "hosta:2,hostb:2", "-x", "OMP_NUM_THREADS")
    variables = {"OMP_NUM_THREADS": "1"}
    code = "import sys; print('numpy' in sys.modules, 'wave' in sys.modules)"
    assert jobs.run(*words, "--preload", "wave", "-c", code, env=variables).out == "True True\n" * 4
    done = jobs.run(*words, "--preload", "no_such", "-c", "", env=variables)
    refusal = "--preload no_such: cannot be imported: ModuleNotFoundError: No module named 'no_such'"
    assert (done.code, done.said) == (125, f"rmpi-run: hosta: {refusal}\nhostb: {refusal}\n")


def test_a_command_cannot_have_modules_preloaded(jobs: Jobs) -> None:
    done = jobs.run("--preload", "wave", "ls")
    assert (done.code, done.err) == (2, "rmpi-run: --preload is for Python programs, and ls is a command\n")


def test_a_module_that_starts_a_thread_makes_every_rank_start_afresh(jobs: Jobs) -> None:
    """A fork would lose the thread, and keep the locks that it holds."""
    jobs.script("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()", "starts.py")
    code = "import sys; print('starts' in sys.modules, 'numpy' in sys.modules)"
    done = jobs.run("-n", 2, "-v", "--preload", "starts", "-c", code)
    assert (done.code, done.out) == (0, "False False\n" * 2)
    note = "rmpi-run: every rank starts an interpreter of its own: importing starts (--preload) started a thread\n"
    assert done.err.count(note) == 1
    assert "interpreter of its own" not in jobs.run("-n", 2, "--preload", "starts", "-c", "").err


def test_without_numpy_ranks_start_and_say_so_themselves(jobs: Jobs) -> None:
    jobs.script("raise ImportError('no such luck')", "elsewhere/numpy.py")
    variables = {"PYTHONPATH": str(jobs.directory / "elsewhere")}
    assert jobs.run("-n", 2, "-c", "print('fine')", env=variables).out == "fine\nfine\n"
    done = jobs.run("-n", 2, "-c", "import numpy", env=variables)
    assert (done.code, done.err.splitlines()[-1]) == (1, "ImportError: no such luck")


def test_a_launcher_that_is_killed_while_modules_are_preloaded_leaves_nothing(jobs: Jobs) -> None:
    jobs.script("import threading; open('imports', 'w').close(); threading.Event().wait()", "waits.py")
    job = jobs.start("--preload", "waits", "-c", "")
    eventually((jobs.directory / "imports").exists, "the module is being imported")
    job.signal(signal.SIGKILL)
    job.wait()


def test_ctrl_c_ends_a_job_whose_modules_take_their_time(jobs: Jobs) -> None:
    jobs.script("import threading; open('imports', 'w').close(); threading.Event().wait()", "waits.py")
    job = jobs.start("--preload", "waits", "-c", "")
    eventually((jobs.directory / "imports").exists, "the module is being imported")
    job.signal(signal.SIGTERM)
    assert job.wait().code in (143, -signal.SIGTERM)


# --- Threads of linear algebra ---

PRODUCT = """
import json, os
import numpy as np
product = np.ones((600, 600)) @ np.ones((600, 600))
assert (product == 600).all()
print(json.dumps([os.environ.get("OMP_NUM_THREADS"), len(os.listdir("/proc/self/task"))]))
"""


def test_cores_are_shared_among_the_threads_of_all_ranks(jobs: Jobs, way: tuple[str, ...]) -> None:
    ranks = len(os.sched_getaffinity(0))
    assert told(jobs, "-n", ranks, *way, jobs.script(PRODUCT)) == [["1", 1]] * ranks
    [[share, _]] = told(jobs, "-n", 1, *way, jobs.script(PRODUCT))
    assert share is None or ranks == 1


def test_thread_counts_that_were_set_stay(jobs: Jobs, way: tuple[str, ...]) -> None:
    """And linear algebra with several threads computes in a rank what it computes elsewhere."""
    script = jobs.script(PRODUCT)
    for rank in told(jobs, "-n", 2, *way, "-x", "OMP_NUM_THREADS=2", script):
        assert rank == ["2", 2]
    for rank in told(jobs, "-n", 2, *way, script, env={"OPENBLAS_NUM_THREADS": "3"}):
        assert rank[0] is None


def test_the_share_is_said_once_to_who_wants_to_know(jobs: Jobs) -> None:
    cores = len(os.sched_getaffinity(0))
    text = f"rmpi-run: OMP_NUM_THREADS=1: {cores + 1} ranks share {cores} cores\n"
    assert jobs.run("-n", cores + 1, "-v", "-c", "").err.count(text) == 1
    assert "OMP_NUM_THREADS" not in jobs.run("-n", cores + 1, "-c", "").err
