"""What tasks cost with one library: what `taskfarm.py` runs, in an environment that has it.

    python benchmarks/taskfarm_runs.py rmpi|pool|dask|ray|growth [WORKERS]

Every library is driven through the same few calls. What is printed are seconds: of a task among `TINY` that do nothing,
submitted one by one and waited for together; of one that is waited for before the next; of an item that is mapped; how
long uneven tasks took beyond the least that is possible, as a part of that; and of a task that needs a large array.
``growth`` prints bytes instead: what master and workers of rmpi have, before and after `GROWTH` tasks.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

from taskfarm_tasks import tiny, total, work

TINY = 5000
ALONE = 300
MAPPED = 50_000
UNEVEN = 5.0
"""Seconds of uneven tasks for each worker."""
LARGE = 4_000_000
"""Float64 numbers of the array."""
SHARERS = 20
GROWTH = 100_000
AT_A_TIME = 5000

Submit = Callable[..., Any]


class Library:
    """A way to have tasks done. ``submit`` returns what ``result`` takes."""

    def __init__(
        self, submit: Submit, result: Callable[[Any], Any], mapped: Callable[..., Any], scatter: Callable[[Any], Any]
    ) -> None:
        self.submit = submit
        self.result = result
        self.map = mapped
        self.scatter = scatter


@contextlib.contextmanager
def rmpi(workers: int) -> Iterator[Library]:
    taskfarm = importlib.import_module("rmpi.taskfarm")
    with taskfarm.Master(workers) as master:
        master.wait_for_workers(workers)
        yield Library(master.submit, lambda task: task.result(), master.map, master.scatter)


@contextlib.contextmanager
def pool(workers: int) -> Iterator[Library]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers) as executor:
        yield Library(executor.submit, lambda future: future.result(), executor.map, lambda value: value)


@contextlib.contextmanager
def dask(workers: int) -> Iterator[Library]:
    distributed = importlib.import_module("distributed")
    settings = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(**settings) as cluster, distributed.Client(cluster) as client:
        yield Library(
            lambda *call: client.submit(*call, pure=False),
            lambda future: future.result(),
            lambda function, items: client.gather(client.map(function, items, pure=False)),
            lambda value: client.scatter(value),
        )


@contextlib.contextmanager
def ray(workers: int) -> Iterator[Library]:
    module = importlib.import_module("ray")
    module.init(num_cpus=workers, include_dashboard=False, logging_level=50, log_to_driver=False)
    remotes: dict[Any, Any] = {}

    def submit(function: Any, *args: Any) -> Any:
        if function not in remotes:
            remotes[function] = module.remote(function)
        return remotes[function].remote(*args)

    try:
        yield Library(
            submit, module.get, lambda function, items: module.get([submit(function, x) for x in items]), module.put
        )
    finally:
        module.shutdown()


LIBRARIES = {"rmpi": rmpi, "pool": pool, "dask": dask, "ray": ray}


def uneven(workers: int) -> list[float]:
    """Seconds of tasks, Pareto distributed (shape 1.5), the same ones each time."""
    lengths = np.random.default_rng(20061).pareto(1.5, 400) + 1
    return list(map(float, lengths * (UNEVEN * workers / lengths.sum())))


def measure(library: Library, workers: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    [library.result(library.submit(tiny, n)) for n in range(50)]  # warm

    began = time.perf_counter()
    tasks = [library.submit(tiny, n) for n in range(TINY)]
    answers = [library.result(task) for task in tasks]
    figures["a tiny task"] = (time.perf_counter() - began) / TINY
    assert answers == [n + 1 for n in range(TINY)]

    began = time.perf_counter()
    for n in range(ALONE):
        library.result(library.submit(tiny, n))
    figures["a tiny task, waited for"] = (time.perf_counter() - began) / ALONE

    items = MAPPED if library.map.__name__ == "map" else TINY
    began = time.perf_counter()
    answers = list(library.map(tiny, range(items)))
    figures["an item of map()"] = (time.perf_counter() - began) / items
    assert answers == [n + 1 for n in range(items)]

    lengths = uneven(workers)
    least = max(sum(lengths) / workers, max(lengths))
    began = time.perf_counter()
    tasks = [library.submit(work, seconds) for seconds in lengths]
    [library.result(task) for task in tasks]
    figures["uneven tasks, beyond the least"] = (time.perf_counter() - began) / least - 1

    array = library.scatter(np.ones(LARGE))
    began = time.perf_counter()
    tasks = [library.submit(total, array) for _ in range(SHARERS)]
    assert [library.result(task) for task in tasks] == [LARGE] * SHARERS
    figures["a task that needs 32 MB"] = (time.perf_counter() - began) / SHARERS
    return figures


def growth(workers: int) -> dict[str, int]:
    import psutil

    taskfarm = importlib.import_module("rmpi.taskfarm")
    with taskfarm.Master(workers) as master:
        master.wait_for_workers(workers)

        def bytes_after(count: int) -> int:
            for _ in range(0, count, AT_A_TIME):
                for task in [master.submit(tiny, n) for n in range(AT_A_TIME)]:
                    task.result()
            processes = [psutil.Process(), *(psutil.Process(worker.pid) for worker in master.workers)]
            return sum(process.memory_info().rss for process in processes)

        return {"before": bytes_after(2 * AT_A_TIME), "after": bytes_after(GROWTH)}


def main() -> None:
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else len(os.sched_getaffinity(0))
    if sys.argv[1] == "growth":
        print(json.dumps(growth(workers)))
        return
    with LIBRARIES[sys.argv[1]](workers) as library:
        print(json.dumps(measure(library, workers)))


if __name__ == "__main__":
    main()
