"""Where a node listens, as people write it: ``host``, ``host:6340``, ``[::1]:6340``. [pure]"""

from __future__ import annotations

from rmpi.errors import LaunchError
from rmpi.places.hosts import MAX_PORT

DEFAULT_PORT = 6340
"""Of a node that people start by hand; others have any port that is free."""


def parse_where(text: str, default_port: int, what: str = "the address") -> tuple[str, int]:
    """Host and port.

    Args:
        text: An IPv6 address with a port needs its brackets.
        what: Whatever it is the value of, for errors.

    Raises:
        LaunchError: Status 2: it is nothing of that kind.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        well_formed = bool(bracket) and (not rest or colon == ":")
    elif text.count(":") > 1:
        host, colon, port, well_formed = text, "", "", True
    else:
        host, colon, port = text.partition(":")
        well_formed = True
    if not well_formed or not host or any(character.isspace() or character in "[]/,@" for character in host):
        raise _unusable(what, text, "no host in it can be made out")
    if not colon:
        return host, default_port
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= MAX_PORT):
        raise _unusable(what, text, f"a port is a number from 0 to {MAX_PORT}, not {port!r}")
    return host, int(port)


def show_where(host: str, port: int) -> str:
    """As it is read by `parse_where`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _unusable(what: str, text: str, why: str) -> LaunchError:
    return LaunchError(f"{what} {text!r} cannot be used: {why}. Write, for example: host2, host2:6340", status=2)
