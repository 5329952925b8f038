"""The benchmark's model on plain BentoML: an API of its own with its batcher, one worker.

bentoml serve loadtest.peers.serve_bentoml:Plain
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bentoml

from loadtest.peers.model import ANSWER, BATCH, Work

_WORK = Work.told()
_DEFAULT_MAX_LATENCY_MS = 60_000


@bentoml.service(name="plain", workers=1, logging={"access": {"enabled": False}})
class Plain:
    """Answers nothing about images."""

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=_WORK.timeout_ms or _DEFAULT_MAX_LATENCY_MS)
    def segment(self, images: list[Path]) -> list[dict[str, Any]]:
        """One answer for each."""
        _WORK.run(len(images))
        return [ANSWER] * len(images)
