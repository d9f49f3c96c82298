"""What the workers of these tests do."""

import os
import signal
import sys
import threading
import time

import numpy as np

from rmpi.taskfarm import worker_state


def add(a, b):
    return a + b


def square(n):
    return n * n


def pid(*_):
    return os.getpid()


def nap(seconds, value=None):
    time.sleep(seconds)
    return value


def fail(text):
    raise ValueError(text)


def fail_at(n, limit):
    if n >= limit:
        raise ValueError(f"{n} is too much")
    return n


def leave(status):
    sys.exit(status)


def interrupt():
    raise KeyboardInterrupt("from inside")


class Base(BaseException):
    pass


def raise_base():
    raise Base("the very base")


class Closed(Exception):
    """Cannot be pickled."""

    def __reduce__(self):
        raise TypeError("stays here")


def raise_closed():
    raise Closed("secret")


class Narrow(Exception):
    """Can be pickled, and not be unpickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raise_narrow():
    raise Narrow(1, 2)


class Leaving(Exception):
    """Ends whoever unpickles it."""

    def __reduce__(self):
        return sys.exit, (7,)


def raise_leaving():
    raise Leaving("bye")


class Trap:
    """Can be pickled; unpickling it raises."""

    def __init__(self, error=LookupError):
        self.error = error

    def __reduce__(self):
        return spring, (self.error,)


def spring(error):
    raise error("it was a trap")


def trap(error=LookupError):
    return Trap(error)


def lock():
    return threading.Lock()


def identity(value):
    return value


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(path):
    """Die, if nobody did there yet."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "alive"
    return die()


def wait_for_file(path):
    while not os.path.exists(path):  # noqa: PTH110
        time.sleep(0.002)
    return os.getpid()


def describe(array):
    """Sum, and whether it can be written and owns its memory."""
    return float(array.sum()), array.flags.writeable, array.flags.owndata


def identify(value):
    return os.getpid(), id(value)


def ones(count):
    return {"ones": np.ones(count), "count": count}


def count_up():
    counter = worker_state().setdefault_with("counter", lambda: [0])
    counter[0] += 1
    return counter[0]


def remember(key, value):
    worker_state()[key] = value


def recall(key):
    return worker_state().get(key)


def kept():
    """How many scattered values this worker keeps."""
    from rmpi.taskfarm import handles

    return len(handles._values) + len(handles._packed)


# ---- dialogues ----


def sum_up(i, o):
    o.put("how far?")
    return sum(range(i.get()))


def echo(i, o):
    for value in i:
        o.put(value)
    return "end"


def say_and_fail(_, o):
    o.put("first")
    raise ValueError("enough")


def say_and_die(i, o):
    o.put("first")
    i.get()
    die()


def wait_for_ever(i, _):
    i.get()
