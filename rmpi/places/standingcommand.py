"""The command line of a node that people start by hand: ``python -m rmpi.places.node``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from rmpi.errors import LaunchError
from rmpi.places.keyfile import key_for
from rmpi.places.local import LOOPBACK
from rmpi.places.printing import write_line
from rmpi.places.processes import kill_descendants, name_process
from rmpi.places.standing import Standing
from rmpi.places.whereto import DEFAULT_PORT, parse_where, show_where

USAGE = "usage: python -m rmpi.places.node --key-file FILE [options]"

HELP = f"""{USAGE}

  python -m rmpi.places.node --key-file team.key --new-key
                                  a node for programs of this machine
  python -m rmpi.places.node --key-file team.key --listen 10.0.0.5
                                  a node for programs of other machines too

A node stands until Ctrl-C or SIGTERM; then all its places are ended. Programs join it by
rmpi.places.attach("host:{DEFAULT_PORT}", key_file="team.key"), and spawn places on it. What these write and log
appears here.

Where it can be found:
  --listen ADDRESS[:PORT]  one address of this machine, or 0.0.0.0 for all of
                           them; port 0 is any (default: {LOOPBACK}:{DEFAULT_PORT})
  --name NAME              what to call it (default: the name of this machine)

Who may join:
  --key-file FILE          the key that they must have, too: whoever can read the
                           file may run any program here, as you. It must be
                           yours alone (chmod 600)
  --new-key                make FILE, with a new key in it

What is shown:
  -v, --verbose            say who joins and who leaves

About:
  -h, --help               show this and exit
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LaunchError(f"{message}\n{USAGE}   (--help shows all)", status=2)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for.

    Raises:
        LaunchError: Status 2: it cannot be understood.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--listen", default=LOOPBACK)
    parser.add_argument("--key-file")
    parser.add_argument("--new-key", action="store_true")
    parser.add_argument("--name", default="")
    for letter, name in (("-v", "--verbose"), ("-h", "--help")):
        parser.add_argument(letter, name, action="store_true")
    options = parser.parse_args(words)
    if not options.key_file and not options.help:
        parser.error("--key-file FILE is missing: programs join with the same key; --new-key makes one")
    if not options.name.isprintable():
        parser.error(f"--name {options.name!r} cannot be shown on a line")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run a node as the command line says; the exit status."""
    try:
        options = parse(sys.argv[1:] if words is None else words)
        if options.help:
            write_line(-1, 1, HELP.rstrip())
            return 0
        node, where = _open(options)
    except LaunchError as error:
        write_line(-1, 2, f"rmpi: {error}")
        return error.status
    _heed_signals(node)
    write_line(-1, 1, f"rmpi: node {node.label} (pid {os.getpid()}) listens at {where}")
    try:
        node.run()
    finally:
        kill_descendants()
    return 0


def _open(options: argparse.Namespace) -> tuple[Standing, str]:
    """The node, and where it listens."""
    host, port = parse_where(options.listen, DEFAULT_PORT, "--listen")
    with key_for(options.key_file, new=options.new_key) as key:
        try:
            node = Standing(host, port, key, options.name, verbose=options.verbose)
        except LaunchError as error:
            hint = "" if not port else "; --listen ADDRESS:PORT chooses another port, and port 0 any that is free"
            raise LaunchError(f"{error}{hint}") from None
    where = show_where(host, node.port)
    name_process("rmpi-node", f"rmpi node {node.label} at {where}")
    return node, where


def _heed_signals(node: Standing) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # of nohup, or of a shell for what it runs in the background
            signal.signal(number, lambda _number, _frame: node.end())
