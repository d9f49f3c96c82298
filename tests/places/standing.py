"""Nodes as people start them, in processes of their own, for tests; and programs that join them."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

from rmpi import rpc

NODE = [sys.executable, "-m", "rmpi.places.node"]
HERE = Path(__file__).parent


class StandingNode:
    """``python -m rmpi.places.node``; `at` is where it listens, and `said` what it has written so far, line by line."""

    def __init__(self, key_file, *words, name="alpha", listen="127.0.0.1:0"):
        self.key_file = key_file
        self.said = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [*NODE, "--key-file", str(key_file), "--listen", listen, "--name", name, "-v", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        first = self.heard("listens at")
        self.at = first.split()[-1]
        self.port = int(self.at.rpartition(":")[2])

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.said.append(line.rstrip("\n"))
                self._changed.notify_all()

    def heard(self, words):
        """The first line with these words, as soon as it is there."""
        with self._changed:
            found = self._changed.wait_for(lambda: next((line for line in self.said if words in line), None), 20)
        assert found, f"no line with {words!r} among {self.said}"
        return found

    def end(self, number=signal.SIGTERM):
        """Its exit status, minus the signal that killed it."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        status = self.process.wait(10)
        self._reader.join(10)
        self.process.stdout.close()
        return status


class Program:
    """A program that has joined a node, line by line: `run` has it do something, and returns what it prints of that."""

    def __init__(self, node, beginning=""):
        text = f"""
            import os, sys
            sys.path.insert(0, {str(HERE)!r})
            from rmpi import places
            node = places.attach({node.at!r}, key_file={str(node.key_file)!r})
        """
        loop = "import sys\nfor line in sys.stdin:\n    exec(line.replace(chr(0), chr(10)), globals())\n"
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", textwrap.dedent(text) + textwrap.dedent(beginning) + loop],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *lines):
        self.begin(*lines)
        return self.answer()

    def begin(self, *lines):
        self.process.stdin.write("\0".join(lines) + "\n")
        self.process.stdin.flush()

    def answer(self):
        return self.process.stdout.readline().rstrip("\n")

    def end(self):
        """As a program ends that has nothing more to do; its exit status."""
        self.process.stdin.close()
        status = self.process.wait(10)
        self.process.stdout.close()
        return status

    def kill(self):
        self.process.kill()
        self.end()


# ------------------------------------------------------------------------------- what places do


def echo(mailbox):
    """Answer everybody with what they have said."""
    while True:
        message, reply = mailbox.receive()
        reply.put(message)


def keep(mailbox):
    """A shelf: what was put there last is given to whoever asks with None."""
    kept = None
    while True:
        message, reply = mailbox.receive()
        if message is None:
            reply.put(kept)
        else:
            kept = message


def wait(mailbox):
    mailbox.get()


def length(mailbox, argument):
    mailbox.put(len(argument))


def name(mailbox):
    """Tell where we are."""
    from rmpi import places

    mailbox.put(places.here().status().label)
    mailbox.get()


def join(mailbox, at, key_file):
    """Join a node, and tell what it is called, and whether we were no member of its system before."""
    from rmpi import places

    before = places.here().member
    with places.attach(at, key_file=key_file) as node:
        mailbox.put((node.label, node.member is not before))


def speak(_mailbox):
    print("written to stdout")
    print("written to stderr", file=sys.stderr)
    logging.getLogger("tests").warning("logged")


def fail(_mailbox):
    1 / 0  # noqa: B018


def visit(mailbox, name, what):
    """Put something where this name leads, and tell what comes back."""
    from rmpi import places

    desk = places.connect(name)
    desk.put(what)
    mailbox.put(desk.get())


def keep_desk(mailbox, name):
    """Have a mailbox of that name, and answer there, until told to close it."""
    from rmpi import places

    desk = places.open_mailbox(name)
    mailbox.put("open")
    for channel in iter(lambda: places.select([mailbox, desk])[0], mailbox):
        message, reply = channel.receive()
        reply.put(message)
    desk.close()
    mailbox.put("closed")
    mailbox.get()


class Till(rpc.Server):
    """Money."""

    def __init__(self):
        self.money = 0

    @rpc.call
    def pay(self, amount):
        self.money += amount
        return self.money


def pay(mailbox, name, amount):
    """Pay at the till of that name."""
    from rmpi import places

    mailbox.put(Till.connect(places.here(), name).pay(amount))
