"""The JSON of `/v1/semantic`, both ways."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from service.http.schema import ImageOut, PolygonsMask, RleMask, Strict

ClassName = Literal["healthy", "infected"]


class SemanticIn(Strict):
    """The field `request` of `/v1/semantic`."""

    model: str | None = Field(None, description="Catalogue name of a U-Net; the first that is loaded by default.")
    format: Literal["rle", "png", "polygons"] = Field(
        "rle", description="rle and polygons: a mask for each class. png: one image of all classes, class_map."
    )
    overlay: bool = Field(default=False, description="Also return a PNG with the classes drawn into the image.")


class SemanticModelRef(Strict):
    """What answered."""

    name: str
    revision: str = Field(description="First 12 hex digits of the checkpoint's SHA-256.")
    input_width: int = Field(description="Of the image as the network saw it, in pixels, without padding.")
    input_height: int = Field(description="Of the image as the network saw it, in pixels, without padding.")


class _OfClass(Strict):
    """What has a class, under a name that Python does not keep for itself."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    name: ClassName = Field(alias="class")


class ClassOut(_OfClass):
    """Where a class is."""

    mask: RleMask | PolygonsMask | None = Field(description="Of the image's size; null with the format png.")
    area: int = Field(description="Pixels of this class.")


class ObjectOut(_OfClass):
    """A fruit; those that touch are told apart."""

    box: tuple[int, int, int, int] = Field(description="Half-open box, to about a cell of what the network saw.")
    area: int = Field(description="Pixels in the region, to about a cell of what the network saw.")
    score: float = Field(description="0 to 1: mean probability of fruit in the region.")


class SemanticTimings(Strict):
    """Milliseconds."""

    decode: float = Field(description="Image decoded and resized.")
    queue: float = Field(description="Waiting for the device.")
    infer: float = Field(description="The network.")
    postprocess: float = Field(description="Upsampling, objects, encoding, overlay.")
    total: float = Field(description="From the whole request read to the answer ready.")


class SemanticBatch(Strict):
    """How many items ran together on the device, this request's included."""

    infer: int = Field(description="Images.")


class SemanticOut(Strict):
    """The answer of `/v1/semantic`."""

    request_id: str
    image: ImageOut
    model: SemanticModelRef
    classes: list[ClassOut] = Field(description="healthy and infected, in this order, also where no pixel is.")
    class_map: str | None = Field(
        description="Base64 of an indexed PNG: 0 background, 1 healthy, 2 infected; with the format png, else null."
    )
    objects: list[ObjectOut]
    overlay: str | None = Field(description="Base64 of a PNG, where it was asked for.")
    batch: SemanticBatch
    timing_ms: SemanticTimings
