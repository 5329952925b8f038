"""Run the protocols of `models.evaluation.operations`, each with the models that it needs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from models.evaluation.belts import Belts, by_unet, measure_belts, of_truth
from models.evaluation.detection import LEAST_SCORE, detector_finder, measure_detection, unet_finder
from models.evaluation.everything import measure_everything
from models.evaluation.loading import Loader, Selection, load_detectors, load_sams, load_unets
from models.evaluation.operations import Protocol, Row
from models.evaluation.rounds import CLICKS, MOST_CLICKS, measure_rounds
from models.evaluation.samples import CannotEvaluate, ImageSet

MOST_PER_SIDE: Final = 128
ANNOTATION: Final = "the annotation"
"""Finds the fruit of belts without an error, so that only the tracker is measured."""

_OF_SAMS: Final[frozenset[Protocol]] = frozenset({"rounds", "proposals", "edges"})
_ON_IMAGES: Final[frozenset[Protocol]] = _OF_SAMS | {"detection"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How operations are measured.

    Attributes:
        clicks: most clicks on an object.
        per_side: points along each side of the grid for proposals; edges are asked at half as many.
        least_score: of boxes that count for precision and recall.
        belts: to follow fruit along.
        seed: of bootstrap intervals.
        progress: show progress bars on a terminal.

    Raises:
        CannotEvaluate: a number is out of range.
    """

    clicks: int = CLICKS
    per_side: int = 32
    least_score: float = LEAST_SCORE
    belts: Belts = field(default_factory=Belts)
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.clicks <= MOST_CLICKS:
            raise CannotEvaluate(f"--clicks must be 1 to {MOST_CLICKS}, got {self.clicks}")
        if not 1 <= self.per_side <= MOST_PER_SIDE:
            raise CannotEvaluate(f"--points-per-side must be 1 to {MOST_PER_SIDE}, got {self.per_side}")
        if not 0 <= self.least_score <= 1:
            raise CannotEvaluate(f"--least-score must be 0 to 1, got {self.least_score:g}")


def needs_images(protocols: Collection[Protocol]) -> bool:
    """Return whether a protocol measures annotated images."""
    return not _ON_IMAGES.isdisjoint(protocols)


def measure_operations(
    protocols: Collection[Protocol],
    sets: Sequence[ImageSet],
    selection: Selection,
    loader: Loader,
    settings: Settings,
) -> tuple[list[Row], list[str]]:
    """Load the models that the protocols need, and measure them.

    Args:
        protocols: at least one.
        sets: images; those whose annotations do not separate objects are left out.
        selection: the models.
        loader: where they come from.
        settings: how they are measured.

    Returns:
        What was measured, and notes on models that were left out.

    Raises:
        PomonaError: an image or a model cannot be used.
    """
    if needs_images(protocols) and not any(each.has_instances for each in sets):
        raise CannotEvaluate("there are no images whose annotations separate objects; name --data, or --rendered")
    notes: list[str] = []
    rows = list(_of_sams(protocols, sets, selection, loader, settings))
    if "detection" in protocols or "tracking" in protocols:
        unets, notes = load_unets(selection, loader)
        if "detection" in protocols:
            detectors = load_detectors(selection.detectors, loader)
            if not (unets or detectors):
                raise CannotEvaluate("there is nothing that finds fruit; name a --detector or a --unet")
            rows += measure_detection(
                {name: detector_finder(detector) for name, detector in detectors},
                {unet.candidate.name: unet_finder(unet.backend, unet.area) for unet in unets},
                sets,
                least=settings.least_score,
                progress=settings.progress,
            )
        if "tracking" in protocols:
            finders = {
                ANNOTATION: of_truth,
                **{unet.candidate.name: by_unet(unet.backend, unet.area) for unet in unets},
            }
            rows += measure_belts(finders, settings.belts, progress=settings.progress)
    return rows, notes


def _of_sams(
    protocols: Collection[Protocol],
    sets: Sequence[ImageSet],
    selection: Selection,
    loader: Loader,
    settings: Settings,
) -> Iterator[Row]:
    if _OF_SAMS.isdisjoint(protocols):
        return
    sams = load_sams(selection, loader)
    if not sams:
        raise CannotEvaluate("there is no SAM to measure; name a --sam or a --fine-tuned")
    if "rounds" in protocols:
        yield from measure_rounds(sams, sets, clicks=settings.clicks, seed=settings.seed, progress=settings.progress)
    if not {"proposals", "edges"}.isdisjoint(protocols):
        yield from measure_everything(
            sams,
            sets,
            proposals="proposals" in protocols,
            edges="edges" in protocols,
            per_side=settings.per_side,
            progress=settings.progress,
        )
