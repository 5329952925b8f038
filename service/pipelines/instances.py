"""Masks of what a detector or a model of an open vocabulary finds: boxes prompt a SAM, in one request to the decoder.

The SAM's part is the pipeline of segment, with its cache of embeddings: an image that was seen before is not encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from models.detector.nouns import find_class, nouns_of
from models.detector.postprocess import Detection, Thresholds
from models.errors import MalformedPrompt, TooManyPrompts
from models.letterbox import letterbox_for
from models.sam.prompts import check
from models.types import FOREGROUND, Point, Prompt
from service.api import detection as schema
from service.api.context import RequestContext
from service.api.schema import SegmentRequest, SegmentResponse
from service.errors import UnknownClass
from service.pipelines.detect import BoxFinder, DetectPipeline, L, class_ids, describe_detector
from service.pipelines.encoding import describe_image
from service.pipelines.engine import Engine
from service.pipelines.letterboxes import candidate_letterboxes
from service.pipelines.segment import SegmentPipeline
from service.pipelines.source import ImageInput
from service.runners.detector import DetectorRunner
from service.runners.grounding import GroundingRunner
from service.runners.sam import SamRunner

_Request: TypeAlias = schema.InstancesRequest | schema.TextRequest

_OUTLINE: Final = "instances.outline"
"""Work of the SAM, from what the detector found to the answer."""


@dataclass(frozen=True, slots=True)
class InstancesPipeline:
    """See the module.

    Attributes:
        engine: models and threads.
        detect: finds the boxes.
        segment: outlines what is in them.
    """

    engine: Engine
    detect: DetectPipeline
    segment: SegmentPipeline

    async def run(
        self, request: schema.InstancesRequest, image: ImageInput, context: RequestContext
    ) -> schema.InstancesResponse:
        """Find and outline the objects of an image.

        Raises:
            PomonaError: see `DetectPipeline.run` and `SegmentPipeline.run`.
        """
        runner = self.engine.runner(DetectorRunner, request.model)
        wanted = class_ids(request.classes, runner) if request.classes else None
        return schema.InstancesResponse.model_construct(**await self._find(request, runner, wanted, (), image, context))

    async def text(
        self, request: schema.TextRequest, image: ImageInput, context: RequestContext
    ) -> schema.TextResponse:
        """Find and outline what a text names, refined by clicks.

        A detector that knows all of the nouns answers, else a model of an open vocabulary, where one is loaded.

        Raises:
            UnknownClass: the text names nothing, or something that neither knows.
            MalformedPrompt: the text is more than the model can read.
            PomonaError: see `DetectPipeline.run` and `SegmentPipeline.run`.
        """
        nouns = list(dict.fromkeys(nouns_of(request.text)))
        if not nouns:
            raise UnknownClass(f"text must name what to segment, got {request.text!r}.")
        if len(nouns) > schema.MAX_NOUNS:
            raise MalformedPrompt(f"text must name at most {schema.MAX_NOUNS} things, got {len(nouns)}.")
        points = self._points(request)
        grounding = self._grounding(request.model, nouns)
        if grounding is not None:
            asked = grounding.asked(nouns)
            fields = await self._find(request, asked, None, points, image, context)
            return schema.TextResponse.model_construct(**fields, classes=nouns)
        runner = self.engine.runner(DetectorRunner, request.model)
        wanted = list(dict.fromkeys(class_ids(nouns, runner)))
        fields = await self._find(request, runner, wanted, points, image, context)
        return schema.TextResponse.model_construct(**fields, classes=[runner.classes[number] for number in wanted])

    def _grounding(self, name: str | None, nouns: Sequence[str]) -> GroundingRunner | None:
        """Return the model of an open vocabulary that answers, or None where a detector does."""
        runners = self.engine.runners
        if name is not None:
            entry = self.engine.catalogue.get(name)
            named = entry is not None and entry.architecture.family == "grounding"
            return self.engine.runner(GroundingRunner, name) if named else None
        by_default = next((each for each in runners.values() if isinstance(each, GroundingRunner)), None)
        detector = next((each for each in runners.values() if isinstance(each, DetectorRunner)), None)
        if detector is not None and all(find_class(noun, detector.classes) is not None for noun in nouns):
            return None
        return by_default

    async def _find(
        self,
        request: _Request,
        finder: BoxFinder[L],
        wanted: Sequence[int] | None,
        points: Sequence[Point],
        image: ImageInput,
        context: RequestContext,
    ) -> dict[str, Any]:
        """Return the fields of the answer."""
        engine, source = self.engine, image.required()
        sam, runner = engine.runner(SamRunner, request.sam_model), finder.runner
        context.model = runner.entry.name
        thresholds = Thresholds(request.score_threshold, request.nms_threshold, self._most(request), wanted)
        answer: SegmentResponse | None = None
        async with engine.in_time(context, runner):
            size = await engine.size(source)
            outlines = _as_segment(request, sam)
            # Refused here where the SAM would refuse it later.
            candidate_letterboxes(outlines, size, sam.backend, engine.input_size(sam))
            if points:
                check(Prompt(tuple(points)), letterbox_for(size))
            outlining = engine.predict(_OUTLINE, size)
            async with AsyncExitStack() as held:
                detected = await self.detect.find(finder, source, thresholds, context, held, before=outlining)
            if detected.found:
                tick = engine.clock()
                prompts = _prompts(detected.found, points)
                answer = await self.segment.segment(outlines, prompts, image, context)
                engine.learn(_OUTLINE, size, engine.clock() - tick)
        context.model = runner.entry.name
        return {
            "request_id": context.request_id,
            "image": describe_image(detected.image_id, size),
            "models": schema.InstancesModels.model_construct(
                detector=describe_detector(runner, detected.letterbox), sam=None if answer is None else answer.model
            ),
            "instances": _instances(detected.found, answer, finder.classes),
            "overlay": None if answer is None else answer.overlay,
            "degraded": answer is not None and answer.degraded,
            "batch": context.batch_sizes(),
            "timing_ms": context.timing_ms(),
        }

    def _most(self, request: _Request) -> int:
        limit = self.engine.settings.max_prompts
        if request.max_instances is not None and request.max_instances > limit:
            raise TooManyPrompts(f"max_instances must be at most {limit}, got {request.max_instances}.")
        return request.max_instances or limit

    def _points(self, request: schema.TextRequest) -> list[Point]:
        points, limit = request.points or [], self.engine.settings.max_points
        labels = [FOREGROUND] * len(points) if request.labels is None else request.labels
        if len(labels) != len(points):
            raise MalformedPrompt(
                f"There must be one label per point, got {len(points)} points and {len(labels)} labels."
            )
        if len(points) > limit:
            raise TooManyPrompts(f"points must have at most {limit} points, got {len(points)}.")
        return [Point(x, y, label) for (x, y), label in zip(points, labels, strict=True)]


def _as_segment(request: _Request, sam: SamRunner) -> SegmentRequest:
    return SegmentRequest(
        model=sam.entry.name,
        input_size=request.input_size,
        padding=request.padding,
        prompts=[],
        format=request.format,
        overlay=request.overlay,
    )


def _prompts(found: Sequence[Detection], points: Sequence[Point]) -> list[Prompt]:
    """Return a prompt for one mask per box, with the clicks whose smallest box it is.

    Raises:
        MalformedPrompt: a click lies in no box.
    """
    clicks: list[list[Point]] = [[] for _ in found]
    for number, point in enumerate(points):
        around = [row for row, each in enumerate(found) if _contains(each, point)]
        if not around:
            raise MalformedPrompt(
                f"points[{number}] must lie in a box of what the text names, got ({point.x:g}, {point.y:g})."
            )
        clicks[min(around, key=lambda row: _area(found[row]))].append(point)
    return [Prompt(tuple(near), box=each.box, multimask=False) for near, each in zip(clicks, found, strict=True)]


def _contains(each: Detection, point: Point) -> bool:
    box = each.box
    return box.x0 <= point.x < box.x1 and box.y0 <= point.y < box.y1


def _area(each: Detection) -> float:
    box = each.box
    return (box.x1 - box.x0) * (box.y1 - box.y0)


def _instances(
    found: Sequence[Detection], answer: SegmentResponse | None, classes: Sequence[str]
) -> list[schema.Instance]:
    if answer is None:
        return []
    return [
        schema.Instance.model_construct(
            class_name=classes[each.class_id],
            class_id=each.class_id,
            score=each.score,
            detected_box=(each.box.x0, each.box.y0, each.box.x1, each.box.y1),
            mask=result.masks[0].mask,
            mask_score=result.masks[0].score,
            stability_score=result.masks[0].stability_score,
            box=result.masks[0].box,
            area=result.masks[0].area,
        )
        for each, result in zip(found, answer.results, strict=True)
    ]
