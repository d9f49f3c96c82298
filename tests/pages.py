"""What tests of the pages in ``docs/`` share: the tests that a page names, and its code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def read(page: str) -> str:
    """The text of a page: ``"places.md"``."""
    return (TESTS.parent / "docs" / page).read_text(encoding="utf-8")


def named_tests(text: str) -> list[tuple[str, str]]:
    """The tests that it names: file and function."""
    return sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", text)))


def has_test(file: str, name: str) -> bool:
    return f"def {name}(" in (TESTS / file).read_text(encoding="utf-8")


def run_code(text: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run its code: blocks that begin with the name of a file are that; all others together are one program."""
    program = ""
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        file = re.match(r"# (\w+\.py)\n", block)
        if file:
            (directory / file[1]).write_text(block)
        else:
            program += block
    (directory / "page.py").write_text(program)
    return subprocess.run([sys.executable, "page.py"], cwd=directory, capture_output=True, text=True, check=False)
