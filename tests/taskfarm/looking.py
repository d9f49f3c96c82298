"""To look at what is left, and to wait until it is so."""

import time


def check_forgotten(master):
    """Nothing is kept of what is done."""
    engine = master._farm
    scheduler = engine._scheduler
    assert (scheduler.waiting, scheduler._queue, scheduler._bound) == (0, type(scheduler._queue)(), {})
    assert [link for link in engine._links if link.pending or link.late] == []
    until(lambda: engine._settling == 0)
    until(lambda: not master._talks)


def until(condition, limit=20.0, what=lambda: "it never was so"):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.002)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False
