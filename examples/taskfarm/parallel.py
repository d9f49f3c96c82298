"""dpfw's second example: two sums at once.

    python examples/taskfarm/parallel.py

prints [3, 10].
"""

from __future__ import annotations

from rmpi import taskfarm

if __name__ == "__main__":
    with taskfarm.Master(2) as master:
        print(master.parallel([lambda _i, _o: 2 + 1, (lambda _i, _o: 5 + 5, taskfarm.read_result)]))
