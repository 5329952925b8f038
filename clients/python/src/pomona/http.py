"""The HTTP transport, on httpx: connections are kept and reused.

What is sent and how answers are read are pure functions, which the sync and the async transport share.
"""

from __future__ import annotations

import base64
import functools
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

import httpx

from pomona import _checks as checks
from pomona._requests import Attempt, Call, Ready
from pomona.early_answers import EarlyAnswerTransport, goes_through_proxy
from pomona.errors import (
    BadAnswer,
    ClientClosed,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidArgument,
    NotReady,
    Overloaded,
    PermissionDenied,
    PomonaError,
    TimedOut,
    TooLate,
    Unauthenticated,
    UploadTooLarge,
    error_for,
)
from pomona.transports import ClientCertificate, check_client_certificate, check_tls, parse_result, parse_url, too_late

T = TypeVar("T")

_LIMITS: Final = httpx.Limits(max_connections=256, max_keepalive_connections=256, keepalive_expiry=60)
_LONGEST_QUERY: Final = 2000  # characters of JSON; servers and proxies take at least 8000 in all, escaped
_SHOWN: Final = 200  # bytes of an unexpected answer
_CODE_OF_STATUS: Final = {
    401: Unauthenticated.default_code,
    403: PermissionDenied.default_code,
    413: UploadTooLarge.default_code,
    429: Overloaded.default_code,
    502: NotReady.default_code,
    503: NotReady.default_code,
    504: TimedOut.default_code,
}
"""For answers of a proxy, which have no code of Pomona's."""


@dataclass(frozen=True)
class HttpRequest:
    """What is sent.

    Attributes:
        method: GET or POST.
        path: relative to the service's address.
        headers: beside those that httpx sets.
        params: of the query.
        content: the body, where the image is the body.
        parts: of a multipart body, else empty.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    parts: list[tuple[str, tuple[str | None, bytes, str]]] = field(default_factory=list)


def build_request(call: Call[Any], attempt: Attempt) -> HttpRequest:
    """Return the HTTP request for a call.

    The image is the body itself where the other fields are short enough for the query, which is cheapest for both
    sides; else the body is multipart.

    Raises:
        InvalidArgument: the call has neither an image nor an id.
    """
    headers, path = attempt.headers(), f"/v1/{call.request.operation}"
    if not call.request.needs_image:
        if call.request.has_body:
            body = json.dumps(call.to_json()).encode()
            return HttpRequest("POST", path, headers | {"content-type": "application/json"}, content=body)
        return HttpRequest("GET", "/readyz" if isinstance(call.request, Ready) else path, headers)
    text = json.dumps(call.to_json(), separators=(",", ":"), default=_base64)
    name, value = call.image_field()
    if isinstance(value, str) or call.image is None:
        return HttpRequest("POST", path, headers, parts=[_text_part(name, str(value)), _text_part("request", text)])
    media_type = call.image.media_type
    if len(text) <= _LONGEST_QUERY:
        return HttpRequest("POST", path, headers | {"content-type": media_type}, {"request": text}, value)
    return HttpRequest("POST", path, headers, parts=[(name, ("image", value, media_type)), _text_part("request", text)])


def parse_response(call: Call[T], status: int, headers: Mapping[str, str], body: bytes) -> T:
    """Return the result of a call.

    Args:
        call: that was answered.
        status: of the response.
        headers: of the response, with names in lower case or case-insensitive.
        body: of the response.

    Raises:
        PomonaError: the service's error, by its code, or `BadAnswer`.
    """
    if isinstance(call.request, Ready) and status in (200, 503):
        return cast("T", status == 200)
    if status != 200:
        raise _error(status, headers, body)
    got = body[:_SHOWN].decode(errors="replace")
    return parse_result(call.request, lambda: json.loads(body), request_id=headers.get("x-request-id"), got=got)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _text_part(name: str, value: str) -> tuple[str, tuple[None, bytes, str]]:
    return name, (None, value.encode(), "text/plain; charset=utf-8")


def _error(status: int, headers: Mapping[str, str], body: bytes) -> PomonaError:
    try:
        problem = json.loads(body)
        code, detail = str(problem["code"]), str(problem["detail"])
    except (ValueError, KeyError, TypeError):  # not Pomona's: a proxy's
        code = _CODE_OF_STATUS.get(status, "")
        detail = f"HTTP {status}: {body[:_SHOWN].decode(errors='replace').strip() or 'empty body'}"
    retry_after = headers.get("retry-after", "")
    # Dates, which Pomona never sends, are ignored.
    seconds = float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else None
    request_id = headers.get("x-request-id")
    if not code and status < 400:
        return BadAnswer(detail, request_id=request_id)
    return error_for(code or None, detail, refused=status < 500, request_id=request_id, retry_after=seconds)


@functools.cache
def _default_tls() -> ssl.SSLContext:
    """Return a context with the usual authorities; loading them takes longer than a call."""
    return httpx.create_ssl_context()


class HttpTransport:
    """Sends calls over HTTP.

    Args:
        url: of the service, `http://` or `https://`; a path in it is a prefix of the API's.
        headers: sent with every request, for example a proxy's token.
        tls: for your own certificate authority; None for the usual ones.
        client_certificate: for mutual TLS; loaded into `tls` where that is given.
        through: httpx transport instead of the network.

    Raises:
        InvalidArgument: the URL is not one of HTTP, or the certificate cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        client_certificate: ClientCertificate | None = None,
        through: httpx.BaseTransport | None = None,
    ) -> None:
        context = _context(url, tls, client_certificate)
        self._http: httpx.Client = _made(httpx.Client, url, headers, context, through)

    def send(self, call: Call[T], attempt: Attempt) -> T:
        """Send a call; see `pomona.transports.Transport`."""
        left = _TimeLeft(attempt)
        request = _build(self._http, build_request(call, attempt), left)
        with _translated(self._http, left):
            response = self._http.send(request, stream=True)
            body = b""
            try:
                for chunk in response.iter_bytes():
                    body += left.checked(chunk)
            except httpx.NetworkError:
                if response.is_success:
                    raise
            finally:
                response.close()
        return parse_response(call, response.status_code, response.headers, body)

    def close(self) -> None:
        """Close connections."""
        self._http.close()


class AsyncHttpTransport:
    """Sends calls over HTTP from one event loop; see `HttpTransport`."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        client_certificate: ClientCertificate | None = None,
        through: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        context = _context(url, tls, client_certificate)
        if through is None and not goes_through_proxy(url):
            through = EarlyAnswerTransport(context, _LIMITS)
        self._http: httpx.AsyncClient = _made(httpx.AsyncClient, url, headers, context, through)

    async def asend(self, call: Call[T], attempt: Attempt) -> T:
        """Send a call; see `pomona.transports.AsyncTransport`."""
        left = _TimeLeft(attempt)
        request = _build(self._http, build_request(call, attempt), left)
        with _translated(self._http, left):
            response = await self._http.send(request, stream=True)
            body = b""
            try:
                async for chunk in response.aiter_bytes():
                    body += left.checked(chunk)
            except httpx.NetworkError:
                if response.is_success:
                    raise
            finally:
                await response.aclose()
        return parse_response(call, response.status_code, response.headers, body)

    async def aclose(self) -> None:
        """Close connections."""
        await self._http.aclose()


def _context(url: str, tls: ssl.SSLContext | None, client_certificate: ClientCertificate | None) -> ssl.SSLContext:
    scheme = parse_url(url, ("http", "https")).scheme
    context, files = check_tls(tls), check_client_certificate(client_certificate)
    if files is None:
        return context or _default_tls()
    if scheme != "https":
        raise InvalidArgument(f"url must start with https:// where client_certificate is given, got {url!r}.")
    context = context or httpx.create_ssl_context()
    try:
        # Without a password it would prompt for one at the terminal.
        context.load_cert_chain(*files, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InvalidArgument(
            f"client_certificate must be a certificate and its unlocked key in PEM: {error}."
        ) from error
    return context


def _made(
    kind: Callable[..., Any],
    url: str,
    headers: Mapping[str, str] | None,
    context: ssl.SSLContext,
    through: httpx.BaseTransport | httpx.AsyncBaseTransport | None,
) -> Any:
    try:
        return kind(base_url=url, headers=checks.headers(headers), verify=context, limits=_LIMITS, transport=through)
    except (httpx.InvalidURL, ValueError, ImportError) as error:  # of the URL, or of a proxy that the environment names
        raise InvalidArgument(f"The client cannot be made for {checks.shown(url)}: {_reason(error)}.") from error


class _TimeLeft(dict[str, float]):
    """The timeouts of one request for httpx, which shrink as time passes.

    httpx looks a timeout up at the start of each phase (wait for a connection, connect, write, read) and has none for
    the whole request; so each phase gets what is left of the whole.
    """

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(dict.fromkeys(("pool", "connect", "write", "read"), attempt.timeout))
        self._attempt = attempt
        self._until = time.monotonic() + attempt.timeout

    @property
    def seconds(self) -> float:
        return max(self._until - time.monotonic(), 1e-3)  # 0 would mean not to wait at all

    def get(self, phase: str, default: Any = None) -> Any:  # noqa: ARG002 (as dict has it)
        return min(self.seconds, self._attempt.connect) if phase == "connect" else self.seconds

    def checked(self, chunk: bytes) -> bytes:
        if time.monotonic() > self._until:
            raise self.late()
        return chunk

    def late(self) -> TooLate:
        return too_late(self._attempt)


def _build(http: httpx.Client | httpx.AsyncClient, request: HttpRequest, left: _TimeLeft) -> httpx.Request:
    if http.is_closed:
        raise ClientClosed("The client was closed.")
    try:
        return http.build_request(
            request.method,
            request.path,
            params=request.params or None,
            headers=request.headers,
            content=request.content,
            files=request.parts or None,
            extensions={"timeout": left},
        )
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise InvalidArgument(f"The request cannot be built: {_reason(error)}.") from error


@contextmanager
def _translated(http: httpx.Client | httpx.AsyncClient, left: _TimeLeft) -> Iterator[None]:
    """Translate the errors of httpx into those of this package."""
    try:
        yield
    except RuntimeError as error:
        if http.is_closed:
            raise ClientClosed("The client was closed.") from error
        raise
    except httpx.ConnectTimeout as error:
        late = left.late()
        if isinstance(late, DeadlineExceeded) and left.seconds <= 1e-3:
            raise late from error
        raise ConnectionFailed("The service cannot be reached: no connection in time.") from error
    except httpx.ConnectError as error:
        raise ConnectionFailed(f"The service cannot be reached: {_reason(error)}.") from error
    except httpx.TimeoutException as error:
        raise left.late() from error
    except (httpx.DecodingError, httpx.TooManyRedirects) as error:
        raise BadAnswer(f"The answer cannot be read: {_reason(error)}.") from error
    except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
        raise InvalidArgument(f"The request cannot be sent: {_reason(error)}.") from error
    except httpx.HTTPError as error:
        broken = ConnectionFailed(f"The connection broke before the answer: {_reason(error)}.")
        broken.connected = True
        raise broken from error


def _reason(error: BaseException) -> str:
    """Return what an error says, or the one that caused it, or its class: never nothing."""
    causes: BaseException | None = error
    while causes is not None:
        words = str(causes).strip().rstrip(".")
        if words:
            return words
        causes = causes.__cause__ or causes.__context__
    return type(error).__name__
