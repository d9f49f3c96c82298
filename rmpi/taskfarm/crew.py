"""Workers that the master has started itself, and starts again.

Each is a place of a node. When one is lost, another is started in its stead: at once, or, if it did not live for
`SHORT` seconds, after longer and longer pauses, so that workers which cannot live do not keep the machine busy.

A worker that was *stopped* (SIGSTOP, a debugger, Ctrl-Z) does not answer, and is not dead. After `PATIENCE` seconds it
is killed, if it has tasks to do. That is asked of the operating system; a worker that merely computes is left alone,
for however long, whatever it does with Python's global lock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from rmpi.deadline import Deadline, now
from rmpi.errors import ChannelClosed, DeadlineExceeded, RmpiError
from rmpi.taskfarm.errors import BrokenFarm
from rmpi.taskfarm.farm import Farm
from rmpi.taskfarm.working import work

if TYPE_CHECKING:
    from rmpi.places.handles import Node, Place
    from rmpi.taskfarm.link import Link

_LOG = logging.getLogger("rmpi.taskfarm")

SHORT = 1.0
"""Seconds; a worker that lived for less is not replaced at once."""

LONGEST_PAUSE = 5.0
"""Seconds until one is started in place of another, at most."""

HOPELESS = 5
"""So many times in a row no worker could be started, or died before it was ready: then no more is tried."""

PATIENCE = 5.0
"""Seconds that a stopped worker may keep its tasks."""

LOOK = 1.0
"""Seconds between two looks at that."""

AT_ONCE = 16
"""Workers that are started at the same time."""


class Crew:
    """The workers of one node."""

    def __init__(
        self, farm: Farm, node: Node, count: int, label: Callable[[int], str], terms: tuple[int | None, bytes | None]
    ) -> None:
        """Start them.

        Args:
            label: What to call the n-th of them.
            terms: What `work` is told.

        Raises:
            RmpiError: They cannot be started; none is left.
        """
        self._farm = farm
        self._node = node
        self._count = count
        self._label = label
        self._terms = terms
        self._lock = threading.Lock()
        self._places: dict[Link, tuple[Place, float, int]] = {}  # since when, and which
        self._stopped: dict[Link, float] = {}  # since when they were seen so, with tasks
        self._quick = 0  # deaths in a row after a short life
        self._unready = 0  # deaths in a row of workers that were not ready yet
        self._ended = threading.Event()
        self._made = 0
        self._helpers: set[threading.Thread] = set()  # those that start workers in place of others
        farm.expect(count)
        try:
            with ThreadPoolExecutor(min(count, AT_ONCE)) as pool:
                list(pool.map(lambda _: self._start(), range(count)))
        except BaseException:
            self.kill()
            raise
        finally:
            farm.expect(-count)
        threading.Thread(target=self._watch, name="rmpi watches workers", daemon=True).start()

    def _start(self) -> None:
        with self._lock:
            self._made += 1
            number = self._made
        place = self._node.spawn(work, *self._terms)
        try:
            link = self._farm.greet(place, self._label(number), place.kill)
        except BaseException:  # the farm was closed
            _end(place)
            raise
        with self._lock:
            if not self._ended.is_set():
                self._places[link] = place, now(), number
        if self._ended.is_set():
            _end(place)
        elif link.gone:  # so soon that nobody knew yet whose it was
            self.lost(link)

    def lost(self, link: Link) -> None:
        """A worker is gone: have another one, soon. Does nothing if it was none of ours."""
        with self._lock:
            if link not in self._places:
                return
            _, since, _ = self._places.pop(link)
            self._quick = self._quick + 1 if now() - since < SHORT and not link.left else 0
            self._unready = self._unready + 1 if link.worker is None else 0
            pause = min(LONGEST_PAUSE, 0.1 * 2 ** (self._quick - 2)) if self._quick > 1 else 0.0
        if self._unready >= HOPELESS and not self._farm.workers:
            why = "before they could do anything, perhaps because of their initializer"
            self._farm.fail_all(BrokenFarm(f"{self._unready} workers in a row died {why}; see what they have written"))
            return
        self._farm.expect(1)
        helper = threading.Thread(target=self._replace, args=(pause,), name="rmpi replaces a worker", daemon=True)
        with self._lock:
            if not self._ended.is_set():
                self._helpers.add(helper)
                helper.start()
                return
        self._farm.expect(-1)

    def _replace(self, pause: float) -> None:
        try:
            for trial in range(HOPELESS):
                if self._ended.wait(pause):
                    return
                try:
                    self._start()
                except ChannelClosed:  # the program ends
                    return
                except RmpiError as error:
                    if self._ended.is_set():
                        return
                    _LOG.warning("a worker on %s cannot be started: %s", self._node.label, error)
                    pause = min(LONGEST_PAUSE, 0.1 * 2**trial)
                else:
                    return
        finally:
            with self._lock:
                self._helpers.discard(threading.current_thread())
            self._farm.expect(-1)

    def _watch(self) -> None:
        while not self._ended.wait(LOOK):
            with self._lock:
                busy = {link.worker.pid: link for link in self._places if link.pending and link.worker is not None}
            stopped = self._stopped_of(busy) if busy else []
            self._stopped = {link: self._stopped.get(link, now()) for link in stopped}
            for link, since in self._stopped.items():
                if now() - since >= PATIENCE and link.end is not None:
                    _LOG.warning("%s was stopped for %g s, and is killed: others do its tasks", link.label, PATIENCE)
                    with suppress(RmpiError):
                        link.end()

    def _stopped_of(self, busy: dict[int, Link]) -> list[Link]:
        try:
            places = self._node.status().places
        except RmpiError:  # the node is lost, or about to be
            return []
        return [busy[place.pid] for place in places if place.stopped is not None and place.pid in busy]

    def retire(self) -> None:
        """Those that are lost from now on are not replaced."""
        with self._lock:
            self._ended.set()

    def end(self, deadline: Deadline) -> None:
        """They have retired, and their channels were closed, so they end; those that do not in time are killed."""
        for place in self._all():
            try:
                place.wait(deadline.left_or_none())
            except (DeadlineExceeded, RmpiError):
                _end(place)
        self._wait_for_helpers()

    def kill(self) -> None:
        """End them at once."""
        self.retire()
        for place in self._all():
            with suppress(RmpiError):
                place.kill()
        for place in self._all():
            _end(place)
        self._wait_for_helpers()

    def _wait_for_helpers(self) -> None:
        """A worker that was being started in place of another is ended by whoever has started it."""
        with self._lock:
            helpers = [*self._helpers]
        for helper in helpers:
            if helper is not threading.current_thread():
                helper.join()

    def _all(self) -> list[Place]:
        with self._lock:
            return [place for place, _, _ in self._places.values()]


def _end(place: Place) -> None:
    with suppress(RmpiError):  # the node is lost, and so is the place
        place.kill()
        place.wait()
