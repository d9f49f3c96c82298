"""What a service does with what it is sent, read off its answers: no thread, no process, no channel."""

import logging
from collections import deque

import pytest
from scripted import PAUSE, Client, Script

from rmpi.errors import DeadlineExceeded, PeerLost, UsageError
from rmpi.rpc import messages, serving
from rmpi.rpc.messages import (
    CANCEL,
    CAST,
    FETCH,
    HEAVY,
    LIMITED,
    MORE,
    NUMBERED,
    STOP,
    STREAM,
    WINDOW,
    Announced,
    Ended,
    Probe,
    Raised,
    Refused,
    Skipped,
)

LOG = logging.getLogger("tests.Bank")


class Bank:
    def __init__(self):
        self.done = []

    def add(self, who, amount=1):
        self.done.append((who, amount))
        return len(self.done)

    def fail(self, text):
        raise LookupError(text)

    def mistake(self):
        return self.add()

    def count(self, limit):
        try:
            yield from range(limit)
        finally:
            self.done.append("closed")

    def blobs(self, count):
        try:
            for number in range(count):
                self.done.append(f"blob {number}")
                yield bytes(HEAVY + 1)
        finally:
            self.done.append("closed")

    def half(self):
        yield 1
        raise ValueError("no second half")

    def leave(self):
        raise SystemExit(3)


@pytest.fixture
def bank():
    return Bank()


@pytest.fixture
def serve(bank, monkeypatch):
    """Runs a script: messages, each of which has come when the one before it is taken, up to a pause."""
    monkeypatch.setattr(serving, "LOOK_EVERY", 0)

    def run(*script):
        methods = {name: getattr(bank, name) for name in dir(bank) if callable(getattr(bank, name)) and name[0] != "_"}
        serving.Service(Script(deque(script)), methods, "Bank", LOG).run()

    return run


def test_calls_are_answered_in_the_order_of_their_coming(serve, bank):
    alice, bob = Client("alice"), Client("bob")
    serve(
        alice.sends("add", ("a",)),
        bob.sends("add", ("b",), {"amount": 5}),
        alice.sends("add", ("a", 2)),
    )
    assert (alice.answers, bob.answers) == ([1, 3], [2])
    assert bank.done == [("a", 1), ("b", 5), ("a", 2)]


def test_what_a_method_raises_is_an_answer_and_the_server_lives_on(serve):
    client = Client("alice")
    serve(client.sends("fail", ("no such account",)), client.sends("add", ("a",)))
    raised, after = client.answers
    assert (raised.type_name, raised.message, after) == ("LookupError", "no such account", 1)
    lines = raised.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith("in fail"), "it begins with the method"
    assert lines[-1] == "LookupError: no such account"


@pytest.mark.parametrize("args", [(), ("a", 1, 2)])
def test_wrong_arguments_are_refused_in_the_words_of_a_local_call(serve, bank, args):
    client = Client("alice")
    serve(client.sends("add", args), client.sends("add", ("a",), {"amuont": 1}))
    with pytest.raises(TypeError) as local:
        bank.add(*args)
    with pytest.raises(TypeError) as misspelt:
        bank.add("a", amuont=1)
    assert client.answers == [Refused("TypeError", str(local.value)), Refused("TypeError", str(misspelt.value))]


def test_a_type_error_inside_a_method_is_not_the_caller_s(serve):
    client = Client("alice")
    serve(client.sends("mistake", ()))
    assert client.answers[0].type_name == "TypeError"


def test_an_unknown_method_is_refused_in_the_words_of_a_local_call(serve, bank):
    client = Client("alice")
    serve(client.sends("subtract", ("a",)), client.sends("add", ("a",)))
    with pytest.raises(AttributeError) as local:
        bank.subtract("a")
    assert client.answers == [Refused("AttributeError", str(local.value)), 1]


@pytest.mark.parametrize("nonsense", ["hello", (), (99,), (STREAM,), ("add",), 7, None, [CAST], (CANCEL,)])
def test_a_message_that_is_no_call_is_logged_and_dropped(serve, caplog, nonsense):
    client = Client("alice")
    message = client.sends()._replace(value=nonsense)
    serve(message, client.sends("add", ("a",)))
    assert client.answers == [1]
    assert "is no call" in caplog.text


def test_a_cast_is_not_answered_and_its_failure_is_logged(serve, caplog):
    client = Client("alice")
    serve(
        client.sends(CAST, "add", ("a",), {}),
        client.sends(CAST, "fail", ("in vain",), {}),
        client.sends(CAST, "add", (), {}),
        client.sends("add", ("b",)),
    )
    assert client.answers == [2]
    failed, refused = caplog.records
    assert (failed.levelname, failed.name) == ("ERROR", "tests.Bank")
    assert "Bank.fail, which was cast, raised" in failed.getMessage()
    assert "LookupError: in vain" in failed.getMessage()
    assert "missing 1 required positional argument: 'who'" in refused.getMessage()


def test_an_answer_that_cannot_be_sent_is_the_caller_s_error(serve):
    class Picky(Client):
        def put(self, value, timeout=None):
            if value in (1, (7, 2)):
                raise UsageError("cannot be pickled")
            super().put(value, timeout)

    client = Picky("alice")
    serve(client.sends("add", ("a",)), client.sends(NUMBERED, "add", ("a",), {}, 7), client.sends("add", ("a",)))
    refused, (number, also_refused), after = client.answers
    assert (refused, number, after) == (also_refused, 7, 3)
    assert refused == Refused("UsageError", "Bank has no answer that can be sent: cannot be pickled")


@pytest.mark.parametrize("error", [PeerLost("killed"), DeadlineExceeded("stopped")])
def test_a_client_that_is_gone_or_stuck_is_no_concern_of_others(serve, bank, error):
    gone, alice = Client("gone", refuses=error), Client("alice")
    serve(gone.sends("add", ("a",)), gone.sends(STREAM, "count", (3,), {}), alice.sends("add", ("b",)))
    assert (bank.done, alice.answers) == ([("a", 1), "closed", ("b", 1)], [3])


def test_a_server_that_is_stopped_has_done_what_came_before(serve):
    alice, bob = Client("alice"), Client("bob")
    serve(alice.sends("add", ("a",)), bob.sends(STOP), alice.sends("add", ("a",)))
    assert (alice.answers, bob.answers) == ([1], [None])


def test_system_exit_is_no_answer(serve, bank):
    client = Client("alice")
    with pytest.raises(SystemExit) as leaving:
        serve(client.sends(STREAM, "count", (100,), {}), client.sends("leave", ()), client.sends("add", ("a",)))
    assert leaving.value.code == 3
    assert bank.done == ["closed"], "its generators are closed"


# ---- cancelling ----


def test_what_is_cancelled_before_it_is_begun_is_not_executed(serve, bank):
    client = Client("alice")
    calls = [client.sends(NUMBERED, "add", (f"a{number}",), {}, number) for number in (1, 2, 3)]
    serve(*calls, client.sends(CANCEL, 2))
    assert bank.done == [("a1", 1), ("a3", 1)]
    assert client.answers == [(1, 1), (2, Skipped()), (3, 2)]


def test_the_call_that_is_about_to_begin_is_cancelled_by_what_has_come(serve, bank):
    client = Client("alice")
    serve(client.sends(NUMBERED, "add", ("a",), {}, 1), client.sends(CANCEL, 1), client.sends("add", ("b",)))
    assert bank.done == [("b", 1)]
    assert client.answers == [(1, Skipped()), 1]


def test_a_cancellation_that_comes_too_late_changes_nothing(serve):
    client = Client("alice")
    serve(client.sends(NUMBERED, "add", ("a",), {}, 1), PAUSE, client.sends(CANCEL, 1))
    assert client.answers == [(1, 1)]


def test_numbers_are_each_client_s_own(serve, bank):
    alice, bob = Client("alice"), Client("bob")
    serve(
        alice.sends(NUMBERED, "add", ("a",), {}, 1), bob.sends(NUMBERED, "add", ("b",), {}, 1), alice.sends(CANCEL, 1)
    )
    assert bank.done == [("b", 1)]


def test_a_call_that_its_caller_gave_up_is_not_begun(serve, bank):
    alice, bob = Client("alice"), Client("bob")
    serve(bob.sends(LIMITED, "add", ("b",), {}), alice.sends(LIMITED, "add", ("a",), {}), alice.sends(CANCEL, 0))
    assert (bank.done, bob.answers, alice.answers) == ([("b", 1)], [1], [])


def test_a_server_looks_ahead_no_further_than_it_says(serve, bank, monkeypatch):
    monkeypatch.setattr(serving, "LOOK_AHEAD", 2)
    client = Client("alice")
    calls = [client.sends(NUMBERED, "add", (number,), {}, number) for number in (1, 2, 3, 4)]
    serve(*calls, client.sends(CANCEL, 1), client.sends(CANCEL, 4))
    assert bank.done == [(1, 1), (2, 1), (3, 1)]


def test_a_server_does_not_fill_its_memory_with_what_it_looks_ahead_for(serve):
    client = Client("alice")
    calls = [client.sends(NUMBERED, "add", (bytes(messages.HEAVY + 1),), {}, number) for number in (1, 2, 3)]
    serve(*calls, client.sends(CANCEL, 2), client.sends(CANCEL, 3))
    assert [answer[1] for answer in client.answers] == [1, 2, Skipped()]


# ---- streams ----


def test_a_stream_is_its_items_and_an_end(serve, bank):
    client = Client("alice")
    serve(client.sends(STREAM, "count", (3,), {}))
    assert client.answers == [0, 1, 2, Ended()]
    assert bank.done == ["closed"]


def test_a_stream_waits_for_its_client(serve):
    client = Client("alice")
    seen = []
    serve(
        client.sends(STREAM, "count", (100,), {}),
        PAUSE,
        Look(lambda: seen.append(len(client.answers))),
        client.sends(MORE, 10),
        PAUSE,
        Look(lambda: seen.append(len(client.answers))),
    )
    assert seen == [WINDOW, WINDOW + 10]


def test_items_and_calls_take_turns(serve):
    alice, bob = Client("alice"), Client("bob")
    order = []
    for client in (alice, bob):
        client.put = lambda value, _timeout=None, client=client: order.append((client.address, value))
    serve(alice.sends(STREAM, "count", (4,), {}), *[bob.sends("add", ("b",)) for _ in range(3)])
    assert order == [
        ("alice", 0),
        ("bob", 1),
        ("alice", 1),
        ("bob", 2),
        ("alice", 2),
        ("bob", 3),
        ("alice", 3),
        ("alice", Ended()),
    ]


def test_streams_take_turns(serve):
    alice, bob = Client("alice"), Client("bob")
    serve(alice.sends(STREAM, "count", (2,), {}), bob.sends(STREAM, "count", (3,), {}))
    assert (alice.answers, bob.answers) == ([0, 1, Ended()], [0, 1, 2, Ended()])


def test_a_stream_that_nobody_wants_any_more_is_closed(serve, bank):
    client = Client("alice")
    serve(client.sends(STREAM, "count", (100,), {}), PAUSE, client.sends(CANCEL, 0), client.sends("add", ("a",)))
    assert bank.done == ["closed", ("a", 1)]
    assert client.answers == [*range(WINDOW), 2]


def test_a_stream_that_is_cancelled_before_it_is_begun_is_not(serve, bank):
    client = Client("alice")
    serve(client.sends(STREAM, "count", (100,), {}), client.sends(CANCEL, 0))
    assert (bank.done, client.answers) == ([], [])


def test_the_stream_of_a_client_that_is_gone_is_closed(serve, bank):
    client = Client("alice")
    serve(
        client.sends(STREAM, "count", (100,), {}),
        PAUSE,
        Look(lambda: setattr(client, "refuses", PeerLost("killed"))),
        client.sends(MORE, 1),
        PAUSE,
        Look(lambda: bank.done.append("looked")),
    )
    assert bank.done == ["closed", "looked"]


@pytest.mark.parametrize("method", ["count", "blobs"])
def test_a_client_that_died_while_its_stream_waited_for_it_is_found_out(serve, bank, method):
    dead, slow = Client("dead"), Client("slow")
    serve(
        slow.sends(STREAM, method, (100,), {}),
        dead.sends(STREAM, method, (100,), {}),
        PAUSE,
        Look(lambda: setattr(dead, "refuses", PeerLost("killed"))),
        PAUSE,
        DeadlineExceeded("nothing for a while"),
        Look(lambda: bank.done.append("looked")),
    )
    looked = bank.done.index("looked")
    assert (bank.done[:looked].count("closed"), bank.done[looked:].count("closed")) == (1, 1)
    assert slow.answers[-1] == Probe()


def test_what_a_generator_raises_comes_after_its_items(serve):
    client = Client("alice")
    serve(client.sends(STREAM, "half", (), {}), client.sends("add", ("a",)))
    one, called, raised = client.answers
    assert (one, called, type(raised), raised.message) == (1, 1, Raised, "no second half")
    assert "in half" in raised.traceback.splitlines()[1]


def test_a_method_that_does_not_yield_has_no_items(serve):
    client = Client("alice")
    serve(client.sends(STREAM, "add", ("a",), {}), client.sends(STREAM, "subtract", (), {}))
    assert client.answers == [
        Refused("TypeError", "'int' object is not iterable"),
        Refused("AttributeError", "'Bank' object has no attribute 'subtract'"),
    ]


def test_a_heavy_item_is_sent_to_somebody_who_waits_for_it(serve, bank):
    client = Client("alice")
    serve(
        client.sends(STREAM, "blobs", (2,), {}),
        PAUSE,
        Look(lambda: bank.done.append(list(map(type, client.answers)))),
        client.sends(FETCH),
    )
    assert bank.done == ["blob 0", [Announced], "blob 1", "closed"], "the next is made while the client has the first"
    assert [type(each) for each in client.answers] == [Announced, bytes, Announced]


class Look:
    """A message whose taking is a look at how things stand."""

    def __init__(self, look):
        self.look = look

    def __iter__(self):
        self.look()
        return iter((("no such method",), Client("nobody")))
