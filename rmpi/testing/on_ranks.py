"""One test on ranks: what the ranks do, and how their reports become one. The plugin's heavy half.

In a rank the body is called by pytest's own hooks, so whatever plugins do to a body is done; what comes of it is
made a report by pytest's own hooks too, which know about asserts, skips and expected failures, and travels as
the plain data that pytest has for this purpose (pytest-xdist uses it as well).

The one report that is shown is that of the rank which failed first by itself. Behind its traceback stands a section
with a line per group of other ranks: those that failed alike, those that failed otherwise, and those whose only failure
was the end of another rank.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pytest
from _pytest._code.code import ExceptionRepr, ReprEntryNative, ReprExceptionInfo, ReprFileLocation, ReprTraceback

from rmpi.comm.communicator import Comm
from rmpi.comm.launch import Plan, RankFailure
from rmpi.comm.placement import place
from rmpi.errors import PeerLost
from rmpi.places.hosts import HostSpec
from rmpi.places.parcels import pack_outcome
from rmpi.places.place import reporter_of_this_process
from rmpi.places.printing import write_line
from rmpi.testing import plugin
from rmpi.testing.forks import SETTLE, STACKS_VARIABLE, Course, Run, Stacks, run_forks, write_stack_when_asked

DEFAULT_LIMIT = 60.0
"""Seconds for a test on ranks, if nothing else says so."""

MARGIN = 5.0
"""Seconds, or a tenth of the limit if that is less, by which ranks are ended before pytest-timeout ends the test."""

IN_MEMORY = ("capsys", "capsysbinary")
"""Fixtures that put something of their own in place of ``sys.stdout``, which the body looks into."""


VERDICT = pytest.StashKey[pytest.TestReport | None]()
"""The report of a test's ranks, until it takes the place of ours."""


class OnRanks(Exception):
    """The test failed on its ranks. Its report is theirs."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a rank has to tell of the test.

    Attributes:
        report: As pytest serializes it.
        consequence: Whether it failed because another rank ended.
        logged: What it logged.
    """

    rank: int
    report: dict[str, Any]
    consequence: bool
    logged: str

    @property
    def outcome(self) -> str:
        return str(self.report["outcome"])

    @property
    def expected(self) -> bool:
        """Whether it failed as ``xfail`` says."""
        return self.outcome == "skipped" and "wasxfail" in self.report

    def crash(self) -> tuple[str, str]:
        """Where it failed, and the first line of the message; what follows may well differ from rank to rank."""
        longrepr = self.report["longrepr"]
        crash = longrepr.get("reprcrash") if isinstance(longrepr, dict) else None
        if crash is None:
            return "", str(longrepr).strip().rpartition("\n")[2]
        return f"{crash['path']}:{crash['lineno']}", str(crash["message"]).partition("\n")[0]


# ------------------------------------------------------------------------------------------ in a rank


def be_rank_of(item: pytest.Function, comm: Comm) -> tuple[bytes, BaseException | None]:
    """Run the body; what is to be told of it, and what this rank failed with."""
    with plugin.in_body(), _logged(item) as log:
        call = pytest.CallInfo.from_call(partial(item.ihook.pytest_pyfunc_call, pyfuncitem=item), "call")
        report = item.ihook.pytest_runtest_makereport(item=item, call=call)
    error = call.excinfo.value if call.excinfo is not None else None
    failed = error is not None and not isinstance(error, pytest.skip.Exception)
    return _packed(item, comm.rank, report, error, log.getvalue()), error if failed else None


def _packed(
    item: pytest.Item, rank: int, report: pytest.TestReport, error: BaseException | None, logged: str = ""
) -> bytes:
    data = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
    return pack_outcome(pickle.dumps(Told(rank, data, isinstance(error, PeerLost), logged)))


def _be_fork(item: pytest.Function, streams: tuple[TextIO, TextIO] | None, comm: Comm) -> tuple[bytes, Any]:
    if streams is not None:
        sys.stdout, sys.stderr = streams
    stand_in: Any = item.funcargs["comm"]
    stand_in.become(comm)
    return be_rank_of(item, comm)


@contextmanager
def _logged(item: pytest.Item) -> Iterator[io.StringIO]:
    """Collect what is logged, as pytest does: its own collection stays behind in the rank."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(logging.Formatter(item.config.getini("log_format"), item.config.getini("log_date_format")))
    logging.getLogger().addHandler(handler)
    try:
        yield log
    finally:
        logging.getLogger().removeHandler(handler)


# ---------------------------------------------------------------------- in a rank that was not forked

REWRITING = "ignore:Module already imported so cannot be rewritten; rmpi:pytest.PytestAssertRewriteWarning"
"""pytest would explain our own asserts too, and says so when it comes too late. A rank has us before it has pytest."""

PROGRAM = "from rmpi.testing.on_ranks import main; main()"


def main() -> None:
    """A pytest for one test, as one rank of it. Arguments: where to import from, as JSON, and those of pytest."""
    sys.path[:0] = [entry for entry in json.loads(sys.argv[1]) if entry not in sys.path]
    write_stack_when_asked(os.environ.pop(STACKS_VARIABLE), int(os.environ["RMPI_RANK"]))
    sys.exit(pytest.main(sys.argv[2:]))


def be_fresh_rank(item: pytest.Function) -> None:
    """Run the body, tell, and raise what it raises."""
    comm: Any = item.funcargs["comm"]
    data, error = be_rank_of(item, comm)
    _tell(data, error)


def tell_of_setup(item: pytest.Item, report: pytest.TestReport, error: BaseException) -> None:
    """A fixture failed in this rank alone."""
    _tell(_packed(item, int(os.environ["RMPI_RANK"]), report, error), None)


def _tell(data: bytes, error: BaseException | None) -> None:
    reporter = reporter_of_this_process()
    assert reporter is not None, "this is a rank"
    reporter.returned(data)
    if error is not None:
        with reporter.running():
            raise error


# ------------------------------------------------------------------------------------ in the session


def run(item: pytest.Function, size: int) -> None:
    """Run the ranks. Raises what stands for their failure until `put_in_place` has the report.

    Raises:
        OnRanks: The test failed.
    """
    mark = item.get_closest_marker("ranks")
    assert mark is not None
    limit = time_limit(item, mark)
    show = partial(_show, size)
    if mark.kwargs.get("start") == "exec":
        ended = _run_fresh(item, size, limit, show)
    else:
        streams = (sys.stdout, sys.stderr) if set(IN_MEMORY) & set(item.fixturenames) else None
        ended = run_forks(size, partial(_be_fork, item, streams), limit, show)
    told = {rank: said for rank in range(size) if (said := _told(ended, rank)) is not None}
    for rank, said in told.items():
        if said.logged:
            item.add_report_section("call", f"log of rank {rank}", said.logged)
    verdict = item.stash[VERDICT] = judge(item, size, ended, told, limit)
    if verdict is None or verdict.outcome == "passed":
        return
    if verdict.outcome == "skipped":
        raise (pytest.xfail.Exception if hasattr(verdict, "wasxfail") else pytest.skip.Exception)("on ranks")
    raise OnRanks("the test failed on its ranks")


def put_in_place(item: pytest.Item, report: pytest.TestReport) -> None:
    """Make the report of the session's process that of the ranks."""
    verdict = item.stash.get(VERDICT, None)
    if verdict is None:
        return
    del item.stash[VERDICT]
    report.outcome, report.longrepr = verdict.outcome, verdict.longrepr
    if hasattr(verdict, "wasxfail"):
        report.wasxfail = verdict.wasxfail
    elif hasattr(report, "wasxfail"):
        del report.wasxfail


def time_limit(item: pytest.Item, mark: pytest.Mark) -> float | None:
    """Seconds for the ranks: as the mark says, or a little less than pytest-timeout would take; None for no limit."""
    if mark.kwargs.get("timeout") is not None:
        return float(mark.kwargs["timeout"])
    limit = _of_pytest_timeout(item)
    if limit is None:
        limit = DEFAULT_LIMIT
    return limit - min(MARGIN, limit / 10) if limit > 0 else None


def _of_pytest_timeout(item: pytest.Item) -> float | None:
    """What pytest-timeout would take, in the order in which it looks."""
    config = item.config
    if not config.pluginmanager.hasplugin("timeout"):
        return None
    mark = item.get_closest_marker("timeout")
    given = [*mark.args[:1], mark.kwargs.get("timeout")] if mark is not None else []
    given += [config.getoption("timeout", None), os.environ.get("PYTEST_TIMEOUT"), config.getini("timeout")]
    return next((float(each) for each in given if each not in (None, "")), None)


def _show(size: int, rank: int, stream: int, line: str) -> None:
    write_line(rank, stream, line if size == 1 else f"[{rank}] {line}")


def _show_written(show: Callable[[int, int, str], object], rank: int, stream: int, line: str) -> None:
    """Without the ends of the lines that the pytests of ranks do not write."""
    if line:
        show(rank, stream, line)


def _told(ended: Run, rank: int) -> Told | None:
    data = ended.told.get(rank)
    return pickle.loads(data) if isinstance(data, bytes) else None


def _run_fresh(item: pytest.Function, size: int, limit: float | None, show: Callable[[int, int, str], object]) -> Run:
    """Run the ranks as pytests of their own."""
    with Stacks(size) as stacks:
        plan = Plan(
            place([HostSpec("localhost")], size, cores=size),
            kind="code",
            target=PROGRAM,
            argv=("pytest", json.dumps([entry or str(Path.cwd()) for entry in sys.path]), *_words(item)),
            directory=str(item.config.invocation_params.dir),
            environment={plugin.RANK_VARIABLE: "1", STACKS_VARIABLE: stacks.names},
            stdin_rank=-1,
            settle=SETTLE,
            kill_grace=1.0,
            fork=False,
        )
        return Course(plan, stacks, limit, partial(_show_written, show)).run()


def _words(item: pytest.Function) -> list[str]:
    """The command line of a pytest that runs this test as we would, and says nothing but what the test says."""
    config = item.config
    words = [f"{item.path}::{item.nodeid.partition('::')[2]}", f"--rootdir={config.rootpath}"]
    words += ["-qq", "--no-header", "--no-summary", "--capture=no", f"--import-mode={config.getoption('importmode')}"]
    words += [f"--tb={config.getoption('tbstyle')}", *(["--showlocals"] if config.getoption("showlocals") else [])]
    words += ["-o", f"verbosity_assertions={config.get_verbosity(pytest.Config.VERBOSITY_ASSERTIONS)}"]
    words += ["-c", str(config.inipath)] if config.inipath is not None else []
    words += [word for name in config.getoption("plugins") or () for word in ("-p", name)]
    words += [word for pair in config.getoption("override_ini") or () for word in ("-o", pair)]
    words += [word for text in config.getoption("pythonwarnings") or () for word in ("-W", text)]
    words += ["-W", REWRITING, "-p", "no:cacheprovider"]
    for name, word in (("timeout", "--timeout=0"), ("xdist", "-n0")):
        words += [word] if config.pluginmanager.hasplugin(name) else []
    return words


# ---------------------------------------------------------------------------------- the one report


def judge(
    item: pytest.Item, size: int, ended: Run, told: Mapping[int, Told], limit: float | None
) -> pytest.TestReport | None:
    """The report of all ranks together, made of theirs; None if there is nothing to be added to ours."""
    if ended.stacks is not None:
        message = f"{size} ranks had not all ended after {limit:g} s" if size > 1 else f"not ended after {limit:g} s"
        return _plain(item, message, f"{message}\n\n{_where(ended.stacks)}")
    failures = ended.outcome.failures
    if failures:
        return _failed(item, size, _cause(failures, told), failures, told)
    if ended.outcome.reason:
        return _plain(item, ended.outcome.reason, ended.outcome.reason)
    if all(said.outcome == "skipped" for said in told.values()):
        return _opened(item, told[0])
    return None


def _cause(failures: Sequence[RankFailure], told: Mapping[int, Told]) -> RankFailure:
    """Of the ranks that failed by themselves the first that was not expected to, or the first."""
    own = [each for each in failures if not (each.stopped or each.consequence or _is_consequence(each, told))]
    unexpected = [each for each in own if each.rank not in told or not told[each.rank].expected]
    return (unexpected or own or list(failures))[0]


def _is_consequence(failure: RankFailure, told: Mapping[int, Told]) -> bool:
    return failure.rank in told and told[failure.rank].consequence


def _failed(
    item: pytest.Item, size: int, cause: RankFailure, failures: Sequence[RankFailure], told: Mapping[int, Told]
) -> pytest.TestReport:
    said = told.get(cause.rank)
    if said is None:
        text = cause.traceback or cause.cause
        report = _plain(item, cause.cause, f"rank {cause.rank} of {size}: {text.rstrip()}")
        alike = [cause.rank]
    else:
        report = _opened(item, said)
        alike = [rank for rank, each in told.items() if (each.outcome, each.crash()) == (said.outcome, said.crash())]
    if size > 1 and isinstance(report.longrepr, ExceptionRepr):
        others = [each for each in failures if each.rank not in alike]
        _label(report.longrepr, size, _ranks(alike), _groups(others, told))
    return report


def _label(longrepr: ExceptionRepr, size: int, ranks: str, others: Mapping[str, list[int]]) -> None:
    """Say whose failure it is, behind the traceback and in the summary."""
    lines = [f"{ranks} of {size}: the failure above"]
    lines += [f"{_ranks(each)}: {text}" for text, each in others.items()]
    longrepr.addsection("ranks", "\n".join(lines), "-")
    if longrepr.reprcrash is not None:
        longrepr.reprcrash.message = f"{ranks}: {longrepr.reprcrash.message}"


def _groups(failures: Sequence[RankFailure], told: Mapping[int, Told]) -> dict[str, list[int]]:
    """The ranks that failed otherwise, by a line that says how."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for failure in failures:
        where, message = told[failure.rank].crash() if failure.rank in told else ("", failure.cause)
        shown = message if not where or _is_consequence(failure, told) else f"{where}: {message}"
        groups["ended, because others had failed" if failure.stopped else shown].append(failure.rank)
    return groups


def _opened(item: pytest.Item, said: Told) -> pytest.TestReport:
    """A rank's report, as it was before it travelled."""
    data = deepcopy(said.report)  # which that function takes apart
    report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
    assert isinstance(report, pytest.TestReport)
    return report


def _plain(item: pytest.Item, message: str, text: str) -> pytest.TestReport:
    """A failure that no rank could make a report of."""
    path, line, _ = item.reportinfo()
    traceback = ReprTraceback([ReprEntryNative([text + "\n"])], None, style="native")
    longrepr = ReprExceptionInfo(traceback, ReprFileLocation(str(path), (line or 0) + 1, message))
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", longrepr, "call")


def _where(stacks: Mapping[int, str]) -> str:
    """Where ranks were when their time was up; equal stacks once."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for rank, stack in stacks.items():
        groups[re.sub("0x[0-9a-f]+", "", stack)].append(rank)
    return "\n".join(f"where {_ranks(ranks)} had got to:\n{stacks[ranks[0]]}\n" for ranks in groups.values())


def _ranks(ranks: Sequence[int]) -> str:
    """``rank 2``, ``ranks 0-2, 5``."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"
