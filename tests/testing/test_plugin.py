"""The pytest plugin: tests that are on ranks themselves, and the reports of those that fail."""

from __future__ import annotations

import os
import random
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

import rmpi

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _wide_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


# -------------------------------------------------------------------------------- tests on ranks


@pytest.mark.ranks(1, 2, 4)
def test_the_body_runs_on_every_rank(comm: rmpi.Comm) -> None:
    assert comm.allgather(comm.rank) == list(range(comm.size))


def test_and_is_a_test_for_each_number(request: pytest.FixtureRequest) -> None:
    names = [item.name for item in request.session.items if item.nodeid.startswith("tests/testing/test_plugin.py")]
    ours = [name for name in names if name.startswith("test_the_body_runs_on_every_rank")]
    if len(ours) == 3:  # no selection was made
        assert [re.search(r"\[(.*)\]", name)[1] for name in ours] == ["1 rank", "2 ranks", "4 ranks"]  # type: ignore[index]


class Solver:
    def __init__(self, comm: rmpi.Comm, pid: int) -> None:
        self.comm = comm
        self.pid = pid
        self.size = comm.size


@pytest.fixture
def solver(comm: rmpi.Comm) -> Solver:
    return Solver(comm, os.getpid())


@pytest.mark.ranks(3)
@pytest.mark.parametrize("root", [0, 2])
def test_fixtures_are_set_up_once_and_hold_the_communicator_of_each_rank(
    comm: rmpi.Comm, solver: Solver, root: int, tmp_path: Path
) -> None:
    assert solver.comm is comm
    assert solver.pid == os.getppid() != os.getpid()
    assert solver.size == comm.size == 3
    (tmp_path / f"{comm.rank}").touch()
    comm.barrier()
    assert len(list(tmp_path.iterdir())) == 3
    assert solver.comm.broadcast(root if comm.rank == root else None, root) == root


@pytest.fixture
def impatient(comm: rmpi.Comm) -> str:
    with pytest.raises(rmpi.UsageError, match=r"comm\.rank is there only in the body of the test") as caught:
        comm.rank  # noqa: B018
    return str(caught.value) + repr(comm)


@pytest.mark.ranks(2)
def test_a_fixture_cannot_communicate(comm: rmpi.Comm, impatient: str) -> None:
    assert comm.rank >= 0
    assert impatient.endswith("fixtures have comm.size<Comm of 2 ranks that have not started>")


@pytest.mark.ranks(2)
def test_ranks_have_random_streams_of_their_own(comm: rmpi.Comm) -> None:
    assert len(set(comm.allgather((random.random(), float(np.random.random()))))) == 2


@pytest.mark.ranks(2)
def test_what_a_rank_prints_can_be_looked_at(comm: rmpi.Comm, capsys: pytest.CaptureFixture[str]) -> None:
    print("I am", comm.rank)
    assert capsys.readouterr().out == f"I am {comm.rank}\n"


@pytest.mark.ranks(2, start="exec")
def test_ranks_may_be_interpreters_of_their_own(comm: rmpi.Comm, request: pytest.FixtureRequest) -> None:
    words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    assert b"rmpi rank" in words[0] or b"birth" in b" ".join(words)
    assert comm.allreduce(1) == 2
    assert request.config.rootpath == Path(__file__).parent.parent.parent


@pytest.mark.ranks(2)
@pytest.mark.xfail(raises=ZeroDivisionError, strict=True)
def test_a_failure_may_be_expected_on_one_rank(comm: rmpi.Comm) -> None:
    comm.send(1 // comm.rank, 1 - comm.rank)
    comm.recv(1 - comm.rank)


# ---------------------------------------------------------------------------- tests of others' reports


def outcome_of(pytester: pytest.Pytester, body: str, *words: str) -> pytest.RunResult:
    """Run a file of tests; nothing of them may be left."""
    pytester.makepyfile("import os, signal, pytest, rmpi\n" + body)
    before = psutil.Process().children()
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *words)
    assert psutil.Process().children() == before
    return result


def test_the_rank_that_failed_first_is_reported_once_with_what_it_did_to_the_others(pytester: pytest.Pytester) -> None:
    result = outcome_of(
        pytester,
        """
import logging
@pytest.mark.ranks(4)
@pytest.mark.parametrize("x", [3, 5])
def test_one(comm, x):
    logging.warning("careful")
    print("hello from", comm.rank)
    numbers = {"x": x}
    if comm.rank == 2:
        assert numbers == {"x": 4}
    comm.barrier()
""",
        "-x",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*test_one?4 ranks-3?*",
            ">           assert numbers == {?x?: 4}",
            "E           AssertionError: assert {'x': 3} == {'x': 4}",
            "E             Differing items:",
            "E             {'x': 3} != {'x': 4}",
            "*- ranks -*",
            "rank 2 of 4: the failure above",
            "ranks 0-1, 3: *RankFailed: rank 2 on localhost failed: AssertionError: assert {'x': 3} == {'x': 4}",
            "*- Captured log of rank 2 call -*",
            "WARNING *careful",
            "*- Captured stdout call -*",
            "FAILED *test_one?4 ranks-3? - rank 2: AssertionError*",
        ]
    )
    assert result.stdout.str().count(">           assert numbers") == 1
    assert {line for line in result.outlines if "hello" in line and line[0] == "["} == {
        f"[{rank}] hello from {rank}" for rank in range(4)
    }


def test_failures_that_are_alike_are_shown_once_and_others_by_a_line(pytester: pytest.Pytester) -> None:
    result = outcome_of(
        pytester,
        """
@pytest.mark.ranks(3)
def test_alike(comm):
    assert comm.size == 4

@pytest.mark.ranks(2)
def test_different(comm):
    comm.barrier()
    assert comm.rank == 5

@pytest.mark.ranks(2)
def test_killed(comm):
    if comm.rank:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.barrier()
""",
    )
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["ranks 0-2 of 3: the failure above"])
    result.stdout.re_match_lines(
        [
            r"rank [01] of 2: the failure above",
            r"rank [01]: .*test_failures.*\.py:10: assert [01] == 5",
            r"rank 1 of 2: killed by SIGKILL",
            r"rank 1 of 2: the failure above",
            r"rank 0: rmpi.errors.RankFailed: rank 1 on localhost failed: killed by SIGKILL",
            r"FAILED .*test_alike\[3 ranks\] - ranks 0-2: assert 3 == 4",
            r"FAILED .*test_killed\[2 ranks\] - rank 1: killed by SIGKILL",
        ]
    )


def test_skips_and_expected_failures_are_what_they_are_elsewhere(pytester: pytest.Pytester) -> None:
    result = outcome_of(
        pytester,
        """
@pytest.mark.ranks(2)
def test_skipped(comm):
    pytest.skip("not today")

@pytest.mark.ranks(2)
def test_skipped_on_one_rank(comm):
    if comm.rank:
        pytest.skip("not here")

@pytest.mark.ranks(2)
@pytest.mark.xfail(reason="known")
def test_expected(comm):
    assert comm.rank == 5

@pytest.mark.ranks(2)
@pytest.mark.xfail(raises=KeyError)
def test_otherwise_than_expected(comm):
    assert comm.rank == 5

@pytest.mark.ranks(2)
@pytest.mark.xfail(strict=True)
def test_unexpected(comm):
    pass

@pytest.mark.ranks(1)
@pytest.mark.skipif(True, reason="never")
def test_never(comm):
    pass
""",
        "-rsxf",
    )
    result.assert_outcomes(passed=1, skipped=2, xfailed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["SKIPPED *: not today", "SKIPPED *: never", "XFAIL *test_expected?2 ranks? - known", "FAILED *otherwise*"]
    )


def test_a_hang_ends_with_every_ranks_stack(pytester: pytest.Pytester) -> None:
    result = outcome_of(
        pytester,
        """
@pytest.mark.ranks(3, timeout=1.5)
def test_hang(comm):
    comm.barrier()
    if comm.rank == 0:
        signal.pause()
    comm.recv(0)
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "3 ranks had not all ended after 1.5 s",
            "where rank 0 had got to:",
            '  File "*test_a_hang*.py", line 7 in test_hang',
            "where ranks 1-2 had got to:",
            '  File "*point_to_point.py", line * in recv',
            '  File "*test_a_hang*.py", line 8 in test_hang',
            "FAILED *test_hang?3 ranks? - 3 ranks had not all ended after 1.5 s",
        ]
    )
    assert "_pytest" not in result.stdout.str()


@pytest.mark.parametrize(
    ("mark", "words", "limit"),
    [
        ("ranks(1, timeout=7)", [], 7),
        ("ranks(1)", ["-p", "no:timeout"], 55),
        ("ranks(1)", ["-o", "timeout=10"], 9),
        ("ranks(1)", ["--timeout=0"], None),
        ("timeout(100)", ["--timeout=20"], 95),
    ],
)
def test_the_time_limit_is_that_of_pytest_timeout_less_some(
    mark: str, words: list[str], limit: float | None, pytester: pytest.Pytester
) -> None:
    from rmpi.testing.on_ranks import time_limit

    pytester.makepyfile(f"import pytest\n@pytest.mark.ranks(1)\n@pytest.mark.{mark}\ndef test_func(comm): pass")
    items, _ = pytester.inline_genitems("-p", "no:cacheprovider", *words)
    (item,) = items
    (mark_of_ranks, *_) = item.iter_markers("ranks")
    assert time_limit(item, mark_of_ranks) == limit


def test_misuse_is_explained(pytester: pytest.Pytester) -> None:
    result = outcome_of(
        pytester,
        """
@pytest.mark.ranks(2)
def test_without_argument(): pass

def test_without_mark(comm): pass
""",
    )
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        [
            "@pytest.mark.ranks is for test functions that have an argument `comm`",
            "the fixture comm is for tests marked @pytest.mark.ranks(2), or other numbers",
        ]
    )


def test_marks_that_say_nothing_sensible_are_refused(pytester: pytest.Pytester) -> None:
    marks = ["ranks", "ranks(0)", "ranks('2')", "ranks(True)", "ranks(2, start='spawn')", "ranks(2, limit=3)"]
    for number, mark in enumerate(marks):
        pytester.makepyfile(
            **{f"test_{number}": f"import pytest\n@pytest.mark.{mark}\ndef test_func(comm): pass"},
        )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=len(marks))
    lines = "\n".join(line for line in result.outlines if not line.startswith("ERROR "))
    assert lines.count("@pytest.mark.ranks takes numbers of ranks, at least one: not") == 4
    assert lines.count("not an option of @pytest.mark.ranks:") == 2


def test_output_is_shown_however_pytest_captures(pytester: pytest.Pytester) -> None:
    body = "@pytest.mark.ranks(1)\ndef test_func(comm):\n    os.write(1, b'out ')\n    print('and out')\n    assert 0"
    for word in ("-s", "--capture=sys", "--capture=fd"):
        result = outcome_of(pytester, body, word)
        result.stdout.fnmatch_lines(["*out and out"])


def test_the_report_of_an_interpreter_of_its_own_is_the_same(pytester: pytest.Pytester) -> None:
    result = outcome_of(
        pytester,
        """
@pytest.mark.ranks(2, start="exec")
def test_func(comm):
    value = comm.rank
    if value == 1:
        assert value == 4
    comm.barrier()
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [">           assert value == 4", "E           assert 1 == 4", "rank 1 of 2: the failure above"]
    )
    assert result.stdout.str().count("E           assert 1 == 4") == 1


def test_workers_of_xdist_have_ranks_of_their_own(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(
        "import pytest\n@pytest.mark.ranks(1, 2, 3)\ndef test_func(comm): assert comm.allreduce(1) == comm.size != 3"
    )
    result = pytester.runpytest_subprocess("-n", "2", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["FAILED *3 ranks? - ranks 0-2: *"])


def test_a_session_without_ranks_does_not_import_numpy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys\ndef test_func(): assert not {'numpy', 'rmpi.comm', 'rmpi.places'} & set(sys.modules)"
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest").assert_outcomes(passed=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ranks_end_with_the_session(number: int, pytester: pytest.Pytester) -> None:
    """However it ends: by Ctrl-C, or without a chance to do anything."""
    pytester.makepyfile(
        """
import os, signal, pytest
@pytest.mark.ranks(2)
def test_func(comm):
    print("pid", os.getpid())
    signal.pause()
"""
    )
    words = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=pytester.path) as session:
        assert session.stdout is not None
        said = (line for line in session.stdout if "] pid " in line)
        ranks = [os.pidfd_open(int(next(said).split()[-1])) for _ in range(2)]
        session.send_signal(number)
        for rank in ranks:
            assert select.select([rank], [], [], 20)[0]
            os.close(rank)
