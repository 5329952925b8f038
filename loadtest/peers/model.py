"""The model behind every server: nothing, or a wait, as the load's generator needs the machine's cores itself."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

BATCH: Final = 8
"""Most items of a batch, the same for all servers."""

ANSWER: Final[dict[str, list[int]]] = {"masks": []}
"""Of the servers that know no masks."""

_COST: Final = "BENCH_COST_MS"
_TIMEOUT: Final = "BENCH_TIMEOUT_MS"


@dataclass(frozen=True, slots=True)
class Work:
    """What a server is started with.

    Attributes:
        fixed_ms: of every batch.
        per_item_ms: of every item in it.
        timeout_ms: what a server's own timeout is set to where it has one; None leaves its default.
    """

    fixed_ms: float = 0.0
    per_item_ms: float = 0.0
    timeout_ms: int | None = None

    def seconds(self, items: int) -> float:
        """Of a batch."""
        return (self.fixed_ms + items * self.per_item_ms) / 1000

    @property
    def capacity_per_s(self) -> float:
        """Items per second in full batches, one after another."""
        return BATCH / self.seconds(BATCH)

    def run(self, items: int) -> None:
        """Be busy with a batch, on the calling thread."""
        seconds = self.seconds(items)
        if seconds > 0:
            time.sleep(seconds)

    def environment(self) -> dict[str, str]:
        """Tell a server's processes."""
        told = {_COST: f"{self.fixed_ms},{self.per_item_ms}"}
        return told if self.timeout_ms is None else told | {_TIMEOUT: str(self.timeout_ms)}

    @classmethod
    def told(cls, environment: Mapping[str, str] = os.environ) -> Work:
        """What `environment` told."""
        fixed, per_item = environment[_COST].split(",")
        timeout = environment.get(_TIMEOUT)
        return cls(float(fixed), float(per_item), None if timeout is None else int(timeout))
