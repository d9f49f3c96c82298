"""Values by name, as a server for any number of clients.

    TupleServer.at(node, name="tuples")
    tuples = TupleServer.connect(node, "tuples")      # each client, wherever it runs
    tuples.set("user0", 100)

`named.py` and `log_to_parent.py` are its clients.
"""

from __future__ import annotations

import logging

from rmpi import rpc


class TupleServer(rpc.Server):
    """What one client sets, all get."""

    def __init__(self) -> None:
        self._values: dict[str, int] = {}

    @rpc.cast
    def hello(self) -> None:
        """Write a line where the server runs; it is shown where the program runs. Nobody waits for that."""
        print("Hello from define-cast")

    @rpc.call
    def set(self, name: str, value: int) -> int:
        """Set a value, and return it."""
        self.log("%s set to %s", name, value, level=logging.DEBUG)
        self._values[name] = value
        return value

    @rpc.call
    def get(self, name: str) -> int | None:
        """The value of that name; None if it has none."""
        return self._values.get(name)
