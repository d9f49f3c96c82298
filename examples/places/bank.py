"""A bank as a server: one place has the accounts and does one thing at a time, so nobody locks anything.

    bank = Bank.at(node)
    bank.new_account("alice")      # ('created', 'alice')
    bank.add("alice", 10)          # ('ok', 10)

`named.py`, `thread.py`, `multiple.py` and `log_to_parent.py` are its clients.
"""

from __future__ import annotations

import logging
from typing import TypeAlias

from rmpi import rpc

Answer: TypeAlias = tuple[str] | tuple[str, str] | tuple[str, int]
"""created, ok, already-exists, invalid-account or insufficient-funds; and whose account, or what is in it."""


class Bank(rpc.Server):
    """Accounts by the names of their owners."""

    def __init__(self) -> None:
        self._balances: dict[str, int] = {}

    @rpc.call
    def new_account(self, who: str) -> Answer:
        """Open an account with nothing in it: created, or already-exists."""
        if who in self._balances:
            return ("already-exists",)
        self.log("Logging new account for %s", who, level=logging.DEBUG)
        self._balances[who] = 0
        return "created", who

    @rpc.call
    def add(self, who: str, amount: int) -> Answer:
        """Pay in: ok and the balance, or invalid-account."""
        if who not in self._balances:
            return "invalid-account", who
        self._balances[who] += amount
        return "ok", self._balances[who]

    @rpc.call
    def remove(self, who: str, amount: int) -> Answer:
        """Take out: ok and the balance, insufficient-funds and the balance, or invalid-account."""
        if who not in self._balances:
            return "invalid-account", who
        if amount > self._balances[who]:
            return "insufficient-funds", self._balances[who]
        self._balances[who] -= amount
        return "ok", self._balances[who]
