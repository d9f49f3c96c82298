"""A task farm: a master has tasks, and workers on this machine or others do them.

    from rmpi import taskfarm

    with taskfarm.Master(4) as master:
        task = master.submit(pow, 2, 10)
        print(task.result())
        print(sum(master.map(math.sqrt, range(1000))))

After dpfw, Dan Muresan's "distributed processing framework" for CHICKEN Scheme (2006), from whose manual this was
written anew.
"""

from __future__ import annotations

from rmpi.taskfarm.dialogue import Dialogue, read_result
from rmpi.taskfarm.errors import BrokenFarm, WorkerLost
from rmpi.taskfarm.executor import Executor
from rmpi.taskfarm.handles import Handle
from rmpi.taskfarm.master import Master, Tasks
from rmpi.taskfarm.state import State, worker_state
from rmpi.taskfarm.tasks import Task
from rmpi.taskfarm.workers import Worker

__all__ = [
    "Executor", "Master", "Task", "Tasks", "Worker",
    "Dialogue", "read_result",
    "Handle", "State", "worker_state",
    "BrokenFarm", "WorkerLost",
]  # fmt: skip
