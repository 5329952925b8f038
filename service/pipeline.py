"""From a picture and prompts to encoded masks: look up, reserve, decode, embed, mask, encode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from models import images
from models.errors import PromptError, TooManyPrompts, UnknownModel
from models.sam.prompts import check
from models.transforms import Frame, resize
from models.types import Image, Prompt, Size
from models.zoo import CatalogueEntry
from service.embedding_cache import EmbeddedImage, EmbeddingCache, ImageKey
from service.errors import DeadlineExceeded, DeadlineUnreachable, ModelNotLoaded, NoImage, Overloaded, UnknownImageId
from service.frames import candidate_frames, matching
from service.messages import Embedded, InputChoice, MaskResult, Segmented, SegmentRequest, Timings, When
from service.observability.observer import Observer
from service.rendering import render_masks, render_overlay
from service.runners import Decoded, Reservation, SamRunner
from service.service_times import ServiceTimes
from service.settings import Settings
from service.work import Terms

T = TypeVar("T")

_DECODE = "decode"
_POSTPROCESS = "postprocess"
_NO_IMAGE = "Send a picture in the part image, or the image_id of an earlier answer."


@dataclass(frozen=True, slots=True)
class _Visit:
    """One request on its way: who answers it, since when and until when, and where its time went."""

    runner: SamRunner
    arrived: float
    deadline: float | None
    urgency: int
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture's id, the frames to try, and its embedding where that is at hand."""

    image_id: str
    frames: Sequence[Frame]
    known: EmbeddedImage | None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The one path that every door uses.

    Attributes:
        runners: loaded models by name, the default first.
        catalogue: all models by name.
        cache: embeddings of recent pictures.
        settings: limits.
        workers: threads for pictures and masks, so that the event loop stays free.
        times: learned of what the workers do, by megapixels.
        clock: seconds, monotonic; the event loop's.
        observer: hears of deadlines and of what the workers do.
    """

    runners: Mapping[str, SamRunner]
    catalogue: Mapping[str, CatalogueEntry]
    cache: EmbeddingCache
    settings: Settings
    workers: ThreadPoolExecutor = field(default_factory=ThreadPoolExecutor)
    times: ServiceTimes = field(default_factory=ServiceTimes)
    clock: Callable[[], float] = time.monotonic
    observer: Observer = field(default_factory=Observer)

    @property
    def broken(self) -> bool:
        """A device failed for good."""
        return any(runner.broken for runner in self.runners.values())

    async def embed(
        self,
        data: bytes,
        model: str | None = None,
        choice: InputChoice | None = None,
        when: When | None = None,
    ) -> Embedded:
        """Encode a picture and keep its embedding.

        Raises:
            ImageError: the picture cannot be used.
            UnknownModel: no such model is loaded.
            Overloaded, DeadlineUnreachable, DeadlineExceeded: it cannot be in time.
            BackendError: the device failed.
        """
        visit = self._arrive(model, when or When())
        async with self._in_time(visit):
            picture = await self._look_up(data, None, choice or InputChoice(), visit.runner)
            known = picture.known
            if known is None:
                with self._reserved(visit, picture, ()) as (frame, reservation):
                    image = await self._decode(data, visit)
                    known = await self._embed(image, frame, visit, reservation)
        visit.timings.total = self.clock() - visit.arrived
        return Embedded(picture.image_id, known.frame, visit.runner.entry, visit.timings)

    async def segment(self, request: SegmentRequest) -> Segmented:
        """Answer every prompt on one picture.

        Raises:
            PomonaError: of `models.errors` and `service.errors`, whatever is wrong with the request or the device.
        """
        visit = self._arrive(request.model, request.when)
        self._check_counts(request.prompts)
        async with self._in_time(visit):
            picture = await self._look_up(request.data, request.image_id, request.input, visit.runner)
            known, image = picture.known, None
            with self._reserved(visit, picture, request.prompts) as (frame, reservation):
                if request.data is not None and (known is None or request.overlay):
                    image = await self._decode(request.data, visit)
                if known is None and image is not None:
                    known = await self._embed(image, frame, visit, reservation)
                if known is None:
                    raise NoImage(_NO_IMAGE)
                decoded = await self._prompt(known, request.prompts, visit, reservation)
            masks, overlay = await self._finish(decoded, request, known, image, visit)
        visit.timings.total = self.clock() - visit.arrived
        return Segmented(picture.image_id, known.frame, visit.runner.entry, masks, overlay, visit.timings)

    async def close(self, within: float) -> None:
        """Finish what was admitted, for at most `within` seconds, and stop all threads."""
        for runner in self.runners.values():
            await runner.close(within)
        await asyncio.to_thread(self.workers.shutdown, wait=True)

    def _arrive(self, model: str | None, when: When) -> _Visit:
        now = self.clock()
        return _Visit(self._runner(model), now, None if when.within is None else now + when.within, when.urgency)

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

    @asynccontextmanager
    async def _in_time(self, visit: _Visit) -> AsyncIterator[None]:
        """Answer that it is late the moment it is."""
        met = False
        try:
            async with asyncio.timeout_at(visit.deadline):
                yield
            met = True
        except TimeoutError as error:
            raise DeadlineExceeded("The deadline passed before the answer was there.") from error
        finally:
            if visit.deadline is not None:
                self.observer.had_deadline(visit.runner.entry.name, met=met)

    async def _look_up(
        self, data: bytes | None, image_id: str | None, choice: InputChoice, runner: SamRunner
    ) -> _Picture:
        """Find the picture's embedding, or the frames in which it may be encoded."""
        entry = runner.entry
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
            return _Picture(image_id, frames[:1], at_hand[frames[0]])
        image_id = await self._in_worker(images.content_id, data)
        size = images.read_size(data, max_pixels=self.settings.max_pixels)
        frames = candidate_frames(choice, size, flexible=runner.backend.flexible, default=self.settings.input_size)
        for frame in frames:
            if (known := self.cache.get(_key(image_id, frame, entry))) is not None:
                return _Picture(image_id, [frame], known)
        return _Picture(image_id, frames, None)

    @contextmanager
    def _reserved(
        self, visit: _Visit, picture: _Picture, prompts: Sequence[Prompt]
    ) -> Iterator[tuple[Frame, Reservation]]:
        """The request's places on the device, in the largest frame that is in time; given up where they are unused."""
        frame, reservation = self._reserve(visit, picture, prompts)
        try:
            yield frame, reservation
        finally:
            reservation.leave()

    def _reserve(self, visit: _Visit, picture: _Picture, prompts: Sequence[Prompt]) -> tuple[Frame, Reservation]:
        for number, frame in enumerate(picture.frames, start=1):
            _check_prompts(prompts, frame)
            encode = not self.cache.has_or_expects(_key(picture.image_id, frame, visit.runner.entry))
            work = _megapixels(frame.original)
            after = self.times.predict(_POSTPROCESS, len(prompts) * work) if prompts else 0.0
            deadline = None if visit.deadline is None else visit.deadline - after
            ready_by = self.clock() + (self.times.predict(_DECODE, work) if encode else 0.0)
            terms = Terms(visit.arrived, deadline, visit.urgency)
            last = number == len(picture.frames)
            try:
                return frame, visit.runner.reserve(terms, prompts, frame, encode=encode, ready_by=ready_by, last=last)
            except DeadlineUnreachable:
                if last:
                    raise
        raise ValueError("a picture without frames")

    async def _decode(self, data: bytes, visit: _Visit) -> Image:
        tick = self.clock()
        image = await self._in_worker(lambda: images.decode(data, max_pixels=self.settings.max_pixels))
        visit.timings.decode += self.clock() - tick
        self.observer.decoded(self.clock() - tick)
        return image

    async def _embed(self, image: Image, frame: Frame, visit: _Visit, reservation: Reservation) -> EmbeddedImage:
        """The picture's embedding; who finds it on its way counts the wait as queue."""
        tick = self.clock()
        key = _key(image.id, frame, visit.runner.entry)
        mine: Timings | None = None
        place = reservation.encode

        async def encode() -> EmbeddedImage:
            nonlocal mine, place
            mine = Timings()
            start = self.clock()
            prepared = await self._in_worker(lambda: visit.runner.prepare(resize(image.pixels, frame), frame))
            mine.decode = self.clock() - start
            self.times.learn(_DECODE, _megapixels(image.size), visit.timings.decode + mine.decode)
            if place is None:
                # It was on its way when this request came, and then was given up.
                terms = Terms(visit.arrived, visit.deadline, visit.urgency)
                place = visit.runner.reserve_encode(terms, frame, ready_by=self.clock())
            done = await visit.runner.encode(place, prepared)
            mine.queue, mine.encode = done.queued, done.ran
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
            visit.timings.queue += self.clock() - tick
        else:
            visit.timings.decode += mine.decode
            visit.timings.queue += mine.queue
            visit.timings.encode = mine.encode
        return embedded

    async def _prompt(
        self, embedded: EmbeddedImage, prompts: Sequence[Prompt], visit: _Visit, reservation: Reservation
    ) -> Decoded:
        done = await visit.runner.decode(reservation, embedded.embedding, prompts, embedded.frame)
        visit.timings.queue += done.queued
        visit.timings.prompt = done.ran
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
        tick = self.clock()
        prompts = request.prompts
        masks = list(
            await asyncio.gather(
                *(
                    self._in_worker(render_masks, decoded, row, embedded.frame, prompt, request.format)
                    for row, prompt in enumerate(prompts)
                )
            )
        )
        self.times.learn(_POSTPROCESS, len(prompts) * _megapixels(embedded.frame.original), self.clock() - tick)
        overlay = None
        if request.overlay and image is not None:
            overlay = await self._in_worker(render_overlay, image, prompts, masks)
        visit.timings.postprocess = self.clock() - tick
        self.observer.postprocessed(visit.timings.postprocess)
        return masks, overlay

    async def _in_worker(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.workers, call, *arguments)


def _key(image_id: str, frame: Frame, entry: CatalogueEntry) -> ImageKey:
    return ImageKey(image_id, entry.name, entry.revision, frame.side, frame.padded)


def _megapixels(size: Size) -> float:
    return size.pixels / 1e6


def _check_prompts(prompts: Sequence[Prompt], frame: Frame) -> None:
    for number, prompt in enumerate(prompts):
        try:
            check(prompt, frame)
        except PromptError as error:
            raise type(error)(f"prompts[{number}]: {error.detail}") from error
