"""The certificate and what TLS is accepted, at real handshakes over sockets of this machine."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn.config

from service.api.handler import RequestHandler
from service.grpc.server import GrpcServer
from service.tls import Certificates, bentoml_options, renew_in_uvicorn
from tests.fakes import FakeClock, make_settings
from tests.identity import Identity, issue

LATER = 1.0
"""Seconds after which renewed files are noticed."""


@asynccontextmanager
async def http_door(certificates: Certificates, options: dict[str, Any]) -> AsyncIterator[int]:
    """Listen with the context that uvicorn makes of the options that BentoML passes on; yield the port."""
    before = uvicorn.config.create_ssl_context
    renew_in_uvicorn(certificates)
    try:
        names = {"certfile": "ssl_certfile", "keyfile": "ssl_keyfile", "version": "ssl_version"}
        names |= {"ciphers": "ssl_ciphers", "ca_certs": "ssl_ca_certs", "cert_reqs": "ssl_cert_reqs"}
        given = {names[name]: value for name, value in options.items() if name in names}
        config = uvicorn.config.Config(None, log_config=None, **given)  # type: ignore[arg-type]
        config.load()
    finally:
        uvicorn.config.create_ssl_context = before

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(1))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=config.ssl) as server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def grpc_door(certificates: Certificates, _: dict[str, Any]) -> AsyncIterator[int]:
    server = GrpcServer(make_settings(), RequestHandler())
    port = await server.start("127.0.0.1", 0, certificates)
    try:
        yield port
    finally:
        await server.drain(0)


DOORS = pytest.mark.parametrize("door", [http_door, grpc_door], ids=["HTTP", "gRPC"])


async def shakes_hands(port: int, context: ssl.SSLContext, name: str = "localhost") -> bool:
    """Return whether a connection with TLS can be made and used."""
    context.set_alpn_protocols(["h2"])  # gRPC insists; HTTP does not mind
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
        answered = await reader.read(1)
        writer.close()
    except (ssl.SSLError, ConnectionError):
        return False
    return answered != b""


def trusting(authority: Path, client: Identity | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority))
    if client is not None:
        context.load_cert_chain(client.tls.certificate, client.tls.key)
    return context


@pytest.fixture
def server(tmp_path: Path) -> Identity:
    (tmp_path / "server").mkdir()
    return issue(tmp_path / "server")


@pytest.fixture
def client(tmp_path: Path) -> Identity:
    (tmp_path / "client").mkdir()
    return issue(tmp_path / "client")


@DOORS
async def test_tls_has_forward_secrecy_and_authenticated_encryption(door: Any, server: Identity) -> None:
    async with door(Certificates(server.tls), bentoml_options(server.tls)) as port:
        accepted = set()
        everything = trusting(server.authority)
        everything.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
        for cipher in everything.get_ciphers():
            one = trusting(server.authority)
            one.maximum_version = ssl.TLSVersion.TLSv1_2
            try:
                one.set_ciphers(f"{cipher['name']}:@SECLEVEL=0")
            except ssl.SSLError:  # of TLS 1.3
                continue
            if await shakes_hands(port, one):
                accepted.add(cipher["name"])
        assert accepted >= {"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"}
        assert {name for name in accepted if not name.startswith("ECDHE-ECDSA-") or name.endswith("-SHA")} == set()
        assert {name.partition("ECDSA-")[2][:6] for name in accepted} <= {"AES128", "AES256", "CHACHA"}
        newest = trusting(server.authority)
        newest.minimum_version = ssl.TLSVersion.TLSv1_3
        assert await shakes_hands(port, newest)


@DOORS
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")
async def test_old_versions_of_tls_are_refused(door: Any, version: str, server: Identity) -> None:
    async with door(Certificates(server.tls), bentoml_options(server.tls)) as port:
        old = trusting(server.authority)
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = old.maximum_version = ssl.TLSVersion[version]
        assert not await shakes_hands(port, old)
        assert await shakes_hands(port, trusting(server.authority))


@DOORS
async def test_a_renewed_certificate_is_used_for_new_connections(
    door: Any, server: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    before = trusting(server.authority)
    async with door(Certificates(server.tls, clock), bentoml_options(server.tls)) as port:
        assert await shakes_hands(port, before)
        server.renew()
        after = trusting(server.authority)
        assert not await shakes_hands(port, after)  # not looked at yet
        clock.leap(LATER)
        with caplog.at_level(logging.INFO, "pomona.tls"):
            assert await shakes_hands(port, after)
        assert not await shakes_hands(port, before)
        assert [record.getMessage() for record in caplog.records] == ["the certificate was read again"]


@DOORS
async def test_half_of_a_renewal_changes_nothing(
    door: Any, server: Identity, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    async with door(Certificates(server.tls, clock), bentoml_options(server.tls)) as port:
        before = trusting(server.authority)
        (tmp_path / "next").mkdir()
        following = issue(tmp_path / "next")
        for broken in (following.tls.certificate.read_bytes(), b"no certificate", None):
            if broken is None:
                server.tls.certificate.unlink()
            else:
                server.tls.certificate.write_bytes(broken)
            caplog.clear()
            for _ in range(3):
                clock.leap(LATER)
                assert await shakes_hands(port, before)
            (record,) = caplog.records
            assert (record.levelno, record.getMessage()) == (logging.ERROR, "the certificate is that of before")
        shutil.copy(following.tls.certificate, server.tls.certificate)
        shutil.copy(following.tls.key, server.tls.key)
        clock.leap(LATER)
        assert await shakes_hands(port, trusting(following.authority))


@DOORS
async def test_with_mutual_tls_a_caller_needs_a_certificate_of_the_authority(
    door: Any, server: Identity, client: Identity
) -> None:
    clock = FakeClock()
    tls = replace(server.tls, client_authorities=client.authority)
    async with door(Certificates(tls, clock), bentoml_options(tls)) as port:
        assert await shakes_hands(port, trusting(server.authority, client))
        assert not await shakes_hands(port, trusting(server.authority))
        assert not await shakes_hands(port, trusting(server.authority, server))
        old = trusting(server.authority, client)
        client.renew()
        clock.leap(LATER)
        assert await shakes_hands(port, trusting(server.authority, client))
        assert not await shakes_hands(port, old)  # the authority is not trusted any more


@DOORS
async def test_callers_that_name_no_host_get_the_renewed_certificate_too(door: Any, server: Identity) -> None:
    clock = FakeClock()
    async with door(Certificates(server.tls, clock), bentoml_options(server.tls)) as port:
        server.renew()
        clock.leap(LATER)
        by_address = trusting(server.authority)
        by_address.check_hostname = False
        assert await shakes_hands(port, by_address, name="")


def test_a_certificate_that_cannot_be_read_at_the_start_is_an_error(server: Identity) -> None:
    with pytest.raises(ssl.SSLError):
        Certificates(replace(server.tls, key=server.locked_key))
    with pytest.raises(FileNotFoundError):
        Certificates(replace(server.tls, certificate=server.tls.key.with_name("none.crt")))
