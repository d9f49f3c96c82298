"""The engine of a master: tasks in, answers out, and what happens when a worker is lost.

    user's threads      submit: pack, schedule, send to a worker that has room
    "rmpi task farm"    hears answers (`Reception`): schedule and send first, so that workers go on; then settle futures
    helpers             start workers in place of lost ones; one for each dialogue

One lock is held while the `Scheduler` decides, and never while something is sent, packed, or told to users. Messages to
one worker leave in the order in which they were decided as far as it matters: a function before the task that needs it
(`Link`).
"""

from __future__ import annotations

import heapq
import itertools
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmpi.deadline import Deadline, now
from rmpi.errors import DeadlineExceeded, UsageError
from rmpi.places.parcels import pack_value
from rmpi.taskfarm.errors import BrokenFarm, WorkerLost
from rmpi.taskfarm.handles import Handle
from rmpi.taskfarm.link import Link
from rmpi.taskfarm.packing import Packed
from rmpi.taskfarm.reception import Reception
from rmpi.taskfarm.scheduler import Entry, Scheduler
from rmpi.taskfarm.talking import Talk
from rmpi.taskfarm.tasks import Assignment, opened_failure
from rmpi.taskfarm.workers import Worker
from rmpi.taskfarm.working import BACK, BYE, DONE, READY, SAY, UNFIT
from rmpi.transport.interrupts import SHIELD

if TYPE_CHECKING:
    from rmpi.places.channel import Channel
    from rmpi.taskfarm.mapping import Mapping
    from rmpi.taskfarm.packing import Buffers

_LOG = logging.getLogger("rmpi.taskfarm")

SILENCE = 5.0
"""Seconds that tasks wait without any worker before that is said."""


LINGER = 0.001
"""Seconds to wait for more tasks where they come faster than they are worth a message."""


class Farm:
    """Workers and tasks.

    Attributes:
        on_lost: Called with each link whose worker was lost, in some thread: perhaps there is to be another.
    """

    def __init__(
        self, initializer: Callable[..., object] | None = None, initargs: Iterable[Any] = (), label: str = "the farm"
    ) -> None:
        """Without workers yet.

        Args:
            initializer, initargs: What each worker calls first.

        Raises:
            UsageError: The initializer cannot be called, or not be sent.
        """
        if initializer is not None and not callable(initializer):
            raise UsageError(f"the initializer must be something that can be called, not {initializer!r}")
        packed = None if initializer is None else pack_value((initializer, tuple(initargs)), "the initializer")
        self._initializer = packed
        self.label = label
        self.on_lost: Callable[[Link], None] = lambda _link: None
        self._lock = threading.Lock()
        self._scheduler = Scheduler()
        self._changed = threading.Condition(self._lock)  # workers came or went, or had nothing to do; tasks ended
        self._numbers = itertools.count(1)
        self._receptions: dict[int, Reception] = {}  # by system
        self._links: dict[Link, None] = {}
        self._link_of: dict[Worker, Link] = {}
        self._expected = 0  # workers that are being started, or may come
        self._broken: BrokenFarm | None = None
        self._closed = False
        self._settling = 0  # tasks that were answered, and whose futures are being told
        self._forgotten: deque[int] = deque()  # numbers of handles that nobody holds any more
        self._unwanted: deque[Mapping] = deque()  # still to be withdrawn
        self._alarms: list[tuple[float, int, Link]] = []
        self._lonely: threading.Timer | None = None  # while tasks wait without a worker

    # ------------------------------------------------------------------------------------ workers

    def greet(self, channel: Channel, label: str, end: Callable[[], None] | None = None) -> Link:
        """A worker is at the other end of that channel; it takes part when it has answered.

        Args:
            end: Ends it at once, if it is ours to end.
        """
        link = Link(next(self._numbers), channel, label, end)
        with self._lock:
            if self._closed:
                raise UsageError(f"{self.label} was closed")
            self._links[link] = None
            system = channel.member.system
            if system not in self._receptions or self._receptions[system].over:
                self._receptions[system] = Reception(self, channel.member)
        reception = self._reception_of(link)
        reception.add(link)
        link.greet(reception.address, tuple(str(Path(entry).absolute()) for entry in sys.path), self._initializer)
        return link

    def _reception_of(self, link: Link) -> Reception:
        return self._receptions[link.channel.member.system]

    def expect(self, change: int) -> None:
        """So many workers more, or less, are about to come."""
        with self._lock:
            self._expected += change
        if change < 0:
            self._check_hope()

    @property
    def workers(self) -> list[Worker]:
        """Those that are there."""
        with self._lock:
            return [link.worker for link in self._links if link.worker is not None]

    @property
    def greeted(self) -> int:
        """How many there are, or will be when they have answered."""
        with self._lock:
            return len(self._links)

    def wait_for_workers(self, count: int, timeout: float | None) -> bool:
        """Wait until there are so many. False: time ran out, or there never will be."""

        def there() -> bool:
            return self._broken is not None or self._closed or sum(1 for each in self._links if each.worker) >= count

        with self._changed:
            self._changed.wait_for(there, timeout)
            return sum(1 for each in self._links if each.worker) >= count

    def lease(self, wait: bool, timeout: float | None) -> Worker | None:
        """A worker that has nothing to do, for whoever asks alone; None: there is none in time."""
        found: list[Any] = []

        def leased() -> bool:
            self._check_open()
            hand = self._scheduler.lease()
            if hand is not None:
                found.append(hand)
            return hand is not None

        with self._changed:
            if wait:
                self._changed.wait_for(leased, timeout)
            else:
                leased()
        return found[0] if found else None

    def release(self, worker: Worker) -> None:
        """It takes part again."""
        with self._changed:
            if worker.leased and worker.alive:
                self._scheduler.release(worker)
                self._changed.notify_all()
            plans = self._plan()
        self._send(plans)

    # ------------------------------------------------------------------------------------ tasks

    def next_number(self) -> int:
        """A number for a task."""
        return next(self._numbers)

    def add(self, job: Assignment | Mapping, worker: Worker | None = None) -> None:
        """Have it done, by that worker or any.

        Raises:
            UsageError: The farm is closed.
            BrokenFarm: There will be no workers.
            WorkerLost: That worker is gone.
        """
        shielded = SHIELD.enter()  # Ctrl-C must not come between what was decided and what is sent
        try:
            with self._lock:
                self._check_open()
                if worker is None:
                    self._scheduler.add(job)
                else:
                    if worker not in self._link_of:
                        raise WorkerLost(f"{worker.label} is not there any more, and takes no tasks")
                    assert not job.divisible
                    self._scheduler.add_for(worker, job)
                plans = self._plan() if self._scheduler.wants_plan else []
                lonely = not self._link_of
            self._send(plans)
        finally:
            if shielded:
                SHIELD.leave()
        if lonely:
            self._check_hope()
            self._say_so_later()

    def withdraw(self, job: Mapping) -> None:
        """What no worker has of it is not wanted any more.

        From any thread, and also from a finalizer, which may run while this thread holds the lock.
        """
        self._unwanted.append(job)
        if self._lock.acquire(blocking=False):
            try:
                self._drop_unwanted()
            finally:
                self._lock.release()
        else:
            for reception in [*self._receptions.values()]:
                reception.wake_later()

    def _drop_unwanted(self) -> None:
        """The lock is held."""
        while self._unwanted:
            self._scheduler.withdraw(self._unwanted.popleft())
        self._changed.notify_all()

    def scatter(self, value: Any) -> Handle[Any]:
        """A handle for that value."""
        return Handle(value, self._forgotten)

    def _drop_forgotten(self) -> None:
        while self._forgotten:
            number = self._forgotten.popleft()
            for link in self._all_links():
                link.drop(number)

    def wait_until_done(self, deadline: Deadline) -> bool:
        """Wait until every task has ended. False: time ran out.

        Raises:
            UsageError: This thread is the one that brings tasks to their end.
        """
        if self.is_heard_here:
            raise UsageError(f"{self.label} cannot be waited for in a callback of a task: use close(wait=False)")
        with self._changed:
            return self._changed.wait_for(lambda: not self._unfinished(), deadline.left_or_none())

    def clear(self) -> None:
        """Cancel what no worker was given."""
        with self._changed:
            jobs = self._scheduler.clear()
            self._changed.notify_all()
        for job in jobs:
            job.cancel()

    def close(self) -> None:
        """No more tasks, and no more workers. What is unfinished fails."""
        with self._changed:
            self._closed = True
            self._lonely_no_more()
            links = [*self._links]
            receptions = [*self._receptions.values()]
            jobs = [*self._scheduler.clear(), *self._take_pending()]
            for worker in self._link_of:
                worker.alive = False
            self._links.clear()
            self._link_of.clear()
            self._changed.notify_all()
        for link in links:
            link.part()
        for reception in receptions:
            reception.close()
        for link in links:
            link.channel.close()
        for job in jobs:
            _fail(job, BrokenFarm(f"{self.label} was closed before this task was done"))

    def _take_pending(self) -> list[Assignment]:
        """What workers have; whoever has taken a task from there brings it to its end. The lock is held."""
        jobs = [job for link in self._links for job in link.pending.values()]
        for link in self._links:
            link.pending = {}
        return jobs

    @property
    def is_heard_here(self) -> bool:
        """Whether this thread is one that hears workers."""
        return any(reception.is_here for reception in [*self._receptions.values()])

    def _all_links(self) -> list[Link]:
        with self._lock:
            return [*self._links]

    def _unfinished(self) -> bool:
        if self._unwanted:
            self._drop_unwanted()
        return self._scheduler.waiting > 0 or self._settling > 0 or any(link.pending for link in self._links)

    def _check_open(self) -> None:
        if self._broken is not None:
            raise BrokenFarm(str(self._broken)) from self._broken.__cause__
        if self._closed:
            raise UsageError(f"{self.label} was closed, and takes no more tasks")

    # ------------------------------------------------------------------------------------ giving out

    def _plan(self) -> list[tuple[Link, list[Assignment]]]:
        """Decide who gets what. The lock is held; `_send` follows, without it."""
        if self._unwanted:
            self._drop_unwanted()
        plans: list[tuple[Link, list[Assignment]]] = []
        while self._plan_some(plans):
            pass
        return plans

    def _plan_some(self, plans: list[tuple[Link, list[Assignment]]]) -> bool:
        """Whether there may be more to be given: a worker was to have only what is not wanted any more."""
        again = False
        for hand, jobs in self._scheduler.plan():
            assert isinstance(hand, Worker)
            link = self._link_of[hand]
            given: list[Assignment] = []
            for job in jobs:
                assert isinstance(job, Assignment)
                if not job.begin(hand):
                    self._scheduler.discard(hand, job)
                    continue
                link.pending[job.number] = job
                given.append(job)
                if job.options.timeout is not None:
                    self._set_alarm(link, job, job.options.timeout)
            if given:
                plans.append((link, given))
            else:
                again = True
        return again

    def _set_alarm(self, link: Link, job: Assignment, seconds: float) -> None:
        job.due = now() + seconds
        heapq.heappush(self._alarms, (job.due, job.number, link))
        if len(self._alarms) > 100 + 4 * len(self._links):  # mostly of what was done in time
            self._alarms = [alarm for alarm in self._alarms if alarm[1] in alarm[2].pending]
            heapq.heapify(self._alarms)

    def _send(self, plans: list[tuple[Link, list[Assignment]]]) -> None:
        while plans:
            unfit = []
            for link, jobs in plans:
                unfit += [(link, job, error) for job, error in link.send(jobs)]
                if jobs[0].alone:
                    self._follow_up(link, jobs[0])
            plans = self._without(unfit) if unfit else []

    def _follow_up(self, link: Link, job: Assignment) -> None:
        if isinstance(job, Talk):
            job.sent(link)
        if job.due != float("inf"):
            self._reception_of(link).wake()

    def _without(self, unfit: list[tuple[Link, Assignment, Exception]]) -> list[tuple[Link, list[Assignment]]]:
        """These cannot be sent: have others done instead."""
        failed = []
        with self._lock:
            for link, job, error in unfit:
                if link.pending.pop(job.number, None) is not None and link.worker is not None:
                    self._scheduler.discard(link.worker, job)
                    failed.append((job, error))
        for job, error in failed:
            _fail(job, error)
        with self._changed:
            self._changed.notify_all()
            return self._plan()

    # ------------------------------------------------------------------------------------ what is heard

    def heard(self, link: Link, message: tuple[Any, ...]) -> None:
        """As a `Listener`."""
        kind = message[0]
        if kind == DONE:
            self._answered(link, message[2])
        elif kind == BACK:
            self._returned(link, message[2])
        elif kind == SAY:
            job = link.pending.get(message[2])
            if job is not None:
                job.said(Packed(message[3], message[4]))
        elif kind == READY:
            self._ready(link, *message[2:])
        elif kind == UNFIT:
            self._unfit(link, message[2])
        elif kind == BYE:
            link.left = True
            self._reception_of(link).remove(link)
            self.lost(link, WorkerLost(f"{link.label} has left"))

    def _ready(self, link: Link, host: str, pid: int) -> None:
        with self._changed:
            if link not in self._links:
                return
            worker = link.worker = Worker(self, link.label, host, pid)
            self._link_of[worker] = link
            self._lonely_no_more()
            self._scheduler.joined(worker)
            plans = self._plan()
            self._changed.notify_all()
        self._send(plans)

    def _unfit(self, link: Link, failure: bytes) -> None:
        error = BrokenFarm(f"the initializer failed in {link.label}")
        error.__cause__ = opened_failure(failure)
        self.fail_all(error)

    def _answered(self, link: Link, answers: list[tuple[int, bool, bytes, Any, float]]) -> None:
        settled = []
        worker = link.worker
        assert worker is not None
        with self._lock:
            answered = self._scheduler.answered
            pending = link.pending
            for number, well, data, buffers, seconds in answers:
                job = pending.pop(number, None)
                if job is not None:
                    answered(worker, job, seconds)
                    worker.done += job.size
                    settled.append((job, well, data, buffers))
                elif number in link.late:
                    answered(worker, link.late.pop(number), seconds)
            self._settling += len(settled)
            lingers = self._scheduler.lingering = self._scheduler.lingers
            plans = [] if lingers else self._plan()
        self._send(plans)
        for job, well, data, buffers in settled:
            if well:
                _succeed(job, data, buffers)
            else:
                _fail(job, opened_failure(data))
        if lingers:
            time.sleep(LINGER)
        with self._changed:
            self._settling -= len(settled)
            self._scheduler.lingering = False
            plans = self._plan() if lingers else []
            self._changed.notify_all()
        self._send(plans)

    def _returned(self, link: Link, numbers: list[int]) -> None:
        with self._lock:
            jobs = [job for number in numbers if (job := link.pending.pop(number, None)) is not None]
            for job in jobs:
                job.wait_again(begun=False)
            if link.worker is not None:
                self._scheduler.returned(link.worker, jobs)
            plans = self._plan()
        self._send(plans)

    def lost(self, link: Link, error: Exception) -> None:
        """As a `Listener`: its tasks are tried again, or fail."""
        with self._changed:
            if self._links.pop(link, self) is self:
                return
            link.gone = True
            failed = self._take_from(link)
            plans = self._plan()
            self._changed.notify_all()
        link.channel.close()
        self._send(plans)
        if not self._closed:
            self.on_lost(link)
        for job, bound in failed:
            _fail(job, _why_lost(link, error, bound))
        if not self._closed:
            self._check_hope()

    def _take_from(self, link: Link) -> list[tuple[Assignment, bool]]:
        """What a lost worker had: what may be tried again waits again, the rest is returned. The lock is held."""
        pending, link.pending = link.pending, {}
        worker = link.worker
        if worker is None:
            return []
        worker.alive = worker.leased = False
        del self._link_of[worker]
        _, bound = self._scheduler.lost(worker)
        failed = []
        again = []
        for job in pending.values():
            job.wait_again(begun=not link.left)
            if job.retries_left() and job.options.worker is None:
                again.append(job)
            else:
                failed.append((job, False))
        self._scheduler.put_back(again)
        return [*failed, *((job, True) for job in bound if isinstance(job, Assignment))]

    # ------------------------------------------------------------------------------------ time, and the end of hope

    def tick(self) -> float | None:
        """As a `Listener`: tasks that take too long, and tasks for which nobody is there."""
        self._drop_forgotten()
        late = []
        with self._lock:
            if self._unwanted:
                self._drop_unwanted()
            moment = now()
            while self._alarms and self._alarms[0][0] <= moment:
                due, number, link = heapq.heappop(self._alarms)
                job = link.pending.get(number)
                if job is not None and job.due == due:  # else it was given back, and given to that worker again
                    link.late[number] = link.pending.pop(number)
                    late.append((job, link))
            left = self._alarms[0][0] - moment if self._alarms else None
        for job, link in late:
            _fail(job, DeadlineExceeded(f"the task was not done after {job.options.timeout:g} s, in {link.label}"))
            link.abandon(job.number)
        return left

    def failed(self, error: BaseException) -> None:
        """As a `Listener`."""
        self.fail_all(BrokenFarm(f"the thread that hears workers has failed: {type(error).__name__}: {error}"))

    def fail_all(self, error: BrokenFarm) -> None:
        """There will be no workers: fail what waits, and what is begun."""
        with self._changed:
            if self._broken is not None or self._closed:
                return
            self._broken = error
            jobs = [*self._scheduler.clear(), *self._take_pending()]
            self._changed.notify_all()
        for job in jobs:
            _fail(job, error)

    def _check_hope(self) -> None:
        """Where there is no worker, and none is about to come, nothing will ever be done."""
        with self._lock:
            hopeless = not self._links and self._expected <= 0 and not self._closed and self._scheduler.waiting > 0
        if hopeless:
            self.fail_all(BrokenFarm(f"{self.label} has no workers, and none is about to come"))

    def _say_so_later(self) -> None:
        """Tasks wait, and there is nobody: if that stays so, people should know."""
        with self._lock:
            if self._lonely is not None or self._broken is not None or self._closed:
                return
            self._lonely = threading.Timer(SILENCE, self._say_so)
            self._lonely.daemon = True
            self._lonely.start()

    def _say_so(self) -> None:
        with self._lock:
            self._lonely = None
            waiting = self._scheduler.waiting if not self._link_of and not self._closed else 0
        if waiting:
            _LOG.warning("%d tasks wait, and %s has no workers yet", waiting, self.label)

    def _lonely_no_more(self) -> None:
        if self._lonely is not None:
            self._lonely.cancel()
            self._lonely = None


def _succeed(job: Assignment, data: bytes, buffers: Buffers | None) -> None:
    """Callbacks of futures run in here, and may not end the thread, for which all others wait."""
    try:
        job.succeed(data, buffers)
    except (Exception, SystemExit):
        _LOG.exception("a callback of a task has failed")


def _fail(job: Entry, error: BaseException) -> None:
    """As `_succeed`."""
    try:
        job.fail(error)
    except (Exception, SystemExit):
        _LOG.exception("a callback of a task has failed")


def _why_lost(link: Link, error: Exception, bound: bool) -> WorkerLost:
    if bound:
        return WorkerLost(f"{link.label} was lost before it got this task, which was meant for it alone: {error}")
    return WorkerLost(f"{link.label} was lost while it had this task, which may have been executed: {error}")
