"""What `rpc.call` and `rpc.cast` make of a function, and how arguments are checked without calling it."""

import functools
import inspect
import pydoc
import threading

import pytest

from rmpi import rpc
from rmpi.errors import UsageError
from rmpi.rpc.methods import checker, remotes_of


class Bank(rpc.Server):
    """Accounts by name."""

    def __init__(self):
        self.balances = {}

    @rpc.call
    def add(self, who: str, amount: int = 1) -> int:
        """Add to an account."""
        self.balances[who] = self.balances.get(who, 0) + amount
        return self.balances[who]

    @rpc.call
    def add_twice(self, who):
        self.add(who)
        return self.add(who)

    @rpc.cast
    def audit(self):
        self.log("%d accounts", len(self.balances))


class SavingsBank(Bank):
    @rpc.call
    def add(self, who, amount=10):
        return super().add(who, amount)


def test_in_the_server_they_are_methods(caplog):
    caplog.set_level("INFO")
    bank = SavingsBank()
    assert (bank.add("alice"), bank.add_twice("alice")) == (10, 30)
    bank.audit()
    assert caplog.record_tuples == [(f"{__name__}.SavingsBank", 20, "1 accounts")]


def test_on_the_class_they_are_functions_for_help_and_inspect():
    assert str(inspect.signature(Bank.add)) == "(self, who: str, amount: int = 1) -> int"
    manual = pydoc.plain(pydoc.render_doc(Bank))
    assert "add(self, who: str, amount: int = 1) -> int\n |      Add to an account." in manual


def test_a_class_has_those_it_inherits_too():
    assert {name: each.decorator for name, each in remotes_of(SavingsBank).items()} == {
        "add": "call",
        "add_twice": "call",
        "audit": "cast",
    }


def test_a_method_that_clients_call_is_not_lost_by_overriding_it():
    with pytest.raises(UsageError, match=r"Lost\.add takes the place of Bank\.add.* decorate it with @rpc\.call too"):

        class Lost(Bank):
            def add(self, who, amount=1):
                return 0


@pytest.mark.parametrize("name", ["at", "connect", "over", "with_timeout", "log"])
def test_names_of_the_server_itself_are_taken(name):
    def method(self):
        """A method."""

    with pytest.raises(UsageError, match=f"'{name}' is a name of rpc.Server"):
        type("Taken", (rpc.Server,), {name: rpc.call(method)})


async def _coroutine(self):
    """No method of a server."""


async def _items(self):
    yield self


@pytest.mark.parametrize("thing", [_coroutine, _items, staticmethod(_coroutine), 7])
def test_only_ordinary_methods_can_be_called(thing):
    with pytest.raises(UsageError, match=r"@rpc\.call is for the ordinary methods"):
        rpc.call(thing)


def test_a_cast_has_no_items():
    with pytest.raises(UsageError, match="yields, and a cast has no answer"):

        @rpc.cast
        def count(self):
            yield self


def test_what_is_for_clients_is_refused_in_the_server():
    with pytest.raises(UsageError, match=r"with_timeout is for clients: this is the Bank itself"):
        Bank().with_timeout(1)
    with pytest.raises(UsageError, match="with is for clients"):
        Bank().__enter__()
    for function in (rpc.stop, rpc.close, rpc.place_of):
        with pytest.raises(UsageError, match="is no stub"):
            function(Bank())


# ---- wrong arguments ----


def plain(self, a, b=2):
    """Parameters in each of their kinds: this has two."""


def positional(self, a, b, /, c=threading):
    """Two that have no name, and a default that no source text could give."""


def keywords(self, *, a, b: "not imported here" = 1):  # noqa: F722
    """Two that have nothing but a name."""


def anything(self, a, *rest, b=3, **more):
    """And all others."""


def refusal_of(function, args, kwargs):
    try:
        function(None, *args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("function", [plain, positional, keywords, anything])
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1,), {}),
        ((1, 2), {}),
        ((1, 2, 3), {}),
        ((1, 2, 3, 4), {}),
        ((), {"a": 1}),
        ((), {"a": 1, "x": 2}),
        ((1,), {"a": 1}),
        ((1,), {"b": 1}),
        ((1, 2), {"c": 3}),
        ((1, 2), {"self": 3}),
    ],
)
def test_a_checker_refuses_what_the_interpreter_refuses_in_its_words(function, args, kwargs):
    check = checker(function, function.__qualname__)
    assert refusal_of(check, args, kwargs) == refusal_of(function, args, kwargs)


def test_a_checker_calls_the_method_what_its_user_calls_it():
    with pytest.raises(TypeError, match=r"^SavingsBank\.add\(\) missing 1 required positional argument: 'who'$"):
        checker(SavingsBank.add, "SavingsBank.add")(None)


def test_a_wrapped_method_is_checked_as_what_it_wraps():
    @functools.wraps(plain)
    def wrapper(*args, **kwargs):
        return plain(*args, **kwargs)

    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        checker(wrapper, "plain")(None, 1, c=2)


def test_what_has_no_signature_is_left_to_the_server():
    checker(type, "type")(1, 2, 3, 4)
