"""A program runs as ``python`` would run it: compared with what ``python`` does, in a process of its own."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rmpi.places.program import import_root

SURROUNDINGS = """
import json, os, pickle, sys

class Thing:
    pass

loader = type(globals()["__loader__"]).__name__ if "__file__" in globals() else None
print(json.dumps({
    "argv": sys.argv,
    "name": __name__,
    "file": globals().get("__file__"),
    "package": globals().get("__package__"),
    "loader": loader,
    "doc": __doc__,
    "first": sys.path[0],
    "is main": sys.modules["__main__"].__dict__ is globals(),
    "builtins": __builtins__.__name__,
    "pickles": type(pickle.loads(pickle.dumps(Thing()))) is Thing,
    "clean": sorted(name for name in globals() if not name.startswith("_")),
}))
"""

RUN = """
import sys
sys.path[:1] = [] if sys.path[0] == "" else sys.path[:1]  # as the spawner does
from rmpi.places.program import run_program
run_program({!r}, {!r}, {!r})
"""


def python(*args, cwd, **more):
    return subprocess.run(
        [sys.executable, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=30, check=False, **more
    )


def run(kind, target, *argv, cwd, **more):
    return python("-c", RUN.format(kind, str(target), tuple(map(str, argv))), cwd=cwd, **more)


@pytest.fixture
def programs(tmp_path):
    """A directory with one program in each form."""
    (tmp_path / "script.py").write_text(SURROUNDINGS)
    (tmp_path / "link.py").symlink_to(tmp_path / "elsewhere" / "real.py")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "real.py").write_text(SURROUNDINGS)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "__main__.py").write_text(SURROUNDINGS)
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "__main__.py").write_text(SURROUNDINGS)
    with zipfile.ZipFile(tmp_path / "archive.pyz", "w") as archive:
        archive.writestr("__main__.py", SURROUNDINGS)
    return tmp_path


# -- surroundings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["script.py", "link.py", "directory", "archive.pyz"])
def test_a_script_finds_what_python_gives_it(programs, name):
    path = programs / name
    ours = run("script", path, path, "a", "-b", "c d", cwd=programs)
    theirs = python(path, "a", "-b", "c d", cwd=programs)
    assert ours.stderr == theirs.stderr == ""
    assert json.loads(ours.stdout) == json.loads(theirs.stdout)


def test_a_module_finds_what_python_m_gives_it(programs):
    ours = run("module", "package", "-m", "a", cwd=programs)
    theirs = python("-m", "package", "a", cwd=programs)
    assert ours.stderr == theirs.stderr == ""
    assert json.loads(ours.stdout) == json.loads(theirs.stdout)


def test_code_finds_what_python_c_gives_it(programs):
    ours = run("code", SURROUNDINGS, "-c", "a", cwd=programs)
    theirs = python("-c", SURROUNDINGS, "a", cwd=programs)
    assert ours.stderr == theirs.stderr == ""
    assert json.loads(ours.stdout) == json.loads(theirs.stdout)


def test_argv_begins_as_the_user_wrote_it(programs):
    said = json.loads(run("script", programs / "script.py", "./script.py", "x", cwd=programs).stdout)
    assert said["argv"] == ["./script.py", "x"]
    assert said["file"] == str(programs / "script.py")


def test_a_script_imports_what_lies_beside_it(programs):
    (programs / "elsewhere" / "beside.py").write_text("where = __file__")
    (programs / "elsewhere" / "imports.py").write_text("import beside; print(beside.where)")
    told = run("script", programs / "elsewhere" / "imports.py", "imports.py", cwd=programs)
    assert told.stdout.strip() == str(programs / "elsewhere" / "beside.py")


def test_safe_path_is_respected(programs):
    (programs / "script.py").write_text("import elsewhere")
    told = run("script", programs / "script.py", "script.py", cwd="/", env={**os.environ, "PYTHONSAFEPATH": "1"})
    assert "No module named 'elsewhere'" in told.stderr


def test_our_future_statements_are_not_the_program_s(programs):
    (programs / "script.py").write_text("def f(x: print('evaluated')): pass")
    assert run("script", programs / "script.py", "script.py", cwd=programs).stdout == "evaluated\n"


def test_a_source_file_may_declare_its_encoding(programs):
    (programs / "script.py").write_bytes("# -*- coding: latin-1 -*-\nprint(ascii('é'))".encode("latin-1"))
    assert run("script", programs / "script.py", "script.py", cwd=programs).stdout == "'\\xe9'\n"


@pytest.mark.parametrize(
    ("kind", "target", "root"),
    [
        ("script", "script.py", "."),
        ("script", "link.py", "elsewhere"),
        ("script", "archive.pyz", "archive.pyz"),
        ("module", "package", "."),
        ("code", "pass", "."),
    ],
)
def test_where_a_program_imports_from(programs, kind, target, root):
    word = str(programs / target) if kind == "script" else target
    assert Path(import_root(kind, word, str(programs))) == programs / root


# -- ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"),
    [("pass", 0), ("raise SystemExit(3)", 3), ("1/0", 1), ("import os; os._exit(7)", 7), ("raise SystemExit('x')", 1)],
)
def test_it_ends_as_the_program_ends(programs, code, status):
    (programs / "script.py").write_text(code)
    assert run("script", programs / "script.py", "script.py", cwd=programs).returncode == status


def test_exit_functions_and_threads_have_their_turn(programs):
    (programs / "script.py").write_text(
        "import atexit, threading\n"
        "atexit.register(print, 'exit function')\n"
        "go = threading.Event()\n"
        "threading.Thread(target=lambda: (go.wait(), print('thread'))).start()\n"
        "threading._register_atexit(go.set)\n"
        "1/0\n"
    )
    told = run("script", programs / "script.py", "script.py", cwd=programs)
    assert told.stdout == "thread\nexit function\n"
    assert "ZeroDivisionError" in told.stderr


def test_a_module_that_is_not_there(programs):
    told = run("module", "no_such_module", "-m", cwd=programs)
    assert told.returncode == 1
    assert "No module named no_such_module" in told.stderr


# -- other programs -----------------------------------------------------------------------------------------


def test_a_command_takes_this_process_place():
    code = "import os; print(os.getpid())"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN.format("command", sys.executable, ("python", "-c", code))],
        stdout=subprocess.PIPE,
        text=True,
    )
    told, _ = process.communicate(timeout=30)
    assert int(told) == process.pid


def test_a_command_gets_its_words_unharmed(programs):
    words = ("echo", "a  b", "$HOME", "*", "'", "é")
    assert run("command", "/bin/echo", *words, cwd=programs).stdout == "a  b $HOME * ' é\n"


def test_a_command_does_not_inherit_what_python_ignores(programs):
    """Else ``yes | head`` complains in every rank."""
    told = run("command", "/bin/grep", "grep", "SigIgn", "/proc/self/status", cwd=programs)
    assert int(told.stdout.split()[1], 16) == 0


@pytest.mark.parametrize(
    ("make", "status", "why"),
    [
        (lambda _path: None, 127, "No such file or directory"),
        (lambda path: path.write_text("text"), 126, "Permission denied"),
        (lambda path: (path.write_text("no program"), path.chmod(0o755)), 126, "Exec format error"),
        (lambda path: path.mkdir(), 126, "Permission denied"),
    ],
    ids=["not there", "not executable", "not a program", "a directory"],
)
def test_a_command_that_cannot_be_run(tmp_path, make, status, why):
    path = Path(tmp_path, "command")
    make(path)
    told = run("command", path, "command", cwd=tmp_path, env={**os.environ, "LC_ALL": "C"})
    assert told.returncode == status
    assert told.stderr == f"rmpi: cannot run {path}: {why}\n"
