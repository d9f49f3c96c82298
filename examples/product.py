"""Multiply the numbers 1 … size, one from each rank.

    rmpi-run -n 8 examples/product.py

Each rank prints its rank and the product, which all of them know: on 8 ranks ``r - 40320``. Then rank 0
prints how long it took. The numbers are Python's integers, so that on 30 ranks 30! is exact.
"""

from __future__ import annotations

from time import perf_counter

import rmpi


def main(comm: rmpi.Comm) -> None:
    begin = perf_counter()
    product = comm.allreduce(comm.rank + 1, rmpi.PROD)
    seconds = perf_counter() - begin
    print(f"{comm.rank} - {product}", flush=True)
    comm.barrier()  # everybody has printed
    if comm.rank == 0:
        print(f"elapsed: {seconds:.6f} s")


if __name__ == "__main__":
    main(rmpi.init())
