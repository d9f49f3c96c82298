"""What dpfw does, done here: the rows of ``docs/taskfarm.md``, its code, and the examples."""

import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest

from rmpi import taskfarm

ROOT = Path(__file__).resolve().parents[2]
PAGE = pages.read("taskfarm.md")
NAMED = pages.named_tests(PAGE)

SOON = 20
"""Seconds in which anything happens that will."""


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_table_names_tests_that_there_are(file, name):
    assert pages.has_test(file, name)


def test_the_table_has_a_test_in_every_row():
    _, _, table = PAGE.partition("| dpfw | rmpi | difference | shown by `tests/` |\n|---|---|---|---|\n")
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 14
    assert [row for row in rows if "::" not in row] == []


def test_the_code_of_the_page_runs(tmp_path):
    done = pages.run_code(PAGE, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def printed_by(example, *words, cwd):
    argv = [sys.executable, str(ROOT / "examples/taskfarm" / example), *words]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_basic_example_prints_five(tmp_path):
    assert printed_by("basic.py", cwd=tmp_path) == "5\n"


def test_the_parallel_example(tmp_path):
    assert printed_by("parallel.py", cwd=tmp_path) == "[3, 10]\n"


def test_the_generator_example(tmp_path):
    assert printed_by("generator.py", cwd=tmp_path) == "1\n2\n"


def test_a_worker_asks_while_it_works(tmp_path):
    assert printed_by("dialogue.py", cwd=tmp_path) == "cos(x) = x at 0.739085133\n"


def test_a_picture_is_made_of_rows_by_workers(tmp_path):
    said = printed_by("mandelbrot.py", "--size", "120", "--workers", "2", cwd=tmp_path)
    assert re.fullmatch(r"120 rows by 2 workers in [\d.]+ s; 16\.\d% is inside; wrote mandelbrot\.pgm\n", said)
    assert len((tmp_path / "mandelbrot.pgm").read_bytes()) == len(b"P5 120 120 255\n") + 120 * 120


@pytest.fixture(scope="module")
def master():
    with taskfarm.Master(2) as master:
        assert master.wait_for_workers(2, SOON)
        yield master


def test_a_task_is_a_dialogue(master):
    def count(i, o):
        o.put("how far?")
        return sum(range(i.get()))

    def answer(i, o):
        assert i.get() == "how far?"
        o.put(10)
        return i.get()

    assert master.make_task(count, answer).result(SOON) == 45


def test_a_lease_keeps_a_worker_from_others_until_it_is_released(master):
    with master.worker() as one, master.worker() as other:
        assert {one, other} == {*master.workers}
        assert master.get_worker(wait=False) is None
        assert master.get_worker(timeout=0.01) is None
        task = master.submit(pow, 2, 3)
        assert master.with_options(worker=one).submit(pow, 2, 4).result(SOON) == 16
        assert not task.running()
    assert task.result(SOON) == 8
