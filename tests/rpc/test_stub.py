"""A stub of a server that runs in another thread of this process: what a client sees."""

import inspect
import pickle
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rmpi import rpc
from rmpi.errors import ChannelClosed, DeadlineExceeded, RemoteError, UsageError
from rmpi.rpc import serving
from rmpi.rpc.stub import connection_of


class Bank(rpc.Server):
    """Accounts by name."""

    LIMIT = 1000

    def __init__(self, opening=0):
        self.opening = opening
        self.balances = {}
        self.audits = []

    @rpc.call
    def add(self, who, amount=1):
        """Add to an account."""
        self.balances[who] = self.balances.get(who, self.opening) + amount
        return self.balances[who]

    @rpc.call
    def echo(self, *args, **kwargs):
        return args, kwargs

    @rpc.call
    def same(self, value):
        return value

    @rpc.call
    def take(self, who, amount):
        if self.balances[who] < amount:
            raise ValueError(f"{who} has only {self.balances[who]}")
        self.balances[who] -= amount

    @rpc.call
    def inner(self):
        return self.helper(1, 2)

    @rpc.call
    def unfit(self):
        return threading.Lock()

    @rpc.cast
    def audit(self, word="all"):
        self.audits.append(word)

    @rpc.call
    def audited(self):
        return self.audits

    @rpc.call
    def within(self, timeout=None):
        return timeout

    @rpc.call
    def pass_on(self, other, who):
        return other.add(who)

    def helper(self):
        """Not for clients."""

    @property
    def total(self):
        return sum(self.balances.values())

    @staticmethod
    def rounded(amount):
        return round(amount)

    def __len__(self):
        return len(self.balances)

    def __eq__(self, other):
        return self.balances == other.balances

    __hash__ = None


class Gate(rpc.Server):
    """Waits until the test says so."""

    begun: threading.Semaphore
    may_go: threading.Semaphore

    def __init__(self):
        self.passed = []

    @rpc.call
    def wait(self, name="", big=False):
        self.begun.release()
        assert self.may_go.acquire(timeout=20)
        self.passed.append(name)
        return np.zeros(1 << 20) if big else name

    @rpc.call
    def note(self, name):
        self.passed.append(name)
        return self.passed


@pytest.fixture
def bank(served):
    return served(Bank, opening=100)


@pytest.fixture
def gate(served, monkeypatch):
    monkeypatch.setattr(Gate, "begun", threading.Semaphore(0), raising=False)
    monkeypatch.setattr(Gate, "may_go", threading.Semaphore(0), raising=False)
    return served(Gate)


@pytest.fixture
def eager_gate(gate, monkeypatch):
    """One that begins also what was given up meanwhile."""
    monkeypatch.setattr(serving, "LOOK_AHEAD", 0)
    return gate


# ---- calls ----


def test_calls_have_the_arguments_and_defaults_of_the_method(bank):
    assert (bank.add("alice"), bank.add("alice", 5), bank.add(amount=2, who="alice")) == (101, 106, 108)
    assert bank.echo(1, "two", three=3) == ((1, "two"), {"three": 3})
    assert bank.echo() == ((), {})


@pytest.mark.parametrize(
    "value", [None, 7, "text", (1, [2], {"three"}), {"a": 1}, b"", 1 << 100, float("inf")], ids=repr
)
def test_values_are_what_was_sent(bank, value):
    got = bank.same(value)
    assert (got, type(got)) == (value, type(value))


def test_arrays_stay_arrays_and_are_copies(bank):
    array = np.arange(100_000, dtype=np.float32).reshape(100, 1000)
    for sent in (array, array.T, array[::2, ::3], {"nested": [array]}):
        got = bank.same(sent)
        if isinstance(sent, dict):
            sent, got = sent["nested"][0], got["nested"][0]
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        assert (got == sent).all()
        assert not np.shares_memory(got, sent)


def test_a_stub_is_what_it_stands_for(bank):
    assert isinstance(bank, Bank)
    assert (bank.LIMIT, bank.rounded(2.4)) == (1000, 2)
    assert str(inspect.signature(bank.add)) == "(who, amount=1)"
    assert "Add to an account." in inspect.getdoc(type(bank).add)
    assert repr(bank).startswith("<stub of Bank in ")
    assert repr(bank.add).startswith("<call Bank.add of ")


def test_casts_do_not_answer_and_come_in_order_with_calls(bank):
    assert bank.audit() is None
    bank.audit(word="some")
    assert bank.audited() == ["all", "some"]


def test_a_stub_can_be_sent_to_others(bank, served):
    other = served(Bank)
    assert other.pass_on(bank, "alice") == 101
    assert bank.add("alice") == 102


def test_what_a_stub_says_of_its_time_is_sent_too(eager_gate):
    hurried = pickle.loads(pickle.dumps(eager_gate.with_timeout(0.01)))
    with pytest.raises(DeadlineExceeded):
        hurried.wait()
    rpc.close(hurried)
    Gate.may_go.release()


# ---- what is refused here ----


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), (("alice", 1, 2), {}), (("alice",), {"amuont": 1})])
def test_wrong_arguments_are_a_local_type_error(bank, args, kwargs):
    with pytest.raises(TypeError) as local:
        Bank().add(*args, **kwargs)
    for method in (bank.add, bank.add.future):
        with pytest.raises(TypeError) as refused:
            method(*args, **kwargs)
        assert str(refused.value) == str(local.value)


def test_what_is_no_call_is_not_there(bank):
    with pytest.raises(AttributeError, match="'Bank' object has no attribute 'subtract'"):
        bank.subtract("alice", 1)
    for name in ("helper", "total", "log"):
        with pytest.raises(AttributeError, match=f"'{name}' is in the place of the Bank only"):
            getattr(bank, name)
    with pytest.raises(AttributeError, match="'__len__' is in the place"):
        len(bank)
    with pytest.raises(AttributeError, match="no attribute 'balances'"):
        _ = bank.balances


def test_a_stub_has_no_state_to_set(bank):
    for change in (lambda: setattr(bank, "opening", 5), lambda: delattr(bank, "opening")):
        with pytest.raises(AttributeError, match="the state of a Bank is in its place"):
            change()


def test_stubs_are_compared_as_objects(bank):
    assert bank == bank
    assert bank != bank.with_timeout(1)
    assert len({bank, bank}) == 1


def test_an_argument_that_cannot_be_sent_is_refused_and_the_stub_goes_on(bank):
    for method in (bank.same, bank.same.future):
        with pytest.raises(UsageError, match="cannot be sent"):
            method(threading.Lock())
    assert bank.same(7) == 7


# ---- what is raised there ----


def test_what_a_method_raises_is_a_remote_error_with_its_traceback(bank):
    bank.add("alice")
    with pytest.raises(RemoteError) as caught:
        bank.take("alice", 1000)
    error = caught.value
    assert (error.type_name, error.message) == ("ValueError", "alice has only 101")
    assert str(error).startswith("ValueError: alice has only 101 (raised by Bank.take in ")
    assert error.traceback.splitlines()[0] == "Traceback (most recent call last):"
    assert error.traceback.splitlines()[1].endswith("in take")
    shown = "".join(traceback.format_exception(error))
    assert 'raise ValueError(f"{who} has only {self.balances[who]}")' in shown, "where it was raised is shown"
    assert bank.add("alice") == 102


def test_a_remote_error_can_be_sent_on(bank):
    with pytest.raises(RemoteError) as caught:
        bank.take("nobody", 1)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.type_name, again.message) == (str(caught.value), "KeyError", "'nobody'")
    assert (again.traceback, again.__notes__) == (caught.value.traceback, caught.value.__notes__)


def test_a_type_error_inside_a_method_is_remote(bank):
    with pytest.raises(RemoteError, match=r"^TypeError: Bank\.helper\(\) takes 1 positional argument but 3"):
        bank.inner()


def test_an_answer_that_cannot_be_sent_is_the_caller_s_error(bank):
    with pytest.raises(UsageError, match=r"Bank has no answer that can be sent: .*lock"):
        bank.unfit()
    assert bank.same(7) == 7


class OldBank(rpc.Server):
    @rpc.call
    def add(self, who):
        return who


def test_a_server_of_another_version_refuses_as_a_local_object_would(served):
    stub = served(OldBank)
    newer = Bank.over(pickle.loads(pickle.dumps(connection_of(stub).channel)))
    with pytest.raises(TypeError, match=r"OldBank\.add\(\) takes 2 positional arguments but 3 were given") as wrong:
        newer.add("alice", 5)
    with pytest.raises(AttributeError, match="'OldBank' object has no attribute 'take'"):
        newer.take("alice", 5)
    assert "its class is not the Bank that is here" in wrong.value.__notes__[0]
    assert newer.add("alice") == "alice"
    rpc.close(newer)


# ---- time ----


def test_a_call_that_is_late_says_that_it_may_be_executed(eager_gate):
    with pytest.raises(DeadlineExceeded, match=r"^Gate\.wait: .* did not answer within 0\.01 s; the call may still be"):
        eager_gate.wait("first", timeout=0.01)
    Gate.may_go.release()
    assert eager_gate.note("second") == ["first", "second"]


def test_a_late_answer_is_nobody_else_s(eager_gate):
    late = eager_gate.with_timeout(0.01)
    for _ in range(5):
        with pytest.raises(DeadlineExceeded):
            late.wait("late", big=True)
        assert Gate.begun.acquire(timeout=20)
        Gate.may_go.release()
        assert eager_gate.note("x")[-1] == "x"


def test_a_call_that_was_not_begun_before_it_was_late_is_not_begun(served, gate):
    blocked = gate.wait.future("first")
    assert Gate.begun.acquire(timeout=20)
    with pytest.raises(DeadlineExceeded):
        gate.note("in vain", timeout=0.01)
    served.until_queued(gate, 2)  # the call, and that it was given up
    Gate.may_go.release()
    assert blocked.result(20) == "first"
    assert gate.note("last", timeout=20) == ["first", "last"]


def test_timeout_is_the_method_s_where_it_has_one(bank):
    assert bank.within(timeout=3) == 3
    assert bank.with_timeout(20).within() is None


def test_a_timeout_must_be_one(bank):
    for wrong in ("soon", float("nan")):
        with pytest.raises(UsageError, match="timeout must be seconds"):
            bank.with_timeout(wrong)
        with pytest.raises(UsageError, match="timeout must be seconds"):
            bank.add("alice", timeout=wrong)


# ---- threads ----


def test_threads_that_share_a_stub_get_their_own_answers(bank):
    def own(thread):
        return all(bank.same((thread, number)) == (thread, number) for number in range(200))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(own, range(8)))


def test_threads_futures_and_streams_of_one_stub_do_not_mix(bank):
    def own(thread):
        futures = [bank.same.future((thread, number)) for number in range(50)]
        calls = [bank.same((thread, number)) for number in range(50)]
        return calls == [future.result(20) for future in futures] == [(thread, number) for number in range(50)]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(own, range(4)))


# ---- endings ----


def test_a_closed_stub_says_so(served):
    stub = served(Bank)
    other = pickle.loads(pickle.dumps(stub))
    rpc.close(other)
    with pytest.raises(ChannelClosed, match="was closed"):
        other.add("alice")
    with pytest.raises(ChannelClosed):
        other.audit()
    assert "closed" in repr(other)
    assert stub.add("alice") == 1, "the server goes on"


def test_leaving_a_with_block_closes_the_stub(served):
    stub = served(Bank)
    with pickle.loads(pickle.dumps(stub)) as other:
        assert other.add("alice") == 1
    with pytest.raises(ChannelClosed):
        other.add("alice")
    with pytest.raises(UsageError, match=r"only what Server\.at returned"):
        rpc.place_of(stub)
