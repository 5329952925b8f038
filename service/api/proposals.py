"""Requests and responses of the operations that mask everything in an image: `automatic` and `edges`.

They belong to `service.api.schema`, and follow its rules.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from service.api.schema import (
    Batch,
    Binary,
    Coordinate,
    EmbedRequest,
    Image,
    Outline,
    PixelBox,
    SamModel,
    Schema,
    SemanticFormat,
    Timings,
)

MAX_POINTS_PER_SIDE: Final = 128
MAX_CROP_LAYERS: Final = 2
MAX_MASKS: Final = 1000
"""Most masks of an answer."""

Preset = Literal["full", "fast"]
EdgeDepth = Literal["8", "16"]

POINTS_PER_SIDE: Final[dict[Preset, int]] = {"full": 32, "fast": 16}

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Pixels = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Side = Annotated[int, Field(ge=1, le=MAX_POINTS_PER_SIDE)]


class AutomaticRequest(EmbedRequest):
    """The field `request` of `/v1/automatic`."""

    preset: Preset = Field("full", description="Points per side where points_per_side is absent: full 32, fast 16.")
    points_per_side: _Side | None = Field(
        None, description="The image is asked at the centres of so many by so many equal parts."
    )
    crop_layers: int = Field(
        0,
        ge=0,
        le=MAX_CROP_LAYERS,
        description="Also encode 4 (1), or 4 and 16 (2), overlapping crops of the image, each with a grid of its own; "
        "needs the part image.",
    )
    pred_iou_threshold: _Share = Field(0.88, description="Masks have a score, the predicted IoU, above this.")
    stability_score_threshold: _Share = Field(0.95, description="Masks have at least this stability score.")
    box_nms_threshold: _Share = Field(
        0.7, description="Of two masks whose boxes have an IoU above this, the one with the higher score is kept."
    )
    mask_nms_threshold: _Share | None = Field(
        None, description="The same for the IoU of the masks themselves; by default boxes alone decide."
    )
    min_area: _Pixels = Field(
        0,
        description="Holes and islands of fewer pixels are removed from masks, and masks of fewer pixels are left out.",
    )
    max_area: _Pixels | None = Field(None, description="Most pixels of a mask.")
    min_side: _Pixels = Field(0, description="Least width and height of a mask's box in pixels.")
    max_side: _Pixels | None = Field(None, description="Largest width and height of a mask's box in pixels.")
    max_masks: Annotated[int, Field(ge=1, le=MAX_MASKS)] | None = Field(
        None, description=f"Only so many masks, those with the highest scores; by default {MAX_MASKS}."
    )
    format: SemanticFormat = Field("rle", description="How masks are encoded.")
    overlay: bool = Field(
        default=False, description="Also return a PNG of the image with the masks; needs the part image."
    )


class ProposedMask(Schema):
    """A mask of something in the image."""

    mask: Outline
    score: float = Field(description="Predicted IoU, about 0 to 1.")
    stability_score: float = Field(description="0 to 1: IoU of the masks at thresholds 1 above and 1 below.")
    box: PixelBox = Field(description="Tight half-open box.")
    area: int = Field(description="Pixels in the mask.")
    point: tuple[Coordinate, Coordinate] = Field(description="[x, y] of the grid's point that found it.")


class AutomaticResponse(Schema):
    """The answer of `/v1/automatic`."""

    request_id: str
    image: Image
    model: SamModel
    masks: list[ProposedMask] = Field(description="Best first.")
    points_done: int = Field(description="Points of all grids that were asked.")
    points_total: int = Field(description="Points of all grids.")
    overlay: Binary | None = Field(None, description="PNG of the image's size, where requested.")
    degraded: bool = Field(
        description="Whether the deadline ended the search before all points were asked, or input_size auto took less "
        "than the largest size: the masks are the best found so far."
    )
    batch: Batch
    timing_ms: Timings


class AutomaticProgress(Schema):
    """What has changed while `automatic` works."""

    points_done: int = Field(description="Points of all grids that were asked.")
    points_total: int = Field(description="Points of all grids.")
    found: list[ProposedMask] = Field(description="Masks that are new.")
    withdrawn: list[int] = Field(
        description="Numbers of masks found earlier, in the order in which they came and from 0, that better ones "
        "have replaced."
    )


class EdgesRequest(EmbedRequest):
    """The field `request` of `/v1/edges`."""

    points_per_side: _Side = Field(
        16, description="The image is asked at the centres of so many by so many equal parts."
    )
    box_nms_threshold: _Share = Field(
        0.7, description="Of two masks whose boxes have an IoU above this, the one with the higher score is kept."
    )
    thick: bool = Field(
        default=False, description="Keep edges as wide as they are found, instead of their ridges alone."
    )
    depth: EdgeDepth = Field("8", description="Bits per pixel of the map.")


class EdgesResponse(Schema):
    """The answer of `/v1/edges`."""

    request_id: str
    image: Image
    model: SamModel
    edges: Binary = Field(description="Grey PNG of the image's size: strength of the edge, 0 to the largest value.")
    masks: int = Field(description="Masks whose edges are in the map.")
    points_done: int = Field(description="Points of the grid that were asked.")
    points_total: int = Field(description="Points of the grid.")
    degraded: bool = Field(
        description="Whether the deadline ended the search before all points were asked, or input_size auto took less "
        "than the largest size."
    )
    batch: Batch
    timing_ms: Timings
