"""Servers on another node: one that is found by its name, and one of our own.

    python examples/places/named.py

Two clients of the named server share its values: what ``c`` sets, ``d`` gets. Then somebody uses a bank.

    Hello from define-cast
    Hello from define-cast
    100
    200
    100
    200
    100
    200
    ('created', 'user0')
    ('ok', 10)
    ('ok', 5)

The ancestor of this program did the first part after 2 s, the second after 4, and ended after 10. Here one thing simply
follows the other.
"""

from __future__ import annotations

from bank import Bank
from tuple_server import TupleServer

from rmpi import places


def use_tuples(node: places.Node) -> None:
    with TupleServer.at(node, name="tuple server"):  # when this ends, it has ended, and its lines were shown
        c = TupleServer.connect(node, "tuple server")
        d = TupleServer.connect(node, "tuple server")
        c.hello()
        d.hello()
        was_set = c.set("user0", 100), d.set("user2", 200)
        found = c.get("user0"), d.get("user2"), d.get("user0"), c.get("user2")
    print(*was_set, *found, sep="\n")


def use_bank(node: places.Node) -> None:
    bank = Bank.at(node)
    print(bank.new_account("user0"))
    print(bank.add("user0", 10))
    print(bank.remove("user0", 5))


def main() -> None:
    with places.create_node() as node:
        use_tuples(node)
        use_bank(node)


if __name__ == "__main__":
    main()
