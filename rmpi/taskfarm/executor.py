"""The task farm in the standard library's clothes.

It is used as `concurrent.futures.ProcessPoolExecutor` is, and ends as that does: with `Executor.shutdown`, when nobody
has it any more, or when the interpreter exits; each time what was submitted is done first. A thread of each executor
sees to that (`_Keeper`), so that whoever submits and forgets loses nothing.

Differences, which users of process pools ask for:

- A worker that dies breaks nothing but its own task (`WorkerLost`, which is a `BrokenProcessPool` as users know it),
  unless there are retries; it is replaced, and the executor goes on.
- `map` takes its pieces from the clock where ``chunksize`` is not given, and of a piece in which a call raised, the
  results before that one are not lost.
- Functions of a script, nested ones and lambdas can be submitted too (``cloudpickle``).
- All workers are there when it is made, and none of them is a fork.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor as StandardExecutor
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from rmpi.errors import UsageError
from rmpi.taskfarm.master import Master
from rmpi.taskfarm.tasks import Task

P = ParamSpec("P")
T = TypeVar("T")


class Executor(StandardExecutor):
    """A `concurrent.futures.Executor` whose workers are processes, on this machine or others.

        with taskfarm.Executor(4) as executor:
            future = executor.submit(pow, 2, 10)
            print(future.result(), sum(executor.map(math.sqrt, range(1000))))

    It stands in for `concurrent.futures.ProcessPoolExecutor`, also where others take one, as
    `asyncio.loop.run_in_executor` does. Any thread may use it.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: object = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
        hosts: str | Sequence[str] | None = None,
        retries: int = 0,
    ) -> None:
        """Start workers.

        Args:
            max_workers: How many on this machine; None: one for each core that this process may use.
            mp_context: Ignored, for there is one way to start workers: each is a new interpreter, as with
                ``multiprocessing``'s ``"spawn"``, but it does not import the script.
            max_tasks_per_child: A worker leaves after so many tasks, and is replaced. A piece of a `map` is one; they
                are of one call each then, unless ``chunksize`` is given.
            initializer, initargs, hosts, retries: As for `Master`.

        Raises:
            ValueError: ``max_workers`` or ``max_tasks_per_child`` is not positive.
            TypeError: The initializer cannot be called, or ``max_tasks_per_child`` is no number.
            UsageError, ExceptionGroup: As for `Master`.
        """
        if max_workers is not None and max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, not {max_workers!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be something that can be called, not {initializer!r}")
        if max_tasks_per_child is not None and type(max_tasks_per_child) is not int:
            raise TypeError(f"max_tasks_per_child must be an integer, not {max_tasks_per_child!r}")
        if max_tasks_per_child is not None and max_tasks_per_child < 1:
            raise ValueError(f"max_tasks_per_child must be at least 1, not {max_tasks_per_child!r}")
        self._master = Master(
            max_workers,
            hosts=hosts,
            initializer=initializer,
            initargs=initargs,
            retries=retries,
            max_tasks_per_worker=max_tasks_per_child,
        )
        self._chunksize = None if max_tasks_per_child is None else 1
        self._max_workers = self._master.greeted  # where other libraries look how many there are
        self._keeper = _Keeper(self._master)
        self._shut_down = False
        weakref.finalize(self, self._keeper.end).atexit = False

    @property
    def master(self) -> Master:
        """The farm itself, for all that executors have not."""
        return self._master

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """`Master.submit`; but what cannot be pickled is told by the future, as it is by process pools.

        Raises:
            RuntimeError: It was shut down, or the interpreter exits.
            BrokenFarm: There are no workers any more.
        """
        self._check_up()
        try:
            return self._master.submit(fn, *args, **kwargs)
        except UsageError as error:
            self._check_up()
            return _failed(fn, error)

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
            RuntimeError, BrokenFarm: As for `submit`.
        """
        if chunksize is not None and chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, not {chunksize!r}")
        self._check_up()
        if not iterables:
            return iter(())
        try:
            return self._master.map(fn, *iterables, timeout=timeout, chunksize=chunksize or self._chunksize)
        except UsageError as error:
            self._check_up()
            return map(Task.result, [_failed(fn, error)])

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and end the workers when all are done.

        Args:
            wait: Return when that is so; else at once.
            cancel_futures: Cancel the tasks that no worker was given.

        Raises:
            RuntimeError: A callback of a task wants to wait, for which all others do.
        """
        self._shut_down = True
        if cancel_futures:
            self._master.cancel_waiting()
        self._keeper.end()
        if wait:
            if self._master.is_heard_here:
                raise RuntimeError(
                    "a callback of a task cannot wait for the executor: shutdown(wait=False) can be called"
                )
            self._keeper.join()

    def _check_up(self) -> None:
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _exiting.is_set():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")


def _failed(function: object, error: UsageError) -> Task[Any]:
    """A future that tells why there is no task."""
    task: Task[Any] = Task()
    task.set_running_or_notify_cancel()
    task.set_exception(error if callable(function) else TypeError(str(error)))
    return task


class _Keeper(threading.Thread):
    """Waits for the end of an executor, and then for that of its tasks.

    Not a daemon: the interpreter waits for it when it exits.
    """

    def __init__(self, master: Master) -> None:
        super().__init__(name="rmpi keeps an executor", daemon=False)
        self._master = master
        self._notes: SimpleQueue[None] = SimpleQueue()  # may be told by a destructor, in the middle of anything
        _keepers.add(self)
        self.start()

    def end(self) -> None:
        """It is to end. Doing it again does nothing."""
        self._notes.put(None)

    def run(self) -> None:
        self._notes.get()
        self._master.close()


_keepers: weakref.WeakSet[_Keeper] = weakref.WeakSet()
_exiting = threading.Event()


def _end_all() -> None:
    _exiting.set()
    for keeper in [*_keepers]:
        keeper.end()


# As `concurrent.futures` does: what `atexit` calls comes after threads were waited for, and these would wait for ever.
threading._register_atexit(_end_all)  # type: ignore[attr-defined]
