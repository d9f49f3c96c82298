"""dpfw's third example: a counter that stays in a worker between tasks.

    python examples/taskfarm/generator.py

prints 1 and 2. The worker is leased, so that the next task finds it where the first has left it.
"""

from __future__ import annotations

from itertools import count

from rmpi import taskfarm
from rmpi.taskfarm import Dialogue, worker_state


def install(_i: Dialogue, _o: Dialogue) -> None:
    worker_state().setdefault_with("uniqID", count(1).__iter__)


def draw(_i: Dialogue, _o: Dialogue) -> int:
    number: int = next(worker_state()["uniqID"])
    return number


if __name__ == "__main__":
    with taskfarm.Master(2) as master, master.worker() as worker:
        master.make_task(install, worker=worker).result()
        print(master.make_task(draw, worker=worker).result())
        print(master.make_task(draw, worker=worker).result())
