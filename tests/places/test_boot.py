"""Booting: the remote command under real shells, what makes a host unfit, and many hosts at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import re
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rmpi.deadline import Deadline
from rmpi.errors import LaunchError
from rmpi.places import agent, boot, refusals
from rmpi.places.agent import AgentBooter, explain
from rmpi.places.boot import Facts, Tail, boot_all, examine, here, opening, read_answer
from rmpi.places.hosts import HostSpec
from rmpi.places.refusals import Again, HostFailed

STUBS = Path(__file__).resolve().parent.parent / "stubs"
SSH = str(STUBS / "ssh")
OURS = Facts(
    python="3.11.7", executable="/opt/py/bin/python3", rmpi="1.2", wire=3, numpy="2.1.0", boot_id="b",
    namespaces="mnt:[1] net:[2]", uid=1000, cores=8, hostname="head", ssh_connection="",
)  # fmt: skip


def soon() -> Deadline:
    return Deadline.after(20)


# --- The remote command -------------------------------------------------------------------------------------


def test_the_remote_command_holds_nothing_that_login_shells_disagree_on() -> None:
    before, script, after = boot.REMOTE_COMMAND.split("'")
    assert (before, after) == ("exec /bin/sh -c ", "")
    assert not set(script) & set("\\!\n")


def test_what_is_sent_first_is_lines_of_ascii() -> None:
    *candidates, empty, program, end = opening(["/a b/python", "python3"], "some.module").split(b"\n")
    assert (candidates, empty, end) == ([b"/a b/python", b"python3"], b"", b"")
    assert program.isascii()
    assert b"some.module" in program


# --- The marker ---------------------------------------------------------------------------------------------


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def test_nothing_behind_the_marker_line_is_read(wire: tuple[socket.socket, socket.socket]) -> None:
    near, far = wire
    far.sendall(b"banner\nno newline\nRMPI-NODE {}\nRMPI-NODE is now the node's own word\n")
    assert read_answer(near, soon()) == (True, "{}")
    assert near.recv(100) == b"RMPI-NODE is now the node's own word\n"


def test_the_marker_is_found_a_byte_at_a_time(wire: tuple[socket.socket, socket.socket]) -> None:
    near, far = wire
    answers: list[tuple[bool, str]] = []
    reader = threading.Thread(target=lambda: answers.append(read_answer(near, soon())))
    reader.start()
    for byte in b"$ RMPI-NODE is not at the start\n\nRMPI-NODE none /bin\n":
        far.sendall(bytes([byte]))
    reader.join()
    assert answers == [(True, "none /bin")]


def test_a_stream_that_ends_gives_its_last_words(wire: tuple[socket.socket, socket.socket]) -> None:
    near, far = wire
    far.sendall(b"This account is not available.\n\n")
    far.close()
    assert read_answer(near, soon()) == (False, "This account is not available.")


def test_half_a_marker_is_none(wire: tuple[socket.socket, socket.socket]) -> None:
    near, far = wire
    far.sendall(b"\nRMPI-NODE {")
    far.close()
    assert read_answer(near, soon()) == (False, "RMPI-NODE {")


def test_noise_is_bounded(wire: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "NOISE_LIMIT", 1000)
    near, far = wire
    far.sendall(b"bla\n" * 500)
    with pytest.raises(HostFailed, match=r"prints without end .*: bla"):
        read_answer(near, soon())


def test_silence_ends_at_the_deadline(wire: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        read_answer(wire[0], Deadline.after(0.01))


# --- What makes a host unfit --------------------------------------------------------------------------------


def said(**changes: object) -> str:
    """What a good host answers, changed; None leaves a field out."""
    facts = dataclasses.asdict(OURS) | changes
    return json.dumps({key: value for key, value in facts.items() if value is not None})


def test_a_fit_host_is_what_it_says() -> None:
    assert examine(said(), ["python3"], OURS) == OURS


@pytest.mark.parametrize(
    ("answer", "what", "fix"),
    [
        ("none /usr/bin:/bin", r"no Python among python3 \(PATH there: /usr/bin:/bin\)", "python=/path"),
        (said(python="3.8.10", error="too old"), "is Python 3.8.10, rmpi needs 3.11", "python=/path"),
        (said(python="3.12.1"), "is Python 3.12.1, the launcher runs 3.11", "python=/path/to/python3.11"),
        (said(python="3.12.1", error="import", missing="rmpi", detail=""), "runs 3.11", "python=/path"),
        (said(error="import", missing="rmpi", detail=""), "python3 lacks rmpi", "-m pip install rmpi==1.2"),
        (said(error="import", missing="msgpack", detail=""), "lacks msgpack", "-m pip install rmpi==1.2"),
        (said(error="import", missing="rmpi.places.remote", detail="No module"), "does not import", "try there"),
        (said(error="import", missing="", detail="OSError: libc"), r"does not import .*\(OSError: libc\)", "try"),
        (said(numpy=""), "lacks numpy", "pip install numpy==2.1.0"),
        (said(wire=2, error="import", missing="rmpi.places.remote", detail=""), "wire 2", "same version"),
        (said(rmpi="1.1", wire=2), r"runs rmpi 1.1 \(wire 2\), launcher wire 3", "pip install rmpi==1.2"),
        (said(cores="eight"), "does not understand", "same version"),
        (said(uid=None), "does not understand", "same version"),
        ("{]", "does not understand", "same version"),
        ("[]", "does not understand", "same version"),
    ],
)
def test_an_unfit_host_hears_why_and_what_to_do(answer: str, what: str, fix: str) -> None:
    with pytest.raises(HostFailed) as caught:
        examine(answer, ["python3"], OURS)
    assert re.search(what, caught.value.what)
    assert fix in caught.value.fix
    assert caught.value.again is Again.NEVER


@pytest.mark.parametrize("field", ["boot_id", "namespaces", "uid"])
def test_memory_is_shared_by_boot_namespaces_and_user_alone(field: str) -> None:
    assert OURS.same_machine(dataclasses.replace(OURS, hostname="other", cores=1, python="3.12.0"))
    assert not OURS.same_machine(dataclasses.replace(OURS, **{field: 7 if field == "uid" else "other"}))


def test_here_describes_this_process() -> None:
    facts = here()
    assert (facts.uid, facts.executable, facts.hostname) == (os.getuid(), sys.executable, os.uname().nodename)
    assert facts.python_minor == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert facts.same_machine(facts)


# --- stderr -------------------------------------------------------------------------------------------------


def test_the_tail_keeps_the_last_lines() -> None:
    tail = Tail()
    tail.feed(b"".join(b"line %d\n" % n for n in range(30)) + b"unfini")
    tail.feed(b"shed\r\n\nlast")
    assert tail.last() == "unfinished"
    tail.feed(b"")
    assert tail.last() == "last"
    assert str(tail).splitlines()[0] == "line 13"
    assert len(str(tail).splitlines()) == boot.TAIL_LINES


def test_a_listener_gets_what_the_node_says_and_no_banner() -> None:
    tail, heard = Tail(), []
    tail.feed(b"banner\n\nRMPI-NODE\nfirst\nsec")
    tail.listen(heard.append)
    assert heard == ["first"]
    tail.feed(b"ond\n")
    assert heard == ["first", "second"]
    assert str(tail).splitlines() == ["banner", "", "first", "second"]


# --- Through the stub agent, with a real shell and a real Python --------------------------------------------


@pytest.fixture(autouse=True)
def _echo_node_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(STUBS))


def boot_one(host: HostSpec, *, pythons: list[str] | None = None, seconds: float = 20) -> boot.Booted:
    [booted] = boot_all(
        AgentBooter(SSH),
        [host],
        pythons=[sys.executable] if pythons is None else pythons,
        deadline=Deadline.after(seconds),
        patience=0,
        module="echo_node",
    )
    return booted


def echo(booted: boot.Booted, data: bytes) -> bytes:
    booted.control.sendall(data)
    booted.control.shutdown(socket.SHUT_WR)
    return b"".join(iter(lambda: booted.control.recv(65536), b""))


@pytest.mark.parametrize("host", ["plain", "banner"])
def test_a_node_comes_up_and_its_stream_is_clean(host: str) -> None:
    with contextlib.closing(boot_one(HostSpec(host))) as booted:
        assert booted.facts.same_machine(here())
        assert (booted.address, booted.warnings) == ("127.0.0.2", [])
        assert echo(booted, b"\0\xff\nRMPI-NODE") == b"\0\xff\nRMPI-NODE"


def test_what_a_node_prints_goes_to_stderr_and_to_who_listens() -> None:
    heard: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    [booted] = boot_all(
        AgentBooter(SSH),
        [HostSpec("a")],
        pythons=[sys.executable],
        deadline=soon(),
        module="echo_node",
        on_stderr=lambda host, line: heard.put((host.name, line)),
    )
    with contextlib.closing(booted):
        assert heard.get(timeout=10) == ("a", "this goes to stderr")


@pytest.mark.parametrize("shell", ["dash", "bash", "zsh", "ksh", "tcsh", "bsd-csh", "fish", "busybox"])
def test_every_login_shell_will_do(shell: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    if shell == "busybox":
        path = shutil.copy(path, tmp_path / "sh")
    monkeypatch.setenv("RMPI_STUB_SHELL", path)
    boot_one(HostSpec("a")).close()


@pytest.mark.parametrize("name", ["with space", "it's", 'a"b', "$HOME", "`id`", "a\\nb", "50%!", "*", "ünï", " lead"])
def test_the_path_of_the_interpreter_is_taken_literally(name: str, tmp_path: Path) -> None:
    wrapper = interpreter(tmp_path / name, 'exec "$PYTHON" "$@"')
    boot_one(HostSpec("a", python=wrapper)).close()


def interpreter(path: Path, script: str) -> str:
    """A stand-in for Python: a shell script that finds the real one in ``$PYTHON``."""
    path.write_text(f"#!/bin/sh\nPYTHON='{sys.executable}'\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_the_first_interpreter_that_exists_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no-program").write_text("")
    interpreter(tmp_path / "python-on-path", 'exec "$PYTHON" "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    candidates = ["/no/such/python", str(tmp_path), str(tmp_path / "no-program"), "no-such-name", "python-on-path"]
    boot_one(HostSpec("a"), pythons=[*candidates, "/bin/false"]).close()


def test_a_tilde_is_the_home_directory_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter(tmp_path / "my python", 'exec "$PYTHON" "$@"')
    monkeypatch.setenv("HOME", str(tmp_path))
    boot_one(HostSpec("a", python="~/my python")).close()


def test_modules_lying_in_the_home_directory_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "importlib", "rmpi", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('wrong module')")
    monkeypatch.chdir(tmp_path)
    boot_one(HostSpec("a")).close()


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("""exec "$PYTHON" -c "import sys; sys.version_info = (3, 8, 1); $2" """, "is Python 3.8.1, rmpi needs"),
        ("""exec "$PYTHON" -c "import sys; sys.version_info = (3, 99, 0); $2" """, "is Python 3.99.0, the launcher"),
        ("""exec "$PYTHON" -I -S "$@" """, "lacks rmpi"),
        ("echo 'libpython3.so: not found' >&2; exit 127", "ended with status 127 .*: libpython3.so: not found"),
    ],
)
def test_an_interpreter_that_will_not_do_is_described(script: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=what) as caught:
        boot_one(HostSpec("a", python=interpreter(tmp_path / "python", script)))
    assert caught.value.status == 125


def test_no_interpreter_at_all_tells_what_was_tried() -> None:
    with pytest.raises(LaunchError, match=r"no Python among /no/python, nopython \(PATH there: .*/bin"):
        boot_one(HostSpec("a"), pythons=["/no/python", "nopython"])


@pytest.mark.parametrize(
    ("host", "what", "fix"),
    [
        ("denied", "permission denied for user me", "ssh-copy-id"),
        ("password", "accepts no keys, only password or keyboard-interactive", "ControlMaster"),
        ("unresolved", "name 'unresolved' does not resolve", "spelling"),
        ("nodns", "name server did not answer", "address"),
        ("unknownkey", "host key is not known", "ssh-keyscan -p 2222 unknownkey"),
        ("changedkey", "HAS CHANGED to SHA256:abc.*/home/u/.ssh/known_hosts:7", "ssh-keygen -R"),
        ("refused", "connection refused by refused:2222", "sshd"),
        ("timedout", "no answer from timedout:2222", "firewall"),
        ("noroute", r"cannot reach noroute:2222 \(no route to host\)", "route"),
        ("mystery", "ended with status 255 .*: something nobody has seen", "by hand"),
        ("nologin", "ended with status 1 .*: This account is currently not available", "by hand"),
        ("dies", "ended with status 1 .*: client_loop: send disconnect", "by hand"),
    ],
)
def test_the_agents_words_become_ours(host: str, what: str, fix: str) -> None:
    with pytest.raises(LaunchError, match=what) as caught:
        boot_one(HostSpec(host, port=2222))
    assert fix in str(caught.value)


def test_dropped_logins_are_worth_another_try() -> None:
    failure = explain("kex_exchange_identification: Connection closed by remote host", HostSpec("n1"))
    assert failure is not None
    assert failure.again is Again.OFTEN


def test_a_host_that_hangs_is_late() -> None:
    with pytest.raises(LaunchError, match="not up in time, still starting Python there"):
        boot_one(HostSpec("hangs"), seconds=0.5)


@pytest.mark.parametrize(
    ("script", "status"), [("echo ready; exec sleep 1000", -15), ("trap '' TERM; echo ready; exec sleep 1000", -9)]
)
def test_close_ends_an_agent_that_does_not_end_itself(
    script: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "GRACE", 0.2)
    session = AgentBooter(f'sh -c "{script}"').open(HostSpec("n1"), "", soon())
    assert session.control.recv(6) == b"ready\n"
    session.close()
    session.close()
    assert repr(session).endswith(f"status {status}>")


def test_a_host_that_babbles_is_stopped() -> None:
    with pytest.raises(LaunchError, match="prints without end"):
        boot_one(HostSpec("babbles"))


def test_the_agent_gets_user_port_host_and_command() -> None:
    argv = AgentBooter("my-ssh -o 'A B'").argv(HostSpec("n1", user="bob", port=2200), "cmd")
    assert argv == ["my-ssh", "-o", "A B", "-l", "bob", "-p", "2200", "n1", "cmd"]


@pytest.mark.parametrize("command", ["", "'unfinished", "/no/such/agent"])
def test_an_agent_that_cannot_run_is_named(command: str) -> None:
    with pytest.raises(HostFailed, match=r"agent .* does not start"):
        AgentBooter(command).open(HostSpec("n1"), "true", soon())


def test_a_host_name_is_never_taken_for_an_option() -> None:
    with pytest.raises(HostFailed, match="'-oProxyCommand=x' cannot be a host name"):
        AgentBooter(SSH).open(HostSpec("-oProxyCommand=x"), "true", soon())


# --- Many hosts at once, with sessions made of memory -------------------------------------------------------


class FakeSession:
    """Answers at once with ``facts``."""

    address = "192.0.2.7"

    def __init__(self, answer: str) -> None:
        self.control, self._far = socket.socketpair()
        self._far.sendall(f"RMPI-NODE {answer}\n".encode())
        self.tail = Tail()
        self.warnings: list[str] = []
        self.closed = 0

    def diagnose(self, last_words: str) -> HostFailed:
        return refusals.ended_early(last_words, None)

    def close(self) -> None:
        self.closed += 1
        self.control.close()
        self._far.close()


class FakeBooter:
    """``scripts`` maps a host to what happens at its first login, its second, …; then all is well."""

    def __init__(self, **scripts: list[Exception]) -> None:
        self.scripts = scripts
        self.sessions: dict[str, FakeSession] = {}
        self.logins = 0
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()
        self.before_login: Callable[[], object] = lambda: None

    def open(self, host: HostSpec, command: str, deadline: Deadline) -> FakeSession:
        with self._lock:
            self.logins += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.before_login()
        with self._lock:
            self.at_once -= 1
            if script := self.scripts.get(host.name):
                raise script.pop(0)
            return self.sessions.setdefault(host.name, FakeSession(said()))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "RETRY_PAUSE", 0)


def muster(booter: FakeBooter, *names: str, patience: float = 0, **options: object) -> list[boot.Booted]:
    hosts = [HostSpec(name, origin=f"hosts:{line}") for line, name in enumerate(names, 1)]
    settings: dict[str, object] = {"pythons": ["python3"], "deadline": soon(), "expect": OURS, "patience": patience}
    return boot_all(booter, hosts, **(settings | options))  # type: ignore[arg-type]


def test_all_hosts_come_up_in_the_order_asked_for() -> None:
    names = [f"n{index}" for index in range(30)]
    booted = muster(FakeBooter(), *names)
    assert [each.host.name for each in booted] == names
    assert {each.address for each in booted} == {"192.0.2.7"}
    for each in booted:
        each.close()


def test_no_hosts_is_no_work() -> None:
    assert muster(FakeBooter()) == []


def test_no_more_logins_in_flight_than_allowed() -> None:
    booter, gate = FakeBooter(), threading.Barrier(4)
    booter.before_login = lambda: gate.wait(10)  # lets four through together, and only four
    for each in muster(booter, *(f"n{index}" for index in range(12)), at_once=4):
        each.close()
    assert booter.most_at_once == 4


def test_one_table_names_every_bad_host_and_the_good_ones_are_closed() -> None:
    booter = FakeBooter(n1=[refusals.unresolved("n1")], n3=[refusals.denied("bob", ["/k"])])
    with pytest.raises(LaunchError) as caught:
        muster(booter, "n0", "n1", "n2", "n3")
    assert caught.value.status == 125
    title, head, first, second = str(caught.value).splitlines()
    assert title == "2 of 4 hosts cannot be used:"
    assert head.split("  ")[1] == "host"
    assert first.startswith("  n1 (hosts:2)  the name 'n1' does not resolve  ")
    assert second.startswith("  n3 (hosts:4)  permission denied for user bob (tried /k)  ")
    assert head.index("what to do") == first.index("check the spelling") == second.index("put your public key")
    assert [session.closed for session in booter.sessions.values()] == [1, 1]


def test_dropped_logins_are_tried_again() -> None:
    booter = FakeBooter(n0=[refusals.dropped("n0:22") for _ in range(boot.DROPPED_TRIES - 1)])
    [booted] = muster(booter, "n0")
    booted.close()
    assert booter.logins == boot.DROPPED_TRIES


def test_a_host_that_drops_every_login_is_reported_in_the_end() -> None:
    booter = FakeBooter(n0=[refusals.dropped("n0:22") for _ in range(99)])
    with pytest.raises(LaunchError, match=r"dropped the login .* MaxStartups"):
        muster(booter, "n0")
    assert booter.logins == boot.DROPPED_TRIES


@pytest.mark.parametrize("failure", [refusals.unresolved("n0"), refusals.refused("n0:22")])
def test_a_host_that_may_be_coming_up_is_tried_while_patience_lasts(failure: HostFailed) -> None:
    impatient = FakeBooter(n0=[failure] * 3)
    with pytest.raises(LaunchError):
        muster(impatient, "n0")
    assert impatient.logins == 1
    patient = FakeBooter(n0=[failure] * 3)
    muster(patient, "n0", patience=20)[0].close()
    assert patient.logins == 4


def test_a_refused_user_is_not_tried_again() -> None:
    booter = FakeBooter(n0=[refusals.denied("bob", [])] * 3)
    with pytest.raises(LaunchError, match="there is no key to try"):
        muster(booter, "n0", patience=20)
    assert booter.logins == 1


def test_a_login_that_cannot_be_interrupted_is_left_behind_and_closed_when_it_ends() -> None:
    """As a name lookup may be: `boot_all` returns at its deadline all the same."""
    booter, release = FakeBooter(), threading.Event()
    booter.before_login = lambda: release.wait(20)
    with pytest.raises(LaunchError, match="not up in time, still logging in"):
        muster(booter, "n0", deadline=Deadline.after(0))
    [worker] = [thread for thread in threading.enumerate() if thread.name == "rmpi-boot"]
    release.set()
    worker.join(10)
    assert booter.sessions["n0"].closed == 1


def test_an_interrupt_closes_what_is_up() -> None:
    booter = FakeBooter()

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        muster(booter, "n0", on_progress=interrupt)
    assert booter.sessions["n0"].closed == 1


def test_a_bug_in_a_booter_is_not_dressed_up_as_a_bad_host() -> None:
    with pytest.raises(ZeroDivisionError):
        muster(FakeBooter(n0=[ZeroDivisionError()]), "n0", "n1")


def test_progress_says_who_is_missing() -> None:
    lines: list[str] = []
    for each in muster(FakeBooter(), "a", "b", "c", "d", "e", at_once=1, on_progress=lines.append):
        each.close()
    assert lines[0].startswith("1/5 hosts up, waiting for b, c, d and 1 more (")
    assert lines[-1] == "5/5 hosts up"


def test_another_numpy_is_a_warning() -> None:
    [booted] = muster(FakeBooter(), "n0", expect=dataclasses.replace(OURS, numpy="1.26.4"))
    booted.close()
    assert booted.warnings == ["n0 has numpy 2.1.0, the launcher 1.26.4: results may differ in the last bits"]
