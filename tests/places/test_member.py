"""A process as a member of a system, whose head is played by hand: who waits for what, and what it says."""

import logging
import os
import signal
import time

import pytest

from rmpi.errors import DeadlineExceeded
from rmpi.places import control, membership, monitoring
from rmpi.places.control import Control, control_pair
from rmpi.places.handles import Command
from rmpi.places.member import ForwardLogs, Member
from rmpi.places.messages import Joined
from rmpi.places.reporter import TEXT_LIMIT
from rmpi.places.supervisor import NEVER
from rmpi.places.system_messages import Enrolled, Follow, Kill, PlaceAt, PlaceGone, PlaceShown, Record
from rmpi.transport.operation import Operation

SYSTEM, ENDPOINT, PLACE = 4711, 3 << 20 | 7, 9
GONE, SHOWN = PlaceGone(PLACE, "exit status 3", 3, True, ""), PlaceShown(PLACE)


@pytest.fixture
def head():
    """The other end of its control socket."""
    ours, theirs = control_pair()
    head = Control(ours)
    head.send(Enrolled(SYSTEM, ENDPOINT, 2, 3, "me", "here", 0, 0, False, 1 << 30, 0, b""))
    head.theirs = theirs
    yield head
    head.close()


@pytest.fixture
def member(head):
    member = Member(Control(head.theirs))
    membership.register(member)
    assert told(head) == [Joined()]
    yield member
    membership.unregister(member)
    member.close()


@pytest.fixture
def command(head, member):
    """A program that was spawned, and runs."""
    command = Command(member, PLACE, None, "", "work", NEVER)
    assert told(head) == [Follow(PLACE)]
    head.send(PlaceAt(PLACE, 99, "work", 500, 0, False))
    assert command.pid == 500
    return command


def told(head):
    """What the head was told since."""
    return [message for message, _ in head.receive()]


def test_many_threads_wait_for_the_same_end(head, member, command, beside):
    """One of them makes progress for all, on behalf of something else, and goes on with that."""
    other = Operation()
    leader = beside(member.endpoint.wait, (other,))
    while not member.endpoint.crank.leads:
        time.sleep(0)
    waiting = [beside(command.wait, 60) for _ in range(3)]
    while len(member.endpoint.crank._followers) < len(waiting):
        time.sleep(0)
    for news in (GONE, SHOWN):
        head.send(news)
    assert [each.join() for each in waiting] == [3, 3, 3]
    member.endpoint.end(other)
    leader.join()


def test_who_waits_no_longer_takes_no_wake_up_away(head, member, command, beside):
    waiting = beside(command.wait, 60)
    while not member.endpoint.crank.leads:
        time.sleep(0)
    with pytest.raises(DeadlineExceeded, match="work had not ended after 0 s"):
        command.wait(0)
    for news in (GONE, SHOWN):
        head.send(news)
    assert waiting.join() == 3


def test_a_monitor_may_be_closed_before_anything_was_heard(member, command):
    monitoring.monitor(command).close()
    member.endpoint.progress()
    assert command.alive


def test_a_record_of_any_length_is_logged_without_its_middle(head, member):
    """A place that says more at once than its node takes would be ended for it."""
    record = logging.makeLogRecord({"name": "row", "levelno": logging.INFO, "msg": "a" * (1 << 20)})
    ForwardLogs(member).emit(record)
    (said,) = told(head)
    assert isinstance(said, Record)
    assert len(said.text) < 2 * TEXT_LIMIT
    assert "characters left out" in said.text


def test_a_record_may_have_numbers_of_any_kind(head, member):
    record = logging.makeLogRecord({"name": "row", "levelno": True, "msg": "text", "created": 5})
    ForwardLogs(member).emit(record)
    assert told(head) == [Record(0, 1, "row", "text", 5.0)]


def test_a_signal_that_raises_has_nothing_said_twice(head, member, monkeypatch):
    send = control._send_fds

    def interrupted(*args):
        send(*args)
        os.kill(os.getpid(), signal.SIGUSR1)

    def leave(*_):
        raise SystemExit

    before = signal.signal(signal.SIGUSR1, leave)
    try:
        monkeypatch.setattr(control, "_send_fds", interrupted)
        with pytest.raises(SystemExit):
            member.tell(Kill(1, PLACE, 9))
        monkeypatch.setattr(control, "_send_fds", send)
        member.tell(Kill(2, PLACE, 9))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert told(head) == [Kill(1, PLACE, 9), Kill(2, PLACE, 9)]
