"""The command line of ``python -m rmpi.taskfarm``.

A worker of the shell is a *keeper* and its places: the keeper starts as many as are wanted, starts those again that
die, kills those that are stopped and so do nothing, and ends all of them with itself.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rmpi.comm.bootstrap import init
from rmpi.errors import LaunchError, PeerLost, RmpiError
from rmpi.places import system
from rmpi.places.creation import here
from rmpi.places.guest import attach
from rmpi.places.keyfile import key_for
from rmpi.places.opening import listen
from rmpi.places.printing import write_line
from rmpi.places.supervisor import restart_every
from rmpi.places.whereto import parse_where, show_where
from rmpi.taskfarm import ranks
from rmpi.taskfarm.coming import MEET_LIMIT, come
from rmpi.taskfarm.crew import LOOK, PATIENCE
from rmpi.taskfarm.meeting import DEFAULT_PORT, WORKER
from rmpi.taskfarm.working import LEAVE, work

if TYPE_CHECKING:
    from rmpi.places.handles import Place

USAGE = "usage: python -m rmpi.taskfarm worker (--listen ADDRESS | --connect ADDRESS) --key-file FILE [options]"

RESTART = restart_every(1, only_failures=True)
"""What becomes of workers that end: if that was not on purpose, they are started again."""

HELP = f"""{USAGE}
       rmpi-run [options] -m rmpi.taskfarm SCRIPT [arguments]

  python -m rmpi.taskfarm worker --listen 0.0.0.0:7000 --key-file team.key
                                  workers that masters come to:
                                  master.connect("host:7000", key_file="team.key")
  python -m rmpi.taskfarm worker --connect head:7000 --key-file team.key
                                  workers that come to a master:
                                  master.listen("0.0.0.0", 7000, key_file="team.key")
  rmpi-run -f hostfile -m rmpi.taskfarm script.py
                                  rank 0 runs the script, the others are workers of
                                  its rmpi.taskfarm.Master() or Executor()

Workers that die are started again. Those that listen may have several masters;
those that connect end when their masters have. After Ctrl-C or SIGTERM all end as
soon as the tasks at hand are done; a second one does not wait for that.

Where:
  --listen ADDRESS[:PORT]  one address of this machine, or 0.0.0.0 for all of them
                           (default port: {DEFAULT_PORT}; port 0 is any)
  --connect HOST[:PORT]    where a master listens, or is about to; may be given
                           several times

Who:
  --key-file FILE          the key that both sides must have: whoever can read the
                           file may run any program here, as you. It must be
                           yours alone (chmod 600)
  --new-key                with --listen: make FILE, with a new key in it

What:
  -n, --workers N          how many (default: one for each core)
  -h, --help               show this and exit
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LaunchError(f"{message}\n{USAGE}   (--help shows all)", status=2)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What the command line of a worker asks for.

    Raises:
        LaunchError: Status 2: it cannot be understood.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--listen")
    parser.add_argument("--connect", action="append", default=[])
    parser.add_argument("--key-file")
    parser.add_argument("--new-key", action="store_true")
    parser.add_argument("-n", "--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-h", "--help", action="store_true")
    options = parser.parse_args(words)
    if options.help:
        return options
    if bool(options.listen) == bool(options.connect):
        parser.error("say either --listen ADDRESS or --connect ADDRESS")
    if not options.key_file:
        parser.error("--key-file FILE is missing: both sides must have the same key; --listen with --new-key makes one")
    if options.new_key and not options.listen:
        parser.error("--new-key goes with --listen: who connects has the key of the other side")
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, not {options.workers}")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    words = sys.argv[1:] if words is None else words
    try:
        if words[:1] == ["worker"]:
            return _keep(parse(words[1:]))
        if not words or words[0] in ("-h", "--help"):
            write_line(-1, 1, HELP.rstrip())
            return 0 if words else 2
        _run_script(words[0], words[1:])
    except LaunchError as error:
        write_line(-1, 2, f"rmpi: {error}")
        return error.status
    return 0


def _run_script(script: str, arguments: Sequence[str]) -> None:
    """As a rank of a job; only rank 0 needs the script."""
    comm = init()
    if comm.rank == 0 and not Path(script).is_file():
        raise LaunchError(f"there is no script {script!r}\n{USAGE}   (--help shows all)", status=127)
    if comm.size < 2:
        raise LaunchError(
            "rank 0 runs the script and the others are its workers, so there must be two ranks at least: "
            f"rmpi-run -n 4 -m rmpi.taskfarm {script}. (python {script} has workers of its own)",
            status=2,
        )
    ranks.run(comm, script, arguments)


# -------------------------------------------------------------------------------------- the keeper


def _keep(options: argparse.Namespace) -> int:
    if options.help:
        write_line(-1, 1, HELP.rstrip())
        return 0
    with _caught_signals() as signals:
        places = _listen(options) if options.listen else _connect(options)
        try:
            _watch(places, signals)
        finally:
            system.shutdown()
    return 0


def _watch(places: Sequence[Place], signals: queue.SimpleQueue[bool]) -> None:
    """Until all have ended, or are to be ended now."""
    threading.Thread(target=_await_end, args=(places, signals), name="rmpi awaits workers", daemon=True).start()
    while any(place.alive for place in places):
        try:
            over = signals.get(timeout=LOOK)
        except queue.Empty:
            _kill_stopped()
        else:
            if over:
                return
            write_line(-1, 2, "rmpi: leaving as soon as the tasks at hand are done; the next signal ends them")
            _ask_to_leave(places)


def _await_end(places: Sequence[Place], over: queue.SimpleQueue[bool]) -> None:
    """In a thread of its own."""
    for place in places:
        with suppress(RmpiError):  # it was lost, or the program ends
            place.wait()
    over.put(True)


@contextmanager
def _caught_signals() -> Iterator[queue.SimpleQueue[bool]]:
    """Of each signal that asks us to end, whether that is to be now: there was one before."""
    signals: queue.SimpleQueue[bool] = queue.SimpleQueue()
    counted = count()
    former = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # of nohup, or of a shell for what it runs in the background
            former[number] = signal.signal(number, lambda _number, _frame: signals.put(next(counted) > 0))
    try:
        yield signals
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _ask_to_leave(places: Sequence[Place]) -> None:
    for place in places:
        with suppress(PeerLost):
            place.put((LEAVE,), timeout=1.0)


def _listen(options: argparse.Namespace) -> list[Place]:
    host, port = parse_where(options.listen, DEFAULT_PORT, "--listen")
    with key_for(options.key_file, new=options.new_key):
        where = listen(host, port, key_file=options.key_file)
    names = [f"{WORKER}{number}" for number in range(1, options.workers + 1)]
    places = [here().spawn(work, name=name, restart=RESTART) for name in names]
    write_line(-1, 1, f"rmpi: {_count(places)} (pid {os.getpid()}) listen at {where}")
    return places


def _connect(options: argparse.Namespace) -> list[Place]:
    addresses = [show_where(*parse_where(each, DEFAULT_PORT, "--connect")) for each in options.connect]
    for address in addresses:
        with attach(address, key_file=options.key_file, timeout=MEET_LIMIT):
            pass  # so that it is said once what is wrong, and before anything is started
    key_file = str(Path(options.key_file).absolute())
    places = [
        here().spawn(come, addresses, key_file, number, restart=RESTART) for number in range(1, options.workers + 1)
    ]
    write_line(-1, 1, f"rmpi: {_count(places)} (pid {os.getpid()}) of {', '.join(addresses)}")
    return places


def _count(places: Sequence[Place]) -> str:
    return "1 worker" if len(places) == 1 else f"{len(places)} workers"


def _kill_stopped() -> None:
    """What is stopped does no tasks, and keeps those that it has."""
    try:
        stopped = [place.pid for place in here().status().places if (place.stopped or 0.0) >= PATIENCE]
    except RmpiError:
        return
    for pid in stopped:
        write_line(-1, 2, f"rmpi: a worker (pid {pid}) was stopped for {PATIENCE:g} s, and is started again")
        os.kill(pid, signal.SIGKILL)
