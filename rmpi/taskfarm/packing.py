"""Functions, arguments and results on their way between master and worker.

**Arguments** are pickled when a task is submitted, so that what cannot be pickled is refused at once, and what the
caller changes afterwards does not matter; but buffers of `LARGE` and more, such as those of arrays, are only referred
to (pickle protocol 5), and leave when the task does: they must not be changed before it is done.

**Functions** that a worker can import travel by name. Others (of the script or notebook, nested ones, lambdas) travel
by value, for which ``cloudpickle`` is needed (`rmpi.places.parcels`). Either way a worker is sent a function once: what
a task says is the digest of the packed function. Importable functions are packed once; others every time that they
are submitted, because what they refer to may have changed.

**Handles** stand for a value that was sent ahead (`Master.scatter`). While arguments are pickled, those that are met
are noted, for the worker must have their values first; while they are unpickled there, handles become the values.
"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable
from hashlib import blake2b
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmpi.errors import UsageError
from rmpi.places.parcels import pack_value
from rmpi.taskfarm.errors import NotPicklable

if TYPE_CHECKING:
    from rmpi.taskfarm.handles import Handle

LARGE = 1 << 16
"""Bytes from which on a buffer is not copied into the pickle."""

Buffers = list[Any]

STRANGE = b"main__"
"""In the pickle of what a worker cannot import: ``__main__``, ``__mp_main__``. It may be there for other reasons."""


class Packed(NamedTuple):
    """A value on its way.

    Attributes:
        data: Its pickle.
        buffers: The large buffers of it, in the order in which the pickle wants them; None if there are none.
        handles: The handles in it.
    """

    data: bytes
    buffers: Buffers | None
    handles: tuple[Handle[Any], ...] = ()


class _Noted(threading.local):
    """Handles that were met while this thread pickled."""

    handles: list[Handle[Any]] | None = None


_noted = _Noted()


def note_handle(handle: Handle[Any]) -> None:
    """A handle is being pickled.

    Raises:
        UsageError: Not as an argument of a task.
    """
    if _noted.handles is None:
        raise UsageError("a handle of scatter() can be an argument of a task, and not be sent by other means")
    _noted.handles.append(handle)


def pack(value: object, what: str) -> Packed:
    """Pickle a value.

    Args:
        what: What it is, for errors.

    Raises:
        NotPicklable: Says why, and what to do.
    """
    buffers: Buffers = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """False: keep it apart."""
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < LARGE:
            return True
        buffers.append(np.frombuffer(raw, np.uint8))
        return False

    noted: list[Handle[Any]] = []
    before, _noted.handles = _noted.handles, noted
    try:
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL, buffer_callback=keep)
        if STRANGE in data:
            data = b""
    except Exception:  # whatever a __reduce__ raises; the other way says what is wrong
        data = b""
    try:
        if not data:
            buffers.clear()
            noted.clear()
            data = _pack_carefully(value, what)
    finally:
        _noted.handles = before
    return Packed(data, buffers or None, tuple(noted))


def _pack_carefully(value: object, what: str) -> bytes:
    try:
        return pack_value(value, what)
    except UsageError as error:
        raise NotPicklable(str(error)) from None


def unpack(data: bytes, buffers: Buffers | None) -> Any:
    """What `pack` was given; in place of handles, their values."""
    return pickle.loads(data, buffers=buffers)


# -------------------------------------------------------------------------------------- functions


class PackedFunction(NamedTuple):
    """A function on its way.

    Attributes:
        key: A digest of the rest: the same function has the same.
        data: Its pickle.
    """

    key: bytes
    data: bytes


_known: dict[Callable[..., Any], PackedFunction] = {}
"""Functions that stand in modules, and so live as long anyway."""


def pack_function(function: Callable[..., Any]) -> PackedFunction:
    """Pack a function for workers.

    Raises:
        UsageError: It cannot be called.
        NotPicklable: It cannot be packed.
    """
    plain = type(function) in (FunctionType, BuiltinFunctionType)  # others may be equal, and different tomorrow
    if plain and (known := _known.get(function)) is not None:
        return known
    if not callable(function):
        raise UsageError(f"a task is something that can be called, not {function!r}")
    data = _pack_carefully(function, f"the function {getattr(function, '__qualname__', function)!r}")
    packed = PackedFunction(blake2b(data, digest_size=16).digest(), data)
    if plain and _is_importable(function):
        _known[function] = packed
    return packed


def _is_importable(function: Callable[..., Any]) -> bool:
    """Whether it travels by name, so that packing it again would make no difference."""
    module = getattr(function, "__module__", None)
    if module in (None, "__main__", "__mp_main__") or "<" in function.__qualname__ or "." in function.__qualname__:
        return False
    return getattr(sys.modules.get(str(module)), function.__qualname__, None) is function
