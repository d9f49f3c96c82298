"""Key files: whoever reads one may run programs, so nobody else may."""

import os

import pytest

from rmpi.errors import LaunchError
from rmpi.places.keyfile import read_key, write_new_key

KEY = bytes(range(32))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "team.key"


def refuses(path, words):
    with pytest.raises(LaunchError, match=words) as refused:
        read_key(path)
    assert str(path) in str(refused.value)
    assert refused.value.status == 2


def test_a_new_key_is_read_back_and_for_its_owner_alone(path):
    key = write_new_key(path)
    assert len(key) == 32
    assert read_key(path) == read_key(str(path)) == key
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_new_key_is_another(tmp_path):
    assert write_new_key(tmp_path / "a") != write_new_key(tmp_path / "b")


def test_a_key_is_never_written_over(path):
    key = write_new_key(path)
    with pytest.raises(LaunchError, match="is there already"):
        write_new_key(path)
    assert read_key(path) == key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o610])
def test_a_key_that_others_may_use_is_refused(path, mode):
    path.write_text(KEY.hex())
    path.chmod(mode)
    refuses(path, f"mode {mode:03o}.*chmod 600")


@pytest.mark.parametrize("text", ["", "abc", KEY.hex()[:-1], KEY.hex() + "00", "g" * 64, "é" * 32])
def test_what_is_no_key_is_refused(path, text):
    path.write_text(text)
    path.chmod(0o600)
    refuses(path, "holds no key")


def test_blanks_around_the_key_do_not_matter(path):
    path.write_text(f"  {KEY.hex().upper()}\r\n\n")
    path.chmod(0o400)
    assert read_key(path) == KEY


def test_what_is_no_file_is_refused(path, tmp_path):
    refuses(path, "is not there.*--new-key")
    refuses(tmp_path, "is no file")
    os.mkfifo(path, 0o600)
    refuses(path, "is no file")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_somebody_elses_key_is_refused(path):
    path.write_text(KEY.hex())
    path.chmod(0o600)
    os.chown(path, 12345, -1)
    refuses(path, r"belongs to somebody else \(user id 12345\)")
