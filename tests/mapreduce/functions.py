"""What jobs of the tests call in workers."""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections import Counter


def words(text):
    for word in re.findall(r"\w+", text):
        yield word, 1


def counted(text):
    return Counter(re.findall(r"\w+", text))


def add_up(key, values):
    yield key, sum(values)


def keep(key, values):
    yield key, values


def itself(item):
    return [(item, item)]


def backwards(key):
    return [-ord(letter) for letter in key]


def nothing(_item):
    return ()


def upset(item):
    if item == "bad":
        raise LookupError(f"no luck with {item}")
    yield item, 1


def upset_by_key(key, _values):
    if key == "bad":
        raise LookupError(f"no luck with {key}")
    yield key, 1


class Sealed:
    def __reduce__(self):
        return broken, ()


def broken():
    raise RuntimeError("no way to make it again")


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__("text")
        self.both = lambda: (one, two)


def raises_what_cannot_travel(_item):
    raise Unpicklable(1, 2)


def exits(_item):
    sys.exit("enough")


def own_end(item):
    os._exit(3)
    yield item, 1


def numbered(number):
    """A thousand pairs, of keys that others have too."""
    for index in range(1000):
        yield f"key {(number * 7919 + index * 104729) % 5003}", index


class Ending:
    """`numbered`, in a worker that is killed, or stopped, when it first meets certain inputs.

    Args:
        marks: A directory in which is noted what has happened.
        signals: For these inputs.
    """

    def __init__(self, marks, signals):
        self.marks = marks
        self.signals = signals

    def end_once(self, item):
        if item in self.signals:
            try:
                (self.marks / f"met {item}").touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), self.signals[item])

    def map(self, number):
        for index, pair in enumerate(numbered(number)):
            if index == 500:
                self.end_once(number)
            yield pair

    def reduce(self, key, values):
        self.end_once(key)
        yield key, sum(values)


def many(number):
    """Fifty thousand pairs of different keys; and how much memory this process has had."""
    for index in range(50_000):
        yield f"key {number} {index}", index
    yield None, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def largest_of_none(key, values):
    """The memory that mappers have told of, and that of this process, once the keys are gone through."""
    if key is None:
        yield "mapper", max(values)
    elif key.endswith(" 49999"):
        yield "reducer", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield from ((key, value) for value in values if key is not None and key.endswith("000"))


def memory_of_worker(_item):
    yield "worker", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def told_half(number):
    """`numbered`, a little slower, and it says when it is at the thirtieth."""
    if number == 30:
        print("half", flush=True)
    time.sleep(0.05)
    return [*numbered(number)]
