"""What the executor's tests have workers do. Workers import it from here.

A *gate* is a FIFO. A task that was sent to one waits there until the test has opened it, for which the test waits until
the task is there; so both know where the other is, and nobody sleeps.
"""

import faulthandler
import os
import pickle
import sys
from pathlib import Path

INITIAL: object = "not initialized"


def initialize(value, *, more):
    global INITIAL
    INITIAL = value, more


def initial():
    return INITIAL


def fail_to_initialize(path):
    raise ValueError(f"no initializer for {path}")


def wait_at(gate):
    return Path(gate).read_text()


def open_gate(gate, text="open"):
    """Wait until somebody waits there, and let him go."""
    Path(gate).write_text(text)


def wait_and_divide(gate, by):
    wait_at(gate)
    return 1 / by


def capture(*args, **kwargs):
    return args, kwargs


def multiply(x, y):
    return x * y


def append(path, text):
    """One write, so that several workers may."""
    with open(path, "a") as file:  # noqa: PTH123
        file.write(text)
    return os.getpid()


def complain():
    raise RuntimeError(123)  # what is the matter


def crash(*_):
    faulthandler.disable()
    faulthandler._sigsegv()


def leave(*_):
    sys.exit(3)


def refuse(kind):
    raise kind("refused")


def instance_of(kind):
    return kind()


def put_into(queue, value):
    queue.put(value)


class Plain:
    """Can be referred to weakly."""

    def method(self):
        return os.getpid()

    @classmethod
    def make(cls, _):
        return cls()


class Parting:
    """A copy of it opens a gate when nobody has it any more."""

    def __init__(self, gate):
        self.gate, self.home = gate, os.getpid()

    def __del__(self):
        if os.getpid() != self.home:
            open_gate(self.gate)


class NoPickle:
    def __reduce__(self):
        raise pickle.PicklingError("I stay here")


class NoUnpickle:
    def __reduce__(self):
        return refuse, (pickle.UnpicklingError,)


class LeavesAtPickle:
    def __reduce__(self):
        sys.exit(3)


class LeavesAtUnpickle:
    def __reduce__(self):
        return leave, ()


class CrashesAtPickle:
    def __reduce__(self):
        crash()


class CrashesAtUnpickle:
    def __reduce__(self):
        return crash, ()
