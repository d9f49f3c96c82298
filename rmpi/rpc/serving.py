"""The loop that runs in the place of a server: a message comes, its method is called, its answer goes.

One thing at a time: a method runs from its beginning to its end, or a generator from one ``yield`` to the next, and
nothing else meanwhile. Messages of one client are taken in the order in which it sent them. While a generator may
produce (its client has room), messages and items take turns, so nobody starves.

Nothing that a client sends ends the server: what a method raises is the caller's, a message that makes no sense is
logged. `SystemExit` and `KeyboardInterrupt` are no answers: they end the place.

**Cancelling.** Messages are begun in the order of their coming, so a server that took them one by one would find a
cancellation behind what it cancels, done. Before it begins what may be cancelled, it therefore takes what has come
meanwhile into a backlog, `LOOK_AHEAD` messages at most; the rest stays with its senders, who wait for credit. Looking
costs more than a short call, so it is done once in `LOOK_EVERY`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rmpi.deadline import now
from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerExited, PeerLost, UsageError
from rmpi.places.reporter import shortened, traceback_text
from rmpi.rpc.messages import (
    CANCEL,
    CAST,
    FETCH,
    LIMITED,
    MORE,
    NUMBERED,
    STOP,
    STREAM,
    WINDOW,
    Announced,
    Ended,
    Probe,
    Raised,
    Refused,
    Skipped,
    is_heavy,
    numbers_of,
)

if TYPE_CHECKING:
    from rmpi.places.channel import Mailbox, Message, Outlet

LOOK_AHEAD = 1000
"""Messages taken before their turn, to find cancellations among them; beyond, one may come too late."""

LOOK_EVERY = 0.001
"""Seconds for which what was seen then is good enough; a cancellation that comes within them may come too late."""

PATIENCE = 10.0
"""Seconds that an answer waits for a client that does not take it, while everybody else waits; then it is dropped."""

PROBE_AFTER = 30.0
"""Seconds without a message after which clients that have taken no item for long are looked after."""

Args = tuple[Any, ...]
KwArgs = dict[str, Any]

Key = tuple[object, int]
"""Whose call: a reply box, and a number in it."""


class Outflow:
    """A generator whose items go to one client.

    Attributes:
        room: Items that the client still takes.
        held: The heavy item that was announced and not fetched yet, alone in a tuple.
    """

    __slots__ = ("held", "items", "name", "reply", "room")

    def __init__(self, name: str, items: Iterator[Any], reply: Outlet) -> None:
        self.name = name
        self.items = items
        self.reply = reply
        self.room = WINDOW
        self.held: tuple[Any, ...] = ()


class Service:
    """A server object and what its clients want of it.

    Args:
        mailbox: Where messages come, each with the channel for its answer.
        methods: What clients may call, by name.
        kind: The name of the server's class, for errors.
        log: Where goes what concerns no caller.
    """

    def __init__(
        self, mailbox: Mailbox, methods: dict[str, Callable[..., Any]], kind: str, log: logging.Logger
    ) -> None:
        self._mailbox = mailbox
        self._methods = methods
        self._kind = kind
        self._log = log
        self._stopped = False
        self._backlog: deque[Message] = deque()
        self._cancellable: set[Key] = set()  # what is in the backlog, as far as it can be cancelled
        self._cancelled: set[Key] = set()  # and was
        self._looked = -LOOK_EVERY  # when
        self._flows: dict[object, Outflow] = {}
        self._ready: deque[Outflow] = deque()  # those that have room and hold nothing
        self._handlers: dict[object, Callable[..., None]] = {
            LIMITED: self._on_limited,
            NUMBERED: self._on_numbered,
            CAST: self._on_cast,
            STREAM: self._on_stream,
            MORE: self._on_more,
            FETCH: self._on_fetch,
            CANCEL: self._on_cancel,
            STOP: self._on_stop,
        }

    def run(self) -> None:
        """Serve until a client stops the server, or the mailbox or whoever spawned the place has ended."""
        try:
            while not self._stopped:
                message = self._next()
                if message is not None:
                    self._take(message)
                if self._ready:
                    self._produce(self._ready.popleft())
        except (ChannelClosed, PeerExited):  # the mailbox was closed, or whoever spawned us closed the channel
            pass
        finally:
            for flow in list(self._flows.values()):
                self._end(flow)

    def _next(self) -> Message | None:
        """The next message; None if there is none and items may be sent meanwhile."""
        if self._backlog:
            return self._backlog.popleft()
        if self._ready and not self._has_come():
            return None
        if not self._flows:
            return self._receive(None)
        try:
            return self._receive(PROBE_AFTER)
        except DeadlineExceeded:
            self._probe()
            return None

    def _receive(self, timeout: float | None) -> Message | None:
        """The next message that comes; None if it was none: then its sender was told."""
        try:
            return self._mailbox.receive(timeout)
        except Exception as error:
            reply = getattr(error, "reply", None)
            if reply is None:
                raise
            # What it holds cannot be imported here, or cannot be made here.
            self._log.warning("%s: a call from %s cannot be unpickled", self._kind, reply.label, exc_info=True)
            self._answer(reply, failure(error))
            return None

    def _has_come(self) -> bool:
        """Whether there is a message. (`Channel.poll` also tells of errors, at five times the price.)"""
        return self._mailbox.statistics().queued > 0

    def _take(self, message: Message) -> None:
        value, reply = message
        try:
            first = value[0] if type(value) is tuple else None
            if type(first) is str:
                self._answer(reply, self._result(*value))
            else:
                self._handlers[first](reply, *value[1:])
        except (TypeError, LookupError):
            self._log.warning("%s: what %s sent is no call, and was dropped", self._kind, reply, exc_info=True)

    # --------------------------------------------------------------------------------------- calls

    def _result(self, name: str, args: Args, kwargs: KwArgs | None = None) -> Any:
        """What a method returns, or the answer that says why it does not."""
        method = self._methods.get(name)
        if method is None:
            return Refused("AttributeError", f"{self._kind!r} object has no attribute {name!r}")
        try:
            return method(*args, **kwargs) if kwargs else method(*args)
        except Exception as error:
            return failure(error)

    def _answer(self, reply: Outlet, answer: Any, number: int | None = None) -> bool:
        """Send an answer. False: it did not get there, because the client is gone or does not take it."""
        try:
            reply.put(answer if number is None else (number, answer), PATIENCE)
        except (PeerLost, ChannelClosed):
            return False
        except DeadlineExceeded:
            self._log.warning("%s: %s did not take an answer within %g s; it was dropped", self._kind, reply, PATIENCE)
            return False
        except UsageError as error:  # it cannot be pickled
            self._answer(reply, Refused("UsageError", f"{self._kind} has no answer that can be sent: {error}"), number)
            return False
        return True

    def _on_limited(self, reply: Outlet, name: str, args: Args, kwargs: KwArgs) -> None:
        if self._is_wanted((reply.address, 0)):
            self._answer(reply, self._result(name, args, kwargs))

    def _on_numbered(self, reply: Outlet, name: str, args: Args, kwargs: KwArgs, number: int) -> None:
        wanted = self._is_wanted((reply.address, number))
        self._answer(reply, self._result(name, args, kwargs) if wanted else Skipped(), number)

    def _on_cast(self, _reply: Outlet, name: str, args: Args, kwargs: KwArgs) -> None:
        answer = self._result(name, args, kwargs)
        if type(answer) is Raised:
            self._log.error("%s.%s, which was cast, raised:\n%s", self._kind, name, answer.traceback.rstrip())
        elif type(answer) is Refused:
            self._log.error("%s.%s was cast in vain: %s: %s", self._kind, name, answer.kind, answer.text)

    def _on_stop(self, reply: Outlet) -> None:
        self._stopped = True
        self._answer(reply, None)

    # ---------------------------------------------------------------------------------- cancelling

    def _is_wanted(self, key: Key) -> bool:
        """Whether nothing that has come so far cancels the call that is about to begin."""
        if now() - self._looked >= LOOK_EVERY:
            self._cancellable.add(key)
            self._look_ahead()
        self._cancellable.discard(key)
        if key not in self._cancelled:
            return True
        self._cancelled.discard(key)
        return False

    def _look_ahead(self) -> None:
        while len(self._backlog) < LOOK_AHEAD and self._has_come():
            message = self._receive(None)
            if message is not None:
                self._look_at(message)
                if is_heavy(message.value):
                    break
        self._looked = now()

    def _look_at(self, message: Message) -> None:
        """A message has come before its turn."""
        value, address = message.value, message.reply.address
        number, cancelled = numbers_of(value)
        if number is not None:
            self._cancellable.add((address, number))
        elif cancelled is not None and (address, cancelled) in self._cancellable:
            self._cancelled.add((address, cancelled))
            return
        self._backlog.append(message)

    def _on_cancel(self, reply: Outlet, _number: int) -> None:
        """What it cancels was begun; a stream can still be ended."""
        flow = self._flows.get(reply.address)
        if flow is not None:
            self._end(flow)

    # ------------------------------------------------------------------------------------- streams

    def _on_stream(self, reply: Outlet, name: str, args: Args, kwargs: KwArgs) -> None:
        if not self._is_wanted((reply.address, 0)):
            return
        items = self._result(name, args, kwargs)
        if type(items) not in (Raised, Refused):
            try:
                items = iter(items)
            except TypeError as error:  # here the method is no generator
                items = Refused("TypeError", str(error))
        if type(items) in (Raised, Refused):
            self._answer(reply, items)
            return
        self._probe()
        flow = Outflow(name, items, reply)
        self._flows[reply.address] = flow
        self._ready.append(flow)

    def _produce(self, flow: Outflow) -> None:
        """The next item of a stream that has room."""
        if self._flows.get(flow.reply.address) is not flow:
            return  # it was cancelled
        try:
            item = next(flow.items)
        except StopIteration:
            self._forget(flow, Ended())
        except Exception as error:
            self._forget(flow, failure(error))
        else:
            if is_heavy(item):
                flow.held = (item,)
                item = Announced()
            self._send_item(flow, item)

    def _send_item(self, flow: Outflow, item: Any) -> None:
        if not self._answer(flow.reply, item):
            self._end(flow)
            return
        if not flow.held:
            flow.room -= 1
            if flow.room:
                self._ready.append(flow)

    def _on_more(self, reply: Outlet, count: int) -> None:
        flow = self._flows.get(reply.address)
        if flow is None:
            return  # its last item is under way
        rested = not flow.room
        flow.room += count
        if rested and not flow.held:
            self._ready.append(flow)

    def _on_fetch(self, reply: Outlet) -> None:
        flow = self._flows.get(reply.address)
        if flow is not None and flow.held:
            item, flow.held = flow.held[0], ()
            self._send_item(flow, item)

    def _probe(self) -> None:
        """Close the streams whose clients are gone; one that is not sent anything would not be noticed otherwise."""
        for flow in list(self._flows.values()):
            if (flow.held or not flow.room) and not self._answer(flow.reply, Probe()):
                self._end(flow)

    def _forget(self, flow: Outflow, last: Any) -> None:
        """Its generator has ended by itself."""
        del self._flows[flow.reply.address]
        self._answer(flow.reply, last)

    def _end(self, flow: Outflow) -> None:
        """Nobody wants more of it: close the generator, if it is one."""
        del self._flows[flow.reply.address]
        close = getattr(flow.items, "close", None)
        try:
            if close is not None:
                close()
        except Exception:
            self._log.exception("%s.%s raised when its stream was closed", self._kind, flow.name)


def failure(error: Exception) -> Raised | Refused:
    """The answer for what a method raised, in the function that called it and now calls this."""
    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
    if trace is None and isinstance(error, TypeError):  # it was not entered: its arguments did not fit
        return Refused("TypeError", str(error))
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return Raised(name, _text_of(error), shortened(traceback_text(error, trace)))


def _text_of(error: Exception) -> str:
    try:
        return shortened(str(error))
    except Exception:
        return "<str() of the exception failed>"
