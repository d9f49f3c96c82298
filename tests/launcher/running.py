"""Running the command itself: jobs as real processes, watched from outside, and proof that nothing is left.

Every job is marked by a variable in its environment, which all that it starts inherits: ranks, spawners, daemonised
grandchildren. Whoever bears the mark when the test is over was forgotten. The temporary directory of a job is an
empty one of its own, and must be empty again.

    done = jobs.run("-n", 2, jobs.script("print('hello')"))
    assert (done.code, done.out) == (0, "hello\nhello\n")

    job = jobs.start("-n", 2, "sleep", 60)     # the other way: to watch it, and to do something to it
    job.until("ready")
    job.signal(signal.SIGINT)
    assert job.wait().code == 130
"""

from __future__ import annotations

import itertools
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

MARK = "TEST_MARK"
"""The variable by which the processes of a job are found."""

LIMIT = 30.0
"""Seconds that any job of these tests may take before it counts as hanging."""

SOON = 2.0
"""Seconds after which nothing of a job may be left, however it ended, on a machine that has time; see `patience`."""

RMPI_RUN = [sys.executable, "-m", "launcher"]
_numbers = itertools.count()


def patience() -> float:
    """By what to multiply promised times, because others compute here too: 1 on a machine that is ours."""
    return max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))


def eventually(holds: Callable[[], Any], what: str, seconds: float = LIMIT) -> Any:
    """Wait until ``holds()`` is true, and return what it returned."""
    end = time.monotonic() + seconds
    while not (result := holds()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.005)
    return result


def processes(mark: str) -> dict[int, str]:
    """The pids of all processes that bear the mark, and their command lines. Zombies bear none."""
    wanted = f"{MARK}={mark}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended, or is somebody else's
            continue
    return found


def state(pid: int) -> str:
    """One letter, as in ``ps``: R, S, T, Z, …; "" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def reaches(pid: int, letter: str) -> None:
    """Wait until the `state` of a process is this."""
    eventually(lambda: state(pid) == letter, f"process {pid} in state {letter}")


def children(pid: int) -> list[int]:
    """Its children, the oldest first; none if it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def memory(pid: int) -> int:
    """The most bytes of memory that a process has had at any time."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


@dataclass(frozen=True)
class Done:
    """How a job ended; ``took`` so many seconds, ``after`` since the last `Running.until` or `Running.signal`."""

    code: int
    stdout: bytes
    stderr: bytes
    took: float
    after: float

    @property
    def out(self) -> str:
        return self.stdout.decode()

    @property
    def err(self) -> str:
        return self.stderr.decode(errors="replace")

    @property
    def lines(self) -> list[str]:
        """The lines of the output, sorted: the order of ranks among themselves is nobody's business."""
        return sorted(self.out.splitlines())

    @property
    def said(self) -> str:
        """The error output without the warning that ranks outnumber the cores of whatever runs the tests."""
        return re.sub(r"(?m)^rmpi-run: \d+ ranks share .*\n", "", self.err)


class Running:
    """A job that runs. What it writes is collected as it comes."""

    def __init__(self, mark: str, process: subprocess.Popen[bytes], streams: Sequence[IO[bytes] | int | None]) -> None:
        self.mark = mark
        self.process = process
        self.pid = process.pid
        self._began = self._event = time.monotonic()
        self._texts = [bytearray(), bytearray()]
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(index, stream), daemon=True)
            for index, stream in enumerate(streams)
            if stream is not None
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, index: int, stream: IO[bytes] | int) -> None:
        while self._take(index, stream if isinstance(stream, int) else stream.fileno()):
            pass

    def _take(self, index: int, fd: int) -> bool:
        """Take what has come. False: nothing more will."""
        try:
            data = os.read(fd, 1 << 20)
        except OSError:  # the other end of a terminal is gone
            data = b""
        with self._news:
            self._texts[index] += data
            self._news.notify_all()
        return bool(data)

    def until(self, text: str, *, times: int = 1, stream: int = 1) -> None:
        """Wait until ``text`` was written so many times to a stream, 1 or 2."""
        wanted = text.encode()
        with self._news:
            came = self._news.wait_for(lambda: self._texts[stream - 1].count(wanted) >= times, LIMIT)
        assert came, f"{text!r} did not come; what came is {self._texts}"
        self._event = time.monotonic()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)
        self._event = time.monotonic()

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def pids(self, part: str) -> list[int]:
        """The processes of this job whose command line contains ``part``."""
        return sorted(pid for pid, words in processes(self.mark).items() if part in words)

    def spawner(self) -> int:
        """The spawner: the only child of the launcher."""
        return children(self.pid)[0]

    def ranks(self) -> list[int]:
        """The pids of the ranks, in the order in which they were started, which is theirs."""
        below = [child for spawner in children(self.pid) for child in children(spawner)]
        return [pid for pid in below if _name(pid) not in ("", "rmpi-spawner")]  # a fork is no rank until it is named

    def ready(self, ranks: int = 2) -> None:
        """Wait until so many ranks have written "ready" and have gone to sleep after that."""
        self.until("ready", times=ranks)
        for pid in self.ranks():
            reaches(pid, "S")
        self._event = time.monotonic()

    def wait(self) -> Done:
        """Wait for the end."""
        code = self.process.wait(LIMIT)
        ended = time.monotonic()
        for reader in self._readers:
            reader.join(LIMIT)
            assert not reader.is_alive(), "the job is over, and still somebody holds its output"
        out, err = map(bytes, self._texts)
        return Done(code, out, err, ended - self._began, ended - self._event)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join(SOON)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass


def _name(pid: int) -> str:
    """What ``ps -o comm`` shows; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Jobs:
    """The jobs of one test, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = f"{os.getpid()}-{next(_numbers)}"
        self._temporary = directory / "the temporary directory"
        self._temporary.mkdir()
        self._shared_before = _shared_memory()
        self._jobs: list[Running] = []

    def script(self, text: str, name: str = "script.py") -> Path:
        """Write a script, indented as the test is."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def start(
        self,
        *words: object,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] = subprocess.PIPE,
        command: Sequence[str] = RMPI_RUN,
        terminal: bool = False,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> Running:
        """Start ``rmpi-run`` with these words, in the directory of the test.

        Args:
            stdin: As in `subprocess.Popen`; nothing by default, PIPE for `Running.write`.
            command: What to start instead of rmpi-run.
            terminal: Give it a terminal of its own, 80 × 24, for all three streams; see `Terminal`.
            env: Variables besides those of the tests.
        """
        everything = [*command, *map(str, words)]
        surroundings: dict[str, Any] = {
            "cwd": self.directory,
            "env": {**_clean_environment(), MARK: self.mark, "TMPDIR": str(self._temporary), **env},
        }
        if terminal:
            job: Running = Terminal(self.mark, everything, surroundings)
        else:
            process = subprocess.Popen(everything, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, **surroundings)
            job = Running(self.mark, process, (process.stdout, process.stderr))
        self._jobs.append(job)
        return job

    def run(self, *words: object, input: bytes | None = None, **surroundings: Any) -> Done:  # noqa: A002
        """Run ``rmpi-run`` with these words, and ``input`` on its standard input, to its end."""
        if input is None:
            return self.start(*words, **surroundings).wait()
        job = self.start(*words, stdin=subprocess.PIPE, **surroundings)
        writer = threading.Thread(target=_write_all, args=(job, input), daemon=True)
        writer.start()
        done = job.wait()
        writer.join(SOON)
        return done

    def processes(self) -> dict[int, str]:
        """All processes of this test's jobs."""
        return processes(self.mark)

    def nothing_is_left(self) -> None:
        """Assert it: no process, no file in the temporary directory or in shared memory."""
        eventually(lambda: not self.processes(), f"no process left; there are {self.processes()}", SOON * patience())
        assert list(self._temporary.iterdir()) == []
        eventually(lambda: not _shared_memory() - self._shared_before, "no shared memory left", SOON)

    def close(self) -> None:
        """Check that nothing is left; whatever is, ends here."""
        for job in self._jobs:
            job.close()
        try:
            self.nothing_is_left()
        finally:
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)


class Terminal(Running):
    """A job with a terminal. What it shows, of both streams, counts as standard output."""

    def __init__(self, mark: str, command: Sequence[str], surroundings: dict[str, Any]) -> None:
        import pty
        import termios

        self._hung_up = os.eventfd(0)
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        # setsid(1) because what Popen would call in the child is not safe where there are threads
        process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=slave, stdout=slave, stderr=slave, **surroundings
        )
        os.close(slave)
        super().__init__(mark, process, (self.master,))

    def write(self, data: bytes) -> None:
        os.write(self.master, data)

    def hang_up(self) -> None:
        """Close the window. What is written from now on is lost."""
        os.eventfd_write(self._hung_up, 1)  # a terminal is open for as long as somebody reads it
        self._readers[0].join()
        os.close(self.master)
        self.master = -1
        self._event = time.monotonic()

    def _read(self, index: int, stream: IO[bytes] | int) -> None:
        while self._hung_up not in select.select([self._hung_up, self.master], [], [])[0]:
            if not self._take(index, self.master):
                break

    def close(self) -> None:
        super().close()
        os.close(self._hung_up)
        if self.master >= 0:
            os.close(self.master)


def _clean_environment() -> dict[str, str]:
    """Ours, without what would tell a job about the surroundings of the tests."""
    foreign = ("RMPI_", "PMI_", "OMPI_", "SLURM_", "WORLD_SIZE", "PYTEST_", "PYTHONUNBUFFERED")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def _write_all(job: Running, data: bytes) -> None:
    try:
        job.write(data)
        job.end_input()
    except BrokenPipeError:  # nobody wanted it
        pass


def _shared_memory() -> set[str]:
    """Our own by name: others use this machine too."""
    return {entry.name for entry in Path("/dev/shm").glob("*rmpi*")}
