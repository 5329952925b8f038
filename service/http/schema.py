"""The JSON of the HTTP door, both ways; also what the OpenAPI page shows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Coordinate = Annotated[float, Field(allow_inf_nan=False)]
XY = tuple[Coordinate, Coordinate]


class Strict(BaseModel):
    """Unknown fields are refused, and no value is turned into another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RleMask(Strict):
    """A mask as COCO compressed RLE."""

    size: tuple[int, int] = Field(description="Height and width in pixels.")
    counts: str = Field(description="Runs down the columns, in COCO's characters.")


class LogitsMask(Strict):
    """The low-resolution logits of a mask, as the format `logits` returns them."""

    shape: tuple[int, int] = Field(description="Height and width: a quarter of what the encoder saw, padding included.")
    dtype: Literal["float16"] = Field(description="Little-endian.")
    data: str = Field(description="Base64 of the values, row by row.")


class PngMask(Strict):
    """A mask as a PNG of one bit per pixel, white where the mask is."""

    png: str = Field(description="Base64 of the file.")


class PolygonsMask(Strict):
    """A mask as polygons: each a list of rings, first the outline, then its holes."""

    polygons: list[list[list[list[float]]]]


def _kind_of_mask(mask: object) -> str:
    """Which of the two was meant, so that an error tells of that one alone."""
    return "logits" if isinstance(mask, LogitsMask) or (isinstance(mask, dict) and "data" in mask) else "rle"


MaskIn = Annotated[Annotated[RleMask, Tag("rle")] | Annotated[LogitsMask, Tag("logits")], Discriminator(_kind_of_mask)]


class PromptIn(Strict):
    """Points, a box, a mask, or points with a box or a mask."""

    points: list[XY] | None = Field(None, description="[x, y] in pixels of the image after EXIF orientation.")
    labels: list[int] | None = Field(
        None,
        description="One per point: 1 foreground, 0 background. Without it all points are foreground.",
    )
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = Field(
        None, description="[x0, y0, x1, y1], half-open."
    )
    mask: MaskIn | None = Field(
        None, description="An earlier guess: RLE of the image's size, or the logits of an answer."
    )
    multimask: bool = Field(
        default=True,
        description="Three masks, best first, for an ambiguous prompt; else one.",
    )


class SegmentIn(Strict):
    """The field `request` of `/v1/segment`."""

    model: str | None = Field(None, description="Catalogue name of a SAM; the first that is loaded by default.")
    input_size: Literal[1024, 768, 512, "auto"] | None = Field(
        None,
        description="Longest side in pixels for the encoder; auto takes the largest whose learned time meets "
        "X-Deadline-Ms. By setting, 1024.",
    )
    padding: Literal["none", "square"] | None = Field(
        None,
        description="none spares the encoder what is only padding; square is the reference. By default none where the "
        "model takes it.",
    )
    prompts: list[PromptIn] = Field(description="Many prompts may share one image.")
    format: Literal["rle", "png", "polygons", "logits"] = Field("rle", description="How masks are encoded.")
    overlay: bool = Field(
        default=False,
        description="Also return a PNG with each prompt's best mask drawn in; needs the part image.",
    )


class EmbedIn(Strict):
    """The field `request` of `/v1/embed`."""

    model: str | None = Field(None, description="Catalogue name of a SAM; the first that is loaded by default.")
    input_size: Literal[1024, 768, 512, "auto"] | None = Field(
        None,
        description="Longest side in pixels for the encoder; auto takes the largest whose learned time meets "
        "X-Deadline-Ms. By setting, 1024.",
    )
    padding: Literal["none", "square"] | None = Field(
        None,
        description="none spares the encoder what is only padding; square is the reference. By default none where the "
        "model takes it.",
    )


class ImageOut(Strict):
    """The image, after EXIF orientation."""

    id: str = Field(description="Hash of the uploaded bytes; send it as image_id to prompt again.")
    width: int
    height: int


class ModelRef(Strict):
    """What answered."""

    name: str
    revision: str = Field(description="First 12 hex digits of the checkpoint's SHA-256.")
    input_size: int = Field(description="Longest side in pixels at which the image was encoded.")
    padding: Literal["none", "square"] = Field(description="How the image was padded for the encoder.")


class MaskOut(Strict):
    """One mask with its figures."""

    mask: RleMask | PngMask | PolygonsMask | LogitsMask
    score: float = Field(description="Predicted IoU, about 0 to 1.")
    stability_score: float = Field(description="0 to 1: IoU of the masks at thresholds 1 above and 1 below.")
    box: tuple[int, int, int, int] = Field(description="Tight half-open box; all 0 for an empty mask.")
    area: int = Field(description="Pixels in the mask.")


class ResultOut(Strict):
    """The masks of one prompt, best first."""

    masks: list[MaskOut]


class EmbedTimings(Strict):
    """Milliseconds."""

    decode: float = Field(description="Image decoded and resized.")
    queue: float = Field(description="Waiting for the device.")
    encode: float = Field(description="Image encoder; 0 where the embedding was at hand.")
    total: float = Field(description="From the whole request read to the answer ready.")


class SegmentTimings(Strict):
    """Milliseconds."""

    decode: float = Field(description="Image decoded and resized; 0 where its embedding was at hand.")
    queue: float = Field(description="Waiting for the device.")
    encode: float = Field(description="Image encoder; 0 where the embedding was at hand.")
    prompt: float = Field(description="Mask decoder.")
    postprocess: float = Field(description="Upsampling, figures, encoding, overlay.")
    total: float = Field(description="From the whole request read to the answer ready.")


class EmbedBatch(Strict):
    """How many items ran together on the device, this request's included."""

    encode: int = Field(description="Images; 0 where the embedding was at hand, or another request had it made.")


class SegmentBatch(EmbedBatch):
    """How many items ran together on the device, this request's included."""

    prompt: int = Field(description="Prompts, in the largest batch that held any of this request's.")


class SegmentOut(Strict):
    """The answer of `/v1/segment`: one result per prompt, in their order."""

    request_id: str
    image: ImageOut
    model: ModelRef
    results: list[ResultOut]
    overlay: str | None = Field(None, description="Base64 of a PNG, where it was asked for.")
    degraded: bool = Field(
        description="True where input_size auto took less than the largest size to meet the deadline."
    )
    batch: SegmentBatch
    timing_ms: SegmentTimings


class EmbedOut(Strict):
    """The answer of `/v1/embed`."""

    request_id: str
    image: ImageOut
    model: ModelRef
    batch: EmbedBatch
    timing_ms: EmbedTimings


class ModelOut(Strict):
    """A model of the catalogue."""

    name: str
    family: Literal["sam", "unet"] = Field(
        description="sam answers /v1/segment and /v1/embed, unet answers /v1/semantic; both answer /v1/inspect."
    )
    revision: str
    licence: str
    loaded: bool
    device: str | None = Field(description="Where it runs: cpu, cuda:0, …; null where not loaded.")
    backend: str | None = Field(description="torch or openvino; null where not loaded.")


class ModelsOut(Strict):
    """The answer of `/v1/models`; what is loaded comes first, and the first of each family is its default."""

    models: list[ModelOut]


class ProblemOut(Strict):
    """An error, RFC 9457 (`application/problem+json`)."""

    type: str = Field(description="urn:pomona:problem: and the code.")
    title: str
    status: int
    detail: str = Field(description="What was wrong and what would be right.")
    code: str = Field(description="Stable; for programs.")
    request_id: str


def json_schema(*models: type[BaseModel]) -> dict[str, Any]:
    """JSON schemas by name, with references into `#/components/schemas`."""
    definitions: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        definitions |= schema.pop("$defs", {})
        definitions[model.__name__] = schema
    return definitions
