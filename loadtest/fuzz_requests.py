"""Requests of the fuzzing, over HTTP, gRPC and the Open Inference Protocol: valid ones, changed in a few places."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from google.protobuf.message import Message

from loadtest import fuzz_inputs as inputs
from loadtest.fuzz_served import GrpcInput, HttpInput, call, send
from loadtest.fuzz_targets import Target, dice_of
from models.images import content_id
from service.grpc.server import SEGMENTATION
from service.oip.grpc import SERVICE_NAME as OIP
from service.oip.openapi import LENGTH_HEADER
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

_BOUNDARY: Final = "fuzz"
_LONGEST_QUERY: Final = 65_000
"""Longer URLs are not sent by httpx; the server refuses them with other requests of more than 64 KiB of headers."""

_ODD_HEADERS: Final = (
    ("X-Deadline-Ms", ("1", "20", "500", "0", "-1", "1e400", "nan", "", "9" * 400, "\xff")),
    ("Priority", ("u=0", "u=7", "u=8", "i", "u=", "u=1;" * 99, "\xe9")),
    ("X-Request-Id", ("", "a" * 128, "a" * 300, "\xe9\x80", "a\tb")),
    ("traceparent", ("00-" + "1" * 32 + "-" + "2" * 16 + "-01", "00-0-0-0", "\xff" * 55)),
    ("Content-Type", ("", "image/jpeg", "text/plain", "multipart/form-data", "multipart/form-data; boundary=" + "b")),
    ("Content-Encoding", ("gzip", "identity")),
    ("Authorization", ("Bearer x", "Basic", "")),
    ("Accept", ("text/html", "")),
    (LENGTH_HEADER, ("0", "1", "-1", "9" * 30, "x")),
)  # fmt: skip


def _http(number: int) -> bytes:
    """Make a request of an operation; something is changed in its JSON, image, framing, headers or path."""
    dice = dice_of("HTTP", number)
    path, images = dice.choice(("/v1/segment", *inputs.PATHS)), inputs.image_seeds()
    what = dice.choice(("JSON", "JSON", "JSON", "image", "framing", "headers", "path", "nothing", "nothing"))
    document, image = dice.choice(inputs.json_seeds(path)), dice.choice(images)
    if what == "JSON":
        document = inputs.mutate_json([document], dice)
    elif what == "image":
        image = inputs.mutate_image([image], dice)
    elif what == "path":
        path = dice.choice(
            (path + "/", path.upper(), "/v1/%2e", "/nope", "/v1/models", "/docs.json", path + "?request=a&request=b")
        )
    headers = [("Content-Type", "image/jpeg")]
    query = quote(document.decode(errors="replace"))
    if dice.random() < 0.4 and len(query) < _LONGEST_QUERY:
        given = HttpInput("POST", f"{path}{'&' if '?' in path else '?'}request={query}", headers, image)
    else:
        parts = _parts(document, image, dice)
        body = b"".join((*parts, b"--%s--\r\n" % _BOUNDARY.encode()))
        if what == "framing":
            body = _reframed(body, image, dice)
        headers = [("Content-Type", f"multipart/form-data; boundary={_BOUNDARY}")]
        given = HttpInput("POST", path, headers, body)
    if what == "headers" or dice.random() < 0.1:
        name, values = dice.choice(_ODD_HEADERS)
        kept = [(other, value) for other, value in given.headers if other != name]
        given = HttpInput(given.method, given.target, [*kept, (name, dice.choice(values))], given.body)
    if what == "path" and dice.random() < 0.3:
        given = HttpInput(dice.choice(("GET", "PUT", "DELETE", "OPTIONS", "HEAD")), given.target, given.headers, b"")
    return given.to_bytes()


def _parts(document: bytes, image: bytes, dice: random.Random) -> list[bytes]:
    """Return the parts of a form: JSON, and an image or the id of one that may be known."""
    head = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
    parts = [f'{head}"request"\r\n\r\n'.encode() + document + b"\r\n"]
    if dice.random() < 0.7:
        parts.append(f'{head}"image"; filename="i"\r\n\r\n'.encode() + image + b"\r\n")
    else:
        parts.append(f'{head}"image_id"\r\n\r\n{content_id(image)}\r\n'.encode())
    dice.shuffle(parts)
    return parts


def _reframed(body: bytes, image: bytes, dice: random.Random) -> bytes:
    """Change a form outside its image."""
    before, found, after = body.partition(image)
    changed = inputs.mutate_bytes([before], dice)
    return changed + found + after if found else changed


def _oip_http(number: int) -> bytes:
    """Make a body of JSON and binary tensors; its length in the header is mostly that of the JSON."""
    dice = dice_of("OIP over HTTP", number)
    seeds = inputs.oip_seeds()
    data = dice.choice(seeds) if dice.random() < 0.3 else inputs.mutate_body(seeds, dice)
    length, _, body = data.partition(b"\n")
    model = dice.choice((*("mobile-sam",) * 14, "unet-mobilenetv2-citrus", "unet-mobilenetv2-citrus", "nope", "%00"))
    given = length.decode("latin-1") if dice.random() < 0.9 else dice.choice(("", "-1", "0", "1", "9" * 20))
    headers = [(LENGTH_HEADER, "".join(c for c in given if c.isprintable()).strip())] if given else []
    return HttpInput("POST", f"/v2/models/{model}/infer", headers, body).to_bytes()


def _changed(message: Message, dice: random.Random) -> bytes:
    """Return a message with a few changed fields, or changed bytes."""
    copy = type(message)()
    copy.CopyFrom(message)
    for _ in range(dice.choice((0, 0, 1, 1, 2, 4))):
        inputs.change_message(copy, dice)
    data = copy.SerializeToString()
    return inputs.mutate_bytes([data], dice) if dice.random() < 0.15 else data


def _metadata(dice: random.Random) -> list[tuple[str, str]]:
    if dice.random() < 0.8:
        return []
    name, values = dice.choice(_ODD_HEADERS[:4])
    return [(name.lower(), dice.choice([value for value in values if value.isascii() and value.isprintable()]))]


def _grpc(number: int) -> bytes:
    """Make a call of an operation, or a stream of up to six frames."""
    dice = dice_of("gRPC", number)
    images = inputs.image_seeds()
    image = dice.choice(images) if dice.random() < 0.8 else inputs.mutate_image(images, dice)
    requests = inputs.messages(image)
    kind = dice.randrange(6)
    if kind < 4:
        request = requests[kind]
        return _call(
            SEGMENTATION.full_name, type(request).__name__.removesuffix("Request"), [_changed(request, dice)], dice
        )
    frames: list[Message] = []
    for frame in range(dice.randrange(1, 7)):
        if kind == 4:
            segment: Any = requests[0]
            frames.append(pb.SegmentStreamRequest(request=segment, frame=pb.Frame(frame_id=str(frame)), urgency=3))
        else:
            inspect: Any = requests[3]
            frames.append(pb.InspectStreamRequest(request=inspect, deadline_ms=5_000))
    settings: Any = frames[0]
    settings.settings.max_in_flight = dice.choice((0, 1, 4, 64))
    name = "SegmentStream" if kind == 4 else "InspectStream"
    return _call(SEGMENTATION.full_name, name, [_changed(frame, dice) for frame in frames], dice)


def _oip_grpc(number: int) -> bytes:
    """Make a call of ModelInfer."""
    dice = dice_of("OIP over gRPC", number)
    return _call(OIP, "ModelInfer", [_changed(dice.choice(inputs.oip_messages()), dice)], dice)


def _call(service: str, method: str, messages: Sequence[bytes], dice: random.Random) -> bytes:
    return GrpcInput(f"/{service}/{method}", _metadata(dice), messages).to_bytes()


def _target(make: Callable[[int], bytes], use: Callable[[bytes], str], share: float) -> Target:
    return Target(make, use, share, served=True)


CALLS: Final[Mapping[str, Target]] = {
    "HTTP": _target(_http, send, 0.05),
    "gRPC": _target(_grpc, call, 0.04),
    "OIP over HTTP": _target(_oip_http, send, 0.02),
    "OIP over gRPC": _target(_oip_grpc, call, 0.02),
}
