"""A program whose main thread is interrupted all the time, while messages flow to and from a partner thread.

    python interrupted.py receive|send|share|irecv|isend COUNT SEED

A timer of tiny random intervals sends SIGALRM, and its handler raises, but only while a call into the library is under
way (``armed``): what this program does between its calls is not what is tested. It ends after COUNT interruptions,
and prints how many messages went, or with a traceback.

Every message is a number and a pattern made from it, of a size that is drawn anew, so that all the ways in which a
message can travel are taken. The calls of the main thread have random time-outs too.
"""

import random
import signal
import socket
import sys
import threading
from functools import partial

import numpy as np

from rmpi.comm.communicator import Comm
from rmpi.comm.family import Family
from rmpi.errors import DeadlineExceeded
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.stream import StreamLink

SIZES = (0, 1, 100, 5000, 65536, 65537, 300_000)
INTERVAL = (20e-6, 200e-6)
THERE, BACK, OTHER = 1, 2, 3
NOTHING = object()
LAST = -1


class Interrupted(Exception):
    pass


class Timer:
    """Interrupts calls, ``limit`` times; `armed` says whether one is under way."""

    def __init__(self, limit, choose):
        self.armed = False
        self.count = 0
        self._limit = limit
        self._choose = choose
        signal.signal(signal.SIGALRM, self._ring)
        self.wind()

    def wind(self):
        signal.setitimer(signal.ITIMER_REAL, self._choose.uniform(*INTERVAL))

    def _ring(self, _number, _frame):
        if self.count >= self._limit:
            return
        self.wind()
        if self.armed:
            self.armed = False
            self.count += 1
            raise Interrupted

    def over(self):
        return self.count >= self._limit


class Nobody:
    def leave(self):
        pass


def connect():
    """Two communicators of two ranks over a unix socket pair."""
    ends = [Endpoint(rank, lambda _peer: None, unmatched_limit=1 << 20) for rank in (0, 1)]
    comms = [Comm(Family(end, Nobody()), [0, 1], 64, ["here"] * 2) for end in ends]
    for end, sock in zip(ends, socket.socketpair(), strict=True):
        end.crank.post(partial(end.add_link, StreamLink(1 - end.ident, sock, end)))
    return ends, comms


def message(number, choose):
    """A number, in a value of any size: an array, bytes, or an object with both."""
    size = choose.choice(SIZES)
    array = np.full(size, number % 251, np.uint8)
    return choose.choice([array, (number, array), {"number": number, "bytes": array.tobytes()}, number])


def check(value, number):
    """Whether a value is the message of that number."""
    if isinstance(value, dict):
        return value["number"] == number and set(value["bytes"]) <= {number % 251}
    if isinstance(value, tuple):
        return value[0] == number and check(value[1], number)
    if isinstance(value, np.ndarray):
        return bool((value == number % 251).all())
    return value == number


def spoil(value):
    """What a caller may do with a value after a call of which it was an argument."""
    if isinstance(value, tuple):
        value = value[1]
    if isinstance(value, np.ndarray):
        value[:] = 255


def receive(timer, comm, tag, choose, stop):
    """Receive numbered messages; not one may be missing, doubled or torn."""
    number = 0
    while not timer.over():
        value, timeout = NOTHING, choose.choice([None, 0, 1e-4])
        try:
            timer.armed = True
            value = comm.recv(1, tag, timeout=timeout)  # no handler runs between this return and the next line
            timer.armed = False
        except (Interrupted, DeadlineExceeded):
            timer.armed = False
        if value is not NOTHING:
            assert check(value, number), f"message {number} is not what came: {value!r}"
            number += 1
    stop.set()
    while (value := comm.recv(1, tag, timeout=20)) is not None:
        assert check(value, number), f"message {number} is not what came: {value!r}"
        number += 1
    return number


def feed(comm, tag, choose, stop):
    number = 0
    while not stop.is_set():
        comm.send(message(number, choose), 0, tag)
        number += 1
    comm.send(None, 0, tag)


def await_receives(timer, comm, tag, choose, stop):
    """`receive` by requests, which outlive the waits that were interrupted."""
    number, request = 0, None
    while not timer.over():
        value, timeout = NOTHING, choose.choice([None, 0, 1e-4])
        try:
            timer.armed = True
            if request is None:
                request = comm.irecv(1, tag)  # as in `receive`
            value = request.wait(timeout)
            timer.armed = False
        except (Interrupted, DeadlineExceeded):
            timer.armed = False
        if value is NOTHING and request is not None and choose.random() < 0.2 and request.cancel():
            request = None
        if value is not NOTHING:
            assert check(value, number), f"message {number} is not what came: {value!r}"
            number, request = number + 1, None
    stop.set()
    while (value := (request or comm.irecv(1, tag)).wait(20)) is not None:
        assert check(value, number), f"message {number} is not what came: {value!r}"
        number, request = number + 1, None
    return number


def await_sends(timer, comm, tag, choose):
    """`send` by requests; those that were begun are waited for until they are done."""
    number, request = 0, None
    value = message(number, choose)
    while not timer.over():
        done, timeout = False, choose.choice([None, 0, 1e-3])
        try:
            timer.armed = True
            if request is None:
                request = comm.isend((number, value), 1, tag)
            request.wait(timeout)
            done = True
            timer.armed = False
        except (Interrupted, DeadlineExceeded):
            timer.armed = False
        if done or request is None:
            spoil(value)
            number, request = number + done, None
            value = message(number, choose)
    if request is not None:
        request.wait(20)
        number += 1
    comm.send((LAST, number), 1, tag)
    return number


def send(timer, comm, tag, choose):
    """Send numbered messages, one again if its sending was interrupted."""
    number = 0
    while not timer.over():
        value, timeout = message(number, choose), choose.choice([None, 0, 1e-3])
        sent = False
        try:
            timer.armed = True
            comm.send((number, value), 1, tag, timeout=timeout)
            sent = True
            timer.armed = False
        except (Interrupted, DeadlineExceeded):
            timer.armed = False
        spoil(value)
        number += sent
    comm.send((LAST, number), 1, tag)
    return number


def swallow(comm, tag):
    """Receive what `send` sends: in order, whole, and more than once only where the sender could not know."""
    expected, seen = 0, 0
    while True:
        number, value = comm.recv(0, tag, timeout=20)
        if number == LAST:
            assert value in (expected, expected - 1), f"{value} were sent and {expected} came"
            return seen
        assert number in (expected, expected - 1), f"message {number} where {expected} was next"
        assert check(value, number), f"message {number} is not what came: {value!r}"
        expected, seen = number + 1, seen + 1


def wait_for(comm, tag, stop):
    """A second thread of the interrupted communicator, which leads or follows as it comes."""
    number = 0
    while not stop.is_set():
        assert comm.sendrecv(number, 1, 1, sendtag=tag, recvtag=tag, timeout=20) == number
        number += 1
    comm.send(None, 1, tag)


def echo(comm, tag):
    while (value := comm.recv(0, tag, timeout=20)) is not None:
        comm.send(value, 0, tag)


def main(role, count, seed):
    choose, other = random.Random(seed), random.Random(seed + 1)
    ends, (mine, theirs) = connect()
    stop, errors = threading.Event(), []

    def beside(function, *args):
        def run():
            try:
                function(*args)
                ends[args[0].rank].progress()
            except BaseException as error:
                errors.append(error)
                raise

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    threads = []
    if role not in ("send", "isend"):
        threads.append(beside(feed, theirs, THERE, other, stop))
    if role == "share":
        threads += [beside(wait_for, mine, OTHER, stop), beside(echo, theirs, OTHER)]
    if role in ("send", "isend"):
        threads.append(beside(swallow, theirs, BACK))
    timer = Timer(count, choose)
    if role in ("send", "isend"):
        moved = (send if role == "send" else await_sends)(timer, mine, BACK, choose)
    else:
        moved = (await_receives if role == "irecv" else receive)(timer, mine, THERE, choose, stop)
    while any(thread.is_alive() for thread in threads):
        mine._endpoint.progress()
    assert not errors, errors
    assert (SHIELD.depth, SHIELD.pending) == (0, []), "the shield is not down"
    print(f"{moved} messages, {timer.count} interruptions")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
