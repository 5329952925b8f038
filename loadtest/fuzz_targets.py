"""What is fuzzed in a process: readers of untrusted bytes.

Each is called with what it would be given by a transport, and may raise Pomona's own errors only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError, Message

from loadtest import fuzz_inputs as inputs
from loadtest.answers import PASSED, Violation
from models import images, masks
from models.errors import ImageError, MaskError, PomonaError
from service.api import schema
from service.api.parsing import parse_json
from service.errors import problem_of
from service.grpc.codec import read_request
from service.oip import grpc as oip_grpc
from service.oip.http import json_length, read_body
from service.proto.generated.inference import open_inference_pb2 as oip_pb
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from service.settings import Settings

MAX_PIXELS: Final = 1_000_000
MAX_VALUES: Final = Settings.model_construct().max_values


@dataclass(frozen=True, slots=True)
class Target:
    """What inputs are given to.

    Attributes:
        make: returns the input of a number, the same each time.
        use: gives it to the target; returns `PASSED` or the code of its refusal, and raises anything else.
        share: of all inputs.
        served: whether a server must run, see `loadtest.fuzz_served`.
    """

    make: Callable[[int], bytes]
    use: Callable[[bytes], str]
    share: float
    served: bool = False


Mutate = Callable[[Sequence[bytes], random.Random], bytes]


def dice_of(name: str, number: int) -> random.Random:
    """Return the source of chance of one input."""
    return random.Random(f"{name} {number}")  # noqa: S311 (reproducible)


def _reader(
    name: str,
    share: float,
    seeds: Callable[[], Sequence[bytes]],
    mutate: Mutate,
    read: Callable[[bytes], None],
    *,
    allowed: type[PomonaError] = PomonaError,
) -> Target:
    """Return the target of a function that may raise `allowed`; its first inputs are the seeds."""

    def make(number: int) -> bytes:
        given = seeds()
        return given[number] if number < len(given) else mutate(given, dice_of(name, number))

    def use(data: bytes) -> str:
        try:
            read(data)
        except allowed as error:
            if not error.detail:
                raise Violation("an error without a detail") from error
            return problem_of(error).code
        return PASSED

    return Target(make, use, share)


_REQUESTS: Final[tuple[tuple[type[schema.Schema], type[Message]], ...]] = (
    (schema.SegmentRequest, pb.SegmentRequest),
    (schema.EmbedRequest, pb.EmbedRequest),
    (schema.SemanticRequest, pb.SemanticRequest),
    (schema.InspectRequest, pb.InspectRequest),
)


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
            parse_json(data, model, MAX_VALUES)
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


READERS: Final[Mapping[str, Target]] = {
    "images": _reader("images", 0.44, inputs.image_seeds, inputs.mutate_image, _read_image, allowed=ImageError),
    "JSON": _reader("JSON", 0.09, inputs.all_json_seeds, inputs.mutate_json, _read_json),
    "gRPC messages": _reader("gRPC messages", 0.1, inputs.message_seeds, inputs.mutate_bytes, _read_message),
    "OIP bodies": _reader("OIP bodies", 0.06, inputs.oip_seeds, inputs.mutate_body, _read_oip),
    "OIP messages": _reader("OIP messages", 0.06, inputs.oip_message_seeds, inputs.mutate_bytes, _read_oip_message),
    "RLE": _reader("RLE", 0.07, inputs.rle_seeds, inputs.mutate_rle, _read_mask, allowed=MaskError),
    "logits": _reader("logits", 0.02, inputs.logits_seeds, inputs.mutate_bytes, _read_logits, allowed=MaskError),
}
