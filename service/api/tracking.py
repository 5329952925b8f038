"""What a stream of frames says about fruit that is followed from one to the next; see the schema."""

from __future__ import annotations

from pydantic import Field

from service.api.schema import Frame, PixelBox, Schema


class Verdict(Schema):
    """One fruit, judged from all frames that showed it."""

    track_id: int = Field(description="From 1; the same in all frames of the stream.")
    views: int = Field(description="Frames that showed it, at least 2.")
    infected_fraction: float = Field(
        description="0 to 1: what three in ten of the views that are whole and sure reach, so that views that went "
        "wrong do not condemn a fruit."
    )
    infected_fraction_max: float = Field(description="0 to 1: the largest of all views.")
    infected_fraction_mean: float = Field(description="0 to 1: of all views, weighted by visible area.")
    grade: str = Field(description="By infected_fraction.")
    first_frame: Frame = Field(description="That showed it first.")
    last_frame: Frame = Field(description="That showed it last.")
    best_frame: Frame = Field(description="With the largest view that no edge of the image cuts.")
    best_box: PixelBox = Field(description="Half-open box of the fruit in best_frame.")
    left: bool = Field(description="Whether it has left; else it is in view, and more views may follow.")


class Tracking(Schema):
    """Which fruit of earlier frames a frame shows, and the verdicts that it brings."""

    track_ids: list[int] = Field(
        description="One per fruit, in their order; 0 for what lies inside another fruit, or is one of too many."
    )
    verdicts: list[Verdict]
