"""The handshake: who holds the key gets in, nobody else does, and both sides can say why not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpi.errors import UsageError, WireError
from rmpi.wire import handshake
from rmpi.wire.frames import VERSION
from rmpi.wire.handshake import MAGIC, PRELUDE, SIZES, Acceptor, Connector, Step

KEY = bytes(range(32))
OTHER_KEY = bytes(reversed(KEY))
SOURCE, DESTINATION = 5, (1 << 64) - 1


def nonce(letter):
    return letter.encode() * 32


def pair(connector_key=KEY, acceptor_key=KEY, accepts=None):
    connector = Connector(connector_key, SOURCE, DESTINATION, nonce("c"))
    return connector, Acceptor(acceptor_key, nonce("a"), accepts=accepts)


def deliver(data, machine):
    """Feed as a socket reader does: never more than was wanted. Returns what was left unread."""
    while data and (take := machine.wanted()):
        machine.feed(data[:take])
        data = data[take:]
    return data


def messages(connector, acceptor):
    """Run to the end; returns HELLO, CHALLENGE, PROOF, ACCEPT as they crossed."""
    crossed = []
    for sender, receiver in [(connector, acceptor), (acceptor, connector)] * 2:
        crossed.append(sender.outgoing())
        assert deliver(crossed[-1], receiver) == b""
    return crossed


def refused_by(machine, data, match=None):
    with pytest.raises(WireError, match=match):
        deliver(data, machine)
    assert not machine.done
    assert machine.wanted() == 0


# -- getting in ---------------------------------------------------------------------------------------------


def test_both_sides_are_done_and_the_acceptor_has_learned_the_endpoints():
    connector, acceptor = pair()
    crossed = messages(connector, acceptor)
    assert connector.done
    assert acceptor.done
    assert (acceptor.source, acceptor.destination) == (SOURCE, DESTINATION)
    assert [len(message) for message in crossed] == [SIZES[step] for step in Step]
    assert connector.outgoing() == acceptor.outgoing() == b""


def test_it_works_one_byte_at_a_time():
    connector, acceptor = pair()
    for sender, receiver in [(connector, acceptor), (acceptor, connector)] * 2:
        for byte in sender.outgoing():
            assert receiver.wanted() > 0
            receiver.feed(bytes([byte]))
    assert connector.done
    assert acceptor.done


def test_not_one_byte_of_the_frames_behind_it_is_read():
    connector, acceptor = pair()
    frames = b"the first frame"
    assert deliver(connector.outgoing(), acceptor) == b""
    assert deliver(acceptor.outgoing(), connector) == b""
    assert deliver(connector.outgoing() + frames, acceptor) == frames
    assert deliver(acceptor.outgoing() + frames, connector) == frames
    for machine in (connector, acceptor):
        assert machine.wanted() == 0
        with pytest.raises(UsageError, match="wants 0 bytes"):
            machine.feed(b"t")
        assert machine.done


def test_a_connection_is_done_on_the_acceptors_side_no_sooner_than_the_connector_has_proved_itself():
    connector, acceptor = pair()
    deliver(connector.outgoing(), acceptor)
    assert not acceptor.done
    with pytest.raises(UsageError, match="known when its handshake is done"):
        _ = acceptor.source
    deliver(acceptor.outgoing(), connector)
    assert not connector.done
    *most, last = connector.outgoing()
    deliver(bytes(most), acceptor)
    assert not acceptor.done
    deliver(bytes([last]), acceptor)
    assert acceptor.done


def test_what_a_stranger_can_make_either_side_read_is_less_than_4_kib():
    assert sum(SIZES.values()) < 4096


def test_a_machine_prints_its_state_and_no_secret():
    connector, acceptor = pair()
    assert repr(connector) == "<Connector 0x5 to 0xffffffffffffffff, awaits CHALLENGE>"
    assert repr(acceptor) == "<Acceptor awaits HELLO>"
    messages(connector, acceptor)
    assert repr(acceptor) == "<Acceptor done>"


# -- staying out --------------------------------------------------------------------------------------------


def test_another_key_is_found_by_the_connector_first_and_told_to_the_acceptor():
    connector, acceptor = pair(connector_key=OTHER_KEY)
    deliver(connector.outgoing(), acceptor)
    refused_by(connector, acceptor.outgoing(), "the listener holds another key")
    refused_by(acceptor, connector.outgoing(), "refused the connection: it holds another key")
    assert acceptor.outgoing() == b""


def test_a_connector_that_goes_on_with_another_key_is_found_by_the_acceptor():
    """Ids, nonces and order are right; only the proof comes from someone who has another key."""
    honest, acceptor = pair()
    deliver(honest.outgoing(), acceptor)
    deliver(acceptor.outgoing(), honest)
    forged_proof = messages(*pair(OTHER_KEY, OTHER_KEY))[2]
    refused_by(acceptor, forged_proof, "does not hold the key of this job")
    refused_by(honest, acceptor.outgoing(), "refused the connection: it holds another key")


@pytest.mark.parametrize("step", Step, ids=lambda step: step.name)
def test_a_flipped_bit_anywhere_keeps_the_connector_out(step):
    """Whoever reads the message refuses it, or (HELLO, which nothing signs) the other refuses the answer."""
    for bit in range(8 * SIZES[step]):
        connector, acceptor = pair()
        with pytest.raises(WireError):
            flip(connector, acceptor, step, bit)
        assert not connector.done
        assert acceptor.done == (step is Step.ACCEPT)


def flip(connector, acceptor, damaged, bit):
    turns = [(connector, acceptor), (acceptor, connector)] * 2
    for step, (sender, receiver) in zip(Step, turns, strict=True):
        message = bytearray(sender.outgoing())
        if step is damaged:
            message[bit // 8] ^= 1 << bit % 8
        deliver(bytes(message), receiver)


def test_a_recorded_connector_is_refused_by_a_fresh_nonce():
    hello, _, proof, _ = messages(*pair())
    acceptor = Acceptor(KEY, nonce("b"))
    deliver(hello, acceptor)
    refused_by(acceptor, proof, "does not hold the key")


def test_a_recorded_acceptor_is_refused_by_a_fresh_nonce():
    _, challenge, _, _ = messages(*pair())
    refused_by(Connector(KEY, SOURCE, DESTINATION, nonce("d")), challenge, "another key")


def test_an_acceptors_proof_reflected_at_it_is_refused():
    """The same ids, nonces and version: only the role tells the two proofs apart."""
    connector, acceptor = pair()
    deliver(connector.outgoing(), acceptor)
    signature = acceptor.outgoing()[-32:]
    refused_by(acceptor, PRELUDE.pack(MAGIC, VERSION, Step.PROOF, 0) + signature, "does not hold the key")


def test_a_connectors_own_hello_reflected_at_it_is_refused():
    connector, _ = pair()
    refused_by(connector, connector.outgoing(), "its CHALLENGE was due, and step 1 came")


def test_two_acceptors_cannot_be_played_against_each_other():
    """One acceptor's nonce, sent to another as a HELLO, brings no proof that the first would take."""
    first, second = Acceptor(KEY, nonce("a")), Acceptor(KEY, nonce("b"))
    hello = Connector(KEY, SOURCE, DESTINATION, nonce("c")).outgoing()
    deliver(hello, first)
    challenge = first.outgoing()[PRELUDE.size :][:32]
    deliver(hello[:-32] + challenge, second)
    signature = second.outgoing()[-32:]
    refused_by(first, PRELUDE.pack(MAGIC, VERSION, Step.PROOF, 0) + signature, "does not hold the key")


def test_swapped_endpoints_are_refused():
    """Somebody between the two turns the connection round."""
    connector, acceptor = pair()
    hello = connector.outgoing()
    deliver(hello[:8] + hello[16:24] + hello[8:16] + hello[24:], acceptor)
    refused_by(connector, acceptor.outgoing(), "another key")


def test_an_endpoint_that_is_not_there_is_refused_and_both_say_so():
    connector, acceptor = pair(accepts=lambda source, destination: (source, destination) == (6, 7))
    deliver(connector.outgoing(), acceptor)
    deliver(acceptor.outgoing(), connector)
    refused_by(acceptor, connector.outgoing(), "no connection is taken here from endpoint 0x5 to 0xf")
    refused_by(connector, acceptor.outgoing(), "no connection between these endpoints")


def test_without_the_key_nobody_learns_which_endpoints_exist():
    asked = []
    connector, acceptor = pair(accepts=lambda *ids: not asked.append(ids))
    deliver(connector.outgoing(), acceptor)
    refused_by(acceptor, PRELUDE.pack(MAGIC, VERSION, Step.PROOF, 0) + bytes(32))
    assert asked == []


# -- versions, strangers, the end of the stream -------------------------------------------------------------


def test_another_wire_version_is_named_on_both_sides_before_the_key_is_looked_at(monkeypatch):
    """The other version's HELLO may be of any length: its prelude is enough."""
    monkeypatch.setattr(handshake, "VERSION", 2)
    newer = Connector(OTHER_KEY, SOURCE, DESTINATION, nonce("c"))
    hello = newer.outgoing()
    monkeypatch.setattr(handshake, "VERSION", 1)
    acceptor = Acceptor(KEY, nonce("a"))
    refused_by(acceptor, hello[: PRELUDE.size], "speaks wire version 2, this is 1: install the same rmpi")
    answer = acceptor.outgoing()
    assert len(answer) == PRELUDE.size
    monkeypatch.setattr(handshake, "VERSION", 2)
    refused_by(newer, answer, "speaks wire version 1, this is 2: install the same rmpi")


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\n", b"SSH-2.0-OpenSSH_9.9\r\n", bytes(64)])
def test_a_stranger_is_refused_after_eight_bytes_and_gets_no_answer(greeting):
    _, acceptor = pair()
    assert acceptor.wanted() == 8
    refused_by(acceptor, greeting, "not an rmpi peer")
    assert acceptor.outgoing() == b""


def test_a_refusal_for_a_reason_of_a_later_release_is_still_a_refusal():
    connector, _ = pair()
    refused_by(connector, PRELUDE.pack(MAGIC, VERSION, Step.CHALLENGE, 99), "for reason 99")


@pytest.mark.parametrize("arrived", [0, 7, 8, 20])
def test_a_peer_that_closes_too_early_is_said_to_have_done_so(arrived):
    connector, acceptor = pair()
    deliver(connector.outgoing()[:arrived], acceptor)
    with pytest.raises(WireError, match=f"closed .* its HELLO was due \\({arrived} of 56 bytes came"):
        acceptor.feed(b"")


def test_a_dead_machine_stays_dead():
    connector, acceptor = pair()
    refused_by(acceptor, b"x" * 8, "not an rmpi peer")
    with pytest.raises(WireError, match="not an rmpi peer"):
        acceptor.feed(connector.outgoing())


def test_feeding_more_than_was_wanted_is_the_callers_mistake_and_changes_nothing():
    connector, acceptor = pair()
    hello = connector.outgoing()
    with pytest.raises(UsageError, match="wants 8 bytes and was fed 56"):
        acceptor.feed(hello)
    assert deliver(hello, acceptor) == b""


@given(st.data())
def test_random_bytes_raise_nothing_but_wire_error(data):
    """Random from any point of a good conversation on, so that the later messages are reached, too."""
    connector, acceptor = pair()
    machine = data.draw(st.sampled_from([connector, acceptor]))
    conversation = messages(*pair())
    good = b"".join(conversation[1::2] if machine is connector else conversation[0::2])
    kept = good[: data.draw(st.integers(0, len(good) - 1))]
    junk = data.draw(st.binary(min_size=1, max_size=200).filter(lambda junk: junk[0] != good[len(kept)]))
    try:
        deliver(kept + junk, machine)
        machine.feed(b"")
    except WireError:
        pass
    assert not machine.done


@pytest.mark.parametrize(
    "make",
    [
        lambda: Connector(KEY[1:], 1, 2, nonce("c")),
        lambda: Connector(KEY, 1, 2, b"short"),
        lambda: Connector(KEY, -1, 2, nonce("c")),
        lambda: Connector(KEY, 1, 1 << 64, nonce("c")),
        lambda: Acceptor(b"", nonce("a")),
        lambda: Acceptor(KEY, b""),
    ],
)
def test_keys_nonces_and_endpoints_have_their_size(make):
    with pytest.raises(UsageError):
        make()
