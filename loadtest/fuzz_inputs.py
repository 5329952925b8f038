"""Inputs of the fuzzing: valid ones to begin from, and changes in a few places."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import PIL.Image
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from PIL import ImageCms

from models import masks
from models.letterbox import LOGITS_STRIDE, letterbox_for
from models.types import Size
from service.proto.generated.inference import open_inference_pb2 as oip_pb
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

_ODD_NUMBERS: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_ODD_JSON: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 1.5, 1e308, -1e-308, 2**63, 2**200, "", "a", "\0", "💧" * 9, [], {}, [[]], [None], [[1, 2, 3]],
    float("nan"), float("inf"), "rle", [0, 0, 1, 1], [[1, 1]], {"size": [1, 1], "counts": "1"}, [1e9, 1e9, -1, -1],
)  # fmt: skip


# Mutations


_LONG: Final = 100
_WORDS: Final = ("rle", "png", "polygons", "logits", "none", "square", "auto", "fast", "accurate", "FP32", "BYTES", "")


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
    if dice.random() < 0.15:
        return mutate_bytes(seeds, dice)
    length, _, body = dice.choice(seeds).partition(b"\n")
    text, rest = body[: int(length)], body[int(length) :]
    text = mutate_json([text], dice)
    return b"%d\n" % len(text) + text + rest


def mutate_rle(seeds: Sequence[bytes], dice: random.Random) -> bytes:
    """Write runs that fill a mask, of any lengths, or change the bytes of a seed."""
    if dice.random() < 0.4:
        return mutate_bytes(seeds, dice)
    height, width = dice.choice(((40, 60), (1, 1), (1, 900), (900, 1), (7, 13), (999, 1000)))
    cuts = sorted(dice.choices(range(height * width + 1), k=dice.choice((0, 1, 2, 5, 50))))
    runs = [end - start for start, end in pairwise([0, *cuts, height * width])]
    text = run_text(runs)
    if dice.random() < 0.2:
        text = mutate_bytes([text], dice)
    return b"%d %d %s" % (height, width, text)


def run_text(runs: Sequence[int]) -> bytes:
    """Write runs in COCO's characters: groups of five bits, those after the second as differences to two before."""
    text = bytearray()
    for number, run in enumerate(runs):
        rest = run - runs[number - 2] if number > 2 else run
        while True:
            bits, rest = rest & 31, rest >> 5
            over = rest == (-1 if bits & 16 else 0)
            text.append(48 + (bits if over else bits | 32))
            if over:
                break
    return bytes(text)


def change_message(message: Message, dice: random.Random) -> None:
    """Change one field of a message or of one in it: a value at a limit, an element more or less, nothing at all."""
    given = [field for field, _ in message.ListFields()]
    field = dice.choice(given if given and dice.random() < 0.8 else message.DESCRIPTOR.fields)
    if field.is_repeated:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            message.ClearField(field.name)
        else:
            _change_list(getattr(message, field.name), field, dice)
    elif dice.random() < 0.1:
        message.ClearField(field.name)
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()
        change_message(inner, dice)
    else:
        setattr(message, field.name, _odd_value(field, getattr(message, field.name), dice))


def _change_list(values: Any, field: FieldDescriptor, dice: random.Random) -> None:
    at = dice.randrange(len(values)) if values else None
    match dice.randrange(6):
        case 0 if at is not None:
            del values[at]
        case 1 if at is not None:
            values.extend([values[at]] * dice.choice((1, 70)))
        case _ if field.message_type is not None:
            change_message(values.add() if at is None else values[at], dice)
        case _:
            value = _odd_value(field, None if at is None else values[at], dice)
            if at is None or dice.random() < 0.3:
                values.append(value)
            else:
                values[at] = value


def _odd_value(field: FieldDescriptor, value: Any, dice: random.Random) -> Any:
    kinds = FieldDescriptor
    if field.cpp_type in (kinds.CPPTYPE_DOUBLE, kinds.CPPTYPE_FLOAT):
        return dice.choice((0.0, -1.0, 0.5, 7.25, 1e9, 3e38, -3e38, float("nan"), float("inf"), dice.uniform(0, 60)))
    if field.type == kinds.TYPE_BYTES:
        return mutate_bytes([value or b"", b"\0" * 36], dice)
    if field.type == kinds.TYPE_STRING:
        return dice.choice((value or "", "", "a", "\0", "💧" * 50, "mobile-sam", "rle", "1" * 300))
    if field.type == kinds.TYPE_BOOL:
        return not value
    bits = 31 if field.cpp_type in (kinds.CPPTYPE_INT32, kinds.CPPTYPE_ENUM) else 63
    if field.cpp_type in (kinds.CPPTYPE_UINT32, kinds.CPPTYPE_UINT64):
        return dice.choice((0, 1, 2, 3, 64, 255, (1 << (32 if field.cpp_type == kinds.CPPTYPE_UINT32 else 64)) - 1))
    return dice.choice((0, 1, 2, 3, 9, 64, -1, (1 << bits) - 1, -(1 << bits)))


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
        if dice.randrange(6) == 0 and len(value) < _LONG:  # or five changes would make a gigabyte
            return value * dice.choice((2, 70))
        return [*value[:at], _replace_somewhere(value[at], dice), *value[at + 1 :]]
    return _another(value, dice)


def _another(value: Any, dice: random.Random) -> Any:
    """Return a value of the same type, or an odd one."""
    if dice.random() < 0.3:
        return dice.choice(_ODD_JSON)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return dice.choice((0, 1, value + 1, dice.randrange(40)))
    if isinstance(value, float):
        return dice.choice((0.0, -value, dice.uniform(0, 40)))
    return dice.choice(_WORDS)


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


SEED_SIZE: Final = Size(37, 53)
"""Of the images, without EXIF orientation."""


@cache
def json_seeds(path: str) -> tuple[bytes, ...]:
    """Return valid requests of the operation of a path, on one of the images."""
    counts = masks.encode_rle(np.eye(SEED_SIZE.height, SEED_SIZE.width, dtype=bool)).counts
    prompt = {"points": [[3.5, 4], [5, 6]], "labels": [1, 0], "box": [1, 2, 8, 9], "multimask": False}
    cells = letterbox_for(SEED_SIZE, 512, "none").padded
    logits = np.full((cells.height // LOGITS_STRIDE, cells.width // LOGITS_STRIDE), 2, np.float16)
    low = {"shape": logits.shape, "dtype": "float16", "data": base64.b64encode(logits.tobytes()).decode()}
    shared = {"input_size": 512, "padding": "none", "model": "mobile-sam"}
    found: dict[str, list[dict[str, Any]]] = {
        "/v1/segment": [
            {
                "prompts": [prompt, {"mask": {"size": [SEED_SIZE.height, SEED_SIZE.width], "counts": counts}}],
                "format": "rle",
                "overlay": True,
            },
            {"prompts": [{"mask": low, "points": [[5, 5]]}], "format": "polygons", **shared},
            {"prompts": [{"points": [[30, 20]]}, {"box": [1.5, 2, 20, 30]}], "format": "logits", **shared},
            {"prompts": [prompt], "format": "png"},
        ],
        "/v1/embed": [shared, {"input_size": "auto"}],
        "/v1/semantic": [{"overlay": True, "format": "png"}, {"format": "polygons"}],
        "/v1/inspect": [
            {"mode": "fast", "grades": [{"grade": "A", "max_infected_fraction": 0.1}], "frame_id": "7"},
            {"mode": "accurate", "format": "png", "overlay": True, "trigger_id": "t", "captured_at_ns": 5},
        ],
    }
    return tuple(json.dumps(document).encode() for document in found[path])


PATHS: Final = ("/v1/segment", "/v1/embed", "/v1/semantic", "/v1/inspect")


def all_json_seeds() -> tuple[bytes, ...]:
    """Return valid requests of all operations."""
    return tuple(document for path in PATHS for document in json_seeds(path))


def messages(image: bytes) -> tuple[Message, ...]:
    """Return a valid request of each operation on an image."""
    rle = pb.RleMask(
        size=[SEED_SIZE.height, SEED_SIZE.width],
        counts=masks.encode_rle(np.eye(SEED_SIZE.height, SEED_SIZE.width, dtype=bool)).counts,
    )
    prompt = pb.Prompt(points=[pb.Point(x=3, y=4)], labels=[1], box=pb.Box(x0=1, y0=2, x1=8, y1=9), multimask=True)
    masked = pb.Prompt(mask=pb.MaskPrompt(rle=rle))
    return (
        pb.SegmentRequest(image=image, prompts=[prompt, masked], model="mobile-sam", overlay=True),
        pb.EmbedRequest(image=image, model="mobile-sam"),
        pb.SemanticRequest(image=image, overlay=True),
        pb.InspectRequest(image=image, frame_id="7", captured_at_ns=5),
    )


def message_seeds() -> tuple[bytes, ...]:
    """Return messages, each after a byte that says of which operation."""
    return tuple(bytes((number,)) + message.SerializeToString() for number, message in enumerate(messages(b"image")))


def oip_seeds() -> tuple[bytes, ...]:
    """Return bodies, each after the bytes of its JSON as text and a line feed."""
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


def oip_messages() -> tuple[oip_pb.ModelInferRequest, ...]:
    """Return valid requests of the Open Inference Protocol, raw and not."""
    tensor = oip_pb.ModelInferRequest.InferInputTensor
    points = tensor(
        name="points", datatype="FP32", shape=[1, 1, 2], contents=oip_pb.InferTensorContents(fp32_contents=[1, 2])
    )
    image = tensor(
        name="image", datatype="UINT8", shape=[3, 4, 3], contents=oip_pb.InferTensorContents(uint_contents=range(36))
    )
    raw = oip_pb.ModelInferRequest(
        model_name="mobile-sam",
        inputs=[
            tensor(name="image", datatype="UINT8", shape=[3, 4, 3]),
            tensor(name="points", datatype="FP32", shape=[1, 1, 2]),
        ],
        raw_input_contents=[bytes(36), bytes(8)],
        outputs=[oip_pb.ModelInferRequest.InferRequestedOutputTensor(name="masks")],
    )
    listed = oip_pb.ModelInferRequest(
        model_name="mobile-sam",
        inputs=[image, points],
        parameters={"mask_format": oip_pb.InferParameter(string_param="rle")},
    )
    alone = oip_pb.ModelInferRequest(model_name="unet-mobilenetv2-citrus", inputs=[image])
    return raw, listed, alone


def oip_message_seeds() -> tuple[bytes, ...]:
    """Return them as bytes."""
    return tuple(message.SerializeToString() for message in oip_messages())


def rle_seeds() -> tuple[bytes, ...]:
    """Return height, width and counts of masks as text."""
    rows, columns = np.mgrid[:40, :60]
    found = [masks.encode_rle(mask) for mask in (rows > columns, rows * columns % 7 == 0, rows < 0, rows >= 0)]
    return tuple(b"%d %d %s" % (*rle.size, rle.counts.encode()) for rle in found)


def logits_seeds() -> tuple[bytes, ...]:
    """Return height, width and values."""
    return bytes((4, 4)) + bytes(32), bytes((1, 9)) + b"\0\x3c" * 9
