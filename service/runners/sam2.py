"""A SAM 2 on a device: what a SAM does, and objects followed over the frames of videos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from models.backends.base import Embedding, Sam2Backend
from models.catalog import CatalogueEntry, Family
from models.letterbox import Letterbox, letterbox_for
from models.sam2.frames import FrameInputs, TrackedMask
from models.sam2.memory import TrackState
from models.types import Point, Prompt, Size
from service.runners.sam import SamRunner
from service.scheduler.policy import Limits, Requester, WorkItem
from service.scheduler.queue import BatchKey, BatchResult, DeviceQueue, Ticket

_FULL: Final = 7
"""Frames after which an object's memories are as many as they get without further prompts."""


@dataclass(frozen=True, slots=True)
class TrackPlaces:
    """The places of one frame at the encoder and at the tracker."""

    encode: Ticket
    track: Ticket

    def release(self) -> None:
        """Give up every place that is not running."""
        self.encode.release()
        self.track.release()


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame of a video, as the tracker takes it."""

    state: TrackState
    embedding: Embedding
    inputs: FrameInputs


class Sam2Runner(SamRunner):
    """One SAM 2 on one device; see `SamRunner`.

    Frames of videos share encoder batches with images. Each is then looked at alone, with all objects of its video: the
    device's other work gets its turn between the frames.
    """

    family: ClassVar[Family] = "sam2"

    def __init__(self, entry: CatalogueEntry, backend: Sam2Backend, queue: DeviceQueue) -> None:
        super().__init__(entry, backend, queue)
        self.tracker = backend

    @property
    def tracks(self) -> bool:
        """Whether it follows objects: whether its checkpoint has the weights of the memory."""
        return self.tracker.object_bytes is not None

    def letterbox(self, size: Size) -> Letterbox:
        """Stretch an image to the model's square."""
        return letterbox_for(size, self.tracker.side, "stretch")

    def reserve_frame(
        self, request: Requester, letterbox: Letterbox, objects: int, *, deadline: float | None, ready_by: float
    ) -> TrackPlaces:
        """Reserve the places of one frame of a video; see `SamRunner.reserve`.

        Args:
            request: whose frame it is.
            letterbox: how it fits into the model's square.
            objects: how many are looked for.
            deadline: when the last mask must be off the device.
            ready_by: when the frame should be prepared; this and the deadline in seconds on the clock.
        """
        key = self._track_key()
        before = None if deadline is None else deadline - self._queue.predict(key, objects)
        encoding = self._encoding(request, letterbox, before, ready_by, 0.0)
        tracking: WorkItem[BatchKey, Any] = WorkItem(key, request, deadline=deadline, cost=objects, ready_by=ready_by)
        encode, track = self._queue.reserve(encoding, tracking)
        return TrackPlaces(encode, track)

    async def track(
        self, ticket: Ticket, state: TrackState, embedding: Embedding, inputs: FrameInputs
    ) -> BatchResult[list[TrackedMask]]:
        """Find the objects of a video on its next frame.

        Raises:
            DeadlineExceeded: the item was dropped from the queue; `state` is as before.
            BackendError: the device failed; `state` is as before.
        """
        return await ticket.run(_Frame(state, embedding, inputs))

    def _track_key(self) -> BatchKey:
        return BatchKey(self._model, "track", None)

    def _warm_up(self) -> None:
        super()._warm_up()
        if not self.tracks:
            return
        side = self.tracker.side
        letterbox = self.letterbox(Size(side, side))
        (embedding,) = self.backend.encode([self.prepare(np.full((side, side, 3), 127, np.uint8), letterbox)])
        state, centre = TrackState(), Prompt((Point(side / 2, side / 2),))
        self.tracker.track(state, embedding, FrameInputs(letterbox, {1: centre}))
        for _ in range(_FULL - 2):
            self.tracker.track(state, embedding, FrameInputs(letterbox))
        self._timed(self._track_key(), [_Frame(state, embedding, FrameInputs(letterbox))], 1)

    def _limits(self, key: BatchKey) -> Limits:
        return Limits(1, math.inf) if key.stage == "track" else super()._limits(key)

    def _execute(self, key: BatchKey, payloads: Sequence[Any]) -> Sequence[Any]:
        if key.stage != "track":
            return super()._execute(key, payloads)
        frames: Sequence[_Frame] = payloads
        return [self.tracker.track(frame.state, frame.embedding, frame.inputs) for frame in frames]
