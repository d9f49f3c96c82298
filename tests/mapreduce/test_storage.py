"""Files of jobs go with their owner, and those of one that was killed with the next that comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from rmpi.errors import UsageError
from rmpi.mapreduce.storage import Storage, Store

OWNER = "import sys; from rmpi.mapreduce.storage import Store; s = Store(sys.argv[1], sys.argv[2]); s.job('job'); "


@pytest.fixture
def killed(tmp_path):
    """The parent of a store, called old, whose owner was killed."""

    parent = tmp_path / "parent"
    parent.mkdir()
    owner = subprocess.run(
        [sys.executable, "-c", OWNER + "import os; os.kill(os.getpid(), 9)", str(parent), "old"], check=False
    )
    assert owner.returncode == -signal.SIGKILL
    assert found_in(parent) == ["old"]
    return parent


def found_in(parent):
    return [path.name for path in (parent / f"rmpi-mapreduce-{os.getuid()}").iterdir()]


def test_a_store_has_directories_of_jobs_and_is_gone_in_the_end(nothing_is_left):
    store = Store()
    assert store.path.parent.parent == nothing_is_left
    assert (store.path.parent.stat().st_mode & 0o777, store.path.stat().st_mode & 0o777) == (0o700, 0o700)
    (store.job("one") / "file").touch()
    store.job("two")
    store.end_job("one")
    store.end_job("one")
    assert sorted(path.name for path in store.path.iterdir()) == ["lock", "two"]
    assert Storage(str(store.path)).here() == ("", str(store.path))
    store.close()
    store.close()


def test_what_a_killed_owner_has_left_is_removed_by_the_next(killed):
    store = Store(str(killed))
    assert found_in(killed) == [store.path.name]
    store.close()
    assert [*killed.iterdir()] == []


def test_what_has_an_owner_stays(tmp_path):
    first = Store(str(tmp_path))
    first.job("job")
    second = Store(str(tmp_path))
    assert (first.path / "job").is_dir()
    first.close()
    assert second.path.is_dir()
    second.close()


def test_a_store_is_taken_over_by_who_has_its_name(killed):
    store = Store(str(killed), "old")
    assert (store.path / "job").is_dir()
    store.close()


def test_directories_without_a_lock_are_abandoned(tmp_path):
    ours = tmp_path / f"rmpi-mapreduce-{os.getuid()}"
    (ours / "half").mkdir(parents=True)
    ours.chmod(0o700)
    store = Store(str(tmp_path))
    assert found_in(tmp_path) == [store.path.name]
    store.close()


def test_others_shall_not_be_able_to_put_something_there(tmp_path):
    ours = tmp_path / f"rmpi-mapreduce-{os.getuid()}"
    ours.mkdir()
    ours.chmod(0o777)
    with pytest.raises(UsageError, match="nobody else can use"):
        Store(str(tmp_path))
