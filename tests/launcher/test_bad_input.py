"""What the command refuses: each with one clear message, its exit code, and nothing started."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from running import Jobs, patience

A_MARK = "import pathlib; pathlib.Path('started').touch()"


def refused(jobs: Jobs, *words: str) -> tuple[int, str]:
    """Run it; exit code and what it said, once it is certain that no rank was started and nothing printed."""
    script = jobs.script(A_MARK, "s.py")
    done = jobs.run(*[script if word == "SCRIPT" else word for word in words])
    assert not (jobs.directory / "started").exists()
    assert done.out == ""
    assert done.took < 2 * patience()
    return done.code, done.said


# --- Hostfiles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "hosts: the file names no host; write lines such as: node1 slots=4\n"),
        (
            b"# two\nnode1 slots=4\nnode2  slotz=4\n",
            'hosts:3:8: unknown key "slotz" (did you mean slots?)\n    node2  slotz=4\n           ^^^^^\n',
        ),
        (
            b"host:0\n",
            'hosts:1:6: slots is a whole number from 1 to 65536, not "0"; to leave a host out, comment it out\n'
            "    host:0\n         ^\n",
        ),
        (
            b"host:abc\n",
            'hosts:1:6: slots is a whole number from 1 to 65536, not "abc"\n    host:abc\n         ^^^\n',
        ),
        (b"n[3-1]\n", "hosts:1:3: the range 3-1 runs backwards: write 1-3\n    n[3-1]\n      ^^^\n"),
        (
            b"n[1-99999999]\n",
            'hosts:1:1: "n[1-99999999]" stands for 99999999 hosts; ranges may name 10000 in all\n'
            "    n[1-99999999]\n    ^^^^^^^^^^^^^\n",
        ),
    ],
    ids=["empty", "unknown key", "host:0", "host:abc", "backwards", "too many"],
)
def test_hostfiles(text: bytes, message: str, jobs: Jobs) -> None:
    (jobs.directory / "hosts").write_bytes(text)
    assert refused(jobs, "-f", "hosts", "SCRIPT") == (2, f"rmpi-run: {message}")


def test_hostfiles_that_are_none(jobs: Jobs) -> None:
    (jobs.directory / "binary").write_bytes(bytes(range(256)))
    hint = "(a hostfile lists one host per line, like: node1 slots=4)"
    assert refused(jobs, "-f", "missing", "SCRIPT") == (
        2,
        f"rmpi-run: cannot read hostfile missing: No such file or directory {hint}\n",
    )
    assert refused(jobs, "-f", ".", "SCRIPT") == (
        2,
        f"rmpi-run: cannot read hostfile .: Is a directory {hint}\n",
    )
    code, said = refused(jobs, "-f", "binary", "SCRIPT")
    assert (code, said.splitlines()[0]) == (
        2,
        "rmpi-run: binary:1:1: a NUL byte: this is no text file, or one saved as UTF-16; save the hostfile as UTF-8",
    )


# --- Options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-n two SCRIPT", '-n "two" is not a whole number from 1 to 65536, nor auto (for example: -n 4)'),
        ("-n 0 SCRIPT", '-n "0" is not a whole number from 1 to 65536, nor auto (for example: -n 4)'),
        ("-n -1 SCRIPT", '-n "-1" is not a whole number from 1 to 65536, nor auto (for example: -n 4)'),
        ("-n", "-n needs N, but the command line ends (for example: -n 4)"),
        ("--hostfil x SCRIPT", "unknown option --hostfil (did you mean --hostfile?)"),
        ("--frobnicate SCRIPT", "unknown option --frobnicate (rmpi-run --help lists them)"),
        ("-x NO_SUCH_VARIABLE SCRIPT", '-x "NO_SUCH_VARIABLE" names a variable that is not set here'
         " (for example: -x OMP_NUM_THREADS=2)"),
        ("-m a/b", "-m a/b: not a module's name (for example: -m package.train)"),
        ("-n 9 -H localhost:2 SCRIPT", "9 ranks asked for, but there are 2 slots (localhost 2): "
         "ask for fewer, state more slots, or add --oversubscribe"),
        ("", "no program given (for example: rmpi-run -n 4 kmeans.py)\n"
         "usage: rmpi-run [options] PROGRAM [arguments]"),
    ],
)  # fmt: skip
def test_options(words: str, message: str, jobs: Jobs) -> None:
    assert refused(jobs, *words.split()) == (2, f"rmpi-run: {message}\n")


# --- Programs and where they run ----------------------------------------------------------------------------


def test_programs(jobs: Jobs) -> None:
    here = jobs.directory
    (here / "directory").mkdir()
    (here / "data").write_text("no program")
    (here / "kmeans.py").touch()
    assert refused(jobs, "kmaens.py") == (
        127,
        f"rmpi-run: no such script: kmaens.py (looked in {here}; did you mean kmeans.py?)\n",
    )
    assert refused(jobs, "no-such-command") == (
        127,
        f"rmpi-run: no such program: no-such-command (looked on PATH and in {here})\n",
    )
    assert refused(jobs, "directory") == (
        126,
        "rmpi-run: cannot run directory: it is a directory without a __main__.py\n",
    )
    assert refused(jobs, "data") == (
        126,
        "rmpi-run: cannot run data: it is not executable, and not named .py "
        "(write: rmpi-run python data, if it is Python; else: chmod +x data)\n",
    )


def test_programs_that_only_the_system_can_judge(jobs: Jobs) -> None:
    for name, text, code in (("noise", b"\x00\x01\x02", 126), ("orphan", b"#!/no/such/interpreter\n", 127)):
        path = jobs.directory / name
        path.write_bytes(text)
        path.chmod(0o755)
        done = jobs.run("-n", 1, f"./{name}")
        assert done.code == code
        assert done.said.startswith(f"rmpi: cannot run {path}: ")


def test_directories(jobs: Jobs) -> None:
    (jobs.directory / "file").touch()
    for directory in ("missing", "file"):
        assert refused(jobs, "--wdir", directory, "s.py") == (
            125,
            f"rmpi-run: --wdir {directory}: there is no such directory on this machine\n",
        )


def test_interpreters(jobs: Jobs) -> None:
    assert refused(jobs, "--python", "no/such/python", "SCRIPT") == (
        125,
        "rmpi-run: --python no/such/python: there is no such interpreter on this machine\n",
    )
    assert refused(jobs, "--python", "/bin/true", "SCRIPT") == (
        125,
        "rmpi-run: localhost: /bin/true cannot be the ranks' interpreter: it ended with exit status 0\n",
    )
    bare = jobs.directory / "bare python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # without site-packages, so without rmpi
    bare.chmod(0o755)
    assert refused(jobs, "--python", "./bare python", "SCRIPT") == (
        125,
        f"rmpi-run: localhost: {bare} has no rmpi: install it there, or choose another interpreter with --python\n",
    )


def test_a_relative_interpreter_is_meant_from_here(jobs: Jobs) -> None:
    (jobs.directory / "py").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (jobs.directory / "py").chmod(0o755)
    assert jobs.run("--python", "./py", "--wdir", "/", "-c", "print('fine')").out == "fine\n"


# --- What starts nothing ------------------------------------------------------------------------------------


def test_dry_run(jobs: Jobs) -> None:
    script = jobs.script(A_MARK, "s.py")
    done = jobs.run("--dry-run", "-n", 3, "-x", "A=b", "s.py", "two words", "$x")
    assert (done.code, done.stderr) == (0, b"")
    assert not (jobs.directory / "started").exists()
    assert done.out.startswith(
        f"3 ranks run on 1 host, in {jobs.directory}:\n  {sys.executable} {script} 'two words' '$x'\n"
    )
    assert "  localhost                ranks 0-2          here\n  A=b\n" in done.out


def test_help_and_version(jobs: Jobs) -> None:
    done = jobs.run("--version")
    assert (done.code, done.out.split()[0], done.stderr) == (0, "rmpi", b"")
    done = jobs.run("--help")
    assert (done.code, done.stderr) == (0, b"")
    assert done.out.startswith("usage: rmpi-run")


# --- Output that cannot be written --------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["-n", "2", "yes"]])
def test_a_full_disk(words: list[str], jobs: Jobs) -> None:
    with Path("/dev/full").open("wb") as full:
        done = jobs.start(*words, stdout=full).wait()
    assert (done.code, done.said) == (
        125,
        "rmpi-run: cannot write to standard output: No space left on device\n",
    )


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["--dry-run", "true"], ["-n", "2", "yes"]])
def test_nobody_reads(words: list[str], jobs: Jobs) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    job = jobs.start(*words, stdout=writing)
    os.close(writing)
    done = job.wait()
    assert (done.code, done.said) == (128 + signal.SIGPIPE, "")
