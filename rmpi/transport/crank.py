"""The crank that every blocking call turns: progress, leading and following, sleeping and waking.

No thread sits between the sockets and the user, because handing over between threads under the GIL costs
more than a message. A blocking call turns the crank until its own operation is done: run what was posted,
serve the descriptors that are ready, look briefly again (*spin*), then sleep in one epoll over everything.

**Several threads.** One *leads*; the others sleep on a lock of their own until their operation is done or
the leader leaves, which wakes one of them to lead. Whoever is woken to lead and has no more reason to wakes the
next: while anybody waits, somebody leads or is about to. The state lock is held for every change and never
while asleep. `post` is the way in for other threads: it appends and, if the leader sleeps, rings; so does
an operation of the leader's that another thread brings to its end.

**Shared memory** tells nobody of its news: its lanes are looked at in every turn, and armed before every sleep, so that
a byte in a socket wakes who sleeps. Spinning over them is one call without the GIL, which gives the processor away
between two looks where ranks outnumber cores. A lane over a socket is looked at in the same places, for what has been
read ahead, of which no descriptor tells; for the rest its socket does.

**No wake-up is lost.** A leader sets `_asleep` and then looks at the posted work once more; a poster appends
and then looks at `_asleep`. Under the GIL both see one order of these four steps, so at least one of them
sees the other. Lanes are armed in the same place, and `ring.h` argues the same of them. Readiness of descriptors is
level-triggered and waits in the epoll.

**An event loop** (asyncio) that waits for an operation sleeps in a selector of its own, which looks at our epoll as at
any other descriptor (`attend`). While one does, everybody who leaves the crank arms it as if going to sleep, so that
whatever happens makes the epoll readable; the loop then calls `progress`.

**Signals** that raise are held back while state changes (`interrupts`), and run while a thread sleeps.

**Closing** while a thread leads leaves the descriptors to it: closing an epoll does not wake who sleeps in it.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any

from rmpi.deadline import Deadline, now
from rmpi.errors import ChannelClosed, UsageError
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.operation import Operation

if TYPE_CHECKING:
    from rmpi.transport._ring import Lane

SPIN = 0.001
"""Seconds to look again before going to sleep, where every rank has a core of its own."""

SPIN_SLICE = 50_000
"""Nanoseconds of looking at shared memory alone, before sockets and other threads have their turn."""

LONGEST_SLEEP = 3600.0
"""Seconds; whoever waits longer goes to sleep again. epoll counts milliseconds in an int."""

Ready = Callable[[int], None]
"""Called with the epoll mask of a descriptor that is ready, the lock held."""


class Crank:
    """The progress loop of one endpoint.

    Attributes:
        leads: Some thread turns it, and may be asleep.
        lock: Held for every change of the endpoint's state.
        spin: Seconds to look again before sleeping.
        crowded: Ranks outnumber cores: it spins over shared memory alone, and gives way to others meanwhile.
        why_closed: What those are told who want something when it is closed.
        after: Called without the lock after a turn, if `attention` is set: for what must not hold it.
    """

    def __init__(self, spin: float = 0.0, after: Callable[[], None] = lambda: None, *, crowded: bool = False) -> None:
        self.lock = threading.Lock()
        self.closed = False
        self.attention = False
        self._after = after
        self.spin = spin
        self.crowded = crowded
        self._lanes: list[Lane] = []
        self._spinning: list[Lane] = []  # those of them that are shared memory
        self._stirred: dict[Lane, Callable[[], None]] = {}
        self._lane_at: dict[int, Lane] = {}  # by the descriptor that tells of it
        self._patience = spin  # of who dozes: seconds to look before sleeping
        self._rings: Any = None  # the extension, once there is a lane
        self.leads = False
        self._followers: list[threading.Lock] = []
        self._posted: deque[Callable[[], None]] = deque()
        self._leader = 0
        self._attending: set[object] = set()
        self._busy: set[int] = set()  # threads that run what must not wait
        self.why_closed = "this endpoint is closed"
        self._asleep = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}
        self.register(self._bell, lambda _mask: self._hush())

    def fileno(self) -> int:
        """The epoll that tells of everything but lanes over shared memory that are not armed."""
        return self._epoll.fileno()

    def register(self, fd: int, ready: Ready) -> None:
        """Call ``ready`` from within a turn whenever ``fd`` is readable."""
        self._ready[fd] = ready
        self._epoll.register(fd, select.EPOLLIN)

    def unregister(self, fd: int) -> None:
        self._lane_at.pop(fd, None)
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def watch(self, lane: Lane, stirred: Callable[[], None]) -> None:
        """Call ``stirred`` from within a turn whenever ``lane`` can move."""
        from rmpi.transport import _ring  # whoever has a lane has the extension

        self._rings = _ring
        self._stirred[lane] = stirred
        self._lane_at[lane.fd] = lane
        self._lanes.append(lane)
        if not lane.socket:
            self._spinning.append(lane)

    def unwatch(self, lane: Lane) -> None:
        if self._lane_at.get(lane.fd) is lane:
            del self._lane_at[lane.fd]
        self._stirred.pop(lane, None)
        self._lanes = list(self._stirred)
        self._spinning = [lane for lane in self._lanes if not lane.socket]

    def want_room(self, fd: int, wanted: bool) -> None:
        """Whether ``ready`` shall also be called when ``fd`` takes more output."""
        if fd in self._ready:
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def post(self, work: Callable[[], None]) -> None:
        """Have ``work`` done in the next turn, the lock held. From any thread."""
        self._posted.append(work)
        self._rouse()

    def turn(self) -> None:
        """Do what was posted and serve what is ready, without waiting. The lock is held."""
        while self._posted:
            self._posted.popleft()()
        if self._lanes:
            for lane in self._rings.stirring(self._lanes):
                if lane in self._stirred:
                    self._stirred[lane]()
        self._serve(self._epoll.poll(0))

    def _serve(self, events: list[tuple[int, int]], *, ports: bool = False) -> None:
        """Have descriptors served that are ready. A lane's bell is only silenced, because lanes are looked at anyway.

        Args:
            ports: What has come over lanes is left to them, over sockets too.
        """
        for fd, mask in events:
            lane = self._lane_at.get(fd)
            if mask == select.EPOLLIN and lane is not None and (ports or not lane.socket) and lane.hush():
                continue
            ready = self._ready.get(fd)
            if ready is not None:
                ready(mask)

    def is_at_rest(self, known: Set[int]) -> bool:
        """Whether nothing is left to be done, and no descriptor but these is registered. The lock is held."""
        return not (self.attention or self._posted) and self._ready.keys() <= known | {self._bell}

    def progress(self) -> None:
        """One turn, unless another thread leads."""
        with self.lock:
            if self.leads or self.closed:
                return
            self._asleep = False
            self.turn()
        while self.attention:
            self._after()
        self.arm()

    def attend(self, loop: object) -> int:
        """An event loop will call `progress` whenever the descriptor that is returned is readable, until `neglect`.

        The descriptor is the loop's own, to close after `neglect`: `close` does not take it away from under it.
        """
        with self.lock:
            self._check_open(None)
            fd = os.dup(self._epoll.fileno())
            self._attending.add(loop)
        self.arm()
        return fd

    def neglect(self, loop: object) -> None:
        self._attending.discard(loop)

    def arm(self) -> None:
        """Where event loops attend and nobody leads: whatever happens from now on makes the epoll readable.

        For whoever has moved something, or begun what waits for something to move. The lock is not held.
        """
        if self._attending:
            with self.lock:
                if not (self.leads or self.closed) and not self._may_sleep():
                    os.eventfd_write(self._bell, 1)

    def call_back(self, function: Callable[[], None]) -> None:
        """Call what must not wait for messages: in this thread, `wait` refuses to meanwhile."""
        thread = threading.get_ident()
        if thread in self._busy:  # a call back made progress, and so this is one within it
            function()
            return
        self._busy.add(thread)
        try:
            function()
        finally:
            self._busy.discard(thread)

    def remind(self) -> None:
        """`attention` was set by whoever may not be in a turn: somebody shall have one. From any thread."""
        self.attention = True
        self._rouse()

    def wait(self, operation: Operation, deadline: Deadline) -> bool:
        """Lead, or let the leader work, until the operation is done (True) or time is up (False)."""
        while True:
            with self.lock:
                if operation.done or self.closed:
                    self._appoint()  # perhaps it was this thread that was woken to lead
                    self._check_open(operation)
                    return True
                if self._busy or self._leader:
                    self._check_may_wait()
                follower = self._follow(operation) if self.leads else None
                if follower is None:
                    self._lead_on()
            if follower is None:
                try:
                    done = self._lead(operation, deadline)
                finally:
                    self._hand_over()
                if self.attention:  # others may wait for what goes on now, and the next call may be long in coming
                    self._after()
                return done
            try:
                self._sleep(deadline, follower.acquire, True)
            except BaseException:
                self._unfollow(operation, follower, leaves=True)
                raise
            late = deadline.passed()
            self._unfollow(operation, follower, leaves=late)
            if late:
                return operation.done

    def doze(self, operation: Operation, deadline: Deadline) -> None:
        """Look, then sleep, until something happens; what has come over lanes is left to a port, which is tried next.

        To be woken, and to receive by a port, takes a third of a turn. Returns at once if the operation is done, if
        there is something else to do, or if another thread leads.
        """
        with self.lock:
            self._check_open(operation)
            if self._busy or self._leader:
                self._check_may_wait()
            if operation.done or self.leads or self.attention or self._posted:
                return
            self._lead_on()
            operation.wake = self._rouse
        try:
            began = now()
            if not self._lanes_stir(operation, began + self._patience):
                self._slumber(operation, deadline)
            paid = now() - began < self.spin  # if not now, then by looking for longer the next time
            self._patience = self.spin if paid else self._patience / 2
        finally:
            self._hand_over()

    def _lanes_stir(self, operation: Operation, until: float) -> bool:
        """Look at shared memory, and now and then at everything else. False: nothing happened."""
        while self._spinning and not (self._posted or operation.done):
            left = int((until - now()) * 1e9)
            if left <= 0:
                return False
            if self._rings.spin(self._spinning, min(left, SPIN_SLICE), self.crowded):
                return True
            events = self._epoll.poll(0)
            if events:
                with self.lock:
                    self._serve(events, ports=True)
                return True
        return False

    def _slumber(self, operation: Operation, deadline: Deadline) -> None:
        """Sleep once, and serve what is no lane's."""
        events: list[tuple[int, int]] = []
        with self.lock:
            self._asleep = self._may_sleep() and not operation.done
        if self._asleep:
            try:
                events = self._sleep(deadline, self._epoll.poll)
            finally:
                self._asleep = False
        with self.lock:
            if not self.closed:
                if len(self._spinning) < len(self._lanes):
                    self._rings.stirring(self._lanes)  # those over sockets are awake again
                self._serve(events, ports=True)

    def _lead(self, operation: Operation, deadline: Deadline) -> bool:
        operation.wake = self._rouse
        until = self._spin_until()
        while True:
            with self.lock:
                if not self.closed:
                    self.turn()
                self._check_open(operation)
                if operation.done:
                    return True
                if deadline.passed():
                    return False
                spins = until and now() < until
                self._asleep = not spins and self._may_sleep()
            if self.attention:
                self._after()
            elif self._asleep:
                self._sleep_in_epoll(deadline)
                until = self._spin_until()
            elif self._spinning:
                self._rings.spin(self._spinning, SPIN_SLICE, self.crowded)

    def _spin_until(self) -> float:
        return now() + self.spin if self.spin and (self._spinning or not self.crowded) else 0.0

    def _may_sleep(self) -> bool:
        """Whether nothing is to be done; lanes are armed then. `_asleep` must be set before this is asked."""
        self._asleep = True
        return not (self.attention or self._posted or (self._lanes and self._rings.arm_all(self._lanes)))

    def _sleep_in_epoll(self, deadline: Deadline) -> None:
        try:
            self._sleep(deadline, self._epoll.poll)
        finally:
            self._asleep = False

    def _sleep(self, deadline: Deadline, function: Callable[..., Any], *args: object) -> Any:
        """Until something happens; a safe point for signals. The time left is the last argument."""
        return SHIELD.sleep(function, *args, min(deadline.left(), LONGEST_SLEEP))

    def _lead_on(self) -> None:
        self.leads = True
        self._leader = threading.get_ident()

    def _check_may_wait(self) -> None:
        thread = threading.get_ident()
        if thread == self._leader or thread in self._busy:
            raise UsageError(
                "an operator, callback or signal handler must not wait for messages: it runs within a call that does"
            )

    def _follow(self, operation: Operation) -> threading.Lock:
        follower = threading.Lock()
        follower.acquire()
        self._followers.append(follower)
        operation.wake = lambda: _release(follower)
        return follower

    def _unfollow(self, operation: Operation, follower: threading.Lock, *, leaves: bool) -> None:
        with self.lock:
            operation.wake = None
            self._followers.remove(follower)
            if leaves:
                self._appoint()

    def _hand_over(self) -> None:
        with self.lock:
            self.leads = False
            self._leader = 0
            if self.closed:
                self._free()
            self._appoint()
        self.arm()

    def _appoint(self) -> None:
        """If nobody leads, wake the first follower, which then leads or appoints the next. The lock is held."""
        if self._followers and not self.leads:
            _release(self._followers[0])

    def _rouse(self) -> None:
        """Wake the leader if it sleeps."""
        if self._asleep:
            os.eventfd_write(self._bell, 1)

    def _hush(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            pass

    def nap(self, seconds: float) -> None:
        """One turn, then sleep until something happens, at most ``seconds``."""
        deadline = Deadline(now() + seconds)
        with self.lock:
            self._check_open(None)
            leads = not self.leads
            if leads:
                self._lead_on()
        if not leads:
            self.wait(Operation(), deadline)
            return
        try:
            with self.lock:
                self.turn()
                self._asleep = self._may_sleep()
            if self._asleep:
                self._sleep_in_epoll(deadline)
        finally:
            self._hand_over()

    def disown(self) -> None:
        """`close` in a forked child, with a lock of its own; whoever leads does not exist here."""
        self.lock = threading.Lock()
        self.leads = self._asleep = False
        self.why_closed = "this process was forked from a rank; only the rank itself may communicate"
        self.close()

    def close(self) -> None:
        """Nothing can be waited for any more: who waits gets `ChannelClosed`. The lock is held."""
        self.closed = True
        self._ready.clear()
        self._stirred.clear()
        self._lanes.clear()
        self._spinning.clear()
        if self.leads:
            self._rouse()
        else:
            self._free()
            self._appoint()

    def _free(self) -> None:
        self._asleep = False  # nobody shall ring any more
        self._epoll.close()
        os.close(self._bell)

    def _check_open(self, operation: Operation | None) -> None:
        if self.closed and not (operation is not None and operation.done):
            raise self.closed_error()

    def closed_error(self) -> ChannelClosed:
        """Why nothing can be communicated any more."""
        return ChannelClosed(self.why_closed)


def _release(follower: threading.Lock) -> None:
    """Wake a follower, once; the crank's lock is held, so nobody else does at this moment."""
    if follower.locked():
        follower.release()
