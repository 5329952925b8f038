"""A runner owns one model on one device: its queue, its batches, and what it learned of their times."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.backends.base import Embedding, SamBackend
from models.sam.constants import INPUT_SIDE, LOGITS_SIDE, MASK_TOKENS
from models.sam.prompts import pack
from models.transforms import Frame, frame_for
from models.types import Logits, Pixels, Point, Prompt, Size
from models.zoo import CatalogueEntry
from service.batching import BatchPolicy
from service.device_queue import DeviceQueue, Place, Ran, Tells
from service.keys import DecodeKey, EncodeKey, decode_key, encode_key, share, stage
from service.observability.observer import Observer
from service.service_times import ServiceTimes
from service.work import Limits, Piece, QueueOptions, Terms

_GOOD_ENOUGH: Final = 1.05
"""A batch size whose time per item is within this of the best is preferred where it is smaller: it answers sooner."""


_NO_BOUND: Final = sys.maxsize


@dataclass(frozen=True, slots=True)
class Decoded:
    """The decoder's output for the prompts of one request.

    Attributes:
        logits: float32 (P, 4, h, w), of what the encoder saw.
        scores: float32 (P, 4), predicted IoU.
    """

    logits: Logits
    scores: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Some prompts of one request, as a decoder batch holds them."""

    embedding: Embedding
    prompts: Sequence[Prompt]
    frame: Frame


@dataclass(frozen=True, slots=True)
class Reservation:
    """The places of one request.

    Attributes:
        encode: the encoder's place, or None where the embedding is at hand or on its way.
        decode: rows of the request's prompts, and the decoder's place of each group.
    """

    encode: Place | None
    decode: Sequence[tuple[list[int], Place]]

    def leave(self) -> None:
        """Give up every place that is not running."""
        if self.encode is not None:
            self.encode.leave()
        for _, place in self.decode:
            place.leave()


class SamRunner:
    """One SAM on one device.

    Encoder batches span requests, decoder batches span requests and pictures; encoder and decoder share the device and
    so one queue, in which their batches compete by urgency and deadline.

    Args:
        entry: what the backend was loaded from.
        backend: the model.
        options: of the queue.
        clock: seconds, monotonic.
        observer: hears of batches, waits and drops.
    """

    def __init__(
        self,
        entry: CatalogueEntry,
        backend: SamBackend,
        *,
        options: QueueOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
    ) -> None:
        self.entry = entry
        self.backend = backend
        self._clock = clock
        self._times = ServiceTimes(family=type)
        self._pictures = backend.picture_batches[-1]
        self._prompts = backend.prompt_batches[-1]
        policy: BatchPolicy[Any] = BatchPolicy(self._limits, self._times, clock=clock, options=options)
        tells = Tells(entry.name, observer or Observer(), stage)
        self._queue = DeviceQueue(self._run_batch, policy, clock=clock, tells=tells)

    @property
    def broken(self) -> bool:
        """The device failed for good."""
        return self._queue.broken

    async def warm_up(self) -> None:
        """Time every batch size that the backend offers, keep the sizes that pay, and teach the queue their times.

        The second of two runs counts: the first compiles kernels and allocates buffers.
        """
        await asyncio.to_thread(self._warm_up)

    def _warm_up(self) -> None:
        frame = frame_for(Size(INPUT_SIDE, INPUT_SIDE))
        prepared = self.prepare(np.zeros((INPUT_SIDE, INPUT_SIDE, 3), np.uint8), frame)
        self._pictures = _best_size(
            {size: self._timed(encode_key(frame), [prepared] * size, size) for size in self.backend.picture_batches}
        )
        if self.backend.flexible:
            # A second size teaches how the time grows with the pixels.
            small = frame_for(Size(INPUT_SIDE // 2, INPUT_SIDE // 2), INPUT_SIDE // 2)
            pixels = np.zeros((small.resized.height, small.resized.width, 3), np.uint8)
            self._timed(encode_key(small), [self.prepare(pixels, small)], 1)
        embedding = self.backend.encode([prepared])[0]
        click, guess = (Point(8, 8),), np.zeros((LOGITS_SIDE, LOGITS_SIDE), np.float32)
        with_mask = _Prompts(embedding, [Prompt(click, mask=guess)], frame)
        self._timed(decode_key(frame, with_mask=True), [with_mask], 1)
        work = _Prompts(embedding, [Prompt(click)], frame)
        key = decode_key(frame, with_mask=False)
        self._prompts = _best_size(
            {size: self._timed(key, [work] * size, size) for size in self.backend.prompt_batches}
        )

    def prepare(self, pixels: Pixels, frame: Frame) -> Any:
        """Turn a resized picture into what the encoder takes; for worker threads."""
        return self.backend.prepare(pixels, frame)

    def reserve(
        self, terms: Terms, prompts: Sequence[Prompt], frame: Frame, *, encode: bool, ready_by: float, last: bool = True
    ) -> Reservation:
        """Take the places of one request at the door.

        Args:
            terms: of the request; the deadline is when the last mask must be off the device.
            prompts: what will be decoded.
            frame: how the picture lies in the model's square.
            encode: whether the picture must be encoded first.
            ready_by: when the picture should be prepared, seconds on the clock.
            last: no smaller frame is tried after this one.

        Raises:
            Overloaded, DeadlineUnreachable: by the policy.
            NotReady: the server is shutting down.
            DeviceBroken: the device failed for good.
        """
        groups = self._groups(prompts)
        pieces = [
            Piece(
                decode_key(frame, with_mask=prompts[rows[0]].mask is not None),
                terms,
                len(rows) * share(frame),
                ready_by,
            )
            for rows in groups
        ]
        if encode:
            decoding = sum(self._times.predict(piece.key, piece.cost) for piece in pieces)
            before = None if terms.deadline is None else terms.deadline - decoding
            pieces.insert(0, self._encoding(Terms(terms.arrived, before, terms.urgency), frame, ready_by))
        places = self._queue.reserve(*pieces, may_probe=last)
        first = places.pop(0) if encode else None
        return Reservation(first, list(zip(groups, places, strict=True)))

    def reserve_encode(self, terms: Terms, frame: Frame, *, ready_by: float) -> Place:
        """Take a place for an encoding alone, by the same rules."""
        (place,) = self._queue.reserve(self._encoding(terms, frame, ready_by))
        return place

    def _encoding(self, terms: Terms, frame: Frame, ready_by: float) -> Piece:
        return Piece(encode_key(frame), terms, frame.padded.pixels / 1e6, ready_by)

    async def encode(self, place: Place, prepared: Any) -> Ran[Embedding]:
        """Encode a prepared picture in its place.

        Raises:
            DeadlineExceeded: it was dropped from the queue.
            BackendError: the device failed.
        """
        return await place.run(prepared)

    async def decode(
        self, reservation: Reservation, embedding: Embedding, prompts: Sequence[Prompt], frame: Frame
    ) -> Ran[Decoded]:
        """Decode the prompts of one request in their places.

        Raises:
            DeadlineExceeded: some were dropped from the queue.
            BackendError: the device failed.
        """
        logits = np.empty((len(prompts), MASK_TOKENS, frame.logits.height, frame.logits.width), np.float32)
        scores = np.empty((len(prompts), MASK_TOKENS), np.float32)
        started = self._clock()
        done = await asyncio.gather(
            *(
                place.run(_Prompts(embedding, [prompts[row] for row in rows], frame))
                for rows, place in reservation.decode
            )
        )
        for (rows, _), ran in zip(reservation.decode, done, strict=True):
            logits[rows], scores[rows] = ran.value
        # Groups that shared a batch were started together, and ran once.
        ran_for = sum({ran.started: ran.ran for ran in done}.values())
        # Groups of one request wait for each other too: what was not running was waiting.
        queued = max(0.0, self._clock() - started - ran_for)
        return Ran(Decoded(logits, scores), queued, ran_for, max(ran.batch for ran in done))

    async def close(self, within: float) -> None:
        """Finish what was admitted, for at most `within` seconds, and stop the device's thread."""
        await self._queue.close(within)

    def _groups(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Rows of at most a batch's prompts, those with a mask apart from those without."""
        groups = (
            [row for row, prompt in enumerate(prompts) if prompt.mask is None],
            [row for row, prompt in enumerate(prompts) if prompt.mask is not None],
        )
        return [group[i : i + self._prompts] for group in groups for i in range(0, len(group), self._prompts)]

    def _limits(self, key: Hashable) -> Limits:
        if isinstance(key, EncodeKey):
            return Limits(self._pictures, math.inf)
        return Limits(_NO_BOUND, self._prompts)

    def _run_batch(self, key: Hashable, payloads: Sequence[Any]) -> Sequence[Any]:
        """What the device's thread does."""
        if isinstance(key, EncodeKey):
            return self.backend.encode(payloads)
        groups: Sequence[_Prompts] = payloads
        index = np.repeat(np.arange(len(groups)), [len(group.prompts) for group in groups])
        packed = pack(
            [prompt for group in groups for prompt in group.prompts],
            [group.frame for group in groups for _ in group.prompts],
        )
        logits, scores = self.backend.decode([group.embedding for group in groups], index, packed)
        return [(logits[index == number], scores[index == number]) for number in range(len(groups))]

    def _timed(self, key: EncodeKey | DecodeKey, payloads: Sequence[Any], count: int) -> float:
        """Seconds per item of the second of two runs."""
        self._run_batch(key, payloads)
        started = self._clock()
        self._run_batch(key, payloads)
        seconds = self._clock() - started
        share = 1.0 if isinstance(key, DecodeKey) else key.padded.pixels / 1e6
        self._times.learn(key, count * share, seconds)
        return seconds / count


def _best_size(seconds_per_item: dict[int, float]) -> int:
    """The smallest batch size that is about as good as the best."""
    best = min(seconds_per_item.values())
    return next(size for size, seconds in seconds_per_item.items() if seconds <= best * _GOOD_ENOUGH)
