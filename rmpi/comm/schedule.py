"""Schedules: a collective written as a generator, and the two words it is written in.

A schedule says who sends what to whom, and nothing about how. It yields

- one step, and is resumed when that step is complete: with the value received, or None for a `Send`;
- or a tuple of steps which go on at the same time, and is resumed when *all* are complete, with the list of
  their results in order.

The result of the collective is what the generator returns. Whoever runs it is called the driver: the
communicator for blocking and nonblocking calls, `rmpi.testing.simulate` for all ranks in one thread.

What a driver promises:

- The messages of one pair arrive in the order in which they were yielded (a tuple from left to right).
- A value received is never an alias of what the sender holds, and belongs to the receiver, who may change it.
- A `Send` is complete when the sender may change the value again.

What it does not promise is buffering: a `Send` may complete only when its receiver has posted the `Recv`. Two
ranks that both send first and receive second wait for each other for ever, so an exchange is always written
as a tuple: ``_, theirs = yield Send(peer, mine), Recv(peer)``.

Steps are words: no driver changes one, so a schedule may say the same one again.

The one invariant: every `Send` of a collective has its `Recv` in the same collective, on every rank that
calls it with arguments that agree. No message is left over.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


@dataclass(slots=True)  # frozen ones take three times as long to make
class Send:
    """Give ``value`` to rank ``peer``. The value must stay as it is until the step is complete."""

    peer: int
    value: object


@dataclass(slots=True)
class Recv:
    """Take the next value from rank ``peer``.

    ``out`` is an offer: if what arrives is an array of exactly its dtype and shape, the driver may receive it
    there, and then the result of the step *is* ``out``. In any other case the result is a new value, so ask
    ``result is out``. Nobody may read or send ``out`` while the step goes on.
    """

    peer: int
    out: npt.NDArray[Any] | None = None


Step: TypeAlias = Send | Recv
Schedule: TypeAlias = Generator[Step | tuple[Step, ...], Any, T]


def finished(result: T) -> Schedule[T]:
    """The schedule of a rank that is alone: it never yields."""
    yield from ()
    return result


def raw_bytes(value: object) -> int:
    """How many bytes of ``value`` travel as they lie in memory: those of arrays, bytes and str.

    0 for everything else: how long an object is, nobody knows before it has been pickled.
    """
    if type(value) is np.ndarray:
        return 0 if value.dtype.hasobject else value.nbytes
    if isinstance(value, (bytes, bytearray, str)):
        return len(value)
    return 0
