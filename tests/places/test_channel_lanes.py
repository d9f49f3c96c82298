"""Channels between processes over shared memory, where the short cut is taken; and signals that interrupt their calls.

    python test_channel_lanes.py get|put COUNT SEED

is the program of the signals: a stream of numbered messages, whose receiver or sender is interrupted COUNT times.
"""

import random
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "transport"))
sys.path.insert(0, str(Path(__file__).parent))

from interrupting import Interrupted, Interrupting, run_program
from joined import fork_ranks, join_lanes, settle
from realm import LoneMember, asleep

from rmpi.errors import DeadlineExceeded
from rmpi.places.channel import Mailbox
from rmpi.transport.crank import SPIN
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.matching import ANY
from rmpi.transport.media import why_no_shm

pytestmark = pytest.mark.skipif(why_no_shm() is not None, reason=str(why_no_shm()))

BOX = 1000
SERVER, CLIENT = 0, 1


@pytest.fixture
def lanes():
    """A mailbox and a client's channel to it, in this process, over shared memory."""
    ends = [Endpoint(ident, lambda _peer: None) for ident in (SERVER, CLIENT)]
    join_lanes(*ends)
    settle(*ends)
    server, client = map(LoneMember, ends)
    yield Mailbox(server, BOX, None), client.channel_to(SERVER, BOX)
    for end in ends:
        end.close()


def talk(main_of_server, main_of_client, **options):
    """Run both, each in a process of its own, with a mailbox and with a channel to it; what they return."""

    def main(comm):
        member = LoneMember(comm._endpoint)
        if comm.rank == SERVER:
            return main_of_server(Mailbox(member, BOX, None))
        return main_of_client(member.channel_to(SERVER, BOX))

    return fork_ranks(2, main, **options)


def echo(mailbox):
    while True:
        message, reply = mailbox.receive(timeout=20)
        reply.put(message)
        if message is None:
            return mailbox.statistics()


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


VALUES = [
    0,
    "text",
    b"bytes",
    2.5,
    (1, "two"),
    np.arange(10.0),
    {"array": np.arange(1000)},
    np.arange(1 << 18),
    bytes(1 << 20),
    {"large": np.ones((300, 300))},
]


@pytest.mark.parametrize(
    "options", [{"spin": SPIN}, {"spin": SPIN, "crowded": True}, {}], ids=["spin", "crowded", "sleep"]
)
def test_messages_of_all_kinds_there_and_back(options):
    def client(channel):
        for number in range(100):
            value = VALUES[number % len(VALUES)]
            channel.put(value)
            assert same(channel.get(timeout=20), value)
        channel.put(None)
        assert channel.get(timeout=20) is None
        return channel.statistics()

    assert talk(echo, client, **options) == [(0, 101, 0, 0), (101, 101, 0, 0)]


def test_a_large_message_that_lands_late_is_answered_where_it_came_from():
    """It comes to rest in the long way, after the port has told of another one."""

    def server(mailbox):
        for _ in range(40):
            message, reply = mailbox.receive(timeout=20)
            reply.put(len(message))

    def client(channel):
        others = [LoneMember(channel.endpoint).channel_to(SERVER, BOX) for _ in range(4)]
        for number in range(40):
            each = others[number % 4]
            size = 1 << (22 if number % 2 else 4)
            each.put(bytes(size + number))
            assert each.get(timeout=20) == size + number

    talk(server, client)


def test_a_stream_keeps_its_order_whichever_way_messages_take():
    count = 700

    def server(mailbox):
        got = [mailbox.get(timeout=20) for _ in range(count)]
        mailbox.receive(timeout=20).reply.put("all")
        return [len(value) if isinstance(value, bytes) else value for value in got]

    def client(channel):
        for number in range(count):
            channel.put(bytes(number * 500) if number % 7 == 0 else number)
        channel.put("done")
        return channel.get(timeout=20)

    got, answer = talk(server, client, spin=SPIN)
    assert answer == "all"
    assert got == [number * 500 if number % 7 == 0 else number for number in range(count)]


# -- who dozes is woken ---------------------------------------------------------------------------------------


def test_who_dozes_is_woken_by_a_message(lanes, beside):
    mailbox, chan = lanes
    run = beside(mailbox.get)
    asleep(mailbox)
    chan.put("x")
    assert run.join() == "x"


def test_who_dozes_is_woken_when_another_gives_a_message_back(lanes, beside):
    mailbox, chan = lanes
    endpoint = mailbox.endpoint
    assert not mailbox.poll()
    taken = endpoint.start_receive(BOX, ANY, ANY)
    chan.put("x")
    settle(endpoint)
    run = beside(mailbox.get)
    asleep(mailbox)
    endpoint.abandon((taken,))
    assert run.join() == "x"


def test_a_time_out_ends_a_doze(lanes):
    mailbox, chan = lanes
    with pytest.raises(DeadlineExceeded):
        mailbox.get(timeout=0.02)
    chan.put("x")
    assert mailbox.get(timeout=5) == "x"


def test_two_threads_doze_and_follow_and_each_gets_messages(lanes, beside):
    mailbox, chan = lanes
    runs = [beside(lambda: [mailbox.get(timeout=10) for _ in range(200)]) for _ in range(2)]
    for number in range(400):
        chan.put(number)
    first, second = (run.join() for run in runs)
    assert sorted(first + second) == list(range(400))
    assert (first, second) == (sorted(first), sorted(second))


# -- signals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["get", "receive"])
@pytest.mark.parametrize("value", [None, 5, "text", [1, 2], np.arange(5), {"array": np.arange(9)}], ids=str)
def test_a_message_whose_receiver_was_interrupted_is_the_next_in_line(lanes, value, call):
    mailbox, chan = lanes
    chan.put("first")
    assert mailbox.get(timeout=5) == "first"
    for each in (value, "the next"):
        chan.put(each)
    port = mailbox._in
    mailbox._in = Interrupting(port)
    with pytest.raises(Interrupted):
        getattr(mailbox, call)()
    mailbox._in = port
    assert same(mailbox.get(timeout=5), value)
    assert mailbox.get(timeout=5) == "the next"
    assert mailbox.statistics().received == 3


@pytest.mark.parametrize("long_way", ["_take", "_take_new"])
def test_an_interrupt_at_the_last_moment_puts_a_message_back(lanes, monkeypatch, long_way):
    mailbox, chan = lanes
    kinds = mailbox.typed()
    for each in (("a", 1), ("b", 1)):
        chan.put(each)
    take = getattr(Mailbox, long_way)

    def handler(*_):
        raise Interrupted

    def interrupted_take(*args):
        monkeypatch.undo()
        came = take(*args)
        signal.raise_signal(signal.SIGUSR1)
        return came

    before = signal.signal(signal.SIGUSR1, handler)
    monkeypatch.setattr(Mailbox, long_way, interrupted_take)
    try:
        with pytest.raises(Interrupted):
            kinds.get("b", timeout=5)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [mailbox.get(timeout=5) for _ in range(2)] == [("a", 1), ("b", 1)]
    assert mailbox.statistics() == (0, 2, 0, 0)
    assert SHIELD.depth == 0


INTERRUPTIONS = 800


@pytest.mark.slow
@pytest.mark.parametrize("role", ["get", "put"])
def test_a_stream_survives_thousands_of_interruptions(role):
    """Getting: each message once and in order. Putting: each in order and whole, twice only if it was put twice."""
    run_program(Path(__file__), role, INTERRUPTIONS)


class Timer:
    """Raises in the main thread ``limit`` times, while it is armed; its ``pause`` is drawn from that interval."""

    def __init__(self, limit, choose, pause):
        self.armed, self.count, self._limit, self._choose, self._pause = False, 0, limit, choose, pause
        signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, 1e-4)

    @property
    def over(self):
        return self.count >= self._limit

    def _ring(self, _number, _frame):
        if not self.over:
            signal.setitimer(signal.ITIMER_REAL, self._choose.uniform(*self._pause))
            if self.armed:
                self.armed = False
                self.count += 1
                raise Interrupted

    def call(self, function):
        """What ``function`` returns, in a list; an empty one if it was interrupted, or timed out."""
        got = []
        try:
            self.armed = True
            got = [function()]  # no handler runs between the return of a function in Python and this store
            self.armed = False
        except (Interrupted, DeadlineExceeded):
            self.armed = False
        return got


def numbered(number):
    """The message of that number."""
    match number % 5:
        case 0:
            return number
        case 1:
            return f"number {number}"
        case 2:
            return np.full(3000, number)
        case 3:
            return {"number": number, "array": np.full(1000, number)}
    return np.full(20_000, number)


def interrupted_get(limit, seed):
    def server(mailbox):
        choose, number = random.Random(seed), 0
        timer, kinds = Timer(limit, choose, (5e-6, 150e-6)), mailbox.typed(kind_of=type)
        ways = [
            mailbox.get,
            lambda: mailbox.get(0),
            lambda: mailbox.get(1e-4),
            lambda: mailbox.receive().value,
            lambda: kinds.get(type(numbered(number))),
        ]
        while not timer.over:
            for value in timer.call(choose.choice(ways)):
                assert same(value, numbered(number)), f"{value!r:.60} came as number {number}"
                number += 1
        stop = mailbox._member.channel_to(CLIENT, BOX + 2)
        stop.put("stop")
        while (value := mailbox.get(timeout=20)) is not None:
            assert same(value, numbered(number)), f"{value!r:.60} came as number {number}"
            number += 1
        return f"{number} messages, {timer.count} interruptions"

    def client(channel):
        stop, number = Mailbox(channel._member, BOX + 2, None), 0
        while number % 100 or not stop.poll():
            channel.put(numbered(number))
            number += 1
        channel.put(None)

    return talk(server, client, spin=SPIN)[SERVER]


def interrupted_put(limit, seed):
    def server(mailbox):
        expected = 0
        while (message := mailbox.get(timeout=20)) is not None:
            number, value = message
            assert number in (expected, expected - 1), f"message {number} where {expected} was next"
            assert same(value, numbered(number))
            expected = number + 1
        return expected

    def client(channel):
        choose, number = random.Random(seed), 0
        timer = Timer(limit, choose, (2e-5, 2e-3))
        while not timer.over:
            number += bool(timer.call(partial(channel.put, (number, numbered(number)), choose.choice([None, 0, 1e-3]))))
        channel.put(None)
        return number, timer.count

    expected, (number, count) = talk(server, client, spin=SPIN)
    assert number in (expected, expected - 1), f"{number} were put and {expected} came"
    return f"{number} messages, {count} interruptions"


if __name__ == "__main__":
    print({"get": interrupted_get, "put": interrupted_put}[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3])))
