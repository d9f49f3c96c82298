"""Latency and bandwidth of each link, as ratios to plain Python sockets in the same run.

The peer is the least that Python can do: two processes, one blocking socket, ``sendall`` and ``recv_into``, no
header, no matching, no failure detection. rmpi and peer run in turn, `REPEATS` times; the table shows the
median of each and the median of the ratios.

    python benchmarks/links.py
"""

from __future__ import annotations

import json
import os
import platform
import socket
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from pingpong import SIZES, batch_length, measure, time_batches

from rmpi.testing.ranks import run_ranks

HERE = Path(__file__).resolve().parent
REPEATS = 5
MOST_LOAD = 0.3
LAUNCH = [sys.executable, "-m", "launcher", "-n", "2"]
TWO_NODES = ["-H", "a@127.0.0.1,b@127.0.0.1", "--rsh-agent", f"{sys.executable} {HERE / 'loopback_agent.py'}"]

Figures = dict[str, float]


def by_job(*options: str, shm: bool = False) -> Figures:
    """Two ranks started by rmpi-run, with shared memory or without."""
    words = [*LAUNCH, *options, str(HERE / "pingpong.py")]
    environment = {**os.environ, "RMPI_SHM": "1" if shm else "0"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def by_threads() -> Figures:
    """Two ranks that are threads of this process."""
    return run_ranks(2, measure, timeout=300)[0]


def by_socket(ours: socket.socket, theirs: socket.socket) -> Figures:
    """The peer: a forked child echoes what comes over a plain socket."""
    child = os.fork()
    if not child:
        _echo(theirs)
        os._exit(0)
    results = {str(nbytes): time_batches(lambda n=nbytes: _round(ours, n), batch_length(nbytes)) for nbytes in SIZES}  # type: ignore[misc]
    results["int"] = results["8"]
    ours.close()
    theirs.close()
    os.waitpid(child, 0)
    return results


_buffers = {nbytes: np.zeros(nbytes, np.uint8).data for nbytes in SIZES}


def _round(sock: socket.socket, nbytes: int) -> None:
    sock.sendall(_buffers[nbytes])
    _fill(sock, _buffers[nbytes])


def _fill(sock: socket.socket, buffer: memoryview) -> bool:
    while buffer:
        count = sock.recv_into(buffer)
        if not count:
            return False
        buffer = buffer[count:]
    return True


def _echo(sock: socket.socket) -> None:
    for nbytes in SIZES:
        for _ in range((7 + 1) * batch_length(nbytes)):
            _fill(sock, _buffers[nbytes])
            sock.sendall(_buffers[nbytes])


def plain_unix() -> Figures:
    return by_socket(*socket.socketpair())


def plain_tcp() -> Figures:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    for sock in (ours, theirs):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return by_socket(ours, theirs)


def median_of(runs: list[Figures], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def shown(key: str, seconds: float) -> str:
    rate = "" if key == "int" or int(key) < 1 << 16 else f" ({int(key) / seconds / 1e9:.1f} GB/s)"
    return f"{seconds * 1e6:.1f} µs{rate}"


def main() -> None:
    load = os.getloadavg()[0]
    if load > MOST_LOAD and "--anyway" not in sys.argv:
        sys.exit(f"the machine is not idle (load {load:.2f} > {MOST_LOAD}); wait, or give --anyway")
    names = ("shm", "unix", "plain unix", "tcp", "plain tcp", "memory")
    runs: dict[str, list[Figures]] = {name: [] for name in names}
    for _ in range(REPEATS):
        runs["shm"].append(by_job(shm=True))
        runs["unix"].append(by_job())
        runs["plain unix"].append(plain_unix())
        runs["tcp"].append(by_job(*TWO_NODES))
        runs["plain tcp"].append(plain_tcp())
        runs["memory"].append(by_threads())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{'bytes':>9}", *(f"{name:>24}" for name in runs), "unix ratio", "tcp ratio", sep="  ")
    for key in [*map(str, SIZES), "int"]:
        cells = [f"{shown(key, median_of(figures, key)):>24}" for figures in runs.values()]
        ratios = [
            statistics.median(a[key] / b[key] for a, b in zip(runs[name], runs[f"plain {name}"], strict=True))
            for name in ("unix", "tcp")
        ]
        print(f"{key:>9}", *cells, *(f"{ratio:>9.2f}" for ratio in ratios), sep="  ")


if __name__ == "__main__":
    main()
