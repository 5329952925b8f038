"""The service's certificate for HTTP and gRPC, re-read when its files are renewed, and what TLS is accepted.

TLS 1.2 with forward secrecy and authenticated encryption, or TLS 1.3: what Mozilla's server side TLS guidelines call
"intermediate", without its finite-field Diffie-Hellman, which needs parameters and is slow. gRPC's own default is that.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import uvicorn.config

from service.settings import Tls
from service.watched_files import WatchedFiles

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2, as OpenSSL writes them; those of TLS 1.3 are all of this kind."""

_LOG: Final = logging.getLogger("pomona.tls")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files held when they were read.

    Attributes:
        context: for HTTP.
        certificate: with its chain, PEM.
        key: PEM.
        client_authorities: PEM of the authorities that callers' certificates must come from; None where they need none.
    """

    context: ssl.SSLContext
    certificate: bytes
    key: bytes
    client_authorities: bytes | None


class Certificates:
    """The certificate, its key and the callers' authorities: looked at once a second while callers connect.

    What cannot be used, such as a certificate whose key is not renewed yet, is reported, and what was read last stays.

    Args:
        tls: the files.
        clock: seconds, monotonic.

    Raises:
        OSError: a file cannot be read, or the key does not fit the certificate (`ssl.SSLError`).
    """

    def __init__(self, tls: Tls, clock: Callable[[], float] = time.monotonic) -> None:
        self.needs_client_certificate = tls.client_authorities is not None
        self._tls = tls
        self._lock = threading.Lock()  # gRPC asks from threads of its own
        files = [file for file in (tls.certificate, tls.key, tls.client_authorities) if file is not None]
        self._files = WatchedFiles(files, clock)  # before they are read, so that a change meanwhile is noticed
        self._loaded = _load(tls)

    def current(self) -> Loaded:
        """Return what new connections get."""
        with self._lock:
            if self._files.changed():
                self._reread()
            return self._loaded

    def _reread(self) -> None:
        try:
            self._loaded = _load(self._tls)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            _LOG.error("the certificate is that of before", extra={"detail": str(error)})
            return
        _LOG.info("the certificate was read again")


def bentoml_options(tls: Tls) -> dict[str, Any]:
    """Return the configuration of BentoML's HTTP server, which passes it on to uvicorn."""
    options: dict[str, Any] = {
        "enabled": True,
        "certfile": str(tls.certificate),
        "keyfile": str(tls.key),
        "version": int(ssl.PROTOCOL_TLS_SERVER),
        "ciphers": CIPHERS,
    }
    if tls.client_authorities is not None:
        options |= {"ca_certs": str(tls.client_authorities), "cert_reqs": int(ssl.CERT_REQUIRED)}
    return options


def renew_in_uvicorn(certificates: Certificates) -> None:
    """Make every handshake of this process's HTTP server use the certificate that is current.

    uvicorn could be given a context, but BentoML passes it the names of files only. Here the context that it makes of
    them hands over to the current one once a caller said hello.
    """
    make = uvicorn.config.create_ssl_context

    def create(*arguments: Any, **options: Any) -> ssl.SSLContext:
        context = make(*arguments, **options)
        context.sni_callback = hand_over
        return context

    def hand_over(connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        del name, context
        connection.context = certificates.current().context

    uvicorn.config.create_ssl_context = create


def grpc_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Return the credentials of a gRPC server, whose handshakes use the certificate that is current."""
    given = certificates.current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        current = certificates.current()
        if current is given:
            return None
        given = current
        return _configuration(current)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given),
        changed,  # type: ignore[arg-type]  # grpcio documents None for no change
        require_client_authentication=certificates.needs_client_certificate,
    )


def server_context(tls: Tls) -> ssl.SSLContext:
    """Return the context of a server.

    Raises:
        OSError: a file cannot be read, or the key does not fit the certificate (`ssl.SSLError`).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    # Without a password it would prompt for one at the terminal.
    context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
    if tls.client_authorities is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(tls.client_authorities)
    return context


def _load(tls: Tls) -> Loaded:
    authorities = tls.client_authorities
    return Loaded(
        server_context(tls),
        tls.certificate.read_bytes(),
        tls.key.read_bytes(),
        None if authorities is None else authorities.read_bytes(),
    )


def _configuration(loaded: Loaded) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(loaded.key, loaded.certificate)], loaded.client_authorities)
