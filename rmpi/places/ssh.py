"""Sessions over ssh, by paramiko: what ``ssh host command`` does, in this process, with errors one can tell apart.

The only module that imports paramiko (a tenth of a second), so import it late. It reads what OpenSSH reads
(``~/.ssh/config`` with its includes, jumps and proxy commands, ``known_hosts``, the agent, the default keys) and
differs from it in one thing: the caller's policy decides whether to accept an unknown host key, never the config.

Three layers, top down: `SshBooter` walks config → socket → host key → user key → command and translates each failure
(`rmpi.places.refusals`); `SshSession` owns what that opened; `KnownHosts` and `read_config` read the files paramiko
reads too leniently (no line numbers, patterns or revoked keys in known_hosts; no ``Include``).

A paramiko channel is no file descriptor, so threads pump between it and one end of a socket pair, the other end of
which is `SshSession.control`. The kernel's socket buffers and ssh's window are the bounded queues: a slow
reader on either side stops the writer on the other.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import getpass
import glob
import hashlib
import hmac
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from rmpi.deadline import Deadline
from rmpi.errors import LaunchError
from rmpi.places import refusals
from rmpi.places.boot import Tail
from rmpi.places.hosts import HostSpec
from rmpi.places.refusals import SSH_PORT, HostFailed

HostKeyPolicy: TypeAlias = Literal["strict", "accept-new", "off"]

CONNECT_TIMEOUT = 10.0
"""Seconds for each step of one try: to connect, to greet, to agree on keys, to be let in. Then the host is silent."""

INCLUDE_DEPTH = 16
"""Levels of ``Include``, as in OpenSSH; deeper is an error, since it is a loop."""

JUMPS = 8
"""Hosts on the way to one host; more is an error, since it is a loop."""

JOIN_TIMEOUT = 2.0
"""Seconds that `SshSession.close` waits for each thread, none of which waits for anything by then."""

DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")

_LOG = "rmpi.paramiko"
"""paramiko logs its threads' tracebacks as errors. They go to a logger of our own, which keeps quiet until somebody
who looks for a bug in ssh itself lowers its level."""
logging.getLogger(_LOG).setLevel(logging.CRITICAL + 1)


# --- Files: config ------------------------------------------------------------------------------------------


def read_config(path: Path, depth: int = 0) -> str:
    """The text of an ssh config file, every ``Include`` replaced by what it names; "" if there is no such file.

    Relative names are looked for where OpenSSH does: in ``/etc/ssh`` for the files there, else in ``~/.ssh``. An
    included file ends with the block it began in, so that its last ``Host`` does not swallow what follows.

    Raises:
        LaunchError: Unreadable, or included deeper than `INCLUDE_DEPTH`.
    """
    if depth > INCLUDE_DEPTH:
        raise LaunchError(f"{path}: Include goes round in circles, or more than {INCLUDE_DEPTH} levels deep")
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"{path}: cannot read it ({error})") from None
    lines, block = [], "Host *"
    for line in text.splitlines():
        keyword, _, rest = line.strip().replace("=", " ", 1).partition(" ")
        if keyword.lower() == "include":
            lines += [read_config(each, depth + 1) for each in _included(rest, path)] + [block]
            continue
        block = line if keyword.lower() in ("host", "match") else block
        lines.append(line)
    return "\n".join([*lines, ""])


def _included(patterns: str, path: Path) -> Iterator[Path]:
    home = Path("/etc/ssh") if path.is_relative_to("/etc/ssh") else _ssh_home()
    for pattern in _words(patterns):
        yield from map(Path, sorted(glob.glob(str(home / Path(pattern).expanduser()))))  # noqa: PTH207 (absolute)


def _ssh_home() -> Path:
    return Path.home() / ".ssh"


@dataclass(frozen=True, slots=True)
class Login:
    """Where one hop of the way goes, and how, once config and host file are taken together."""

    name: str  # what is resolved and connected to
    port: int
    user: str
    identities: tuple[Path, ...]
    only_these: bool  # IdentitiesOnly: leave the agent's other keys alone
    jumps: tuple[str, ...]
    proxy: str  # ProxyCommand; "" for none
    known_as: str  # what known_hosts calls it
    known_hosts: tuple[Path, ...]  # the first is the one to add to

    @property
    def where(self) -> str:
        return f"{self.name}:{self.port}"


def find_login(config: str, name: str, user: str | None = None, port: int | None = None) -> Login:
    """What ``ssh [-l user] [-p port] name`` would do by ``config``, a text.

    Raises:
        LaunchError: ``config`` does not parse.
    """
    # First value wins, so what the caller says goes on top; then %p and %r in ProxyCommand mean it too.
    said = f"Host *\n{f'User {user}' if user else ''}\n{f'Port {port}' if port else ''}\nHost *\n"
    try:
        options = paramiko.SSHConfig.from_text(said + config).lookup(name)
        port = int(options.get("port", SSH_PORT))
    except (paramiko.SSHException, ValueError, ImportError) as error:
        raise LaunchError(f"the ssh config does not parse for host {name}: {error}") from None
    jumps = _unless_none(options.get("proxyjump"))
    return Login(
        name=options["hostname"],
        port=port,
        user=options.get("user") or getpass.getuser(),
        identities=_identities(options.get("identityfile")),
        only_these=options.get("identitiesonly", "no").lower() == "yes",
        jumps=tuple(jump.strip() for jump in jumps.split(",")) if jumps else (),
        proxy="" if jumps else _unless_none(options.get("proxycommand")),
        known_as=options.get("hostkeyalias") or options["hostname"],
        known_hosts=_paths(options.get("userknownhostsfile"), "~/.ssh/known_hosts ~/.ssh/known_hosts2")
        + _paths(options.get("globalknownhostsfile"), "/etc/ssh/ssh_known_hosts"),
    )


def _unless_none(value: str | None) -> str:
    return "" if value is None or value.lower() == "none" else value


def _identities(said: Sequence[str] | None) -> tuple[Path, ...]:
    if said:
        return tuple(Path(each).expanduser() for each in said)
    return tuple(_ssh_home() / name for name in DEFAULT_KEYS)


def _paths(said: str | None, default: str) -> tuple[Path, ...]:
    return tuple(Path(each).expanduser() for each in _words(said or default))


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise LaunchError(f"the ssh config does not parse at {text!r}: {error}") from None


# --- Files: known_hosts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownKey:
    """One line of known_hosts."""

    marker: str  # "@revoked", "@cert-authority" or ""
    hosts: str
    kind: str
    blob: bytes
    where: str  # "file:line"

    def is_for(self, name: str) -> bool:
        """Whether the line is about ``name``, which is ``[host]:port`` when the port is not 22."""
        if self.hosts.startswith("|1|"):
            salt, _, digest = self.hosts.removeprefix("|1|").partition("|")
            expected = hmac.digest(_unbase64(salt), name.encode(), "sha1")
            return hmac.compare_digest(expected, _unbase64(digest))
        patterns = self.hosts.lower().split(",")
        if any(each.startswith("!") and _glob_matches(each[1:], name) for each in patterns):
            return False
        return any(_glob_matches(each, name) for each in patterns)


def _glob_matches(pattern: str, name: str) -> bool:
    """``*`` and ``?`` only: `fnmatch` would take the brackets of ``[host]:2222`` for a set of characters."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), name) is not None


def _unbase64(text: str) -> bytes:
    """Empty for what is no base64, which then equals nothing."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


class KnownHosts:
    """The host keys a user trusts, with the lines they stand on. Lines that do not parse are passed over."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.keys = [key for path in paths for key in _read_known_hosts(path)]

    def of(self, name: str, port: int) -> list[KnownKey]:
        """The keys of that host, without the authorities that might vouch for it."""
        spelled = name.lower() if port == SSH_PORT else f"[{name.lower()}]:{port}"
        return [key for key in self.keys if key.marker != "@cert-authority" and key.is_for(spelled)]


def _read_known_hosts(path: Path) -> Iterator[KnownKey]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return
    for number, line in enumerate(lines, 1):
        marker, _, rest = line.partition(" ") if line.startswith("@") else ("", "", line)
        words = rest.split()
        if len(words) >= 3 and not rest.startswith("#"):
            yield KnownKey(marker, words[0], words[1], _unbase64(words[2]), f"{path}:{number}")


def fingerprint(blob: bytes) -> str:
    """``SHA256:…`` as ssh prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


# --- The booter ---------------------------------------------------------------------------------------------


class SshBooter:
    """Opens sessions over ssh. Nothing is asked of the user, ever; safe to use from many threads.

    Args:
        policy: ``strict`` connects to hosts that known_hosts lists; ``accept-new`` adds unknown ones to it; ``off``
            checks nothing and says so every time. A *changed* key is refused by the first two.
        config_file: Instead of ``~/.ssh/config`` and ``/etc/ssh/ssh_config``.
        identities: Private keys to try before those of the config.
        connect_timeout: Seconds for each step of a try.

    Raises:
        LaunchError: A config file cannot be read.
    """

    def __init__(
        self,
        policy: HostKeyPolicy = "strict",
        config_file: Path | None = None,
        *,
        identities: Sequence[Path] = (),
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        files = [config_file] if config_file else [_ssh_home() / "config", Path("/etc/ssh/ssh_config")]
        self._config = "Host *\n".join(read_config(path) for path in files)
        self._policy = policy
        self._identities = tuple(identities)
        self._timeout = connect_timeout
        self._accepting = threading.Lock()

    def open(self, host: HostSpec, command: str, deadline: Deadline) -> SshSession:
        """Log in, through jump hosts if the config says so, and run ``command``.

        Raises:
            HostFailed: With nothing left open.
            LaunchError: The config does not parse.
        """
        if host.name.startswith("-"):
            raise refusals.bad_name(host.name)
        with contextlib.ExitStack() as stack:
            way = _Way(stack, deadline, self._timeout)
            login = find_login(self._config, host.name, host.user, host.port)
            transport = self._log_in(login, way)
            channel = _run(transport, command, way)
            return SshSession(host, channel, way, stack.pop_all())
        raise AssertionError("not reached: nothing above swallows exceptions")

    def _log_in(self, login: Login, way: _Way, medium: _Medium | None = None) -> paramiko.Transport:
        """Over ``medium``, or as the config says."""
        medium = self._dial(login, way) if medium is None else medium
        transport = _greet(medium, login, way, self._preferred_kinds(login))
        self._check_host_key(transport, login, way)
        _authenticate(transport, login, self._identities, way)
        return transport

    def _dial(self, login: Login, way: _Way) -> _Medium:
        if login.jumps:
            return self._through(login, way)
        if login.proxy:
            return _start_proxy(login, way)
        return _connect(login, way)

    def _through(self, login: Login, way: _Way) -> _Medium:
        """Hop from jump host to jump host. Only the first may have jumps of its own, as in OpenSSH."""
        hops = [find_login(self._config, *_split_jump(jump)) for jump in login.jumps]
        way.add_hops(len(hops), login)
        medium: _Medium | None = None
        for hop, following in zip(hops, [*hops[1:], login], strict=True):
            with _blamed_on_jump(hop):
                transport = self._log_in(hop, way, medium)
                medium = _tunnel(transport, following, way)
        way.address = ""  # that was the first jump host's; the host's own is known on the other side only
        assert medium is not None
        return medium

    # Host keys

    def _preferred_kinds(self, login: Login) -> list[str]:
        """Kinds of keys that known_hosts has, so that a host with several shows the one that can be checked."""
        kinds = [key.kind for key in KnownHosts(login.known_hosts).of(login.known_as, login.port)]
        return [name for kind in kinds for name in (_RSA_KINDS if kind == "ssh-rsa" else (kind,))]

    def _check_host_key(self, transport: paramiko.Transport, login: Login, way: _Way) -> None:
        key = transport.get_remote_server_key()
        if self._policy == "off":
            way.warnings.append(
                f"{login.name}: host key {fingerprint(key.asbytes())} not checked (--host-key-policy off)"
            )
            return
        with self._accepting:  # or two logins to one new host would both add its key
            if _is_known(key, login):
                return
            if self._policy == "strict":
                raise refusals.unknown_key(
                    login.name,
                    login.port,
                    key.get_name(),
                    fingerprint(key.asbytes()),
                    str(login.known_hosts[0]),
                )
            _accept(key, login)
        way.warnings.append(f"{login.name}: accepted new host key {fingerprint(key.asbytes())}")


_RSA_KINDS = ("rsa-sha2-512", "rsa-sha2-256")

_Medium: TypeAlias = socket.socket | paramiko.Channel


class _Way:
    """What one login opens on its way to the host, and the time it may take."""

    def __init__(self, stack: contextlib.ExitStack, deadline: Deadline, step: float) -> None:
        self.stack = stack
        self.warnings: list[str] = []
        self.address = ""
        self._deadline = deadline
        self._step = step
        self._hops = 0

    def seconds(self) -> float:
        """For the next step; positive."""
        return max(0.01, min(self._step, self._deadline.left()))

    def add_hops(self, hops: int, login: Login) -> None:
        self._hops += hops
        if self._hops > JUMPS:
            raise HostFailed(
                f"ProxyJump leads over more than {JUMPS} hosts to {login.name}",
                "look for a loop in ~/.ssh/config",
            )


def _split_jump(jump: str) -> tuple[str, str | None, int | None]:
    """``[ssh://][user@]host[:port]`` as (host, user, port)."""
    match = re.fullmatch(r"(?:ssh://)?(?:(.+)@)?(\[[^\]]+\]|[^:@]+|[^@\[\]]*:[^@\[\]]*:[^@\[\]]*)(?::(\d+))?/?", jump)
    if not match:
        raise HostFailed(f"ProxyJump {jump!r} is not [user@]host[:port]", "correct it in ~/.ssh/config")
    user, name, port = match.groups()
    return name.strip("[]"), user, int(port) if port else None


@contextlib.contextmanager
def _blamed_on_jump(hop: Login) -> Iterator[None]:
    try:
        yield
    except HostFailed as failure:
        raise HostFailed(f"at jump host {hop.name}: {failure.what}", failure.fix, again=failure.again) from None


# --- Step 1: something that carries bytes to sshd -----------------------------------------------------------


def _connect(login: Login, way: _Way) -> socket.socket:
    seconds = way.seconds()
    try:
        sock = socket.create_connection((login.name, login.port), timeout=seconds)
    except socket.gaierror as error:
        raise refusals.unresolved(login.name, temporary=error.errno == socket.EAI_AGAIN) from None
    except UnicodeError:  # an empty label, or one of more than 63 characters
        raise refusals.unresolved(login.name) from None
    except ConnectionRefusedError:
        raise refusals.refused(login.where) from None
    except TimeoutError:
        raise refusals.silent(login.where, seconds) from None
    except OSError as error:
        if error.errno == errno.ETIMEDOUT:
            raise refusals.silent(login.where, seconds) from None
        raise refusals.unreachable(login.where, error.strerror or str(error)) from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    way.stack.callback(sock.close)
    way.address = sock.getpeername()[0]
    return sock


def _start_proxy(login: Login, way: _Way) -> socket.socket:
    """Run ProxyCommand on one end of a socket pair. (paramiko's own waits forever for a command that has ended.)"""
    near, far = socket.socketpair()
    way.stack.callback(near.close)
    with far:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {login.proxy}"],
            stdin=far.fileno(),
            stdout=far.fileno(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    way.stack.callback(_end_process, process)
    return near


def _end_process(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL: a proxy holds nothing but its connection."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tunnel(transport: paramiko.Transport, login: Login, way: _Way) -> paramiko.Channel:
    try:
        return transport.open_channel("direct-tcpip", (login.name, login.port), ("127.0.0.1", 0), timeout=way.seconds())
    except paramiko.ChannelException as error:
        if error.code == 1:
            raise HostFailed("forwarding is not allowed", "set AllowTcpForwarding yes in its sshd_config") from None
        raise HostFailed(f"cannot reach {login.where} from there ({error.text})", "check name and port") from None
    except (paramiko.SSHException, EOFError) as error:
        raise HostFailed(f"cannot open a way to {login.where} ({error})", "try ssh -J by hand") from None


# --- Step 2: speak ssh --------------------------------------------------------------------------------------


def _greet(medium: _Medium, login: Login, way: _Way, preferred: Sequence[str]) -> paramiko.Transport:
    """Agree on keys. A failure is explained by what the server said first, which is hence looked at, not taken."""
    greeting = _peek(medium, login, way.seconds())
    try:
        transport = paramiko.Transport(medium)
    except (paramiko.SSHException, OSError) as error:
        raise _explain_handshake(error, greeting, login) from None
    way.stack.callback(_end_transport, transport)
    transport.set_log_channel(_LOG)
    seconds = way.seconds()
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = seconds
    options = transport.get_security_options()
    options.key_types = _first(preferred, options.key_types)
    done = threading.Event()
    transport.start_client(done)
    if not done.wait(seconds):
        raise refusals.silent(login.where, seconds)
    if not transport.is_active():
        raise _explain_handshake(transport.get_exception(), greeting, login)
    return transport


def _first(preferred: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """``known``, reordered."""
    front = [each for each in dict.fromkeys(preferred) if each in known]
    return (*front, *(each for each in known if each not in front))


def _peek(medium: _Medium, login: Login, seconds: float) -> str:
    """The first words of the server; "SSH-" for a medium that does not let one look."""
    if not isinstance(medium, socket.socket):
        return "SSH-"
    medium.settimeout(seconds)
    try:
        greeting = medium.recv(255, socket.MSG_PEEK)
    except TimeoutError:
        raise refusals.not_ssh(login.where, "") from None
    except OSError:
        greeting = b""
    if not greeting:
        raise _no_greeting(login)
    return greeting.decode(errors="backslashreplace")


def _no_greeting(login: Login) -> HostFailed:
    if login.proxy:
        return HostFailed(f"ProxyCommand ended at once: {login.proxy}", "run it by hand to see why")
    return refusals.dropped(login.where)


def _explain_handshake(error: Exception | None, greeting: str, login: Login) -> HostFailed:
    if isinstance(error, IncompatiblePeer):
        return refusals.no_common_algorithm(login.where, str(error))
    if greeting.startswith(("Exceeded MaxStartups", "Not allowed at this time")):
        return refusals.dropped(login.where)
    if "SSH-" not in greeting:
        return refusals.not_ssh(login.where, greeting.splitlines()[0])
    if isinstance(error, EOFError | OSError) or "protocol banner" in str(error):
        return refusals.dropped(login.where)
    return HostFailed(f"ssh with {login.where} failed ({error})", "try ssh by hand, or use --rsh-agent ssh")


def _end_transport(transport: paramiko.Transport) -> None:
    """Its thread polls ten times a second; a socket that is shut down wakes it at once."""
    if isinstance(transport.sock, socket.socket):
        with contextlib.suppress(OSError):
            transport.sock.shutdown(socket.SHUT_RDWR)
    transport.close()
    transport.packetizer.complete_handshake()  # else its timer thread sits out the handshake's time-out
    if transport.ident is not None:
        transport.join(JOIN_TIMEOUT)


# --- Step 3: is it the host? --------------------------------------------------------------------------------


def _is_known(key: paramiko.PKey, login: Login) -> bool:
    """Raises HostFailed for a revoked key, and for any key where known_hosts lists others only."""
    blob = key.asbytes()
    known = KnownHosts(login.known_hosts).of(login.known_as, login.port)
    for each in known:
        if each.marker == "@revoked" and each.blob == blob:
            raise refusals.revoked_key(fingerprint(blob), each.where)
    trusted = [each for each in known if not each.marker]
    if any(each.blob == blob for each in trusted):
        return True
    if trusted:
        same_kind = [each for each in trusted if each.kind == key.get_name()]
        spelled = login.known_as if login.port == SSH_PORT else f"[{login.known_as}]:{login.port}"
        raise refusals.changed_key(spelled, fingerprint(blob), (same_kind or trusted)[0].where)
    return False


def _accept(key: paramiko.PKey, login: Login) -> None:
    name = login.known_as if login.port == SSH_PORT else f"[{login.known_as}]:{login.port}"
    path = login.known_hosts[0]
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{name} {key.get_name()} {key.get_base64()}\n")
    except OSError as error:
        raise HostFailed(f"cannot add its host key to {path} ({error.strerror})", "make that file writable") from None


# --- Step 4: are you the user? ------------------------------------------------------------------------------


def _authenticate(transport: paramiko.Transport, login: Login, first: Sequence[Path], way: _Way) -> None:
    methods = _methods(transport, login)
    if not methods:
        return
    if "publickey" not in methods:
        raise refusals.wrong_method(login.user, methods)
    tried: list[str] = []
    locked: list[str] = []
    for key, label in _keys(login, first, locked, way):
        tried.append(label)
        try:
            further = transport.auth_publickey(login.user, key)
        except paramiko.AuthenticationException:
            if transport.is_active():
                continue
            break  # sshd has counted to its MaxAuthTries
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise HostFailed(f"the connection was lost while logging in ({error})", "look at its sshd's log") from None
        if further:
            raise refusals.wrong_method(login.user, further, after_key=True)
        return
    raise refusals.denied(login.user, tried, locked)


def _methods(transport: paramiko.Transport, login: Login) -> list[str]:
    """How the server lets people in; empty if it just did."""
    try:
        return transport.auth_none(login.user)
    except paramiko.BadAuthenticationType as error:
        return list(error.allowed_types)
    except (paramiko.SSHException, EOFError, OSError):
        raise refusals.dropped(login.where) from None


def _keys(login: Login, first: Sequence[Path], locked: list[str], way: _Way) -> Iterator[tuple[paramiko.PKey, str]]:
    """Keys to try, the named ones first since sshd stops listening after six; ``locked`` gets those we cannot read.

    A key the agent holds is taken from the agent: its file may well need a passphrase.
    """
    held = _agent_keys(way)
    for path in dict.fromkeys((*first, *login.identities)):
        if key := held.pop(_public_blob(path), None):
            yield key, f"{path} (agent)"
        elif path.is_file():
            try:
                yield paramiko.PKey.from_path(path), str(path)
            except TypeError:  # what the cryptography package raises for a key with a passphrase
                locked.append(str(path))
            except (paramiko.SSHException, ValueError, OSError):
                continue  # not a key at all, or not ours to read
    if not login.only_these:
        for key in held.values():
            yield key, f"agent key {fingerprint(key.asbytes())}"


def _agent_keys(way: _Way) -> dict[bytes, paramiko.PKey]:
    try:
        agent = paramiko.Agent()
    except (paramiko.SSHException, OSError):
        return {}
    way.stack.callback(agent.close)
    return {key.asbytes(): key for key in agent.get_keys()}


def _public_blob(path: Path) -> bytes:
    try:
        return _unbase64(path.with_name(path.name + ".pub").read_text().split()[1])
    except (OSError, IndexError, UnicodeDecodeError):
        return b""


# --- Step 5: the command, and the pumps ---------------------------------------------------------------------


def _run(transport: paramiko.Transport, command: str, way: _Way) -> paramiko.Channel:
    try:
        channel = transport.open_session(timeout=way.seconds())
        channel.exec_command(command)
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise refusals.no_command(str(error) or "it closed the session") from None
    return channel


class SshSession:
    """One remote command over ssh; see `rmpi.places.boot.Session`. Three threads pump, none of them decides."""

    def __init__(self, host: HostSpec, channel: paramiko.Channel, way: _Way, stack: contextlib.ExitStack) -> None:
        self.tail = Tail()
        self.address = way.address
        self.warnings = way.warnings
        self._host, self._channel, self._stack = host, channel, stack
        self.control, far = socket.socketpair()
        self._far = far
        self._pumps = [
            self._pump("stdin", far.recv, channel.sendall, channel.shutdown_write),
            self._pump("stdout", channel.recv, far.sendall, lambda: far.shutdown(socket.SHUT_WR)),
            self._pump("stderr", channel.recv_stderr, self.tail.feed, lambda: self.tail.feed(b"")),
        ]

    def _pump(
        self,
        name: str,
        read: Callable[[int], bytes],
        write: Callable[[bytes], object],
        finish: Callable[[], object],
    ) -> threading.Thread:
        pump = threading.Thread(
            target=_copy, args=(read, write, finish), name=f"rmpi-ssh-{self._host.name}-{name}", daemon=True
        )
        pump.start()
        return pump

    def diagnose(self, last_words: str) -> HostFailed:
        """Why the stream ended without a marker."""
        self._pumps[2].join(JOIN_TIMEOUT)
        ended = self._channel.status_event.wait(JOIN_TIMEOUT)
        status = self._channel.exit_status if ended and self._channel.exit_status >= 0 else None
        return refusals.ended_early(self.tail.last() or last_words, status)

    def close(self) -> None:
        """End the session, and the remote command by EOF and hang-up. Idempotent; a few seconds at the worst."""
        self.control.close()
        self._stack.close()
        for pump in self._pumps:
            pump.join(JOIN_TIMEOUT)
        self._far.close()

    def disown(self) -> None:
        """In a fork: the connection lives as long as the parent. Without a word to the host, which would end it."""
        self.control.close()
        self._far.close()
        connection: object = self._channel
        while isinstance(connection, paramiko.Channel):  # through jump hosts
            connection = connection.get_transport().sock
        if isinstance(connection, socket.socket):
            connection.close()

    def __repr__(self) -> str:
        return f"<SshSession {self._host} {'open' if not self._channel.closed else 'closed'}>"


def _copy(read: Callable[[int], bytes], write: Callable[[bytes], object], finish: Callable[[], object]) -> None:
    """Until the end of the stream, or of either side; the end is passed on."""
    for step in (lambda: _copy_all(read, write), finish):
        try:
            step()
        except (OSError, EOFError, paramiko.SSHException):
            continue


def _copy_all(read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
    while data := read(65536):
        write(data)
