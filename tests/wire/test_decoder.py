"""Bytes in, frames out: however they are cut, whatever they are."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpi.errors import WireError
from rmpi.wire import codec
from rmpi.wire.codec import check_value, encode_value, open_value
from rmpi.wire.decoder import LARGE, STAGING, FrameDecoder
from rmpi.wire.frames import CHUNK, CONTROL_LIMIT, HEADER_SIZE, METADATA_LIMIT, Frame, Kind, encode


class Reader:
    """A decoder, its sink and the frames that came out."""

    def __init__(self, pieces=1):
        self.frames = []
        self.lent = []
        self._pieces = pieces
        self.decoder = FrameDecoder(self._lend)

    def _lend(self, frame):
        self.lent.append(frame.length)
        memory = memoryview(bytearray(frame.length))
        cuts = [frame.length * i // self._pieces for i in range(self._pieces + 1)]
        return [memory[start:end] for start, end in pairwise(cuts)]

    def feed(self, data, step=None):
        """As a socket would: at most ``step`` bytes at a time, into the memory that is lent."""
        data = memoryview(data)
        while data:
            view = self.decoder.writable()
            assert view.nbytes > 0
            count = min(view.nbytes, len(data), step or len(data))
            view[:count] = data[:count]
            data = data[count:]
            self.frames += self.decoder.wrote(count)

    def seen(self):
        return [(frame.kind, frame.tag, frame.metadata, joined(frame)) for frame in self.frames]


def joined(frame):
    return b"".join(bytes(segment) for segment in frame.segments)


def wire(*frames):
    return b"".join(bytes(buffer) for frame in frames for buffer in encode(frame))


def eager(tag, payload=b"", metadata=b""):
    return Frame(Kind.EAGER, 1, 2, tag=tag, length=len(payload), metadata=metadata, segments=(payload,))


def data(offset, payload):
    return Frame(Kind.DATA, 1, 2, tag=offset, message=1, length=len(payload), segments=(payload,))


MIXED = [
    eager(0),
    eager(1, b"x", b"m"),
    Frame(Kind.OFFER, 1, 2, tag=2, message=1, length=1 << 30, metadata=b"only announced"),
    eager(3, bytes(range(256)) * 10, b"m" * 300),
    Frame(Kind.GRANT, 1, 2, message=1),
    data(0, bytes(range(251)) * 400),
    data(100_400, bytes(LARGE)),
    eager(4, b"y" * 5000),
    Frame(Kind.BYE, 1, 2),
]


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("step", [1, 3, 10, 64, 1000, None])
def test_frames_come_out_however_the_bytes_are_cut(step, pieces):
    reader = Reader(pieces)
    reader.feed(wire(*MIXED), step)
    assert reader.seen() == [
        (frame.kind, frame.tag, frame.metadata, b"".join(map(bytes, frame.segments))) for frame in MIXED
    ]
    assert not reader.decoder.mid_frame()


def test_many_small_frames_come_from_one_read():
    reader = Reader()
    stream = wire(*(eager(tag, b"small") for tag in range(100)))
    view = reader.decoder.writable()
    view[: len(stream)] = stream
    assert [frame.tag for frame in reader.decoder.wrote(len(stream))] == list(range(100))
    assert reader.decoder.staged == 500


def test_memory_is_lent_when_the_frame_before_was_handed_out():
    reader = Reader()
    stream = wire(eager(0, b"a"), eager(1), eager(2, b"bc"), eager(3, b"def"))
    view = reader.decoder.writable()
    view[: len(stream)] = stream
    lent = [(frame.tag, list(reader.lent)) for frame in reader.decoder.wrote(len(stream))]
    assert lent == [(0, [1]), (1, [1]), (2, [1, 2]), (3, [1, 2, 3])]


def test_payload_is_written_where_it_belongs():
    """What is lent for the rest of a payload is the sink's own memory, not a buffer of ours."""
    memory = bytearray(100_000)
    decoder = FrameDecoder(lambda _frame: [memoryview(memory)])
    head = wire(data(0, bytes(100_000)))[:HEADER_SIZE]
    decoder.writable()[:HEADER_SIZE] = head
    assert list(decoder.wrote(HEADER_SIZE)) == []
    assert decoder.writable().obj is memory
    assert decoder.writable().nbytes == 100_000


def test_a_transfer_is_staged_only_at_its_beginning():
    """After a large payload exactly one header is lent, however little of it comes at a time."""
    for step in (None, 7, 100, 100_000):
        reader = Reader()
        reader.feed(wire(*(data(i * CHUNK, bytes(CHUNK)) for i in range(20))), step)
        assert reader.decoder.staged <= STAGING
        assert len(reader.frames) == 20


@pytest.mark.parametrize("cut", [1, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 3, -1])
def test_a_torn_stream_is_noticed(cut):
    stream = wire(eager(0, b"payload", b"metadata"))
    reader = Reader()
    reader.feed(stream[:cut])
    assert reader.decoder.mid_frame()
    assert reader.frames == []
    reader.feed(stream[cut:])
    assert not reader.decoder.mid_frame()


def test_the_longest_metadata_fits():
    reader = Reader()
    longest = eager(1, b"x", b"m" * METADATA_LIMIT)
    reader.feed(wire(eager(0, b"y" * 100), longest, longest, eager(2, b"z")), 1000)
    assert [frame.tag for frame in reader.frames] == [0, 1, 1, 2]


@pytest.mark.parametrize("memory", [0, 4, 6])
def test_memory_of_another_length_is_refused(memory):
    decoder = FrameDecoder(lambda _frame: [memoryview(bytearray(memory))])
    stream = wire(eager(0, b"12345"))
    decoder.writable()[: len(stream)] = stream
    with pytest.raises(WireError, match="does not have its length"):
        list(decoder.wrote(len(stream)))


# -- relocation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 10, 4999, 5000, 9_999])
@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_a_relocated_payload_goes_on_elsewhere(cut, pieces):
    payload = bytes(range(200)) * 50
    old, new = bytearray(10_000), bytearray(10_000)
    decoder = FrameDecoder(lambda _frame: [memoryview(old)[:5000], memoryview(old)[5000:]])
    reader = Reader()
    reader.decoder = decoder
    stream = wire(eager(0, payload))
    reader.feed(stream[: HEADER_SIZE + cut])
    new[:], before = old, bytes(old)
    bounds = [10_000 * i // pieces for i in range(pieces + 1)]
    views = [memoryview(new)[a:b] for a, b in pairwise(bounds)]
    decoder.relocate(lambda frame: frame.tag == 0, [*views, memoryview(b"")])
    reader.feed(stream[HEADER_SIZE + cut :])
    assert new == payload
    assert old == before
    assert len(reader.frames) == 1


def test_nothing_else_is_relocated():
    reader = Reader()
    reader.decoder.relocate(lambda _frame: True, [memoryview(bytearray(9))])  # nothing is being read
    stream = wire(eager(0, b"payload"))
    reader.feed(stream[:-3])
    reader.decoder.relocate(lambda _frame: False, [memoryview(bytearray(9))])
    reader.feed(stream[-3:])
    assert joined(reader.frames[0]) == b"payload"


# -- anything at all ----------------------------------------------------------------------------------------


class Skeptic:
    """A decoder and a codec as an endpoint joins them, which allocate as they are told by strangers."""

    def __init__(self):
        self.values = []
        self._landings = {}
        self._decoder = FrameDecoder(self._lend)

    def _lend(self, frame):
        if frame.kind is not Kind.EAGER:
            raise WireError("nobody has asked for it")
        assert frame.length <= CONTROL_LIMIT
        landing = open_value(frame.metadata, frame.length)
        assert sum(view.nbytes for view in landing.views) == frame.length
        self._landings[id(frame)] = frame, landing
        return landing.views

    def feed(self, stream, step):
        position = 0
        while position < len(stream):
            view = self._decoder.writable()
            count = min(view.nbytes, len(stream) - position, step)
            view[:count] = stream[position : position + count]
            position += count
            for frame in self._decoder.wrote(count):
                self._take(frame)

    def _take(self, frame):
        if frame.kind is Kind.OFFER:
            check_value(frame.metadata, frame.length)
        elif frame.kind is Kind.EAGER:
            _, landing = self._landings.pop(id(frame), (None, None))
            landing = landing or open_value(frame.metadata, frame.length)
            if not frame.metadata.startswith(b"p"):  # unpickling may raise anything, and is for friends
                self.values.append(landing.value())


@pytest.fixture(autouse=True)
def _no_large_allocation(monkeypatch):
    """A frame of 64 KiB allocates no more than that, whatever it says."""
    empty = np.empty

    def checked(shape, dtype=float, **options):
        assert np.prod(shape, dtype=object) * np.dtype(dtype).itemsize <= 64 << 10
        return empty(shape, dtype, **options)

    monkeypatch.setattr(codec.np, "empty", checked)


VALUES = [
    None,
    7,
    1.5,
    "text",
    b"bytes",
    np.arange(5),
    np.zeros((3, 0)),
    np.ones((2, 3), order="F"),
    np.zeros(2, "M8[ns]"),
    np.zeros(3, [("a", "<i4"), ("b", "S3")]),
    [1, {"a": np.arange(1000.0)}],
]


def message(value):
    encoded = encode_value(value)
    return Frame(Kind.EAGER, 1, 2, length=encoded.nbytes, metadata=encoded.metadata, segments=encoded.segments)


SENSE = wire(*map(message, VALUES))


def feed_a_stranger(stream, step):
    skeptic = Skeptic()
    try:
        skeptic.feed(stream, step)
    except WireError:
        pass
    return skeptic.values


def test_the_chain_lets_sense_through():
    assert len(feed_a_stranger(SENSE, 10)) == len(VALUES) - 1


@given(st.binary(max_size=300), st.integers(1, 300))
def test_of_random_bytes_only_a_wire_error_comes(stream, step):
    feed_a_stranger(stream, step)


@given(
    st.sampled_from(list(Kind)), st.binary(max_size=200), st.binary(max_size=100), st.integers(0, 1 << 64), st.data()
)
def test_of_random_contents_in_a_good_header_only_a_wire_error_comes(kind, metadata, payload, length, draw):
    length = draw.draw(st.sampled_from([len(payload), min(length, (1 << 64) - 1)]))
    feed_a_stranger(wire(Frame(kind, 1, 2, length=length, metadata=metadata, segments=(payload,))), 1 << 20)


@given(
    st.lists(st.tuples(st.integers(0, len(SENSE) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.integers(1, 99)
)
def test_of_mutated_bytes_only_a_wire_error_comes(mutations, step):
    stream = bytearray(SENSE)
    for position, byte in mutations:
        stream[position] = byte
    feed_a_stranger(bytes(stream), step)


@given(
    order=st.sampled_from([b"C", b"F", b"K"]),
    form=st.sampled_from([b"s", b"d", b"?"]),
    shape=st.lists(st.one_of(st.integers(-2, 5), st.integers(-(1 << 63), (1 << 63) - 1)), max_size=4),
    text=st.one_of(
        st.binary(max_size=30),
        st.sampled_from(
            [
                b"<f8",
                b"|O",
                b"(3,)u1",
                b"S0",
                b"V0",
                b"V99999999",
                b"[('a', '<i4')]",
                b"[('a', '|O')]",
                b"((((",
                b"i4,f4",
            ]
        ),
    ),
    length=st.integers(0, 64),
)
def test_of_random_descriptions_of_arrays_only_a_wire_error_comes(order, form, shape, text, length):
    metadata = codec._ARRAY.pack(b"a", order, form, len(shape), len(text))
    metadata += b"".join(extent.to_bytes(8, "little", signed=True) for extent in shape) + text
    payload = bytes(length)
    feed_a_stranger(wire(Frame(Kind.EAGER, 1, 2, length=length, metadata=metadata, segments=(payload,))), 1 << 20)
    feed_a_stranger(wire(Frame(Kind.OFFER, 1, 2, length=length, metadata=metadata)), 1 << 20)


@pytest.mark.parametrize("shape", [(1 << 62, 0), (0, 1 << 62), (1 << 33, 1 << 33), (1 << 40,), (2,) * 65])
def test_an_array_that_cannot_be_is_refused_before_numpy_is_asked(shape):
    metadata = codec._ARRAY.pack(b"a", b"C", b"s", len(shape), 3)
    metadata += b"".join(extent.to_bytes(8, "little") for extent in shape) + b"<f8"
    with pytest.raises(WireError):
        open_value(metadata, 0)
