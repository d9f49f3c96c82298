"""Many places at once: a server, workers, one that is restarted for ever, and timers.

    python examples/places/multiple.py

Three workers greet 5, 7 and 9 times, a sleeper naps and is started again, a bank is used, and a timer greets as well.
In whatever order it happens, there are these lines:

    Hello from every-seconds
    (1732207342.061, 'HI', 0)
    BEGINING SLEEP
    ('created', 'user0')
    ('ok', 10)
    ('ok', 5)
    Hello from every-seconds
    (1732207342.111, 'HI', 1)
    SLEEP DONE

The program ends when the workers have. Its ancestor never did, and took sixty times as long for everything: a greeting
of the timer every 3.3 s, of each worker every 3 s, naps of 5 s, and the bank after 2 s.
"""

from __future__ import annotations

import sys
import time

from bank import Bank

from rmpi import places

UNIT = 1 / 60
"""Seconds that take the place of one."""


def worker(_mailbox: places.Mailbox, greetings: int) -> None:
    for number in range(greetings):
        print((round(time.time(), 3), "HI", number))
        time.sleep(3 * UNIT)


def sleeper(_mailbox: places.Mailbox) -> None:
    print("BEGINING SLEEP")
    time.sleep(5 * UNIT)
    print("SLEEP DONE")


def say(what: object) -> None:
    """A line in one piece. `print` writes it in two, and functions of a router run beside each other."""
    sys.stdout.write(f"{what}\n")


def main() -> None:
    node = places.here()
    bank = Bank.at(node)

    def greet() -> None:
        say("Hello from every-seconds")

    def use_bank() -> None:
        say(bank.new_account("user0"))
        say(bank.add("user0", 10))
        say(bank.remove("user0", 5))

    with places.MessageRouter(places.every(3.3 * UNIT, greet), places.after(2 * UNIT, use_bank)):  # in a thread
        node.spawn("multiple:sleeper", restart=places.restart_every(UNIT))
        workers = [node.spawn("multiple:worker", greetings) for greetings in (5, 7, 9)]
        for each in workers:
            each.wait()


if __name__ == "__main__":
    main()
