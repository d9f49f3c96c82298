"""The node's event loop: descriptors, timers, and what other threads post."""

import os
import select
import signal
import threading

import pytest

from rmpi.places.loop import Loop


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pipe():
    ends = os.pipe2(os.O_NONBLOCK)
    yield ends
    for fd in ends:
        os.close(fd)


def until(loop, condition):
    while not condition():
        loop.run_once()


# -- descriptors --------------------------------------------------------------------------------------------


def test_a_callback_runs_when_its_descriptor_is_readable(loop, pipe):
    read, write = pipe
    heard = []
    loop.register(read, lambda mask: heard.append((mask, os.read(read, 10))))
    os.write(write, b"hello")
    loop.run_once()
    assert heard == [(select.EPOLLIN, b"hello")]


def test_what_is_not_taken_is_told_again(loop, pipe):
    read, write = pipe
    heard = []
    loop.register(read, lambda _mask: heard.append(os.read(read, 1)))
    os.write(write, b"abc")
    until(loop, lambda: len(heard) == 3)
    assert b"".join(heard) == b"abc"


def test_modify_says_what_to_look_for(loop, pipe):
    _, write = pipe
    masks = []
    loop.register(write, masks.append, 0)
    loop.post(lambda: None)
    loop.run_once()
    assert masks == []
    loop.modify(write, select.EPOLLOUT)
    loop.run_once()
    assert masks == [select.EPOLLOUT]


def test_after_unregister_nothing_is_told(loop, pipe):
    read, write = pipe
    loop.register(read, lambda _mask: pytest.fail("it was unregistered"))
    os.write(write, b"x")
    loop.unregister(read)
    loop.unregister(read)
    loop.modify(read, select.EPOLLIN)
    loop.post(lambda: None)
    loop.run_once()


def test_a_callback_may_unregister_another_that_is_ready_too(loop):
    """Whichever comes first takes the other away, which then must not run."""
    ran = []
    pipes = [os.pipe(), os.pipe()]
    for (read, write), (other, _) in zip(pipes, reversed(pipes), strict=True):
        loop.register(read, lambda _mask, other=other: (ran.append(other), loop.unregister(other)))
        os.write(write, b"x")
    loop.run_once()
    assert len(ran) == 1
    for fd in sum(pipes, ()):
        loop.unregister(fd)
        os.close(fd)


# -- timers -------------------------------------------------------------------------------------------------


def turn(loop):
    loop.post(lambda: None)
    loop.run_once()


def test_timers_fire_in_order_of_time_and_then_of_making(loop, clock):
    fired = []
    for name, seconds in [("c", 2.0), ("a", 1.0), ("d", 2.0), ("b", 1.5)]:
        loop.call_later(seconds, lambda name=name: fired.append(name))
    turn(loop)
    assert fired == []
    clock.now += 1.5
    turn(loop)
    assert fired == ["a", "b"]
    clock.now += 10
    turn(loop)
    assert fired == ["a", "b", "c", "d"]


def test_a_cancelled_timer_does_not_fire(loop, clock):
    loop.call_later(1.0, lambda: pytest.fail("it was cancelled")).cancel()
    last = loop.call_later(2.0, lambda: fired.append("last"))
    fired = []
    clock.now += 5
    turn(loop)
    assert fired == ["last"]
    last.cancel()  # too late, and no harm


def test_a_timer_may_cancel_the_next_and_make_another(loop, clock):
    fired = []
    loop.call_later(1.0, lambda: (second.cancel(), loop.call_later(1.0, lambda: fired.append("third"))))
    second = loop.call_later(1.0, lambda: fired.append("second"))
    clock.now += 1
    turn(loop)
    assert fired == []
    clock.now += 1
    turn(loop)
    assert fired == ["third"]


def test_the_loop_sleeps_until_the_first_timer_that_counts(loop):
    fired = []
    loop.call_later(0.001, lambda: None).cancel()
    loop.call_later(0.01, lambda: fired.append(1))
    loop.call_later(3600.0, lambda: fired.append(2))
    until(loop, lambda: fired)
    assert fired == [1]


# -- posted work --------------------------------------------------------------------------------------------


def test_posted_work_wakes_the_loop_from_another_thread(loop):
    done = []
    thread = threading.Thread(target=lambda: loop.post(lambda: done.append(threading.get_ident())))
    thread.start()
    until(loop, lambda: done)
    thread.join()
    assert done == [threading.get_ident()]


def test_posted_work_is_done_in_order_even_if_it_posts_more(loop):
    done = []
    loop.post(lambda: (done.append(1), loop.post(lambda: done.append(3))))
    loop.post(lambda: done.append(2))
    until(loop, lambda: len(done) == 3)
    assert done == [1, 2, 3]


def test_a_signal_handler_may_post(loop):
    done = []
    before = signal.signal(signal.SIGUSR1, lambda *_: loop.post(lambda: done.append("signal")))
    try:
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        until(loop, lambda: done)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert done == ["signal"]


def test_an_exception_leaves_and_the_loop_goes_on(loop):
    done = []
    loop.post(lambda: 1 / 0)
    loop.post(lambda: done.append(1))
    with pytest.raises(ZeroDivisionError):
        loop.run_once()
    until(loop, lambda: done)


@pytest.mark.usefixtures("no_leak")
def test_close_gives_back_its_descriptors():
    Loop().close()
