"""Control messages: what goes in comes out, and nothing else gets in."""

from typing import get_type_hints

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmpi.errors import WireError
from rmpi.places import messages, system_messages
from rmpi.places.messages import Called, Connect, Crashed, Dial, Fork, Joined, Message, Welcome, pack, unpack

EVERY = sorted(
    {
        kind
        for module in (messages, system_messages)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
    },
    key=lambda kind: kind.__name__,
)

TEXT = st.text(st.characters(), max_size=20)  # surrogates included
STRATEGIES = {
    int: st.integers(-(1 << 63), (1 << 64) - 1),
    str: TEXT,
    bytes: st.binary(max_size=20),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
}


def strategy(wanted):
    """Values of the type of a field."""
    if wanted in STRATEGIES:
        return STRATEGIES[wanted]
    inside = [strategy(part) for part in wanted.__args__ if part is not ...]
    if wanted.__origin__ is dict:
        return st.dictionaries(*inside, max_size=3)
    if ... in wanted.__args__:
        return st.lists(*inside, max_size=3).map(tuple)
    return st.tuples(*inside)


def some(kind):
    return st.builds(kind, *map(strategy, get_type_hints(kind).values()))


def repack(code, *values):
    return msgpack.packb([code, *values], unicode_errors="surrogatepass")


CONNECT, WELCOME, DIAL, FORK = 3, 16, 18, 64


# -- round trips --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_message_survives_the_journey(kind):
    @settings(max_examples=20)
    @given(some(kind))
    def survives(message):
        assert unpack(pack(message)) == message
        assert unpack(memoryview(pack(message))) == message

    survives()


def test_no_two_kinds_have_one_code():
    assert sorted(kind.__name__ for kind in messages._BY_CODE.values()) == sorted(kind.__name__ for kind in EVERY)


@pytest.mark.parametrize("text", ["naïve ✓ 😀", "caf\udce9.py", "\ud800 alone", "\udcff\udfff", "\0", ""])
def test_any_python_string_travels(text):
    message = Crashed("ValueError", text, False)
    assert unpack(pack(message)) == message
    fork = Fork(1, 0, "script", text, (text,), {"A": text}, text)
    assert unpack(pack(fork)) == fork


def test_messages_are_values():
    assert Connect(3) == Connect(3) != Connect(4)
    assert len({Joined(), Joined(), Connect(3)}) == 2
    with pytest.raises(AttributeError):
        Connect(3).peer = 4


# -- what does not get in -----------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_of_any_bytes_only_wireerror_comes(data):
    try:
        message = unpack(data)
    except WireError:
        return
    assert unpack(pack(message)) == message


@given(some(Welcome), st.data())
def test_a_damaged_message_is_a_message_or_a_wireerror(message, data):
    packed = bytearray(pack(message))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpack(packed)
    except WireError:
        pass


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text() | st.binary(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text() | st.integers(0, 9), inside, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(messages._BY_CODE)), st.lists(json_like, max_size=9))
def test_what_gets_in_is_of_the_declared_types(code, values):
    try:
        message = unpack(msgpack.packb([code, *values]))
    except WireError:
        return
    assert unpack(pack(message)) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb(1),
        msgpack.packb({1: 2}),
        msgpack.packb(b"\x01"),
        msgpack.packb([True]),
        msgpack.packb([1.0]),
        msgpack.packb([999]),
        msgpack.packb([[1]]),
        msgpack.packb("Joined"),
        pack(Joined()) + b"\0",
        b"\xdd\xff\xff\xff\xff",  # an array of 4 G items, which are not there
    ],
)
def test_what_is_not_a_message(data):
    with pytest.raises(WireError, match="not a control message"):
        unpack(data)


@pytest.mark.parametrize(
    "data",
    [
        repack(CONNECT),
        repack(CONNECT, 1, 2),
        repack(CONNECT, "1"),
        repack(CONNECT, 1.0),
        repack(CONNECT, True),
        repack(CONNECT, None),
        repack(WELCOME, 0, 5, (), 1, False, 1),
        repack(WELCOME, 0, ("5",), ("here",), 1, False, 1),
        repack(WELCOME, 0, (5,), (b"here",), 1, False, 1),
        repack(DIAL, 5, (("here", 80, 1),), b"", 2.0),
        repack(DIAL, 5, (("here", "80"),), b"", 2.0),
        repack(DIAL, 5, ("ab",), b"", 2.0),
        repack(FORK, 1, 0, "script", "x.py", (), {"A": 1}, "/"),
        repack(FORK, 1, 0, "script", "x.py", (), {1: "A"}, "/"),
        repack(FORK, 1, 0, "script", "x.py", (), (), "/"),
    ],
)
def test_wrong_types_are_refused_all_the_way_down(data):
    with pytest.raises(WireError, match=r"malformed control message (Connect|Welcome|Dial|Fork)"):
        unpack(data)


def test_the_right_types_are_taken():
    assert unpack(repack(DIAL, 5, (("here", 80),), b"k", 2.0)) == Dial(5, (("here", 80),), b"k", 2.0)
    assert unpack(pack(Called(1 << 63, 2, (1 << 64) - 1, "bcast", True))).context == 1 << 63
