"""Count words: objects travel like arrays, and a reduction takes any operator.

    rmpi-run -n 4 examples/wordfreq.py
    rmpi-run -n 4 examples/wordfreq.py README.md

Rank 0 has the text, a file or else an invented one, and deals out the lines. Every rank counts its own, and a reduce
adds up the counters. Rank 0 prints the most frequent words, and fails unless it counts the same alone:

    2556 different words in 100000, ranks: 4
      11809  tu
       5501  thorara
       4088  so
       2861  ku
       2846  nimathathu
    as counted by one rank alone: yes
"""

from __future__ import annotations

import operator
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import rmpi


def invented_text() -> list[str]:
    """Ten thousand lines of ten words, of which the second is half as frequent as the first, and so on (Zipf's law)."""
    dice = random.Random(1949)
    syllables = [consonant + vowel for consonant in ("m", "n", "s", "t", "r", "th", "k") for vowel in "aiou"]
    words = ["".join(dice.choices(syllables, k=dice.randint(1, 4))) for _ in range(4000)]
    chosen = dice.choices(words, [1 / place for place in range(1, len(words) + 1)], k=100_000)
    return [" ".join(chosen[start : start + 10]) for start in range(0, len(chosen), 10)]


def count(lines: Iterable[str]) -> Counter[str]:
    return Counter(word for line in lines for word in re.findall(r"\w+", line.lower()))


def main(comm: rmpi.Comm, argv: Sequence[str] = ()) -> int:
    """The exit status: 0; or 1 on rank 0 if the words are not what one rank counts."""
    text, pieces = [], None
    if comm.rank == 0:
        text = Path(argv[0]).read_text(errors="replace").splitlines() if argv else invented_text()
        pieces = [text[rank :: comm.size] for rank in range(comm.size)]
    words = comm.reduce(count(comm.scatter(pieces)), operator.add)
    if words is None:
        return 0
    right = words == count(text)
    print(f"{len(words)} different words in {words.total()}, ranks: {comm.size}")
    for word, times in words.most_common(5):
        print(f"{times:7}  {word}")
    print(f"as counted by one rank alone: {'yes' if right else 'no'}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(rmpi.init(), sys.argv[1:]))
