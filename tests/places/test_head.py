"""The head of a system in the program's own process: what the program does to it, and its own end."""

import errno
import logging
import os
import select
import socket
import sys
import threading
from functools import partial

import pytest

from rmpi import places
from rmpi.errors import ChannelClosed, PeerLost
from rmpi.places import system
from rmpi.places.printing import Lines, Printer
from rmpi.places.system_messages import Record

SOON = 20


@pytest.fixture
def head():
    yield system.system_of_this_process()
    places.shutdown()


def test_a_filter_of_the_programs_that_raises_ends_nothing(head, capfd):
    """What places log is logged in the thread of the head."""

    def spoil(_record):
        raise LookupError("a filter with a mistake")

    logger = logging.getLogger("row.spoilt")
    logger.addFilter(spoil)
    try:
        head.member.log(Record(0, logging.ERROR, logger.name, "text", 0.0))
        assert places.here().status().state == "up"
    finally:
        logger.removeFilter(spoil)
    places.shutdown()
    told = "rmpi: logging a record of the main program raised LookupError: a filter with a mistake"
    assert told in capfd.readouterr().err


def test_a_head_that_fails_says_so_and_all_ends(head, capfd, monkeypatch):
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    sleep = places.here().spawn_command(["sleep", "600"])
    process = os.pidfd_open(sleep.pid)
    head._loop.post(lambda: 1 // 0)
    with pytest.raises(PeerLost, match="has no head any more"):
        sleep.wait(SOON)
    assert select.select([process], [], [], SOON)[0]
    os.close(process)
    with pytest.raises(PeerLost, match="has no head any more"):
        places.here().status()
    places.shutdown()
    assert [each.exc_type for each in raised] == [ZeroDivisionError]
    assert "rmpi: the head of this system has failed, which ends all of it: ZeroDivisionError" in capfd.readouterr().err
    assert places.here().status().state == "up"  # of a new one


def test_too_many_open_files_cost_two_places_their_link(head, monkeypatch):
    place = places.here().spawn("row_places:echo")

    def shortage(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", shortage)
    place.put("Hello")
    with pytest.raises(PeerLost, match="its node cannot join them: Too many open files"):
        place.get(SOON)
    assert head.member.endpoint.linked
    assert places.here().status().places[0].label == place.label


@pytest.mark.usefixtures("head")
def test_after_the_end_everybody_is_told_which():
    node = places.here()
    sleep = node.spawn_command(["sleep", "600"])
    places.shutdown()
    for want in (node.status, sleep.wait, sleep.kill, partial(node.connect, "bank")):
        with pytest.raises(ChannelClosed, match=r"was ended, by places.shutdown\(\)"):
            want()


def test_a_stream_of_the_programs_that_fails_ends_no_output(monkeypatch):
    """Whoever waits for a place waits until all that it wrote was shown."""
    written = []

    class Stream:
        def write(self, text):
            written.append(text)
            raise RuntimeError

    monkeypatch.setattr(sys, "stderr", Stream())
    printer = Printer(None, lambda: None)
    for line in ("one", "two"):
        printer.say(line)
    printer.write(1, 2, b"three\nfour\n", lambda: written.append("shown"))
    printer.close()
    assert written == ["one\n", "two\n", "three\n", "four\n", "shown"]


def test_nothing_is_kept_of_output_that_has_ended():
    lines = Lines()
    assert lines.feed(1, 1, b"whole\nhalf") == ["whole"]
    assert lines.feed(1, 1, b"") == ["half"]
    assert lines.feed(1, 2, b"") == []
    assert lines._held == {}
