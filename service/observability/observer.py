"""What the running system reports, apart from who receives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from models.catalog import CatalogueEntry, Family

CacheEvent = Literal["hit", "miss", "eviction"]
CaptureResult = Literal["kept", "duplicate", "limited", "dropped", "too_large", "unreadable", "failed"]
SessionEvent = Literal["opened", "closed", "expired", "refused"]
Outcome = Literal["ok", "refused", "shed", "failed", "gone"]
LoadOutcome = Literal["loaded", "failed"]
ShadowOutcome = Literal["compared", "skipped", "failed"]
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

    def capture_ended(self, result: CaptureResult, reasons: Sequence[str]) -> None:
        """Receive what became of a frame that was offered for capture, and why it was offered; from any thread."""

    def captures_opened(self, nbytes: int) -> None:
        """Receive that frames are captured from now on, and the bytes of the captures on disk."""

    def capture_bytes(self, nbytes: int) -> None:
        """Receive the bytes of all captures on disk; from any thread."""

    def drift_measured(self, model: str, statistic: str, index: float) -> None:
        """Receive the population stability index of recent numbers of a statistic."""

    def readiness_changed(self, *, ready: bool) -> None:
        """Receive whether this worker answers requests from now on."""

    def model_loaded(self, entry: CatalogueEntry, *, backend: str, device: str, active: bool = True) -> None:
        """Receive that a revision of a model is ready, and whether it answers requests that name none."""

    def model_unloaded(self, entry: CatalogueEntry, *, backend: str, device: str) -> None:
        """Receive that a revision is not loaded any more."""

    def model_load_ended(self, model: str, outcome: LoadOutcome, seconds: float) -> None:
        """Receive how the loading of a revision ended while the service ran, and how long it took."""

    def shadow_ended(self, model: str, outcome: ShadowOutcome) -> None:
        """Receive what became of a frame that a second revision was to answer too."""

    def shadow_compared(
        self, model: str, iou: float | None, fraction_differences: Sequence[float], grade_changes: int
    ) -> None:
        """Receive how the answers of two revisions for one frame differ; see `service.pipelines.comparison`."""
