"""Calls that are refused, each with its code: what HTTP refuses, as far as a message can say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from models.masks import encode_rle
from models.types import BinaryMask, Size
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.grpc_door import BOX, IMAGE, PEEL, POINT
from tests.contract.refusals import gif
from tests.fakes import LOADED, LOADED_UNET, NOT_LOADED, OTHER_UNET, SECOND, image_bytes, rectangle


@dataclass(frozen=True)
class Refusal:
    """A call that is refused: with this code, and a detail that says this."""

    name: str
    code: str
    says: str
    request: Any
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def method(self) -> str:
        return type(self.request).__name__.removesuffix("Request")


def segment(*prompts: pb.Prompt, **fields: Any) -> pb.SegmentRequest:
    source = {} if "image_id" in fields else {"image": IMAGE}
    return pb.SegmentRequest(prompts=prompts, **source | fields)


def rle(mask: BinaryMask, **changes: Any) -> pb.RleMask:
    height, width = mask.shape
    return pb.RleMask(**{"height": height, "width": width, "counts": encode_rle(mask).counts.encode()} | changes)


def logits(**changes: Any) -> pb.LogitsMask:
    fields: dict[str, Any] = {"height": 256, "width": 256, "data": bytes(2 * 256 * 256)}
    return pb.LogitsMask(**fields | changes)


def odd(number: int) -> Any:
    """A number that an enumeration does not have, or does not have here."""
    return number


def point(x: float, y: float, **fields: Any) -> pb.Prompt:
    return pb.Prompt(points=[pb.Point(x=x, y=y, **fields)])


def box(x0: float, y0: float, x1: float, y1: float) -> pb.Prompt:
    return pb.Prompt(box=pb.Box(x0=x0, y0=y0, x1=x1, y1=y1))


def grades(*given: tuple[str, float]) -> list[pb.Grade]:
    return [pb.Grade(grade=name, max_infected_fraction=most) for name, most in given]


_GUESS: Final = rectangle(0, 0, 4, 4)

SEGMENT: Final = [
    Refusal("nothing at all", "no_image", "image_id", pb.SegmentRequest()),
    Refusal("an id that was never seen", "unknown_image_id", "send it again", segment(POINT, image_id="0" * 32)),
    Refusal("an overlay without pixels", "malformed_request", "overlay", segment(POINT, image_id="0", overlay=True)),
    Refusal("no prompts", "no_prompt", "no prompts", segment()),
    Refusal("an empty prompt", "no_prompt", "prompts[1]", segment(POINT, pb.Prompt())),
    Refusal(
        "an unknown label",
        "malformed_prompt",
        "labels[0] must be 1 (foreground) or 0 (background), got 7",
        segment(point(1, 1, label=7)),
    ),
    Refusal("a label of the model's own", "malformed_prompt", "got -1", segment(point(1, 1, label=-1))),
    Refusal("an empty box", "malformed_prompt", "x0 < x1", segment(box(8, 8, 8, 16))),
    Refusal("not a number", "malformed_prompt", "finite", segment(point(float("nan"), 1))),
    Refusal("an endless box", "malformed_prompt", "finite", segment(box(0, 0, float("inf"), 1))),
    Refusal(
        "a mask of another size",
        "malformed_prompt",
        "must have 128 x 96 cells",
        segment(pb.Prompt(rle=rle(rectangle(0, 0, 4, 4, Size(96, 127))))),
    ),
    Refusal("odd characters", "malformed_prompt", "counts", segment(pb.Prompt(rle=rle(_GUESS, counts=b"!")))),
    Refusal("bytes beyond ASCII", "malformed_prompt", "ASCII", segment(pb.Prompt(rle=rle(_GUESS, counts=b"\xff")))),
    Refusal("RLE not adding up", "malformed_prompt", "add up", segment(pb.Prompt(rle=rle(_GUESS, counts=b"1")))),
    Refusal(
        "RLE of more than the limit",
        "malformed_prompt",
        "at most 100000 pixels",
        segment(pb.Prompt(rle=pb.RleMask(height=100_000, width=100_000, counts=b"0"))),
    ),
    Refusal("a mask of nothing", "malformed_prompt", "prompts[1].mask", segment(POINT, pb.Prompt(rle=pb.RleMask()))),
    Refusal("short logits", "malformed_prompt", "131072", segment(pb.Prompt(logits=logits(data=b"\0\0\0")))),
    Refusal("wide logits", "malformed_prompt", "1 to 256", segment(pb.Prompt(logits=logits(height=4, width=257)))),
    Refusal(
        "logits that are not finite",
        "malformed_prompt",
        "must be finite",
        segment(pb.Prompt(logits=logits(data=b"\x00\x7e" * 65536))),
    ),
    Refusal(
        "logits of a square for an image that was not padded to one",
        "malformed_prompt",
        "got 256 x 256",
        segment(pb.Prompt(logits=logits(data=np.zeros(65536, "<f2").tobytes()))),
    ),
    Refusal("a point outside", "prompt_outside_image", "(128, 48)", segment(point(128, 48))),
    Refusal("a box that reaches out", "prompt_outside_image", "128 x 96", segment(box(0, 0, 128, 97))),
    Refusal("prompts", "too_many_prompts", "at most 3", segment(*[POINT] * 4)),
    Refusal("points", "too_many_prompts", "at most 4", segment(pb.Prompt(points=[pb.Point(x=1, y=1)] * 5))),
    Refusal("model", "unknown_model", "'plum-sam'", segment(POINT, model="plum-sam")),
    Refusal("model of the catalogue", "model_not_loaded", "melon-sam", segment(POINT, model=NOT_LOADED.name)),
    Refusal("a U-Net", "wrong_model_family", "peel-unet is a U-Net", segment(POINT, model=LOADED_UNET.name)),
    Refusal("format", "unsupported_format", "MASK_FORMAT_LOGITS", segment(POINT, format=9)),
    Refusal("input size", "unsupported_input", "input_size", segment(POINT, input_size=9)),
    Refusal("padding", "unsupported_input", "padding", segment(POINT, padding=9)),
    Refusal(
        "an input size that the model does not take",
        "unsupported_input",
        "1024 pixels",
        segment(POINT, model=SECOND.name, input_size=pb.INPUT_SIZE_512),
    ),
    *(
        Refusal(f"deadline {text!r}", "malformed_request", "X-Deadline-Ms", segment(BOX), (("x-deadline-ms", text),))
        for text in ("soon", "0", "-5", "nan", "inf", "3600001", "")
    ),
]

_BAD_IMAGES: Final = [
    ("text", "not_an_image", "no image format", b"an orange"),
    ("no bytes", "not_an_image", "no bytes", b""),
    ("a cut PNG", "truncated_image", "whole file", IMAGE[:-40]),
    ("a cut JPEG", "truncated_image", "JPEG", image_bytes(file_format="JPEG")[:400]),
    ("a GIF", "unsupported_image_format", "GIF", gif()),
    ("pixels", "too_many_pixels", "401 x 250", image_bytes(size=Size(250, 401))),
]

IMAGES: Final = [
    Refusal(name, code, says, request)
    for name, code, says, data in _BAD_IMAGES
    for request in (
        segment(POINT, image=data),
        pb.SemanticRequest(image=data),
        pb.InspectRequest(image=data),
        pb.EmbedRequest(image=data),
    )
]

OTHERS: Final = [
    Refusal("nothing to embed", "no_image", "image", pb.EmbedRequest()),
    Refusal("model to embed", "unknown_model", "'plum-sam'", pb.EmbedRequest(image=IMAGE, model="plum-sam")),
    Refusal("size to embed", "unsupported_input", "input_size", pb.EmbedRequest(image=IMAGE, input_size=odd(7))),
    Refusal("nothing to classify", "no_image", "image", pb.SemanticRequest()),
    Refusal("logits", "unsupported_format", "MASK_FORMAT_RLE", pb.SemanticRequest(image=PEEL, format=odd(4))),
    Refusal("a SAM", "wrong_model_family", "orange-sam is a SAM", pb.SemanticRequest(image=PEEL, model=LOADED.name)),
    Refusal("U-Net", "model_not_loaded", "rind-unet", pb.SemanticRequest(image=PEEL, model=OTHER_UNET.name)),
    Refusal("nothing to inspect", "no_image", "image", pb.InspectRequest()),
    Refusal("logits of fruits", "unsupported_format", "4", pb.InspectRequest(image=PEEL, format=odd(4))),
    Refusal("mode", "malformed_request", "mode", pb.InspectRequest(image=PEEL, mode=odd(9))),
    Refusal("U-Net to inspect", "unknown_model", "'plum'", pb.InspectRequest(image=PEEL, model="plum")),
    Refusal("SAM to inspect", "unknown_model", "'plum'", pb.InspectRequest(image=PEEL, sam_model="plum")),
    Refusal(
        "grades that fall",
        "malformed_request",
        "rising numbers",
        pb.InspectRequest(image=PEEL, grades=grades(("A", 0.2), ("B", 0.1))),
    ),
    Refusal(
        "a grade beyond all",
        "malformed_request",
        "grades[1].max_infected_fraction",
        pb.InspectRequest(image=PEEL, grades=grades(("A", 0.2), ("B", 1.5))),
    ),
    Refusal(
        "a grade without a name",
        "malformed_request",
        "grades[0].grade",
        pb.InspectRequest(image=PEEL, grades=grades(("", 0.2))),
    ),
    Refusal(
        "a long frame id",
        "malformed_request",
        "frame_id has 129",
        pb.InspectRequest(image=PEEL, frame=pb.Frame(frame_id="7" * 129)),
    ),
    Refusal(
        "a long trigger id",
        "malformed_request",
        "trigger_id has 129",
        pb.InspectRequest(image=PEEL, frame=pb.Frame(trigger_id="7" * 129)),
    ),
    Refusal(
        "a time before all",
        "malformed_request",
        "captured_at_ns is -1",
        pb.InspectRequest(image=PEEL, frame=pb.Frame(captured_at_ns=-1)),
    ),
]

REFUSALS: Final = [*SEGMENT, *IMAGES, *OTHERS]
