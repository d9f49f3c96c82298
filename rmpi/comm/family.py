"""The communicators of one endpoint: the first one, and all that were made of it.

They share the endpoint, the `Keeper` and this book. Whoever connects an endpoint with a router, or with a test's
fabric, asks here what was called in some context.

**Contexts are derived**, not agreed upon: a context is a keyed hash of its parent's, of what kind of call made it, and
of a counter that all its members have in common (BLAKE2b, RFC 7693). So making a communicator needs no message for
its number, and two communicators never share one, whatever others their members are in. Contexts are even:
the next number is that of the communicator's collectives.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary

from rmpi.comm.driver import Driver, Keeper
from rmpi.transport.endpoint import Endpoint
from rmpi.transport.matching import Arrival
from rmpi.transport.operation import Operation

if TYPE_CHECKING:
    from rmpi.comm.channels import RankMember
    from rmpi.comm.collective import Collectives


def derived(context: int, kind: str, *numbers: int) -> int:
    """The context of a communicator that is made of the one with ``context``."""
    text = ",".join([kind, *map(str, numbers)])
    digest = blake2b(text.encode(), digest_size=8, key=context.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") & ~1 or 2


class Family:
    """What the communicators of one endpoint have in common.

    Attributes:
        endpoint: By which they all communicate.
        keeper: Who reaches all ranks besides their links.
        first: The communicator that the others were made of; None until there is one.
        member: What channels belong to; None where ranks are threads, for a process is one member of a job.
    """

    def __init__(self, endpoint: Endpoint, keeper: Keeper) -> None:
        self.endpoint = endpoint
        self.keeper = keeper
        self.first: Collectives | None = None
        self.member: RankMember | None = None
        self._drivers: WeakValueDictionary[int, Driver] = WeakValueDictionary()
        self._begun: WeakKeyDictionary[Operation, str] = WeakKeyDictionary()  # what is under way is kept by others

    def add(self, driver: Driver) -> None:
        self._drivers[driver.context] = driver

    def report_mismatch(self, arrival: Arrival, _called: int = 0) -> None:
        """A frame came that belongs to another collective than was called here."""
        driver = self._drivers.get(arrival.context - 1)
        if driver is not None:
            driver.report_mismatch(arrival)

    def call_of(self, context: int, sequence: int) -> tuple[int, str] | None:
        """Fingerprint and text of what was called here as collective ``sequence``; None if nothing was."""
        driver = self._drivers.get(context)
        call = driver.call(sequence) if driver is not None else None
        return (call.fingerprint, str(call)) if call is not None else None

    def last_calls(self) -> list[tuple[int, int, int, str]]:
        """Context, number, fingerprint and text of the last collective of each communicator."""
        drivers = list(self._drivers.values())
        calls = [(driver.context, driver.last_call()) for driver in drivers]
        return [(context, call.sequence, call.fingerprint, str(call)) for context, call in calls if call is not None]

    # ------------------------------------------------------------------------- what was begun

    def note_begun(self, operation: Operation, what: str) -> None:
        """Something was begun whose end somebody should wait for."""
        self._begun[operation] = what

    def unfinished(self) -> list[str]:
        """What was begun, others wait for, and is not complete: a line for each."""
        self.endpoint.progress()
        pending = [what for operation, what in self._begun.items() if not operation.done]
        return [f"{what}: the program ends before it has; wait for its request" for what in pending]
