"""The examples of map-reduce as a person runs them."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STDLIB = Path(sysconfig.get_path("stdlib"))


def run(*words: str) -> str:
    """Its stdout; it must end well and say nothing else."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / words[0]), *words[1:]], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def counted(files: list[Path]) -> str:
    words = Counter(word for file in files for word in re.findall(r"\w+", file.read_text("utf-8", "replace").lower()))
    return "".join(f"{word} - {times}\n" for word, times in sorted(words.items())) + f"{words.total()}\n"


def test_words_of_the_library_are_counted() -> None:
    assert run("wordcount.py", "-n", "2") == counted([*STDLIB.glob("*.py")])


@pytest.mark.parametrize("workers", ["0", "3"])
def test_words_of_one_large_file_are_counted(tmp_path: Path, workers: str) -> None:
    text = tmp_path / "text"
    text.write_text("".join(path.read_text("utf-8", "replace") for path in sorted(STDLIB.glob("[a-f]*.py"))))
    assert text.stat().st_size > 1 << 20
    assert run("wordcount.py", "-n", workers, str(text)) == counted([text])


def test_an_index_says_where_words_are(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("Tea for two,\nand two for tea.\n\nMe for you")
    (tmp_path / "two").write_text("\nyou for me")
    files = [str(tmp_path / name) for name in ("two", "one")]
    one, two = sorted(files)
    assert run("inverted_index.py", "-n", "2", *files).splitlines() == [
        f"and: {one} 2",
        f"for: {one} 1, 2, 4; {two} 2",
        f"me: {one} 4; {two} 2",
        f"tea: {one} 1, 2",
        f"two: {one} 1, 2",
        f"you: {one} 4; {two} 2",
    ]
    assert run("inverted_index.py", "-n", "0", "--find", "tea", *files) == f"tea: {one} 1, 2\n"
