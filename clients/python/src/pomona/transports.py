"""Which way to the service: told by the address."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Final
from urllib.parse import urlsplit

from pomona.errors import InvalidArgument, MissingPackage
from pomona.http_transport import AsyncHttpTransport, HttpTransport
from pomona.transport import AsyncTransport, Transport

_HTTP: Final = ("http", "https")
_GRPC: Final = ("grpc", "grpcs")


@dataclass(frozen=True)
class Way:
    """Where a service is and how to get there.

    Attributes:
        url: `http://`, `https://`, `grpc://` or `grpcs://`.
        headers: sent with every call.
        tls: for certificate authorities of your own, or None for the usual ones.
        connect: seconds in which a connection must be made.
    """

    url: str
    headers: Mapping[str, str] | None
    tls: ssl.SSLContext | None
    connect: float

    def transport(self) -> Transport:
        """The transport for this address.

        Raises:
            InvalidArgument: an address that is none.
            MissingPackage: gRPC without the extra `grpc`.
        """
        if _over_grpc(self.url):
            transport: Transport = _grpc_transport().GrpcTransport(
                self.url, headers=self.headers, tls=self.tls, connect=self.connect
            )
            return transport
        return HttpTransport(self.url, headers=self.headers, tls=self.tls)

    def async_transport(self) -> AsyncTransport:
        """As `transport`."""
        if _over_grpc(self.url):
            transport: AsyncTransport = _grpc_transport().AsyncGrpcTransport(
                self.url, headers=self.headers, tls=self.tls, connect=self.connect
            )
            return transport
        return AsyncHttpTransport(self.url, headers=self.headers, tls=self.tls)


def _over_grpc(url: str) -> bool:
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme not in _HTTP + _GRPC:
        raise InvalidArgument(
            f"{url!r} is no address of a service; http://localhost:3000 or grpc://localhost:3001 would be right."
        )
    return scheme in _GRPC


def _grpc_transport() -> ModuleType:
    try:
        from pomona import grpc_transport
    except ImportError as error:
        raise MissingPackage(
            f"grpc:// needs grpcio and protobuf: pip install 'pomona-client[grpc]' ({error})."
        ) from error
    return grpc_transport
