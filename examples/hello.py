"""Every rank says who and where it is.

    rmpi-run -n 4 examples/hello.py
    rmpi-run -H alice@node1:2,node2:2 examples/hello.py

Four lines, in whatever order they arrive:

    Hello from rank 2 of 4 on node2, process 4711
"""

from __future__ import annotations

import os

import rmpi


def main(comm: rmpi.Comm) -> None:
    host = comm.hosts[comm.rank]
    print(f"Hello from rank {comm.rank} of {comm.size} on {host}, process {os.getpid()}")


if __name__ == "__main__":
    main(rmpi.init())
