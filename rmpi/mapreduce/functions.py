"""Functions of a job: given themselves, or by name, and looked at before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any

from rmpi.errors import UsageError


def function_of(given: Any, role: str) -> Callable[..., Any]:
    """A function that was given, itself or as ``"module:function"``.

    Args:
        role: For errors: "mapper".

    Raises:
        UsageError: There is no such module or function, or it is nothing that can be called.
    """
    found = _named(given, role) if isinstance(given, str) else given
    if not callable(found):
        raise UsageError(f"the {role} must be a function, or the name of one as 'module:function', not {given!r}")
    return found  # type: ignore[no-any-return]


def optional_function_of(given: Any, role: str) -> Callable[..., Any] | None:
    """The same, or None."""
    return None if given is None else function_of(given, role)


def _named(name: str, role: str) -> Any:
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise UsageError(f"the {role} {name!r} must be named as 'module:function'")
    try:
        return attrgetter(path)(import_module(module))
    except ImportError as error:
        raise UsageError(f"the {role} {name!r} cannot be imported: {error}") from error
    except AttributeError:
        raise UsageError(f"the {role} {name!r} does not exist: {module} has no {path!r}") from None
