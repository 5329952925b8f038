"""A SAM on a device: batches of images for the encoder, batches of prompts for the mask decoder."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from models.backends.base import Embedding, SamBackend
from models.catalog import CatalogueEntry, Family
from models.letterbox import Letterbox, letterbox_for
from models.sam.constants import INPUT_SIDE
from models.sam.postprocess import MaskCrop, chosen_tokens, crop_of
from models.sam.prompts import pack
from models.types import Logits, Pixels, Point, Prompt, Size
from service.runners.base import Runner, best_size, megapixels, share
from service.scheduler.policy import Limits, Requester, WorkItem
from service.scheduler.queue import BatchKey, BatchResult, DeviceQueue, Ticket

_MARGIN: Final = 0.25
"""Fraction of a request's time that is kept where a smaller letterbox may be used: single encodings were measured to
take up to a third longer than the median, and being late is worse than being coarse."""

_UNLIMITED: Final = sys.maxsize
_NONE: Final = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the decoder found for the prompts of one request: of each the masks that are answered, best first.

    Attributes:
        logits: of each prompt float32 (masks, h, w), of what the encoder saw.
        scores: of each prompt float32 (masks,), predicted IoU.
    """

    logits: Sequence[Logits]
    scores: Sequence[NDArray[np.float32]]

    def crops(self, row: int, letterbox: Letterbox) -> Iterator[MaskCrop]:
        """Yield the masks of the prompt in `row` one at a time; for worker threads."""
        for logits, score in zip(self.logits[row], self.scores[row].tolist(), strict=True):
            yield crop_of(logits, score, letterbox)


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Prompts of one request, as a decoder batch holds them."""

    embedding: Embedding
    prompts: Sequence[Prompt]
    letterbox: Letterbox


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the device returned for `_Prompts`, and how many prompts of all requests were decoded together."""

    logits: Logits
    scores: NDArray[np.float32]
    batch_size: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """The places of one request.

    Attributes:
        encode: at the encoder, or None where the embedding is cached or being made.
        decode: rows of the request's prompts, and the ticket at the decoder, of each group.
    """

    encode: Ticket | None
    decode: Sequence[tuple[list[int], Ticket]]

    def release(self) -> None:
        """Give up every place that is not running."""
        if self.encode is not None:
            self.encode.release()
        for _, ticket in self.decode:
            ticket.release()


class SamRunner(Runner):
    """One SAM on one device; see `Runner`.

    Encoder batches span requests, decoder batches span requests and images. Encoder and decoder share the device and
    so its queue, in which their batches compete by urgency and deadline. Cost is counted in megapixels of what the
    encoder sees, and in prompts on the full square of 1024.
    """

    family: ClassVar[Family] = "sam"

    def __init__(self, entry: CatalogueEntry, backend: SamBackend, queue: DeviceQueue) -> None:
        super().__init__(entry, backend, queue)
        self.backend = backend
        self._max_prompts = backend.prompt_batches[-1]

    @property
    def prompts_at_once(self) -> int:
        """Prompts of the largest batch that pays, on the full square."""
        return self._max_prompts

    def prepare(self, pixels: Pixels, letterbox: Letterbox) -> Any:
        """Return the encoder's input from a resized image; for worker threads."""
        return self.backend.prepare(pixels, letterbox)

    def reserve(
        self,
        request: Requester,
        prompts: Sequence[Prompt],
        letterbox: Letterbox,
        *,
        deadline: float | None,
        encode: bool,
        ready_by: float,
        last: bool = True,
    ) -> Reservation:
        """Reserve the places of one request on arrival.

        Args:
            request: whose prompts they are.
            prompts: what will be decoded.
            letterbox: how the image fits into the model's square.
            deadline: when the last mask must be off the device.
            encode: whether the image must be encoded first.
            ready_by: when the image should be prepared; this and the deadline in seconds on the clock.
            last: whether no smaller letterbox is tried after this one.

        Raises:
            Overloaded, DeadlineUnreachable: by the policy.
            NotReady: the server is shutting down.
            DeviceBroken: the device failed for good.
        """
        margin = 0.0 if last or not encode or deadline is None else _MARGIN * (deadline - request.arrived)
        groups = self._groups(prompts)
        items: list[WorkItem[BatchKey, Any]] = [
            WorkItem(
                self._decode_key(letterbox, with_mask=prompts[rows[0]].mask is not None),
                request,
                deadline=deadline,
                cost=len(rows) * share(letterbox),
                ready_by=ready_by,
                margin=margin,
            )
            for rows in groups
        ]
        if encode:
            decoding = sum(self._queue.predict(item.key, item.cost) for item in items)
            before = None if deadline is None else deadline - decoding
            items.insert(0, self._encoding(request, letterbox, before, ready_by, margin))
        tickets = self._queue.reserve(*items, may_probe=last)
        first = tickets.pop(0) if encode else None
        return Reservation(first, list(zip(groups, tickets, strict=True)))

    def reserve_encode(
        self, request: Requester, letterbox: Letterbox, *, deadline: float | None, ready_by: float
    ) -> Ticket:
        """Reserve a place for an encoding alone; see `reserve`."""
        (ticket,) = self._queue.reserve(self._encoding(request, letterbox, deadline, ready_by, 0.0))
        return ticket

    async def encode(self, ticket: Ticket, prepared: Any) -> BatchResult[Embedding]:
        """Encode a prepared image.

        Raises:
            DeadlineExceeded: the item was dropped from the queue.
            BackendError: the device failed.
        """
        return await ticket.run(prepared)

    async def decode(
        self, reservation: Reservation, embedding: Embedding, prompts: Sequence[Prompt], letterbox: Letterbox
    ) -> BatchResult[Decoded]:
        """Decode the prompts of one request.

        Returns:
            The decoder's output; the batch size is in prompts, of the largest batch with any of these.

        Raises:
            DeadlineExceeded: an item was dropped from the queue.
            BackendError: the device failed.
        """
        logits: list[Logits] = [_NONE] * len(prompts)
        scores: list[NDArray[np.float32]] = [_NONE] * len(prompts)
        started = self._queue.clock()

        async def decode(rows: list[int], ticket: Ticket) -> BatchResult[int]:
            result = await ticket.run(_Prompts(embedding, [prompts[row] for row in rows], letterbox))
            answers: _Answers = result.value
            for at, row in enumerate(rows):
                tokens = chosen_tokens(answers.scores[at], multimask=prompts[row].multimask)
                # Copied, so that the batch and the other tokens are not kept.
                logits[row], scores[row] = answers.logits[at, tokens], answers.scores[at, tokens]
            return replace(result, value=answers.batch_size)

        done = await asyncio.gather(*(decode(rows, ticket) for rows, ticket in reservation.decode))
        # Groups that shared a batch were started together, and ran once.
        ran = sum({result.started: result.ran for result in done}.values())
        # Groups of one request wait for each other too: what was not running was waiting.
        queued = max(0.0, self._queue.clock() - started - ran)
        return BatchResult(Decoded(logits, scores), queued, ran, max(result.value for result in done))

    def _encode_key(self, letterbox: Letterbox) -> BatchKey:
        return BatchKey(self._model, "encode", (letterbox.side, letterbox.padded))

    def _decode_key(self, letterbox: Letterbox, *, with_mask: bool) -> BatchKey:
        return BatchKey(self._model, "mask_decode", (letterbox.side, letterbox.padded, with_mask))

    def _encoding(
        self, request: Requester, letterbox: Letterbox, deadline: float | None, ready_by: float, margin: float
    ) -> WorkItem[BatchKey, Any]:
        cost = megapixels(letterbox.padded)
        key = self._encode_key(letterbox)
        return WorkItem(key, request, deadline=deadline, cost=cost, ready_by=ready_by, margin=margin)

    def _warm_up(self) -> None:
        stretched = self.backend.stretched_to
        side = stretched or INPUT_SIDE
        letterbox = letterbox_for(Size(side, side), side, "square" if stretched is None else "stretch")
        prepared = self.prepare(np.zeros((side, side, 3), np.uint8), letterbox)
        key, cost = self._encode_key(letterbox), megapixels(letterbox.padded)
        self._max_images = best_size(
            self.backend.image_batches, lambda size: self._timed(key, [prepared] * size, size * cost)
        )
        if self.backend.flexible:
            # A second size teaches how the time grows with the pixels.
            small = letterbox_for(Size(INPUT_SIDE // 2, INPUT_SIDE // 2), INPUT_SIDE // 2)
            pixels = np.zeros((small.resized.height, small.resized.width, 3), np.uint8)
            self._timed(self._encode_key(small), [self.prepare(pixels, small)], megapixels(small.padded))
        embedding = self.backend.encode([prepared])[0]
        click, guess = (Point(8, 8),), np.zeros((letterbox.logits.height, letterbox.logits.width), np.float32)
        with_mask = _Prompts(embedding, [Prompt(click, mask=guess)], letterbox)
        self._timed(self._decode_key(letterbox, with_mask=True), [with_mask], share(letterbox))
        work = _Prompts(embedding, [Prompt(click)], letterbox)
        decoding = self._decode_key(letterbox, with_mask=False)
        self._max_prompts = best_size(
            self.backend.prompt_batches, lambda size: self._timed(decoding, [work] * size, size * share(letterbox))
        )

    def _groups(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return rows of at most a batch's prompts, those with a mask apart from those without."""
        groups = (
            [row for row, prompt in enumerate(prompts) if prompt.mask is None],
            [row for row, prompt in enumerate(prompts) if prompt.mask is not None],
        )
        step = self._max_prompts
        return [group[i : i + step] for group in groups for i in range(0, len(group), step)]

    def _limits(self, key: BatchKey) -> Limits:
        if key.stage == "encode":
            return Limits(self._max_images, math.inf)
        return Limits(_UNLIMITED, self._max_prompts)

    def _execute(self, key: BatchKey, payloads: Sequence[Any]) -> Sequence[Any]:
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
            _Answers(logits[index == number], scores[index == number], batch_size=len(index))
            for number in range(len(groups))
        ]
