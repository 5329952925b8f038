"""From a picture and prompts to encoded masks: decode, embed, mask, encode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from models import images
from models.errors import PromptError, TooManyPrompts, UnknownModel
from models.overlay import draw_overlay, encode_overlay
from models.sam.postprocess import masks_of
from models.sam.prompts import check
from models.transforms import frame_for, resize
from models.types import Image, Mask, Prompt, Size
from models.zoo import CatalogueEntry
from service.embedding_cache import EmbeddedImage, EmbeddingCache, ImageKey
from service.errors import ModelNotLoaded, NoImage, UnknownImageId
from service.formats import EncodedMask, MaskFormat, encode_mask
from service.runners import Decoded, SamRunner
from service.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """What a door hands over.

    Attributes:
        prompts: what to segment.
        data: an encoded picture, or None.
        image_id: of a picture that was sent before, or None; exactly one of the two.
        model: catalogue name, or None for the default.
        format: of the masks.
        overlay: also draw the masks into the picture; needs `data`.
    """

    prompts: Sequence[Prompt]
    data: bytes | None = None
    image_id: str | None = None
    model: str | None = None
    format: MaskFormat = "rle"
    overlay: bool = False


@dataclass(slots=True)
class Timings:
    """Seconds that the parts of a request took; the queue is time spent waiting for the device."""

    decode: float = 0.0
    queue: float = 0.0
    encode: float = 0.0
    prompt: float = 0.0
    postprocess: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class MaskResult:
    """A mask's figures and its encoding."""

    mask: Mask
    encoded: EncodedMask


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to an embed request."""

    image_id: str
    size: Size
    model: CatalogueEntry
    timings: Timings


@dataclass(frozen=True, slots=True)
class Segmented:
    """The answer to a segment request: for each prompt its masks, best first; and a PNG where asked for."""

    image_id: str
    size: Size
    model: CatalogueEntry
    results: Sequence[Sequence[MaskResult]]
    overlay: bytes | None
    timings: Timings


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The one path that every door uses.

    Attributes:
        runners: loaded models by name, the default first.
        catalogue: all models by name.
        cache: embeddings of recent pictures.
        settings: limits.
        workers: threads for pictures and masks, so that the event loop stays free.
    """

    runners: Mapping[str, SamRunner]
    catalogue: Mapping[str, CatalogueEntry]
    cache: EmbeddingCache
    settings: Settings
    workers: ThreadPoolExecutor = field(default_factory=ThreadPoolExecutor)

    async def embed(self, data: bytes, model: str | None = None) -> Embedded:
        """Encode a picture and keep its embedding.

        Raises:
            ImageError: the picture cannot be used.
            UnknownModel: no such model is loaded.
            BackendError: the device failed.
        """
        started = time.perf_counter()
        runner, timings = self._runner(model), Timings()
        image_id = await self._in_worker(images.content_id, data)
        embedded = self.cache.get(_key(image_id, runner.entry))
        if embedded is None:
            image = await self._decode(data, timings)
            embedded = await self._embed(image, runner, timings)
        timings.total = time.perf_counter() - started
        return Embedded(image_id, embedded.frame.original, runner.entry, timings)

    async def segment(self, request: SegmentRequest) -> Segmented:
        """Answer every prompt on one picture.

        Raises:
            PomonaError: of `models.errors` and `service.errors`, whatever is wrong with the request or the device.
        """
        started = time.perf_counter()
        runner, timings = self._runner(request.model), Timings()
        self._check_counts(request.prompts)
        image_id, image, embedded = await self._picture(request, runner, timings)
        decoded = await self._prompt(embedded, request.prompts, runner, timings)

        tick = time.perf_counter()
        masks = await self._masks(decoded, request, embedded)
        overlay = None
        if request.overlay and image is not None:
            overlay = await self._in_worker(_draw, image, request.prompts, masks)
        timings.postprocess = time.perf_counter() - tick
        timings.total = time.perf_counter() - started
        size = embedded.frame.original
        return Segmented(image_id, size, runner.entry, masks, overlay, timings)

    def close(self) -> None:
        """Finish what runs and stop all threads."""
        for runner in self.runners.values():
            runner.close()
        self.workers.shutdown(wait=True)

    def _runner(self, name: str | None) -> SamRunner:
        if name is None:
            return next(iter(self.runners.values()))
        if name in self.runners:
            return self.runners[name]
        loaded = ", ".join(self.runners)
        if name in self.catalogue:
            raise ModelNotLoaded(
                f"The model {name} is in the catalogue but not loaded here; loaded: {loaded}. "
                f"POMONA_MODELS={','.join([*self.runners, name])} would load it."
            )
        raise UnknownModel(f"There is no model {name!r}; loaded: {loaded}.")

    def _check_counts(self, prompts: Sequence[Prompt]) -> None:
        limit, points = self.settings.max_prompts, self.settings.max_points
        if len(prompts) > limit:
            raise TooManyPrompts(f"{len(prompts)} prompts; at most {limit} fit into one request.")
        for number, prompt in enumerate(prompts):
            if len(prompt.points) > points:
                raise TooManyPrompts(
                    f"prompts[{number}] has {len(prompt.points)} points; at most {points} fit into one prompt."
                )

    async def _picture(
        self, request: SegmentRequest, runner: SamRunner, timings: Timings
    ) -> tuple[str, Image | None, EmbeddedImage]:
        """The picture's id, its pixels where they are needed, and its embedding, with the prompts checked on it."""
        if request.data is None:
            if request.image_id is None:
                raise NoImage("Send a picture in the part image, or the image_id of an earlier answer.")
            known = self.cache.get(_key(request.image_id, runner.entry))
            if known is None:
                raise UnknownImageId(
                    f"The picture {request.image_id} is not known here for {runner.entry.name} "
                    "(never seen, expired or evicted): send it again in the part image."
                )
            _check_prompts(request.prompts, known.frame.original)
            return request.image_id, None, known

        image_id = await self._in_worker(images.content_id, request.data)
        known = self.cache.get(_key(image_id, runner.entry))
        if known is not None and not request.overlay:
            _check_prompts(request.prompts, known.frame.original)
            return image_id, None, known
        image = await self._decode(request.data, timings)
        _check_prompts(request.prompts, image.size)
        return image_id, image, known or await self._embed(image, runner, timings)

    async def _decode(self, data: bytes, timings: Timings) -> Image:
        tick = time.perf_counter()
        image = await self._in_worker(lambda: images.decode(data, max_pixels=self.settings.max_pixels))
        timings.decode += time.perf_counter() - tick
        return image

    async def _embed(self, image: Image, runner: SamRunner, timings: Timings) -> EmbeddedImage:
        """The picture's embedding; who finds it on its way counts the wait as queue."""
        tick = time.perf_counter()
        mine = Timings()

        async def encode() -> EmbeddedImage:
            frame = frame_for(image.size)
            start = time.perf_counter()
            prepared = await self._in_worker(lambda: runner.prepare(resize(image.pixels, frame)))
            mine.decode = time.perf_counter() - start
            done = await runner.encode(prepared)
            mine.queue, mine.encode = done.queued, done.ran
            return EmbeddedImage(done.value, frame)

        embedded = await self.cache.get_or_encode(_key(image.id, runner.entry), encode)
        timings.decode += mine.decode
        timings.encode = mine.encode
        timings.queue += mine.queue if mine.encode else time.perf_counter() - tick
        return embedded

    async def _prompt(
        self,
        embedded: EmbeddedImage,
        prompts: Sequence[Prompt],
        runner: SamRunner,
        timings: Timings,
    ) -> Decoded:
        done = await runner.decode(embedded.embedding, prompts, embedded.frame)
        timings.queue += done.queued
        timings.prompt = done.ran
        return done.value

    async def _masks(
        self, decoded: Decoded, request: SegmentRequest, embedded: EmbeddedImage
    ) -> list[list[MaskResult]]:
        def of(row: int, prompt: Prompt) -> list[MaskResult]:
            logits, scores = decoded.logits[row], decoded.scores[row]
            masks = masks_of(logits, scores, embedded.frame, multimask=prompt.multimask)
            return [MaskResult(mask, encode_mask(mask, request.format)) for mask in masks]

        return list(
            await asyncio.gather(*(self._in_worker(of, row, prompt) for row, prompt in enumerate(request.prompts)))
        )

    async def _in_worker(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.workers, call, *arguments)


def _key(image_id: str, entry: CatalogueEntry) -> ImageKey:
    return ImageKey(image_id, entry.name, entry.revision)


def _check_prompts(prompts: Sequence[Prompt], size: Size) -> None:
    for number, prompt in enumerate(prompts):
        try:
            check(prompt, size)
        except PromptError as error:
            raise type(error)(f"prompts[{number}]: {error.detail}") from error


def _draw(image: Image, prompts: Sequence[Prompt], results: Sequence[Sequence[MaskResult]]) -> bytes:
    """Each prompt's best mask in the picture, with the points and boxes that asked for it; PNG."""
    return encode_overlay(
        draw_overlay(
            image.pixels,
            [masks[0].mask.pixels for masks in results],
            points=[point for prompt in prompts for point in prompt.points],
            boxes=[prompt.box for prompt in prompts if prompt.box is not None],
        )
    )
