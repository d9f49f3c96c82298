"""A key-value service in two copies, of which either may be killed at any time.

    python examples/places/replicated.py
    python examples/places/replicated.py node1 node2

Two nodes have a replica each. A client, a place of its own, writes as fast as it can, while the program ends one of
them with ``kill -9``; when it is back, the same with the other. Then the program looks whether every write that was
acknowledged is in both, and fails if one is not:

    killed the replica on left, restarts: 1
    killed the replica on right, restarts: 1
    writes acknowledged: 146, lost from left: 0, lost from right: 0

**How it works.** `Store` is what clients have.

- *Write to both.* A write is acknowledged when both replicas have it. While one is being restarted, writes wait.
- *Read from either.* While one is being restarted, the other one answers.
- *Again.* A call is executed once or, if its replica dies, perhaps not. So it is repeated; that does no harm, because
  a value has a version, and the same version twice is the same value.
- *Catch up first.* A replica that starts asks the other one for all it has, before anybody can ask it for anything.
  What was acknowledged, both had.
- *Never begin empty by mistake.* A replica that starts and finds no other has nothing, and serves nothing: it fails
  calls. Whoever sets up the service says once that it begins empty (`Replica.begin`).

**What it does not do.** If both replicas die at the same time, everything is lost; clients then get errors. A client
that dies in the middle of a write may leave it in one replica, where others may read it, or not, until the key is
written again; nobody was told that it was done.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import rmpi
from rmpi import places, rpc

T = TypeVar("T")

PATIENCE = 0.1
"""Seconds for a replica to answer a read, before the other one is asked."""

ATTEMPTS = 20
"""Of a read, or deaths during one write, before it is an error."""

CATCH_UP_LIMIT = 10.0
"""Seconds for the other replica to send all it has."""

KEYS = 20

SOME = 50
"""Writes of which the client says that they are done."""


class Entry(NamedTuple):
    """The value of a key.

    Attributes:
        version: A number that grows with every write, and whose write it is. The highest counts.
    """

    version: tuple[int, int]
    value: Any


NOTHING = Entry((0, 0), None)


# --- The server ----------------------------------------------------------------------------------


class Replica(rpc.Server):
    """One of the two copies."""

    def __init__(self, other: places.Node) -> None:
        """Catch up with the replica on the other node. Clients wait meanwhile."""
        self._entries: dict[str, Entry] | None = None
        try:
            self._entries = Replica.connect(other, "replica").entries(timeout=CATCH_UP_LIMIT)
        except rmpi.RmpiError as error:  # it is not there yet, or dead as well, or does not know anything either
            self.log("a replica starts with nothing: %s", error)

    @rpc.call
    def begin(self) -> None:
        """There is no other replica yet, and the store is empty."""
        self._entries = {}

    @rpc.call
    def entries(self) -> dict[str, Entry]:
        """All of them."""
        if self._entries is None:
            raise LookupError("this replica was started when there was no other: what was stored is lost")
        return self._entries

    @rpc.call
    def read(self, key: str) -> Entry:
        """The newest that this replica knows."""
        return self.entries().get(key, NOTHING)

    @rpc.call
    def write(self, key: str, entry: Entry) -> tuple[int, int]:
        """Keep the entry if it is newer than what there is; the version that there is now."""
        newest = max(entry, self.read(key), key=lambda each: each.version)
        self.entries()[key] = newest
        return newest.version


def serve(nodes: Sequence[places.Node]) -> list[Replica]:
    """An empty store on two nodes. Its replicas are started again whenever they end."""
    first = Replica.at(nodes[0], nodes[1], name="replica", restart=True)
    first.begin()
    return [first, Replica.at(nodes[1], nodes[0], name="replica", restart=True)]


# --- Its clients ---------------------------------------------------------------------------------


class Store:
    """The service as its clients see it; they may be many."""

    def __init__(self, nodes: Sequence[places.Node]) -> None:
        self._replicas = [Replica.connect(node, "replica") for node in nodes]
        self._me = random.getrandbits(62)
        self._turn = 0

    def read(self, key: str) -> Any:
        """The value; None if there is none."""
        return self._entry(key).value

    def write(self, key: str, value: Any) -> None:
        """Set the value. When this returns, both replicas have it."""
        newest = self._entry(key).version
        while True:
            version = newest[0] + 1, self._me
            newest = max(self._write(replica, key, Entry(version, value)) for replica in self._replicas)
            if newest == version:  # else somebody else wrote at the same time, and may have replaced ours
                return

    def _write(self, replica: Replica, key: str, entry: Entry) -> tuple[int, int]:
        return persistently(lambda _: replica.write(key, entry))

    def _entry(self, key: str) -> Entry:
        """From the replica that answered last, or the other one."""

        def ask(attempt: int) -> Entry:
            self._turn = (self._turn + (attempt > 0)) % len(self._replicas)
            return self._replicas[self._turn].read(key, timeout=PATIENCE)

        return persistently(ask)


def persistently(call: Callable[[int], T]) -> T:
    """Call with 0, 1, …, until it does not fail for the death or the silence of a replica."""
    for attempt in range(ATTEMPTS):
        try:
            return call(attempt)
        except (rmpi.PeerLost, rmpi.DeadlineExceeded) as error:
            failure = error
    raise failure


# --- The proof -----------------------------------------------------------------------------------


def keep_writing(mailbox: places.Mailbox, nodes: Sequence[places.Node]) -> None:
    """A client: write, and read again, until a message comes; then say what the keys should be now."""
    store, count, acknowledged = Store(nodes), 0, dict[str, int]()
    while not mailbox.poll():
        key = f"key {count % KEYS}"
        store.write(key, count)
        acknowledged[key] = count
        if store.read(key) != count:
            raise AssertionError(f"{key} was {count} a moment ago")
        count += 1
        if count % SOME == 0:
            mailbox.put(("written", count))
    mailbox.put(("done", count, acknowledged))


def kill(replica: Replica, node: places.Node) -> None:
    """End its process as nothing can prevent."""
    pid = rpc.place_of(replica).pid
    node.spawn_command(["kill", "-9", str(pid)]).wait()


def missing(replica: Replica, acknowledged: dict[str, int]) -> int:
    """Of how many keys a replica has another value."""
    entries = replica.entries()
    return sum(entries.get(key, NOTHING).value != value for key, value in acknowledged.items())


def main(argv: Sequence[str] = ()) -> int:
    """The exit status: 1 if something was lost."""
    nodes = places.create_nodes(argv or [{"name": "left"}, {"name": "right"}])
    replicas = serve(nodes)
    store = Store(nodes)
    client = nodes[0].spawn(keep_writing, nodes)
    said = client.typed()
    for turn, (replica, node) in enumerate(zip(replicas, nodes, strict=True)):
        said.get("written")  # it is at work
        kill(replica, node)
        store.write("turn", turn)  # waits for both
        print(f"killed the replica on {node.label}, restarts: {rpc.place_of(replica).restarts}")
    client.put("enough")
    _, count, acknowledged = said.get("done")
    lost = [missing(replica, acknowledged) for replica in replicas]
    where = ", ".join(f"lost from {node.label}: {number}" for node, number in zip(nodes, lost, strict=True))
    print(f"writes acknowledged: {count}, {where}")
    return 1 if any(lost) else 0


if __name__ == "__main__":
    import replicated  # by its name: the places import it, and what they send and what we send is then the same

    sys.exit(replicated.main(sys.argv[1:]))
