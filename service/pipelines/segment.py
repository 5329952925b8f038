"""Masks for prompts, by a SAM: look up, reserve, decode, encode the image, decode the prompts, encode the masks.

Embeddings are cached, so that an image that was seen before needs neither its pixels nor the encoder.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from models.images import Stop
from models.letterbox import Letterbox, resize
from models.masks import CroppedMask
from models.overlay import draw_overlay, encode_overlay
from models.sam.postprocess import MaskCrop
from models.types import Pixels, Prompt, Size
from service.api import schema
from service.api.context import RequestContext
from service.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    MalformedRequest,
    NoImage,
    Overloaded,
    UnknownImageId,
)
from service.memory import Kind
from service.pipelines import costs
from service.pipelines.encoding import describe_image, describe_sam, encode_mask
from service.pipelines.engine import Engine
from service.pipelines.letterboxes import candidate_letterboxes, matching, may_scale
from service.pipelines.prompts import check_counts, check_prompts, prompts_of, read_mask
from service.pipelines.source import ImageInput, ImageSource
from service.runners.embedding_cache import EmbeddedImage, EmbeddingCache, ImageKey
from service.runners.sam import Decoded, Reservation, SamRunner

T = TypeVar("T")

MaskReceiver = Callable[[int, int, MaskCrop], None]
"""Receives a mask: the prompt's number, the mask's place among its masks, best first, and the mask."""

_NO_PLACES: Final = Reservation(None, ())
_DECODE: Final = "segment.decode"
_POSTPROCESS: Final = "segment.postprocess"


@dataclass(frozen=True, slots=True)
class _Lookup:
    """An image's id, the image if it came, the letterboxes to try, the largest first, and its embedding if cached."""

    image_id: str
    source: ImageSource | None
    letterboxes: Sequence[Letterbox]
    cached: EmbeddedImage | None


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image that is encoded.

    Attributes:
        image_id: hash of the image.
        embedded: its embedding.
        pixels: of the whole image, where they were wanted.
        degraded: whether a smaller letterbox than the largest was used to meet the deadline.
    """

    image_id: str
    embedded: EmbeddedImage
    pixels: Pixels | None
    degraded: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """What the model found: its output for every prompt, and the image's pixels where an overlay needs them."""

    lookup: _Lookup
    embedded: EmbeddedImage
    decoded: Decoded
    pixels: Pixels | None

    @property
    def degraded(self) -> bool:
        """Whether a smaller letterbox than the largest was used to meet the deadline."""
        return self.embedded.letterbox != self.lookup.letterboxes[0]


@dataclass(frozen=True, slots=True)
class SegmentPipeline:
    """See the module.

    Attributes:
        engine: models and threads.
        cache: embeddings of recent images.
    """

    engine: Engine
    cache: EmbeddingCache

    async def embed(
        self, request: schema.EmbedRequest, image: ImageInput, context: RequestContext
    ) -> schema.EmbedResponse:
        """Encode an image and keep its embedding.

        Raises:
            ImageError, NoImage: the image cannot be used.
            UnknownModel, WrongFamily: no such SAM is loaded.
            Overloaded, DeadlineUnreachable, DeadlineExceeded: there is no answer in time.
            BackendError: the device failed.
        """
        runner = self.runner(request, context)
        image.required()
        async with self.engine.in_time(context, runner), self.encoded(runner, request, image, context) as encoded:
            letterbox = encoded.embedded.letterbox
        return schema.EmbedResponse.model_construct(
            request_id=context.request_id,
            image=describe_image(encoded.image_id, letterbox.original),
            model=describe_sam(runner, letterbox),
            batch=context.batch_sizes(),
            timing_ms=context.timing_ms(),
        )

    @asynccontextmanager
    async def encoded(
        self,
        runner: SamRunner,
        request: schema.EmbedRequest,
        image: ImageInput,
        context: RequestContext,
        *,
        masks: int = 0,
        beside: int = 0,
        whole: bool = False,
    ) -> AsyncIterator[Encoded]:
        """Encode an image, or find its embedding in the cache, and hold memory until the block ends.

        Args:
            runner: of the SAM.
            request: with the input size and the padding.
            image: with the image or its id.
            context: of the request.
            masks: low-resolution masks that the caller has in hand at a time.
            beside: further bytes that the caller needs.
            whole: whether the image's pixels are needed too.
        """
        lookup = await self._look_up(request, image, runner)
        with ExitStack() as places:
            embedded, reservation = lookup.cached, _NO_PLACES
            letterbox = lookup.letterboxes[0] if embedded is None else embedded.letterbox
            if embedded is None:
                letterbox, reservation = places.enter_context(self._reserved(runner, lookup, (), context))
            waiting = costs.queued_sam(letterbox, masks, whole=whole)
            async with context.hold(Kind.QUEUED, waiting + beside):
                pixels = await self._pixels(image.required(), letterbox, context) if whole else None
                if embedded is None:
                    embedded = await self._embed(runner, lookup, pixels, letterbox, reservation, context)
                degraded = letterbox != lookup.letterboxes[0]
                yield Encoded(lookup.image_id, embedded, pixels, degraded)

    async def run(
        self, request: schema.SegmentRequest, image: ImageInput, context: RequestContext
    ) -> schema.SegmentResponse:
        """Return the masks of every prompt on an image.

        Raises:
            PomonaError: of `models.errors` and `service.errors`, whatever is wrong with the request or the device.
        """
        image.check_one()
        if request.overlay and image.source is None:
            raise MalformedRequest(
                "overlay needs the image's pixels, of which only the embedding is kept: send the image, or leave "
                "overlay out."
            )
        return await self.segment(request, prompts_of(request.prompts, self.engine.settings), image, context)

    async def segment(
        self, request: schema.SegmentRequest, prompts: Sequence[Prompt], image: ImageInput, context: RequestContext
    ) -> schema.SegmentResponse:
        """Return encoded masks for prompts that are converted already; see `run`.

        Args:
            request: its prompts are not looked at.
            prompts: at least one.
            image: with the image or its id.
            context: of the request.
        """
        runner = self.runner(request, context)
        async with (
            self.engine.in_time(context, runner),
            self._predict(runner, request, prompts, image, context, overlay=request.overlay) as found,
        ):
            letterbox = found.embedded.letterbox
            results, overlay = await self._encode(found, prompts, request, context)
        return schema.SegmentResponse.model_construct(
            request_id=context.request_id,
            image=describe_image(found.lookup.image_id, letterbox.original),
            model=describe_sam(runner, letterbox),
            results=results,
            overlay=overlay,
            degraded=found.degraded,
            batch=context.batch_sizes(),
            timing_ms=context.timing_ms(),
        )

    async def masks(
        self,
        request: schema.EmbedRequest,
        prompts: Sequence[Prompt],
        image: ImageInput,
        context: RequestContext,
        receiver: Callable[[Size], MaskReceiver],
        beside: int,
    ) -> bool:
        """Hand masks as arrays to a caller in this process; see `segment`.

        Args:
            request: with the model and its input size.
            prompts: at least one.
            image: with the image or its id.
            context: of the request.
            receiver: makes, for the size of the image, what receives each mask in a worker thread.
            beside: bytes that the caller makes of the masks.

        Returns:
            Whether a smaller input than the largest was used.
        """
        runner = self.runner(request, context)
        async with (
            self.engine.in_time(context, runner),
            self._predict(runner, request, prompts, image, context, overlay=False, beside=beside) as found,
        ):
            letterbox = found.embedded.letterbox
            receive = receiver(letterbox.original)

            def convert(row: int) -> None:
                for place, mask in enumerate(found.decoded.crops(row, letterbox)):
                    receive(row, place, mask)

            async with self._postprocess(context, letterbox, len(prompts)):
                await self.for_each(len(prompts), convert, letterbox.original, "rle", context)
            return found.degraded

    @asynccontextmanager
    async def _predict(
        self,
        runner: SamRunner,
        request: schema.EmbedRequest,
        prompts: Sequence[Prompt],
        image: ImageInput,
        context: RequestContext,
        *,
        overlay: bool,
        beside: int = 0,
    ) -> AsyncIterator[_Found]:
        """Run the model: its low-resolution logits for every prompt, and the image's pixels for an overlay.

        Their memory is held until the block ends.
        """
        check_counts(prompts, self.engine.settings)
        lookup = await self._look_up(request, image, runner)
        embedded, pixels = lookup.cached, None
        with self._reserved(runner, lookup, prompts, context) as (letterbox, reservation):
            waiting = costs.queued_sam(letterbox, costs.masks_of(prompts), whole=overlay)
            async with context.hold(Kind.QUEUED, waiting + beside):
                prompts = await self._with_logits(prompts, letterbox, context)
                if overlay:
                    pixels = await self._pixels(image.required(), letterbox, context)
                if embedded is None:
                    embedded = await self._embed(runner, lookup, pixels, letterbox, reservation, context)
                decoded = await self._decode_prompts(runner, embedded, prompts, reservation, context)
                yield _Found(lookup, embedded, decoded, pixels)

    def runner(self, request: schema.EmbedRequest, context: RequestContext) -> SamRunner:
        """Choose the SAM that answers.

        Raises:
            UnknownModel, WrongFamily: no such SAM is loaded.
        """
        runner = self.engine.runner(SamRunner, request.model)
        context.model = runner.entry.name
        return runner

    async def _with_logits(
        self, prompts: Sequence[Prompt], letterbox: Letterbox, context: RequestContext
    ) -> Sequence[Prompt]:
        """Decode mask prompts one after another, keeping of each what the decoder takes."""
        cost = costs.mask_prompts(prompts)
        if not cost:
            return prompts
        async with context.hold(Kind.WORK, cost):
            return [
                await self.engine.in_worker(read_mask, number, prompt, letterbox)
                for number, prompt in enumerate(prompts)
            ]

    async def _look_up(self, request: schema.EmbedRequest, image: ImageInput, runner: SamRunner) -> _Lookup:
        """Find the image's embedding, or the letterboxes in which it may be encoded."""
        entry, source = runner.entry, image.source
        if source is None:
            image.check_one()
            image_id = image.image_id or ""
            cached = {item.letterbox: item for item in self.cache.find(image_id, entry.name, entry.revision)}
            letterboxes = matching(request, list(cached))
            if not letterboxes:
                raise UnknownImageId(
                    f"The image {image_id} is not known for {entry.name} at this input size (never seen, expired or "
                    "evicted): send the image again."
                )
            return _Lookup(image_id, None, letterboxes[:1], cached[letterboxes[0]])
        small = source.nbytes <= costs.HASHED_AT_ONCE
        image_id = source.content_id() if small else await self.engine.in_worker(source.content_id)
        size = await self.engine.size(source)
        letterboxes = candidate_letterboxes(request, size, runner.backend, self.engine.input_size(runner))
        for letterbox in letterboxes:
            if (found := self.cache.get(_key(image_id, letterbox, runner))) is not None:
                return _Lookup(image_id, source, [letterbox], found)
        return _Lookup(image_id, source, letterboxes, None)

    @contextmanager
    def _reserved(
        self, runner: SamRunner, lookup: _Lookup, prompts: Sequence[Prompt], context: RequestContext
    ) -> Iterator[tuple[Letterbox, Reservation]]:
        """Reserve places on the device, in the largest letterbox that is in time; released where they are unused."""
        letterbox, reservation = self._reserve(runner, lookup, prompts, context)
        try:
            yield letterbox, reservation
        finally:
            reservation.release()

    def _reserve(
        self, runner: SamRunner, lookup: _Lookup, prompts: Sequence[Prompt], context: RequestContext
    ) -> tuple[Letterbox, Reservation]:
        engine = self.engine
        for letterbox in lookup.letterboxes:
            check_prompts(prompts, letterbox)
            encode = not self.cache.has_or_expects(_key(lookup.image_id, letterbox, runner))
            size = letterbox.original
            deadline = context.due(before=engine.predict(_POSTPROCESS, size, len(prompts)) if prompts else 0.0)
            ready_by = engine.clock() + (engine.predict(_DECODE, size) if encode else 0.0)
            last = letterbox is lookup.letterboxes[-1]
            try:
                return letterbox, runner.reserve(
                    context, prompts, letterbox, deadline=deadline, encode=encode, ready_by=ready_by, last=last
                )
            except DeadlineUnreachable:
                if last:
                    raise
        raise ValueError("there must be at least one letterbox")

    async def _pixels(self, source: ImageSource, letterbox: Letterbox, context: RequestContext) -> Pixels:
        """Return the whole image, to draw into."""
        limit = self.engine.settings.max_pixels
        async with context.hold(Kind.WORK, source.decoding(letterbox.original)):
            return await self.engine.decode(
                context, "segment.overlay", letterbox.original, lambda stop: source.pixels(limit, stop)
            )

    async def _embed(
        self,
        runner: SamRunner,
        lookup: _Lookup,
        pixels: Pixels | None,
        letterbox: Letterbox,
        reservation: Reservation,
        context: RequestContext,
    ) -> EmbeddedImage:
        """Return the image's embedding; a request that finds it being made counts the wait as queue."""
        engine, tick, ticket = self.engine, self.engine.clock(), reservation.encode
        mine = False

        async def encode() -> EmbeddedImage:
            nonlocal mine, ticket
            mine = True
            source, towards = lookup.source, [letterbox] if may_scale(letterbox) else []
            cost = 0 if source is None or pixels is not None else source.decoding(letterbox.original, towards)
            async with context.hold(Kind.WORK, cost):
                prepared = await engine.decode(
                    context,
                    _DECODE if pixels is None else "segment.resize",
                    letterbox.original,
                    lambda stop: _prepare(lookup.source, pixels, letterbox, runner, engine.settings.max_pixels, stop),
                )
            if ticket is None:
                # The embedding was being made when this request came, and then was given up.
                ticket = runner.reserve_encode(context, letterbox, deadline=context.due(), ready_by=engine.clock())
            result = await runner.encode(ticket, prepared)
            context.timings.queue += result.queued
            context.timings.encode = result.ran
            context.batch.encode = result.batch_size
            return EmbeddedImage(result.value, letterbox)

        key = _key(lookup.image_id, letterbox, runner)
        try:
            while True:
                try:
                    embedded = await self.cache.get_or_encode(key, encode)
                    break
                except (DeadlineExceeded, DeadlineUnreachable, Overloaded):
                    # The deadline of the other request that began the encoding is not ours.
                    if mine:
                        raise
        finally:
            if ticket is not None:
                ticket.release()
        if not mine:
            context.took("queue", engine.clock() - tick)
        return embedded

    async def _decode_prompts(
        self,
        runner: SamRunner,
        embedded: EmbeddedImage,
        prompts: Sequence[Prompt],
        reservation: Reservation,
        context: RequestContext,
    ) -> Decoded:
        result = await runner.decode(reservation, embedded.embedding, prompts, embedded.letterbox)
        context.timings.queue += result.queued
        context.timings.prompt = result.ran
        context.batch.prompt = result.batch_size
        return result.value

    async def _encode(
        self, found: _Found, prompts: Sequence[Prompt], request: schema.SegmentRequest, context: RequestContext
    ) -> tuple[list[schema.PromptResult], bytes | None]:
        """Upsample and encode the masks, and draw the overlay where requested."""
        letterbox, pixels, overlay = found.embedded.letterbox, found.pixels, None

        def encode(row: int) -> schema.PromptResult:
            masks = found.decoded.crops(row, letterbox)
            return schema.PromptResult.model_construct(masks=[encode_mask(mask, request.format) for mask in masks])

        async with self._postprocess(context, letterbox, len(prompts)):
            results = await self.for_each(len(prompts), encode, letterbox.original, request.format, context)
            if pixels is not None:
                async with context.hold(Kind.WORK, costs.OVERLAY * letterbox.original.pixels):
                    overlay = await self.engine.in_worker(_draw, found, prompts)
        return results, overlay

    async def for_each(
        self,
        prompts: int,
        call: Callable[[int], T],
        size: Size,
        mask_format: schema.MaskFormat,
        context: RequestContext,
    ) -> list[T]:
        """Call for every prompt in worker threads, for as many at a time as their masks take little memory."""
        turns = asyncio.Semaphore(costs.at_once(size, mask_format))

        async def one(row: int) -> T:
            async with turns:
                return await self.engine.in_worker(call, row)

        async with context.hold(Kind.WORK, costs.encoding(size, mask_format, prompts)):
            return await asyncio.gather(*map(one, range(prompts)))

    @asynccontextmanager
    async def _postprocess(self, context: RequestContext, letterbox: Letterbox, prompts: int) -> AsyncIterator[None]:
        """Measure what comes after the model, and learn from it."""
        tick = self.engine.clock()
        yield
        seconds = self.engine.clock() - tick
        self.engine.learn(_POSTPROCESS, letterbox.original, seconds, prompts)
        context.took("postprocess", seconds)
        context.observer.postprocessed(seconds)


def _key(image_id: str, letterbox: Letterbox, runner: SamRunner) -> ImageKey:
    return ImageKey(image_id, runner.entry.name, runner.entry.revision, letterbox.side, letterbox.padded)


def _prepare(
    source: ImageSource | None,
    pixels: Pixels | None,
    letterbox: Letterbox,
    runner: SamRunner,
    max_pixels: int,
    stop: Stop,
) -> Any:
    """Return the encoder's input from an image that is decoded already, or from its source."""
    if pixels is None:
        if source is None:
            raise NoImage("The embedding was evicted while the request waited: send the image again.")
        (pixels,) = source.resized([letterbox], max_pixels, stop, scaled=may_scale(letterbox))
    else:
        pixels = resize(pixels, letterbox)
    return runner.prepare(pixels, letterbox)


def _draw(found: _Found, prompts: Sequence[Prompt]) -> bytes:
    """Draw each prompt's best mask into the image, with its points and box; PNG."""
    if found.pixels is None:
        raise ValueError("there must be pixels to draw into")

    def best(row: int) -> CroppedMask:
        return next(found.decoded.crops(row, found.embedded.letterbox)).crop

    masks = [functools.partial(best, row) for row in range(len(prompts))]
    points = [point for prompt in prompts for point in prompt.points]
    boxes = [prompt.box for prompt in prompts if prompt.box is not None]
    return encode_overlay(draw_overlay(found.pixels, masks, points=points, boxes=boxes))
