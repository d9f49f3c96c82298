"""Tasks among workers that die and stop at random, for as long as one likes: python tests/taskfarm/farm_soak.py 600"""

import os
import random
import signal
import sys
import threading
import time

from rmpi import taskfarm
from rmpi.taskfarm import crew


def task(number):
    """Most take no time, some a millisecond, few some more."""
    if number % 97 == 0:
        time.sleep(0.02)
    elif number % 10 == 0:
        time.sleep(0.001)
    return number * 3


def torment(master, chance, over, blows):
    """Kill or stop a worker now and then."""
    while not over.wait(chance.uniform(0.05, 0.4)):
        workers = master.workers
        if workers:
            try:
                os.kill(chance.choice(workers).pid, chance.choice([signal.SIGKILL, signal.SIGSTOP]))
            except ProcessLookupError:  # it has died in this moment
                continue
            blows.append(1)


def soak(seed, tasks, workers, seconds):
    """Rounds of so many tasks until the time is over. How often a worker was killed or stopped.

    Each task is tried again until it is done, so all results must be right: of tasks, maps, both ways.
    """
    chance = random.Random(seed)
    over = threading.Event()
    blows = []
    with taskfarm.Master(workers, retries=1_000_000) as master:
        master.wait_for_workers(workers)
        tormentor = threading.Thread(target=torment, args=(master, chance, over, blows))
        tormentor.start()
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                handle = master.scatter(list(range(100)))
                futures = [master.submit(task, number) for number in range(tasks // 2)]
                mapped = master.map(task, range(tasks // 2))
                summed = [master.submit(sum, handle) for _ in range(20)]
                loose = sorted(master.map(task, range(500), ordered=False, chunksize=7))
                assert list(mapped) == [3 * number for number in range(tasks // 2)]
                assert [future.result() for future in futures] == [3 * number for number in range(tasks // 2)]
                assert [future.result() for future in summed] == [4950] * 20
                assert loose == [3 * number for number in range(500)]
        finally:
            over.set()
            tormentor.join()
    return len(blows)


if __name__ == "__main__":
    crew.PATIENCE, crew.LOOK, crew.SHORT = 0.3, 0.1, 0.0
    length = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    first = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)
    print(f"seed {first}", flush=True)
    print(f"{soak(first, 10_000, 3, length)} workers were killed or stopped, and all results were right")
