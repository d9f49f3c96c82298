"""What a call costs by other means on one machine: what `rpc.py` runs, in an environment that has them.

    python benchmarks/rpc_peers.py pyro5|rpyc|execnet|pipe

Each has a server in a process of its own that adds two numbers, and a client that waits for the sum. What is
printed is one call's seconds, the median of batches. Nothing of rmpi is imported.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

BATCHES = 7
BATCH = 0.1
"""Seconds."""

Add = Callable[[int, int], int]


def seconds_per_call(call: Callable[[], object]) -> float:
    """The median of `BATCHES`, after one to warm up."""
    count = 1
    while (taken := _batch(call, count)) < BATCH / 2:
        count = max(2 * count, int(count * BATCH / max(taken, 1e-6)))
    return statistics.median(_batch(call, count) for _ in range(BATCHES)) / count


def _batch(call: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - started


@contextmanager
def _process(target: Callable[..., None]) -> Iterator[Any]:
    """A process, and the pipe to it."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=target, args=(theirs,))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


# ---- the peers ----


@contextmanager
def pyro5() -> Iterator[Add]:
    api = importlib.import_module("Pyro5.api")
    with _process(_serve_pyro5) as pipe, api.Proxy(pipe.recv()) as proxy:
        yield proxy.add


def _serve_pyro5(pipe: Any) -> None:
    api = importlib.import_module("Pyro5.api")

    class Adder:
        @api.expose  # type: ignore[untyped-decorator]
        def add(self, a: int, b: int) -> int:
            return a + b

    daemon = api.Daemon(host="127.0.0.1")
    pipe.send(str(daemon.register(Adder())))
    daemon.requestLoop()


@contextmanager
def rpyc() -> Iterator[Add]:
    module = importlib.import_module("rpyc")
    with _process(_serve_rpyc) as pipe:
        connection = module.connect("127.0.0.1", pipe.recv())
        yield connection.root.add
        connection.close()


def _serve_rpyc(pipe: Any) -> None:
    module = importlib.import_module("rpyc")
    servers = importlib.import_module("rpyc.utils.server")

    class Adder(module.Service):  # type: ignore[misc, name-defined]
        def exposed_add(self, a: int, b: int) -> int:
            return a + b

    server = servers.ThreadedServer(Adder, hostname="127.0.0.1", port=0)
    pipe.send(server.port)
    server.start()


@contextmanager
def execnet() -> Iterator[Add]:
    module = importlib.import_module("execnet")
    group = module.Group()
    channel = group.makegateway("popen").remote_exec("for a, b in channel: channel.send(a + b)")

    def add(a: int, b: int) -> int:
        channel.send((a, b))
        return channel.receive()  # type: ignore[no-any-return]

    yield add
    group.terminate(timeout=1.0)


@contextmanager
def pipe() -> Iterator[Add]:
    with _process(_serve_pipe) as ours:

        def add(a: int, b: int) -> int:
            ours.send((a, b))
            return ours.recv()  # type: ignore[no-any-return]

        yield add


def _serve_pipe(pipe: Any) -> None:
    while True:
        a, b = pipe.recv()
        pipe.send(a + b)


PEERS = {"pyro5": pyro5, "rpyc": rpyc, "execnet": execnet, "pipe": pipe}


def main() -> None:
    with PEERS[sys.argv[1]]() as add:
        assert add(2, 3) == 5
        print(json.dumps(seconds_per_call(lambda: add(2, 3))))


if __name__ == "__main__":
    main()
