"""The class of every pixel, by a U-Net: reserve, decode, infer, classify, encode."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.images import Stop
from models.letterbox import resize
from models.masks import CroppedMask, whole
from models.overlay import CLASS_COLOURS, draw_overlay, encode_class_map, encode_overlay
from models.types import PixelClass, Pixels, SemanticMap
from models.unet.instances import Cells
from models.unet.letterbox import UNetLetterbox
from models.unet.postprocess import Region, class_map, objects
from service.api import schema
from service.api.context import RequestContext
from service.memory import Kind
from service.pipelines import costs
from service.pipelines.encoding import FRUIT_CLASSES, describe_image, describe_unet, encode_class
from service.pipelines.engine import Engine
from service.pipelines.shadow import Shadows, grades_of
from service.pipelines.source import ImageInput, ImageSource
from service.runners.unet import UNetRunner

_DECODE: Final = "semantic.decode"
_POSTPROCESS: Final = "semantic.postprocess"


@dataclass(frozen=True, slots=True)
class _Decoded:
    """An image's id, the network's input, and the image's pixels where an overlay needs them."""

    image_id: str
    prepared: Any
    pixels: Pixels | None


@dataclass(frozen=True, slots=True)
class Classified:
    """What the network saw: classes uint8 (height, width) of the image, and the fruit."""

    classes: SemanticMap
    regions: list[Region]


@dataclass(frozen=True, slots=True)
class SemanticPipeline:
    """See the module. Nothing is kept of an image, unless another revision is to see it too.

    Attributes:
        engine: models and threads.
        shadows: other revisions.
    """

    engine: Engine
    shadows: Shadows

    async def run(
        self, request: schema.SemanticRequest, image: ImageInput, context: RequestContext
    ) -> schema.SemanticResponse:
        """Classify every pixel of an image.

        Raises:
            ImageError, NoImage: the image cannot be used.
            UnknownModel, WrongFamily: no such U-Net is loaded.
            Overloaded, DeadlineUnreachable, DeadlineExceeded: there is no answer in time.
            BackendError: the device failed.
        """
        source = image.required()
        runner = self.engine.runner(UNetRunner, request.model)
        context.model = runner.entry.name
        async with self.engine.in_time(context, runner), AsyncExitStack() as held:
            decoded, letterbox, logits = await self._infer(runner, source, context, held, overlay=request.overlay)
            cost = costs.encoding_classes(letterbox.original, overlay=request.overlay)
            async with context.hold(Kind.WORK, cost), self._postprocess(context, letterbox):
                found = await self.engine.in_worker(_interpret, logits, letterbox)
                classes, png, overlay = await self.engine.in_worker(_encode, found, decoded.pixels, request.format)
        return schema.SemanticResponse.model_construct(
            request_id=context.request_id,
            image=describe_image(decoded.image_id, letterbox.original),
            model=describe_unet(runner, letterbox),
            classes=classes,
            class_map=png,
            objects=[
                schema.Region.model_construct(
                    pixel_class=schema.CLASS_NAMES[region.pixel_class],
                    box=region.box,
                    area=region.area,
                    score=region.score,
                )
                for region in found.regions
            ],
            overlay=overlay,
            batch=context.batch_sizes(),
            timing_ms=context.timing_ms(),
        )

    async def classify(
        self, model: str | None, image: ImageInput, context: RequestContext, beside: int = 0
    ) -> Classified:
        """Return classes and fruit as arrays, for callers in this process, who make `beside` bytes of them per pixel.

        See `run`.
        """
        source = image.required()
        runner = self.engine.runner(UNetRunner, model)
        context.model = runner.entry.name
        async with self.engine.in_time(context, runner), AsyncExitStack() as held:
            _, letterbox, logits = await self._infer(runner, source, context, held, overlay=False, beside=beside)
            cost = costs.encoding_classes(letterbox.original, overlay=False)
            async with context.hold(Kind.WORK, cost), self._postprocess(context, letterbox):
                return await self.engine.in_worker(_interpret, logits, letterbox)

    async def _infer(
        self,
        runner: UNetRunner,
        source: ImageSource,
        context: RequestContext,
        held: AsyncExitStack,
        *,
        overlay: bool,
        beside: int = 0,
    ) -> tuple[_Decoded, UNetLetterbox, NDArray[np.float32]]:
        """Return the decoded image, its letterbox and the network's output, whose memory goes with `held`."""
        engine = self.engine
        letterbox = runner.letterbox(await engine.size(source))
        size = letterbox.original
        deadline = context.due(before=engine.predict(_POSTPROCESS, size))
        ready_by = engine.clock() + engine.predict(_DECODE, size)
        ticket = runner.reserve(context, letterbox, deadline=deadline, ready_by=ready_by)
        try:
            waiting = costs.queued_unet(letterbox.padded, size, whole=overlay) + beside * size.pixels
            await held.enter_async_context(context.hold(Kind.QUEUED, waiting))
            decoded = await self._decode(runner, source, letterbox, context, overlay=overlay)
            result = await runner.infer(ticket, decoded.prepared)
        finally:
            ticket.release()
        context.timings.queue, context.timings.infer = result.queued, result.ran
        context.batch.infer = result.batch_size
        grades = grades_of(engine.settings.grades)
        self.shadows.offer(runner, decoded.prepared, letterbox, result.value, source, grades, context)
        return decoded, letterbox, result.value

    @asynccontextmanager
    async def _postprocess(self, context: RequestContext, letterbox: UNetLetterbox) -> AsyncIterator[None]:
        """Measure what comes after the network, and learn from it."""
        tick = self.engine.clock()
        yield
        seconds = self.engine.clock() - tick
        self.engine.learn(_POSTPROCESS, letterbox.original, seconds)
        context.took("postprocess", seconds)
        context.observer.postprocessed(seconds)

    async def _decode(
        self,
        runner: UNetRunner,
        source: ImageSource,
        letterbox: UNetLetterbox,
        context: RequestContext,
        *,
        overlay: bool,
    ) -> _Decoded:
        limit = self.engine.settings.max_pixels

        def decode(stop: Stop) -> _Decoded:
            pixels = source.pixels(limit, stop) if overlay else None
            if pixels is None:
                (small,) = source.resized([letterbox], limit, stop, scaled=True)
            else:
                small = resize(pixels, letterbox)
            return _Decoded(source.content_id(), runner.prepare(small, letterbox), pixels)

        async with context.hold(Kind.WORK, source.decoding(letterbox.original, [] if overlay else [letterbox])):
            return await self.engine.decode(context, _DECODE, letterbox.original, decode)


def _interpret(output: NDArray[np.float32], letterbox: UNetLetterbox) -> Classified:
    """Return the classes and the fruit in an output of the network."""
    cells = Cells.of(output, letterbox)
    return Classified(class_map(cells), objects(cells))


def _encode(
    classified: Classified, pixels: Pixels | None, mask_format: schema.SemanticFormat
) -> tuple[list[schema.ClassMask], bytes | None, bytes | None]:
    """Return the masks of the classes, all classes as one PNG where requested, and the overlay where requested."""
    found = classified.classes
    classes = [encode_class(found, pixel_class, mask_format) for pixel_class in FRUIT_CLASSES]
    png = encode_class_map(found) if mask_format == "png" else None
    overlay = None
    if pixels is not None:
        masks = [functools.partial(_mask_of, found, pixel_class) for pixel_class in FRUIT_CLASSES]
        colours = [CLASS_COLOURS[pixel_class] for pixel_class in FRUIT_CLASSES]
        overlay = encode_overlay(draw_overlay(pixels, masks, colours=colours))
    return classes, png, overlay


def _mask_of(classes: SemanticMap, pixel_class: PixelClass) -> CroppedMask:
    return whole(classes == pixel_class)
