"""Frames: what a link carries.

A frame is a fixed header, a little metadata and a payload of raw segments. Little-endian:

    offset  type  field
    0x00    2s    magic, b"rm"
    0x02    B     wire version
    0x03    B     kind
    0x04    I     bytes of metadata, m
    0x08    Q     source endpoint
    0x10    Q     destination endpoint
    0x18    Q     context: which communicator, channel or conversation
    0x20    q     tag of a message, sequence number of a collective, offset of DATA
    0x28    Q     fingerprint of the collective that was called; 0 outside collectives
    0x30    Q     message number of OFFER, GRANT, DATA, WITHDRAW; bytes returned of CREDIT
    0x38    Q     bytes of payload, n (of an OFFER: the bytes that a grant would bring)
    0x40    m     metadata, then n bytes of payload (none after an OFFER), unpadded

The header names both endpoints, so that any link can carry frames of any pair. 64 bytes are one cache
line; the lengths come last but are fixed in place, so a reader knows after 64 bytes how much follows.

Messages up to `EAGER_LIMIT` travel whole in one EAGER frame. For larger ones only an OFFER travels; it
holds the message's place in the matching order. The receiver answers with a GRANT once it has memory for
it, and the payload follows in DATA frames of at most `CHUNK`, so that other frames get between them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from rmpi.errors import WireError

VERSION = 1
MAGIC = b"rm"

HEADER = struct.Struct("<2sBBIQQQqQQQ")
HEADER_SIZE = HEADER.size

EAGER_LIMIT = 64 << 10
"""Bytes of payload; a larger message travels as OFFER, GRANT, DATA."""

CHUNK = 256 << 10
"""Bytes of payload in one DATA frame: large enough to forget the header, small enough to stay in cache."""

METADATA_LIMIT = 48 << 10
"""Bytes; a longer one is refused. It must fit the decoder's staging buffer together with a header."""

PAYLOAD_LIMIT = 1 << 40
"""Bytes of one message; an OFFER of more is taken for garbage, before anything is allocated."""

CONTROL_LIMIT = 16 << 20
"""Bytes of one CONTROL payload (a control message between two nodes)."""

Buffer: TypeAlias = bytes | bytearray | memoryview


class Kind(IntEnum):
    EAGER = 1  # a whole message
    OFFER = 2  # a message's place in the order; the payload waits for a GRANT
    GRANT = 3  # receiver → sender: send message number so-and-so
    DATA = 4  # a piece of a granted message; `tag` is its offset
    CREDIT = 5  # receiver → sender: so many eager bytes were consumed
    WITHDRAW = 6  # sender → receiver: forget this offer, its sender gave up
    BYE = 7  # nothing will follow on this link in this direction
    CONTROL = 8  # one packed control message between nodes


_KINDS = {int(kind): kind for kind in Kind}

_LIMITS = {
    Kind.EAGER: EAGER_LIMIT,
    Kind.OFFER: PAYLOAD_LIMIT,
    Kind.GRANT: 0,
    Kind.DATA: CHUNK,
    Kind.CREDIT: 0,
    Kind.WITHDRAW: 0,
    Kind.BYE: 0,
    Kind.CONTROL: CONTROL_LIMIT,
}


@dataclass(slots=True)
class Frame:
    """One frame; the fields are those of the table above.

    ``segments`` are the payload's buffers, in order. On the sending side they are the caller's own
    objects; on the receiving side they are the memory that was lent for them.
    """

    kind: Kind
    source: int
    destination: int
    context: int = 0
    tag: int = 0
    fingerprint: int = 0
    message: int = 0
    length: int = 0
    metadata: bytes = b""
    segments: Sequence[Buffer] = ()

    def __str__(self) -> str:
        return (
            f"{self.kind.name} {self.source:#x} > {self.destination:#x} context {self.context:#x} "
            f"tag {self.tag} message {self.message} length {self.length}"
        )


def encode(frame: Frame) -> list[Buffer]:
    """Buffers for ``socket.sendmsg``: header with metadata, then the very objects in ``segments``."""
    head = HEADER.pack(
        MAGIC,
        VERSION,
        frame.kind,
        len(frame.metadata),
        frame.source,
        frame.destination,
        frame.context,
        frame.tag,
        frame.fingerprint,
        frame.message,
        frame.length,
    )
    return [head + frame.metadata, *frame.segments]


def decode_header(buffer: Buffer, offset: int = 0) -> tuple[Frame, int]:
    """The frame that starts at ``offset``, still without metadata and payload, and its metadata's length.

    Raises:
        WireError: It is not the header of a frame, or promises more than the limits allow.
    """
    magic, version, code, metadata, source, destination, context, tag, fingerprint, message, length = (
        HEADER.unpack_from(buffer, offset)
    )
    if magic != MAGIC:
        raise WireError(f"not a frame: it starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise WireError(f"the peer speaks wire version {version}, this is version {VERSION}")
    kind = _KINDS.get(code)
    if kind is None:
        raise WireError(f"frame of unknown kind {code}")
    if metadata > METADATA_LIMIT:
        raise WireError(f"{kind.name} frame with {metadata} bytes of metadata; the limit is {METADATA_LIMIT}")
    if length > _LIMITS[kind]:
        raise WireError(f"{kind.name} frame of {length} bytes; the limit is {_LIMITS[kind]}")
    return Frame(kind, source, destination, context, tag, fingerprint, message, length), metadata
