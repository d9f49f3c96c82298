"""Map-reduce for users: workers, and jobs for them."""

from __future__ import annotations

import os
import socket
import uuid
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rmpi import places, rpc
from rmpi.errors import PeerLost, RemoteError, RmpiError, UsageError
from rmpi.mapreduce.functions import function_of, optional_function_of
from rmpi.mapreduce.groups import Groups
from rmpi.mapreduce.ordering import sort_pairs
from rmpi.mapreduce.running import Running
from rmpi.mapreduce.runs import Runs
from rmpi.mapreduce.shelf import Shelf
from rmpi.mapreduce.storage import Storage, Store
from rmpi.mapreduce.sweeping import rare_sweeps
from rmpi.mapreduce.tasks import Doing, Job, Order, mapped, merge_in, reduced
from rmpi.places.parcels import pack_value

if TYPE_CHECKING:
    from rmpi.mapreduce.running import Farm
    from rmpi.places.handles import Node

MEMORY = 256 << 20
"""Bytes that the pairs of one task may take, if nobody says how many."""

LEAST_MEMORY = 1 << 16

TASKS_PER_WORKER = 32
"""Map tasks at most, on average. Of more inputs some are given together: so little is lost when a worker waits for the
last ones, and a thousand small inputs do not make a thousand small files."""

Function = Callable[..., Any] | str
"""A function, or its name as ``"module:function"``."""


class MapReduce:
    """Workers for jobs of map and reduce.

        with MapReduce(4) as mr:
            counts = mr.map_reduce(text_splits(files), count_words, add_up, combiner=add_up)

    Args:
        workers: How many processes on this machine; None: one for each core, but none if there are ``hosts``. 0: all
            is done in this process, one thing after the other, by the same functions. Or a `rmpi.taskfarm.Master`,
            whose workers are used, and which goes on afterwards.
        hosts: Machines, as for ``rmpi-run -H``: ``["host2:4", "alice@host3"]``.
        directory: Where tasks write, on each machine; by default where temporary files are (``TMPDIR``).

    Raises:
        UsageError: An argument is out of range.
        ExceptionGroup: Of `LaunchError`: hosts that cannot be used.

    Jobs may follow each other. At the end of the ``with``, or with `close`, workers end, and files are gone.
    """

    def __init__(
        self,
        workers: int | Farm | None = None,
        *,
        hosts: str | Sequence[str] | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        self._directory = None if directory is None else os.fspath(directory)
        self._is_ours = workers is None or isinstance(workers, int)
        self._farm: Farm | None = None
        self._storages: _Storages | None = None
        if not isinstance(workers, int) and workers is not None:
            if hosts is not None:
                raise UsageError("give a master, which has its workers, or hosts, not both")
            self._farm = workers
        elif workers != 0 or hosts is not None:
            from rmpi.taskfarm import Master

            self._farm = Master(workers, hosts=hosts)
        self._size = 0

    def map_reduce(
        self,
        inputs: Iterable[Any],
        mapper: Function,
        reducer: Function,
        *,
        combiner: Function | None = None,
        partitions: int | None = None,
        partition: Function | None = None,
        sort_key: Function | None = None,
        outputer: Function | None = None,
        retries: int = 3,
        speculative: bool = False,
        memory: int = MEMORY,
        progress: bool | None = None,
    ) -> Any:
        """Map every input to pairs of a key and a value, and reduce all values of each key.

        Functions are given themselves, or as ``"module:function"``. All but the outputer run in workers.

        Args:
            inputs: Any values, such as paths, or pieces of files (`text_splits`).
            mapper: ``mapper(input)`` gives pairs: it yields them, or returns a list of them or a dictionary. Keys are
                what `stable_hash` knows.
            reducer: ``reducer(key, values)`` gives pairs too, of any keys; mostly it yields one. ``values`` is a list,
                in the order of the inputs, and within an input in the order in which the mapper gave them.
            combiner: Like a reducer, for some of the values of a key, where they were mapped, so that less travels. It
                is called any number of times, with two values or more, which may be what it gave itself.
            partitions: How many reduce tasks there are; by default as many as workers.
            partition: ``partition(key, partitions)`` is the partition of a key, from 0 on; in place of `stable_hash`.
            sort_key: Keys are sorted by ``sort_key(key)``; by default numbers come before strings, and so on: see
                `rmpi.mapreduce.ordering`.
            outputer: Called here, with all pairs that reducers gave, as a list, sorted by key.
            retries: How often a task may fail, its worker's death included; then the job fails.
            speculative: Whether a task that takes much longer than others is done a second time by a worker that has
                nothing else to do. The first that is ready counts.
            memory: Bytes that the pairs of one task may take; what is more goes to disk. All values of one key must
                fit into memory, and so must what reducers give into ours.
            progress: Whether to say on stderr how far we are: None: if that is a terminal; True: also if not.

        Returns:
            What the outputer returned, if that is not None; else the list of pairs.

        Raises:
            UsageError: An argument is out of range, or a function is not there. Nothing was begun.
            MapReduceError: A task failed too often: with which input, and the traceback.
        """
        farm = self._farm
        job = Job(
            function_of(mapper, "mapper"),
            function_of(reducer, "reducer"),
            optional_function_of(combiner, "combiner"),
            optional_function_of(partition, "partition"),
            optional_function_of(sort_key, "sort_key"),
            _positive(self._workers if partitions is None else partitions, "partitions"),
            _at_least(memory, LEAST_MEMORY, "memory"),
        )
        output = optional_function_of(outputer, "outputer")
        _positive(retries, "retries")
        items = [*inputs]
        with rare_sweeps():
            if farm is None:
                pairs = self._run_here(job, items)
            elif items:
                pairs = self._run(farm, job, items, retries, speculative, progress)
            else:
                pairs = []
            sort_pairs(pairs, job.sort_key)
        returned = None if output is None else output(pairs)
        return pairs if returned is None else returned

    @property
    def _workers(self) -> int:
        """How many there are; those that have not answered yet, or are just being replaced, count too."""
        self._size = max(self._size, 0 if self._farm is None else self._farm.greeted)
        return max(1, self._size)

    def _run(
        self, farm: Farm, job: Job, items: list[Any], retries: int, speculative: bool, progress: bool | None
    ) -> list[tuple[Any, Any]]:
        packed = pack_value(job, "the functions of the job")
        if self._storages is None:
            self._storages = _Storages(farm, self._directory)
        self._storages.check(farm)
        name = uuid.uuid4().hex
        storage = self._storages.begin_job(name)
        batches = batched(items, TASKS_PER_WORKER * self._workers)
        try:
            order = Order(packed, storage, name, self._workers)
            return Running(farm, order, batches, job.partitions, retries, speculative, progress).run()
        finally:
            self._storages.end_job(name)

    def _run_here(self, job: Job, items: list[Any]) -> list[tuple[Any, Any]]:
        """The same functions in the same way, without tasks: what a worker would write is taken at once."""
        nothing = Doing(str)
        groups = Groups(job.combiner, job.memory)
        runs = Runs(self._directory, job.sort_key, job.memory)
        try:
            for item in items:
                for chunk in mapped(job, [item], nothing):
                    merge_in(chunk, groups, runs)
            return [pair for pairs in reduced(job, runs.merged(groups), nothing) for pair in pairs]
        finally:
            runs.close()

    def close(self) -> None:
        """End the workers, if they are ours, and remove all files. Doing it again does nothing."""
        storages, self._storages = self._storages, None
        farm, self._farm = self._farm, None
        if storages is not None:
            storages.close()
        if farm is not None and self._is_ours:
            farm.close()  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return "<MapReduce in this process>" if self._farm is None else f"<MapReduce on {self._farm!r}>"


def batched(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """``items`` in ``count`` batches at most, in order; their lengths differ by one at most."""
    count = min(count, len(items))
    return [items[len(items) * index // count : len(items) * (index + 1) // count] for index in range(count)]


def _positive(number: Any, name: str) -> int:
    return _at_least(number, 1, name)


def _at_least(number: Any, least: int, name: str) -> int:
    if type(number) is not int or number < least:
        raise UsageError(f"{name} must be a number from {least} on, not {number!r}")
    return number


class _Storages:
    """The stores of all machines. They are removed by `close`, or else when the program ends in an ordinary way."""

    def __init__(self, farm: Farm, parent: str | None) -> None:
        self._store: Store | None = None
        self._shelves: list[Shelf] = []
        self._directories: list[tuple[Node, str, str]] = []
        nodes: list[Node] = getattr(farm, "nodes", [])
        if all(node == places.here() for node in nodes):
            self._store = Store(parent)
            self.close: Callable[[], Any] = weakref.finalize(self, self._store.close)
            return
        self.close = weakref.finalize(self, _clear, self._shelves)
        for node in nodes:
            name = f"shelf-{uuid.uuid4().hex}"
            shelf = Shelf.at(node, parent, name, name=name, restart=True)
            self._shelves.append(shelf)
            self._directories.append((node, name, shelf.directory()))

    def check(self, farm: Farm) -> None:
        """Raise `UsageError` if there are workers on machines that have no store."""
        if self._store is None:
            return  # tasks will say so
        ours = socket.gethostname()
        others = sorted({host for worker in farm.workers if (host := getattr(worker, "host", ours)) != ours})
        if others:
            raise UsageError(
                f"there are workers on {', '.join(others)} that the master has not started: what they write cannot be "
                "fetched. Give MapReduce the machines as hosts="
            )

    def begin_job(self, name: str) -> Storage:
        if self._store is not None:
            self._store.job(name)
            return Storage(str(self._store.path))
        for shelf in self._shelves:
            with suppress(PeerLost):
                shelf.begin_job(name)
        return Storage("", tuple(self._directories))

    def end_job(self, name: str) -> None:
        if self._store is not None:
            self._store.end_job(name)
        for shelf in self._shelves:
            with suppress(PeerLost, RemoteError):
                shelf.end_job(name)


def _clear(shelves: list[Shelf]) -> None:
    for shelf in shelves:
        with suppress(RmpiError):  # the machine may be gone
            shelf.clear()
            rpc.stop(shelf)


def make_workers(config: int | str | Sequence[str] | None = None, **options: Any) -> MapReduce:
    """Workers for `map_reduce`: a number of them on this machine, or on hosts.

    Args:
        config: A number; or hosts, as ``["host2:4", "host3"]``; None: one worker for each core.
        options: As for `MapReduce`.
    """
    if config is None or isinstance(config, int):
        return MapReduce(config, **options)
    return MapReduce(None, hosts=config, **options)


def map_reduce(workers: Any, inputs: Iterable[Any], mapper: Function, reducer: Function, **options: Any) -> Any:
    """One job, as `MapReduce.map_reduce`.

    Args:
        workers: A `MapReduce`, which goes on afterwards; or what that or `make_workers` takes, for this job alone.
    """
    if isinstance(workers, MapReduce):
        return workers.map_reduce(inputs, mapper, reducer, **options)
    is_config = workers is None or isinstance(workers, (int, str, list, tuple))
    with make_workers(workers) if is_config else MapReduce(workers) as those:
        return those.map_reduce(inputs, mapper, reducer, **options)
