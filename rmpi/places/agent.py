"""Sessions through a program that the user names: ``--rsh-agent ssh``, or a site's own script in its place.

What is known here is the form of its command line (that of rsh and ssh: ``[-l user] [-p port] host command``), and
what OpenSSH writes on stderr when it fails, which is turned into the same words that `rmpi.places.ssh` uses. The
program runs in a session of its own, away from the terminal: Ctrl-C does not reach it, and it cannot ask for
passwords. Its stdin and stdout are one end of a socket pair; no thread stands in between.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Callable

from rmpi.deadline import Deadline
from rmpi.places import refusals
from rmpi.places.boot import Tail
from rmpi.places.hosts import HostSpec
from rmpi.places.refusals import SSH_PORT, HostFailed

GRACE = 1.0
"""Seconds that an agent has between SIGTERM and SIGKILL, and its last words have to arrive."""


class AgentBooter:
    """Opens a session by running ``command [-l user] [-p port] host remote-command``.

    Args:
        command: Program and first arguments, quoted as for a shell; no shell runs.

    Raises:
        HostFailed: ``command`` is empty or its quotes do not match.
    """

    def __init__(self, command: str) -> None:
        try:
            self._argv = shlex.split(command)
        except ValueError as error:
            raise refusals.no_agent(command, str(error)) from None
        if not self._argv:
            raise refusals.no_agent(command, "nothing to run")

    def open(self, host: HostSpec, command: str, deadline: Deadline) -> AgentSession:
        """Start the agent. Whether it gets anywhere shows on the session's streams.

        Raises:
            HostFailed: The agent cannot be started, or the name of the host would be taken for an option.
        """
        return AgentSession(self.argv(host, command), host)

    def argv(self, host: HostSpec, command: str) -> list[str]:
        """What runs for ``host``, for those who want to see it first."""
        if host.name.startswith("-"):
            raise refusals.bad_name(host.name)
        user = ["-l", host.user] if host.user else []
        port = ["-p", str(host.port)] if host.port else []
        return [*self._argv, *user, *port, host.name, command]


class AgentSession:
    """One agent process; see `rmpi.places.boot.Session`."""

    address = ""  # the agent knows, and does not tell

    @property
    def pid(self) -> int:
        """The agent's process."""
        return self._process.pid

    def __init__(self, argv: list[str], host: HostSpec) -> None:
        self._host = host
        self.tail = Tail()
        self.warnings: list[str] = []
        self.control, far = socket.socketpair()
        # Sockets for stderr too: a ControlMaster that stays behind keeps its end open, and only a socket can be
        # shut down under a thread that reads it.
        self._stderr, far_stderr = socket.socketpair()
        with far, far_stderr:
            try:
                self._process = subprocess.Popen(
                    argv,
                    stdin=far.fileno(),
                    stdout=far.fileno(),
                    stderr=far_stderr.fileno(),
                    start_new_session=True,
                )
            except OSError as error:
                self.control.close()
                self._stderr.close()
                raise refusals.no_agent(argv[0], error.strerror or str(error)) from None
        self._listener = threading.Thread(target=self._listen, name=f"rmpi-stderr-{host.name}", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        data = b"more"
        while data:
            data = self._stderr.recv(65536)
            self.tail.feed(data)

    def diagnose(self, last_words: str) -> HostFailed:
        """Why the stream ended without a marker: what the agent said, in our words if they are known."""
        status = self._exit_status()
        self._listener.join(GRACE)
        known = explain(str(self.tail), self._host)
        return known or refusals.ended_early(self.tail.last() or last_words, status)

    def _exit_status(self) -> int | None:
        try:
            return self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """End the agent and what it started. Idempotent; takes `GRACE` twice at the worst."""
        self.control.close()
        for how in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self._process.pid, how)
                self._exit_status()
        if self._listener.is_alive():
            self._stderr.shutdown(socket.SHUT_RDWR)
            self._listener.join(GRACE)
        self._stderr.close()

    def disown(self) -> None:
        """In a fork: the agent lives as long as the parent."""
        self.control.close()
        self._stderr.close()

    def __repr__(self) -> str:
        return f"<AgentSession {self._host} pid {self._process.pid} status {self._process.poll()}>"


# --- What OpenSSH says, and what we say ---------------------------------------------------------------------


def explain(stderr: str, host: HostSpec) -> HostFailed | None:
    """The failure that OpenSSH describes in ``stderr``; None if it does not, or in words we have not met."""
    for pattern, words in _SAYINGS:
        if match := re.search(pattern, stderr):
            return words(match, host)
    return None


def _where(host: HostSpec) -> str:
    return f"{host.name}:{host.port or SSH_PORT}"


def _changed(match: re.Match[str], host: HostSpec) -> HostFailed:
    text = match.string
    offending = re.search(r"Offending \S+ key in (\S+:\d+)", text)
    fingerprint = re.search(r"SHA256:[\w+/]+", text)
    where = offending[1] if offending else "known_hosts"
    return refusals.changed_key(host.name, fingerprint[0] if fingerprint else "", where)


def _unknown(match: re.Match[str], host: HostSpec) -> HostFailed:
    fingerprint = re.search(r"(\w+) key fingerprint is (SHA256:[\w+/]+)", match.string)
    kind, shown = fingerprint.groups() if fingerprint else ("", "")
    return refusals.unknown_key(host.name, host.port or SSH_PORT, kind, shown, "~/.ssh/known_hosts")


def _denied(match: re.Match[str], host: HostSpec) -> HostFailed:
    user = match["user"] or host.user or "(the agent's choice)"
    methods = match["methods"].split(",")
    return (
        refusals.denied(user, ["the agent's keys"]) if "publickey" in methods else refusals.wrong_method(user, methods)
    )


# Most telling first: "Host key verification failed" ends both an unknown and a changed key.
_SAYINGS: list[tuple[str, Callable[[re.Match[str], HostSpec], HostFailed]]] = [
    (r"HOST IDENTIFICATION HAS CHANGED", _changed),
    (r"Host key verification failed|host key is known for", _unknown),
    (r"(?:(?P<user>[^@\s]+)@\S+: )?Permission denied \((?P<methods>[\w,-]+)\)", _denied),
    (
        r"Too many authentication failures",
        lambda _, host: refusals.denied(host.user or "", ["too many keys"]),
    ),
    (
        r"Could not resolve hostname (\S+): Temporary failure",
        lambda match, _: refusals.unresolved(match[1], temporary=True),
    ),
    (r"Could not resolve hostname (\S+):", lambda match, _: refusals.unresolved(match[1])),
    (r"Connection refused", lambda _, host: refusals.refused(_where(host))),
    (r"(?:Connection|Operation) timed out", lambda _, host: refusals.silent(_where(host))),
    (r"(No route to host|Network is unreachable)", lambda m, host: refusals.unreachable(_where(host), m[1])),
    (r"no matching (.*?) found", lambda m, host: refusals.no_common_algorithm(_where(host), m[0])),
    (
        r"Exceeded MaxStartups|kex_exchange_identification|ssh_exchange_identification",
        lambda _, host: refusals.dropped(_where(host)),
    ),
]
