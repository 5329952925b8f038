"""Keeps offered frames off the request's path: one bounded queue, one thread, at most so many an hour.

Offering never waits and never fails. What the queue has no room for, what looks like a frame that is kept already and
what the hour has no room for is dropped and counted; so is what the disk does not take.
"""

from __future__ import annotations

import datetime
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from models.errors import ImageError
from service.api import schema
from service.capture.fingerprint import THUMBNAIL, Fingerprint
from service.capture.folder import CaptureFolder
from service.capture.records import Capture, Offer, Reason
from service.observability.observer import CaptureResult, Observer

QUEUE_BYTES: Final = 64 << 20
"""Most that frames take that wait to be written."""

WORK_BYTES: Final = 64 << 20
"""Most that reading a frame for its fingerprint may take; larger images are not kept."""

RESERVED_BYTES: Final = QUEUE_BYTES + WORK_BYTES
_SILENT_S: Final = 60.0
"""What capturing may take, which requests cannot have."""

_QUEUED: Final = 32
_HOUR_S: Final = 3600.0
_LOOKS: Final = 10
"""Frames that are decoded and compared for each that may be kept, so that a scene that does not change costs little."""

_LOG: Final = logging.getLogger("pomona.capture")


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What is captured, and how much of it.

    Attributes:
        folder: of the captures.
        max_bytes: of all of them together.
        per_hour: most that are kept in any hour.
        confidence: see `service.capture.reasons.HardFrames`; so for the next two.
        grade_margin: of a grade's limit.
        sample: of all answers.
    """

    folder: Path
    max_bytes: int
    per_hour: int
    confidence: float
    grade_margin: float
    sample: float


class Pace:
    """Counts what was kept in the last hour. One reason alone may take half of it, so that none drives out the others.

    Args:
        per_hour: most in any hour.
        clock: seconds, monotonic.
    """

    def __init__(self, per_hour: int, clock: Callable[[], float]) -> None:
        self._per_hour = per_hour
        self._clock = clock
        self._kept: deque[tuple[float, tuple[Reason, ...]]] = deque(maxlen=per_hour)
        self._looks: deque[float] = deque(maxlen=_LOOKS * per_hour)

    def allows(self, reasons: tuple[Reason, ...]) -> bool:
        """Return whether a frame with these reasons may be looked at and kept now."""
        since = self._clock() - _HOUR_S
        while self._kept and self._kept[0][0] <= since:
            self._kept.popleft()
        if len(self._kept) == self._per_hour or (len(self._looks) == self._looks.maxlen and self._looks[0] > since):
            return False
        most = (self._per_hour + 1) // 2
        return any(sum(reason in kept for _, kept in self._kept) < most for reason in reasons)

    def looked(self) -> None:
        """Count a frame that is looked at."""
        self._looks.append(self._clock())

    def kept(self, reasons: tuple[Reason, ...]) -> None:
        """Count a frame that is kept."""
        self._kept.append((self._clock(), reasons))


class Captures:
    """See the module. Its thread begins with the first offer.

    Args:
        folder: prepared.
        per_hour: most frames that are kept in any hour.
        max_pixels: of an image.
        observer: receives what becomes of each offer.
        clock: seconds, monotonic.
        now: time of day, UTC.
    """

    def __init__(
        self,
        folder: CaptureFolder,
        *,
        per_hour: int,
        max_pixels: int,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._folder = folder
        self._max_pixels = max_pixels
        self._observer = observer or Observer()
        self._now = now
        self._pace = Pace(per_hour, clock)
        self._changed = threading.Condition()
        self._waiting: deque[Offer] = deque()
        self._busy: Offer | None = None
        self._until: float | None = None
        self._thread: threading.Thread | None = None
        self._clock = clock
        self._failing, self._silent_until = False, -math.inf
        self._count_kept()

    def offer(self, offer: Offer) -> None:
        """Keep a frame, later and if there is room for it; never waits."""
        with self._changed:
            result = self._refusal(offer)
            if result is None:
                self._waiting.append(offer)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
                    self._thread.start()
                self._changed.notify_all()
        if result is not None:
            self._observer.capture_ended(result, offer.reasons)

    def idle(self, within: float) -> bool:
        """Wait until all that was offered is written or dropped; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and self._busy is None, within)

    def close(self, within: float) -> None:
        """Take no more, and write what waits for at most `within` seconds; the rest is dropped."""
        with self._changed:
            self._until = time.monotonic() + within
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(within)
        with self._changed:
            left = list(self._waiting)
            self._waiting.clear()
        for offer in left:
            self._observer.capture_ended("dropped", offer.reasons)

    def _refusal(self, offer: Offer) -> CaptureResult | None:
        if offer.nbytes > QUEUE_BYTES:
            return "too_large"
        if not self._pace.allows(offer.reasons):
            return "limited"
        waiting = sum(each.nbytes for each in self._waiting) + (self._busy.nbytes if self._busy else 0)
        full = len(self._waiting) >= _QUEUED or waiting + offer.nbytes > QUEUE_BYTES
        return "dropped" if full or self._until is not None else None

    def _next(self) -> Offer | None:
        """Wait for an offer; None where there will be none, or no time for it."""
        with self._changed:
            self._busy = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._until is not None)
            if not self._waiting or (self._until is not None and time.monotonic() >= self._until):
                return None
            self._busy = self._waiting.popleft()
            return self._busy

    def _run(self) -> None:
        while (offer := self._next()) is not None:
            try:
                result = self._keep(offer)
            except ImageError:
                result = "unreadable"
            except OSError as error:
                result = "failed"
                self._failed(error)
            except Exception:  # noqa: BLE001 (the thread must go on; it is logged)
                result = "failed"
                _LOG.exception("a frame cannot be captured", extra={"request_id": offer.request_id})
            self._observer.capture_ended(result, offer.reasons)
            del offer  # it holds an image until the next one comes

    def _keep(self, offer: Offer) -> CaptureResult:
        with self._changed:
            if not self._pace.allows(offer.reasons):
                return "limited"
            self._pace.looked()
        source = offer.source
        size = source.size(self._max_pixels)
        if source.decoding(size, [THUMBNAIL]) > WORK_BYTES:
            return "too_large"
        (pixels,) = source.resized([THUMBNAIL], self._max_pixels, lambda: False, scaled=True)
        fingerprint = Fingerprint.of(pixels)
        if fingerprint.is_like_any(kept.fingerprint for kept in self._folder.captures()):
            return "duplicate"
        data, ending = source.file()
        capture = Capture(
            captured_at=self._now().isoformat(),
            reasons=offer.reasons,
            request_id=offer.request_id,
            image=schema.Image(id=source.content_id(), width=size.width, height=size.height),
            file=f"image.{ending}",
            frame=offer.frame,
            answer=None if offer.answer is None else offer.answer(),
            problem=offer.problem,
            remark=offer.remark,
        )
        kept = self._folder.keep(capture, data, fingerprint)
        if kept is None:
            return "too_large"
        with self._changed:
            self._pace.kept(offer.reasons)
        self._observer.capture_bytes(sum(each.nbytes for each in kept))
        if self._failing:
            self._failing = False
            _LOG.info("frames are captured again", extra={"folder": str(self._folder.root)})
        return "kept"

    def _failed(self, error: OSError) -> None:
        """Log a failure, at most one a minute: a small frame may fit on a full disk now and then."""
        now = self._clock()
        if not self._failing and now >= self._silent_until:
            self._failing, self._silent_until = True, now + _SILENT_S
            _LOG.error(
                "frames cannot be captured; the service goes on without, and tries again with the next ones",
                extra={"folder": str(self._folder.root), "detail": error.strerror or str(error)},
            )

    def _count_kept(self) -> None:
        try:
            self._observer.captures_opened(sum(kept.nbytes for kept in self._folder.captures()))
        except OSError as error:
            self._failed(error)


def open_captures(options: CaptureOptions, *, max_pixels: int, observer: Observer | None = None) -> Captures:
    """Open the folder of captures, which is made where there is none.

    Raises:
        CaptureFolderError: nothing can be written there.
    """
    folder = CaptureFolder(options.folder, options.max_bytes)
    folder.prepare()
    return Captures(folder, per_hour=options.per_hour, max_pixels=max_pixels, observer=observer)
