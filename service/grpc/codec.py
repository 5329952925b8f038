"""Messages <-> the schema, by the descriptors of the `.proto` and the fields of the models.

A model and a message of the same name have fields of the same names; what a field is decides how it converts:

| schema | .proto |
|---|---|
| number, text, bytes | the same |
| `Literal` | enum whose values are the literals in capitals after a prefix; unspecified is absent |
| `list` | `repeated` |
| `tuple` of a fixed length | message with as many fields, in their order (`Box`); or `repeated` (`size`) |
| union of models | message with one `oneof`, whose members have the models' names |
| optional | `optional`; for messages and `repeated`, absent or empty |

`tests/unit/test_codec.py` fails where the two do not match.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias, Union, get_args, get_origin

import numpy as np
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from pydantic import BaseModel

from models.errors import MalformedPrompt
from service.api.parsing import parse_fields
from service.api.schema import Schema
from service.errors import MalformedRequest, UnsupportedFormat, UnsupportedInput
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

IMAGE_FIELDS: Final = frozenset({"image", "image_id"})
"""Of requests; they are no fields of the schema."""

Read: TypeAlias = Callable[[Any], Any]
Write: TypeAlias = Callable[[Any, Any], None]


class Mismatch(TypeError):
    """The schema and the `.proto` do not match."""


def read_request(message: Message, model: type[Schema]) -> Any:
    """Parse a request.

    Raises:
        PomonaError: see `service.api.parsing.parse_fields`; also where an enum has an unknown number.
    """
    return parse_fields(reader(model, message.DESCRIPTOR)(message), model)


def write_response(answer: BaseModel, message: Message) -> None:
    """Write an answer into an empty message of the same name."""
    writer(type(answer), message.DESCRIPTOR)(answer, message)


@functools.cache
def reader(model: type[BaseModel], descriptor: Descriptor) -> Callable[[Message], dict[str, Any]]:
    """Return what turns a message into the fields of a model; absent fields are left out.

    Raises:
        Mismatch: the two do not match.
    """
    fields = [
        (name, field, _present(field), _reader(annotation, field))
        for name, _, annotation, field in _pairs(model, descriptor)
    ]

    def read(message: Message) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, _, present, convert in fields:
            if present(message, name):
                value = convert(getattr(message, name))
                if value is not None:
                    values[name] = value
        return values

    return read


@functools.cache
def writer(model: type[BaseModel], descriptor: Descriptor) -> Write:
    """Return what writes a model into a message.

    Raises:
        Mismatch: the two do not match.
    """
    fields = [
        (attribute, _writer(annotation, field), name)
        for name, attribute, annotation, field in _pairs(model, descriptor)
    ]

    def write(answer: Any, message: Message) -> None:
        for attribute, convert, name in fields:
            value = getattr(answer, attribute)
            if value is not None:
                convert(value, (message, name))

    return write


def _pairs(model: type[BaseModel], descriptor: Descriptor) -> list[tuple[str, str, Any, FieldDescriptor]]:
    """Return name on the wire, attribute, annotation and descriptor of every field."""
    ours = {info.alias or name: (name, info) for name, info in model.model_fields.items()}
    theirs = {field.name: field for field in descriptor.fields if field.name not in _elsewhere(model, descriptor)}
    if set(ours) != set(theirs):
        raise Mismatch(
            f"{model.__name__} and {descriptor.full_name} must have the same fields; they differ in "
            f"{sorted(set(ours) ^ set(theirs))}"
        )
    return [(name, attribute, _plain(info.annotation), theirs[name]) for name, (attribute, info) in ours.items()]


def _elsewhere(model: type[BaseModel], descriptor: Descriptor) -> frozenset[str]:
    return IMAGE_FIELDS if model.__name__.endswith("Request") and "image" in descriptor.fields_by_name else frozenset()


def _plain(annotation: Any) -> Any:
    """Return an annotation without `Annotated` and without None."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _plain(kinds[0]) if len(kinds) == 1 else Union[tuple(kinds)]  # noqa: UP007 (built here)
    return annotation


def _literals(annotation: Any) -> tuple[Any, ...] | None:
    """Return the values of a `Literal`, or of a union of them."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) is Union:
        found = [_literals(kind) for kind in get_args(annotation)]
        return None if None in found else tuple(value for values in found for value in values or ())
    return None


def _present(field: FieldDescriptor) -> Callable[[Message, str], bool]:
    if field.has_presence:
        return lambda message, name: message.HasField(name)
    if field.is_repeated:
        return lambda message, name: len(getattr(message, name)) > 0
    return lambda message, name: True  # noqa: ARG005


# From messages.


def _reader(annotation: Any, field: FieldDescriptor) -> Read:
    if get_origin(annotation) in (list, tuple) and field.is_repeated:
        kinds = get_args(annotation)
        make: Callable[[Any], Any] = tuple if get_origin(annotation) is tuple else list
        each = _value_reader(_plain(kinds[0]), field)
        return lambda values: make(map(each, values))
    return _value_reader(annotation, field)


def _value_reader(annotation: Any, field: FieldDescriptor) -> Read:
    if field.enum_type is not None:
        return _enum_reader(annotation, field)
    if field.message_type is None:
        return _as_it_is
    return _message_reader(annotation, field.message_type)


def _message_reader(annotation: Any, descriptor: Descriptor) -> Read:
    if get_origin(annotation) is tuple:
        names = [member.name for member in descriptor.fields]
        return lambda message: tuple(getattr(message, name) for name in names)
    if (union := _union(annotation, descriptor)) is not None:
        members = {name: reader(model, field.message_type) for name, (model, field) in union.items()}
        oneof = descriptor.oneofs[0].name

        def read_member(message: Message) -> Any:
            kind = message.WhichOneof(oneof)
            if kind is None:
                raise MalformedPrompt(f"{descriptor.name} must have one of {', '.join(members)}.")
            return members[kind](getattr(message, kind))

        return read_member
    return reader(_model(annotation, descriptor), descriptor)


def _enum_reader(annotation: Any, field: FieldDescriptor) -> Read:
    values = {number: value for value, number in _enum(annotation, field.enum_type).items()}
    offered = ", ".join(member.name for member in field.enum_type.values if member.number in values)
    error = {"format": UnsupportedFormat, "input_size": UnsupportedInput, "padding": UnsupportedInput}.get(
        field.name, MalformedRequest
    )

    def read(number: int) -> Any:
        if number == 0:
            return None
        if number not in values:
            raise error(f"{field.name} must be one of {offered}, got the number {number}.")
        return values[number]

    return read


def _as_it_is(value: Any) -> Any:
    return value


# To messages.


def _writer(annotation: Any, field: FieldDescriptor) -> Callable[[Any, tuple[Message, str]], None]:
    if field.is_repeated:
        return _repeated_writer(annotation, field)
    if field.enum_type is not None:
        numbers = _enum(annotation, field.enum_type)
        return lambda value, target: setattr(*target, numbers[value])
    if field.message_type is None:
        return lambda value, target: setattr(*target, value)
    write = _message_writer(annotation, field.message_type)

    def write_message(value: Any, target: tuple[Message, str]) -> None:
        member = getattr(*target)
        member.SetInParent()
        write(value, member)

    return write_message


def _repeated_writer(annotation: Any, field: FieldDescriptor) -> Callable[[Any, tuple[Message, str]], None]:
    if field.message_type is None:
        return lambda value, target: getattr(*target).extend(value)
    if field.message_type is pb.Polygon.DESCRIPTOR:
        return _write_polygons
    (kind, *_) = get_args(annotation)
    write = _message_writer(_plain(kind), field.message_type)

    def write_all(values: Sequence[Any], target: tuple[Message, str]) -> None:
        members = getattr(*target)
        for value in values:
            write(value, members.add())

    return write_all


def _message_writer(annotation: Any, descriptor: Descriptor) -> Write:
    if get_origin(annotation) is tuple:
        names = [member.name for member in descriptor.fields]

        def write_tuple(values: Sequence[Any], message: Message) -> None:
            for name, value in zip(names, values, strict=True):
                setattr(message, name, value)

        return write_tuple
    if (union := _union(annotation, descriptor)) is not None:
        members = {model: (name, writer(model, field.message_type)) for name, (model, field) in union.items()}

        def write_member(value: Any, message: Message) -> None:
            name, write = members[type(value)]
            member = getattr(message, name)
            member.SetInParent()
            write(value, member)

        return write_member
    return writer(_model(annotation, descriptor), descriptor)


def _write_polygons(polygons: Sequence[Any], target: tuple[Message, str]) -> None:
    """Write rings of corners: they are flat in messages, as a message per corner would cost too much."""
    members = getattr(*target)
    for polygon in polygons:
        message = members.add()
        for ring in polygon:
            message.rings.add(coordinates=np.asarray(ring).ravel().tolist())


# Both ways.


def _model(annotation: Any, descriptor: Descriptor) -> type[BaseModel]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation.__name__ == descriptor.name:
        return annotation
    raise Mismatch(f"{annotation} must be the model of the message {descriptor.full_name}")


def _union(annotation: Any, descriptor: Descriptor) -> dict[str, tuple[type[BaseModel], FieldDescriptor]] | None:
    """Return model and field of every member of a message that is one `oneof`, by name; None of another message.

    A union may have fewer models than the message has members.
    """
    if len(descriptor.oneofs) != 1 or len(descriptor.oneofs[0].fields) != len(descriptor.fields):
        return None
    kinds = get_args(annotation) if get_origin(annotation) is Union else (annotation,)
    models = {kind.__name__: kind for kind in map(_plain, kinds)}
    found = {
        field.name: (models.pop(field.message_type.name), field)
        for field in descriptor.fields
        if field.message_type is not None and field.message_type.name in models
    }
    if models:
        raise Mismatch(f"{descriptor.full_name} must have a member for each of {sorted(models)}")
    return found


def _enum(annotation: Any, descriptor: EnumDescriptor) -> Mapping[Any, int]:
    """Return the numbers of an enum by the literals they stand for."""
    literals = _literals(annotation)
    if literals is None:
        raise Mismatch(f"{annotation} must be a Literal, as {descriptor.full_name} is an enum")
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    numbers = {literal: descriptor.values_by_name.get(f"{prefix}{str(literal).upper()}") for literal in literals}
    missing = [literal for literal, value in numbers.items() if value is None]
    if missing:
        raise Mismatch(f"{descriptor.full_name} must have values for {missing}")
    return {literal: value.number for literal, value in numbers.items() if value is not None}
