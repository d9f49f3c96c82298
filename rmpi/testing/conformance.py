"""What every link medium must do: one suite of named properties, run over memory, unix sockets, TCP and any other.

A property is a function of a *factory*. The factory makes two joined links for two sinks and says how to let the
medium work, which may mean nothing, a sleep until something is ready, or one turn of a relay between the two:

    def make_pair(sink_a: Sink, sink_b: Sink) -> tuple[Link, Link, Pump]: ...

    @pytest.mark.parametrize("holds", conformance.PROPERTIES, ids=conformance.name)
    def test_my_medium(holds):
        holds(make_pair)

The ends are endpoints `A` and `B`. A property raises `AssertionError` if it does not hold, also when the medium makes
no progress for `STUCK` seconds. It says what an endpoint relies on and nothing about speed; the one invariant behind
all of them is that what one side hands to its link comes out at the other whole, once and in order, or not at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import TypeAlias

from rmpi.deadline import Deadline
from rmpi.errors import WireError
from rmpi.transport.base import Link, Sink, Transfer
from rmpi.wire.frames import CHUNK, EAGER_LIMIT, Buffer, Frame, Kind

A, B = 0xA, 0xB
"""The endpoints that the two links are told to join: ``link_a.peer`` is `B`."""

STUCK = 10.0
"""Seconds without the expected before a property fails."""

SIZES = (0, 1, 63, 64, 65, 4095, 4096, 65535, 65536, 65537, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7)
"""Bytes of payload: around a header, a page, the staging buffer and one DATA frame."""

SEVERAL_MIB = (5 << 20) + 13

Pump: TypeAlias = Callable[[], None]
"""Lets the medium work; returns after a moment, whether anything happened or not."""

MakePair: TypeAlias = Callable[[Sink, Sink], tuple[Link, Link, Pump]]

Property: TypeAlias = Callable[[MakePair], None]


class Recorder:
    """A sink that lends fresh memory and keeps what came.

    Attributes:
        frames: Handed out by the link, in order.
        lent: For each frame with a payload, how many frames had been handed out when its memory was asked for.
        open: The frame whose payload is being read, and its memory.
        refuses: Lend no memory from now on.
    """

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.lent: list[int] = []
        self.open: tuple[Frame, list[memoryview]] | None = None
        self.refuses = False

    def lend(self, frame: Frame) -> list[memoryview]:
        if self.refuses:
            raise WireError(f"no memory for {frame}")
        self.lent.append(len(self.frames))
        views = _in_two(memoryview(bytearray(frame.length)))
        self.open = frame, views
        return views

    def take(self, link: Link) -> None:
        """Let ``link`` hand out what has come."""
        for frame in link.receive():
            if self.open is not None and frame is self.open[0]:
                frame.segments = self.open[1]
                self.open = None
            self.frames.append(frame)

    def of(self, kind: Kind) -> list[Frame]:
        return [frame for frame in self.frames if frame.kind is kind]

    def streamed(self) -> bytes:
        """The payload of all DATA frames, which must have come in order."""
        pieces, offset = [], 0
        for frame in self.of(Kind.DATA):
            _expect(frame.tag == offset, f"DATA of offset {frame.tag} where {offset} was next")
            pieces.append(payload_of(frame))
            offset += frame.length
        return b"".join(pieces)


class Pair:
    """Two joined links, what came over them, and the loop that makes both sides work."""

    def __init__(self, make_pair: MakePair) -> None:
        self.at_a, self.at_b = Recorder(), Recorder()
        self.a, self.b, self._pump = make_pair(self.at_a, self.at_b)

    def work(self) -> None:
        """Both sides push and take once."""
        self.a.flush()
        self.b.flush()
        self._pump()
        self.at_b.take(self.b)
        self.at_a.take(self.a)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Work until ``condition`` holds."""
        deadline = Deadline.after(STUCK)
        while not condition():
            _expect(not deadline.passed(), f"waited {STUCK} s for {what}")
            self.work()

    def stream(self, payload: Buffer, message: int = 1) -> Transfer:
        """Start to stream a payload from A to B."""
        transfer = _transfer([payload], message)
        self.a.stream(transfer)
        return transfer

    def close(self) -> None:
        self.a.close()
        self.b.close()


def payload_of(frame: Frame) -> bytes:
    """A frame's payload in one piece."""
    return b"".join(bytes(segment) for segment in frame.segments)


def name(holds: Property) -> str:
    """A property as words, for reports."""
    return holds.__name__.replace("_", " ")


PROPERTIES: list[Property] = []
"""All of them. A new medium is done when each holds, every time."""


def _property(check: Callable[[Pair], None]) -> Property:
    """What is checked on one pair of links, as a property of the factory; the links are closed whatever happens."""

    @wraps(check)
    def holds(make_pair: MakePair) -> None:
        pair = Pair(make_pair)
        try:
            check(pair)
        finally:
            pair.close()

    PROPERTIES.append(holds)
    return holds


# ------------------------------------------------------------------------------------------ small frames


@_property
def every_field_of_a_frame_arrives(pair: Pair) -> None:
    sent = [
        Frame(Kind.EAGER, A, B, 1 << 63, (1 << 63) - 1, (1 << 64) - 1, 0, 4, b"metadata", (b"pay", b"l")),
        Frame(Kind.OFFER, A, B, context=7, tag=-1, message=(1 << 64) - 1, length=1 << 40, metadata=b"m"),
        Frame(Kind.GRANT, A, B, message=3),
        Frame(Kind.CREDIT, A, B, message=1 << 20),
        Frame(Kind.WITHDRAW, A, B, message=9),
        Frame(Kind.CONTROL, A, B, length=2, segments=(b"ok",)),
        Frame(Kind.BYE, A, B),
    ]
    for frame in sent:
        pair.a.send(frame)
    pair.until(lambda: len(pair.at_b.frames) == len(sent), "every frame")
    for there, here in zip(sent, pair.at_b.frames, strict=True):
        _expect(_plain(there) == _plain(here), f"sent {there}, got {here}")


@_property
def small_frames_of_all_sizes_arrive_in_order(pair: Pair) -> None:
    choose = random.Random(1)
    sizes = [choose.choice([0, 0, 1, 63, 64, 65, 1000, 4096, EAGER_LIMIT]) for _ in range(1000)]
    for number, size in enumerate(sizes):
        pair.a.send(_eager(number, _bytes(size, number)))
        if number % 50 == 0:
            pair.work()
    pair.until(lambda: len(pair.at_b.frames) == len(sizes), "every frame")
    for number, (size, frame) in enumerate(zip(sizes, pair.at_b.frames, strict=True)):
        _expect(frame.tag == number, f"frame {frame.tag} where {number} was next")
        _expect(payload_of(frame) == _bytes(size, number), f"payload of frame {number} is not what was sent")


@_property
def a_frame_is_handed_out_before_memory_for_the_next_is_asked_for(pair: Pair) -> None:
    """Else a message with a payload would be matched before one without that was sent earlier."""
    for number in range(20):
        pair.a.send(_eager(number, b"" if number % 3 else b"x"))
    pair.until(lambda: len(pair.at_b.frames) == 20, "every frame")
    _expect(pair.at_b.lent == list(range(0, 20, 3)), f"memory was asked for after {pair.at_b.lent} frames")


@_property
def memory_of_a_sent_frame_may_be_changed(pair: Pair) -> None:
    memory = bytearray(EAGER_LIMIT)
    for number in range(64):  # more than any medium takes at once
        memory[:] = bytes([number]) * EAGER_LIMIT
        pair.a.send(_eager(number, memory))
    pair.until(lambda: len(pair.at_b.frames) == 64, "every frame")
    for number, frame in enumerate(pair.at_b.frames):
        _expect(payload_of(frame) == bytes([number]) * EAGER_LIMIT, f"frame {number} was changed after it was sent")


# --------------------------------------------------------------------------------------------- payloads


@_property
def payloads_in_one_frame_arrive_whole(pair: Pair) -> None:
    sizes = [size for size in SIZES if size <= EAGER_LIMIT]
    for number, size in enumerate(sizes):
        pair.a.send(_eager(number, _bytes(size, number)))
    pair.until(lambda: len(pair.at_b.frames) == len(sizes), "every frame")
    for number, (size, frame) in enumerate(zip(sizes, pair.at_b.frames, strict=True)):
        _expect(payload_of(frame) == _bytes(size, number), f"a payload of {size} bytes is not what was sent")


@_property
def streamed_payloads_of_all_sizes_arrive_whole(pair: Pair) -> None:
    for message, size in enumerate(SIZES[1:], start=1):
        payload = _bytes(size, message)
        pair.at_b.frames.clear()
        transfer = pair.stream(payload, message)
        pair.until(lambda size=size: _landed(pair.at_b) == size, f"{size} bytes")  # type: ignore[misc]
        _expect(pair.at_b.streamed() == payload, f"a streamed payload of {size} bytes is not what was sent")
        _expect(transfer.done, f"a payload of {size} bytes has come, but its transfer is not done")


@_property
def several_mebibytes_stream_while_both_sides_work(pair: Pair) -> None:
    payload = _bytes(SEVERAL_MIB, 3)
    transfer = pair.stream(payload)
    pair.until(lambda: _landed(pair.at_b) == SEVERAL_MIB, "the whole payload")
    _expect(pair.at_b.streamed() == payload, "the payload is not what was sent")
    _expect(max(frame.length for frame in pair.at_b.frames) <= CHUNK, "a DATA frame is larger than CHUNK")
    _expect(transfer.done and transfer.error is None, "the transfer is not done")


@_property
def a_payload_of_very_many_pieces_arrives_whole(pair: Pair) -> None:
    """More than one system call takes."""
    pieces = [_bytes(2 + number % 7, number) for number in range(3000)]
    pair.a.stream(_transfer(pieces, 1))
    whole = b"".join(pieces)
    pair.until(lambda: _landed(pair.at_b) == len(whole), "the whole payload")
    _expect(pair.at_b.streamed() == whole, "the payload is not what was sent")


@_property
def payloads_follow_each_other_in_order(pair: Pair) -> None:
    for message in range(1, 6):
        pair.stream(_bytes(CHUNK + message, message), message)
    pair.until(lambda: _landed(pair.at_b) == 5 * CHUNK + 15, "all payloads")
    order = [frame.message for frame in pair.at_b.frames]
    _expect(order == sorted(order), f"pieces of the messages came in the order {order}")
    for message in range(1, 6):
        whole = b"".join(payload_of(frame) for frame in pair.at_b.frames if frame.message == message)
        _expect(whole == _bytes(CHUNK + message, message), f"message {message} is not what was sent")


@_property
def small_frames_overtake_a_stream(pair: Pair) -> None:
    pair.stream(_bytes(4 * SEVERAL_MIB, 1))
    pair.a.flush()
    pair.a.send(_eager(0, b"small"))
    pair.until(lambda: bool(pair.at_b.of(Kind.EAGER)), "the small frame")
    _expect(_landed(pair.at_b) < 4 * SEVERAL_MIB, "the small frame came behind the whole payload")
    pair.until(lambda: _landed(pair.at_b) == 4 * SEVERAL_MIB, "the whole payload")
    _expect(pair.at_b.streamed() == _bytes(4 * SEVERAL_MIB, 1), "the payload is not what was sent")


@_property
def both_directions_at_once(pair: Pair) -> None:
    there, back = _bytes(SEVERAL_MIB, 1), _bytes(SEVERAL_MIB, 2)
    pair.a.stream(_transfer([there], 1))
    pair.b.stream(_transfer([back], 1))
    for number in range(100):
        pair.a.send(_eager(number, b"there"))
        pair.b.send(_eager(number, b"back"))
    pair.until(lambda: _landed(pair.at_a) == _landed(pair.at_b) == SEVERAL_MIB, "both payloads")
    for recorder, payload in ((pair.at_b, there), (pair.at_a, back)):
        _expect(recorder.streamed() == payload, "a payload is not what was sent")
        _expect([frame.tag for frame in recorder.of(Kind.EAGER)] == list(range(100)), "small frames out of order")


@_property
def memory_of_an_owned_transfer_may_be_changed(pair: Pair) -> None:
    """`Transfer.own` and `Link.detach` together give the sender its memory back in the middle of a stream."""
    memory = bytearray(_bytes(SEVERAL_MIB, 5))
    transfer = pair.stream(memory)
    pair.a.flush()
    transfer.own()
    pair.a.detach()
    memory[:] = bytes(SEVERAL_MIB)
    pair.until(lambda: _landed(pair.at_b) == SEVERAL_MIB, "the whole payload")
    _expect(pair.at_b.streamed() == _bytes(SEVERAL_MIB, 5), "the payload was changed after the sender had it back")


@_property
def a_relocated_payload_goes_on_in_other_memory(pair: Pair) -> None:
    """And nothing is written any more to the memory it was moved out of."""
    pair.stream(_bytes(SEVERAL_MIB, 6))
    left = []

    def all_here() -> bool:
        if pair.at_b.open is not None:
            left.append(_move(pair.b, pair.at_b))
        return _landed(pair.at_b) == SEVERAL_MIB

    pair.until(all_here, "the whole payload")
    _expect(pair.at_b.streamed() == _bytes(SEVERAL_MIB, 6), "the payload is not what was sent")
    _expect(all(before == bytes(after) for before, after in left), "memory was written after it was left")


# ------------------------------------------------------------------------------------------------- ends


@_property
def both_ends_count_alike(pair: Pair) -> None:
    """What waits, and what is on its way, has been sent and not been taken; in the end all of it has been."""
    pair.a.send(_eager(1, _bytes(100, 1)))
    _expect(pair.a.sent() > pair.b.taken(), "what was sent counts as taken, or not as sent")
    transfer = pair.stream(_bytes(SEVERAL_MIB, 2))
    _expect(pair.a.sent() > pair.b.taken(), "what waits counts as taken, or not as sent")
    pair.until(lambda: transfer.done and _landed(pair.at_b) == SEVERAL_MIB, "the stream")
    _expect(pair.a.sent() == pair.b.taken() > 0, f"{pair.a.sent()} sent, and {pair.b.taken()} taken")
    _expect(pair.b.sent() == pair.a.taken() == 0, f"{pair.b.sent()} sent, and {pair.a.taken()} taken")


@_property
def what_is_settled_has_left_this_process(pair: Pair) -> None:
    _expect(pair.a.settled(), "a link that has sent nothing is not settled")
    pair.stream(_bytes(4 * SEVERAL_MIB, 1))
    pair.a.flush()
    _expect(not pair.a.settled(), "settled, and most of the payload is still here")
    pair.until(pair.a.settled, "the link to settle")
    pair.a.close()
    pair.until(lambda: pair.b.closed, "the other end to see the end")
    _expect(pair.at_b.streamed() == _bytes(4 * SEVERAL_MIB, 1), "what was settled did not arrive")


@_property
def a_finished_link_delivers_everything_before_its_end(pair: Pair) -> None:
    pair.stream(_bytes(SEVERAL_MIB, 1))
    pair.a.send(Frame(Kind.BYE, A, B))
    pair.a.finish()
    _expect(not pair.b.closed, "the end overtook what was sent")
    pair.until(lambda: pair.b.closed, "the other end to see the end")
    _expect(pair.at_b.streamed() == _bytes(SEVERAL_MIB, 1), "the payload is not what was sent")
    _expect(len(pair.at_b.of(Kind.BYE)) == 1, "the last frame is missing")
    _expect(not pair.a.closed, "finishing one direction has closed the other")
    pair.b.send(_eager(0, b"the other direction still works"))
    pair.until(lambda: bool(pair.at_a.frames), "a frame against the finished direction")


@_property
def a_closed_peer_is_seen_after_what_it_had_sent(pair: Pair) -> None:
    for number in range(10):
        pair.a.send(_eager(number, b"last words"))
    pair.until(pair.a.settled, "the link to settle")
    pair.a.close()
    pair.until(lambda: pair.b.closed, "the other end to see the end")
    _expect([frame.tag for frame in pair.at_b.frames] == list(range(10)), "last words are missing")
    pair.b.send(_eager(0, b"into the void"))
    pair.b.stream(_transfer([bytes(2 * CHUNK)], 1))
    pair.until(pair.b.flush, "frames for nobody to be dropped")
    _expect(list(pair.b.receive()) == [], "frames came from a closed peer")


@_property
def a_torn_stream_ends_without_half_a_frame(pair: Pair) -> None:
    payload = _bytes(4 * SEVERAL_MIB, 1)
    pair.stream(payload)
    pair.until(lambda: _landed(pair.at_b) > 0, "some of the payload")
    pair.a.close()
    pair.until(lambda: pair.b.closed, "the other end to see the end")
    came = pair.at_b.streamed()
    _expect(payload.startswith(came), "what came is not the beginning of what was sent")
    _expect(len(came) < len(payload), "a stream that was torn came whole")


@_property
def a_refused_frame_is_a_wire_error(pair: Pair) -> None:
    pair.at_b.refuses = True
    pair.a.send(_eager(0, b"unwelcome"))
    refused: list[WireError] = []

    def raised() -> bool:
        try:
            pair.work()
        except WireError as error:
            refused.append(error)
        return bool(refused)

    pair.until(raised, "the error of the sink")


@_property
def closing_twice_is_closing_once(pair: Pair) -> None:
    pair.close()
    pair.close()
    _expect(pair.a.closed and pair.b.closed, "a link that was closed does not say so")


# ---------------------------------------------------------------------------------------------- helpers


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _bytes(size: int, seed: int) -> bytes:
    """Bytes that no shift maps to themselves."""
    return random.Random(seed).randbytes(size)


def _eager(number: int, payload: Buffer) -> Frame:
    return Frame(Kind.EAGER, A, B, tag=number, length=len(payload), segments=(payload,) if payload else ())


def _transfer(segments: Sequence[Buffer], message: int) -> Transfer:
    transfer = Transfer(A, B, 0, 0, 0, b"", segments, sum(map(len, segments)))
    transfer.message = message
    return transfer


def _plain(frame: Frame) -> Frame:
    return replace(frame, segments=(payload_of(frame),))


def _landed(recorder: Recorder) -> int:
    return sum(frame.length for frame in recorder.of(Kind.DATA))


def _in_two(memory: memoryview) -> list[memoryview]:
    """Memory in pieces, one of them empty, as that of a value with several buffers is."""
    middle = memory.nbytes // 3
    return [memory[:middle], memory[middle:middle], memory[middle:]]


def _move(link: Link, recorder: Recorder) -> tuple[bytes, bytearray]:
    """Move the payload that is being read to other memory; what was in the old, and the old itself."""
    assert recorder.open is not None
    frame, old = recorder.open
    memory = old[0].obj
    assert isinstance(memory, bytearray)
    new = _in_two(memoryview(bytearray(memory)))
    link.relocate(lambda other: other is frame, new)
    recorder.open = frame, new
    return bytes(memory), memory
