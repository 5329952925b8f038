"""Requests and responses of the operations that begin with a detector: detect, instances, text; see the schema."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from models.detector.postprocess import Thresholds
from models.letterbox import Padding
from service.api.schema import (
    Batch,
    Binary,
    Coordinate,
    DetectorModel,
    EncodedMask,
    Image,
    InputSize,
    MaskFormat,
    PixelBox,
    SamModel,
    Schema,
    Timings,
)

MAX_CLASSES: Final = 100
"""Classes that a request may name."""

MAX_DETECTIONS: Final = 300

MAX_NOUNS: Final = 16
"""Things that a text may name."""

_LONGEST: Final = 64
_DEFAULTS: Final = Thresholds()

_DETECTOR: Final = (
    "Name of a detector in the catalogue; by default the first loaded one. For text also a model of an open "
    "vocabulary, which by default answers what the detector does not know."
)
_SAM: Final = "Outlines the objects: name of a SAM in the catalogue; by default the first loaded one."

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_ClassName = Annotated[str, Field(min_length=1, max_length=_LONGEST)]
_Corners = tuple[Coordinate, Coordinate, Coordinate, Coordinate]


class _Thresholds(Schema):
    """Which boxes of a detector are kept."""

    model: str | None = Field(None, description=_DETECTOR)
    score_threshold: _Share = Field(_DEFAULTS.score, description="Least score of a box.")
    nms_threshold: _Share = Field(
        _DEFAULTS.nms, description="Of boxes of one class whose IoU is larger, only the best is kept."
    )


class DetectRequest(_Thresholds):
    """The field `request` of `/v1/detect`."""

    classes: list[_ClassName] | None = Field(
        None, max_length=MAX_CLASSES, description="Names of the classes that are wanted; all where absent or empty."
    )
    max_detections: int = Field(_DEFAULTS.most, ge=1, le=MAX_DETECTIONS, description="Most boxes, the best.")
    overlay: bool = Field(default=False, description="Also return a PNG of the image with the boxes drawn in.")


class Detection(Schema):
    """One object."""

    class_name: str = Field(alias="class", description="Name of its class.")
    class_id: int = Field(description="Index of its class in the detector's output.")
    score: float = Field(description="0 to 1: probability of an object times that of its class.")
    box: _Corners = Field(description="[x0, y0, x1, y1], within the image.")


class DetectResponse(Schema):
    """The answer of `/v1/detect`."""

    request_id: str
    image: Image
    model: DetectorModel
    detections: list[Detection] = Field(description="Best first.")
    overlay: Binary | None = Field(None, description="PNG of the image's size, where requested.")
    batch: Batch
    timing_ms: Timings


class _Outlined(_Thresholds):
    """Which SAM outlines the boxes of a detector, and how."""

    sam_model: str | None = Field(None, description=_SAM)
    input_size: InputSize | None = Field(None, description="As of segment.")
    padding: Padding | None = Field(None, description="As of segment.")
    max_instances: int | None = Field(
        None, ge=1, le=MAX_DETECTIONS, description="Most objects, the best; by default and at most POMONA_MAX_PROMPTS."
    )
    format: MaskFormat = Field("rle", description="How masks are encoded.")
    overlay: bool = Field(default=False, description="Also return a PNG of the image with masks and boxes drawn in.")


class InstancesRequest(_Outlined):
    """The field `request` of `/v1/instances`."""

    classes: list[_ClassName] | None = Field(
        None, max_length=MAX_CLASSES, description="Names of the classes that are wanted; all where absent or empty."
    )


class TextRequest(_Outlined):
    """The field `request` of `/v1/text`."""

    text: str = Field(
        min_length=1,
        max_length=256,
        description="What to segment: nouns, separated by commas or full stops. A detector knows its classes, in the "
        "singular or the plural; a model of an open vocabulary whatever they name.",
    )
    points: list[tuple[Coordinate, Coordinate]] | None = Field(
        None,
        description="[x, y] clicks that refine: each goes to the smallest box around it. A click outside all boxes is "
        "refused.",
    )
    labels: list[int] | None = Field(
        None, description="One per point: 1 foreground, 0 background. By default all points are foreground."
    )


class Instance(Schema):
    """One object with its mask."""

    class_name: str = Field(alias="class", description="Name of its class.")
    class_id: int = Field(description="Index of its class in the detector's output, or of its noun in the text.")
    score: float = Field(description="0 to 1: the detector's, of box and class.")
    detected_box: _Corners = Field(description="[x0, y0, x1, y1] as the detector found it: the SAM's prompt.")
    mask: EncodedMask
    mask_score: float = Field(description="Predicted IoU of the mask, about 0 to 1.")
    stability_score: float = Field(description="0 to 1: IoU of the masks at thresholds 1 above and 1 below.")
    box: PixelBox = Field(description="Tight half-open box of the mask; all 0 for an empty mask.")
    area: int = Field(description="Pixels in the mask.")


class InstancesModels(Schema):
    """The models that answered."""

    detector: DetectorModel = Field(description="Found the objects.")
    sam: SamModel | None = Field(description="Outlined them; null where none was found.")


class InstancesResponse(Schema):
    """The answer of `/v1/instances`."""

    request_id: str
    image: Image
    models: InstancesModels
    instances: list[Instance] = Field(description="By the detector's score, best first.")
    overlay: Binary | None = Field(None, description="PNG of the image's size, where requested and anything was found.")
    degraded: bool = Field(description="Whether input_size auto took less than the largest size to meet the deadline.")
    batch: Batch
    timing_ms: Timings


class TextResponse(InstancesResponse):
    """The answer of `/v1/text`."""

    classes: list[str] = Field(description="The classes that the text names; of an open vocabulary its nouns.")
