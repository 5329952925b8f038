"""The servers that benchmarks compare, and the model behind each: it does nothing, or waits for a given time.

It waits instead of computing, as the load generator needs the machine's cores itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from models.types import Size

BATCH: Final = 8
"""Most items of a batch, the same for all servers."""

STRIP: Final = Size(16, 256)
"""Size of the image that is sent: so small that neither its pixels nor its masks are what is measured.

A decoder batch is bounded in cells: what is one image of the full square is `BATCH` of these."""

ANSWER: Final[dict[str, list[int]]] = {"masks": []}
"""Of the servers that know no masks."""

_COST: Final = "BENCH_COST_MS"
_TIMEOUT: Final = "BENCH_TIMEOUT_MS"


@dataclass(frozen=True, slots=True)
class Work:
    """What the model of a server does.

    Attributes:
        fixed_ms: wait of every batch.
        per_item_ms: further wait for every item in it.
        timeout_ms: the server's own timeout, where it has one; None leaves its default.
    """

    fixed_ms: float = 0.0
    per_item_ms: float = 0.0
    timeout_ms: int | None = None

    def seconds(self, items: int) -> float:
        """Return how long a batch takes."""
        return (self.fixed_ms + items * self.per_item_ms) / 1000

    @property
    def capacity_per_s(self) -> float:
        """Items per second in full batches, one after another."""
        return BATCH / self.seconds(BATCH)

    def run(self, items: int) -> None:
        """Wait as long as a batch takes, on the calling thread."""
        seconds = self.seconds(items)
        if seconds > 0:
            time.sleep(seconds)

    def environment(self) -> dict[str, str]:
        """Return the variables from which a server's processes read it."""
        variables = {_COST: f"{self.fixed_ms},{self.per_item_ms}"}
        return variables if self.timeout_ms is None else variables | {_TIMEOUT: str(self.timeout_ms)}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Work:
        """Read what `environment` wrote."""
        fixed, per_item = environment[_COST].split(",")
        timeout = environment.get(_TIMEOUT)
        return cls(float(fixed), float(per_item), None if timeout is None else int(timeout))
