"""A task farm: a master has tasks, and workers on this machine or others do them.

    from rmpi import taskfarm

    with taskfarm.Master(4) as master:
        task = master.submit(pow, 2, 10)
        print(task.result())
        print(sum(master.map(math.sqrt, range(1000))))

After dpfw, Dan Muresan's "distributed processing framework" for CHICKEN Scheme (2006), from whose manual this was
written anew.

The names below are loaded when they are first used (PEP 562), so that a worker, of which there may be many, imports
no more than it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmpi.taskfarm.dialogue import Dialogue as Dialogue
    from rmpi.taskfarm.dialogue import read_result as read_result
    from rmpi.taskfarm.errors import BrokenFarm as BrokenFarm
    from rmpi.taskfarm.errors import WorkerLost as WorkerLost
    from rmpi.taskfarm.executor import Executor as Executor
    from rmpi.taskfarm.handles import Handle as Handle
    from rmpi.taskfarm.master import Master as Master
    from rmpi.taskfarm.master import Tasks as Tasks
    from rmpi.taskfarm.state import State as State
    from rmpi.taskfarm.state import worker_state as worker_state
    from rmpi.taskfarm.tasks import Task as Task
    from rmpi.taskfarm.workers import Worker as Worker

_HOME_OF = {
    "BrokenFarm": "rmpi.taskfarm.errors",
    "Dialogue": "rmpi.taskfarm.dialogue",
    "Executor": "rmpi.taskfarm.executor",
    "Handle": "rmpi.taskfarm.handles",
    "Master": "rmpi.taskfarm.master",
    "State": "rmpi.taskfarm.state",
    "Task": "rmpi.taskfarm.tasks",
    "Tasks": "rmpi.taskfarm.master",
    "Worker": "rmpi.taskfarm.workers",
    "WorkerLost": "rmpi.taskfarm.errors",
    "read_result": "rmpi.taskfarm.dialogue",
    "worker_state": "rmpi.taskfarm.state",
}

__all__ = [*_HOME_OF]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'rmpi.taskfarm' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
