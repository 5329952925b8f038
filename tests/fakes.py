"""A SAM and a U-Net whose results can be worked out by hand, clocks that tests set, images, pipelines of these."""

from __future__ import annotations

import asyncio
import functools
import io
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models.backends.base import BackendName, Embedding, check_letterbox
from models.catalog import Architecture, CatalogueEntry
from models.errors import BackendError, DeviceOutOfMemory
from models.letterbox import Letterbox, letterbox_for
from models.sam.constants import LABEL_BOX_BOTTOM_RIGHT, LABEL_BOX_TOP_LEFT, LOGITS_STRIDE, MASK_TOKENS
from models.sam.prompts import PackedPrompts
from models.types import BinaryMask, Logits, Pixels, Prompt, Size
from models.unet.constants import OFFSET_UNIT, OUTPUTS
from models.unet.letterbox import UNetLetterbox, unet_letterbox
from service.api.context import DEFAULT_URGENCY
from service.capture.captures import open_captures
from service.observability.observer import Observer
from service.observability.tracing import Recording
from service.pipelines import Pipelines
from service.pipelines.engine import Engine
from service.runners.base import Runner
from service.runners.embedding_cache import EmbeddedImage, EmbeddingCache, ImageKey
from service.runners.sam import Decoded, Reservation, SamRunner
from service.runners.unet import UNetRunner
from service.scheduler.policy import QueueOptions
from service.scheduler.queue import BatchResult, DeviceQueue, Ticket
from service.settings import Settings

SCORES: Final = (0.5, 0.7, 0.9, 0.8)
"""Of the four mask tokens: three masks are in the order of tokens 2, 3, 1."""

INSETS: Final = (0, 24, 8, 16)
"""Of the four mask tokens, in pixels of the model's square."""

HALF_SIDE: Final = 64
"""Of the square around a point, in pixels of the model's square."""

PATIENCE_S: Final = 10.0
"""Longer than any test waits; a blocked thread ends then."""

EMBEDDING_BYTES: Final = 12

SIZE: Final = Size(96, 128)
"""One pixel of an image of this size is eight pixels of the model's square."""

PEEL_SIZE: Final = Size(112, 224)
PEEL_FRAME: Final = unet_letterbox(PEEL_SIZE)
"""One pixel of an image of this size is two by two cells of the U-Net's input."""

HEALTHY_BOX: Final = (16, 16, 80, 64)
INFECTED_BOX: Final = (112, 40, 208, 96)

UNPADDED: Final = letterbox_for(SIZE, 1024, "none")
"""The default letterbox of such an image."""

LOADED: Final = CatalogueEntry("orange-sam", Architecture.MOBILE_SAM, "CC0-1.0", "orange.pt", 1, "0a" * 32, ())
SECOND: Final = CatalogueEntry("lemon-sam", Architecture.MOBILE_SAM, "CC0-1.0", "lemon.pt", 1, "0b" * 32, ())
LOADED_UNET: Final = CatalogueEntry("peel-unet", Architecture.UNET_RESNET18, "CC0-1.0", "peel.pt", 1, "0d" * 32, ())
OTHER_UNET: Final = CatalogueEntry("rind-unet", Architecture.UNET_MOBILENETV2, "CC0-1.0", "rind.pt", 1, "0e" * 32, ())
NOT_LOADED: Final = CatalogueEntry("melon-sam", Architecture.SAM_VIT_B, "CC0-1.0", "melon.pt", 1, "0c" * 32, ())
CATALOGUE: Final = {entry.name: entry for entry in (LOADED, SECOND, LOADED_UNET, NOT_LOADED, OTHER_UNET)}


@dataclass
class FakeClock:
    """A clock that stands still until the test moves it."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def leap(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class FakeRequest:
    """What the scheduler reads of a request."""

    arrived: float
    urgency: int = DEFAULT_URGENCY
    recording: Recording | None = None


@dataclass
class LeapingClock:
    """The event loop's clock, which fake work moves by minutes without a wait."""

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
class FakeImage:
    """An image's mean colour: `FakeSam`'s input of the encoder, and its embedding as well."""

    colour: NDArray[np.float32]
    padded: Size

    @property
    def red(self) -> int:
        return round(float(self.colour[0]))

    @property
    def nbytes(self) -> int:
        return self.colour.nbytes


@dataclass
class FakeDevice:
    """A fake device: how tests control it, and what it recorded."""

    image_batches: tuple[int, ...] = (1,)
    name: BackendName = "torch"
    device: str = "fake:0"
    fails: Exception | None = None
    """Raised by every call while it is set."""
    spoilt: set[int] = field(default_factory=set)
    """Marks of images that fail every batch with them."""
    memory: int = 1000
    """Images that fit into it together."""
    blocks: threading.Event | None = None
    """A batch of images waits for it where it is set."""
    clock: LeapingClock | FakeClock = field(default_factory=LeapingClock)
    """Leaps while a batch runs."""
    entered: threading.Event = field(default_factory=threading.Event)
    """Set when a batch of images begins."""
    prepares: int = 0
    encodes: list[int] = field(default_factory=list)
    """Images in each batch."""
    encoded: list[int] = field(default_factory=list)
    """Mark of every image in the batches, in order."""
    overlapped: bool = False
    """Whether two calls ever ran at the same time."""
    threads: set[int] = field(default_factory=set)
    """Threads that called the device."""
    card: threading.Lock = field(default_factory=threading.Lock)
    """The device itself; backends on the same device share it."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Occupy the device for a call."""
        self.threads.add(threading.get_ident())
        if not self.card.acquire(blocking=False):
            self.overlapped = True
            self.card.acquire()
        try:
            yield
        finally:
            self.card.release()

    def wait(self) -> None:
        self.entered.set()
        if self.blocks is not None and not self.blocks.wait(PATIENCE_S):
            raise AssertionError("the test never released the device")

    def fail(self, marks: Sequence[int]) -> None:
        if self.fails is not None:
            raise self.fails
        if len(marks) > self.memory:
            raise DeviceOutOfMemory("the device has too little memory for this batch")
        if self.spoilt.intersection(marks):
            raise BackendError("the device cannot process this image")


@dataclass
class FakeSam(FakeDevice):
    """A backend whose masks are rectangles.

    An image's embedding is its mean colour, and its mark the mean red. A prompt's rectangle is its box, or a square
    around its first point, made smaller on each side by the token's inset. Logits are distances to the rectangle's
    edge in pixels of the model's square, positive inside, times 1 + the mean red / 255. A prompt with a mask
    returns this mask's logits.
    """

    prompt_batches: tuple[int, ...] = (1, 2, 4)
    flexible: bool = True
    stretched_to: int | None = None
    encode_s_per_batch: float = 0.0
    encode_s_per_megapixel: float = 0.0
    decode_s_per_batch: float = 0.0
    decode_s_per_prompt: float = 0.0
    frames: list[Letterbox] = field(default_factory=list)
    """Of each call to `prepare`."""
    decodes: list[DecodeCall] = field(default_factory=list)
    decoding_s: float = 0.0
    """Of all calls to `decode` together."""

    def prepare(self, pixels: Pixels, frame: Letterbox) -> FakeImage:
        check_letterbox(pixels, frame, flexible=self.flexible)
        self.prepares += 1
        self.frames.append(frame)
        return FakeImage(pixels.reshape(-1, 3).mean(axis=0).astype(np.float32), frame.padded)

    def encode(self, prepared: Sequence[FakeImage]) -> list[Embedding]:
        self.encodes.append(len(prepared))
        self.encoded += [image.red for image in prepared]
        with self.alone():
            self.wait()
            (padded,) = {image.padded for image in prepared}
            megapixels = len(prepared) * padded.pixels / 1e6
            self.clock.leap(self.encode_s_per_batch + megapixels * self.encode_s_per_megapixel)
            self.fail([image.red for image in prepared])
            return list(prepared)

    def decode(
        self, embeddings: Sequence[Embedding], image_index: NDArray[np.int64], prompts: PackedPrompts
    ) -> tuple[Logits, NDArray[np.float32]]:
        count = len(prompts.labels)
        self.decodes.append(DecodeCall(count, prompts.mask_inputs is not None))
        with self.alone():
            started = time.perf_counter()
            self.clock.leap(self.decode_s_per_batch + count * self.decode_s_per_prompt)
            images = [embedding for embedding in embeddings if isinstance(embedding, FakeImage)]
            self.fail([image.red for image in images])
            height, width = 4 * prompts.cells.height, 4 * prompts.cells.width
            assert {image.padded for image in images} == {Size(4 * height, 4 * width)}
            logits = np.empty((count, MASK_TOKENS, height, width), np.float32)
            for row in range(count):
                if prompts.mask_inputs is not None:
                    logits[row] = prompts.mask_inputs[row]
                    continue
                coords = prompts.points[row] * prompts.side - 0.5  # from centres of pixels to their edges
                distances = _distances(coords, prompts.labels[row].tolist(), (height, width))
                for token, inset in enumerate(INSETS):
                    logits[row, token] = (distances - inset) * (1 + images[image_index[row]].colour[0] / 255)
            self.decoding_s += time.perf_counter() - started
            return logits, np.tile(np.asarray(SCORES, np.float32), (count, 1))

    def forget(self) -> None:
        """Count calls from here."""
        self.prepares = 0
        self.frames, self.encodes, self.encoded, self.decodes = [], [], [], []


@dataclass(frozen=True, eq=False)
class FakePeel:
    """`FakeUNet`'s input: float32 (height, width, 3) of the letterbox's `padded`, and the image's mark."""

    pixels: NDArray[np.float32]
    mark: int


@dataclass
class FakeUNet(FakeDevice):
    """A backend that classifies by colour.

    The logit of healthy is green less 127.5, that of infected red less 127.5, in sixteenths; that of background is 0.
    An image's mark is its mean blue, which changes no class.
    """

    infer_s_per_batch: float = 0.0
    infer_s_per_megapixel: float = 0.0
    frames: list[UNetLetterbox] = field(default_factory=list)
    """Of each call to `prepare`."""

    def prepare(self, pixels: Pixels, frame: UNetLetterbox) -> FakePeel:
        assert pixels.shape == (frame.resized.height, frame.resized.width, 3)
        self.prepares += 1
        self.frames.append(frame)
        padded = np.zeros((frame.padded.height, frame.padded.width, 3), np.float32)
        padded[: frame.resized.height, : frame.resized.width] = pixels
        return FakePeel(padded, round(float(pixels[..., 2].mean())))

    def infer(self, prepared: Sequence[FakePeel]) -> list[NDArray[np.float32]]:
        self.encodes.append(len(prepared))
        self.encoded += [peel.mark for peel in prepared]
        with self.alone():
            self.wait()
            ((height, width, _),) = {peel.pixels.shape for peel in prepared}
            megapixels = len(prepared) * height * width / 1e6
            self.clock.leap(self.infer_s_per_batch + megapixels * self.infer_s_per_megapixel)
            self.fail([peel.mark for peel in prepared])
            return [_class_logits(peel.pixels) for peel in prepared]

    def forget(self) -> None:
        """Count calls from here."""
        self.prepares = 0
        self.frames, self.encodes, self.encoded = [], [], []


def _class_logits(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    logits = np.zeros((3, *pixels.shape[:2]), np.float32)
    logits[1] = (pixels[..., 1] - 127.5) / 16
    logits[2] = (pixels[..., 0] - 127.5) / 16
    _, regions = cv2.connectedComponents((logits.max(axis=0) > 0).view(np.uint8))
    return with_votes(logits, regions)


def with_votes(logits: NDArray[np.float32], fruits: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return a U-Net's output, float32 (5, height, width): logits (3, height, width), offsets to each fruit's centre.

    `fruits`, (height, width), numbers the fruit of each cell; 0 for none.
    """
    output = np.zeros((OUTPUTS, *fruits.shape), np.float32)
    output[:3] = logits
    ys, xs = np.mgrid[: fruits.shape[0], : fruits.shape[1]]
    for fruit in np.unique(fruits[fruits > 0]):
        inside = fruits == fruit
        output[3][inside] = (xs[inside].mean() - xs[inside]) / OFFSET_UNIT
        output[4][inside] = (ys[inside].mean() - ys[inside]) / OFFSET_UNIT
    return output


def _distances(coords: NDArray[np.float32], labels: list[int], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return distances from the centre of each logit to the edge of the prompt's rectangle, positive inside."""
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
    """A counter that can be waited for."""

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
    """Counts requests for an embedding that is not cached."""

    def __init__(self, *, max_bytes: int, max_age: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(max_bytes=max_bytes, max_age=max_age, clock=clock)
        self.lookups = Tally()

    async def get_or_encode(self, key: ImageKey, encode: Callable[[], Awaitable[EmbeddedImage]]) -> EmbeddedImage:
        self.lookups.add()
        return await super().get_or_encode(key, encode)


class WatchedRunner(SamRunner):
    """Counts images and requests with prompts that wait for the device, or ran, and images that no longer do."""

    backend: FakeSam

    def __init__(self, entry: CatalogueEntry, backend: FakeSam, queue: DeviceQueue) -> None:
        super().__init__(entry, backend, queue)
        self.images = Tally()
        self.settled = Tally()
        self.requests = Tally()

    async def encode(self, ticket: Ticket, prepared: Any) -> BatchResult[Embedding]:
        self.images.add()
        try:
            return await super().encode(ticket, prepared)
        finally:
            self.settled.add()

    async def decode(
        self, reservation: Reservation, embedding: Embedding, prompts: Sequence[Prompt], letterbox: Letterbox
    ) -> BatchResult[Decoded]:
        self.requests.add()
        return await super().decode(reservation, embedding, prompts, letterbox)


class WatchedUNetRunner(UNetRunner):
    """Counts images that wait for the device, or ran."""

    backend: FakeUNet

    def __init__(self, entry: CatalogueEntry, backend: FakeUNet, queue: DeviceQueue) -> None:
        super().__init__(entry, backend, queue)
        self.images = Tally()

    async def infer(self, ticket: Ticket, prepared: Any) -> BatchResult[NDArray[np.float32]]:
        self.images.add()
        return await super().infer(ticket, prepared)


def rectangle(x0: int, y0: int, x1: int, y1: int, size: Size = SIZE) -> BinaryMask:
    """Return the mask of a half-open box."""
    mask = np.zeros((size.height, size.width), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def encode_image(pixels: Pixels, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def image_bytes(red: int = 0, size: Size = SIZE, file_format: str = "PNG") -> bytes:
    """Return an image of one colour; another `red` is another image."""
    pixels = np.zeros((size.height, size.width, 3), np.uint8)
    pixels[..., 0] = red
    return encode_image(pixels, file_format)


def peel_image(mark: int = 0, size: Size = PEEL_SIZE, file_format: str = "PNG", **options: Any) -> bytes:
    """Return an image with a healthy fruit in `HEALTHY_BOX` and an infected one in `INFECTED_BOX` for `FakeUNet`."""
    pixels = np.zeros((size.height, size.width, 3), np.uint8)
    for (x0, y0, x1, y1), channel in ((HEALTHY_BOX, 1), (INFECTED_BOX, 0)):
        pixels[y0:y1, x0:x1, channel] = 255
    pixels[..., 2] = mark
    return encode_image(pixels, file_format, **options)


def make_settings(**changes: Any) -> Settings:
    """Return settings that ignore the environment."""
    return Settings(_env_prefix="NOT_POMONA_", **changes)


def make_pipelines(
    *sams: FakeSam,
    unet: FakeUNet | None = None,
    more: Callable[[Callable[[str], DeviceQueue]], Mapping[str, Runner]] = lambda _: {},
    catalogue: Mapping[str, CatalogueEntry] = CATALOGUE,
    settings: Settings | None = None,
    cache: EmbeddingCache | None = None,
    options: QueueOptions | None = None,
    observer: Observer | None = None,
) -> Pipelines:
    """Return pipelines with the first models of `CATALOGUE`, all on the first one's clock; to be closed.

    `more` makes further runners, by name, on queues by device; `catalogue` has their entries. `observer` receives what
    is captured, where the settings name a folder for that.
    """
    settings = settings or make_settings()
    if cache is None:  # an empty cache is false
        cache = WatchedCache(max_bytes=100 * EMBEDDING_BYTES, max_age=600)
    clock = [*sams, *([unet] if unet else [])][0].clock
    queue_of = functools.cache(functools.partial(DeviceQueue, options=options or settings.queue_options, clock=clock))
    runners: dict[str, Runner] = {
        entry.name: WatchedRunner(entry, sam, queue_of(sam.device))
        for entry, sam in zip((LOADED, SECOND), sams, strict=False)
    }
    if unet is not None:
        runners[LOADED_UNET.name] = WatchedUNetRunner(LOADED_UNET, unet, queue_of(unet.device))
    runners |= more(queue_of)
    options_of_captures = settings.capture_options
    captures = None
    if options_of_captures is not None:
        captures = open_captures(options_of_captures, max_pixels=settings.max_pixels, observer=observer)
    return Pipelines.of(Engine(runners, catalogue, settings, clock=clock), cache, observer, captures)
