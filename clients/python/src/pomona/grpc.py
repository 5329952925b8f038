"""The gRPC transport, on grpcio: one connection, kept and reused. Needs the extra `grpc`.

Its async half uses the same channel as the sync one, not `grpc.aio`, which reports the end of a stream as an internal
error if it comes while a frame is being written, and which must be alone with its event loop in a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import grpc

from pomona import _checks as checks
from pomona._requests import Attempt, Call, Ready, Request
from pomona.errors import ClientClosed, InvalidArgument, NotReady
from pomona.grpc_codec import call_error, encode_call, metadata_of, parse_message, parse_update, path_of
from pomona.grpc_streams import FrameStream
from pomona.transports import ClientCertificate, check_client_certificate, check_tls, parse_url

T = TypeVar("T")

DEFAULT_PORT: Final = 3001
_RECONNECT_MS: Final = (100, 500)


class GrpcTransport:
    """Sends calls over gRPC, from any thread or from one event loop; implements `Transport` and `AsyncTransport`.

    Args:
        url: of the service, `grpc://host:port`, or `grpcs://` for TLS; port 3001 where there is none.
        headers: metadata sent with every call, for example a proxy's token.
        tls: for your own certificate authorities, all that gRPC takes of it; None for the usual ones.
        client_certificate: for mutual TLS.
        connect: seconds in which a connection must be made; it is the channel's, so `Attempt.connect` is not used.

    Raises:
        InvalidArgument: the URL is not one of gRPC, or gRPC cannot use the context or the certificate.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        client_certificate: ClientCertificate | None = None,
        connect: float = 5.0,
    ) -> None:
        target, secure = parse_target(url)
        tls, limit = check_tls(tls), checks.seconds(connect, "connect")
        self._headers = metadata_of(checks.headers(headers))
        if secure:
            self._channel = grpc.secure_channel(target, _credentials(tls, client_certificate), _channel_options(limit))
        elif tls is None and client_certificate is None:
            self._channel = grpc.insecure_channel(target, _channel_options(limit))
        else:
            raise InvalidArgument(
                f"url must start with grpcs:// where tls or client_certificate is given, got {url!r}."
            )
        self._methods: dict[str, Any] = {}
        self._closed = False

    def send(self, call: Call[T], attempt: Attempt) -> T:
        """Send a call; see `pomona.transports.Transport`."""
        rpc = self._start(call, attempt)
        try:
            rpc.code()  # waits
        except BaseException:
            rpc.cancel()
            raise
        return self._finish(call, attempt, rpc)

    async def asend(self, call: Call[T], attempt: Attempt) -> T:
        """Send a call; see `pomona.transports.AsyncTransport`."""
        rpc = self._start(call, attempt)
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def wake(_: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(done.set)

        rpc.add_done_callback(wake)
        try:
            await done.wait()
        except asyncio.CancelledError:
            rpc.cancel()
            raise
        return self._finish(call, attempt, rpc)

    def stream(self, request: Request[Any], in_flight: int) -> FrameStream | None:
        """Return a transport for one camera; see `pomona.transports.StreamingTransport`."""
        if not request.streams:
            return None
        method: Any = self._channel.stream_stream(path_of(request, stream=True))
        return FrameStream(
            lambda messages, metadata: method(messages, metadata=(*self._headers, *metadata)),
            request,
            in_flight,
            lambda: self._closed,
        )

    def astream(self, request: Request[Any], in_flight: int) -> FrameStream | None:
        """Return a transport for one camera; see `pomona.transports.AsyncStreamingTransport`."""
        return self.stream(request, in_flight)

    def follow(self, call: Call[T], attempt: Attempt) -> Generator[Any, None, None]:
        """Send a call, and yield what is reported; see `pomona.transports.FollowingTransport`."""
        message, metadata = encode_call(call), (*self._headers, *metadata_of(attempt.headers()))
        try:
            method: Any = self._channel.unary_stream(path_of(call.request, stream=True))
            rpc = method(message, timeout=attempt.timeout, metadata=metadata)
        except ValueError as error:
            if self._closed:
                raise ClientClosed("The client was closed.") from error
            raise
        try:
            for update in rpc:
                yield parse_update(call, update)
        except grpc.RpcError as error:
            if self._closed:
                raise ClientClosed("The client was closed.") from error
            raise call_error(rpc.code(), rpc.details(), rpc.trailing_metadata(), attempt) from error
        finally:
            rpc.cancel()

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        self._channel.close()

    async def aclose(self) -> None:
        """Close the connection."""
        self.close()

    def _start(self, call: Call[Any], attempt: Attempt) -> Any:
        path, message = path_of(call.request), encode_call(call)
        metadata = (*self._headers, *metadata_of(attempt.headers()))
        try:
            method = self._methods.get(path)
            if method is None:
                method = self._methods[path] = self._channel.unary_unary(path)
            return method.future(message, timeout=attempt.timeout, metadata=metadata)
        except ValueError as error:
            if self._closed:
                raise ClientClosed("The client was closed.") from error
            raise

    def _finish(self, call: Call[T], attempt: Attempt, rpc: Any) -> T:
        status, ready = rpc.code(), isinstance(call.request, Ready)
        if status is grpc.StatusCode.OK:
            return cast("T", ready) if ready else parse_message(call, rpc.result())
        if self._closed:
            raise ClientClosed("The client was closed.")
        error = call_error(status, rpc.details(), rpc.trailing_metadata(), attempt)
        if ready and isinstance(error, NotReady):
            return cast("T", False)  # noqa: FBT003 (the result of Ready)
        raise error


def parse_target(url: str) -> tuple[str, bool]:
    """Return the target for a channel, and whether it has TLS.

    Raises:
        InvalidArgument: the URL is not one of gRPC.
    """
    parts = parse_url(url, ("grpc", "grpcs"))
    if parts.username or parts.path.strip("/") or parts.query or parts.fragment or not parts.netloc.isascii():
        raise InvalidArgument(
            f"url must have only a host and a port, in ASCII, as grpc://localhost:{DEFAULT_PORT}, got {url!r}."
        )
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or DEFAULT_PORT}", parts.scheme == "grpcs"


def _channel_options(connect: float) -> list[tuple[str, int]]:
    shortest, longest = _RECONNECT_MS
    return [
        # The client itself decides what is tried again.
        ("grpc.enable_retries", 0),
        # A channel that lost its connection fails calls until its next try: soon, as the client itself waits.
        ("grpc.initial_reconnect_backoff_ms", shortest),
        ("grpc.max_reconnect_backoff_ms", longest),
        ("grpc.min_reconnect_backoff_ms", max(1, int(connect * 1000))),  # in spite of its name, a try's limit
        # A connection of its own, which closes with the client.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # A service whose machine is gone is noticed while calls wait for it.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _credentials(tls: ssl.SSLContext | None, client_certificate: ClientCertificate | None) -> grpc.ChannelCredentials:
    certificate = key = None
    if (files := check_client_certificate(client_certificate)) is not None:
        try:
            certificate, key = (Path(file).read_bytes() for file in files)
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"client_certificate must be a certificate and its key in PEM: {error}.") from error
    if tls is None:
        return grpc.ssl_channel_credentials(None, key, certificate)
    authorities = tls.get_ca_certs(binary_form=True)
    if tls.verify_mode is ssl.CERT_NONE or not authorities:
        raise InvalidArgument(
            "tls must verify certificates and have its authorities loaded, as ssl.create_default_context(cafile=…): "
            "gRPC uses nothing else of it."
        )
    return grpc.ssl_channel_credentials("".join(map(ssl.DER_cert_to_PEM_cert, authorities)).encode(), key, certificate)
