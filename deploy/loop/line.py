"""The line that goes on meanwhile: sends frames at a steady pace, and counts what comes back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from pomona import Client, PomonaError

_KEPT: Final = 5
"""Reasons of lost frames that are named."""


@dataclass
class Counts:
    """What became of the frames of a line.

    Attributes:
        sent: frames.
        answered: by revision.
        lost: why, the first few; `sent` less all that was answered says how many.
    """

    sent: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)

    @property
    def unanswered(self) -> int:
        """Frames without an answer."""
        return self.sent - self.answered.total()


class Line:
    """Sends frames in turn while it is entered.

    Args:
        client: does not retry, so that what is lost is seen.
        frames: ids and images.
        every_s: seconds between an answer and the next frame.
    """

    def __init__(self, client: Client, frames: Sequence[tuple[str, bytes]], every_s: float) -> None:
        self.counts = Counts()
        self._client, self._frames, self._every_s = client, frames, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="line")

    def __enter__(self) -> Line:
        """Start sending."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop sending, after the last answer."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            frame_id, image = self._frames[self.counts.sent % len(self._frames)]
            self.counts.sent += 1
            try:
                answer = self._client.inspect(image, mode="fast", frame_id=frame_id)
            except PomonaError as error:
                if len(self.counts.lost) < _KEPT:
                    self.counts.lost.append(f"{type(error).__name__}: {error}")
            else:
                self.counts.answered[answer.unet.revision] += 1
            self._ended.wait(self._every_s)
