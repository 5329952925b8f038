"""A runner owns one model on one device and the thread that feeds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.backends.base import Embedding, SamBackend
from models.sam.constants import LOGITS_SIDE, MASK_TOKENS
from models.sam.prompts import pack
from models.transforms import Frame, frame_for
from models.types import Logits, Pixels, Point, Prompt, Size
from models.zoo import CatalogueEntry

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ran(Generic[T]):
    """What came off the device, with the seconds it waited for the device and ran on it."""

    value: T
    queued: float
    ran: float


@dataclass(frozen=True, slots=True)
class Decoded:
    """The decoder's output for the prompts of one request.

    Attributes:
        logits: float32 (P, 4, 256, 256), of the padded square.
        scores: float32 (P, 4), predicted IoU.
    """

    logits: Logits
    scores: NDArray[np.float32]


class SamRunner:
    """One SAM on one device: calls run one at a time, in order of arrival.

    Args:
        entry: what the backend was loaded from.
        backend: the model.
    """

    def __init__(self, entry: CatalogueEntry, backend: SamBackend) -> None:
        self.entry = entry
        self.backend = backend
        self._device = ThreadPoolExecutor(1, thread_name_prefix=f"pomona-{entry.name}")

    async def warm_up(self) -> None:
        """Run every path once, so that the first request finds compiled kernels and allocated buffers."""
        frame = frame_for(Size(1024, 1024))
        embedding = (await self.encode(self.prepare(np.zeros((1024, 1024, 3), np.uint8)))).value
        guess = np.zeros((LOGITS_SIDE, LOGITS_SIDE), np.float32)
        for prompt in (Prompt((Point(8, 8),)), Prompt((Point(8, 8),), mask=guess)):
            for count in {1, self.backend.max_prompts}:
                await self.decode(embedding, [prompt] * count, frame)

    def prepare(self, pixels: Pixels) -> Any:
        """Turn a resized picture into what `encode` takes; for worker threads."""
        return self.backend.prepare(pixels)

    async def encode(self, prepared: Any) -> Ran[Embedding]:
        """Encode one prepared picture.

        Raises:
            BackendError: the device failed.
        """
        return await self._run(lambda: self.backend.encode([prepared])[0])

    async def decode(self, embedding: Embedding, prompts: Sequence[Prompt], frame: Frame) -> Ran[Decoded]:
        """Decode checked prompts on one picture, in calls that keep memory bounded.

        Raises:
            BackendError: the device failed.
        """
        logits = np.empty((len(prompts), MASK_TOKENS, LOGITS_SIDE, LOGITS_SIDE), np.float32)
        scores = np.empty((len(prompts), MASK_TOKENS), np.float32)
        queued = ran = 0.0
        for rows in self._chunks(prompts):
            packed = pack([prompts[row] for row in rows], [frame] * len(rows))
            picture = np.zeros(len(rows), np.int64)
            done = await self._run(
                lambda picture=picture, packed=packed: self.backend.decode(  # type: ignore[misc]
                    [embedding], picture, packed
                )
            )
            logits[rows], scores[rows] = done.value
            queued += done.queued
            ran += done.ran
        return Ran(Decoded(logits, scores), queued, ran)

    def close(self) -> None:
        """Finish what was submitted and stop the device's thread."""
        self._device.shutdown(wait=True)

    def _chunks(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Rows of at most `max_prompts`, those with a mask apart from those without."""
        groups = (
            [row for row, prompt in enumerate(prompts) if prompt.mask is None],
            [row for row, prompt in enumerate(prompts) if prompt.mask is not None],
        )
        size = self.backend.max_prompts
        return [group[i : i + size] for group in groups for i in range(0, len(group), size)]

    async def _run(self, call: Callable[[], T]) -> Ran[T]:
        submitted = time.perf_counter()

        def timed() -> Ran[T]:
            started = time.perf_counter()
            value = call()
            return Ran(value, started - submitted, time.perf_counter() - started)

        return await asyncio.get_running_loop().run_in_executor(self._device, timed)
