"""Workers that somebody else has started: those that come to a master, and those that a master goes to.

Either side may be the one that listens (dpfw: masters and slaves may be servers or clients). Whoever connects joins the
system of whoever listens, as a guest (`rmpi.places.attach`), and so must have the same key. Then

- a worker that comes puts a channel to itself into the master's mailbox (`Gate`),
- a master that comes connects to the mailboxes of the workers, by their names (`Visit`),

and everything else is as with workers of the master's own. A worker that listens may have several masters at once.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from rmpi.errors import ChannelClosed, LaunchError, PeerLost, RmpiError
from rmpi.places.creation import here
from rmpi.places.guest import attach
from rmpi.places.mailboxes import open_mailbox
from rmpi.places.opening import listen
from rmpi.taskfarm.farm import Farm
from rmpi.taskfarm.link import Link

_LOG = logging.getLogger("rmpi.taskfarm")

GATE = "rmpi.taskfarm master"
"""The name of the mailbox of a master that listens. What comes there is the name of a worker and a channel to it."""

WORKER = "rmpi.taskfarm worker "
"""With a number behind it, the name of a worker that listens."""

DEFAULT_PORT = 7000
"""Where workers and masters listen, unless told otherwise."""


class Gate:
    """Where workers come to. There is one in a program."""

    def __init__(self, farm: Farm, address: str, port: int, key_file: str | Path) -> None:
        """Listen.

        Raises:
            LaunchError, UsageError: As for `rmpi.places.listen`; and another master of this program listens.
        """
        self._farm = farm
        self.address = listen(address, port, key_file=key_file)
        self._mailbox = open_mailbox(GATE, of=here())
        farm.expect(1)
        self._thread = threading.Thread(target=self._run, name="rmpi task farm's gate", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                label, channel = self._mailbox.get()
                self._farm.greet(channel, label)
            except (ChannelClosed, PeerLost):
                return
            except Exception as error:  # a stranger with our key, but no worker; or the farm was closed
                _LOG.warning("somebody who is no worker has come to %s: %s", self._farm.label, error)

    def close(self) -> None:
        """Let nobody in any more."""
        self._mailbox.close()
        self._thread.join()
        self._farm.expect(-1)


class Visit:
    """The workers of one node that listens."""

    def __init__(self, farm: Farm, address: str, key_file: str | Path, timeout: float | None) -> None:
        """Connect to them.

        Raises:
            LaunchError: As for `rmpi.places.attach`; or no workers are there.
        """
        self._farm = farm
        self._node = attach(address, key_file=key_file, timeout=timeout)
        self._names: dict[Link, str] = {}
        self._over = False
        try:
            for name in self._find(address):
                self._greet(name)
        except BaseException:
            self._node.detach()
            raise

    def _find(self, address: str) -> list[str]:
        names = [each.name for each in self._node.status().places if each.name.startswith(WORKER)]
        if not names:
            raise LaunchError(
                f"there are no workers at {address}: start them with 'python -m rmpi.taskfarm worker --listen …'"
            )
        return names

    def _greet(self, name: str) -> None:
        channel = self._node.connect(name)
        label = f"worker {name.removeprefix(WORKER)} on {self._node.label}"
        self._names[self._farm.greet(channel, label)] = name

    def lost(self, link: Link) -> None:
        """If it was one of ours, it is started again there."""
        name = self._names.pop(link, None)
        if name is not None and not self._over:
            self._farm.expect(1)
            threading.Thread(target=self._greet_again, args=(name,), name=f"rmpi meets {name}", daemon=True).start()

    def _greet_again(self, name: str) -> None:
        try:
            self._greet(name)  # the channel waits for its restart
        except RmpiError as error:
            _LOG.info("%s is not there any more: %s", name, error)
        finally:
            self._farm.expect(-1)

    def close(self) -> None:
        """Go."""
        self._over = True
        self._node.detach()
