"""The interface between a client and a service: how one call is sent once.

Retries, deadlines over several attempts and resending forgotten images are the client's. A transport raises only
`PomonaError`; a call whose task is cancelled is cancelled in the service too.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable
from urllib.parse import SplitResult, urlsplit

from pomona import _checks as checks
from pomona._requests import Attempt, Call, Request
from pomona.errors import BadAnswer, DeadlineExceeded, InvalidArgument, NoAnswer, TooLate

T = TypeVar("T")


ClientCertificate: TypeAlias = "tuple[str | os.PathLike[str], str | os.PathLike[str]]"
"""Files of a certificate with its chain, and of its key without a password: PEM."""


class Transport(Protocol):
    """Sends calls from any thread."""

    def send(self, call: Call[T], attempt: Attempt) -> T:
        """Send a call and wait for its result.

        Args:
            call: the request with its image.
            attempt: how long to wait, and what to send of the deadline and the urgency.

        Raises:
            PomonaError: the service's error; `NoAnswer` or `DeadlineExceeded` after `attempt.timeout` seconds;
                `ConnectionFailed`; `BadAnswer`.
        """
        ...

    def close(self) -> None:
        """Close connections; later calls raise `ClientClosed`."""
        ...


class AsyncTransport(Protocol):
    """Sends calls from one event loop. Its names differ from those of `Transport`, so that a class can be both."""

    async def asend(self, call: Call[T], attempt: Attempt) -> T:
        """Send a call, as `Transport.send`; if the task is cancelled, so is the call in the service."""
        ...

    async def aclose(self) -> None:
        """Close connections, as `Transport.close`."""
        ...


@runtime_checkable
class StreamingTransport(Protocol):
    """A transport that can send a camera's frames over one stream."""

    def stream(self, request: Request[Any], in_flight: int) -> Transport | None:
        """Return a transport for one camera; closing it cancels the frames in flight.

        Args:
            request: for every frame.
            in_flight: largest number of frames in flight.

        Returns:
            None if this request has no stream: then each frame is a call.
        """
        ...


@runtime_checkable
class AsyncStreamingTransport(Protocol):
    """As `StreamingTransport`, for one event loop."""

    def astream(self, request: Request[Any], in_flight: int) -> AsyncTransport | None:
        """Return a transport for one camera, as `StreamingTransport.stream`."""
        ...


@runtime_checkable
class FollowingTransport(Protocol):
    """A transport over which the service reports while it works."""

    def follow(self, call: Call[T], attempt: Attempt) -> Generator[Any, None, None]:
        """Send a call, and yield what is reported, then the result.

        Raises:
            PomonaError: as for `Transport.send`.
        """
        ...


def following(transport: object) -> FollowingTransport:
    """Return a transport if the service can report over it.

    Raises:
        InvalidArgument: it cannot.
    """
    if not isinstance(transport, FollowingTransport):
        raise InvalidArgument("follow() needs gRPC: a url that starts with grpc:// or grpcs://.")
    return transport


def with_api_key(headers: Mapping[str, str] | None, api_key: str | None) -> dict[str, str]:
    """Return headers with an API key.

    Args:
        headers: of the caller; a key in these is left as it is.
        api_key: of the service; None for that of the variable `POMONA_API_KEY`, if there is one.

    Raises:
        InvalidArgument: the key is not text that a header can have.
    """
    given = dict(checks.headers(headers))
    if api_key is None and not {"authorization", "x-api-key"}.isdisjoint(name.lower() for name in given):
        return given
    key = os.environ.get("POMONA_API_KEY", "").strip() if api_key is None else api_key
    if api_key is None and not key:
        return given
    if not isinstance(key, str) or not (key.isascii() and key.isprintable() and key and " " not in key):
        raise InvalidArgument("api_key must be printable ASCII without spaces, as python -m service.keys prints it.")
    return {name: value for name, value in given.items() if name.lower() != "authorization"} | {
        "authorization": f"Bearer {key}"
    }


def too_late(attempt: Attempt) -> TooLate:
    """Return the error for an attempt that got no answer in time, by which limit passed."""
    if attempt.deadline is not None and attempt.deadline <= attempt.timeout:
        return DeadlineExceeded("The deadline passed before the answer arrived.", request_id=attempt.request_id)
    return NoAnswer(f"No answer within {attempt.timeout:.3g} s.", request_id=attempt.request_id)


def parse_result(request: Request[T], read: Callable[[], Any], *, request_id: str | None = None, got: str = "") -> T:
    """Parse a result.

    Args:
        request: that was answered.
        read: returns the object of the API.
        request_id: of the request, where known.
        got: beginning of the answer, for the error.

    Raises:
        BadAnswer: the answer is not what Pomona sends for this request.
    """
    try:
        return request.parse(read())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise BadAnswer(
            f"The answer is not one to {type(request).__name__}: {problem}{got and f'; it begins with {got!r}'}.",
            request_id=request_id or None,
        ) from error


def parse_url(url: str, schemes: tuple[str, str]) -> SplitResult:
    """Split the address of a service.

    Args:
        url: scheme, host and port.
        schemes: that are allowed.

    Raises:
        InvalidArgument: another scheme, no host, or a malformed address.
    """
    parts = split_url(url)
    try:
        valid = parts is not None and parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port's
        valid = False
    if parts is None or not valid:
        example = {"http": "http://localhost:3000", "grpc": "grpc://localhost:3001"}[schemes[0]]
        raise InvalidArgument(
            f"url must start with {schemes[0]}:// or {schemes[1]}://, as {example}, got {checks.shown(url)}."
        )
    return parts


def split_url(url: Any) -> SplitResult | None:
    """Split an address; None if it is malformed or not text."""
    try:
        return urlsplit(url) if isinstance(url, str) and url.isprintable() and " " not in url else None
    except ValueError:
        return None


def check_client_certificate(value: Any) -> tuple[str, str] | None:
    """Check for the files of a certificate and its key.

    Raises:
        InvalidArgument: it is not a pair of paths.
    """
    if value is None:
        return None
    if not isinstance(value, tuple) or len(value) != 2:
        raise InvalidArgument(
            f"client_certificate must be a certificate's file and its key's file, got {checks.shown(value)}."
        )
    return checks.path(value[0]), checks.path(value[1])


def check_tls(tls: Any) -> ssl.SSLContext | None:
    """Check what a caller gave for `tls`.

    Raises:
        InvalidArgument: it is neither a context nor None.
    """
    if tls is not None and not isinstance(tls, ssl.SSLContext):
        raise InvalidArgument(f"tls must be an ssl.SSLContext, got {checks.shown(tls)}.")
    return tls
