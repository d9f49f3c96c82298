"""The endpoint: one per place. What any thread of the place may call, and no signal can tear apart.

The caller makes progress: every blocking call turns the `Crank`, and any call moves everybody's messages. What
moves is owned by four parts, which are driven *within progress*, the lock held, and never wait:

    Ends                 what cannot come any more, and who has to be told
    Incoming, Outgoing   the protocol between two endpoints, the receiver's half and the sender's
    Peers                the other endpoints, and the links to them

A part calls those below it. The one way up is that of frames and of links that end: `Peers.listen`.

What this module adds is the lock, the shield against signal handlers, and the waiting.

**Nothing is lost.** A blocking call that is left by an exception, a time-out or Ctrl-C *abandons* its
operation: a message that was matched goes back to the head of its queue, an offer that was not granted is
withdrawn, and a payload already on its way goes on in the background, from or into memory of our own.
A send that an exception leaves has therefore sent its message whole or not at all, and which of the two the
caller cannot always know: the last moment at which a signal handler may raise is after the message has left.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerLost, RmpiError
from rmpi.transport.base import Link, Transfer
from rmpi.transport.crank import Crank
from rmpi.transport.ends import Ends
from rmpi.transport.eventloop import EventLoops
from rmpi.transport.flights import Flights
from rmpi.transport.incoming import Incoming
from rmpi.transport.interrupts import SHIELD
from rmpi.transport.matching import ANY, Arrival, Probe, Receive
from rmpi.transport.memory import MemoryLink
from rmpi.transport.operation import Operation, Patience, Series, Together
from rmpi.transport.outgoing import Outgoing
from rmpi.transport.peers import Connect, Peers, fresh
from rmpi.transport.shortcut import Shortcut, Shortcuts
from rmpi.transport.stays import Stays
from rmpi.wire.codec import Array, Encoded, encode_value
from rmpi.wire.frames import Frame

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

SETTLE_STEP = 0.01
"""Seconds between two looks at whether TCP has acknowledged everything; only while leaving."""

PATIENCE = 0.25
"""Seconds after which the peers of a collective may have to hear that it takes long."""

FREED, CLOSED = ChannelClosed("this communicator was freed"), ChannelClosed("this channel was closed")
"""What users of a context that is gone are told; copies of it (`fresh`)."""

Mismatched = Callable[[Arrival, int], None]
"""Called, without the lock, when a frame of a collective disagrees with what was called here."""


class Endpoint:
    """The traffic of one place.

    Methods that say *within progress* are called with the lock held: by what `Crank.post` runs or by a
    descriptor's callback. All others may be called by any thread of the place.

    Attributes:
        stays: The waits without a limit that take long, for whoever sets `Stays.observer`.

    Args:
        ident: This endpoint's number in the job.
        connect: Asks for a link to a peer; see `Connect`.
        spin: Seconds to look before sleeping; 0 where ranks are threads.
        crowded: Ranks outnumber cores; see `Crank`.
        unmatched_limit: Bytes of granted messages that nobody has asked for yet, `FRAME_COST` for each included.
        mismatched: Told of frames that disagree with the collective called here; see `Mismatched`.
        name_of: What to call an endpoint in messages to the user.
    """

    def __init__(
        self,
        ident: int,
        connect: Connect,
        *,
        spin: float = 0.0,
        crowded: bool = False,
        unmatched_limit: int = 1 << 30,
        mismatched: Mismatched | None = None,
        name_of: Callable[[int], str] = "endpoint {:#x}".format,
    ) -> None:
        self.ident = ident
        self.name_of = name_of
        self.crank = Crank(spin, self._run_deferred, crowded=crowded)
        self.mismatched = mismatched
        self._conflicts: list[tuple[Arrival, int]] = []
        self._loops = EventLoops(self.crank, self.progress)
        self._routed: Counter[int] = Counter()  # routes by context,
        self._unrouted: deque[int] = deque()  # those that were closed still among them
        self._continuations: deque[Callable[[], None]] = deque()
        self._peers = Peers(ident, name_of, self.crank, connect)
        self._incoming = Incoming(ident, self._peers, unmatched_limit, self._note_conflict)
        self._outgoing = Outgoing(ident, self._peers)
        self._ends = Ends(ident, name_of, self._peers, self._incoming, self._outgoing)
        self._flights = Flights(ident, self._peers, self._incoming, self.crank)
        self._shortcuts = Shortcuts(self._ends.broken, self.crank, self._flights)
        self.stays = Stays(self.crank, self._peers, self._incoming.matching)
        handlers = {**self._incoming.handlers(), **self._outgoing.handlers(), **self._ends.handlers()}
        self._peers.listen(self._incoming, handlers, self._ends, self._shortcuts)

    def suit(self, spin: float, crowded: bool, unmatched_limit: int) -> None:
        """Be as if made with these; before there is any link. Ports that are there already stay as they are."""
        with self._exclusively():
            self.crank.spin, self.crank.crowded = spin, crowded
            self._incoming.unmatched_limit = unmatched_limit
            self._shortcuts.begin_anew()

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """With the lock held and handlers deferred: for what is not called for every message."""
        shielded = SHIELD.enter()
        try:
            with self.crank.lock:
                yield
        finally:
            self.crank.arm()
            if shielded:
                SHIELD.leave()

    # ------------------------------------------------------------------------------------ contexts

    def open_context(self, context: int, members: Sequence[int], *, collective: bool) -> Shortcut:
        """Make a context known. In a collective one, the death of any member ends whatever waits.

        Returns:
            The short cut for small messages in it, which knows the members by their place in ``members``.
        """
        with self._exclusively():
            known = self._ends.open_context(context, frozenset(members), collective)
            return self._shortcuts.open(context, tuple(members), known)

    def close_context(self, context: int, short: Shortcut) -> None:
        """Forget a context: who waits in it, or uses it later, gets `ChannelClosed`; what comes in it is dropped."""
        self._close(context, short, FREED)

    def _close(self, context: int, short: Shortcut, why: ChannelClosed) -> None:
        with self._exclusively():
            self._close_now(context, short, why)

    def _close_now(self, context: int, short: Shortcut, why: ChannelClosed) -> None:
        if not self.crank.closed and context in self._incoming.matching.contexts:
            self._ends.close_context(context, why)
        self._shortcuts.close(short)

    def open_box(self, context: int) -> Shortcut:
        """Receive here what anybody sends in this context, whoever comes and goes. What has come already is kept.

        Returns:
            The short cut for receiving: what it calls a rank is the number of an endpoint.
        """
        with self._exclusively():
            if self.crank.closed:
                raise self.crank.closed_error()
            return self._shortcuts.open_box(context, self._ends.open_context(context, frozenset(), False))

    def close_box(self, context: int, short: Shortcut) -> None:
        """`close_context`, of a box."""
        self._close(context, short, CLOSED)

    def discard_box(self, context: int, short: Shortcut) -> None:
        """`close_box`, as soon as somebody makes progress. Takes no lock: for finalizers, which run anywhere."""
        self.crank.post(partial(self._close_now, context, short, CLOSED))

    def open_route(self, context: int, peer: int) -> Shortcut:
        """Send to a box of ``peer`` from now on; whether there is one is not asked.

        Returns:
            The short cut for sending, by the number of that endpoint.
        """
        with self._exclusively():
            if self.crank.closed:
                raise self.crank.closed_error()
            self._count_routes()
            self._routed[context] += 1
            return self._shortcuts.open_route(context)

    def close_route(self, context: int, peer: int, short: Shortcut) -> None:
        """Send there no more; what was sent still arrives. Takes no lock: finalizers may call it."""
        self._unrouted.append(context)

    def _count_routes(self) -> None:
        while self._unrouted:
            context = self._unrouted.popleft()
            self._routed[context] -= 1
            if self._routed[context] <= 0:
                del self._routed[context]

    def begin_call(self, context: int, sequence: int, fingerprint: int) -> None:
        """Note which collective is called here as number ``sequence``, and compare with what has come.

        Usually nothing has, and the lock is not needed to know: the call is noted first, so whoever parses a frame
        from now on compares that with it; and whoever did so before has finished, and would have left an arrival, or
        holds the lock at this moment. Under the GIL these steps have one order.
        """
        known, crank = self._incoming.matching.contexts.get(context), self.crank
        if known is not None:
            known.remember_call(sequence, fingerprint)
        if known is None or known.arrivals or self._ends.broken or crank.closed or crank.lock.locked():
            self._begin_call(context, sequence, fingerprint)

    def _begin_call(self, context: int, sequence: int, fingerprint: int) -> None:
        shielded = SHIELD.enter()
        try:
            with self.crank.lock:
                self._check_open(context)
                self._incoming.begin_call(context, sequence, fingerprint)
            if self.crank.attention:
                self._run_deferred()
        finally:
            if shielded:
                SHIELD.leave()

    def break_contexts(self, contexts: Iterable[int], error: RmpiError) -> None:
        """End what waits in these contexts; they cannot be used any more. Within progress."""
        self._ends.break_contexts(contexts, error)

    def break_all(self, error: RmpiError) -> None:
        """`break_contexts` of all that are known here. Within progress."""
        self._ends.break_contexts(list(self._incoming.matching.contexts), error)

    def give_up(self, context: int, error: RmpiError) -> None:
        """`break_contexts` of one context, from any thread and at once."""
        with self._exclusively():
            if not self.crank.closed:
                self._ends.break_contexts([context], error)

    def _note_conflict(self, arrival: Arrival, called: int) -> None:
        self._conflicts.append((arrival, called))
        self.crank.attention = True

    def go_on(self, continuation: Callable[[], None]) -> None:
        """Have what must not hold the lock done after this turn, by whoever makes progress. Within progress."""
        self._continuations.append(continuation)
        self.crank.remind()

    def when_done(self, operations: Sequence[Operation], continuation: Callable[[], None]) -> bool:
        """Whether all are done, or one has failed; if not so, ``continuation`` is called when it is (`go_on`)."""
        with self._exclusively():
            together = Together(operations)
            if not together.done:
                together.watch(partial(self.go_on, continuation))
            return together.done

    def end(self, operation: Operation, error: BaseException | None = None) -> None:
        """Finish an operation that is none of the endpoint's own."""
        with self._exclusively():
            operation.finish(error)

    def hear(self, operation: Operation, ended: Callable[[], None]) -> None:
        """Call ``ended`` when the operation ends, within progress; at once if it has."""
        with self._exclusively():
            operation.watch(ended)

    def attend(self, loop: AbstractEventLoop, operation: Operation, ended: Callable[[], None]) -> None:
        """Have ``loop``, which is running, make progress until ``ended`` was called and `neglect` is.

        Raises:
            ChannelClosed: Nobody makes progress any more.
        """
        self._loops.attend(loop, ended)
        self.hear(operation, ended)

    def neglect(self, loop: AbstractEventLoop, operation: Operation, ended: Callable[[], None]) -> None:
        """End what `attend` began, in the loop's thread; in any, once the loop is closed. Takes no lock."""
        operation.unwatch(ended)
        self._loops.neglect(loop, ended)

    def call_back(self, function: Callable[[], None]) -> None:
        """Call what must not wait for messages, with handlers deferred."""
        shielded = SHIELD.enter()
        try:
            self.crank.call_back(function)
        finally:
            if shielded:
                SHIELD.leave()

    def _run_deferred(self) -> None:
        """Do what must not hold the lock."""
        with self.crank.lock:
            conflicts, self._conflicts = self._conflicts, []
            self.crank.attention = False
        if self.mismatched is not None:
            for arrival, called in conflicts:
                self.mismatched(arrival, called)
        self.crank.call_back(self._continue)

    def _continue(self) -> None:
        while self._continuations:
            try:
                continuation = self._continuations.popleft()
            except IndexError:  # another thread was quicker
                return
            continuation()

    def _check_open(self, context: int) -> None:
        if self.crank.closed:
            raise self.crank.closed_error()
        if context in self._ends.broken:
            raise fresh(self._ends.broken[context])
        if context not in self._incoming.matching.contexts:
            raise fresh(self._incoming.matching.why_closed(context) or FREED)

    def _check_routed(self, context: int) -> None:
        """Whether something may be sent in a context: there is a route, or it is our own."""
        self._count_routes()
        if self.crank.closed or context not in self._routed:
            self._check_open(context)

    # ------------------------------------------------------------------------------------ messages

    def send(
        self,
        destination: int,
        context: int,
        tag: int,
        value: object,
        *,
        fingerprint: int = 0,
        deadline: Deadline = Deadline.NEVER,
    ) -> None:
        """Send ``value``; when this returns the caller may change it.

        Raises:
            PeerLost: The destination is gone.
            DeadlineExceeded: Time ran out; the text says whether the message was withdrawn or goes on.
            UsageError: The value cannot be pickled.
        """
        shielded = SHIELD.enter()
        try:
            transfer = self._start_send(destination, context, tag, value, fingerprint)
            if not transfer.done or transfer.error is not None:
                self.wait((transfer,), deadline)
        finally:
            if shielded:
                SHIELD.leave()

    def receive(
        self,
        context: int,
        source: int,
        tag: int,
        *,
        out: Array | None = None,
        members: frozenset[int] = frozenset(),
        deadline: Deadline = Deadline.NEVER,
    ) -> Receive:
        """The next message that fits; its value is ``Receive.take()``.

        Call it with handlers deferred (`SHIELD`), if it must not be lost between here and its taking.

        Args:
            members: Who may send it, where ``source`` is `ANY`: if all of them end, so does this call.

        Raises:
            PeerLost, DeadlineExceeded, UsageError (``out`` does not fit): a message that had come, or was
            on its way, is the first in its queue again.
        """
        shielded = SHIELD.enter()
        try:
            receive = self.start_receive(context, source, tag, out=out, members=members)
            self.wait((receive,), deadline)
        except BaseException:
            if shielded:
                SHIELD.leave()
            raise
        if shielded:
            SHIELD.leave(self.abandon, (receive,))
        return receive

    def start_send(self, destination: int, context: int, tag: int, value: object, *, fingerprint: int = 0) -> Transfer:
        """Begin to send; ``value`` must not change before the transfer is done."""
        shielded = SHIELD.enter()
        try:
            transfer = self._start_send(destination, context, tag, value, fingerprint)
        except BaseException:
            if shielded:
                SHIELD.leave()
            raise
        if shielded:
            SHIELD.leave(self.abandon, (transfer,))
        return transfer

    def _start_send(self, destination: int, context: int, tag: int, value: object, fingerprint: int) -> Transfer:
        encoded = encode_value(value)  # what a handler raised in here would be taken for an error of pickling
        transfer = Transfer(
            self.ident,
            destination,
            context,
            tag,
            fingerprint,
            encoded.metadata,
            encoded.segments,
            encoded.nbytes,
        )
        with self.crank.lock:
            self._check_routed(context)
            self._outgoing.begin(transfer)
        self.crank.arm()
        return transfer

    def start_receive(
        self,
        context: int,
        source: int,
        tag: int,
        *,
        out: Array | None = None,
        members: frozenset[int] = frozenset(),
        strict: bool = True,
    ) -> Receive:
        """Begin to receive; see `receive`. If not ``strict``, ``out`` is only an offer."""
        receive = Receive(context, source, tag, out, members, strict)
        shielded = SHIELD.enter()
        try:
            with self.crank.lock:
                self._check_open(receive.context)
                self._incoming.post(receive)
            self.crank.arm()
        except BaseException:
            if shielded:
                SHIELD.leave()
            raise
        if shielded:
            SHIELD.leave(self.abandon, (receive,))
        return receive

    def wait(
        self,
        operations: Sequence[Operation],
        deadline: Deadline = Deadline.NEVER,
        patience: Patience | None = None,
    ) -> None:
        """Make progress until all are done. If this raises, all of them were abandoned.

        Args:
            patience: Lost at most once; then the wait goes on.

        Raises:
            DeadlineExceeded: Time ran out; the text says what became of the first unfinished one.
            Exception: The first error of any of them, or what a signal handler raised.
        """
        shielded = SHIELD.enter()
        try:
            late = self._wait(operations, deadline, patience)
        except BaseException:
            self._leave_off(operations, shielded)
            raise
        if late is not None:
            self._leave_off(operations, shielded)
            raise DeadlineExceeded(_timed_out(late))
        if shielded:
            SHIELD.leave(self.abandon, operations)

    def watch(
        self, operations: Sequence[Operation], deadline: Deadline = Deadline.NEVER, *, first: bool = False
    ) -> bool:
        """Make progress until all are done or one has failed; with ``first``, until any is done. None is abandoned.

        Returns:
            Whether that is so; False: time ran out.
        """
        shielded = SHIELD.enter()
        try:
            with self.crank.lock:
                together = Together(operations, first=first)
            try:
                if not together.done:
                    self._fly([operation for operation in operations if not operation.done])
                return self._watch(together, operations, deadline)
            finally:
                together.let_go()
        finally:
            if shielded:
                SHIELD.leave()

    def series(self, operations: Iterable[Operation]) -> Series:
        """To hear of each of them as it ends; the last step is `Series.let_go`."""
        with self._exclusively():
            return Series(operations)

    def watch_next(self, series: Series, deadline: Deadline) -> bool:
        """Make progress until one more has ended. False: time ran out."""
        shielded = SHIELD.enter()
        try:
            with self.crank.lock:
                series.expect()
            return bool(series.ended) or self._watch(series.next, series.operations, deadline)
        finally:
            if shielded:
                SHIELD.leave()

    def _watch(self, operation: Operation, parts: Sequence[Operation], deadline: Deadline) -> bool:
        """Wait for what stands for ``parts``; when the first of them has lost its patience, all have."""
        limits = [part.patience[0].at for part in parts if part.patience is not None and not part.done]
        if limits:

            def lost() -> None:
                for part in parts:
                    part.lose_patience()

            self._be_patient(operation, deadline, (Deadline(min(limits)), lost))
        return self._sleep(operation, parts, deadline)

    def _wait(self, operations: Sequence[Operation], deadline: Deadline, patience: Patience | None) -> Operation | None:
        """Wait for all, or for the first that fails; one that is not done, if time ran out."""
        pending = [operation for operation in operations if not operation.done]
        if pending:
            self._fly(pending)
            operation = pending[0] if len(operations) == 1 else self._together(operations)
            if patience is not None:
                self._be_patient(operation, deadline, patience)
            if not self._sleep(operation, pending, deadline):
                return next((operation for operation in pending if not operation.done), pending[0])
        for operation in operations:
            if operation.error is not None:
                raise fresh(operation.error)
        return None

    def _sleep(self, whole: Operation, parts: Sequence[Operation], deadline: Deadline) -> bool:
        """Wait for an operation that is made of these; whoever waits without a limit may find out that all do."""
        if deadline is Deadline.NEVER and self.stays.observer is not None:
            return self.stays.wait(whole, parts)
        return self.crank.wait(whole, deadline)

    def _fly(self, pending: Sequence[Operation]) -> None:
        with self.crank.lock:
            if not self.crank.leads and not self.crank.closed:
                self._flights.take(pending)

    def _together(self, operations: Sequence[Operation]) -> Operation:
        with self.crank.lock:
            return Together(operations)

    def _be_patient(self, operation: Operation, deadline: Deadline, patience: Patience) -> None:
        """Wait until patience is lost, at most; then let somebody hear of it."""
        limit, lost = patience
        if not self.crank.wait(operation, Deadline(min(limit.at, deadline.at))) and limit.passed():
            lost()

    def _leave_off(self, operations: Sequence[Operation], shielded: bool) -> None:
        try:
            self.abandon(operations)
        finally:
            if shielded:
                SHIELD.leave()

    def abandon(self, operations: Iterable[Operation]) -> None:
        """Undo operations whose caller gives up: no message is lost, no half of an exchange left behind."""
        with self._exclusively():
            for operation in operations:
                if operation.error is not None:
                    continue
                if isinstance(operation, Receive):
                    self._incoming.abandon(operation)
                elif isinstance(operation, Transfer) and not operation.done:
                    self._outgoing.abandon(operation)
                    if not operation.granted:
                        operation.finish(DeadlineExceeded("this send was withdrawn"))

    def start_probe(self, context: int, source: int, tag: int, members: frozenset[int] = frozenset()) -> Probe:
        """Begin to look for a message that a receive would get; when done, `Probe.arrival` is it, and stays in line."""
        probe = Probe(context, source, tag, None, members)
        shielded = SHIELD.enter()
        try:
            with self._exclusively():
                self._check_open(context)
                self._incoming.probe(probe)
        except BaseException:
            if shielded:
                SHIELD.leave()
            raise
        if shielded:
            SHIELD.leave(self.abandon, (probe,))
        return probe

    def queued(self, context: int, source: int = ANY) -> int:
        """How many messages have come, as far as is known without looking, and wait for a receive. From anywhere."""
        return self._incoming.matching.queued(context, source)

    def cancel(self, receive: Receive, error: RmpiError) -> bool:
        """End a receive to which no message was matched yet; False: one was."""
        with self._exclusively():
            cancelled = not receive.done and self._incoming.matching.cancel(receive)
            if cancelled:
                receive.finish(error)
            return cancelled

    def put_back(self, context: int, source: int, tag: int, fingerprint: int, value: Encoded, *, eager: bool) -> None:
        """A message that came by the short cut is the next in line again: who asked for it never got it."""
        with self._exclusively():
            if not self.crank.closed:
                self._incoming.put_back(Arrival(source, context, tag, fingerprint), value, eager)

    def doze(
        self,
        context: int,
        source: int,
        tag: int,
        *,
        members: frozenset[int] = frozenset(),
        deadline: Deadline = Deadline.NEVER,
    ) -> None:
        """Sleep until a message that fits may have come, or time is up. Then try the port again, and next the long way.

        For whoever found nothing by the short cut: where most messages come by that, he is woken in a fraction of the
        time that `receive` takes. It may end early, and never says what happened; so it is done once, not in a loop.

        Args, errors: As for `receive`, but for `PeerLost` and `DeadlineExceeded`.
        """
        if deadline is Deadline.NEVER and self.stays.observer is not None:
            return  # `receive` tells it
        probe = Probe(context, source, tag, None, members)  # that nothing comes, or ends, unnoticed
        shielded = SHIELD.enter()
        try:
            with self.crank.lock:
                self._check_open(context)
                may_doze = self._incoming.may_doze(probe)
            if may_doze:
                try:
                    self.crank.doze(probe, deadline)
                finally:
                    with self.crank.lock:
                        self._incoming.matching.cancel(probe)
        finally:
            if shielded:
                SHIELD.leave()

    def progress(self) -> None:
        """Move whatever can move now, without waiting."""
        shielded = SHIELD.enter()
        try:
            self.crank.progress()
        finally:
            if shielded:
                SHIELD.leave()

    # ------------------------------------------------------------------------------------ links

    def add_link(self, link: Link) -> None:
        """Use a link from now on. Within progress."""
        self._peers.add_link(link)
        self._ends.link_added(link)

    def link_failed(self, ident: int, error: PeerLost) -> None:
        """No link to that peer can be made: everything that needs it fails. Within progress."""
        self._ends.end_peer(ident, error)

    def peer_ended(self, ident: int, error: PeerLost) -> None:
        """The router says that a peer is gone: `PeerExited` if it had finished, else it failed.

        What it had sent is still delivered first. Of this endpoint itself it means that nobody can reach it any more:
        what waits for itself among others is ended, too. Within progress.
        """
        self._ends.peer_ended(ident, error)

    def drain(self, ident: int) -> None:
        """Take all that has come from a peer, before news of which it matters what has not. Within progress."""
        self._peers.drain(self._peers.peer(ident))

    def forget(self, ident: int, *, at_once: bool = False) -> None:
        """Nobody will name that peer again: once it has ended, all that is known of it is given back.

        That is when it has ended (`peer_ended`) and its links have, too: all it had sent has come then, and can still
        be received. For a while it is remembered that it has ended, in case somebody names it all the same. Within
        progress.

        Args:
            at_once: It has ended, and the end of its links is not waited for: its machine is lost, and none will come.
        """
        self._ends.forget(ident, at_once)

    def notify(self, link: MemoryLink) -> None:
        """A memory link has something to receive, or room. From any thread."""
        self._peers.notify(link)

    def lend(self, frame: Frame) -> list[memoryview]:
        """Memory for a payload that has come over a link (`Sink`). Within progress."""
        return self._incoming.lend(frame)

    @property
    def linked(self) -> int:
        """About how many peers there are."""
        return len(self._peers.known)

    def end_of(self, ident: int) -> PeerLost | None:
        """How that peer has ended; None: as far as this endpoint has heard, it is there."""
        with self.crank.lock:
            return self._peers.peer(ident).ended

    def peers(self) -> list[int]:
        """Those it has had to do with, connected or not, and itself not among them. Within progress."""
        return [ident for ident in self._peers.known if ident != self.ident]

    def media(self) -> dict[int, str]:
        """The medium by which each connected peer is reached."""
        with self._exclusively():
            return {i: peer.link.medium for i, peer in self._peers.known.items() if peer.link is not None}

    # -------------------------------------------------------------------------------------- the end

    def finish(self, deadline: Deadline = Deadline.NEVER) -> bool:
        """Leave properly: everything sent is out and every peer is told. False: time ran out first."""
        shielded = SHIELD.enter()
        try:
            with self.crank.lock:
                self._ends.leave()
            while not self._settled():
                self.crank.nap(min(deadline.left(), SETTLE_STEP))
                if deadline.passed():
                    return self._settled()
            return True
        finally:
            if shielded:
                SHIELD.leave()

    def flush(self, deadline: Deadline = Deadline.NEVER) -> bool:
        """Everything that was sent so far is out. False: time ran out first."""
        shielded = SHIELD.enter()
        try:
            with self.crank.lock:
                unsettled = self._ends.unsettled()
            while unsettled and not deadline.passed():
                self.crank.nap(min(deadline.left(), SETTLE_STEP))
                with self.crank.lock:
                    unsettled &= self._ends.unsettled()
            return not unsettled
        finally:
            if shielded:
                SHIELD.leave()

    def _settled(self) -> bool:
        with self.crank.lock:
            return self._ends.settled()

    def close(self) -> None:
        """Drop everything at once. Operations that wait raise `ChannelClosed`."""
        with self._exclusively():
            if self.crank.closed:
                return
            error = self.crank.closed_error()
            self._incoming.fail_all(error)
            self._outgoing.fail_all(error)
            self._peers.close()
            self._shortcuts.clear()
            self.crank.close()
        self.call_back(self._continue)

    def disown(self) -> None:
        """In a forked child: close its copies of the descriptors. The parent's links go on.

        Nothing is unregistered, because an epoll is shared with the parent, and no lock is taken, because
        a thread that does not exist here may hold it.
        """
        if not self.crank.closed:
            self.crank.disown()
            self._peers.close()
        self._shortcuts.clear()

    def __repr__(self) -> str:
        return f"<Endpoint {self.ident:#x}: {len(self._peers.known)} peers, {self._incoming.unmatched} bytes unmatched>"


def _timed_out(operation: Operation) -> str:
    if not isinstance(operation, Transfer):
        return "timeout passed and no message came; nothing is lost"
    if operation.granted:
        return "timeout passed while the message was on its way; it goes on in the background"
    return "timeout passed before the receiver took the message; it was withdrawn"
