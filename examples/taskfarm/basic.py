"""dpfw's first example: a sum, computed by a worker.

    python examples/taskfarm/basic.py

prints 5.
"""

from __future__ import annotations

from rmpi import taskfarm

if __name__ == "__main__":
    with taskfarm.Master(1) as master:
        task = master.make_task(lambda _i, _o: 2 + 3)
        print(task.result())
