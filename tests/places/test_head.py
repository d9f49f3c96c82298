"""The head of a system in the program's own process: what the program does to it, and its own end."""

import logging
import os
import select
import threading

import pytest

from rmpi import places
from rmpi.errors import PeerLost
from rmpi.places import system
from rmpi.places.printing import Lines
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


def test_nothing_is_kept_of_output_that_has_ended():
    lines = Lines()
    assert lines.feed(1, 1, b"whole\nhalf") == ["whole"]
    assert lines.feed(1, 1, b"") == ["half"]
    assert lines.feed(1, 2, b"") == []
    assert lines._held == {}
