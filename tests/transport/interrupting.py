"""Signal handlers that raise, at the worst moment or at thousands of random ones."""

import subprocess
import sys


class Interrupted(Exception):
    pass


class Interrupting:
    """A port that is interrupted when it has done what was asked, before its caller knows."""

    def __init__(self, port):
        object.__setattr__(self, "_port", port)

    def __getattr__(self, name):
        return getattr(self._port, name)

    def __setattr__(self, name, value):
        setattr(self._port, name, value)

    def recv(self, *args):
        self._port.recv(*args)
        raise Interrupted


def run_program(path, role, count):
    """Run a program that is interrupted so many times, and says so in the end."""
    run = subprocess.run(
        [sys.executable, path, role, str(count), "1"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith(f"messages, {count} interruptions\n")
