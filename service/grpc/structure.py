"""Counts what a message holds before it is parsed: a submessage of two bytes becomes an object of hundreds."""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from models.errors import TooManyPrompts
from service.errors import MalformedRequest

_VARINT: Final = 0
_FIXED64: Final = 1
_DELIMITED: Final = 2
_FIXED32: Final = 5
_MAX_VARINT: Final = 10

_WIDTHS: Final = {
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
}
_TEXTS: Final = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def count_fields(raw: bytes, descriptor: Descriptor, most: int) -> int:
    """Count the fields of a message and of the messages in it, elements of packed lists included.

    Args:
        raw: a message of untrusted origin.
        descriptor: its type.
        most: to accept; counting ends there.

    Raises:
        TooManyPrompts: there are more.
        MalformedRequest: the message is damaged.
    """
    count = 0
    open_parts = [(0, len(raw), descriptor)]
    try:
        while open_parts:
            at, end, kind = open_parts.pop()
            while at < end:
                tag, at = _varint(raw, at)
                count += 1
                wire = tag & 7
                if wire == _DELIMITED:
                    length, at = _varint(raw, at)
                    field = kind.fields_by_number.get(tag >> 3)
                    if at + length > end:
                        raise MalformedRequest("The message must be of the method's type.")
                    if field is not None and field.message_type is not None:
                        open_parts.append((at, at + length, field.message_type))
                    elif field is not None and field.type not in _TEXTS:
                        count += length // _WIDTHS.get(field.type, 1)
                    at += length
                elif wire == _VARINT:
                    _, at = _varint(raw, at)
                elif wire in (_FIXED32, _FIXED64):
                    at += 4 if wire == _FIXED32 else 8
                else:  # groups, which no message of ours has
                    raise MalformedRequest("The message must be of the method's type.")
                if count > most:
                    raise TooManyPrompts(f"The message must have at most {most} fields.")
    except IndexError as error:
        raise MalformedRequest("The message must be of the method's type.") from error
    return count


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = shift = 0
    for number in range(_MAX_VARINT):
        byte = raw[at + number]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + number + 1
        shift += 7
    raise MalformedRequest("The message must be of the method's type.")
