"""The real server and its callers: API keys together with certificates, and when it refuses to listen."""

from __future__ import annotations

import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from loadtest.server import Server, environment_of, free_port, launched
from pomona import NO_RETRY, Client, errors
from service.settings import MISCONFIGURED
from tests.identity import Identity, issue
from tests.system.calls import Scene

pytestmark = pytest.mark.checkpoint

_ROOT = Path(__file__).parents[2]
_WITHIN_S = 60


def key_named(file: Path, name: str) -> str:
    """Add a key with the command, as an administrator does, and return it."""
    command = [sys.executable, "-m", "service.keys", "--file", str(file), "add", name]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()


@dataclass(frozen=True)
class Guarded:
    """A server with mutual TLS and keys on a port beyond loopback.

    Attributes:
        server: itself.
        identity: the server's.
        client: the callers'.
        key: one that it knows.
    """

    server: Server
    identity: Identity
    client: Identity
    key: str

    def url(self, scheme: str) -> str:
        port = self.server.port if scheme == "https" else self.server.grpc_port
        return f"{scheme}://localhost:{port}"

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.identity.authority))

    def certificate(self) -> tuple[Path, Path]:
        return self.client.tls.certificate, self.client.tls.key


def status_of(client: httpx.Client, path: str) -> int | None:
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return None


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, identity: Identity) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    client, keys, port = issue(folder), folder / "keys.json", free_port()
    key = key_named(keys, "line-3")
    environment = environment_of(
        port,
        grpc_port=str(free_port()),
        models="unet-mobilenetv2-citrus",
        tls_cert_file=str(identity.tls.certificate),
        tls_key_file=str(identity.tls.key),
        tls_client_ca_file=str(client.authority),
        api_keys_file=str(keys),
    )
    # Without a certificate there is no answer, so its readiness is asked below.
    environment["POMONA_HTTP_HOST"] = "0.0.0.0"  # noqa: S104 (what is tried)
    with launched(folder, port, ["-m", "bentoml", "serve", "service.app:Pomona"], environment, ready="") as server:
        made = Guarded(server, identity, client, key)
        context = made.tls()
        context.load_cert_chain(*made.certificate())
        with httpx.Client(base_url=made.url("https"), verify=context) as probing:
            until = time.monotonic() + _WITHIN_S
            while status_of(probing, "/readyz") != 200:
                assert time.monotonic() < until, server.log()
                time.sleep(0.1)
        yield made
        server.stop()


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_caller_with_a_certificate_and_a_key_is_answered(scheme: str, guarded: Guarded, scene: Scene) -> None:
    with Client(
        guarded.url(scheme), tls=guarded.tls(), client_certificate=guarded.certificate(), api_key=guarded.key
    ) as pomona:
        assert pomona.inspect(scene.data).fruits


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_certificate_without_a_key_and_a_key_without_a_certificate_are_not_enough(
    scheme: str, guarded: Guarded, scene: Scene
) -> None:
    with (
        Client(guarded.url(scheme), tls=guarded.tls(), client_certificate=guarded.certificate()) as keyless,
        pytest.raises(errors.Unauthenticated),
    ):
        keyless.inspect(scene.data)
    with (
        Client(guarded.url(scheme), tls=guarded.tls(), retry=NO_RETRY, api_key="pomona_0_0") as bare,
        pytest.raises(errors.ConnectionFailed),
    ):
        bare.inspect(scene.data)


def test_what_bentoml_answers_by_itself_is_closed(guarded: Guarded) -> None:
    context = guarded.tls()
    context.load_cert_chain(*guarded.certificate())
    headers = {"x-api-key": guarded.key}
    with httpx.Client(base_url=guarded.url("https"), verify=context, headers=headers) as client:
        for method, path in [
            ("GET", "/schema.json"),
            ("GET", "/livez/"),
            ("GET", "/nope"),
            ("GET", "/v2/%0A"),
            ("GET", "/v2/health%0A/live"),
            ("POST", "/readyz"),
            ("PUT", "/livez"),
            ("OPTIONS", "*"),
            ("GET", "/" + "a" * 50_000),
        ]:
            answer = client.request(method, path)
            kind = "application/json" if path.startswith("/v2") else "application/problem+json"
            assert answer.headers["content-type"] == kind, (path[:80], answer.text[:200])
            assert answer.status_code in (404, 405), path[:80]
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert client.get("/livez").status_code == 200
    assert max(map(len, guarded.server.log().splitlines())) < 2000


def listening(*options: str, **settings: str) -> tuple[int, str]:
    """Start the server where it should refuse, and return its exit status and what it printed."""
    environment = environment_of(free_port(), models="unet-mobilenetv2-citrus", **settings)
    environment["POMONA_HTTP_HOST"] = settings.get("http_host", "127.0.0.1")
    command = [sys.executable, "-m", "bentoml", "serve", "service.app:Pomona", *options]
    ran = subprocess.run(
        command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=_WITHIN_S, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.parametrize("by", ["setting", "option"])
def test_the_service_does_not_listen_for_strangers_by_mistake(by: str) -> None:
    everywhere = "0.0.0.0"  # noqa: S104 (what is refused)
    status, printed = listening(http_host=everywhere) if by == "setting" else listening("--host", everywhere)
    assert status == MISCONFIGURED
    (sentence,) = [line for line in printed.splitlines() if line.startswith("pomona: ")]
    assert "would listen on 0.0.0.0 for callers that are not authenticated" in sentence
    assert "Traceback" not in printed
