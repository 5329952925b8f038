"""Check a release from inside its cluster: what the pod of `helm test` runs, in the service's own image.

Segments and inspects the example image over HTTP and gRPC, for each role by the models that it has. Where callers need
a key and none is given, it checks that they are refused.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_IMAGE: Final = Path(__file__).with_name("oranges.jpg")
_FRUIT: Final = (274.0, 95.0)
_FRUIT_AREA: Final = range(9_500, 12_500)
"""Pixels of the fruit in _IMAGE at that point, which are about 11,100."""

_CERTIFICATE: Final = Path("/etc/pomona/test-client/tls.crt")
_WITHIN_S: Final = 60
_TRIES: Final = 12
_BETWEEN_TRIES_S: Final = 5.0


class CheckFailed(Exception):
    """The release fails a check; the message says what must hold and what was found."""


@dataclass(frozen=True, slots=True)
class Target:
    """One role's Service.

    Attributes:
        role: its name.
        host: the Service's.
        http: its port for HTTP.
        grpc: its port for gRPC.
        tls: whether both speak TLS; the certificate is not verified, as it may be for the name outside.
        keys: whether callers need a key.
    """

    role: str
    host: str
    http: int
    grpc: int
    tls: bool = False
    keys: bool = False


def check(target: Target, key: str) -> str:
    """Check one role.

    Args:
        target: to call.
        key: API key, or "".

    Returns:
        What was seen, in one line.

    Raises:
        CheckFailed: it does not answer as it must.
    """
    if target.keys and not key:
        status, _ = _call(target, "GET", "/v1/models", "")
        _expect(status == 401, f"a caller without a key must be refused with 401, got {status}")
        return "callers without a key are refused; test.apiKeySecret would let masks be tested too"
    status, listed = _call(target, "GET", "/v1/models", key)
    _expect(status == 200, f"/v1/models must answer 200, got {status}: {listed}")
    families = {model["family"] for model in listed["models"] if model["loaded"]}
    seen = []
    if "sam" in families:
        seen += _segment(target, key)
    if "unet" in families:
        status, answer = _call(target, "POST", "/v1/inspect", key, {"mode": "fast"})
        _expect(status == 200 and answer["fruits"], f"fruits must be found, got {status}: {str(answer)[:300]}")
        seen.append(f"{len(answer['fruits'])} fruits inspected")
    _expect(seen, f"a model must be loaded, got {listed}")
    return ", ".join(seen)


def _segment(target: Target, key: str) -> list[str]:
    status, answer = _call(target, "POST", "/v1/segment", key, {"prompts": [{"points": [_FRUIT]}]})
    _expect(status == 200, f"/v1/segment must answer 200, got {status}: {str(answer)[:300]}")
    best = answer["results"][0]["masks"][0]
    _expect(best["area"] in _FRUIT_AREA, f"the fruit's area must be in {_FRUIT_AREA}, got {best['area']}")
    seen = [f"a mask of {best['area']} pixels over HTTP"]
    if target.tls:
        return [*seen, "gRPC not tested (TLS)"]
    counts = _segment_over_grpc(target, key)
    _expect(counts == best["mask"]["counts"], "the masks over HTTP and gRPC must be equal")
    return [*seen, "the same over gRPC"]


def _segment_over_grpc(target: Target, key: str) -> str:
    import grpc

    from service.proto.generated.pomona.v1 import segmentation_pb2 as messages
    from service.proto.generated.pomona.v1.segmentation_pb2_grpc import SegmentationStub

    x, y = _FRUIT
    prompt = messages.Prompt(points=[messages.Point(x=x, y=y)])
    request = messages.SegmentRequest(image=_IMAGE.read_bytes(), prompts=[prompt])
    with grpc.insecure_channel(f"{target.host}:{target.grpc}") as opened:
        channel: Any = opened  # the stub's types know asynchronous channels only
        try:
            answer: Any = SegmentationStub(channel).Segment(
                request, timeout=_WITHIN_S, metadata=[("x-api-key", key)] if key else [], wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise CheckFailed(f"gRPC must answer, got {error}") from error
    return str(answer.results[0].masks[0].mask.rle.counts)


def _call(
    target: Target, method: str, path: str, key: str, request: Mapping[str, Any] | None = None
) -> tuple[int, Any]:
    """Send a request, with the example image where it has options; try again while nothing answers."""
    url = f"{'https' if target.tls else 'http'}://{target.host}:{target.http}{path}"
    body = None
    headers = {"X-API-Key": key} if key else {}
    if request is not None:
        url += "?" + urllib.parse.urlencode({"request": json.dumps(request)})
        body, headers["Content-Type"] = _IMAGE.read_bytes(), "image/jpeg"
    sent = urllib.request.Request(url, body, headers, method=method)  # noqa: S310 (a Service's address)
    for tried in range(_TRIES):
        try:
            with urllib.request.urlopen(sent, timeout=_WITHIN_S, context=_trusting(target)) as answer:  # noqa: S310
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode(errors="replace")
        except OSError as error:  # a Service takes a moment to learn of its pods
            if tried == _TRIES - 1:
                raise CheckFailed(f"{url} must answer: {error}") from error
            time.sleep(_BETWEEN_TRIES_S)
    raise CheckFailed(f"{url} must answer")


def _trusting(target: Target) -> ssl.SSLContext | None:
    if not target.tls:
        return None
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if _CERTIFICATE.exists():
        context.load_cert_chain(_CERTIFICATE, _CERTIFICATE.with_name("tls.key"))
    return context


def _expect(truth: object, what: str) -> None:
    if not truth:
        raise CheckFailed(what)


def main() -> int:
    """Check all roles of POMONA_TARGETS, and return how many fail."""
    failed = 0
    for target in (Target(**values) for values in json.loads(os.environ["POMONA_TARGETS"])):
        try:
            seen = check(target, os.environ.get("POMONA_TEST_KEY", ""))
        except CheckFailed as error:
            failed += 1
            seen = f"FAILED: {error}"
        sys.stdout.write(f"{target.role}: {seen}\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
