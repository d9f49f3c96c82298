"""The end of the system that the workers belong to."""

import chores
import pytest
from looking import until

from rmpi import places, taskfarm
from rmpi.taskfarm import BrokenFarm, WorkerLost


def test_the_end_of_the_places_is_the_end_of_the_farm():
    master = taskfarm.Master(1)
    task, waits = master.submit(chores.nap, 60), master.submit(chores.nap, 60)
    until(task.running)
    places.shutdown()
    assert isinstance(task.exception(30), (WorkerLost, BrokenFarm))
    assert isinstance(waits.exception(30), BrokenFarm)
    with pytest.raises(BrokenFarm):
        master.submit(pow, 2, 2).result(30)
    master.close()
