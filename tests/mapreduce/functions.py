"""What jobs of the tests call in workers."""

from __future__ import annotations

import os
import re
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


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__("text")
        self.both = lambda: (one, two)


def raises_what_cannot_travel(_item):
    raise Unpicklable(1, 2)


def own_end(item):
    os._exit(3)
    yield item, 1


def numbered(number):
    """A thousand pairs, of keys that others have too."""
    for index in range(1000):
        yield f"key {(number * 7919 + index * 104729) % 5003}", index
