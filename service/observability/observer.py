"""What the running system has to tell, apart from who listens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from models.catalog import CatalogueEntry, Family

CacheEvent = Literal["hit", "miss", "eviction"]
Outcome = Literal["ok", "refused", "shed", "failed", "gone"]
Stage = Literal["encode", "mask_decode", "infer"]

STAGES: Final[Mapping[Family, tuple[Stage, ...]]] = {"sam": ("encode", "mask_decode"), "unet": ("infer",)}
"""Of a model's work on a device."""


class Observer:
    """Hears everything and does nothing with it; listeners override what they want to hear."""

    def request_started(self, endpoint: str) -> None:
        """A request came; `requested` tells of its end."""

    def request_finished(self, endpoint: str, model: str, outcome: Outcome, seconds: float) -> None:
        """A request was answered, refused, or left.

        Args:
            endpoint: the path.
            model: that answered, or "" where none was chosen.
            outcome: ok; refused (the request is at fault); shed (no answer in time was possible); failed; gone (the
                caller left).
            seconds: from arrival to answer.
        """

    def problem_answered(self, code: str) -> None:
        """A problem was answered, by its code."""

    def deadline_checked(self, model: str, *, met: bool) -> None:
        """A request with a deadline was answered in time, or not."""

    def batch_ran(self, runner: str, stage: Stage, size: int, seconds: float) -> None:
        """A batch of `size` items ran."""

    def item_failed(self, runner: str, stage: Stage) -> None:
        """An item failed on the device."""

    def item_waited(self, runner: str, stage: Stage, seconds: float) -> None:
        """A prepared item waited for the device."""

    def work_dropped(self, runner: str, reason: str) -> None:
        """Work was refused at the door or dropped from the queue, by reason."""

    def cache_event(self, event: CacheEvent) -> None:
        """An embedding was found, missed, or driven out."""

    def cache_bytes(self, nbytes: int) -> None:
        """The embeddings at hand take this many bytes."""

    def image_decoded(self, seconds: float) -> None:
        """An image was decoded."""

    def postprocessed(self, seconds: float) -> None:
        """A request's masks or classes were upsampled and encoded."""

    def stream_changed(self, endpoint: str, *, opened: bool) -> None:
        """A camera's stream was opened, or has ended."""

    def readiness_changed(self, *, ready: bool) -> None:
        """This worker answers requests from now on, or does so no more."""

    def model_loaded(self, entry: CatalogueEntry, *, backend: str, device: str) -> None:
        """A model is ready."""
