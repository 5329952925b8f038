"""The JSON of `/v1/inspect`, both ways."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from service.grades import Grades
from service.http.schema import ImageOut, ModelRef, PngMask, PolygonsMask, RleMask, Strict
from service.http.semantic_schema import ClassName, SemanticModelRef

_MOST_NS = 2**63 - 1


class InspectIn(Strict):
    """The field `request` of `/v1/inspect`."""

    model: str | None = Field(
        None, description="Catalogue name of the U-Net that finds fruits; the first that is loaded by default."
    )
    sam_model: str | None = Field(
        None, description="Catalogue name of the SAM that draws their outlines; the first that is loaded by default."
    )
    mode: Literal["fast", "accurate", "auto"] = Field(
        "auto",
        description="fast: the U-Net alone. accurate: a SAM draws the outline of each fruit that the U-Net finds. "
        "auto: accurate where a SAM is loaded and X-Deadline-Ms leaves the time, else fast.",
    )
    format: Literal["rle", "png", "polygons"] = Field("rle", description="How masks are encoded.")
    grades: Grades | None = Field(
        None,
        description="From the best to the worst, rising; what none takes is `reject`. By setting, POMONA_GRADES.",
    )
    overlay: bool = Field(
        default=False,
        description="Also return a PNG with fruits outlined by grade, infected parts tinted, grade and infected "
        "fraction written at each.",
    )
    frame_id: str | None = Field(None, max_length=128, description="The camera's; told again in the answer.")
    trigger_id: str | None = Field(
        None, max_length=128, description="Of what let the camera expose; told again in the answer."
    )
    captured_at_ns: int | None = Field(
        None, ge=0, le=_MOST_NS, description="Nanoseconds on the camera's clock; told again in the answer."
    )


class InspectModels(Strict):
    """What answered."""

    unet: SemanticModelRef
    sam: ModelRef | None = Field(description="null where the U-Net's own outlines were taken.")


class FruitOut(Strict):
    """One fruit."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    id: int = Field(description="1 and up: from left to right by the middle of the box.")
    box: tuple[int, int, int, int] = Field(description="Tight half-open box of the mask.")
    area: int = Field(description="Pixels in the mask.")
    mask: RleMask | PngMask | PolygonsMask = Field(description="Of the image's size. No pixel is in two masks.")
    infected_mask: RleMask | PngMask | PolygonsMask = Field(description="What of it is infected; of the image's size.")
    infected_fraction: float = Field(description="0 to 1: infected pixels / pixels of the fruit.")
    name: ClassName = Field(alias="class", description="infected from an infected fraction of 0.02 on.")
    confidence: float = Field(
        description="0 to 1: mean probability of fruit, healthy or infected, that the U-Net gives to the fruit's "
        "cells; in every mode."
    )
    grade: str = Field(description="The first grade whose largest infected fraction is not exceeded, else reject.")
    truncated: bool = Field(description="The mask touches the image's edge: some of the fruit may be beyond.")
    refined: bool = Field(description="The SAM drew the mask; false where it showed something else than the U-Net.")


class FrameOut(Strict):
    """What the caller said of the frame."""

    frame_id: str | None
    trigger_id: str | None
    captured_at_ns: int | None


class InspectTimings(Strict):
    """Milliseconds."""

    decode: float = Field(description="Image decoded and resized.")
    queue: float = Field(description="Waiting for the device.")
    infer: float = Field(description="The U-Net.")
    encode: float = Field(description="The SAM's image encoder; 0 in mode fast.")
    prompt: float = Field(description="The SAM's mask decoder; 0 in mode fast.")
    postprocess: float = Field(description="Fruits told apart, masks drawn and encoded, overlay.")
    total: float = Field(description="From the whole request read to the answer ready.")


class InspectBatch(Strict):
    """How many items ran together on the device, this request's included; 0 where none of its own ran."""

    infer: int = Field(description="Images at the U-Net.")
    encode: int = Field(description="Images at the SAM's encoder.")
    prompt: int = Field(description="Prompts, in the largest batch that held any of this request's.")


class InspectOut(Strict):
    """The answer of `/v1/inspect`."""

    request_id: str
    image: ImageOut
    models: InspectModels
    fruits: list[FruitOut]
    mode: Literal["fast", "accurate"] = Field(description="The one that was used.")
    degraded: bool = Field(description="Mode auto gave less than without the deadline or the load; see reason.")
    reason: str | None = Field(description="Why mode auto gave less than the best there is; else null.")
    frame: FrameOut
    overlay: str | None = Field(description="Base64 of a PNG of the image's size, where it was asked for.")
    batch: InspectBatch
    timing_ms: InspectTimings
