"""What the running system reports, apart from who receives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from models.catalog import CatalogueEntry, Family

CacheEvent = Literal["hit", "miss", "eviction"]
SessionEvent = Literal["opened", "closed", "expired", "refused"]
Outcome = Literal["ok", "refused", "shed", "failed", "gone"]
Stage = Literal["encode", "mask_decode", "track", "infer"]

STAGES: Final[Mapping[Family, tuple[Stage, ...]]] = {
    "sam": ("encode", "mask_decode"),
    "sam2": ("encode", "mask_decode", "track"),
    "unet": ("infer",),
    "detector": ("infer",),
    "grounding": ("infer",),
}
"""Of a model's work on a device."""


class Observer:
    """Receives everything and does nothing with it; subclasses override what they need."""

    def request_started(self, endpoint: str) -> None:
        """Receive that a request arrived; `request_finished` follows."""

    def request_finished(self, endpoint: str, model: str, outcome: Outcome, seconds: float) -> None:
        """Receive the end of a request.

        Args:
            endpoint: the path or method.
            model: that answered, or "" where none was chosen.
            outcome: ok; refused (the request is at fault); shed (no answer in time was possible); failed; gone (the
                caller left).
            seconds: from arrival to answer.
        """

    def caller_answered(self, caller: str, outcome: Outcome) -> None:
        """Receive the end of a request whose API key has this name, beside `request_finished`."""

    def track_session(self, event: SessionEvent) -> None:
        """Receive that a session of `track` was opened, closed by its caller or its stream, expired, or refused."""

    def track_held(self, sessions: int, nbytes: int) -> None:
        """Receive how many sessions of `track` are open, and the bytes set aside for what they remember."""

    def problem_answered(self, code: str) -> None:
        """Receive the code of a problem that was answered."""

    def deadline_checked(self, model: str, *, met: bool) -> None:
        """Receive whether a request with a deadline was answered in time."""

    def batch_ran(self, model: str, stage: Stage, size: int, seconds: float) -> None:
        """Receive the size and the time of a batch."""

    def item_failed(self, model: str, stage: Stage) -> None:
        """Receive that an item failed on the device."""

    def item_waited(self, model: str, stage: Stage, seconds: float) -> None:
        """Receive how long a prepared item waited for the device."""

    def work_dropped(self, model: str, reason: str) -> None:
        """Receive why work was refused on arrival or dropped from the queue."""

    def cache_event(self, event: CacheEvent) -> None:
        """Receive that an embedding was found, missed, or evicted."""

    def cache_bytes(self, nbytes: int) -> None:
        """Receive the bytes of all cached embeddings."""

    def memory_used(self, kind: str, nbytes: int) -> None:
        """Receive the bytes that requests hold of the memory budget, by kind: input, queued, work."""

    def memory_limited(self, nbytes: int) -> None:
        """Receive the memory budget."""

    def image_decoded(self, seconds: float) -> None:
        """Receive how long an image took to decode."""

    def postprocessed(self, seconds: float) -> None:
        """Receive how long the masks or classes of a request took to upsample and encode."""

    def stream_changed(self, endpoint: str, *, opened: bool) -> None:
        """Receive that a stream was opened, or ended."""

    def readiness_changed(self, *, ready: bool) -> None:
        """Receive whether this worker answers requests from now on."""

    def model_loaded(self, entry: CatalogueEntry, *, backend: str, device: str) -> None:
        """Receive that a model is ready."""
