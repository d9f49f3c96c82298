"""A place that is started again, but not for ever.

    python examples/places/restarter.py

It lives for a moment only. It is started again at once the first time, then after a pause, three times in all; when it
ends once more, a function of the program is called:

    BEGINING SLEEP
    SLEEP DONE
    BEGINING SLEEP
    SLEEP DONE
    BEGINING SLEEP
    SLEEP DONE
    BEGINING SLEEP
    SLEEP DONE
    Already retried to restart 3 times

The ancestor of this program had a place that lived for 1 s and pauses of 5 s; here both are a fiftieth of that.
"""

from __future__ import annotations

import threading
import time

from rmpi import places


def sleeper(_mailbox: places.Mailbox) -> None:
    print("BEGINING SLEEP")
    time.sleep(0.02)
    print("SLEEP DONE")


def main() -> None:
    failed = threading.Event()
    policy = places.restart_every(0.1, retries=3, on_final_fail=failed.set)
    place = places.here().spawn("restarter:sleeper", restart=policy)
    failed.wait()
    place.wait()  # until all that it wrote was shown
    print(f"Already retried to restart {place.restarts} times")


if __name__ == "__main__":
    main()
