"""gRPC statuses as errors: pure functions, for the sync and the async transport alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from pomona.asks import Attempt
from pomona.errors import (
    ConnectionFailed,
    InternalError,
    NotFound,
    Overloaded,
    PomonaError,
    RequestRefused,
    UploadTooLarge,
    error_of,
)
from pomona.transport import too_late

_DETAILS: Final = "grpc-status-details-bin"
_TOO_LARGE: Final = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")
_BY_STATUS: Final[Mapping[grpc.StatusCode, type[PomonaError]]] = {
    grpc.StatusCode.UNAVAILABLE: ConnectionFailed,
    grpc.StatusCode.CANCELLED: ConnectionFailed,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNIMPLEMENTED: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: RequestRefused,
    grpc.StatusCode.NOT_FOUND: RequestRefused,
    grpc.StatusCode.ALREADY_EXISTS: RequestRefused,
    grpc.StatusCode.FAILED_PRECONDITION: RequestRefused,
    grpc.StatusCode.OUT_OF_RANGE: RequestRefused,
    grpc.StatusCode.UNAUTHENTICATED: RequestRefused,
    grpc.StatusCode.PERMISSION_DENIED: RequestRefused,
}
"""What a status means that has no code of Pomona's: gRPC's own, or that of a proxy between."""

Trailing = Sequence[tuple[str, str | bytes]] | None


def failure(status: grpc.StatusCode, words: str | None, trailing: Trailing, attempt: Attempt) -> PomonaError:
    """The error of a call.

    Args:
        status: of the call, not OK.
        words: that came with it.
        trailing: metadata that came after the answer.
        attempt: how the call was sent.
    """
    if status is grpc.StatusCode.DEADLINE_EXCEEDED and not _info(trailing).metadata:
        return too_late(attempt)
    return broken(status, words, trailing)


def broken(status: grpc.StatusCode, words: str | None, trailing: Trailing) -> PomonaError:
    """The error of a stream; arguments as of `failure`."""
    info, retry_after = _info(trailing), _retry_after(trailing)
    request_id = info.metadata.get("request_id") or _text(trailing, "x-request-id")
    detail = words or "no words"
    if info.metadata.get("code"):
        return error_of(
            info.metadata["code"],
            detail,
            refused=_BY_STATUS.get(status) is RequestRefused,
            request_id=request_id,
            retry_after=retry_after,
        )
    if largest(words) is not None:
        return UploadTooLarge(f"The service takes no message as large as this: {detail}.", request_id=request_id)
    cls = _BY_STATUS.get(status, InternalError)
    said = f"The service cannot be reached: {detail}" if cls is ConnectionFailed else f"gRPC {status.name}: {detail}"
    return cls(said.rstrip(".") + ".", request_id=request_id, retry_after=retry_after)


def largest(words: str | None) -> int | None:
    """Bytes of the largest message that the other side takes, where the words are that one was larger."""
    found = _TOO_LARGE.search(words or "")
    return None if found is None else int(found[2])


def _details(trailing: Trailing) -> Sequence[Any]:
    for name, value in trailing or ():
        if name == _DETAILS and isinstance(value, bytes):
            try:
                details: Sequence[Any] = status_pb2.Status.FromString(value).details
            except DecodeError:
                return ()
            return details
    return ()


def _info(trailing: Trailing) -> Any:
    return _unpacked(trailing, error_details_pb2.ErrorInfo())


def _retry_after(trailing: Trailing) -> float | None:
    retry = _unpacked(trailing, error_details_pb2.RetryInfo())
    return retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 if retry.HasField("retry_delay") else None


def _unpacked(trailing: Trailing, message: Any) -> Any:
    for detail in _details(trailing):
        try:
            if detail.Unpack(message):
                break
        except DecodeError:
            break
    return message


def _text(trailing: Trailing, name: str) -> str | None:
    return next((value for key, value in trailing or () if key == name and isinstance(value, str)), None)
