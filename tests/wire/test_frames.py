"""The header on the wire: the bytes that the table in the module promises, and what is refused."""

import struct

import pytest

from rmpi.errors import WireError
from rmpi.wire.frames import (
    CHUNK,
    CONTROL_LIMIT,
    EAGER_LIMIT,
    HEADER,
    HEADER_SIZE,
    METADATA_LIMIT,
    PAYLOAD_LIMIT,
    VERSION,
    Frame,
    Kind,
    decode_header,
    encode,
)

FRAME = Frame(
    Kind.EAGER,
    source=0x1111111111111111,
    destination=0x2222222222222222,
    context=0x3333333333333333,
    tag=-4,
    fingerprint=0x5555555555555555,
    message=0x6666666666666666,
    length=7,
    metadata=b"meta",
    segments=(b"pay", b"load"),
)

LIMITS = {
    Kind.EAGER: EAGER_LIMIT,
    Kind.OFFER: PAYLOAD_LIMIT,
    Kind.GRANT: 0,
    Kind.DATA: CHUNK,
    Kind.CREDIT: 0,
    Kind.WITHDRAW: 0,
    Kind.BYE: 0,
    Kind.CONTROL: CONTROL_LIMIT,
}


def header(**changes):
    fields = {"magic": b"rm", "version": VERSION, "kind": 1, "metadata": 0, "source": 0, "destination": 0}
    fields |= {"context": 0, "tag": 0, "fingerprint": 0, "message": 0, "length": 0} | changes
    return HEADER.pack(*fields.values())


def test_the_header_is_64_bytes_laid_out_as_written():
    head = encode(FRAME)[0]
    assert HEADER_SIZE == 64
    assert head[0x00:0x04] == b"rm" + bytes([VERSION, Kind.EAGER])
    assert head[0x04:0x08] == struct.pack("<I", 4)
    assert head[0x08:0x20] == b"\x11" * 8 + b"\x22" * 8 + b"\x33" * 8
    assert head[0x20:0x28] == struct.pack("<q", -4)
    assert head[0x28:0x40] == b"\x55" * 8 + b"\x66" * 8 + struct.pack("<Q", 7)
    assert head[0x40:] == b"meta"


def test_segments_are_passed_through_as_the_objects_they_are():
    payload = bytearray(b"payload")
    frame = Frame(Kind.EAGER, 1, 2, length=7, segments=(payload,))
    assert encode(frame)[1] is payload


@pytest.mark.parametrize("kind", Kind)
def test_what_was_encoded_is_decoded(kind):
    sent = Frame(kind, 1, 2, 3, -4, 5, 6, LIMITS[kind], b"m" * 8)
    frame, metadata = decode_header(encode(sent)[0])
    frame.metadata = encode(sent)[0][HEADER_SIZE : HEADER_SIZE + metadata]
    assert frame == sent


def test_a_header_may_lie_anywhere_in_a_buffer():
    frame, metadata = decode_header(memoryview(b"before" + encode(FRAME)[0]), 6)
    assert (frame.tag, frame.message, metadata) == (-4, 0x6666666666666666, 4)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"magic": b"GE"}, "not a frame: it starts with b'GE'"),
        ({"version": VERSION + 1}, f"the peer speaks wire version {VERSION + 1}, this is version {VERSION}"),
        ({"kind": 0}, "unknown kind 0"),
        ({"kind": 255}, "unknown kind 255"),
        ({"metadata": METADATA_LIMIT + 1}, f"EAGER frame with {METADATA_LIMIT + 1} bytes of metadata"),
        ({"metadata": (1 << 32) - 1}, "bytes of metadata; the limit is"),
    ],
)
def test_what_is_no_header_is_refused(changes, text):
    with pytest.raises(WireError, match=text):
        decode_header(header(**changes))


@pytest.mark.parametrize("kind", Kind)
def test_lengths_are_checked_against_the_limit_of_their_kind(kind):
    frame, _ = decode_header(header(kind=kind, length=LIMITS[kind]))
    assert frame.length == LIMITS[kind]
    for length in (LIMITS[kind] + 1, (1 << 64) - 1):
        with pytest.raises(WireError, match=f"{kind.name} frame of {length} bytes; the limit is {LIMITS[kind]}"):
            decode_header(header(kind=kind, length=length))


def test_a_frame_prints_itself_without_its_contents():
    text = str(FRAME)
    assert text.startswith("EAGER 0x1111111111111111 > 0x2222222222222222")
    assert "load" not in text
