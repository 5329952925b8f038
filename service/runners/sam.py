"""A SAM on a device: batches of images for the encoder, batches of prompts for the mask decoder."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from models.backends.base import Embedding, SamBackend
from models.catalog import CatalogueEntry, Family
from models.letterbox import Letterbox, letterbox_for
from models.sam.constants import INPUT_SIDE, LOGITS_SIDE, MASK_TOKENS
from models.sam.prompts import pack
from models.types import Logits, Pixels, Point, Prompt, Size
from service.runners.base import Runner, best_size
from service.runners.keys import Key, decode_key, encode_key, megapixels, share
from service.scheduler.policy import Limits, WorkItem
from service.scheduler.queue import BatchResult, DeviceQueue, Ticket

_SPARE: Final = 0.25
"""Of a request's time, kept where a smaller letterbox could do: single encodings were measured to take up to a third longer
than the median, and being late is worse than being coarse."""

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
    letterbox: Letterbox


@dataclass(frozen=True, slots=True)
class _Answered:
    """What came off the device for `_Prompts`, and how many prompts of all requests were decoded together."""

    logits: Logits
    scores: NDArray[np.float32]
    together: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """The places of one request.

    Attributes:
        encode: the encoder's ticket, or None where the embedding is at hand or on its way.
        decode: rows of the request's prompts, and the decoder's ticket of each group.
    """

    encode: Ticket | None
    decode: Sequence[tuple[list[int], Ticket]]

    def release(self) -> None:
        """Give up every ticket that is not running."""
        if self.encode is not None:
            self.encode.release()
        for _, ticket in self.decode:
            ticket.release()


class SamRunner(Runner):
    """One SAM on one device; see `Runner`.

    Encoder batches span requests, decoder batches span requests and images; encoder and decoder share the device and
    so its queue, in which their batches compete by urgency and deadline.
    """

    family: ClassVar[Family] = "sam"

    def __init__(self, entry: CatalogueEntry, backend: SamBackend, queue: DeviceQueue) -> None:
        super().__init__(entry, backend, queue)
        self.backend = backend
        self._prompts = backend.prompt_batches[-1]

    def prepare(self, pixels: Pixels, letterbox: Letterbox) -> Any:
        """Turn a resized image into what the encoder takes; for worker threads."""
        return self.backend.prepare(pixels, letterbox)

    def reserve(
        self,
        request: Any,
        prompts: Sequence[Prompt],
        letterbox: Letterbox,
        *,
        deadline: float | None,
        encode: bool,
        ready_by: float,
        last: bool = True,
    ) -> Reservation:
        """Take the places of one request at the door.

        Args:
            terms: of the request; the deadline is when the last mask must be off the device.
            prompts: what will be decoded.
            letterbox: how the image lies in the model's square.
            encode: whether the image must be encoded first.
            ready_by: when the image should be prepared, seconds on the clock.
            last: no smaller letterbox is tried after this one.

        Raises:
            Overloaded, DeadlineUnreachable: by the policy.
            NotReady: the server is shutting down.
            DeviceBroken: the device failed for good.
        """
        margin = 0.0
        if encode and not last and deadline is not None:
            margin = _SPARE * (deadline - request.arrived)
        groups = self._groups(prompts)
        pieces = [
            WorkItem(
                decode_key(self._owner, letterbox, with_mask=prompts[rows[0]].mask is not None),
                request,
                deadline=deadline,
                margin=margin,
                cost=len(rows) * share(letterbox),
                ready_by=ready_by,
            )
            for rows in groups
        ]
        if encode:
            decoding = sum(self._queue.predict(piece.key, piece.cost) for piece in pieces)
            before = None if deadline is None else deadline - decoding
            pieces.insert(0, self._encoding(request, letterbox, before, ready_by, margin))
        places = self._queue.reserve(*pieces, may_probe=last)
        first = places.pop(0) if encode else None
        return Reservation(first, list(zip(groups, places, strict=True)))

    def reserve_encode(self, request: Any, letterbox: Letterbox, *, deadline: float | None, ready_by: float) -> Ticket:
        """Take a ticket for an encoding alone, by the same rules."""
        (ticket,) = self._queue.reserve(self._encoding(request, letterbox, deadline, ready_by, 0.0))
        return ticket

    def _encoding(
        self, request: Any, letterbox: Letterbox, deadline: float | None, ready_by: float, margin: float
    ) -> Any:
        return WorkItem(
            encode_key(self._owner, letterbox),
            request,
            deadline=deadline,
            margin=margin,
            cost=megapixels(letterbox.padded),
            ready_by=ready_by,
        )

    async def encode(self, ticket: Ticket, prepared: Any) -> BatchResult[Embedding]:
        """Encode a prepared image in its ticket.

        Raises:
            DeadlineExceeded: it was dropped from the queue.
            BackendError: the device failed.
        """
        return await ticket.run(prepared)

    async def decode(
        self, reservation: Reservation, embedding: Embedding, prompts: Sequence[Prompt], letterbox: Letterbox
    ) -> BatchResult[Decoded]:
        """Decode the prompts of one request in their places.

        Returns:
            what the decoder said; the batch is counted in prompts, of the largest that held any of these.

        Raises:
            DeadlineExceeded: some were dropped from the queue.
            BackendError: the device failed.
        """
        logits = np.empty((len(prompts), MASK_TOKENS, letterbox.logits.height, letterbox.logits.width), np.float32)
        scores = np.empty((len(prompts), MASK_TOKENS), np.float32)
        started = self._queue.clock()
        done = await asyncio.gather(
            *(
                ticket.run(_Prompts(embedding, [prompts[row] for row in rows], letterbox))
                for rows, ticket in reservation.decode
            )
        )
        for (rows, _), ran in zip(reservation.decode, done, strict=True):
            logits[rows], scores[rows] = ran.value.logits, ran.value.scores
        # Groups that shared a batch were started together, and ran once.
        ran_for = sum({ran.started: ran.ran for ran in done}.values())
        # Groups of one request wait for each other too: what was not running was waiting.
        queued = max(0.0, self._queue.clock() - started - ran_for)
        return BatchResult(Decoded(logits, scores), queued, ran_for, max(ran.value.together for ran in done))

    def _warm_up(self) -> None:
        letterbox = letterbox_for(Size(INPUT_SIDE, INPUT_SIDE))
        encoding = encode_key(self._owner, letterbox)
        prepared = self.prepare(np.zeros((INPUT_SIDE, INPUT_SIDE, 3), np.uint8), letterbox)
        self._images = best_size(
            self.backend.image_batches,
            lambda size: self._timed(encoding, [prepared] * size, size * megapixels(letterbox.padded)),
        )
        if self.backend.flexible:
            # A second size teaches how the time grows with the pixels.
            small = letterbox_for(Size(INPUT_SIDE // 2, INPUT_SIDE // 2), INPUT_SIDE // 2)
            pixels = np.zeros((small.resized.height, small.resized.width, 3), np.uint8)
            self._timed(encode_key(self._owner, small), [self.prepare(pixels, small)], megapixels(small.padded))
        embedding = self.backend.encode([prepared])[0]
        click, guess = (Point(8, 8),), np.zeros((LOGITS_SIDE, LOGITS_SIDE), np.float32)
        with_mask = _Prompts(embedding, [Prompt(click, mask=guess)], letterbox)
        self._timed(decode_key(self._owner, letterbox, with_mask=True), [with_mask], 1)
        work = _Prompts(embedding, [Prompt(click)], letterbox)
        decoding = decode_key(self._owner, letterbox, with_mask=False)
        self._prompts = best_size(self.backend.prompt_batches, lambda size: self._timed(decoding, [work] * size, size))

    def _groups(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Rows of at most a batch's prompts, those with a mask apart from those without."""
        groups = (
            [row for row, prompt in enumerate(prompts) if prompt.mask is None],
            [row for row, prompt in enumerate(prompts) if prompt.mask is not None],
        )
        return [group[i : i + self._prompts] for group in groups for i in range(0, len(group), self._prompts)]

    def _limits(self, key: Key) -> Limits:
        if key.stage == "encode":
            return Limits(self._images, math.inf)
        return Limits(_NO_BOUND, self._prompts)

    def _run_batch(self, key: Key, payloads: Sequence[Any]) -> Sequence[Any]:
        """What the device's thread does."""
        if key.stage == "encode":
            return self.backend.encode(payloads)
        groups: Sequence[_Prompts] = payloads
        index = np.repeat(np.arange(len(groups)), [len(group.prompts) for group in groups])
        packed = pack(
            [prompt for group in groups for prompt in group.prompts],
            [group.letterbox for group in groups for _ in group.prompts],
        )
        logits, scores = self.backend.decode([group.embedding for group in groups], index, packed)
        return [
            _Answered(logits[index == number], scores[index == number], together=len(index))
            for number in range(len(groups))
        ]
