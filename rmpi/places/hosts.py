"""Host specifications: the text of a hostfile, or of ``-H``, becomes a list of `HostSpec`.

One grammar serves both, and the peers' spellings are part of it. A line holds hosts, separated by blanks or
commas, each followed by its options::

    host      =  [user@] name [:slots]  |  [user@] "[" IPv6 "]" [:slots]  |  [user@] IPv6
    name      =  letters, digits, "_", ".", "-", and ranges such as n[01-04,7]x[1-2]
    option    =  key=value  |  key="value with blanks"
    key       =  slots | max_slots | max-slots | slots-max | user | username | port | python
    comment   =  "#" anywhere, or "//" at the start of a line or after a blank, to the end of the line

An option belongs to the host before it, on the same line: in ``a,b slots=4`` only b has four slots. A range
stands for several hosts, which all get the options. A host listed again (same name, user and port) adds to
its slots. A bare IPv6 address has no ``:slots``, because no one could tell them from its last group.

This module knows text, and nothing of names that resolve, machines that answer or files. Its invariant: for
any text whatsoever it returns or raises `LaunchError` (status 2, with source, line, column and a caret under
the culprit), in time and memory proportional to the text plus `MAX_RANGE_NAMES`. Ranges are therefore counted
before they are expanded, and nothing that begins with "-" becomes a name or a user: both end up in the
argument list of ssh, which would take it for an option.
"""

from __future__ import annotations

import ipaddress
import re
from codecs import BOM_UTF8
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from math import prod
from typing import NamedTuple, TypeAlias

from rmpi.errors import LaunchError

MAX_SLOTS = 65_536  # per line and host; more is a slip of the keyboard
MAX_PORT = 65_535
MAX_RANGE_NAMES = 10_000  # names that all ranges of one text may stand for; beyond it the text is refused
MAX_NAME = 253  # characters: the longest name DNS can hold
MAX_DIGITS = 18  # of a number in a range: keeps len(range(…)) within a machine word
EXCERPT = 100  # characters of the offending line that an error shows, around the caret

_KEYS = {
    "slots": "slots",
    "max_slots": "max_slots",
    "max-slots": "max_slots",
    "slots-max": "max_slots",
    "user": "user",
    "username": "user",
    "port": "port",
    "python": "python",
}

# A comment, or (group 1) a word, in which brackets protect commas and ="…" protects everything. Every part
# may lack its closing mark, so no match is ever taken back (linear time); that is checked afterwards.
_WORD = re.compile(r"""#.*|(?<!\S)//.*|((?:[^\s,#\[=]+|="[^"]*"?|=|\[[^\[\]\s#]*\]?)+)""")
_BALANCED = re.compile(r"(?:[^\[\]]+|\[[^\[\]]*\])*")
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_NAME_TAIL = re.compile(r"[A-Za-z0-9_.-]*")
_PIECE = re.compile(r"\[([^\[\]]*)\]|[^\[\]]+")
_RUN = re.compile(rf"([0-9]{{1,{MAX_DIGITS}}})(?:-([0-9]{{1,{MAX_DIGITS}}}))?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,32})?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@\\$-]*")
_NUMBER = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class HostSpec:
    """One host as its user wrote it; None means not said.

    Attributes:
        name: What ssh and the resolver are given: a name, or an address (IPv6 without its brackets).
        slots: Ranks the host takes comfortably, at least 1.
        max_slots: Ranks it never exceeds, at least ``slots``.
        user: The login name there.
        port: Of its ssh server.
        python: The interpreter there: a path, or a command on its PATH.
        origin: Where it was named first, for messages: ``"hosts:7"`` or ``"-H"``.
    """

    name: str
    slots: int | None = None
    max_slots: int | None = None
    user: str | None = None
    port: int | None = None
    python: str | None = None
    origin: str = ""

    def __str__(self) -> str:
        return self.name if self.user is None else f"{self.user}@{self.name}"


def decode_hostfile(data: bytes, source: str) -> str:
    """The text of a hostfile that was read as bytes; a UTF-8 byte order mark is dropped.

    Raises:
        LaunchError: Status 2: not text (a NUL byte, which includes UTF-16), or not UTF-8; says where.
    """
    data = data.removeprefix(BOM_UTF8)
    nul = data.find(b"\0")
    if nul >= 0:
        raise _undecodable(data, nul, source, "a NUL byte: this is no text file, or one saved as UTF-16")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise _undecodable(data, error.start, source, f"byte 0x{byte:02x} is not UTF-8") from None


def parse_hostfile(text: str, source: str) -> list[HostSpec]:
    """The hosts of a hostfile in the order of their first mention, each (name, user, port) once.

    Args:
        text: As `decode_hostfile` returns it.
        source: The file's name as the user knows it; the errors and `HostSpec.origin` begin with it.

    Raises:
        LaunchError: Status 2: the first thing that cannot be understood, or no host at all.
    """
    lines = enumerate(text.split("\n"), start=1)
    hosts = _read(_Line(source, number, line) for number, line in lines)
    if not hosts:
        raise LaunchError(f"{source}: the file names no host; write lines such as: node1 slots=4", status=2)
    return hosts


def parse_host_list(text: str) -> list[HostSpec]:
    """The hosts of the ``-H`` option: ``a:2,b[01-04]:8,user@[::1]:1``; blanks separate as commas do.

    Raises:
        LaunchError: Status 2, as `parse_hostfile`; positions are columns of the option's value.
    """
    hosts = _read([_Line("-H", None, text.replace("\n", " "))])
    if not hosts:
        raise LaunchError("-H: the list names no host; write, for example: -H node1:4,node2:4", status=2)
    return hosts


def is_local(host: HostSpec, own_names: Collection[str]) -> bool:
    """Whether ``host`` is this machine, needing no ssh: localhost, a loopback address, one of ``own_names``.

    A user or a port makes it a remote one: somebody else's account, or a container behind a forwarded port.
    """
    if host.user is not None or host.port is not None:
        return False
    name = host.name.lower()
    return name == "localhost" or _is_loopback(name) or name in {own.lower() for own in own_names}


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


# ---- positions and errors ----


class _Token(NamedTuple):
    """A part of a line; ``start`` counts characters from 0."""

    text: str
    start: int

    def part(self, start: int, end: int | None = None) -> _Token:
        return _Token(self.text[start:end], self.start + start)


_Options: TypeAlias = dict[str, _Token]


class _Line(NamedTuple):
    """One line of a source; the list of ``-H`` is a line without a number."""

    source: str
    number: int | None
    text: str

    @property
    def origin(self) -> str:
        return self.source if self.number is None else f"{self.source}:{self.number}"

    def error(self, message: str, at: _Token) -> LaunchError:
        """``source:line:col: message``, the line (if long, the part around ``at``), carets under ``at``."""
        left = max(0, min(at.start - EXCERPT // 2, len(self.text) - EXCERPT))
        shown = _printable(self.text[left : left + EXCERPT]).rstrip()
        indent = " " * (at.start - left)
        carets = "^" * max(1, min(len(at.text), left + EXCERPT - at.start))
        where = f"{self.origin}:{at.start + 1}"
        return LaunchError(f"{where}: {message}\n    {shown}\n    {indent}{carets}", status=2)


def _printable(text: str) -> str:
    """``text``, one character for one, without those that would move the cursor of a terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def _quoted(text: str) -> str:
    shown = _printable(text if len(text) <= 40 else text[:39] + "…")
    return f"'{shown}'" if '"' in shown else f'"{shown}"'


def _undecodable(data: bytes, at: int, source: str, problem: str) -> LaunchError:
    start = data.rfind(b"\n", 0, at) + 1
    before = data[start:at].decode(errors="replace")
    after = data[at : at + EXCERPT].split(b"\n")[0].decode(errors="replace")
    line = _Line(source, data.count(b"\n", 0, at) + 1, before + after)
    return line.error(f"{problem}; save the hostfile as UTF-8", _Token(after[:1], len(before)))


# ---- from lines to hosts ----


def _read(lines: Iterable[_Line]) -> list[HostSpec]:
    hosts: dict[tuple[str, str | None, int | None], HostSpec] = {}
    room = MAX_RANGE_NAMES
    for line in lines:
        for address, options in _entries(line):
            names = _names(line, address, room)
            if _has_ranges(address.text):
                room -= len(names)
            for host in _specs(line, names, options):
                key = (host.name, host.user, host.port)
                hosts[key] = _sum(line, hosts[key], host, options) if key in hosts else host
    return list(hosts.values())


def _entries(line: _Line) -> Iterator[tuple[_Token, _Options]]:
    """The hosts of a line, each with its options, those written as ``user@`` and ``:slots`` included."""
    address = None
    options: _Options = {}
    for match in _WORD.finditer(line.text):
        word = _Token(match[0], match.start())
        if match[1] is None:
            _check_comment(line, word)
            continue
        if "=" in word.text:
            key, value = _option(line, word)
            if address is None:
                raise line.error(f"{key}= before any host: an option follows its host on the same line", word)
            _give(line, options, key, value)
            continue
        if address is not None:
            yield address, options
        address, options = _address(line, word)
    if address is not None:
        yield address, options


def _check_comment(line: _Line, comment: _Token) -> None:
    if line.number is None:
        raise line.error("a list of hosts has no comments", comment)


def _option(line: _Line, word: _Token) -> tuple[str, _Token]:
    equals = word.text.index("=")
    key = _KEYS.get(word.text[:equals])
    if key is None:
        raise line.error(_no_such_key(word.text[:equals]), word.part(0, equals or 1))
    return key, _unquoted(line, word.part(equals + 1))


def _no_such_key(key: str) -> str:
    if not key:
        return 'no key before "=": write key=value without blanks'
    near = get_close_matches(key[:40].lower(), _KEYS, n=1)
    hint = f"did you mean {near[0]}?" if near else "known: slots, max_slots, user, port, python"
    return f"unknown key {_quoted(key)} ({hint})"


def _unquoted(line: _Line, value: _Token) -> _Token:
    """The value without its quotes, which enclose all of it or are an error."""
    bare = value
    if '"' in value.text:
        quotes = value.text.count('"')
        if quotes == 1:
            raise line.error("the quote is not closed on this line", value)
        if quotes > 2 or value.text[0] != '"' or value.text[-1] != '"':
            raise line.error('quotes enclose the whole value: key="value"', value)
        bare = value.part(1, -1)
    if not bare.text:
        raise line.error("no value: write key=value without blanks", value)
    return bare


def _give(line: _Line, options: _Options, key: str, value: _Token) -> None:
    if key in options:
        raise line.error(f"{key} is given twice for this host", value)
    options[key] = value


def _address(line: _Line, word: _Token) -> tuple[_Token, _Options]:
    """The name (or range, or address) of a host word, and what stands before and after it as options."""
    options: _Options = {}
    at = word.text.rfind("@")
    if at == 0:
        raise line.error('no user before "@"', word)
    if at > 0:
        options["user"] = word.part(0, at)
    host = word.part(at + 1) if at >= 0 else word
    if "[" in host.text or "]" in host.text:
        _check_brackets(line, host)
    end = _end_of_name(host.text)
    if end == 0:
        raise line.error("the name of the host is missing", word)
    if end == len(host.text):
        return host, options
    if end == len(host.text) - 1:
        raise line.error('no number of slots after ":"', host.part(end))
    options["slots"] = host.part(end + 1)
    return host.part(0, end), options


def _check_brackets(line: _Line, host: _Token) -> None:
    match = _BALANCED.match(host.text)
    assert match is not None  # it matches the empty string
    if match.end() < len(host.text):
        stray = host.part(match.end(), match.end() + 1)
        raise line.error(f'unmatched "{stray.text}": write [::1] or n[1-4,7], without blanks', stray)


def _end_of_name(host: str) -> int:
    """Where ``:slots`` begins: at the only colon, or at the first one behind all brackets."""
    if "[" not in host and host.count(":") > 1:
        return len(host)  # an IPv6 address, or an attempt at one
    colon = host.find(":", host.rfind("]") + 1)
    return colon if colon >= 0 else len(host)


# ---- the options of one host ----


def _specs(line: _Line, names: list[str], options: _Options) -> list[HostSpec]:
    """A specification for each of ``names``; all have the same options."""
    slots = _number(line, options, "slots", MAX_SLOTS)
    max_slots = _number(line, options, "max_slots", MAX_SLOTS)
    if slots is not None and max_slots is not None and max_slots < slots:
        raise line.error(f"max_slots={max_slots} is less than slots={slots}", options["max_slots"])
    user = _user(line, options)
    port = _number(line, options, "port", MAX_PORT)
    python = _python(line, options)
    origin = line.origin
    return [HostSpec(name, slots, max_slots, user, port, python, origin) for name in names]


def _number(line: _Line, options: _Options, key: str, most: int) -> int | None:
    token = options.get(key)
    if token is None:
        return None
    number = int(token.text) if _NUMBER.fullmatch(token.text) else -1
    if 1 <= number <= most:
        return number
    advice = "; to leave a host out, comment it out" if number == 0 and key != "port" else ""
    raise line.error(f"{key} is a whole number from 1 to {most}, not {_quoted(token.text)}{advice}", token)


def _user(line: _Line, options: _Options) -> str | None:
    token = options.get("user")
    if token is None:
        return None
    if not _USER.fullmatch(token.text):
        raise line.error(f"{_quoted(token.text)} is not a user name", token)
    return token.text


def _python(line: _Line, options: _Options) -> str | None:
    token = options.get("python")
    if token is None:
        return None
    if not token.text.isprintable():
        raise line.error("the path of python holds a control character", token)
    return token.text


def _sum(line: _Line, old: HostSpec, new: HostSpec, options: _Options) -> HostSpec:
    """One host for two mentions. A mention without slots counts one, one without a limit counts its slots."""
    if old.python and new.python and old.python != new.python:
        raise line.error(f"{new} has another python at {old.origin}", options["python"])
    slots = (old.slots or 1) + (new.slots or 1)
    limited = old.max_slots or new.max_slots
    most = (old.max_slots or old.slots or 1) + (new.max_slots or new.slots or 1)
    python = old.python or new.python
    return HostSpec(old.name, slots, most if limited else None, old.user, old.port, python, old.origin)


# ---- names, addresses and ranges ----


class _Run(NamedTuple):
    """``01-04``: consecutive numbers, padded with zeros to at least ``width`` digits."""

    numbers: range
    width: int

    def longest(self) -> int:
        return max(self.width, len(str(self.numbers[-1])))

    def names(self) -> Iterator[str]:
        return (f"{number:0{self.width}d}" for number in self.numbers)


_Piece: TypeAlias = str | list[_Run]  # of a name: text as it is, or what a pair of brackets stands for


def _has_ranges(address: str) -> bool:
    """``n[1-4]`` has, ``[::1]`` has not."""
    return "[" in address and not (address[0] == "[" and ":" in address)


def _names(line: _Line, address: _Token, room: int) -> list[str]:
    """The names an address stands for: itself, or at most ``room`` if it holds ranges."""
    if _has_ranges(address.text):
        names = _expanded(line, address, room)
    elif ":" in address.text:
        return [_ipv6(line, address)]
    else:
        _check_name(line, address, _NAME)
        names = [address.text]
    if names[0].isdigit():
        number = _quoted(names[0])
        raise line.error(f"{number} is a number, not a host; slots are written host:4 or slots=4", address)
    return names


def _check_name(line: _Line, name: _Token, allowed: re.Pattern[str]) -> None:
    match = allowed.match(name.text)
    assert match is not None  # both patterns match the empty string
    if match.end() < len(name.text):
        bad = name.part(match.end(), match.end() + 1)
        raise line.error(f"not the name of a host: {_quoted(bad.text)} cannot stand here", bad)
    _check_length(line, name, len(name.text))


def _check_length(line: _Line, name: _Token, length: int) -> None:
    if length > MAX_NAME:
        raise line.error(f"a name of {length} characters; host names have at most {MAX_NAME}", name)


def _ipv6(line: _Line, address: _Token) -> str:
    bracketed = address.text.startswith("[") and address.text.endswith("]")
    text = address.text[1:-1] if bracketed else address.text
    try:
        if _IPV6.fullmatch(text):
            ipaddress.IPv6Address(text)
            return text
    except ipaddress.AddressValueError:
        pass
    raise line.error(f"{_quoted(address.text)} is neither host:slots nor an IPv6 address", address)


def _expanded(line: _Line, pattern: _Token, room: int) -> list[str]:
    pieces = list(_pieces(line, pattern))
    # The length first: it also bounds how many numbers are multiplied, and the memory one name can take.
    _check_length(line, pattern, sum(_longest(piece) for piece in pieces))
    count = prod(_count(piece) for piece in pieces)
    if count > room:
        before = f", after {MAX_RANGE_NAMES - room} before it" if room < MAX_RANGE_NAMES else ""
        limit = f"ranges may name {MAX_RANGE_NAMES} in all"
        raise line.error(f"{_quoted(pattern.text)} stands for {count} hosts{before}; {limit}", pattern)
    choices = ([piece] if isinstance(piece, str) else _numbers(piece) for piece in pieces)
    return ["".join(parts) for parts in product(*choices)]


def _pieces(line: _Line, pattern: _Token) -> Iterator[_Piece]:
    for match in _PIECE.finditer(pattern.text):
        piece = pattern.part(match.start(), match.end())
        if match[1] is not None:
            yield list(_runs(line, piece.part(1, -1)))
        else:
            _check_name(line, piece, _NAME_TAIL if match.start() else _NAME)
            yield piece.text


def _runs(line: _Line, inside: _Token) -> Iterator[_Run]:
    start = 0
    for text in inside.text.split(","):
        yield _run(line, inside.part(start, start + len(text)))
        start += len(text) + 1


def _run(line: _Line, token: _Token) -> _Run:
    match = _RUN.fullmatch(token.text)
    if match is None:
        what = f"{_quoted(token.text)} is not a range" if token.text else "a range is missing"
        raise line.error(f"{what}: write 7 or 01-04", token)
    first, last = match[1], match[2] or match[1]
    if int(last) < int(first):
        raise line.error(f"the range {token.text} runs backwards: write {last}-{first}", token)
    if last.startswith("0") and len(last) > len(first):
        raise line.error(f"pad both ends of {token.text} to the same number of digits", token)
    return _Run(range(int(first), int(last) + 1), len(first))


def _longest(piece: _Piece) -> int:
    return len(piece) if isinstance(piece, str) else max(run.longest() for run in piece)


def _count(piece: _Piece) -> int:
    return 1 if isinstance(piece, str) else sum(len(run.numbers) for run in piece)


def _numbers(piece: list[_Run]) -> list[str]:
    return [name for run in piece for name in run.names()]
