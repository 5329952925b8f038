"""The U-Net's part of an inspection: at three scales where a SAM follows, at one in mode `fast`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.types import Pixels
from models.unet.letterbox import UNetLetterbox
from service.api.context import RequestContext
from service.runners.unet import UNetRunner
from service.scheduler.queue import Ticket


@dataclass(frozen=True, slots=True)
class Look:
    """How the image fits into what the U-Net sees, and its places on the device, one for each scale.

    Attributes:
        runner: of the U-Net.
        letterboxes: one, or those of `UNetRunner.scales`.
        tickets: one for each letterbox.
    """

    runner: UNetRunner
    letterboxes: Sequence[UNetLetterbox]
    tickets: Sequence[Ticket]

    @classmethod
    def reserve(
        cls,
        runner: UNetRunner,
        letterboxes: Sequence[UNetLetterbox],
        context: RequestContext,
        *,
        deadline: float | None,
        ready_by: float,
    ) -> Look:
        """Reserve the places on arrival.

        Args:
            runner: of the U-Net.
            letterboxes: of the image.
            context: of the request.
            deadline: when the image must be off the device.
            ready_by: when the image should be prepared; both in seconds on the clock.

        Raises:
            Overloaded, DeadlineUnreachable: by the policy.
        """
        return cls(
            runner, letterboxes, runner.reserve_scales(context, letterboxes, deadline=deadline, ready_by=ready_by)
        )

    def prepare(self, pixels: Sequence[Pixels]) -> Sequence[Any]:
        """Return the network's inputs from images of the letterboxes' sizes; for worker threads."""
        return [self.runner.prepare(*each) for each in zip(pixels, self.letterboxes, strict=True)]

    async def see(self, prepared: Sequence[Any], context: RequestContext) -> Sequence[NDArray[np.float32]]:
        """Run the network on prepared images.

        Returns:
            Its output for each letterbox.

        Raises:
            DeadlineExceeded: an image was dropped from the queue.
            BackendError: the device failed.
        """
        results = await asyncio.gather(*map(self.runner.infer, self.tickets, prepared))
        context.timings.queue, context.timings.infer = results[0].queued, sum(each.ran for each in results)
        context.batch.infer = results[0].batch_size
        return [each.value for each in results]

    def release(self) -> None:
        """Release every place that is not running."""
        for ticket in self.tickets:
            ticket.release()
