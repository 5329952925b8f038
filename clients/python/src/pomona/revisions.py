"""Revisions of models, and how their answers differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Revision:
    """A revision of a model that is loaded, or being loaded, or whose loading failed.

    Attributes:
        revision: first 12 hex digits of the checkpoint's SHA-256.
        state: `loading`, `loaded`, or `failed` until the next load.
        active: whether it answers requests that name no revision.
        architecture: its network.
        file: its path in the service's folder of models; None for what was loaded at the start.
        memory_mib: memory that is reserved for it.
        shadow: share of live frames that it answers too.
        error: why loading failed.
    """

    revision: str
    state: str
    active: bool
    architecture: str
    file: str | None = None
    memory_mib: int = 0
    shadow: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Disagreement:
    """A frame on which two revisions differ.

    Attributes:
        request_id: of the frame, as in the service's log.
        iou: 0 to 1, of the pixels that either revision takes for fruit.
        infected_fraction_difference: 0 to 1, the largest of a fruit.
        grade_changes: fruits with another grade, or that one revision alone finds.
        frame_id: the camera's.
    """

    request_id: str
    iou: float
    infected_fraction_difference: float
    grade_changes: int
    frame_id: str | None = None


@dataclass(frozen=True)
class ShadowReport:
    """What the comparison of a revision with the active one has shown since it was loaded.

    Attributes:
        model: name of the model.
        revision: that is compared.
        active_revision: that answers.
        share: of live frames, 0 to 1.
        compared: frames that both revisions answered.
        skipped: frames that found no idle time before a newer one came.
        failed: frames that the compared revision failed on.
        fruits: that either revision found.
        grade_changes: fruits with another grade, or that one revision alone finds.
        mean_iou: over frames with fruit; None before there are any.
        least_iou: of a frame.
        mean_infected_fraction_difference: over fruits that both revisions found.
        largest_infected_fraction_difference: of a fruit.
        worst: the frames with the largest disagreement, worst first.
    """

    model: str
    revision: str
    active_revision: str
    share: float
    compared: int
    skipped: int
    failed: int
    fruits: int
    grade_changes: int
    mean_iou: float | None = None
    least_iou: float | None = None
    mean_infected_fraction_difference: float | None = None
    largest_infected_fraction_difference: float | None = None
    worst: tuple[Disagreement, ...] = ()
