"""The loop of a worker: what it does with what masters say. Masters are played by scripts; only the worker is real."""

import pickle
import queue
import threading

import chores
import pytest

from rmpi.deadline import Deadline
from rmpi.errors import ChannelClosed, DeadlineExceeded, PeerExited, PeerLost, RemoteError
from rmpi.places.channel import Message
from rmpi.places.parcels import pack_value
from rmpi.taskfarm import remembering, working
from rmpi.taskfarm.errors import NotPicklable
from rmpi.taskfarm.packing import pack, pack_function, unpack
from rmpi.taskfarm.tasks import opened_failure
from rmpi.taskfarm.working import (
    ABANDON,
    BACK,
    BYE,
    CALL,
    DONE,
    DROP,
    HELLO,
    HUSH,
    LEAVE,
    PIECE,
    READY,
    SAY,
    TALK,
    TASKS,
    UNFIT,
    Working,
)


class Master:
    """A master, as the worker sees it: where it answers."""

    def __init__(self, worker, link):
        self.worker = worker
        self.link = link
        self.answers = queue.SimpleQueue()
        self.lost = None
        self.flushed = False
        self.endpoint = self

    def put(self, message, _timeout=None):
        if self.lost is not None:
            raise self.lost
        assert message[1] == self.link
        self.answers.put((message[0], *message[2:]))

    def check(self):
        if self.lost is not None:
            raise self.lost

    def flush(self, _deadline):
        self.flushed = True

    # ---- what the test has it do

    def says(self, *message):
        self.worker.mail.put(Message(message, self))

    def meets(self, initializer=None, path=()):
        self.says(HELLO, self.link, self, path, initializer)

    def hears(self, kind):
        message = self.answers.get(timeout=10)
        assert message[0] == kind
        return message[1:]

    def gives(self, *tasks, values=None):
        """Tasks: number, way, function, arguments."""
        functions = {}
        packed = []
        for number, way, function, args in tasks:
            key, data = pack_function(function)
            functions[key] = data
            packed.append((number, way, key, *pack(args, "arguments")[:2]))
        self.says(TASKS, functions, values or {}, packed)

    def calls(self, number, function, *args):
        self.gives((number, CALL, function, (args, {})))

    def done(self, count):
        """Results of so many tasks, by number; of failures, the exceptions."""
        results = {}
        while len(results) < count:
            (answers,) = self.hears(DONE)
            for number, well, data, buffers, seconds in answers:
                assert seconds >= 0
                results[number] = unpack(data, buffers) if well else opened_failure(data)
        return results


class Worker:
    """A worker in a thread."""

    def __init__(self, **options):
        self.mail = queue.SimpleQueue()
        self.ended = []
        self.working = Working(self, **options)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            self.working.run()
        except BaseException as error:
            self.ended.append(error)

    def receive(self, timeout):
        try:
            message = self.mail.get(timeout=Deadline.after(timeout).left_or_none())
        except queue.Empty:
            raise DeadlineExceeded("nothing") from None
        if isinstance(message, BaseException):
            raise message
        return message

    def master(self, link=1):
        return Master(self, link)

    def join(self):
        self.thread.join(10)
        assert not self.thread.is_alive()
        assert self.ended == []


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    chores.gate.set()
    worker.mail.put(ChannelClosed("the test is over"))
    worker.join()


@pytest.fixture
def master(worker):
    master = worker.master()
    master.meets()
    master.hears(READY)
    return master


@pytest.fixture(autouse=True)
def gate():
    """Where tasks wait until the test, or its end, lets them go on."""
    chores.gate = threading.Event()
    return chores.gate


def at_gate(value=None):
    chores.gate.wait(10)
    return value


def until_back(master, numbers):
    """The first time that it is told that the worker is stuck, it may have nothing to give back yet."""
    (given_back,) = master.hears(BACK)
    assert given_back == numbers or (given_back == [] and master.hears(BACK) == (numbers,))


def until(condition):
    event = threading.Event()
    for _ in range(2000):
        if condition():
            return
        event.wait(0.005)
    raise AssertionError("it never was so")


# ---- answers ----


def test_a_master_is_told_who_and_where_the_worker_is(worker):
    master = worker.master(7)
    master.meets()
    host, pid = master.hears(READY)
    assert (host, pid) == (working.socket.gethostname(), working.os.getpid())


def test_tasks_are_done_in_their_order_and_answered_by_number(master):
    master.gives(*[(number, CALL, chores.square, ((number,), {})) for number in range(5, 10)])
    results = master.done(5)
    assert list(results.items()) == [(number, number**2) for number in range(5, 10)]


def test_keyword_arguments(master):
    master.gives((1, CALL, chores.add, ((1,), {"b": 2})))
    assert master.done(1) == {1: 3}


def test_a_piece_is_many_calls_with_one_answer(master):
    master.gives((1, PIECE, chores.add, [(1, 2), (3, 4)]))
    assert master.done(1) == {1: ([3, 7], None)}


def test_a_piece_ends_with_the_first_call_that_raises(master):
    master.gives((1, PIECE, chores.fail_at, [(1, 3), (2, 3), (3, 3), (4, 3)]))
    values, failure = master.done(1)[1]
    assert values == [1, 2]
    assert str(opened_failure(failure)) == "3 is too much"


def test_a_function_is_sent_once(master):
    master.calls(1, chores.square, 2)
    key, _ = pack_function(chores.square)
    master.says(TASKS, {}, {}, [(2, CALL, key, *pack(((3,), {}), "arguments")[:2])])
    assert master.done(2) == {1: 4, 2: 9}


def test_functions_that_one_message_pushes_out_are_still_there_for_its_tasks(master, monkeypatch):
    monkeypatch.setattr(remembering, "MOST", 2)
    master.calls(1, chores.square, 3)
    master.gives(
        (2, CALL, chores.square, ((4,), {})),
        (3, CALL, chores.add, ((1, 2), {})),
        (4, CALL, chores.identity, ((5,), {})),
    )
    assert master.done(4) == {1: 9, 2: 16, 3: 3, 4: 5}


def test_a_scattered_value_is_kept_until_it_is_dropped(master):
    data, buffers, _ = pack([1, 2, 3], "a value")
    master.gives((1, CALL, chores.kept, ((), {})), values={77: (data, buffers)})
    assert master.done(1) == {1: 1}
    master.says(DROP, [77])
    master.calls(2, chores.kept)
    assert master.done(1) == {2: 0}


def test_what_a_master_has_scattered_goes_with_it(worker, master):
    other = worker.master(2)
    other.meets()
    other.hears(READY)
    data, buffers, _ = pack([1, 2, 3], "a value")
    master.gives((1, CALL, chores.kept, ((), {})), values={77: (data, buffers)})
    assert master.done(1) == {1: 1}
    master.says(BYE)
    other.calls(1, chores.kept)
    assert other.done(1) == {1: 0}


# ---- what goes wrong in tasks ----


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (chores.raise_base, chores.Base, "the very base"),
        (chores.interrupt, KeyboardInterrupt, "from inside"),
        (chores.raise_closed, RemoteError, "Closed: secret"),
        (chores.raise_narrow, RemoteError, "Narrow: 1 and 2"),
        (chores.raise_leaving, RemoteError, "Leaving: bye"),
        (chores.lock, NotPicklable, "the result of the task cannot be pickled: TypeError: cannot pickle"),
    ],
)
def test_whatever_a_task_raises_is_its_answer_and_the_worker_goes_on(master, function, error, text):
    master.calls(1, function)
    master.calls(2, chores.square, 3)
    results = master.done(2)
    assert (type(results[1]), results[2]) == (error, 9)
    assert text in str(results[1])


def test_what_a_task_raises_comes_with_its_traceback_and_without_ours(master):
    master.calls(1, chores.fail, "no")
    error = master.done(1)[1]
    assert (type(error), error.args) == (ValueError, ("no",))
    assert "chores.py" in str(error.__cause__)
    assert "working.py" not in str(error.__cause__)


def test_system_exit_in_a_task_is_what_the_task_raises(master):
    master.calls(1, chores.leave, 3)
    error = master.done(1)[1]
    assert (type(error), error.code) == (SystemExit, 3)


def test_arguments_that_cannot_be_unpickled_fail_their_task(master):
    master.calls(1, chores.identity, chores.Trap())
    master.calls(2, chores.square, 3)
    results = master.done(2)
    assert (type(results[1]), results[2]) == (LookupError, 9)


def test_a_function_that_cannot_be_unpickled_fails_each_of_its_tasks(master):
    data = pickle.dumps(chores.Trap())
    tasks = [(number, CALL, b"key", *pack(((), {}), "arguments")[:2]) for number in (1, 2)]
    master.says(TASKS, {b"key": data}, {}, tasks)
    assert [type(error) for error in master.done(2).values()] == [LookupError, LookupError]


def test_a_scattered_value_that_cannot_be_unpickled_fails_tasks_that_need_it(master):
    data, buffers, _ = pack(chores.Trap(), "a value")
    needs = pickle.dumps(((Needs(77),), {}))
    key, function = pack_function(chores.identity)
    master.says(
        TASKS, {key: function}, {77: (data, buffers)}, [(1, CALL, key, needs, None), (2, CALL, key, needs, None)]
    )
    assert [type(error) for error in master.done(2).values()] == [LookupError, LookupError]
    master.says(DROP, [77])


class Needs:
    """As a handle in arguments."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        from rmpi.taskfarm.handles import value_of

        return value_of, (self.number,)


def test_a_message_that_cannot_be_understood_is_told_and_others_follow(worker, master, caplog):
    worker.mail.put(LookupError("an odd message"))
    master.calls(1, chores.square, 3)
    assert master.done(1) == {1: 9}
    assert "cannot be understood" in caplog.text


def test_an_initializer_is_called_first(worker):
    master = worker.master()
    master.meets(pack_value((chores.remember, ("seen", 5)), "the initializer"))
    master.calls(1, chores.recall, "seen")
    master.hears(READY)
    assert master.done(1) == {1: 5}


@pytest.mark.parametrize("function", [chores.fail, chores.leave])
def test_an_initializer_that_raises_is_told_and_then_nothing_is_done(worker, function):
    master = worker.master()
    master.meets(pack_value((function, ("no",)), "the initializer"))
    (failure,) = master.hears(UNFIT)
    assert "no" in str(opened_failure(failure))
    master.calls(1, chores.square, 3)
    other = worker.master(2)
    other.meets()
    other.hears(READY)
    assert master.answers.empty()


# ---- tasks that take long ----


def test_what_is_behind_a_long_task_is_given_back(master, gate):
    master.gives((1, CALL, at_gate, (("late",), {})), *[(n, CALL, chores.square, ((n,), {})) for n in (2, 3)])
    assert master.hears(BACK) == ([2, 3],)
    gate.set()
    assert master.done(1) == {1: "late"}


def test_each_long_task_is_told_of_also_when_one_follows_the_other(master):
    master.gives((1, CALL, chores.nap, ((0.3,), {})), (2, TALK, chores.wait_for_ever, None))
    assert [master.hears(BACK), master.done(1), master.hears(BACK)] == [([],), {1: None}, ([],)]
    master.says(HUSH, 2)
    master.done(1)


def test_what_comes_while_a_long_task_runs_is_given_back(master, gate):
    master.calls(1, at_gate)
    assert master.hears(BACK) == ([],), "so the master knows that this one is stuck"
    master.calls(2, chores.square, 2)
    assert master.hears(BACK) == ([2],)
    gate.set()
    assert master.done(1) == {1: None}


def test_tasks_before_a_long_one_are_answered_meanwhile(master):
    master.gives(*[(n, CALL, chores.square, ((n,), {})) for n in (1, 2)], (3, CALL, at_gate, ((), {})))
    assert master.done(2) == {1: 1, 2: 4}
    assert master.hears(BACK) == ([],)


def test_a_dialogue_is_not_given_back(master, gate):
    master.calls(1, at_gate)
    master.gives((2, TALK, chores.sum_up, None), (3, CALL, chores.square, ((3,), {})))
    until_back(master, [3])
    gate.set()
    assert unpack(*master.hears(SAY)[1:]) == "how far?"
    master.says(SAY, 2, *pack(4, "")[:2])
    assert master.done(2) == {1: None, 2: 6}


def test_all_masters_are_told_that_a_worker_is_stuck(worker, master):
    other = worker.master(2)
    other.meets()
    other.hears(READY)
    master.calls(1, at_gate)
    assert (master.hears(BACK), other.hears(BACK)) == (([],), ([],))


# ---- tasks that nobody waits for any more ----


@pytest.fixture
def exits(monkeypatch):
    """Instead of the end of the process: a list of exit statuses."""
    exits = queue.SimpleQueue()
    monkeypatch.setattr(working.os, "_exit", exits.put)
    return exits


def test_a_task_that_is_abandoned_ends_the_process_when_its_predecessors_are_answered(master, exits):
    master.gives((1, CALL, chores.square, ((3,), {})), (2, CALL, at_gate, ((), {})))
    master.says(ABANDON, 2)
    assert exits.get(timeout=10) == working.ABANDONED
    assert master.done(1) == {1: 9}
    assert master.flushed


def test_a_task_that_has_ended_is_abandoned_in_vain(master, exits):
    master.calls(1, chores.square, 3)
    assert master.done(1) == {1: 9}
    master.says(ABANDON, 1)
    master.calls(2, chores.square, 4)
    assert master.done(1) == {2: 16}
    assert exits.empty()


def test_a_task_of_another_master_with_that_number_is_left_alone(worker, master, exits):
    other = worker.master(2)
    other.meets()
    other.hears(READY)
    master.calls(1, at_gate)
    other.hears(BACK)
    other.says(ABANDON, 1)
    other.calls(5, chores.square, 2)
    assert other.hears(BACK) == ([5],), "it has been heard"
    assert exits.empty()


# ---- dialogues ----


def test_what_is_said_in_a_dialogue_comes_to_it_and_goes_from_it(master):
    master.gives((1, TALK, chores.echo, None))
    for value in (1, "two", [3]):
        master.says(SAY, 1, *pack(value, "")[:2])
        assert unpack(*master.hears(SAY)[1:]) == value
    master.says(HUSH, 1)
    assert master.done(1) == {1: "end"}


def test_what_is_said_to_a_dialogue_that_has_ended_is_dropped(master):
    master.gives((1, TALK, chores.say_and_fail, None))
    master.hears(SAY)
    assert type(master.done(1)[1]) is ValueError
    master.says(SAY, 1, *pack(5, "")[:2])
    master.says(HUSH, 1)
    master.calls(2, chores.square, 3)
    assert master.done(1) == {2: 9}


def test_what_cannot_be_unpickled_is_raised_where_it_is_got(master):
    master.gives((1, TALK, chores.echo, None))
    master.says(SAY, 1, *pack(chores.Trap(), "")[:2])
    assert type(master.done(1)[1]) is LookupError


def test_what_cannot_be_pickled_is_raised_where_it_is_put(master):
    master.gives((1, TALK, put_lock, None))
    error = master.done(1)[1]
    assert (type(error), "cannot pickle" in str(error)) == (NotPicklable, True)


def put_lock(_, o):
    o.put(threading.Lock())


def test_a_dialogue_ends_with_its_master(worker, master):
    master.gives((1, TALK, chores.wait_for_ever, None))
    other = worker.master(2)
    other.meets()
    master.says(BYE)
    other.hears(READY)
    assert master.answers.empty() or master.hears(BACK) == ([],)


@pytest.mark.parametrize("gone", [PeerLost("it was killed"), ChannelClosed("closed")])
def test_a_silent_dialogue_ends_with_a_master_that_is_lost(worker, master, gone, monkeypatch):
    monkeypatch.setattr(working, "LOOK", 0.01)
    master.gives((1, TALK, chores.wait_for_ever, None))
    other = worker.master(2)
    other.meets()
    master.lost = gone
    other.hears(READY)


# ---- several masters, and the end ----


def test_masters_do_not_see_each_other(worker, master):
    other = worker.master(2)
    other.meets()
    other.hears(READY)
    for number in range(20):
        master.calls(number, chores.square, number)
        other.calls(number, chores.add, number, 1)
    assert master.done(20) == {number: number**2 for number in range(20)}
    assert other.done(20) == {number: number + 1 for number in range(20)}


@pytest.mark.parametrize("gone", [PeerLost("it was killed"), PeerExited("it has ended"), ChannelClosed("closed")])
def test_a_master_that_is_lost_keeps_the_others_from_nothing(worker, master, gone):
    other = worker.master(2)
    other.meets()
    other.hears(READY)
    master.lost = gone
    master.calls(1, chores.square, 1)
    other.calls(1, chores.square, 2)
    assert other.done(1) == {1: 4}


def test_tasks_of_a_master_that_has_said_good_bye_are_not_begun(worker, master, gate):
    other = worker.master(2)
    other.meets()
    other.hears(READY)
    other.calls(1, at_gate)
    other.hears(BACK)
    master.calls(1, chores.remember, "begun", 1)
    master.says(BYE)
    until(worker.mail.empty)
    gate.set()
    assert other.done(1) == {1: None}
    other.calls(2, chores.recall, "begun")
    assert other.done(1) == {2: None}


def test_a_worker_that_was_told_to_leave_does_so_after_its_task():
    worker = Worker()
    master = worker.master()
    master.meets()
    master.hears(READY)
    master.says(LEAVE)
    worker.join()


@pytest.mark.parametrize("word", [LEAVE, BYE])
def test_a_worker_that_hears_while_it_works_that_nobody_wants_it_leaves_then(gate, word):
    worker = Worker(leaves=True)
    master = worker.master()
    master.meets()
    master.hears(READY)
    master.calls(1, at_gate)
    master.hears(BACK)
    master.says(word)
    until(worker.mail.empty)
    gate.set()
    worker.join()


def test_a_worker_without_masters_leaves_if_it_is_to():
    worker = Worker(leaves=True)
    masters = [worker.master(link) for link in (1, 2)]
    for master in masters:
        master.meets()
        master.hears(READY)
    masters[0].says(BYE)
    masters[1].calls(1, chores.square, 3)
    assert masters[1].done(1) == {1: 9}
    masters[1].says(BYE)
    worker.join()
