"""What servers log is logged where the program runs.

    python examples/places/log_to_parent.py

The servers log every change at the level DEBUG, and have no idea who listens. This program does, by the `logging` of
the standard library: how much of it, and where to, is settled in one line here. On stdout it prints

    100
    200
    100
    200
    100
    200
    ('created', 'user1')
    ('ok', 10)
    ('ok', 5)

and on stderr go the records:

    user0 set to 100
    user2 set to 200
    Logging new account for user1

(The name of this file is not ``logging.py`` because Python would then import it instead of its own.)
"""

from __future__ import annotations

import logging

from bank import Bank
from tuple_server import TupleServer

from rmpi import places


def main() -> None:
    logging.basicConfig(level=logging.DEBUG, format="%(message)s")  # before places are spawned: they log at this level
    with places.create_node() as node, TupleServer.at(node, name="tuple server"), Bank.at(node) as bank:
        c = TupleServer.connect(node, "tuple server")
        d = TupleServer.connect(node, "tuple server")
        print(c.set("user0", 100))
        print(d.set("user2", 200))
        print(c.get("user0"))
        print(d.get("user2"))
        print(d.get("user0"))
        print(c.get("user2"))
        print(bank.new_account("user1"))
        print(bank.add("user1", 10))
        print(bank.remove("user1", 5))


if __name__ == "__main__":
    main()
