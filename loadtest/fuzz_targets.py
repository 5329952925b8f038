"""What is fuzzed: readers of untrusted bytes, with valid inputs to begin from.

Each reader runs in this process, on what it would be given by a door, and may raise Pomona's own errors only.
"""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import PIL.Image
from google.protobuf.message import DecodeError, Message
from PIL import ImageCms

from models import images, masks
from models.errors import ImageError, MaskError, PomonaError
from service.api import schema
from service.api.parsing import parse_json
from service.grpc.codec import read_request
from service.oip import grpc as oip_grpc
from service.oip.http import json_length, read_body
from service.proto.generated.inference import open_inference_pb2 as oip_pb
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from service.settings import Settings

MAX_PIXELS: Final = 1_000_000

_ODD_NUMBERS: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_ODD_JSON: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 1.5, 1e308, -1e-308, 2**63, 2**200, "", "a", "\0", "💧" * 9, [], {}, [[]], [None], [[1, 2, 3]],
    float("nan"), float("inf"), "rle", [0, 0, 1, 1], [[1, 1]], {"size": [1, 1], "counts": "1"}, [1e9, 1e9, -1, -1],
)  # fmt: skip


class Violation(Exception):
    """A reader did what it must not, other than raising a foreign error."""


@dataclass(frozen=True, slots=True)
class Target:
    """A reader.

    Attributes:
        seeds: returns valid inputs.
        mutate: returns a changed input, given all seeds and a source of chance.
        read: reads an input.
        allowed: errors that it may raise.
    """

    seeds: Callable[[], Sequence[bytes]]
    mutate: Callable[[Sequence[bytes], random.Random], bytes]
    read: Callable[[bytes], None]
    allowed: tuple[type[Exception], ...]


# Mutations


def mutate_bytes(seeds: Sequence[bytes], dice: random.Random) -> bytes:
    """Change a few bytes of a seed: near its start, where formats say what follows, as often as anywhere."""
    data = bytearray(dice.choice(seeds))
    for _ in range(dice.choice((1, 1, 1, 2, 4, 16))):
        near = min(len(data), dice.choice((64, 512, 1 << 30)))
        at = dice.randrange(near + 1)
        match dice.randrange(9):
            case 0 | 1 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 2 if data:
                data[at % len(data)] = dice.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, dice.randrange(256)))
            case 3 | 4:
                form = dice.choice(("<H", ">H", "<L", ">L", "B"))
                number = dice.choice(_ODD_NUMBERS) & (1 << 8 * struct.calcsize(form)) - 1
                data[at : at + struct.calcsize(form)] = struct.pack(form, number)
            case 5:
                del data[at : at + dice.choice((1, 2, 4, 12, 100))]
            case 6:
                data[at:at] = dice.randbytes(dice.choice((1, 2, 4, 12, 100)))
            case 7:
                part = data[at : at + dice.randrange(1, 400)]
                to = dice.randrange(len(data) + 1)
                data[to:to] = part * dice.choice((1, 1, 2, 50))
            case _:
                other = dice.choice(seeds)
                start = dice.randrange(len(other) + 1)
                data[at : at + dice.randrange(200)] = other[start : start + dice.randrange(200)]
    if dice.random() < 0.1:
        del data[dice.randrange(len(data) + 1) :]
    return bytes(data)


def mutate_image(seeds: Sequence[bytes], dice: random.Random) -> bytes:
    """Change a few bytes of an image; checksums of a PNG are set right again, or it would be refused for them."""
    data = mutate_bytes(seeds, dice)
    if data.startswith(b"\x89PNG") and dice.random() < 0.8:
        return _with_checksums(data)
    return data


def mutate_json(seeds: Sequence[bytes], dice: random.Random) -> bytes:
    """Put odd values into a JSON document, or change its bytes."""
    if dice.random() < 0.2:
        return mutate_bytes(seeds, dice)
    document = json.loads(dice.choice(seeds))
    for _ in range(dice.choice((1, 1, 2, 5))):
        document = _replace_somewhere(document, dice)
    return json.dumps(document).encode()


def mutate_body(seeds: Sequence[bytes], dice: random.Random) -> bytes:
    """Change the JSON of a body and put its length right, or change its bytes."""
    if dice.random() < 0.3:
        return mutate_bytes(seeds, dice)
    length, _, body = dice.choice(seeds).partition(b"\n")
    text, rest = body[: int(length)], body[int(length) :]
    text = mutate_json([text], dice)
    return b"%d\n" % len(text) + text + rest


def _replace_somewhere(value: Any, dice: random.Random) -> Any:
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(sorted(value))
        match dice.randrange(8):
            case 0:
                return {other: kept for other, kept in value.items() if other != key}
            case 1:
                return value | {key + dice.choice("_a "): value[key]}
            case _:
                return value | {key: _replace_somewhere(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.85:
        at = dice.randrange(len(value))
        if dice.randrange(6) == 0:
            return value * dice.choice((2, 70))
        return [*value[:at], _replace_somewhere(value[at], dice), *value[at + 1 :]]
    return dice.choice(_ODD_JSON)


def _with_checksums(data: bytes) -> bytes:
    """Return a PNG whose chunks, as far as their lengths lead, have the right checksums."""
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        end = at + 8 + int.from_bytes(fixed[at : at + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = zlib.crc32(fixed[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(fixed)


# Seeds


@cache
def image_seeds() -> tuple[bytes, ...]:
    """Return small images of every format, with EXIF and ICC profiles where they have them."""
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8))
    plain = PIL.Image.radial_gradient("L").resize((53, 37)).convert("RGB")
    exif = PIL.Image.Exif()
    exif[274], exif[271] = 6, "Camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = PIL.Image.fromarray(np.arange(37 * 53, dtype=np.uint16).reshape(37, 53))
    rich: dict[str, Any] = {"exif": exif, "icc_profile": profile}
    palette = plain.quantize(16)
    wanted: list[tuple[PIL.Image.Image, str, dict[str, Any]]] = [
        *((noise, "JPEG", {"progressive": scans, "quality": 60}) for scans in (True, False)),
        *((plain, "JPEG", {"progressive": scans, "quality": 60}) for scans in (True, False)),
        (plain, "JPEG", rich),
        (plain, "JPEG", {"progressive": True, "restart_marker_rows": 1}),
        *((plain.convert(mode), "JPEG", {}) for mode in ("L", "CMYK")),
        (plain, "MPO", {"save_all": True, "append_images": [noise]}),
        *((plain.convert(mode), "PNG", {}) for mode in ("1", "L", "LA", "RGB", "RGBA")),
        (palette, "PNG", {"transparency": bytes(range(16))}),
        (plain, "PNG", rich),
        (wide, "PNG", {}),
        (plain, "PNG", {"save_all": True, "append_images": [noise]}),
        (plain, "WEBP", rich),
        (plain.convert("RGBA"), "WEBP", {"lossless": True}),
        (noise, "WEBP", {}),
        (plain, "WEBP", {"save_all": True, "append_images": [noise]}),
        *((plain.convert(mode), "BMP", {}) for mode in ("1", "L", "RGB")),
        (palette, "BMP", {}),
        *((plain.convert(mode), "TIFF", {}) for mode in ("1", "L", "RGB", "RGBA", "CMYK")),
        *((plain, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        *((plain, "TIFF", {"compression": name}) for name in ("packbits", "zstd", "lzma")),
        (plain.convert("1"), "TIFF", {"compression": "group4"}),
        (plain, "TIFF", {"tile": (16, 16), "compression": "tiff_lzw", **rich}),
        (wide, "TIFF", {}),
        (palette, "TIFF", {}),
        (plain, "TIFF", {"big_tiff": True}),
    ]  # fmt: skip
    files = []
    for image, kind, options in wanted:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    head = struct.pack("<IiiHHIIiiII", 40, 53, 37, 1, 8, 1, 6, 0, 0, 256, 0)
    runs = b"\x35\7\0\0\0\2\3\1\0\3abc\0\0\1"
    return (*files, struct.pack("<2sIHHI", b"BM", 0, 0, 0, 1078) + head + bytes(range(256)) * 4 + runs)


def _json_seeds() -> tuple[bytes, ...]:
    counts = masks.encode_rle(np.eye(9, dtype=bool)).counts
    prompt = {"points": [[3, 4], [5, 6]], "labels": [1, 0], "box": [1, 2, 8, 9], "multimask": False}
    shared = {"input_size": 512, "padding": "none", "model": "mobile-sam"}
    documents: list[dict[str, Any]] = [
        {"prompts": [prompt, {"mask": {"size": [9, 9], "counts": counts}}], "format": "rle", "overlay": True, **shared},
        {"prompts": [{"mask": {"shape": [2, 2], "dtype": "float16", "data": "AAAAAAAAAAA="}}], "format": "polygons"},
        shared,
        {"overlay": True, "format": "png"},
        {"mode": "fast", "grades": [{"grade": "A", "max_infected_fraction": 0.1}], "frame_id": "7", "trigger_id": "t"},
    ]
    return tuple(json.dumps(document).encode() for document in documents)


_REQUESTS: Final[tuple[tuple[type[schema.Schema], type[Message]], ...]] = (
    (schema.SegmentRequest, pb.SegmentRequest),
    (schema.EmbedRequest, pb.EmbedRequest),
    (schema.SemanticRequest, pb.SemanticRequest),
    (schema.InspectRequest, pb.InspectRequest),
)


def _message_seeds() -> tuple[bytes, ...]:
    rle = pb.RleMask(size=[9, 9], counts="PQ<")
    prompt = pb.Prompt(points=[pb.Point(x=3, y=4)], labels=[1], box=pb.Box(x0=1, y0=2, x1=8, y1=9), multimask=True)
    masked = pb.Prompt(mask=pb.MaskPrompt(rle=rle))
    found: list[Message] = [
        pb.SegmentRequest(image=b"image", prompts=[prompt, masked], model="mobile-sam", overlay=True),
        pb.EmbedRequest(image=b"image", model="mobile-sam"),
        pb.SemanticRequest(image=b"image", overlay=True),
        pb.InspectRequest(image=b"image", frame_id="7", captured_at_ns=5),
    ]
    return tuple(bytes((number,)) + message.SerializeToString() for number, message in enumerate(found))


def _oip_seeds() -> tuple[bytes, ...]:
    """Bodies, each after the bytes of its JSON as text and a line feed."""
    pixels = bytes(range(36))
    image = {"name": "image", "datatype": "UINT8", "shape": [3, 4, 3]}
    points = {"name": "points", "datatype": "FP32", "shape": [1, 1, 2], "data": [1, 2]}
    binary = {"inputs": [{**image, "parameters": {"binary_data_size": len(pixels)}}, points], "id": "7"}
    listed = {
        "inputs": [{**image, "data": list(pixels)}, points],
        "outputs": [{"name": "masks", "parameters": {"binary_data": True}}],
        "parameters": {"mask_format": "rle"},
    }
    found = [(json.dumps(binary).encode(), pixels), (json.dumps(listed).encode(), b"")]
    return tuple(b"%d\n" % len(text) + text + rest for text, rest in found)


def _oip_message_seeds() -> tuple[bytes, ...]:
    tensor = oip_pb.ModelInferRequest.InferInputTensor
    raw = oip_pb.ModelInferRequest(
        model_name="mobile-sam",
        inputs=[tensor(name="image", datatype="UINT8", shape=[3, 4, 3])],
        raw_input_contents=[bytes(36)],
        outputs=[oip_pb.ModelInferRequest.InferRequestedOutputTensor(name="masks")],
    )
    listed = oip_pb.ModelInferRequest(
        model_name="mobile-sam",
        inputs=[
            tensor(
                name="points",
                datatype="FP32",
                shape=[1, 1, 2],
                contents=oip_pb.InferTensorContents(fp32_contents=[1, 2]),
            )
        ],
        parameters={"mask_format": oip_pb.InferParameter(string_param="rle")},
    )
    return raw.SerializeToString(), listed.SerializeToString()


def _rle_seeds() -> tuple[bytes, ...]:
    """Height, width and counts of masks, and logits, as text."""
    rows, columns = np.mgrid[:40, :60]
    found = [masks.encode_rle(mask) for mask in (rows > columns, rows * columns % 7 == 0, rows < 0, rows >= 0)]
    return tuple(b"%d %d %s" % (*rle.size, rle.counts.encode()) for rle in found)


def _logits_seeds() -> tuple[bytes, ...]:
    """Height, width and values."""
    return bytes((4, 4)) + bytes(32), bytes((1, 9)) + b"\0\x3c" * 9


# Readers


def _read_image(data: bytes) -> None:
    """Read size and pixels, which must agree."""
    failed: ImageError | None = None
    try:
        size = images.read_size(data, max_pixels=MAX_PIXELS)
    except ImageError as error:
        failed = error
    try:
        quick = images.read_size_quickly(data, max_pixels=MAX_PIXELS)
    except ImageError as error:
        if failed is None or type(error) is not type(failed):
            raise Violation(f"at once {type(error).__name__}, else {failed!r}") from error
    else:
        if quick is not None and (failed is not None or quick != size):
            raise Violation(f"size {quick} at once, else {failed or size}")
    decoded = images.decode(data, max_pixels=MAX_PIXELS)
    if failed is not None or decoded.size != size:
        raise Violation(f"decoded to {decoded.size}, size read as {failed or size}")


def _read_json(data: bytes) -> None:
    refusals = []
    for model, _ in _REQUESTS:
        try:
            parse_json(data, model, Settings().max_values)
        except PomonaError as error:
            refusals.append(error)
    if len(refusals) == len(_REQUESTS):
        raise refusals[0]


def _read_message(data: bytes) -> None:
    model, message = _REQUESTS[data[0] % len(_REQUESTS) if data else 0]
    try:
        parsed = message.FromString(data[1:])
    except DecodeError:
        return
    read_request(parsed, model)


def _read_oip(data: bytes) -> None:
    given, _, body = data.partition(b"\n")
    read_body(body, json_length(given.decode("latin-1"), len(body)))


def _read_oip_message(data: bytes) -> None:
    try:
        parsed = oip_pb.ModelInferRequest.FromString(data)
    except DecodeError:
        return
    oip_grpc.read_request(parsed)


def _read_mask(data: bytes) -> None:
    found = re.match(rb"(-?\d{1,9}) (-?\d{1,9}) ", data)
    height, width = (int(found[1]), int(found[2])) if found else (40, 60)
    counts = data[found.end() :] if found else data
    masks.decode_rle(masks.Rle((height, width), counts.decode("latin-1")), max_pixels=MAX_PIXELS)


def _read_logits(data: bytes) -> None:
    shape = (data[0], data[1]) if len(data) > 1 else (0, 0)
    masks.decode_logits(masks.EncodedLogits(shape, "float16", data[2:]))


TARGETS: Final[dict[str, Target]] = {
    "images": Target(image_seeds, mutate_image, _read_image, (ImageError,)),
    "JSON": Target(_json_seeds, mutate_json, _read_json, (PomonaError,)),
    "gRPC messages": Target(_message_seeds, mutate_bytes, _read_message, (PomonaError,)),
    "OIP bodies": Target(_oip_seeds, mutate_body, _read_oip, (PomonaError,)),
    "OIP messages": Target(_oip_message_seeds, mutate_bytes, _read_oip_message, (PomonaError,)),
    "RLE": Target(_rle_seeds, mutate_bytes, _read_mask, (MaskError,)),
    "logits": Target(_logits_seeds, mutate_bytes, _read_logits, (MaskError,)),
}
