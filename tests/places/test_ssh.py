"""Sessions by paramiko against a real sshd on this machine's loopback, and what can be tested without one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rmpi.deadline import Deadline
from rmpi.errors import LaunchError
from rmpi.places import ssh
from rmpi.places.boot import boot_all
from rmpi.places.hosts import HostSpec
from rmpi.places.refusals import Again, HostFailed
from rmpi.places.ssh import SshBooter, SshSession, find_login, fingerprint, read_config

STUBS = Path(__file__).resolve().parent.parent / "stubs"
SSHD = "/usr/sbin/sshd"


def soon() -> Deadline:
    return Deadline.after(20)


# --- A home of one's own, and sshds -------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``$HOME`` with an empty ``.ssh``, no agent, and the system's config out of sight (by an explicit config)."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").touch()
    return tmp_path


def keygen(path: Path, *options: str) -> str:
    """Make a key pair; returns the public line, ``kind base64``."""
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-C", "", *options, "-f", path], check=True)
    return path.with_name(path.name + ".pub").read_text().strip()


class Sshd:
    """A real sshd on 127.0.0.1 that lets ``home``'s key in. Attributes: ``port``, ``host_key`` (the public line)."""

    def __init__(self, directory: Path, authorized: str, *config: str, kinds: tuple[str, ...] = ("ed25519",)) -> None:
        directory.mkdir()
        self.host_keys = {kind: keygen(directory / kind, "-t", kind) for kind in kinds}
        self.host_key = self.host_keys[kinds[0]]
        (directory / "authorized_keys").write_text(authorized)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        settings = [
            f"Port {self.port}", "ListenAddress 127.0.0.1", *(f"HostKey {directory / kind}" for kind in kinds),
            f"AuthorizedKeysFile {directory / 'authorized_keys'}", "PidFile none", "UsePAM no", "StrictModes no",
        ]  # fmt: skip
        (directory / "sshd_config").write_text("\n".join([*config, *settings, "PasswordAuthentication no", ""]))
        self._process = self._start(directory / "sshd_config")

    def _start(self, config: Path) -> subprocess.Popen[bytes]:
        """As root it wants a /run/sshd; it gets one in a mount namespace of its own."""
        argv = [SSHD, "-D", "-e", "-f", str(config)]
        if os.geteuid() == 0:
            script = 'mount -t tmpfs none /run && mkdir /run/sshd && exec "$@"'
            argv = ["unshare", "--mount", "sh", "-c", script, "sh", *argv]
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, start_new_session=True)
        assert process.stderr is not None
        while (line := process.stderr.readline()) and b"Server listening" not in line:
            pass
        assert line, "sshd did not start"
        return process

    def known_as(self, name: str = "127.0.0.1", kind: str = "ed25519") -> str:
        return f"[{name}]:{self.port} {self.host_keys[kind]}\n"

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


@pytest.fixture
def make_sshd(home: Path) -> Iterator[Callable[..., Sshd]]:
    """Makes sshds that are in known_hosts already and accept the key ``~/.ssh/id_ed25519``."""
    if not Path(SSHD).exists():
        pytest.skip("needs openssh-server")
    public = keygen(home / ".ssh/id_ed25519", "-t", "ed25519")
    with contextlib.ExitStack() as stack:
        count = iter(range(100))

        def make(*config: str, **options: tuple[str, ...]) -> Sshd:
            made = Sshd(home / f"sshd{next(count)}", public, *config, **options)
            stack.callback(made.stop)
            with (home / ".ssh/known_hosts").open("a") as known_hosts:
                known_hosts.write(made.known_as())
            return made

        yield make


@pytest.fixture
def sshd(make_sshd: Callable[..., Sshd]) -> Sshd:
    return make_sshd()


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(2)
    assert set(threading.enumerate()) <= before


def booter(policy: ssh.HostKeyPolicy = "strict", **options: object) -> SshBooter:
    return SshBooter(policy, Path.home() / ".ssh/config", **options)  # type: ignore[arg-type]


def on(sshd: Sshd, name: str = "127.0.0.1", user: str | None = None) -> HostSpec:
    return HostSpec(name, port=sshd.port, user=user)


@contextlib.contextmanager
def session(host: HostSpec, command: str = "cat", by: SshBooter | None = None) -> Iterator[SshSession]:
    opened = (by or booter()).open(host, command, soon())
    try:
        yield opened
    finally:
        opened.close()


def failure(host: HostSpec, by: SshBooter | None = None) -> HostFailed:
    with pytest.raises(HostFailed) as caught:
        (by or booter()).open(host, "true", soon())
    return caught.value


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


# --- The session --------------------------------------------------------------------------------------------


def test_bytes_travel_both_ways_and_so_do_both_ends(sshd: Sshd) -> None:
    data = os.urandom(5 << 20)
    with session(on(sshd)) as opened:
        sender = threading.Thread(
            target=lambda: (opened.control.sendall(data), opened.control.shutdown(socket.SHUT_WR))
        )
        sender.start()
        assert read_all(opened.control) == data
        sender.join()
    assert opened.address == "127.0.0.1"


def test_a_reader_that_is_away_stops_the_writer_there(sshd: Sshd) -> None:
    """Bounded: what nobody reads stays in kernel buffers and ssh's window, and close() does not wait for it."""
    with session(on(sshd), "yes") as opened:
        assert opened.control.recv(2) == b"y\n"


def test_stderr_stays_apart(sshd: Sshd) -> None:
    with session(on(sshd), "echo out; echo err >&2; exit 3") as opened:
        assert read_all(opened.control) == b"out\n"
        assert opened.diagnose("").what == "the session ended with status 3 before a node answered: err"


def test_close_ends_the_command_and_may_be_repeated(sshd: Sshd, home: Path) -> None:
    os.mkfifo(home / "alive")
    opened = booter().open(on(sshd), f"exec 3>{home}/alive; echo ready; cat", soon())
    with (home / "alive").open("rb") as alive:
        assert opened.control.recv(6) == b"ready\n"
        opened.close()
        opened.close()
        assert alive.read() == b""  # returns once nobody holds the other end


def test_a_node_boots_over_ssh(sshd: Sshd, home: Path) -> None:
    python = home / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={STUBS} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    [booted] = boot_all(booter(), [on(sshd)], pythons=[str(python)], deadline=soon(), module="echo_node")
    with contextlib.closing(booted):
        booted.control.sendall(b"hello")
        assert booted.control.recv(5) == b"hello"
        assert booted.facts.ssh_connection.endswith(f" 127.0.0.1 {sshd.port}")
        assert booted.address == "127.0.0.1"


@pytest.mark.slow
def test_sixteen_hosts_get_past_an_sshd_that_takes_three_logins_at_a_time(
    make_sshd: Callable[..., Sshd], home: Path
) -> None:
    sshd = make_sshd("MaxStartups 3:100:3")
    python = home / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={STUBS} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    hosts = [on(sshd)] * 16
    booted = boot_all(booter(), hosts, pythons=[str(python)], deadline=Deadline.after(50), module="echo_node")
    assert len(booted) == 16
    for each in booted:
        each.close()


# --- Host keys ----------------------------------------------------------------------------------------------


def test_an_unknown_host_is_refused_with_its_fingerprint_and_the_way_to_accept_it(sshd: Sshd, home: Path) -> None:
    (home / ".ssh/known_hosts").write_text("")
    shown = subprocess.run(
        ["ssh-keygen", "-lf", home / "sshd0/ed25519.pub"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    refused = failure(on(sshd))
    assert refused.what == f"its host key is not known (ssh-ed25519 {shown})"
    assert "--host-key-policy accept-new" in refused.fix
    assert f"ssh-keyscan -p {sshd.port} 127.0.0.1 >> {home}/.ssh/known_hosts" in refused.fix


def test_accept_new_adds_an_unknown_host_once(sshd: Sshd, home: Path) -> None:
    (home / ".ssh/known_hosts").unlink()
    accepting = booter("accept-new")
    with session(on(sshd), by=accepting) as first, session(on(sshd), by=accepting) as second:
        assert [len(each.warnings) for each in (first, second)] == [1, 0]
    assert (home / ".ssh/known_hosts").read_text().split() == sshd.known_as().split()
    with session(on(sshd), by=booter("strict")) as opened:
        assert opened.warnings == []


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
def test_a_changed_host_key_is_refused_loudly(policy: ssh.HostKeyPolicy, sshd: Sshd, home: Path) -> None:
    other = keygen(home / "other", "-t", "ed25519")
    (home / ".ssh/known_hosts").write_text(f"# a comment\n[127.0.0.1]:{sshd.port} {other}\n")
    refused = failure(on(sshd), booter(policy))
    assert "HOST KEY HAS CHANGED" in refused.what
    assert f"{home}/.ssh/known_hosts:2" in refused.what
    assert refused.fix.endswith(f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'")


def test_a_revoked_host_key_is_refused(sshd: Sshd, home: Path) -> None:
    (home / ".ssh/known_hosts").write_text(f"{sshd.known_as()}@revoked * {sshd.host_key}\n")
    assert "IS REVOKED by" in failure(on(sshd), booter("accept-new")).what


def test_policy_off_checks_nothing_and_says_so_every_time(sshd: Sshd, home: Path) -> None:
    (home / ".ssh/known_hosts").write_text("")
    for _ in range(2):
        with session(on(sshd), by=booter("off")) as opened:
            [warning] = opened.warnings
            assert "not checked (--host-key-policy off)" in warning
    assert (home / ".ssh/known_hosts").read_text() == ""


def test_the_kind_of_host_key_that_is_known_is_asked_for(make_sshd: Callable[..., Sshd], home: Path) -> None:
    sshd = make_sshd(kinds=("ed25519", "rsa"))
    (home / ".ssh/known_hosts").write_text(sshd.known_as(kind="rsa"))
    with session(on(sshd)) as opened:
        assert opened.warnings == []


@pytest.mark.parametrize(
    ("pattern", "name", "port", "matches"),
    [
        ("n1,n2", "n2", 22, True),
        ("n1,n2", "n3", 22, False),
        ("n1", "n1", 2222, False),
        ("[n1]:2222", "n1", 2222, True),
        ("N1", "n1", 22, True),
        ("*.site.org,!bad.site.org", "n1.site.org", 22, True),
        ("*.site.org,!bad.site.org", "bad.site.org", 22, False),
        ("n?", "n1", 22, True),
        ("[n*]:22??", "n1", 2222, True),
        ("[ab]:2222", "a", 2222, False),
        ("|1|broken", "n1", 22, False),
    ],
)
def test_patterns_of_known_hosts(pattern: str, name: str, port: int, matches: bool, home: Path) -> None:
    file = home / ".ssh/known_hosts"
    file.write_text(f"junk\n{pattern} ssh-ed25519 AAAA comment\n@cert-authority * ssh-ed25519 BBBB\n")
    found = ssh.KnownHosts([file, home / "missing"]).of(name, port)
    assert [key.where for key in found] == ([f"{file}:2"] if matches else [])


def test_hashed_names_are_found(home: Path) -> None:
    file = home / ".ssh/known_hosts"
    file.write_text(f"n1 {keygen(home / 'key', '-t', 'ed25519')}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    assert "n1" not in file.read_text().split()[0]
    assert len(ssh.KnownHosts([file]).of("n1", 22)) == 1
    assert ssh.KnownHosts([file]).of("n2", 22) == []


# --- User keys ----------------------------------------------------------------------------------------------


def test_a_refused_user_hears_which_keys_were_tried(sshd: Sshd, home: Path) -> None:
    (home / "sshd0/authorized_keys").write_text("")
    rsa = home / "other_key"
    keygen(rsa, "-t", "rsa")
    refused = failure(on(sshd, user="nobody"), booter(identities=[rsa]))
    assert refused.what == f"permission denied for user nobody (tried {rsa}, {home}/.ssh/id_ed25519)"
    assert refused.again is Again.NEVER


def test_no_key_at_all(sshd: Sshd, home: Path) -> None:
    (home / ".ssh/id_ed25519").unlink()
    assert "(there is no key to try)" in failure(on(sshd)).what


def lock(key: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret words", "-f", key], check=True, capture_output=True
    )


def test_a_key_with_a_passphrase_is_named_and_the_agent_suggested(sshd: Sshd, home: Path) -> None:
    lock(home / ".ssh/id_ed25519")
    refused = failure(on(sshd))
    assert f"the key {home}/.ssh/id_ed25519 needs its passphrase" in refused.what
    assert f"ssh-add {home}/.ssh/id_ed25519" in refused.fix
    assert "--rsh-agent ssh" in refused.fix


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An ssh-agent without keys."""
    path = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()  # says where it listens, when it does
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield path
    process.terminate()
    process.wait()


@pytest.mark.usefixtures("agent")
def test_the_agent_unlocks_a_key(sshd: Sshd, home: Path) -> None:
    subprocess.run(["ssh-add", "-q", home / ".ssh/id_ed25519"], check=True)
    lock(home / ".ssh/id_ed25519")
    with session(on(sshd), "echo in") as opened:
        assert read_all(opened.control) == b"in\n"


@pytest.mark.usefixtures("agent")
def test_identities_only_leaves_other_keys_of_the_agent_alone(sshd: Sshd, home: Path) -> None:
    key = home / ".ssh/id_ed25519"
    subprocess.run(["ssh-add", "-q", key], check=True)
    for file in (key, key.with_suffix(".pub")):
        file.unlink()
    session(on(sshd)).__enter__().close()
    (home / ".ssh/config").write_text("IdentitiesOnly yes\n")
    assert "there is no key to try" in failure(on(sshd)).what


def test_too_many_keys_end_in_a_refusal_not_in_a_riddle(make_sshd: Callable[..., Sshd], home: Path) -> None:
    sshd = make_sshd("MaxAuthTries 2")
    keys = [home / f"key{index}" for index in range(4)]
    for key in keys:
        keygen(key, "-t", "ed25519")
    assert "permission denied" in failure(on(sshd), booter(identities=keys)).what


def test_a_host_that_wants_a_password(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd("PubkeyAuthentication no", "PasswordAuthentication yes", "KbdInteractiveAuthentication no")
    assert "accepts no keys, only password" in failure(on(sshd)).what


def test_a_host_that_wants_a_second_factor(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd("AuthenticationMethods publickey,password", "PasswordAuthentication yes")
    refused = failure(on(sshd))
    assert "wants password after the key" in refused.what
    assert "--rsh-agent ssh" in refused.fix


def test_an_account_that_may_not_run_commands(make_sshd: Callable[..., Sshd]) -> None:
    assert "would not run a command" in failure(on(make_sshd("MaxSessions 0"))).what


# --- The network --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listener(serve: Callable[[socket.socket], object]) -> Iterator[HostSpec]:
    """A server that is not sshd; ``serve`` gets its one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            connection, _ = server.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield HostSpec("127.0.0.1", port=server.getsockname()[1])
        thread.join()


@pytest.mark.parametrize(
    ("code", "what"), [(socket.EAI_NONAME, "does not resolve"), (socket.EAI_AGAIN, "did not answer")]
)
def test_names_that_do_not_resolve(code: int, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(code, "")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    refused = failure(HostSpec("n77"))
    assert what in refused.what
    assert "'n77'" in refused.what
    assert refused.again is Again.PATIENTLY


@pytest.mark.parametrize("name", ["a..b", "x" * 64])
def test_names_that_are_none_do_not_resolve(name: str) -> None:
    assert "does not resolve" in failure(HostSpec(name)).what


def test_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert failure(HostSpec("127.0.0.1", port=port)).what == f"connection refused by 127.0.0.1:{port}"


def test_a_filtered_port() -> None:
    """A full backlog drops packets as a firewall does."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        refused = failure(HostSpec("127.0.0.1", port=server.getsockname()[1]), booter(connect_timeout=0.2))
    assert "no answer from 127.0.0.1" in refused.what
    assert "within 0.2 s" in refused.what
    assert "firewall" in refused.fix


def test_a_port_where_something_else_greets() -> None:
    with listener(lambda connection: (connection.sendall(b"220 ftp ready\r\n"), connection.recv(100))) as host:
        refused = failure(host, booter(connect_timeout=3))
    assert f"127.0.0.1:{host.port} greets with '220 ftp ready': that is not sshd" == refused.what


def test_a_port_where_nobody_greets() -> None:
    with listener(lambda connection: connection.recv(1)) as host:
        assert "never greets: that is not sshd" in failure(host, booter(connect_timeout=0.2)).what


@pytest.mark.parametrize("last_words", [b"", b"Exceeded MaxStartups\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_a_dropped_login_is_worth_many_more_tries(last_words: bytes) -> None:
    with listener(lambda connection: connection.sendall(last_words)) as host:
        refused = failure(host)
    assert "dropped the login" in refused.what
    assert refused.again is Again.OFTEN


def test_paramiko_keeps_its_tracebacks_to_itself(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with listener(lambda connection: connection.sendall(b"SSH-1.0-old\r\n")) as host:
        assert "could not agree" in failure(host).what
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")


def test_a_host_name_is_never_taken_for_an_option() -> None:
    assert "cannot be a host name" in failure(HostSpec("-oProxyCommand=x")).what


# --- Config -------------------------------------------------------------------------------------------------


def test_include_takes_globs_and_closes_the_block_it_opens(home: Path) -> None:
    directory = home / ".ssh/conf.d"
    directory.mkdir()
    (directory / "10-a").write_text("Host a\n  HostName a.site\n")
    (directory / "20-b").write_text("Include ~/.ssh/nested\nHost b\n  User bob\n")
    (home / ".ssh/nested").write_text("Host nested\n  Port 99\n")
    (home / ".ssh/config").write_text("include conf.d/* missing\nPort 2022\nHost b\n  HostName b.site\n")
    config = read_config(home / ".ssh/config")
    assert (find_login(config, "a").where, find_login(config, "b").where) == ("a.site:2022", "b.site:2022")
    assert (find_login(config, "b").user, find_login(config, "nested").port) == ("bob", 99)


def test_include_in_circles_is_an_error(home: Path) -> None:
    (home / ".ssh/config").write_text("Include config\n")
    with pytest.raises(LaunchError, match="Include goes round in circles"):
        booter()


@pytest.mark.parametrize("text", ["Port many\n", "Include 'open\n", "Match\n", "nonsense\n"])
def test_a_config_that_does_not_parse_is_named(text: str, home: Path) -> None:
    (home / ".ssh/config").write_text(text)
    with pytest.raises(LaunchError, match="ssh config does not parse"):
        booter().open(HostSpec("n1"), "true", soon())


CONFIG = """
Host short
  HostName %h.long.org
  User config-user
  Port 2200
  IdentityFile ~/.ssh/special
  IdentitiesOnly yes
  ProxyCommand nc %h %p %r
  UserKnownHostsFile ~/my_hosts /other
  HostKeyAlias alias
Host jumper
  ProxyJump bob@gate:2222,second
  ProxyCommand ignored
Host direct
  ProxyJump none
  ProxyCommand none
"""


def test_config_words_are_honoured(home: Path) -> None:
    login = find_login(CONFIG, "short")
    assert (login.name, login.user, login.port) == ("short.long.org", "config-user", 2200)
    assert (login.identities, login.only_these) == ((home / ".ssh/special",), True)
    assert (login.proxy, login.known_as) == ("nc short.long.org 2200 config-user", "alias")
    assert login.known_hosts[:2] == (home / "my_hosts", Path("/other"))


def test_the_hostfile_wins_over_the_config() -> None:
    login = find_login(CONFIG, "short", user="me", port=22)
    assert (login.user, login.port, login.proxy) == ("me", 22, "nc short.long.org 22 me")


def test_jumps_and_their_absence() -> None:
    assert find_login(CONFIG, "jumper").jumps == ("bob@gate:2222", "second")
    assert find_login(CONFIG, "jumper").proxy == ""
    assert (find_login(CONFIG, "direct").jumps, find_login(CONFIG, "direct").proxy) == ((), "")


@pytest.mark.parametrize(
    ("jump", "parts"),
    [
        ("gate", ("gate", None, None)),
        ("bob@gate:2222", ("gate", "bob", 2222)),
        ("ssh://bob@gate:22/", ("gate", "bob", 22)),
        ("[fe80::1]:22", ("fe80::1", None, 22)),
        ("fe80::1", ("fe80::1", None, None)),
        ("a@b@gate", ("gate", "a@b", None)),
    ],
)
def test_spellings_of_a_jump(jump: str, parts: tuple[str, str | None, int | None]) -> None:
    assert ssh._split_jump(jump) == parts


def test_the_default_keys_and_files(home: Path) -> None:
    login = find_login("", "n1")
    assert [path.name for path in login.identities] == list(ssh.DEFAULT_KEYS)
    assert login.known_hosts[0] == home / ".ssh/known_hosts"
    assert (login.name, login.port, login.known_as) == ("n1", 22, "n1")


def test_fingerprints_are_ssh_keygens(home: Path) -> None:
    public = keygen(home / "key", "-t", "ed25519")
    shown = subprocess.run(["ssh-keygen", "-lf", home / "key"], capture_output=True, text=True, check=True).stdout
    assert fingerprint(ssh._unbase64(public.split()[1])) == shown.split()[1]


# --- Ways around --------------------------------------------------------------------------------------------


def jump_config(home: Path, *jumps: Sshd) -> None:
    """Hosts g0, g1, … for the jumps, all on loopback, and ``ProxyJump`` over all of them for the target's address."""
    blocks = [f"Host g{index}\n HostName 127.0.0.1\n Port {jump.port}\n" for index, jump in enumerate(jumps)]
    way = ",".join(f"g{index}" for index in range(len(jumps)))
    (home / ".ssh/config").write_text("".join(blocks) + f"Host target\n HostName 127.0.0.1\n ProxyJump {way}\n")


@pytest.mark.parametrize("jumps", [1, 2])
def test_proxy_jump(jumps: int, make_sshd: Callable[..., Sshd], home: Path) -> None:
    jump_config(home, *(make_sshd() for _ in range(jumps)))
    target = make_sshd("AllowTcpForwarding no")
    with session(on(target, "target"), "echo $SSH_CONNECTION") as opened:
        assert read_all(opened.control).split()[3] == str(target.port).encode()
        assert opened.address == ""


def test_a_jump_host_that_fails_is_named(make_sshd: Callable[..., Sshd], home: Path) -> None:
    gate, target = make_sshd(), make_sshd()
    jump_config(home, gate)
    (home / ".ssh/known_hosts").write_text(target.known_as())
    assert failure(on(target, "target")).what.startswith("at jump host 127.0.0.1: its host key is not known")


def test_a_jump_host_that_does_not_forward(make_sshd: Callable[..., Sshd], home: Path) -> None:
    jump_config(home, make_sshd("AllowTcpForwarding no"))
    assert "forwarding is not allowed" in failure(HostSpec("target")).what


def test_a_target_that_the_jump_host_cannot_reach(make_sshd: Callable[..., Sshd], home: Path) -> None:
    jump_config(home, make_sshd())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused = failure(HostSpec("target", port=port))
    assert f"at jump host 127.0.0.1: cannot reach 127.0.0.1:{port} from there" in refused.what


def test_jumps_in_circles_are_an_error(home: Path) -> None:
    (home / ".ssh/config").write_text("Host *\n ProxyJump a,b\n")
    assert "ProxyJump leads over more than 8 hosts" in failure(HostSpec("n1")).what


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the ssh program")
def test_proxy_command(make_sshd: Callable[..., Sshd], home: Path) -> None:
    gate, target = make_sshd(), make_sshd()
    options = f"-F none -i {home}/.ssh/id_ed25519 -o UserKnownHostsFile={home}/.ssh/known_hosts"
    proxy = f"ssh {options} -p {gate.port} -W %h:%p 127.0.0.1"
    (home / ".ssh/config").write_text(f"Host target\n HostName 127.0.0.1\n ProxyCommand {proxy}\n")
    with session(on(target, "target"), "echo through") as opened:
        assert read_all(opened.control) == b"through\n"


def test_a_proxy_command_that_ends_at_once(home: Path) -> None:
    (home / ".ssh/config").write_text("ProxyCommand false %h\n")
    assert failure(HostSpec("n1")).what == "ProxyCommand ended at once: false n1"
