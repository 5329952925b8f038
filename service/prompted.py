"""From a picture and prompts to encoded masks: look up, reserve, decode, embed, mask, encode."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from models import images
from models.catalog import CatalogueEntry
from models.errors import PromptError, TooManyPrompts
from models.letterbox import Letterbox, resize
from models.sam.constants import INPUT_SIDE
from models.sam.prompts import check
from models.types import Image, Prompt
from service.embedding_cache import EmbeddedImage, EmbeddingCache, ImageKey
from service.errors import DeadlineExceeded, DeadlineUnreachable, NoImage, Overloaded, UnknownImageId
from service.frames import candidate_frames, matching
from service.keys import megapixels
from service.messages import Embedded, InputChoice, MaskResult, Segmented, SegmentRequest, Timings, When
from service.observability.tracing import took
from service.reception import Reception, Visit
from service.rendering import render_masks, render_overlay
from service.runners.sam import Decoded, Reservation, SamRunner
from service.service_times import ServiceTimes

_DECODE: Final = "decode"
_POSTPROCESS: Final = "postprocess"
_HASHED_AT_ONCE: Final = 512 * 1024
"""Bytes; about 0.3 ms of the event loop."""
_NO_IMAGE: Final = "Send a picture in the part image, or the image_id of an earlier answer."

_Visit = Visit[SamRunner]


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture's id, its bytes where they came, the frames to try, the largest first, and its embedding if at hand."""

    image_id: str
    data: bytes | None
    frames: Sequence[Letterbox]
    known: EmbeddedImage | None


@dataclass(frozen=True, slots=True)
class PromptedPath:
    """What SAMs answer.

    Attributes:
        reception: where requests begin.
        cache: embeddings of recent pictures.
        times: learned of what the workers do, by megapixels.
    """

    reception: Reception
    cache: EmbeddingCache
    times: ServiceTimes = field(default_factory=ServiceTimes)

    async def embed(
        self,
        data: bytes,
        model: str | None,
        choice: InputChoice,
        when: When,
    ) -> Embedded:
        """Encode a picture and keep its embedding; see `Pipeline.embed`."""
        visit = self.reception.arrive(SamRunner, model, when)
        async with self.reception.in_time(visit):
            picture = await self._look_up(data, None, choice, visit.runner)
            known = picture.known
            if known is None:
                with self._reserved(visit, picture, ()) as (frame, reservation):
                    known = await self._embed(picture, None, frame, visit, reservation)
        return Embedded(picture.image_id, known.frame, visit.runner.entry, visit.timings, visit.together)

    async def segment(self, request: SegmentRequest) -> Segmented:
        """Answer every prompt on one picture; see `Pipeline.segment`."""
        visit = self.reception.arrive(SamRunner, request.model, request.when)
        self._check_counts(request.prompts)
        async with self.reception.in_time(visit):
            picture = await self._look_up(request.data, request.image_id, request.input, visit.runner)
            known, image = picture.known, None
            with self._reserved(visit, picture, request.prompts) as (frame, reservation):
                if request.overlay:
                    image = await self._decode(request.data, visit)
                if known is None:
                    known = await self._embed(picture, image, frame, visit, reservation)
                decoded = await self._prompt(known, request.prompts, visit, reservation)
            masks, overlay = await self._finish(decoded, request, known, image, visit)
        return Segmented(
            image_id=picture.image_id,
            frame=known.frame,
            model=visit.runner.entry,
            results=masks,
            overlay=overlay,
            degraded=known.frame != picture.frames[0],
            timings=visit.timings,
            together=visit.together,
        )

    def _check_counts(self, prompts: Sequence[Prompt]) -> None:
        limit, points = self.reception.settings.max_prompts, self.reception.settings.max_points
        if len(prompts) > limit:
            raise TooManyPrompts(f"{len(prompts)} prompts; at most {limit} fit into one request.")
        for number, prompt in enumerate(prompts):
            if len(prompt.points) > points:
                raise TooManyPrompts(
                    f"prompts[{number}] has {len(prompt.points)} points; at most {points} fit into one prompt."
                )

    async def _look_up(
        self, data: bytes | None, image_id: str | None, choice: InputChoice, runner: SamRunner
    ) -> _Picture:
        """Find the picture's embedding, or the frames in which it may be encoded."""
        entry, settings = runner.entry, self.reception.settings
        if data is None:
            if image_id is None:
                raise NoImage(_NO_IMAGE)
            at_hand = {item.frame: item for item in self.cache.find(image_id, entry.name, entry.revision)}
            frames = matching(choice, list(at_hand))
            if not frames:
                raise UnknownImageId(
                    f"The picture {image_id} is not known here for {entry.name} at this input size "
                    "(never seen, expired or evicted): send it again in the part image."
                )
            return _Picture(image_id, None, frames[:1], at_hand[frames[0]])
        # A thread's round trip costs as much as hashing this.
        small = len(data) <= _HASHED_AT_ONCE
        image_id = images.content_id(data) if small else await self.reception.in_worker(images.content_id, data)
        size = images.read_size(data, max_pixels=settings.max_pixels)
        frames = candidate_frames(choice, size, flexible=runner.backend.flexible, default=settings.input_size)
        for frame in frames:
            if (known := self.cache.get(_key(image_id, frame, entry))) is not None:
                return _Picture(image_id, data, [frame], known)
        return _Picture(image_id, data, frames, None)

    @contextmanager
    def _reserved(
        self, visit: _Visit, picture: _Picture, prompts: Sequence[Prompt]
    ) -> Iterator[tuple[Letterbox, Reservation]]:
        """The request's places on the device, in the largest frame that is in time; given up where they are unused."""
        frame, reservation = self._reserve(visit, picture, prompts)
        try:
            yield frame, reservation
        finally:
            reservation.leave()

    def _reserve(self, visit: _Visit, picture: _Picture, prompts: Sequence[Prompt]) -> tuple[Letterbox, Reservation]:
        for number, frame in enumerate(picture.frames, start=1):
            _check_prompts(prompts, frame)
            encode = not self.cache.has_or_expects(_key(picture.image_id, frame, visit.runner.entry))
            work = megapixels(frame.original)
            after = self.times.predict(_POSTPROCESS, len(prompts) * work) if prompts else 0.0
            ready_by = self.reception.clock() + (self.times.predict(_DECODE, work) if encode else 0.0)
            terms = visit.terms(after=after)
            last = number == len(picture.frames)
            try:
                return frame, visit.runner.reserve(terms, prompts, frame, encode=encode, ready_by=ready_by, last=last)
            except DeadlineUnreachable:
                if last:
                    raise
        raise ValueError("a picture without frames")

    async def _decode(self, data: bytes | None, visit: _Visit) -> Image:
        """The whole picture, to draw into."""
        if data is None:
            raise NoImage(_NO_IMAGE)
        limit = self.reception.settings.max_pixels
        return await self.reception.in_decoder(visit, lambda: images.decode(data, max_pixels=limit))

    async def _embed(
        self, picture: _Picture, image: Image | None, frame: Letterbox, visit: _Visit, reservation: Reservation
    ) -> EmbeddedImage:
        """The picture's embedding; who finds it on its way counts the wait as queue."""
        tick = self.reception.clock()
        key = _key(picture.image_id, frame, visit.runner.entry)
        mine: Timings | None = None
        place = reservation.encode

        async def encode() -> EmbeddedImage:
            nonlocal mine, place
            mine = Timings()
            start = self.reception.clock()
            prepared = await self.reception.in_worker(self._prepare, picture.data, image, frame, visit.runner)
            mine.decode = self.reception.clock() - start
            self.reception.observer.decoded(mine.decode)
            took("decode", mine.decode)
            self.times.learn(_DECODE, megapixels(frame.original), visit.timings.decode + mine.decode)
            if place is None:
                # It was on its way when this request came, and then was given up.
                place = visit.runner.reserve_encode(visit.terms(), frame, ready_by=self.reception.clock())
            done = await visit.runner.encode(place, prepared)
            mine.queue, mine.encode = done.queued, done.ran
            visit.together.encode = done.batch
            return EmbeddedImage(done.value, frame)

        try:
            while True:
                try:
                    embedded = await self.cache.get_or_encode(key, encode)
                    break
                except (DeadlineExceeded, DeadlineUnreachable, Overloaded):
                    # Somebody else's deadline, under which the encoding was begun, is not ours.
                    if mine is not None:
                        raise
        finally:
            if place is not None:
                place.leave()
        if mine is None:
            waited = self.reception.clock() - tick
            visit.timings.queue += waited
            took("queue", waited)
        else:
            visit.timings.decode += mine.decode
            visit.timings.queue += mine.queue
            visit.timings.encode = mine.encode
        return embedded

    def _prepare(self, data: bytes | None, image: Image | None, frame: Letterbox, runner: SamRunner) -> Any:
        """What the encoder takes of a picture that is decoded already, or of its bytes."""
        if image is not None:
            return runner.prepare(resize(image.pixels, frame), frame)
        if data is None:
            raise NoImage(_NO_IMAGE)
        limit = self.reception.settings.max_pixels
        pixels = images.decode_resized(data, frame.resized, max_pixels=limit, scaled=_may_scale(frame))
        return runner.prepare(pixels, frame)

    async def _prompt(
        self, embedded: EmbeddedImage, prompts: Sequence[Prompt], visit: _Visit, reservation: Reservation
    ) -> Decoded:
        done = await visit.runner.decode(reservation, embedded.embedding, prompts, embedded.frame)
        visit.timings.queue += done.queued
        visit.timings.prompt = done.ran
        visit.together.prompt = done.batch
        return done.value

    async def _finish(
        self,
        decoded: Decoded,
        request: SegmentRequest,
        embedded: EmbeddedImage,
        image: Image | None,
        visit: _Visit,
    ) -> tuple[list[list[MaskResult]], bytes | None]:
        """Masks upsampled and encoded, and the overlay where it was asked for."""
        tick = self.reception.clock()
        prompts = request.prompts
        masks = list(
            await asyncio.gather(
                *(
                    self.reception.in_worker(render_masks, decoded, row, embedded.frame, prompt, request.format)
                    for row, prompt in enumerate(prompts)
                )
            )
        )
        self.times.learn(
            _POSTPROCESS, len(prompts) * megapixels(embedded.frame.original), self.reception.clock() - tick
        )
        overlay = None
        if request.overlay and image is not None:
            overlay = await self.reception.in_worker(render_overlay, image, prompts, masks)
        visit.timings.postprocess = self.reception.clock() - tick
        self.reception.observer.postprocessed(visit.timings.postprocess)
        took("postprocess", visit.timings.postprocess)
        return masks, overlay


def _key(image_id: str, frame: Letterbox, entry: CatalogueEntry) -> ImageKey:
    return ImageKey(image_id, entry.name, entry.revision, frame.side, frame.padded)


def _may_scale(frame: Letterbox) -> bool:
    """Whether a large JPEG may be decoded at half its size.

    At 1024 that keeps masks at a mean IoU of 0.994 (`tests/golden/test_scaled_decoding.py`), at 768 and 512 at 0.989:
    those are decoded whole, and the reference's frame too, whose masks are the reference's.
    """
    return frame.side == INPUT_SIDE and not frame.is_reference


def _check_prompts(prompts: Sequence[Prompt], frame: Letterbox) -> None:
    for number, prompt in enumerate(prompts):
        try:
            check(prompt, frame)
        except PromptError as error:
            raise type(error)(f"prompts[{number}]: {error.detail}") from error
