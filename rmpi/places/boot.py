"""Start nodes on hosts: one session per host, one stream socket out of each.

A *booter* opens a session that runs one remote command (`rmpi.places.ssh`, `rmpi.places.agent`); this module
knows what that command is, how the far side says that it is up, and what makes a host unfit. It knows nothing
of ssh, and nothing of what nodes say to each other afterwards: the job's key is sent later, by others, on the
socket handed out here.

The remote command is a constant. Whatever varies (interpreters to try, the program to run) goes down stdin, so no
login shell, be it csh or fish, gets anything to misquote, and ``ps`` shows nothing about the job:

    head ──▶ host   interpreters to try, one per line; an empty line; one line of Python
    host ──▶ head   whatever .bashrc prints; "RMPI-NODE " and one line of JSON (`Facts`, or what is wrong); the node

The invariant: the head never reads past the end of the line that bears the marker. The first byte a caller reads from
`Booted.control` is the node's first. And whoever calls `boot_all` gets every host, or none and one `LaunchError`
that has a row for each host that is no good.
"""

from __future__ import annotations

import inspect
import ipaddress
import json
import queue
import random
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from rmpi.deadline import Deadline, now
from rmpi.errors import LaunchError
from rmpi.places import refusals
from rmpi.places.hosts import HostSpec
from rmpi.places.refusals import Again, HostFailed

NODE = "rmpi.places.remote"
"""The module whose ``main(control_in, control_out)`` becomes the node."""

MARKER = b"RMPI-NODE "
"""Begins the line on stdout behind which the node speaks."""

NODE_SPEAKS = "RMPI-NODE"
"""The line on stderr behind which the node speaks."""

NOISE_LIMIT = 1 << 20
"""Bytes of banners before the marker; a host that prints more is reported."""

DROPPED_TRIES = 8
"""Logins to a host whose sshd drops them (MaxStartups), about 10 s in all; then the host is reported."""

RETRY_PAUSE = 0.25
"""Seconds before the second try, up to half as much again or as little; doubled for each dropped login, at most 2 s."""

TAIL_LINES = 20
"""Lines of stderr that are kept for messages; older ones are forgotten."""


# --- What travels as source text: any Python 3 must be able to read it, down to the quoted annotations. -----
# It may use nothing of this module, and of rmpi only ``rmpi.wire.frames.VERSION``, which hence stays where it is.


def _look_around(module: str) -> "dict[str, object]":  # noqa: UP037
    """The `Facts` of this process; with ``error`` and ``detail`` among them where it cannot be a node."""
    import importlib
    import os
    import sys

    facts = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "executable": sys.executable,
        "uid": os.getuid(),
        "hostname": os.uname()[1],
        "ssh_connection": os.environ.get("SSH_CONNECTION", ""),
        "namespaces": " ".join(os.readlink("/proc/self/ns/" + kind) for kind in ("mnt", "net")),  # noqa: PTH115
    }
    if sys.version_info < (3, 11):  # noqa: UP036 (here runs whatever Python the host has)
        facts["error"] = "too old"
        return facts
    from importlib import metadata

    for package in ("rmpi", "numpy"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = ""
    facts["cores"] = len(os.sched_getaffinity(0))
    with open("/proc/sys/kernel/random/boot_id") as boot_id:  # noqa: PTH123
        facts["boot_id"] = boot_id.read().strip()
    try:
        facts["wire"] = importlib.import_module("rmpi.wire.frames").VERSION
        importlib.import_module(module)
    except ImportError as error:
        facts.update(error="import", missing=error.name or "", detail=str(error))
    except Exception as error:
        facts.update(error="import", missing="", detail=type(error).__name__ + ": " + str(error))
    return facts


def _become_node(module: str) -> None:
    """Answer on the real stdout, then run ``module.main`` with stdin and stdout moved out of everybody's way."""
    import os
    import sys

    sys.path[:] = [entry for entry in sys.path if entry]  # "" is $HOME here: a json.py lying there is not ours
    import importlib
    import json

    control_in, control_out = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    facts = _look_around(module)
    os.write(2, b"\nRMPI-NODE\n")
    os.write(control_out, ("\nRMPI-NODE " + json.dumps(facts) + "\n").encode())
    if "error" in facts:
        sys.exit(1)
    sys.exit(importlib.import_module(module).main(control_in, control_out))


# --- The remote command, and what goes down its stdin -------------------------------------------------------

# Neither of these may contain an apostrophe, a backslash, an exclamation mark or a line end: login shells differ on
# them even between apostrophes. The program is read a byte at a time, since what follows it belongs to the node.
_READ_PROGRAM = "import os;exec(bytes().join(iter(lambda:os.read(0,1)or os._exit(1),os.linesep.encode())))"
_FIND_PYTHON = (
    'f=; while IFS= read -r p && [ "$p" ]; do '
    'case $p in "~/"*) p=$HOME${p#"~"};; esac; '
    'case $p in */*) [ -f "$p" ] && [ -x "$p" ] || continue;; *) command -v "$p" >/dev/null 2>&1 || continue;; esac; '
    '[ "$f" ] || f=$p; done; '
    f'[ "$f" ] && exec "$f" -c "{_READ_PROGRAM}" rmpi-node; '
    'echo; echo "RMPI-NODE none $PATH"'
)
REMOTE_COMMAND = f"exec /bin/sh -c '{_FIND_PYTHON}'"


def opening(pythons: Sequence[str], module: str = NODE) -> bytes:
    """What `REMOTE_COMMAND` wants to read first: the interpreters to try, then the program.

    Args:
        pythons: Absolute paths, ``~/`` paths, or names to look for in PATH there; the first that exists runs.
        module: Has ``main(control_in: int, control_out: int) -> int``.
    """
    source = "\n".join([inspect.getsource(_look_around), inspect.getsource(_become_node), f"_become_node({module!r})"])
    return "".join([*(python + "\n" for python in pythons), "\n", f"exec({source!a})\n"]).encode()


def read_answer(control: socket.socket, deadline: Deadline) -> tuple[bool, str]:
    """Read up to and including the marker line, and not a byte more.

    Returns:
        Whether the marker came before the end of the stream, and what stood behind it on its line; without
        marker, the last line that was not empty, for messages.

    Raises:
        HostFailed: More than `NOISE_LIMIT` bytes and no marker.
        TimeoutError: ``deadline`` passed.
    """
    line, last, total = b"", b"", 0
    while total < NOISE_LIMIT:
        piece = _read_line_piece(control, deadline)
        line, total = line + piece, total + len(piece)
        if piece and not piece.endswith(b"\n"):
            continue
        if line.startswith(MARKER) and piece:
            return True, _text(line[len(MARKER) :])
        last, line = line.strip() or last, b""
        if not piece:
            return False, _text(last)
    raise refusals.noisy(_text(last))


def _read_line_piece(control: socket.socket, deadline: Deadline) -> bytes:
    """At least a byte, at most to the end of a line; empty at the end of the stream."""
    control.settimeout(_positive(deadline))
    try:
        waiting = control.recv(65536, socket.MSG_PEEK)
        return control.recv(waiting.find(b"\n") + 1 or len(waiting)) if waiting else b""
    except ConnectionResetError:
        return b""


def _positive(deadline: Deadline) -> float | None:
    """``settimeout`` takes 0 for "do not block"; we mean "no time left"."""
    left = deadline.left_or_none()
    return None if left is None else max(left, 0.001)


def _text(line: bytes) -> str:
    return line.decode(errors="backslashreplace").strip()


# --- What a host says about itself --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """What a process is and where it runs; two processes share memory only where these agree (`same_machine`)."""

    python: str  # "3.11.7"
    executable: str
    rmpi: str  # version; "" when rmpi is on the path without being installed
    wire: int
    numpy: str  # version; "" when numpy is not installed
    boot_id: str
    namespaces: str  # mount and network namespace
    uid: int
    cores: int  # that this process may run on
    hostname: str  # for people; identity is never told by it
    ssh_connection: str  # "client port server port", "" outside ssh

    @property
    def python_minor(self) -> str:
        """``"3.11"`` of ``"3.11.7"``: what must agree for pickles and compiled modules."""
        return ".".join(self.python.split(".")[:2])

    def same_machine(self, other: Facts) -> bool:
        """Whether shared memory and unix sockets connect the two."""
        return (self.boot_id, self.namespaces, self.uid) == (other.boot_id, other.namespaces, other.uid)


def here() -> Facts:
    """The facts of this very process."""
    return _facts(_look_around("rmpi"))


def _facts(answer: dict[str, object]) -> Facts:
    """Raises KeyError or TypeError where the answer is not shaped like ours."""
    values = {each.name: answer[each.name] for each in fields(Facts)}
    for each in fields(Facts):
        if type(values[each.name]).__name__ != each.type:
            raise TypeError(each.name)
    return Facts(**values)  # type: ignore[arg-type]


def examine(answer: str, tried: Sequence[str], expect: Facts) -> Facts:
    """The facts behind the marker, when they are those of a host that can take part.

    Raises:
        HostFailed: It cannot; says why and what to do.
    """
    if answer.startswith("none"):
        raise refusals.no_interpreter(tried, answer.removeprefix("none").strip())
    try:
        said = json.loads(answer)
        _object_to(said, expect)
        facts = _facts(said)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise refusals.babble(answer[:200]) from None
    if not facts.numpy:
        raise refusals.lacks(facts.executable, "numpy", f"numpy=={expect.numpy}")
    return facts


def _object_to(said: dict[str, Any], expect: Facts) -> None:
    """Raise for what may be wrong before there are complete facts. The Python comes first: it explains the rest."""
    executable, python = said["executable"], said["python"]
    if said.get("error") == "too old":
        raise refusals.too_old(executable, python)
    if python.split(".")[:2] != expect.python.split(".")[:2]:
        raise refusals.other_python(executable, python, expect.python_minor)
    if (wire := said.get("wire", expect.wire)) != expect.wire:
        raise refusals.other_wire(said["rmpi"] or "from source", wire, expect.wire, expect.rmpi)
    if "error" not in said:
        return
    if said["missing"] and not said["missing"].startswith("rmpi."):
        wanted = f"rmpi=={expect.rmpi}" if expect.rmpi else "rmpi"
        raise refusals.lacks(executable, said["missing"], wanted)
    raise refusals.does_not_import(executable, said["detail"])


def _differences(facts: Facts, host: HostSpec, expect: Facts) -> list[str]:
    """What is no reason to refuse and may surprise."""
    if facts.numpy == expect.numpy:
        return []
    return [f"{host.name} has numpy {facts.numpy}, the launcher {expect.numpy}: results may differ in the last bits"]


# --- Sessions -----------------------------------------------------------------------------------------------


class Tail:
    """What a host says on stderr: the last lines for messages, and the node's own lines for who listens.

    The lines before `NODE_SPEAKS` come from sshd, the login shell and Python's start; nobody asked for them.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._unheard: deque[str] = deque(maxlen=TAIL_LINES)
        self._unfinished = b""
        self._node_speaks = False
        self._listener: Callable[[str], None] | None = None
        self._lock = threading.Lock()

    def feed(self, data: bytes) -> None:
        """Take bytes as they come; empty means the end. Called by one thread."""
        *whole, self._unfinished = (self._unfinished + data).split(b"\n")
        if not data and self._unfinished:
            whole, self._unfinished = [self._unfinished], b""
        for line in whole:
            self._hear(line.decode(errors="backslashreplace").rstrip("\r"))

    def _hear(self, line: str) -> None:
        if line == NODE_SPEAKS:
            self._node_speaks = True
            return
        with self._lock:
            self._lines.append(line)
            if self._node_speaks:
                (self._listener or self._unheard.append)(line)

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with each line of the node, without its end: now with those it has said already (the
        last `TAIL_LINES`), later from a thread of the session. It must not call back."""
        with self._lock:
            self._listener = listener
            for line in self._unheard:
                listener(line)
            self._unheard.clear()

    def __str__(self) -> str:
        return "\n".join(self._lines)

    def last(self) -> str:
        """The last line that is not empty, or ""."""
        return next((line.strip() for line in reversed(self._lines) if line.strip()), "")


class Session(Protocol):
    """One remote command that runs.

    Attributes:
        control: Stream socket: the command's stdin and stdout.
        address: Numeric address of the host as we reached it; "" when somebody else reached it for us.
        tail: Its stderr.
        warnings: For the user, one line each.
    """

    control: socket.socket
    address: str
    tail: Tail
    warnings: list[str]

    def diagnose(self, last_words: str) -> HostFailed:
        """Why the stream ended without a marker. ``last_words`` is what stdout said last. Waits briefly."""

    def close(self) -> None:
        """End session and command, close ``control``. Idempotent; returns within seconds."""

    def disown(self) -> None:
        """In a fork of this process: close its copies of descriptors, so that the session ends with this process."""


class Booter(Protocol):
    """Opens sessions; called from many threads at once."""

    def open(self, host: HostSpec, command: str, deadline: Deadline) -> Session:
        """Log in and run ``command`` under the user's login shell.

        Raises:
            HostFailed: And nothing is left behind.
        """


@dataclass(slots=True)
class Booted:
    """A node that is up.

    Attributes:
        control: Stream socket to the node, blocking; the first byte to read is the first the node wrote.
        address: Numeric address by which the host was reached, in its own words if it knows.
        warnings: For the user, one line each.
    """

    host: HostSpec
    control: socket.socket
    facts: Facts
    address: str
    session: Session = field(repr=False)
    warnings: list[str] = field(default_factory=list)

    def close(self) -> None:
        """End the session and close ``control``; what was not read or sent yet is lost. Idempotent, bounded."""
        self.session.close()


def _address(facts: Facts, session: Session) -> str:
    """The host knows best: behind a jump host or an alias our side never saw the address."""
    words = facts.ssh_connection.split()
    for candidate in (*words[2:3], session.address):
        try:
            return str(ipaddress.ip_address(candidate))
        except ValueError:
            continue
    return "127.0.0.1"


# --- All of them at once ------------------------------------------------------------------------------------


def boot_all(
    booter: Booter,
    hosts: Sequence[HostSpec],
    *,
    pythons: Sequence[str],
    deadline: Deadline,
    at_once: int = 10,
    expect: Facts | None = None,
    patience: float = 1.0,
    on_progress: Callable[[str], None] | None = None,
    on_stderr: Callable[[HostSpec, str], None] | None = None,
    module: str = NODE,
) -> list[Booted]:
    """Start a node on every host, several at a time.

    Args:
        pythons: Interpreters to try on each host, best first; a host's own ``python`` replaces them.
        deadline: For all of them together, retries included.
        at_once: Logins in flight. sshd drops some of more than ten (its MaxStartups is 10:30:100).
        expect: What hosts must agree with; by default the facts of this process.
        patience: Seconds for which a name that does not resolve, or a refused connection, is taken for a host that is
            still coming up. Raise it where hosts start together with the launcher.
        on_progress: Called now and then, in this thread, with one line about who is up and who is not.
        on_stderr: Called from other threads with each line a node writes on stderr once it is up.
        module: What runs as the node.

    Returns:
        One `Booted` per host, in the order of ``hosts``. The caller closes them.

    Raises:
        LaunchError: Status 125; one row for each host that failed. The others are closed again.
    """
    muster = _Muster(booter, hosts, pythons, deadline, expect or here(), patience, on_stderr, module)
    try:
        outcomes = muster.wait(at_once, on_progress or (lambda _: None))
    except BaseException:
        muster.dismiss()
        raise
    failed = {index: each for index, each in outcomes.items() if isinstance(each, HostFailed)}
    if failed:
        muster.dismiss()
        raise LaunchError(_table(hosts, failed), status=125)
    return [each for index in range(len(hosts)) if isinstance(each := outcomes[index], Booted)]


class _Muster:
    """The state of one `boot_all`: workers take hosts from one queue and put outcomes into another.

    Workers are daemon threads, since a name lookup cannot be interrupted: at the deadline they are left behind, and
    close what they still open (`_hand_in`).
    """

    def __init__(
        self,
        booter: Booter,
        hosts: Sequence[HostSpec],
        pythons: Sequence[str],
        deadline: Deadline,
        expect: Facts,
        patience: float,
        on_stderr: Callable[[HostSpec, str], None] | None,
        module: str,
    ) -> None:
        self._booter, self._hosts, self._pythons, self._deadline = booter, hosts, pythons, deadline
        self._expect, self._patience, self._on_stderr, self._module = expect, patience, on_stderr, module
        self._started = now()
        self._doing = ["waiting for a turn"] * len(hosts)
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, Booted | HostFailed | Exception]] = queue.SimpleQueue()
        self._outcomes: dict[int, Booted | HostFailed] = {}
        self._dismissed = threading.Event()
        self._door = threading.Lock()  # nobody is handed in once it is closed by dismiss()

    # The head's thread

    def wait(self, at_once: int, on_progress: Callable[[str], None]) -> dict[int, Booted | HostFailed]:
        for index in range(len(self._hosts)):
            self._todo.put(index)
        for _ in range(min(max(at_once, 1), len(self._hosts))):
            threading.Thread(target=self._work, name="rmpi-boot", daemon=True).start()
        while len(self._outcomes) < len(self._hosts):
            self._take_one()
            on_progress(self._progress())
        return self._outcomes

    def _take_one(self) -> None:
        """Wait a second at most; past the deadline, and half a second for the workers to say so, mark who is late."""
        try:
            index, outcome = self._done.get(timeout=min(1.0, self._deadline.left() + 0.5))
        except queue.Empty:
            if self._deadline.passed():
                self._mark_late()
            return
        if not isinstance(outcome, Booted | HostFailed):
            raise outcome
        self._outcomes[index] = outcome

    def _mark_late(self) -> None:
        for index, doing in enumerate(self._doing):
            self._outcomes.setdefault(index, refusals.not_in_time(doing))

    def _progress(self) -> str:
        up = sum(isinstance(each, Booted) for each in self._outcomes.values())
        missing = [host.name for index, host in enumerate(self._hosts) if index not in self._outcomes]
        line = f"{up}/{len(self._hosts)} hosts up"
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            line += f", waiting for {', '.join(missing[:3])}{more} ({now() - self._started:.1f} s)"
        return line

    def dismiss(self) -> None:
        """Close everything that is up, and everything that still comes up."""
        with self._door:
            self._dismissed.set()
        while not self._done.empty():
            index, outcome = self._done.get()
            if isinstance(outcome, Booted):
                self._outcomes[index] = outcome
        for each in self._outcomes.values():
            if isinstance(each, Booted):
                each.close()

    # The workers' threads

    def _work(self) -> None:
        while not self._dismissed.is_set():
            try:
                index = self._todo.get_nowait()
            except queue.Empty:
                return
            self._hand_in(index, self._boot(index))

    def _hand_in(self, index: int, outcome: Booted | HostFailed | Exception) -> None:
        with self._door:
            if not self._dismissed.is_set():
                self._done.put((index, outcome))
                return
        if isinstance(outcome, Booted):
            outcome.close()

    def _boot(self, index: int) -> Booted | HostFailed | Exception:
        """Try, and try again while that makes sense."""
        started, tries = now(), 0
        while True:
            try:
                return self._try(index)
            except HostFailed as failure:
                tries += 1
                if not self._worth_another(failure, tries, started):
                    return failure
                self._doing[index] = f"trying again: {failure.what}"
            except Exception as error:  # ours to fix; the head's thread raises it
                return error
            pause = min(RETRY_PAUSE * 2 ** (tries - 1), 2.0) * random.uniform(0.5, 1.5)
            self._dismissed.wait(min(pause, self._deadline.left()))

    def _worth_another(self, failure: HostFailed, tries: int, started: float) -> bool:
        if self._dismissed.is_set() or self._deadline.passed():
            return False
        if failure.again is Again.OFTEN:
            return tries < DROPPED_TRIES
        return failure.again is Again.PATIENTLY and now() - started < self._patience

    def _try(self, index: int) -> Booted:
        self._doing[index] = "logging in"
        session = self._booter.open(self._hosts[index], REMOTE_COMMAND, self._deadline)
        try:
            self._doing[index] = "starting Python there"
            return self._meet(session, self._hosts[index])
        except TimeoutError:
            raise self._close_and_blame(session, "starting Python there") from None
        except BaseException:
            session.close()
            raise

    def _close_and_blame(self, session: Session, doing: str) -> HostFailed:
        session.close()
        said = session.tail.last()
        return refusals.not_in_time(f"{doing} (it says: {said})" if said else doing)

    def _meet(self, session: Session, host: HostSpec) -> Booted:
        pythons = [host.python] if host.python else self._pythons
        _tell(session.control, opening(pythons, self._module), self._deadline)
        marked, answer = read_answer(session.control, self._deadline)
        if not marked:
            raise session.diagnose(answer)
        facts = examine(answer, pythons, self._expect)
        if self._on_stderr:
            listener, whose = self._on_stderr, host
            session.tail.listen(lambda line: listener(whose, line))
        session.control.settimeout(None)
        warnings = [*session.warnings, *_differences(facts, host, self._expect)]
        return Booted(host, session.control, facts, _address(facts, session), session, warnings)


def _tell(control: socket.socket, text: bytes, deadline: Deadline) -> None:
    """Send, unless nobody listens any more: then what the far side said last explains it better than EPIPE."""
    control.settimeout(_positive(deadline))
    try:
        control.sendall(text)
    except (BrokenPipeError, ConnectionResetError):
        pass


def _table(hosts: Sequence[HostSpec], failed: dict[int, HostFailed]) -> str:
    """One row per bad host, in the order of the hostfile."""
    rows = [("host", "what is wrong", "what to do")]
    for index in sorted(failed):
        host, failure = hosts[index], failed[index]
        name = f"{host} ({host.origin})" if host.origin else str(host)
        rows.append((name, failure.what, failure.fix))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {name:<{widths[0]}}  {what:<{widths[1]}}  {fix}" for name, what, fix in rows]
    return "\n".join([f"{len(failed)} of {len(hosts)} hosts cannot be used:", *lines])
