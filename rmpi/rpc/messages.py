"""What stubs and servers say to each other. Knows nothing of how it travels, nor of what is executed.

To the server's inbox go tuples:

    (method, args)                              a call; its answer comes alone to the reply box
    (method, args, kwargs)                      the same with keyword arguments
    (LIMITED, method, args, kwargs)             a call that may be cancelled; the answer is that of a call
    (NUMBERED, method, args, kwargs, number)    one of several calls with a reply box: (number, answer) comes back
    (CAST, method, args, kwargs)                nothing comes back
    (STREAM, method, args, kwargs)              items come back, at most `WINDOW` that were not acknowledged
    (MORE, count)                               so many items of the stream with this reply box were taken
    (FETCH,)                                    the heavy item that was announced is awaited
    (CANCEL, number)                            what has this reply box (and number, else 0) shall not be begun, or end
    (STOP,)                                     the server shall end when it has done what came before

and back come answers: the bare value that a method returned or a generator yielded, so that an array travels as
an array; or one of the classes below, which no method returns.

The reply box is what correlates: a call that waits has one to itself, so threads cannot take each other's answers. A
call that was given up gives up its box too, and what comes late is dropped. Only futures share one, hence the numbers.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

CAST: Final = 0
LIMITED: Final = 1
NUMBERED: Final = 2
STREAM: Final = 3
MORE: Final = 4
FETCH: Final = 5
CANCEL: Final = 6
STOP: Final = 7

WINDOW: Final = 16
"""Items of a stream that may be under way or wait at the client; then its generator rests until some were taken."""

HEAVY: Final = 1 << 16
"""Bytes from which an item is announced, and sent when the client waits for it: a larger message makes its sender
wait until the receiver takes it, and the server has others to serve."""


class Raised(NamedTuple):
    """The method raised."""

    type_name: str
    message: str
    traceback: str


class Refused(NamedTuple):
    """The method was not called: there is none of that name, or not with such arguments."""

    kind: str
    """``"AttributeError"``, ``"TypeError"`` or ``"UsageError"``."""
    text: str


class Announced(NamedTuple):
    """The next item of the stream is heavy; it comes when it is fetched."""


class Ended(NamedTuple):
    """The stream has no more items."""


class Skipped(NamedTuple):
    """The numbered call was cancelled before it was begun."""


class Probe(NamedTuple):
    """Nothing: it was sent to find out whether the client is still there."""


def numbers_of(message: Any) -> tuple[int | None, int | None]:
    """Of a message, the number of the call that it is, if that can be cancelled, and of the call that it cancels."""
    match message:
        case (int(kind), _, _, _) if kind in (LIMITED, STREAM):
            return 0, None
        case (int(kind), _, _, _, int(number)) if kind == NUMBERED:
            return number, None
        case (int(kind), int(number)) if kind == CANCEL:
            return None, number
    return None, None


NO_VALUES: Final = frozenset({Raised, Refused, Announced, Ended, Skipped, Probe})
"""The types of answers that are not the value itself."""


def is_heavy(value: Any) -> bool:
    """Whether a message with this value is better awaited by its receiver. An estimate, by what lies on top."""
    return _nbytes(value, 3) > HEAVY


def _nbytes(value: Any, depth: int) -> int:
    """Bytes of arrays and text in ``value``, ``depth`` containers deep."""
    kind = type(value)
    if kind in (str, bytes, bytearray):
        return len(value)
    if kind in (tuple, list, set, frozenset) and depth:
        return sum(_nbytes(each, depth - 1) for each in value)
    if kind is dict and depth:
        return sum(_nbytes(each, depth - 1) for each in value.values())
    nbytes = getattr(value, "nbytes", 0)
    return nbytes if type(nbytes) is int else 0
