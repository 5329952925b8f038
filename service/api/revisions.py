"""Requests and responses of what changes the loaded models: load, promote, unload, and the report of shadows."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from service.api.schema import Revision, Schema

_MOST_FILE: Final = 512

_Name = Annotated[str, Field(min_length=1, max_length=64)]
_Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class LoadModelRequest(Schema):
    """A new revision of a loaded model."""

    model: _Name = Field(description="Name of a loaded model, of which this will be another revision.")
    file: str = Field(
        min_length=1,
        max_length=_MOST_FILE,
        description="Path within POMONA_MODELS_DIR: a checkpoint, or the folder of a training run.",
    )
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-fA-F]{64}$", description="Of the file; another file is then refused. Hexadecimal."
    )
    architecture: str | None = Field(
        None,
        max_length=64,
        description="Network of the checkpoint, of the model's family; by default that of the active revision.",
    )
    promote: bool = Field(default=False, description="Let the new revision answer as soon as it is warmed up.")
    shadow: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of live frames, 0 to 1, that the new revision answers too, in idle time, to be compared; "
        "for U-Nets. Loading a loaded revision again changes its share.",
    )


class PromoteModelRequest(Schema):
    """The revision that is to answer."""

    model: _Name = Field(description="Name of a loaded model.")
    revision: _Revision = Field(description="Of it, loaded.")


class UnloadModelRequest(PromoteModelRequest):
    """The revision that is to be given up; not the active one."""


class LoadModelResponse(Schema):
    """The answer of `/v1/models/load`: once the revision is loaded, or before, where that takes too long."""

    request_id: str
    model: str
    revision: Revision


class PromoteModelResponse(Schema):
    """The answer of `/v1/models/promote`."""

    request_id: str
    model: str
    revision: Revision
    previous: str = Field(description="The revision that answered before; it stays loaded.")


class UnloadModelResponse(Schema):
    """The answer of `/v1/models/unload`: the requests that used the revision have been answered."""

    request_id: str
    model: str
    revision: str
    freed_mib: int = Field(description="Memory that requests have again.")


class ShadowRequest(Schema):
    """`/v1/shadow` takes nothing."""


class Disagreement(Schema):
    """A frame on which the two revisions differ."""

    request_id: str = Field(description="Of the frame, as in the log.")
    frame_id: str | None
    iou: float = Field(description="0 to 1: of the pixels that either revision takes for fruit.")
    infected_fraction_difference: float = Field(
        description="0 to 1: the largest of a fruit, by the difference of the two revisions."
    )
    grade_changes: int = Field(description="Fruits with another grade, or that one revision alone finds.")


class ShadowReport(Schema):
    """What the comparison of a revision with the active one has shown since it was loaded."""

    model: str
    revision: str = Field(description="That is compared.")
    active_revision: str = Field(description="That answers.")
    share: float = Field(description="Of live frames, 0 to 1.")
    compared: int = Field(description="Frames that both revisions answered.")
    skipped: int = Field(description="Frames that found no idle time before a newer one came.")
    failed: int = Field(description="Frames that the compared revision failed on.")
    fruits: int = Field(description="Fruits that either revision found.")
    grade_changes: int = Field(description="Fruits with another grade, or that one revision alone finds.")
    mean_iou: float | None = Field(description="Mean over frames with fruit; null before there are any.")
    least_iou: float | None = Field(description="Least of a frame.")
    mean_infected_fraction_difference: float | None = Field(description="Mean over fruits that both revisions found.")
    largest_infected_fraction_difference: float | None = Field(description="Largest of a fruit.")
    worst: list[Disagreement] = Field(description="The frames with the largest disagreement, worst first.")


class ShadowResponse(Schema):
    """The answer of `/v1/shadow`."""

    shadows: list[ShadowReport]
