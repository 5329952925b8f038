"""Every request and response, declared once.

HTTP reads and writes these models as JSON; gRPC converts them to the messages of the same names in
`service/proto/pomona/v1/segmentation.proto`; the OpenAPI description is generated from them. The encoded image itself
(`image`, `image_id`) travels beside the JSON, see `service.pipelines.source`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, TypeAlias

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    WithJsonSchema,
)

from models.inspection import REJECT
from models.letterbox import Padding
from models.types import PixelClass

MAX_GRADES: Final = 16
MAX_ID_LENGTH: Final = 128
"""Characters of a frame's or a trigger's id."""

_MAX_NS: Final = 2**63 - 1


def _from_base64(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"must be base64: {error}") from error


def _as_lists(polygons: Sequence[Sequence[Any]]) -> list[list[list[list[float]]]]:
    """Return polygons whose rings may be arrays, which take a tenth of the memory, as lists."""
    return [[ring.tolist() if isinstance(ring, np.ndarray) else ring for ring in rings] for rings in polygons]


Binary = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    PlainSerializer(lambda data: base64.b64encode(data).decode(), when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
"""Bytes; base64 in JSON."""

Coordinate = Annotated[float, Field(allow_inf_nan=False)]
PixelBox = tuple[int, int, int, int]
MaskFormat = Literal["rle", "png", "polygons", "logits"]
SemanticFormat = Literal["rle", "png", "polygons"]
InputSize = Literal[1024, 768, 512, "auto"]
InspectMode = Literal["fast", "accurate"]
ClassName = Literal["healthy", "infected"]

CLASS_NAMES: Final[dict[PixelClass, ClassName]] = {PixelClass.HEALTHY: "healthy", PixelClass.INFECTED: "infected"}


class Schema(BaseModel):
    """A JSON object. Unknown fields are refused, and no value is converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_by_name=True, validate_by_alias=True)


# Masks.


class RleMask(Schema):
    """A mask as COCO compressed RLE."""

    size: tuple[int, int] = Field(description="Height and width in pixels.")
    counts: str = Field(description="Runs down the columns, in COCO's characters.")


class LogitsMask(Schema):
    """The low-resolution logits of a mask, as the format `logits` returns them."""

    shape: tuple[int, int] = Field(description="Height and width: a quarter of what the encoder saw, padding included.")
    dtype: Literal["float16"] = Field(description="Little-endian.")
    data: Binary = Field(description="The values, row by row.")


class PngMask(Schema):
    """A mask as a PNG of one bit per pixel, white inside the mask."""

    png: Binary = Field(description="The file.")


class PolygonsMask(Schema):
    """A mask as polygons: each a list of rings, first the outline, then its holes."""

    polygons: Annotated[list[list[list[list[float]]]], PlainSerializer(_as_lists, when_used="json")]


EncodedMask: TypeAlias = RleMask | PngMask | PolygonsMask | LogitsMask
Outline: TypeAlias = RleMask | PngMask | PolygonsMask


def _kind_of_mask(mask: object) -> str:
    """Choose the kind a mask prompt was meant to be, so that an error is about that one alone."""
    return "logits" if isinstance(mask, LogitsMask) or (isinstance(mask, dict) and "data" in mask) else "rle"


MaskPrompt = Annotated[
    Annotated[RleMask, Tag("rle")] | Annotated[LogitsMask, Tag("logits")], Discriminator(_kind_of_mask)
]


# What every answer has.


class Image(Schema):
    """The image, after EXIF orientation."""

    id: str = Field(description="Hash of the encoded bytes; send it as image_id to prompt again.")
    width: int
    height: int


class SamModel(Schema):
    """The SAM that answered."""

    name: str
    revision: str = Field(description="First 12 hex digits of the checkpoint's SHA-256.")
    input_size: int = Field(description="Longest side in pixels at which the image was encoded.")
    padding: Padding = Field(description="How the image was padded for the encoder.")


class UnetModel(Schema):
    """The U-Net that answered."""

    name: str
    revision: str = Field(description="First 12 hex digits of the checkpoint's SHA-256.")
    input_width: int = Field(description="Width in pixels at which the network saw the image, without padding.")
    input_height: int = Field(description="Height in pixels at which the network saw the image, without padding.")


class DetectorModel(Schema):
    """The detector that answered."""

    name: str
    revision: str = Field(description="First 12 hex digits of the checkpoint's SHA-256.")
    input_width: int = Field(description="Width in pixels at which the network saw the image, without padding.")
    input_height: int = Field(description="Height in pixels at which the network saw the image, without padding.")


class Batch(Schema):
    """How many items ran together on the device, those of this request included; 0 where none of its own ran."""

    encode: int = Field(description="Images at the SAM's encoder.")
    prompt: int = Field(description="Prompts, in the largest batch with any of this request.")
    infer: int = Field(description="Images at the U-Net or the detector.")


class Timings(Schema):
    """Milliseconds; 0 for parts that the request did not have."""

    decode: float = Field(description="Image decoded and resized.")
    queue: float = Field(description="Waiting for the device.")
    encode: float = Field(description="The SAM's image encoder; 0 where the embedding was in the cache.")
    prompt: float = Field(description="The SAM's mask decoder.")
    infer: float = Field(description="The U-Net or the detector.")
    postprocess: float = Field(description="Masks upsampled, measured and encoded; overlay.")
    total: float = Field(description="From the whole request read to the answer ready.")


_SAM: Final = "Name of a SAM in the catalogue; by default the first loaded one."
_UNET: Final = "Name of a U-Net in the catalogue; by default the first loaded one."
_INPUT_SIZE: Final = (
    "Longest side in pixels for the encoder; auto takes the largest that by the learned times meets X-Deadline-Ms. "
    "By default the setting POMONA_INPUT_SIZE (1024)."
)
_PADDING: Final = (
    "none saves the encoder's work on padding; square is how SAM was trained, and stretch how SAM 2 was: to a square "
    "whatever the proportions, which is the only one for it. By default none where the model supports it."
)
_OVERLAY: Final = "PNG of the image's size, where requested."


# segment and embed.


class Prompt(Schema):
    """What to segment: points, a box, a mask, or points with a box or a mask."""

    points: list[tuple[Coordinate, Coordinate]] | None = Field(
        None, description="[x, y] in pixels of the image after EXIF orientation."
    )
    labels: list[int] | None = Field(
        None, description="One per point: 1 foreground, 0 background. By default all points are foreground."
    )
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = Field(
        None, description="[x0, y0, x1, y1], half-open."
    )
    mask: MaskPrompt | None = Field(
        None, description="An earlier guess: RLE of the image's size, or the logits of an answer."
    )
    multimask: bool = Field(default=True, description="Three masks, best first, for an ambiguous prompt; else one.")


class EmbedRequest(Schema):
    """The field `request` of `/v1/embed`."""

    model: str | None = Field(None, description=_SAM)
    input_size: InputSize | None = Field(None, description=_INPUT_SIZE)
    padding: Padding | None = Field(None, description=_PADDING)


class SegmentRequest(EmbedRequest):
    """The field `request` of `/v1/segment`."""

    prompts: list[Prompt] = Field(description="At least one; all on the same image.")
    format: MaskFormat = Field("rle", description="How masks are encoded.")
    overlay: bool = Field(
        default=False, description="Also return a PNG of the image with each prompt's best mask; needs the part image."
    )


class ScoredMask(Schema):
    """A mask and its measures."""

    mask: EncodedMask
    score: float = Field(description="Predicted IoU, about 0 to 1.")
    stability_score: float = Field(description="0 to 1: IoU of the masks at thresholds 1 above and 1 below.")
    box: PixelBox = Field(description="Tight half-open box; all 0 for an empty mask.")
    area: int = Field(description="Pixels in the mask.")


class PromptResult(Schema):
    """The masks of one prompt, best first."""

    masks: list[ScoredMask]


class EmbedResponse(Schema):
    """The answer of `/v1/embed`."""

    request_id: str
    image: Image
    model: SamModel
    batch: Batch
    timing_ms: Timings


class SegmentResponse(Schema):
    """The answer of `/v1/segment`: one result per prompt, in their order."""

    request_id: str
    image: Image
    model: SamModel
    results: list[PromptResult]
    overlay: Binary | None = Field(None, description=_OVERLAY)
    degraded: bool = Field(description="Whether input_size auto took less than the largest size to meet the deadline.")
    batch: Batch
    timing_ms: Timings


# semantic.


class SemanticRequest(Schema):
    """The field `request` of `/v1/semantic`."""

    model: str | None = Field(None, description=_UNET)
    format: SemanticFormat = Field(
        "rle", description="rle and polygons: a mask per class. png: one image of all classes, class_map."
    )
    overlay: bool = Field(default=False, description="Also return a PNG of the image with the classes drawn in.")


class ClassMask(Schema):
    """The pixels of one class."""

    pixel_class: ClassName = Field(alias="class")
    mask: RleMask | PolygonsMask | None = Field(description="Of the image's size; null with the format png.")
    area: int = Field(description="Pixels of this class.")


class Region(Schema):
    """One fruit, as the U-Net separates them."""

    pixel_class: ClassName = Field(alias="class")
    box: PixelBox = Field(description="Half-open box, to about one cell of the network's input.")
    area: int = Field(description="Pixels, to about one cell of the network's input.")
    score: float = Field(description="0 to 1: mean probability of fruit in the region.")


class SemanticResponse(Schema):
    """The answer of `/v1/semantic`."""

    request_id: str
    image: Image
    model: UnetModel
    classes: list[ClassMask] = Field(description="healthy and infected, in this order, also where there are none.")
    class_map: Binary | None = Field(
        description="Indexed PNG: 0 background, 1 healthy, 2 infected; with the format png, else null."
    )
    objects: list[Region]
    overlay: Binary | None = Field(description=_OVERLAY)
    batch: Batch
    timing_ms: Timings


# inspect.


class Grade(Schema):
    """A grade and its limit."""

    grade: str = Field(min_length=1, max_length=32, description="Name, as it appears in the answer.")
    max_infected_fraction: float = Field(
        ge=0, le=1, allow_inf_nan=False, description="Largest infected fraction of a fruit of this grade, inclusive."
    )

    def __str__(self) -> str:
        return f"{self.grade}:{self.max_infected_fraction:g}"


def _check_rising(grades: tuple[Grade, ...]) -> tuple[Grade, ...]:
    if not 1 <= len(grades) <= MAX_GRADES:
        raise ValueError(f"there must be 1 to {MAX_GRADES} grades, got {len(grades)}")
    for better, worse in pairwise(grades):
        if better.max_infected_fraction >= worse.max_infected_fraction:
            raise ValueError(
                "max_infected_fraction must rise from the best grade to the worst, got "
                f"{better.max_infected_fraction:g} for {better.grade} and then {worse.max_infected_fraction:g} for "
                f"{worse.grade}"
            )
    names = [grade.grade for grade in grades]
    if len(set(names)) < len(names) or REJECT in names:
        raise ValueError(f"grades must have different names, and none may be {REJECT!r}")
    return grades


Grades = Annotated[
    tuple[Grade, ...],
    Field(json_schema_extra={"minItems": 1, "maxItems": MAX_GRADES}),
    AfterValidator(_check_rising),
]
"""From best to worst; fruit beyond the last is graded `reject`."""

_Id = Annotated[str, Field(max_length=MAX_ID_LENGTH)]
_Nanoseconds = Annotated[int, Field(ge=0, le=_MAX_NS)]


class InspectRequest(Schema):
    """The field `request` of `/v1/inspect`."""

    model: str | None = Field(None, description=f"Finds the fruit. {_UNET}")
    sam_model: str | None = Field(None, description=f"Outlines the fruit. {_SAM}")
    mode: Literal["fast", "accurate", "auto"] = Field(
        "auto",
        description="fast: the U-Net alone. accurate: the U-Net sees the image at three scales, and a SAM outlines "
        "each fruit that it finds. auto: accurate where a SAM is loaded and X-Deadline-Ms leaves time for it, else "
        "fast.",
    )
    finder: Literal["unet", "detector", "both"] | None = Field(
        None,
        description="What finds the fruit, whose infected pixels the U-Net tells: the U-Net, a detector, or both "
        "together. By default both where a detector is loaded and in time, else the U-Net.",
    )
    detector: str | None = Field(
        None,
        description="Name of a detector in the catalogue that knows oranges or apples; by default the first loaded.",
    )
    format: SemanticFormat = Field("rle", description="How masks are encoded.")
    grades: Grades | None = Field(
        None,
        description="From best to worst, with rising limits; fruit beyond the last is graded reject. By default the "
        "setting POMONA_GRADES.",
    )
    overlay: bool = Field(
        default=False,
        description="Also return a PNG with fruit outlined by grade, infected parts tinted, grade and infected "
        "fraction written on each.",
    )
    frame_id: _Id | None = Field(None, description="Of the camera; returned.")
    trigger_id: _Id | None = Field(None, description="Of the trigger; returned.")
    captured_at_ns: _Nanoseconds | None = Field(None, description="Nanoseconds on the camera's clock; returned.")


class InspectModels(Schema):
    """The models that answered."""

    unet: UnetModel = Field(description="Found the fruit.")
    sam: SamModel | None = Field(description="Outlined the fruit; null where the U-Net's outlines were used.")
    detector: DetectorModel | None = Field(None, description="Found fruit too; null where the U-Net alone did.")


class Fruit(Schema):
    """One fruit."""

    id: int = Field(description="From 1, by the centre of the box from left to right.")
    box: PixelBox = Field(description="Tight half-open box of the mask.")
    area: int = Field(description="Pixels in the mask.")
    mask: Outline = Field(description="Of the image's size. No pixel belongs to two masks.")
    infected_mask: Outline = Field(description="The infected part of the mask.")
    infected_fraction: float = Field(description="0 to 1: infected pixels / pixels of the fruit.")
    infected_fraction_interval: tuple[float, float] | None = Field(
        description="0 to 1, least and largest: holds the annotated fraction of 90 % of the fruits that the model was "
        "calibrated on. Null where it was not."
    )
    pixel_class: ClassName = Field(alias="class", description="infected from an infected fraction of 0.02.")
    confidence: float = Field(
        description="0 to 1: mean probability of fruit, healthy or infected, that the U-Net gives to the fruit; in "
        "every mode."
    )
    grade: str = Field(description="The first grade whose limit is not exceeded, else reject.")
    grade_certain: bool = Field(
        description="Whether the whole infected_fraction_interval has this grade; false without an interval."
    )
    truncated: bool = Field(description="Whether the mask touches the image's edge: part of the fruit may lie outside.")
    refined: bool = Field(
        description="Whether the SAM outlined the fruit; false where its mask disagreed with the U-Net's (an IoU below "
        "0.7)."
    )


class Frame(Schema):
    """What a camera says about a frame; returned as it was sent."""

    frame_id: _Id | None = None
    trigger_id: _Id | None = None
    captured_at_ns: _Nanoseconds | None = None


class InspectResponse(Schema):
    """The answer of `/v1/inspect`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "request_id": "5b6c1d0f5d5c4f0e9d0c6f1f2a3b4c5d",
                "image": {"id": "6ae3139a394ffc39eca2210a4d76677f", "width": 16, "height": 8},
                "models": {
                    "unet": {"name": "my-unet", "revision": "0f5c1a2b3c4d", "input_width": 448, "input_height": 224},
                    "sam": {"name": "mobile-sam", "revision": "6dbb90523a35", "input_size": 1024, "padding": "none"},
                },
                "fruits": [
                    {
                        "id": 1,
                        "box": [2, 1, 6, 6],
                        "area": 20,
                        "mask": {"size": [8, 16], "counts": "a05300000_2"},
                        "infected_mask": {"size": [8, 16], "counts": "k0170e2"},
                        "infected_fraction": 0.1,
                        "infected_fraction_interval": [0.06, 0.31],
                        "class": "infected",
                        "confidence": 0.98,
                        "grade": "B",
                        "grade_certain": False,
                        "truncated": False,
                        "refined": True,
                    }
                ],
                "mode": "accurate",
                "degraded": False,
                "reason": None,
                "dismissed": 0,
                "frame": {
                    "frame_id": "cam2-004711",
                    "trigger_id": "lane3-000815",
                    "captured_at_ns": 1767225600000000000,
                },
                "overlay": None,
                "batch": {"encode": 1, "prompt": 1, "infer": 1},
                "timing_ms": {
                    "decode": 14.2,
                    "queue": 1.1,
                    "encode": 431.0,
                    "prompt": 29.7,
                    "infer": 18.4,
                    "postprocess": 2.9,
                    "total": 499.8,
                },
            }
        }
    )

    request_id: str
    image: Image
    models: InspectModels
    fruits: list[Fruit]
    mode: InspectMode = Field(description="The mode that was used.")
    degraded: bool = Field(description="Whether mode auto gave less than without the deadline or the load; see reason.")
    reason: str | None = Field(description="Why mode auto gave less than the best there is; else null.")
    dismissed: int = Field(
        description="Number of fruits of which the U-Net was unsure and that the SAM did not see in their boxes: they "
        "are none."
    )
    frame: Frame
    overlay: Binary | None = Field(description=_OVERLAY)
    batch: Batch
    timing_ms: Timings


# models.


class ListModelsRequest(Schema):
    """`/v1/models` takes nothing."""


RevisionState = Literal["loading", "loaded", "failed"]


class Revision(Schema):
    """A revision of a model that is loaded, or being loaded, or whose loading failed."""

    revision: str = Field(description="First 12 hexadecimal digits of the checkpoint's SHA-256.")
    state: RevisionState = Field(description="failed is shown until the next load.")
    active: bool = Field(description="Whether it answers requests that name no revision.")
    architecture: str
    file: str | None = Field(description="Within POMONA_MODELS_DIR; null for what was loaded at the start.")
    memory_mib: int = Field(description="Memory that is reserved for it; 0 for what was loaded at the start.")
    shadow: float = Field(description="Share of live frames that it answers too.")
    error: str | None = Field(description="Why loading failed; else null.")


class Model(Schema):
    """A model of the catalogue."""

    name: str
    family: Literal["sam", "sam2", "unet", "detector", "grounding"] = Field(
        description="sam answers /v1/segment and /v1/embed, unet answers /v1/semantic; both answer /v1/inspect. sam2 "
        "answers what sam does, and /v1/track. detector answers /v1/detect, and with a SAM /v1/instances and /v1/text; "
        "grounding answers /v1/text with a SAM, whatever the text names."
    )
    revision: str = Field(description="That answers, where the model is loaded.")
    licence: str
    loaded: bool
    device: str | None = Field(description="Where it runs: cpu, cuda:0, …; null where not loaded.")
    backend: str | None = Field(description="torch or openvino; null where not loaded.")
    revisions: list[Revision] = Field(description="The active one first, then those beside it; none where not loaded.")


class ListModelsResponse(Schema):
    """The answer of `/v1/models`: loaded models first; the first of each family is its default."""

    models: list[Model]


# Errors.


class Problem(Schema):
    """An error, RFC 9457 (`application/problem+json`)."""

    type: str = Field(description="urn:pomona:problem: and the code.")
    title: str
    status: int
    detail: str = Field(description="What was wrong and what must hold.")
    code: str = Field(description="Stable, for programs.")
    request_id: str
