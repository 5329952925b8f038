"""Where a gRPC service is, and how a channel to it behaves."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import grpc

from pomona.errors import InvalidArgument
from pomona.grpc_messages import Metadata, checked

_PORT: Final = 3001
_SHORTEST_PAUSE_MS: Final = 100
_LONGEST_PAUSE_MS: Final = 500


@dataclass(frozen=True)
class Address:
    """Where a service is.

    Attributes:
        target: host and port, as gRPC takes them.
        credentials: None without TLS.
    """

    target: str
    credentials: grpc.ChannelCredentials | None


def address_of(url: str, tls: ssl.SSLContext | None) -> Address:
    """Read an address.

    Args:
        url: `grpc://host:port`, or `grpcs://` for TLS; the port is 3001 where there is none.
        tls: whose certificate authorities are trusted, or None for the usual ones.

    Raises:
        InvalidArgument: an address that is none, or authorities that gRPC cannot take.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _PORT
    except ValueError:
        host, port, parts = None, _PORT, urlsplit("")
    extra = parts.username or parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in ("grpc", "grpcs") or not host or extra:
        raise InvalidArgument(f"{url!r} is no address of gRPC; grpc://localhost:{_PORT} would be right.")
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if parts.scheme == "grpcs":
        return Address(target, _credentials(tls))
    if tls is not None:
        raise InvalidArgument(f"{url!r} is without TLS; grpcs://{target} would be with it.")
    return Address(target, None)


def metadata_of_headers(headers: Mapping[str, str] | None) -> Metadata:
    """Headers, whose names are in lower case in gRPC.

    Raises:
        InvalidArgument: what cannot be one.
    """
    return checked(*((name.lower(), value) for name, value in (headers or {}).items()))


def options(connect: float) -> list[tuple[str, int]]:
    """How a channel behaves.

    Args:
        connect: seconds in which a connection must be made.
    """
    return [
        # What is tried again, and when, the client decides.
        ("grpc.enable_retries", 0),
        # A channel that lost its connection lets calls fail until its next try: soon, as the client waits itself.
        ("grpc.initial_reconnect_backoff_ms", _SHORTEST_PAUSE_MS),
        ("grpc.max_reconnect_backoff_ms", _LONGEST_PAUSE_MS),
        ("grpc.min_reconnect_backoff_ms", max(1, int(connect * 1000))),  # in spite of its name, what a try may take
        # A connection of its own, that closes when the client closes.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # A service whose machine is gone says nothing: it is asked while calls wait for it.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _credentials(tls: ssl.SSLContext | None) -> grpc.ChannelCredentials:
    if tls is None:
        return grpc.ssl_channel_credentials()
    authorities = tls.get_ca_certs(binary_form=True)
    if tls.verify_mode is ssl.CERT_NONE or not authorities:
        raise InvalidArgument(
            "gRPC takes no more of a context than certificate authorities that are loaded, and this has none; "
            "ssl.create_default_context(cafile=…) would be right."
        )
    return grpc.ssl_channel_credentials("".join(map(ssl.DER_cert_to_PEM_cert, authorities)).encode())
