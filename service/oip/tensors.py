"""Tensors, and their elements as bytes and as lists.

As bytes, elements lie row by row, little-endian, without gaps; a BOOL is one byte of 0 or 1, and before each element of
BYTES stands its length in four bytes (the protocol's extension for binary tensor data).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.errors import MalformedRequest

DATATYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
"""The protocol's types; elements of BYTES are `bytes`."""

_ELEMENTS: Final[Mapping[str, tuple[type, ...]]] = {
    "b": (bool,),
    "u": (int,),
    "i": (int,),
    "f": (int, float),
    "O": (str, bytes),
}
"""Python types of elements in a list, by the kind of the dtype."""

_WORDS: Final[Mapping[str, NDArray[np.bytes_]]] = {
    "BOOL": np.array([b"false,", b"true, "]),
    "UINT8": np.array([b"%-4b" % f"{number},".encode() for number in range(256)]),
}
"""Elements in JSON, padded to one length: images have millions, for which a list of objects is too slow."""

_CHUNK: Final = 1 << 16
_MOST_DIMENSIONS: Final = 8
_MOST_ELEMENTS: Final = 1 << 40

_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Header:
    """A tensor without its elements.

    Attributes:
        name: of the tensor.
        datatype: of `DATATYPES`.
        shape: its dimensions.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its elements.

        Raises:
            MalformedRequest: there is no such type.
        """
        if self.datatype not in DATATYPES:
            raise MalformedRequest(
                f"The datatype of {self.name} must be one of {', '.join(DATATYPES)}, got {self.datatype!r}."
            )
        return DATATYPES[self.datatype]

    @property
    def count(self) -> int:
        """Number of its elements.

        Raises:
            MalformedRequest: a dimension below 0, or more than any tensor has.
        """
        if any(length < 0 for length in self.shape):
            raise MalformedRequest(f"The dimensions of {self.name} must be 0 or more, got {list(self.shape)}.")
        if len(self.shape) > _MOST_DIMENSIONS or math.prod(length or 1 for length in self.shape) > _MOST_ELEMENTS:
            raise MalformedRequest(
                f"{self.name} must have at most {_MOST_DIMENSIONS} dimensions and {_MOST_ELEMENTS} elements."
            )
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor.

    Attributes:
        name: of the tensor.
        datatype: of `DATATYPES`.
        array: its elements.
        text: they are BYTES that came as text.
    """

    name: str
    datatype: str
    array: NDArray[Any]
    text: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.array.shape


def from_bytes(header: Header, data: bytes | memoryview) -> Tensor:
    """Read a tensor's elements.

    Raises:
        MalformedRequest: no such type, or bytes that are not of that type and shape.
    """
    dtype, count = header.dtype, header.count
    if dtype.kind == "O":
        return Tensor(header.name, header.datatype, _objects(_elements(header, bytes(data)), header.shape))
    if len(data) != count * dtype.itemsize:
        raise MalformedRequest(
            f"{header.name}, {header.datatype} {list(header.shape)}, must have {count * dtype.itemsize} bytes, got "
            f"{len(data)}."
        )
    if dtype.kind == "b":
        array: NDArray[Any] = np.frombuffer(data, np.uint8) != 0
    else:
        array = np.frombuffer(data, dtype)
    return Tensor(header.name, header.datatype, array.reshape(header.shape))


def from_list(header: Header, values: Sequence[Any]) -> Tensor:
    """Read a tensor's elements: one list row by row, or lists in lists as the shape says.

    Raises:
        MalformedRequest: no such type, or values that are not of that type and shape.
    """
    dtype = header.dtype
    flat = _flat(header, values, header.shape) if values and isinstance(values[0], list) else values
    if len(flat) != header.count:
        raise MalformedRequest(
            f"{header.name}, of shape {list(header.shape)}, must have {header.count} elements, got {len(flat)}."
        )
    kinds = set(map(type, flat))
    if not kinds.issubset(_ELEMENTS[dtype.kind]):
        odd = next(kind.__name__ for kind in kinds if kind not in _ELEMENTS[dtype.kind])
        raise MalformedRequest(f"The elements of {header.name} must be {header.datatype}, got {odd}.")
    if dtype.kind == "O":
        elements = [one.encode() if isinstance(one, str) else one for one in flat]
        return Tensor(header.name, header.datatype, _objects(elements, header.shape), text=str in kinds)
    try:
        with np.errstate(over="ignore"):  # what is too large for a float becomes infinite
            array = np.array(flat, dtype)
    except OverflowError as error:
        raise MalformedRequest(
            f"The elements of {header.name} must be within the range of {header.datatype}."
        ) from error
    return Tensor(header.name, header.datatype, array.reshape(header.shape))


def to_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's elements as bytes."""
    if tensor.array.dtype.kind != "O":
        return tensor.array.astype(DATATYPES[tensor.datatype], copy=False).tobytes()
    elements: list[bytes] = tensor.array.ravel().tolist()
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def to_json(tensor: Tensor) -> bytes:
    """Return a tensor's elements row by row as a JSON list: those of BYTES are text."""
    flat = tensor.array.ravel()
    if tensor.datatype in _WORDS:
        words = _WORDS[tensor.datatype]
        text = b"".join(words[chunk.view(np.uint8)].tobytes() for chunk in chunks(flat))
        return b"[" + text.rstrip(b", ") + b"]"
    elements: list[Any] = flat.tolist()
    return json.dumps([one.decode() for one in elements] if flat.dtype.kind == "O" else elements).encode()


def chunks(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield a long array in chunks: working on all of it at once would hold up other threads and callers."""
    for start in range(0, len(flat), _CHUNK):
        yield flat[start : start + _CHUNK]


def bytes_tensor(name: str, elements: Sequence[bytes], shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of BYTES."""
    return Tensor(name, "BYTES", _objects(elements, shape))


def _objects(elements: Sequence[bytes], shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def _elements(header: Header, data: bytes) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + _LENGTH.size
        if start > len(data) or len(elements) == header.count:
            break
        (length,) = _LENGTH.unpack_from(data, at)
        at = start + length
        elements.append(data[start:at])
    if at != len(data) or len(elements) != header.count:
        raise MalformedRequest(
            f"{header.name} must be {header.count} elements of BYTES, each after its length in four bytes; got "
            f"{len(data)} bytes that are not."
        )
    return elements


def _flat(header: Header, values: Any, shape: tuple[int, ...]) -> list[Any]:
    if not shape:
        return [values]
    if not isinstance(values, list) or len(values) != shape[0]:
        raise MalformedRequest(f"The lists of {header.name} must have the shape {list(header.shape)}.")
    if len(shape) == 1:
        return values
    return [element for value in values for element in _flat(header, value, shape[1:])]
