"""Boxes of objects, by a detector or a model of an open vocabulary: reserve, decode, infer, suppress, draw."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.detector.letterbox import DetectorLetterbox
from models.detector.nouns import find_class, similar_classes
from models.detector.postprocess import Detection, Thresholds
from models.images import Stop
from models.letterbox import HasResized, resize
from models.overlay import draw_detections, encode_overlay
from models.types import Pixels, Size
from service.api import detection as schema
from service.api.context import RequestContext
from service.api.schema import DetectorModel
from service.errors import UnknownClass
from service.memory import Kind
from service.pipelines import costs
from service.pipelines.encoding import describe_image
from service.pipelines.engine import Engine
from service.pipelines.source import ImageInput, ImageSource
from service.runners.base import Runner
from service.runners.detector import DetectorRunner
from service.scheduler.policy import Requester
from service.scheduler.queue import BatchResult, Ticket

_DECODE: Final = "detect.decode"
_FIND: Final = "detect.find"
_DRAW: Final = "detect.draw"


class BoxLetterbox(HasResized, Protocol):
    """How an image fits into what finds boxes."""

    @property
    def original(self) -> Size:
        """Size of the image."""
        ...

    @property
    def padded(self) -> Size:
        """Size of the input."""
        ...


L = TypeVar("L", bound=BoxLetterbox)


class BoxFinder(Protocol[L]):
    """Finds boxes of some classes: a detector those that it knows, a model of an open vocabulary those in the request.

    See `DetectorRunner`.
    """

    @property
    def runner(self) -> Runner:
        """On a device."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by their indices."""
        ...

    def letterbox(self, size: Size) -> L:
        """Fit an image into the input."""
        ...

    def output_values(self, letterbox: L) -> int:
        """Return the number of values of an output."""
        ...

    def prepare(self, pixels: Pixels, letterbox: L) -> Any:
        """Return the input from a resized image; for worker threads."""
        ...

    def reserve(self, request: Requester, letterbox: L, *, deadline: float | None, ready_by: float) -> Ticket:
        """Reserve the place of one image on arrival."""
        ...

    async def infer(self, ticket: Ticket, prepared: Any) -> BatchResult[NDArray[np.float32]]:
        """Run the network on a prepared image."""
        ...

    def boxes(self, output: NDArray[np.float32], letterbox: L, thresholds: Thresholds) -> list[Detection]:
        """Return the objects in an output, best first; for worker threads."""
        ...


@dataclass(frozen=True, slots=True)
class _Decoded:
    """An image's id, the network's input, and the image's pixels where an overlay needs them."""

    image_id: str
    prepared: Any
    pixels: Pixels | None


@dataclass(frozen=True, slots=True)
class Detected(Generic[L]):
    """What was found in an image, best first, and the image's pixels where an overlay needs them."""

    image_id: str
    letterbox: L
    found: Sequence[Detection]
    pixels: Pixels | None = None


@dataclass(frozen=True, slots=True)
class DetectPipeline:
    """See the module. Nothing is kept of an image."""

    engine: Engine

    async def run(
        self, request: schema.DetectRequest, image: ImageInput, context: RequestContext
    ) -> schema.DetectResponse:
        """Find the objects of an image.

        Raises:
            ImageError, NoImage: the image cannot be used.
            UnknownModel, WrongFamily: no such detector is loaded.
            UnknownClass: it does not know a class.
            Overloaded, DeadlineUnreachable, DeadlineExceeded: there is no answer in time.
            BackendError: the device failed.
        """
        runner = self._runner(request, context)
        async with self.engine.in_time(context, runner), AsyncExitStack() as held:
            detected = await self._detect(runner, request, image, context, held)
            overlay = await self._draw(detected, runner, context)
        return schema.DetectResponse.model_construct(
            request_id=context.request_id,
            image=describe_image(detected.image_id, detected.letterbox.original),
            model=describe_detector(runner, detected.letterbox),
            detections=[
                schema.Detection.model_construct(
                    class_name=runner.backend.classes[each.class_id],
                    class_id=each.class_id,
                    score=each.score,
                    box=(each.box.x0, each.box.y0, each.box.x1, each.box.y1),
                )
                for each in detected.found
            ],
            overlay=overlay,
            batch=context.batch_sizes(),
            timing_ms=context.timing_ms(),
        )

    async def objects(
        self, request: schema.DetectRequest, image: ImageInput, context: RequestContext
    ) -> tuple[Sequence[Detection], Sequence[str]]:
        """Return objects, best first, and the names of all classes, for callers in this process; see `run`."""
        runner = self._runner(request, context)
        async with self.engine.in_time(context, runner), AsyncExitStack() as held:
            detected = await self._detect(runner, request, image, context, held)
        return detected.found, runner.backend.classes

    def _runner(self, request: schema.DetectRequest, context: RequestContext) -> DetectorRunner:
        runner = self.engine.runner(DetectorRunner, request.model)
        context.model = runner.entry.name
        return runner

    async def _detect(
        self,
        runner: DetectorRunner,
        request: schema.DetectRequest,
        image: ImageInput,
        context: RequestContext,
        held: AsyncExitStack,
    ) -> Detected[DetectorLetterbox]:
        wanted = class_ids(request.classes, runner) if request.classes else None
        thresholds = Thresholds(request.score_threshold, request.nms_threshold, request.max_detections, wanted)
        return await self.find(runner, image.required(), thresholds, context, held, overlay=request.overlay)

    async def find(
        self,
        finder: BoxFinder[L],
        source: ImageSource,
        thresholds: Thresholds,
        context: RequestContext,
        held: AsyncExitStack,
        *,
        overlay: bool = False,
        before: float = 0.0,
    ) -> Detected[L]:
        """Return what a detector or a model of an open vocabulary finds.

        Args:
            finder: finds boxes.
            source: the image.
            thresholds: which boxes are kept.
            context: of the request.
            held: what the pixels' memory goes with.
            overlay: whether the pixels are needed.
            before: seconds of the work that follows, for which time must be left.
        """
        engine = self.engine
        letterbox = finder.letterbox(await engine.size(source))
        size = letterbox.original
        following = before + engine.predict_cost(_FIND, 1) + (engine.predict(_DRAW, size) if overlay else 0.0)
        ready_by = engine.clock() + engine.predict(_DECODE, size)
        ticket = finder.reserve(context, letterbox, deadline=context.due(before=following), ready_by=ready_by)
        try:
            waiting = costs.queued_detector(letterbox.padded, size, finder.output_values(letterbox), whole=overlay)
            await held.enter_async_context(context.hold(Kind.QUEUED, waiting))
            decoded = await self._decode(finder, source, letterbox, context, overlay=overlay)
            result = await finder.infer(ticket, decoded.prepared)
        finally:
            ticket.release()
        context.timings.queue += result.queued
        context.timings.infer = result.ran
        context.batch.infer = result.batch_size
        tick = engine.clock()
        found = await engine.in_worker(finder.boxes, result.value, letterbox, thresholds)
        seconds = engine.clock() - tick
        engine.learn_cost(_FIND, 1, seconds)
        context.took("postprocess", seconds)
        context.observer.postprocessed(seconds)
        return Detected(decoded.image_id, letterbox, found, decoded.pixels)

    async def _decode(
        self,
        finder: BoxFinder[L],
        source: ImageSource,
        letterbox: L,
        context: RequestContext,
        *,
        overlay: bool,
    ) -> _Decoded:
        limit = self.engine.settings.max_pixels

        def decode(stop: Stop) -> _Decoded:
            pixels = source.pixels(limit, stop) if overlay else None
            small = source.resized([letterbox], limit, stop)[0] if pixels is None else resize(pixels, letterbox)
            return _Decoded(source.content_id(), finder.prepare(small, letterbox), pixels)

        async with context.hold(Kind.WORK, source.decoding(letterbox.original)):
            return await self.engine.decode(context, _DECODE, letterbox.original, decode)

    async def _draw(
        self, detected: Detected[DetectorLetterbox], runner: DetectorRunner, context: RequestContext
    ) -> bytes | None:
        """Draw the boxes into the image, where it was kept."""
        if detected.pixels is None:
            return None
        tick, size = self.engine.clock(), detected.letterbox.original
        async with context.hold(Kind.WORK, costs.OVERLAY * size.pixels):
            png = await self.engine.in_worker(_png, detected.pixels, detected.found, runner.backend.classes)
        seconds = self.engine.clock() - tick
        self.engine.learn(_DRAW, size, seconds)
        context.took("postprocess", seconds)
        return png


def class_ids(names: Collection[str], runner: DetectorRunner) -> list[int]:
    """Return the indices of classes by their names, in the singular or the plural.

    Raises:
        UnknownClass: the detector has none of that name.
    """
    classes, found = runner.backend.classes, []
    for name in names:
        number = find_class(name, classes)
        if number is None:
            near = similar_classes(name, classes)
            raise UnknownClass(
                f"{runner.entry.name} knows no class {name!r}{f', but {near[0]!r}' if near else ''}. A detector of "
                "other classes, or for /v1/text a model of an open vocabulary (grounding-dino or clipseg), can be "
                f"described in POMONA_MODELS_FILE and named in POMONA_MODELS. Known: {', '.join(classes)}."
            )
        found.append(number)
    return found


def describe_detector(runner: Runner, letterbox: HasResized) -> DetectorModel:
    """Describe the model that found the boxes."""
    return DetectorModel.model_construct(
        name=runner.entry.name,
        revision=runner.entry.revision,
        input_width=letterbox.resized.width,
        input_height=letterbox.resized.height,
    )


def _png(pixels: Pixels, found: Sequence[Detection], classes: Sequence[str]) -> bytes:
    """Draw labelled boxes into the image; PNG."""
    labels = [f"{classes[each.class_id]} {each.score:.2f}" for each in found]
    kinds = [each.class_id for each in found]
    return encode_overlay(draw_detections(pixels, [each.box for each in found], labels, kinds))
