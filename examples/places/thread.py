"""A server that is a thread of its node, and not a process.

    python examples/places/thread.py

    ('created', 'user0')
    ('ok', 10)
    ('ok', 5)

Threads of a node share one process: they start faster and take less memory, but also take turns (there is one
interpreter lock), and nobody can kill one alone.
"""

from __future__ import annotations

from bank import Bank

from rmpi import places


def main() -> None:
    bank = Bank.at(places.here(), kind="thread")
    print(bank.new_account("user0"))
    print(bank.add("user0", 10))
    print(bank.remove("user0", 5))


if __name__ == "__main__":
    main()
