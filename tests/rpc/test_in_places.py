"""Servers in places: processes that are started, found, restarted and killed."""

import os
import signal
import time

import numpy as np
import pytest
import servers
from servers import Bank, Recorder

from rmpi import places, rpc
from rmpi.errors import DeadlineExceeded, NameNotFound, PeerExited, PeerLost, RemoteError


@pytest.fixture(scope="module")
def here():
    yield places.here()
    places.shutdown()


@pytest.fixture
def bank(here):
    with Bank.at(here, 100) as bank:
        yield bank


def test_a_server_runs_in_a_process_of_its_own(bank):
    assert bank.pid() == rpc.place_of(bank).pid != os.getpid()
    assert (bank.add("alice"), bank.add(who="alice", amount=5)) == (101, 106)
    assert (bank.mean(np.ones((1000, 3))) == np.ones(3)).all()
    assert [array[0] for array in bank.arrays(3)] == [0, 1, 2]
    assert list(bank.names()) == ["alice"]
    assert bank.add.future("alice").result(20) == 107


def test_leaving_the_with_block_ends_the_server(here):
    with Bank.at(here) as bank:
        place = rpc.place_of(bank)
    assert place.wait(20) == 0


def test_stopping_a_server_does_what_came_before(here):
    bank = Bank.at(here)
    futures = [bank.add.future("alice") for _ in range(20)]
    rpc.stop(bank, timeout=20)
    assert [future.result(20) for future in futures] == list(range(1, 21))
    with pytest.raises(PeerExited):
        bank.add("alice")


def test_closing_a_stub_does_not_end_the_server(here):
    first = Bank.at(here, name="ours")
    rpc.close(first)
    with Bank.connect(here, "ours") as bank:
        assert bank.add("alice") == 1
    rpc.stop(Bank.connect(here, "ours"))
    assert rpc.place_of(first).wait(20) == 0


def test_a_named_server_has_many_clients(here):
    with Bank.at(here, name="bank") as bank:
        clients = [Bank.connect(here, "bank") for _ in range(20)]
        assert [client.add("alice") for client in clients] == list(range(1, 21))
        assert bank.add("alice") == 21
        for client in clients:
            rpc.close(client)
    with pytest.raises(NameNotFound):
        Bank.connect(here, "bank")


def test_what_init_raises_is_raised_by_at(here):
    with pytest.raises(TypeError, match=r"^Bank\.__init__\(\) got an unexpected keyword argument 'openning'"):
        Bank.at(here, openning=1)
    with pytest.raises(RemoteError, match="ValueError: no opening today"):
        Bank.at(here, fails=True)


@pytest.mark.parametrize(("name", "called"), [("vault", "vault"), ("", "Bank")])
def test_a_remote_error_names_the_place(here, name, called):
    with Bank.at(here, name=name) as bank, pytest.raises(RemoteError) as caught:
        bank.take("nobody")
    assert str(caught.value).startswith(f"KeyError: 'nobody' (raised by Bank.take in {called} on ")


def test_a_stub_is_sent_to_a_place_and_works_there(here, bank):
    with Bank.at(here) as other:
        assert other.pass_on(bank, "alice") == 101
        assert bank.add("alice") == 102


def test_a_server_that_is_a_thread(here):
    with Bank.at(here, 5, kind="thread") as bank:
        assert (bank.add("alice"), list(bank.names())) == (6, ["alice"])
        with pytest.raises(RemoteError):
            bank.take("nobody")


def test_what_cannot_be_unpickled_there_is_the_caller_s_error(bank):
    odd = servers.Odd()
    future = bank.add.future(odd)
    for failing in (lambda: bank.add(odd), lambda: next(bank.arrays(odd)), lambda: future.result(20)):
        with pytest.raises(RemoteError, match="LookupError: not from here"):
            failing()
    assert bank.add("alice") == 101


def test_what_cannot_be_unpickled_here_is_the_caller_s_error(bank):
    future = bank.odd.future()
    for failing in (bank.odd, lambda: next(bank.odds()), lambda: future.result(20)):
        with pytest.raises(LookupError, match="not from here"):
            failing()
    assert bank.add("alice") == 101


# ---- what is logged ----


def test_what_a_server_logs_reaches_the_program_and_no_reply(bank, caplog):
    bank.audit("first")
    bank.burn()
    assert bank.add("alice") == 101
    rpc.stop(bank)  # the end of a place is told after all that it has logged
    told, failed = caplog.records
    assert (told.name, told.levelname, told.getMessage()) == ("servers.Bank", "WARNING", "first: 0 accounts")
    assert told.place == rpc.place_of(bank).label
    assert (failed.levelname, "RuntimeError: no matches" in failed.getMessage()) == ("ERROR", True)


# ---- death ----


def test_a_call_under_way_fails_when_the_place_dies_and_the_next_goes_to_the_restarted_one(here):
    with Bank.at(here, restart=True) as bank:
        bank.add("alice", 10)
        with pytest.raises(PeerLost, match="SIGKILL") as lost:
            bank.die()
        assert "Bank.die may have been executed; it is not repeated" in lost.value.__notes__
        assert bank.add("alice") == 1, "a restarted server begins anew"
        futures = [bank.add.future("alice"), bank.die.future(), bank.add.future("alice")]
        assert futures[0].result(20) == 2
        assert [type(future.exception(20)) for future in futures[1:]] == [PeerLost, PeerLost]
        assert bank.add("alice") == 1
        assert rpc.place_of(bank).restarts == 2


def test_a_server_killed_between_calls_is_not_noticed_by_the_next(here):
    with Bank.at(here, restart=True) as bank:
        for _ in range(3):
            pid = bank.pid()
            os.kill(pid, signal.SIGKILL)
            while rpc.place_of(bank).pid == pid:
                pass
            assert bank.pid() != pid


def test_a_stream_ends_with_its_place(here):
    with Bank.at(here, restart=True) as bank:
        stream = bank.arrays(1000)
        next(stream)
        os.kill(bank.pid(), signal.SIGKILL)
        with pytest.raises(PeerLost):
            list(stream)
        assert list(stream) == []
        assert bank.add("alice") == 1


def test_a_server_that_is_not_restarted_is_gone(here):
    bank = Bank.at(here)
    with pytest.raises(PeerLost, match="SIGKILL"):
        bank.die()
    for call in (bank.add, bank.audit):
        with pytest.raises(PeerLost, match="SIGKILL"):
            call("alice")
    assert isinstance(bank.add.future("alice").exception(20), PeerLost)


def test_system_exit_in_a_method_ends_the_place(here):
    bank = Bank.at(here)
    with pytest.raises(PeerLost):
        bank.leave(3)
    assert rpc.place_of(bank).wait(20) == 3


def test_a_call_that_finds_no_place_in_time_says_so(here):
    with Bank.at(here, restart=places.restart_every(30)) as bank:
        with pytest.raises(PeerLost):
            bank.die()
        with pytest.raises((PeerLost, DeadlineExceeded)):  # the first restart may be at once
            bank.die(timeout=0.2)
        with pytest.raises(DeadlineExceeded, match=r"Bank\.add: .* did not take the call within 0\.05 s"):
            bank.add("alice", timeout=0.05)


def test_the_stream_of_a_client_that_died_is_closed_when_others_begin_theirs(here):
    with Recorder.at(here) as recorder:
        client = here.spawn(servers.client_that_dies, recorder)
        assert client.wait(20) == -signal.SIGKILL
        limit = time.monotonic() + 20
        while "theirs" not in recorder.closed():  # the server may hear of the death later than we do
            assert time.monotonic() < limit
            recorder.count("ours").close()
