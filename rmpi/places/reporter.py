"""What the router hears from a rank besides messages: how it crashes.

An uncaught exception of a rank goes to its router as text instead of to stderr, so that the launcher can
print the root cause once and last, and fold what other ranks say about it. Frames of this package below
the program are left out. If the router cannot be reached, Python's own hook prints as usual.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import TracebackType

from rmpi.errors import RankFailed
from rmpi.places.control import Control
from rmpi.places.messages import Crashed

TEXT_LIMIT = 64 << 10
"""Characters of a traceback that travel; from a longer one the middle is cut out."""

_PACKAGE = str(Path(__file__).resolve().parent.parent)


class Reporter:
    """Reports the exception that ends this process, and remembers that there was one."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.crashed = False

    def install(self) -> None:
        """Take the place of Python's own exception hook; a hook that the program sets itself goes first."""
        sys.excepthook = self._report

    def _report(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self.crashed = True
        text = "".join(traceback.format_exception(kind, error, own_frames(trace)))
        self._control.send(Crashed(kind.__name__, shortened(text), issubclass(kind, RankFailed)))
        if self._control.closed:
            sys.__excepthook__(kind, error, trace)


def own_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the program's first frame on: without those that started it."""
    while trace is not None and _starts_program(trace.tb_frame.f_code.co_filename, trace):
        trace = trace.tb_next
    return trace


def _starts_program(file: str, trace: TracebackType) -> bool:
    module = trace.tb_frame.f_globals.get("__name__")
    starter = file == "<string>" and "main" in trace.tb_frame.f_globals and trace.tb_next is not None
    return starter or module == "runpy" or file.startswith(_PACKAGE + "/places")


def shortened(text: str) -> str:
    if len(text) <= TEXT_LIMIT:
        return text
    half = TEXT_LIMIT // 2
    return f"{text[:half]}\n  … {len(text) - 2 * half} characters left out …\n{text[-half:]}"
