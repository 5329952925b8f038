"""A U-Net as a contender: it sees the image alone, and finds fruits by itself."""

from __future__ import annotations

from dataclasses import dataclass

from models import images
from models.backends.base import UNetBackend
from models.catalog import CatalogueEntry
from models.evaluation.answers import Answer, Stopwatch
from models.evaluation.results import Subject
from models.evaluation.shots import Shot
from models.inspection import Inspection, inspect
from models.masks import MAX_PIXELS
from models.unet.letterbox import INPUT_SIZE, unet_letterbox


@dataclass(frozen=True, slots=True, eq=False)
class Inspected:
    """What a U-Net sees in an image, for a SAM to refine, and as its own answer."""

    inspection: Inspection
    answer: Answer


class UNetCandidate:
    """A U-Net on a backend.

    Args:
        entry: what it is.
        backend: runs it.
    """

    def __init__(self, entry: CatalogueEntry, backend: UNetBackend) -> None:
        self._backend = backend
        self.subject = Subject(
            name=entry.name,
            title=f"U-Net {entry.name}",
            family="unet",
            description="Sees the image alone: no prompt, nothing of the annotation.",
            revision=entry.revision,
            settings={
                "architecture": entry.architecture,
                "backend": backend.name,
                "device": backend.device,
                "input": f"at most {INPUT_SIZE.pixels:,} pixels, such as {INPUT_SIZE.height} x {INPUT_SIZE.width}",
            },
        )

    def inspect(self, shot: Shot) -> Inspected:
        """Classes and fruits of an image, as `/v1/inspect` finds them in its mode `fast`.

        Raises:
            BackendError: the device failed.
        """
        watch = Stopwatch()
        frame = unet_letterbox(shot.sample.size)
        with watch.runs("decode"):
            pixels = images.decode_resized(shot.data, frame.resized, max_pixels=MAX_PIXELS)
        with watch.runs("infer"):
            (output,) = self._backend.infer([self._backend.prepare(pixels, frame)])
        with watch.runs("postprocess"):
            inspection = inspect(output, frame)
        fruits = tuple(fruit.mask.full() for fruit in inspection.fruits)
        return Inspected(inspection, Answer(inspection.classes, fruits, watch.milliseconds))
