"""Dialogues: a procedure in a worker, one here, and what they say to each other."""
# ruff: noqa: ARG001, ARG005  each of them is given both ends

import threading
import time

import chores
import numpy as np
import pytest
from looking import until

from rmpi.errors import DeadlineExceeded, PeerExited, UsageError
from rmpi.taskfarm import WorkerLost, read_result, worker_state


def test_what_the_remote_procedure_returns_is_read_by_default(master):
    assert master.make_task(lambda i, o: 2 + 3).result(20) == 5
    assert master.make_task(lambda i, o: 2 + 3, read_result).result(20) == 5


def test_the_parallel_example_of_the_ancestor(master):
    both = [(lambda i, o: 2 + 1, read_result), lambda i, o: 5 + 5]
    assert master.parallel(both) == [3, 10]


def test_the_generator_example_of_the_ancestor(master):
    """A closure is put into the state of a worker, and called twice."""

    def install(i, o):
        def make():
            values = iter(range(1, 100))
            return lambda: next(values)

        worker_state().setdefault_with("a generator", make)

    def call(i, o):
        return worker_state()["a generator"]()

    with master.get_worker() as worker:
        master.make_task(install, worker=worker).result(20)
        assert [master.make_task(call, worker=worker).result(20) for _ in range(2)] == [1, 2]


def test_both_procedures_talk(master):
    def answer(i, o):
        assert i.get() == "how far?"
        o.put(10)
        return i.get()

    assert master.make_task(chores.sum_up, answer).result(20) == 45


def test_many_dialogues_more_than_workers(master):
    def local(i, o):
        o.put(5)
        return i.get()

    assert master.parallel([(lambda i, o: i.get() * 2, local)] * 10) == [10] * 10


def test_much_is_said_both_ways(master):
    def local(i, o):
        for number in range(500):
            o.put(number)
        return [i.get() for _ in range(500)]

    assert master.make_task(chores.echo, local).result(20) == list(range(500))


def test_arrays_and_lambdas_are_said(master):
    def local(i, o):
        o.put(np.ones(100_000))
        o.put(lambda: 5)
        return i.get().sum(), i.get()()

    assert master.make_task(chores.echo, local).result(20) == (100_000, 5)


def test_a_loop_over_what_is_said_ends_with_the_other_procedure(master):
    def local(i, o):
        o.put(1)
        o.put(2)
        return i.get(), i.get()

    def remote(i, o):
        heard = []
        for value in i:
            heard.append(value)
            o.put(value)
        worker_state()["heard"] = heard

    with master.worker() as worker:
        assert master.make_task(remote, local, worker=worker).result(20) == (1, 2)
        assert master.with_options(worker=worker).submit(chores.recall, "heard").result(20) == [1, 2]


def test_getting_more_than_was_said(master):
    def local(i, o):
        first = i.get()
        with pytest.raises(PeerExited, match="what it returned was got"):
            i.get()
        return first, list(i)

    assert master.make_task(lambda i, o: "only", local).result(20) == ("only", [])


def test_what_comes_in_time_and_what_does_not(master):
    def local(i, o):
        with pytest.raises(DeadlineExceeded, match=r"has said nothing for 0\.05 s"):
            i.get(timeout=0.05)
        silent = i.poll()
        o.put("go on")
        value = i.get(timeout=20)
        return silent, value

    def remote(i, o):
        try:
            i.get(timeout=0.01)
        except DeadlineExceeded:
            return i.get(), i.poll()

    assert master.make_task(remote, local).result(20) == (False, ("go on", False))


def test_a_worker_is_free_when_the_remote_procedure_has_returned(master):
    over = threading.Event()

    def local(i, o):
        value = i.get()
        assert over.wait(20)
        return value

    with master.worker() as worker:
        task = master.make_task(lambda i, o: "here", local, worker=worker)
        until(lambda: worker.done and not worker.busy)
        assert master.with_options(worker=worker).submit(pow, 2, 2).result(20) == 4
        assert not task.done()
        over.set()
        assert task.result(20) == "here"


def test_what_the_remote_procedure_raises_comes_behind_what_it_has_said(master):
    def local(i, o):
        first = i.get()
        try:
            i.get()
        except ValueError as error:
            return first, str(error)

    assert master.make_task(chores.say_and_fail, local).result(20) == ("first", "enough")
    with pytest.raises(ValueError, match="enough"):
        master.make_task(chores.say_and_fail, lambda i, o: (i.get(), i.get())).result(20)


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_what_the_local_procedure_raises_is_the_task_s_and_ends_the_remote_one(master, error):
    def local(i, o):
        raise error("not here")

    with pytest.raises(error, match="not here"):
        master.make_task(chores.wait_for_ever, local).result(20)


def test_the_worker_dies_during_a_dialogue(master):
    def local(i, o):
        first = i.get()
        o.put("die")
        try:
            return i.get()
        except WorkerLost as error:
            return first, str(error)

    first, error = master.with_options(retries=5) and master.make_task(chores.say_and_die, local).result(20)
    assert (first, "SIGKILL" in error) == ("first", True)
    until(lambda: len(master.workers) == 2)


def test_what_cannot_be_said(master):
    errors = []

    def local(i, o):
        for value in (threading.Lock(), master.scatter(5)):
            try:
                o.put(value)
            except UsageError as error:
                errors.append(str(error))
        o.put(chores.Trap())
        return i.get()

    with pytest.raises(LookupError, match="it was a trap"):
        master.make_task(chores.echo, local).result(20)
    assert "what is put into the dialogue cannot be pickled" in errors[0]
    assert "not be put into a dialogue" in errors[1]


def test_what_cannot_be_unpickled_is_raised_by_get(master):
    def remote(i, o):
        o.put(chores.Trap())
        return "end"

    def local(i, o):
        with pytest.raises(LookupError):
            i.get()
        return i.get()

    assert master.make_task(remote, local).result(20) == "end"


def test_a_dialogue_that_waits_for_a_worker_can_be_cancelled(master, gate):
    held = [gate.holds(master), gate.holds(master)]
    task = master.make_task(chores.wait_for_ever)
    assert task.cancel()
    gate.open()
    assert all(each.result(20) for each in held)


def test_an_error_of_parallel_is_the_first(master):
    begun = time.monotonic()
    with pytest.raises(ValueError, match="enough"):
        master.parallel([lambda i, o: 1, (chores.say_and_fail, lambda i, o: (i.get(), i.get())), lambda i, o: 3])
    assert time.monotonic() - begun < 20
