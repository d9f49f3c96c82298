"""Functions, values and exceptions on their way to another interpreter and back.

A pickle holds functions and classes by name: whoever opens it imports them. That is right for what stands in a module
that ranks can import, and wrong for what stands nowhere they could find it: the script or notebook
(``__main__``, which the ranks must not run again), nested functions, lambdas, modules that are on no path. Those
travel *by value*, which takes ``cloudpickle``; it is imported only then. Which of the two it is to be is found out
while pickling, for each function and class that is met, also inside arguments and results.

What comes back is a `Failure` or a value. An exception is pickled alone and opened by its receiver alone, so one
that cannot be pickled, or not be made again from what its pickle holds, costs nothing but its type: then the text
of its traceback comes as a `RemoteError`.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, TracebackType
from typing import Any

from rmpi.errors import PeerLost, RemoteError, UsageError
from rmpi.places.reporter import shortened, traceback_text

INSTALL = "pip install 'rmpi[notebook]'"

_VALUE, _FAILURE = b"V", b"F"
"""First byte of what a rank sends back."""


def pack_value(value: object, what: str) -> bytes:
    """``value`` as bytes, for `open_value` in another interpreter.

    Args:
        what: What this is, for errors: "the function", "the result of rank 3".

    Raises:
        UsageError: It cannot be pickled, or only by ``cloudpickle``, which is not installed.
    """
    pickler = _ByName()
    try:
        data = pickler.pickled(value)
        why = ""
    except Exception as error:  # PicklingError, AttributeError, TypeError, and whatever a __reduce__ raises
        data, why = b"", f"{type(error).__name__}: {error}"
    if data and not pickler.strangers:
        return data
    found = why or f"{_listed(pickler.strangers)} cannot be imported by a rank"
    return _by_value(value, what, found)


def open_value(data: bytes) -> Any:
    """What `pack_value` was given."""
    return pickle.loads(data)


# ---- by name or by value ----


class _ByName(pickle.Pickler):
    """Pickles functions and classes by name, and notes those that another interpreter will not find."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        super().__init__(self._file, protocol=pickle.HIGHEST_PROTOCOL)
        self.strangers: list[str] = []
        self._importable = _Importable()

    def pickled(self, value: object) -> bytes:
        self.dump(value)
        return self._file.getvalue()

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, (FunctionType, type)) and not self._importable(thing.__module__):
            self.strangers.append(f"{thing.__module__}.{thing.__qualname__}")
        return NotImplemented


class _Importable:
    """Tells of modules whether another interpreter with our ``sys.path`` would import the same."""

    def __init__(self) -> None:
        self._known: dict[str | None, bool] = {"__main__": False, "__mp_main__": False}

    def __call__(self, module: str | None) -> bool:
        top = module.partition(".")[0] if module else module
        if top not in self._known:
            self._known[top] = top is None or self._is_found(top)
        return self._known[top]

    @staticmethod
    def _is_found(name: str) -> bool:
        """Why not `importlib.util.find_spec`: it believes what is in ``sys.modules``, which nobody else has."""
        loaded = sys.modules.get(name)
        ours = getattr(loaded, "__spec__", None)
        if loaded is not None and ours is None and getattr(loaded, "__file__", None) is None:
            return False  # made by hand
        for finder in sys.meta_path:
            spec = finder.find_spec(name, None)
            if spec is not None:
                return ours is None or spec.origin == ours.origin
        return False


def _by_value(value: object, what: str, why: str) -> bytes:
    try:
        import cloudpickle
    except ImportError:
        raise UsageError(
            f"{what} cannot be pickled by name ({why}). Functions and classes of a script or notebook, nested ones "
            f"and lambdas travel by value, for which cloudpickle is needed: {INSTALL}. Or put them into a module"
        ) from None
    importable = _Importable()
    file = io.BytesIO()

    class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, thing: Any) -> Any:
            if isinstance(thing, (FunctionType, type)) and not importable(thing.__module__):
                taken.add(thing.__module__)
            return super().reducer_override(thing)

    with _by_value_too(cloudpickle) as taken:
        try:
            ByValue(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
        except Exception as error:
            raise UsageError(f"{what} cannot be pickled: {type(error).__name__}: {error}") from None
    return file.getvalue()


class _Taken:
    """Modules that cloudpickle takes by value for the moment."""

    def __init__(self, cloudpickle: Any) -> None:
        self._cloudpickle = cloudpickle
        self.names: set[str] = set()

    def add(self, name: str) -> None:
        module = sys.modules.get(name)
        if module is not None and name not in (*self.names, "__main__"):
            self.names.add(name)
            self._cloudpickle.register_pickle_by_value(module)


@contextmanager
def _by_value_too(cloudpickle: Any) -> Iterator[_Taken]:
    taken = _Taken(cloudpickle)
    try:
        yield taken
    finally:
        for name in taken.names:
            cloudpickle.unregister_pickle_by_value(sys.modules[name])


def _listed(names: list[str]) -> str:
    distinct = list(dict.fromkeys(names))
    return ", ".join(distinct[:3]) + (", …" if len(distinct) > 3 else "")


# ---- what goes there ----


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be called, on every rank.

    Attributes:
        path: Where the caller imports from.
        packed: Function (or its name, for those who look it up), arguments and keyword arguments, by `pack_value`.
    """

    path: tuple[str, ...]
    packed: bytes

    @classmethod
    def of(
        cls, function: Callable[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any], path: Sequence[str]
    ) -> Call:
        """A call that is on its way.

        Raises:
            UsageError: Something of it cannot be pickled.
        """
        name = getattr(function, "__qualname__", repr(function))
        return cls(tuple(path), pack_value((function, tuple(args), dict(kwargs)), f"the call of {name}"))

    def to_bytes(self) -> bytes:
        return pickle.dumps((self.path, self.packed))

    @classmethod
    def from_bytes(cls, data: bytes) -> Call:
        return cls(*pickle.loads(data))

    def unpacked(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Function, arguments and keyword arguments; what they name is imported from where the caller would."""
        sys.path[:0] = [entry for entry in self.path if entry not in sys.path]
        function, args, kwargs = open_value(self.packed)
        return function, args, kwargs


# ---- what comes back ----


@dataclass(frozen=True, slots=True)
class Failure:
    """What a rank's function raised.

    Attributes:
        pickled: The exception, for `open_value`; None if it cannot be pickled.
        text: Its traceback, as the rank would have printed it.
        consequence: Whether it is the end of another rank that was raised here.
    """

    pickled: bytes | None
    text: str
    consequence: bool

    def error(self) -> Exception:
        """The exception; in its place a `RemoteError` with the traceback where that cannot be had."""
        if self.pickled is not None:
            try:
                error = open_value(self.pickled)
            except Exception:  # what runs here is the exception's own constructor
                error = None
            if isinstance(error, Exception):
                return error
        return RemoteError(self.text.rstrip())


def failure(error: BaseException, trace: TracebackType | None) -> Failure:
    """What there is to be told of ``error``, beginning at the frame ``trace``."""
    try:
        pickled: bytes | None = pack_value(error, "the exception")
    except UsageError:
        pickled = None
    return Failure(pickled, shortened(traceback_text(error, trace)), isinstance(error, PeerLost))


def pack_outcome(outcome: Failure | bytes) -> bytes:
    """A failure, or a value that was packed, as bytes for `open_outcome`."""
    if isinstance(outcome, bytes):
        return _VALUE + outcome
    return _FAILURE + pickle.dumps((outcome.pickled, outcome.text, outcome.consequence))


def open_outcome(data: bytes) -> Failure | bytes:
    """What `pack_outcome` was given."""
    return data[1:] if data[:1] == _VALUE else Failure(*pickle.loads(memoryview(data)[1:]))


def frames_below(error: BaseException, filename: str) -> TracebackType | None:
    """The traceback of ``error`` from behind the last frame of ``filename`` on that comes before any other's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == filename:
        trace = trace.tb_next
    return trace or error.__traceback__
