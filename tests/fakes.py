"""A SAM that can be worked out by hand, a clock that tests turn, pictures of one colour, and a pipeline of these."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models.backends.base import BackendName, Embedding
from models.sam.constants import INPUT_SIDE, LABEL_BOX_BOTTOM_RIGHT, LABEL_BOX_TOP_LEFT, LOGITS_SIDE, MASK_TOKENS
from models.sam.prompts import PackedPrompts
from models.types import BinaryMask, Logits, Pixels, Size
from models.zoo import Architecture, CatalogueEntry
from service.embedding_cache import EmbeddingCache
from service.pipeline import Pipeline
from service.runners import SamRunner
from service.settings import Settings

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

LOADED: Final = CatalogueEntry("orange-sam", Architecture.MOBILE_SAM, "CC0-1.0", "orange.pt", 1, "0a" * 32, ())
SECOND: Final = CatalogueEntry("lemon-sam", Architecture.MOBILE_SAM, "CC0-1.0", "lemon.pt", 1, "0b" * 32, ())
NOT_LOADED: Final = CatalogueEntry("melon-sam", Architecture.SAM_VIT_B, "CC0-1.0", "melon.pt", 1, "0c" * 32, ())
CATALOGUE: Final = {entry.name: entry for entry in (LOADED, SECOND, NOT_LOADED)}


@dataclass(frozen=True)
class DecodeCall:
    prompts: int
    with_masks: bool


@dataclass
class FakeSam:
    """A backend whose masks are rectangles.

    A picture's embedding is its mean colour. A prompt's rectangle is its box, or a square around its first point, made
    smaller on each side by the token's inset. Logits are distances to the rectangle's edge in pixels of the model's
    square, positive inside, times 1 + the mean red / 255. A prompt that brings a mask gets this mask's logits back.
    """

    max_prompts: int = 4
    name: BackendName = "torch"
    device: str = "fake:0"
    fails: Exception | None = None
    """Raised by `encode` and `decode` while it is set."""
    blocks: threading.Event | None = None
    """What `encode` waits for where it is set."""
    entered: threading.Event = field(default_factory=threading.Event)
    """Set once `encode` was called."""
    prepares: int = 0
    encodes: list[int] = field(default_factory=list)
    """Pictures in each call."""
    decodes: list[DecodeCall] = field(default_factory=list)
    decoding_s: float = 0.0
    """Of all calls to `decode` together."""
    overlapped: bool = False
    """Whether two calls ever ran at the same time."""
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self, pixels: Pixels) -> NDArray[np.float32]:
        self.prepares += 1
        colour: NDArray[np.float32] = pixels.reshape(-1, 3).mean(axis=0).astype(np.float32)
        return colour

    def encode(self, prepared: Sequence[NDArray[np.float32]]) -> list[Embedding]:
        self.encodes.append(len(prepared))
        self._alone()
        try:
            self.entered.set()
            if self.blocks is not None and not self.blocks.wait(PATIENCE_S):
                raise AssertionError("the test never let the encoder go on")
            if self.fails is not None:
                raise self.fails
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
            if self.fails is not None:
                raise self.fails
            colours = np.stack([embedding for embedding in embeddings if isinstance(embedding, np.ndarray)])
            logits = np.empty((count, MASK_TOKENS, LOGITS_SIDE, LOGITS_SIDE), np.float32)
            for row in range(count):
                if prompts.mask_inputs is not None:
                    logits[row] = prompts.mask_inputs[row]
                    continue
                distances = _distances(prompts.coords[row], prompts.labels[row].tolist())
                for token, inset in enumerate(INSETS):
                    logits[row, token] = (distances - inset) * (1 + colours[image_index[row], 0] / 255)
            return logits, np.tile(np.asarray(SCORES, np.float32), (count, 1))
        finally:
            self.decoding_s += time.perf_counter() - started
            self._busy.release()

    def _alone(self) -> None:
        if not self._busy.acquire(blocking=False):
            self.overlapped = True
            self._busy.acquire()


def _distances(coords: NDArray[np.float32], labels: list[int]) -> NDArray[np.float32]:
    """From each cell's centre to the edge of the prompt's rectangle, positive inside: float32 (256, 256)."""
    if LABEL_BOX_TOP_LEFT in labels:
        low, high = coords[labels.index(LABEL_BOX_TOP_LEFT)], coords[labels.index(LABEL_BOX_BOTTOM_RIGHT)]
    else:
        low, high = coords[0] - HALF_SIDE, coords[0] + HALF_SIDE
    cell = INPUT_SIDE // LOGITS_SIDE
    centres = (np.arange(LOGITS_SIDE, dtype=np.float32) + 0.5) * cell
    along_x = np.minimum(centres - low[0], high[0] - centres)
    along_y = np.minimum(centres - low[1], high[1] - centres)
    distances: NDArray[np.float32] = np.minimum(along_y[:, None], along_x[None, :]).astype(np.float32)
    return distances


@dataclass
class FakeClock:
    """Seconds that pass when the test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


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


def make_pipeline(*sams: FakeSam, settings: Settings | None = None, cache: EmbeddingCache | None = None) -> Pipeline:
    """A pipeline that serves the first one or two models of `CATALOGUE`; to be closed."""
    entries = (LOADED, SECOND)
    if cache is None:
        cache = EmbeddingCache(max_bytes=100 * EMBEDDING_BYTES, max_age=600)
    return Pipeline(
        runners={entry.name: SamRunner(entry, sam) for entry, sam in zip(entries, sams, strict=False)},
        catalogue=CATALOGUE,
        cache=cache,
        settings=settings or make_settings(),
    )
