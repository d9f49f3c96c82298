"""What tasks of the tests of shell workers call."""

import os
import time


def where(seconds=0.0):
    time.sleep(seconds)
    return os.getpid()


def die():
    os.kill(os.getpid(), 9)


def ask_in_vain(i, o):
    """Tell the master something that it does not survive, and wait for its answer."""
    pid = i.get()
    o.put(pid)
    i.get()


def state(key):
    from rmpi.taskfarm import worker_state

    return worker_state().setdefault_with(key, os.getpid)
