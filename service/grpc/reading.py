"""Messages of callers, checked and turned into what the pipeline takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from models.errors import MalformedPrompt, MaskError, NoPrompt
from models.inspection import Grade
from models.letterbox import Padding
from models.masks import EncodedLogits, Rle, decode_logits, decode_rle
from models.types import FOREGROUND, BinaryMask, Box, Logits, Point, Prompt
from service.errors import MalformedRequest, NoImage, UnsupportedFormat, UnsupportedInput
from service.formats import MaskFormat, SemanticFormat
from service.grades import Grades
from service.grpc.frame_stream import DEFAULT_IN_FLIGHT, StreamOptions
from service.messages import (
    Capture,
    InputChoice,
    InputSize,
    InspectMode,
    InspectRequest,
    SegmentRequest,
    SemanticRequest,
)
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

T = TypeVar("T")

MAX_IN_FLIGHT: Final = 64
_LONGEST_ID: Final = 128
_GRADES: Final = TypeAdapter[Grades](Grades)

_SEMANTIC_FORMATS: Final[Mapping[int, SemanticFormat]] = {
    pb.MASK_FORMAT_UNSPECIFIED: "rle",
    pb.MASK_FORMAT_RLE: "rle",
    pb.MASK_FORMAT_PNG: "png",
    pb.MASK_FORMAT_POLYGONS: "polygons",
}
_FORMATS: Final[Mapping[int, MaskFormat]] = {**_SEMANTIC_FORMATS, pb.MASK_FORMAT_LOGITS: "logits"}
_INPUT_SIZES: Final[Mapping[int, InputSize | None]] = {
    pb.INPUT_SIZE_UNSPECIFIED: None,
    pb.INPUT_SIZE_1024: 1024,
    pb.INPUT_SIZE_768: 768,
    pb.INPUT_SIZE_512: 512,
    pb.INPUT_SIZE_AUTO: "auto",
}
_PADDINGS: Final[Mapping[int, Padding | None]] = {
    pb.PADDING_UNSPECIFIED: None,
    pb.PADDING_NONE: "none",
    pb.PADDING_SQUARE: "square",
}
_MODES: Final[Mapping[int, InspectMode]] = {
    pb.INSPECT_MODE_FAST: "fast",
    pb.INSPECT_MODE_ACCURATE: "accurate",
}
_WHEN_FULL: Final = (pb.WHEN_FULL_UNSPECIFIED, pb.WHEN_FULL_WAIT, pb.WHEN_FULL_DROP_OLDEST)


def segment_request(message: pb.SegmentRequest, *, max_pixels: int) -> SegmentRequest:
    """Build the pipeline's request; decodes mask prompts, so it belongs into a worker thread where there are any.

    Raises:
        NoImage, NoPrompt, MalformedPrompt, MaskError, UnsupportedFormat, UnsupportedInput, MalformedRequest: by what
            is wrong.
    """
    kind = message.WhichOneof("picture")
    if kind is None:
        raise NoImage("Send an image as image, or the image_id of an earlier answer.")
    if message.overlay and kind == "image_id":
        raise MalformedRequest(
            "An overlay needs the image's pixels, of which only the embedding is kept: "
            "send the image, or leave overlay out."
        )
    if not message.prompts:
        raise NoPrompt("The request has no prompts.")
    return SegmentRequest(
        prompts=[_prompt(number, prompt, max_pixels) for number, prompt in enumerate(message.prompts)],
        data=message.image if kind == "image" else None,
        image_id=message.image_id if kind == "image_id" else None,
        model=message.model or None,
        format=_format(_FORMATS, message.format),
        overlay=message.overlay,
        input=input_choice(message),
    )


def has_masks(message: pb.SegmentRequest) -> bool:
    """Whether any prompt has a mask."""
    return any(prompt.WhichOneof("mask") for prompt in message.prompts)


def input_choice(message: pb.SegmentRequest | pb.EmbedRequest) -> InputChoice:
    """What the encoder shall see.

    Raises:
        UnsupportedInput: a number that the enumeration does not have.
    """
    if message.input_size not in _INPUT_SIZES:
        raise UnsupportedInput(f"There is no input_size of the number {message.input_size}.")
    if message.padding not in _PADDINGS:
        raise UnsupportedInput(f"There is no padding of the number {message.padding}.")
    return InputChoice(_INPUT_SIZES[message.input_size], _PADDINGS[message.padding])


def semantic_request(message: pb.SemanticRequest) -> SemanticRequest:
    """Build the pipeline's request.

    Raises:
        NoImage, UnsupportedFormat: by what is wrong.
    """
    return SemanticRequest(
        image_of(message),
        model=message.model or None,
        format=_format(_SEMANTIC_FORMATS, message.format),
        overlay=message.overlay,
    )


def inspect_request(message: pb.InspectRequest) -> InspectRequest:
    """Build the pipeline's request.

    Raises:
        NoImage, UnsupportedFormat, MalformedRequest: by what is wrong.
    """
    if message.mode not in pb.InspectMode.values():
        raise MalformedRequest(f"There is no mode of the number {message.mode}.")
    return InspectRequest(
        image_of(message),
        model=message.model or None,
        sam_model=message.sam_model or None,
        mode=_MODES.get(message.mode, "auto"),
        format=_format(_SEMANTIC_FORMATS, message.format),
        grades=_grades(message.grades) if message.grades else None,
        overlay=message.overlay,
        capture=capture_of(message.frame),
    )


def image_of(message: pb.SemanticRequest | pb.InspectRequest | pb.EmbedRequest) -> bytes:
    """The image of a method that takes nothing instead.

    Raises:
        NoImage: it is not there.
    """
    if not message.HasField("image"):
        raise NoImage("Send an image as image.")
    return message.image


def capture_of(frame: pb.Frame) -> Capture:
    """What a camera says of a frame.

    Raises:
        MalformedRequest: an id that is too long, or a time below 0.
    """
    for name, value in (("frame_id", frame.frame_id), ("trigger_id", frame.trigger_id)):
        if len(value) > _LONGEST_ID:
            raise MalformedRequest(f"{name} has {len(value)} characters; at most {_LONGEST_ID} would be right.")
    if frame.captured_at_ns < 0:
        raise MalformedRequest(f"captured_at_ns is {frame.captured_at_ns}; 0 or more would be right.")
    return Capture(
        frame_id=frame.frame_id if frame.HasField("frame_id") else None,
        trigger_id=frame.trigger_id if frame.HasField("trigger_id") else None,
        captured_at_ns=frame.captured_at_ns if frame.HasField("captured_at_ns") else None,
    )


def stream_options(settings: pb.StreamSettings) -> StreamOptions:
    """How a stream behaves.

    Raises:
        MalformedRequest: it cannot behave like that.
    """
    if settings.max_in_flight > MAX_IN_FLIGHT:
        raise MalformedRequest(f"max_in_flight is {settings.max_in_flight}; 1 to {MAX_IN_FLIGHT} would be right.")
    if settings.when_full not in _WHEN_FULL:
        raise MalformedRequest(f"There is no when_full of the number {settings.when_full}.")
    newest_first = settings.when_full == pb.WHEN_FULL_DROP_OLDEST
    return StreamOptions(settings.max_in_flight or DEFAULT_IN_FLIGHT, newest_first=newest_first)


def _format(formats: Mapping[int, T], number: int) -> T:
    if number not in formats:
        offered = ", ".join(pb.MaskFormat.Name(pb.MaskFormat.ValueType(one)) for one in formats if one)
        raise UnsupportedFormat(f"format is the number {number}; {offered} would be right.")
    return formats[number]


def _grades(grades: Sequence[pb.Grade]) -> tuple[Grade, ...]:
    given = tuple({"grade": one.grade, "max_infected_fraction": one.max_infected_fraction} for one in grades)
    try:
        return tuple(grade.domain for grade in _GRADES.validate_python(given))
    except ValidationError as error:
        problem = error.errors()[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
        raise MalformedRequest(f"grades{where}: {problem['msg']}.") from error


def _prompt(number: int, prompt: pb.Prompt, max_pixels: int) -> Prompt:
    mask: BinaryMask | Logits | None = None
    kind = prompt.WhichOneof("mask")
    try:
        if kind == "rle":
            mask = decode_rle(
                Rle((prompt.rle.height, prompt.rle.width), prompt.rle.counts.decode("latin-1")), max_pixels=max_pixels
            )
        elif kind == "logits":
            encoded = prompt.logits
            mask = decode_logits(EncodedLogits((encoded.height, encoded.width), "float16", encoded.data))
    except MaskError as error:
        raise MaskError(f"prompts[{number}].mask: {error.detail}") from error
    box = prompt.box
    numbers = [box.x0, box.y0, box.x1, box.y1, *(side for point in prompt.points for side in (point.x, point.y))]
    if not all(map(math.isfinite, numbers)):
        raise MalformedPrompt(f"prompts[{number}] has a coordinate that is not finite.")
    labels = [point.label if point.HasField("label") else FOREGROUND for point in prompt.points]
    return Prompt(
        points=tuple(Point(point.x, point.y, label) for point, label in zip(prompt.points, labels, strict=True)),
        box=Box(box.x0, box.y0, box.x1, box.y1) if prompt.HasField("box") else None,
        mask=mask,
        multimask=prompt.multimask if prompt.HasField("multimask") else True,
    )
