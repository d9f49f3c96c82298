"""One class that is a server, the typed client of it, and its manual.

    class Bank(rpc.Server):
        "Accounts by name. One place has them, so nobody locks anything."

        def __init__(self, opening: int = 0) -> None:
            self._balances: dict[str, int] = {}
            self._opening = opening

        @rpc.call
        def add(self, who: str, amount: int) -> int:
            "Add to an account, which there will be; its balance."
            self._balances[who] = self._balances.get(who, self._opening) + amount
            return self._balances[who]

        @rpc.cast
        def audit(self) -> None:
            self.log(f"{len(self._balances)} accounts")

    bank = Bank.at(node, name="bank")           # a place with a Bank in it, and a stub
    bank = Bank.connect(node, "bank")           # another client's stub
    bank.add("alice", 10)                       # 10
    bank.add("alice", 10, timeout=2)
    bank.add.future("alice", 10).result()
    bank.audit()                                # does not wait

`Server.at` and `Server.connect` are declared to return an instance, and return what answers to the same calls from afar
(`stub.py`). In the place, `Serving` makes the real instance and has `Service` run it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import copy
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rmpi.errors import UsageError
from rmpi.rpc.connection import Connection
from rmpi.rpc.methods import Remote, checker, remotes_of
from rmpi.rpc.serving import Service

if TYPE_CHECKING:
    from typing import Self

    from rmpi.places.channel import Channel, Mailbox
    from rmpi.places.handles import Kind, Node


class Server:
    """Derive from this; decorate with `rpc.call` and `rpc.cast` what clients may call.

    The names below are taken; a method that clients call cannot have them.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_is_stub" not in vars(cls):
            for name, value in vars(cls).items():
                _check_member(cls, name, value)

    @classmethod
    def at(
        cls, node: Node, *args: Any, name: str = "", restart: object = None, kind: Kind = "process", **kwargs: Any
    ) -> Self:
        """Start a place on ``node`` that serves an instance of this class; a stub of it.

        Used as a context manager, the stub stops the server at the end.

        Args:
            args, kwargs: For ``__init__``, which runs in the place. They are copies, like arguments of calls.
            name: Under which others find it with `connect`; "": it is known to those who are given a stub.
            restart: As for ``node.spawn``. A restarted server begins with ``__init__``, and clients go on with it.
            kind: ``"process"``, or ``"thread"`` of the node.

        Raises:
            TypeError: ``__init__`` has other parameters.
            RemoteError: ``__init__`` raised; there is no place.
            UsageError, PeerLost: As for ``node.spawn``.
        """
        from rmpi.rpc.stub import stub_over

        checker(cls.__init__, f"{cls.__qualname__}.__init__")(None, *args, **kwargs)
        place = node.spawn(Serving(cls), args, kwargs, name=name, restart=restart, kind=kind)
        channel = copy(place)  # a channel to it and no more: closing that does not end the server
        return stub_over(cls, Connection(channel, cls.__qualname__, place, restart not in (None, False)), None)

    @classmethod
    def connect(cls, node: Node, name: str) -> Self:
        """A stub of the server that is the place ``name`` on ``node``. Any number of clients may have one.

        Raises:
            NameNotFound: No place there has that name.
        """
        return cls.over(node.connect(name))

    @classmethod
    def over(cls, channel: Channel) -> Self:
        """A stub of the server to whose inbox ``channel`` leads."""
        from rmpi.rpc.stub import make_stub

        return make_stub(cls, channel)

    def with_timeout(self, seconds: float | None) -> Self:
        """A stub of the same server whose calls raise `DeadlineExceeded` after so many seconds; of a stream, each item.

        ``stub.method(…, timeout=seconds)`` says the same for one call, where the method has no ``timeout`` of its own.
        What is late may still be executed, and its answer is dropped; the server begins nothing of which it knows.
        """
        raise _only_of_stubs(self, "with_timeout")

    def log(self, message: object, *args: object, level: int = logging.INFO) -> None:
        """Log as `logging` does, by a logger with the name of the class; see there how a system shows it.

        Args:
            message, args: ``message % args``, if there are any.
        """
        logger_of(type(self)).log(level, message, *args)

    def __enter__(self) -> Self:
        """Of a stub: it is used for as long as the block lasts."""
        raise _only_of_stubs(self, "with")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Of a stub: `stop` the server if `at` made it, else only `close` the stub."""


_RESERVED = {name for name in vars(Server) if not name.startswith("__")}


def _check_member(cls: type[Any], name: str, value: object) -> None:
    """Raises `UsageError` for what could not be called, or no longer."""
    if isinstance(value, Remote):
        if name in _RESERVED:
            raise UsageError(f"{cls.__qualname__}.{name} cannot be called by clients: {name!r} is a name of rpc.Server")
        return
    inherited = next((each for base in cls.__mro__[1:] if isinstance(each := vars(base).get(name), Remote)), None)
    if inherited is not None:
        raise UsageError(
            f"{cls.__qualname__}.{name} takes the place of {inherited.function.__qualname__}, which clients call: "
            f"decorate it with @rpc.{inherited.decorator} too"
        )


def _only_of_stubs(server: Server, what: str) -> UsageError:
    kind = type(server).__qualname__
    return UsageError(f"{what} is for clients: this is the {kind} itself, not what {kind}.at or .connect returned")


def logger_of(cls: type[Any]) -> logging.Logger:
    """The logger of a class of servers."""
    return logging.getLogger(f"{cls.__module__}.{cls.__qualname__}")


def serve(server: Server, mailbox: Mailbox) -> None:
    """Serve an instance of one's own class of servers here, until the mailbox is closed, or a client stops the server.

    What `Server.at` does in a place; so a program is a server itself, for its places and guests:

        with places.open_mailbox("bank") as mailbox:
            rpc.serve(Bank(), mailbox)  # they call Bank.connect(node, "bank")
    """
    cls = type(server)
    methods = {name: getattr(server, name) for name in remotes_of(cls)}
    Service(mailbox, methods, cls.__qualname__, logger_of(cls)).run()


class Serving:
    """What runs in the place of a server of class ``cls``; an object, so that the place is called after that class."""

    def __init__(self, cls: type[Server]) -> None:
        self._cls = cls
        self.__qualname__ = cls.__qualname__

    def prepare(self, mailbox: Mailbox, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], None]:
        """Make the instance, and return what serves it. The place is starting still: `Server.at` is told of errors."""
        return partial(serve, self._cls(*args, **kwargs), mailbox)

    def __call__(self, mailbox: Mailbox, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.prepare(mailbox, args, kwargs)()
