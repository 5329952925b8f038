"""The detector's part of an inspection: its boxes of fruit, found while the U-Net classifies pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from models.detector.classes import FRUIT
from models.detector.letterbox import DetectorLetterbox
from models.detector.nouns import find_class
from models.detector.postprocess import Detection
from models.finding import FINDING, found_by_both, found_by_detector
from models.inspection import Inspection
from service.api.context import BatchSizes, RequestContext, Timings
from service.api.schema import InspectRequest
from service.errors import UnknownClass
from service.pipelines.detect import DetectPipeline
from service.pipelines.source import ImageSource
from service.runners.detector import DetectorRunner


@dataclass(frozen=True, slots=True)
class Boxes:
    """A detector's boxes of fruit.

    Attributes:
        letterbox: of the image.
        found: best first.
    """

    letterbox: DetectorLetterbox
    found: Sequence[Detection]


@dataclass(frozen=True, slots=True)
class Finding:
    """A detector that is to find fruit, and how its boxes and the U-Net's fruit become one."""

    detect: DetectPipeline
    runner: DetectorRunner
    class_ids: tuple[int, ...]
    combine: Callable[[Inspection, Sequence[Detection]], Inspection]
    wanted: bool
    """Whether the request names the finder, so that it is an error where the detector would be late."""

    @classmethod
    def of(cls, detect: DetectPipeline, request: InspectRequest) -> Finding | None:
        """Choose what a request asks for; None where the U-Net alone finds fruit.

        Raises:
            UnknownModel, WrongFamily: no such detector is loaded, and the request needs one.
            UnknownClass: the detector knows no fruit, and the request needs one that does.
        """
        wanted = request.finder in ("detector", "both") or request.detector is not None
        if request.finder == "unet" or not (wanted or detect.engine.default("detector")):
            return None
        runner = detect.engine.runner(DetectorRunner, request.detector)
        known = [find_class(name, runner.backend.classes) for name in FRUIT]
        ids = tuple(number for number in known if number is not None)
        if not ids:
            if wanted:
                raise UnknownClass(f"{runner.entry.name} knows neither {' nor '.join(FRUIT)}, and so finds no fruit.")
            return None
        combine = found_by_detector if request.finder == "detector" else found_by_both
        return cls(detect, runner, ids, combine, wanted)

    async def find(self, source: ImageSource, context: RequestContext) -> Boxes:
        """Find fruit.

        Raises:
            Overloaded, DeadlineUnreachable, DeadlineExceeded: the boxes would be late.
            BackendError: the device failed.
        """
        own = replace(context, timings=Timings(), batch=BatchSizes(), held=[])
        async with AsyncExitStack() as held:
            thresholds = replace(FINDING, class_ids=self.class_ids)
            detected = await self.detect.find(self.runner, source, thresholds, own, held)
        return Boxes(detected.letterbox, detected.found)
