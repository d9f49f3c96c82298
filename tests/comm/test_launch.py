"""`rmpi.launch`: functions of all kinds, what comes back, how jobs end, and that nothing is left of them."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import rmpi
from rmpi.places.parcels import failure, open_value, pack_value

STUB_SSH = f"{sys.executable} {Path(__file__).parent.parent / 'stubs' / 'ssh'}"


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = descriptors(), threading.active_count(), psutil.Process().children()
    yield
    assert (descriptors(), threading.active_count(), psutil.Process().children()) == before


@pytest.fixture
def _all_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, no rank is told to end before it has failed by itself."""
    monkeypatch.setattr("rmpi.comm.job.SETTLE", 30.0)
    monkeypatch.setattr("rmpi.comm.job.STACKS", 30.0)


def descriptors() -> list[str]:
    return sorted(str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())


def triple(comm: rmpi.Comm, factor: int, plus: int = 0) -> int:
    return 3 * factor * comm.rank + plus


# ------------------------------------------------------------------------------- functions and results


def test_a_function_of_a_module_runs_on_every_rank_and_its_results_come_in_rank_order() -> None:
    assert rmpi.launch(triple, 3, args=(5,), kwargs={"plus": 1}) == [1, 16, 31]


def test_a_nested_function_travels_with_what_it_refers_to_and_arrays_in_both_directions() -> None:
    import numpy as np

    points = np.arange(300_000.0)

    class Result:
        def __init__(self, total: Any) -> None:
            self.total = total

    def main(comm: rmpi.Comm) -> Result:
        start, count = comm.partition(len(points))
        return Result(comm.allgather(points[start : start + count]))

    results = rmpi.launch(main, ranks=2)
    assert all(type(result) is Result for result in results)
    assert all((np.concatenate(result.total) == points).all() for result in results)


SCRIPT = """
import rmpi, os
print("the script runs in", "a rank" if "RMPI_RANK" in os.environ else "its caller", flush=True)
class Answer(Exception): pass
def main(comm, word):
    print(f"{word} from {comm.rank}")
    if word == "fail":
        raise Answer(comm.rank)
    return helper(comm) * 2
def helper(comm):
    return comm.allreduce(comm.rank)
print(rmpi.launch(main, 2, args=("hello",)))
try:
    rmpi.launch(main, 1, args=("fail",))
except* Answer as group:
    print("Answer", group.exceptions[0].args)
"""


@pytest.mark.parametrize("how", ["script", "-i"])
def test_functions_of_a_script_or_console_travel_without_running_it_again(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    code = f"exec({SCRIPT!r})"
    words = {"script": [str(script)], "-i": ["-i"]}[how]
    given = code + "\n" if how == "-i" else ""
    run = subprocess.run([sys.executable, *words], input=given, capture_output=True, text=True, timeout=50, check=False)
    lines = run.stdout.splitlines()
    assert run.returncode == 0, run.stderr
    assert lines[0] == "the script runs in its caller"
    assert sorted(lines[1:3]) == ["hello from 0", "hello from 1"]
    assert lines[3:] == ["[2, 2]", "fail from 0", "Answer (0,)"]


def test_a_function_that_needs_cloudpickle_says_so_where_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(rmpi.UsageError, match=r"cloudpickle is needed: pip install 'rmpi\[notebook\]'"):
        rmpi.launch(lambda comm: comm.rank, 2)


def test_what_cannot_be_pickled_at_all_is_refused_before_anything_starts() -> None:
    with pytest.raises(rmpi.UsageError, match=r"the call of triple cannot be pickled: TypeError: .*generator"):
        rmpi.launch(triple, 2, args=((number for number in range(2)),))


def test_functions_of_modules_that_ranks_cannot_import_travel_by_value() -> None:
    made = types.ModuleType("made_by_hand")
    exec("def outer(x): return inner(x) + 1\ndef inner(x): return 2 * x", made.__dict__)
    sys.modules["made_by_hand"] = made
    try:
        packed = pack_value(made.outer, "it")
    finally:
        del sys.modules["made_by_hand"]
    assert open_value(packed)(3) == 7


def test_functions_of_modules_that_ranks_can_import_travel_by_name() -> None:
    assert pack_value((triple, pickle.Pickler), "it") == pickle.dumps((triple, pickle.Pickler), pickle.HIGHEST_PROTOCOL)


# --------------------------------------------------------------------------------------------- failures


class Peculiar(Exception):
    """Pickles, but cannot be made again of what its pickle holds."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


@pytest.mark.usefixtures("_all_may_fail")
def test_every_failure_comes_back_as_itself_with_rank_host_and_traceback() -> None:
    def main(comm: rmpi.Comm) -> None:
        if comm.rank == 3:
            for other in range(3):
                comm.send("fail", other)
            comm.recv(0)
        comm.recv(3)
        if comm.rank == 0:
            raise KeyError("no such key")
        if comm.rank == 1:
            raise Peculiar("a", "b")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ExceptionGroup, match=r"4 of 4 ranks failed, rank \d on localhost first") as caught:
        rmpi.launch(main, 4)
    errors = {int(error.__notes__[-1].split()[2]): error for error in caught.value.exceptions}
    assert {rank: type(error) for rank, error in errors.items()} == {
        0: KeyError,
        1: rmpi.RemoteError,
        2: rmpi.RankFailed,
        3: rmpi.RankFailed,
    }
    assert errors[0].__notes__[0].startswith("in rank 0 of 4 on localhost:\nTraceback (most recent call last):\n")
    assert errors[0].__notes__[0].endswith("raise KeyError(\"no such key\")\nKeyError: 'no such key'")
    assert str(errors[1]).endswith("Peculiar: ab")
    assert str(errors[2]) == "rank 2 on localhost failed: killed by SIGKILL"
    assert isinstance(caught.value.exceptions[-1], rmpi.RankFailed)


def test_the_traceback_of_a_failure_begins_in_the_function() -> None:
    def main(comm: rmpi.Comm) -> None:
        comm.send(None, 7)

    with pytest.raises(ExceptionGroup) as caught:
        rmpi.launch(main, 1)
    (error,) = caught.value.exceptions
    assert type(error) is rmpi.RankError
    assert error.__notes__[0].count("  File ") == 1


def test_an_exception_that_holds_what_cannot_be_pickled_becomes_its_traceback() -> None:
    told = failure(ValueError(threading.Lock()), None)
    assert told.pickled is None
    assert type(told.error()) is rmpi.RemoteError
    assert str(told.error()).startswith("ValueError: <unlocked _thread.lock object")


def test_a_result_that_cannot_be_pickled_is_a_failure_of_its_rank() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        rmpi.launch(lambda _comm: threading.Lock(), 1)
    assert "what rank 0 returned cannot be pickled" in str(caught.value.exceptions[0])


@pytest.mark.usefixtures("_all_may_fail")
def test_ranks_that_disagree_raise_the_mismatch() -> None:
    def main(comm: rmpi.Comm) -> None:
        comm.broadcast(1) if comm.rank == 1 else comm.reduce(1)
        comm.barrier()

    with pytest.raises(ExceptionGroup) as caught:
        rmpi.launch(main, 3)
    assert {type(error) for error in caught.value.exceptions} == {rmpi.CollectiveMismatch}


def test_a_rank_that_exits_is_a_failure_by_its_status_and_none_by_0() -> None:
    def main(_comm: rmpi.Comm, status: int) -> None:
        sys.exit(status)

    assert rmpi.launch(main, 1, args=(0,)) == [None]
    with pytest.raises(ExceptionGroup) as caught:
        rmpi.launch(main, 1, args=(3,))
    assert str(caught.value.exceptions[0]) == "rank 0 on localhost failed: exit status 3"


# ---------------------------------------------------------------------------------------------- output


def test_output_is_shown_in_whole_lines_on_the_streams_of_this_moment(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_comm: rmpi.Comm) -> None:
        for part in ("one ", "line", "\nand ", "unfinished"):
            os.write(1, part.encode())
        print("an error", file=sys.stderr)

    rmpi.launch(main, 2)
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == ["and unfinished"] * 2 + ["one line"] * 2
    assert err == "an error\n" * 2


def test_output_goes_to_a_callable_or_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    def main(comm: rmpi.Comm) -> None:
        print("out", comm.rank)
        print("err", comm.rank, file=sys.stderr)

    lines: list[tuple[int, int, str]] = []
    rmpi.launch(main, 2, output=lambda *line: lines.append(line))
    rmpi.launch(main, 1, output="discard")
    assert sorted(lines) == [(0, 1, "out 0"), (0, 2, "err 0"), (1, 1, "out 1"), (1, 2, "err 1")]
    assert capfd.readouterr() == ("", "")


def test_a_callable_that_raises_ends_the_job_with_its_error() -> None:
    def main(_comm: rmpi.Comm) -> None:
        print("ready")
        signal.pause()

    def show(_rank: int, _stream: int, line: str) -> None:
        raise ZeroDivisionError(line)

    with pytest.raises(ZeroDivisionError, match="ready"):
        rmpi.launch(main, 2, output=show)


# ----------------------------------------------------------------------------------------------- ending


@pytest.mark.usefixtures("_all_may_fail")
def test_time_limit_ends_the_job_and_says_where_each_rank_was() -> None:
    def main(comm: rmpi.Comm) -> None:
        print("ready")
        if comm.rank == 0:
            comm.recv(1)
        signal.pause()

    ready = threading.Semaphore(0)
    job = rmpi.launch(main, 2, timeout=100, wait=False, kill_grace=50, output=lambda *_: ready.release())
    assert ready.acquire(timeout=30)
    assert ready.acquire(timeout=30)
    job._course.loop.post(job._time_is_up)  # now, where a clock would decide it by how busy the machine is
    with pytest.raises(rmpi.DeadlineExceeded, match="ended after 100 s, in which these ranks had not: 0, 1") as caught:
        job.wait()
    for rank, note in enumerate(caught.value.__notes__):
        assert note.startswith(f"where rank {rank} on localhost was:\nTraceback")
        assert ", in main\n" in note
        assert note.endswith("\nKeyboardInterrupt")


def test_a_job_in_the_background_is_waited_for_later() -> None:
    def main(comm: rmpi.Comm, go: str) -> int:
        while not Path(go).exists():
            pass
        return comm.rank

    with rmpi.launch(main, 2, args=("/nonexistent/go",), wait=False) as job:
        assert not job.done
        with pytest.raises(rmpi.DeadlineExceeded, match="it goes on"):
            job.wait(0.01)
    assert job.done
    with pytest.raises((ExceptionGroup, rmpi.LaunchError)):
        job.wait()

    job = rmpi.launch(main, 2, args=("/",), wait=False)
    assert job.wait(50) == job.results == [0, 1]
    assert repr(job) == "<Job of 2 ranks, over>"


@pytest.mark.parametrize(("how", "cause"), [("terminate", "SIGTERM"), ("kill", "SIGKILL")])
def test_a_job_that_is_ended_by_its_handle_raises_what_that_did_to_its_ranks(how: str, cause: str) -> None:
    def main(_comm: rmpi.Comm) -> None:
        print("ready")
        signal.pause()

    ready = threading.Semaphore(0)
    job = rmpi.launch(main, 2, wait=False, output=lambda *_: ready.release())
    assert ready.acquire(timeout=30)
    assert ready.acquire(timeout=30)
    getattr(job, how)()
    with pytest.raises(ExceptionGroup, match=f"the job was {how.removesuffix('e')}ed; 2 of 2 ranks failed") as caught:
        job.wait()
    assert {str(error).rpartition(" ")[2] for error in caught.value.exceptions} == {cause}


def test_a_job_that_is_ended_while_it_starts_has_not_started() -> None:
    job = rmpi.launch(triple, 2, args=(1,), wait=False)
    job.kill()
    with pytest.raises(rmpi.LaunchError, match="ended before its ranks had started"):
        job.wait()


def test_ctrl_c_is_a_keyboard_interrupt_here_and_in_every_rank() -> None:
    def main(comm: rmpi.Comm) -> None:
        try:
            print("ready")
            signal.pause()
        except KeyboardInterrupt:
            print("interrupted", comm.rank)
            raise

    lines: list[str] = []

    def show(_rank: int, _stream: int, line: str) -> None:
        lines.append(line)
        if lines.count("ready") == 2 and line == "ready":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        rmpi.launch(main, 2, output=show)
    assert sorted(lines) == ["interrupted 0", "interrupted 1", "ready", "ready"]


def test_ranks_end_with_their_caller_even_if_a_fork_of_it_lives_on() -> None:
    code = """
    import os, rmpi, signal, sys, threading
    def main(comm):
        print(os.getpid())
        signal.pause()
    def show(rank, stream, line):
        print(line, flush=True)
        ready.release()
    ready = threading.Semaphore(0)
    job = rmpi.launch(main, 2, wait=False, output=show)
    ready.acquire(), ready.acquire()
    fork = os.fork()
    if fork:
        print(fork, flush=True)
    signal.pause()
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        *ranks, fork = [psutil.Process(int(caller.stdout.readline())) for _ in range(3)]
        caller.kill()
        _, alive = psutil.wait_procs(ranks, timeout=20)
        fork.kill()
    assert alive == []


def test_jobs_run_side_by_side_from_threads() -> None:
    results: dict[int, list[int]] = {}

    def one(factor: int) -> None:
        results[factor] = rmpi.launch(triple, 2, args=(factor,))

    threads = [threading.Thread(target=one, args=(factor,)) for factor in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {1: [0, 3], 2: [0, 6]}


# ------------------------------------------------------------------------------------------------ hosts


def test_hosts_by_ssh_each_with_its_own_interpreter_environment_and_directory(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nWRAPPED=yes exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "there").mkdir()

    def main(comm: rmpi.Comm) -> tuple[str, str | None, str | None, str]:
        return comm.hosts[comm.rank], os.environ.get("WRAPPED"), os.environ.get("WORD"), str(Path.cwd())

    results = rmpi.launch(
        main,
        hosts=["localhost:1", "node1:1", "node2:1"],
        environment={"WORD": "all"},
        directory=tmp_path,
        overrides={
            "localhost": {"python": str(python)},
            "node2": {"python": python, "environment": {"WORD": "own"}, "directory": tmp_path / "there"},
        },
        rsh_agent=STUB_SSH,
    )
    assert results == [
        ("localhost", "yes", "all", str(tmp_path)),
        ("node1", None, "all", str(tmp_path)),
        ("node2", "yes", "own", str(tmp_path / "there")),
    ]


def test_a_hostfile_names_hosts_too_and_what_cannot_be_reached_is_said(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("denied slots=2\n")
    with pytest.raises(rmpi.LaunchError, match="denied"):
        rmpi.launch(triple, hosts=hostfile, args=(1,), rsh_agent=STUB_SSH)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"hosts": "node1:2"}, r"no such hostfile; a list of hosts is written hosts=\['node1:2'\]"),
        ({"hosts": []}, "names no host"),
        ({"overrides": {"localhots": {}}}, "did you mean 'localhost'"),
        ({"overrides": {"localhost": {"enviroment": {}}}}, "did you mean 'environment'"),
        ({"timeout": "soon"}, "timeout must be seconds"),
    ],
)
def test_a_slip_of_the_keyboard_is_named(given: dict[str, Any], text: str) -> None:
    with pytest.raises(rmpi.UsageError, match=text):
        rmpi.launch(triple, 1, args=(1,), **given)
