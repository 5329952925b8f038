"""A SAM that can be worked out by hand, clocks that tests turn, pictures of one colour, and a pipeline of these."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models.backends.base import BackendName, Embedding, check_frame
from models.errors import BackendError
from models.sam.constants import LABEL_BOX_BOTTOM_RIGHT, LABEL_BOX_TOP_LEFT, LOGITS_STRIDE, MASK_TOKENS
from models.sam.prompts import PackedPrompts
from models.transforms import Frame, frame_for
from models.types import BinaryMask, Logits, Pixels, Prompt, Size
from models.zoo import Architecture, CatalogueEntry
from service.device_queue import Place, Ran
from service.embedding_cache import EmbeddedImage, EmbeddingCache, ImageKey
from service.pipeline import Pipeline
from service.runners import Decoded, Reservation, SamRunner
from service.settings import Settings
from service.work import QueueOptions

SCORES: Final = (0.5, 0.7, 0.9, 0.8)
"""Of the four mask tokens: three masks come in the order of tokens 2, 3, 1."""

INSETS: Final = (0, 24, 8, 16)
"""Of the four mask tokens, in pixels of the model's square."""

HALF_SIDE: Final = 64
"""Of the square around a point, in pixels of the model's square."""

PATIENCE_S: Final = 10.0
"""Longer than any test waits; a forgotten thread ends then."""

EMBEDDING_BYTES: Final = 12

SIZE: Final = Size(96, 128)
"""Eight pixels of the model's square are one pixel of a picture of this size."""

UNPADDED: Final = frame_for(SIZE, 1024, "none")
"""What the encoder sees of such a picture where nobody asks for anything else."""

LOADED: Final = CatalogueEntry("orange-sam", Architecture.MOBILE_SAM, "CC0-1.0", "orange.pt", 1, "0a" * 32, ())
SECOND: Final = CatalogueEntry("lemon-sam", Architecture.MOBILE_SAM, "CC0-1.0", "lemon.pt", 1, "0b" * 32, ())
NOT_LOADED: Final = CatalogueEntry("melon-sam", Architecture.SAM_VIT_B, "CC0-1.0", "melon.pt", 1, "0c" * 32, ())
CATALOGUE: Final = {entry.name: entry for entry in (LOADED, SECOND, NOT_LOADED)}


@dataclass
class FakeClock:
    """Seconds that pass when the test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class LeapingClock:
    """The event loop's clock, on which work may take minutes that nobody waits for."""

    leapt: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.leapt

    def leap(self, seconds: float) -> None:
        self.leapt += seconds


@dataclass(frozen=True)
class DecodeCall:
    prompts: int
    with_masks: bool


@dataclass(frozen=True, eq=False)
class FakePicture:
    """A picture's mean colour: what `FakeSam` makes of it for the encoder, and its embedding as well."""

    colour: NDArray[np.float32]
    padded: Size

    @property
    def red(self) -> int:
        return round(float(self.colour[0]))

    @property
    def nbytes(self) -> int:
        return self.colour.nbytes


@dataclass
class FakeSam:
    """A backend whose masks are rectangles.

    A picture's embedding is its mean colour. A prompt's rectangle is its box, or a square around its first point, made
    smaller on each side by the token's inset. Logits are distances to the rectangle's edge in pixels of the model's
    square, positive inside, times 1 + the mean red / 255. A prompt that brings a mask gets this mask's logits back.
    """

    prompt_batches: tuple[int, ...] = (1, 2, 4)
    picture_batches: tuple[int, ...] = (1,)
    flexible: bool = True
    name: BackendName = "torch"
    device: str = "fake:0"
    fails: Exception | None = None
    """Raised by `encode` and `decode` while it is set."""
    spoilt: set[int] = field(default_factory=set)
    """Mean reds of pictures that fail every batch they are in."""
    blocks: threading.Event | None = None
    """What `encode` waits for where it is set."""
    clock: LeapingClock = field(default_factory=LeapingClock)
    """Leaps while a batch runs, by these seconds."""
    encode_s_per_batch: float = 0.0
    encode_s_per_megapixel: float = 0.0
    decode_s_per_batch: float = 0.0
    decode_s_per_prompt: float = 0.0
    entered: threading.Event = field(default_factory=threading.Event)
    """Set once `encode` was called."""
    prepares: int = 0
    frames: list[Frame] = field(default_factory=list)
    """Of each call to `prepare`."""
    encodes: list[int] = field(default_factory=list)
    """Pictures in each call."""
    encoded: list[int] = field(default_factory=list)
    """Mean red of every picture that was to be encoded, in order."""
    decodes: list[DecodeCall] = field(default_factory=list)
    decoding_s: float = 0.0
    """Of all calls to `decode` together."""
    overlapped: bool = False
    """Whether two calls ever ran at the same time."""
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self, pixels: Pixels, frame: Frame) -> FakePicture:
        check_frame(pixels, frame, flexible=self.flexible)
        self.prepares += 1
        self.frames.append(frame)
        return FakePicture(pixels.reshape(-1, 3).mean(axis=0).astype(np.float32), frame.padded)

    def encode(self, prepared: Sequence[FakePicture]) -> list[Embedding]:
        self.encodes.append(len(prepared))
        self.encoded += [picture.red for picture in prepared]
        self._alone()
        try:
            self.entered.set()
            if self.blocks is not None and not self.blocks.wait(PATIENCE_S):
                raise AssertionError("the test never let the encoder go on")
            (padded,) = {picture.padded for picture in prepared}
            megapixels = len(prepared) * padded.pixels / 1e6
            self.clock.leap(self.encode_s_per_batch + megapixels * self.encode_s_per_megapixel)
            self._fail(prepared)
            return list(prepared)
        finally:
            self._busy.release()

    def decode(
        self, embeddings: Sequence[Embedding], image_index: NDArray[np.int64], prompts: PackedPrompts
    ) -> tuple[Logits, NDArray[np.float32]]:
        count = len(prompts.labels)
        self.decodes.append(DecodeCall(count, prompts.mask_inputs is not None))
        self._alone()
        started = time.perf_counter()
        try:
            self.clock.leap(self.decode_s_per_batch + count * self.decode_s_per_prompt)
            pictures = [embedding for embedding in embeddings if isinstance(embedding, FakePicture)]
            self._fail(pictures)
            height, width = 4 * prompts.cells.height, 4 * prompts.cells.width
            assert {picture.padded for picture in pictures} == {Size(4 * height, 4 * width)}
            logits = np.empty((count, MASK_TOKENS, height, width), np.float32)
            for row in range(count):
                if prompts.mask_inputs is not None:
                    logits[row] = prompts.mask_inputs[row]
                    continue
                coords = prompts.points[row] * prompts.side - 0.5  # from centres of pixels to their edges
                distances = _distances(coords, prompts.labels[row].tolist(), (height, width))
                for token, inset in enumerate(INSETS):
                    logits[row, token] = (distances - inset) * (1 + pictures[image_index[row]].colour[0] / 255)
            return logits, np.tile(np.asarray(SCORES, np.float32), (count, 1))
        finally:
            self.decoding_s += time.perf_counter() - started
            self._busy.release()

    def forget(self) -> None:
        """Count calls anew."""
        self.prepares = 0
        self.frames, self.encodes, self.encoded, self.decodes = [], [], [], []

    def _fail(self, pictures: Sequence[FakePicture]) -> None:
        if self.fails is not None:
            raise self.fails
        if any(picture.red in self.spoilt for picture in pictures):
            raise BackendError("the device cannot do this picture")

    def _alone(self) -> None:
        if not self._busy.acquire(blocking=False):
            self.overlapped = True
            self._busy.acquire()


def _distances(coords: NDArray[np.float32], labels: list[int], shape: tuple[int, int]) -> NDArray[np.float32]:
    """From the centre of each of the logits to the edge of the prompt's rectangle, positive inside: float32 `shape`."""
    if LABEL_BOX_TOP_LEFT in labels:
        low, high = coords[labels.index(LABEL_BOX_TOP_LEFT)], coords[labels.index(LABEL_BOX_BOTTOM_RIGHT)]
    else:
        low, high = coords[0] - HALF_SIDE, coords[0] + HALF_SIDE
    ys, xs = ((np.arange(length, dtype=np.float32) + 0.5) * LOGITS_STRIDE for length in shape)
    along_x = np.minimum(xs - low[0], high[0] - xs)
    along_y = np.minimum(ys - low[1], high[1] - ys)
    distances: NDArray[np.float32] = np.minimum(along_y[:, None], along_x[None, :]).astype(np.float32)
    return distances


class Tally:
    """Counts, and tells when so many were counted."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Event()

    def add(self) -> None:
        self.count += 1
        self._changed.set()

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.count < count:
                self._changed.clear()
                await self._changed.wait()


class WatchedCache(EmbeddingCache):
    """Tells how many callers came for an embedding to be made."""

    def __init__(self, *, max_bytes: int, max_age: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(max_bytes=max_bytes, max_age=max_age, clock=clock)
        self.asked = Tally()

    async def get_or_encode(self, key: ImageKey, encode: Callable[[], Awaitable[EmbeddedImage]]) -> EmbeddedImage:
        self.asked.add()
        return await super().get_or_encode(key, encode)


class WatchedRunner(SamRunner):
    """Tells how many pictures and how many requests' prompts were handed in: they wait for the device, or ran."""

    backend: FakeSam

    def __init__(
        self,
        entry: CatalogueEntry,
        backend: FakeSam,
        *,
        options: QueueOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(entry, backend, options=options, clock=clock)
        self.pictures = Tally()
        self.requests = Tally()

    async def encode(self, place: Place, prepared: Any) -> Ran[Embedding]:
        self.pictures.add()
        return await super().encode(place, prepared)

    async def decode(
        self, reservation: Reservation, embedding: Embedding, prompts: Sequence[Prompt], frame: Frame
    ) -> Ran[Decoded]:
        self.requests.add()
        return await super().decode(reservation, embedding, prompts, frame)


def rectangle(x0: int, y0: int, x1: int, y1: int, size: Size = SIZE) -> BinaryMask:
    """The mask of a half-open box."""
    mask = np.zeros((size.height, size.width), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def encode_picture(pixels: Pixels, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def picture(red: int = 0, size: Size = SIZE, file_format: str = "PNG") -> bytes:
    """A picture of one colour; another `red` is another picture."""
    pixels = np.zeros((size.height, size.width, 3), np.uint8)
    pixels[..., 0] = red
    return encode_picture(pixels, file_format)


def make_settings(**changes: Any) -> Settings:
    """Settings that no environment variable of the developer's reaches."""
    return Settings(_env_prefix="NOT_POMONA_", **changes)


def make_pipeline(
    *sams: FakeSam,
    settings: Settings | None = None,
    cache: EmbeddingCache | None = None,
    options: QueueOptions | None = None,
) -> Pipeline:
    """A pipeline that serves the first one or two models of `CATALOGUE` by the first one's clock; to be closed."""
    settings = settings or make_settings()
    if cache is None:  # one without embeddings is false
        cache = WatchedCache(max_bytes=100 * EMBEDDING_BYTES, max_age=600)
    options = options or settings.queue_options
    clock = sams[0].clock
    return Pipeline(
        runners={
            entry.name: WatchedRunner(entry, sam, options=options, clock=clock)
            for entry, sam in zip((LOADED, SECOND), sams, strict=False)
        },
        catalogue=CATALOGUE,
        cache=cache,
        settings=settings,
        clock=clock,
    )
