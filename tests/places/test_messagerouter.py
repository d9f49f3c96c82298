"""The message router, under a clock that is set: what it calls, in which order, and how it ends.

Functions run in threads, so tests wait for each other's news; none of them sleeps.
"""

import asyncio
import logging
import queue
import signal
import sys
import threading

import pytest

from rmpi.errors import DeadlineExceeded, UsageError
from rmpi.places.dispatching import Clock
from rmpi.places.messagerouter import MessageRouter, log_error
from rmpi.places.timers import after, every

LONG = 20.0
"""Seconds after which a test that waits has failed."""


class SetClock(Clock):
    """Stands still until a test lets it go on, and stops at each moment for which the router waits."""

    def __init__(self):
        self.moment = 1000.0
        self.bell = None
        self.parked = None  # until when the router sleeps, while it does and nobody has rung
        self.news = threading.Condition()  # the router sleeps, or a call has begun, or all has ended
        self.busy = 0  # how many calls were under way when last looked

    def now(self):
        return self.moment

    def wait(self, bell, until):
        if bell is not self.bell:
            self.bell, ring = bell, bell.ring
            bell.ring = lambda: self.wake(ring)
        if until <= self.moment:
            return
        with self.news:
            self.parked = None if bell.rings else until
            self.news.notify_all()
        bell.wait(LONG)

    def wake(self, ring):
        with self.news:
            self.parked = None
            ring()

    def tell(self):
        with self.news:
            self.news.notify_all()

    def go_on(self, seconds, router, busy=0):
        """Let time pass, and wait until the router has done what that led to, but for so many calls."""
        self.settle(router, self.busy)
        end = self.moment + seconds
        while self.parked is not None and self.parked <= end:
            self.moment = max(self.moment, self.parked)
            self.bell.ring()
            self.settle(router, busy)
        self.moment = end

    def settle(self, router, busy=0):
        """Wait until the router sleeps, with so many calls under way, or has ended."""
        run, self.busy = router._run, busy
        run.ended.add_done_callback(lambda _: self.tell())
        with self.news:
            assert self.news.wait_for(lambda: run.ended.done() or self.at_rest(run), LONG)

    def at_rest(self, run):
        found = run.statistics()
        calm = self.parked is not None and not any(s.waiting for s in found)
        return calm and sum(s.busy for s in found) == self.busy

    def gate(self):
        """A function that takes until it is opened."""
        return Gate(self)


class Gate(threading.Event):
    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def __call__(self):
        self.clock.tell()  # `SetClock.settle` has a call more to count
        assert self.wait(LONG)


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(LONG)
        assert not thread.is_alive(), thread


class Log:
    """What was called, and when."""

    def __init__(self, clock):
        self.clock = clock
        self.entries = []

    def __call__(self, name):
        return lambda: self.entries.append((name, round(self.clock.now() - 1000, 6)))


@pytest.fixture
def entries(clock):
    return Log(clock)


# ------------------------------------------------------------------------------------------------ timers


def test_the_ancestors_loop(clock, entries):
    router = MessageRouter(every(3.3, entries("tick")), after(2, entries("once")), clock=clock)
    with router:
        clock.go_on(7, router)
    assert entries.entries == [("tick", 0), ("once", 2), ("tick", 3.3), ("tick", 6.6)]


def test_the_clock_of_a_timer_starts_with_the_router(clock, entries):
    """In the ancestor it started when the timer was made, and a late router found it due."""
    router = MessageRouter(after(2, entries("once")), clock=clock)
    clock.moment += 1.5
    with router:
        clock.go_on(1.9, router)
        assert entries.entries == []
        clock.go_on(0.2, router)
    assert entries.entries == [("once", 3.5)]


def test_timers_go_on_while_another_function_waits(clock, entries):
    """In the ancestor an RPC in a function stopped all of them."""
    answer = clock.gate()
    call = after(0.5, lambda: (answer(), entries("answered")()))
    router = MessageRouter(every(1, entries("tick")), call, clock=clock)
    with router:
        clock.go_on(3.5, router, busy=1)
        answer.set()
        clock.settle(router)
    assert entries.entries == [("tick", 0), ("tick", 1), ("tick", 2), ("tick", 3), ("answered", 3.5)]


def test_ticks_are_skipped_while_their_own_function_works(clock, entries):
    gate = clock.gate()
    ticker = every(1, lambda: (entries("tick")(), gate()))
    router = MessageRouter(ticker, clock=clock)
    with router:
        clock.settle(router, busy=1)
        clock.go_on(3.5, router, busy=1)
        gate.set()
        clock.settle(router)
        clock.go_on(1, router)
    assert entries.entries == [("tick", 0), ("tick", 4)]
    assert ticker.skipped == 3


def test_a_function_can_cancel_its_own_timer():
    ticker = every(1, lambda: ticker.cancel())
    MessageRouter(ticker).run()


# ---------------------------------------------------------------------------------------------- the end


def test_it_ends_when_nothing_can_come_any_more():
    called = []
    MessageRouter(after(0, lambda: called.append(1)), after(0.01, lambda: called.append(2))).run()
    assert sorted(called) == [1, 2]


def test_without_sources_it_ends_at_once():
    MessageRouter().run()


def test_it_ends_when_its_time_is_up(clock, entries):
    """The tick at the very end is not served."""
    router = MessageRouter(every(1, entries("tick")), clock=clock)
    router.start(until=5)
    clock.go_on(4.9, router)
    assert router.running
    clock.go_on(0.2, router)
    router.join(LONG)
    assert [moment for _, moment in entries.entries] == [0, 1, 2, 3, 4]


def test_what_was_due_before_the_end_is_served_late(clock, entries):
    """This process was stopped from 0 to 9, after the router had begun."""

    class Stopped:
        def register(self, desk):
            clock.moment += 9
            desk.finish()

    router = MessageRouter(after(4.9, entries("before")), after(5, entries("then")), Stopped(), clock=clock)
    router.run(until=5)
    assert entries.entries == [("before", 9)]


def test_it_ends_when_a_condition_holds_after_something_was_done(clock, entries):
    router = MessageRouter(every(1, entries("tick")), until=lambda: len(entries.entries) == 3, clock=clock)
    router.start()
    clock.go_on(10, router)
    router.join(LONG)
    assert [moment for _, moment in entries.entries] == [0, 1, 2]


def test_or_when_it_holds_for_another_reason(clock):
    others = threading.Event()
    router = MessageRouter(after(100, print), clock=clock)
    router.start(until=others.is_set)
    clock.go_on(5, router)
    others.set()
    clock.go_on(0.1, router)
    router.join(LONG)


def test_a_function_can_stop_it(clock, entries):
    router = MessageRouter(every(1, entries("tick")), after(2.5, lambda: router.stop()), clock=clock)
    router.start()
    clock.go_on(3, router)
    router.join(LONG)
    assert [moment for _, moment in entries.entries] == [0, 1, 2]


def test_what_was_handed_in_is_done_before_it_ends(entries):
    class Burst:
        def register(self, desk):
            ending = threading.Event()
            desk.when_ending(ending.set)
            desk.submit(lambda: (router.stop(), ending.wait(LONG)))
            for number in range(5):
                desk.submit(entries(number))

    router = MessageRouter(Burst())
    router.run()
    assert [name for name, _ in entries.entries] == [*range(5)]


def test_after_an_error_it_is_not(entries):
    class Burst:
        def register(self, desk):
            ending = threading.Event()
            desk.when_ending(ending.set)
            desk.submit(lambda: (desk.fail(ValueError("one bad message")), ending.wait(LONG)))
            desk.submit(entries("next"))

    with pytest.raises(ValueError, match="one bad message"):
        MessageRouter(Burst()).run()
    assert entries.entries == []


def test_it_runs_again_with_clocks_that_start_anew(clock, entries):
    router = MessageRouter(after(2, entries("once")), clock=clock)
    for _ in range(2):
        with router:
            clock.go_on(3, router)
    assert entries.entries == [("once", 2), ("once", 5)]


def test_it_cannot_run_twice_at_a_time(clock):
    with MessageRouter(after(1, print), clock=clock) as router:
        for again in (router.run, router.start):
            with pytest.raises(UsageError, match="runs already"):
                again()


def test_join_waits_so_long(clock):
    with MessageRouter(after(1, print), clock=clock) as router, pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
        router.join(0.01)


def test_join_needs_a_start():
    with pytest.raises(UsageError, match="call start"):
        MessageRouter().join()


def test_a_function_cannot_wait_for_the_end_of_its_own_router():
    router = MessageRouter(after(0, lambda: router.join()))
    with pytest.raises(UsageError, match="call stop\\(\\) and return"):
        router.run()


def test_stop_without_a_run_is_nothing():
    router = MessageRouter(after(0, lambda: None))
    router.stop()
    router.run()
    router.stop()


# ---------------------------------------------------------------------------------------------- failures


def fail():
    raise ValueError("one bad message")


def test_what_a_function_raises_ends_the_router_and_is_raised_by_run():
    with pytest.raises(ValueError, match="one bad message") as caught:
        MessageRouter(after(0, fail), after(100, print)).run()
    assert caught.traceback[-1].name == "fail"
    assert caught.value.__notes__ == ["This was raised in a MessageRouter that served after(0, fail)."]


def test_in_a_thread_it_is_logged_at_once_and_raised_by_join(caplog):
    router = MessageRouter(after(0, fail), after(100, print)).start()
    with pytest.raises(ValueError, match="one bad message"):
        router.join(LONG)
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info[1].args == ("one bad message",)


def test_several_failures_are_raised_together():
    both = threading.Barrier(2)

    def meet():
        both.wait(LONG)
        raise ValueError("one bad message")

    with pytest.raises(ExceptionGroup) as caught:
        MessageRouter(after(0, meet), after(0, meet)).run()
    assert [str(error) for error in caught.value.exceptions] == ["one bad message"] * 2


def test_a_program_may_go_on_after_an_error(clock, entries):
    errors = []
    router = MessageRouter(
        after(1, fail), after(2, entries("next")), on_error=lambda *what: errors.append(what), clock=clock
    )
    router.start()
    clock.go_on(3, router)
    router.join(LONG)
    [(source, error)] = errors
    assert repr(source) == "after(1, fail)"
    assert isinstance(error, ValueError)
    assert entries.entries == [("next", 2)]


def test_errors_can_just_be_logged(caplog):
    MessageRouter(after(0, fail), on_error=log_error).run()
    [record] = caplog.records
    assert record.getMessage() == "a function of after(0, fail) failed: one bad message"
    assert record.exc_info[0] is ValueError


def test_what_on_error_raises_ends_the_router():
    def worse(_source, error):
        raise KeyError("worse") from error

    with pytest.raises(KeyError) as caught:
        MessageRouter(after(0, fail), after(100, print), on_error=worse).run()
    assert isinstance(caught.value.__cause__, ValueError)


def test_sys_exit_in_a_function_ends_the_program():
    """`after-seconds 6 (exit 0)`: how the ancestor's programs end. No error, so nobody is asked."""
    with pytest.raises(SystemExit) as caught:
        MessageRouter(after(0, lambda: sys.exit(3)), every(1, lambda: None), on_error=log_error).run()
    assert caught.value.code == 3


def test_an_error_is_not_lost_beside_an_exit():
    """The second function fails when the first has already ended the router."""

    def late():
        begun.set()
        ending.wait(LONG)
        fail()

    def leave():
        begun.wait(LONG)
        sys.exit()

    class Source:
        def register(self, desk):
            desk.when_ending(ending.set)
            desk.submit(late)

    begun, ending = threading.Event(), threading.Event()
    with pytest.raises(SystemExit) as caught:
        MessageRouter(Source(), after(0, leave)).run()
    assert str(caught.value.__cause__) == "one bad message"


def test_what_waits_for_ever_is_left_behind_after_an_error(monkeypatch, caplog):
    """It may wait for an answer of the function that failed."""
    monkeypatch.setattr("rmpi.places.dispatching.GRACE", 0.01)
    answer = threading.Event()
    begun = threading.Event()

    def wait():
        begun.set()
        answer.wait(LONG)

    def fail_then():
        begun.wait(LONG)
        fail()

    with pytest.raises(ValueError, match="one bad message"):
        MessageRouter(after(0, wait), after(0, fail_then)).run()
    assert "left behind, still at work: a function of after(0, " in caplog.text
    answer.set()


def test_a_condition_that_raises_ends_the_router():
    with pytest.raises(ValueError, match="one bad message"):
        MessageRouter(after(100, print)).run(until=fail)


def test_a_source_that_cannot_be_opened_ends_the_router():
    class Broken:
        def register(self, desk):
            fail()

    router = MessageRouter(after(100, print), Broken())
    for begin in (router.run, router.start):
        with pytest.raises(ValueError, match="one bad message"):
            begin()
        assert not router.running


def test_a_source_can_break_later():
    class Breaks:
        def register(self, desk):
            desk.at(desk.now(), lambda: desk.fail(OSError("gone")))

    with pytest.raises(OSError, match="gone"):
        MessageRouter(Breaks()).run()


def test_a_body_that_raises_is_not_hidden_by_the_router(caplog):
    router = MessageRouter(after(0, fail))
    with pytest.raises(KeyError), router:  # noqa: PT012
        with pytest.raises(ValueError, match="one bad message"):
            router.join(LONG)
        raise KeyError
    assert "one bad message" in caplog.text


@pytest.mark.parametrize(
    ("source", "says"),
    [(3, "serves timers, channels, places, processes and nodes, not 3"), (print, r"write after\(seconds, function\)")],
)
def test_what_is_no_source_is_said_at_once(source, says):
    with pytest.raises(UsageError, match=says):
        MessageRouter(source)


@pytest.mark.parametrize("until", [-1, "5", True, float("nan")])
def test_neither_can_it_run_until_just_anything(until):
    with pytest.raises(UsageError, match="until, unless a function or None, must be a number, 0 or more"):
        MessageRouter(until=until)
    with pytest.raises(UsageError, match="until"):
        MessageRouter().run(until)


# ----------------------------------------------------------------------------------------------- signals


def signal_main(number):
    signal.pthread_kill(threading.main_thread().ident, number)


def test_ctrl_c_ends_it_and_closes_what_it_serves():
    closed = []

    class Source:
        def register(self, desk):
            desk.when_ending(lambda: closed.append("closed"))

    interrupt = after(0, lambda: signal_main(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        MessageRouter(Source(), interrupt).run()
    assert closed == ["closed"]


def test_ctrl_c_does_not_wait_for_a_function_that_goes_on(monkeypatch, caplog):
    monkeypatch.setattr("rmpi.places.dispatching.GRACE", 0.01)
    gate = threading.Event()

    def wait():
        signal_main(signal.SIGINT)
        gate.wait(LONG)

    with pytest.raises(KeyboardInterrupt):
        MessageRouter(after(0, wait)).run()
    assert caplog.messages == [
        "left behind, still at work: a function of "
        "after(0, test_ctrl_c_does_not_wait_for_a_function_that_goes_on.<locals>.wait)"
    ]
    gate.set()


def test_a_signal_handler_can_stop_it():
    router = MessageRouter(after(100, print), after(0, lambda: signal_main(signal.SIGUSR1)))
    before = signal.signal(signal.SIGUSR1, lambda *_: router.stop())
    try:
        router.run()
    finally:
        signal.signal(signal.SIGUSR1, before)


# ----------------------------------------------------------------------------------------- sources, threads


def test_each_source_is_served_in_order_and_one_at_a_time():
    """And sources beside each other: the first call of each waits for that of the other."""
    both, seen = threading.Barrier(2), {"a": [], "b": []}

    class Numbers:
        def __init__(self, name):
            self.name = name

        def register(self, desk):
            desk.submit(both.wait, LONG)
            for number in range(50):
                desk.submit(self.note, number)
            desk.finish()

        def note(self, number):
            seen[self.name].append((number, threading.current_thread().name))

    MessageRouter(Numbers("a"), Numbers("b")).run()
    for name in "ab":
        assert [number for number, _ in seen[name]] == [*range(50)]
        assert len({thread for _, thread in seen[name]}) == 1


def test_a_source_that_is_added_is_served_at_once(clock, entries):
    with MessageRouter(after(10, entries("ten")), clock=clock) as router:
        clock.go_on(1, router)
        router.add(after(2, entries("added")))
        clock.go_on(3, router)
    assert entries.entries == [("added", 3)]


def test_or_in_the_next_run(clock, entries):
    router = MessageRouter(clock=clock)
    router.add(after(1, entries("added")))
    router.start()
    clock.go_on(1, router)
    router.join(LONG)
    assert entries.entries == [("added", 1)]


def test_a_function_can_add_what_comes_next(entries):
    router = MessageRouter(after(0, lambda: router.add(after(0, entries("second")))))
    router.run()
    assert [name for name, _ in entries.entries] == ["second"]


def test_a_source_that_cannot_be_added_leaves_the_router_as_it_was():
    class Broken:
        def register(self, desk):
            fail()

    errors = queue.SimpleQueue()

    def add():
        try:
            router.add(Broken())
        except ValueError as error:
            errors.put(error)

    router = MessageRouter(after(0, add))
    router.run()
    assert str(errors.get_nowait()) == "one bad message"
    router.run()


def test_statistics_say_what_became_of_it(clock):
    gate = clock.gate()
    ticker, late = every(1, gate), after(2, print)
    with MessageRouter(ticker, late, clock=clock) as router:
        clock.settle(router, busy=1)
        busy, waits = router.statistics()
        gate.set()
        clock.settle(router)
        clock.go_on(1, router)
        done, _ = router.statistics()
    assert (busy.source, busy.done, busy.waiting, busy.busy, busy.finished) == (ticker, 0, 0, True, False)
    assert (waits.source, waits.done, waits.busy) == (late, 0, False)
    assert (done.done, done.busy) == (2, False)


def test_it_prints_itself(clock):
    router = MessageRouter(after(1, print), clock=clock)
    assert repr(router) == "<MessageRouter, at rest, sources: [after(1, print)]>"
    with router:
        assert repr(router) == "<MessageRouter, running, sources: [after(1, print)]>"


# ----------------------------------------------------------------------------------------------- asyncio


def test_a_task_can_run_it():
    async def main():
        called = []
        turn = asyncio.Event()
        loop = asyncio.get_running_loop()
        router = MessageRouter(
            after(0, lambda: called.append(1)), after(0, lambda: loop.call_soon_threadsafe(turn.set))
        )
        await asyncio.gather(router.run_async(), turn.wait())
        return called

    assert asyncio.run(main()) == [1]


def test_what_a_function_raises_is_raised_in_the_task(caplog):
    with pytest.raises(ValueError, match="one bad message"):
        asyncio.run(MessageRouter(after(0, fail)).run_async())
    assert not caplog.records


def test_a_task_that_is_cancelled_stops_it():
    router = MessageRouter(after(100, print))

    async def main():
        await asyncio.wait_for(router.run_async(), 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert not router.running
