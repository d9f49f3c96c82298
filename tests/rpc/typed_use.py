"""What a type checker makes of servers and their clients: nobody runs this, mypy reads it (see ``pyproject.toml``).

One class is both sides: what is right is accepted with the types of the method, and what is wrong is an error, which is
said to be expected here and would be missed if it was not found.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import assert_type

import numpy as np
import numpy.typing as npt

from rmpi import places, rpc

Vector = npt.NDArray[np.float64]


class Bank(rpc.Server):
    def __init__(self, opening: int = 0) -> None:
        self._balances: dict[str, int] = {}
        self._opening = opening

    @rpc.call
    def add(self, who: str, amount: int = 1, *, note: str | None = None) -> int:
        self._balances[who] = self._balances.get(who, self._opening) + amount
        self.log("%s: %s", who, note)
        return self._balances[who]

    @rpc.call
    def mean(self, values: Vector) -> float:
        assert_type(self.add("all"), int)
        return float(values.mean())

    @rpc.call
    def names(self, prefix: str = "") -> Iterator[str]:
        yield from (name for name in self._balances if name.startswith(prefix))

    @rpc.cast
    def audit(self, deep: bool = False) -> None:
        self.log(f"{len(self._balances)} accounts, {deep}")


class SavingsBank(Bank):
    @rpc.call
    def add(self, who: str, amount: int = 10, *, note: str | None = None) -> int:
        return super().add(who, amount, note=note)


def right(node: places.Node) -> None:
    bank = Bank.at(node, 100, name="bank")
    assert_type(bank, Bank)
    assert_type(Bank.connect(node, "bank"), Bank)
    assert_type(SavingsBank.connect(node, "savings"), SavingsBank)
    assert_type(bank.with_timeout(2), Bank)
    assert_type(bank.add("alice"), int)
    assert_type(bank.add(amount=3, who="alice", note="present"), int)
    assert_type(bank.add("alice", 3, timeout=2.5), int)
    assert_type(bank.mean(np.zeros(3)), float)
    assert_type(bank.names("a"), Iterator[str])
    assert_type(bank.audit(deep=True), None)
    future = bank.add.future("alice", 10)
    assert_type(future, rpc.Future[int])
    assert_type(future.result(timeout=1), int)
    standard: futures.Future[int] = future
    futures.wait([standard])
    plain: Callable[[str], int] = bank.add
    plain("alice")
    with SavingsBank.at(node) as savings:
        assert_type(savings, SavingsBank)
        assert_type(savings.add("alice"), int)
    rpc.stop(bank, timeout=3)


async def awaited(bank: Bank) -> None:
    assert_type(await bank.add.future("alice"), int)
    assert_type(await asyncio.gather(bank.add.future("a"), bank.mean.future(np.zeros(2))), tuple[int, float])


def wrong(bank: Bank) -> None:
    bank.add()  # type: ignore[call-overload]
    bank.add(7)  # type: ignore[call-overload]
    bank.add("alice", "ten")  # type: ignore[call-overload]
    bank.add("alice", amuont=10)  # type: ignore[call-overload]
    bank.with_timeout(2).add(7)  # type: ignore[call-overload]
    bank.add.future(7)  # type: ignore[arg-type]
    bank.subtract("alice")  # type: ignore[attr-defined]
    bank.audit("deep")  # type: ignore[call-overload]
    bank.audit.future()  # type: ignore[attr-defined]
    text: str = bank.add("alice")  # type: ignore[assignment]
    print(text)


def alone() -> None:
    bank = Bank()
    assert_type(bank.add("alice"), int)
    assert_type(Bank.add(bank, "alice"), int)
