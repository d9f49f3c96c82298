"""Methods that clients may call: what `call` and `cast` make of a function in a server's class.

The decorated method is three things. In the server it is the method. On the class it is the function, for ``help()``
and ``inspect``. On a stub it is what sends (`stub.py` puts that there); for a type checker it is that everywhere,
because only there can a mistake be made.

A stub refuses wrong arguments as the interpreter would, by asking the interpreter: `checker` makes a function
with the same parameters and no body. Binding with `inspect` costs as much as the whole call.
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from rmpi.errors import UsageError

if TYPE_CHECKING:
    from rmpi.rpc.futures import Future

P = ParamSpec("P")
R = TypeVar("R")


class Calling(Protocol[P, R]):
    """A `call` of a server, as its clients have it."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, *args: Any, timeout: float | None, **kwargs: Any) -> R:
        """Call it and wait for the answer, at most ``timeout`` seconds; see `Server.with_timeout`."""

    def future(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call it, and go on: what the answer will be in."""


class Casting(Protocol[P]):
    """A `cast` of a server, as its clients have it."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None: ...
    @overload
    def __call__(self, *args: Any, timeout: float | None, **kwargs: Any) -> None:
        """Send it, waiting at most ``timeout`` seconds where there is no room."""


class Remote:
    """A method that clients may call.

    Attributes:
        function: As it stands in the class.
    """

    decorator = ""

    def __init__(self, function: Callable[..., Any]) -> None:
        if not inspect.isfunction(function) or inspect.iscoroutinefunction(function) or _is_async(function):
            kind = "async def" if inspect.isfunction(function) else type(function).__name__
            raise UsageError(
                f"@rpc.{self.decorator} is for the ordinary methods of an rpc.Server, not for {kind}: "
                "a server does one thing at a time, and what runs meanwhile is its clients"
            )
        self.function = function
        update_wrapper(self, function)  # type: ignore[arg-type]  # it is for callables, but asks no such thing

    @property
    def streams(self) -> bool:
        """Whether it is a generator, whose items are sent one by one."""
        return inspect.isgeneratorfunction(self.function)

    def _in(self, instance: object | None, owner: type[Any] | None) -> Any:
        return self.function if instance is None else self.function.__get__(instance, owner)


class Call(Remote, Generic[P, R]):
    """What `call` makes."""

    decorator = "call"

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Callable[Concatenate[Any, P], R]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> Calling[P, R]: ...
    def __get__(self, instance: object | None, owner: type[Any] | None = None) -> Any:
        return self._in(instance, owner)


class Cast(Remote, Generic[P]):
    """What `cast` makes."""

    decorator = "cast"

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        if self.streams:
            raise UsageError(f"{function.__qualname__} yields, and a cast has no answer: make it an rpc.call")

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Callable[Concatenate[Any, P], object]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> Casting[P]: ...
    def __get__(self, instance: object | None, owner: type[Any] | None = None) -> Any:
        return self._in(instance, owner)


def call(function: Callable[Concatenate[Any, P], R]) -> Call[P, R]:
    """Decorate a method that clients call and whose answer they get: what it returns, or what it raises.

    A generator is a stream: the client iterates over what it yields, and it is at most 16 items ahead. Between two
    items the server does other work, so what others call can happen in the middle of it.

    Arguments and results travel as messages do: arrays as raw memory, anything else pickled. They are copies.
    """
    return Call(function)


def cast(function: Callable[Concatenate[Any, P], object]) -> Cast[P]:
    """Decorate a method that clients call without waiting. Nothing comes back; what it raises is logged there."""
    return Cast(function)


def remotes_of(cls: type[Any]) -> dict[str, Remote]:
    """The methods of a class that clients may call, those it inherits too."""
    found = {name: inspect.getattr_static(cls, name, None) for name in dir(cls)}
    return {name: each for name, each in found.items() if isinstance(each, Remote)}


def checker(function: Callable[..., Any], qualname: str) -> Callable[..., None]:
    """A function that does nothing, and cannot be called with what ``function`` cannot be called with.

    Args:
        qualname: How errors call it.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C, or with a __signature__ of its own that is none
        return _anything
    if not all(each.name.isidentifier() and not keyword.iskeyword(each.name) for each in parameters):
        return _anything
    bare = [
        each.replace(annotation=each.empty, default=each.default if each.default is each.empty else None)
        for each in parameters
    ]
    namespace: dict[str, Any] = {}
    exec(f"def check{inspect.Signature(bare)}: pass", namespace)
    check: Callable[..., None] = namespace["check"]
    check.__name__, check.__qualname__ = qualname.rpartition(".")[2], qualname
    return check


def _anything(*_args: Any, **_kwargs: Any) -> None:
    pass


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.isasyncgenfunction(function)
