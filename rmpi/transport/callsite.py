"""Where the program called us, for texts that its author reads. Made only when such a text is."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

PACKAGE = f"{Path(__file__).resolve().parent.parent}/"
"""What the file names of this package begin with."""


def call_site() -> tuple[str, str]:
    """The function of this package that the program has called in this thread, and ``file:line`` of the call.

    A thread that was started by this package is one of the package's own functions all the way up: then that.
    """
    inner: FrameType = sys._getframe(1)
    outer = inner.f_back
    while outer is not None and outer.f_code.co_filename.startswith(PACKAGE):
        inner, outer = outer, outer.f_back
    at = outer or inner
    return inner.f_code.co_name, f"{at.f_code.co_filename}:{at.f_lineno}"
