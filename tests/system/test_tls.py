"""The real server with a certificate."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import httpx
import pytest

from loadtest.server import free_port, running
from pomona import NO_RETRY, Client, errors
from tests.identity import Identity
from tests.system.calls import Scene

pytestmark = pytest.mark.checkpoint


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory, identity: Identity) -> Iterator[dict[str, int]]:
    """The ports of a server with the U-Net alone, by scheme."""
    grpc_port = free_port()
    with running(
        tmp_path_factory.mktemp("server"),
        grpc_port=str(grpc_port),
        models="unet-mobilenetv2-citrus",
        tls_cert_file=str(identity.tls.certificate),
        tls_key_file=str(identity.tls.key),
    ) as server:
        yield {"https": httpx.URL(server.address).port or 0, "grpcs": grpc_port}


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_callers_who_trust_the_authority_are_answered_over_tls(
    scheme: str, ports: dict[str, int], identity: Identity, scene: Scene
) -> None:
    trusting = ssl.create_default_context(cafile=str(identity.authority))
    with Client(f"{scheme}://localhost:{ports[scheme]}", tls=trusting) as pomona:
        assert pomona.inspect(scene.data).fruits
    with (
        Client(f"{scheme}://localhost:{ports[scheme]}", retry=NO_RETRY) as distrustful,
        pytest.raises(errors.ConnectionFailed),
    ):
        distrustful.models()


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_callers_without_tls_are_not_answered(scheme: str, ports: dict[str, int]) -> None:
    with (
        Client(f"{scheme.removesuffix('s')}://localhost:{ports[scheme]}", retry=NO_RETRY) as plain,
        pytest.raises(errors.PomonaError),
    ):
        plain.models()
