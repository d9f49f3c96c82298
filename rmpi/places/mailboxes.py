"""Mailboxes with names: how a process is found that nobody has spawned, such as the program itself, or a guest.

    tasks = places.open_mailbox("tasks")  # in the program
    channel = places.connect("tasks")  # in places; and in guests, with of=node

To whoever looks for the name it is a place. It is behind the endpoint of its process, as a thread is, and so has the
end that threads have: when it is closed, what was put there is dropped, and clients hear that it has ended; the process
goes on. It is not restarted. A place that is restarted opens its mailboxes again, as new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import NoReturn

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, UsageError
from rmpi.places.channel import Address, Mailbox
from rmpi.places.creation import member_of_this_process
from rmpi.places.handles import Node, check_text, place_address
from rmpi.places.member import Member
from rmpi.places.system_messages import CloseMailbox, OpenMailbox

FLUSH_LIMIT = 5.0
"""Seconds to send out answers, when a mailbox is closed."""


class NamedMailbox(Mailbox):
    """A mailbox of this process that others find by its name, however many; see `open_mailbox`.

        while True:
            message, reply = mailbox.receive()
            reply.put(message)

    What is received, and in which ways, is as for any `Channel`; `select` waits for several, `on_message` calls a
    function. Sent over a channel it arrives as a channel to it. At the end of a ``with``, and when nobody holds it any
    more, it is closed, and its name is free.

    Attributes:
        name: By which it is found.
    """

    def __init__(self, member: Member, place: int, name: str, label: str) -> None:
        """For `open_mailbox`.

        Args:
            place: Its number in the system.
        """
        self.name = name
        self._here = place_address(member, place, label)
        self._close_there = partial(member.tell, CloseMailbox(place))
        super().__init__(member, self._here.box, None)
        self._label = label

    def put(self, value: object, timeout: float | None = None) -> NoReturn:
        """Nothing can be put here: others put.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"{self._label} has many clients: answer a message by the channel that receive() gives with it"
        )

    @property
    def address(self) -> Address:
        """Where others put."""
        return self._here

    def _members(self) -> frozenset[int]:
        """Somebody may always come, as long as this process belongs to the system."""
        return frozenset((self._endpoint.ident,))

    def _shut(self) -> None:
        with suppress(ChannelClosed):  # then everybody has heard already
            self._endpoint.flush(Deadline.after(FLUSH_LIMIT))
            self._close_there()
        super()._shut()

    def _releases(self) -> Iterator[Callable[[], None]]:
        yield self._close_there
        yield from super()._releases()


def open_mailbox(name: str, timeout: float | None = 60.0, *, of: Node | None = None) -> NamedMailbox:
    """Have a mailbox in this process, which others of the system find by its name, with `connect` and `Node.connect`.

        with places.open_mailbox("tasks") as tasks:
            worker, reply = tasks.receive()

    The program itself has no other; a place has it besides the one that its function is given. It is on the node of
    this process, where no other place and mailbox has that name.

    Args:
        of: A node of the system in which it can be found; by default this process' own.

    Raises:
        UsageError: The name is taken, or it is no name.
    """
    check_text("the name of a mailbox", name)
    if not name:
        raise UsageError("a mailbox needs a name by which it is found; places.channel_pair() needs none")
    member = member_of_this_process(of)
    place, label = member.ask(lambda number: OpenMailbox(number, name), timeout, f"opening the mailbox {name!r}")
    return NamedMailbox(member, place, name, label)
