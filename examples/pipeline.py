"""A pipeline: work on a block while the next is on its way. What overlap brings, and when.

    rmpi-run -n 2 examples/pipeline.py
    rmpi-run -H node1,node2 examples/pipeline.py

Each rank takes blocks from the one before, works on them, and passes them on to the next: on each about as long as it
needs for its way. That is done three times: one thing after the other; with ``isend`` and ``irecv``, so that a block
may come while its rank works on another; and with ``comm.progress()`` said now and then as well. Rank 0 prints the
times, and fails unless what leaves the last rank is what one rank alone makes. Between two machines with 40 Mbit/s:

    8 blocks of 256 KiB, 128 passes on each rank, ranks: 2
    1.187 s, 0.635 of them waiting: one after the other
    1.008 s, 0.332 of them waiting: at the same time
    0.568 s, 0.228 of them waiting: at the same time, with progress()
    as made by one rank alone: yes

The library has no thread of its own. A block is offered, granted and sent, and each of these is done in a call of it;
what the kernels have in their buffers goes on in between. So over a network it pays to begin early and to call
``progress()``: the wire is busy while the ranks compute. In shared memory nobody moves bytes but the processors
that could compute meanwhile: there it brings little, and may cost something.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import rmpi

Block: TypeAlias = NDArray[np.float64]

BLOCKS = 8
LENGTH = 1 << 15
"""Numbers in a block, which is 256 KiB."""

Way: TypeAlias = "Callable[[rmpi.Comm, Worker], list[Block]]"


def block_of(number: int) -> Block:
    """What comes into the pipeline."""
    return np.linspace(0.1, 0.8, LENGTH) + number / 100


class Worker:
    """Works on blocks, and knows for how many ``seconds`` it did.

    Args:
        passes: How many steps of the logistic map. It is chaotic: a wrong bit becomes a wrong number.
        between: Called after each of them.
    """

    def __init__(self, passes: int, between: Callable[[], None] | None = None) -> None:
        self._passes = passes
        self._between = between
        self.seconds = 0.0

    def __call__(self, block: Block) -> Block:
        begin = perf_counter()
        for _ in range(self._passes):
            block = 3.9 * block * (1 - block)
            if self._between:
                self._between()
        self.seconds += perf_counter() - begin
        return block


def in_turn(comm: rmpi.Comm, work: Worker) -> list[Block]:
    """Receive a block, work on it, send it; receive the next. What this rank has made of them."""
    made = []
    for number in range(BLOCKS):
        block = comm.recv(comm.rank - 1) if comm.rank else block_of(number)
        made.append(work(block))
        if comm.rank + 1 < comm.size:
            comm.send(made[-1], comm.rank + 1)
    return made


def overlapped(comm: rmpi.Comm, work: Worker) -> list[Block]:
    """All receives are begun at once, and nobody waits for a send before the end."""
    coming = [comm.irecv(comm.rank - 1) for _ in range(BLOCKS)] if comm.rank else []
    going, made = [], []
    for number in range(BLOCKS):
        block = coming[number].wait() if comm.rank else block_of(number)
        made.append(work(block))
        if comm.rank + 1 < comm.size:
            going.append(comm.isend(made[-1], comm.rank + 1))
    rmpi.wait_all(going)
    return made


def alone(work: Worker) -> list[Block]:
    """The work, and no messages."""
    return [work(block_of(number)) for number in range(BLOCKS)]


def timed(comm: rmpi.Comm, way: Way, work: Worker) -> tuple[float, float, list[Block]]:
    """The seconds that it took; how many a rank waited at most; and what this rank made."""
    comm.barrier()
    begin = perf_counter()
    made = way(comm, work)
    seconds = perf_counter() - begin
    took, waited = comm.allreduce(np.array([seconds, seconds - work.seconds]), rmpi.MAX)
    return took, waited, made


def enough_passes(comm: rmpi.Comm) -> int:
    """So many that the work takes at least as long as the way."""
    _, on_the_way, _ = timed(comm, in_turn, Worker(0))
    passes, working = 1, 0.0
    while working < on_the_way:
        passes *= 2
        working, _, _ = timed(comm, lambda _, work: alone(work), Worker(passes))
    return passes


def main(comm: rmpi.Comm) -> int:
    """The exit status: 0; or 1 if what leaves the pipeline is not what one rank alone makes."""
    passes = enough_passes(comm)
    found = {
        "one after the other": timed(comm, in_turn, Worker(passes)),
        "at the same time": timed(comm, overlapped, Worker(passes)),
        "at the same time, with progress()": timed(comm, overlapped, Worker(passes, comm.progress)),
    }
    right = True
    if comm.rank + 1 == comm.size:
        expected = alone(Worker(passes * comm.size))
        right = all(np.array_equal(made, expected) for _, _, made in found.values())
    right = comm.broadcast(right, root=comm.size - 1)
    if comm.rank == 0:
        print(f"{BLOCKS} blocks of {8 * LENGTH >> 10} KiB, {passes} passes on each rank, ranks: {comm.size}")
        for name, (took, waited, _) in found.items():
            print(f"{took:.3f} s, {waited:.3f} of them waiting: {name}")
        print(f"as made by one rank alone: {'yes' if right else 'no'}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(rmpi.init()))
