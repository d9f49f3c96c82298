"""Generators in a place, whose items come one by one."""

import gc
import threading

import numpy as np
import pytest

from rmpi import rpc
from rmpi.errors import DeadlineExceeded, RemoteError, UsageError
from rmpi.rpc.messages import WINDOW


class Source(rpc.Server):
    closed: threading.Semaphore
    may_go: threading.Semaphore

    def __init__(self):
        self.made = 0

    @rpc.call
    def count(self, limit, *, step=1):
        try:
            for number in range(0, limit, step):
                self.made += 1
                yield number
        finally:
            self.closed.release()

    @rpc.call
    def arrays(self, count):
        array = np.zeros(50_000)
        for number in range(count):
            array[:] = number  # the same memory each time: an item is what it was when it was yielded
            yield array

    @rpc.call
    def mixed(self):
        for number in range(40):
            yield bytes(100_000) if number % 7 == 3 else number

    @rpc.call
    def half(self):
        yield 1
        raise ValueError("no second half")

    @rpc.call
    def unfit(self):
        yield threading.Lock()

    @rpc.call
    def slow(self):
        yield 1
        self.may_go.acquire(timeout=20)
        yield 2

    @rpc.call
    def made_so_far(self):
        return self.made


@pytest.fixture
def source(served, monkeypatch):
    monkeypatch.setattr(Source, "closed", threading.Semaphore(0), raising=False)
    monkeypatch.setattr(Source, "may_go", threading.Semaphore(0), raising=False)
    return served(Source)


def test_a_stream_is_an_iterator_over_what_is_yielded(source):
    stream = source.count(100, step=3)
    assert isinstance(stream, rpc.Stream)
    assert list(stream) == list(range(0, 100, 3))
    assert list(stream) == []
    assert repr(stream).startswith("<stream of Source.count in ")


def test_wrong_arguments_are_refused_when_it_is_called(source):
    with pytest.raises(TypeError, match=r"Source\.count\(\) missing 1 required positional argument: 'limit'"):
        source.count()


def test_the_server_is_at_most_a_window_ahead(source):
    stream = source.count(1000)
    next(stream)
    assert source.made_so_far() <= WINDOW
    for _ in range(99):
        next(stream)
    assert source.made_so_far() <= 100 + WINDOW
    stream.close()


def test_arrays_are_what_they_were_when_they_were_yielded(source):
    for number, array in enumerate(source.arrays(5)):
        assert (array == number).all()
    assert number == 4


def test_heavy_and_light_items_keep_their_order(source):
    items = list(source.mixed())
    assert [len(item) if isinstance(item, bytes) else item for item in items] == [
        100_000 if number % 7 == 3 else number for number in range(40)
    ]


def test_what_a_generator_raises_comes_after_its_items(source):
    stream = source.half()
    assert next(stream) == 1
    with pytest.raises(RemoteError, match=r"ValueError: no second half \(raised by Source\.half"):
        next(stream)
    assert list(stream) == []


def test_an_item_that_cannot_be_sent_ends_the_stream(source):
    with pytest.raises(UsageError, match=r"Source has no answer that can be sent: .*lock"):
        next(source.unfit())
    assert source.made_so_far() == 0


def test_leaving_a_loop_closes_the_generator(source):
    for number in source.count(1000):
        if number == 5:
            break
    assert Source.closed.acquire(timeout=20)


def test_a_stream_that_nobody_holds_is_closed(source):
    stream = source.count(1000)
    assert next(stream) == 0
    cycle = [stream]
    cycle.append(cycle)
    del stream, cycle
    gc.collect()
    assert Source.closed.acquire(timeout=20)


def test_leaving_a_with_block_closes_the_generator(source):
    with source.count(1000) as stream:
        assert next(stream) == 0
    assert list(stream) == []
    assert Source.closed.acquire(timeout=20)


def test_streams_and_calls_of_one_stub_go_on_beside_each_other(source):
    streams = [source.count(50) for _ in range(3)]
    rows = []
    for row in zip(*streams, strict=True):
        rows.append(row)
        assert source.made_so_far() >= 3 * len(rows)
    assert rows == [(number,) * 3 for number in range(50)]


def test_a_stream_with_a_time_limit_has_it_for_each_item(source):
    stream = source.slow(timeout=0.05)
    assert next(stream) == 1
    with pytest.raises(DeadlineExceeded):
        next(stream)
    Source.may_go.release()
    assert list(stream) == []
    assert source.made_so_far() == 0
