"""Objects in places, and calls to them: one class is the server, its typed client, and the manual of both.

    from rmpi import rpc

    class Bank(rpc.Server):
        @rpc.call
        def add(self, who: str, amount: int) -> int: ...

    bank = Bank.at(node, name="bank")
    bank.add("alice", 10)

`rmpi.rpc.server` has the whole example. The names below are loaded when they are first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmpi.errors import RemoteError as RemoteError
    from rmpi.rpc.futures import Future as Future
    from rmpi.rpc.methods import call as call
    from rmpi.rpc.methods import cast as cast
    from rmpi.rpc.server import Server as Server
    from rmpi.rpc.server import serve as serve
    from rmpi.rpc.streams import Stream as Stream
    from rmpi.rpc.stub import close as close
    from rmpi.rpc.stub import place_of as place_of
    from rmpi.rpc.stub import stop as stop

_HOME_OF = {
    "RemoteError": "rmpi.errors",
    "Future": "rmpi.rpc.futures",
    "call": "rmpi.rpc.methods",
    "cast": "rmpi.rpc.methods",
    "Server": "rmpi.rpc.server",
    "serve": "rmpi.rpc.server",
    "Stream": "rmpi.rpc.streams",
    "close": "rmpi.rpc.stub",
    "place_of": "rmpi.rpc.stub",
    "stop": "rmpi.rpc.stub",
}

__all__ = [*_HOME_OF]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'rmpi.rpc' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
