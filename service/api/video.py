"""Objects followed over the frames of a video, which come one by one: requests and responses of `track`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from service.api.schema import (
    MAX_ID_LENGTH,
    Batch,
    Coordinate,
    EncodedMask,
    Frame,
    Image,
    MaskFormat,
    MaskPrompt,
    PixelBox,
    SamModel,
    Schema,
    Timings,
)

MAX_OBJECT_ID = 2**31 - 1

ObjectId = Annotated[int, Field(ge=1, le=MAX_OBJECT_ID)]
_Id = Annotated[str, Field(max_length=MAX_ID_LENGTH)]
_Nanoseconds = Annotated[int, Field(ge=0, le=2**63 - 1)]


class ObjectPrompt(Schema):
    """Where an object is on this frame: points, a box, points with a box, or a mask."""

    object_id: ObjectId = Field(description="Yours; a new one is followed from this frame on, a known one corrected.")
    points: list[tuple[Coordinate, Coordinate]] | None = Field(
        None, description="[x, y] in pixels of the frame after EXIF orientation."
    )
    labels: list[int] | None = Field(
        None, description="One per point: 1 foreground, 0 background. By default all points are foreground."
    )
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = Field(
        None, description="[x0, y0, x1, y1], half-open."
    )
    mask: MaskPrompt | None = Field(
        None,
        description="Taken as it is: RLE of the frame's size, or the logits of an answer; without points and box.",
    )


class TrackRequest(Schema):
    """The field `request` of `/v1/track`."""

    model: str | None = Field(
        None,
        description="Name of a SAM 2 in the catalogue, by default the first loaded one; where a session is opened.",
    )
    session: str | None = Field(
        None,
        max_length=MAX_ID_LENGTH,
        description="Of an earlier answer. Without it a session is opened; in a stream all frames without it share "
        "one, which ends with the stream.",
    )
    prompts: list[ObjectPrompt] = Field([], description="Of objects that are new, or corrected, on this frame.")
    remove: list[ObjectId] = Field([], description="Ids of objects that are followed no longer.")
    format: MaskFormat = Field("rle", description="How masks are encoded.")
    frame_id: _Id | None = Field(None, description="Of the camera; returned.")
    trigger_id: _Id | None = Field(None, description="Of the trigger; returned.")
    captured_at_ns: _Nanoseconds | None = Field(None, description="Nanoseconds on the camera's clock; returned.")


class TrackedObject(Schema):
    """An object on a frame."""

    object_id: int
    visible: bool = Field(description="Whether it is in view; else the mask is empty.")
    presence: float = Field(description="0 to 1: how sure it is that the object is in view.")
    mask: EncodedMask
    score: float = Field(description="Predicted IoU, 0 to 1.")
    stability_score: float = Field(description="0 to 1: IoU of the masks at thresholds 1 above and 1 below.")
    box: PixelBox = Field(description="Tight half-open box; all 0 for an empty mask.")
    area: int = Field(description="Pixels in the mask.")


class TrackResponse(Schema):
    """The answer of `/v1/track`: all objects that are followed, in the order in which they were added."""

    request_id: str
    session: str = Field(description="To be sent with the next frame.")
    frame_index: int = Field(description="Of the session, from 0; frames that were not answered do not count.")
    image: Image
    model: SamModel
    objects: list[TrackedObject]
    frame: Frame = Field(description="What the camera said about it, as sent.")
    batch: Batch
    timing_ms: Timings


class EndTrackRequest(Schema):
    """The body of `/v1/track/end`."""

    session: str = Field(max_length=MAX_ID_LENGTH, description="Of an answer of `/v1/track`.")


class EndTrackResponse(Schema):
    """The answer of `/v1/track/end`: the session is closed, and what it remembered forgotten."""

    request_id: str
    frames: int = Field(description="That were answered.")
