"""Machines in miniature: a handful of "hosts" on this one, each with its own address and its own real sshd.

A machine is a process tree under one pid 1, in namespaces of its own: net (a veth pair into a bridge), mount
(private /tmp, /run, home directory and a /dev/shm of 64 MB, as in containers), UTS, IPC and PID. Nothing is shared by
accident, and killing its pid 1 is a machine that dies. What is shared on purpose, read-write and at the same paths:
the interpreter and this project.

The bridge stands in a network namespace of its own too, so the machine that runs the tests sees no new interface,
address or route, two runs at once cannot collide, and all of it has no name in the file system. So there is nothing
to clean up but processes: when the last one in a namespace ends, the kernel takes down the namespace, its mounts and
its interfaces. And every pid 1 reads a pipe whose other end only the test process holds: however that process
ends, the machines end with it, and the switch takes the temporary directory along.

    with Cluster(3) as cluster:
        cluster.run(cluster[0], ["ssh", "n1", "hostname"], check=True)
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

NETWORK = "10.77.0"
"""Of the machines, /24: machine i has .i+1. Exists in their namespaces only."""

SHM_SIZE = "64m"

SPIN = "0.0001"
"""Seconds that a rank looks again before it sleeps. All machines share the cores of this one, of which no rank knows:
with ten times as long, which is the default, each would keep the others from what it waits for."""

PROJECT = Path(__file__).resolve().parent.parent

INIT = """
import os, signal
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError: pass
signal.signal(signal.SIGCHLD, reap)
os.write(1, b"up")
os.close(1)
os.read(0, 1)
"""
"""pid 1: reaps what is orphaned, and ends (so all on its machine ends) when nobody holds the other end of its stdin."""

SSHD_CONFIG = """
Port 22
AddressFamily inet
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile .ssh/authorized_keys
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
UseDNS no
MaxStartups 100
MaxSessions 100
PidFile /run/sshd.pid
"""

SET_UP = """
set -e
mount --make-rprivate /
for each in {keep}; do
    for hidden in {home} /tmp; do
        case "$each" in "$hidden"/*) mkdir -p "{state}/$hidden/${{each#$hidden/}}"
            mount --rbind "$each" "{state}/$hidden/${{each#$hidden/}}";; esac
    done
done
mount -t tmpfs -o size={shm_size},mode=1777 tmpfs /dev/shm
for each in hosts nsswitch.conf resolv.conf; do
    [ ! -e /etc/$each ] || mount --bind "{state}/etc/$each" /etc/$each
done
mount --rbind "{state}/etc/ssh" /etc/ssh
mount --rbind "{state}/run" /run
mount --rbind "{state}/{home}" {home}
echo {name} > /proc/sys/kernel/hostname
ip link set lo up
mount --rbind "{state}/tmp" /tmp
cd /
/usr/sbin/sshd -E /run/sshd.log
while [ ! -s /run/sshd.pid ]; do sleep 0.005; done
exec {python} -I -S -c "$1"
"""


def why_no_cluster() -> str | None:
    """Why machines cannot be made here, in a few words; None if they can."""
    if sys.platform != "linux":
        return "machines in miniature need Linux"
    if os.geteuid() != 0:
        return "machines in miniature need root"
    for program in ("ip", "unshare", "nsenter", "mount", "ssh-keygen", "/usr/sbin/sshd"):
        if shutil.which(program) is None:
            return f"machines in miniature need {program} (Debian: iproute2, util-linux, openssh-server)"
    return _why_no_namespaces()


@functools.cache
def _why_no_namespaces() -> str | None:
    probe = "ip link add br0 type bridge && ip link add n0 type veth peer name eth0 && mount -t tmpfs none /run"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "sh", "-c", probe],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def need_cluster() -> None:
    """Skip the test where there can be no machines; fail it instead if RMPI_REQUIRE_CLUSTER is 1."""
    reason = why_no_cluster()
    if reason and os.environ.get("RMPI_REQUIRE_CLUSTER") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three machines, n0 … n2, for the whole session. A test that kills or cuts one makes its own cluster."""
    need_cluster()
    with Cluster(3) as made:
        yield made


class _Namespaces:
    """A process in namespaces of its own, which live as long as it does."""

    def __init__(self, kinds: Sequence[str], script: str, log: Path, epilogue: str = "") -> None:
        self._log = log
        with log.open("w") as stderr:
            self._unshare = subprocess.Popen(
                ["unshare", *kinds, "--fork", "--kill-child", "sh", "-c", script, "sh", INIT + epilogue],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        self.pid = 0

    def await_up(self) -> None:
        assert self._unshare.stdout is not None
        with self._unshare.stdout as said:
            if said.read(2) != b"up":  # sshd keeps this pipe open, so there is no end of file
                raise RuntimeError(f"no machine: its set-up failed: {self._log.read_text()}")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self.pid = int(children.read_text())

    def alive(self) -> bool:
        return self._unshare.poll() is None

    def kill(self) -> None:
        """Returns when everything in them is gone. Idempotent."""
        assert self._unshare.stdin is not None
        self._unshare.stdin.close()
        if self.pid and self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        elif self.alive():
            self._unshare.kill()
        self._unshare.wait()

    def enter(self, *kinds: str) -> list[str]:
        """The beginning of a command line that runs the rest inside."""
        return ["nsenter", "-t", str(self.pid), *kinds]


class Machine:
    """One machine.

    Attributes:
        name: ``n0``, ``n1``, …: what it calls itself and what all call it.
        address: Its IPv4 address, as text.
        hardware: The address of its network card, which others remember.
        state: Directory, seen from here, with its ``/tmp``, ``/run``, ``/etc/ssh`` and home directory below.
    """

    def __init__(self, index: int, state: Path) -> None:
        self.name = f"n{index}"
        self.address = f"{NETWORK}.{index + 1}"
        self.hardware = f"02:00:00:00:00:{index + 1:02x}"
        self.state = state
        self._spaces: _Namespaces | None = None

    @property
    def home(self) -> Path:
        """Its home directory as seen from here; on the machine itself it is ``Path.home()``."""
        return self.state / Path.home().relative_to("/")

    @property
    def spaces(self) -> _Namespaces:
        assert self._spaces is not None, f"{self.name} has not been started"
        return self._spaces

    def start(self) -> None:
        keep = " ".join(shlex.quote(str(path)) for path in _kept_paths())
        script = SET_UP.format(
            name=self.name,
            state=self.state,
            home=Path.home(),
            keep=keep,
            shm_size=SHM_SIZE,
            python=shlex.quote(sys.executable),
        )
        kinds = ["--net", "--mount", "--uts", "--ipc", "--pid", "--mount-proc"]
        self._spaces = _Namespaces(kinds, script, self.state / "set-up.log")

    def alive(self) -> bool:
        return self.spaces.alive()

    def kill(self) -> None:
        """The machine dies, with everything on it and without a word. Returns when it is dead."""
        self.spaces.kill()

    def processes(self) -> list[str]:
        """The command lines of what runs there, without pid 1, sshd and what this very question starts."""
        listing = (
            'for p in /proc/[0-9]*; do [ $p = /proc/1 ] || [ $p = /proc/$$ ] || tr "\\0" " " < $p/cmdline; echo; done'
        )
        done = subprocess.run(
            [*self.spaces.enter("-m", "-p"), "sh", "-c", listing], capture_output=True, text=True, check=True
        )
        lines = (line.strip() for line in done.stdout.splitlines())
        return [line for line in lines if line and not line.startswith(("sshd:", "tr "))]

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Within the block the calling thread, and threads it starts, are on the machine's network.

        They still see the files of this machine, so name hosts by address.
        """
        ours_path, its_path = Path("/proc/thread-self/ns/net"), Path(f"/proc/{self.spaces.pid}/ns/net")
        with ours_path.open() as ours, its_path.open() as its:
            _set_network(its)
            try:
                yield
            finally:
                _set_network(ours)

    def __repr__(self) -> str:
        return f"<Machine {self.name} {self.address}>"


def _set_network(namespace: IO[str]) -> None:
    clone_newnet = 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace.fileno(), clone_newnet):
        raise OSError(ctypes.get_errno(), "setns")


def _kept_paths() -> list[Path]:
    """What must stay visible under the directories that each machine has for itself: the interpreter, this project."""
    wanted = {PROJECT, Path(sys.prefix), Path(sys.base_prefix), *map(Path, sys.path)}
    hidden = [Path("/tmp"), Path.home()]
    below = sorted(path for path in wanted if path.is_dir() and any(top in path.parents for top in hidden))
    return [path for path in below if not any(other in path.parents for other in below)]


class Cluster:
    """``n`` machines on one bridge. Machine 0 is where the launcher runs, by habit; it is like the others."""

    def __init__(self, n: int) -> None:
        self._closing = contextlib.ExitStack()
        self._n = n
        self.machines: list[Machine] = []
        self._switch: _Namespaces | None = None

    def __getitem__(self, index: int) -> Machine:
        return self.machines[index]

    def __len__(self) -> int:
        return len(self.machines)

    def __enter__(self) -> Cluster:
        with self._closing as closing:
            state = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="rmpi-cluster-")))
            self.machines = [Machine(index, state / f"n{index}") for index in range(self._n)]
            self._write_files(state)
            self._start(state)
            self._plug_in()
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _start(self, state: Path) -> None:
        script = f'exec {shlex.quote(sys.executable)} -I -S -c "$1"'
        orphaned = f"import shutil; shutil.rmtree({str(state)!r}, ignore_errors=True)"
        self._switch = _Namespaces(["--net", "--pid"], script, state / "switch.log", orphaned)
        self._closing.callback(self._switch.kill)
        for machine in self.machines:
            machine.start()
            self._closing.callback(machine.kill)
        for spaces in (self._switch, *(machine.spaces for machine in self.machines)):
            spaces.await_up()

    # Files

    def _write_files(self, state: Path) -> None:
        key = state / "id_ed25519"
        _keygen(key)
        hosts = "127.0.0.1 localhost\n" + "".join(f"{each.address} {each.name}\n" for each in self.machines)
        known_hosts = ""
        for machine in self.machines:
            etc = machine.state / "etc"
            (etc / "ssh").mkdir(parents=True)
            (etc / "hosts").write_text(hosts)
            (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
            (etc / "resolv.conf").write_text("")
            (etc / "ssh/sshd_config").write_text(SSHD_CONFIG)
            _keygen(etc / "ssh/ssh_host_ed25519_key")
            public = (etc / "ssh/ssh_host_ed25519_key.pub").read_text()
            known_hosts += f"{machine.name},{machine.address} {public}"
        for machine in self.machines:
            _furnish(machine, key, known_hosts)

    # Network

    def _plug_in(self) -> None:
        commands = ["link add br0 type bridge", "link set br0 up"]
        self._ip(self.switch, commands)
        for each in self.machines:
            self._plug_in_one(each)

    def _plug_in_one(self, machine: Machine) -> None:
        cable = (
            f"link add {machine.name} type veth peer name eth0 address {machine.hardware} netns {machine.spaces.pid}"
        )
        self._ip(self.switch, [cable, f"link set {machine.name} master br0 up"])
        self._ip(machine.spaces, [f"addr add {machine.address}/24 dev eth0", "link set eth0 up"])

    def revive(self, machine: Machine) -> None:
        """Switch a machine on again that was killed; its files are those it had."""
        (machine.state / "run/sshd.pid").unlink()
        machine.start()
        machine.spaces.await_up()
        self._plug_in_one(machine)

    @property
    def switch(self) -> _Namespaces:
        assert self._switch is not None, "the cluster has not been entered"
        return self._switch

    def _ip(self, spaces: _Namespaces, commands: Sequence[str]) -> None:
        subprocess.run([*spaces.enter("-n"), "ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)

    def cut(self, machine: Machine) -> None:
        """Pull its cable: what it sends and what is sent to it is lost in silence, until `mend`."""
        self._ip(self.switch, [f"link set {machine.name} nomaster"])

    def mend(self, machine: Machine) -> None:
        self._ip(self.switch, [f"link set {machine.name} master br0"])

    @contextlib.contextmanager
    def parted(self, one: Machine, other: Machine, *, silently: bool) -> Iterator[None]:
        """Within the block these two cannot reach each other, though others reach both.

        Args:
            silently: What they send to each other is lost, as behind a firewall that drops it; else it is refused.
        """
        rule = "route {} prohibit {}/32"
        undo = rule
        if silently:  # to an address of the bridge's network that no machine has
            rule, undo = "neigh {} {} lladdr 02:00:00:00:00:99 dev eth0 nud permanent", "neigh {} {} dev eth0"
        pairs = ((one, other), (other, one))
        for machine, far in pairs:
            self._ip(machine.spaces, [rule.format("replace", far.address)])
        try:
            yield
        finally:
            for machine, far in pairs:
                self._ip(machine.spaces, [undo.format("del", far.address)])

    def limit(self, machine: Machine, rate: str) -> None:
        """At most ``rate`` (in the words of tc: ``"10mbit"``) from it and to it, each."""
        for spaces, device in ((machine.spaces, "eth0"), (self.switch, machine.name)):
            discipline = ["root", "tbf", "rate", rate, "burst", "32kb", "latency", "400ms"]
            subprocess.run([*spaces.enter("-n"), "tc", "qdisc", "replace", "dev", device, *discipline], check=True)

    # Processes

    def popen(self, machine: Machine, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start ``argv`` on ``machine``, in its home directory, with the environment of a fresh login, and `SPIN`.

        ``options`` are those of `subprocess.Popen`; ``env`` is added to that environment. The process returned is
        nsenter's, which ends when and as ``argv`` does; a SIGKILL to it leaves ``argv`` running, so kill the machine.
        """
        return subprocess.Popen([*_login(machine), *argv], **_with_login_environment(options))

    def run(self, machine: Machine, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """`subprocess.run` on ``machine``: text, output captured, at most 30 s, unless ``options`` say otherwise."""
        options = {"text": True, "capture_output": True, "timeout": 30, "check": False} | options
        return subprocess.run([*_login(machine), *argv], **_with_login_environment(options))


def _login(machine: Machine) -> list[str]:
    return [*machine.spaces.enter("-n", "-m", "-u", "-i", "-p"), f"--wd={Path.home()}", "--"]


def _with_login_environment(options: dict[str, Any]) -> dict[str, Any]:
    path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    login = {"HOME": str(Path.home()), "PATH": path, "USER": "root", "LOGNAME": "root", "SHELL": "/bin/sh"}
    login["RMPI_SPIN"] = SPIN
    return options | {"env": login | options.get("env", {})}


def _furnish(machine: Machine, key: Path, known_hosts: str) -> None:
    """Its private directories, and a home from which one can log in everywhere."""
    for each in ("tmp", "run/sshd"):
        (machine.state / each).mkdir(parents=True)
    (machine.state / "tmp").chmod(0o1777)
    ssh = machine.home / ".ssh"
    ssh.mkdir(mode=0o700, parents=True)
    shutil.copy(key, ssh / "id_ed25519")
    shutil.copy(key.with_suffix(".pub"), ssh / "id_ed25519.pub")
    shutil.copy(key.with_suffix(".pub"), ssh / "authorized_keys")
    (ssh / "known_hosts").write_text(known_hosts)
    (ssh / "config").touch()


def _keygen(path: Path, *options: str) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "rmpi-test", *options, "-f", path], check=True)
