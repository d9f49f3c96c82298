"""Random programs of collectives, and what each of their steps must give, computed without any communication.

Everything is drawn from a seed that all ranks know, so every rank knows what every other one brings and can compute,
one value after the other in rank order, what it must get. Only whether it waits at once, or begins the call and looks
at the result some steps later, each rank decides for itself.

As a program: ``rmpi-run -n 4 programs.py SEED STEPS``.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

import rmpi
from rmpi.comm.partition import partition

DTYPES = ["i1", "u4", "i8", "f4", "f8", "c16", "?"]


def array(draw: random.Random, shape: tuple[int, ...], dtype: str) -> Any:
    """Small whole numbers, so that no order of adding rounds."""
    made = np.array([draw.randrange(4) for _ in range(int(np.prod(shape)))], "i8").reshape(shape).astype(dtype)
    if made.ndim and draw.random() < 0.3:
        made = np.asfortranarray(made)
    if made.ndim and draw.random() < 0.3:
        made = np.repeat(made, 2, axis=0)[::2]
    return made


def shape(draw: random.Random) -> tuple[int, ...]:
    return draw.choice([(), (0,), (1,), (5,), (3, 4), (2, 0, 3), (2, 3, 2), (2000,), (20_000,)])


def objects(draw: random.Random, size: int) -> list[Any]:
    """One value of any kind for each rank."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: draw.randrange(1 << 70),
        lambda: draw.random(),
        lambda: "x" * draw.choice([0, 3, 100_000]),
        lambda: bytes(draw.choice([0, 5, 70_000])),
        lambda: {"a": [draw.random()], "b": array(draw, shape(draw), "f8")},
        lambda: array(draw, shape(draw), draw.choice(DTYPES)),
    ]
    return [draw.choice(kinds)() for _ in range(size)]


def rows(draw: random.Random, size: int) -> list[Any]:
    """Arrays of one kind whose first axes differ in length."""
    dtype = draw.choice(DTYPES)
    return [array(draw, (draw.choice([0, 1, 3, 9000]), 2), dtype) for _ in range(size)]


def operands(draw: random.Random, size: int) -> tuple[list[Any], Any, Callable[[Any, Any], Any]]:
    """Values that can be combined, the operator, and what it means. None of these operators rounds."""
    kind = draw.randrange(6)
    if kind == 0:
        made = shape(draw)
        return [array(draw, made, "i8") for _ in range(size)], rmpi.SUM, np.add
    if kind == 1:
        made = shape(draw)
        return [array(draw, made, "f8") for _ in range(size)], rmpi.MAX, np.maximum
    if kind == 2:
        matrices = [array(draw, (2, 2), "i8") for _ in range(size)]
        return matrices, np.matmul, np.matmul
    if kind == 3:
        pairs = [(draw.randrange(3), rank) for rank in range(size)]
        return pairs, rmpi.MINLOC, min
    if kind == 4:
        made = shape(draw)
        return [array(draw, made, "u4") for _ in range(size)], rmpi.BXOR, np.bitwise_xor
    return ["abcdefgh"[rank % 8] * draw.randrange(3) for rank in range(size)], rmpi.SUM, lambda a, b: a + b


def alike(got: Any, expected: Any) -> bool:
    if isinstance(expected, np.ndarray):
        same = isinstance(got, np.ndarray) and got.shape == expected.shape and got.dtype == expected.dtype
        return same and got.tobytes() == expected.tobytes()
    if isinstance(expected, (list, tuple)):
        return type(got) is type(expected) and len(got) == len(expected) and all(map(alike, got, expected))
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(alike(got[key], expected[key]) for key in expected)
    return type(got) is type(expected) and got == expected


class Player:
    """One rank's part in a program."""

    def __init__(self, comm: Any, seed: int) -> None:
        self.comm = comm
        self.rank, self.size = comm.rank, comm.size
        self.draw = random.Random(seed)
        self.own = random.Random(seed * 1000 + comm.rank)
        self.begun: list[tuple[str, Any, Any]] = []

    def play(self, steps: int, depth: int = 0) -> None:
        names = [name for name in dir(self) if name.startswith("step_")]
        for step in range(steps):
            name = self.draw.choice(names)
            if name == "step_group" and depth:
                continue
            getattr(self, name)(f"step {step}")
            if self.own.random() < 0.3:
                self.look()
        self.look()

    def look(self) -> None:
        """Wait for what was begun, in any order."""
        self.own.shuffle(self.begun)
        for what, request, expected in self.begun:
            self.compare(what, request.wait(), expected)
        self.begun.clear()

    def call(self, what: str, name: str, expected: Any, *args: Any, **options: Any) -> None:
        what = f"{what}, {name} of {self.size} ranks, on rank {self.rank}"
        if self.own.random() < 0.4:
            self.begun.append((what, getattr(self.comm, f"i{name}")(*args, **options), expected))
        else:
            self.compare(what, getattr(self.comm, name)(*args, **options), expected)

    def compare(self, what: str, got: Any, expected: Any) -> None:
        assert alike(got, expected), f"{what}: {got!r:.200} instead of {expected!r:.200}"

    def root(self) -> int:
        return self.draw.randrange(self.size)

    # --------------------------------------------------------------------------------- the steps

    def step_barrier(self, what: str) -> None:
        self.call(what, "barrier", None)

    def step_broadcast(self, what: str) -> None:
        root, (value,) = self.root(), objects(self.draw, 1)
        self.call(what, "broadcast", value, value if self.rank == root else None, root)

    def step_reduce(self, what: str) -> None:
        root, (values, op, meaning) = self.root(), operands(self.draw, self.size)
        expected = _folded(meaning, values) if self.rank == root else None
        self.call(what, "reduce", expected, values[self.rank], op, root)

    def step_allreduce(self, what: str) -> None:
        values, op, meaning = operands(self.draw, self.size)
        self.call(what, "allreduce", _folded(meaning, values), values[self.rank], op)

    def step_scan(self, what: str) -> None:
        values, op, meaning = operands(self.draw, self.size)
        self.call(what, "scan", _folded(meaning, values[: self.rank + 1]), values[self.rank], op)

    def step_exscan(self, what: str) -> None:
        values, op, meaning = operands(self.draw, self.size)
        expected = _folded(meaning, values[: self.rank]) if self.rank else None
        self.call(what, "exscan", expected, values[self.rank], op)

    def step_reduce_scatter(self, what: str) -> None:
        length = self.draw.choice([0, 1, 7, 10_000])
        values = [array(self.draw, (length, 2), "i8") for _ in range(self.size)]
        start, count = partition(length, self.size, self.rank)
        expected = reduce(np.add, values)[start : start + count]
        self.call(what, "reduce_scatter", expected, values[self.rank])

    def step_gather(self, what: str) -> None:
        root, values = self.root(), objects(self.draw, self.size)
        self.call(what, "gather", values if self.rank == root else None, values[self.rank], root)

    def step_gather_rows(self, what: str) -> None:
        root, values = self.root(), rows(self.draw, self.size)
        expected = np.concatenate(values) if self.rank == root else None
        self.call(what, "gather", expected, values[self.rank], root, concatenate=True)

    def step_allgather(self, what: str) -> None:
        values = objects(self.draw, self.size)
        self.call(what, "allgather", values, values[self.rank])

    def step_allgather_rows(self, what: str) -> None:
        values = rows(self.draw, self.size)
        self.call(what, "allgather", np.concatenate(values), values[self.rank], concatenate=True)

    def step_scatter(self, what: str) -> None:
        root, values = self.root(), objects(self.draw, self.size)
        self.call(what, "scatter", values[self.rank], values if self.rank == root else None, root)

    def step_scatter_rows(self, what: str) -> None:
        root, pieces = self.root(), rows(self.draw, self.size)
        whole, counts = (np.concatenate(pieces), list(map(len, pieces))) if self.rank == root else (None, None)
        self.call(what, "scatter", np.ascontiguousarray(pieces[self.rank]), whole, root, counts=counts)

    def step_alltoall(self, what: str) -> None:
        values = [objects(self.draw, self.size) for _ in range(self.size)]
        self.call(what, "alltoall", [theirs[self.rank] for theirs in values], values[self.rank])

    def step_alltoall_rows(self, what: str) -> None:
        dtype = self.draw.choice(DTYPES)
        wholes = [array(self.draw, (self.draw.choice([0, 1, 10, 5000]), 2), dtype) for _ in range(self.size)]
        cuts = [partition(len(whole), self.size, self.rank) for whole in wholes]
        expected = np.concatenate([whole[at : at + count] for whole, (at, count) in zip(wholes, cuts, strict=True)])
        self.call(what, "alltoall", expected, wholes[self.rank])

    def step_shift(self, what: str) -> None:
        values, by = objects(self.draw, self.size), self.draw.randrange(self.size)
        to, source = (self.rank + by) % self.size, (self.rank - by) % self.size
        self.compare(what, self.comm.sendrecv(values[self.rank], to, source), values[source])

    def step_group(self, what: str) -> None:
        """A program of a part of the ranks, while calls of all of them are under way."""
        colors = [self.draw.choice([0, 1, None]) for _ in range(self.size)]
        seed, steps = self.draw.randrange(1 << 30), self.draw.randrange(1, 6)
        part = self.comm.split(colors[self.rank], key=-self.rank)
        assert (part is None) == (colors[self.rank] is None), what
        if part is not None:
            mine = [rank for rank in range(self.size) if colors[rank] == colors[self.rank]]
            assert (part.size, part.rank) == (len(mine), sorted(mine, reverse=True).index(self.rank)), what
            Player(part, seed).play(steps, depth=1)
            part.free()


def _folded(meaning: Callable[[Any, Any], Any], values: list[Any]) -> Any:
    """All values combined in rank order; NumPy makes scalars of arrays without axes, the communicator does not."""
    return np.asarray(reduce(meaning, values)) if isinstance(values[0], np.ndarray) else reduce(meaning, values)


def main(comm: Any, seed: int, steps: int) -> None:
    Player(comm, seed).play(steps)


if __name__ == "__main__":
    main(rmpi.init(), int(sys.argv[1]), int(sys.argv[2]))
    print("ok")
