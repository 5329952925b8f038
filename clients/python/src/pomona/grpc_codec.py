"""gRPC messages and statuses, and the JSON objects and errors that they stand for: pure functions.

Messages are built and read by their descriptors, so a field of the `.proto` needs no code here. What differs from JSON:
enum values are lower-case words without their prefix (an input size is a number), points and boxes are lists of
numbers, the member of a mask's oneof follows from its fields, and bytes are bytes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import grpc
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from pomona._proto import segmentation_pb2 as pb
from pomona._requests import Attempt, Automatic, Call, Request
from pomona.errors import (
    BadAnswer,
    ConnectionFailed,
    FrameDropped,
    InternalError,
    InvalidArgument,
    NotFound,
    Overloaded,
    PermissionDenied,
    PomonaError,
    RequestRefused,
    Unauthenticated,
    UploadTooLarge,
    error_for,
)
from pomona.transports import parse_result, too_late

T = TypeVar("T")

Metadata: TypeAlias = tuple[tuple[str, str], ...]
Trailing: TypeAlias = Sequence[tuple[str, str | bytes]] | None

MAX_IN_FLIGHT: Final = 64
"""Frames of one stream that the service processes at a time, at most."""

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["Segmentation"]
# ListModels is answered once the models are loaded, and refused as not ready before.
_METHODS: Final = {"models": "ListModels", "ready": "ListModels", "track/end": "EndTrack"}
_LISTS: Final = frozenset({"Point", "Box", "PixelBox", "FractionInterval"})
_METADATA_NAME: Final = re.compile(r"[0-9a-z_.-]+(?<!-bin)")


def encode(value: Any, descriptor: Descriptor) -> Message:
    """Build a message from the object of the JSON API.

    Args:
        value: the object; fields that are None are left out.
        descriptor: of the message.

    Raises:
        InvalidArgument: the message cannot hold the values.
    """
    if descriptor.name in _LISTS:
        value = dict(zip(descriptor.fields_by_name, value, strict=True))
    elif "mask" in descriptor.oneofs_by_name:
        members = descriptor.oneofs_by_name["mask"].fields
        value = {each.name: value for each in members if all(key in each.message_type.fields_by_name for key in value)}
    fields = descriptor.fields_by_name
    given = {name: _encode_field(item, fields[name]) for name, item in value.items() if item is not None}
    try:
        return GetMessageClass(descriptor)(**given)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"The request cannot be built: {error}.") from error


def decode(message: Message) -> Any:
    """Return the object of the JSON API for a message; absent fields are None."""
    descriptor = message.DESCRIPTOR
    if descriptor.name in _LISTS:
        return [getattr(message, name) for name in descriptor.fields_by_name]
    if "mask" in descriptor.oneofs_by_name:
        member = message.WhichOneof("mask")
        return {} if member is None else decode(getattr(message, member))
    body: dict[str, Any] = {}
    for name, repeated, optional, convert in _fields_of(descriptor):
        if repeated:
            items = getattr(message, name)
            body[name] = list(items) if convert is None else [convert(item) for item in items]
        elif optional and not message.HasField(name):
            body[name] = None
        else:
            value = getattr(message, name)
            body[name] = value if convert is None else convert(value)
    return body


@functools.cache
def _fields_of(descriptor: Descriptor) -> list[tuple[str, bool, bool, Callable[[Any], Any] | None]]:
    """Return name, whether repeated, whether it may be absent, and what reads a value, of each field."""

    def convert(field: FieldDescriptor) -> Callable[[Any], Any] | None:
        if field.message_type is not None:
            return decode
        if field.enum_type is None:
            return None
        prefix = _prefix(field.enum_type)
        words = {each.number: each.name.removeprefix(prefix).lower() for each in field.enum_type.values if each.number}
        return words.get  # None where unspecified, or of a newer service

    return [(field.name, field.is_repeated, field.has_presence, convert(field)) for field in descriptor.fields]


def _encode_field(value: Any, field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        if field.is_repeated:
            return [encode(item, field.message_type) for item in value]
        return encode(value, field.message_type)
    if field.enum_type is None:
        return value
    words = {name.removeprefix(_prefix(field.enum_type)): name for name in field.enum_type.values_by_name}
    word = str(value).upper()
    if word not in words or word == "UNSPECIFIED":
        allowed = ", ".join(each.lower() for each in words if each != "UNSPECIFIED")
        raise InvalidArgument(f"{field.name} must be one of {allowed}, got {value!r}.")
    return words[word]


def _prefix(enum: EnumDescriptor) -> str:
    first: str = enum.values[0].name
    return first.removesuffix("UNSPECIFIED")


def path_of(request: Request[Any], *, stream: bool = False) -> str:
    """Return the path of a request's method.

    Raises:
        InvalidArgument: gRPC has no such method.
    """
    return f"/{_SERVICE.full_name}/{_method(request, stream=stream).name}"


def _method(request: Request[Any], *, stream: bool) -> MethodDescriptor:
    name = _METHODS.get(request.operation, request.operation.capitalize()) + ("Stream" if stream else "")
    if name not in _SERVICE.methods_by_name:
        raise InvalidArgument(f"{type(request).__name__} cannot be sent over {'a stream of ' if stream else ''}gRPC.")
    method: MethodDescriptor = _SERVICE.methods_by_name[name]
    return method


def encode_call(call: Call[Any]) -> bytes:
    """Return the message of a call.

    Raises:
        InvalidArgument: gRPC has no such method, or the message cannot hold the values.
    """
    return encode(_fields(call), _method(call.request, stream=False).input_type).SerializeToString()


def encode_settings(request: Request[Any], in_flight: int) -> bytes:
    """Return the first message of a stream, for at most so many frames in flight."""
    track = getattr(request, "track", None)
    settings = {"max_in_flight": min(in_flight, MAX_IN_FLIGHT), "when_full": "wait", "track": track}
    return encode({"settings": settings}, _method(request, stream=True).input_type).SerializeToString()


def encode_frame(call: Call[Any], attempt: Attempt) -> bytes:
    """Return the message of a stream that holds a frame.

    Raises:
        InvalidArgument: the message cannot hold the values.
    """
    kind = _method(call.request, stream=True).input_type
    fields = {
        "request": _fields(call),
        "deadline_ms": None if attempt.deadline is None else attempt.deadline * 1000,
        "urgency": attempt.urgency,
        "frame": call.frame.to_json() if "frame" in kind.fields_by_name else None,
    }
    return encode(fields, kind).SerializeToString()


def _fields(call: Call[Any]) -> dict[str, Any]:
    return call.to_json() | dict([call.image_field()] if call.request.needs_image else ())


def metadata_of(headers: Mapping[str, str]) -> Metadata:
    """Return headers as metadata, with names in lower case.

    Raises:
        InvalidArgument: a name or a value is not printable ASCII.
    """
    metadata = tuple((name.lower(), value) for name, value in headers.items())
    for name, value in metadata:
        if not (_METADATA_NAME.fullmatch(name) and value.isascii() and value.isprintable()):
            raise InvalidArgument(f"Metadata of gRPC must be printable ASCII, got {name!r}: {value!r}.")
    return metadata


def parse_message(call: Call[T], data: bytes) -> T:
    """Return the result of a call.

    Raises:
        BadAnswer: the message is not what Pomona sends.
    """

    def read() -> Any:
        return decode(_from_bytes(_method(call.request, stream=False).output_type, data))

    return parse_result(call.request, read)


def parse_update(call: Call[Any], data: bytes) -> Any:
    """Return what a message of a call that is followed holds: what has changed, or the result.

    Raises:
        BadAnswer: the message is not what Pomona sends.
    """
    request = call.request

    def read() -> Any:
        return decode(_from_bytes(_method(request, stream=True).output_type, data))

    try:
        body = read()
        if isinstance(request, Automatic) and body["progress"] is not None:
            return request.parse_progress(body["progress"], (0, 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadAnswer(f"What was reported cannot be read: {error}.") from error
    return parse_result(request, lambda: body["response"])


def parse_reply(request: Request[Any], data: bytes) -> tuple[int, Message]:
    """Return the number of a frame of a stream, from 1, and the reply to it.

    Raises:
        BadAnswer: the message is not what Pomona sends.
    """
    try:
        reply: Any = _from_bytes(_method(request, stream=True).output_type, data)
    except ValueError as error:
        raise BadAnswer(f"A reply of the stream cannot be read: {error}.") from error
    number = reply.request_id.rpartition(".")[2]
    if not (number.isascii() and number.isdecimal()):
        raise BadAnswer(f"A reply's request_id must end with the number of its frame, got {reply.request_id!r}.")
    return int(number), reply


def result_of_reply(call: Call[T], message: Message) -> T:
    """Return the result for a frame.

    Raises:
        PomonaError: the frame's error, by its code; `FrameDropped`; `BadAnswer`.
    """
    reply = decode(message)
    request_id = reply["request_id"]
    if reply["outcome"] == "answered":
        body = reply["response"] | (reply.get("tracking") or {})
        return parse_result(call.request, lambda: body, request_id=request_id)
    if reply["outcome"] == "dropped":
        raise FrameDropped("A newer frame was processed instead.", request_id=request_id)
    problem = reply["problem"] or {}
    if not problem.get("code"):
        raise BadAnswer("A reply of the stream has neither a response nor a problem.", request_id=request_id)
    retry_after = problem["retry_after_ms"]
    raise error_for(
        problem["code"],
        problem["detail"],
        refused=True,
        request_id=request_id,
        retry_after=None if retry_after is None else retry_after / 1000,
    )


def _from_bytes(descriptor: Descriptor, data: bytes) -> Message:
    try:
        return GetMessageClass(descriptor).FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error


_TOO_LARGE: Final = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")
_CLASS_OF_STATUS: Final[Mapping[grpc.StatusCode, type[PomonaError]]] = {
    grpc.StatusCode.UNAVAILABLE: ConnectionFailed,
    grpc.StatusCode.CANCELLED: ConnectionFailed,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNIMPLEMENTED: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: RequestRefused,
    grpc.StatusCode.NOT_FOUND: RequestRefused,
    grpc.StatusCode.ALREADY_EXISTS: RequestRefused,
    grpc.StatusCode.FAILED_PRECONDITION: RequestRefused,
    grpc.StatusCode.OUT_OF_RANGE: RequestRefused,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
}
"""For statuses without a code of Pomona's: those of gRPC itself, or of a proxy."""


def call_error(status: grpc.StatusCode, details: str | None, trailing: Trailing, attempt: Attempt) -> PomonaError:
    """Return the error of a call.

    Args:
        status: of the call, not OK.
        details: of the status.
        trailing: metadata after the answer.
        attempt: how the call was sent.
    """
    if status is grpc.StatusCode.DEADLINE_EXCEEDED and not _error_info(trailing).metadata:
        return too_late(attempt)
    return status_error(status, details, trailing)


def status_error(status: grpc.StatusCode, details: str | None, trailing: Trailing) -> PomonaError:
    """Return the error of a stream; arguments as for `call_error`."""
    info = _error_info(trailing)
    retry = _unpack(trailing, error_details_pb2.RetryInfo())
    delay = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 if retry.HasField("retry_delay") else None
    request_id = info.metadata.get("request_id") or _text(trailing, "x-request-id")
    if info.metadata.get("code"):
        refused = issubclass(_CLASS_OF_STATUS.get(status, InternalError), RequestRefused)
        return error_for(
            info.metadata["code"], details or "", refused=refused, request_id=request_id, retry_after=delay
        )
    words = (details or "no details").rstrip(".")
    if message_limit(details) is not None:
        return UploadTooLarge(f"The message is larger than the service accepts: {words}.", request_id=request_id)
    cls = _CLASS_OF_STATUS.get(status, InternalError)
    prefix = "The service cannot be reached" if cls is ConnectionFailed else f"gRPC {status.name}"
    return cls(f"{prefix}: {words}.", request_id=request_id, retry_after=delay)


def message_limit(details: str | None) -> int | None:
    """Return the size in bytes that the service accepts, if the details are that a message was larger."""
    found = _TOO_LARGE.search(details or "")
    return None if found is None else int(found[2])


def _error_info(trailing: Trailing) -> Any:
    return _unpack(trailing, error_details_pb2.ErrorInfo())


def _unpack(trailing: Trailing, message: Any) -> Any:
    """Fill a message from the status details that hold one of its type, if there are any."""
    for name, value in trailing or ():
        if name == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                any(detail.Unpack(message) for detail in status_pb2.Status.FromString(value).details)
            except DecodeError:
                break
    return message


def _text(trailing: Trailing, name: str) -> str | None:
    return next((value for key, value in trailing or () if key == name and isinstance(value, str)), None)
