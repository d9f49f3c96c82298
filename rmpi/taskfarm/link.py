"""The connection to one worker: what was sent there already, and what is on its way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rmpi.errors import ChannelClosed, PeerLost, RmpiError, UsageError
from rmpi.taskfarm.remembering import Remembered
from rmpi.taskfarm.working import ABANDON, BYE, DROP, HELLO, HUSH, SAY, TASKS

if TYPE_CHECKING:
    from rmpi.places.channel import Channel
    from rmpi.taskfarm.handles import Handle
    from rmpi.taskfarm.packing import Buffers, Packed
    from rmpi.taskfarm.tasks import Assignment
    from rmpi.taskfarm.workers import Worker


class Link:
    """One worker, by the channel to it.

    Sending never waits: a worker that is busy, or stopped, takes what was sent when it can, and the others shall not
    wait for it. So no more is sent than it may have ahead.

    Attributes:
        number: By which it says who it is.
        channel: Where it gets tasks.
        worker: The worker; None until it has said that it is ready.
        pending: What it was given and has not answered, by number.
        label: What to call it until it has said what it is.
        late: What it has, and nobody waits for any more because it took too long.
        end: Ends it at once, if it is ours to end.
        gone: Whether the worker was lost.
        left: It has said good-bye.
    """

    def __init__(self, number: int, channel: Channel, label: str, end: Callable[[], None] | None) -> None:
        self.number = number
        self.channel = channel
        self.label = label
        self.end = end
        self.left = False
        self.worker: Worker | None = None
        self.pending: dict[int, Assignment] = {}
        self.late: dict[int, Assignment] = {}
        self.gone = False
        self._functions: Remembered[None] = Remembered()
        self._values: set[int] = set()
        self._sending = threading.Lock()

    def greet(self, address: Channel, path: tuple[str, ...], initializer: bytes | None) -> None:
        """Introduce the master, who hears answers at ``address``."""
        self._post((HELLO, self.number, address, path, initializer))

    def send(self, jobs: Iterable[Assignment]) -> list[tuple[Assignment, Exception]]:
        """Send tasks.

        Returns:
            Those that cannot be sent, because their arguments cannot be pickled.
        """
        unfit: list[tuple[Assignment, Exception]] = []
        functions: dict[bytes, bytes] = {}
        values: dict[int, tuple[bytes, Buffers | None]] = {}
        tasks: list[tuple[Any, ...]] = []
        with self._sending:
            for job in jobs:
                try:
                    packed = job.pack()
                except Exception as error:
                    unfit.append((job, error))
                    continue
                if packed.handles:
                    values.update({each.number: each.packed[:2] for each in packed.handles if not self._has(each)})
                key = job.function.key
                if key not in self._functions and key not in functions:
                    self._functions.add(key, None, len(job.function.data))
                    functions[key] = job.function.data
                tasks.append((job.number, job.way, key, packed.data, packed.buffers))
            self._values.update(values)
            if tasks:
                self._post((TASKS, functions, values, tasks))
        return unfit

    def _has(self, handle: Handle[Any]) -> bool:
        return handle.number in self._values

    def drop(self, number: int) -> None:
        """No task will need that value again."""
        if number in self._values:
            self._values.discard(number)
            self._post((DROP, [number]))

    def say(self, number: int, value: Packed, timeout: float | None) -> None:
        """Say something in the dialogue of a task."""
        self.channel.put((SAY, number, value.data, value.buffers), timeout)

    def hush(self, number: int) -> None:
        """Our side of a dialogue has ended."""
        self._post((HUSH, number))

    def abandon(self, number: int) -> None:
        """A task takes too long: end the worker, if it is still at it."""
        if self.end is not None:
            with suppress(RmpiError):  # its node is lost, and so is the worker
                self.end()
        else:
            self._post((ABANDON, number))

    def part(self) -> None:
        """Say good-bye."""
        self._post((BYE,))

    def _post(self, message: tuple[Any, ...]) -> None:
        try:
            self.channel.post(message)
        except (PeerLost, ChannelClosed, UsageError):  # whoever waits for its answers hears of that
            pass
