"""Requests that took all memory of a server before it had a budget: legal ones at their limits, and hostile ones.

Each attack takes a server and a scale, 1 for what killed a container of 3 GiB, and returns how it was answered.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import io
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

import grpc
import httpx
import numpy as np
import PIL.Image
import psutil

from loadtest.hostile_images import HOSTILE
from loadtest.images import padded_jpeg
from loadtest.server import MODEL
from models.masks import Rle, encode_rle
from models.types import Size
from service.grpc.server import SEGMENTATION
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

MIB: Final = 1 << 20
GREATEST: Final = Size(5773, 8660)
"""50 megapixels."""

LARGE: Final = Size(3000, 4000)
SMALL: Final = Size(800, 1200)
PROMPTS: Final = 64

_BOUNDARY: Final = "attack"
_PATIENCE_S: Final = 600.0
_SLOW_S: Final = 25.0
"""Longer than headers (10 s) and pauses in taking an answer (20 s) may last."""

Answers = Counter[str]


class Attacked(Protocol):
    """A server, on this machine or in a container on it."""

    @property
    def address(self) -> str:
        """Base URL of its HTTP, on 127.0.0.1."""
        ...

    @property
    def port(self) -> int:
        """Port of its HTTP."""
        ...

    @property
    def grpc_port(self) -> int:
        """Port of its gRPC."""
        ...

    def processes(self) -> list[psutil.Process]:
        """Return all its processes."""
        ...


Attack = Callable[[Attacked, float], Answers]


@functools.cache
def photograph(size: Size) -> bytes:
    """Return a JPEG of smooth noise, which is as large and takes as long as a photograph."""
    cells = (max(1, size.height // 16), max(1, size.width // 16), 3)
    grain = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, cells, np.uint8))
    buffer = io.BytesIO()
    grain.resize((size.width, size.height), PIL.Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


@functools.cache
def plain_png(size: Size) -> bytes:
    """Return a PNG of one colour: a few kilobytes that decode to any size."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (size.width, size.height), (200, 120, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def post(server: Attacked, path: str, image: bytes, request: Mapping[str, Any]) -> str:
    """Send an image with the JSON of an operation; return the status, or why there is none."""
    fields: dict[str, Any] = {"image": ("image", image), "request": (None, json.dumps(request))}
    try:
        with httpx.Client(timeout=_PATIENCE_S) as client:
            return str(client.post(f"{server.address}{path}", files=fields).status_code)
    except httpx.TransportError as error:
        return type(error).__name__


def many_masks(server: Attacked, scale: float, *, size: Size, mask_format: str) -> Answers:
    """Request three masks each of 64 points."""
    count = max(1, round(PROMPTS * scale))
    xs = np.linspace(0.05, 0.95, count) * (size.width - 1)
    ys = np.linspace(0.1, 0.9, count) * (size.height - 1)
    prompts = [{"points": [[float(x), float(y)]]} for x, y in zip(xs, ys, strict=True)]
    return Counter([post(server, "/v1/segment", photograph(size), {"prompts": prompts, "format": mask_format})])


def large_mask_prompts(server: Attacked, scale: float) -> Answers:
    """Send mask prompts of 50 megapixels each with an image of one: 146 KB of JSON."""
    rle = Rle((5000, 10000), encode_rle(np.zeros((5000, 10000), np.bool_)).counts)
    masks = [{"mask": {"size": rle.size, "counts": rle.counts}}] * max(1, round(PROMPTS * scale))
    return Counter([post(server, "/v1/segment", photograph(SMALL), {"prompts": masks})])


def legal_mask_prompts(server: Attacked, scale: float) -> Answers:
    """Send mask prompts of an image's size, which is the largest."""
    size = GREATEST
    mask = np.zeros((size.height, size.width), np.bool_)
    mask[1000:4000, 2000:6000] = True
    counts = encode_rle(mask).counts
    prompt = {"mask": {"size": [size.height, size.width], "counts": counts}, "multimask": False}
    masks = [prompt] * max(1, round(PROMPTS * scale))
    return Counter([post(server, "/v1/segment", photograph(size), {"prompts": masks})])


def overlays(server: Attacked, scale: float) -> Answers:
    """Request four class maps with overlays of a PNG of 50 megapixels at a time."""
    request = {"format": "png", "overlay": True}
    return _together(max(1, round(4 * scale)), lambda _: post(server, "/v1/semantic", plain_png(GREATEST), request))


def many_values(server: Attacked, scale: float) -> Answers:
    """Send JSON of millions of empty prompts, each of which becomes an object."""
    count = round(9_000_000 * scale)
    body = b"".join(
        (
            f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="image"; filename="i"\r\n\r\n'.encode(),
            photograph(SMALL),
            f'\r\n--{_BOUNDARY}\r\ncontent-disposition: form-data; name="request"\r\n\r\n'.encode(),
            b'{"prompts":[' + b",".join([b"{}"] * count) + b"]}",
            f"\r\n--{_BOUNDARY}--\r\n".encode(),
        )
    )
    headers = {"content-type": f"multipart/form-data; boundary={_BOUNDARY}"}
    try:
        with httpx.Client(timeout=_PATIENCE_S) as client:
            answer = client.post(f"{server.address}/v1/segment", content=body, headers=headers)
            return Counter([str(answer.status_code)])
    except httpx.TransportError as error:
        return Counter([type(error).__name__])


def unfinished_uploads(server: Attacked, scale: float) -> Answers:
    """Open 61 uploads, send 31 MiB of each, and leave them so for a while."""
    sent = round(31 * MIB * scale)
    head = (
        f"POST /v1/segment HTTP/1.1\r\nhost: pomona\r\ncontent-type: image/jpeg\r\ncontent-length: {sent + 1}\r\n\r\n"
    ).encode()
    return _half_sent(server, 61, head, sent)


def large_headers(server: Attacked, scale: float) -> Answers:
    """Open 24 connections and send 100 MiB of a header on each."""
    head = b"GET /v1/models HTTP/1.1\r\nhost: pomona\r\nx-large: "
    return _half_sent(server, max(1, round(24 * scale)), head, round(100 * MIB * scale))


def large_trailers(server: Attacked, scale: float) -> Answers:
    """Send a chunked body that ends in a trailer of 100 MiB."""
    head = (
        b"POST /v1/segment HTTP/1.1\r\nhost: pomona\r\ncontent-type: image/jpeg\r\ntransfer-encoding: chunked\r\n\r\n"
        b"1\r\nx\r\n0\r\nx-large: "
    )
    return _half_sent(server, max(1, round(24 * scale)), head, round(100 * MIB * scale))


def many_fields(server: Attacked, scale: float) -> Answers:
    """Send messages of millions of empty prompts of two bytes."""
    message = pb.SegmentRequest(image=b"x").SerializeToString() + b"\x32\x00" * round(15_000_000 * scale)
    return Counter([call(server, "Segment", message)])


def compressed_message(server: Attacked, scale: float) -> Answers:
    """Send a message of 3 MB that unpacks to 3 GiB, inside the method's type."""
    return Counter([call(server, "Segment", _zeros(round(3072 * MIB * scale)), compressed=True)])


def large_metadata(server: Attacked, scale: float) -> Answers:
    """Send metadata of 8 MiB with a call."""
    return Counter([call(server, "Segment", b"", metadata=(("x-large", "m" * round(8 * MIB * scale)),))])


def large_frames(server: Attacked, scale: float) -> Answers:
    """Send a stream of 64 frames of 30 MiB, all in flight at a time."""
    frame = padded_jpeg(SMALL, round(30 * MIB * max(scale, 0.03)))
    request = pb.SegmentRequest(
        image=frame, model=MODEL, prompts=[pb.Prompt(points=[pb.Point(x=600, y=400)], multimask=False)]
    )

    def messages() -> Iterator[bytes]:
        settings = pb.StreamSettings(max_in_flight=64)
        yield pb.SegmentStreamRequest(settings=settings).SerializeToString()
        for number in range(max(1, round(PROMPTS * scale))):
            yield pb.SegmentStreamRequest(request=request, frame=pb.Frame(frame_id=str(number))).SerializeToString()

    answers: Answers = Counter()
    with _channel(server) as channel:
        stream: Any = channel.stream_stream(f"/{SEGMENTATION.full_name}/SegmentStream")
        try:
            for raw in stream(messages(), timeout=_PATIENCE_S):
                reply = pb.SegmentStreamResponse.FromString(raw)
                answers[reply.problem.code or "answered"] += 1
        except grpc.RpcError as error:
            answers[error.code().name] += 1
    return answers


def call(
    server: Attacked,
    method: str,
    message: bytes,
    *,
    compressed: bool = False,
    metadata: tuple[tuple[str, str], ...] = (),
) -> str:
    """Call a method of the service with the bytes of a message; return the status."""
    with _channel(server) as channel:
        compression = grpc.Compression.Gzip if compressed else None
        send: Any = channel.unary_unary(f"/{SEGMENTATION.full_name}/{method}")
        try:
            send(message, timeout=_PATIENCE_S, compression=compression, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def hostile_images(server: Attacked, scale: float) -> Answers:
    """Upload every hostile image, six at a time."""
    files = [make() for make in (*HOSTILE.values(),)[: max(1, round(len(HOSTILE) * scale))]]

    def send(number: int) -> str:
        try:
            with httpx.Client(timeout=_PATIENCE_S) as client:
                headers = {"content-type": "image/jpeg"}
                answer = client.post(f"{server.address}/v1/semantic", content=files[number], headers=headers)
                return str(answer.status_code)
        except httpx.TransportError as error:
            return type(error).__name__

    with concurrent.futures.ThreadPoolExecutor(6) as callers:
        return Counter(callers.map(send, range(len(files))))


def slow_callers(server: Attacked, scale: float) -> Answers:
    """Hold 900 connections: without a request, with half of one, or with answers that are never read."""
    ask = b"GET /static_content/swagger-ui-bundle.js HTTP/1.1\r\nhost: pomona\r\n\r\n"
    beginnings = (b"", b"POST /v1/segment HTTP/1.1\r\nhost: po", ask * 15)
    answers: Answers = Counter()
    with contextlib.ExitStack() as stack:
        held = []
        for number in range(max(3, round(900 * scale))):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            try:
                connection.sendall(beginnings[number % 3])
            except OSError:
                answers["closed at once"] += 1
            else:
                held.append(connection)
        time.sleep(_SLOW_S)
        with httpx.Client(timeout=10) as client:
            answers[f"/livez {client.get(f'{server.address}/livez').status_code}"] += 1
        for connection in held:
            answers["closed" if _is_closed(connection) else "open"] += 1
    return answers


def _is_closed(connection: socket.socket) -> bool:
    """Return whether the other side closed a connection, after all that it sent."""
    connection.settimeout(0.05)
    try:
        while connection.recv(MIB):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def _channel(server: Attacked) -> grpc.Channel:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options)


def _together(count: int, send: Callable[[int], str]) -> Answers:
    with concurrent.futures.ThreadPoolExecutor(count) as callers:
        return Counter(callers.map(send, range(count)))


def _half_sent(server: Attacked, connections: int, head: bytes, nbytes: int, *, hold_s: float = 5.0) -> Answers:
    """Send the beginnings of requests, all at a time and as fast as they are taken, then hold them open.

    Returns:
        Status lines that came, by status; "open" where none did, "closed" where the server just closed.
    """
    until = time.monotonic() + hold_s
    block = b"a" * MIB

    def send(_: int) -> str:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.settimeout(0.5)
            left = nbytes
            try:
                connection.sendall(head)
                while left > 0 and time.monotonic() < until:
                    try:
                        left -= connection.send(block[:left])
                    except TimeoutError:
                        continue  # the server does not take more for now
                while time.monotonic() < until:
                    try:
                        answer = connection.recv(64)
                    except TimeoutError:
                        continue
                    return answer.split(b" ")[1].decode() if answer else "closed"
            except OSError:
                return "closed"
            return "open"

    return _together(connections, send)


def _zeros(nbytes: int) -> bytes:
    """Return a message whose first field is so many zeros."""
    length, digits = nbytes, b""
    while length > 127:
        digits += bytes([length & 127 | 128])
        length >>= 7
    return b"\x0a" + digits + bytes([length]) + bytes(nbytes)


ATTACKS: Final[Mapping[str, Attack]] = {
    "12 MP, 64 points x 3 masks, RLE": functools.partial(many_masks, size=LARGE, mask_format="rle"),
    "50 MP, 64 points x 3 masks, RLE": functools.partial(many_masks, size=GREATEST, mask_format="rle"),
    "50 MP, 64 points x 3 masks, PNG": functools.partial(many_masks, size=GREATEST, mask_format="png"),
    "50 MP, 64 points x 3 masks, polygons": functools.partial(many_masks, size=GREATEST, mask_format="polygons"),
    "64 mask prompts of 50 MP, image of 1 MP": large_mask_prompts,
    "64 mask prompts of 50 MP, image of 50 MP": legal_mask_prompts,
    "JSON of 9 million empty prompts": many_values,
    "4 x semantic, PNG and overlay of 50 MP": overlays,
    "61 unfinished uploads of 31 MiB": unfinished_uploads,
    "24 headers of 100 MiB": large_headers,
    "24 trailers of 100 MiB": large_trailers,
    "gRPC: 15 million empty prompts": many_fields,
    "gRPC: 3 MB that unpack to 3 GiB": compressed_message,
    "gRPC: metadata of 8 MiB": large_metadata,
    "gRPC: stream of 64 frames of 30 MiB": large_frames,
    "21 hostile images, six at a time": hostile_images,
    "900 slow callers": slow_callers,
}
