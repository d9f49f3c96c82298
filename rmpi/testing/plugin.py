"""The pytest plugin: ``@pytest.mark.ranks(1, 2, 4)`` runs a test's body on that many ranks.

    @pytest.mark.ranks(2, 4)
    def test_sum(comm):
        assert comm.allreduce(comm.rank) == comm.size * (comm.size - 1) // 2

The test becomes one test per number, ``test_sum[2 ranks]``. Fixtures are set up once, in the pytest process; then it is
forked, each fork runs the body with ``comm`` as its communicator, makes the report that pytest would have made, asserts
explained, and sends that back. Here they become one report: that of the rank that failed first, with a line for what
this did to the others. With ``start="exec"`` each rank is a pytest of its own that runs just this test.

Nothing but names is imported here: a session without such tests does not import NumPy. Which functions a session calls:

    pytest_generate_tests      one test per number of ranks
    comm                       stands for the communicator until the forks have one (`rmpi.testing.stand_in`)
    pytest_pyfunc_call         runs the ranks instead of the body; in a rank, leaves the body to pytest
    pytest_runtest_makereport  puts the ranks' report in place of ours
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rmpi.comm.communicator import Comm

RANK_VARIABLE = "RMPI_TEST_RANK"
"""Set for the pytest of a rank that was not forked."""

MARK = (
    "ranks(*numbers, timeout=None, start='fork'): run the test on so many ranks, which its argument `comm` connects; "
    "timeout: seconds; start='exec': in fresh interpreters, for libraries that do not survive a fork"
)

_in_body = False
"""Whether a rank's body is being run: as if there was no mark."""

_is_fresh = False
"""Whether this process is a rank that was not forked."""


@contextmanager
def in_body() -> Iterator[None]:
    """Around the body of a test, in a rank."""
    global _in_body
    _in_body = True
    try:
        yield
    finally:
        _in_body = False


def pytest_configure(config: pytest.Config) -> None:
    global _is_fresh
    config.addinivalue_line("markers", MARK)
    _is_fresh = _is_fresh or bool(os.environ.pop(RANK_VARIABLE, ""))  # but what a test starts is not


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("ranks")
    if mark is None or "comm" not in metafunc.fixturenames:
        return
    numbers = mark.args
    wrong = [number for number in numbers if type(number) is not int or number < 1]
    if wrong or not numbers:
        pytest.fail(f"@pytest.mark.ranks takes numbers of ranks, at least one: not {wrong or 'none'}", pytrace=False)
    if mark.kwargs.keys() - {"timeout", "start"} or mark.kwargs.get("start", "fork") not in ("fork", "exec"):
        pytest.fail(f"not an option of @pytest.mark.ranks: {mark.kwargs}; it is {MARK}", pytrace=False)
    metafunc.parametrize("comm", numbers, indirect=True, ids=[name_of(number) for number in numbers])


def name_of(number: int) -> str:
    """The part of a test's id that says on how many ranks."""
    return "1 rank" if number == 1 else f"{number} ranks"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("ranks") is not None and _size(item) is None:
        pytest.fail("@pytest.mark.ranks is for test functions that have an argument `comm`", pytrace=False)


@pytest.fixture
def comm(request: pytest.FixtureRequest) -> Comm:
    """The communicator of a test marked ``@pytest.mark.ranks(n)``.

    In the test's body; other fixtures may hold it, and know its size, but are set up before there are ranks.
    """
    size = getattr(request, "param", None)
    if size is None:
        pytest.fail("the fixture comm is for tests marked @pytest.mark.ranks(2), or other numbers", pytrace=False)
    if _is_fresh:
        from rmpi.comm.bootstrap import init

        return init()
    from rmpi.testing.stand_in import StandIn

    return StandIn(size)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    size = _size(pyfuncitem)
    if size is None or _in_body:
        return None
    from rmpi.testing import on_ranks

    if _is_fresh:
        on_ranks.be_fresh_rank(pyfuncitem)
    else:
        on_ranks.run(pyfuncitem, size)
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _in_body or _size(item) is None:
        return report
    from rmpi.testing import on_ranks

    if call.when == "call" and not _is_fresh:
        on_ranks.put_in_place(item, report)
    elif call.when == "setup" and _is_fresh and call.excinfo is not None:
        on_ranks.tell_of_setup(item, report, call.excinfo.value)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus() -> tuple[str, str, str] | None:
    """The pytest of a rank does not say how the test went: it tells the session."""
    return ("", "", "") if _is_fresh else None


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """But it says what no report will: that there is no such test."""
    if _is_fresh and report.failed:
        print(report.longreprtext, file=sys.stderr)


def _size(item: pytest.Item) -> int | None:
    """On how many ranks a test runs; None if it is none of ours."""
    if item.get_closest_marker("ranks") is None:
        return None
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    size = parameters.get("comm")
    return size if isinstance(size, int) else None
