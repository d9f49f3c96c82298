"""Values ⇄ metadata and raw memory.

One ``send`` serves arrays and objects; this module looks at the value:

    code  value                       metadata after the code            payload
    N T F None, True, False           –                                  –
    i     int of 64 bits              the int                            –
    f     float                       the float                          –
    s b   str, bytes                  –                                  UTF-8, the bytes
    a     numpy.ndarray               order, dtype, shape                the array's memory
    p     anything else               length of each segment             pickle, then its buffers

Only exactly these types have code of their own; a subclass, a longer int, an object array or a dtype that
text cannot describe is pickled (protocol 5), and the buffers of arrays inside it travel raw beside the
pickle. So what arrives is what was sent: tuples stay tuples and shared references stay shared.

Encoding never joins or copies: `Encoded.segments` are views of the value's own memory (of a copy only for
an array that is contiguous in neither order). Decoding first lends memory (`open_value`), lets somebody
fill it, and only then makes the value (`Landing.value`), so a received array is written once.

`memoryview(array)` refuses datetime64, and casting it refuses Fortran order and zero length; a flat
``uint8`` view of the array's memory works for all of them.
"""

from __future__ import annotations

import ast
import math
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rmpi.errors import UsageError, WireError
from rmpi.wire.frames import METADATA_LIMIT, Buffer

Array = npt.NDArray[Any]

_INT = struct.Struct("<q")
_FLOAT = struct.Struct("<d")
_ARRAY = struct.Struct("<cccBH")  # code, order, dtype given as (s: text, d: descr), dimensions, dtype bytes
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1

_LARGEST = (1 << 63) - 1
"""Bytes of an array, extents of 0 not counted: beyond, NumPy says that there is no such array."""

OUT_OF_BAND = 2048
"""Bytes from which a buffer inside a pickled object travels raw; below, a copy is cheaper than a segment."""

SEGMENTS_LIMIT = 1000
"""Buffers of one object that travel raw; beyond, they are copied into the pickle. Below Linux' IOV_MAX."""

_DIMENSIONS = 64
"""Of an array: what NumPy 2 allows. More are refused before NumPy is asked."""

_CACHE_LIMIT = 1024
"""Descriptions of arrays remembered in each direction; beyond, the memory starts afresh."""


@dataclass(slots=True)
class Encoded:
    """A value ready to travel. ``segments`` alias the value: send them before it changes."""

    metadata: bytes
    segments: Sequence[Buffer]
    nbytes: int


class Landing:
    """Memory for a value that is on its way: fill every one of `views`, then take `value`, once."""

    __slots__ = ("_kind", "_target", "views")

    def __init__(self, kind: int, views: list[memoryview], target: Any) -> None:
        self._kind = kind
        self._target = target
        self.views = views

    def value(self) -> Any:
        """The value, which owns its memory.

        Raises:
            WireError: Text that is not UTF-8.
        Exception: whatever unpickling raises, such as ImportError for a class that is not here.
        """
        return _FINISH[self._kind](self._target, self.views)


# ---------------------------------------------------------------------------------------------- encode


def encode_value(value: object) -> Encoded:
    """How ``value`` travels.

    Raises:
        UsageError: It cannot be pickled; says which type, and why.
    """
    encoder = _ENCODERS.get(type(value))
    return encoder(value) if encoder is not None else _encode_object(value)


def _encode_int(value: int) -> Encoded:
    if _INT_MIN <= value <= _INT_MAX:
        return Encoded(b"i" + _INT.pack(value), (), 0)
    return _encode_object(value)


def _encode_str(value: str) -> Encoded:
    data = value.encode("utf-8", "surrogatepass")
    return Encoded(b"s", (data,), len(data))


def _encode_array(array: Array) -> Encoded:
    order = b"C" if array.flags.c_contiguous else b"F" if array.flags.f_contiguous else b""
    if not order:
        array, order = np.ascontiguousarray(array), b"C"
    metadata = _describe(array.dtype, array.shape, order)
    if metadata is None:
        return _encode_object(array)
    return Encoded(metadata, (memory_of(array, order),) if array.nbytes else (), array.nbytes)


def _encode_object(value: object) -> Encoded:
    buffers: list[memoryview] = []

    def in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND or len(buffers) >= SEGMENTS_LIMIT:
            return True
        buffers.append(raw)
        return False

    try:
        stream = pickle.dumps(value, protocol=5, buffer_callback=in_band)
    except Exception as error:
        raise UsageError(
            f"a {type(value).__qualname__} cannot be sent, because it cannot be pickled: {error}. Send data "
            "(numbers, text, containers, arrays, instances of importable classes), not live objects"
        ) from error
    return encode_parts([stream, *buffers])


def encode_parts(parts: Sequence[Buffer]) -> Encoded:
    """How a pickle travels, given it and its buffers."""
    lengths = [memoryview(part).nbytes for part in parts]
    metadata = b"p" + struct.pack(f"<{len(lengths)}Q", *lengths)
    return Encoded(metadata, parts, sum(lengths))


_ENCODERS: dict[type, Any] = {
    type(None): lambda _: Encoded(b"N", (), 0),
    bool: lambda value: Encoded(b"T" if value else b"F", (), 0),
    int: _encode_int,
    float: lambda value: Encoded(b"f" + _FLOAT.pack(value), (), 0),
    str: _encode_str,
    bytes: lambda value: Encoded(b"b", (value,) if value else (), len(value)),
    np.ndarray: _encode_array,
}


def memory_of(array: Array, order: bytes = b"C") -> memoryview:
    """The bytes of a contiguous array as a flat view of its own memory, writable if it is."""
    array = np.asarray(array)  # a subclass may refuse to be flat, as numpy.matrix does
    flat = array.reshape(-1) if order == b"C" else array.T.reshape(-1)
    return flat.view(np.uint8).data if flat.nbytes else memoryview(b"")


_described: dict[tuple[np.dtype[Any] | int, tuple[int, ...], bytes], tuple[np.dtype[Any], bytes | None]] = {}


def _describe(dtype: np.dtype[Any], shape: tuple[int, ...], order: bytes) -> bytes | None:
    """The metadata of an array, or None if its dtype needs pickle."""
    # Equal dtypes may differ in notes, alignment and scalar type: such are told apart by identity, which
    # stays theirs because the entry keeps them alive.
    plain = dtype.names is None and dtype.metadata is None
    key = (dtype if plain else id(dtype), shape, order)
    try:
        return _described[key][1]
    except KeyError:
        pass
    if len(_described) >= _CACHE_LIMIT:
        _described.clear()
    metadata = _make_description(dtype, shape, order)
    _described[key] = dtype, metadata
    return metadata


def _make_description(dtype: np.dtype[Any], shape: tuple[int, ...], order: bytes) -> bytes | None:
    if dtype.hasobject or not dtype.itemsize or _bears_metadata(dtype):
        return None
    if np.dtype(dtype.str) == dtype:
        form, text = b"s", dtype.str.encode()
    else:
        try:
            form, text = b"d", repr(np.lib.format.dtype_to_descr(dtype)).encode()
        except ValueError:  # fields that overlap or are out of order
            return None
    if len(text) > METADATA_LIMIT // 2 or not _survives(dtype, form, text):
        return None
    return _ARRAY.pack(b"a", order, form, len(shape), len(text)) + struct.pack(f"<{len(shape)}q", *shape) + text


def _bears_metadata(dtype: np.dtype[Any]) -> bool:
    """Whether notes hang on it, which only pickle takes along."""
    inner = [field[0] for field in (dtype.fields or {}).values()]
    if dtype.subdtype is not None:
        inner.append(dtype.base)
    return dtype.metadata is not None or any(map(_bears_metadata, inner))


def _survives(dtype: np.dtype[Any], form: bytes, text: bytes) -> bool:
    try:
        again = _parse_dtype(form, text)
    except (WireError, ValueError, TypeError):
        return False
    return again == dtype and _unseen_by_equality(again) == _unseen_by_equality(dtype)


def _unseen_by_equality(dtype: np.dtype[Any]) -> tuple[int, bool, type]:
    return dtype.itemsize, dtype.isalignedstruct, dtype.type


def describe_array(array: Array) -> bytes | None:
    """The metadata with which an array travels as raw memory, if it lies contiguous in memory; else None."""
    order = b"C" if array.flags.c_contiguous else b"F" if array.flags.f_contiguous else b""
    return _describe(array.dtype, array.shape, order) if order else None


# ---------------------------------------------------------------------------------------------- decode


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """What the metadata of an array says."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: bytes
    nbytes: int


_parsed: dict[bytes, ArrayLayout] = {}


def array_layout(metadata: bytes) -> ArrayLayout | None:
    """The layout of the array that ``metadata`` announces; None if it announces something else.

    Raises:
        WireError: The description is not one.
    """
    if metadata[:1] != b"a":
        return None
    try:
        return _parsed[metadata]
    except KeyError:
        pass
    if len(_parsed) >= _CACHE_LIMIT:
        _parsed.clear()
    _parsed[metadata] = layout = _parse_layout(metadata)
    return layout


def _parse_layout(metadata: bytes) -> ArrayLayout:
    try:
        _, order, form, ndim, text = _ARRAY.unpack_from(metadata)
        shape = struct.unpack_from(f"<{ndim}q", metadata, _ARRAY.size)
    except struct.error:
        raise WireError("description of an array is cut short") from None
    start = _ARRAY.size + 8 * ndim
    if len(metadata) != start + text or order not in (b"C", b"F") or ndim > _DIMENSIONS:
        raise WireError("malformed description of an array")
    dtype = _parse_dtype(form, metadata[start:])
    if any(extent < 0 for extent in shape) or dtype.itemsize * math.prod(filter(None, shape)) > _LARGEST:
        raise WireError(f"no array has the shape {shape} of {dtype}")
    return ArrayLayout(dtype, shape, order, dtype.itemsize * math.prod(shape))


def _parse_dtype(form: bytes, text: bytes) -> np.dtype[Any]:
    try:
        described: Any = text.decode("ascii")
        if form == b"d":
            described = ast.literal_eval(described)
        dtype = np.lib.format.descr_to_dtype(described)
    except Exception as error:  # literal_eval and numpy raise many kinds for foreign text
        raise WireError(f"dtype {text[:80]!r} is not one: {error}") from None
    if dtype.hasobject or dtype.subdtype is not None or not dtype.itemsize:
        raise WireError(f"arrays of dtype {dtype} do not travel as raw memory")
    return dtype


def check_value(metadata: bytes, length: int) -> None:
    """See that ``metadata`` announces a value whose payload has ``length`` bytes; nothing is allocated.

    Raises:
        WireError: It does not.
    """
    code = metadata[0] if metadata else 0
    if code == _A:
        _checked_layout(metadata, length)
    elif code == _P:
        _segment_lengths(metadata, length)
    elif len(metadata) != _SIZE.get(code) or (length and code in _INLINE):
        raise WireError(f"metadata {metadata[:16]!r} with {length} bytes announces no value")


def open_value(metadata: bytes, length: int, out: Array | None = None) -> Landing:
    """Memory for the value that ``metadata`` announces and whose payload has ``length`` bytes.

    Args:
        out: If given, an array of the announced shape and dtype in which the value shall land. It is
            written in place if its order is the one that travels, else through a copy.

    Raises:
        WireError: Metadata and length do not belong together, or are not ours.
        MemoryError: There is not enough memory; says how much was wanted.
    """
    code = metadata[0] if metadata else 0
    if code == _A:
        return _open_array(_checked_layout(metadata, length), out)
    if code == _P:
        return Landing(_P, [_allocate(n) for n in _segment_lengths(metadata, length)], None)
    check_value(metadata, length)
    if code in _INLINE:
        return Landing(code, [], metadata)
    memory = _allocate(length)
    return Landing(code, [memory], memory)


def _checked_layout(metadata: bytes, length: int) -> ArrayLayout:
    layout = array_layout(metadata)
    assert layout is not None
    if layout.nbytes != length:
        raise WireError(f"array {layout.shape} of {layout.dtype} announced with {length} bytes")
    return layout


def _segment_lengths(metadata: bytes, length: int) -> tuple[int, ...]:
    count, rest = divmod(len(metadata) - 1, 8)
    if rest or not count:
        raise WireError("malformed description of an object")
    lengths = struct.unpack_from(f"<{count}Q", metadata, 1)
    if sum(lengths) != length:
        raise WireError(f"object of {sum(lengths)} bytes announced with {length}")
    return lengths


def new_array(metadata: bytes) -> Array | None:
    """An array such as ``metadata`` announces, its elements not set; None if that cannot be."""
    try:
        layout = array_layout(metadata)
        return _new_array(layout) if layout is not None else None
    except (WireError, MemoryError):
        return None


def _open_array(layout: ArrayLayout, out: Array | None) -> Landing:
    if out is not None and (out.flags.c_contiguous if layout.order == b"C" else out.flags.f_contiguous):
        target, copy_to = out, None
    else:
        target, copy_to = _new_array(layout), out
    views = [memory_of(target, layout.order)] if layout.nbytes else []
    return Landing(_A, views, (target, copy_to))


def _new_array(layout: ArrayLayout) -> Array:
    try:
        return np.empty(layout.shape, layout.dtype, order="C" if layout.order == b"C" else "F")
    except (MemoryError, ValueError):
        raise MemoryError(f"no memory for an array {layout.shape} of {layout.dtype}: {layout.nbytes} bytes") from None


def _allocate(length: int) -> memoryview:
    """Writable memory; large blocks without the clearing that a bytearray costs."""
    try:
        return memoryview(bytearray(length)) if length < 4096 else np.empty(length, np.uint8).data
    except MemoryError:
        raise MemoryError(f"no memory for a message of {length} bytes") from None


def _finish_object(_: None, views: list[memoryview]) -> Any:
    return pickle.loads(views[0], buffers=views[1:])


def _finish_array(target: tuple[Array, Array | None], _: list[memoryview]) -> Array:
    received, out = target
    if out is None:
        return received
    np.copyto(out, received, casting="no")
    return out


def _finish_str(memory: memoryview, _: list[memoryview]) -> str:
    try:
        return str(memory, "utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise WireError(f"a str that is not UTF-8: {error}") from None


_N, _T, _F, _I, _D, _S, _B, _A, _P = b"NTFifsbap"
_INLINE = frozenset((_N, _T, _F, _I, _D))
_SIZE = {_N: 1, _T: 1, _F: 1, _I: 9, _D: 9, _S: 1, _B: 1}
_FINISH: dict[int, Any] = {
    _N: lambda _metadata, _: None,
    _T: lambda _metadata, _: True,
    _F: lambda _metadata, _: False,
    _I: lambda metadata, _: _INT.unpack_from(metadata, 1)[0],
    _D: lambda metadata, _: _FLOAT.unpack_from(metadata, 1)[0],
    _S: _finish_str,
    _B: lambda memory, _: bytes(memory),
    _A: _finish_array,
    _P: _finish_object,
}


def misfit(metadata: bytes, out: Array) -> str | None:
    """Why the announced value cannot land in ``out``; None if it can."""
    layout = array_layout(metadata)
    if layout is None:
        return f"out= is an array {out.shape} of {out.dtype}, but the message holds {_name_of(metadata)}"
    if layout.shape != out.shape or layout.dtype != out.dtype:
        return (
            f"out= is an array {out.shape} of {out.dtype}, "
            f"but the message holds an array {layout.shape} of {layout.dtype}"
        )
    return None


def _name_of(metadata: bytes) -> str:
    names = {b"N": "None", b"T": "a bool", b"F": "a bool", b"i": "an int", b"f": "a float", b"s": "a str"}
    names[b"b"] = "bytes"
    return names.get(metadata[:1], "a pickled object")
