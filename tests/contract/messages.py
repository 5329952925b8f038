"""Messages of gRPC <-> the JSON of HTTP, by the descriptors alone: what the codec does, written a second time."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

_LISTS: Final = frozenset({"Point", "Box", "PixelBox"})
"""Messages that are lists in JSON."""


def to_message(name: str, fields: Mapping[str, Any], **more: Any) -> Any:
    """Return the message of this name with the fields of a JSON object, and `more` fields as they are."""
    message: Any = GetMessageClass(pb.DESCRIPTOR.message_types_by_name[name])(**more)
    _fill(message, fields)
    return message


def to_json(message: Any) -> Any:
    """Return a message as the JSON of HTTP has it; absent fields are None."""
    descriptor: Descriptor = message.DESCRIPTOR
    if descriptor.name in _LISTS:
        return [getattr(message, field.name) for field in descriptor.fields]
    if descriptor.name == "Polygon":
        rings = (list(ring.coordinates) for ring in message.rings)
        return [[list(corner) for corner in zip(ring[::2], ring[1::2], strict=True)] for ring in rings]
    if _is_union(descriptor):
        kind = message.WhichOneof(descriptor.oneofs[0].name)
        return None if kind is None else to_json(getattr(message, kind))
    return {field.name: _value(message, field) for field in descriptor.fields}


def _is_union(descriptor: Descriptor) -> bool:
    return len(descriptor.oneofs) == 1 and len(descriptor.oneofs[0].fields) == len(descriptor.fields) > 1


def _value(message: Any, field: FieldDescriptor) -> Any:
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    return [_one(field, each) for each in value] if field.is_repeated else _one(field, value)


def _one(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return to_json(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name.removeprefix(_prefix(field)).lower()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _fill(message: Message, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if value is None:
            continue
        if field.is_repeated:
            for each in value:
                if field.message_type is None:
                    getattr(message, name).append(_scalar(field, each))
                else:
                    _put(getattr(message, name).add(), each)
        elif field.message_type is None:
            setattr(message, name, _scalar(field, value))
        else:
            getattr(message, name).SetInParent()
            _put(getattr(message, name), value)


def _put(message: Message, value: Any) -> None:
    descriptor: Any = message.DESCRIPTOR
    if descriptor.name in _LISTS:
        for field, each in zip(descriptor.fields, value, strict=True):
            setattr(message, field.name, each)
    elif _is_union(descriptor):
        kind = next(field for field in descriptor.fields if set(value) <= set(field.message_type.fields_by_name))
        getattr(message, kind.name).SetInParent()
        _fill(getattr(message, kind.name), value)
    else:
        _fill(message, value)


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values_by_name[f"{_prefix(field)}{value}".upper()].number
    return base64.b64decode(value) if field.type == FieldDescriptor.TYPE_BYTES else value


def _prefix(field: FieldDescriptor) -> str:
    first: str = field.enum_type.values_by_number[0].name
    return first.removesuffix("UNSPECIFIED")
