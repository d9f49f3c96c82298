"""The thread that hears what workers say.

There is one for each system (`rmpi.places`) that workers belong to; most masters have one. All workers of a system put
what they say into one mailbox, so that to wait for any of them is to wait for a message, and nothing else: that is
three times as fast as to `select` among their channels. Those are watched only for their end, within the same wait:
who hears of one puts a note into the mailbox. Who reads that looks which it was, and puts another note, which certainly
is behind all that this worker has said; the first may have been put for another worker, or to look at the time.
"""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerLost
from rmpi.places.channel import Address, Channel, Mailbox
from rmpi.places.selecting import Selector

if TYPE_CHECKING:
    from rmpi.places.whereabouts import Member
    from rmpi.taskfarm.link import Link

_LOG = logging.getLogger("rmpi.taskfarm")

LOOK = None
"""The note in the mailbox: look at the time, and at whose channel has ended."""


GONE = "gone"
"""``(GONE, link)``, in the mailbox: that channel has ended, and all was heard."""


class Listener(Protocol):
    """Who wants to know."""

    def heard(self, link: Link, message: tuple[Any, ...]) -> None:
        """A worker has said this: `working.DONE` and so on."""

    def lost(self, link: Link, error: Exception) -> None:
        """Nothing more will be heard of that worker."""

    def failed(self, error: BaseException) -> None:
        """Nobody listens any more, because of a fault of ours."""

    def tick(self) -> float | None:
        """Some time has passed. When to call again, in seconds from now; None: no matter."""


class _Ends(Selector):
    """Channels of workers, which have something to say only when they end."""

    def __init__(self, noted: Channel) -> None:
        super().__init__()
        self._noted = noted

    def stirred(self, watch: Any) -> None:
        super().stirred(watch)
        self._noted.endpoint.go_on(partial(_note, self._noted))


class _Box(Mailbox):
    """A mailbox that is told when this process has no part in its system any more."""

    def _members(self) -> frozenset[int]:
        return frozenset((self._endpoint.ident,))


class Reception:
    """The links of one system, their mailbox, and the thread.

    Attributes:
        address: The channel to the mailbox, for workers.
        over: Nobody listens here any more.
    """

    def __init__(self, listener: Listener, member: Member) -> None:
        """Begin to listen."""
        box = member.new_box()
        self._mailbox = _Box(member, box, None)
        self.address = Channel(member, Address(member.system, 0, member.endpoint.ident, box, "a master"))
        self._listener = listener
        self._ends = _Ends(self.address)
        self._links: dict[int, Link] = {}  # by number
        self._gone: dict[int, Exception] = {}  # why, by the number of the link
        self.over = False
        self._thread = threading.Thread(target=self._run, name="rmpi task farm", daemon=True)
        self._thread.start()

    def add(self, link: Link) -> None:
        """Listen to this one too. From any thread."""
        self._links[link.number] = link
        self._ends.add(link.channel)
        self.wake()

    def remove(self, link: Link) -> None:
        """Listen to it no more. From any thread."""
        self._links.pop(link.number, None)
        self._ends.remove(link.channel)

    def wake(self) -> None:
        """Have `Listener.tick` called. From any thread."""
        _note(self.address)

    def wake_later(self) -> None:
        """`wake`, by whoever makes progress next. From any thread, and from finalizers."""
        self.address.endpoint.go_on(partial(_note, self.address))

    @property
    def is_here(self) -> bool:
        """Whether this thread is the one that listens."""
        return self._thread is threading.current_thread()

    def close(self) -> None:
        """End the thread, and wait for that unless it is the one that calls."""
        self.over = True
        self.wake()
        if not self.is_here:
            self._thread.join()
        self._ends.close()
        self._mailbox.close()
        self.address.close()

    def _run(self) -> None:
        try:
            pause = self._listener.tick()
            while not self.over:
                self._hear(pause)
                pause = self._listener.tick()
        except (ChannelClosed, PeerLost) as error:  # this process has left the system, or that has ended
            self.over = True
            for link in [*self._links.values()]:
                self._part(link, error)
        except BaseException as error:
            self._listener.failed(error)
            raise

    def _hear(self, pause: float | None) -> None:
        """One message, or none in that time."""
        try:
            message = self._mailbox.get(pause)
        except DeadlineExceeded:
            return
        except (ChannelClosed, PeerLost):
            raise
        except Exception:  # it cannot be unpickled, which ours always can
            _LOG.exception("something that a worker has said cannot be understood, and is gone")
            return
        if message is LOOK:
            self._look()
            return
        link = self._links.get(message[1])
        if message[0] == GONE:
            error = self._gone.pop(message[1])
            if link is not None:
                self._part(link, error)
        elif link is not None:
            self._listener.heard(link, message)

    def _look(self) -> None:
        """Who has ended?"""
        ended = {id(channel) for channel in self._ends.select(0)}
        for link in [link for link in self._links.values() if id(link.channel) in ended]:
            try:
                link.channel.get(0)
            except DeadlineExceeded:
                pass
            except Exception as error:
                self._ends.remove(link.channel)
                self._gone[link.number] = error
                _note(self.address, (GONE, link.number))

    def _part(self, link: Link, error: Exception) -> None:
        self.remove(link)
        self._listener.lost(link, error)


def _note(noted: Channel, note: tuple[str, int] | None = LOOK) -> None:
    try:
        noted.post(note)
    except (PeerLost, ChannelClosed):
        pass  # it is over
