"""The task farm in the standard library's clothes.

What CPython's documentation says of `concurrent.futures.Executor` holds, with two differences, both of which users of
process pools ask for. A worker that dies breaks nothing but its own task (`WorkerLost`, which is a `BrokenExecutor`),
unless there are retries; it is replaced. And `map` takes its pieces from the clock, where ``chunksize`` is not given.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor as StandardExecutor
from typing import Any, ParamSpec, TypeVar

from rmpi.taskfarm.master import Master
from rmpi.taskfarm.tasks import Task

P = ParamSpec("P")
T = TypeVar("T")


class Executor(StandardExecutor):
    """A `concurrent.futures.Executor` whose workers are processes, on this machine or others.

        with taskfarm.Executor(4) as executor:
            future = executor.submit(pow, 2, 10)
            print(future.result(), sum(executor.map(math.sqrt, range(1000))))

    Everything that takes an executor takes this one, such as `asyncio.loop.run_in_executor` and ``joblib``-like
    libraries.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        hosts: str | Sequence[str] | None = None,
        retries: int = 0,
    ) -> None:
        """Start workers.

        Args:
            max_workers: How many on this machine; None: one for each core that this process may use.
            initializer, initargs, hosts, retries: As for `Master`.

        Raises:
            ValueError: ``max_workers`` is not positive.
            TypeError: The initializer cannot be called.
            UsageError, ExceptionGroup: As for `Master`.
        """
        if max_workers is not None and max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, not {max_workers!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be something that can be called, not {initializer!r}")
        self._master = Master(max_workers, initializer=initializer, initargs=initargs, hosts=hosts, retries=retries)
        self._shutdown_lock = threading.Lock()
        self._shut_down = False

    @property
    def master(self) -> Master:
        """The farm itself, for all that executors have not."""
        return self._master

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """`Master.submit`.

        Raises:
            RuntimeError: It was shut down.
            BrokenFarm: There are no workers any more.
            UsageError: Something cannot be pickled.
        """
        with self._shutdown_lock:
            self._check_up()
            return self._master.submit(fn, *args, **kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Iterator[T]:
        """`Master.map`, in the order of the items.

        Args:
            timeout: Seconds from now until which all results must have been taken; then `TimeoutError`.
            chunksize: How many calls a worker gets at a time; None: as many as take some milliseconds.

        Raises:
            ValueError: ``chunksize`` is not positive.
        """
        if chunksize is not None and chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, not {chunksize!r}")
        with self._shutdown_lock:
            self._check_up()
            return self._master.map(fn, *iterables, timeout=timeout, chunksize=chunksize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and end the workers when all are done.

        Args:
            wait: Return when that is so; else at once.
            cancel_futures: Cancel the tasks that no worker was given.
        """
        with self._shutdown_lock:
            first, self._shut_down = not self._shut_down, True
        if first and cancel_futures:
            self._master.cancel_waiting()
        if wait:
            self._master.close()
        elif first:
            threading.Thread(target=self._master.close, name="rmpi shuts down an executor").start()

    def _check_up(self) -> None:
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
