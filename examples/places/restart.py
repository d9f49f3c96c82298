"""A place that is started again whenever it ends.

    python examples/places/restart.py

It sleeps, says so, and ends; and does it again, ten times:

    BEGINING SLEEP
    SLEEP DONE
    BEGINING SLEEP
    SLEEP DONE
    ...

The ancestor of this program slept for 5 s, and ended after 50. Here it sleeps for 0.03 s, and the program counts. A
place with ``restart=True`` that lives for less than a second is taken for one that cannot live, and is given pauses;
hence `restart_every`, which says how long is long enough.
"""

from __future__ import annotations

import time

from rmpi import places

NAP = 0.03
"""Seconds."""

NAPS = 10


def sleeper(_mailbox: places.Mailbox) -> None:
    print("BEGINING SLEEP")
    time.sleep(NAP)
    print("SLEEP DONE")


def main() -> None:
    place = places.here().spawn("restart:sleeper", restart=places.restart_every(NAP / 2))
    with places.monitor(place) as events:
        for event in events:  # "up", and "down" when it has ended, with the reason
            if event.restarts == NAPS:
                break
    place.terminate()  # in the middle of its next nap, most likely
    place.wait()


if __name__ == "__main__":
    main()
