"""`docs/mapreduce.md`: its code runs, and its table names tests that there are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/mapreduce.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_table_names_tests_that_there_are(file, name):
    assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_the_table_has_every_row_and_a_test_in_each():
    rows = re.findall(r"^\| (\d\d) \|.*`[\w/]+\.py::\w+` \|$", PAGE, re.MULTILINE)
    assert rows == ["87", "88", "89", "90", "90", "91", "92", "93", "94", "95"]


def test_the_code_of_the_page_runs(tmp_path):
    """Blocks that begin with the name of a file are that; all others together are one program."""
    program = ""
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        file = re.match(r"# (\w+\.py)\n", block)
        if file:
            (tmp_path / file[1]).write_text(block)
        else:
            program += block
    (tmp_path / "page.py").write_text(program)
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the reducer 'words:ad_up' does not exist: words has no 'ad_up'" in done.stdout
    assert "ZeroDivisionError: division by zero" in done.stdout
