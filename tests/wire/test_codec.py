"""Values there and back: what arrives is what was sent, and its memory was not copied on the way."""

import collections
import datetime
import decimal
import pickle
import re

import numpy as np
import pytest

from rmpi.errors import UsageError, WireError
from rmpi.wire import codec
from rmpi.wire.codec import (
    OUT_OF_BAND,
    SEGMENTS_LIMIT,
    array_layout,
    check_value,
    encode_value,
    memory_of,
    misfit,
    open_value,
)
from rmpi.wire.frames import METADATA_LIMIT


def carry(value, out=None):
    """As a link does it: the sender's segments, one behind the other, into the memory that the receiver lends."""
    encoded = encode_value(value)
    check_value(encoded.metadata, encoded.nbytes)
    landing = open_value(encoded.metadata, encoded.nbytes, out)
    payload = memoryview(b"".join(bytes(segment) for segment in encoded.segments))
    assert len(payload) == encoded.nbytes == sum(view.nbytes for view in landing.views)
    for view in landing.views:
        view[:] = payload[: view.nbytes]
        payload = payload[view.nbytes :]
    return landing.value()


def address(memory):
    return np.frombuffer(memory, np.uint8).__array_interface__["data"][0]


def same(one, other):
    if isinstance(one, np.ndarray):
        return type(one) is type(other) and one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other


PLAIN = [
    None,
    True,
    False,
    0,
    -1,
    (1 << 63) - 1,
    -(1 << 63),
    1 << 63,
    -(1 << 63) - 1,
    3**1000,
    0.0,
    -0.0,
    1.5,
    float("inf"),
    "",
    "text",
    "größer \U0001f600 \ud800",
    b"",
    b"bytes",
    bytes(100_000),
    bytearray(b"mutable"),
    1 + 2j,
    decimal.Decimal("1.10"),
    datetime.date(2024, 2, 29),
    collections.Counter("abracadabra"),
    (1, [2, {3: (4,)}], {5}, frozenset({6})),
    np.float64(1.5),
    np.datetime64("2024-01-01"),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: f"{type(value).__name__} {value!r:.20}")
def test_what_arrives_is_what_was_sent(value):
    assert same(carry(value), value)


def test_nan_and_the_sign_of_zero_arrive():
    assert np.isnan(carry(float("nan")))
    assert str(carry(-0.0)) == "-0.0"


class Number(int):
    pass


class Text(str):
    __slots__ = ()


class Kinder(np.ndarray):
    pass


@pytest.mark.parametrize("value", [Number(3), Text("x"), np.arange(3).view(Kinder), np.rec.array([(1, 2.0)])])
def test_a_subclass_stays_one(value):
    assert same(carry(value), value)


def test_shared_references_stay_shared():
    shared = [1]
    first, second = carry([shared, shared])
    assert first is second


# -- arrays -------------------------------------------------------------------------------------------------

NESTED = np.dtype([("a", "<i4"), ("b", [("c", ">f8"), ("d", "S3")]), ("e", "<u2", (2, 3))])
ALIGNED = np.dtype([("a", "i1"), ("b", "f8")], align=True)
TITLED = np.dtype([(("a title", "a"), "<i4")])
GAPS = np.dtype({"names": ["a", "b"], "formats": ["<i2", "<f4"], "offsets": [2, 8], "itemsize": 16})

DTYPES = [
    *("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "g", "G"),
    *(">i2", ">u8", ">f8", ">c16", "S5", "U3", ">U3", "V7", "M8[ns]", "m8[D]", "M8[25s]", ">M8[us]"),
    NESTED,
    TITLED,
    GAPS,
]


def filled(shape, dtype, order="C"):
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    raw = np.random.default_rng(0).integers(0, 2 if dtype.kind == "b" else 100, count * dtype.itemsize, dtype=np.uint8)
    if dtype.kind == "U":
        return np.array(["ab", "c"] * count)[:count].astype(dtype).reshape(shape, order=order)
    return raw.view(dtype).reshape(shape, order=order)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 0, 3), (0,)])
@pytest.mark.parametrize("order", "CF")
def test_arrays_of_every_dtype(dtype, shape, order):
    sent = filled(shape, dtype, order)
    got = carry(sent)
    assert type(got) is np.ndarray
    assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
    assert repr(got.tolist()) == repr(sent.tolist())  # gaps between fields may differ, and NaNs are not equal
    assert got.flags.f_contiguous == sent.flags.f_contiguous
    assert got.flags.c_contiguous == sent.flags.c_contiguous
    assert got.flags.writeable
    assert encode_value(sent).metadata[:1] == b"a"


@pytest.mark.parametrize("dtype", ["f8", "M8[s]", NESTED], ids=str)
def test_an_array_without_dimensions(dtype):
    sent = filled((1,), dtype).reshape(())
    got = carry(sent)
    assert got.shape == ()
    assert got.tobytes() == sent.tobytes()


@pytest.mark.parametrize(
    "sent",
    [
        np.arange(100)[::3],
        np.arange(100)[::-1],
        np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
        np.arange(24).reshape(4, 6)[1:3, 2:5],
        np.broadcast_to(np.arange(3), (4, 3)),
        np.zeros(10, NESTED)["b"],
        np.zeros((3, 1, 2))[:, :0],
    ],
)
def test_arrays_that_are_not_contiguous(sent):
    got = carry(sent)
    assert np.array_equal(got, sent)
    assert got.flags.c_contiguous


def test_a_read_only_array_arrives_as_ones_own():
    sent = np.arange(5)
    sent.flags.writeable = False
    carry(sent)[0] = 9
    assert sent[0] == 0


@pytest.mark.parametrize(
    "sent",
    [
        np.array([1, "two", None], object),
        np.array([(1, [2])], [("a", "i4"), ("b", "O")]),
        np.zeros(3, np.dtype([])),
        np.zeros(3, "V0"),
        np.zeros(3, np.dtypes.StringDType()) if hasattr(np.dtypes, "StringDType") else np.zeros(3, "O"),
    ],
    ids=str,
)
def test_arrays_that_are_not_raw_memory_are_pickled(sent):
    assert encode_value(sent).metadata[:1] == b"p"
    got = carry(sent)
    assert got.dtype == sent.dtype
    assert got.tolist() == sent.tolist()


@pytest.mark.parametrize(
    "dtype", [np.dtype("i4", metadata={"unit": "m"}), np.dtype([("a", np.dtype("i4", metadata={"u": 1}))])]
)
def test_notes_on_a_dtype_arrive(dtype):
    assert carry(np.zeros(3, "i4")).dtype.metadata is None  # equal dtypes are not the same here
    got = carry(np.zeros(3, dtype)).dtype
    assert [noted.metadata for noted in (got, *map(got.__getitem__, got.names or ()))] == [
        noted.metadata for noted in (dtype, *map(dtype.__getitem__, dtype.names or ()))
    ]


def test_an_aligned_dtype_stays_aligned():
    """No text says so: it is pickled."""
    got = carry(np.zeros(3, ALIGNED))
    assert (got.dtype, got.dtype.isalignedstruct) == (ALIGNED, True)


def test_a_dtype_with_very_many_fields_is_pickled():
    dtype = np.dtype([(f"a rather long name of field {i}", "i1") for i in range(2000)])
    assert len(encode_value(np.zeros(2, dtype)).metadata) < METADATA_LIMIT
    assert carry(np.zeros(2, dtype)).dtype == dtype


def test_descriptions_are_remembered_and_forgotten():
    for i in range(3000):
        assert carry(np.zeros((i, 0), "i1")).shape == (i, 0)
    assert len(codec._described) <= codec._CACHE_LIMIT
    assert len(codec._parsed) <= codec._CACHE_LIMIT


# -- no copies ----------------------------------------------------------------------------------------------


def test_bytes_travel_as_the_object_they_are():
    payload = b"payload"
    (segment,) = encode_value(payload).segments
    assert segment is payload


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["f8", "M8[ns]", NESTED], ids=str)
def test_segments_are_the_arrays_own_memory(order, dtype):
    array = filled((30, 40), dtype, order)
    (segment,) = encode_value(array).segments
    assert address(segment) == array.__array_interface__["data"][0]
    assert segment.nbytes == array.nbytes


def test_a_slice_of_rows_is_not_copied():
    whole = np.zeros((10, 5))
    (segment,) = encode_value(whole[2:7]).segments
    assert address(segment) == whole[2:].__array_interface__["data"][0]


def test_arrays_inside_objects_travel_beside_the_pickle():
    large, small = np.zeros(OUT_OF_BAND, np.uint8), np.zeros(OUT_OF_BAND - 1, np.uint8)
    encoded = encode_value({"large": large, "small": small, "deep": [(large[:0], {"er": large})]})
    stream, *raw = encoded.segments
    assert [address(segment) for segment in raw] == [large.__array_interface__["data"][0]]
    assert encoded.nbytes == len(stream) + large.nbytes


def test_arrays_inside_objects_arrive_as_ones_own():
    sent = {"a": np.arange(1000.0), "b": [np.ones((300, 300), order="F"), np.arange(3)]}
    got = carry(sent)
    assert np.array_equal(got["a"], sent["a"])
    assert np.array_equal(got["b"][0], sent["b"][0])
    assert got["b"][0].flags.f_contiguous
    got["a"][0] = 7  # writable, and not the sender's
    assert sent["a"][0] == 0


def test_very_many_arrays_do_not_overflow_a_system_call():
    sent = [np.full(OUT_OF_BAND, i % 256, np.uint8) for i in range(SEGMENTS_LIMIT + 50)]
    assert len(encode_value(sent).segments) == SEGMENTS_LIMIT + 1
    assert all(np.array_equal(one, other) for one, other in zip(carry(sent), sent, strict=True))


def test_an_array_is_received_in_place():
    sent, out = np.arange(600.0).reshape(20, 30), np.zeros((20, 30))
    encoded = encode_value(sent)
    landing = open_value(encoded.metadata, encoded.nbytes, out)
    assert address(landing.views[0]) == out.__array_interface__["data"][0]
    assert carry(sent, out) is out
    assert np.array_equal(out, sent)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize(
    "out", [np.empty((4, 6)), np.empty((4, 6), order="F"), np.empty((8, 12))[::2, ::2]], ids=["C", "F", "strided"]
)
def test_an_array_is_received_into_any_layout(order, out):
    sent = np.asarray(np.arange(24.0).reshape(4, 6), order=order)
    assert carry(sent, out) is out
    assert np.array_equal(out, sent)


def test_memory_of_a_subclass_is_flat():
    class Rows(np.ndarray):
        def reshape(self, *_shape, **_options):
            return self

    view = memory_of(np.zeros((3, 4)).view(Rows))
    assert (view.ndim, view.nbytes, view.readonly) == (1, 96, False)


def test_memory_of_nothing_is_empty():
    assert memory_of(np.zeros((3, 0), "M8[s]")).nbytes == 0


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [lambda: 0, (i for i in ()), [lambda: 0], pytest], ids=["lambda", "generator", "inside a list", "module"]
)
def test_what_cannot_be_pickled_says_so(value):
    with pytest.raises(UsageError, match=r"a \w+ cannot be sent, because it cannot be pickled: .+ not live objects"):
        encode_value(value)


@pytest.mark.parametrize(
    ("metadata", "length", "text"),
    [
        (b"", 0, "announces no value"),
        (b"?", 0, "announces no value"),
        (b"N", 1, "announces no value"),
        (b"i1234567", 0, "announces no value"),
        (b"sx", 3, "announces no value"),
        (b"a", 0, "cut short"),
        (b"aCs\x01\x03\x00" + bytes(4), 0, "cut short"),
        (b"aXs\x00\x03\x00<f8", 8, "malformed"),
        (b"aCs\x00\x02\x00<f8", 8, "malformed"),
        (b"aCs\x00\x03\x00<f8", 9, "announced with 9 bytes"),
        (b"aCs\x00\x02\x00|O", 8, "do not travel as raw memory"),
        (b"aCs\x00\x06\x00(3,)u1", 3, "do not travel as raw memory"),
        (b"aCs\x00\x02\x00S0", 0, "do not travel as raw memory"),
        (b"aCs\x00\x03\x00zzz", 8, "is not one"),
        (b"aCd\x00\x03\x00f()", 8, "is not one"),
        (b"aCs\x01\x03\x00" + b"\xff" * 8 + b"<f8", 8, "no array has the shape"),
        (b"p", 0, "malformed description of an object"),
        (b"p1234567", 0, "malformed description of an object"),
        (b"p" + bytes(8), 5, "object of 0 bytes announced with 5"),
    ],
)
def test_what_is_no_announcement_is_refused(metadata, length, text):
    for refuse in (check_value, open_value):
        with pytest.raises(WireError, match=text):
            refuse(metadata, length)


def test_a_str_that_is_not_utf8_is_refused():
    landing = open_value(b"s", 2)
    landing.views[0][:] = b"\xff\xff"
    with pytest.raises(WireError, match="not UTF-8"):
        landing.value()


def test_what_unpickling_raises_comes_from_value():
    stream = pickle.dumps(Number(1)).replace(b"Number", b"Nobody")
    landing = open_value(b"p" + len(stream).to_bytes(8, "little"), len(stream))
    landing.views[0][:] = stream
    with pytest.raises(AttributeError, match="Nobody"):
        landing.value()


@pytest.mark.parametrize("value", [np.zeros(1000), bytes(5000), "x" * 5000])
def test_a_shortage_of_memory_says_how_much_was_wanted(value, monkeypatch):
    encoded = encode_value(value)

    def no_memory(*_args, **_options):
        raise MemoryError("all gone")

    monkeypatch.setattr(codec.np, "empty", no_memory)
    with pytest.raises(MemoryError, match=rf"no memory for .* {encoded.nbytes} bytes"):
        open_value(encoded.metadata, encoded.nbytes)


# -- fitting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "holds None"),
        (True, "holds a bool"),
        (1, "holds an int"),
        (1.0, "holds a float"),
        ("x", "holds a str"),
        (b"x", "holds bytes"),
        ([1], "holds a pickled object"),
        (np.zeros(4), r"holds an array \(4,\) of float64"),
        (np.zeros((3, 1)), r"holds an array \(3, 1\) of float64"),
        (np.zeros(3, "f4"), r"holds an array \(3,\) of float32"),
        (np.zeros(3, ">f8"), r"holds an array \(3,\) of >f8"),
    ],
)
def test_a_misfit_says_what_was_asked_for_and_what_came(value, text):
    reason = misfit(encode_value(value).metadata, np.empty(3))
    assert reason.startswith("out= is an array (3,) of float64, but the message ")
    assert re.search(text, reason)


@pytest.mark.parametrize("order", "CF")
def test_what_fits_fits_in_any_order(order):
    assert misfit(encode_value(np.zeros((3, 4), order=order)).metadata, np.empty((3, 4))) is None


def test_only_arrays_have_a_layout():
    assert array_layout(encode_value("x").metadata) is None
    layout = array_layout(encode_value(np.zeros((3, 4), "i2", order="F")).metadata)
    assert (layout.dtype, layout.shape, layout.order, layout.nbytes) == (np.dtype("i2"), (3, 4), b"F", 24)
