"""One job as the command runs it: signals in, output and exit code out.

Signals are forwarded as themselves. The first Ctrl-C is a KeyboardInterrupt in every rank, the second asks
them to end, the third kills. The exit code is 130, 143 or 129 when the launcher was told to end, 124 when
time ran out, 141 when nobody reads the output any more, and else what the rank that failed first says.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Sequence
from functools import partial
from types import FrameType

from launcher.ending import ENDING, EndedByUser, handled
from launcher.screen import Keyboard, Screen, complain
from launcher.show import Display, Failure, failure_block
from rmpi.comm.launch import Job, Outcome, Plan, RankFailure
from rmpi.deadline import now
from rmpi.places.boot import Booter
from rmpi.places.ignition import Ignition
from rmpi.places.wording import ranks_text

TIME_LIMIT = 124
"""Exit code when the job took longer than ``--timeout``; that of timeout(1)."""

NOBODY_READS = 128 + signal.SIGPIPE

UNWRITABLE = 125
"""Exit code when the output cannot be written: that of every failure of our own."""

LAST_CHANCE = 0.5
"""Seconds for ranks to say where they were when time was up, before they are asked to end by SIGTERM."""

STOP_DELAY = 0.05
"""Seconds for the threads of ssh sessions to pass Ctrl-Z on, before this process stops too."""

LAST_WORDS = 2.0
"""Seconds to write what is left of the output of a job that was ended; a terminal may be stopped."""

PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT)


class Run:
    """A job with the terminal around it.

    Args:
        tag: Whether lines are labelled with their rank.
        timeout: Seconds the job may take once its ranks have started; None for no limit.
        quiet: Whether to keep warnings to oneself.
        ignition: This machine's spawner, if it was started already, for just this plan.
    """

    def __init__(
        self,
        plan: Plan,
        booter: Callable[[], Booter],
        own_names: Sequence[str],
        *,
        tag: bool,
        timeout: float | None,
        quiet: bool,
        verbose: int,
        ignition: Ignition | None = None,
    ) -> None:
        self._plan = plan
        self._timeout = timeout
        self._quiet = quiet
        self._verbose = verbose
        self._terminal = os.isatty(1) and os.isatty(2)
        hosts = len(plan.placement.hosts) > 1
        self._display = Display(
            tag=tag, hosts=hosts, terminal=self._terminal, width=_width(), alone=plan.placement.size == 1 and not tag
        )
        self._job = Job(plan, self, booter, own_names, ignition)
        self._screen = Screen(lambda error: self._job.loop.post(partial(self._nobody_reads, error)))
        self._keyboard = Keyboard(lambda data: self._job.loop.post(partial(self._job.feed, data)))
        self._interrupts = 0
        self._progress_shown = False

    def run(self) -> int:
        """Run the job; the exit code.

        Raises:
            LaunchError: It could not be started.
        """
        handlers = {number: signal.signal(number, self._on_signal) for number in filter(handled, _HANDLED)}
        began = now()
        try:
            outcome = self._job.run(started=self._started)
            if self._verbose:
                self.warn(f"the job ended after {now() - began:.1f} s, exit code {outcome.code}")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._write(self._display.close())
            self._screen.close(LAST_WORDS if self._job.outcome.reason else None)
        if self._screen.error is not None and not outcome.code:  # the reader left when all ranks had ended
            outcome.code, outcome.reason = _unwritable(self._screen.error)
        self._report(outcome)
        return outcome.code

    def _started(self) -> None:
        self._clear_progress()
        if self._verbose:
            placement = self._plan.placement
            hosts = ", ".join(dict.fromkeys(host.name for host in placement.hosts))
            self.warn(f"{placement.size} ranks started on {hosts}")
        if self._timeout is not None:
            self._job.loop.call_later(self._timeout, self._time_is_up)
        self._keyboard.start()

    # ----------------------------------------------------------------------------------- signals

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """In the main thread, between two steps of the loop: only post."""
        if not self._job.running and number in ENDING:
            raise EndedByUser(number)
        self._job.loop.post(partial(self._act_on, number))

    def _act_on(self, number: int) -> None:
        if number == signal.SIGINT:
            self._interrupted()
        elif number in (signal.SIGTERM, signal.SIGHUP):
            self._job.end(128 + number, f"ended by {signal.Signals(number).name}")
            self._job.terminate(number)
        elif number == signal.SIGTSTP:
            self._job.signal(signal.SIGSTOP)  # a rank has no terminal that could continue it after SIGTSTP
            self._job.loop.call_later(STOP_DELAY, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        else:
            self._job.signal(number)

    def _interrupted(self) -> None:
        self._interrupts += 1
        self._job.end(128 + signal.SIGINT, "interrupted")
        if self._interrupts == 1:
            self._job.ask(signal.SIGINT)
            self.warn("interrupted: waiting for the ranks to end; press Ctrl-C again to terminate them")
        elif self._interrupts == 2:
            self._job.terminate()
            self.warn("terminating; press Ctrl-C again to kill")
        else:
            self._job.kill()

    def _time_is_up(self) -> None:
        """Have every rank say where it is, as for Ctrl-C, and end it."""
        self._job.end(TIME_LIMIT, f"time is up: {self._timeout:g} s have passed (--timeout)")
        self._job.ask(signal.SIGINT)
        self._job.loop.call_later(LAST_CHANCE, self._job.terminate)

    def _nobody_reads(self, error: OSError) -> None:
        self._job.end(*_unwritable(error))
        self._job.terminate()

    # ----------------------------------------------------------------------------------- watching

    def output(self, rank: int, host: str, stream: int, data: bytes, shown: Callable[[], None]) -> None:
        if data:
            self._write(self._display.feed(rank, host, stream, data), shown)
        else:
            self._write(self._display.finish(rank, stream))

    def _write(self, writes: Sequence[tuple[int, bytes]], shown: Callable[[], None] | None = None) -> None:
        for fd, data in writes:
            self._screen.write(fd, data)
        if shown is not None:
            self._screen.write(1, b"", shown)

    def input_taken(self) -> None:
        self._keyboard.more()

    def warn(self, text: str) -> None:
        if not self._quiet:
            self._clear_progress()
            self._write(self._display.say(f"rmpi-run: {text}\n".encode()))

    def note(self, text: str) -> None:
        if self._verbose:
            self.warn(text)

    def progress(self, text: str) -> None:
        if os.isatty(2) and not self._quiet:
            self._progress_shown = True
            self._write([(2, f"\r\x1b[K{text[: _width() - 1]}".encode())])
        elif self._verbose:
            self.warn(text)

    def overdue(self, ranks: Collection[int]) -> None:
        noun = "rank" if len(ranks) == 1 else "ranks"
        self.warn(f"{noun} {ranks_text(ranks)} did not end within {self._plan.kill_grace:g} s: killed")

    def _clear_progress(self) -> None:
        if self._progress_shown:
            self._progress_shown = False
            self._write([(2, b"\r\x1b[K")])

    # ------------------------------------------------------------------------------------ the end

    def _report(self, outcome: Outcome) -> None:
        """The last thing on the screen: why the job did not end well."""
        if outcome.code == NOBODY_READS:
            return
        text = ""
        if outcome.failures and not outcome.reason:
            root, *others = map(_failure, outcome.failures)
            text = failure_block(root, others, self._plan.placement.size)
        elif outcome.reason:
            text = self._ended_early(outcome)
        complain(text)

    def _ended_early(self, outcome: Outcome) -> str:
        """What ranks said when they were interrupted, folded; then why they were."""
        told = [
            _failure(each) for each in outcome.failures if each.traceback and not (each.stopped or each.consequence)
        ]
        block = failure_block(told[0], told[1:], self._plan.placement.size) if told else ""
        if any(outcome.reason in (each.traceback or "") for each in outcome.failures):
            return block  # a rank has raised what others left too early to notice
        return f"{block}rmpi-run: {outcome.reason}\n"


_HANDLED = (*ENDING, signal.SIGTSTP, *PASSED_ON)


def _unwritable(error: OSError) -> tuple[int, str]:
    """Exit code and reason when standard output cannot be written."""
    if isinstance(error, BrokenPipeError):
        return NOBODY_READS, "nobody reads the output"
    return UNWRITABLE, f"cannot write to standard output: {error.strerror}"


def _failure(failure: RankFailure) -> Failure:
    return Failure(failure.rank, failure.host, failure.cause, failure.traceback, failure.stopped)


def _width() -> int:
    try:
        return os.get_terminal_size(1).columns
    except OSError:
        return 80
