"""The short cut of small messages: against the long way as its oracle, with signals, threads, floods, and time to wait.

    python test_shortcut.py KIND COUNT SEED

is the program of the signals: a stream of messages of one kind, whose receiver is interrupted COUNT times.
"""

import gc
import mmap
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from interrupting import Interrupted, Interrupting, run_program
from joined import COMM, add_lane, fork_ranks, join_lanes, new_comm, new_comms, settle
from random_programs import Player, by_the_long_way, draw_value, plan, same

from rmpi.comm.status import ANY_SOURCE, ANY_TAG, Status
from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded, PeerExited, UsageError
from rmpi.transport.crank import SPIN
from rmpi.transport.matching import Receive
from rmpi.transport.media import why_no_shm
from rmpi.transport.peers import CREDIT, FRAME_COST
from rmpi.transport.shortcut import NOTHING
from rmpi.wire.codec import encode_value
from rmpi.wire.frames import EAGER_LIMIT, Frame, Kind, encode

pytestmark = pytest.mark.skipif(why_no_shm() is not None, reason=str(why_no_shm()))


@pytest.fixture
def comms():
    """``comms(size, **options)``: communicators of this process over lanes."""
    made = []

    def make(size=2, **options):
        new = new_comms(size, **options)
        made.extend(new)
        return new

    yield make
    for comm in made:
        comm._endpoint.close()


def lane(comm, peer):
    return comm._endpoint._peers.known[peer].link.lane


def work(*comms):
    settle(*[comm._endpoint for comm in comms])


# -- random programs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_with_lanes(seed):
    size = 2 + seed % 2
    options = {"spin": (0.0, SPIN)[seed % 4 > 1], "crowded": size > 2, "neighbours": (2, 1000)[seed % 3 == 0]}
    received = fork_ranks(size, lambda comm: Player(comm, seed).play(), **options)
    assert sum(received) == sum(map(len, plan(seed, size)))


@pytest.mark.parametrize("seed", range(100, 104))
def test_random_programs_where_some_have_lanes_and_some_have_none(seed):
    received = fork_ranks(4, lambda comm: Player(comm, seed).play(), without={1}, spin=SPIN, crowded=True)
    assert sum(received) == sum(map(len, plan(seed, 4)))


@pytest.mark.parametrize("seed", range(300))
def test_any_value_by_the_short_cut_is_what_it_is_by_the_long_way(comms, seed):
    a, b = comms()
    value = draw_value(f"value {seed}")
    nbytes = encode_value(value).nbytes
    taken = a._short.send(value, 1, 5)
    assert not taken or nbytes <= EAGER_LIMIT
    if not taken:
        transfer = a._endpoint.start_send(1, COMM, 5, value)
    came = b._short.recv(0, 5, None) if taken else NOTHING
    if came is NOTHING:
        came = receive_long(a, b)
    assert same(came, by_the_long_way(value))
    assert taken or transfer.done


def test_what_a_port_says_when_it_cannot_is_a_value_like_any_other(comms):
    a, b = comms()
    for value in (NotImplemented, "the next"):
        a.send(value, 1, 5)
    assert b.recv(0, 5, timeout=1) is NotImplemented
    assert b.recv(0, 5, timeout=1) == "the next"


def receive_long(a, b):
    """What b receives from a the long way, while both work."""
    receive = b._endpoint.start_receive(COMM, 0, 5)
    while not receive.done:
        work(a, b)
    assert receive.error is None
    return receive.take()


# -- what is left for the long way ------------------------------------------------------------------------------


def frame(value=7, **changes):
    """The bytes of a frame from rank 0 to rank 1, with some fields of its header changed."""
    encoded = encode_value(value)
    plain = Frame(
        Kind.EAGER, 0, 1, COMM, 5, length=encoded.nbytes, metadata=encoded.metadata, segments=encoded.segments
    )
    return b"".join(encode(replace(plain, **changes)))


LEFT = {
    "another source": {"source": 2},
    "another destination": {"destination": 0},
    "another kind": {"kind": 2},
    "another context": {"context": COMM + 1},
    "another tag": {"tag": 6},
    "a fingerprint": {"fingerprint": 1},
    "a number": {"message": 1},
    "a negative tag": {"tag": -1},
    "no metadata": {"metadata": b""},
    "too much metadata": {"metadata": b"p" * 4000},
    "unknown metadata": {"metadata": b"?"},
    "half an int": {"metadata": b"i1234"},
    "an array of nothing known": {"metadata": b"aCs\x01\x04" + bytes(12)},
    "a length that is not an int's": {"length": 9, "segments": (bytes(9),)},
    "a pickle shorter than its parts": {
        "metadata": b"p" + (9).to_bytes(8, "little"),
        "length": 8,
        "segments": (bytes(8),),
    },
    "parts that overflow": {
        "metadata": b"p" + ((1 << 64) - 8).to_bytes(8, "little") + (16).to_bytes(8, "little"),
        "length": 8,
        "segments": (bytes(8),),
    },
    "text that is not UTF-8": {"metadata": b"s", "length": 2, "segments": (b"\xff\xff",)},
    "a length beyond eager ones": {"length": EAGER_LIMIT + 1},
    "a length beyond all": {"length": (1 << 64) - 1},
}


@pytest.mark.parametrize("left", LEFT)
def test_a_frame_that_is_not_the_message_is_left_where_it_is(comms, left):
    a, b = comms()
    data = frame(**LEFT[left])
    lane(a, 1).write(data)
    tag = 5 if left != "a negative tag" else ANY_TAG
    assert b._short.recv(0, tag, None) is NOTHING
    assert b._short.recv(ANY_SOURCE, tag, None) is NOTHING
    assert b._short.recv(0, tag, np.zeros(1)) is NOTHING
    kept = bytearray(len(data))
    assert lane(b, 0).read_into(memoryview(kept)) == len(data)
    assert bytes(kept) == data


@pytest.mark.parametrize("cut", [1, 63, 64, 70, 72])
def test_a_frame_that_is_not_there_as_a_whole_is_left(comms, cut):
    a, b = comms()
    data = frame("some text")
    lane(a, 1).write(data[:cut])
    assert b._short.recv(0, 5, None) is NOTHING
    lane(a, 1).write(data[cut:])
    assert b.recv(0, 5, timeout=5) == "some text"


def test_messages_keep_their_order_whichever_way_they_take(comms):
    a, b = comms()
    choose, number, taken, ways = random.Random(3), 0, Counter(), deque()
    for _ in range(300):
        sends = []
        for _ in range(choose.randrange(5)):
            value = (number, bytes(choose.choice((0, 100, EAGER_LIMIT, 200_000))))
            number += 1
            ways.append(bool(choose.randrange(2)) and a._short.send(value, 1, 5))
            taken["out"] += ways[-1]
            if not ways[-1]:
                sends.append(a._endpoint.start_send(1, COMM, 5, value))
        while taken["in"] + taken["long"] < number:
            may = ways.popleft() and choose.randrange(2)
            value = b._short.recv(0, choose.choice((5, ANY_TAG)), None) if may else NOTHING
            taken["in" if value is not NOTHING else "long"] += 1
            if value is NOTHING:
                value = receive_long(a, b)
            assert value[0] == taken["in"] + taken["long"] - 1
        a._endpoint.wait(sends, Deadline.after(5))
    assert taken["out"] > 20
    assert taken["in"] > 20


def test_a_broken_context_has_no_short_cut_and_others_keep_theirs(comms):
    a, b = comms()
    work(a, b)
    assert a._short.post("before", 1, 0, 0)
    a._endpoint.give_up(a._context + 1, UsageError("the collectives are broken"))
    assert a._short.post("after", 1, 0, 0)
    assert [b.recv(0), b.recv(0)] == ["before", "after"]
    a._endpoint.give_up(a._context, UsageError("and now this"))
    assert not a._short.post("never", 1, 0, 0)


# -- credit ---------------------------------------------------------------------------------------------------


def flood(comm):
    count = 0
    while comm._short.send(count, 1, 5):
        count += 1
    return count


def test_a_flood_is_bounded_and_credit_comes_back_by_the_short_cut(comms):
    a, b = comms()
    total = flood(a)
    assert total == CREDIT // FRAME_COST
    for number in range(total):
        value = b._short.recv(0, 5, None)
        assert (b.recv(0, 5, timeout=5) if value is NOTHING else value) == number
    assert a._short.recv(1, 0, None) is NOTHING  # nothing but CREDIT, which it took
    assert lane(a, 1).empty()
    assert lane(a, 1).credit == CREDIT - lane(b, 0).owed
    assert flood(a) >= total * 7 // 8


def test_credit_that_found_no_room_is_returned_later(comms):
    """Else all later messages would be offered, and nothing would ever give credit again."""
    a, b = comms()
    stream = b._endpoint.start_send(0, COMM, 9, bytes(9 << 20))
    a._endpoint.progress()  # grants it
    b._endpoint.progress()
    assert lane(b, 0).wants_room
    total = flood(a)
    for number in range(total):
        assert b.recv(0, 5, timeout=5) == number
    while not stream.done:
        work(a, b)
    for number in range(1000):
        a.send(number, 1, 5, timeout=5)
        assert b.recv(0, 5, timeout=5) == number
    work(a, b)
    assert a._short.send("by the short cut again", 1, 5)


def test_the_short_cut_is_open_again_after_a_send_was_given_up(comms):
    a, b = comms()
    transfer = a._endpoint.start_send(1, COMM, 5, bytes(9 << 20))
    b._endpoint.progress()
    a._endpoint.progress()
    assert transfer.granted
    a._endpoint.abandon((transfer,))
    for _ in range(20):
        work(a, b)
    assert b.recv(0, 5, timeout=5) == bytes(9 << 20)
    assert a._short.send("by the short cut again", 1, 5)


def test_a_message_that_a_port_has_begun_to_receive_keeps_its_place(comms):
    """Given up, it is the next in line, though later ones have come meanwhile."""
    a, b = comms()
    offer = encode(Frame(Kind.OFFER, 0, 1, COMM, 5, message=7, length=1 << 20, metadata=b"b"))[0]
    begun = b._endpoint._flights.adopt_receive(lane(b, 0), offer[:64], offer[64:], None, b"", 0, 0, 0)
    a.send("later", 1, 5)
    work(b)
    b._endpoint.abandon((begun,))
    assert b._endpoint._incoming.matching.find(Receive(COMM, 0, 5)).message == 7


def test_nothing_goes_to_a_peer_that_has_ended(comms):
    a, b = comms()
    b._endpoint.finish(Deadline.after(5))
    work(a)
    with pytest.raises(PeerExited):
        a.send(1, 1)


def test_a_second_link_to_a_peer_does_not_break_the_order(comms):
    """Both sides may have asked for one. The first that stands is the one that is sent on."""
    a, b = comms()
    join_lanes(a._endpoint, b._endpoint)
    work(a, b)
    a._endpoint.start_send(1, COMM, 5, "first")
    assert a._short.send("second", 1, 5) in (True, False)
    settle(a._endpoint)
    assert b.recv(0, 5, timeout=5) == "first"


# -- signals ----------------------------------------------------------------------------------------------------


def interrupted_recv(comm, *args, **kwargs):
    port, comm._short = comm._short, Interrupting(comm._short)
    try:
        with pytest.raises(Interrupted):
            comm.recv(*args, **kwargs)
    finally:
        comm._short = port


ONES = {
    "None": None,
    "bool": True,
    "int": 5,
    "float": 2.5,
    "str": "text",
    "bytes": b"bytes",
    "list": [1, 2],
    "array": np.arange(5),
    "dict": {"array": np.arange(1000)},
}


@pytest.mark.parametrize("kind", ONES)
def test_a_message_whose_receiver_was_interrupted_is_the_next_in_line(comms, kind):
    a, b = comms()
    for value in (ONES[kind], "the next"):
        a.send(value, 1, 5)
    interrupted_recv(b, 0, 5)
    assert same(b.recv(0, 5, timeout=5), ONES[kind])
    assert b.recv(0, 5, timeout=5) == "the next"


def test_an_array_that_had_landed_is_the_next_in_line(comms):
    a, b = comms()
    a.send(np.arange(5), 1, 5)
    out = np.zeros(5, np.int64)
    interrupted_recv(b, 0, 5, out=out)
    out[:] = 0
    assert b.recv(0, 5, timeout=5).tolist() == [0, 1, 2, 3, 4]


def test_what_was_never_received_is_not_put_back(comms):
    """The port remembers what it gave last; that was before."""
    a, b = comms()
    a.send(np.arange(5), 1, 5)
    b.recv(0, 5, out=np.zeros(5, np.int64))
    interrupted_recv(b, np.int64(0), 5)  # a rank that is not for the short cut
    with pytest.raises(DeadlineExceeded):
        b.recv(timeout=0)


INTERRUPTIONS = 2500
KINDS = ("int", "none", "text", "array", "out", "dict", "mixed")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_survives_thousands_of_interruptions(kind):
    """Each message once, in order and whole."""
    run_program(Path(__file__), kind, INTERRUPTIONS)


def numbered(kind, number):
    """The message of that number; all of them land in arrays of one shape."""
    match kind:
        case "none":
            return None
        case "int":
            return number
        case "text":
            return f"number {number}"
        case "dict":
            return {"number": number, "array": np.full(1000, number, np.int64)}
        case "mixed":
            return numbered(("int", "text", "array", "dict")[number % 4], number)
    return np.full(3000, number, np.int64)


def interrupted_stream(kind, limit, seed):
    """Receive a stream from a fork of this process, while a timer interrupts."""
    stop = mmap.mmap(-1, 1)

    def feed(comm):
        number = 0
        while not stop[0]:
            comm.send(numbered(kind, number), 1, 5)
            number += 1
        comm.send(number, 1, 6)

    def swallow(comm):
        choose, counts = random.Random(seed), {"interruptions": 0, "armed": False}

        def ring(_number, _frame):
            signal.setitimer(signal.ITIMER_REAL, choose.uniform(5e-6, 100e-6))
            if counts["armed"] and counts["interruptions"] < limit:
                counts["armed"] = False
                counts["interruptions"] += 1
                raise Interrupted

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 1e-4)
        number, nothing = 0, object()
        while counts["interruptions"] < limit:
            value, out = nothing, np.zeros(3000, np.int64) if kind == "out" else None
            try:
                counts["armed"] = True
                value = comm.recv(0, 5, out=out)
                counts["armed"] = False
            except Interrupted:
                counts["armed"] = False
            if value is not nothing:
                assert same(value, numbered(kind, number)), f"{value!r} came as number {number}"
                number += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        stop[0] = 1
        total = comm_total(comm)
        while number < total:
            assert same(comm.recv(0, 5, timeout=5), numbered(kind, number))
            number += 1
        return f"{number} messages, {counts['interruptions']} interruptions"

    def comm_total(comm):
        return comm.recv(0, 6, timeout=20)

    print(fork_ranks(2, lambda comm: swallow(comm) if comm.rank else feed(comm), spin=SPIN)[1])


# -- threads ----------------------------------------------------------------------------------------------------


class Meeting:
    """When it is pickled, it says that it is here, and waits until it may go on."""

    def __init__(self, here, go_on):
        self.here = here
        self.go_on = go_on

    def __reduce__(self):
        self.here.set()
        assert self.go_on.wait(10)
        return int, ()


def test_two_threads_may_pickle_at_the_same_time(comms, beside):
    """Each message has its own buffers."""
    a, b = comms()
    first, second, ended = threading.Event(), threading.Event(), threading.Event()
    one = beside(a.send, [Meeting(first, second), np.full(5000, 1, np.uint8)], 1, 1)
    assert first.wait(10)
    other = beside(a.send, [Meeting(second, ended), np.full(5000, 2, np.uint8)], 1, 2)
    one.result(10)
    ended.set()
    other.result(10)
    for tag in (1, 2):
        assert set(b.recv(0, tag, timeout=5)[1].tolist()) == {tag}


def test_each_thread_has_its_own_status(comms, beside):
    a, b = comms()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(60):
            a._endpoint.progress()
            for number in range(400):
                for tag in (1, 2):
                    a.send(number, 1, tag, timeout=5)
            for future in [beside(receive_numbers, b, tag, 400) for tag in (1, 2)]:
                future.result(20)
    finally:
        sys.setswitchinterval(interval)


def receive_numbers(comm, tag, count):
    status = Status()
    for number in range(count):
        assert comm.recv(0, tag, status=status, timeout=20) == number
        assert status.tag == tag


def test_a_message_that_cannot_be_unpickled_is_an_error_of_its_thread_alone(comms, beside):
    """While it is unpickled, another thread begins to wait for any message."""
    a, b = comms()
    unpickling.clear()
    a.send(Refusing(), 1, 5)
    failing = beside(b.recv, 0, 5)
    assert unpickling.begun.wait(10)
    waiting = beside(b.recv)
    while not b._endpoint.crank._asleep:
        time.sleep(0)
    unpickling.go_on.set()
    with pytest.raises(ValueError, match="refused"):
        failing.result(10)
    a.send("for the other", 1, 6)
    assert waiting.result(10) == "for the other"


class Unpickling:
    def __init__(self):
        self.clear()

    def clear(self):
        self.begun, self.go_on = threading.Event(), threading.Event()


unpickling = Unpickling()


class Refusing:
    def __reduce__(self):
        return refuse, ()


def refuse():
    unpickling.begun.set()
    assert unpickling.go_on.wait(10)
    raise ValueError("refused")


@pytest.mark.parametrize("threads", [2, 3])
def test_several_threads_of_one_rank(threads):
    def main(comm):
        errors = []

        def talk(tag):
            try:
                for number in range(1000):
                    value = (number, bytes(number * 7 % 5000))
                    if comm.rank:
                        comm.send(value, 0, tag, timeout=20)
                        assert comm.recv(0, tag, timeout=20) == value
                    else:
                        assert comm.recv(1, tag, timeout=20) == value
                        comm.send(value, 1, tag, timeout=20)
            except BaseException as error:
                errors.append(error)

        running = [threading.Thread(target=talk, args=(tag,)) for tag in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        if errors:
            raise errors[0]

    fork_ranks(2, main, spin=SPIN)


def test_a_thread_that_waits_does_not_starve_one_that_computes(comms, beside):
    _, b = comms(spin=SPIN)
    alone = count_for(0.3)
    waiting = beside(b.recv, 0)
    beside_it = count_for(0.3)
    b._endpoint.close()
    with pytest.raises(Exception, match="closed"):
        waiting.result(5)
    assert beside_it > 0.3 * alone


def count_for(seconds):
    count, until = 0, time.thread_time() + seconds
    deadline = time.monotonic() + 10 * seconds
    while time.thread_time() < until and time.monotonic() < deadline:
        count += 1
    return count / (time.monotonic() - deadline + 10 * seconds)


# -- waiting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"spin": 0.0}, {"spin": SPIN}, {"spin": SPIN, "crowded": True}])
def test_waiting_costs_next_to_nothing(comms, options):
    _, b = comms(**options)
    before = time.process_time()
    with pytest.raises(DeadlineExceeded):
        b.recv(0, timeout=1.5)
    assert time.process_time() - before < 0.02 * 1.5


@pytest.mark.parametrize("crowded", [False, True])
def test_a_wait_looks_past_a_peer_that_reads_but_whose_greeting_has_not_come(crowded):
    """That one has made room in the full ring to it, and no ring of its own is known yet."""
    from rmpi.transport.shm import DATA, LEAST, Lane

    def main(_comm):
        a, b, _ = (new_comm(rank, 3, spin=SPIN, crowded=crowded) for rank in range(3))
        join_lanes(a._endpoint, b._endpoint)
        work(a, b)
        ours, theirs = socket.socketpair()
        add_lane(a._endpoint, 2, ours, neighbours=1000)
        a.send(np.zeros(EAGER_LIMIT, np.uint8), 2)
        work(a)
        assert lane(a, 2).wants_room
        _, (fd,), *_ = socket.recv_fds(theirs, 4096, 1)
        reader = Lane(2, 0, theirs.fileno(), CREDIT)
        reader.map_in(fd, os.fstat(fd).st_size - DATA)
        assert reader.read_into(bytearray(4096)) == 4096
        assert lane(a, 2).stirs()
        assert a._short.recv(1, 0, None) is NOTHING  # the long way knows what to do
        work(a)
        assert reader.read_into(bytearray(EAGER_LIMIT)) > LEAST - 4096
        a._endpoint.close()
        b._endpoint.close()
        return True

    assert fork_ranks(1, main) == [True]


@pytest.mark.parametrize("options", [{"spin": 0.0}, {"spin": SPIN}, {"spin": SPIN, "crowded": True}])
def test_who_sleeps_is_woken(options):
    """Ping-pong with pauses, so that the receiver is asleep, about to sleep, or awake."""

    def main(comm):
        choose, other = random.Random(comm.rank), 1 - comm.rank
        for number in range(1500):
            if comm.rank == number % 2:
                until = time.perf_counter() + choose.choice((0, 0, SPIN, 1.1 * SPIN))
                while time.perf_counter() < until:
                    pass
                comm.send(number, other)
            else:
                assert comm.recv(other, timeout=20) == number
        return True

    assert fork_ranks(2, main, **options) == [True, True]


# -- memory -----------------------------------------------------------------------------------------------------

GROWTH = 2 << 20
"""Bytes that the process may grow by; a leaked reference of each message would be more than twice that."""


def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["None", "int", "float", "str", "bytes", "array", "out", "dict"])
def test_no_message_leaves_memory_behind(comms, kind):
    a, b = comms()
    values = {**ONES, "int": 1 << 60, "str": "ä" * 50, "out": np.arange(50)}
    value, out = values[kind], np.zeros(50, np.int64) if kind == "out" else None
    references = [sys.getrefcount(thing) for thing in (value, out)] if kind not in ("None", "out") else []

    def pass_on(count):
        for _ in range(count):
            assert a._short.send(value, 1, 5)
            b.recv(0, 5, out=out)
            if lane(a, 1).credit < CREDIT // 2:
                a._endpoint.progress()

    pass_on(2000)
    before = resident()
    pass_on(50_000)
    assert resident() - before < GROWTH
    if references:
        assert [sys.getrefcount(thing) for thing in (value, out)][:1] == references[:1]


def test_what_was_received_is_held_by_its_receiver_alone(comms):
    a, b = comms()
    sent = np.arange(100)
    count = sys.getrefcount(sent)
    a.send(sent, 1)
    received = b.recv(0)
    assert sys.getrefcount(sent) == count
    assert sys.getrefcount(received) == count
    out = np.zeros(100, np.int64)
    count = sys.getrefcount(out)
    a.send(sent, 1)
    assert b.recv(0, out=out) is out
    assert sys.getrefcount(out) == count


def test_ports_are_collected():
    from rmpi.transport._ring import Port

    def living():
        gc.collect()
        return sum(type(thing) is Port for thing in gc.get_objects())

    before = living()
    made = new_comms(2)
    assert living() == before + 4
    for comm in made:
        comm._endpoint.close()
    del made, comm
    assert living() == before


if __name__ == "__main__":
    interrupted_stream(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
