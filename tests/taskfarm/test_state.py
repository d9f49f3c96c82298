"""What a worker keeps from one task to the next."""

import pickle
import threading

import chores
import pytest

from rmpi.errors import UsageError
from rmpi.taskfarm import State, worker_state


def test_a_key_is_made_once():
    state = State()
    made = []

    def make():
        made.append(1)
        return len(made)

    assert [state.setdefault_with("key", make) for _ in range(3)] == [1, 1, 1]
    assert state == {"key": 1}


def test_a_factory_that_fails_makes_nothing_and_may_be_tried_again():
    state = State()
    with pytest.raises(ZeroDivisionError):
        state.setdefault_with("key", lambda: 1 / 0)
    assert state.setdefault_with("key", lambda: None) is None
    assert "key" in state


def test_a_factory_may_use_the_state():
    state = State()
    assert state.setdefault_with("outer", lambda: state.setdefault_with("inner", lambda: 1) + 1) == 2


def test_of_many_threads_one_makes_it():
    state = State()
    begun, made = threading.Barrier(8), []

    def ask():
        begun.wait()
        state.setdefault_with("key", lambda: made.append(1))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_it_cannot_be_sent():
    with pytest.raises(TypeError, match="return what you need of it"):
        pickle.dumps(worker_state())


def test_it_outlives_tasks_and_is_each_worker_s_own(master):
    one, two = (master.with_options(worker=worker) for worker in master.workers)
    one.submit(chores.remember, "mine", 1).result(20)
    assert (one.submit(chores.recall, "mine").result(20), two.submit(chores.recall, "mine").result(20)) == (1, None)
    with pytest.raises(UsageError, match="stays where it is"):
        one.submit(worker_state).result(20)
