"""What a client holds: an object of the server's class whose calls travel.

A stub is an instance of a class made from the server's (`stub_class`), never initialised: its calls and casts send, all
else that belongs to a server's instance is refused, because its state is elsewhere. So for `isinstance`, ``help()`` and
a type checker it is what it stands for.

A call that waits is two operations of a channel and little else: this is the path that has to be short.
"""

from __future__ import annotations

import inspect
from types import FunctionType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from rmpi.deadline import Deadline
from rmpi.errors import DeadlineExceeded, PeerLost, UsageError
from rmpi.rpc.connection import Connection
from rmpi.rpc.futures import Answers, Future
from rmpi.rpc.messages import CAST, LIMITED, NO_VALUES
from rmpi.rpc.methods import Call, Remote, checker, remotes_of
from rmpi.rpc.server import Server
from rmpi.rpc.streams import Stream

if TYPE_CHECKING:
    from rmpi.places.channel import Channel
    from rmpi.places.handles import Place

S = TypeVar("S")


class Sender:
    """A method of one stub."""

    __slots__ = ("_check", "_connection", "_idle", "_limit", "_name", "_stub_limits", "remote")

    def __init__(self, connection: Connection, timeout: float | None, name: str, spec: Spec) -> None:
        self._connection = connection
        self._idle = connection.idle
        self._limit = timeout
        self._name = name
        self._check = spec.check
        self._stub_limits = spec.stub_limits
        self.remote = spec.remote

    def _split(self, kwargs: dict[str, Any]) -> float | None:
        """Take ``timeout`` out of the keyword arguments, unless it is one of the method's."""
        if self._stub_limits and "timeout" in kwargs:
            timeout: float | None = kwargs.pop("timeout")
            Deadline.after(timeout)
            return timeout
        return self._limit

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(self.remote.function)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __repr__(self) -> str:
        return f"<{self.remote.decorator} {self.remote.function.__qualname__} of {self._connection.label}>"

    def _late(self, timeout: float | None, error: DeadlineExceeded, sent: bool) -> DeadlineExceeded:
        """The error of a call whose time ran out before or after it was ``sent``."""
        text = "did not answer within {0} s; the call may still be executed"
        text = text if sent else "did not take the call within {0} s: {1}"
        return DeadlineExceeded(
            f"{self.remote.function.__qualname__}: {self._connection.label} {text.format(timeout, error)}"
        )


class CallSender(Sender):
    """A call: it waits for its answer."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        timeout = self._split(kwargs) if kwargs else self._limit
        self._check(None, *args, **kwargs)
        if timeout is not None:
            return self._within(timeout, args, kwargs)
        try:
            line = self._idle.pop()
        except IndexError:
            line = self._connection.line()
        sent = False
        try:
            line.put((self._name, args, kwargs) if kwargs else (self._name, args))
            sent = True
            answer = line.get()
        except BaseException as error:
            self._give_up(line, error, sent)
            raise
        self._idle.append(line)
        if type(answer) in NO_VALUES:
            raise self._connection.error_of(answer, self.remote.function.__qualname__)
        return answer

    def _within(self, timeout: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        deadline = Deadline.after(timeout)
        line = self._connection.line()
        sent = False
        try:
            line.put((LIMITED, self._name, args, kwargs), timeout)
            sent = True
            answer = line.get(deadline.left())
        except DeadlineExceeded as error:
            self._connection.give_up(line, cancel=sent)
            raise self._late(timeout, error, sent) from None
        except BaseException as error:
            self._give_up(line, error, sent)
            raise
        self._idle.append(line)
        if type(answer) in NO_VALUES:
            raise self._connection.error_of(answer, self.remote.function.__qualname__)
        return answer

    def _give_up(self, line: Channel, error: BaseException, sent: bool) -> None:
        self._connection.give_up(line)
        if sent and isinstance(error, PeerLost):
            error.add_note(f"{self.remote.function.__qualname__} may have been executed; it is not repeated")

    def future(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send the call; its answer will be in what this returns."""
        self._check(None, *args, **kwargs)
        return _answers(self._connection).begin(self._name, args, kwargs, self.remote.function.__qualname__)


class StreamSender(Sender):
    """A call of a generator."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Stream[Any]:
        timeout = self._split(kwargs) if kwargs else self._limit
        self._check(None, *args, **kwargs)
        return Stream(self._connection, self.remote.function.__qualname__, (self._name, args, kwargs), timeout)

    def future(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """A stream is no single answer."""
        raise UsageError(f"{self.remote.function.__qualname__} yields: call it, and iterate over what it returns")


class CastSender(Sender):
    """A cast: nothing comes back."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        timeout = self._split(kwargs) if kwargs else self._limit
        self._check(None, *args, **kwargs)
        try:
            self._connection.channel.put((CAST, self._name, args, kwargs), timeout)
        except DeadlineExceeded as error:
            raise self._late(timeout, error, sent=False) from None


def _answers(connection: Connection) -> Answers:
    if connection.answers is None:
        connection.answers = Answers(connection)
    return connection.answers


# ---- classes ----


class Spec:
    """What the senders of a method have in common, found out once for each class.

    Attributes:
        stub_limits: ``timeout=`` is for the stub, because the method has no such parameter.
    """

    __slots__ = ("check", "kind", "name", "remote", "stub_limits")

    def __init__(self, name: str, remote: Remote, cls: type[Any]) -> None:
        self.name = name
        self.remote = remote
        self.check = checker(remote.function, f"{cls.__qualname__}.{name}")
        self.stub_limits = "timeout" not in inspect.signature(remote.function).parameters
        self.kind = StreamSender if remote.streams else CallSender if isinstance(remote, Call) else CastSender

    def __get__(self, stub: Any, owner: type[Any] | None = None) -> Any:
        if stub is None:
            return self.remote.function
        state = stub.__dict__
        sender = state[self.name] = self.kind(state["_connection"], state["_timeout"], self.name, self)
        return sender


class Hidden:
    """Something that only the instance in the server's place has."""

    __slots__ = ("_cls", "_name", "_value")

    def __init__(self, name: str, value: Any, cls: type[Any]) -> None:
        self._name = name
        self._value = value
        self._cls = cls

    def __get__(self, stub: Any, owner: type[Any] | None = None) -> Any:
        if stub is None:
            return self._value
        raise AttributeError(
            f"{self._name!r} is in the place of the {self._cls.__qualname__} only; "
            "clients have what is decorated with @rpc.call or @rpc.cast",
            name=self._name,
            obj=stub,
        )


class Stub:
    """What stubs of all classes have in common; it comes before the server's class."""

    _connection: Connection
    _timeout: float | None

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def with_timeout(self, seconds: float | None) -> Any:
        """See `Server.with_timeout`."""
        Deadline.after(seconds)
        return stub_over(type(self).__mro__[2], self._connection, seconds)

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._connection.place is not None:
                stop(self)
        finally:
            close(self)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(
            f"the state of a {type(self).__qualname__} is in its place, and {name!r} cannot be set here"
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"the state of a {type(self).__qualname__} is in its place: there is no {name!r} here")

    def __repr__(self) -> str:
        closed = ", closed" if self._connection.closed else ""
        return f"<stub of {type(self).__qualname__} in {self._connection.label}{closed}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return make_stub, (type(self).__mro__[2], self._connection.channel, self._timeout)

    def __del__(self) -> None:
        pass  # what the server's class does at its end is for the server


def stub_class(cls: type[S]) -> type[S]:
    """The class of the stubs of ``cls``, made when there is none."""
    for known in cls.__subclasses__():
        if known.__mro__[1:3] == (Stub, cls):
            return known
    namespace: dict[str, Any] = {name: Spec(name, remote, cls) for name, remote in remotes_of(cls).items()}
    for name, value in [*_of_instances(cls).items(), ("log", Server.log)]:
        namespace.setdefault(name, Hidden(name, value, cls))
    namespace.update(_is_stub=True, __doc__=cls.__doc__, __module__=cls.__module__, __qualname__=cls.__qualname__)
    metaclass: Any = type(cls)
    made: type[S] = metaclass(cls.__name__, (Stub, cls), namespace)
    return made


def _of_instances(cls: type[Any]) -> dict[str, Any]:
    """What only makes sense in an instance with its state: methods, properties and the like, of the user's classes."""
    found: dict[str, Any] = {}
    for each in reversed(cls.__mro__):
        if each.__module__ != "builtins" and not each.__module__.startswith("rmpi.rpc."):
            found.update(vars(each))
    return {
        name: value
        for name, value in found.items()
        if name not in _OF_CLASSES and name not in Stub.__dict__ and _is_of_instances(value)
    }


_OF_CLASSES = {"__init__", "__new__", "__init_subclass__", "__class_getitem__", "__dict__", "__weakref__"}


def _is_of_instances(value: object) -> bool:
    return isinstance(value, FunctionType) or (
        hasattr(type(value), "__get__") and not isinstance(value, (staticmethod, classmethod, type, Remote))
    )


def make_stub(cls: type[S], channel: Channel, timeout: float | None = None) -> S:
    """A stub of ``cls`` for the server behind ``channel``."""
    return stub_over(cls, Connection(channel, cls.__qualname__), timeout)


def stub_over(cls: type[S], connection: Connection, timeout: float | None) -> S:
    """A stub that shares a connection."""
    made = stub_class(cls)
    stub = object.__new__(made)
    stub.__dict__.update(_connection=connection, _timeout=timeout)
    return stub


def connection_of(stub: object) -> Connection:
    """The connection of a stub.

    Raises:
        UsageError: It is none.
    """
    if not isinstance(stub, Stub):
        raise UsageError(f"{stub!r} is no stub of an rpc.Server")
    return stub._connection


# ---- what is done with stubs: functions, because methods would take names away from servers ----


def stop(stub: object, timeout: float | None = None) -> None:
    """Have the server end when it has done what came before; wait until it has, and its place too if we spawned it.

    Raises:
        DeadlineExceeded: It has not, within ``timeout`` seconds; it will.
    """
    connection = connection_of(stub)
    deadline = Deadline.after(timeout)
    connection.stop(deadline)
    if connection.place is not None:
        connection.place.wait(deadline.left_or_none())


def close(stub: object) -> None:
    """Forget the server, which goes on: nothing can be called by this stub, or by others that share its connection."""
    connection_of(stub).close()


def place_of(stub: object) -> Place:
    """The handle of the place that `Server.at` spawned.

    Raises:
        UsageError: The stub was made by `Server.connect`, or was sent here.
    """
    connection = connection_of(stub)
    if connection.place is None:
        raise UsageError(f"{stub!r} did not start its place: only what Server.at returned has the handle of it")
    return connection.place
