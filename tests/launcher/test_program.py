"""What a word on the command line means, and what is said when it means nothing that can run."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from launcher.program import Program, find_program
from rmpi.errors import LaunchError


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture
def bin_directory(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def executable(path: Path, text: bytes = b"#!/bin/sh\n") -> Path:
    path.write_bytes(text)
    path.chmod(0o755)
    return path


def zip_file(path: Path, member: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "")
    return path


def find(here: Path, *words: str, path: str = "", **how: str) -> Program:
    return find_program(words, cwd=str(here), path=path, **how)


def complaint(here: Path, *words: str, status: int, path: str = "", **how: str) -> str:
    with pytest.raises(LaunchError) as caught:
        find(here, *words, path=path, **how)
    assert caught.value.status == status
    return str(caught.value)


# --- What can run ---


@pytest.mark.parametrize("name", ["kmeans.py", "window.pyw", "a b $x.py"])
def test_a_script_is_found_here(here, name):
    (here / name).touch()
    got = find(here, name, "--k", "16")
    assert got == Program("script", str(here / name), name, ("--k", "16"))
    assert got.argv == [name, "--k", "16"]
    assert got.is_python


def test_a_script_is_not_imported(here):
    (here / "bad.py").write_text("this is not Python")
    assert find(here, "bad.py").kind == "script"


def test_the_path_becomes_absolute_and_argv_stays_as_typed(here):
    (here / "deep").mkdir()
    (here / "deep" / "x.py").touch()
    for typed in ("deep/x.py", "./deep/x.py", str(here / "deep" / "x.py")):
        got = find(here, typed)
        assert (got.target, got.typed) == (str(here / "deep" / "x.py"), typed)


def test_two_dots_mean_what_they_mean_to_the_kernel(here, tmp_path):
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "x.py").touch()
    (here / "link").symlink_to(tmp_path / "far" / "deep")
    assert (tmp_path / "far" / "x.py").samefile(find(here, "link/../x.py").target)


@pytest.mark.parametrize("word", [".", "app", "app/", "./app"])
def test_a_directory_with_a_main_is_a_script(here, word):
    directory = here if word == "." else here / "app"
    directory.mkdir(exist_ok=True)
    (directory / "__main__.py").touch()
    assert find(here, word) == Program("script", str(directory), word, ())


@pytest.mark.parametrize("name", ["app.zip", "app.pyz", "app"])
def test_a_zip_file_with_a_main_is_a_script(here, name):
    zip_file(here / name, "__main__.py")
    assert find(here, name).kind == "script"


def test_a_command_is_found_on_the_path(here, bin_directory):
    executable(bin_directory / "hostname")
    got = find(here, "hostname", "-f", path=f"/nowhere:{bin_directory}")
    assert got == Program("command", str(bin_directory / "hostname"), "hostname", ("-f",))
    assert not got.is_python


def test_what_is_not_executable_on_the_path_is_passed_over(here, bin_directory):
    (bin_directory / "tool").touch()
    executable(here / "tool")
    assert find(here, "tool", path=str(bin_directory)).target == str(here / "tool")


def test_a_bare_command_means_the_path_and_a_bare_script_means_here(here, bin_directory):
    for directory in (here, bin_directory):
        executable(directory / "tool")
        executable(directory / "tool.py")
    assert find(here, "tool", path=str(bin_directory)).target == str(bin_directory / "tool")
    assert find(here, "./tool", path=str(bin_directory)).target == str(here / "tool")
    assert find(here, "tool.py", path=str(bin_directory)).target == str(here / "tool.py")


def test_a_script_that_is_installed_is_found_on_the_path(here, bin_directory):
    executable(bin_directory / "installed.py")
    assert find(here, "installed.py", path=str(bin_directory)).kind == "script"


@pytest.mark.parametrize("path", ["", ":/nowhere", "."])
def test_empty_and_relative_entries_of_the_path_start_from_here(here, path):
    executable(here / "a.out")
    assert Path(find(here, "a.out", path=path).target) == here / "a.out"


def test_a_module(here):
    got = find(here, "--k", "16", module="package.train")
    assert got == Program("module", "package.train", "-m", ("--k", "16"))


def test_code(here):
    got = find(here, "1", code="print(1)")
    assert (got.kind, got.target, got.argv) == ("code", "print(1)", ["-c", "1"])


# --- What does not exist: 127 ---


def test_a_missing_script_says_where_it_was_looked_for(here):
    assert complaint(here, "kmeans.py", status=127) == f"no such script: kmeans.py (looked in {here})"


def test_a_missing_script_suggests_its_neighbours(here):
    (here / "k_means.py").touch()
    said = complaint(here, "kmeans.py", status=127)
    assert said == f"no such script: kmeans.py (looked in {here}; did you mean k_means.py?)"


@pytest.mark.parametrize("word", ["examples/x.py", "nowhere/x.py", "file.txt/x.py"])
def test_a_missing_path_is_looked_for_in_its_own_directory(here, word):
    (here / "examples").mkdir()
    (here / "file.txt").touch()
    assert f"(looked in {(here / word).parent})" in complaint(here, word, status=127)


def test_a_missing_command_says_that_the_path_was_searched(here):
    said = complaint(here, "hostnam", path="/nowhere", status=127)
    assert said == f"no such program: hostnam (looked on PATH and in {here})"


def test_a_broken_link_does_not_exist(here):
    (here / "x.py").symlink_to(here / "gone.py")
    assert "no such script: x.py" in complaint(here, "x.py", status=127)


# --- What exists and cannot run: 126 ---


def test_a_directory_without_a_main(here):
    (here / "app").mkdir()
    assert complaint(here, "./app", status=126) == "cannot run ./app: it is a directory without a __main__.py"


def test_a_directory_without_a_main_shows_what_it_has(here):
    for name in ("b.py", "a.py", "c.txt"):
        (here / name).touch()
    assert complaint(here, ".", status=126).endswith("without a __main__.py (there is a.py, b.py)")


def test_a_text_file(here):
    (here / "notes").write_text("hello")
    said = complaint(here, "./notes", status=126)
    assert "it is not executable, and not named .py" in said
    assert "rmpi-run python ./notes" in said
    assert "chmod +x ./notes" in said


@pytest.mark.parametrize("name", ["app.zip", "app.pyz", "app"])
def test_a_zip_file_without_a_main(here, name):
    zip_file(here / name, "other.py")
    assert "it is not a zip file with a __main__.py" in complaint(here, f"./{name}", status=126)


def test_a_file_that_only_claims_to_be_a_zip_file(here):
    (here / "app.pyz").write_text("no")
    assert "it is not a zip file with a __main__.py" in complaint(here, "app.pyz", status=126)


def test_a_script_that_may_not_be_read(here, monkeypatch):
    """The superuser may read everything, so the answer of the kernel is made up here."""
    (here / "secret.py").touch()
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.R_OK)
    assert "permission to read it is denied" in complaint(here, "secret.py", status=126)


def test_a_directory_that_may_not_be_entered(here, monkeypatch):
    def refuse(_path: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    assert complaint(here, "secret/x.py", status=126) == "cannot run secret/x.py: permission denied"


@pytest.mark.parametrize("name", ["pipe", "pipe.py"])
def test_a_pipe_is_not_waited_for(here, name):
    os.mkfifo(here / name)
    assert "it is not a regular file" in complaint(here, f"./{name}", status=126)


# --- What is no module's name: 2 ---


@pytest.mark.parametrize("name", ["a/b", ".a", "a..b", "a."])
def test_no_module_can_have_that_name(here, name):
    assert f"-m {name}: not a module's name" in complaint(here, module=name, status=2)


def test_a_module_is_named_without_its_suffix(here):
    assert "(write: -m kmeans)" in complaint(here, module="kmeans.py", status=2)
