"""What the terminal shows: the output of many ranks in whole lines, and the report at a job's end.   [pure]

`Display` is fed what ranks wrote, in whatever pieces pipes delivered it, and answers with what is to be
written where. Bytes all the way: output need not be text, and nothing is decoded but the one line that is cut
to the width of the terminal. It knows ranks, hosts and newlines; it refuses to know descriptors, clocks and
the sizes of windows, which are the caller's. `failure_block` makes the text in which the first failure comes
last.

The invariant: *what stands between two newlines came from one rank and one stream*, and the bytes of each
stand there in the order in which they were written. An unfinished line is held until it ends. Its small
print:

- A line longer than 1 MiB is passed on as it comes, and its rank keeps the line to itself for as long as no
  other has something to show. Others do not wait, for it may never end (``cat /dev/zero``) and what they
  would have to hold knows no bound either: their line closes it with a newline, and the rest goes on as a
  line of its own.
- On a terminal a line shows what would be left of it to see: what follows its last carriage return. So the
  progress bar of any rank becomes the one line that it ends with.
- On a terminal rank 0's unfinished line is the status line at the bottom: a progress bar, a row of dots, the
  prompt of an ``input()``. It is wiped away before anything else is written and drawn again afterwards, cut
  to the width, lest it wraps; of escape sequences it keeps colours alone, for a cursor sent elsewhere would
  not find back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from rmpi.places.wording import ranks_text

Writes: TypeAlias = list[tuple[int, bytes]]
"""What is to be written now, in this order: to 1 (standard output) or 2 (standard error), which bytes."""

HOLD = 1 << 20
"""Bytes of an unfinished line that are held for each rank and stream; a longer one is passed on in parts."""

WIPE = b"\r\x1b[K"
"""Go to the first column and erase to the end of the line."""


class _Line:
    """The unfinished line of one rank on one stream.

    Attributes:
        held: What is not yet shown.
        tag: What its lines begin with.
    """

    __slots__ = ("held", "tag")

    def __init__(self, tag: bytes) -> None:
        self.tag = tag
        self.held = bytearray()


class Display:
    """The lines of all ranks on one screen.

    Args:
        tag: Whether each line begins with ``[rank]``.
        hosts: Whether the tag is ``[rank@host]``.
        terminal: Whether both streams end at the same terminal.
        width: Its columns. The attribute may be changed when the window does.
        alone: Whether there is one rank only. Its bytes then pass as they come, as if there was no launcher.
    """

    def __init__(self, *, tag: bool, hosts: bool, terminal: bool, width: int = 80, alone: bool = False) -> None:
        self.width = width
        self._tag, self._hosts, self._terminal, self._alone = tag, hosts, terminal, alone
        self._lines: dict[tuple[int, int], _Line] = {}
        self._open: tuple[int, int] | None = None  # whose line longer than HOLD the cursor stands in
        self._latest = 1  # the stream that rank 0 wrote to last
        self._drawn = b""  # the status line that is on the screen

    def __repr__(self) -> str:
        held = sum(len(line.held) for line in self._lines.values())
        return f"<Display of {len(self._lines)} streams, {held} bytes held>"

    def feed(self, rank: int, host: str, stream: int, data: bytes) -> Writes:
        """Take what ``rank`` wrote to ``stream`` (1 or 2), cut anywhere; return what can be shown now."""
        if self._alone:
            return [(stream, data)] if data else []
        key = rank, stream
        line = self._lines.get(key) or self._lines.setdefault(key, _Line(self._tag_of(rank, host)))
        if rank == 0:
            self._latest = stream
        head, newline, tail = data.rpartition(b"\n")
        writes = self._whole(key, line, head) if newline else []
        line.held += tail
        writes += self._beyond_limit(key, line)
        return self._with_status(stream, writes)

    def finish(self, rank: int, stream: int) -> Writes:
        """Nothing more comes from there: show its unfinished line, if there is one, and end it."""
        key = rank, stream
        line = self._lines.pop(key, None)
        if line is None:
            return []
        writes = self._close_open() if self._open == key else []
        if line.held and not (self._terminal and _is_blank(_seen(line.held))):
            writes = self._whole(key, line, b"")
        return self._with_status(stream, writes)

    def say(self, data: bytes, stream: int = 2) -> Writes:
        """Show whole lines of the launcher's own, untagged, not mixed into anyone else's."""
        return self._with_status(stream, [*self._close_open(), (stream, data)]) if data else []

    def close(self) -> Writes:
        """The job is over: show every unfinished line, in the order of ranks."""
        return [write for key in sorted(self._lines) for write in self.finish(*key)]

    # --- Lines ---

    def _tag_of(self, rank: int, host: str) -> bytes:
        if not self._tag:
            return b""
        return (f"[{rank}@{host}] " if self._hosts else f"[{rank}] ").encode(errors="backslashreplace")

    def _whole(self, key: tuple[int, int], line: _Line, head: bytes) -> Writes:
        """Show what is held, ``head`` (which may be many lines), and a newline."""
        block = bytes(line.held) + head if line.held else head
        line.held.clear()
        if self._terminal and b"\r" in block:
            block = b"\n".join(map(_seen, block.split(b"\n")))
        writes, tag = self._begin(key, line)
        text = block.replace(b"\n", b"\n" + line.tag) if line.tag else block
        self._open = None
        return [*writes, (key[1], tag + text + b"\n")]

    def _beyond_limit(self, key: tuple[int, int], line: _Line) -> Writes:
        """Pass on an unfinished line that is too long to hold, or of which a part was passed on already."""
        if self._terminal and b"\r" in line.held:
            line.held[:] = _unreturned(line.held)
        if not line.held or (len(line.held) <= HOLD and self._open != key):
            return []
        writes, tag = self._begin(key, line)
        part = bytes(line.held)
        line.held.clear()
        self._open = key
        return [*writes, (key[1], tag + part)]

    def _begin(self, key: tuple[int, int], line: _Line) -> tuple[Writes, bytes]:
        """What brings the cursor to where this line may go on, and the tag that the line then needs."""
        return ([], b"") if self._open == key else (self._close_open(), line.tag)

    def _close_open(self) -> Writes:
        if self._open is None:
            return []
        stream, self._open = self._open[1], None
        return [(stream, b"\n")]

    # --- The status line ---

    def _with_status(self, stream: int, writes: Writes) -> Writes:
        """Wipe the status line, write, and draw it again; in one piece, lest the screen flickers."""
        status = self._status()
        if not writes and status == self._drawn:
            return []
        wipe = [(writes[0][0] if writes else stream, WIPE)] if self._drawn else []
        draw = [(writes[-1][0] if writes else stream, status)] if status else []
        self._drawn = status
        return _joined([*wipe, *writes, *draw])

    def _status(self) -> bytes:
        """What should stand at the bottom; nothing while the cursor stands in the middle of a long line."""
        if not self._terminal or self._open is not None:
            return b""
        for stream in (self._latest, 3 - self._latest):
            line = self._lines.get((0, stream))
            if line and not _is_blank(seen := _seen(line.held)):
                return _cut(line.tag + seen, max(0, self.width - 1))
        return b""


def _joined(writes: Writes) -> Writes:
    """Neighbours to the same stream as one."""
    joined: Writes = []
    for stream, data in writes:
        if joined and joined[-1][0] == stream:
            joined[-1] = stream, joined[-1][1] + data
        else:
            joined.append((stream, data))
    return joined


def _unreturned(held: bytearray) -> bytearray:
    """What of an unfinished line may still be seen: all from its last part on, with the returns behind it."""
    return held[held.rstrip(b"\r").rfind(b"\r") + 1 :]


def _seen(line: bytes | bytearray) -> bytes:
    """Its last part. Carriage returns at the end (of ``\\r\\n``, or before the next part) hide nothing."""
    return bytes(line.rstrip(b"\r").rpartition(b"\r")[2])


_BLANK = re.compile(rb"(?: |\x1b\[[0-?]*[@-~])*")
_PIECES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]?|\x1b.?|.", re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")


def _is_blank(seen: bytes) -> bool:
    """Whether nothing would be seen: the usual way to take a progress bar away."""
    return _BLANK.fullmatch(seen) is not None


def _cut(line: bytes, width: int) -> bytes:
    """As much of ``line`` as fits into ``width`` columns, with colours and without other controls.

    The caller leaves the terminal's last column free: some terminals wrap as soon as it is filled.
    """
    shown: list[str] = []
    beginning = line[: 16 * width]  # room for colours; a row of dots may be long, and is cut at every dot
    for piece in _PIECES.findall(beginning.decode(errors="surrogateescape")):
        if piece[0] == "\x1b":
            shown += [piece] if _COLOUR.fullmatch(piece) else []
            continue
        width -= _columns(piece)
        if width < 0:
            break
        shown.append(piece if piece.isprintable() or "\udc80" <= piece <= "\udcff" else " ")
    plain = b"\x1b[m" if b"\x1b" in beginning else b""
    return "".join(shown).encode(errors="surrogateescape") + plain


def _columns(character: str) -> int:
    """Columns a terminal gives to a character: 2 for most of East Asia's, 0 for accents put on others."""
    if character.isascii():
        return 1
    from unicodedata import combining, east_asian_width  # late: only status lines need it

    return 0 if combining(character) else 2 if east_asian_width(character) in "WF" else 1


# --- The report at the end -------------------------------------------------------------------------------

MOST_TRACEBACKS = 3
"""Tracebacks shown before that of the first failure; of further failures only the causes are named."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a rank ended that did not end well.

    Attributes:
        rank: Its rank in the job.
        host: The host it ran on.
        cause: In words that may follow a colon: ``"exit status 3"``, ``"killed by SIGKILL"``.
        traceback: As Python prints it there, and shown in place of the cause; None if there is none.
        stopped: Whether the launcher ended the rank because of the first failure.
    """

    rank: int
    host: str
    cause: str
    traceback: str | None = None
    stopped: bool = False


def failure_block(root: Failure, others: Iterable[Failure], size: int) -> str:
    """The text that ends a failed job: lines, the last of them the traceback of ``root`` if it has one.

    From the least interesting to the most: who only fell because of ``root``, who failed on its own
    afterwards, and ``root``, the failure that came first. A traceback that several ranks share is shown once.
    Of a `Deadlock` the text is enough: it says of every rank where it was, and every rank raised it.

    Args:
        root: The failure that came first.
        others: All later ones; their order does not matter. One that bears the rank of ``root`` is left out.
        size: Ranks of the job.
    """
    fallen: list[Failure] = []
    root = _condensed(root)
    kinds: dict[tuple[str, bool], list[Failure]] = {_sameness(root): [root]}
    for each in sorted(map(_condensed, others), key=lambda each: each.rank):
        if each.rank != root.rank:
            kind = fallen if _only_fell(each) else kinds.setdefault(_sameness(each), [])
            kind.append(each)
    alike, *apart = kinds.values()
    return _fallen_line(fallen, root) + _later_failures(apart) + _root_block(root, alike, size)


_RANK_FAILED = re.compile(r"^(?:rmpi\.errors\.)?RankFailed: ", re.MULTILINE)
_DEADLOCK = re.compile(r"^(?:rmpi\.errors\.)?(Deadlock: .*)", re.MULTILINE | re.DOTALL)


def _last_exception(traceback: str) -> str:
    return traceback.rpartition("Traceback (most recent call last):")[2]


def _only_fell(failure: Failure) -> bool:
    """Whether its last exception is `RankFailed`: not its own failure, but the news of another's."""
    if failure.stopped or failure.traceback is None:
        return failure.stopped
    return _RANK_FAILED.search(_last_exception(failure.traceback)) is not None


def _condensed(failure: Failure) -> Failure:
    """Without its traceback, if its last exception is `Deadlock`."""
    found = _DEADLOCK.search(_last_exception(failure.traceback)) if failure.traceback is not None else None
    return replace(failure, traceback=found[1]) if found else failure


def _sameness(failure: Failure) -> tuple[str, bool]:
    """What failures must share to be told together."""
    return (failure.traceback or failure.cause).strip(), failure.traceback is not None


def _fallen_line(fallen: Sequence[Failure], root: Failure) -> str:
    return _note(f"{_ranks(fallen)}: stopped by the failure of rank {root.rank}") if fallen else ""


def _later_failures(kinds: Sequence[Sequence[Failure]]) -> str:
    """Those with a cause alone first, then those with tracebacks, as many as `MOST_TRACEBACKS`."""
    traced = [kind for kind in kinds if kind[0].traceback is not None]
    named = [kind for kind in kinds if kind[0].traceback is None] + traced[MOST_TRACEBACKS:]
    causes = [_note(f"{_where(kind)} failed later: {kind[0].cause}") for kind in named]
    blocks = [
        _note(f"{_where(kind)} raised this later:") + _lines(kind[0].traceback or "")
        for kind in traced[:MOST_TRACEBACKS]
    ]
    return "".join(causes + blocks)


def _root_block(root: Failure, alike: Sequence[Failure], size: int) -> str:
    who = _where(alike, f" of {size}")
    first = f" (rank {root.rank} on {root.host} first)" if len(alike) > 1 else ""
    if root.traceback is None:
        return _note(f"{who} failed{first}: {root.cause}")
    return _note(f"{who} raised this{first}:") + _lines(root.traceback)


def _where(failures: Sequence[Failure], of_size: str = "") -> str:
    """``ranks 0-2 of 8 on hosta``; of several hosts none is named."""
    hosts = {each.host for each in failures}
    return _ranks(failures) + of_size + (f" on {hosts.pop()}" if len(hosts) == 1 else "")


def _ranks(failures: Sequence[Failure]) -> str:
    noun = "rank" if len(failures) == 1 else "ranks"
    return f"{noun} {ranks_text(each.rank for each in failures)}"


def _note(text: str) -> str:
    return f"rmpi-run: {text}\n"


def _lines(traceback: str) -> str:
    return traceback.rstrip("\n") + "\n"
