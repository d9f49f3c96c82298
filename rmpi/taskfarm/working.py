"""A worker: takes tasks, executes one after the other, and answers. It may have several masters.

Two threads. The main one executes tasks, as whatever users call there may insist on; when there is none, it waits for
messages itself, so that nothing is handed from thread to thread. The other one looks up when a task takes longer than
`AHEAD`: it hears what has come, sends off answers that wait for company, and gives back what was given ahead, because
others may have time for it. Whoever holds ``_reading`` takes messages.

**Answers** are sent together: when there is nothing left to do, or `GATHER` seconds after the first of them.

Messages are plain tuples that begin with one of the words below; of those for tasks there may be thousands a second.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import pickle
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerExited, PeerLost
from rmpi.places.parcels import failure, frames_below, open_value
from rmpi.taskfarm.dialogue import Dialogue, Inbox
from rmpi.taskfarm.handles import forget_values, keep_value
from rmpi.taskfarm.packing import Buffers, Packed, pack, unpack
from rmpi.taskfarm.remembering import Remembered
from rmpi.taskfarm.scheduler import AHEAD

if TYPE_CHECKING:
    from rmpi.places.channel import Channel, Message, Outlet

HELLO = "hello"
"""A master introduces itself: ``(HELLO, link, address, path, initializer)``. By which number it knows this worker, the
channel where it hears answers, where it imports from, and what to call first, as a function and arguments that were
packed together, or None. Every answer begins with its kind and that number."""

TASKS = "tasks"
"""Work: ``(TASKS, functions, values, tasks)``: functions by their keys and packed values by their numbers that are
needed for the first time; and of each task its number, how it is called, the key of its function, its packed
arguments."""

DROP = "drop"
"""``(DROP, numbers)``: values that no task will ask for again."""

ABANDON = "abandon"
"""``(ABANDON, number)``: this task takes too long. If it is being executed, the process ends."""

SAY = "say"
"""``(SAY, number, data, buffers)``, or in an answer ``(SAY, link, number, data, buffers)``: one side of that task's
dialogue says something to the other."""

HUSH = "hush"
"""``(HUSH, number)``: the master's side of that dialogue has ended."""

BYE = "bye"
"""``(BYE,)``: the master wants nothing any more. As an answer, ``(BYE, link)``: the worker leaves, and has not begun
what it has not answered."""

LEAVE = "leave"
"""``(LEAVE,)``: the worker is to end when it has done the task at hand; what it has not begun, it gives back."""

READY = "ready"
"""The answer to `HELLO`: ``(READY, link, host, pid)``."""

UNFIT = "unfit"
"""The other answer: ``(UNFIT, link, failure)``: what the initializer raised."""

DONE = "done"
"""``(DONE, link, answers)``; of each task its number, whether it went well, packed result or failure, and seconds."""

BACK = "back"
"""``(BACK, link, numbers)``: the task at hand takes long; these, if any, were not begun, and are given back."""

CALL, PIECE, TALK = 0, 1, 2
"""How a task is called: with its arguments; with each of many arguments; with a dialogue."""

GATHER = 0.001
"""Seconds for which an answer may wait for others."""

DROWSY = 0.1
"""Seconds between two looks at a task that takes long."""

LOOK = 0.5
"""Seconds that a dialogue has to be silent for a look whether its master is still there."""

FAREWELL = 1.0
"""Seconds for what an abandoned worker has still to say."""

ABANDONED = 1
"""Exit status of a worker whose task was abandoned."""

Answer = tuple[int, bool, bytes, "Buffers | None", float]
Task = tuple[int, int, bytes, bytes, "Buffers | None"]


class _Function:
    """A function that has come. It is unpacked when it is first called, where what it raises is the task's."""

    __slots__ = ("_call", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._call: Callable[..., Any] | None = None

    def get(self) -> Callable[..., Any]:
        if self._call is None:
            self._call = open_value(self._data)
            self._data = b""
        return self._call


class _Session:
    """One master: where it hears answers, its functions, and what waits to be sent there."""

    def __init__(self, link: int, address: Outlet) -> None:
        self.link = link
        self.address = address
        self.functions: Remembered[_Function] = Remembered()
        self.values: set[int] = set()  # numbers of those that were scattered
        self.talks: dict[int, Inbox] = {}  # of dialogues that have come, by the number of the task
        self.answers: deque[Answer] = deque()  # filled by the main thread, emptied by either
        self.over = False


Order = tuple[_Session, Task, _Function]


class Source(Protocol):
    """Where messages come from; a `Channel`, mostly."""

    def receive(self, timeout: float | None) -> Message:
        """The next one, and where its sender hears answers."""


class Working:
    """The loop of a worker.

    Args:
        mailbox: Where masters put what they want.
        leaves: The worker ends when the last of its masters has said good-bye.
        limit: After so many tasks it leaves.
    """

    def __init__(self, mailbox: Source, *, leaves: bool = False, limit: int | None = None) -> None:
        self._mailbox = mailbox
        self._leaves = leaves
        self._limit = limit
        self._sessions: dict[Any, _Session] = {}
        self._queue: deque[Order] = deque()
        self._newcomers: deque[tuple[Any, Outlet]] = deque()
        self._reading = threading.Lock()
        self._answering = threading.Lock()  # held while answers are taken to be sent
        self._busy = threading.Event()
        self._began = 0.0  # when the task at hand began; 0: there is none
        self._at_hand: tuple[_Session, int] | None = None  # whose it is, and its number
        self._unsent = 0.0  # since when answers wait; 0: none does
        self._left = False  # it is to end after the task at hand
        self._over = False

    def run(self) -> None:
        """Work until the mailbox is over: whoever has spawned this place has closed its channel."""
        threading.Thread(target=self._watch, name="rmpi worker's watch", daemon=True).start()
        try:
            for _ in itertools.count() if self._limit is None else range(self._limit):
                self._perform(*self._next())
            self._take_leave()
        except (ChannelClosed, PeerExited):
            pass
        finally:
            self._over = True
            self._busy.set()

    # ------------------------------------------------------------------------------------ what comes

    def _next(self) -> Order:
        queue = self._queue
        while True:
            if self._left:
                self._give_back(tell_all=False)
                self._take_leave()
                raise ChannelClosed("nobody wants anything of this worker any more")
            try:
                return queue.popleft()
            except IndexError:
                self._send_answers()
            while self._newcomers:
                self._meet(*self._newcomers.popleft())
            self._busy.clear()
            with self._reading:
                if not (queue or self._newcomers or self._left):
                    self._take(None)
            self._busy.set()

    def _take(self, timeout: float | None) -> None:
        """The next message, which may be what cannot be unpickled."""
        try:
            message, reply = self._mailbox.receive(timeout)
        except (PeerLost, ChannelClosed, DeadlineExceeded):
            raise
        except Exception:
            logging.getLogger("rmpi.taskfarm").exception("a message to this worker cannot be understood, and is gone")
            return
        self._hear(message, reply)

    def _hear(self, message: Any, reply: Outlet) -> None:
        kind = message[0]
        if kind == HELLO:
            self._newcomers.append((message, reply))  # the initializer runs in the main thread, and between tasks
            return
        if kind == LEAVE:
            self._left = True
            return
        session = self._sessions.get(reply)
        if kind == BYE:
            self._part(session)
        if session is None:
            return  # it has said good-bye, or is lost
        if kind == TASKS:
            self._accept(session, *message[1:])
        elif kind == DROP:
            session.values.difference_update(message[1])
            forget_values(message[1])
        elif kind == SAY and message[1] in session.talks:
            session.talks[message[1]].put(Packed(message[2], message[3]))
        elif kind == HUSH and message[1] in session.talks:
            session.talks[message[1]].end(PeerExited("the local side of this dialogue has ended"))
        elif kind == ABANDON and self._began and self._at_hand == (session, message[1]):
            self._send_answers()
            session.address.endpoint.flush(Deadline.after(FAREWELL))
            os._exit(ABANDONED)

    def _meet(self, hello: tuple[str, int, Outlet, Sequence[str], bytes | None], reply: Outlet) -> None:
        _, link, address, path, initializer = hello
        session = _Session(link, address)
        sys.path[:0] = [entry for entry in path if entry not in sys.path]
        try:
            if initializer is not None:
                function, args = open_value(initializer)
                function(*args)
        except BaseException as error:
            self._answer(session, (UNFIT, link, _packed_failure(error)))
            return
        self._sessions[reply] = session
        self._answer(session, (READY, link, socket.gethostname(), os.getpid()))

    def _accept(
        self,
        session: _Session,
        functions: dict[bytes, bytes],
        values: dict[int, tuple[bytes, Buffers | None]],
        tasks: list[Task],
    ) -> None:
        for number, value in values.items():
            keep_value(number, Packed(*value))
        session.values.update(values)
        session.talks.update({task[0]: Inbox() for task in tasks if task[1] == TALK})
        known = session.functions
        fresh = {key: _Function(data) for key, data in functions.items()}
        self._queue.extend([(session, task, fresh.get(task[2]) or known[task[2]]) for task in tasks])
        for key, function in fresh.items():  # at last: what is forgotten for them, these tasks may need
            known.add(key, function, len(functions[key]))

    def _part(self, session: _Session | None) -> None:
        if session is not None:
            self._end(session)
        if self._leaves and not self._sessions and not self._newcomers:
            self._left = True

    def _end(self, session: _Session) -> None:
        session.over = True
        for inbox in session.talks.values():
            inbox.end(PeerExited("the master of this dialogue has gone"))
        forget_values(session.values)
        for key in [key for key, each in self._sessions.items() if each is session]:
            del self._sessions[key]

    # ------------------------------------------------------------------------------------ what is done

    def _perform(self, session: _Session, task: Task, function: _Function) -> None:
        """Execute one task, and have its answer sent soon."""
        if session.over:
            return
        number = task[0]
        self._at_hand = session, number
        self._began = began = perf_counter()
        try:
            result, well = self._result(session, task, function), True
            packed = pack(result, "the result of the task")
            answer, raw = packed.data, packed.buffers
            del result, packed
        except BaseException as error:  # SystemExit too: it is the task that wanted to end
            answer, raw, well = _packed_failure(error), None, False
        ended = perf_counter()
        self._began = 0.0
        session.answers.append((number, well, answer, raw, ended - began))
        if not self._unsent:
            self._unsent = ended
        elif ended - self._unsent > GATHER:
            self._send_answers()

    def _result(self, session: _Session, task: Task, function: _Function) -> Any:
        number, way, _, data, buffers = task
        call = function.get()
        if way == CALL:
            args, kwargs = unpack(data, buffers)
            return call(*args, **kwargs)
        if way == PIECE:
            return _call_each(call, unpack(data, buffers))
        return self._converse(session, number, call)

    def _converse(self, session: _Session, number: int, call: Callable[..., Any]) -> Any:
        inbox = session.talks[number]

        def say(value: Packed, timeout: float | None) -> None:
            session.address.put((SAY, session.link, number, value.data, value.buffers), timeout)

        def wait(deadline: Deadline) -> None:
            with self._reading:
                if not inbox.stirred:
                    try:
                        self._take(min(deadline.left(), LOOK))
                    except DeadlineExceeded:
                        self._look_after(session)

        dialogue = Dialogue(inbox, say, wait)
        try:
            return call(dialogue, dialogue)
        finally:
            del session.talks[number]

    def _look_after(self, session: _Session) -> None:
        """A master that dies says nothing, and its dialogues would be waited for in vain."""
        try:
            session.address.check()
        except (PeerLost, ChannelClosed):
            self._end(session)

    def _send_answers(self) -> None:
        """Those of all masters. From either thread."""
        self._unsent = 0.0
        with self._answering:
            for session in list(self._sessions.values()):
                answers = [session.answers.popleft() for _ in range(len(session.answers))]
                if answers:
                    self._answer(session, (DONE, session.link, answers))

    def _take_leave(self) -> None:
        """What comes from now on is not heard."""
        self._send_answers()
        for session in list(self._sessions.values()):
            self._answer(session, (BYE, session.link))

    def _answer(self, session: _Session, message: tuple[Any, ...]) -> None:
        try:
            session.address.put(message)
        except (PeerLost, ChannelClosed):  # the master is gone
            self._end(session)

    # ------------------------------------------------------------------------------------ the watch

    def _watch(self) -> None:
        """While tasks run, look whether one takes long."""
        pause = AHEAD
        told = 0.0  # of which the masters know that it takes long: when it began
        while not self._over:
            self._busy.wait()
            time.sleep(pause)
            began = self._began
            if began and perf_counter() - began >= AHEAD:
                pause = min(DROWSY, 2 * pause) if began == told else AHEAD
                self._relieve(first=began != told)
                told = began
            else:
                pause = AHEAD

    def _relieve(self, *, first: bool) -> None:
        """The task at hand takes long: hear what has come, send what is done, and give back what is not begun."""
        try:
            if self._reading.acquire(blocking=False):
                try:
                    while True:
                        self._take(0)
                except DeadlineExceeded:
                    pass
                finally:
                    self._reading.release()
            self._send_answers()
            self._give_back(first)
        except (PeerLost, ChannelClosed):
            pass  # the main thread will hear of it

    def _give_back(self, tell_all: bool) -> None:
        """But dialogues, whose other side has begun."""
        back: dict[_Session, list[int]] = {session: [] for session in self._sessions.values()} if tell_all else {}
        for order in list(self._queue):
            session, task, _ = order
            if task[1] == TALK:
                continue
            try:
                self._queue.remove(order)
            except ValueError:  # the main thread was faster
                continue
            back.setdefault(session, []).append(task[0])
        for session, numbers in back.items():
            self._answer(session, (BACK, session.link, numbers))


def _call_each(call: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> tuple[list[Any], bytes | None]:
    """The results of all before the first that raised, and what that raised."""
    results: list[Any] = []
    try:
        for args in arguments:
            results.append(call(*args))  # noqa: PERF401
    except BaseException as error:
        return results, _packed_failure(error)
    return results, None


def _packed_failure(error: BaseException) -> bytes:
    """What a task raised, for `opened_failure`; without our own frames."""
    told = failure(error, frames_below(error, __file__))
    return pickle.dumps((told.pickled, told.text))


def work(mailbox: Channel, limit: int | None = None, key: bytes | None = None) -> None:
    """The function of a place that is a worker.

    Args:
        limit: After so many tasks it leaves.
        key: By which it can use a ``multiprocessing.Manager`` of the master's process, as a child of that could.
    """
    if key is not None:
        multiprocessing.current_process().authkey = key
    Working(mailbox, limit=limit).run()
