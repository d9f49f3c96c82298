"""`docs/mapreduce.md`: its code runs, and its table names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pages
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = pages.read("mapreduce.md")
NAMED = pages.named_tests(PAGE)


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_table_names_tests_that_there_are(file, name):
    assert pages.has_test(file, name)


def test_the_table_has_every_row_and_a_test_in_each():
    rows = re.findall(r"^\| (\d\d) \|.*`[\w/]+\.py::\w+` \|$", PAGE, re.MULTILINE)
    assert rows == ["87", "88", "89", "90", "90", "91", "92", "93", "94", "95"]


def test_the_code_of_the_page_runs(tmp_path):
    done = pages.run_code(PAGE, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the reducer 'words:ad_up' does not exist: words has no 'ad_up'" in done.stdout
    assert "ZeroDivisionError: division by zero" in done.stdout
