"""The master: whoever has tasks, and workers to do them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait as wait_for
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from rmpi.deadline import Deadline
from rmpi.errors import UsageError
from rmpi.places.creation import create_nodes, here
from rmpi.places.hosts import HostSpec, parse_host_list
from rmpi.places.local import LOOPBACK
from rmpi.taskfarm.crew import Crew
from rmpi.taskfarm.dialogue import Procedure, read_result
from rmpi.taskfarm.farm import Farm
from rmpi.taskfarm.handles import Handle
from rmpi.taskfarm.mapping import Mapping
from rmpi.taskfarm.meeting import Gate, Visit
from rmpi.taskfarm.packing import pack, pack_function
from rmpi.taskfarm.ranks import workers as job_workers
from rmpi.taskfarm.talking import Talk
from rmpi.taskfarm.tasks import Assignment, Options, Task
from rmpi.taskfarm.workers import Worker

if TYPE_CHECKING:
    from rmpi.places.handles import Node
    from rmpi.taskfarm.link import Link

P = ParamSpec("P")
T = TypeVar("T")

GRACE = 2.0
"""Seconds for workers without tasks to end by themselves."""


class Master:
    """Workers, and tasks for them.

        with taskfarm.Master(4) as master:
            task = master.submit(pow, 2, 10)
            print(task.result())
            print(sum(master.map(math.sqrt, range(1000))))

    Workers are processes. They execute one task after the other; a task that is submitted while all are busy waits. One
    that is lost (it was killed, its machine is gone, it was stopped for more than five seconds) is replaced; what it
    was doing is tried again as often as `retries` says, and else raises `WorkerLost`.

    At the end of a ``with`` all tasks are waited for; if the block raised, what is unfinished is cancelled.

    Any thread may use it.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        hosts: str | Sequence[str] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        retries: int = 0,
        max_tasks_per_worker: int | None = None,
    ) -> None:
        """Start workers.

        Args:
            workers: How many on this machine. None: one for each core that this process may use, but none if there are
                ``hosts``; or the other ranks of the job, in ``rmpi-run -m rmpi.taskfarm script.py``. 0: none; they come
                by `listen` and `connect`.
            hosts: Machines, as for ``rmpi-run -H``: ``["host2:4", "alice@host3"]``, with four workers and one.
            initializer: Each worker calls ``initializer(*initargs)`` before its first task. If that raises, no task can
                be done, and all raise `BrokenFarm`.
            retries: How often a task is tried again whose worker was lost; see `with_options`.
            max_tasks_per_worker: A worker that it has started leaves after so many tasks, and is replaced; a piece of
                a `map` counts as one. A dialogue, or a task for this worker alone, that comes when it leaves is lost.

        Raises:
            UsageError: An argument is out of range.
            ExceptionGroup: Of `LaunchError`: hosts that cannot be used. Nothing is left running.
        """
        ranks = job_workers() if workers is None and hosts is None else []
        count = _checked_count(workers, hosts is not None or bool(ranks))
        machines = _checked_hosts(hosts)
        self._options = checked(Options(retries=retries))
        self._limit = _checked_limit(max_tasks_per_worker)
        self._farm = Farm(initializer, initargs, label="this task farm")
        self._farm.on_lost = self._replace
        self._crews: list[Crew] = []
        self._nodes: list[Node] = []
        self._own: list[Node] = []
        self._visits: list[Visit] = []
        self._gate: Gate | None = None
        self._talks: set[Task[Any]] = set()
        self._closing = threading.Lock()
        self._closer: int | None = None  # the thread that was the first to close it
        self._closed = threading.Event()
        try:
            self._start(count, machines)
            for label, channel in ranks:
                self._farm.greet(channel, label)
        except BaseException:
            self._kill()
            raise

    def _start(self, count: int, machines: list[HostSpec]) -> None:
        if machines:
            self._own = create_nodes([{"host": _address(spec), "python": spec.python} for spec in machines])
        for node, spec in zip(self._own, machines, strict=True):
            self._man(node, spec.slots or 1, f" on {node.label}", None)
        if count:
            self._man(here(), count, "", bytes(multiprocessing.current_process().authkey))

    def _man(self, node: Node, count: int, where: str, key: bytes | None) -> None:
        self._nodes.append(node)
        terms = self._limit, key
        self._crews.append(Crew(self._farm, node, count, lambda number: f"worker {number}{where}", terms))

    def _replace(self, link: Link) -> None:
        for crew in self._crews:
            crew.lost(link)
        for visit in self._visits:
            visit.lost(link)

    # ------------------------------------------------------------------------------------ tasks

    def with_options(
        self, *, retries: int | None = None, timeout: float | None = None, worker: Worker | None = None
    ) -> Tasks:
        """The same master, for tasks that are to be done in a special way.

            careful = master.with_options(retries=3, timeout=60)
            careful.submit(fetch, url)

        Args:
            retries: How often a task is tried again whose worker was lost; it may then be executed, wholly or in part,
                several times. None: as the master was told.
            timeout: Seconds for a task from when a worker gets it. After that it raises `DeadlineExceeded`, and the
                worker is ended, because nothing else ends what it does, and replaced.
            worker: Who is to do it. If that one is lost the task is not tried again.

        Raises:
            UsageError: One of them is out of range.
        """
        tries = self._options.retries if retries is None else retries
        return Tasks(self, checked(Options(tries, timeout, worker)))

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """Have ``function(*args, **kwargs)`` called by a worker.

        Functions and arguments are copies there. What workers cannot import (functions of the script, nested ones,
        lambdas) travels by value, for which ``cloudpickle`` must be installed (``rmpi[notebook]``). Arrays of 64 KiB
        and more are sent without being copied, so they must not be changed before the task is done.

        Returns:
            A future. Its ``result`` raises what the function raised, with the worker's traceback as its cause;
            `WorkerLost` if the worker was lost; `BrokenFarm` if there is none any more.

        Raises:
            UsageError: Something cannot be pickled, or the master is closed.
            BrokenFarm: There are no workers any more.
        """
        return self._submit(self._options, function, args, kwargs)

    def _submit(
        self, options: Options, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Task[T]:
        packed_function = pack_function(function)
        packed = pack((args, kwargs), "the arguments of the task")
        task: Task[T] = Task()
        self._farm.add(Assignment(self._farm.next_number(), packed_function, packed, task, options), options.worker)
        return task

    def map(
        self,
        function: Callable[..., T],
        *iterables: Iterable[Any],
        ordered: bool = True,
        chunksize: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[T]:
        """Call ``function`` with each item, or with one of each of several iterables, as `map` does.

        It begins at once; what comes out may be taken later. The iterables are gone through before this returns.

        Args:
            ordered: Results come in the order of the items; else as they are ready.
            chunksize: How many calls a worker gets at a time; None: as many as take some milliseconds.
            timeout: Seconds from now until which the next result must have come.

        Returns:
            An iterator of the results. It raises what ``function`` has raised, instead of its result, and is then at
            its end: what is not begun is not done any more. So it is when it is closed or dropped after its first
            result was asked for; of a map whose results nobody takes, all is done.

        Raises:
            As for `submit`.
        """
        return self._map(self._options, function, iterables, ordered, chunksize, timeout)

    def _map(
        self,
        options: Options,
        function: Callable[..., T],
        iterables: tuple[Iterable[Any], ...],
        ordered: bool,
        chunksize: int | None,
        timeout: float | None,
    ) -> Iterator[T]:
        if chunksize is not None and (type(chunksize) is not int or chunksize < 1):
            raise UsageError(f"chunksize must be a number of calls from 1, not {chunksize!r}")
        if not iterables:
            raise UsageError("map() needs something to map the function over")
        if options.worker is not None:
            raise UsageError("map() gives its calls to any worker; submit() can choose one")
        deadline = Deadline.after(timeout)
        arguments = list(zip(*iterables, strict=False))
        mapping = Mapping(
            pack_function(function), arguments, options, chunksize or 0, self._farm.next_number, self._farm.withdraw
        )
        if arguments:
            self._farm.add(mapping)
        return self._results(mapping, deadline, ordered)

    def _results(self, mapping: Mapping, deadline: Deadline, ordered: bool) -> Iterator[Any]:
        try:
            yield from mapping.results(deadline, ordered)
        finally:
            mapping.over = True
            if mapping.size:
                self._farm.withdraw(mapping)

    # ------------------------------------------------------------------------------------ dialogues

    def make_task(self, remote: Procedure, local: Procedure = read_result, worker: Worker | None = None) -> Task[Any]:
        """A dialogue: ``remote(i, o)`` runs in a worker and ``local(i, o)`` here, in a thread, and they talk meanwhile.

        What ``remote`` returns is put last. So a local procedure that only reads one value, which is the default, gets
        what the remote one returns. See `rmpi.taskfarm.Dialogue`.

        Args:
            worker: Who runs ``remote``; None: anybody.

        Returns:
            A future of what ``local`` returns. The worker is free as soon as ``remote`` has returned. If the worker is
            lost, ``local``'s next `Dialogue.get` raises `WorkerLost`; a dialogue is not tried again.

        Raises:
            As for `submit`.
        """
        task: Task[Any] = Task()
        options = checked(Options(worker=worker))
        function = pack_function(remote)
        self._talks.add(task)
        task.add_done_callback(self._talks.discard)
        try:
            self._farm.add(Talk(self._farm.next_number(), function, local, task, options), worker)
        except BaseException:
            self._talks.discard(task)
            raise
        return task

    def parallel(self, pairs: Iterable[Procedure | tuple[Procedure, Procedure]]) -> list[Any]:
        """Several dialogues at once; what their local procedures have returned, in this order.

            master.parallel([(remote, local), (remote, local)])

        Args:
            pairs: Remote and local procedures; or a remote one alone, whose return value is wanted.

        Raises:
            Exception: What the first of them raised that did; the others go on.
        """
        procedures = [pair if isinstance(pair, tuple) else (pair, read_result) for pair in pairs]
        tasks = [self.make_task(remote, local) for remote, local in procedures]
        return [task.result() for task in tasks]

    # ------------------------------------------------------------------------------------ workers

    def get_worker(self, wait: bool = True, timeout: float | None = None) -> Worker | None:
        """Lease a worker: it gets only tasks that are given to it by name, until `Worker.release`.

            with master.get_worker() as worker:
                master.make_task(install_counter, worker=worker).result()
                master.with_options(worker=worker).submit(count).result()

        Args:
            wait: Wait until one has nothing to do.
            timeout: Seconds to wait; None: as long as it takes.

        Returns:
            None: There is none, or was none in time.
        """
        Deadline.after(timeout)
        return self._farm.lease(wait, timeout)

    def worker(self) -> Worker:
        """`get_worker`, for use in a ``with``."""
        worker = self.get_worker()
        assert worker is not None
        return worker

    def listen(self, address: str = LOOPBACK, port: int = 0, *, key_file: str | Path) -> str:
        """Take workers that come by themselves, now or later, and may go again.

            python -m rmpi.taskfarm worker --connect host:7000 --key-file team.key

        Args:
            address: One address of this machine, or ``"0.0.0.0"`` for all; by default only its own programs get here.
            port: 0 for any that is free.
            key_file: Who has the same key may come, and so run any program here (`rmpi.places.listen`).

        Returns:
            Where it listens: ``"127.0.0.1:40123"``.

        Raises:
            LaunchError: Nobody can listen there, or the key file cannot be used.
            UsageError: Another master of this program listens already.
        """
        if self._gate is not None:
            return self._gate.address
        self._gate = Gate(self._farm, address, port, key_file)
        return self._gate.address

    def connect(self, address: str, *, key_file: str | Path, timeout: float | None = 10.0) -> None:
        """Go to workers that listen, and have them take part. They may have other masters too.

            python -m rmpi.taskfarm worker --listen 0.0.0.0:7000 --key-file team.key

        Args:
            address: ``"host2:7000"``.
            key_file: The same key as theirs.
            timeout: Seconds until they must have let us in.

        Raises:
            LaunchError: They cannot be reached, or do not let us in.
        """
        self._visits.append(Visit(self._farm, address, key_file, timeout))

    @property
    def workers(self) -> list[Worker]:
        """Those that are there, busy or not."""
        return self._farm.workers

    @property
    def nodes(self) -> list[Node]:
        """The nodes on which it has started workers."""
        return [*self._nodes]

    @property
    def greeted(self) -> int:
        """How many workers there are, or will be when they have answered."""
        return self._farm.greeted

    def wait_for_workers(self, count: int, timeout: float | None = None) -> bool:
        """Wait until there are so many. False: there were not after ``timeout`` seconds."""
        return self._farm.wait_for_workers(count, timeout)

    # ------------------------------------------------------------------------------------ values, and the end

    def scatter(self, value: T) -> Handle[T]:
        """A handle that stands for ``value`` in arguments of tasks. It is sent to each worker that needs it, once.

        Tasks share what they get, so they must not change it; an array is read-only there. Nor may it be changed here
        as long as there is a handle. When nobody holds that any more, workers forget the value.
        """
        return self._farm.scatter(value)

    def cancel_waiting(self) -> None:
        """Cancel the tasks that no worker was given."""
        self._farm.clear()

    @property
    def is_heard_here(self) -> bool:
        """Whether this is the thread that hears workers, which calls the callbacks of tasks and must not wait."""
        return self._farm.is_heard_here

    def close(self, *, wait: bool = True) -> None:
        """End the farm, and the workers that it has started. Doing it again waits until that is done, if ``wait``.

        Args:
            wait: Wait until all tasks are done; else they are cancelled, and workers that execute one are killed.

        Raises:
            UsageError: ``wait`` in a callback of a task.
        """
        if wait:
            self._farm.wait_until_done(Deadline.NEVER)
            wait_for(tuple(self._talks))
        with self._closing:
            first = self._closer is None
            if first:
                self._closer = threading.get_ident()
        if first:
            try:
                (self._end if wait else self._kill)()
            except BaseException:  # Ctrl-C
                self._kill()
                raise
            finally:
                self._closed.set()
        elif wait and self._closer != threading.get_ident():  # else it is a callback of a task that was cancelled
            self._closed.wait()

    def _end(self) -> None:
        self._depart()
        deadline = Deadline.after(GRACE)
        for crew in self._crews:
            crew.end(deadline)
        for node in self._own:
            node.shutdown()

    def _kill(self) -> None:
        self._farm.clear()
        self._depart()
        for crew in self._crews:
            crew.kill()
        for node in self._own:
            node.kill()

    def _depart(self) -> None:
        for crew in self._crews:
            crew.retire()
        if self._gate is not None:
            self._gate.close()
        self._farm.close()
        for visit in self._visits:
            visit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close(wait=error is None)
        except BaseException:  # Ctrl-C
            self.close(wait=False)
            raise

    def __repr__(self) -> str:
        return f"<Master of {len(self.workers)} workers>"


class Tasks:
    """A `Master` with options; see `Master.with_options`."""

    def __init__(self, master: Master, options: Options) -> None:
        self._master = master
        self._options = options

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]:
        """`Master.submit`."""
        return self._master._submit(self._options, function, args, kwargs)

    def map(
        self,
        function: Callable[..., T],
        *iterables: Iterable[Any],
        ordered: bool = True,
        chunksize: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[T]:
        """`Master.map`."""
        return self._master._map(self._options, function, iterables, ordered, chunksize, timeout)


def checked(options: Options) -> Options:
    """Those options, if they can be.

    Raises:
        UsageError: They cannot.
    """
    if type(options.retries) is not int or options.retries < 0:
        raise UsageError(f"retries must be a number from 0, not {options.retries!r}")
    if options.timeout is not None and not Deadline.after(options.timeout).left() > 0:
        raise UsageError(f"timeout must be more than 0 seconds, not {options.timeout!r}")
    if options.worker is not None and not isinstance(options.worker, Worker):
        raise UsageError(f"worker must be one of the master's workers, not {options.worker!r}")
    return options


def _checked_count(workers: int | None, elsewhere: bool) -> int:
    if workers is None:
        return 0 if elsewhere else len(os.sched_getaffinity(0))
    if type(workers) is not int or workers < 0:
        raise UsageError(f"workers must be a number from 0, not {workers!r}")
    return workers


def _checked_limit(tasks: int | None) -> int | None:
    if tasks is not None and (type(tasks) is not int or tasks < 1):
        raise UsageError(f"max_tasks_per_worker must be a number from 1, not {tasks!r}")
    return tasks


def _checked_hosts(hosts: str | Sequence[str] | None) -> list[HostSpec]:
    if hosts is None:
        return []
    return parse_host_list(hosts if isinstance(hosts, str) else ",".join(hosts))


def _address(spec: HostSpec) -> str:
    """The host without its slots."""
    name = f"[{spec.name}]" if ":" in spec.name else spec.name
    return name if spec.user is None else f"{spec.user}@{name}"
