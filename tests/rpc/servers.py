"""Servers for tests in places of their own: a place imports this module, and nothing of pytest."""

import itertools
import logging
import os
import signal

import numpy as np

from rmpi import rpc


class Bank(rpc.Server):
    """Accounts by name."""

    def __init__(self, opening=0, fails=False):
        if fails:
            raise ValueError("no opening today")
        self.opening = opening
        self.balances = {}

    @rpc.call
    def add(self, who, amount=1):
        self.balances[who] = self.balances.get(who, self.opening) + amount
        return self.balances[who]

    @rpc.call
    def take(self, who):
        return self.balances.pop(who)

    @rpc.call
    def mean(self, values):
        return values.mean(axis=0)

    @rpc.cast
    def audit(self, word):
        self.log("%s: %d accounts", word, len(self.balances), level=logging.WARNING)

    @rpc.cast
    def burn(self):
        raise RuntimeError("no matches")

    @rpc.call
    def names(self):
        yield from self.balances

    @rpc.call
    def arrays(self, count):
        for number in range(count):
            yield np.full(100_000, number)

    @rpc.call
    def odd(self):
        return Odd()

    @rpc.call
    def odds(self):
        yield Odd()

    @rpc.call
    def pid(self):
        return os.getpid()

    @rpc.call
    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    @rpc.call
    def leave(self, code):
        raise SystemExit(code)

    @rpc.call
    def pass_on(self, other, who):
        return other.add(who)


class Recorder(rpc.Server):
    """Notes what happens to a stream; asked by others."""

    def __init__(self):
        self.ended = []

    @rpc.call
    def count(self, whose):
        try:
            yield from itertools.count()
        finally:
            self.ended.append(whose)

    @rpc.call
    def closed(self):
        return self.ended


def client_that_dies(_mailbox, recorder):
    """Takes three items of a stream, and is killed."""
    stream = recorder.count("theirs")
    for _ in range(3):
        next(stream)
    os.kill(os.getpid(), signal.SIGKILL)


class Odd:
    """It can be pickled, and unpickled only where it was made."""

    def __init__(self):
        self.made_by = os.getpid()

    def __setstate__(self, state):
        if state["made_by"] != os.getpid():
            raise LookupError("not from here")
