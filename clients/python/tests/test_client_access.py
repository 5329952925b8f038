"""API keys and certificates of callers."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_stand_in import serve_grpc
from stand_in import IMAGE, MODELS, Problem, Reply, StandIn, use

from pomona import Client, Retry, errors

KEY = "pomona_0123456789ab_secret-of-the_line"


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POMONA_API_KEY", raising=False)


def test_the_key_is_sent_with_every_request(service: StandIn, kind: str) -> None:
    use(kind, service.address, lambda client: client.models(), api_key=KEY)
    use(kind, service.address, lambda client: client.inspect(IMAGE), api_key=KEY, headers={"Authorization": "older"})
    assert [received.headers["authorization"] for received in service.received] == 2 * [f"Bearer {KEY}"]


def test_the_key_of_the_environment_is_for_clients_that_have_none(
    service: StandIn, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(kind, service.address, lambda client: client.models())
    monkeypatch.setenv("POMONA_API_KEY", f" {KEY}\n")
    use(kind, service.address, lambda client: client.models())
    use(kind, service.address, lambda client: client.models(), api_key="another")
    use(kind, service.address, lambda client: client.models(), headers={"X-API-Key": "of a header"})
    sent = [(received.headers.get("authorization"), received.headers.get("x-api-key")) for received in service.received]
    assert sent == [(None, None), (f"Bearer {KEY}", None), ("Bearer another", None), (None, "of a header")]


@pytest.mark.parametrize("key", ["", "two words", "line\nfeed", "schlüssel"])
def test_what_no_header_can_have_is_no_key(key: str) -> None:
    for url in ("http://localhost:3000", "grpc://localhost:3001"):
        with pytest.raises(errors.InvalidArgument, match="api_key must be printable ASCII") as caught:
            Client(url, api_key=key)
        assert not key or key not in str(caught.value)


def test_refusals_are_not_tried_again(service: StandIn, kind: str) -> None:
    for code, error in (("unauthenticated", errors.Unauthenticated), ("permission_denied", errors.PermissionDenied)):
        service.received.clear()
        service.always(Problem(code))
        with pytest.raises(error):
            use(kind, service.address, lambda client: client.models(), retry=Retry(first_delay=0))
        assert len(service.received) == 1


def test_a_key_with_too_many_requests_waits_as_the_service_says_within_its_deadline(
    service: StandIn, kind: str
) -> None:
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)

    options: dict[str, Any] = {
        "retry": Retry(first_delay=0),
        "sleep": waits.append if kind == "sync" else pause,
    }
    service.answers(Problem("rate_limited", retry_after=3), MODELS)
    assert use(kind, service.address, lambda client: client.models(), **options)
    assert waits == [3]
    service.always(Problem("rate_limited", retry_after=3))
    with pytest.raises(errors.RateLimited):
        use(kind, service.address, lambda client: client.inspect(IMAGE, deadline=2), **options)
    assert waits == [3]


@pytest.mark.parametrize(("status", "error"), [(401, errors.Unauthenticated), (403, errors.PermissionDenied)])
def test_a_proxy_refuses_with_the_same_errors(http: StandIn, status: int, error: type[errors.PomonaError]) -> None:
    http.always(Reply(status, b"denied"))
    with pytest.raises(error, match="denied"):
        use("sync", http.address, lambda client: client.models())


class Certificates:
    """Of a service and of its callers, each of an authority of its own."""

    def __init__(self, folder: Path) -> None:
        self.service, self.callers = trustme.CA(), trustme.CA()
        self.own = self.service.issue_cert("localhost")
        issued = self.callers.issue_cert("line-3")
        self.files = folder / "line-3.crt", folder / "line-3.key"
        issued.cert_chain_pems[0].write_to_path(str(self.files[0]))
        issued.private_key_pem.write_to_path(str(self.files[1]))

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.service.cert_pem.bytes().decode())


def test_grpc_presents_the_certificate_of_the_caller(tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    credentials = grpc.ssl_server_credentials(
        [(made.own.private_key_pem.bytes(), made.own.cert_chain_pems[0].bytes())],
        made.callers.cert_pem.bytes(),
        require_client_auth=True,
    )
    with serve_grpc(credentials) as safe:
        with Client(safe.address, tls=made.trusting(), client_certificate=made.files) as pomona:
            assert pomona.models()
        with pytest.raises(errors.ConnectionFailed):
            use("sync", safe.address, lambda client: client.models(), tls=made.trusting())


def test_a_certificate_needs_tls_and_files_that_fit(tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    certificate, key = made.files
    for url in ("http://localhost:3000", "grpc://localhost:3001"):
        with pytest.raises(errors.InvalidArgument, match=r"url must start with (https|grpcs)://"):
            Client(url, client_certificate=made.files)
    for pair in ((certificate, tmp_path / "none.key"), (key, certificate)):
        with pytest.raises(errors.InvalidArgument, match="client_certificate must be"):
            Client("https://localhost:3000", client_certificate=pair)
    with pytest.raises(errors.InvalidArgument, match="client_certificate must be"):
        Client("grpcs://localhost:3001", client_certificate=(certificate, os.fspath(tmp_path / "none.key")))
