"""The handshake: what a connection to a door says before its first frame.

Both sides prove that they hold the job's 32-byte key, and neither shows it. Four messages of fixed size
alternate, so that at every moment exactly one is legal. Little-endian; all begin with the same prelude:

    offset  type  field
    0x00    4s    magic, b"rmpi"
    0x04    H     wire version
    0x06    B     step: 1 HELLO, 2 CHALLENGE, 3 PROOF, 4 ACCEPT
    0x07    B     refusal: 0, or why the sender ends it here; then nothing follows

    1 HELLO      connector →   0x08  Q    source endpoint
    (56 bytes)                 0x10  Q    destination endpoint
                               0x18  32s  the connector's nonce
    2 CHALLENGE  ← acceptor    0x08  32s  the acceptor's nonce
    (72 bytes)                 0x28  32s  HMAC(key, b"rmpi acceptor" | transcript)
    3 PROOF      connector →   0x08  32s  HMAC(key, b"rmpi connector" | transcript)
    (40 bytes)
    4 ACCEPT     ← acceptor    (8 bytes: the prelude alone)

HMAC is HMAC-SHA256. The transcript is the wire version, both endpoint ids and both nonces; the role before it
is padded with zeros to 16 bytes, so each thing that is signed has 98 bytes and one meaning:

    nonces    a recorded conversation is worth nothing against a fresh one
    role      nobody can be made to answer its own question (reflection)
    ids       a connection made for one endpoint cannot be passed off as one to another
    version   the version that was checked is the one that was meant

Another wire version is refused by name before any key is looked at; for that the prelude stays as it is in
every version to come. Strangers (another magic) get no answer at all. Whether the destination exists is asked
last, so that only a holder of the key learns it. The acceptor proves itself to whoever asks, which gives away
nothing: the key is 256 random bits, so there is nothing to guess.

What this does not do: frames afterwards are neither signed nor encrypted. It keeps strangers out; someone who
can rewrite packets between two hosts can still take over a connection after it was accepted.

The two machines do no I/O and know no time. Their caller sends what `outgoing` holds, reads at most `wanted`
bytes, so not one byte of the frames behind the handshake, feeds them, and ends it all after a few seconds.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import NoReturn

from rmpi.errors import UsageError, WireError
from rmpi.wire.frames import VERSION

MAGIC = b"rmpi"
KEY_SIZE = 32
NONCE_SIZE = 32

PRELUDE = struct.Struct("<4sHBB")
HELLO = struct.Struct("<QQ32s")
CHALLENGE = struct.Struct("<32s32s")
PROOF = struct.Struct("<32s")
SIGNED = struct.Struct("<16sHQQ32s32s")

ACCEPTOR_ROLE = b"rmpi acceptor"
CONNECTOR_ROLE = b"rmpi connector"


class Step(IntEnum):
    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    ACCEPT = 4


class Refusal(IntEnum):
    NONE = 0
    VERSION = 1  # the sender speaks another wire version: the one in its prelude
    KEY = 2  # the receiver's proof was not made with the sender's key
    ENDPOINT = 3  # the key is right, but the sender takes no connection between these endpoints


SIZES = {
    Step.HELLO: PRELUDE.size + HELLO.size,
    Step.CHALLENGE: PRELUDE.size + CHALLENGE.size,
    Step.PROOF: PRELUDE.size + PROOF.size,
    Step.ACCEPT: PRELUDE.size,
}
"""Bytes of each message with its prelude: all that a peer can make either side read."""

_REFUSED = {
    Refusal.VERSION: "it speaks another wire version: install the same rmpi on both hosts",
    Refusal.KEY: "it holds another key than we do: is it part of another job?",
    Refusal.ENDPOINT: "it takes no connection between these endpoints: has the place ended?",
}


class _Machine:
    """What both sides share: collect one message, check its prelude, hand on its body.

    The state is `_awaits`, the one message that may come next. It is None once nothing more is read: the
    handshake is done, or, with `_error` set, dead.
    """

    def __init__(self, key: bytes, nonce: bytes, awaits: Step) -> None:
        if len(key) != KEY_SIZE:
            raise UsageError(f"the key of a job has {KEY_SIZE} bytes, not {len(key)}")
        if len(nonce) != NONCE_SIZE:
            raise UsageError(f"a nonce has {NONCE_SIZE} fresh random bytes, not {len(nonce)}")
        self._key = key
        self._nonce = nonce
        self._awaits: Step | None = awaits
        self._error: str | None = None
        self._arrived = bytearray()
        self._outgoing = bytearray()

    @property
    def done(self) -> bool:
        """Each side has proved itself; frames may follow whatever `outgoing` still holds."""
        return self._awaits is None and self._error is None

    def outgoing(self) -> bytes:
        """What to send now, often nothing; the next call does not return it again.

        Ask after an error too: it may hold the refusal that tells the peer why. Send that if it goes at once,
        then close the connection.
        """
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def wanted(self) -> int:
        """The most bytes that may be read now. 0 when done or dead, and never 0 before."""
        if self._awaits is None:
            return 0
        arrived = len(self._arrived)
        return (PRELUDE.size if arrived < PRELUDE.size else SIZES[self._awaits]) - arrived

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take what was read; no bytes mean that the peer has closed, as ``recv`` has it.

        Raises:
            WireError: The peer is a stranger, speaks another wire version, holds another key, closed, or
                refused us. The machine is dead: it reads nothing more, and `feed` raises the same again.
            UsageError: More bytes than `wanted` said, or any after `done`. Nothing was taken.
        """
        if self._error is not None:
            raise WireError(self._error)
        if self._awaits is None or len(data) > self.wanted():
            raise UsageError(f"the handshake wants {self.wanted()} bytes and was fed {len(data)}")
        if not data:
            self._fail(self._closed_early(self._awaits))
        self._arrived += data
        if len(self._arrived) == PRELUDE.size:
            self._check_prelude(self._awaits)
        if len(self._arrived) == SIZES[self._awaits]:
            body = bytes(self._arrived[PRELUDE.size :])
            self._arrived.clear()
            self._awaits = self._take(self._awaits, body)

    def _take(self, step: Step, body: bytes) -> Step | None:
        """Act on a whole message; return the one that must come next, None at the end."""
        raise NotImplementedError

    def _check_prelude(self, awaits: Step) -> None:
        magic, version, step, refusal = PRELUDE.unpack(self._arrived)
        if magic != MAGIC:
            self._fail(f"not an rmpi peer: where its {awaits.name} was due came {bytes(self._arrived)!r}")
        if version != VERSION:
            skew = f"the peer speaks wire version {version}, this is {VERSION}"
            self._refuse(Refusal.VERSION, f"{skew}: install the same rmpi on both hosts")
        if step != awaits:
            self._fail(f"the peer broke the handshake: its {awaits.name} was due, and step {step} came")
        if refusal != Refusal.NONE:
            self._fail(f"the peer refused the connection: {_REFUSED.get(refusal, f'for reason {refusal}')}")

    def _closed_early(self, awaits: Step) -> str:
        progress = f"{len(self._arrived)} of {SIZES[awaits]} bytes"
        return f"the peer closed the connection where its {awaits.name} was due ({progress} came)"

    def _send(self, step: Step, body: bytes = b"", refusal: Refusal = Refusal.NONE) -> None:
        self._outgoing += PRELUDE.pack(MAGIC, VERSION, step, refusal) + body

    def _refuse(self, refusal: Refusal, error: str) -> NoReturn:
        """Fail, and tell the peer why in place of the message it is waiting for, if it is."""
        if self._awaits is not None and self._awaits is not Step.ACCEPT:
            self._send(Step(self._awaits + 1), refusal=refusal)
        self._fail(error)

    def _fail(self, error: str) -> NoReturn:
        self._awaits = None
        self._error = error
        raise WireError(error)

    def _state(self) -> str:
        if self._awaits is not None:
            return f"awaits {self._awaits.name}"
        return "done" if self._error is None else f"dead: {self._error}"


class Connector(_Machine):
    """The side that dialled. It knows both ends: it is ``source`` and wants ``destination``.

    Args:
        key: The job's 32 bytes.
        source: Endpoint id of this side, 64 bits without sign.
        destination: Endpoint id it wants to talk to, likewise.
        nonce: 32 fresh random bytes, never used before.

    Raises:
        UsageError: One of these does not have its size.
    """

    def __init__(self, key: bytes, source: int, destination: int, nonce: bytes) -> None:
        super().__init__(key, nonce, awaits=Step.CHALLENGE)
        for endpoint in (source, destination):
            if not 0 <= endpoint < 1 << 64:
                raise UsageError(f"an endpoint id is 64 bits without sign, not {endpoint}")
        self.source = source
        self.destination = destination
        self._send(Step.HELLO, HELLO.pack(source, destination, nonce))

    def _take(self, step: Step, body: bytes) -> Step | None:
        if step is Step.ACCEPT:
            return None
        challenge, proof = CHALLENGE.unpack(body)
        transcript = (VERSION, self.source, self.destination, self._nonce, challenge)
        if not hmac.compare_digest(proof, _sign(self._key, ACCEPTOR_ROLE, transcript)):
            self._refuse(Refusal.KEY, "the listener holds another key than we do: is it part of another job?")
        self._send(Step.PROOF, PROOF.pack(_sign(self._key, CONNECTOR_ROLE, transcript)))
        return Step.ACCEPT

    def __repr__(self) -> str:
        return f"<Connector {self.source:#x} to {self.destination:#x}, {self._state()}>"


class Acceptor(_Machine):
    """The side that listened. It learns from the connector which two endpoints want to talk.

    Args:
        key: The job's 32 bytes.
        nonce: 32 fresh random bytes, never used before.
        accepts: Asked once, ``accepts(source, destination)``, after the key was found right; False refuses.
            None takes every connection of a holder of the key.

    Raises:
        UsageError: One of these does not have its size.
    """

    def __init__(self, key: bytes, nonce: bytes, *, accepts: Callable[[int, int], bool] | None = None) -> None:
        super().__init__(key, nonce, awaits=Step.HELLO)
        self._accepts = accepts
        self._source = 0
        self._destination = 0
        self._challenge = b""

    @property
    def source(self) -> int:
        """Endpoint id of the connector. UsageError before `done`: until then it is a stranger's claim."""
        return self._proved(self._source)

    @property
    def destination(self) -> int:
        """Endpoint id the connector wants. UsageError before `done`: until then it is a stranger's claim."""
        return self._proved(self._destination)

    def _proved(self, endpoint: int) -> int:
        if not self.done:
            raise UsageError("the endpoints of a connection are known when its handshake is done")
        return endpoint

    def _take(self, step: Step, body: bytes) -> Step | None:
        if step is Step.HELLO:
            return self._answer_hello(body)
        self._judge(*PROOF.unpack(body))
        self._send(Step.ACCEPT)
        return None

    def _answer_hello(self, body: bytes) -> Step:
        self._source, self._destination, self._challenge = HELLO.unpack(body)
        proof = _sign(self._key, ACCEPTOR_ROLE, self._transcript())
        self._send(Step.CHALLENGE, CHALLENGE.pack(self._nonce, proof))
        return Step.PROOF

    def _judge(self, proof: bytes) -> None:
        pair = f"{self._source:#x} to {self._destination:#x}"
        if not hmac.compare_digest(proof, _sign(self._key, CONNECTOR_ROLE, self._transcript())):
            self._refuse(Refusal.KEY, f"whoever asked to connect {pair} does not hold the key of this job")
        if self._accepts is not None and not self._accepts(self._source, self._destination):
            self._refuse(Refusal.ENDPOINT, f"no connection is taken here from endpoint {pair}")

    def _transcript(self) -> tuple[int, int, int, bytes, bytes]:
        return VERSION, self._source, self._destination, self._challenge, self._nonce

    def __repr__(self) -> str:
        return f"<Acceptor {self._state()}>"


def _sign(key: bytes, role: bytes, transcript: tuple[int, int, int, bytes, bytes]) -> bytes:
    return hmac.digest(key, SIGNED.pack(role, *transcript), "sha256")
