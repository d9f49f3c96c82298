"""What the router hears from a rank besides messages: how it crashes, or what the function it runs returns.

An uncaught exception of a rank goes to its router as text instead of to stderr, so that the launcher can
print the root cause once and last, and fold what other ranks say about it. The text is what the program's
author would have seen without us: it begins at the program's first frame, and an error of ours ends where the
program called us. If the router cannot be reached, Python's own hook prints as usual.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rmpi.errors import PeerLost, RmpiError
from rmpi.places import program
from rmpi.places.control import Control
from rmpi.places.messages import Crashed, Returned

PIECE = 128 << 10
"""Bytes of one piece of what a function has returned; a packet of a control socket holds it."""

TEXT_LIMIT = 64 << 10
"""Characters of a traceback that travel; from a longer one the middle is cut out."""

STARTERS = (program.__file__, str(Path(program.__file__).with_name("hosting.py")))
"""Whose last frame is right above the user's."""

_PACKAGE = str(Path(__file__).resolve().parent.parent) + "/"


class Reporter:
    """Reports the exception that ends this process, and remembers that there was one."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.crashed = False
        self._runs = False

    def install(self) -> None:
        """Take the place of Python's own exception hook; one that the program has set stays.

        For programs that we do not run ourselves: there only the hook tells how they end.
        """
        if sys.excepthook is sys.__excepthook__ and not self._runs:
            sys.excepthook = self._hook

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around the program, where we run it: report the exception that leaves it, and only that one.

        A program may call the hook itself and go on; an interactive console does.
        """
        self._runs = True
        try:
            yield
        except SystemExit:
            raise
        except BaseException as error:
            if sys.excepthook is sys.__excepthook__:
                sys.excepthook = lambda *_: None  # the interpreter's last words are said by us
                self._hook(type(error), error, error.__traceback__)
            else:
                self.crashed = True
            raise

    def returned(self, data: bytes) -> None:
        """Hand what the function of this process returned, or raised, to the owner of the job; wait until it is out."""
        view = memoryview(data)
        for start in range(0, len(data) or 1, PIECE):
            piece = view[start : start + PIECE]
            self._control.send(Returned(bytes(piece), start + PIECE >= len(data)))
            self._control.drain()

    def _hook(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self.crashed = True
        trace = own_frames(trace)
        if self._control.closed:  # by the router, or because this is a fork of a rank
            sys.__excepthook__(kind, error, trace)
            return
        text = shortened(traceback_text(error, trace))
        self._control.send(Crashed(kind.__name__, text, issubclass(kind, PeerLost)))
        self._control.drain()


def own_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the program's first frame on: without those that started it, or the call of a place."""
    own = step = trace
    while step is not None:
        if step.tb_frame.f_code.co_filename in STARTERS:
            own = step.tb_next
        step = step.tb_next
    while own is not None and own is not trace and own.tb_frame.f_globals.get("__name__") == "runpy":
        own = own.tb_next
    return own


def traceback_text(error: BaseException, trace: TracebackType | None) -> str:
    """As Python prints it, where the encoding knows no surrogates; of our own errors without our own frames."""
    report = traceback.TracebackException(type(error), error, trace)
    _leave_out_ours(report, error, set())
    return "".join(report.format()).encode(errors="backslashreplace").decode()


def _leave_out_ours(report: traceback.TracebackException | None, error: BaseException | None, seen: set[int]) -> None:
    """Take the last frames inside this package from our errors and Ctrl-C, and likewise from their causes."""
    if report is None or error is None or id(error) in seen:
        return
    seen.add(id(error))
    if isinstance(error, (RmpiError, KeyboardInterrupt)):
        while len(report.stack) > 1 and report.stack[-1].filename.startswith(_PACKAGE):
            report.stack.pop()
    _leave_out_ours(report.__cause__, error.__cause__, seen)
    _leave_out_ours(report.__context__, error.__context__, seen)
    if report.exceptions and isinstance(error, BaseExceptionGroup):
        for part, each in zip(report.exceptions, error.exceptions, strict=False):
            _leave_out_ours(part, each, seen)


def shortened(text: str) -> str:
    if len(text) <= TEXT_LIMIT:
        return text
    half = TEXT_LIMIT // 2
    return f"{text[:half]}\n  … {len(text) - 2 * half} characters left out …\n{text[-half:]}"
