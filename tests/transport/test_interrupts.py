"""Signal handlers that raise: deferred while something is half done, never lost, and what they end is undone."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from interrupting import run_program
from joined import CONTEXT, settle

from rmpi.comm.communicator import Comm
from rmpi.comm.family import Family
from rmpi.deadline import Deadline
from rmpi.transport.interrupts import SHIELD

PROGRAM = Path(__file__).with_name("interrupted.py")
INTERRUPTIONS = 4000


class Interrupted(Exception):
    pass


@pytest.fixture
def calls():
    """What the handler of SIGUSR1 was called with; it raises when ``raises`` was put in."""
    calls = []

    def handler(number, _frame):
        calls.append(number)
        if calls[0] == "raises":
            raise Interrupted

    before = signal.signal(signal.SIGUSR1, handler)
    yield calls
    signal.signal(signal.SIGUSR1, before)
    assert SHIELD.depth == 0
    assert not SHIELD.pending


def interrupt():
    signal.raise_signal(signal.SIGUSR1)


def interrupt_sleeper(endpoint):
    """Interrupt the main thread once it sleeps in a call of this endpoint."""
    while not endpoint.crank._asleep:
        time.sleep(0)
    os.kill(os.getpid(), signal.SIGUSR1)


# -- the shield ---------------------------------------------------------------------------------------------


def test_a_handler_runs_at_once_outside(calls):
    SHIELD.enter()
    SHIELD.leave()
    interrupt()
    assert calls == [signal.SIGUSR1]


def test_a_handler_waits_for_the_outermost_end(calls):
    SHIELD.enter()
    SHIELD.enter()
    interrupt()
    SHIELD.leave()
    assert calls == []
    SHIELD.leave()
    assert calls == [signal.SIGUSR1]


def test_what_a_handler_raises_comes_out_of_leave_after_the_undoing(calls):
    calls.append("raises")
    SHIELD.enter()
    interrupt()
    undone = []

    def undo(what):
        assert SHIELD.depth == 1  # nobody interrupts this
        undone.append(what)

    with pytest.raises(Interrupted):
        SHIELD.leave(undo, "the call")
    assert undone == ["the call"]


def test_nothing_is_undone_if_no_handler_raises(calls):
    SHIELD.enter()
    interrupt()
    SHIELD.leave(calls.append, "undone")
    assert calls == [signal.SIGUSR1]


def test_every_signal_that_came_is_handled_even_if_the_first_raises(calls):
    calls.append("raises")
    SHIELD.enter()
    interrupt()
    interrupt()
    with pytest.raises(Interrupted) as caught:
        SHIELD.leave()
    assert isinstance(caught.value.__context__, Interrupted)
    assert calls == ["raises", signal.SIGUSR1, signal.SIGUSR1]


def test_a_handler_runs_at_once_while_the_engine_sleeps(calls):
    calls.append("raises")
    SHIELD.enter()
    with pytest.raises(Interrupted):
        SHIELD.sleep(interrupt)
    assert SHIELD.depth == 1
    SHIELD.leave()


def test_nobody_goes_to_sleep_on_a_signal_that_came_before(calls):
    """Else Ctrl-C would wait for the next message."""
    calls.append("raises")
    SHIELD.enter()
    interrupt()
    with pytest.raises(Interrupted):
        SHIELD.sleep(pytest.fail, "went to sleep")
    SHIELD.leave()


def test_a_handler_that_is_installed_later_is_deferred_too(calls):
    SHIELD.enter()
    SHIELD.leave()
    later = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: later.append(number))
    SHIELD.enter()
    interrupt()
    assert later == []
    SHIELD.leave()
    assert later == [signal.SIGUSR1]
    assert calls == []


def test_a_handler_that_was_saved_and_put_back_is_the_same(calls):
    SHIELD.enter()
    SHIELD.leave()
    saved = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    interrupt()
    signal.signal(signal.SIGUSR1, saved)
    interrupt()
    assert calls == [signal.SIGUSR1]


def test_other_threads_have_no_handlers_to_defer():
    entered = []
    thread = threading.Thread(target=lambda: entered.append(SHIELD.enter()))
    thread.start()
    thread.join()
    assert entered == [False]
    assert SHIELD.depth == 0


# -- calls that are interrupted -----------------------------------------------------------------------------


def test_a_receive_that_waits_is_interrupted(calls, join, beside):
    calls.append("raises")
    a, b = join()
    beside(interrupt_sleeper, b)
    with pytest.raises(Interrupted):
        b.receive(CONTEXT, 0, 0, deadline=Deadline.after(10))
    a.send(1, CONTEXT, 0, "not for the one that was interrupted")
    settle(a, b)
    assert b.receive(CONTEXT, 0, 0).take() == "not for the one that was interrupted"


def test_a_send_that_waits_is_withdrawn(calls, join, beside):
    calls.append("raises")
    a, b = join(unmatched_limit=0)
    beside(interrupt_sleeper, a)
    with pytest.raises(Interrupted):
        a.send(1, CONTEXT, 0, bytes(100_000), deadline=Deadline.after(10))
    a.send(1, CONTEXT, 0, "the next")
    assert b.receive(CONTEXT, 0, 0).take() == "the next"


@pytest.mark.parametrize("exchange", ["recv", "sendrecv"])
def test_an_interrupt_after_the_message_was_taken_puts_it_back(calls, join, monkeypatch, exchange):
    """The last moment: the value is made, and the call is about to return it."""
    a, b = join()
    comm = Comm(Family(b, None), [0, 1], 64, ["here"] * 2)
    a.open_context(64, [0, 1], collective=False)
    a.send(1, 64, 0, ["once"])
    take = Comm._take

    def interrupted_take(*args):
        monkeypatch.undo()
        calls.append("raises")
        value = take(*args)
        interrupt()
        return value

    monkeypatch.setattr(Comm, "_take", interrupted_take)
    with pytest.raises(Interrupted):
        comm.recv(0, timeout=5) if exchange == "recv" else comm.sendrecv("mine", 0, 0, timeout=5)
    assert comm.recv(0, timeout=5) == ["once"]
    if exchange == "sendrecv":
        assert a.receive(64, 1, 0, deadline=Deadline.after(5)).take() == "mine"


def test_an_interrupt_while_a_value_is_pickled_is_not_an_error_of_pickling(calls, join):
    calls.append("raises")

    class Slow:
        def __reduce__(self):
            interrupt()
            return int, ()

    a, _ = join()
    with pytest.raises(Interrupted):
        a.send(1, CONTEXT, 0, Slow())


@pytest.mark.parametrize("role", ["receive", "send", "share"])
def test_a_stream_of_messages_survives_thousands_of_interruptions(role):
    """Receiving: each message once and in order. Sending: each in order and whole, twice only if it was sent twice."""
    run_program(PROGRAM, role, INTERRUPTIONS)
