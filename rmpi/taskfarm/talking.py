"""The master's side of dialogues: the local procedure, in a thread of its own."""

from __future__ import annotations

import threading
from typing import Any

from rmpi.errors import PeerExited
from rmpi.taskfarm.dialogue import Dialogue, Inbox, Procedure
from rmpi.taskfarm.link import Link
from rmpi.taskfarm.packing import Buffers, Packed, PackedFunction
from rmpi.taskfarm.tasks import Assignment, Options, Task
from rmpi.taskfarm.working import TALK


class Talk(Assignment):
    """A dialogue. It is not tried again: nobody knows what was said already.

    The task is done when the local procedure has returned; the worker is free when the remote one has.
    """

    way = TALK

    __slots__ = ("_inbox", "_local")

    def __init__(
        self,
        number: int,
        function: PackedFunction,
        local: Procedure,
        task: Task[Any],
        options: Options,
    ) -> None:
        super().__init__(number, function, Packed(b"", None), task, options)
        self.alone = True
        self._local = local
        self._inbox = Inbox()

    def sent(self, link: Link) -> None:
        """The worker gets it next, and so may be talked to."""
        threading.Thread(target=self._converse, args=(link,), name=f"rmpi talks to {link.label}", daemon=True).start()

    def _converse(self, link: Link) -> None:
        def say(value: Packed, timeout: float | None) -> None:
            link.say(self.number, value, timeout)

        dialogue = Dialogue(self._inbox, say, self._inbox.wait)
        try:
            result = self._local(dialogue, dialogue)
        except BaseException as error:
            link.hush(self.number)
            self.task.set_exception(error)
        else:
            link.hush(self.number)
            self.task.set_result(result)

    def said(self, value: Packed) -> None:
        self._inbox.put(value)

    def succeed(self, data: bytes, buffers: Buffers | None) -> None:
        self._inbox.put(Packed(data, buffers))
        self._inbox.end(PeerExited("the remote procedure has returned, and what it returned was got"))

    def fail(self, error: BaseException) -> None:
        if self.task.worker is not None:
            self._inbox.end(error)
        else:
            super().fail(error)

    def wait_again(self, *, begun: bool) -> None:
        pass  # it has begun here

    def retries_left(self) -> bool:
        return False
